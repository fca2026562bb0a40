package pipeline

import (
	"encoding/json"
	"slices"
	"time"
)

// Config is all that one commit of an ops repository declares, typed and checked.
// Lists are sorted by name, so equal commits have equal configurations.
type Config struct {
	Commit       CommitID      `json:"commit"`
	Compositions []Composition `json:"compositions,omitempty"`
	Pools        []Pool        `json:"pools,omitempty"`
	Plugins      []Plugin      `json:"plugins,omitempty"`
	Secrets      []Secret      `json:"secrets,omitempty"`
	Repositories []Repository  `json:"repositories,omitempty"`
	Policy       Policy        `json:"policy,omitzero"`
	// Owners are read when the policy asks for them, and only then.
	Owners Owners `json:"owners,omitzero"`
	// Diagnostics holds every mistake found. A composition with an error in its
	// unit is absent from Compositions; the others are usable.
	Diagnostics []Diagnostic `json:"diagnostics,omitempty"`
}

// Composition returns the composition of that name, or nil.
func (c *Config) Composition(name CompositionName) *Composition {
	for i := range c.Compositions {
		if c.Compositions[i].Name == name {
			return &c.Compositions[i]
		}
	}
	return nil
}

// Plugin returns the plugin of that name, or nil.
func (c *Config) Plugin(name PluginName) *Plugin {
	for i := range c.Plugins {
		if c.Plugins[i].Name == name {
			return &c.Plugins[i]
		}
	}
	return nil
}

// Repository returns the source repository of that name, or nil.
func (c *Config) Repository(name string) *Repository {
	for i := range c.Repositories {
		if c.Repositories[i].Name == name {
			return &c.Repositories[i]
		}
	}
	return nil
}

// Composition is a typed workflow.
type Composition struct {
	Name        CompositionName `json:"name"`
	Description string          `json:"description,omitempty"`
	Pos         Position        `json:"pos"`
	// Unit is the directory that was evaluated; a dispatch-time fill evaluates it again.
	Unit     string    `json:"unit"`
	Params   []Field   `json:"params,omitempty"`
	Tasks    []Task    `json:"tasks"` // in the order of the file
	Triggers []Trigger `json:"triggers,omitempty"`
	// Priority is 0 to 100; higher goes first.
	Priority int `json:"priority"`
	// Timeout bounds a whole run; 0 is none.
	Timeout Duration `json:"timeout,omitempty"`
	// Suspend keeps the composition from starting runs.
	Suspend bool `json:"suspend,omitempty"`
	// Outputs are what a caller of the composition may read, and Returns is how they
	// are computed once all tasks have succeeded.
	Outputs []Field `json:"outputs,omitempty"`
	Returns Expr    `json:"returns,omitzero"`
	// OnFailure is called when a run ends in failure, error or timeout.
	OnFailure *Hook `json:"on_failure,omitempty"`
	// Concurrency, if any, says which runs exclude each other.
	Concurrency *Concurrency `json:"concurrency,omitempty"`
	// MaxRunning and MaxQueued bound its unfinished runs; 0 is no bound.
	MaxRunning int `json:"max_running,omitempty"`
	MaxQueued  int `json:"max_queued,omitempty"`
	// Digest covers all of the above but positions.
	Digest Digest `json:"digest"`
}

// Task returns the task of that name, or nil.
func (c *Composition) Task(name TaskName) *Task {
	for i := range c.Tasks {
		if c.Tasks[i].Name == name {
			return &c.Tasks[i]
		}
	}
	return nil
}

// When a task runs, as seen from the tasks it needs.
type RunWhen string

const (
	// OnSuccess: all it needs succeeded. The default.
	OnSuccess RunWhen = "on-success"
	// Always: all it needs have ended, however.
	Always RunWhen = "always"
	// OnFailure: all it needs have ended, and at least one of them did not succeed.
	OnFailure RunWhen = "on-failure"
)

// Effect says whether a task may be started again when its agent is lost.
type Effect string

