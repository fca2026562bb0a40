package loop

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/place"
)

// The words of a status beside its state go stale: a run goes from task to task, or
// turns out to be blocked, and stays "pending" at the forge. So they are brought up
// to date too, but seldom: a forge takes a thousand posts for a status, and a commit's
// notes grow with each.
const (
	firstDescribed = 15 * time.Second
	lastDescribed  = 2 * time.Minute
	// mostDescribed bounds the runs looked at in one tick.
	mostDescribed = 50
	// blocked is the word for a run that cannot go on as things are. It is shown,
	// and never stored.
	blocked pipeline.State = "blocked"
)

// description is what the forge was told of a run that is under way.
type description struct {
	said     *pipeline.Run // as it was told: state and reason may be other than recorded
	saidAt   time.Time
	lookedAt time.Time
}

// due reports whether the words may be changed. The pause grows with the age of
// the run.
func (d *description) due(r *pipeline.Run, now time.Time) bool {
	pause := min(lastDescribed, max(firstDescribed, now.Sub(r.CreatedAt)/8))
	return d.saidAt.IsZero() || now.Sub(d.saidAt) >= pause && now.Sub(d.lookedAt) >= firstDescribed
}

// describe adds to the pass the runs of which other words are true by now.
func (l *Runs) describe(p *pass, now time.Time) {
	var due []*activeRun
	for _, ar := range l.active {
		if ar.description.due(ar.run, now) {
			due = append(due, ar)
		}
	}
	if len(due) == 0 {
		return
	}
	slices.SortFunc(due, func(a, b *activeRun) int {
		return cmp.Or(a.description.lookedAt.Compare(b.description.lookedAt), strings.Compare(string(a.run.ID), string(b.run.ID)))
	})
	board := l.board()
	for _, ar := range due[:min(mostDescribed, len(due))] {
		ar.description.lookedAt = now
		r := describeRun(board, ar.run, l.placed(ar))
		if before := ar.description.said; before == nil || before.State != r.State || before.Reason != r.Reason {
			ar.description.said, ar.description.saidAt = r, now
			p.say(r)
		}
	}
}

// describeRun returns the run with the state and the reason that people are told:
// blocked, and why, when nothing of it can go on. placed is the run as the board has it.
func describeRun(b *place.Board, r, placed *pipeline.Run) *pipeline.Run {
	out := *r
	if r.Cancel {
		return &out
	}
	var stuck string
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.State.Active() {
			return &out
		}
		if t.State != pipeline.Ready {
			continue
		}
		w := b.Why(placed, &placed.Tasks[i])
		if !w.Blocked {
			return &out
		}
		if stuck == "" {
			stuck = fmt.Sprintf("%s: %s", t.Name, w.Sentence)
		}
	}
	if stuck != "" {
		out.State, out.Reason = blocked, stuck
	}
	return &out
}

// say makes the pass tell the forge of a run whose state has not changed.
func (p *pass) say(r *pipeline.Run) {
	if p.said == nil {
		p.said = map[pipeline.RunID]*pipeline.Run{}
	}
	p.said[r.ID] = r
	p.touch[r.Head()] = true
}

// told returns the run as the forge was told of it, or as it is when it has moved since.
func (l *Runs) told(r *pipeline.Run) *pipeline.Run {
	if ar := l.active[r.ID]; ar != nil && ar.description.said != nil && ar.description.said.Version == r.Version {
		return ar.description.said
	}
	return r
}
