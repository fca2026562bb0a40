package web

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Source is all that the pages and the API may ask of the control plane. It has
// no method that changes anything, so nothing in this package can.
//
// Every method may be called by many goroutines at once and blocks only for as
// long as a read takes. A thing that does not exist is a fault.NotFound; a
// record that does not answer is fault.Unavailable. Results belong to the
// caller, which only reads them; they may share memory with other results.
type Source interface {
	// Board returns what the first page shows, read at one moment.
	Board(ctx context.Context) (Board, error)

	// Runs returns the runs that match, newest first, at most f.Limit.
	Runs(ctx context.Context, f RunFilter) ([]pipeline.Run, error)
	// Run and RunByNumber return one run with its tasks and their specs.
	Run(ctx context.Context, id pipeline.RunID) (pipeline.Run, error)
	RunByNumber(ctx context.Context, c pipeline.CompositionName, number int) (pipeline.Run, error)
	// Attempts returns the attempts of all tasks of a run, oldest first.
	Attempts(ctx context.Context, id pipeline.RunID) ([]pipeline.Attempt, error)
	// Moment returns what is known just now and not recorded; the queue is that of
	// one run only when run is not "".
	Moment(ctx context.Context, run pipeline.RunID) (Moment, error)
	// Noted returns the unfinished runs whose tasks have said something since the
	// note with the number after, and the number of the newest note. It is quick.
	Noted(after int64) (runs []pipeline.RunID, newest int64)
	// WatchNotes is Watch for what Noted tells.
	WatchNotes() (signal <-chan struct{}, stop func())

	// Composition returns a composition as the live commit declares it.
	Composition(ctx context.Context, name pipeline.CompositionName) (pipeline.Composition, error)
	// Pools and Plugins return what the live commit declares, sorted by name.
	Pools(ctx context.Context) ([]pipeline.Pool, error)
	Plugins(ctx context.Context) ([]pipeline.Plugin, error)
	// Icon returns a plugin's icon and its media type. A plugin that has none is
	// fault.NotFound. The bytes come from the repository and are not trusted.
	Icon(ctx context.Context, name pipeline.PluginName) (data []byte, mediaType string, err error)

	// Agents returns every enrolled agent, sorted by pool and name.
	Agents(ctx context.Context) ([]AgentView, error)
	Agent(ctx context.Context, id pipeline.AgentID) (AgentView, error)

	// Commits returns evaluated commits, newest first, at most limit.
	Commits(ctx context.Context, limit int) ([]pipeline.CommitRecord, error)
	// Commit returns the evaluated commit whose id is prefix or begins with it. When
	// several do it is fault.Invalid.
	Commit(ctx context.Context, prefix pipeline.CommitID) (pipeline.CommitRecord, error)
	// Proposals returns the proposed changes, open ones first, at most limit, without
	// their plans; Proposal the last one of a branch, whole.
	Proposals(ctx context.Context, limit int) ([]pipeline.Proposal, error)
	Proposal(ctx context.Context, branch string) (pipeline.Proposal, error)
	// Verdicts returns what a commit did to each composition, sorted by name.
	Verdicts(ctx context.Context, id pipeline.CommitID) ([]pipeline.Verdict, error)

	// LastSeq returns the sequence number of the newest change, 0 when there is none.
	LastSeq(ctx context.Context) (pipeline.Seq, error)
	// Changes returns at most limit changes that follow after, oldest first.
	Changes(ctx context.Context, after pipeline.Seq, limit int) ([]pipeline.Change, error)
	// Watch returns a channel that receives after there are new changes. Signals
	// are coalesced and a slow reader never holds up the writer. The caller calls
	// stop once.
	Watch() (signal <-chan struct{}, stop func())

	// LogInfo describes an attempt's log; an attempt that has not written any has
	// an empty one. An attempt that ended is sealed, also when it never wrote: who
	// follows a log waits for that.
	LogInfo(ctx context.Context, id pipeline.AttemptID) (LogInfo, error)
	// LogLines returns up to n lines from line number from, which counts from 1.
	// A last line without a newline is a line. Text comes as it was written, its
	// newline removed, cut when it is very long.
	LogLines(ctx context.Context, id pipeline.AttemptID, from int64, n int) ([]LogLine, error)
	// LogSearch returns the first limit lines that contain text, and how many do.
	LogSearch(ctx context.Context, id pipeline.AttemptID, text string, limit int) (LogMatches, error)
	// LogCopy writes the log from byte offset off to w, as far as it is stored,
	// and returns the number of bytes written. It needs constant memory.
	LogCopy(ctx context.Context, id pipeline.AttemptID, off int64, w io.Writer) (int64, error)
	// WatchLog is Watch for one attempt's log: it has grown, or was sealed.
	WatchLog(id pipeline.AttemptID) (signal <-chan struct{}, stop func())
}

// Board is the state of everything in one value.
type Board struct {
	// Compositions of the live commit, and those that have runs but are no longer
	// declared; sorted by name.
	Compositions []CompositionSummary `json:"compositions"`
	// Unfinished runs with their tasks, newest first.
	Unfinished []pipeline.Run `json:"unfinished"`
	Repository Repository     `json:"repository"`
	Agents     AgentCounts    `json:"agents"`
	// Notices are sentences on the server itself that need a person, most urgent first.
	Notices []string `json:"notices,omitempty"`
	// Moment is as Source.Moment returns it for all runs.
	Moment
	// Newest is the commit that was evaluated last; nil before the first. When it
	// is not clean its diagnostics are shown until a later one is.
	Newest *pipeline.CommitRecord `json:"newest,omitempty"`
}

