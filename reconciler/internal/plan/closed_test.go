package plan_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

func TestAPoolMayBeForSomeBranches(t *testing.T) {
	t.Parallel()
	law := &pipeline.Policy{Pools: []pipeline.PoolRule{{Pool: "prod", Compositions: []string{"release"}, Branches: []string{"main", "release/*"}}}}
	release := &pipeline.Composition{Name: "release", Tasks: []pipeline.Task{{Name: "work", Requirement: pipeline.Requirement{Pool: "prod"}}}}
	for ref, want := range map[pipeline.Ref]string{
		"refs/heads/main": "", "refs/heads/release/1": "",
		"refs/heads/x":   "task work: pool prod is for branch main or release/*, not for x ()",
		"refs/tags/main": "task work: pool prod is for branch main or release/*, not for tag main ()",
	} {
		if got := plan.Forbidden(law, release, "", ref, "refs/heads/main"); got != want {
			t.Errorf("%s: %q, want %q", ref, got, want)
		}
		if plan.Closed(law, "prod", "release", ref) != (want != "") || plan.Closed(law, "default", "release", ref) {
			t.Errorf("%s: what no task names is judged otherwise", ref)
		}
	}
}

func TestAGateThatNobodyCouldOpenIsRefused(t *testing.T) {
	t.Parallel()
	law := &pipeline.Policy{Groups: []pipeline.Group{{Name: "ops", Members: []string{"ana"}}}}
	const want = "task ok: nobody could approve it: the policy of main has no group qa or web"
	for approvers, want := range map[string]string{"": "", "ops": "", "qa,ops": "", "qa,web": want} {
		var groups []string
		if approvers != "" {
			groups = strings.Split(approvers, ",")
		}
		c := &pipeline.Composition{Name: "release", Tasks: []pipeline.Task{{Name: "ok", Gate: &pipeline.Gate{Approvers: groups}}}}
		if got := plan.Forbidden(law, c, "", "refs/heads/x", "refs/heads/main"); got != want {
			t.Errorf("%s: %q, want %q", approvers, got, want)
		}
	}
}

func TestAPlanCountsNoAgentThatThePolicyKeepsFromAComposition(t *testing.T) {
	t.Parallel()
	work := []pipeline.Task{{Name: "work", Plugin: "shell"}}
	push := []pipeline.Trigger{{Push: &pipeline.PushTrigger{Branches: []string{"main"}}}}
	p := plan.Of(plan.Input{
		Default: "refs/heads/main", Event: pipeline.Event{Kind: pipeline.EventPush, Ref: "refs/heads/main"},
		Head: &pipeline.Config{
			Compositions: []pipeline.Composition{{Name: "lint", Tasks: work, Triggers: push}, {Name: "release", Tasks: work, Triggers: push}},
			Policy:       pipeline.Policy{Pools: []pipeline.PoolRule{{Pool: "prod", Compositions: []string{"release"}}}},
		},
		Fleet: &plan.Fleet{Agents: []plan.Agent{{ID: "a", Pool: "prod", Online: true}, {ID: "b", Pool: "default", Online: true}}},
	})
	want := []plan.Placement{
		{Composition: "lint", Fits: []plan.Fit{{
			Tasks: []pipeline.TaskName{"work"}, Agents: 1, Free: 1,
			Excluded: []plan.Exclusion{{Clause: "leave of the policy to run lint", Agents: 1}},
		}}},
		{Composition: "release", Fits: []plan.Fit{{Tasks: []pipeline.TaskName{"work"}, Agents: 2, Free: 2}}},
	}
	if d := cmp.Diff(want, p.Placements); d != "" {
		t.Error(d)
	}
}

