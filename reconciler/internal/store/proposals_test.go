package store_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func proposal(branch, head string, state pipeline.ProposalState) *pipeline.Proposal {
	return &pipeline.Proposal{
		Branch: branch, Target: "main", Head: pipeline.CommitID(head), State: state, Approval: pipeline.ApprovalWaiting,
		Sentence: "needs 1 approval of ops", Digest: "sha256:abc", Plan: json.RawMessage(`{"runs":[{"composition":"a<b"}]}`), Text: "the plan",
		Reviews:  []pipeline.Opinion{{Review: pipeline.Review{By: "ana", Approve: true, At: noon}, Why: "too old"}},
		OpenedAt: noon, HeadAt: noon, ChangedAt: noon,
	}
}

func TestProposalsAreKeptByBranch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	one, two := proposal("feature/x", "c1", pipeline.ProposalOpen), proposal("y", "c2", pipeline.ProposalMerged)
	two.ChangedAt, two.Merge = noon.Add(time.Hour), &pipeline.Merge{Commit: "c9", At: noon}
	write(t, db, func(tx *store.Tx) error {
		for _, p := range []*pipeline.Proposal{one, two} {
			if err := tx.SaveProposal("ops", p); err != nil {
				return err
			}
		}
		return tx.NoteProposal("ops", one.Branch, one.Head, "sha256:text")
	})
	db.Close()
	db = open(t, dir)
	got, err := db.Proposal(t.Context(), "ops", "feature/x")
	if diff := cmp.Diff(*one, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	list, err := db.OpenProposals(t.Context(), "ops")
	if err != nil || len(list) != 1 || list[0].Branch != "feature/x" || list[0].Noted != "sha256:text" {
		t.Errorf("open: %+v, %v", list, err)
	}
	all, err := db.Proposals(t.Context(), 10)
	if err != nil || len(all) != 2 || all[0].Branch != "feature/x" || all[0].Text != "" || all[0].Plan != nil || all[1].Branch != "y" {
		t.Errorf("all: %+v, %v", all, err)
	}
	for id, want := range map[pipeline.CommitID]int{"c2": 1, "c9": 1, "c3": 0} {
		if list, err := db.ProposalsOf(t.Context(), id); err != nil || len(list) != want || want == 1 && list[0].Branch != "y" {
			t.Errorf("of commit %s: %+v, %v", id, list, err)
		}
	}
	if _, err := db.Proposal(t.Context(), "other", "y"); !fault.Is(err, fault.NotFound) {
		t.Errorf("of another repository: %v", err)
	}
	// A new head has no note yet.
	one.Head = "c4"
	write(t, db, func(tx *store.Tx) error { return tx.SaveProposal("ops", one) })
	if list, err := db.OpenProposals(t.Context(), "ops"); err != nil || list[0].Noted != "" || list[0].Head != "c4" {
		t.Errorf("after a push: %+v, %v", list, err)
	}
	changes, err := db.Changes(t.Context(), 0, 10)
	if err != nil || len(changes) != 3 || changes[0].Kind != pipeline.ChangeProposal || changes[0].Reason != "feature/x: needs 1 approval of ops" {
		t.Errorf("changes: %+v, %v", changes, err)
	}
}

func TestReviewIsAsItWasFirstSeenUntilItsRefGoes(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	r := store.SeenReview{Ref: "refs/reviews/c1/ana", Object: "o1", Head: "c1", Plan: "sha256:a", At: noon}
	see := func(r store.SeenReview) { write(t, db, func(tx *store.Tx) error { return tx.SeeReview("ops", r) }) }
	check := func(want ...store.SeenReview) {
		t.Helper()
		got, err := db.SeenReviews(t.Context(), "ops")
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	see(r)
	later := r
	later.Plan, later.At = "sha256:b", noon.Add(time.Hour)
	see(later)
	check(r)
	later.Void = "the head moved"
	see(later)
	r.Void = later.Void
	check(r)
	later.Void = ""
	see(later)
	check(r)
	write(t, db, func(tx *store.Tx) error { return tx.ForgetReview("ops", r.Ref, r.Object) })
	check()
}

func TestRequestIsAnsweredOnce(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	r := store.AnsweredRequest{Ref: "refs/maestro/requests/ana/1", Object: "o1", Target: "c1", Answer: "ana: run build: build#1", At: noon}
	c := composition("build", 1)
	answer := func(n int) error {
		return db.Write(t.Context(), func(tx *store.Tx) error {
			if err := tx.CreateRun(newRun(c, n), c); err != nil {
				return err
			}
			return tx.AnswerRequest("ops", r)
		})
	}
	if err := answer(1); err != nil {
		t.Fatal(err)
	}
	if err := answer(2); !fault.Is(err, fault.Conflict) {
		t.Errorf("answered again: %v", err)
	}
	if runs, err := db.Runs(t.Context(), store.Filter{Limit: 9}); err != nil || len(runs) != 1 {
		t.Errorf("%d runs, %v: what came with the second answer must not stay", len(runs), err)
	}
	write(t, db, func(tx *store.Tx) error { return tx.RequestTold("ops", "o1") })
	got, err := db.Request(t.Context(), "ops", "o1")
	r.Told = true
	if diff := cmp.Diff(r, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := db.Request(t.Context(), "ops", "o2"); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}

func TestHistoryIsWhatTheLatestSuccessesTook(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	for i := range 4 {
		r := newRun(c, i)
		create(t, db, r, c)
		if i < 3 {
			bring(t, db, r, pipeline.Success)
		}
	}
	got, err := db.History(t.Context(), 3)
	if err != nil || len(got) != 1 || got[0].Composition != "build" || len(got[0].Waits) != 2 || len(got[0].Durations) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestHeadIsUnplannedUntilItsBranchWasLookedAt(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	check := func(id pipeline.CommitID, want bool) {
		t.Helper()
		if got, err := db.Unplanned(t.Context(), id, "refs/heads/main"); got != want || err != nil {
			t.Errorf("%s: %v, %v", id, got, err)
		}
	}
	write(t, db, func(tx *store.Tx) error {
		for ref, id := range map[pipeline.Ref]pipeline.CommitID{"refs/heads/main": "c1", "refs/heads/a/b": "c2", "refs/tags/a": "c3"} {
			if err := tx.ObserveRef("ops", ref, id); err != nil {
				return err
			}
		}
		return nil
	})
	check("c1", false)
	check("c2", true)
	check("c3", false)
	write(t, db, func(tx *store.Tx) error { return tx.LookAt("ops", "a/b", "c1") })
	check("c2", true)
	write(t, db, func(tx *store.Tx) error { return tx.LookAt("ops", "a/b", "c2") })
	check("c2", false)
	if got, err := db.LookedAt(t.Context(), "ops"); err != nil || len(got) != 1 || got["a/b"] != "c2" {
		t.Errorf("%v, %v", got, err)
	}
	write(t, db, func(tx *store.Tx) error { return tx.LookAt("ops", "a/b", "") })
	check("c2", true)
}