const (
	// Idempotent tasks may be started again, never two at a time. The default.
	Idempotent Effect = "idempotent"
	// Once tasks are started at most once; a lost one is in doubt until a person decides.
	Once Effect = "once"
)

// Task is one step of a composition.
type Task struct {
	Name        TaskName `json:"name"`
	Description string   `json:"description,omitempty"`
	Pos         Position `json:"pos"`
	// Places says where parts of the task are written, as "fields.image" or "timeout";
	// what is not listed is at Pos.
	Places map[string]Position `json:"places,omitempty"`
	// Uses names plugin and task, as "git/checkout".
	Plugin PluginName `json:"plugin"`
	Uses   string     `json:"uses"`
	// Tree and Programs are the plugin's, so that a run goes on with the programs it
	// was planned with whatever later commits say.
	Tree     Digest    `json:"tree,omitempty"`
	Programs []Program `json:"programs,omitempty"`
	// Needs are the tasks that must end first: those it refers to, those that its
	// bindings read, and those its author named. Sorted.
	Needs []TaskName `json:"needs,omitempty"`
	// Fields is the JSON object known when the commit was evaluated. When Deferred,
	// it lacks what refers to params, the event or outputs, and must be filled.
	Fields   json.RawMessage `json:"fields,omitempty"`
	Deferred bool            `json:"deferred,omitempty"`
	// Open are those that must be filled, by name, as their author wrote them.
	Open map[string]Expr `json:"open,omitempty"`
	// Bindings are the absent fields that take their value from an earlier task's output.
	Bindings []Binding `json:"bindings,omitempty"`
	// Outputs is the struct type that the task's outputs must have.
	Outputs Type `json:"outputs"`
	// Secrets are the names of the secrets that its fields refer to, sorted.
	Secrets     []SecretName `json:"secrets,omitempty"`
	Requirement Requirement  `json:"requirement"`
	Timeout     Duration     `json:"timeout,omitempty"`
	// StartTimeout is how long it may be ready and have no agent, 0 for ever.
	StartTimeout Duration `json:"start_timeout,omitempty"`
	// LostAfter is how long an agent may be silent before the task is given up.
	LostAfter Duration `json:"lost_after,omitempty"`
	Retries   Retries  `json:"retries,omitzero"`
	When      RunWhen  `json:"when,omitempty"`
	Effect    Effect   `json:"effect,omitempty"`
	// Continue: a failure of this task does not fail the run, and dependents run.
	Continue bool `json:"continue,omitempty"`
	// Pins are the tasks whose agent this task must share, because it reads a path of theirs.
	Pins []TaskName `json:"pins,omitempty"`
	// Priority overrides the composition's; negative when it does not.
	Priority int `json:"priority"`
	// If, when there is one, must be true, else the task is skipped.
	If *Expr `json:"if,omitempty"`
	// OnFailure is called when the task has ended in failure, error or timeout.
	OnFailure *Hook `json:"on_failure,omitempty"`
	// Exactly one of these is set on a built-in task, whose Plugin is CorePlugin: it
	// runs in the control plane and never holds an agent.
	Call *Call    `json:"call,omitempty"`
	Wait *WaitFor `json:"wait,omitempty"`
	Gate *Gate    `json:"gate,omitempty"`
	// Each, if any, makes this task one of several that share a list.
	Each *Each `json:"each,omitempty"`
}

// CorePlugin is the plugin name of built-in tasks.
const CorePlugin PluginName = "core"

// BuiltIn reports whether the control plane runs the task itself.
func (t *Task) BuiltIn() bool { return t.Plugin == CorePlugin }

// Call starts another composition of the same commit. Its params are the task's
// field "params"; its outputs come back as the task's.
type Call struct {
	Composition CompositionName `json:"composition"`
	// Digest names the called composition's text, so that a run goes on with what it
	// was planned with. Set when the run is planned.
	Digest Digest `json:"digest,omitempty"`
	// Join: the task ends with the called run, as it ended. Without it the task
	// succeeds at once, and its only output is "run".
	Join bool `json:"join"`
}

