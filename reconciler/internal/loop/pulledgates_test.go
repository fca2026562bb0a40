package loop_test

import (
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

func TestReviewsThatCameBeforeTheirGateSayWhyTheyDoNotCount(t *testing.T) {
	t.Parallel()
	second := time.Date(2026, 11, 23, 12, 0, 7, 0, time.UTC)
	reached := second.Add(400 * time.Millisecond)
	r := &pipeline.Run{ID: "r7", Composition: "release", Number: 7}
	gate := &pipeline.RunTask{Name: "confirm", StartedAt: reached, State: pipeline.Held}
	ana := pipeline.Account{ID: 1, Login: "ana"}
	for name, c := range map[string]struct {
		at   time.Time
		body string
		want string // of why it does not count, "none" for not heard at all, "" for counting
	}{
		"of the change":                    {second.Add(-time.Second), "fine", "none"},
		"in the second of the gate":        {second, "go on", "in the same second; review again"},
		"later":                            {second.Add(time.Second), "", ""},
		"earlier, and it names the gate":   {second.Add(-time.Minute), "release#7/confirm may go on", "before the gate was reached"},
		"earlier, and it names another":    {second.Add(-time.Minute), "release#6 may go on", "none"},
		"in that second, it names another": {second, "release#6 may go on", "none"},
	} {
		d := &loop.Discussed{
			Pull:     pipeline.Pull{Number: 3, Head: c3},
			Reviews:  []pipeline.PullReview{{ID: 1, By: ana, State: "APPROVED", Commit: c3, Body: c.body, At: c.at}},
			Standing: map[pipeline.Account]review.Standing{ana: {Writes: true, Known: 1}},
		}
		list, err := loop.ReviewsAtGate(d, reached.Add(time.Minute), 1, r, gate)
		if err != nil {
			t.Fatal(err)
		}
		got := "none"
		if len(list) > 0 {
			got = list[0].Void
		}
		if len(list) > 1 || (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
