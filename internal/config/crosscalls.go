package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// checkCalls compares what compositions say of each other.
func (r *repository) checkCalls() {
	for _, res := range r.results {
		for i := range res.Calls {
			r.checkCall(res.Dir, &res.Calls[i])
		}
	}
	r.checkLoops()
	r.callBroken()
}

// who names what calls: "task "build" calls".
func (c *call) who() string {
	by := fmt.Sprintf("task %q", c.Task)
	if c.Task == "" {
		by = fmt.Sprintf("composition %q", c.From)
	}
	switch c.Kind {
	case callHook:
		return by + " on failure calls"
	case callWait:
		return by + " waits for"
	case callAfter:
		return by + " is to run after"
	}
	return by + " calls"
}

func (r *repository) checkCall(unit string, c *call) {
	target := r.compositions[c.Target]
	if target == nil {
		if r.declared[c.Target] {
			return // see callBroken
		}
		d := diag(codeCall, c.Pos, "%s composition %q, which the repository does not have", c.who(), c.Target)
		var names []string
		for _, name := range sortedNames(r.declared) {
			names = append(names, string(name))
		}
		if len(names) > 0 && len(names) <= 10 {
			d.Note = "it has " + strings.Join(names, ", ")
		}
		r.complain(unit, c.From, r.mayFollow(withHelp(d, didYouMean(string(c.Target), names)), string(c.Target)))
		return
	}
	if c.Kind != callTask && c.Kind != callHook {
		return
	}
	for _, g := range c.Given {
		r.checkGiven(unit, c, g, target)
	}
	for _, f := range target.Params {
		has := slices.ContainsFunc(c.Given, func(g given) bool { return g.Name == f.Name })
		if has || c.Whole || f.Optional || f.Default != nil {
			continue
		}
		d := diag(codeCallGive, c.Pos, "%s composition %q without its param %q", c.who(), c.Target, f.Name)
		d.Note = fmt.Sprintf("it is declared as %s at %s", f.Type, target.Pos)
		d.Help = fmt.Sprintf("add with: %s: …, or give the param a default", f.Name)
		r.complain(unit, c.From, d)
	}
	for _, read := range c.Reads {
		r.checkRead(unit, c, read, target)
	}
}

func (r *repository) checkGiven(unit string, c *call, g given, target *pipeline.Composition) {
	i := slices.IndexFunc(target.Params, func(f pipeline.Field) bool { return f.Name == g.Name })
	if i < 0 {
		d := diag(codeCallGive, g.Pos, "%s composition %q with param %q, which it does not have", c.who(), c.Target, g.Name)
		var names []string
		for _, f := range target.Params {
			names = append(names, f.Name)
		}
		d.Note = fmt.Sprintf("composition %q has no params", c.Target)
		if len(names) > 0 {
			d.Note = "its params are " + strings.Join(names, ", ")
		}
		r.complain(unit, c.From, withHelp(d, didYouMean(g.Name, names)))
		return
	}
	f := &target.Params[i]
	if g.MayLack && !f.Optional && f.Default == nil {
		d := diag(codeCallGive, g.Pos, "%s composition %q, whose param %q is left out when what it reads was never reported", c.who(), c.Target, g.Name)
		d.Note = "the param is required: without it there would be no run"
		d.Help = fmt.Sprintf("declare it in %q as params: %s?: %s, or with a default", c.Target, g.Name, f.Type)
		r.complain(unit, c.From, d)
		return
	}
	severity, why := judge(f.Type, g)
	if severity == "" {
		return
	}
	d := diag(codeCallGive, g.Pos, "%s composition %q: param %q: %s", c.who(), c.Target, g.Name, why)
	d.Note = fmt.Sprintf("it is declared as %s in %s", f.Type, target.Pos.File)
	r.say(unit, c.From, d, severity)
}

// say adds what was judged; only an error speaks against the composition.
func (r *repository) say(unit string, c pipeline.CompositionName, d pipeline.Diagnostic, severity pipeline.Severity) {
	if severity == pipeline.SeverityError {
		r.complain(unit, c, d)
		return
	}
	d.Severity, d.Code, d.Unit = severity, codeUnproved, unit
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
}

func (r *repository) checkRead(unit string, c *call, read given, target *pipeline.Composition) {
	i := slices.IndexFunc(target.Outputs, func(f pipeline.Field) bool { return f.Name == read.Name })
	if i < 0 {
		d := diag(codeCallRead, read.Pos, "%s composition %q and reads its output %q, which it does not have", c.who(), c.Target, read.Name)
		var names []string
		for _, f := range target.Outputs {
			names = append(names, f.Name)
		}
		d.Note = "its outputs are " + strings.Join(names, ", ")
		if len(names) == 0 {
			d.Note = fmt.Sprintf("composition %q returns nothing", c.Target)
			d.Help = fmt.Sprintf("add to it outputs: %s: tasks.NAME.outputs.%s", read.Name, read.Name)
		}
		r.complain(unit, c.From, withHelp(d, didYouMean(read.Name, names)))
		return
	}
	out := target.Outputs[i].Type
	severity, _ := judge(read.Type, given{Type: out, Loose: out.Kind == pipeline.KindAny})
	if severity == "" {
		return
	}
	d := diag(codeCallRead, read.Pos, "%s composition %q and reads its output %q as %s, but it is %s", c.who(), c.Target, read.Name, read.Type, shown(out))
	d.Note = fmt.Sprintf("returned by %s", target.Pos)
	if severity == pipeline.SeverityWarning {
		d.Message += ": that it fits is checked when the run returns"
	}
	r.say(unit, c.From, d, severity)
}

