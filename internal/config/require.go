package config

import (
	"fmt"
	"slices"
	"strconv"

	"cuelang.org/go/cue"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func itoa(i int) string { return strconv.Itoa(i) }

// requirement compiles where a task may run. The task's own word wins over the
// composition's default: the pool as a whole, the facts one by one.
func (w *work) requirement(t *task) {
	if t.spec.Plugin == pipeline.CorePlugin {
		return // no agent is asked
	}
	own := w.compileRequirement(get(t.v, "agent"), w.path("tasks", t.name, "agent"))
	if w.agent == nil {
		w.agent = w.compileRequirement(get(w.v, "agent"), w.path("agent"))
	}
	r := pipeline.Requirement{Pool: own.Pool, Facts: slices.Clone(own.Facts)}
	if r.Pool != "" {
		w.mention(mentionPool, string(r.Pool), t.spec.Name, own.poolPos)
	} else if r.Pool = w.agent.Pool; r.Pool != "" {
		w.mention(mentionPool, string(r.Pool), "", w.agent.poolPos)
	}
	for _, clause := range w.agent.Facts {
		if !slices.ContainsFunc(own.Facts, func(o pipeline.Clause) bool { return overlap(o.Path, clause.Path) }) {
			r.Facts = append(r.Facts, clause)
		}
	}
	slices.SortFunc(r.Facts, func(a, b pipeline.Clause) int { return slices.Compare(a.Path, b.Path) })
	t.spec.Requirement = r
}

// compiled is a requirement as one place states it.
type compiled struct {
	pipeline.Requirement
	poolPos pipeline.Position
}

func (w *work) compileRequirement(v cue.Value, path []string) *compiled {
	out := &compiled{}
	if !v.Exists() || v.Err() != nil {
		return out
	}
	if pool := get(v, "pool"); pool.Exists() {
		out.Pool = pipeline.PoolName(text(pool))
		out.poolPos, _ = w.all.value(append(slices.Clone(path), "pool")...)
	}
	c := clauses{work: w, base: append(slices.Clone(path), "facts"), subject: w.x.subject(path)}
	c.collect(get(v, "facts"), nil, 0)
	out.Facts = c.out
	return out
}

// overlap reports whether one path leads to the other's fact or into it.
func overlap(a, b []string) bool {
	n := min(len(a), len(b))
	return slices.Equal(a[:n], b[:n])
}

type clauses struct {
	*work
	base    []string
	subject string
	out     []pipeline.Clause
}

// collect walks the struct of facts down to the constraints on single facts.
func (c *clauses) collect(v cue.Value, path []string, depth int) {
	if !v.Exists() {
		return
	}
	if depth > maxTypeDepth {
		c.refuse(path, fmt.Sprintf("nests more than %d deep", maxTypeDepth))
		return
	}
	op, _ := v.Expr()
	if v.IncompleteKind() != cue.StructKind || op == cue.OrOp {
		c.leaf(v, path)
		return
	}
	iter, err := v.Fields(cue.Optional(true), cue.Patterns(true))
	if err != nil {
		c.refuse(path, "is not a plain struct")
		return
	}
	n := 0
	for iter.Next() {
		sel := iter.Selector()
		if sel.LabelType() != cue.StringLabel || sel.ConstraintType() == cue.PatternConstraint {
			c.refuse(path, "a pattern on names of facts cannot be matched")
			continue
		}
		if n++; sel.ConstraintType() == cue.OptionalConstraint {
			c.refuse(append(slices.Clone(path), sel.Unquoted()), "a fact is either required or not mentioned: leave out the ?")
			continue
		}
		c.collect(iter.Value(), append(slices.Clone(path), sel.Unquoted()), depth+1)
	}
	switch {
	case len(path) > 0 && !v.Allows(cue.AnyString):
		c.refuse(path, "a closed struct would refuse agents for facts that it does not name")
	case n == 0 && len(path) > 0:
		c.out = append(c.out, pipeline.Clause{Path: path, Type: pipeline.Type{Kind: pipeline.KindStruct, Open: true}, Pos: c.place(path)})
	}
}

func (c *clauses) leaf(v cue.Value, path []string) {
	t, err := compileType(v)
	if err != nil {
		c.refuse(path, err.Error())
		return
	}
	t.Text = constraintText(v)
	c.out = append(c.out, pipeline.Clause{Path: path, Type: t, Pos: c.place(path)})
}

func (c *clauses) place(path []string) pipeline.Position {
	pos, _ := c.all.value(append(slices.Clone(c.base), path...)...)
	return pos
}

func (c *clauses) refuse(path []string, why string) {
	d := diag(codeRequirement, c.place(path), "%s: %s cannot be matched against agents: %s", c.subject, dotted(append([]string{"facts"}, path...)), why)
	c.complain(d)
}
