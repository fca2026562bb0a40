package place

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Wait is why a ready task has no agent.
type Wait struct {
	// Blocked: no agent that is known could ever take it as things are.
	Blocked bool
	// Sentence says why it waits and what ends that.
	Sentence string
}

// Why explains a ready task of run; call it on a board that Assign was not run on,
// or the seats it gave out count as taken.
func (b *Board) Why(run *pipeline.Run, t *pipeline.RunTask) Wait {
	if t.NotBefore.After(b.now) {
		return Wait{Sentence: fmt.Sprintf("%s (in %s)", t.Reason, t.NotBefore.Sub(b.now).Round(time.Second))}
	}
	if held := b.refused(run.ID, t.Name, ""); held != "" {
		return Wait{Sentence: held}
	}
	if len(b.agents) == 0 {
		return Wait{Blocked: true, Sentence: "no agent is enrolled: run `reconciler agents invite` and start agentd with the token"}
	}
	c := b.classes.of(run, t)
	if c.count == 0 {
		return Wait{Blocked: true, Sentence: "no agent fits: " + b.lacks(run, t)}
	}
	var declined []string
	away := tally{}
	for i, fits := range c.fits {
		if !fits {
			continue
		}
		a := &b.agents[i]
		refusal := b.refused(run.ID, t.Name, a.ID)
		switch {
		case refusal != "":
			declined = append(declined, refusal)
			away["declined"]++
		case !pinned(run, t, a.ID):
			away["without the files that it reads"]++
		case !a.Usable || a.Drains && !b.workedOn(run, i):
			away[cmp.Or(a.Away, "not connected")]++
		case b.holder[i] != "" && b.holder[i] != run.ID:
			away["busy"]++
		}
	}
	if len(declined) == c.count {
		return Wait{Sentence: "every agent that fits declined and is asked again: " + strings.Join(declined, "; ")}
	}
	return Wait{Sentence: b.waiting(run, t, c, away)}
}

// tally counts words.
type tally map[string]int

// words are those that were counted, the most frequent first: in an order that does
// not depend on the ids of the agents, so that a sentence changes only when it says
// something else.
func (c tally) words() []string {
	return slices.SortedFunc(maps.Keys(c), func(x, y string) int {
		return cmp.Or(-cmp.Compare(c[x], c[y]), strings.Compare(x, y))
	})
}

// lacks says clause by clause how many agents a task excludes.
func (b *Board) lacks(run *pipeline.Run, t *pipeline.RunTask) string {
	all := tally{}
	for i := range b.agents {
		a := &b.agents[i]
		why := Excluded(a, &t.Spec)
		if len(why) == 0 && a.closed(run) {
			why = append(why, "leave of the policy to run "+string(run.Composition))
		}
		for _, w := range why {
			all[w]++
		}
	}
	const most = 5
	words := all.words()
	parts := make([]string, 0, most)
	for _, w := range words[:min(most, len(words))] {
		parts = append(parts, fmt.Sprintf("%d of %d lack %s", all[w], len(b.agents), w))
	}
	return strings.Join(parts, ", ")
}

// waiting says what the agents do that could take the task, and where it stands.
func (b *Board) waiting(run *pipeline.Run, t *pipeline.RunTask, c *class, away tally) string {
	var parts []string
	if out := len(b.agents) - c.count; out > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d excluded", out, len(b.agents)))
	}
	for _, w := range away.words() {
		parts = append(parts, fmt.Sprintf("%d %s", away[w], w))
	}
	s := "no free agent" + demanded(&t.Spec)
	if len(parts) > 0 {
		s += ": " + strings.Join(parts, ", ")
	}
	n := b.position(run, t, c)
	s += "; " + ordinal(n) + " in line"
	if d := b.estimate(run, t, c, n); d > 0 {
		s += ", about " + rough(d)
	}
	return s
}

