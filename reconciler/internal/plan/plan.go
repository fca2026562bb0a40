// Package plan decides what an event causes: which runs start, which compositions
// do not and by which clause, what a change changes, who must approve it, and what
// the forge is to be told. It is pure. The runs that are made are those of the
// plan, because the same function answers both the question and the deed.
package plan

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Input is all that a plan depends on. Equal inputs give equal plans, in whatever
// order their lists come. Of keeps parts of it in the plan and changes nothing.
type Input struct {
	// Default is the branch whose configuration is in force.
	Default pipeline.Ref
	// Base is what is in force, nil when nothing is: its policy judges, and what runs
	// outside of the default branch uses its pools and secrets. Head is what the
	// event's commit declares; for an event that no commit of the ops repository makes
	// (cron, after, webhook, manual, what happens to a source repository) it is Base.
	Base, Head *pipeline.Config
	// Event is what happens. For the question what merging a change will do it is the
	// push that the merge makes: kind push, the default branch, the change's head.
	Event pipeline.Event
	// Paths changed between Base and Head. PathsUnknown: they could not be listed
	// (too many, or the base is gone), so that every paths clause is met.
	Paths        []string
	PathsUnknown bool
	// Params that the asking person gave, a JSON object; only with a manual event.
	Params json.RawMessage
	// Filled are the values of Plan.Blanks of an earlier plan of this input.
	Filled []Filled
	// Fleet is a snapshot of what runs, nil when nobody was asked: then the plan says
	// nothing of agents, queues and times.
	Fleet *Fleet
	// Now is when the question is put; firings of cron triggers are counted from it.
	Now time.Time
}

// Fleet is what was there when the question was put.
type Fleet struct {
	At      time.Time
	Agents  []Agent
	Runs    []Unfinished
	History []History
}

// Agent is an agent as a plan sees it.
type Agent struct {
	ID pipeline.AgentID
	// Name is what people call it.
	Name      string
	Pool      pipeline.PoolName
	Untrusted bool
	// Facts is the decoded JSON object that it reported.
	Facts any
	// Online: connected and renewing. Busy: some run has it.
	Online, Busy bool
}

// Unfinished is a run that has not ended.
type Unfinished struct {
	Run         pipeline.RunID
	Composition pipeline.CompositionName
	Number      int
	// Group is its concurrency group, "" for none.
	Group string
	State pipeline.State
	// Waiting: it has not begun, because it is behind other runs.
	Waiting bool
}

// History is how long earlier runs of a composition took, in any order: from being
// made to the start of their first task, and from there to their end.
type History struct {
	Composition pipeline.CompositionName
	Waits       []time.Duration
	Durations   []time.Duration
}

// Blank is a value that an event causes and only an evaluation knows: the params of
// a trigger that read the event, or a concurrency group that reads params. The
// caller fills it and plans again; until it has, the run is shown but not whole.
type Blank struct {
	Composition pipeline.CompositionName `json:"composition"`
	Blank       pipeline.Blank           `json:"blank"`
	// Params of the run, for a group; nil for a trigger.
	Params json.RawMessage `json:"params,omitempty"`
}

// Filled is the JSON value of a Blank, or the sentence that says why it has none.
type Filled struct {
	Blank
	Value   json.RawMessage
	Problem string
}

// Plan is what an event causes. Its lists are sorted, so that equal plans are equal
// as JSON.
type Plan struct {
	Event pipeline.Event    `json:"event"`
	Base  pipeline.CommitID `json:"base,omitempty"`
	Head  pipeline.CommitID `json:"head,omitempty"`
	// Digest names what the change means: what it changes, what it starts and with
	// which text, and whose approval it needs. Formatting, comments, the place of
	// declarations, messages, commits, agents and the clock are no part of it. An
	// approval counts for one digest.
	Digest pipeline.Digest `json:"digest"`

	// Runs start, by composition. Verdicts has one for every composition that the
	// event concerns. Blanks must be filled before the runs can be made.
	Runs     []Run              `json:"runs,omitempty"`
	Verdicts []pipeline.Verdict `json:"verdicts,omitempty"`
	Blanks   []Blank            `json:"blanks,omitempty"`

	// Changes are what Head declares otherwise than Base.
	Changes []Change `json:"changes,omitempty"`
	// Unchanged counts the compositions that are the same.
	Unchanged int `json:"unchanged"`
	// Breaks are the uses of plugins that a changed manifest does not allow.
	Breaks []Break `json:"breaks,omitempty"`
	// Secrets that compositions can reach with Head and not with Base.
	Secrets []Reach `json:"secrets,omitempty"`
	// Firings are the cron triggers that come, go or move.
	Firings []Firing `json:"firings,omitempty"`
	// Listeners are the triggers on source repositories that come or go.
	Listeners []Listener `json:"listeners,omitempty"`
	// Approvals that the policy of Base asks for before the change is merged.
	Approvals   []Approval            `json:"approvals,omitempty"`
	Diagnostics []pipeline.Diagnostic `json:"diagnostics,omitempty"`

	// FleetAt is when the agents were looked at, zero when they were not. Placements
	// are those of every composition that starts or changes.
	FleetAt    time.Time   `json:"fleet_at,omitzero"`
	Agents     int         `json:"agents,omitempty"`
	Placements []Placement `json:"placements,omitempty"`
}

