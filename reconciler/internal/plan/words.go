package plan

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// verdict is the plan in one line.
func (p *Plan) verdict() string {
	errs := 0
	for i := range p.Diagnostics {
		if p.Diagnostics[i].Severity == pipeline.SeverityError {
			errs++
		}
	}
	needed := ""
	if n := len(p.needed()); n > 0 {
		needed = fmt.Sprintf(", %s needed", plural(n, "approval"))
	}
	runs := pipeline.CountRuns(len(p.Runs), len(p.Called()))
	return fmt.Sprintf("%s will start on merge%s, %s", runs, needed, plural(errs, "error"))
}

// counts says how many compositions change, in words.
func (p *Plan) counts() string {
	n := map[Op]int{}
	for i := range p.Changes {
		if p.Changes[i].Kind == KindComposition {
			n[p.Changes[i].Op]++
		}
	}
	s := fmt.Sprintf("%d changed, %d added, %d removed, %d unchanged", n[Changed], n[Added], n[Removed], p.Unchanged)
	if n[Broken] > 0 {
		s += fmt.Sprintf(", %d broken", n[Broken])
	}
	return s
}

var signs = map[Op]string{Added: "+", Removed: "-", Changed: "~", Broken: "✗"}

// where says which agents can take the tasks of a composition, the scarcest first.
// blocked: there is a task that none can.
func (p *Plan) where(c pipeline.CompositionName) (list []string, blocked bool) {
	at := p.placement(c)
	if at == nil {
		return nil, false
	}
	fits := slices.Clone(at.Fits)
	slices.SortStableFunc(fits, func(a, b Fit) int { return cmp.Compare(a.Agents, b.Agents) })
	if fits[0].Agents == p.Agents && p.Agents > 0 {
		fits = fits[:1] // every agent fits every task
		fits[0].Tasks = nil
	}
	for i := range fits {
		f := &fits[i]
		what := ""
		if len(fits) > 1 {
			what = ": " + taskNames(f.Tasks)
		}
		if f.Agents == 0 {
			blocked = true
			what = "no agent fits" + what
		} else {
			what = fmt.Sprintf("%d of %s%s", f.Agents, plural(p.Agents, "agent"), what)
		}
		list = append(list, what+f.excluded())
	}
	return list, blocked
}

// whereAll is where for a run and all that it calls. What blocks comes first; of what
// no agent is asked for there is the name.
func (p *Plan) whereAll(r *Run) (list []string, blocked bool) {
	list, blocked = p.where(r.Name)
	var others []string
	for _, name := range r.Calls {
		theirs, stuck := p.where(name)
		if len(theirs) == 0 {
			others = append(others, string(name))
			continue
		}
		s := fmt.Sprintf("calls %s: %s", name, theirs[0]) // the tasks with the fewest agents
		if stuck && !blocked {
			list, blocked = slices.Insert(list, 0, s), true
			continue
		}
		list = append(list, s)
	}
	if len(others) > 0 {
		list = append(list, "calls "+strings.Join(others, ", "))
	}
	return list, blocked
}

func taskNames(list []pipeline.TaskName) string {
	const most = 3
	var out []string
	for _, t := range list[:min(most, len(list))] {
		out = append(out, string(t))
	}
	if more := len(list) - most; more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	return strings.Join(out, ", ")
}

// excluded says which clauses exclude how many, the narrowest first.
func (f *Fit) excluded() string {
	const most = 3
	var out []string
	for _, x := range f.Excluded[:min(most, len(f.Excluded))] {
		verb := "lack"
		if x.Agents == 1 {
			verb = "lacks"
		}
		out = append(out, fmt.Sprintf("%d %s %s", x.Agents, verb, x.Clause))
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, ", ") + ")"
}

// queue says what the run waits for, "" for nothing.
func (r *Run) queue() string {
	var out []string
	if r.Full {
		return "ends at once: its queue is full"
	}
	if len(r.Behind) > 0 {
		s := "behind " + runNames(r.Behind)
		if r.Group != "" {
			s += " in group " + r.Group
		}
		out = append(out, s)
	}
	if len(r.Cancels) > 0 {
		out = append(out, "cancels "+runNames(r.Cancels))
	}
	return strings.Join(out, ", ")
}

func runNames(list []RunName) string {
	const most = 3
	var out []string
	for _, n := range list[:min(most, len(list))] {
		s := string(n.Composition)
		if n.Number > 0 {
			s = fmt.Sprintf("%s#%d", n.Composition, n.Number)
		}
		out = append(out, s)
	}
	if more := len(list) - most; more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	return strings.Join(out, ", ")
}

