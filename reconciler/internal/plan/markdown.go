package plan

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// MarkdownOptions say how a plan is shown at a forge.
type MarkdownOptions struct {
	// Marker is written first, on a line of its own; "" leaves it out.
	Marker string
	// Onto is the branch that the change is for.
	Onto string
	// Checks are the runs that start on the change itself, before it is merged.
	Checks []Run
	// Refused are of what cannot start on it. Closed: it comes from a fork, and nothing
	// starts before somebody has looked at it.
	Refused []pipeline.Verdict
	Closed  bool
	// URL of the whole plan, "" when there is none.
	URL string
}

// MaxMarkdown bounds a rendering in bytes: forges refuse comments above 64 KiB.
const MaxMarkdown = 60_000

// Markdown is the plan as a comment: the verdict, a table of what starts, what
// changes besides, who must approve, and the rest folded. What does not fit is
// counted.
func (p *Plan) Markdown(o MarkdownOptions) string {
	var out string
	for _, most := range []int{500, 100, 30, 10, 3, 1} {
		m := &markdown{Plan: p, MarkdownOptions: o, most: most}
		if out = m.render(); len(out) <= MaxMarkdown {
			return out
		}
	}
	m := &markdown{Plan: p, MarkdownOptions: o}
	m.head()
	m.line("The plan is too large to be shown here.%s", strings.TrimRight(" "+o.URL, " "))
	return m.b.String()
}

type markdown struct {
	*Plan
	MarkdownOptions
	b    strings.Builder
	most int // rows of a section
}

func (m *markdown) line(format string, args ...any) { fmt.Fprintf(&m.b, format+"\n", args...) }

// rows writes at most m.most rows of n, and says how many are left out.
func (m *markdown) rows(n int, row func(int), left string) {
	for i := range min(n, m.most) {
		row(i)
	}
	if n > m.most {
		more := fmt.Sprintf("… %d more", n-m.most)
		if m.URL != "" {
			more = fmt.Sprintf("[%s](%s)", more, m.URL)
		}
		m.line(left, more)
	}
}

func (m *markdown) render() string {
	m.head()
	m.errors()
	m.table()
	m.besides()
	m.ahead()
	m.changes()
	m.skipped()
	return m.b.String()
}

func (m *markdown) head() {
	if m.Marker != "" {
		m.line("%s", m.Marker)
	}
	parts := []string{fmt.Sprintf("**maestro plan: %s**", m.verdict()), code(cmp.Or(m.Head.Short(), "worktree"))}
	if m.Base != "" {
		parts[1] += " onto " + code(strings.TrimPrefix(m.Onto+"@"+m.Base.Short(), "@"))
	}
	parts = append(parts, "plan "+code(m.Digest.Short()))
	if !m.FleetAt.IsZero() {
		parts = append(parts, "agents as of "+m.FleetAt.UTC().Format("15:04Z"))
	}
	m.line("%s", strings.Join(parts, " · "))
	m.line("")
}

func (m *markdown) errors() {
	var list []*pipeline.Diagnostic
	for i := range m.Diagnostics {
		if m.Diagnostics[i].Severity == pipeline.SeverityError {
			list = append(list, &m.Diagnostics[i])
		}
	}
	m.rows(len(list), func(i int) {
		m.line("- **error** %s %s: %s", code(list[i].Pos.String()), list[i].Code, prose(list[i].Message))
	}, "- %s")
	if len(list) > 0 {
		m.line("")
	}
	m.list("**Breaks:**", len(m.Breaks), func(i int) string {
		b := &m.Breaks[i]
		return fmt.Sprintf("%s task %s: %s (plugin %s, %s)", code(string(b.Composition)), code(string(b.Task)), prose(b.Why), code(string(b.Plugin)), code(b.Pos.String()))
	})
}

// list writes a title and an item a line.
func (m *markdown) list(title string, n int, item func(int) string) {
	if n == 0 {
		return
	}
	m.line("%s", title)
	m.line("")
	m.rows(n, func(i int) { m.line("- %s", item(i)) }, "- %s")
	m.line("")
}

