package plan

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Decide is the part of Of that is carried out: the runs that start, a verdict for
// each composition that the event concerns, and what must be filled first. A push, a
// tag and a proposed change concern every composition; any other event those that
// name it. A composition that has errors is rejected under the name of its folder.
func Decide(in Input) (runs []Run, verdicts []pipeline.Verdict, blanks []Blank) {
	d := decision{Input: in}
	for _, c := range byName(in.Head.Compositions) {
		d.composition(c)
	}
	if everybody(in.Event.Kind) {
		d.rejected()
	}
	return d.runs, d.verdicts, d.blanks
}

func byName(list []pipeline.Composition) []*pipeline.Composition {
	out := make([]*pipeline.Composition, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	slices.SortFunc(out, func(a, b *pipeline.Composition) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return out
}

// everybody reports whether events of the kind concern every composition.
func everybody(kind string) bool {
	switch kind {
	case pipeline.EventPush, pipeline.EventTag, pipeline.EventPullRequest:
		return true
	}
	return false
}

// law is the policy that judges what runs: that of the default branch, which a push
// to it brings into force.
func (in *Input) law() *pipeline.Policy {
	if in.Base == nil || in.Event.Ref == in.Default {
		return &in.Head.Policy
	}
	return &in.Base.Policy
}

// repositories are the source repositories in force.
func (in *Input) repositories() []pipeline.Repository {
	if in.Base == nil {
		return in.Head.Repositories
	}
	return in.Base.Repositories
}

type decision struct {
	Input
	runs     []Run
	verdicts []pipeline.Verdict
	blanks   []Blank
	calledBy map[pipeline.CompositionName][]string // nil until it is asked for
}

func (d *decision) say(c pipeline.CompositionName, outcome, sentence string) {
	d.verdicts = append(d.verdicts, pipeline.Verdict{
		Repo: d.Event.Repo, Commit: d.Event.Head, Ref: d.Event.Ref, Composition: c, Kind: d.Event.Kind, Outcome: outcome, Sentence: sentence,
	})
}

// composition makes the verdict on c, and its run.
func (d *decision) composition(c *pipeline.Composition) {
	m := d.match(c)
	switch {
	case m.trigger >= 0 && m.refused != "":
		d.say(c.Name, pipeline.VerdictRejected, m.refused)
		return
	case m.trigger < 0:
		if m.concerns || everybody(d.Event.Kind) {
			d.say(c.Name, pipeline.VerdictSkipped, m.sentence)
		}
		return
	}
	if why := Forbidden(d.law(), c, d.Event.Repo, Standing(d.repositories(), &d.Event, d.Event.Ref, d.Default), d.Default); why != "" {
		d.say(c.Name, pipeline.VerdictRejected, why)
		return
	}
	if why := d.homeless(c); why != "" {
		d.say(c.Name, pipeline.VerdictRejected, why)
		return
	}
	r := Run{Composition: c, Name: c.Name, Event: d.Event, Trigger: m.trigger, Why: m.sentence}
	if why := d.fill(&r); why != "" {
		d.say(c.Name, pipeline.VerdictRejected, why)
		return
	}
	if !r.Open {
		r.Key = Key(d.Event, c, r.Params, 0)
	}
	d.runs = append(d.runs, r)
	d.say(c.Name, pipeline.VerdictRun, m.sentence)
}

// fill works out what the event gives the run; what only an evaluation can is a
// blank. It returns why the run cannot be made, "" when it can.
func (d *decision) fill(r *Run) string {
	c := r.Composition
	given, open, why := d.value(c, &c.Triggers[r.Trigger].Params, Blank{
		Composition: c.Name, Blank: pipeline.Blank{Part: pipeline.PartTrigger, Trigger: r.Trigger},
	})
	if r.Open = open; open || why != "" {
		return why
	}
	given, why = d.withAsked(given)
	if why != "" {
		return why
	}
	params, err := Params(c, given)
	if err != nil {
		return err.Error()
	}
	r.Params = params
	if c.Concurrency == nil {
		return ""
	}
	group, open, why := d.value(c, &c.Concurrency.Group, Blank{
		Composition: c.Name, Blank: pipeline.Blank{Part: pipeline.PartGroup}, Params: params,
	})
	if r.Open = open; open || why != "" {
		return why
	}
	if err := json.Unmarshal(group, &r.Group); err != nil {
		return fmt.Sprintf("concurrency group of %s: %s is not a string", c.Name, group)
	}
	return ""
}

// value returns the value of an expression, from its fill when it waits for the event.
func (d *decision) value(c *pipeline.Composition, x *pipeline.Expr, b Blank) (value json.RawMessage, open bool, why string) {
	if !x.Deferred {
		return x.Value, false, ""
	}
	for _, f := range d.Filled {
		if f.Composition == b.Composition && f.Blank.Blank == b.Blank && string(f.Params) == string(b.Params) {
			if f.Problem != "" {
				return nil, false, fmt.Sprintf("%s: %s", c.Name, f.Problem)
			}
			return f.Value, false, ""
		}
	}
	d.blanks = append(d.blanks, b)
	return nil, true, ""
}

// withAsked adds the params that a person gave to those of the trigger, which they
// cannot replace.
func (d *decision) withAsked(given json.RawMessage) (json.RawMessage, string) {
	if len(d.Params) == 0 {
		return given, ""
	}
	var asked, fixed map[string]json.RawMessage
	if err := json.Unmarshal(d.Params, &asked); err != nil {
		return nil, "params are not a JSON object: " + err.Error()
	}
	if len(asked) == 0 { // as null is
		return given, ""
	}
	if len(given) > 0 {
		if err := json.Unmarshal(given, &fixed); err != nil {
			return nil, "params of the trigger are not a JSON object: " + err.Error()
		}
	}
	var wrong []string
	for name := range asked {
		if _, there := fixed[name]; there {
			wrong = append(wrong, name)
		}
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return nil, "the manual trigger sets " + strings.Join(wrong, " and ") + " itself"
	}
	for name, v := range fixed {
		asked[name] = v
	}
	return json.RawMessage(marshal(asked)), ""
}

// rejected makes a verdict for each unit that has errors.
func (d *decision) rejected() {
	for _, bad := range blamed(d.Head) {
		d.say(blame(bad), pipeline.VerdictRejected, bad.Pos.String()+": "+bad.Message)
	}
}

// blamed returns the first error of each unit that has one, by place; one that knows
// its place goes before one that does not.
func blamed(cfg *pipeline.Config) []pipeline.Diagnostic {
	var out []pipeline.Diagnostic
	seen := map[string]bool{}
	all := slices.Clone(cfg.Diagnostics)
	pipeline.SortDiagnostics(all)
	slices.SortStableFunc(all, func(a, b pipeline.Diagnostic) int {
		return cmp.Compare(min(1, len(b.Pos.File)), min(1, len(a.Pos.File)))
	})
	for _, d := range all {
		if d.Severity == pipeline.SeverityError && !seen[d.Unit] {
			seen[d.Unit] = true
			out = append(out, d)
		}
	}
	return out
}

// blame names what a diagnostic without a composition is about.
func blame(d pipeline.Diagnostic) pipeline.CompositionName {
	if d.Unit == "" {
		return "repository"
	}
	return pipeline.CompositionName(d.Unit)
}

// Forbidden says which secret or pool the policy does not let a run of c on ref
// have, or which of its gates nobody could ever open, "" when there is nothing of the
// kind. Repo is the source repository that the run is about, "" for none. Secrets without
// a rule are not its business: a task that names one may never start.
func Forbidden(law *pipeline.Policy, c *pipeline.Composition, repo string, ref, main pipeline.Ref) string {
	if why := unopened(law, c, main); why != "" {
		return why
	}
	if len(law.Pools)+len(law.Secrets) == 0 {
		return ""
	}
	tasks := slices.SortedFunc(slices.Values(c.Tasks), func(a, b pipeline.Task) int { return cmp.Compare(a.Name, b.Name) })
	for i := range tasks {
		t := &tasks[i]
		if r := closed(law, t.Requirement.Pool, c.Name, ref); r != nil {
			if anyMatch(r.Compositions, string(c.Name)) {
				return fmt.Sprintf("task %s: pool %s is for branch %s, not for %s (%s)", t.Name, r.Pool, either(r.Branches), whole(ref), r.Pos)
			}
			return fmt.Sprintf("task %s: pool %s is for %s (%s)", t.Name, r.Pool, either(r.Compositions), r.Pos)
		}
		for _, s := range t.Secrets {
			if ruleOf(law, s) == nil {
				continue
			}
			if why := Withheld(law, s, c.Name, repo, ref, main); why != "" {
				return fmt.Sprintf("task %s: %s", t.Name, why)
			}
		}
	}
	return ""
}

// Withheld says why a run of a composition on ref may not have a secret, "" when it may.
// Without a rule a secret is for main alone. What is on no branch, as a tag or what came
// from a fork, is meant by no rule; ref and repo are as in Forbidden.
func Withheld(law *pipeline.Policy, s pipeline.SecretName, c pipeline.CompositionName, repo string, ref, main pipeline.Ref) string {
	rule, at := ruleOf(law, s), ""
	if rule == nil {
		rule = &pipeline.SecretRule{}
	} else {
		at = fmt.Sprintf(" (%s)", rule.Pos)
	}
	branches := rule.Branches
	if len(branches) == 0 {
		branches = []string{main.Branch()}
	}
	switch {
	case len(rule.Compositions) > 0 && !anyMatch(rule.Compositions, string(c)):
		return fmt.Sprintf("secret %s is for %s%s", s, either(rule.Compositions), at)
	case repo != "" && rule.Repositories != nil && !anyMatch(rule.Repositories, repo):
		return fmt.Sprintf("secret %s is for no run of repository %s%s", s, repo, at)
	case rule.Untrusted && ofSourceBranch(ref) && anyMatch(rule.Repositories, repo):
	case !onBranch(branches, ref):
		return fmt.Sprintf("secret %s is for branch %s, not for %s%s", s, either(branches), whole(ref), at)
	}
	return ""
}

func ruleOf(law *pipeline.Policy, s pipeline.SecretName) *pipeline.SecretRule {
	i := slices.IndexFunc(law.Secrets, func(r pipeline.SecretRule) bool { return r.Secret == s })
	if i < 0 {
		return nil
	}
	return &law.Secrets[i]
}

// ofSourceBranch reports whether ref is a branch of a source repository that does not
// stand for one of the ops repository.
func ofSourceBranch(ref pipeline.Ref) bool {
	rest, ok := strings.CutPrefix(string(ref), "refs/sources/")
	_, rest, _ = strings.Cut(rest, "/")
	return ok && strings.HasPrefix(rest, "heads/")
}

// onBranch reports whether ref is a branch that the patterns mean.
func onBranch(patterns []string, ref pipeline.Ref) bool {
	b := ref.Branch()
	return b != "" && anyMatch(patterns, b)
}

// unopened says which gate asks groups alone that the policy does not have: it would
// wait until it expires.
func unopened(law *pipeline.Policy, c *pipeline.Composition, main pipeline.Ref) string {
	for _, held := range gates(c, "") {
		known := slices.ContainsFunc(law.Groups, func(g pipeline.Group) bool { return slices.Contains(held.Approvers, g.Name) })
		if len(held.Approvers) > 0 && !known {
			return fmt.Sprintf("task %s: nobody could approve it: the policy of %s has no group %s", held.Task, main.Branch(), either(held.Approvers))
		}
	}
	return ""
}

// Closed reports whether the policy keeps a pool from runs of a composition on ref. A
// task that names no pool must not come to an agent of such a one either.
func Closed(law *pipeline.Policy, pool pipeline.PoolName, c pipeline.CompositionName, ref pipeline.Ref) bool {
	return closed(law, pool, c, ref) != nil
}

// closed returns the rule that keeps a pool from such runs, nil when none does.
func closed(law *pipeline.Policy, pool pipeline.PoolName, c pipeline.CompositionName, ref pipeline.Ref) *pipeline.PoolRule {
	for i := range law.Pools {
		r := &law.Pools[i]
		if r.Pool == pool && (!anyMatch(r.Compositions, string(c)) || len(r.Branches) > 0 && !onBranch(r.Branches, ref)) {
			return r
		}
	}
	return nil
}

func either(list []string) string { return strings.Join(list, " or ") }

// whole is a ref as people call it, where a tag could be taken for a branch.
func whole(r pipeline.Ref) string {
	if r.Fork() {
		return "a fork"
	}
	if rest, ok := strings.CutPrefix(string(r), "refs/sources/"); ok {
		repo, rest, _ := strings.Cut(rest, "/")
		return whole(pipeline.Ref("refs/"+rest)) + " of repository " + repo
	}
	if r.Branch() == "" {
		return "tag " + short(r)
	}
	return short(r)
}

// short is a ref as people call it.
func short(r pipeline.Ref) string {
	s := string(r)
	for _, p := range []string{"refs/heads/", "refs/tags/"} {
		s = strings.TrimPrefix(s, p)
	}
	return s
}

// matched is how a composition and an event meet.
type matched struct {
	trigger int // that fires, -1 when none does
	// concerns: a trigger is about this event, whether it fires or not.
	concerns bool
	// sentence says what fires, or which clause came nearest to being met; refused
	// why the one that fires must not.
	sentence, refused string
}

// match finds the trigger of c that the event fires: the first that must not is passed
// over for one that may.
func (d *decision) match(c *pipeline.Composition) matched {
	m := matched{trigger: -1}
	near := 0
	for i := range c.Triggers {
		t := &c.Triggers[i]
		if t.Kind() != d.Event.Kind {
			continue
		}
		r := d.meet(t, c.Name)
		if r.how == 0 {
			continue // not about this event
		}
		m.concerns = true
		if r.how == fires {
			if m.trigger < 0 || r.refused == "" {
				m.trigger, m.sentence, m.refused = i, r.text, r.refused
			}
			if r.refused == "" {
				break
			}
			continue
		}
		if m.trigger < 0 && r.how > near {
			near, m.sentence = r.how, r.text
		}
	}
	if m.sentence == "" && everybody(d.Event.Kind) {
		m.sentence = "no " + word(d.Event.Kind) + " trigger" + d.otherwise(c)
	} else if m.sentence == "" {
		m.sentence = "no " + word(d.Event.Kind) + " trigger"
	}
	if c.Suspend && (m.concerns || everybody(d.Event.Kind)) {
		m.trigger, m.sentence = -1, "suspended"
	}
	if d.Event.Kind == pipeline.EventManual && d.Event.Name == string(c.Name) {
		m.concerns = true
	}
	return m
}

// word is an event kind as authors write the trigger.
func word(kind string) string {
	if kind == pipeline.EventPullRequest {
		return "pullRequest"
	}
	return kind
}

// fires is the nearest that a trigger can come to an event; 0 is no relation.
const fires = 9

// meeting is how near a trigger came, in words.
type meeting struct {
	how           int
	text, refused string
}

func miss(how int, format string, args ...any) meeting {
	return meeting{how: how, text: fmt.Sprintf(format, args...)}
}

func (d *decision) meet(t *pipeline.Trigger, c pipeline.CompositionName) meeting {
	e := &d.Event
	switch {
	case t.Push != nil:
		return d.meetPush(t.Push)
	case t.PullRequest != nil:
		return d.meetPull(t.PullRequest)
	case t.Tag != nil:
		if t.Tag.Repo != e.Repo {
			return elsewhere(t.Tag.Repo)
		}
		if !anyMatch(t.Tag.Tags, short(e.Ref)) {
			return miss(2, "tag %s is not %s", short(e.Ref), either(t.Tag.Tags))
		}
		return miss(fires, "tag %s%s", short(e.Ref), of(e))
	case t.Cron != nil:
		return d.meetCron(t.Cron)
	case t.After != nil:
		return d.meetAfter(t.After)
	case t.Webhook != nil:
		return d.meetWebhook(t.Webhook)
	}
	if t.Manual == nil || e.Name != string(c) {
		return meeting{}
	}
	m := miss(fires, "asked for by %s", e.Author)
	if groups := t.Manual.Approvers; len(groups) > 0 && !slices.Contains(members(d.law(), groups), e.Author) {
		m.refused = fmt.Sprintf("%s asked for it, who is not in %s (%s)", e.Author, either(groups), t.Pos)
	}
	return m
}

func (d *decision) meetPush(t *pipeline.PushTrigger) meeting {
	branch := d.Event.Ref.Branch()
	switch {
	case t.Repo != d.Event.Repo:
		return elsewhere(t.Repo)
	case !anyMatch(t.Branches, branch):
		return miss(2, "branch %s is not %s", branch, either(t.Branches))
	case d.misses(t.Paths):
		return miss(3, "no changed path matches %s", either(t.Paths))
	}
	return miss(fires, "push to %s%s", branch, of(&d.Event))
}

func (d *decision) meetPull(t *pipeline.PullRequestTrigger) meeting {
	e := &d.Event
	switch {
	case t.Repo != e.Repo:
		return elsewhere(t.Repo)
	case !anyMatch(t.Branches, e.Target):
		return miss(2, "target %s is not %s", e.Target, either(t.Branches))
	case d.misses(t.Paths):
		return miss(3, "no changed path matches %s", either(t.Paths))
	}
	m := miss(fires, "change %s for %s", e.Proposal, e.Target)
	if e.Repo != "" && e.Ref.Fork() { // nobody can be asked whether it may
		m.refused = fmt.Sprintf("not run: %s comes from a fork; propose its head from a branch of %s to run it", e.Proposal, e.Repo)
	}
	return m
}

// elsewhere is for a trigger on another repository than that of the event.
func elsewhere(repo string) meeting {
	if repo == "" {
		return miss(1, "watches the ops repository")
	}
	return miss(1, "watches repository %s", repo)
}

func of(e *pipeline.Event) string {
	if e.Repo == "" {
		return ""
	}
	return " of " + e.Repo
}

// misses reports whether no changed path meets the patterns.
func (d *decision) misses(patterns []string) bool {
	return len(patterns) > 0 && !d.PathsUnknown && !anyPath(patterns, d.Paths)
}

func (d *decision) meetCron(t *pipeline.CronTrigger) meeting {
	s, err := pipeline.ParseSchedule(t.Schedule, t.Zone)
	if err != nil || !s.At(d.Event.Time) {
		return meeting{}
	}
	return miss(fires, "cron %s, due %s", t.Schedule, d.Event.Time.UTC().Format(time.RFC3339))
}

func (d *decision) meetAfter(t *pipeline.AfterTrigger) meeting {
	cause := d.Event.Cause
	if cause == nil || cause.Composition != t.Composition {
		return meeting{}
	}
	name := fmt.Sprintf("%s#%d", cause.Composition, cause.Number)
	good := cause.State.Good()
	if t.Result == "success" && !good || t.Result == "failure" && good {
		return miss(2, "runs after %s of %s, and %s ended in %s", t.Result, t.Composition, name, cause.State)
	}
	if len(t.Branches) > 0 && !anyMatch(t.Branches, d.Event.Ref.Branch()) {
		return miss(1, "%s ran on %s, which is not %s", name, short(d.Event.Ref), either(t.Branches))
	}
	return miss(fires, "%s ended in %s", name, cause.State)
}

func (d *decision) meetWebhook(t *pipeline.WebhookTrigger) meeting {
	if t.ID != d.Event.Name {
		return meeting{}
	}
	m := miss(fires, "webhook %s", t.ID)
	if t.Payload != nil {
		if wrong := t.Payload.CheckJSON(d.Event.Payload); len(wrong) > 0 {
			m.refused = fmt.Sprintf("webhook %s: payload: %s", t.ID, strings.Join(wrong, "; "))
		}
	}
	return m
}

// members are the people of the groups, sorted.
func members(law *pipeline.Policy, groups []string) []string {
	var out []string
	for _, g := range law.Groups {
		if slices.Contains(groups, g.Name) {
			out = append(out, g.Members...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Complete returns in with every blank filled. fill computes one value, or says why
// there is none; what a run's params are is known before its group is asked for.
func Complete(in Input, fill func(Blank) Filled) Input {
	in.Filled = slices.Clone(in.Filled)
	for { // triggers, then groups: each pass fills what it was asked for
		_, _, blanks := Decide(in)
		if len(blanks) == 0 {
			return in
		}
		for _, b := range blanks {
			f := fill(b)
			f.Blank = b
			in.Filled = append(in.Filled, f)
		}
	}
}
