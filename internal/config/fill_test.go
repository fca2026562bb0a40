package config_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const filling = `
-- compositions/x/x.cue --
package ops

import (
	"strings"

	"acme.example/ops/plugins/fog"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: x: {
	triggers: []
	params: {
		replicas: *1 | int & >=1
		label:    string
	}
	tasks: {
		provision: fog.#Provision & {
			fields: {
				provider: "aws"
				image_id: "\(params.label)-\(event.branch)"
				count:    params.replicas
			}
		}
		list: shell.#Run & {
			fields: {
				script: strings.Join(tasks.provision.outputs.instance_ids, ",")
				env: IP: tasks.provision.outputs.public_ip
			}
		}
		typed: shell.#Run & {
			fields: script: "x"
			outputs: {
				port: int & >=1
				path: =~"^/"
			}
		}
		use: shell.#Run & {
			fields: script: "curl :\(tasks.typed.outputs.port+1)"
		}
		deprovision: fog.#Deprovision & {
			needs: ["list"]
			run: "always"
		}
		credentials: fog.#Provision & {
			fields: {
				provider: "aws"
				image_id: params.label
				credentials: secret: "aws"
			}
		}
	}
}
secrets: aws: from: env: "AWS"
`

func fillRequest(t *testing.T, task pipeline.TaskName) config.FillRequest {
	return config.FillRequest{
		Tree: config.FSTree(files(t, base, filling)), Unit: "compositions/x", Composition: "x", Blank: pipeline.Blank{Part: pipeline.PartFields, Task: task},
		Event:  pipeline.Event{Kind: "push", Ref: "refs/heads/main", Head: "abc"},
		Params: json.RawMessage(`{"replicas": 3, "label": "ami"}`),
		Outputs: map[pipeline.TaskName]json.RawMessage{
			"provision": json.RawMessage(`{"instance_ids":["i-1","i-2"],"public_ip":"10.0.0.1","provider":"aws"}`),
			"typed":     json.RawMessage(`{"port": 8080, "path": "/x"}`),
		},
	}
}