func (m *markdown) table() {
	type row struct{ sign, name, trigger, where, wait, approval string }
	var rows []row
	for i := range m.Runs {
		r := &m.Runs[i]
		rows = append(rows, row{"+ start", string(r.Name), r.Why, m.fits(r), waits(r), gatesOf(r)})
	}
	for i := range m.Verdicts {
		if v := &m.Verdicts[i]; v.Outcome == pipeline.VerdictRejected {
			rows = append(rows, row{"✗ rejected", string(v.Composition), v.Sentence, "-", "-", "-"})
		}
	}
	for i := range m.Changes {
		if c := &m.Changes[i]; c.Kind == KindComposition && c.Op == Removed {
			rows = append(rows, row{"- gone", c.Name, "-", "-", "-", "-"})
		}
	}
	if len(rows) == 0 {
		return
	}
	m.line("| On merge | Composition | Trigger | Where it fits | Wait (p50 / p90) | Approval |")
	m.line("|---|---|---|---|---|---|")
	m.rows(len(rows), func(i int) {
		r := &rows[i]
		m.line("| %s | %s | %s | %s | %s | %s |", r.sign, strings.ReplaceAll(code(r.name), "|", `\|`), prose(r.trigger), prose(r.where), prose(r.wait), prose(r.approval))
	}, "| | %s | | | | |")
	m.line("")
}

func (m *markdown) fits(r *Run) string {
	list, blocked := m.whereAll(r)
	switch {
	case m.FleetAt.IsZero():
		return strings.Join(append([]string{"not asked"}, list...), "; ")
	case len(list) == 0:
		return "-"
	case blocked:
		return "will block: " + list[0]
	}
	return strings.Join(list, "; ")
}

