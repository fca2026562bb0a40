package config

import (
	"encoding/json"
	"slices"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// digestOf covers a composition without its positions.
func digestOf(c pipeline.Composition) pipeline.Digest {
	c.Pos, c.Digest = pipeline.Position{}, ""
	c.Returns.Pos = pipeline.Position{}
	c.OnFailure = unplacedHook(c.OnFailure)
	if c.Concurrency != nil {
		k := *c.Concurrency
		k.Group.Pos = pipeline.Position{}
		c.Concurrency = &k
	}
	c.Tasks = slices.Clone(c.Tasks)
	for i := range c.Tasks {
		unplaceTask(&c.Tasks[i])
	}
	c.Triggers = slices.Clone(c.Triggers)
	for i := range c.Triggers {
		c.Triggers[i].Pos, c.Triggers[i].Params.Pos = pipeline.Position{}, pipeline.Position{}
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return "" // plain data always marshals
	}
	return pipeline.DigestOf(raw)
}

func unplaceTask(t *pipeline.Task) {
	t.Pos, t.Places = pipeline.Position{}, nil
	t.Requirement.Facts = slices.Clone(t.Requirement.Facts)
	for j := range t.Requirement.Facts {
		t.Requirement.Facts[j].Pos = pipeline.Position{}
	}
	if len(t.Open) > 0 {
		open := make(map[string]pipeline.Expr, len(t.Open))
		for name, e := range t.Open {
			e.Pos = pipeline.Position{}
			open[name] = e
		}
		t.Open = open
	}
	if t.If != nil {
		e := *t.If
		e.Pos = pipeline.Position{}
		t.If = &e
	}
	if t.Each != nil {
		e := *t.Each
		e.Items.Pos = pipeline.Position{}
		t.Each = &e
	}
	t.OnFailure = unplacedHook(t.OnFailure)
}

func unplacedHook(h *pipeline.Hook) *pipeline.Hook {
	if h == nil {
		return nil
	}
	c := *h
	c.Pos, c.Params.Pos = pipeline.Position{}, pipeline.Position{}
	return &c
}
