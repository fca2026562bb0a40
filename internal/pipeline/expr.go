package pipeline

import "encoding/json"

// Expr is a value as its author wrote it: known when the commit is planned, or
// only in a run, because it refers to params, the event or outputs of tasks.
type Expr struct {
	// Value is the JSON known when the commit was planned; nil when Deferred.
	Value json.RawMessage `json:"value,omitempty"`
	// Deferred: a fill computes it, see Blank.
	Deferred bool `json:"deferred,omitempty"`
	// Reads are the tasks whose outputs it refers to, sorted.
	Reads []TaskName `json:"reads,omitempty"`
	// Text is what stands in the file, for messages.
	Text string `json:"text,omitempty"`
	// Seal covers what the text means: the text, the conditions around it, and what it
	// refers to through lets and helper fields; no comments and no layout. "" when
	// the value is known.
	Seal Digest   `json:"seal,omitempty"`
	Pos  Position `json:"pos,omitzero"`
}

// Part is a part of a composition that a fill computes.
type Part string

const (
	// PartFields are the fields of a task.
	PartFields Part = "fields"
	// PartIf is the condition of a task.
	PartIf Part = "when"
	// PartItems is the list that a task fans out over.
	PartItems Part = "items"
	// PartHook are the params of the composition called when a task fails, or, with
	// no task, when the run does.
	PartHook Part = "onFailure"
	// PartGroup is the concurrency group of a composition.
	PartGroup Part = "group"
	// PartOutputs are what a composition returns to its caller.
	PartOutputs Part = "outputs"
	// PartTrigger are the params that a trigger gives; Blank.Trigger says which.
	PartTrigger Part = "trigger"
)

// Blank names one deferred value of a composition.
type Blank struct {
	Part Part     `json:"part"`
	Task TaskName `json:"task,omitempty"`
	// Trigger is the index of the trigger, with PartTrigger.
	Trigger int `json:"trigger,omitempty"`
}
