package config_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const blanks = `
-- secrets/s.cue --
package ops

secrets: hook: from: env: "HOOK"
-- compositions/x/x.cue --
package ops

import (
	"github.com/maestro-cd/maestro"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: x: {
	params: {version: string, list: *["a", "b"] | [...string], n: *1 | int}
	concurrency: group: "env-\(params.version)-\(event.branch)"
	outputs: {url: tasks.build.outputs.url, n: params.n + 1}
	onFailure: {composition: "notify", with: {
		what: "release \(params.version)"
		url:  tasks.build.outputs.url
		all:  [for f in tasks.build.outputs.files {f}]
	}}
	triggers: [
		{push: {}, params: version: event.commit},
		{tag: {}, params: {version: event.tag, n: 7}},
		{cron: schedule: "0 2 * * *", params: version: event.time},
		{webhook: {id: "d", secret: secret: "hook", payload: {version: string, n: int}}, params: {
			version: event.payload.version
			n:       event.payload.n
		}},
		{after: composition: "notify", params: version: event.cause.outputs.a.v},
		{pullRequest: {}, params: {version: "\(event.change) to \(event.target) by \(event.pull.author): \(event.pull.title), fork: \(event.pull.fork)", n: event.pull.number}},
	]
	tasks: {
		build: shell.#Run & {
			fields: script: "x"
			outputs: {url: string, files: [...string]}
			onFailureRun: {composition: "notify", with: {
				what: "\(event.cause.composition)#\(event.cause.number)"
				url:  tasks.build.outputs.url
			}}
		}
		fan: shell.#Run & {
			when: tasks.build.outputs.url != "" && params.n > 0
			each: {items: tasks.build.outputs.files, max: 3}
			fields: script: "\(each.item) of \(params.version)"
			onFailureRun: {composition: "notify", with: what: each.item}
		}
		call: maestro.#Run & {fields: {composition: "notify", with: {what: tasks.build.outputs.url, all: params.list}}}
		gate: maestro.#Approval & {fields: message: "go \(params.version)?"}
		clean: shell.#Run & {
			run: "always"
			fields: {script: "rm", workdir: "\(tasks.build.outputs.url)/x", env: V: params.version}
		}
	}
}
compositions: notify: {
	params: {what: *"" | string, url: *"" | string, all: *[] | [...string]}
	tasks: a: shell.#Run & {fields: script: params.what, outputs: v: string}
}
`

