package plan_test

import (
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

const main pipeline.Ref = "refs/heads/main"

func TestOnlyTrustedBranchesOfASourceStandForMain(t *testing.T) {
	t.Parallel()
	declared := []pipeline.Repository{
		{Name: "app", Trusted: []string{"main", "release/*", "!release/x"}}, {Name: "open"}, {Name: "all", Trusted: []string{"**"}},
	}
	for _, tc := range []struct {
		repo string
		ref  pipeline.Ref
		want pipeline.Ref
	}{
		{"", main, main},
		{"", "refs/heads/topic", "refs/heads/topic"},
		{"app", main, main},
		{"app", "refs/heads/release/1", main},
		{"app", "refs/heads/release/x", "refs/sources/app/heads/release/x"},
		{"app", "refs/heads/topic", "refs/sources/app/heads/topic"},
		{"app", "refs/tags/main", "refs/sources/app/tags/main"},
		{"all", "refs/tags/v1", "refs/sources/all/tags/v1"},
		{"all", "refs/heads/a/b", main},
		{"open", main, "refs/sources/open/heads/main"},
		{"gone", main, "refs/sources/gone/heads/main"},
	} {
		e := pipeline.Event{Repo: tc.repo, Ref: tc.ref}
		if got := plan.Standing(declared, &e, tc.ref, main); got != tc.want {
			t.Errorf("%s of %q goes by the rules for %s, want %s", tc.ref, tc.repo, got, tc.want)
		}
		if e.Proposal = "x/pull/7"; tc.repo != "" && plan.Standing(declared, &e, tc.ref, main) != pipeline.SourceRef(tc.repo, tc.ref) {
			t.Errorf("what %s of %q proposes goes by the rules for another ref", tc.ref, tc.repo)
		}
		if tc.want != main && tc.repo != "" && (tc.want.Branch() != "" || strings.HasPrefix(string(tc.want), "refs/tags/")) {
			t.Errorf("%s could be a branch or a tag of the ops repository", tc.want)
		}
	}
}

// listens is a composition with these triggers.
func listens(name string, triggers ...pipeline.Trigger) pipeline.Composition {
	c := comp(name)
	c.Triggers = triggers
	return c
}

func onPush(repo string, branches ...string) pipeline.Trigger {
	return pipeline.Trigger{Push: &pipeline.PushTrigger{Repo: repo, Branches: branches}}
}

func onTag(repo string, tags ...string) pipeline.Trigger {
	return pipeline.Trigger{Tag: &pipeline.TagTrigger{Repo: repo, Tags: tags}}
}

func onPull(repo string, targets ...string) pipeline.Trigger {
	return pipeline.Trigger{PullRequest: &pipeline.PullRequestTrigger{Repo: repo, Branches: targets}}
}

// proposed are the run keys and verdicts of a pull request, of the repository app when it
// is not told otherwise.
func proposed(t *testing.T, cfg *pipeline.Config, change func(*plan.Input)) (keys []pipeline.RunKey, verdicts []pipeline.Verdict) {
	t.Helper()
	in := plan.Input{Default: main, Base: cfg, Head: cfg, Event: pipeline.Event{
		Kind: pipeline.EventPullRequest, Repo: "app", Config: "c0", Ref: "refs/heads/topic", Head: "5eed", Proposal: "app/pull/7", Target: "main",
	}}
	change(&in)
	runs, verdicts, _ := plan.Decide(in)
	for _, r := range runs {
		keys = append(keys, r.Key)
	}
	return keys, verdicts
}

func TestPullRequestsOfARepositoryFireItsOwnTriggersOnly(t *testing.T) {
	t.Parallel()
	paths := onPull("app", "main")
	paths.PullRequest.Paths = []string{"src/**"}
	cfg := &pipeline.Config{
		Commit: "c0", Repositories: []pipeline.Repository{{Name: "app", Trusted: []string{"main"}}},
		Compositions: []pipeline.Composition{listens("here", onPull("", "*")), listens("of-app", onPull("app", "main", "v*")), listens("of-src", paths)},
	}
	const none = "here skipped: watches the ops repository; "
	for _, tc := range []struct {
		what   string
		change func(*plan.Input)
		want   string
	}{
		{"it", func(in *plan.Input) { in.Paths = []string{"src/a"} }, none + "of-app run: change app/pull/7 for main; of-src run: change app/pull/7 for main"},
		{"other paths", func(in *plan.Input) { in.Paths = []string{"doc/a"} }, none + "of-app run: change app/pull/7 for main; of-src skipped: no changed path matches src/**"},
		{"another target", func(in *plan.Input) { in.Event.Target = "v1" }, none + "of-app run: change app/pull/7 for v1; of-src skipped: target v1 is not main"},
		{"another repository", func(in *plan.Input) { in.Event.Repo = "lib" }, none + "of-app skipped: watches repository app; of-src skipped: watches repository app"},
		{"one of the ops repository", func(in *plan.Input) {
			in.Event.Repo, in.Event.Config, in.Event.Proposal = "", "", "pull/7"
		}, "here run: change pull/7 for main; of-app skipped: watches repository app; of-src skipped: watches repository app"},
		{"a fork", func(in *plan.Input) {
			in.Event.Ref, in.Paths = "refs/pull/7/head", []string{"doc/a"}
		}, none + "of-app rejected: not run: app/pull/7 comes from a fork; propose its head from a branch of app to run it; " +
			"of-src skipped: no changed path matches src/**"},
	} {
		keys, verdicts := proposed(t, cfg, tc.change)
		var got []string
		runs := 0
		for _, v := range verdicts {
			got = append(got, string(v.Composition)+" "+v.Outcome+": "+v.Sentence)
			if v.Outcome == pipeline.VerdictRun {
				runs++
			}
		}
		if s := strings.Join(got, "; "); s != tc.want || len(keys) != runs {
			t.Errorf("%s:\n%s, want\n%s", tc.what, s, tc.want)
		}
	}
}

func TestAPullRequestHasOneRunOfEachHeadAndTarget(t *testing.T) {
	t.Parallel()
	cfg := &pipeline.Config{Commit: "c0", Repositories: []pipeline.Repository{{Name: "app"}}, Compositions: []pipeline.Composition{listens("a", onPull("app", "*"))}}
	seen := map[pipeline.RunKey]string{}
	for what, change := range map[string]func(*plan.Input){
		"it": func(*plan.Input) {}, "its head": func(in *plan.Input) { in.Event.Head = "feed" }, "its target": func(in *plan.Input) { in.Event.Target = "v1" },
		"another": func(in *plan.Input) { in.Event.Proposal = "app/pull/8" }, "the configuration": func(in *plan.Input) { in.Event.Config = "c1" },
	} {
		keys, _ := proposed(t, cfg, change)
		if len(keys) != 1 || seen[keys[0]] != "" {
			t.Fatalf("%s has the runs %v, like %q", what, keys, seen[keys[0]])
		}
		seen[keys[0]] = what
	}
	keys, _ := proposed(t, cfg, func(in *plan.Input) {
		in.Event.Pull, in.Event.Base, in.Event.Subject = &pipeline.EventPull{Number: 7, Title: "another title"}, "ba5e", "another subject"
	})
	if seen[keys[0]] != "it" {
		t.Error("with another title it is another run")
	}
}

func TestAForkThatIsNotRunIsNotGreen(t *testing.T) {
	t.Parallel()
	v := pipeline.Verdict{Repo: "app", Commit: "5eed", Ref: "refs/pull/7/head", Composition: "a", Kind: pipeline.EventPullRequest, Outcome: pipeline.VerdictRejected, Sentence: "not run: why"}
	f := plan.Facts{Repo: "app", Commit: "5eed", Verdicts: []pipeline.Verdict{{Repo: "app", Composition: "0", Outcome: pipeline.VerdictSkipped}, v}}
	if s := plan.RollUp(f); s.State != "failure" || s.Description != "a: not run: why" {
		t.Errorf("the status is %+v", s)
	}
	f.Runs = []*pipeline.Run{{Composition: "a", State: pipeline.Success}} // its head was pushed to a branch
	if s := plan.RollUp(f); s.State != "success" {
		t.Errorf("once it has run: %+v", s)
	}
}

func TestEventsOfARepositoryFireItsOwnTriggersOnly(t *testing.T) {
	t.Parallel()
	cfg := &pipeline.Config{
		Commit: "c0", Repositories: []pipeline.Repository{{Name: "app", Trusted: []string{"main"}}, {Name: "lib"}},
		Compositions: []pipeline.Composition{
			listens("here", onPush("", "main"), onTag("", "*")), listens("of-app", onPush("app", "main"), onTag("app", "v*")),
			listens("of-both", onPush("lib", "*"), onPush("app", "topic")),
		},
	}
	for _, tc := range []struct{ kind, repo, ref, want string }{
		{"push", "", "refs/heads/main", "here run: push to main; of-app skipped: watches repository app; of-both skipped: watches repository lib"},
		{"push", "app", "refs/heads/main", "here skipped: watches the ops repository; of-app run: push to main of app; of-both skipped: branch main is not topic"},
		{"push", "app", "refs/heads/topic", "here skipped: watches the ops repository; of-app skipped: branch topic is not main; of-both run: push to topic of app"},
		{"push", "lib", "refs/heads/x", "here skipped: watches the ops repository; of-app skipped: watches repository app; of-both run: push to x of lib"},
		{"tag", "app", "refs/tags/v1", "here skipped: watches the ops repository; of-app run: tag v1 of app; of-both skipped: no tag trigger; it starts on push"},
		{"tag", "", "refs/tags/v1", "here run: tag v1; of-app skipped: watches repository app; of-both skipped: no tag trigger; it starts on push"},
	} {
		e := pipeline.Event{Kind: tc.kind, Repo: tc.repo, Ref: pipeline.Ref(tc.ref), Head: "5eed"}
		if tc.repo != "" {
			e.Config = cfg.Commit
		}
		_, verdicts, _ := plan.Decide(plan.Input{Default: main, Base: cfg, Head: cfg, Event: e})
		var got []string
		for _, v := range verdicts {
			got = append(got, string(v.Composition)+" "+v.Outcome+": "+v.Sentence)
			if v.Repo != tc.repo || v.Commit != "5eed" {
				t.Errorf("a verdict is on %s of %q", v.Commit, v.Repo)
			}
		}
		if s := strings.Join(got, "; "); s != tc.want {
			t.Errorf("%s to %s of %q:\n%s, want\n%s", tc.kind, tc.ref, tc.repo, s, tc.want)
		}
	}
}

func TestBothCommitsAreInTheKeyOfASourceRun(t *testing.T) {
	t.Parallel()
	c := comp("a")
	e := pipeline.Event{Kind: pipeline.EventPush, Repo: "app", Config: "c0", Ref: main, Head: "5eed"}
	keys := map[pipeline.RunKey]string{}
	for what, change := range map[string]func(*pipeline.Event){
		"nothing": func(*pipeline.Event) {}, "config": func(e *pipeline.Event) { e.Config = "c1" }, "head": func(e *pipeline.Event) { e.Head = "feed" },
		"repo": func(e *pipeline.Event) { e.Repo = "lib" }, "ops": func(e *pipeline.Event) { e.Repo, e.Config = "", "" },
	} {
		x := e
		change(&x)
		k := plan.Key(x, &c, nil, 0)
		if was, dup := keys[k]; dup {
			t.Errorf("%s and %s have one key", what, was)
		}
		keys[k] = what
	}
}

func TestPlanSaysWhoListensToWhichRepository(t *testing.T) {
	t.Parallel()
	paths := onPush("app", "main", "release/*")
	paths.Push.Paths = []string{"src/**"}
	pulls := onPull("app", "main")
	pulls.PullRequest.Paths = []string{"web/**"}
	base := &pipeline.Config{Commit: "b", Compositions: []pipeline.Composition{listens("gone", onTag("app", "v*")), listens("same", onPush("lib", "main")), listens("here", onPush("", "main"))}}
	head := &pipeline.Config{
		Commit: "h", Repositories: []pipeline.Repository{{Name: "app", URL: "https://example.com/app.git"}},
		Compositions: []pipeline.Composition{listens("new", paths), listens("checks", pulls), listens("same", onPush("lib", "main")), listens("here", onPush("", "*"))},
	}
	p := plan.Of(plan.Input{Default: main, Base: base, Head: head, Event: pipeline.Event{Kind: pipeline.EventPush, Ref: main, Head: "h"}})
	text, markdown := p.Text(plan.TextOptions{}), p.Markdown(plan.MarkdownOptions{})
	for _, want := range []string{
		"- gone    is not started by tags of app like v*", "+ new     is started by pushes to app on main, release/* that change src/**", "+ repository app",
		"+ checks  is started by pull requests of app for main that change web/**",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the text does not say %q:\n%s", want, text)
		}
	}
	if len(p.Listeners) != 3 || !strings.Contains(markdown, "`new` is started by pushes to app") || !strings.Contains(markdown, "repository `app` added") {
		t.Errorf("%+v\n%s", p.Listeners, markdown)
	}
	other := *head
	other.Repositories = []pipeline.Repository{{Name: "app", URL: "https://example.com/other.git"}}
	q := plan.Of(plan.Input{Default: main, Base: base, Head: &other, Event: pipeline.Event{Kind: pipeline.EventPush, Ref: main, Head: "h"}})
	if q.Digest == p.Digest {
		t.Error("another address does not change what the plan means")
	}
}
