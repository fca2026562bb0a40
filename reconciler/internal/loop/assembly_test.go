package loop_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// forum is a repository in memory: commits with one parent or two, each with a tree of
// one file, and what refs say.
type forum struct {
	*fakeRepository
	mu         sync.Mutex
	parent     map[pipeline.CommitID]pipeline.CommitID
	second     map[pipeline.CommitID]pipeline.CommitID
	others     map[[2]pipeline.CommitID][]pipeline.CommitID // as Span has them, by base and head
	tree       map[pipeline.CommitID]string                 // the commit itself unless it is here
	author     map[pipeline.CommitID]string
	statements map[string]loop.Statement
	plans      map[pipeline.CommitID]string
	told       []string
	refs       map[pipeline.Ref]string
	away, mute bool
	// planning, unless nil, says whether a branch may be looked at; late: it was anyway.
	planning func() bool
	late     bool
}

func (f *forum) ancestors(id pipeline.CommitID) []pipeline.CommitID {
	var out []pipeline.CommitID
	for ; id != ""; id = f.parent[id] {
		out = append(out, id)
		for _, merged := range f.ancestors(f.second[id]) {
			if !slices.Contains(out, merged) {
				out = append(out, merged)
			}
		}
	}
	return out
}

func (f *forum) ChangedPaths(_ context.Context, base, head pipeline.CommitID) ([]string, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if base == head || f.tree[base] != "" && f.tree[base] == f.tree[head] {
		return nil, true, nil
	}
	return []string{"a"}, true, nil
}

func (f *forum) BetweenIn(ctx context.Context, repo string, base, head pipeline.CommitID) (loop.Span, error) {
	return f.Between(ctx, base, head)
}

func (f *forum) Between(_ context.Context, base, head pipeline.CommitID) (loop.Span, error) {
	early := f.planning != nil && !f.planning()
	f.mu.Lock()
	f.late = f.late || early
	defer f.mu.Unlock()
	if f.away {
		return loop.Span{}, fault.New(fault.Unavailable, "the server is away")
	}
	before := f.ancestors(base)
	s := loop.Span{Others: f.others[[2]pipeline.CommitID{base, head}]}
	for _, id := range f.ancestors(head) {
		if slices.Contains(before, id) {
			s.Fork = cmp.Or(s.Fork, id)
			continue
		}
		s.Commits++
		s.List = append(s.List, loop.Commit{ID: id, Merges: f.second[id] != ""})
		s.People = append(s.People, review.Person{Name: f.author[id]})
	}
	return s, nil
}

func (f *forum) Statement(_ context.Context, object string, _ pipeline.CommitID) (loop.Statement, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.statements[object]
	if !ok {
		return s, fault.New(fault.Invalid, "object %s is a blob", object)
	}
	return s, nil
}

func (f *forum) FillPlanned(context.Context, pipeline.CommitID, *pipeline.Composition, plan.Blank, pipeline.Event) ([]byte, error) {
	return []byte(`"filled"`), nil
}

func (f *forum) WritePlan(_ context.Context, head pipeline.CommitID, text string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plans[head] = text
	return nil
}

func (f *forum) TellRequester(_ context.Context, _ pipeline.CommitID, line string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mute {
		return fault.New(fault.Unavailable, "the server takes no notes")
	}
	f.told = append(f.told, line)
	return nil
}

func (f *forum) Head(d loop.Draft) (pipeline.CommitID, error) {
	return pipeline.CommitID(strings.TrimPrefix(string(pipeline.DigestOf([]byte(d.Text))), "sha256:")[:40]), nil
}

func (f *forum) Publish(_ context.Context, ref pipeline.Ref, d loop.Draft) error {
	head, err := f.Head(d)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refs[ref] = string(head)
	return err
}

func (f *forum) Remove(_ context.Context, ref pipeline.Ref, object string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refs[ref] == object {
		delete(f.refs, ref)
	}
	return nil
}

const (
	c0 = "0000000000000000000000000000000000000000"
	c1 = "1111111111111111111111111111111111111111"
	c2 = "2222222222222222222222222222222222222222"
	c3 = "3333333333333333333333333333333333333333"
)