// Run is a run to be made, from the composition of that name.
type Run struct {
	Composition *pipeline.Composition    `json:"-"`
	Name        pipeline.CompositionName `json:"composition"`
	Key         pipeline.RunKey          `json:"key,omitempty"` // "" while a blank is open
	Event       pipeline.Event           `json:"-"`
	Params      json.RawMessage          `json:"params,omitempty"`
	// Trigger is the index of the composition's trigger that fires.
	Trigger int `json:"trigger"`
	// Why is the verdict's sentence.
	Why string `json:"why"`
	// Open: a blank of this run is open, and it cannot be made yet.
	Open bool `json:"open,omitempty"`
	// Group is its concurrency group, "" for none.
	Group string `json:"group,omitempty"`
	// Behind are the runs that it waits for, Cancels those that it ends. Full: so many
	// wait already that it ends at once.
	Behind  []RunName `json:"behind,omitempty"`
	Cancels []RunName `json:"cancels,omitempty"`
	Full    bool      `json:"full,omitempty"`
	// Calls are the compositions that it calls, and those that they call in turn, by name.
	Calls []pipeline.CompositionName `json:"calls,omitempty"`
	// Gates hold the run for people, or one that it calls.
	Gates []Held `json:"gates,omitempty"`
	// Waits and Takes are what earlier runs took.
	Waits Estimate `json:"waits,omitzero"`
	Takes Estimate `json:"takes,omitzero"`
}

// RunName names a run as people do. Number 0 is a run of this plan.
type RunName struct {
	Composition pipeline.CompositionName `json:"composition"`
	Number      int                      `json:"number,omitempty"`
}

// Held is a gate of a run. Composition is "" when it is the run's own.
type Held struct {
	Composition pipeline.CompositionName `json:"composition,omitempty"`
	Task        pipeline.TaskName        `json:"task"`
	Approvers   []string                 `json:"approvers,omitempty"`
	Count       int                      `json:"count"`
}

// Estimate is the median and the 90th percentile of Of earlier runs; the zero value
// is no estimate.
type Estimate struct {
	P50 pipeline.Duration `json:"p50"`
	P90 pipeline.Duration `json:"p90"`
	Of  int               `json:"of"`
}

// Op says what becomes of something.
type Op string

const (
	Added   Op = "added"
	Removed Op = "removed"
	Changed Op = "changed"
	// Broken: the head has errors where the base declares the thing, so what becomes
	// of it is not known.
	Broken Op = "broken"
)

// Kinds of what a change changes.
const (
	KindComposition = "composition"
	KindPlugin      = "plugin"
	KindPool        = "pool"
	KindSecret      = "secret"
	KindRepository  = "repository"
	KindPolicy      = "policy"
)

// Change is one thing that the head declares otherwise than the base.
type Change struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Op   Op     `json:"op"`
	// Pos is in the head; what is removed has its place in the base.
	Pos pipeline.Position `json:"pos,omitzero"`
	// Tasks counts the tasks of a composition that is added or removed, and the
	// unchanged ones of one that is changed.
	Tasks int    `json:"tasks,omitempty"`
	Edits []Edit `json:"edits,omitempty"`
}

