package pipeline

import (
	"encoding/json"
	"slices"
	"time"
)

// Run is one execution of a composition at one commit. Times are UTC; a zero
// time has not come.
type Run struct {
	ID RunID `json:"id"`
	// Number counts the runs of one composition from 1 and is never reused.
	Number      int             `json:"number"`
	Key         RunKey          `json:"key"`
	Composition CompositionName `json:"composition"`
	// Digest names the composition's text as it was planned; Body is kept under it.
	Digest Digest `json:"digest"`
	// Commit is the one of the ops repository whose text runs. Ref is that which it was
	// seen on; of a run that a source repository started it is the SourceRef.
	Commit CommitID `json:"commit"`
	Ref    Ref      `json:"ref"`
	Event  Event    `json:"event"`
	// Params are the run's parameters, defaults filled in, as a JSON object.
	Params   json.RawMessage `json:"params,omitempty"`
	Priority int             `json:"priority"`
	State    State           `json:"state"`
	// Reason says in a sentence why it is in this state, and what ends it.
	Reason string    `json:"reason,omitempty"`
	Tasks  []RunTask `json:"tasks"`
	// Cancel: someone asked the run to stop; tasks that run are told so.
	Cancel bool `json:"cancel,omitempty"`
	// Depth is how many calls and hooks lead to it; it bounds them.
	Depth int `json:"depth,omitempty"`
	// Draft: its params, its group or its place in line are being worked out. No task
	// of it starts.
	Draft bool `json:"draft,omitempty"`
	// Group is the concurrency group, "" for none. While Behind is not empty the run
	// waits for the runs it names; no task of it starts.
	Group  string  `json:"group,omitempty"`
	Behind []RunID `json:"behind,omitempty"`
	// Outputs is what the run returned to its caller, a JSON object.
	Outputs json.RawMessage `json:"outputs,omitempty"`
	// Resumes is the run that this one goes on from, nil when it is none.
	Resumes *Origin `json:"resumes,omitempty"`

	CreatedAt  time.Time `json:"created_at"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	// Version rises with each stored change; a writer that read an older one is refused.
	Version int64 `json:"version"`
}

// Kinds of event. They are stored, so a word is never renamed.
const (
	EventPush        = "push"
	EventPullRequest = "pull_request"
	EventTag         = "tag"
	EventCron        = "cron"
	EventAfter       = "after"
	EventWebhook     = "webhook"
	EventManual      = "manual"
	EventCall        = "call"    // a task of another run called it
	EventFailure     = "failure" // something failed, and it is the composition to call then
)

// Event is what asked for a run, as the composition sees it.
type Event struct {
	Kind string `json:"kind"` // see the Event… constants
	// Repo names the source repository that Ref, Head and Base are of; "" is the ops
	// repository. Config is the commit of the ops repository that was in force then, ""
	// for an event of the ops repository itself.
	Repo   string   `json:"repo,omitempty"`
	Config CommitID `json:"config,omitempty"`
	Ref    Ref      `json:"ref,omitempty"`
	Head   CommitID `json:"commit,omitempty"`
	Base   CommitID `json:"base,omitempty"`
	// Author and Subject describe the commit; they are text from outside.
	Author  string `json:"author,omitempty"`
	Subject string `json:"subject,omitempty"`
	// Proposal names the change that asks, as a branch or a number; Target is the
	// branch that it is to be merged into.
	Proposal string `json:"proposal,omitempty"`
	Target   string `json:"target,omitempty"`
	// Pull is the proposal as a pull request, nil when it is none.
	Pull *EventPull `json:"pull,omitempty"`
	// Name is what the event is for: the composition that a person asks to run, or
	// the id of a webhook.
	Name string `json:"name,omitempty"`
	// ID tells apart events that are equal otherwise: two requests of one person, two
	// deliveries of one webhook.
	ID string `json:"id,omitempty"`
	// Time is when a cron trigger was due.
	Time time.Time `json:"time,omitzero"`
	// Cause is the run that this one follows: the caller, the run that ended, or the
	// one that failed.
	Cause *Cause `json:"cause,omitempty"`
	// Payload is the body of a webhook, a JSON object.
	Payload json.RawMessage `json:"payload,omitempty"`
}

// EventPull is what an event has of a pull request, as it was then. Title and login are
// text from outside.
type EventPull struct {
	Number int     `json:"number"`
	Title  string  `json:"title,omitempty"`
	Author Account `json:"author"`
	// Fork: it comes from another repository than it is for.
	Fork bool `json:"fork,omitempty"`
}

// Cause is a run that led to another one.
type Cause struct {
	Run         RunID           `json:"run"`
	Composition CompositionName `json:"composition"`
	Number      int             `json:"number"`
	// Task that called, or that failed; "" for the run as a whole.
	Task TaskName `json:"task,omitempty"`
	// State and Reason are those at the time.
	State  State  `json:"state,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Outputs are what the run's tasks had reported, by task.
	Outputs map[TaskName]json.RawMessage `json:"outputs,omitempty"`
}