// WaitFor waits for a run of another composition.
type WaitFor struct {
	Composition CompositionName `json:"composition"`
	// AnyCommit: a run of any commit of this run's branch or the default one counts
	// that ends after the task began; else only the latest run of the waiting run's
	// commit does, ended or not.
	AnyCommit bool `json:"any_commit,omitempty"`
	// AnyResult: the run need not succeed.
	AnyResult bool     `json:"any_result,omitempty"`
	Within    Duration `json:"within"`
}

// Gate holds a run until people have reviewed it. Its message is the task's field.
type Gate struct {
	// Approvers are groups of the policy, any of which may approve; none means
	// everybody who may review.
	Approvers []string `json:"approvers,omitempty"`
	// Count is how many different people must approve, at least 1.
	Count  int      `json:"count"`
	Expire Duration `json:"expire"`
	// Echo: the text of an approval has to name the commit that is approved.
	Echo bool `json:"sha_echo,omitempty"`
}

// Each makes a task one of several over one list: the task with Index i works on
// the i-th element, counted from 1, and is skipped when the list has none. So the
// set of tasks is known when the commit is planned, and only Max bounds it.
type Each struct {
	// Of is the name that the author wrote; the tasks are called NAME-1 to NAME-Max.
	Of    TaskName `json:"of"`
	Index int      `json:"index"`
	Max   int      `json:"max"`
	Items Expr     `json:"items"`
}

// Hook calls a composition when something failed. The called run's event tells
// what failed; nobody waits for it.
type Hook struct {
	Composition CompositionName `json:"composition"`
	// Digest as in Call.
	Digest Digest `json:"digest,omitempty"`
	// Params, if any, are given to it; a param whose value reads an output that was
	// never reported is left out.
	Params Expr     `json:"params,omitzero"`
	Pos    Position `json:"pos"`
}

// Overtake says what a run does to those of its group before it.
type Overtake string

const (
	// Queue: it waits for them, in order. The default.
	Queue Overtake = "queue"
	// CancelRunning: they are cancelled.
	CancelRunning Overtake = "cancel-running"
	// LatestOnly: it waits for the one that runs; those that wait are cancelled.
	LatestOnly Overtake = "latest-only"
)

// Concurrency makes runs of one group exclude each other, across compositions.
type Concurrency struct {
	// Group is a string; it may depend on params and event.
	Group  Expr     `json:"group"`
	Policy Overtake `json:"policy"`
}

// Retries says how often a task is tried again by itself.
type Retries struct {
	Max     int      `json:"max,omitempty"`
	Backoff Duration `json:"backoff,omitempty"`
	// On lists the outcomes that are tried again; "agent-lost" is written apart
	// from error, because it is tried again for idempotent tasks in any case.
	On []State `json:"on,omitempty"`
}

// Covers reports whether an outcome is tried again. Nothing listed means error and timeout.
func (r Retries) Covers(s State) bool {
	if len(r.On) == 0 {
		return s == Error || s == Timeout
	}
	return slices.Contains(r.On, s)
}

// Binding fills Field from an output of an earlier task.
type Binding struct {
	Field string   `json:"field"`
	From  TaskName `json:"from"`
	// Output is the name of the output of From.
	Output string `json:"output"`
	// Key is the name in the context by which the two found each other.
	Key string `json:"key"`
	// Optional: the field stays absent when From reported no such output.
	Optional bool `json:"optional,omitempty"`
}

// Requirement decides where a task may run: the pool, if any, and what each
// named fact must be. An agent that lacks a fact does not match.
type Requirement struct {
	Pool  PoolName `json:"pool,omitempty"`
	Facts []Clause `json:"facts,omitempty"`
}

// Clause is a constraint on one fact.
type Clause struct {
	// Path leads to the fact, as ["memory", "total_mb"].
	Path []string `json:"path"`
	Type Type     `json:"type"`
	Pos  Position `json:"pos,omitzero"`
}

