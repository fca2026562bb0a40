package review_test

import (
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

// TestDigestOfADecisionNamesAllThatItWasMadeOf: but for the time.
func TestDigestOfADecisionNamesAllThatItWasMadeOf(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ana, bo := pipeline.Account{ID: 7, Login: "ana"}, pipeline.Account{ID: 8, Login: "bo"}
	decide := func(change func(*review.Input)) pipeline.Decision {
		t.Helper()
		in := review.Input{
			Head: "1111111111111111111111111111111111111111", Plan: "sha256:0123456789ab", AtForge: true, Now: now,
			Rules:    []review.Rule{{Name: "all", Approvers: []string{"ops"}, Count: 1}},
			Groups:   []pipeline.Group{{Name: "ops", Members: []string{"id:7"}}},
			Standing: map[pipeline.Account]review.Standing{ana: {Writes: true}, bo: {Writes: true}},
			Reviews: []review.Review{{
				Review: pipeline.Review{By: "ana", Approve: true, At: now.Add(-time.Minute)},
				Names:  []string{"id:7"}, Signed: true, Head: "1111111111111111111111111111111111111111", Plan: "sha256:0123456789ab",
			}},
		}
		change(&in)
		d := review.Approved(in)
		made := in.Made(&d)
		var err error
		if made.Inputs, err = in.Digest(); err != nil {
			t.Fatal(err)
		}
		return made
	}
	first := decide(func(*review.Input) {})
	if first.Approval != pipeline.ApprovalGiven || len(first.By) != 1 || first.By[0] != "ana (id:7)" || len(first.Rules) != 1 || first.Rules[0] != "all: 1 of 1" {
		t.Errorf("%+v", first)
	}
	if later := decide(func(in *review.Input) { in.Now = now.Add(time.Hour) }); later.Inputs != first.Inputs || !later.Same(&first) || later.At.Equal(first.At) {
		t.Errorf("an hour later it is %+v", later)
	}
	for what, change := range map[string]func(*review.Input){
		"text":     func(in *review.Input) { in.Reviews[0].Comment = "fine" },
		"group":    func(in *review.Input) { in.Groups[0].Members = []string{"id:7", "id:9"} },
		"standing": func(in *review.Input) { in.Standing[bo] = review.Standing{} },
		"author":   func(in *review.Input) { in.Authors = []review.Person{{Name: "eve"}} },
		"rule":     func(in *review.Input) { in.Rules[0].Echo = true },
		"plan":     func(in *review.Input) { in.Plan = "sha256:ba9876543210" },
	} {
		if d := decide(change); d.Inputs == first.Inputs {
			t.Errorf("with another %s its inputs are the same", what)
		}
	}
}
