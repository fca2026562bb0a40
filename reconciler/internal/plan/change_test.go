package plan_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// change plans a push to main that makes head of base.
func change(base, head *pipeline.Config) plan.Plan {
	return plan.Of(plan.Input{
		Default: "refs/heads/main", Base: base, Head: head, Event: pipeline.Event{Kind: pipeline.EventPush, Ref: "refs/heads/main"},
		Now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
	})
}

func TestPluginBreaksTheUsesThatItNoLongerAllowsAndOnlyThose(t *testing.T) {
	t.Parallel()
	text, number := pipeline.Type{Kind: pipeline.KindString}, pipeline.Type{Kind: pipeline.KindInt}
	manifest := func(tree string, fields, outputs []pipeline.Field) pipeline.Plugin {
		return pipeline.Plugin{Name: "p", Tree: pipeline.Digest(tree), Tasks: []pipeline.PluginTask{{Name: "run", Fields: fields, Outputs: outputs}}}
	}
	was := manifest("git:1", []pipeline.Field{{Name: "a", Type: text}, {Name: "n", Type: text}, {Name: "o", Type: text, Optional: true}},
		[]pipeline.Field{{Name: "url", Type: text}, {Name: "id", Type: text}})
	is := manifest("git:2", []pipeline.Field{{Name: "b", Type: text}, {Name: "n", Type: number}, {Name: "o", Type: text, Optional: true}},
		[]pipeline.Field{{Name: "url", Type: text}, {Name: "id", Type: number}})
	task := func(name, plugin, fields string) pipeline.Task {
		return pipeline.Task{Name: pipeline.TaskName(name), Plugin: pipeline.PluginName(plugin), Uses: plugin + "/run", Fields: json.RawMessage(fields)}
	}
	reader := task("reader", "q", `{}`)
	reader.Bindings = []pipeline.Binding{{Field: "x", From: "uses", Output: "id"}, {Field: "y", From: "uses", Output: "url"}}
	broken := pipeline.Composition{Name: "broken", Unit: "u/broken", Tasks: []pipeline.Task{
		task("uses", "p", `{"a":"1","n":"2","o":"3"}`), task("other", "q", `{"a":"1"}`), reader,
	}}
	dropped := pipeline.Composition{Name: "dropped", Unit: "u/dropped", Tasks: []pipeline.Task{task("uses", "p", `{"a":"1"}`)}}
	mended := pipeline.Composition{Name: "mended", Unit: "u/mended", Tasks: []pipeline.Task{task("uses", "p", `{"a":"1"}`)}}
	base := &pipeline.Config{Compositions: []pipeline.Composition{broken, dropped, mended}, Plugins: []pipeline.Plugin{was}}
	head := &pipeline.Config{
		Compositions: []pipeline.Composition{mended}, Plugins: []pipeline.Plugin{is},
		Diagnostics: []pipeline.Diagnostic{{Severity: pipeline.SeverityError, Unit: "u/broken"}},
	}
	p := change(base, head)
	var got []string
	for _, b := range p.Breaks {
		got = append(got, fmt.Sprintf("%s.%s.%s: %s", b.Composition, b.Task, b.Field, b.Why))
	}
	want := []string{
		"broken.reader.x: output id of task uses was string and is int",
		"broken.uses.a: p/run has no field a",
		"broken.uses.b: p/run needs field b (string)",
		`broken.uses.n: "2" is not of type int`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	ops := map[string]plan.Op{}
	for _, c := range p.Changes {
		ops[c.Name] = c.Op
	}
	if d := cmp.Diff(map[string]plan.Op{"broken": plan.Broken, "dropped": plan.Removed, "p": plan.Changed}, ops); d != "" {
		t.Error(d)
	}
	head.Plugins[0].Tasks[0].Name = "go"
	if p := change(base, head); len(p.Breaks) != 1 || p.Breaks[0].Why != "plugin p has no task run; it has go" {
		t.Errorf("a task definition that is gone: %+v", p.Breaks)
	}
}

func TestSecretsBecomeReachableByUseByPolicyAndByPlace(t *testing.T) {
	t.Parallel()
	config := func(env string, rule []string, users ...string) *pipeline.Config {
		cfg := &pipeline.Config{Secrets: []pipeline.Secret{{Name: "s", Env: env}}}
		if rule != nil {
			cfg.Policy.Secrets = []pipeline.SecretRule{{Secret: "s", Compositions: rule}}
		}
		for _, u := range users {
			cfg.Compositions = append(cfg.Compositions, pipeline.Composition{
				Name: pipeline.CompositionName(u), Tasks: []pipeline.Task{{Name: "t", Secrets: []pipeline.SecretName{"s"}}},
			})
		}
		return cfg
	}
	for _, tc := range []struct {
		name       string
		base, head *pipeline.Config
		want       string
	}{
		{"nothing", config("A", nil, "a"), config("A", nil, "a"), ""},
		{"another use", config("A", nil, "a"), config("A", nil, "a", "b"), "s by b;"},
		{"a use less", config("A", nil, "a", "b"), config("A", nil, "a"), ""},
		{"a rule that allows it", config("A", []string{"a"}, "a", "b"), config("A", []string{"*"}, "a", "b"), "s by b;"},
		{"a rule that forbids it", config("A", nil, "a"), config("A", []string{"b"}, "a", "b"), "s by b;"},
		{"another place", config("A", nil, "a"), config("B", nil, "a"), "s by a (it is read from another place);"},
	} {
		got := ""
		for _, r := range change(tc.base, tc.head).Secrets {
			got += r.String() + ";"
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestCronTriggersThatComeGoAndMove(t *testing.T) {
	t.Parallel()
	config := func(suspend bool, schedules ...string) *pipeline.Config {
		c := pipeline.Composition{Name: "c", Suspend: suspend}
		for _, s := range schedules {
			c.Triggers = append(c.Triggers, pipeline.Trigger{Cron: &pipeline.CronTrigger{Schedule: s}})
		}
		return &pipeline.Config{Compositions: []pipeline.Composition{c}}
	}
	const two, three = "0 2 * * *", "0 3 * * *"
	for _, tc := range []struct {
		name       string
		base, head *pipeline.Config
		want       string
	}{
		{"the same, in another order", config(false, two, three), config(false, three, two), ""},
		{"another one", config(false, two), config(false, two, three), "added: cron 0 3 * * * UTC: fires 2026-03-02 03:00Z, 2026-03-03 03:00Z, 2026-03-04 03:00Z"},
		{"one less", config(false, two, three), config(false, two), "removed: cron 0 3 * * * UTC: does not fire at 2026-03-02 03:00Z"},
		{"one that moves", config(false, two), config(false, three), "changed: cron 0 2 * * * UTC -> 0 3 * * * UTC: fires 2026-03-02 03:00Z, 2026-03-03 03:00Z, 2026-03-04 03:00Z"},
		{"suspended", config(false, two), config(true, two), "removed: cron 0 2 * * * UTC: does not fire at 2026-03-02 02:00Z"},
	} {
		got := ""
		for _, f := range change(tc.base, tc.head).Firings {
			got += string(f.Op) + ": " + f.String()
		}
		if got != tc.want {
			t.Errorf("%s:\n%q, want\n%q", tc.name, got, tc.want)
		}
	}
}
