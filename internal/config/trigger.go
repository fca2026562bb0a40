package config

import (
	"fmt"
	"slices"

	"cuelang.org/go/cue"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// triggerKinds are the events that a trigger may name.
var triggerKinds = []string{"push", "pullRequest", "tag", "cron", "after", "webhook", "manual"}

func (w *work) readTriggers() {
	list := get(w.v, "triggers")
	for i := 0; ; i++ {
		v := list.LookupPath(cue.MakePath(cue.Index(i)))
		if !v.Exists() {
			return
		}
		before := len(w.res.Diagnostics)
		t, ok := w.readTrigger(i, v)
		if ok && !pipeline.HasErrors(w.res.Diagnostics[before:]) {
			w.out.Triggers = append(w.out.Triggers, t)
		}
	}
}

func (w *work) readTrigger(i int, v cue.Value) (t pipeline.Trigger, ok bool) {
	at := []string{"triggers", itoa(i)}
	t.Pos, _ = w.all.label(w.path(at...)...)
	if v.Err() != nil || v.Validate() != nil {
		return t, false // it has been reported
	}
	var kinds []string
	for _, kind := range triggerKinds {
		if get(v, kind).Exists() {
			kinds = append(kinds, kind)
		}
	}
	switch len(kinds) {
	case 0:
		d := diag(codeRequired, t.Pos, "composition %q: the trigger says no event", w.name)
		d.Note = "it may be " + listed(triggerKinds)
		d.Help = `write {push: {branches: ["main"]}}`
		w.complain(d)
		return t, false
	case 1:
	default:
		d := diag(codeValue, t.Pos, "composition %q: the trigger says more than one event: %s", w.name, listed(kinds))
		d.Help = "write one trigger for each: {" + kinds[0] + ": …}, {" + kinds[1] + ": …}"
		w.complain(d)
		return t, false
	}
	kind := kinds[0]
	if !w.staticTrigger(get(v, kind), append(at, kind)) || !w.readKind(&t, kind, get(v, kind), append(at, kind)) {
		return t, false
	}
	w.readTriggerParams(i, &t, get(v, "params"))
	return t, true
}

// staticTrigger checks that what starts a run is known without one.
func (w *work) staticTrigger(v cue.Value, at []string) bool {
	if w.waits(at...) {
		pos, _ := w.all.value(w.path(at...)...)
		for _, p := range w.all.at(w.path(at...)...) {
			if p.value != nil && len(reaches(p.value)) > 0 {
				pos = w.firstRef(p.value)
			}
		}
		d := diag(codeTooLate, pos, "composition %q: what triggers it must be known when the commit is planned", w.name)
		d.Note = "only the params of a trigger may refer to the event"
		w.complain(d)
		return false
	}
	if at[len(at)-1] == "webhook" {
		return true // its payload is a type
	}
	if err := v.Validate(cue.Concrete(true)); err != nil {
		w.complain(w.x.errors(err)...)
		return false
	}
	return true
}

func (w *work) readKind(t *pipeline.Trigger, kind string, v cue.Value, at []string) bool {
	var err error
	switch kind {
	case "push":
		t.Push = &pipeline.PushTrigger{}
		err = decode(v, t.Push)
		w.mentionRepository(t.Push.Repo, at)
	case "pullRequest":
		t.PullRequest = &pipeline.PullRequestTrigger{}
		err = decode(v, t.PullRequest)
		w.mentionRepository(t.PullRequest.Repo, at)
	case "tag":
		t.Tag = &pipeline.TagTrigger{}
		err = decode(v, t.Tag)
		w.mentionRepository(t.Tag.Repo, at)
	case "cron":
		t.Cron = &pipeline.CronTrigger{}
		if err = decode(v, t.Cron); err == nil {
			w.checkCron(t.Cron, at)
		}
	case "after":
		t.After = &pipeline.AfterTrigger{}
		if err = decode(v, t.After); err == nil {
			pos, _ := w.all.value(w.path(append(at, "composition")...)...)
			w.call(call{Kind: callAfter, Target: t.After.Composition, Pos: pos})
		}
	case "webhook":
		return w.readWebhook(t, v, at)
	case "manual":
		t.Manual = &pipeline.ManualTrigger{}
		if err = decode(v, t.Manual); err == nil {
			w.mentionGroups(t.Manual.Approvers, 1, fmt.Sprintf("composition %q", w.name), w.path(append(at, "approvers")...))
		}
	}
	return err == nil // validated as concrete; anything else was reported
}

// mentionRepository records the source repository that a trigger names.
func (w *work) mentionRepository(name string, at []string) {
	if name != "" {
		pos, _ := w.all.value(w.path(append(slices.Clone(at), "repo")...)...)
		w.mention(mentionRepository, plain(name), "", pos)
	}
}

// checkCron looks at the two texts of a cron trigger.
func (w *work) checkCron(c *pipeline.CronTrigger, at []string) {
	if _, err := pipeline.ParseSchedule(c.Schedule, "UTC"); err != nil {
		pos, _ := w.all.value(w.path(append(at, "schedule")...)...)
		d := diag(codeValue, pos, "composition %q: %s", w.name, plain(err.Error()))
		d.Help = `write minute, hour, day of month, month, day of week: "0 2 * * 1-5" is two in the morning on weekdays`
		w.complain(d)
		return
	}
	if _, err := pipeline.ParseSchedule(c.Schedule, c.Zone); err != nil {
		pos, _ := w.all.value(w.path(append(at, "zone")...)...)
		d := diag(codeValue, pos, "composition %q: %s", w.name, plain(err.Error()))
		w.complain(d)
	}
}

func (w *work) readWebhook(t *pipeline.Trigger, v cue.Value, at []string) bool {
	for _, name := range []string{"id", "secret"} {
		f := get(v, name)
		if err := f.Validate(cue.Concrete(true)); err != nil || !f.Exists() {
			if f.Exists() {
				w.complain(w.x.errors(err)...)
				return false
			}
			d := diag(codeRequired, t.Pos, "composition %q: the webhook needs %q", w.name, name)
			d.Help = `write {webhook: {id: "deploy", secret: secret: "NAME"}}`
			w.complain(d)
			return false
		}
	}
	t.Webhook = &pipeline.WebhookTrigger{ID: text(get(v, "id")), Secret: pipeline.SecretName(text(get(v, "secret", "secret")))}
	pos, _ := w.all.value(w.path(append(slices.Clone(at), "secret", "secret")...)...)
	w.mention(mentionSecret, string(t.Webhook.Secret), "", pos)
	payload := get(v, "payload")
	if !payload.Exists() {
		return true
	}
	pos, _ = w.all.value(w.path(append(slices.Clone(at), "payload")...)...)
	p, err := compileType(payload)
	if err != nil || p.Kind != pipeline.KindStruct {
		d := diag(codeTypeForm, pos, "composition %q: the payload of the webhook must be a struct", w.name)
		if err != nil {
			d = diag(codeTypeForm, pos, "composition %q: the payload of the webhook cannot be checked when it comes: %s", w.name, err)
		}
		w.complain(d)
		return false
	}
	t.Webhook.Payload = &p
	return true
}

// readTriggerParams reads what a trigger gives to its runs.
func (w *work) readTriggerParams(i int, t *pipeline.Trigger, v cue.Value) {
	at := []string{"triggers", itoa(i), "params"}
	by := referrer{who: fmt.Sprintf("composition %q: the trigger", w.name), trigger: t}
	by.refused = map[string]string{"tasks": "it is asked before any task runs"}
	seen := map[pipeline.Position]bool{}
	gs, whole := w.given(v, at...)
	for _, g := range gs {
		before := len(w.res.Diagnostics)
		w.checkPart(by, seen, nil, append(slices.Clone(at), g.Name)...)
		if len(w.res.Diagnostics) > before {
			continue
		}
		f := w.param(g.Name)
		if f == nil {
			w.complain(withHelp(diag(codeParamRef, g.Pos, "composition %q has no param %q", w.name, g.Name), didYouMean(g.Name, w.paramNames())))
			continue
		}
		if typed, ok := w.eventType(t, append(at, g.Name)...); ok {
			g.Type, g.Loose = typed, false
		}
		w.judgeParam(f, g)
	}
	w.checkPart(by, seen, nil, at...)
	if v.Exists() {
		t.Params = w.expr(v, at...)
	}
	if t.Manual != nil {
		return // the person who asks gives the others
	}
	for _, f := range w.out.Params {
		has := slices.ContainsFunc(gs, func(g given) bool { return g.Name == f.Name })
		if !has && !whole && f.Default == nil && !f.Optional {
			d := diag(codeRequired, t.Pos, "composition %q: the trigger does not give param %q", w.name, f.Name)
			d.Help = "add params: " + f.Name + ": " + f.Type.String() + " to the trigger, or give the param a default"
			w.complain(d)
		}
	}
}

// judgeParam reports a value that does not fit a param of the composition itself.
func (w *work) judgeParam(f *pipeline.Field, g given) {
	severity, why := judge(f.Type, g)
	if severity == "" {
		return
	}
	d := diag(codeValue, g.Pos, "composition %q: param %q: %s", w.name, f.Name, why)
	d.Severity = severity
	if severity == pipeline.SeverityWarning {
		d.Code = codeUnproved
	}
	d.Note = "it is declared as " + f.Type.String()
	w.complain(d)
}

// eventType is the type of a value that is a plain reference to the event.
func (w *work) eventType(t *pipeline.Trigger, path ...string) (pipeline.Type, bool) {
	places := w.all.at(w.path(path...)...)
	if len(places) != 1 || places[0].value == nil {
		return pipeline.Type{}, false
	}
	c, _ := w.read(chainOf(places[0].value, 0))
	if len(c) < 2 || c[0].name != "event" {
		return pipeline.Type{}, false
	}
	if c[1].name == "payload" {
		return payloadType(t, c)
	}
	v := w.batch.schema().LookupPath(cue.ParsePath("#Event"))
	for _, l := range c[1:] {
		v = get(v, l.name)
	}
	typed, err := compileType(v)
	typed.Text = string(typed.Kind)
	return typed, v.Exists() && err == nil && typed.Kind != pipeline.KindAny
}

// payloadType is what a webhook says of event.payload.NAME.
func payloadType(t *pipeline.Trigger, c chain) (pipeline.Type, bool) {
	if t.Webhook == nil || t.Webhook.Payload == nil || len(c) < 3 {
		return pipeline.Type{}, false
	}
	typed := *t.Webhook.Payload
	for _, l := range c[2:] {
		i := slices.IndexFunc(typed.Fields, func(f pipeline.Field) bool { return f.Name == l.name })
		if i < 0 {
			return pipeline.Type{}, false
		}
		typed = typed.Fields[i].Type
	}
	return typed, true
}
