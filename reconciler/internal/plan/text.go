package plan

import (
	"fmt"
	"path"
	"strings"
	"text/tabwriter"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// TextOptions say how a plan is shown in a terminal.
type TextOptions struct {
	// What and With name the two sides, as "worktree" and "main (9f3c1e2)".
	What, With string
	// Full shows what does not start, and values at length.
	Full bool
}

// Text is the plan for a terminal, without colours: signs and words carry all.
func (p *Plan) Text(o TextOptions) string {
	t := &text{Plan: p, TextOptions: o, most: 60}
	if o.Full {
		t.most = 400
	}
	if o.What != "" {
		t.line("Comparing %s with %s", safe(o.What), safe(o.With))
		t.line("")
	}
	for i := range p.Changes {
		t.change(&p.Changes[i])
	}
	t.aligned("Breaks", len(p.Breaks), func(i int) string { return p.Breaks[i].row() })
	t.aligned("Newly reachable secrets", len(p.Secrets), func(i int) string { return "  ! " + p.Secrets[i].String() })
	t.aligned("Cron", len(p.Firings), func(i int) string {
		return fmt.Sprintf("  %s %s\t%s", signs[p.Firings[i].Op], p.Firings[i].Composition, p.Firings[i].String())
	})
	t.aligned("Source repositories", len(p.Listeners), func(i int) string {
		return fmt.Sprintf("  %s %s\t%s", signs[p.Listeners[i].Op], p.Listeners[i].Composition, safe(p.Listeners[i].String()))
	})
	t.aligned("On merge", len(p.Runs), func(i int) string { return t.run(&p.Runs[i]) })
	t.verdicts()
	t.end()
	return t.b.String()
}

type text struct {
	*Plan
	TextOptions
	b    strings.Builder
	most int // characters of a value
}

func (t *text) line(format string, args ...any) { fmt.Fprintf(&t.b, format+"\n", args...) }

// table writes rows with aligned cells.
func (t *text) table(rows []string) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, r)
	}
	_ = w.Flush() // a builder does not fail
	for line := range strings.Lines(b.String()) {
		t.line("%s", strings.TrimRight(line, " \n"))
	}
}

func (t *text) aligned(title string, n int, row func(int) string) {
	if n == 0 {
		return
	}
	t.line("%s", title)
	rows := make([]string, n)
	for i := range rows {
		rows[i] = row(i)
	}
	t.table(rows)
	t.line("")
}

func (t *text) change(c *Change) {
	head := fmt.Sprintf("%s %s", signs[c.Op], c.subject())
	if c.Pos.File != "" {
		head = fmt.Sprintf("%-46s %s", head, c.Pos.File)
	}
	t.line("%s", strings.TrimRight(head, " "))
	if s := c.tells(); s != "" {
		t.line("    %s %s", signs[c.Op], s)
	}
	rows := make([]string, len(c.Edits))
	for i := range c.Edits {
		e := &c.Edits[i]
		rows[i] = fmt.Sprintf("    %s %s\t%s\t%s", signs[e.Op], safe(e.Path), e.change(t.most), place(e.Pos, c.Pos))
	}
	t.table(rows)
	if c.Op == Changed && c.Tasks > 0 {
		t.line("      %s unchanged", plural(c.Tasks, "task"))
	}
	if c.Kind == KindComposition && c.Op != Removed {
		if list, blocked := t.where(pipeline.CompositionName(c.Name)); blocked {
			t.line("    ! would block: %s", safe(list[0]))
		}
	}
	t.line("")
}

// place is a position, short where the file is that of the whole change.
func place(at, whole pipeline.Position) string {
	switch {
	case at.Line == 0:
		return ""
	case at.File == whole.File:
		return fmt.Sprintf(":%d", at.Line)
	}
	return fmt.Sprintf("%s:%d", path.Clean(at.File), at.Line)
}

func (b *Break) row() string {
	what := fmt.Sprintf("%s.tasks.%s", b.Composition, b.Task)
	if b.Field != "" {
		what += "." + b.Field
	}
	return fmt.Sprintf("  ✗ %s\t%s\t%s", what, safe(b.Why), b.Pos)
}

func (t *text) run(r *Run) string {
	cells := []string{fmt.Sprintf("  + %s", r.Name), safe(r.Why)}
	fits, _ := t.whereAll(r)
	notes := make([]string, 0, len(fits)+4)
	for _, f := range fits {
		notes = append(notes, safe(f))
	}
	if s := r.queue(); s != "" {
		notes = append(notes, safe(s))
	}
	if r.Open {
		notes = append(notes, "its params are known when it starts")
	}
	for i := range r.Gates {
		notes = append(notes, fmt.Sprintf("gate %s: %s", r.Gates[i].name(), safe(r.Gates[i].who())))
	}
	if s := r.Waits.String(); s != "" {
		notes = append(notes, "waits "+s)
	}
	if s := r.Takes.String(); s != "" {
		notes = append(notes, "takes "+s)
	}
	return strings.Join(append(cells, strings.Join(notes, "; ")), "\t")
}

// verdicts shows what does not start; unless all is wanted only what was refused.
func (t *text) verdicts() {
	var rows []string
	for i := range t.Verdicts {
		v := &t.Verdicts[i]
		if v.Outcome == pipeline.VerdictRejected || t.Full && v.Outcome == pipeline.VerdictSkipped {
			rows = append(rows, fmt.Sprintf("  - %s\t%s\t%s", v.Composition, v.Outcome, safe(v.Sentence)))
		}
	}
	t.aligned("Does not start", len(rows), func(i int) string { return rows[i] })
}

func (t *text) end() {
	t.line("Plan: %s; %s.", t.counts(), t.verdict())
	for _, a := range t.needed() {
		t.line("Approval needed: %s (%s, %s).", safe(a.who()), safe(a.Rule), safe(a.because()))
	}
	if t.FleetAt.IsZero() {
		t.line("No server was asked: agents, queues and times are not known. Nothing was run.")
		return
	}
	t.line("Agents as of %s. Nothing was run.", t.FleetAt.UTC().Format("15:04Z"))
}
