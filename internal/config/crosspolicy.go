package config

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// gatherPolicy puts together what the units say of the policy.
func (r *repository) gatherPolicy() {
	for _, res := range r.results {
		if res.Policy == nil {
			continue
		}
		p := &r.cfg.Policy
		p.Groups = append(p.Groups, res.Policy.Groups...)
		p.Changes = append(p.Changes, res.Policy.Changes...)
		p.Secrets = append(p.Secrets, res.Policy.Secrets...)
		p.Pools = append(p.Pools, res.Policy.Pools...)
		p.Requests = append(p.Requests, res.Policy.Requests...)
		if k := res.Policy.Keep; k != nil && p.Keep != nil {
			d := diag(codeDuplicate, k.Pos, "policy: keep is declared in two directories")
			d.Note, d.Help, d.Unit = fmt.Sprintf("the other is at %s", p.Keep.Pos), "say it once, for all compositions", path.Dir(k.Pos.File)
			r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
		} else if k != nil {
			p.Keep = k
		}
	}
	p := &r.cfg.Policy
	slices.SortStableFunc(p.Groups, func(a, b pipeline.Group) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(p.Changes, func(a, b pipeline.ChangeRule) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(p.Secrets, func(a, b pipeline.SecretRule) int { return strings.Compare(string(a.Secret), string(b.Secret)) })
	slices.SortStableFunc(p.Pools, func(a, b pipeline.PoolRule) int { return strings.Compare(string(a.Pool), string(b.Pool)) })
	slices.SortStableFunc(p.Requests, func(a, b pipeline.RequestRule) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(p.Requests); i++ {
		r.oneRule("rule about requests", p.Requests[i].Name, p.Requests[i-1].Name, p.Requests[i].Pos, p.Requests[i-1].Pos)
	}
	for i := 1; i < len(p.Groups); i++ {
		r.oneRule("group", p.Groups[i].Name, p.Groups[i-1].Name, p.Groups[i].Pos, p.Groups[i-1].Pos)
	}
	for i := 1; i < len(p.Changes); i++ {
		r.oneRule("rule about changes", p.Changes[i].Name, p.Changes[i-1].Name, p.Changes[i].Pos, p.Changes[i-1].Pos)
	}
}

// oneRule reports a name that two directories give in the policy.
func (r *repository) oneRule(kind, name, before string, pos, other pipeline.Position) {
	if name != before {
		return
	}
	d := diag(codeDuplicate, pos, "policy: %s %q is declared in two directories", kind, name)
	d.Note = fmt.Sprintf("the other is at %s", other)
	d.Help = "rename one of them, or move both to one directory"
	d.Unit = path.Dir(pos.File)
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
}

// checkPolicy compares the policy with what it speaks of, and the repository with
// what the policy allows.
func (r *repository) checkPolicy() {
	for _, res := range r.results {
		for _, g := range res.Groups {
			r.checkGroups(res.Dir, g)
		}
		for _, m := range res.Mentions {
			r.checkAllowed(res.Dir, m)
		}
	}
	secrets, pools := secretNames(r.cfg.Secrets), poolNames(r.cfg.Pools)
	for _, s := range r.cfg.Policy.Secrets {
		r.ruleAbout("secret", string(s.Secret), secrets, s.Pos)
		r.ruleFor(s.Compositions, s.Pos)
		for _, name := range s.Repositories {
			if name = strings.TrimPrefix(name, "!"); !strings.ContainsAny(name, "*?[{") {
				r.ruleAbout("repository", name, r.repositoryNames(), s.Pos)
			}
		}
		r.checkListeners(&s)
	}
	for _, p := range r.cfg.Policy.Pools {
		r.ruleAbout("pool", string(p.Pool), pools, p.Pos)
		r.ruleFor(p.Compositions, p.Pos)
	}
	for _, c := range r.cfg.Policy.Changes {
		r.ruleFor(c.Compositions, c.Pos)
	}
	for _, q := range r.cfg.Policy.Requests {
		r.ruleFor(q.Compositions, q.Pos)
	}
}

func (r *repository) checkGroups(unit string, use groupUse) {
	groups := r.cfg.Policy.Groups
	find := func(name string) int {
		return slices.IndexFunc(groups, func(g pipeline.Group) bool { return g.Name == name })
	}
	if use.Name != "" {
		if find(use.Name) >= 0 {
			return
		}
		var names []string
		for _, g := range groups {
			names = append(names, g.Name)
		}
		d := diag(codePolicy, use.Pos, "%s asks group %q, which the policy does not have", use.Who, use.Name)
		d.Help = fmt.Sprintf("add policy: groups: %s: [\"NAME\"] to ops.cue", quoteLabel(use.Name))
		if len(names) > 0 {
			d.Note = "its groups are " + strings.Join(names, ", ")
		}
		r.sayOf(unit, r.mayFollow(withHelp(d, didYouMean(use.Name, names)), use.Name))
		return
	}
	people := map[string]bool{}
	for _, name := range use.All {
		i := find(name)
		if i < 0 {
			return // said already
		}
		for _, m := range groups[i].Members {
			people[m] = true
		}
	}
	if len(people) >= use.Count {
		return
	}
	d := diag(codePolicy, use.Pos, "%s asks for approval by %d people of %s, and there are only %d", use.Who, use.Count, listed(use.All), len(people))
	if len(people) == 0 {
		d.Message = fmt.Sprintf("%s asks for approval by %s, and nobody is in it", use.Who, listed(use.All))
	}
	d.Note = "nobody could ever approve it"
	r.sayOf(unit, d)
}

// sayOf adds an error that concerns a unit and none of its compositions alone.
func (r *repository) sayOf(unit string, d pipeline.Diagnostic) {
	d.Unit = unit
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
	for _, res := range r.results {
		if res.Dir != unit || !underAny(unit, opsRoots...) {
			continue
		}
		for i := range res.Compositions {
			if res.Compositions[i].Pos.File == d.Pos.File {
				r.unusable[res.Compositions[i].Name] = true
			}
		}
	}
}

// checkAllowed reports the use of a secret or a pool that is meant for others.
func (r *repository) checkAllowed(unit string, m mention) {
	var allowed []string
	var rule pipeline.Position
	switch m.Kind {
	case mentionSecret:
		for _, s := range r.cfg.Policy.Secrets {
			if string(s.Secret) == m.Name {
				allowed, rule = s.Compositions, s.Pos
			}
		}
	case mentionPool:
		for _, p := range r.cfg.Policy.Pools {
			if string(p.Pool) == m.Name {
				allowed, rule = p.Compositions, p.Pos
			}
		}
	}
	if len(allowed) == 0 || matchesAny(allowed, string(m.Composition)) {
		return
	}
	who := fmt.Sprintf("task %q", m.Task)
	if m.Task == "" {
		who = fmt.Sprintf("composition %q", m.Composition)
	}
	d := diag(codeForbid, m.Pos, "%s uses %s %q, which the policy gives to %s only", who, m.Kind, m.Name, listed(allowed))
	d.Note = fmt.Sprintf("the rule is at %s", rule)
	d.Help = fmt.Sprintf("let those who own the policy add %q there", m.Composition)
	r.complain(unit, m.Composition, d)
}

// checkListeners reports triggers on source repositories whose runs may not have a secret
// that the composition needs: they would all be refused.
func (r *repository) checkListeners(rule *pipeline.SecretRule) {
	if rule.Repositories == nil {
		return
	}
	for _, name := range sortedNames(r.compositions) {
		c := r.compositions[name]
		if !slices.ContainsFunc(c.Tasks, func(t pipeline.Task) bool { return slices.Contains(t.Secrets, rule.Secret) }) {
			continue
		}
		for i := range c.Triggers {
			repo := c.Triggers[i].Repo()
			if repo == "" || matchesAny(rule.Repositories, repo) {
				continue
			}
			d := diag(codeForbid, c.Triggers[i].Pos, "composition %q needs secret %q, which the policy gives to no run of repository %q", c.Name, rule.Secret, repo)
			d.Note = fmt.Sprintf("the rule is at %s", rule.Pos)
			d.Help = fmt.Sprintf("let those who own the policy add %q there, or remove the trigger", repo)
			r.complain(c.Unit, c.Name, d)
		}
	}
}

// matchesAny compares a name with patterns; one with "!" takes back what an
// earlier one allowed. What is more than * and ? is left to those who enforce it.
func matchesAny(patterns []string, name string) bool {
	matched := false
	for _, p := range patterns {
		rest, not := strings.CutPrefix(p, "!")
		if strings.ContainsAny(rest, "{}") {
			return true
		}
		for strings.Contains(rest, "**") {
			rest = strings.ReplaceAll(rest, "**", "*")
		}
		if ok, err := path.Match(rest, name); ok || err != nil {
			matched = !not
		}
	}
	return matched
}

// ruleAbout warns of a rule about what the repository does not declare.
func (r *repository) ruleAbout(kind, name string, known []string, pos pipeline.Position) {
	if slices.Contains(known, name) {
		return
	}
	d := warn(codePolicy, pos, "the policy has a rule about %s %q, which the repository does not declare", kind, name)
	d.Unit = path.Dir(pos.File)
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, withHelp(d, didYouMean(name, known)))
}

// ruleFor warns of names in a rule that no composition has.
func (r *repository) ruleFor(patterns []string, pos pipeline.Position) {
	for _, p := range patterns {
		name := strings.TrimPrefix(p, "!")
		if strings.ContainsAny(name, "*?[{") || r.declared[pipeline.CompositionName(name)] {
			continue
		}
		d := warn(codePolicy, pos, "the policy has a rule for composition %q, which the repository does not have", name)
		d.Unit = path.Dir(pos.File)
		var known []string
		for _, have := range sortedNames(r.declared) {
			known = append(known, string(have))
		}
		r.cfg.Diagnostics = append(r.cfg.Diagnostics, withHelp(d, didYouMean(name, known)))
	}
}
