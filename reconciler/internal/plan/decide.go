package plan

import (
	"fmt"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Push is a branch that moved, or was made.
type Push struct {
	Event pipeline.Event
	// Paths and PathsUnknown as in Input.
	Paths        []string
	PathsUnknown bool
}

// OfPush plans a moved branch: the runs and verdicts of Of, and nothing else.
func OfPush(cfg *pipeline.Config, p Push) Plan {
	var out Plan
	out.Runs, out.Verdicts, out.Blanks = decide(Input{Head: cfg, Event: p.Event, Paths: p.Paths, PathsUnknown: p.PathsUnknown})
	return out
}

// decide makes one verdict for each composition, and a run for each that starts.
func decide(in Input) (runs []Run, verdicts []pipeline.Verdict, blanks []Blank) {
	cfg := in.Head
	for i := range cfg.Compositions {
		c := &cfg.Compositions[i]
		v := pipeline.Verdict{Commit: in.Event.Head, Ref: in.Event.Ref, Composition: c.Name, Outcome: pipeline.VerdictSkipped}
		trigger, sentence := match(c, Push{in.Event, in.Paths, in.PathsUnknown})
		if trigger != nil {
			params, err := Params(c, trigger.Params.Value)
			if err != nil {
				v.Outcome, sentence = pipeline.VerdictRejected, err.Error()
			} else {
				v.Outcome = pipeline.VerdictRun
				runs = append(runs, Run{Composition: c, Name: c.Name, Key: Key(in.Event, c, params, 0), Event: in.Event, Params: params, Why: sentence})
			}
		}
		v.Sentence = sentence
		verdicts = append(verdicts, v)
	}
	for _, d := range blamed(cfg) {
		verdicts = append(verdicts, pipeline.Verdict{
			Commit: in.Event.Head, Ref: in.Event.Ref, Composition: blame(d),
			Outcome: pipeline.VerdictRejected, Sentence: d.Pos.String() + ": " + d.Message,
		})
	}
	return runs, verdicts, blanks
}

// blamed returns the first error of each unit that has one.
func blamed(cfg *pipeline.Config) []pipeline.Diagnostic {
	var out []pipeline.Diagnostic
	seen := map[string]bool{}
	for _, d := range cfg.Diagnostics {
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

// match returns the trigger of c that the push fires, and a sentence; without one
// the sentence names the clause that came nearest to being met.
func match(c *pipeline.Composition, p Push) (*pipeline.Trigger, string) {
	if c.Suspend {
		return nil, "suspended"
	}
	branch := p.Event.Ref.Branch()
	nearest, near := "no push trigger", 0
	miss := func(how int, format string, args ...any) {
		if how > near {
			near, nearest = how, fmt.Sprintf(format, args...)
		}
	}
	for i := range c.Triggers {
		t := &c.Triggers[i]
		if t.Push == nil {
			continue
		}
		switch {
		case t.Push.Repo != "" && t.Push.Repo != p.Event.Repo:
			miss(1, "watches repository %s", t.Push.Repo)
		case !anyMatch(t.Push.Branches, branch):
			miss(2, "branch %s is not %s", branch, strings.Join(t.Push.Branches, " or "))
		case len(t.Push.Paths) > 0 && !p.PathsUnknown && !anyPath(t.Push.Paths, p.Paths):
			miss(3, "no changed path matches %s", strings.Join(t.Push.Paths, " or "))
		default:
			return t, "push to " + branch
		}
	}
	return nil, nearest
}