// assembly is a world with people in it: c0 is in force and asks for one of ops.
type assembly struct {
	*world
	f    *forum
	p    *loop.Proposals
	tips map[pipeline.Ref]pipeline.CommitID
}

func newAssembly(t *testing.T) *assembly {
	w := &world{
		t: t, dir: memoryDir(t), logs: map[pipeline.AttemptID]int64{}, dropped: make(chan pipeline.AgentID, 100),
		repo: &fakeRepository{configs: map[pipeline.CommitID]pipeline.Config{}},
	}
	a := &assembly{world: w, tips: map[pipeline.Ref]pipeline.CommitID{}, f: &forum{
		fakeRepository: w.repo, parent: map[pipeline.CommitID]pipeline.CommitID{}, author: map[pipeline.CommitID]string{},
		second: map[pipeline.CommitID]pipeline.CommitID{}, tree: map[pipeline.CommitID]string{},
		statements: map[string]loop.Statement{}, plans: map[pipeline.CommitID]string{}, refs: map[pipeline.Ref]string{},
	}}
	a.open()
	t.Cleanup(func() { a.stop() })
	a.make(c0, "", "eve", func(cfg *pipeline.Config) {})
	a.push("") // the repository is empty at the first look
	a.tips[mainRef] = c0
	a.see()
	a.awaitLooked()
	return a
}

// open starts what a process has; stop ends it as a crash would.
func (a *assembly) open() {
	a.t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{a.t}, nil))
	db, err := store.Open(a.t.Context(), a.dir, log)
	if err != nil {
		a.t.Fatal(err)
	}
	a.db, a.sent = db, make(chan sent, 1000)
	a.runs = loop.New(loop.Config{
		DB: db, Logs: a, Fleet: a, Filler: a, Secrets: a, Law: a.law, Log: log, Default: mainRef, Repo: repoName, Proposals: true,
	})
	a.c = loop.NewCommits(loop.CommitsConfig{
		DB: db, Repository: a.repo, Runs: a.runs, Log: log, Name: repoName, Default: mainRef, Proposals: true,
	})
	a.p = loop.NewProposals(loop.ProposalsConfig{
		DB: db, Discussion: a.f, Commits: a.c, Runs: a.runs, Log: log, Name: repoName, Default: mainRef,
		Branches: true, Notes: true,
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(a.t.Context()))
	var wg sync.WaitGroup
	runs, proposals := a.runs, a.p
	wg.Go(func() { _ = runs.Run(ctx) })
	wg.Go(func() { _ = proposals.Run(ctx) })
	a.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := db.Close(); err != nil {
			a.t.Error(err)
		}
	})
}

func (a *assembly) reopen() {
	a.stop()
	a.open()
	a.see()
}

// make is a commit that declares the composition c, changed by change.
func (a *assembly) make(id, parent pipeline.CommitID, author string, change func(*pipeline.Config)) {
	a.commit(string(id), pipeline.Task{Name: "work", Fields: json.RawMessage(`{}`)})
	a.repo.mu.Lock()
	cfg := a.repo.configs[id]
	cfg.Policy = pipeline.Policy{
		Groups:  []pipeline.Group{{Name: "ops", Members: []string{"ana", "bo", "eve"}}},
		Changes: []pipeline.ChangeRule{{Name: "all", Approvers: []string{"ops"}, Count: 1}},
	}
	change(&cfg)
	cfg.Compositions[0].Digest = pipeline.DigestOf([]byte(id))
	a.repo.configs[id] = cfg
	a.repo.mu.Unlock()
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	a.f.parent[id], a.f.author[id] = parent, author
	a.f.statements[string(id)] = loop.Statement{Target: id}
}

// merge is a commit that brings head to main and nothing else.
func (a *assembly) merge(id, main, head pipeline.CommitID) {
	a.make(id, main, "eve", func(*pipeline.Config) {})
	a.repo.mu.Lock()
	cfg := a.repo.configs[head]
	cfg.Commit = id
	a.repo.configs[id] = cfg
	a.repo.mu.Unlock()
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	a.f.second[id] = head
	a.f.tree[id], a.f.tree[head] = "of "+string(head), "of "+string(head)
}