// callBroken speaks against the compositions that call one which is not usable.
func (r *repository) callBroken() {
	usable := func(name pipeline.CompositionName) bool { return !r.unusable[name] && r.compositions[name] != nil }
	for moved := true; moved; {
		moved = false
		for _, res := range r.results {
			for _, c := range res.Calls {
				if c.Kind != callTask && c.Kind != callHook || !usable(c.From) || usable(c.Target) {
					continue
				}
				d := diag(codeBrokenDep, c.Pos, "%s composition %q, which has errors", c.who(), c.Target)
				d.Help, d.Follows = fmt.Sprintf("mend %q first", c.Target), true
				r.complain(res.Dir, c.From, d)
				moved = true
			}
		}
	}
}

// A compositionLink leads from one composition to another, by the place that makes it.
type compositionLink struct {
	unit string
	call *call
	to   pipeline.CompositionName
}

// checkLoops looks for compositions that lead to themselves: by calls and hooks,
// which is a mistake; by triggers, which somebody may want; by waiting for each
// other, which never ends.
func (r *repository) checkLoops() {
	causes, waits := map[pipeline.CompositionName][]compositionLink{}, map[pipeline.CompositionName][]compositionLink{}
	for _, res := range r.results {
		for i := range res.Calls {
			c := &res.Calls[i]
			if r.compositions[c.Target] == nil || r.compositions[c.From] == nil {
				continue
			}
			link := compositionLink{res.Dir, c, c.Target}
			switch c.Kind {
			case callTask:
				causes[c.From] = append(causes[c.From], link)
				waits[c.From] = append(waits[c.From], link)
			case callHook:
				causes[c.From] = append(causes[c.From], link)
			case callAfter:
				causes[c.Target] = append(causes[c.Target], compositionLink{res.Dir, c, c.From})
			case callWait:
				if c.Same {
					waits[c.From] = append(waits[c.From], link)
				}
			}
		}
	}
	for _, loop := range loops(causes) {
		r.reportLoop(loop)
	}
	for _, loop := range loops(waits) {
		if slices.ContainsFunc(loop, func(l compositionLink) bool { return l.call.Kind == callWait }) {
			r.reportLoop(loop)
		}
	}
}

// loops finds circles, at least one for each set of nodes that lead to each other.
func loops(links map[pipeline.CompositionName][]compositionLink) [][]compositionLink {
	var out [][]compositionLink
	state := map[pipeline.CompositionName]int{} // 1 under way, 2 done
	var path []compositionLink
	var visit func(name pipeline.CompositionName)
	visit = func(name pipeline.CompositionName) {
		state[name] = 1
		for _, l := range links[name] {
			path = append(path, l)
			switch state[l.to] {
			case 0:
				visit(l.to)
			case 1:
				start := slices.IndexFunc(path, func(p compositionLink) bool { return p.source() == l.to })
				out = append(out, slices.Clone(path[start:]))
			}
			path = path[:len(path)-1]
		}
		state[name] = 2
	}
	for _, name := range sortedNames(links) {
		if state[name] == 0 {
			visit(name)
		}
	}
	return out
}

// source is where a link begins.
func (l *compositionLink) source() pipeline.CompositionName {
	if l.call.Kind == callAfter {
		return l.call.Target
	}
	return l.call.From
}

func (r *repository) reportLoop(loop []compositionLink) {
	first := loop[0]
	var names, why []string
	kinds := map[callKind]bool{}
	for _, l := range loop {
		names = append(names, string(l.source()))
		kinds[l.call.Kind] = true
		how := map[callKind]string{callTask: "calls", callHook: "calls on failure", callWait: "waits for", callAfter: "triggers"}[l.call.Kind]
		why = append(why, fmt.Sprintf("%s %s %s (%s)", l.source(), how, l.to, l.call.Pos))
	}
	names = append(names, string(first.source()))
	text := strings.Join(names, " -> ")
	d := diag(codeCallLoop, first.call.Pos, "compositions call each other without end: %s", text)
	switch {
	case kinds[callWait]:
		d.Message = "compositions wait for each other: " + text
	case kinds[callAfter]:
		d = warn(codeCallLoop, first.call.Pos, "compositions trigger each other without end: %s", text)
		d.Help = "a trigger with result: \"failure\", or a condition, may end it; otherwise leave one of them out"
	case kinds[callHook]:
		d.Message = "a composition that fails calls one that calls it again: " + text
		d.Help = "what is called on failure should itself have no onFailure that leads back"
	}
	d.Note = strings.Join(why, "; ")
	d.Unit = first.unit
	if d.Severity == pipeline.SeverityWarning {
		r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
		return
	}
	for _, l := range loop {
		r.unusable[l.call.From] = true
	}
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
}

// checkWebhooks reports addresses that two triggers share with different secrets.
func (r *repository) checkWebhooks() {
	type use struct {
		hook *pipeline.WebhookTrigger
		pos  pipeline.Position
	}
	first := map[string]use{}
	for _, res := range r.results {
		for i := range res.Compositions {
			c := &res.Compositions[i]
			for _, t := range c.Triggers {
				if t.Webhook == nil {
					continue
				}
				other, twice := first[t.Webhook.ID]
				if !twice {
					first[t.Webhook.ID] = use{t.Webhook, t.Pos}
					continue
				}
				if other.hook.Secret == t.Webhook.Secret {
					continue
				}
				d := diag(codeDuplicate, t.Pos, "webhook %q has two secrets: %q here and %q at %s", t.Webhook.ID, t.Webhook.Secret, other.hook.Secret, cmp.Or(other.pos.String(), "another place"))
				d.Help = "give it another id, or the same secret"
				r.complain(res.Dir, c.Name, d)
			}
		}
	}
}
