package config_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const template = `
-- lib/web/web.cue --
package web

import (
	"strings"

	"github.com/maestro-cd/maestro"
	"github.com/maestro-cd/maestro/plugins/shell"
)

#Service: maestro.#Composition & {
	#name: string
	#more: [...string]
	params: {version: *"latest" | string, list: *[] | [...string]}
	triggers: []
	tasks: {
		build: shell.#Run & {
			fields: {script: "make \(#name)", env: MORE: strings.Join(#more, ",")}
			outputs: files: [...string]
		}
		deploy: shell.#Run & {
			fields: {script: params.version, env: FILES: strings.Join(tasks.build.outputs.files, ",")}
		}
	}
}

#Print: shell.#Run & {
	#what: [...string]
	fields: script: strings.Join(#what, ",")
}
-- compositions/x/x.cue --
package ops

import "acme.example/ops/lib/web"

compositions: {
	known: web.#Service & {#name: "shop", #more: ["a"]}
	waits: web.#Service & {
		params: _
		#name:  event.branch
		#more:  params.list
	}
	task: web.#Service & {
		#name: "x"
		#more: []
		tasks: print: web.#Print & {#what: tasks.build.outputs.files}
	}
}
`

// A template is looked into: what it makes of params and outputs waits, although
// the composition itself says nothing of them.
func TestWhatATemplateMakesOfTheRunWaits(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	tree := files(t, base, template)
	cfg := evaluate(t, e, tree)
	for _, d := range cfg.Diagnostics {
		if d.Code != "RC0116" { // a script that holds a branch is what is wanted here
			t.Error(d)
		}
	}
	for _, c := range []struct {
		composition pipeline.CompositionName
		task        pipeline.TaskName
		known       string // fields that must be known
		waiting     string
	}{
		{"known", "build", "script env", ""},
		{"known", "deploy", "", "script env"},
		{"waits", "build", "", "script env"},
		{"task", "print", "", "script"},
	} {
		task := cfg.Composition(c.composition).Task(c.task)
		var fields map[string]json.RawMessage
		if len(task.Fields) > 0 {
			if err := json.Unmarshal(task.Fields, &fields); err != nil {
				t.Fatal(err)
			}
		}
		for name := range strings.FieldsSeq(c.known) {
			if fields[name] == nil {
				t.Errorf("%s.%s: %s is not known", c.composition, c.task, name)
			}
		}
		for name := range strings.FieldsSeq(c.waiting) {
			if fields[name] != nil || !task.Deferred {
				t.Errorf("%s.%s: %s is known as %s; want it to wait", c.composition, c.task, name, fields[name])
			}
		}
	}
	if needs := cfg.Composition("task").Task("print").Needs; len(needs) != 1 || needs[0] != "build" {
		t.Errorf("print needs %v; want build, whose output it is given", needs)
	}
	got, err := e.Fill(context.Background(), config.FillRequest{
		Tree: config.FSTree(tree), Unit: "compositions/x", Composition: "task",
		Blank:   pipeline.Blank{Part: pipeline.PartFields, Task: "print"},
		Outputs: map[pipeline.TaskName]json.RawMessage{"build": json.RawMessage(`{"files":["a","b"]}`)},
		Params:  json.RawMessage(`{"version":"1","list":[]}`),
	})
	if err != nil || !strings.Contains(string(got), `"a,b"`) {
		t.Errorf("filled %s, %v; want what was reported", got, err)
	}
}