// CompositionSummary is a composition's line on the board.
type CompositionSummary struct {
	Name        pipeline.CompositionName `json:"name"`
	Description string                   `json:"description,omitempty"`
	Suspended   bool                     `json:"suspended,omitempty"`
	// Removed: the live commit does not declare it any more.
	Removed bool `json:"removed,omitempty"`
	// Latest is the newest run, tasks included; nil when there was none.
	Latest *pipeline.Run `json:"latest,omitempty"`
	// Recent holds the last runs, at most 30, oldest first.
	Recent []RunPoint `json:"recent"`
	// Median is the usual duration of a successful run; 0 when unknown.
	Median pipeline.Duration `json:"median,omitempty"`
}

// RunPoint is one bar of a composition's history.
type RunPoint struct {
	ID     pipeline.RunID `json:"id"`
	Number int            `json:"number"`
	State  pipeline.State `json:"state"`
	// Duration from the start, so far or to the end.
	Duration pipeline.Duration `json:"duration"`
}

// Repository is the ops repository as it was last seen.
type Repository struct {
	URL string       `json:"url"`
	Ref pipeline.Ref `json:"ref"`
	// Live is the commit whose configuration is in force, "" before the first.
	Live    pipeline.CommitID `json:"live,omitempty"`
	Subject string            `json:"subject,omitempty"`
	Author  string            `json:"author,omitempty"`
	// Problem is a sentence when the repository cannot be read, or not be told how things
	// stand, else "".
	Problem string `json:"problem,omitempty"`
	// SeenAt is when the repository last answered.
	SeenAt time.Time `json:"seen_at,omitzero"`
	// Sources are the source repositories in force, sorted by name.
	Sources []SourceRepository `json:"sources,omitempty"`
}

// SourceRepository is a source repository as it was last seen.
type SourceRepository struct {
	Name string `json:"name"`
	URL  string `json:"url"`
	// Problem and SeenAt as in Repository.
	Problem string    `json:"problem,omitempty"`
	SeenAt  time.Time `json:"seen_at,omitzero"`
}

// Unread returns the source repositories that cannot be read.
func (r *Repository) Unread() []SourceRepository {
	return slices.DeleteFunc(slices.Clone(r.Sources), func(s SourceRepository) bool { return s.Problem == "" })
}

// AgentCounts sums up the fleet. Busy agents are online and have a task.
type AgentCounts struct {
	Enrolled int `json:"enrolled"`
	Online   int `json:"online"`
	Busy     int `json:"busy"`
}

// TaskRef names a task of a run for people and for links.
type TaskRef struct {
	Run         pipeline.RunID           `json:"run"`
	Composition pipeline.CompositionName `json:"composition"`
	Number      int                      `json:"number"`
	Task        pipeline.TaskName        `json:"task"`
}

// Moment is what the control plane knows just now and does not record.
type Moment struct {
	// Queue holds the ready tasks and why each of them waits, in the order in which
	// they will be placed.
	Queue []Waiting `json:"queue"`
	// Notes are what running tasks last said of themselves.
	Notes map[pipeline.AttemptID]pipeline.Note `json:"-"`
	// Silent are the agents that have running tasks and do not answer, with when
	// they last did.
	Silent map[pipeline.AgentID]time.Time `json:"-"`
	// Names are what people call the agents.
	Names map[pipeline.AgentID]string `json:"-"`
}

// Waiting is a ready task and the reason why no agent has it yet.
type Waiting struct {
	TaskRef
	Pool     pipeline.PoolName `json:"pool,omitempty"`
	Priority int               `json:"priority"`
	Since    time.Time         `json:"since"`
	// Blocked: as things are, no agent can ever take it.
	Blocked bool `json:"blocked,omitempty"`
	// Sentence says why it waits and what ends that.
	Sentence string `json:"sentence"`
}

// AgentView is an agent and what it does.
type AgentView struct {
	pipeline.Agent
	Online  bool      `json:"online"`
	Running []TaskRef `json:"running"`
}

// RunFilter selects runs; zero fields select all.
type RunFilter struct {
	Composition pipeline.CompositionName
	State       pipeline.State
	Ref         pipeline.Ref
	Commit      pipeline.CommitID
	Agent       pipeline.AgentID
	// Before is a cursor: only runs older than this one.
	Before pipeline.RunID
	// Limit is at least 1.
	Limit int
	// Tasks asks for the runs' tasks; without it Run.Tasks may be nil.
	Tasks bool
}

// LogInfo describes a log. Lines counts a last line that has no newline.
type LogInfo struct {
	Bytes int64 `json:"bytes"`
	Lines int64 `json:"lines"`
	// Truncated: the attempt wrote more than is kept.
	Truncated bool `json:"truncated,omitempty"`
	// Sealed: the log is complete and will not grow.
	Sealed bool `json:"sealed,omitempty"`
}

// LogLine is one line, numbered from 1.
type LogLine struct {
	N    int64
	Text []byte
}

// LogMatches is the result of a search.
type LogMatches struct {
	Lines []LogLine
	// Total counts all matching lines, also those beyond the limit.
	Total int64
}
