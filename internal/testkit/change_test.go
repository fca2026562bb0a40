package testkit_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// policy asks for an approval of ops for every change.
const policy = `package ops

policy: {
	groups: ops: ["ana", "bo", "ada"]
	changes: "everything needs ops": {approvers: ["ops"], count: 1}
}
`

// proposal reads a change by its branch.
func proposal(s *testkit.Server, branch string) (pipeline.Proposal, error) {
	var list struct{ Changes []pipeline.Proposal }
	if err := s.Get("/changes?branch="+url.QueryEscape(branch), &list); err != nil {
		return pipeline.Proposal{}, err
	}
	return list.Changes[0], nil
}

// awaitChange waits until a change is as it should be.
func awaitChange(t *testing.T, s *testkit.Server, branch, what string, ok func(p pipeline.Proposal) bool) pipeline.Proposal {
	t.Helper()
	var p pipeline.Proposal
	testkit.Eventually(t, "change "+branch+" "+what, func() (bool, string) {
		var err error
		if p, err = proposal(s, branch); err != nil {
			return false, err.Error()
		}
		p.Plan, p.Text, p.Markdown = nil, "", ""
		b, _ := json.Marshal(p)
		return ok(p), string(b)
	})
	return p
}

// review pushes a review of a commit as a ref, by plain git.
func review(r *testkit.Repo, head pipeline.CommitID, user, message string) {
	object := string(head)
	if message != "" {
		r.Git(r.Work, "tag", "-f", "-a", "-m", message, "review-by-"+user, string(head))
		object = r.Git(r.Work, "rev-parse", "review-by-"+user)
	}
	r.Git(r.Work, "push", "--quiet", "--force", r.Remote, object+":refs/reviews/"+string(head)+"/"+user)
}

func TestChangeIsPlannedReviewedAndMergedWithGitAlone(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	base := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("build", "echo old", ""), map[string]string{"policy/policy.cue": policy}))
	s := testkit.Serve(t, repo.Bare, nil, "--unsigned-reviews")
	s.StartAgent(t, "one", "default", "")
	repo.Push("main", map[string]string{"README": "in force"})
	passed := repo.AwaitStatus(pipeline.CommitID(repo.Git(repo.Work, "rev-parse", "HEAD")), "maestro", "failure")
	if !strings.HasPrefix(passed.Description, "merged without the approval it needed; ") {
		t.Errorf("a push past the policy: %+v", passed)
	}

	head := repo.Push("feature/louder", testkit.Files(testkit.Shell("build", "echo NEW", ""), testkit.Shell("deploy", "echo deploying", "")))
	status := repo.AwaitStatus(head, "maestro", "pending")
	testkit.Eventually(t, "status of the plan", func() (bool, string) {
		status = repo.Statuses(head)["maestro"]
		return status.Description == "plan: 2 runs on merge; needs 1 approval of ops" && status.State == "pending", fmt.Sprintf("%+v", status)
	})
	p := awaitChange(t, s, "feature/louder", "is planned", func(p pipeline.Proposal) bool { return p.Digest != "" })
	if p.Head != head || p.Approval != pipeline.ApprovalWaiting || p.Target != "main" || fmt.Sprint(p.Predicted) != "[build deploy]" || p.Base == base {
		t.Errorf("%+v", p)
	}
	var note string
	testkit.Eventually(t, "the plan is a note", func() (bool, string) {
		out, exit := testkit.RunShell(t, repo.Bare, nil, "git notes --ref=refs/notes/maestro/plan show "+string(head))
		note = out
		return exit == 0, out
	})
	if !strings.Contains(note, "deploy") || !strings.Contains(note, "ops") {
		t.Errorf("note:\n%s", note)
	}

	// The author's own word, an outsider's, and one of another commit do not count.
	review(repo, head, "ada", "")
	review(repo, head, "mallory", "approve")
	awaitChange(t, s, "feature/louder", "has two reviews that do not count", func(p pipeline.Proposal) bool {
		return len(p.Reviews) == 2 && !p.Reviews[0].Counts && !p.Reviews[1].Counts && p.Approval == pipeline.ApprovalWaiting
	})
	if got := repo.Statuses(head)["maestro"]; got.State != "pending" {
		t.Errorf("%+v", got)
	}
	review(repo, head, "ana", "approve\n\nmuch better")
	repo.AwaitStatus(head, "maestro", "success")
	awaitChange(t, s, "feature/louder", "is approved", func(p pipeline.Proposal) bool {
		return p.Approval == pipeline.ApprovalGiven && p.Sentence == "approved by ana"
	})

	// A new head voids the approval, and forcing the old one back does not bring it back.
	second := repo.Push("feature/louder", map[string]string{"README": "more"})
	awaitChange(t, s, "feature/louder", "needs approval again", func(p pipeline.Proposal) bool {
		return p.Head == second && p.Approval == pipeline.ApprovalWaiting && p.Digest != ""
	})
	repo.Git(repo.Work, "push", "--quiet", "--force", repo.Remote, string(head)+":refs/heads/feature/louder")
	awaitChange(t, s, "feature/louder", "is back and not approved", func(p pipeline.Proposal) bool {
		return p.Head == head && p.Approval == pipeline.ApprovalWaiting && len(p.Reviews) == 3
	})
	review(repo, head, "ana", "approve\n\nonce more")
	repo.AwaitStatus(head, "maestro", "success")

	// What was predicted is what starts.
	repo.Git(repo.Work, "push", "--quiet", repo.Remote, string(head)+":refs/heads/main")
	if runs := s.AwaitRuns(t, head, 2); len(runs) != 2 || runs[0].State != pipeline.Success || runs[1].State != pipeline.Success {
		t.Errorf("%+v", runs)
	}
	p = awaitChange(t, s, "feature/louder", "is merged", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
	if p.Merge == nil || p.Merge.Sentence != "predicted 2 runs, started 2" || p.Merge.Commit != head {
		t.Errorf("%+v", p.Merge)
	}
	repo.AwaitStatus(head, "maestro", "success")
}

