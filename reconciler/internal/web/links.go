package web

import (
	"strconv"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Addresses of pages. Names are valid path elements by construction, and the
// templates escape what is not.

func compositionURL(c pipeline.CompositionName) string { return "/c/" + string(c) }

func runURL(c pipeline.CompositionName, number int) string {
	return compositionURL(c) + "/" + strconv.Itoa(number)
}

func taskURL(c pipeline.CompositionName, number int, t pipeline.TaskName) string {
	return runURL(c, number) + "/t/" + string(t)
}

// URL is the page of the task; templates call it.
func (t TaskRef) URL() string { return taskURL(t.Composition, t.Number, t.Task) }

// RunURL is the page of the task's run.
func (t TaskRef) RunURL() string { return runURL(t.Composition, t.Number) }

// otherRun is the page of the run that a call started, that a wait found or that the
// task's result is from, "" when there is none.
func otherRun(t *pipeline.RunTask) string {
	switch {
	case t.Child != "":
		return permanentURL(t.Child)
	case t.Reused != nil:
		return permanentURL(t.Reused.Run)
	}
	return ""
}

// permanentURL is the page of a run by its id, which outlives its composition's name.
func permanentURL(id pipeline.RunID) string { return "/run/" + string(id) }

func agentURL(id pipeline.AgentID) string { return "/agents/" + string(id) }

func commitURL(id pipeline.CommitID) string { return "/commits/" + string(id) }

// Topics name what a change concerns; a page says which concern it.
const (
	topicBoard   = "board"
	topicRuns    = "runs"   // a run was created
	topicTasks   = "tasks"  // a task moved
	topicAgents  = "agents" // an agent came, went or reported facts
	topicCommits = "commits"
	topicChanges = "changes" // what people propose and review
	topicAll     = "all"
)

func topicRun(id pipeline.RunID) string { return "r:" + string(id) }
