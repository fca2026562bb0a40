package config

import (
	"encoding/json"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// The child reads requests and writes replies, one JSON value a line each.

// request asks for units to be checked, or for one deferred value of a run.
type request struct {
	Module  string            `json:"module"`
	Version string            `json:"version"` // language version of module.cue
	Files   map[string][]byte `json:"files"`
	Units   []unitRef         `json:"units,omitempty"`
	Fill    *fillRequest      `json:"fill,omitempty"`
	// UnitCPU is how many seconds of CPU one unit may use.
	UnitCPU  int `json:"unit_cpu"`
	MaxTasks int `json:"max_tasks"`
}

// unitKind says what a directory is evaluated as.
type unitKind string

const (
	kindOps     unitKind = "ops"     // compositions, pools, secrets, repositories, policy
	kindPlugin  unitKind = "plugin"  // a manifest with its task definitions
	kindPackage unitKind = "package" // anything else that is imported
)

type unitRef struct {
	Kind unitKind `json:"kind"`
	// Dir in the repository, or "builtin:NAME".
	Dir string `json:"dir"`
}

type fillRequest struct {
	Unit        string                                `json:"unit"`
	Composition pipeline.CompositionName              `json:"composition"`
	Blank       pipeline.Blank                        `json:"blank"`
	Each        *pipeline.Each                        `json:"each,omitempty"`
	Event       json.RawMessage                       `json:"event"`
	Params      json.RawMessage                       `json:"params,omitempty"`
	Outputs     map[pipeline.TaskName]json.RawMessage `json:"outputs,omitempty"`
	Bindings    []pipeline.Binding                    `json:"bindings,omitempty"`
	Secrets     []pipeline.SecretName                 `json:"secrets,omitempty"`
}

// reply is one line of the child's answer. For each unit there is one with Begin
// and then one with Result, so that a dead child's last Begin names whom to blame.
type reply struct {
	Begin  *int        `json:"begin,omitempty"`
	Result *unitResult `json:"result,omitempty"`
	Filled *filled     `json:"filled,omitempty"`
	// Done ends the answer to one request.
	Done bool `json:"done,omitempty"`
}

type filled struct {
	Value json.RawMessage `json:"value,omitempty"`
	// Problem says for people why the value cannot be had.
	Problem string `json:"problem,omitempty"`
}

// unitResult is all that evaluating one unit gave. It is what the cache keeps.
type unitResult struct {
	Dir          string                 `json:"dir"`
	Compositions []pipeline.Composition `json:"compositions,omitempty"`
	Pools        []pipeline.Pool        `json:"pools,omitempty"`
	Secrets      []pipeline.Secret      `json:"secrets,omitempty"`
	Repositories []pipeline.Repository  `json:"repositories,omitempty"`
	Plugin       *pipeline.Plugin       `json:"plugin,omitempty"`
	Diagnostics  []pipeline.Diagnostic  `json:"diagnostics,omitempty"`
	// Fatal: there was no value to look at, so nothing below the directory has one.
	Fatal bool `json:"fatal,omitempty"`
	// Unread are its files that are no CUE. Says are the names in the texts of a unit
	// with errors: what it calls and, where files are unread, what it declares.
	Unread []string         `json:"unread,omitempty"`
	Says   []string         `json:"says,omitempty"`
	Policy *pipeline.Policy `json:"policy,omitempty"`
	// Calls are the places where compositions name others, Groups those where groups
	// of the policy are named.
	Calls  []call     `json:"calls,omitempty"`
	Groups []groupUse `json:"groups,omitempty"`
	// Declared are the places of the names that the unit declares, valid or not:
	// a name in two units is a mistake even if one of them is broken.
	Declared []mention `json:"declared,omitempty"`
	// Mentions are names whose meaning is found out where all units meet: pools
	// and secrets that tasks name, those of broken compositions too, source
	// repositories that triggers name, the programs of a plugin, and names that
	// nothing declares.
	Mentions []mention `json:"mentions,omitempty"`
}

// mention is a name at a place.
type mention struct {
	Kind        string                   `json:"kind"` // one of the mention… constants
	Name        string                   `json:"name"`
	Composition pipeline.CompositionName `json:"composition,omitempty"`
	Task        pipeline.TaskName        `json:"task,omitempty"`
	Pos         pipeline.Position        `json:"pos"`
}

const (
	mentionComposition = "composition"
	mentionPool        = "pool"
	mentionRepository  = "repository"
	mentionSecret      = "secret"
	// mentionProgram is a file in a plugin's folder.
	mentionProgram = "program"
	// mentionFile is a file in a plugin's folder that its program is to read.
	mentionFile = "file"
	// mentionLoose is a word of a command, which may be the name of such a file.
	mentionLoose = "loose"
	// mentionIdle is a composition that says nothing of triggers.
	mentionIdle = "idle"
	// mentionUnknown is a name that nothing declares, which a plugin may have.
	mentionUnknown = "unknown"
)
