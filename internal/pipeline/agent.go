package pipeline

import (
	"encoding/json"
	"time"
)

// AgentState is how an agent looks from the control plane.
type AgentState string

const (
	// AgentOnline: connected and renewing.
	AgentOnline AgentState = "online"
	// AgentStalled: silent for a while; gets no new work, keeps what it has.
	AgentStalled AgentState = "stalled"
	// AgentOffline: not connected.
	AgentOffline AgentState = "offline"
)

// Agent is one agentd process as the record knows it.
type Agent struct {
	ID   AgentID  `json:"id"`
	Name string   `json:"name"` // host name or what its operator called it; not an identity
	Pool PoolName `json:"pool"`
	// Untrusted agents were invited to run what nobody approved.
	Untrusted bool   `json:"untrusted,omitempty"`
	PublicKey []byte `json:"-"`
	// Facts is the JSON object that the agent last reported.
	Facts json.RawMessage `json:"facts,omitempty"`
	Build string          `json:"build,omitempty"`
	State AgentState      `json:"state"`
	// Pause keeps new work from it, nil when nobody does.
	Pause *Pause `json:"pause,omitempty"`
	// Warm are the compositions that have a workspace on it, as it said when it
	// connected. Not stored.
	Warm []CompositionName `json:"-"`
	// Runs are the unfinished runs that have tasks on it. Filled by readers, not stored.
	Runs       []RunID   `json:"runs,omitempty"`
	EnrolledAt time.Time `json:"enrolled_at"`
	SeenAt     time.Time `json:"seen_at"`
	Revoked    bool      `json:"revoked,omitempty"`
}

// Pause is why an agent takes no new work for a while. What runs on it goes on.
type Pause struct {
	// Drain: runs that are at work on it go on there to their end, and no other begins.
	Drain  bool      `json:"drain,omitempty"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
	// Until is when it ends by itself, zero for never.
	Until time.Time `json:"until,omitzero"`
}

// String says it in a few words: "paused until 15:04Z (new disk)".
func (p *Pause) String() string {
	s := "paused"
	if p.Drain {
		s = "drained"
	}
	if !p.Until.IsZero() {
		s += " until " + p.Until.UTC().Format("2006-01-02 15:04Z")
	}
	if p.Reason != "" {
		s += " (" + p.Reason + ")"
	}
	return s
}

// Over reports whether the pause has ended by itself at the instant now.
func (p *Pause) Over(now time.Time) bool { return !p.Until.IsZero() && !now.Before(p.Until) }

// Verdict is why an event at a commit did or did not start a composition: the ledger.
type Verdict struct {
	// Repo as in Event.
	Repo        string          `json:"repo,omitempty"`
	Commit      CommitID        `json:"commit"`
	Ref         Ref             `json:"ref"`
	Composition CompositionName `json:"composition"`
	// Kind is that of the event, see the Event… constants. What one kind was answered
	// says nothing of another: a push may be skipped where the clock starts a run.
	Kind string `json:"kind"`
	// Outcome is "run", "skipped" or "rejected".
	Outcome  string `json:"outcome"`
	Sentence string `json:"sentence"`
	Run      RunID  `json:"run,omitempty"`
}

const (
	VerdictRun      = "run"
	VerdictSkipped  = "skipped"
	VerdictRejected = "rejected"
)

// Change is a line of the record's event log, as followers read it.
type Change struct {
	Seq  Seq       `json:"seq"`
	At   time.Time `json:"at"`
	Kind string    `json:"kind"` // see the Change… constants
	Run  RunID     `json:"run,omitempty"`
	Task TaskName  `json:"task,omitempty"`
	// Agent or Commit, when the event is about one.
	Agent  AgentID  `json:"agent,omitempty"`
	Commit CommitID `json:"commit,omitempty"`
	// State after the change, when it has one.
	State  State  `json:"state,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Kinds of change. They are stored, so a word is never renamed or reused.
const (
	ChangeRunCreated  = "run.created"
	ChangeRun         = "run"
	ChangeTask        = "task"
	ChangeAgent       = "agent"
	ChangeCommit      = "commit"     // a commit was evaluated
	ChangeRepository  = "repository" // a repository became reachable or not
	ChangeIncarnation = "incarnation"
	ChangeProposal    = "proposal" // a proposed change was made, planned, reviewed or merged
	ChangeRequest     = "request"  // a person asked for something
)

// CommitRecord is what the record keeps of an evaluated commit.
type CommitRecord struct {
	// Repo as in Event. A commit of a source repository has no configuration.
	Repo        string       `json:"repo,omitempty"`
	Commit      CommitID     `json:"commit"`
	Ref         Ref          `json:"ref"`
	Base        CommitID     `json:"base,omitempty"`
	Author      string       `json:"author,omitempty"`
	Subject     string       `json:"subject,omitempty"`
	Diagnostics []Diagnostic `json:"diagnostics,omitempty"`
	// Live: this commit's configuration is in force. A commit with errors in
	// every unit, or that could not be evaluated, does not go live.
	Live   bool      `json:"live"`
	SeenAt time.Time `json:"seen_at"`
}

// Status is the desired state of one commit status at the forge.
type Status struct {
	// Repo as in Event.
	Repo    string   `json:"repo,omitempty"`
	Commit  CommitID `json:"commit"`
	Context string   `json:"context"`
	// State is one of pending, success, failure, error.
	State string `json:"state"`
	// Description is at most 140 characters.
	Description string `json:"description"`
	URL         string `json:"url,omitempty"`
}

// DueStatus is a status that the forge does not show yet, as the record keeps it.
type DueStatus struct {
	Status Status
	// Digest names this version of the status; a later one has another.
	Digest string
	// Tries counts the failed attempts at this version.
	Tries int
}
