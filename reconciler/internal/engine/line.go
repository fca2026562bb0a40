package engine

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Entrant is an unfinished run and the composition that it is of.
type Entrant struct {
	Run *pipeline.Run
	Of  *pipeline.Composition
	// Enters: the run is a draft whose group is known, and asks for its place.
	Enters bool
	// Live: it is a run of the branch that is in force. The others declare their own
	// groups and limits: they may wait for it, and neither end it nor crowd it out.
	Live bool
}

// Place is where a run stands in line.
type Place struct {
	Run pipeline.RunID
	// Behind are the runs that it waits for, none when it may go, and Why says so.
	Behind []pipeline.RunID
	Why    string
	// Cancel, if any, is why the run must end.
	Cancel string
}

// Line decides which runs wait for which, by their groups and by how many runs of a
// composition may be under way: it returns a place for every run that waits or
// enters, and for every run that another one overtakes. all are the unfinished runs;
// drafts that do not enter have no part in it. A run that goes is never held up
// again. The answer depends on the runs alone, so that it is the same after a
// restart.
//
// A run does not wait for the runs that wait for it: where a caller's group is that
// of the run it has called, the two are one.
func Line(all []Entrant) []Place {
	l := &line{byID: make(map[pipeline.RunID]*entrant, len(all))}
	for _, e := range all {
		x := &entrant{Entrant: e, waits: e.Enters || len(e.Run.Behind) > 0, behind: e.Run.Behind}
		l.byID[e.Run.ID] = x
		if e.Enters || !e.Run.Draft && (e.Run.Group != "" || e.Of.MaxRunning > 0 || x.waits) {
			l.order = append(l.order, x)
		}
	}
	// Those that go come first, whatever their number: they are not held up again.
	slices.SortFunc(l.order, func(a, b *entrant) int {
		if a.waits != b.waits {
			if a.waits {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.Run.ID, b.Run.ID)
	})
	for i, x := range l.order {
		if x.waits {
			l.admit(x, l.order[:i])
		}
	}
	return l.places()
}

type line struct {
	byID  map[pipeline.RunID]*entrant
	order []*entrant
}

type entrant struct {
	Entrant
	waits  bool // was not going before
	behind []pipeline.RunID
	why    string
	// limited: it waits for the limit of its composition, and not for its group.
	limited bool
	cancel  string
}

// admit finds whom x waits for among those before it.
func (l *line) admit(x *entrant, before []*entrant) {
	x.behind = nil
	kin := l.callers(x)
	l.overtake(x, before, kin)
	if ahead := l.sameGroup(x, before, kin); len(ahead) > 0 {
		x.behind, x.why = tail(ahead)
		x.why = fmt.Sprintf("behind %s in group %s", x.why, x.Run.Group)
	} else if ahead := l.full(x, before, kin); len(ahead) > 0 {
		x.limited = true
		x.behind, x.why = tail(ahead)
		x.why = fmt.Sprintf("behind %s: at most %s of %s at a time", x.why, plural(x.Of.MaxRunning, "run"), x.Run.Composition)
	}
	if len(x.behind) == 0 {
		return
	}
	if b := l.waitsForMe(x, kin); b != nil {
		x.cancel = fmt.Sprintf("would never begin: it waits for %s, which waits for it", nameOf(b.Run))
	}
	waiting := 0
	for _, b := range before {
		if b.Run.Composition == x.Run.Composition && len(b.behind) > 0 && b.cancel == "" && (b.Live || !x.Live) {
			waiting++
		}
	}
	if most := x.Of.MaxQueued; most > 0 && waiting >= most {
		x.cancel = fmt.Sprintf("%s of %s wait already, and no more may", plural(waiting, "run"), x.Run.Composition)
	}
}

// overtake ends those of its group that x does not want to wait for.
func (l *line) overtake(x *entrant, before []*entrant, kin map[pipeline.RunID]bool) {
	if x.Of.Concurrency == nil || kinInGroup(l, x, kin) {
		return
	}
	for _, b := range before {
		if b.Run.Group != x.Run.Group || x.Run.Group == "" || b.cancel != "" || b.Run.Cancel || b.Live && !x.Live {
			continue
		}
		waits := len(b.behind) > 0
		if p := x.Of.Concurrency.Policy; p == pipeline.CancelRunning || p == pipeline.LatestOnly && waits {
			b.cancel = "overtaken by " + nameOf(x.Run)
		}
	}
}

// sameGroup are the runs before x that exclude it.
func (l *line) sameGroup(x *entrant, before []*entrant, kin map[pipeline.RunID]bool) []*entrant {
	if x.Run.Group == "" || kinInGroup(l, x, kin) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(before), func(b *entrant) bool { return b.Run.Group != x.Run.Group || b.gone() })
}