// release waits for ops, and can be asked for.
const release = `package ops

import (
	"github.com/maestro-cd/maestro"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: release: {
	params: version: *"0" | string
	tasks: {
		confirm: maestro.#Approval & {
			fields: {message: "deploy \(params.version)?", approvers: ["ops"], expire: "1h"}
		}
		deploy: shell.#Run & {
			needs: ["confirm"]
			fields: script: "echo deployed \(params.version)"
		}
	}
	triggers: [{push: branches: ["main"]}, {manual: approvers: ["ops"]}]
}
`

// clone makes a clone of the repository as a person has it, who signs tags when key
// is not "".
func clone(t *testing.T, r *testkit.Repo, user, key string) string {
	t.Helper()
	dir := t.TempDir()
	r.Git("", "clone", "--quiet", r.Bare, dir)
	for k, v := range map[string]string{"user.name": user, "user.email": user + "@example.com", "maestro.user": user} {
		r.Git(dir, "config", k, v)
	}
	if key != "" {
		r.Git(dir, "config", "gpg.format", "ssh")
		r.Git(dir, "config", "user.signingKey", key+".pub")
	}
	return dir
}

func awaitNote(t *testing.T, r *testkit.Repo, kind string, id pipeline.CommitID, want string) {
	t.Helper()
	testkit.Eventually(t, "note "+want, func() (bool, string) {
		out, _ := testkit.RunShell(t, r.Bare, nil, "git notes --ref=refs/notes/maestro/"+kind+" show "+string(id))
		return strings.Contains(out, want), out
	})
}