// demanded names what a task asks of its agent.
func demanded(t *pipeline.Task) string {
	const most = 3
	var with []string
	s := ""
	if p := t.Requirement.Pool; p != "" {
		s = " in pool " + string(p)
	}
	for i := range t.Requirement.Facts {
		c := &t.Requirement.Facts[i]
		with = append(with, strings.Join(c.Path, ".")+": "+c.Type.String())
	}
	if len(with) > most {
		with = append(with[:most], "more")
	}
	if len(with) > 0 {
		s += " with " + strings.Join(with, " and ")
	}
	return s
}

// position counts the runs ahead of the task that may take an agent it could have, and
// itself.
func (b *Board) position(run *pipeline.Run, t *pipeline.RunTask, c *class) int {
	rivals := map[*class]bool{}
	seen := map[pipeline.RunID]bool{run.ID: true}
	for _, it := range b.Queue() {
		if it.Run.ID == run.ID && it.Task.Name == t.Name {
			break
		}
		if seen[it.Run.ID] {
			continue
		}
		other := b.classes.of(it.Run, it.Task)
		rival, known := rivals[other]
		if !known {
			rival = other == c || other.meets(c)
			rivals[other] = rival
		}
		seen[it.Run.ID] = rival
	}
	n := 0
	for _, counts := range seen {
		if counts {
			n++
		}
	}
	return n
}

// meets reports whether some agent may take tasks of either class.
func (c *class) meets(other *class) bool {
	for i, fits := range c.fits {
		if fits && other.fits[i] {
			return true
		}
	}
	return false
}

// estimate is when the nth in line may have an agent, 0 when that is not known: as the
// tasks end that run on those that fit, if they take as long as they usually do.
func (b *Board) estimate(run *pipeline.Run, t *pipeline.RunTask, c *class, n int) time.Duration {
	if b.Line.Usual == nil {
		return 0
	}
	left := map[pipeline.RunID]time.Duration{}
	for _, r := range b.runs {
		if len(b.seats[r.ID]) > 0 {
			left[r.ID] = b.remaining(r)
		}
	}
	var frees []time.Duration
	for i, fits := range c.fits {
		if holder := b.holder[i]; fits && b.agents[i].Usable && !b.agents[i].Drains && holder != "" && holder != run.ID {
			if left[holder] <= 0 {
				return 0
			}
			frees = append(frees, left[holder])
		}
	}
	usual := b.Line.Usual(run.Composition, t.Name)
	if len(frees) == 0 || n > len(frees) && usual <= 0 {
		return 0
	}
	slices.Sort(frees)
	return frees[(n-1)%len(frees)] + time.Duration((n-1)/len(frees))*usual
}

// remaining is how long a run goes on holding its agents, 0 when that is not known.
func (b *Board) remaining(r *pipeline.Run) time.Duration {
	const soon = time.Second // it takes longer than usual, and nobody knows how much
	most := time.Duration(0)
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.State != pipeline.Running || t.Spec.BuiltIn() || t.StartedAt.IsZero() {
			continue
		}
		usual := b.Line.Usual(r.Composition, t.Name)
		if usual <= 0 {
			return 0
		}
		most = max(most, soon, usual-b.now.Sub(t.StartedAt))
	}
	return most
}

var ordinals = []string{"zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"}

func ordinal(n int) string {
	if n < len(ordinals) {
		return ordinals[n]
	}
	end := "th"
	if tens := n / 10 % 10; tens != 1 {
		switch n % 10 {
		case 1:
			end = "st"
		case 2:
			end = "nd"
		case 3:
			end = "rd"
		}
	}
	return fmt.Sprintf("%d%s", n, end)
}

// rough says a duration as people do.
func rough(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return "a few seconds"
	case d < 90*time.Second:
		return fmt.Sprintf("%d s", int(d.Round(10*time.Second).Seconds()))
	case d < 90*time.Minute:
		return fmt.Sprintf("%d min", int(d.Round(time.Minute).Minutes()))
	}
	return fmt.Sprintf("%d h", int(d.Round(time.Hour).Hours()))
}