// Edit is a part of something changed. Old and New are as authors write them, in
// short; "" when there is none.
type Edit struct {
	Op Op `json:"op"`
	// Path leads to the part, in the author's words: tasks.deploy.fields.image.
	Path string `json:"path"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
	// Deep: its text is the same, and what the text refers to has changed.
	Deep bool              `json:"deep,omitempty"`
	Pos  pipeline.Position `json:"pos,omitzero"`
}

// Break is a use of a plugin that its changed manifest does not allow, in a
// composition that the head therefore lacks.
type Break struct {
	Plugin      pipeline.PluginName      `json:"plugin"`
	Composition pipeline.CompositionName `json:"composition"`
	Task        pipeline.TaskName        `json:"task"`
	// Field or output that does not fit; "" when the whole task definition is gone.
	Field string            `json:"field,omitempty"`
	Why   string            `json:"why"`
	Pos   pipeline.Position `json:"pos,omitzero"`
}

// Reach is a secret that a task gets.
type Reach struct {
	Secret      pipeline.SecretName      `json:"secret"`
	Composition pipeline.CompositionName `json:"composition"`
	Tasks       []pipeline.TaskName      `json:"tasks,omitempty"`
	// Moved: the composition had a secret of that name, which is read elsewhere now.
	Moved bool              `json:"moved,omitempty"`
	Pos   pipeline.Position `json:"pos,omitzero"`
}

// Firing is a cron trigger before and after, with its next firings, at most three.
type Firing struct {
	Composition pipeline.CompositionName `json:"composition"`
	Op          Op                       `json:"op"`
	Old         string                   `json:"old,omitempty"` // schedule and zone
	New         string                   `json:"new,omitempty"`
	Was         []time.Time              `json:"was,omitempty"`
	Next        []time.Time              `json:"next,omitempty"`
}

// Listener is a trigger on a source repository, that the change adds or removes.
type Listener struct {
	Composition pipeline.CompositionName `json:"composition"`
	Op          Op                       `json:"op"`
	Repo        string                   `json:"repo"`
	// On says what starts a run, as "pushes to app on main, release/*".
	On string `json:"on"`
}

// Approval is what a rule of the policy in force asks for.
type Approval struct {
	Rule      string            `json:"rule"`
	Pos       pipeline.Position `json:"pos,omitzero"`
	Approvers []string          `json:"approvers,omitempty"` // groups; none means everybody
	// People are the members of the groups.
	People []string `json:"people,omitempty"`
	Count  int      `json:"count"`
	Echo   bool     `json:"sha_echo,omitempty"` // as in pipeline.Gate
	// Because are the paths and compositions that the rule is about, at most three.
	Because []string `json:"because,omitempty"`
	// Owners, when there are any, are asked in the place of groups, as people: one of
	// them for Because, and for More paths besides. Nobody says why they are not known.
	Owners []string `json:"owners,omitempty"`
	More   int      `json:"more_paths,omitempty"`
	Nobody string   `json:"nobody,omitempty"`

	about string // all that the owners are asked for
}

// Placement says which agents can take the tasks of a composition.
type Placement struct {
	Composition pipeline.CompositionName `json:"composition"`
	Fits        []Fit                    `json:"fits,omitempty"`
}

// Fit is how many agents can take tasks that require the same.
type Fit struct {
	Tasks []pipeline.TaskName `json:"tasks"`
	Pool  pipeline.PoolName   `json:"pool,omitempty"`
	// Agents fit; of these Free are connected and have no run.
	Agents int `json:"agents"`
	Free   int `json:"free"`
	// Excluded counts the agents that each clause excludes, most first.
	Excluded []Exclusion `json:"excluded,omitempty"`
}

// Exclusion counts the agents that lack what a clause asks for.
type Exclusion struct {
	Clause string `json:"clause"`
	Agents int    `json:"agents"`
}

// Of plans an event. Input.Head must be set.
func Of(in Input) Plan {
	p := Plan{Event: in.Event, Head: in.Head.Commit, Diagnostics: sortedDiagnostics(in.Head)}
	if in.Base != nil {
		p.Base = in.Base.Commit
	}
	s := newSeal()
	p.Runs, p.Verdicts, p.Blanks = Decide(in)
	line(p.Runs, in.Fleet)
	p.calls(in.Head)
	p.Changes, p.Unchanged = s.compare(in.Base, in.Head)
	p.approvals(&in)
	p.reaches(&in)
	p.firings(&in)
	p.listeners(&in)
	p.breaks(&in)
	p.place(&in)
	p.seal(&in, s)
	p.Digest = s.digest()
	return p
}

func sortedDiagnostics(cfg *pipeline.Config) []pipeline.Diagnostic {
	out := slices.Clone(cfg.Diagnostics)
	pipeline.SortDiagnostics(out)
	return out
}
