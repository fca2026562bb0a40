package review

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Made is what is kept of a decision that was made of this input, but for the digest of
// the input, which takes longer: see Digest.
func (in *Input) Made(d *Decision) pipeline.Decision {
	out := pipeline.Decision{At: in.Now, Head: in.Head, Plan: in.Plan, Approval: d.Approval, Sentence: d.Sentence}
	for _, n := range d.Needs {
		out.Rules = append(out.Rules, fmt.Sprintf("%s: %d of %d", n.Rule, n.Have, n.Want))
	}
	for _, o := range d.Opinions {
		if o.Counts {
			out.By = append(out.By, in.fullName(o))
		}
	}
	return out
}

// fullName is who gave a review, with what proves it: the number of an account, or
// another name that a key has.
func (in *Input) fullName(o pipeline.Opinion) string {
	for i := range in.Reviews {
		r := &in.Reviews[i]
		if r.By != o.By || !r.At.Equal(o.At) {
			continue
		}
		for _, name := range r.Names {
			if name != o.By {
				return o.By + " (" + name + ")"
			}
		}
	}
	return o.By
}

// Digest names the input but for the time.
func (in *Input) Digest() (pipeline.Digest, error) {
	type person struct {
		Account  pipeline.Account
		Standing Standing
	}
	var people []person
	for a, s := range in.Standing {
		people = append(people, person{a, s})
	}
	slices.SortFunc(people, func(a, b person) int {
		return cmp.Or(cmp.Compare(a.Account.ID, b.Account.ID), cmp.Compare(a.Account.Login, b.Account.Login))
	})
	type input Input
	timeless := input(*in)
	timeless.Now = time.Time{}
	b, err := json.Marshal(struct {
		Input  input
		People []person
	}{timeless, people})
	return pipeline.DigestOf(b), err
}