// String is "40s / 2m", the median and the 90th percentile.
func (e Estimate) String() string {
	if e.Of == 0 {
		return ""
	}
	return brief(e.P50) + " / " + brief(e.P90)
}

// brief is a duration in its two largest units.
func brief(d pipeline.Duration) string {
	t := time.Duration(d)
	switch {
	case t < 10*time.Second && t >= 100*time.Millisecond:
		t = t.Round(100 * time.Millisecond)
	case t < time.Hour:
		t = t.Round(time.Second)
	default:
		t = t.Round(time.Minute)
	}
	s := t.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// who says whose approval it is, in words.
func (a *Approval) who() string {
	from := "anybody who may review"
	switch {
	case a.Nobody != "":
		return "an owner, and on the default branch " + a.Nobody
	case len(a.Owners) > 0:
		from = pipeline.EitherOf(a.Owners)
	case len(a.Approvers) > 0:
		from = either(a.Approvers)
	}
	if a.Count > 1 {
		return fmt.Sprintf("%d of %s", a.Count, from)
	}
	return from
}

func (a *Approval) because() string {
	switch {
	case a.Nobody != "":
		return "asks for owners"
	case len(a.Owners) > 0 && a.More > 0:
		return fmt.Sprintf("owns %s and %d more", strings.Join(a.Because, ", "), a.More)
	case len(a.Owners) > 0:
		return "owns " + strings.Join(a.Because, ", ")
	case len(a.Because) == 0:
		return "every change"
	}
	return "touches " + strings.Join(a.Because, ", ")
}

func (h *Held) name() string {
	if h.Composition == "" {
		return string(h.Task)
	}
	return string(h.Composition) + "/" + string(h.Task)
}

func (h *Held) who() string {
	a := Approval{Approvers: h.Approvers, Count: h.Count}
	return a.who()
}

// String says what becomes of the trigger, with its next firings.
func (f *Firing) String() string {
	switch f.Op {
	case Added:
		return fmt.Sprintf("cron %s: fires %s", f.New, instants(f.Next))
	case Removed:
		return fmt.Sprintf("cron %s: does not fire at %s", f.Old, instants(f.Was[:min(1, len(f.Was))]))
	}
	return fmt.Sprintf("cron %s -> %s: fires %s", f.Old, f.New, instants(f.Next))
}

func instants(list []time.Time) string {
	if len(list) == 0 {
		return "never"
	}
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = t.UTC().Format("2006-01-02 15:04Z")
	}
	return strings.Join(out, ", ")
}

func (r *Reach) String() string {
	if r.Moved {
		return fmt.Sprintf("%s by %s (it is read from another place)", r.Secret, r.Composition)
	}
	return fmt.Sprintf("%s by %s", r.Secret, r.Composition)
}

// values are both sides of an edit, short: of a long text the first line that differs.
func (e *Edit) values(most int) (old, now string) {
	old, now = e.Old, e.New
	var a, b string
	if json.Unmarshal([]byte(old), &a) == nil && json.Unmarshal([]byte(now), &b) == nil && strings.Contains(a+b, "\n") {
		x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
		i := 0
		for i < len(x) && i < len(y) && x[i] == y[i] {
			i++
		}
		old, now = numbered(x, i), numbered(y, i)
	}
	return cutTo(safe(old), most), cutTo(safe(now), most)
}

func numbered(lines []string, i int) string {
	if i >= len(lines) {
		return plural(len(lines), "line")
	}
	return fmt.Sprintf("line %d: %s", i+1, marshal(lines[i]))
}

// change is an edit on one line.
func (e *Edit) change(most int) string {
	old, now := e.values(most)
	switch {
	case e.Op == Added:
		return now
	case e.Op == Removed:
		return old
	case e.Deep:
		return "what it refers to has changed: " + now
	}
	return old + " -> " + now
}

// safe makes text from outside one line that only shows itself.
func safe(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029':
			return -1
		}
		return r
	}, s)
}

// subject is what a change is about, as in "pool linux".
func (c *Change) subject() string {
	if c.Kind == KindComposition {
		return c.Name
	}
	return strings.TrimSpace(c.Kind + " " + c.Name)
}

// tells says of a composition that is not compared what it is.
func (c *Change) tells() string {
	if c.Op == Broken {
		return "has errors"
	}
	if c.Kind == KindComposition && c.Op != Changed {
		return plural(c.Tasks, "task")
	}
	return ""
}
