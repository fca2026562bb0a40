package plan_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

func text(p plan.Plan) string {
	b, err := json.MarshalIndent(&p, "", " ")
	if err != nil {
		panic(err)
	}
	return string(b)
}

// each runs check for n questions of each seed that rapid draws, 100 by default.
func each(t *testing.T, n int, check func(s source, in plan.Input) string) {
	t.Helper()
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		for i := range n {
			s := seeded(seed + uint64(i))
			if wrong := check(s, s.input()); wrong != "" {
				t.Fatalf("seed %d: %s", seed+uint64(i), wrong)
			}
		}
	})
}

func TestPlanDependsOnWhatIsThereAndNotOnItsOrder(t *testing.T) {
	t.Parallel()
	each(t, 5, func(s source, in plan.Input) string {
		want := text(plan.Of(in))
		if again := text(plan.Of(in)); again != want {
			return "the same question has two answers:\n" + cmp.Diff(want, again)
		}
		return cmp.Diff(want, text(plan.Of(s.shuffled(in))))
	})
}

func TestPlanChangesNothingOfItsInput(t *testing.T) {
	t.Parallel()
	each(t, 2, func(_ source, in plan.Input) string {
		before := copied(&in)
		plan.Of(in)
		return cmp.Diff(before, copied(&in))
	})
}

// TestRunsThatArePredictedAreThoseThatAreMade compares the answer to the question,
// asked before the merge with all that a plan looks at, with what the event does
// afterwards: the merged configuration as it is read again, in another order.
func TestRunsThatArePredictedAreThoseThatAreMade(t *testing.T) {
	t.Parallel()
	pairs := 100 // for each of rapid's 100 seeds: 10,000
	if testing.Short() {
		pairs = 10
	}
	made, events := 0, map[string]int{}
	t.Cleanup(func() { t.Logf("%d runs were made: %v", made, events) })
	each(t, pairs, func(s source, in plan.Input) string {
		predicted := plan.Of(in)
		deed := s.shuffled(in)
		deed.Fleet, deed.Now = nil, time.Time{}
		runs, verdicts, blanks := plan.Decide(deed)
		made += len(runs)
		for _, r := range runs {
			events[r.Event.Kind]++
		}
		if d := cmp.Diff(outline(predicted.Runs), outline(runs)); d != "" {
			return "runs (-predicted +made):\n" + d
		}
		if d := cmp.Diff(predicted.Verdicts, verdicts); d != "" {
			return "verdicts (-predicted +made):\n" + d
		}
		return cmp.Diff(predicted.Blanks, blanks)
	})
	for _, kind := range []string{pipeline.EventPush, pipeline.EventPullRequest, pipeline.EventTag, pipeline.EventCron, pipeline.EventAfter, pipeline.EventWebhook, pipeline.EventManual} {
		if events[kind] == 0 && !testing.Short() {
			t.Errorf("no run of %d was made by a %s event", made, kind)
		}
	}
}

func outline(runs []plan.Run) []string {
	out := make([]string, 0, len(runs))
	for _, r := range runs {
		out = append(out, fmt.Sprintf("%s %s %s %d %s %v %s", r.Name, r.Key, r.Params, r.Trigger, r.Why, r.Open, r.Group))
	}
	return out
}

func TestEveryRunHasItsVerdictAndNoOther(t *testing.T) {
	t.Parallel()
	each(t, 5, func(_ source, in plan.Input) string {
		p := plan.Of(in)
		runs := map[pipeline.CompositionName]bool{}
		for _, r := range p.Runs {
			runs[r.Name] = true
			if (r.Key == "") != r.Open {
				return fmt.Sprintf("run of %s has key %q and open %v", r.Name, r.Key, r.Open)
			}
		}
		seen := map[pipeline.CompositionName]bool{}
		for _, v := range p.Verdicts {
			if (v.Outcome == pipeline.VerdictRun) != runs[v.Composition] || v.Sentence == "" {
				return fmt.Sprintf("verdict %+v, run %v", v, runs[v.Composition])
			}
			seen[v.Composition] = true
		}
		if in.Event.Kind == pipeline.EventPush && !slices.ContainsFunc(in.Head.Compositions, func(c pipeline.Composition) bool { return !seen[c.Name] }) {
			return ""
		}
		if in.Event.Kind == pipeline.EventPush {
			return "a composition has no verdict"
		}
		return ""
	})
}

// TestDigestIsOfTheMeaning changes all that means nothing.
func TestDigestIsOfTheMeaning(t *testing.T) {
	t.Parallel()
	each(t, 5, func(s source, in plan.Input) string {
		same := s.shuffled(in)
		for _, cfg := range []*pipeline.Config{same.Base, same.Head} {
			scramble(s, reflect.ValueOf(cfg).Elem())
		}
		same.Event.Head, same.Event.Subject, same.Now = "other", "other", time.Unix(5, 0)
		same.Fleet = s.fleet()
		for i := range same.Filled { // what a person wrote, not what it came to
			if same.Filled[i].Problem == "" && same.Filled[i].Blank.Blank.Part == pipeline.PartGroup {
				same.Filled[i].Value = json.RawMessage(`"elsewhere"`)
			}
		}
		if a, b := plan.Of(in).Digest, plan.Of(same).Digest; a != b {
			return fmt.Sprintf("digest %s became %s:\n%s", a, b, cmp.Diff(in.Head, same.Head))
		}
		return ""
	})
}