func waits(r *Run) string {
	var out []string
	for _, s := range []string{r.Waits.String(), r.queue()} {
		if s != "" {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, ", ")
}

func gatesOf(r *Run) string {
	var out []string
	for i := range r.Gates {
		out = append(out, fmt.Sprintf("%s by %s", r.Gates[i].name(), r.Gates[i].who()))
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, "; ")
}

// besides is what changes beside compositions.
func (m *markdown) besides() {
	var items []string
	for i := range m.Changes {
		c := &m.Changes[i]
		if c.Kind == KindComposition {
			continue
		}
		s := fmt.Sprintf("%s %s %s", c.Kind, code(c.Name), c.Op)
		if c.Name == "" {
			s = fmt.Sprintf("%s %s", c.Kind, c.Op)
		}
		const most = 3
		for j := range c.Edits[:min(most, len(c.Edits))] {
			e := &c.Edits[j]
			s += fmt.Sprintf(", %s %s", code(e.Path), code(e.change(80)))
		}
		if n := len(c.Edits) - most; n > 0 {
			s += fmt.Sprintf(", %d more", n)
		}
		items = append(items, s)
	}
	for i := range m.Secrets {
		s := &m.Secrets[i]
		items = append(items, fmt.Sprintf("**new secret reachable:** %s", prose(s.String())))
	}
	for i := range m.Firings {
		f := &m.Firings[i]
		items = append(items, code(string(f.Composition))+" "+prose(f.String()))
	}
	for i := range m.Listeners {
		l := &m.Listeners[i]
		items = append(items, code(string(l.Composition))+" "+prose(l.String()))
	}
	m.list("**Also changes:**", len(items), func(i int) string { return items[i] })
}

// ahead is what must happen for the change to go on.
func (m *markdown) ahead() {
	needed := m.needed()
	m.rows(len(needed), func(i int) {
		a := &needed[i]
		people := ""
		if len(a.People) > 0 && len(a.Owners) == 0 {
			people = ": " + prose(strings.Join(a.People, ", "))
		}
		m.line("**To go ahead:** approval by %s%s (rule %s, %s). It counts for plan %s.",
			prose(a.who()), people, code(a.Rule), prose(a.because()), code(m.Digest.Short()))
	}, "%s")
	if len(m.Checks) > 0 {
		var names []string
		for i := range m.Checks {
			names = append(names, code(string(m.Checks[i].Name)))
		}
		m.line("**Before the merge** nothing runs on the change itself but %s.%s", strings.Join(names, ", "), m.onceSeen())
	}
	m.rows(len(m.Refused), func(i int) {
		v := &m.Refused[i]
		m.line("**Before the merge** %s does not run on the change itself: %s.", code(string(v.Composition)), prose(v.Sentence))
	}, "%s")
	if len(needed)+len(m.Checks)+len(m.Refused) > 0 {
		m.line("")
	}
}

// onceSeen says what a fork waits for.
func (m *markdown) onceSeen() string {
	if !m.Closed {
		return ""
	}
	return " It comes from a fork: that waits for somebody who may write, has looked at it, and comments " + code("/maestro ok-to-test "+m.Head.Short()) + "."
}

func (m *markdown) changes() {
	n := 0
	for i := range m.Changes {
		c := &m.Changes[i]
		if c.Kind != KindComposition {
			continue
		}
		if n++; n > m.most {
			continue
		}
		m.line("<details><summary>%s %s: %s</summary>", signs[c.Op], html(c.Name), extent(c))
		m.line("")
		m.rows(len(c.Edits), func(j int) {
			e := &c.Edits[j]
			m.line("- %s %s %s%s", signs[e.Op], code(e.Path), code(e.change(200)), at(e.Pos))
		}, "- %s")
		if c.Op == Changed && c.Tasks > 0 {
			m.line("- %s unchanged", plural(c.Tasks, "task"))
		}
		if told := c.tells(); told != "" {
			m.line("- %s%s", told, at(c.Pos))
		}
		m.line("")
		m.line("</details>")
	}
	if n > m.most {
		m.line("… %d more compositions change", n-m.most)
	}
}

func extent(c *Change) string {
	if c.Op != Changed {
		return string(c.Op)
	}
	return plural(len(c.Edits), "change")
}

func at(p pipeline.Position) string {
	if p.File == "" {
		return ""
	}
	return " " + code(p.String())
}

// skipped folds what does not start, and why.
func (m *markdown) skipped() {
	var list []*pipeline.Verdict
	for i := range m.Verdicts {
		if m.Verdicts[i].Outcome == pipeline.VerdictSkipped {
			list = append(list, &m.Verdicts[i])
		}
	}
	if len(list) == 0 {
		return
	}
	m.line("<details><summary>%s not start</summary>", doNot(len(list)))
	m.line("")
	m.rows(len(list), func(i int) {
		m.line("- %s: %s", code(string(list[i].Composition)), prose(list[i].Sentence))
	}, "- %s")
	m.line("")
	m.line("</details>")
}

func doNot(n int) string {
	if n == 1 {
		return "1 composition does"
	}
	return fmt.Sprintf("%d compositions do", n)
}

// code shows text from outside literally: on one line, in more backquotes than it has.
func code(s string) string {
	s = cutTo(safe(s), 300)
	if s == "" {
		return ""
	}
	fence := "`"
	for strings.Contains(s, fence) {
		fence += "`"
	}
	if fence != "`" {
		s = " " + s + " "
	}
	return fence + s + fence
}

// prose shows a sentence that may hold text from outside: nothing in it is markup,
// and nobody is mentioned.
func prose(s string) string {
	return proseEscapes.Replace(cutTo(safe(s), 400))
}

var proseEscapes = strings.NewReplacer(
	`\`, `\\`, "`", "\\`", "*", `\*`, "_", `\_`, "<", "&lt;", ">", "&gt;", "&", "&amp;", "|", `\|`,
	"[", `\[`, "]", `\]`, "@", "@\u200b", "#", `\#`, "~", `\~`, "://", ":\u200b//",
)

func html(s string) string {
	return strings.NewReplacer("<", "&lt;", ">", "&gt;", "&", "&amp;", "@", "@\u200b").Replace(cutTo(safe(s), 200))
}