// Origin names the earlier run that something comes from; it is of the same composition.
type Origin struct {
	Run    RunID `json:"run"`
	Number int   `json:"number"`
	// By is who asked to go on from it, "" where nobody was asked.
	By string `json:"by,omitempty"`
}

// RunTask is a task of a run. Spec is what was planned and never changes.
type RunTask struct {
	Name  TaskName `json:"name"`
	Index int      `json:"index"`
	Spec  Task     `json:"spec"`
	State State    `json:"state"`
	// Reason says in a sentence why it is in this state, and what ends it.
	Reason string `json:"reason,omitempty"`
	// Epoch counts its assignments; Failures those that the retry budget pays for.
	Epoch    int64     `json:"epoch,omitempty"`
	Failures int       `json:"failures,omitempty"`
	Attempt  AttemptID `json:"attempt,omitempty"` // the latest
	Agent    AgentID   `json:"agent,omitempty"`   // of the latest attempt
	// Slot is the number of the workspace on that agent, see place.
	Slot int `json:"slot,omitempty"`
	// Outputs is the JSON object of what the task reported: all of it when it
	// succeeded, what fits its type when it did not, for those that clean up.
	Outputs json.RawMessage `json:"outputs,omitempty"`
	// Records is a JSON object of values that the task wants kept with it, for
	// people and for whoever queries them; no task reads them.
	Records json.RawMessage `json:"records,omitempty"`
	Links   []Link          `json:"links,omitempty"`
	Exit    *int            `json:"exit,omitempty"`
	// Child is the run that a call started, or that a wait found.
	Child RunID `json:"child,omitempty"`
	// Reused is the run that the result is from, nil for a task of which this run knows
	// by itself.
	Reused *Origin `json:"reused,omitempty"`
	// Cancel is why a person asked for this task alone to stop, "" when nobody did.
	Cancel string `json:"cancel,omitempty"`
	// Message is what a gate asks its reviewers, and Reviews are those that count.
	Message string   `json:"message,omitempty"`
	Reviews []Review `json:"reviews,omitempty"`

	ReadyAt    time.Time `json:"ready_at,omitzero"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	// NotBefore holds a ready task back until its retry is due.
	NotBefore time.Time `json:"not_before,omitzero"`
}

// Review is what a person said of a gate or of a change.
type Review struct {
	// By is the name that the forge knows the person by.
	By string `json:"by"`
	// Approve is false for a refusal.
	Approve bool      `json:"approve"`
	Comment string    `json:"comment,omitempty"`
	At      time.Time `json:"at"`
}

// Link is a page that a task wants people to find; only http and https are kept.
type Link struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// Reported reports whether the output of that name is among the task's outputs.
func (t *RunTask) Reported(name string) bool {
	var outputs map[string]json.RawMessage
	// What is not JSON was refused before it came here; it holds nothing.
	_ = json.Unmarshal(t.Outputs, &outputs)
	_, ok := outputs[name]
	return ok
}

// Ran reports whether the task came to an end of its own: it may have done all that
// it does.
func (t *RunTask) Ran() bool {
	switch t.State {
	case Success, Failure, Timeout:
		return true
	case Error:
		return t.Epoch > 0 // else it was never offered
	}
	return false
}

// Tolerated reports whether the task ended badly and its author said to go on.
func (t *RunTask) Tolerated() bool {
	return t.Spec.Continue && (t.State == Failure || t.State == Error || t.State == Timeout)
}

// Priority of the task: its own, else the run's.
func (r *Run) PriorityOf(t *RunTask) int {
	if t.Spec.Priority >= 0 {
		return t.Spec.Priority
	}
	return r.Priority
}

// Head is the commit that the run is about, where its statuses are shown.
func (r *Run) Head() Head {
	if r.Event.Repo != "" {
		return Head{Repo: r.Event.Repo, Commit: r.Event.Head}
	}
	return Head{Commit: r.Commit}
}

// Called reports whether another run made r: a task that calls, or something that
// failed and has a composition to call then.
func (r *Run) Called() bool { return r.Event.Kind == EventCall || r.Event.Kind == EventFailure }

// Task returns the task of that name, or nil. The result points into r.
func (r *Run) Task(name TaskName) *RunTask {
	for i := range r.Tasks {
		if r.Tasks[i].Name == name {
			return &r.Tasks[i]
		}
	}
	return nil
}

// Clone copies the run so that its tasks may be changed; specs and raw JSON are shared.
func (r *Run) Clone() *Run {
	c := *r
	c.Tasks = slices.Clone(r.Tasks)
	return &c
}

// AttemptState is where one assignment stands.
type AttemptState string

const (
	AttemptOffered AttemptState = "offered"
	AttemptRunning AttemptState = "running"
	// AttemptDone: the agent's result was recorded.
	AttemptDone AttemptState = "done"
	// AttemptDeclined: the agent refused, or did not answer in time; it did not start.
	AttemptDeclined AttemptState = "declined"
	// AttemptLost: the agent was silent for too long; its result no longer counts,
	// unless the task is in doubt.
	AttemptLost AttemptState = "lost"
)

// Attempt is one assignment of a task to an agent.
type Attempt struct {
	ID      AttemptID    `json:"id"`
	Run     RunID        `json:"run"`
	Task    TaskName     `json:"task"`
	Agent   AgentID      `json:"agent"`
	Token   Token        `json:"token"`
	State   AttemptState `json:"state"`
	Outcome State        `json:"outcome,omitempty"`
	Reason  string       `json:"reason,omitempty"`
	Exit    *int         `json:"exit,omitempty"`
	// LogBytes is the length of its log, once the result told it.
	LogBytes   int64     `json:"log_bytes,omitempty"`
	OfferedAt  time.Time `json:"offered_at"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
}

// Result is what an agent reports of an attempt that has ended.
type Result struct {
	Outcome State  `json:"outcome"` // success, failure, error, timeout, cancelled, not_needed
	Reason  string `json:"reason,omitempty"`
	Exit    *int   `json:"exit,omitempty"`
	// LogBytes is the length of the log at its end.
	LogBytes int64 `json:"log_bytes"`
	// Outputs is a JSON object, as in RunTask; nil when the task reported none.
	Outputs json.RawMessage `json:"outputs,omitempty"`
	Links   []Link          `json:"links,omitempty"`
	// Records is a JSON object, as in RunTask.
	Records json.RawMessage `json:"records,omitempty"`
	// CancelRun: the task asks that the whole run be cancelled.
	CancelRun bool `json:"cancel_run,omitempty"`
	// Lost, with Outcome Error: nothing of the task runs any more, and its agent
	// cannot know how far it came. It counts like the loss of the agent: the task
	// is started again, or in doubt when it may be started only once.
	Lost bool `json:"lost,omitempty"`
}

const (
	// MaxOutputs bounds the JSON of a task's outputs; larger things are files.
	MaxOutputs = 128 << 10
	// MaxRecords likewise bounds its records.
	MaxRecords = 32 << 10
)