func TestEveryPartIsFilled(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	tree := files(t, base, blanks)
	cfg := evaluate(t, e, tree)
	if x := cfg.Composition("x"); x == nil || pipeline.HasErrors(cfg.Diagnostics) {
		t.Fatal(cfg.Diagnostics)
	}
	reported := map[pipeline.TaskName]json.RawMessage{"build": json.RawMessage(`{"url":"http://x","files":["f1","f2"]}`)}
	params := json.RawMessage(`{"version":"1.2","list":["p"],"n":3}`)
	event := pipeline.Event{
		Kind: pipeline.EventPush, Ref: "refs/heads/main", Head: "c0ffee", Proposal: "fix-1", Target: "main",
		Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Payload: json.RawMessage(`{"version":"9","n":12345678901234567890}`),
		Cause: &pipeline.Cause{Composition: "y", Number: 4, Outputs: map[pipeline.TaskName]json.RawMessage{"a": json.RawMessage(`{"v":"out"}`)}},
	}
	pulled := event
	pulled.Pull = &pipeline.EventPull{Number: 7, Title: "mend", Author: pipeline.Account{Login: "eve"}, Fork: true}
	tag := event
	tag.Ref = "refs/tags/v3"
	for name, c := range map[string]struct {
		blank   pipeline.Blank
		event   pipeline.Event
		outputs map[pipeline.TaskName]json.RawMessage
		want    string // "" when it has no value
	}{
		"group":                            {pipeline.Blank{Part: pipeline.PartGroup}, event, nil, `"env-1.2-main"`},
		"outputs":                          {pipeline.Blank{Part: pipeline.PartOutputs}, event, reported, `{"url":"http://x","n":4}`},
		"outputs of what was not reported": {pipeline.Blank{Part: pipeline.PartOutputs}, event, nil, ""},
		"hook of the run":                  {pipeline.Blank{Part: pipeline.PartHook}, event, reported, `{"what":"release 1.2","url":"http://x","all":["f1","f2"]}`},
		"hook of a run that reported less": {
			pipeline.Blank{Part: pipeline.PartHook},
			event,
			map[pipeline.TaskName]json.RawMessage{"build": json.RawMessage(`{"url":"http://x"}`)},
			`{"what":"release 1.2","url":"http://x"}`,
		},
		"hook of a run that reported nothing": {pipeline.Blank{Part: pipeline.PartHook}, event, nil, `{"what":"release 1.2"}`},
		"hook of a task":                      {pipeline.Blank{Part: pipeline.PartHook, Task: "build"}, event, nil, `{"what":"y#4"}`},
		"hook of an instance":                 {pipeline.Blank{Part: pipeline.PartHook, Task: "fan-2"}, event, reported, `{"what":"f2"}`},
		"condition":                           {pipeline.Blank{Part: pipeline.PartIf, Task: "fan-1"}, event, reported, `true`},
		"condition without its outputs":       {pipeline.Blank{Part: pipeline.PartIf, Task: "fan-1"}, event, nil, ""},
		"items":                               {pipeline.Blank{Part: pipeline.PartItems, Task: "fan-1"}, event, reported, `["f1","f2"]`},
		"items without the list":              {pipeline.Blank{Part: pipeline.PartItems, Task: "fan-1"}, event, nil, ""},
		"fields of an instance":               {pipeline.Blank{Part: pipeline.PartFields, Task: "fan-2"}, event, reported, `{"script":"f2 of 1.2","shell":"sh"}`},
		"fields beyond the list":              {pipeline.Blank{Part: pipeline.PartFields, Task: "fan-3"}, event, reported, ""},
		"fields of a call":                    {pipeline.Blank{Part: pipeline.PartFields, Task: "call"}, event, reported, `{"params":{"what":"http://x","all":["p"]}}`},
		"fields of a gate":                    {pipeline.Blank{Part: pipeline.PartFields, Task: "gate"}, event, nil, `{"message":"go 1.2?","count":1,"expire":"24h"}`},
		"fields of a clean-up":                {pipeline.Blank{Part: pipeline.PartFields, Task: "clean"}, event, reported, `{"script":"rm","shell":"sh","workdir":"http://x/x","env":{"V":"1.2"}}`},
		"fields of a clean-up with less":      {pipeline.Blank{Part: pipeline.PartFields, Task: "clean"}, event, nil, `{"script":"rm","shell":"sh","env":{"V":"1.2"}}`},
		"trigger push":                        {pipeline.Blank{Part: pipeline.PartTrigger}, event, nil, `{"version":"c0ffee"}`},
		"trigger tag":                         {pipeline.Blank{Part: pipeline.PartTrigger, Trigger: 1}, tag, nil, `{"version":"v3","n":7}`},
		"trigger cron":                        {pipeline.Blank{Part: pipeline.PartTrigger, Trigger: 2}, event, nil, `{"version":"2026-01-02T03:04:05Z"}`},
		"trigger webhook":                     {pipeline.Blank{Part: pipeline.PartTrigger, Trigger: 3}, event, nil, `{"version":"9","n":12345678901234567890}`},
		"trigger webhook without payload":     {pipeline.Blank{Part: pipeline.PartTrigger, Trigger: 3}, pipeline.Event{}, nil, ""},
		"trigger after":                       {pipeline.Blank{Part: pipeline.PartTrigger, Trigger: 4}, event, nil, `{"version":"out"}`},
		"trigger pull request":                {pipeline.Blank{Part: pipeline.PartTrigger, Trigger: 5}, pulled, nil, `{"version":"fix-1 to main by eve: mend, fork: true","n":7}`},
		"trigger of what is no pull request":  {pipeline.Blank{Part: pipeline.PartTrigger, Trigger: 5}, event, nil, `{"version":"fix-1 to main by : , fork: false","n":0}`},
		"an unknown part":                     {pipeline.Blank{Part: "colour"}, event, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req := config.FillRequest{
				Tree: config.FSTree(tree), Unit: "compositions/x", Composition: "x", Blank: c.blank,
				Event: c.event, Params: params, Outputs: c.outputs,
			}
			if task := cfg.Composition("x").Task(c.blank.Task); task != nil {
				req.Bindings, req.Secrets, req.Each = task.Bindings, task.Secrets, task.Each
			}
			got, err := e.Fill(context.Background(), req)
			if c.want == "" {
				if !fault.Is(err, fault.Invalid) {
					t.Fatalf("got %s, %v; want fault.Invalid", got, err)
				}
				t.Log(err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want, errW := pipeline.DecodeJSON([]byte(c.want))
			have, errH := pipeline.DecodeJSON(got)
			if diff := cmp.Diff(want, have); errW != nil || errH != nil || diff != "" {
				t.Errorf("got %s (-want +got):\n%s", got, diff)
			}
		})
	}
}
