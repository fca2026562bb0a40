package plan

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// GateTalk is what the pull request tells by which people review a gate.
type GateTalk struct {
	Run  *pipeline.Run
	Task *pipeline.RunTask
	// Need is whose approval is asked and how much of it is there; Opinions are the
	// reviews so far. Nobody says why as things are nobody can give it, "" otherwise.
	Need     pipeline.Need
	Opinions []pipeline.Opinion
	Nobody   string
	// Expires is when silence ends it, zero for never.
	Expires time.Time
	// URL of the web view, "" leaves links out.
	URL string
}

// Title is the title of the pull request, on one line.
func (g *GateTalk) Title() string {
	return cutTo(safe(fmt.Sprintf("%s#%d waits at %s: %s", g.Run.Composition, g.Run.Number, g.Task.Name, g.Task.Message)), 200)
}

// Markdown is the text of the pull request: what is asked of whom, or how it ended, what
// the run has done so far, and what it will do. It is at most MaxMarkdown long.
func (g *GateTalk) Markdown() string {
	for _, most := range []int{100, 20, 5, 1} {
		m := &markdown{Plan: &Plan{}, MarkdownOptions: MarkdownOptions{URL: g.URL}, most: most}
		g.head(m)
		g.about(m)
		g.done(m)
		g.outputs(m)
		g.next(m)
		if most == 1 || m.b.Len() <= MaxMarkdown {
			return m.b.String()
		}
	}
	return ""
}

func (g *GateTalk) name() string { return fmt.Sprintf("%s %d", g.Run.Composition, g.Run.Number) }

// head is what mails and phones show first.
func (g *GateTalk) head(m *markdown) {
	if g.Task.State.Terminal() {
		m.line("**maestro: %s %s: %s** · %s", code(string(g.Task.Name)), g.Task.State, prose(g.Task.Reason), g.link(m))
		m.line("")
		m.line("Nothing is asked here any more.")
		m.line("")
		return
	}
	m.line("**maestro: %s waits at %s: %s**", g.link(m), code(string(g.Task.Name)), prose(g.Task.Message))
	m.line("")
	n := g.Need
	from := "anybody who may review"
	if len(n.Approvers) > 0 {
		from = prose(either(n.Approvers))
	}
	if len(n.People) > 0 {
		from += " (" + prose(strings.Join(n.People, ", ")) + ")"
	}
	m.line("Needs %s of %s, and has %d. Nobody counts who wrote the commits of the run or asked for it.", plural(n.Want, "approval"), from, n.Have)
	if g.Nobody != "" {
		m.line("")
		m.line("**%s**", prose(g.Nobody))
	}
	m.line("")
	m.line("- **Approve** this pull request, and the run goes on. Your comment goes with it.")
	m.line("- **Request changes** or **close** it, and the task fails. Merging it says nothing.")
	if !g.Expires.IsZero() {
		m.line("- When nobody has said enough by %s, the task times out.", g.Expires.UTC().Format(time.RFC3339))
	}
	m.line("")
	m.opinions(g.Opinions)
}

func (g *GateTalk) link(m *markdown) string {
	return link(code(g.name()), fmt.Sprintf("%s/c/%s/%d", m.URL, g.Run.Composition, g.Run.Number), m.URL != "")
}

// about says what the run is of.
func (g *GateTalk) about(m *markdown) {
	e := &g.Run.Event
	what := prose(e.Kind)
	if e.Kind == pipeline.EventManual {
		what = "a request"
	}
	if ref := cmp.Or(e.Ref.Branch(), string(e.Ref)); ref != "" {
		what += " of " + code(ref)
	}
	if e.Repo != "" {
		what += " of " + code(e.Repo)
	}
	head := g.Run.Head().Commit
	m.line("Started by %s at %s", what, code(head.Short()))
	switch {
	case e.Subject != "":
		m.line("(%s by %s)", code(e.Subject), code(e.Author))
	case e.Author != "": // of what somebody asked for
		m.line("by %s", code(e.Author))
	}
	if c := e.Cause; c != nil {
		m.line("after %s %d", code(string(c.Composition)), c.Number)
	}
	if len(g.Run.Params) > 2 {
		m.line("with %s", code(string(g.Run.Params)))
	}
	m.line("")
}