// scramble moves declarations, and lays them out otherwise.
func scramble(s source, v reflect.Value) {
	switch x := v.Addr().Interface().(type) {
	case *pipeline.Position:
		*x = s.pos()
		return
	case *pipeline.Type:
		x.Text = pick(s, "", "string & !=\"\"")
	case *pipeline.Expr:
		x.Text = strings.ReplaceAll(x.Text, " ", "\n\t")
	case *pipeline.Composition:
		x.Unit, x.Digest = "elsewhere/"+string(x.Name), ""
	case *pipeline.Plugin:
		x.Dir = "elsewhere"
	case *pipeline.Diagnostic:
		x.Message, x.Unit = "other words", "elsewhere/"+x.Unit
	case *json.RawMessage:
		if len(*x) > 0 {
			*x = json.RawMessage(" " + strings.ReplaceAll(string(*x), ":", " : ") + "\n")
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			scramble(s, v.Field(i))
		}
	case reflect.Slice:
		for i := range v.Len() {
			scramble(s, v.Index(i))
		}
	case reflect.Pointer:
		if !v.IsNil() {
			scramble(s, v.Elem())
		}
	}
}

// TestDigestChangesWithAnyMeaning changes one thing that means something.
func TestDigestChangesWithAnyMeaning(t *testing.T) {
	t.Parallel()
	each(t, 10, func(s source, in plan.Input) string {
		other := *copied(&in)
		var places []place
		collect("", reflect.ValueOf(other.Head).Elem(), &places)
		at := places[s.IntN(len(places))]
		at.change()
		before, after := plan.Of(in), plan.Of(other)
		if before.Digest == after.Digest {
			return "the digest is the same with another " + at.path
		}
		if in.Head.Commit == other.Head.Commit && cmp.Equal(before.Changes, after.Changes) && !strings.Contains(at.path, "Diagnostics") && !strings.HasPrefix(at.path, ".Compositions") {
			return "the list of changes is the same with another " + at.path
		}
		return ""
	})
}

// place is something that can be changed, with how.
type place struct {
	path   string
	change func()
}

// meaningless are the fields that mean nothing by themselves: they repeat what
// others say, are words for people, or say of the head what counts of the base alone.
var meaningless = []string{
	"Config.Commit", "Config.Diagnostics", "Config.Owners", "Composition.Unit", "Composition.Digest", "Call.Digest", "Hook.Digest", "Task.Deferred", "Task.Places",
	"Task.Tree", "Task.Programs", "Plugin.Dir", "Field.Doc", "Type.Text", "Expr.Text", "Expr.Reads", "Expr.Deferred", "Expr.Value",
}

func collect(path string, v reflect.Value, out *[]place) {
	switch x := v.Addr().Interface().(type) {
	case *pipeline.Position:
		return
	case *json.RawMessage:
		if len(*x) > 0 {
			*out = append(*out, place{path, func() { *x = json.RawMessage(`{"another":[1]}`) }})
		}
		return
	case *pipeline.Expr:
		switch {
		case x.Deferred:
			*out = append(*out, place{path, func() { x.Text += " + more" }})
		case len(x.Value) > 0:
			*out = append(*out, place{path, func() { x.Value = json.RawMessage(`"another"`) }})
		}
		return
	case *map[string]pipeline.Expr:
		for name, e := range *x {
			*out = append(*out, place{path + "." + name, func() { e.Text += " + more"; (*x)[name] = e }})
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !slices.Contains(meaningless, v.Type().Name()+"."+f.Name) {
				collect(path+"."+f.Name, v.Field(i), out)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			collect(fmt.Sprintf("%s[%d]", path, i), v.Index(i), out)
		}
		if v.Len() > 0 && v.Type().Elem().Kind() == reflect.Struct {
			*out = append(*out, place{path + ", one less", func() { v.Set(v.Slice(0, v.Len()-1)) }})
		}
	case reflect.Pointer:
		if !v.IsNil() {
			collect(path, v.Elem(), out)
			*out = append(*out, place{path + ", none", func() { v.SetZero() }})
		}
	case reflect.String:
		*out = append(*out, place{path, func() { v.SetString(v.String() + "x") }})
	case reflect.Int, reflect.Int64:
		*out = append(*out, place{path, func() { v.SetInt(v.Int() + 7) }})
	case reflect.Bool:
		*out = append(*out, place{path, func() { v.SetBool(!v.Bool()) }})
	}
}

func TestMarkdownStaysWithinTheForgesLimit(t *testing.T) {
	t.Parallel()
	in := large(300)
	for i := range in.Head.Compositions {
		c := &in.Head.Compositions[i]
		c.Description = strings.Repeat("&<`|*", 300)
		in.Head.Diagnostics = append(in.Head.Diagnostics, pipeline.Diagnostic{
			Severity: pipeline.SeverityError, Code: "RC0107", Unit: string(c.Name), Message: strings.Repeat("&`", 500), Pos: pipeline.Position{File: strings.Repeat("é", 400)},
		})
	}
	p := plan.Of(in)
	out := p.Markdown(plan.MarkdownOptions{Marker: "<!-- m -->", URL: "https://ci.example/changes/x"})
	if len(out) > plan.MaxMarkdown {
		t.Errorf("%d bytes", len(out))
	}
	if !strings.Contains(out, "more](https://ci.example/changes/x)") || !strings.HasPrefix(out, "<!-- m -->\n**maestro plan: 300 runs") {
		t.Errorf("what is left out is not counted, or the verdict is not first:\n%.300s", out)
	}
}
