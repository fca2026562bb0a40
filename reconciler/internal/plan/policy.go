package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// approvals are what the policy in force asks for before the change is merged. Where
// nothing is in force yet there is nobody to ask.
func (p *Plan) approvals(in *Input) {
	if in.Base == nil {
		return
	}
	law := &in.Base.Policy
	for _, r := range law.Changes {
		because, owed, meant := touches(&r, p.Changes, in)
		if !meant {
			continue
		}
		if r.Codeowners {
			p.owned(&r, owed, in)
		}
		p.Approvals = append(p.Approvals, Approval{
			Rule: r.Name, Pos: r.Pos, Approvers: slices.Sorted(slices.Values(r.Approvers)), People: members(law, r.Approvers),
			Count: max(r.Count, 1), Echo: r.Echo, Because: because,
		})
	}
	slices.SortFunc(p.Approvals, func(a, b Approval) int {
		return cmp.Or(cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Nobody, b.Nobody), slices.Compare(a.Owners, b.Owners))
	})
}

// touches reports whether a rule is about a change, and by what of it. owed are the
// paths whose owners it asks: those that it names, or all when it is about more.
func touches(r *pipeline.ChangeRule, changes []Change, in *Input) (because, owed []string, meant bool) {
	if len(r.Paths) == 0 && len(r.Compositions) == 0 {
		return nil, in.Paths, len(changes) > 0 || len(in.Paths) > 0 || in.PathsUnknown
	}
	for i := range changes {
		if c := &changes[i]; c.Kind == KindComposition && anyMatch(r.Compositions, c.Name) {
			because = append(because, c.Name)
		}
	}
	var named []string
	all := len(because) > 0
	if len(r.Paths) > 0 && in.PathsUnknown {
		because = append(because, "paths that could not be listed")
	}
	for _, path := range in.Paths {
		if anyMatch(r.Paths, path) {
			because, named = append(because, path), append(named, path)
		}
	}
	owed = named
	if all {
		owed = in.Paths
	}
	slices.Sort(because)
	const most = 3
	return because[:min(most, len(because))], owed, len(because) > 0
}

// MayNotAsk says why the policy keeps a person from asking for what verb stands for of a
// composition, "" when it does not.
func MayNotAsk(law *pipeline.Policy, verb string, of pipeline.CompositionName, user string) string {
	if verb == "cancel-tree" { // the same right, however far it reaches
		verb = "cancel"
	}
	var rules, groups []string
	for i := range law.Requests {
		r := &law.Requests[i]
		if !slices.Contains(r.Verbs, verb) || len(r.Compositions) > 0 && !anyMatch(r.Compositions, string(of)) {
			continue
		}
		if slices.Contains(members(law, r.By), user) {
			return ""
		}
		rules, groups = append(rules, fmt.Sprintf("%q", r.Name)), append(groups, r.By...)
	}
	if len(rules) == 0 {
		return ""
	}
	slices.Sort(groups)
	noun := "rule"
	if len(rules) > 1 {
		noun = "rules"
	}
	return fmt.Sprintf("the policy lets only %s %s %s, by its %s %s, and %s is not among them",
		either(slices.Compact(groups)), verb, of, noun, strings.Join(rules, " and "), user)
}

// reaches lists the secrets that compositions get with the head and not with the base.
func (p *Plan) reaches(in *Input) {
	if in.Base == in.Head {
		return
	}
	before := reachable(in.Base)
	for k, r := range reachable(in.Head) {
		was, had := before[k]
		if had && was.from == r.from {
			continue
		}
		r.Moved = had
		p.Secrets = append(p.Secrets, r.Reach)
	}
	slices.SortFunc(p.Secrets, func(a, b Reach) int {
		return cmp.Or(cmp.Compare(a.Secret, b.Secret), cmp.Compare(a.Composition, b.Composition))
	})
}

type reachKey struct {
	secret      pipeline.SecretName
	composition pipeline.CompositionName
}

// reach is a secret that a composition gets, with where it is read.
type reach struct {
	Reach
	from string
}

// reachable lists the secrets that the policy of a configuration lets the default
// branch's runs have.
func reachable(cfg *pipeline.Config) map[reachKey]reach {
	out := map[reachKey]reach{}
	if cfg == nil {
		return out
	}
	from := map[pipeline.SecretName]string{}
	for i := range cfg.Secrets {
		from[cfg.Secrets[i].Name] = cfg.Secrets[i].Source()
	}
	for i := range cfg.Compositions {
		c := &cfg.Compositions[i]
		for j := range c.Tasks {
			t := &c.Tasks[j]
			for _, s := range t.Secrets {
				if !allowed(&cfg.Policy, s, c.Name) {
					continue
				}
				k := reachKey{s, c.Name}
				r, there := out[k]
				if !there || t.Name < r.Tasks[0] {
					r.Reach.Pos = t.Pos
				}
				r.Secret, r.Composition, r.from = s, c.Name, from[s]
				r.Tasks = append(r.Tasks, t.Name)
				slices.Sort(r.Tasks)
				out[k] = r
			}
		}
	}
	return out
}

func allowed(law *pipeline.Policy, s pipeline.SecretName, c pipeline.CompositionName) bool {
	for _, r := range law.Secrets {
		if r.Secret == s && len(r.Compositions) > 0 && !anyMatch(r.Compositions, string(c)) {
			return false
		}
	}
	return true
}
