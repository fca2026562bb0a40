package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Standing is the ref by whose rules a run goes that is of ref, or would be: what an
// event of the ops repository starts goes by ref itself. Of a source repository, the
// branches that its declaration in force trusts are as good as main, and all else, what
// is proposed too, is no branch of anything: whoever may push there decides what code runs.
func Standing(declared []pipeline.Repository, e *pipeline.Event, ref, main pipeline.Ref) pipeline.Ref {
	if e.Repo == "" {
		return ref
	}
	branch := e.Ref.Branch()
	for i := range declared {
		if r := &declared[i]; r.Name == e.Repo && branch != "" && e.Proposal == "" && anyMatch(r.Trusted, branch) {
			return main
		}
	}
	return pipeline.SourceRef(e.Repo, e.Ref)
}

// listeners lists the triggers on source repositories that come or go.
func (p *Plan) listeners(in *Input) {
	if in.Base == in.Head {
		return
	}
	base := cmp.Or(in.Base, &pipeline.Config{})
	before, after := listening(base), listening(in.Head)
	for _, c := range both(before, after) {
		if was := base.Composition(c); was != nil && in.Head.Composition(c) == nil && broken(in.Head, was.Unit) {
			continue // what becomes of it is not known
		}
		for _, l := range left(before[c], after[c]) {
			p.Listeners = append(p.Listeners, Listener{c, Removed, l.repo, l.on})
		}
		for _, l := range left(after[c], before[c]) {
			p.Listeners = append(p.Listeners, Listener{c, Added, l.repo, l.on})
		}
	}
}

type ear struct{ repo, on string }

// listening are the triggers of each composition on source repositories.
func listening(cfg *pipeline.Config) map[pipeline.CompositionName][]ear {
	out := map[pipeline.CompositionName][]ear{}
	for i := range cfg.Compositions {
		c := &cfg.Compositions[i]
		for _, t := range c.Triggers {
			repo, on := t.Repo(), ""
			switch {
			case c.Suspend || repo == "":
				continue
			case t.Push != nil:
				on = fmt.Sprintf("pushes to %s on %s", repo, strings.Join(t.Push.Branches, ", "))
			case t.PullRequest != nil:
				on = fmt.Sprintf("pull requests of %s for %s", repo, strings.Join(t.PullRequest.Branches, ", "))
			default:
				on = fmt.Sprintf("tags of %s like %s", repo, strings.Join(t.Tag.Tags, ", "))
			}
			if paths := t.Paths(); len(paths) > 0 {
				on += " that change " + strings.Join(paths, ", ")
			}
			out[c.Name] = append(out[c.Name], ear{repo, on})
		}
		slices.SortFunc(out[c.Name], func(a, b ear) int { return cmp.Or(cmp.Compare(a.repo, b.repo), cmp.Compare(a.on, b.on)) })
	}
	return out
}

// String says what starts a run, or does not start one any more.
func (l *Listener) String() string {
	if l.Op == Removed {
		return "is not started by " + l.On
	}
	return "is started by " + l.On
}
