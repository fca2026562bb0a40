package pipeline_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestOutcomesAreForEver(t *testing.T) {
	t.Parallel()
	for _, s := range pipeline.States() {
		if !s.Valid() {
			t.Errorf("%s is listed but not in the table", s)
		}
		if s.Terminal() != (len(s.Next()) == 0) {
			t.Errorf("%s: terminal %v with successors %v", s, s.Terminal(), s.Next())
		}
		for _, n := range s.Next() {
			if !n.Valid() || !s.CanBecome(n) {
				t.Errorf("%s may become %q, which is no state", s, n)
			}
		}
	}
	if pipeline.State("dancing").Terminal() {
		t.Error("an unknown word is an outcome")
	}
}

func TestEveryStateCanEnd(t *testing.T) {
	t.Parallel()
	for _, s := range pipeline.States() {
		seen := map[pipeline.State]bool{}
		var walk func(pipeline.State) bool
		walk = func(s pipeline.State) bool {
			if s.Terminal() {
				return true
			}
			if seen[s] {
				return false
			}
			seen[s] = true
			for _, n := range s.Next() {
				if walk(n) {
					return true
				}
			}
			return false
		}
		if !walk(s) {
			t.Errorf("%s leads to no outcome", s)
		}
	}
}

func TestRunStateIsTheWorstOfItsTasks(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		states string
		want   pipeline.State
	}{
		{"", "success"},
		{"pending", "pending"},
		{"ready pending", "ready"},
		{"running success", "running"},
		{"success offered", "running"},
		{"in_doubt success", "in_doubt"},
		{"in_doubt running", "running"},
		{"success skipped", "success"},
		{"failure error timeout", "error"},
		{"failure timeout", "timeout"},
		{"failure cancelled", "failure"},
		{"success not_needed", "not_needed"},
	} {
		var tasks []pipeline.RunTask
		for _, s := range strings.Fields(tc.states) {
			tasks = append(tasks, pipeline.RunTask{State: pipeline.State(s)})
		}
		if got := pipeline.RunState(tasks); got != tc.want {
			t.Errorf("RunState(%s) = %s, want %s", tc.states, got, tc.want)
		}
	}
}

func TestTypeSaysEverythingThatIsWrong(t *testing.T) {
	t.Parallel()
	typ := pipeline.Type{Kind: pipeline.KindStruct, Fields: []pipeline.Field{
		{Name: "count", Type: pipeline.Type{Kind: pipeline.KindInt, Min: "1", Max: "100"}},
		{Name: "name", Type: pipeline.Type{Kind: pipeline.KindString, Patterns: []string{"^[a-z]+$"}}},
		{Name: "ids", Type: pipeline.Type{Kind: pipeline.KindList, Elem: &pipeline.Type{Kind: pipeline.KindString}, MinItems: 1}},
		{Name: "size", Type: pipeline.Type{Kind: pipeline.KindString, Enum: []json.RawMessage{[]byte(`"s"`), []byte(`"m"`)}}, Optional: true},
	}}
	for _, tc := range []struct {
		in   string
		want []string
	}{
		{`{"count":3,"name":"x","ids":["a"]}`, nil},
		{`{"count":3.0,"name":"x","ids":["a"],"size":"m"}`, nil},
		{
			`{"count":0,"name":"X","ids":[],"size":"xl","extra":1}`,
			[]string{`count: 0 is not >=1`, `name: "X" does not match "^[a-z]+$"`, `ids: needs at least 1 elements, has 0`, `size: "xl" is not one of "s", "m"`, `"extra": is not declared`},
		},
		{`{"count":2.5,"name":3,"ids":[1]}`, []string{`count: 2.5 is not of type int`, `name: 3 is not a string`, `ids[0]: 1 is not a string`}},
		{`{}`, []string{"count: is missing", "name: is missing", "ids: is missing"}},
		{`[]`, []string{"[] is not a struct"}},
		{`{`, []string{"is not JSON: unexpected EOF"}},
	} {
		if d := cmp.Diff(tc.want, typ.CheckJSON([]byte(tc.in))); d != "" {
			t.Errorf("Check(%s) (-want +got):\n%s", tc.in, d)
		}
	}
}

func TestHugeNumbersCostNothing(t *testing.T) {
	t.Parallel()
	typ := pipeline.Type{Kind: pipeline.KindInt}
	for _, s := range []string{"1e999999999", "-1e-999999999", "1" + strings.Repeat("0", 1000)} {
		if len(typ.CheckJSON([]byte(s))) == 0 {
			t.Errorf("%.20s was accepted", s)
		}
	}
}

func TestMessagesStayShortWhateverTheValue(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.String().Draw(t, "value")
		for _, m := range (pipeline.Type{Kind: pipeline.KindInt}).Check(v) {
			if len(m) > 200 {
				t.Fatalf("message of %d bytes", len(m))
			}
		}
	})
}

func TestAgentIdentityComesFromItsKey(t *testing.T) {
	t.Parallel()
	a, b := pipeline.AgentIDOf([]byte("key a")), pipeline.AgentIDOf([]byte("key b"))
	if a == b || !strings.HasPrefix(string(a), "a-") || len(a) != 18 {
		t.Errorf("identities %s and %s", a, b)
	}
}

func TestWhereAChangeStandsIsItsFirstMistake(t *testing.T) {
	t.Parallel()
	mistake := pipeline.Diagnostic{Severity: pipeline.SeverityError, Code: "RC0100", Message: "no", Pos: pipeline.Position{File: "a.cue", Line: 3, Column: 1}}
	warning := pipeline.Diagnostic{Severity: pipeline.SeverityWarning, Message: "hm"}
	for want, p := range map[string]pipeline.Proposal{
		"needs 1 approval":                           {State: pipeline.ProposalOpen, Diagnostics: []pipeline.Diagnostic{warning}},
		"has an error: a.cue:3:1: error[RC0100]: no": {State: pipeline.ProposalOpen, Diagnostics: []pipeline.Diagnostic{warning, mistake}},
		"has 2 errors: a.cue:3:1: error[RC0100]: no": {State: pipeline.ProposalOpen, Diagnostics: []pipeline.Diagnostic{mistake, warning, mistake}},
		"merged": {State: pipeline.ProposalMerged, Sentence: "merged", Diagnostics: []pipeline.Diagnostic{mistake}},
	} {
		if p.Sentence == "" {
			p.Sentence = "needs 1 approval"
		}
		if got := p.Standing(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestForksAreKnownByTheirRefsInEveryRepository(t *testing.T) {
	t.Parallel()
	for ref, want := range map[pipeline.Ref]bool{
		"refs/pull/7/head": true, pipeline.SourceRef("app", "refs/pull/7/head"): true,
		"refs/heads/pull/7/head": false, pipeline.SourceRef("app", "refs/heads/pull/7/head"): false,
		pipeline.SourceRef("pull", "refs/heads/main"): false, "refs/tags/pull/7": false, "": false,
	} {
		if ref.Fork() != want {
			t.Errorf("%s is taken for a fork: %t", ref, !want)
		}
	}
	p := pipeline.Pull{Number: 7, Branch: "topic"}
	if p.Ref() != "refs/heads/topic" {
		t.Errorf("its ref is %s", p.Ref())
	}
	if p.Fork = true; !p.Ref().Fork() || p.Ref().Branch() != "" {
		t.Errorf("of a fork it is %s", p.Ref())
	}
}