// Pool is a named set of agents.
type Pool struct {
	Name PoolName `json:"name"`
	Pos  Position `json:"pos"`
	// Facts that every agent of the pool promises to report, as a JSON object.
	Facts json.RawMessage `json:"facts,omitempty"`
	// Untrusted pools may run what nobody has approved.
	Untrusted bool `json:"untrusted,omitempty"`
}

// Secret is a reference; its value is never in the record or in a log, and in Git only
// encrypted.
type Secret struct {
	Name SecretName `json:"name"`
	Pos  Position   `json:"pos"`
	// Exactly one of Env, File and Sops is set; the reconciler reads it when a task
	// starts. Sops is a path in the ops repository, and Key what is read there.
	Env  string `json:"env,omitempty"`
	File string `json:"file,omitempty"`
	Sops string `json:"sops,omitempty"`
	Key  string `json:"key,omitempty"`
}

// Source is where the secret is read, in words.
func (s *Secret) Source() string {
	switch {
	case s.Env != "":
		return "environment variable " + s.Env
	case s.File != "":
		return "file " + s.File
	}
	return "key " + s.Key + " of " + s.Sops
}

// Repository is a source repository: another one than the ops repository, whose pushes
// and tags start runs of what the default branch of the ops repository declares.
type Repository struct {
	Name string   `json:"name"`
	Pos  Position `json:"pos"`
	// URL is a path, file://, https://, or http:// to this machine, without credentials.
	URL string `json:"url"`
	// Credentials name the secret to log in with, "" for none.
	Credentials SecretName `json:"credentials,omitempty"`
	// Trusted are patterns of the branches whose runs go by the rules for the default
	// branch of the ops repository, its secrets among them.
	Trusted []string `json:"trusted,omitempty"`
}

// Plugin is a manifest with the programs that an agent runs for it.
type Plugin struct {
	Name        PluginName `json:"name"`
	Description string     `json:"description,omitempty"`
	Pos         Position   `json:"pos"`
	// Icon is the path of an image in the plugin's folder; "" when it has none.
	Icon string `json:"icon,omitempty"`
	// Dir is its folder in the repository, or "builtin:NAME" for a standard plugin.
	Dir string `json:"dir"`
	// Tree is the Git tree of that folder, "git:…"; it pins everything in it.
	Tree     Digest       `json:"tree"`
	Programs []Program    `json:"programs"`
	Tasks    []PluginTask `json:"tasks,omitempty"`
}

// Program is how a plugin runs on one kind of machine.
type Program struct {
	// OS and Arch as Go names them; "" is any.
	OS   string `json:"os,omitempty"`
	Arch string `json:"arch,omitempty"`
	// Argv: a first element that contains a slash is relative to the plugin's
	// folder; any other is looked up in PATH. No shell sees it.
	Argv []string `json:"argv"`
	// URL and SHA256 name an archive (.tar.gz) that is unpacked over the plugin's
	// folder; both empty when the program is in the repository.
	URL    string `json:"url,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// For returns the first program that runs on the platform, or nil.
func (p *Plugin) For(os, arch string) *Program {
	for i := range p.Programs {
		q := &p.Programs[i]
		if (q.OS == "" || q.OS == os) && (q.Arch == "" || q.Arch == arch) {
			return q
		}
	}
	return nil
}

// PluginTask documents one task definition of a plugin.
type PluginTask struct {
	Name        string  `json:"name"`
	Definition  string  `json:"definition"` // as #Checkout
	Description string  `json:"description,omitempty"`
	Fields      []Field `json:"fields,omitempty"`
	Outputs     []Field `json:"outputs,omitempty"`
}

// DefaultLostAfter is how long a silent agent keeps its tasks: about the lock
// time of comparable systems, and longer than an upgrade of the control plane.
const DefaultLostAfter = 10 * time.Minute