// done lists what ended or runs.
func (g *GateTalk) done(m *markdown) {
	var list []*pipeline.RunTask
	for i := range g.Run.Tasks {
		if t := &g.Run.Tasks[i]; t.Name != g.Task.Name && t.State != pipeline.Pending {
			list = append(list, t)
		}
	}
	m.line("#### What ran so far")
	m.line("")
	if len(list) == 0 {
		m.line("Nothing.")
		m.line("")
		return
	}
	m.line("| | Task | Took | |")
	m.line("|---|---|---|---|")
	m.rows(len(list), func(i int) {
		t := list[i]
		took := ""
		if !t.StartedAt.IsZero() && t.FinishedAt.After(t.StartedAt) {
			took = brief(pipeline.Duration(t.FinishedAt.Sub(t.StartedAt)))
		}
		m.line("| %s %s | %s | %s | %s |", mark(t.State), t.State, code(string(t.Name)), took, prose(t.Reason))
	}, "| | %s | | |")
	m.line("")
}

// outputs shows what tasks reported, what the tasks to come read first.
func (g *GateTalk) outputs(m *markdown) {
	type value struct {
		task pipeline.TaskName
		name string
		text string
		read bool
	}
	var list []value
	next := g.after()
	for i := range g.Run.Tasks {
		t := &g.Run.Tasks[i]
		var values map[string]json.RawMessage
		if json.Unmarshal(t.Outputs, &values) != nil { // it reported none
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(values)) {
			read := slices.ContainsFunc(next, func(n *pipeline.RunTask) bool {
				return slices.ContainsFunc(n.Spec.Bindings, func(b pipeline.Binding) bool { return b.From == t.Name && b.Output == name })
			})
			list = append(list, value{t.Name, name, string(values[name]), read})
		}
	}
	if len(list) == 0 {
		return
	}
	slices.SortStableFunc(list, func(a, b value) int {
		switch {
		case a.read == b.read:
			return 0
		case a.read:
			return -1
		}
		return 1
	})
	m.line("#### What it brought")
	m.line("")
	m.line("| Task | Output | Value |")
	m.line("|---|---|---|")
	m.rows(len(list), func(i int) {
		v := list[i]
		// A table cell ends at a bar even between backquotes.
		m.line("| %s | %s | %s |", code(string(v.task)), code(v.name), strings.ReplaceAll(code(v.text), "|", `\|`))
	}, "| | %s | |")
	m.line("")
}

// after are the tasks that this gate holds back, in their order.
func (g *GateTalk) after() []*pipeline.RunTask {
	behind := map[pipeline.TaskName]bool{g.Task.Name: true}
	for grown := true; grown; {
		grown = false
		for i := range g.Run.Tasks {
			t := &g.Run.Tasks[i]
			if !behind[t.Name] && slices.ContainsFunc(t.Spec.Needs, func(n pipeline.TaskName) bool { return behind[n] }) {
				behind[t.Name], grown = true, true
			}
		}
	}
	var out []*pipeline.RunTask
	for i := range g.Run.Tasks {
		if t := &g.Run.Tasks[i]; behind[t.Name] && t.Name != g.Task.Name {
			out = append(out, t)
		}
	}
	return out
}

// next says what an approval and a refusal lead to.
func (g *GateTalk) next(m *markdown) {
	list := g.after()
	if g.Task.State.Terminal() {
		return
	}
	m.line("#### What comes next")
	m.line("")
	if len(list) == 0 {
		m.line("No task waits for it.")
		m.line("")
		return
	}
	m.line("| Task | Does | When it is | Where | Secrets |")
	m.line("|---|---|---|---|---|")
	m.rows(len(list), func(i int) {
		s := &list[i].Spec
		when := "approved"
		switch s.When {
		case pipeline.Always:
			when = "approved or refused"
		case pipeline.OnFailure:
			when = "refused"
		}
		var secrets []string
		for _, name := range s.Secrets {
			secrets = append(secrets, code(string(name)))
		}
		where := code(string(s.Requirement.Pool))
		if s.BuiltIn() {
			where = ""
		}
		m.line("| %s | %s | %s | %s | %s |", code(string(s.Name)), code(s.Uses), when, where, strings.Join(secrets, ", "))
	}, "| | %s | | | |")
	m.line("")
}
