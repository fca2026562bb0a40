package config

import (
	"fmt"
	"time"

	"cuelang.org/go/cue"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// groupUse is a place that names groups of the policy: one of them, or all that
// may approve something.
type groupUse struct {
	Name string            `json:"name,omitempty"`
	Who  string            `json:"who"`
	Pos  pipeline.Position `json:"pos"`
	// All and Count are set for the whole list.
	All   []string `json:"all,omitempty"`
	Count int      `json:"count,omitempty"`
}

// policy reads what the unit's own files add to the policy; what a directory above
// says is that directory's.
func (c *checker) policy() {
	v := get(c.root, "policy")
	if !v.Exists() || len(c.own.at("policy")) == 0 {
		return
	}
	for _, p := range c.own.at("policy") {
		if p.value != nil && len(reaches(p.value)) > 0 {
			pos, _ := c.own.value("policy")
			c.complain(diag(codeTooLate, pos, "the policy must be known when the commit is planned"))
			return
		}
	}
	if err := v.Validate(cue.Concrete(true)); err != nil {
		c.complain(c.x.errors(err)...)
		return
	}
	var out pipeline.Policy
	c.eachRule(v, "groups", func(name string, v cue.Value, pos pipeline.Position) {
		g := pipeline.Group{Name: name, Pos: pos}
		_ = decode(v, &g.Members) // a list of texts, checked by CUE
		out.Groups = append(out.Groups, g)
	})
	c.eachRule(v, "changes", func(name string, v cue.Value, pos pipeline.Position) {
		r := pipeline.ChangeRule{}
		_ = decode(v, &r)
		r.Name, r.Pos = name, pos
		c.mentionGroups(r.Approvers, r.Count, fmt.Sprintf("policy: changes %q", name), []string{"policy", "changes", name, "approvers"})
		out.Changes = append(out.Changes, r)
	})
	c.eachRule(v, "secrets", func(name string, v cue.Value, pos pipeline.Position) {
		r := pipeline.SecretRule{}
		_ = decode(v, &r)
		r.Secret, r.Pos = pipeline.SecretName(name), pos
		if r.Untrusted && len(r.Repositories) == 0 {
			d := diag(codePolicy, pos, "policy: secrets %q: untrusted is about the source repositories that the rule names, and it names none", plain(name))
			d.Help = "add repositories: [\"NAME\"], or remove it"
			c.complain(d)
		}
		out.Secrets = append(out.Secrets, r)
	})
	c.eachRule(v, "pools", func(name string, v cue.Value, pos pipeline.Position) {
		r := pipeline.PoolRule{}
		_ = decode(v, &r)
		r.Pool, r.Pos = pipeline.PoolName(name), pos
		out.Pools = append(out.Pools, r)
	})
	c.eachRule(v, "requests", func(name string, v cue.Value, pos pipeline.Position) {
		r := pipeline.RequestRule{}
		_ = decode(v, &r)
		r.Name, r.Pos = name, pos
		c.mentionGroups(r.By, 0, fmt.Sprintf("policy: requests %q", name), []string{"policy", "requests", name, "by"})
		out.Requests = append(out.Requests, r)
	})
	c.keep(v, &out)
	c.res.Policy = &out
}

// keep reads how long what has happened stays in the record, when this unit says it.
func (c *checker) keep(policy cue.Value, out *pipeline.Policy) {
	v := get(policy, "keep")
	if !v.Exists() || len(c.own.at("policy", "keep")) == 0 {
		return
	}
	k := &pipeline.Keep{}
	_ = decode(v, k) // checked by CUE
	k.Pos, _ = c.all.label("policy", "keep")
	if least := pipeline.Duration(time.Hour); k.Runs.Age < least || k.Logs.Age < least {
		d := diag(codePolicy, k.Pos, "policy: keep removes what is younger than an hour")
		d.Help = "ages are written as \"720h\", which is 30 days"
		c.complain(d)
	}
	out.Keep = k
}

func (c *checker) eachRule(policy cue.Value, kind string, visit func(name string, v cue.Value, pos pipeline.Position)) {
	v := get(policy, kind)
	if !v.Exists() {
		return
	}
	iter, err := v.Fields()
	if err != nil {
		return
	}
	for iter.Next() {
		name := iter.Selector().Unquoted()
		if len(c.own.at("policy", kind, name)) > 0 || len(c.all.at("policy", kind, name)) == 0 {
			pos, _ := c.all.label("policy", kind, name)
			visit(name, iter.Value(), pos)
		}
	}
}
