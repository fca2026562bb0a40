package plan

import (
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/codeowners"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// owned are the approvals that a rule asks of owners: one for each set of people who own
// some of the paths, as CODEOWNERS of what is in force says it. When the paths are not
// known, any may have changed.
func (p *Plan) owned(r *pipeline.ChangeRule, paths []string, in *Input) {
	own := &in.Base.Owners
	if own.Problem != "" || own.File == "" {
		a := Approval{Rule: r.Name, Pos: r.Pos, Count: 1, Echo: r.Echo, Nobody: own.Problem}
		if a.Nobody == "" { // its reader was not told to look for one
			a.Nobody = "the repository has no CODEOWNERS"
		}
		p.Approvals = append(p.Approvals, a)
		return
	}
	sets := map[string]*Approval{}
	add := func(owners []string, path string) {
		if len(owners) == 0 {
			return
		}
		owners = slices.Compact(slices.Sorted(slices.Values(owners)))
		key := strings.Join(owners, " ")
		if sets[key] == nil {
			sets[key] = &Approval{Rule: r.Name, Pos: r.Pos, Owners: owners, People: owners, Count: 1, Echo: r.Echo}
		}
		sets[key].Because = append(sets[key].Because, path)
	}
	if in.PathsUnknown {
		for _, o := range own.Rules {
			add(o.Owners, o.Pattern)
		}
	} else {
		owned := codeowners.New(own.Rules)
		for _, path := range paths {
			add(owned.Of(path), path)
		}
	}
	for _, a := range sets {
		a.keep()
		p.Approvals = append(p.Approvals, *a)
	}
}

// keep remembers what the approval is about, shows the first of it and counts the rest.
func (a *Approval) keep() {
	const most, length = 3, 120
	slices.Sort(a.Because)
	a.Because = slices.Compact(a.Because)
	a.about = strings.Join(a.Because, "\x00")
	a.More = max(0, len(a.Because)-most)
	a.Because = slices.Clone(a.Because[:len(a.Because)-a.More])
	for i := range a.Because {
		a.Because[i] = cutTo(safe(a.Because[i]), length)
	}
}

// needed are the approvals that have to be given. One by anybody is left out where an
// owner has to give his: it is that one.
func (p *Plan) needed() []Approval {
	owned := func(a Approval) bool { return len(a.Owners) > 0 }
	if !slices.ContainsFunc(p.Approvals, owned) {
		return p.Approvals
	}
	return slices.DeleteFunc(slices.Clone(p.Approvals), func(a Approval) bool {
		return len(a.Owners)+len(a.Approvers) == 0 && a.Nobody == "" && a.Count == 1 && !a.Echo
	})
}

// Need is what the approval asks for, of a change that nobody has reviewed.
func (a *Approval) Need() pipeline.Need {
	n := pipeline.Need{Rule: a.Rule, Approvers: a.Approvers, People: a.People, Want: a.Count, Echo: a.Echo, Owners: a.Owners, Nobody: a.Nobody}
	if len(a.Owners) > 0 {
		n.Paths, n.More = a.Because, a.More
	}
	return n
}
