package place_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/place"
)

// of makes a run of a composition of a repository with a priority, ready since.
func of(id, repo, composition string, priority int, since time.Time) *pipeline.Run {
	r := run(id, ready("a"))
	r.Composition, r.Event.Repo, r.Priority = pipeline.CompositionName(composition), repo, priority
	r.Tasks[0].ReadyAt = since
	return r
}

func queue(b *place.Board) string {
	var out []string
	for _, it := range b.Queue() {
		out = append(out, string(it.Run.ID))
	}
	return strings.Join(out, " ")
}

func TestCompositionsAndRepositoriesTakeTurns(t *testing.T) {
	t.Parallel()
	var runs []*pipeline.Run
	for i := range 4 {
		runs = append(runs, of(fmt.Sprintf("1%d", i), "", "big", 50, now))
	}
	runs = append(runs, of("20", "", "small", 50, now), of("30", "app", "other", 50, now), of("31", "app", "other", 50, now))
	if got := queue(place.New(runs, nil, now, nil)); got != "10 30 20 31 11 12 13" {
		t.Errorf("queue: %s", got)
	}
	// What is at work counts: big has an agent already.
	busy := run("00", on("a", pipeline.Running, "x"))
	busy.Composition = "big"
	b := place.New(append(runs, busy), []place.Agent{agent("x", "Linux")}, now, nil)
	if got := queue(b); got != "30 20 31 10 11 12 13" {
		t.Errorf("queue: %s", got)
	}
	// A higher priority goes before all of them.
	runs = append(runs, of("99", "", "big", 60, now))
	if got := queue(place.New(runs, nil, now, nil)); !strings.HasPrefix(got, "99 ") {
		t.Errorf("queue: %s", got)
	}
}

// TestNoPriorityStarves lets runs of the highest priority come for ever, one agent
// serve them, and a run of the lowest wait.
func TestNoPriorityStarves(t *testing.T) {
	t.Parallel()
	served := map[place.Share]time.Time{}
	low := of("00", "", "low", 0, now)
	at := now
	for i := range 10_000 {
		runs := []*pipeline.Run{low}
		for j := range 5 { // they wait, too, and longer each time
			runs = append(runs, of(fmt.Sprintf("1%05d", i+j), "", "high", 100, at.Add(-time.Hour)))
		}
		b := place.New(runs, []place.Agent{agent("x", "Linux")}, at, nil)
		b.Line.Served = served
		first := b.Queue()[0]
		if first.Run == low {
			if waited := at.Sub(now); waited < 15*time.Minute || waited > 25*time.Minute {
				t.Errorf("the lowest priority was served after %s", waited)
			}
			return
		}
		served[place.ShareOf(first.Run, first.Task)] = at
		at = at.Add(10 * time.Second)
	}
	t.Error("the lowest priority is never served")
}

func TestAgentThatDrainsGoesOnWithItsRunsOnly(t *testing.T) {
	t.Parallel()
	x := agent("x", "Linux")
	x.Drains, x.Away = true, "drains (new disk)"
	mine := run("r1", on("a", pipeline.Success, "x"), ready("b"))
	other := run("r2", ready("a"))
	expect(t, give([]*pipeline.Run{mine, other}, x), "r1/b@x#0")
	expect(t, give([]*pipeline.Run{other}, x))
	why := place.New([]*pipeline.Run{other}, []place.Agent{x}, now, nil).Why(other, &other.Tasks[0])
	if why.Blocked || why.Sentence != "no free agent: 1 drains (new disk); first in line" {
		t.Errorf("%+v", why)
	}
}

func TestWaitingTaskSaysWhenItMayGo(t *testing.T) {
	t.Parallel()
	var agents []place.Agent
	for i := range 9 {
		kernel := "Windows"
		if i < 2 {
			kernel = "Linux"
		}
		agents = append(agents, agent(fmt.Sprintf("x%d", i), kernel))
	}
	working := func(id, agent string, since time.Duration) *pipeline.Run {
		r := run(id, on("a", pipeline.Running, agent))
		r.Tasks[0].StartedAt = now.Add(-since)
		return r
	}
	runs := []*pipeline.Run{working("r0", "x0", time.Minute), working("r1", "x1", 3*time.Minute)}
	for i := range 3 {
		r := run(fmt.Sprintf("r2%d", i), ready("a"))
		r.Tasks[0].Spec.Requirement = linux()
		runs = append(runs, r)
	}
	elsewhere := run("r19", ready("a")) // ahead, and no rival
	elsewhere.Tasks[0].Spec.Requirement.Pool = "nowhere"
	runs = append(runs, elsewhere)
	b := place.New(runs, agents, now, nil)
	last := runs[4]
	const reason = `no free agent with kernel: "Linux": 7 of 9 excluded, 2 busy; third in line`
	if got := b.Why(last, &last.Tasks[0]).Sentence; got != reason {
		t.Errorf("%s", got)
	}
	b.Line.Usual = func(pipeline.CompositionName, pipeline.TaskName) time.Duration { return 4 * time.Minute }
	// The two that run end in 1 and 3 minutes, and the first in line then takes 4.
	if got := b.Why(last, &last.Tasks[0]).Sentence; got != reason+", about 5 min" {
		t.Errorf("%s", got)
	}
}

// BenchmarkManyKinds has tasks of a hundred requirements, of runs with several tasks
// under way, on agents of which half are busy and many are warm.
func BenchmarkManyKinds(b *testing.B) {
	var runs []*pipeline.Run
	for i := range 1000 {
		r := run(fmt.Sprintf("r%04d", i), ready("a"), ready("b"))
		r.Composition = pipeline.CompositionName(fmt.Sprintf("c%d", i%200))
		req := linux()
		req.Facts[0].Path = []string{fmt.Sprintf("fact%d", i%100)}
		for j := range r.Tasks {
			r.Tasks[j].Spec.Requirement = req
		}
		runs = append(runs, r)
	}
	var agents []place.Agent
	for i := range 1000 {
		facts := map[string]any{}
		for j := range 100 {
			if (i+j)%3 > 0 {
				facts[fmt.Sprintf("fact%d", j)] = "Linux"
			}
		}
		a := agent(fmt.Sprintf("x%04d", i), "Linux")
		a.Facts, a.Load = facts, int64(i*7919%1000)
		a.Warm = map[pipeline.CompositionName]bool{pipeline.CompositionName(fmt.Sprintf("c%d", i%200)): true}
		agents = append(agents, a)
		if i%2 == 0 {
			runs = append(runs, run(fmt.Sprintf("b%04d", i), on("a", pipeline.Running, string(a.ID)), ready("b")))
		}
	}
	for b.Loop() {
		if n := len(place.New(runs, agents, now, nil).Assign()); n < 1000 {
			b.Fatalf("assigned %d", n)
		}
	}
}