func TestGatesAndRequestsGoThroughGit(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	repo.Push("main", testkit.Files(testkit.Ops(), map[string]string{"policy/policy.cue": policy}))
	s := testkit.Serve(t, repo.Bare, nil, "--unsigned-reviews")
	s.StartAgent(t, "one", "default", "")
	commit := repo.Push("main", map[string]string{"compositions/release/release.cue": release})
	held := s.AwaitTask(t, commit, "release", "confirm", pipeline.Held)
	const ref = "refs/maestro/gates/release/1/confirm"
	var head pipeline.CommitID
	testkit.Eventually(t, "the gate is a commit", func() (bool, string) {
		out, exit := testkit.RunShell(t, repo.Bare, nil, "git rev-parse --verify --quiet "+ref)
		head = pipeline.CommitID(strings.TrimSpace(out))
		return exit == 0, out
	})
	file := repo.Git(repo.Bare, "show", string(head)+":maestro-gate.json")
	if !strings.Contains(file, string(held.ID)) || !strings.Contains(file, string(commit)) || !strings.Contains(file, "deploy 0?") {
		t.Errorf("the gate does not say what it is:\n%s", file)
	}

	// Ada wrote the commit, and Eve may not: both are told so. Ana may.
	repo.Git(repo.Work, "fetch", "--quiet", repo.Bare, ref)
	review(repo, head, "ada", "approve")
	awaitNote(t, repo, "requests", head, "the review by ada does not count: who wrote")
	eve, ana := clone(t, repo, "eve", ""), clone(t, repo, "ana", "")
	out, exit := testkit.RunIn(t, eve, nil, "reconciler", "review", "release#1", "--server", s.Web)
	if exit != 1 || !strings.Contains(out, "git push origin") || !strings.Contains(out, "error: it does not count: eve is in none of the groups") {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	awaitNote(t, repo, "requests", head, "the review by eve does not count: eve is in none of the groups")
	testkit.Eventually(t, "why says what does not count", func() (bool, string) {
		out, _ := testkit.Run(t, "reconciler", "why", "release#1", "confirm", "--server", s.Web)
		return strings.Contains(out, "the review by ada does not count: who wrote") && strings.Contains(out, "the review by eve does not count: eve is in none"), out
	})
	if out, exit := testkit.RunIn(t, ana, nil, "reconciler", "review", "release#1/confirm", "-m", "go", "--server", s.Web); exit != 0 || !strings.Contains(out, "it counts: confirm is success: approved by ana: go") {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	run := s.AwaitRuns(t, commit, 1)[0]
	if k := run.Task("confirm"); run.State != pipeline.Success || k.State != pipeline.Success || !strings.Contains(string(k.Outputs), `"ana"`) {
		t.Errorf("%s: %+v", run.State, k)
	}
	testkit.Eventually(t, "the gate is gone", func() (bool, string) {
		out, exit := testkit.RunShell(t, repo.Bare, nil, "git rev-parse --verify --quiet "+ref)
		return exit != 0, out
	})
	if out, exit := testkit.RunIn(t, ana, nil, "reconciler", "review", "release#1", "--server", s.Web); exit == 0 || !strings.Contains(out, "no gate of release#1 is open") {
		t.Errorf("exit %d\n%s", exit, out)
	}

	// A run that is asked for, refused at its gate; another one cancelled.
	for dir, want := range map[string]string{eve: "error: not done: eve asked for it, who is not in ops", ana: "\nstarts release#2\n"} {
		out, exit := testkit.RunIn(t, dir, nil, "reconciler", "request", "run", "release", "version=1.4 beta")
		if !strings.Contains(out, want) || (exit == 1) != (dir == eve) {
			t.Fatalf("exit %d, want %q\n%s", exit, want, out)
		}
	}
	awaitNote(t, repo, "requests", commit, "eve: not done: eve asked for it, who is not in ops")
	awaitNote(t, repo, "requests", commit, "ana: starts release#2")
	out, exit = testkit.RunIn(t, ana, nil, "reconciler", "why", string(commit), "release", "--server", s.Web)
	asked := regexp.MustCompile(`(?m)^release +manual +run +asked for by ana$`).MatchString(out)
	pushed := regexp.MustCompile(`(?m)^release +push +run +push to main$`).MatchString(out)
	if exit != 0 || !asked || !pushed {
		t.Errorf("exit %d, want what the push and the request were answered\n%s", exit, out)
	}
	bo := clone(t, repo, "bo", "")
	testkit.Eventually(t, "ana cannot approve what she asked for, and bo refuses", func() (bool, string) {
		out, exit := testkit.RunIn(t, bo, nil, "reconciler", "review", "release#2", "--refuse", "-m", "too early", "--server", s.Web)
		return exit == 0 && strings.Contains(out, "it counts: confirm is failure: refused by bo: too early"), out
	})
	for _, r := range s.AwaitRuns(t, commit, 2) {
		if r.Number == 2 && (r.State != pipeline.Failure || !strings.Contains(r.Task("confirm").Reason, "refused by bo: too early") || string(r.Params) != `{"version":"1.4 beta"}`) {
			t.Errorf("%s: %s %s", r.State, r.Task("confirm").Reason, r.Params)
		}
	}
	if out, exit := testkit.RunIn(t, ana, nil, "reconciler", "request", "run", "release"); exit != 0 {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	awaitNote(t, repo, "requests", commit, "ana: starts release#3")
	if out, exit := testkit.RunIn(t, ana, nil, "reconciler", "request", "cancel", "release#3", "-m", "not today"); exit != 0 {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	awaitNote(t, repo, "requests", commit, "ana: cancels release#3")
	for _, r := range s.AwaitRuns(t, commit, 3) {
		if r.Number == 3 && (r.State != pipeline.Cancelled || !strings.Contains(r.Reason, "cancelled by ana: not today")) {
			t.Errorf("%s: %s", r.State, r.Reason)
		}
	}
	testkit.Eventually(t, "requests and gates are taken away", func() (bool, string) {
		out, _ := testkit.RunShell(t, repo.Bare, nil, "git for-each-ref refs/maestro")
		return out == "", out
	})
}

func TestOnlyAKeyProvesAReview(t *testing.T) {
	real(t)
	repo, keys := testkit.NewRepo(t), t.TempDir()
	signers := ""
	for _, name := range []string{"ana", "eve", "fay"} {
		if out, exit := testkit.RunShell(t, keys, nil, "ssh-keygen -q -t ed25519 -N '' -f "+name); exit != 0 {
			t.Fatal(out)
		}
		out, _ := testkit.RunShell(t, keys, nil, "cut -d' ' -f1,2 "+name+".pub")
		if name == "fay" {
			name = "*"
		}
		signers += fmt.Sprintf("%s,%s@example.com namespaces=\"git\" %s", name, name, out)
	}
	repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("build", "true", ""), map[string]string{
		"policy/policy.cue": policy, "allowed_signers": signers,
	}))
	s := testkit.Serve(t, repo.Bare, nil)
	head := repo.Push("x", testkit.Shell("build", "false", ""))
	awaitChange(t, s, "x", "is planned", func(p pipeline.Proposal) bool { return p.Digest != "" })
	review(repo, head, "bo", "approve")
	ana, eve := clone(t, repo, "ana", keys+"/ana"), clone(t, repo, "eve", keys+"/eve")
	if out, exit := testkit.RunIn(t, eve, nil, "reconciler", "review", "x", "--user", "ana", "--server", s.Web); exit != 1 || !strings.Contains(out, "error: it does not count: it is signed by eve") {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	p := awaitChange(t, s, "x", "has two reviews", func(p pipeline.Proposal) bool { return len(p.Reviews) == 2 })
	why := map[string]string{"ana": "it is signed by eve, and its ref is of ana", "bo": "it is not signed"}
	for _, r := range p.Reviews {
		if r.Counts || !strings.Contains(r.Why, why[r.By]) {
			t.Errorf("%+v", r)
		}
	}
	fay := clone(t, repo, "fay", keys+"/fay") // her line is not understood, and that is said
	if out, exit := testkit.RunIn(t, fay, nil, "reconciler", "review", "x", "--server", s.Web, "--wait", "0"); exit != 0 {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	awaitChange(t, s, "x", "has hers", func(p pipeline.Proposal) bool {
		return len(p.Reviews) == 3 && strings.HasSuffix(p.Reviews[2].Why, "of nobody in the list of allowed signers; allowed_signers, line 3: names must be written out, without patterns")
	})
	if out, exit := testkit.RunIn(t, ana, nil, "reconciler", "review", "x", "--server", s.Web); exit != 0 || !strings.Contains(out, "it counts: approved by ana") {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	repo.AwaitStatus(head, "maestro", "success")
	out, exit := testkit.Run(t, "reconciler", "change", "x", "--server", s.Web)
	if exit != 0 || !strings.Contains(out, "approved by ana") || !strings.Contains(out, "1 of 1 approvals of ops") {
		t.Errorf("exit %d\n%s", exit, out)
	}
	// A change of the list itself is judged by the list that is in force.
	mallory := repo.Push("y", map[string]string{"allowed_signers": strings.ReplaceAll(signers, "eve,", "eve,ana,")})
	awaitChange(t, s, "y", "is planned", func(p pipeline.Proposal) bool { return p.Head == mallory && p.Digest != "" })
	if out, exit := testkit.RunIn(t, eve, nil, "reconciler", "review", "y", "--user", "ana", "--server", s.Web, "--wait", "0"); exit != 0 {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	awaitChange(t, s, "y", "is not approved by its own list", func(p pipeline.Proposal) bool {
		return len(p.Reviews) == 1 && !p.Reviews[0].Counts && p.Approval == pipeline.ApprovalWaiting
	})
}

func TestSigningIsSetUpAsTheDocsSay(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("build", "true", ""), map[string]string{"policy/policy.cue": policy}))
	s := testkit.Serve(t, repo.Bare, nil)
	block := regexp.MustCompile("(?s)```sh\n(ssh-keygen .*?)```").FindStringSubmatch(document(t, "docs/changes.md"))
	if block == nil {
		t.Fatal("docs/changes.md does not show how signing is set up")
	}
	ana, home := clone(t, repo, "ana", ""), t.TempDir()
	env := []string{"HOME=" + home}
	commands := strings.Replace(block[1], "ssh-keygen ", "mkdir -p ~/.ssh; ssh-keygen -q -N '' ", 1)
	if out, exit := testkit.RunShell(t, ana, env, "set -e\n"+commands); exit != 0 {
		t.Fatal(out)
	}
	head := repo.Push("x", testkit.Shell("build", "echo x", ""))
	awaitChange(t, s, "x", "is planned", func(p pipeline.Proposal) bool { return p.Head == head && p.Digest != "" })
	out, exit := testkit.RunIn(t, ana, env, "reconciler", "review", "x", "--server", s.Web)
	if exit != 0 || !strings.Contains(out, "it counts: approved by ana") {
		t.Errorf("exit %d\n%s", exit, out)
	}
}

func TestRefusalAndMergeWithoutApprovalAreSaid(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("build", "true", ""), map[string]string{"policy/policy.cue": policy}))
	s := testkit.Serve(t, repo.Bare, nil, "--unsigned-reviews")
	s.StartAgent(t, "one", "default", "")
	head := repo.Push("x", testkit.Shell("build", "echo x", ""))
	awaitChange(t, s, "x", "is planned", func(p pipeline.Proposal) bool { return p.Digest != "" })
	old := fmt.Sprintf("GIT_COMMITTER_DATE=@%d +0000", time.Now().Add(-25*time.Hour).Unix())
	if out, exit := testkit.RunShell(t, repo.Work, []string{old}, fmt.Sprintf(
		"git -c user.name=Ana -c user.email=ana@x tag -a -m approve old %s; git push -q %s old:refs/reviews/%s/ana", head, repo.Remote, head,
	)); exit != 0 {
		t.Fatal(out)
	}
	awaitChange(t, s, "x", "has a review that is too old", func(p pipeline.Proposal) bool {
		return len(p.Reviews) == 1 && !p.Reviews[0].Counts && strings.Contains(p.Reviews[0].Why, "older than 24 hours")
	})
	review(repo, head, "bo", "refuse\n\nnot like this")
	if st := repo.AwaitStatus(head, "maestro", "failure"); !strings.Contains(st.Description, "refused by bo: not like this") {
		t.Errorf("%+v", st)
	}
	if out, exit := testkit.Run(t, "reconciler", "change", "x", "--server", s.Web); exit != 1 {
		t.Errorf("exit %d\n%s", exit, out)
	}
	s.Kill()
	repo.Git(repo.Work, "push", "--quiet", repo.Remote, string(head)+":refs/heads/main")
	s.Restart(t)
	p := awaitChange(t, s, "x", "is merged", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
	if p.Merge.Sentence != "predicted 1 run, started 1; merged although it was refused by bo: not like this" {
		t.Errorf("%q", p.Merge.Sentence)
	}
	s.AwaitRuns(t, head, 1)
	testkit.Eventually(t, "the status says so", func() (bool, string) {
		st := repo.Statuses(head)["maestro"]
		return st.State == "failure" && strings.HasPrefix(st.Description, "merged although it was refused; "), fmt.Sprintf("%+v", st)
	})
}

func TestMergingMoreThanWasApprovedIsSaid(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("build", "true", ""), map[string]string{"policy/policy.cue": policy}))
	s := testkit.Serve(t, repo.Bare, nil, "--unsigned-reviews")
	s.StartAgent(t, "one", "default", "")
	head := repo.Push("x", testkit.Shell("build", "echo x", ""))
	awaitChange(t, s, "x", "is planned", func(p pipeline.Proposal) bool { return p.Digest != "" })
	review(repo, head, "ana", "approve")
	repo.AwaitStatus(head, "maestro", "success")
	repo.Git(repo.Work, "commit", "--quiet", "--allow-empty", "-m", "more")
	repo.Git(repo.Work, "mv", "compositions/build", "compositions/built")
	repo.Git(repo.Work, "commit", "--quiet", "-m", "one commit more")
	more := repo.Git(repo.Work, "rev-parse", "HEAD")
	repo.Git(repo.Work, "checkout", "--quiet", "main")
	repo.Git(repo.Work, "merge", "--quiet", "--no-ff", "-m", "merge x", more)
	tip := pipeline.CommitID(repo.Git(repo.Work, "rev-parse", "HEAD"))
	repo.Git(repo.Work, "push", "--quiet", repo.Remote, "main:refs/heads/main")
	st := repo.AwaitStatus(tip, "maestro", "failure")
	if !strings.HasPrefix(st.Description, "merged without the approval it needed; ") {
		t.Errorf("%+v", st)
	}
	s.AwaitRuns(t, tip, 1)
	out, exit := testkit.Run(t, "reconciler", "change", "--server", s.Web)
	if exit != 0 || !strings.Contains(out, "commits came to main that no change held") || !strings.Contains(out, "needs 1 approval of ops") {
		t.Errorf("exit %d\n%s", exit, out)
	}
	p := awaitChange(t, s, "x", "is merged", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
	if p.Merge.Approval != pipeline.ApprovalGiven {
		t.Errorf("%+v", p.Merge)
	}
	repo.Push("broken", map[string]string{"compositions/built/build.cue": "package ops\n\ncompositions: build: tasks: {\n"})
	testkit.Eventually(t, "the list shows a mistake", func() (bool, string) {
		out, exit := testkit.Run(t, "reconciler", "change", "--server", s.Web)
		return exit == 0 && regexp.MustCompile(`(?m)^broken +open .*has an error: compositions/built/build.cue:`).MatchString(out), out
	})
}

func TestHostileRefsAreContained(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("build", "true", ""), map[string]string{"policy/policy.cue": policy}))
	s := testkit.Serve(t, repo.Bare, nil, "--unsigned-reviews")
	s.StartAgent(t, "one", "default", "")
	head := repo.Push("x", testkit.Shell("build", "echo x", ""))
	awaitChange(t, s, "x", "is planned", func(p pipeline.Proposal) bool { return p.Digest != "" })

	// A gate's folder that is a file, refs that are no reviews, and thousands that are.
	blob := repo.Git(repo.Bare, "hash-object", "-w", repo.Bare+"/HEAD")
	huge, _ := testkit.RunShell(t, repo.Bare, nil, "(printf 'object %s\\ntype commit\\ntag x\\ntagger E <e@x> 1 +0000\\n\\napprove\\n' "+string(head)+
		"; head -c 3000000 /dev/zero | tr '\\0' x) | git hash-object -w -t tag --stdin")
	var b strings.Builder
	for name, id := range map[string]string{
		"refs/maestro/gates/release": string(head), "refs/maestro/requests/eve": string(head), "refs/maestro/requests/eve2/blob": blob,
		"refs/maestro/requests/eve3/huge": strings.TrimSpace(huge), "refs/maestro/else": blob,
		"refs/reviews/" + string(head) + "/huge": strings.TrimSpace(huge), "refs/reviews/" + string(head) + "/blob": blob,
		"refs/reviews/" + string(head) + "/-rf": string(head), "refs/reviews/" + string(head) + "/<script>": string(head),
		"refs/reviews/main/ana": string(head), "refs/reviews/" + strings.Repeat("0", 40) + "/ana": string(head),
		"refs/heads/refs/reviews/" + string(head) + "/bo": string(head), "refs/heads/-x": string(head), "refs/heads/<b>100%": string(head),
	} {
		fmt.Fprintf(&b, "create %s %s\n", name, id)
	}
	for i := range 3000 {
		fmt.Fprintf(&b, "create refs/reviews/%040x/u%d %s\n", i+1, i, head)
	}
	repo.Write(map[string]string{"refs.txt": b.String()})
	if out, exit := testkit.RunShell(t, repo.Bare, nil, "git update-ref --stdin < "+repo.Work+"/refs.txt"); exit != 0 {
		t.Fatal(out)
	}
	// Pushes run as before, a gate opens although its ref cannot be made, and the page
	// of a branch with a strange name is there.
	review(repo, head, "ana", "approve")
	p := awaitChange(t, s, "x", "is approved", func(p pipeline.Proposal) bool { return p.Approval == pipeline.ApprovalGiven })
	if len(p.Reviews) != 3 {
		t.Errorf("%+v", p.Reviews)
	}
	commit := repo.Push("main", map[string]string{"compositions/release/release.cue": release})
	s.AwaitTask(t, commit, "build", "work", pipeline.Success)
	s.AwaitTask(t, commit, "release", "confirm", pipeline.Held)
	awaitChange(t, s, "<b>100%", "is there", func(p pipeline.Proposal) bool { return p.Head == head })
	repo.Git(repo.Bare, "fsck", "--connectivity-only")
}