func TestASecretIsForWhatItsRuleSays(t *testing.T) {
	t.Parallel()
	const main, feature, tag, fork = pipeline.Ref("refs/heads/main"), pipeline.Ref("refs/heads/feature/x"), pipeline.Ref("refs/tags/v1"), pipeline.Ref("refs/pull/7/head")
	elsewhere := pipeline.SourceRef("web", "refs/heads/x")
	at := pipeline.Position{File: "p.cue", Line: 3, Column: 1}
	for name, c := range map[string]struct {
		rule *pipeline.SecretRule
		c    pipeline.CompositionName
		repo string
		ref  pipeline.Ref
		want string
	}{
		"no rule, main":                 {nil, "build", "", main, ""},
		"no rule, branch":               {nil, "build", "", feature, "secret key is for branch main, not for feature/x"},
		"no rule, tag":                  {nil, "build", "", tag, "secret key is for branch main, not for tag v1"},
		"no rule, trusted source":       {nil, "build", "web", main, ""},
		"no rule, other source":         {nil, "build", "web", elsewhere, "secret key is for branch main, not for x of repository web"},
		"composition":                   {&pipeline.SecretRule{Compositions: []string{"rel*"}}, "release", "", main, ""},
		"other composition":             {&pipeline.SecretRule{Compositions: []string{"rel*"}}, "build", "", main, "secret key is for rel* (p.cue:3:1)"},
		"composition, branch":           {&pipeline.SecretRule{Compositions: []string{"rel*"}}, "release", "", feature, "secret key is for branch main, not for feature/x (p.cue:3:1)"},
		"branch":                        {&pipeline.SecretRule{Branches: []string{"feature/*"}}, "build", "", feature, ""},
		"branch, not main":              {&pipeline.SecretRule{Branches: []string{"feature/*"}}, "build", "", main, "secret key is for branch feature/*, not for main (p.cue:3:1)"},
		"every branch, no tag":          {&pipeline.SecretRule{Branches: []string{"**", "*"}}, "build", "", tag, "secret key is for branch ** or *, not for tag v1 (p.cue:3:1)"},
		"every branch, no fork":         {&pipeline.SecretRule{Branches: []string{"**", "*"}}, "build", "", fork, "secret key is for branch ** or *, not for a fork (p.cue:3:1)"},
		"every branch, no other source": {&pipeline.SecretRule{Branches: []string{"**", "*"}}, "build", "web", elsewhere, "secret key is for branch ** or *, not for x of repository web (p.cue:3:1)"},
		"repository":                    {&pipeline.SecretRule{Repositories: []string{"web"}}, "build", "web", main, ""},
		"other repository":              {&pipeline.SecretRule{Repositories: []string{"web"}}, "build", "lib", main, "secret key is for no run of repository lib (p.cue:3:1)"},
		"no repository":                 {&pipeline.SecretRule{Repositories: []string{}}, "build", "lib", main, "secret key is for no run of repository lib (p.cue:3:1)"},
		"named, not trusted":            {&pipeline.SecretRule{Repositories: []string{"web"}, Untrusted: true}, "build", "web", elsewhere, ""},
		"named, trusted":                {&pipeline.SecretRule{Repositories: []string{"web"}, Untrusted: true}, "build", "web", main, ""},
		"others named, not trusted":     {&pipeline.SecretRule{Repositories: []string{"lib"}, Untrusted: true}, "build", "web", elsewhere, "secret key is for no run of repository web (p.cue:3:1)"},
		"none named, not trusted":       {&pipeline.SecretRule{Untrusted: true}, "build", "web", elsewhere, "secret key is for branch main, not for x of repository web (p.cue:3:1)"},
		"named, other composition":      {&pipeline.SecretRule{Compositions: []string{"rel*"}, Repositories: []string{"web"}, Untrusted: true}, "build", "web", elsewhere, "secret key is for rel* (p.cue:3:1)"},
		"named, a fork":                 {&pipeline.SecretRule{Repositories: []string{"web"}, Untrusted: true}, "build", "web", pipeline.SourceRef("web", fork), "secret key is for branch main, not for a fork (p.cue:3:1)"},
		"named, a tag":                  {&pipeline.SecretRule{Repositories: []string{"web"}, Untrusted: true}, "build", "web", pipeline.SourceRef("web", tag), "secret key is for branch main, not for tag v1 of repository web (p.cue:3:1)"},
		"named, a branch of ours":       {&pipeline.SecretRule{Repositories: []string{"web"}, Untrusted: true}, "build", "", feature, "secret key is for branch main, not for feature/x (p.cue:3:1)"},
		"this repository":               {&pipeline.SecretRule{Repositories: []string{}}, "build", "", main, ""},
	} {
		law := &pipeline.Policy{Secrets: []pipeline.SecretRule{{Secret: "other", Compositions: []string{"nobody"}}}}
		if c.rule != nil {
			c.rule.Secret, c.rule.Pos = "key", at
			law.Secrets = append(law.Secrets, *c.rule)
		}
		if got := plan.Withheld(law, "key", c.c, c.repo, c.ref, main); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		want := ""
		if c.rule != nil && c.want != "" {
			want = "task work: " + c.want
		}
		of := &pipeline.Composition{Name: c.c, Tasks: []pipeline.Task{{Name: "work", Secrets: []pipeline.SecretName{"key"}}}}
		if got := plan.Forbidden(law, of, c.repo, c.ref, main); got != want {
			t.Errorf("%s, when it is planned: %q, want %q", name, got, want)
		}
	}
}

func TestNoPatternOfBranchesMeansATagOrAFork(t *testing.T) {
	t.Parallel()
	law := &pipeline.Policy{Pools: []pipeline.PoolRule{{Pool: "prod", Compositions: []string{"*"}, Branches: []string{"*", "**"}}}}
	for ref, want := range map[pipeline.Ref]bool{"refs/heads/a/b": false, "refs/tags/v1": true, "refs/pull/7/head": true, pipeline.SourceRef("web", "refs/heads/x"): true} {
		if got := plan.Closed(law, "prod", "release", ref); got != want {
			t.Errorf("the pool is closed to %s: %v, want %v", ref, got, want)
		}
	}
}