// kinInGroup reports whether a caller that waits for x is in its group: then that one
// has waited for both.
func kinInGroup(l *line, x *entrant, kin map[pipeline.RunID]bool) bool {
	for id := range kin {
		if k := l.byID[id]; k != nil && k.Run.Group == x.Run.Group {
			return true
		}
	}
	return false
}

// full are the runs of x's composition when no more of them may be under way.
func (l *line) full(x *entrant, before []*entrant, kin map[pipeline.RunID]bool) []*entrant {
	if x.Of.MaxRunning <= 0 {
		return nil
	}
	var same []*entrant
	going := 0
	for _, b := range before {
		switch {
		case b.Run.Composition != x.Run.Composition || kin[b.Run.ID] || b.gone():
		case len(b.behind) == 0:
			going++
			same = append(same, b)
		case b.limited:
			same = append(same, b)
		}
	}
	if going < x.Of.MaxRunning {
		return nil
	}
	return same
}

// gone reports whether the run ends before it begins.
func (x *entrant) gone() bool { return x.cancel != "" && len(x.behind) > 0 }

// tail is whom the next in line waits for: the last one that waits, or all that go.
// So one run at a time learns that somebody before it has ended.
func tail(ahead []*entrant) (behind []pipeline.RunID, names string) {
	if last := ahead[len(ahead)-1]; len(last.behind) > 0 {
		return []pipeline.RunID{last.Run.ID}, nameOf(last.Run)
	}
	const most = 3
	var list []string
	for i, b := range ahead {
		behind = append(behind, b.Run.ID)
		if i < most {
			list = append(list, nameOf(b.Run))
		}
	}
	if n := len(ahead) - most; n > 0 {
		list = append(list, fmt.Sprintf("%d more", n))
	}
	return behind, strings.Join(list, ", ")
}

// callers are the unfinished runs that wait for x to end because they have called it.
func (l *line) callers(x *entrant) map[pipeline.RunID]bool {
	out := map[pipeline.RunID]bool{}
	for c := l.caller(x.Run); c != nil && !out[c.Run.ID]; c = l.caller(c.Run) {
		out[c.Run.ID] = true
	}
	return out
}

func (l *line) caller(r *pipeline.Run) *entrant {
	cause := r.Event.Cause
	if r.Event.Kind != pipeline.EventCall || cause == nil {
		return nil
	}
	c := l.byID[cause.Run]
	if c == nil {
		return nil
	}
	if t := c.Run.Task(cause.Task); t == nil || t.Child != r.ID || t.State != pipeline.Running {
		return nil
	}
	return c
}

// waitsForMe returns a run that x would wait for and that itself cannot end before x
// does, nil when there is none.
func (l *line) waitsForMe(x *entrant, kin map[pipeline.RunID]bool) *entrant {
	seen := map[pipeline.RunID]bool{}
	var reaches func(id pipeline.RunID) bool
	reaches = func(id pipeline.RunID) bool {
		if id == x.Run.ID || kin[id] {
			return true
		}
		e := l.byID[id]
		if e == nil || seen[id] {
			return false
		}
		seen[id] = true
		if slices.ContainsFunc(e.behind, reaches) {
			return true
		}
		return slices.ContainsFunc(e.Run.Tasks, func(t pipeline.RunTask) bool {
			return t.Spec.Call != nil && t.State == pipeline.Running && t.Child != "" && reaches(t.Child)
		})
	}
	for _, id := range x.behind {
		if reaches(id) {
			return l.byID[id]
		}
	}
	return nil
}

func (l *line) places() []Place {
	var out []Place
	for _, x := range l.order {
		if x.waits || x.cancel != "" {
			out = append(out, Place{Run: x.Run.ID, Behind: x.behind, Why: x.why, Cancel: x.cancel})
		}
	}
	return out
}