// touched changes what the composition does.
func touched(what string) func(*pipeline.Config) {
	return func(cfg *pipeline.Config) {
		cfg.Compositions[0].Tasks[0].Fields = json.RawMessage(fmt.Sprintf(`{"script":%q}`, what))
	}
}

// see shows the refs as they are now to everybody, as the server does.
func (a *assembly) see() {
	a.t.Helper()
	a.f.mu.Lock()
	tips, own := maps.Clone(a.tips), maps.Clone(a.f.refs)
	a.f.mu.Unlock()
	if err := a.c.Observe(a.t.Context(), tips); err != nil {
		a.t.Fatal(err)
	}
	a.p.Observe(loop.Observed{Tips: tips, Own: own})
}

func (a *assembly) awaitLooked() {
	a.eventually("branches were looked at", func() (bool, string) {
		looked, err := a.db.LookedAt(a.t.Context(), repoName)
		return looked[""] != "", fmt.Sprint(looked, err)
	})
}

// eventually waits for the record to become so.
func (a *assembly) eventually(what string, ok func() (bool, string)) {
	a.t.Helper()
	signal, stop := a.db.Watch()
	defer stop()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done, why := ok()
		if done {
			return
		}
		select {
		case <-signal:
		case <-tick.C:
		case <-deadline:
			a.t.Fatalf("%s: %s", what, why)
		}
	}
}

// awaitProposal waits until the change of a branch is as it should be.
func (a *assembly) awaitProposal(branch, what string, ok func(pipeline.Proposal) bool) pipeline.Proposal {
	a.t.Helper()
	var p pipeline.Proposal
	a.eventually(branch+" "+what, func() (bool, string) {
		var err error
		if p, err = a.db.Proposal(a.t.Context(), repoName, branch); err != nil {
			return false, err.Error()
		}
		return ok(p), fmt.Sprintf("%s %s %s %q %+v %+v", p.State, p.Head.Short(), p.Approval, p.Sentence, p.Reviews, p.Merge)
	})
	return p
}

// propose pushes a branch.
func (a *assembly) propose(branch string, id pipeline.CommitID) {
	a.tips[pipeline.Ref("refs/heads/"+branch)] = id
	a.see()
}

// say pushes a signed tag that says something about a commit, under a ref.
func (a *assembly) say(ref pipeline.Ref, about pipeline.CommitID, signer, message string) string {
	a.t.Helper()
	a.f.mu.Lock()
	object := fmt.Sprintf("%040d", len(a.f.statements))
	s := loop.Statement{Target: about, Message: message, At: time.Now()}
	if signer != "" {
		s.Signers = []string{signer}
	}
	a.f.statements[object] = s
	a.f.refs[ref] = object
	a.f.mu.Unlock()
	a.see()
	return object
}

func (a *assembly) review(about pipeline.CommitID, user, message string) {
	a.say(pipeline.Ref("refs/reviews/"+string(about)+"/"+user), about, user, message)
}

func planned(head pipeline.CommitID) func(pipeline.Proposal) bool {
	return func(p pipeline.Proposal) bool {
		return p.Head == head && p.Digest != "" && p.Sentence != "its reviews have not been read"
	}
}

func approval(head pipeline.CommitID, want pipeline.Approval) func(pipeline.Proposal) bool {
	return func(p pipeline.Proposal) bool { return planned(head)(p) && p.Approval == want }
}

func (a *assembly) status(id pipeline.CommitID, state, text string) {
	a.t.Helper()
	a.eventually("status of "+id.Short(), func() (bool, string) {
		list, err := a.db.StatusesOf(a.t.Context(), id)
		if err != nil || len(list) == 0 {
			return false, fmt.Sprint(err)
		}
		return list[0].State == state && strings.Contains(list[0].Description, text), fmt.Sprintf("%+v", list[0])
	})
}