func TestFillGivesConcreteFields(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	cfg := evaluate(t, e, files(t, base, filling))
	for _, d := range cfg.Diagnostics {
		if d.Severity == pipeline.SeverityError {
			t.Error(d)
		}
	}
	want := map[pipeline.TaskName]string{
		"provision":   `{"provider":"aws","image_id":"ami-main","count":3,"size":"small"}`,
		"list":        `{"script":"i-1,i-2","shell":"sh","env":{"IP":"10.0.0.1"}}`,
		"use":         `{"script":"curl :8081","shell":"sh"}`,
		"deprovision": `{"instance_ids":["i-1","i-2"],"provider":"aws"}`,
		"credentials": `{"provider":"aws","image_id":"ami","count":1,"size":"small","credentials":{"secret":"aws"}}`,
	}
	for name, fields := range want {
		req := fillRequest(t, name)
		task := cfg.Composition("x").Task(name)
		req.Bindings, req.Secrets = task.Bindings, task.Secrets
		got, err := e.Fill(context.Background(), req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(decoded(t, []byte(fields)), decoded(t, got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// What a list is before anything ran looks concrete, and is wrong.
func TestFieldsThatReadOutputsAreNeverTakenForKnown(t *testing.T) {
	t.Parallel()
	cfg := evaluate(t, newEvaluator(t, nil), files(t, base, filling))
	list := cfg.Composition("x").Task("list")
	if !list.Deferred || strings.Contains(string(list.Fields), "script") {
		t.Errorf("script of list is %s, deferred %v; want it to wait", list.Fields, list.Deferred)
	}
	if p := cfg.Composition("x").Task("provision"); strings.Contains(string(p.Fields), "count") {
		t.Errorf("count is %s; want it to wait, although its param has a default", p.Fields)
	}
	if d := cfg.Composition("x").Task("deprovision"); d.Deferred || len(d.Bindings) != 2 {
		t.Errorf("deprovision: deferred %v, %d bindings; want bindings only", d.Deferred, len(d.Bindings))
	}
}

// References that the syntax does not show at first sight.
func TestHiddenReferencesMakeAFieldWait(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	for name, text := range map[string]string{
		"an alias of params": `P=params: v: *"a" | string, tasks: a: shell.#Run & {fields: script: P.v}`,
		"a let":              "params: v: *\"a\" | string\nlet val = params.v\n" + `tasks: a: shell.#Run & {fields: script: val}`,
		"a let of a let":     "params: v: *\"a\" | string\nlet all = params\nlet y = all.v\n" + `tasks: a: shell.#Run & {fields: script: "\(y)"}`,
		"a helper beside it": `params: v: *"a" | string, _s: {script: params.v}, tasks: a: shell.#Run & {fields: _s}`,
		"a condition":        `params: v: *"a" | string, tasks: a: shell.#Run & {fields: {if params.v == "a" {script: "x"}, if params.v != "a" {script: "y"}}}`,
		"a comprehension":    `params: v: *"a" | string, tasks: a: shell.#Run & {fields: {for k, s in {script: params.v} {(k): s}}}`,
		"a whole path":       `params: v: *"a" | string, tasks: a: shell.#Run & {fields: script: compositions.x.params.v}`,
		"an index":           `params: v: *"a" | string, tasks: a: shell.#Run & {fields: script: params["v"]}`,
		"a list":             `params: v: *"a" | string, tasks: a: shell.#Run & {fields: script: [params.v][0]}`,
		"the event":          `tasks: a: shell.#Run & {fields: script: "x-" + event.branch}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tree := files(t, base)
			tree["compositions/x/x.cue"] = &fstest.MapFile{Data: []byte("package ops\nimport \"github.com/maestro-cd/maestro/plugins/shell\"\ncompositions: x: {" + text + "}\n")}
			cfg := evaluate(t, e, tree)
			x := cfg.Composition("x")
			if x == nil {
				t.Fatal(cfg.Diagnostics)
			}
			if a := x.Task("a"); !a.Deferred || strings.Contains(string(a.Fields), "script") {
				t.Errorf("deferred %v, fields %s; want script to wait", a.Deferred, a.Fields)
			}
			params := "{}"
			if len(x.Params) > 0 {
				params = `{"v":"b"}`
			}
			got, err := e.Fill(context.Background(), config.FillRequest{
				Tree: config.FSTree(tree), Unit: "compositions/x", Composition: "x", Blank: pipeline.Blank{Part: pipeline.PartFields, Task: "a"}, Params: []byte(params),
				Event: pipeline.Event{Ref: "refs/heads/b"},
			})
			if err != nil || strings.Contains(string(got), `"a"`) {
				t.Errorf("filled %s, %v; want the run's value and not the default", got, err)
			}
		})
	}
}

func TestFillRefusesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	for name, c := range map[string]struct {
		task   pipeline.TaskName
		change func(*config.FillRequest)
		want   string
	}{
		"a param beyond its bounds": {"provision", func(r *config.FillRequest) {
			r.Params = json.RawMessage(`{"replicas": 500, "label": "x"}`)
		}, "count"},
		"a param of another type": {"provision", func(r *config.FillRequest) {
			r.Params = json.RawMessage(`{"replicas": 1, "label": 5}`)
		}, "label: 5 is not a string"},
		"a param that is missing": {"provision", func(r *config.FillRequest) {
			r.Params = json.RawMessage(`{"replicas": 1}`)
		}, "label: is missing"},
		"params that are not JSON": {"provision", func(r *config.FillRequest) {
			r.Params = json.RawMessage(`{`)
		}, "not JSON"},
		"outputs that are not there": {"list", func(r *config.FillRequest) {
			delete(r.Outputs, "provision")
		}, `task "provision", which has none`},
		"an output that was not reported": {"list", func(r *config.FillRequest) {
			r.Outputs["provision"] = json.RawMessage(`{"instance_ids":[],"provider":"aws"}`)
		}, `output "public_ip" of task "provision", which did not report it`},
		"an output that nobody declared": {"list", func(r *config.FillRequest) {
			r.Outputs["provision"] = json.RawMessage(`{"instance_ids":[],"provider":"aws","public_ip":"x","more":1}`)
		}, "more"},
		"an output of another type": {"use", func(r *config.FillRequest) {
			r.Outputs["typed"] = json.RawMessage(`{"port":"x","path":"/"}`)
		}, "port"},
		"a secret that the plan does not list": {"credentials", nil, `secret "aws"`},
		"a task that is not there":             {"nobody", nil, `no task "nobody"`},
		"a unit that is not there": {"list", func(r *config.FillRequest) {
			r.Unit = "compositions/none"
		}, "no directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req := fillRequest(t, c.task)
			if c.change != nil {
				c.change(&req)
			}
			got, err := e.Fill(context.Background(), req)
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %s, %v; want fault.Invalid with %q", got, err, c.want)
			}
			t.Log(err)
		})
	}
}

func decoded(t *testing.T, raw []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return v
}
