package plan

import (
	"slices"
	"strconv"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// seal gathers what a plan means, line by line, in any order.
type seal struct{ lines []string }

// add writes one line. Parts keep their bounds, so that no two lines are alike.
func (s *seal) add(parts ...string) {
	var b []byte
	for _, p := range parts {
		b = appendText(b, p)
	}
	s.lines = append(s.lines, string(b))
}

func (s *seal) digest() pipeline.Digest {
	slices.Sort(s.lines)
	s.lines = slices.Compact(s.lines)
	return pipeline.DigestOf([]byte(strings.Join(s.lines, "\n")))
}

// seal adds what the plan does to what it changes. What a trigger gives a run is
// sealed as it is written, not as it comes out for one commit.
func (p *Plan) seal(in *Input, s *seal) {
	s.add("event", p.Event.Kind, p.Event.Repo, string(p.Event.Ref), p.Event.Target, p.Event.Name, string(in.Params))
	text := texts{cfg: in.Head, code: map[pipeline.CompositionName]string{}}
	for i := range p.Runs {
		r := &p.Runs[i]
		s.add("run", string(r.Name), strconv.Itoa(r.Trigger))
		text.run(s, r.Composition)
	}
	for i := range p.Verdicts {
		if v := &p.Verdicts[i]; v.Outcome != pipeline.VerdictRejected { // a folder's name means nothing
			s.add("verdict", string(v.Composition), v.Outcome)
		}
	}
	for _, a := range p.Approvals {
		s.add("approval", a.Rule, strings.Join(a.Approvers, ","), strings.Join(a.People, ","), strconv.Itoa(a.Count))
	}
	for i := range p.Diagnostics {
		if d := &p.Diagnostics[i]; d.Severity == pipeline.SeverityError {
			s.add("error", d.Code)
		}
	}
}

// texts seals the compositions that a run can come to execute, each once.
type texts struct {
	cfg  *pipeline.Config
	code map[pipeline.CompositionName]string
}

func (x *texts) run(s *seal, c *pipeline.Composition) {
	if c == nil {
		return
	}
	if _, done := x.code[c.Name]; done {
		return
	}
	x.code[c.Name] = string(treeOf(*c).encode(nil))
	s.add("text", string(c.Name), x.code[c.Name])
	call := func(name pipeline.CompositionName) { x.run(s, x.cfg.Composition(name)) }
	if c.OnFailure != nil {
		call(c.OnFailure.Composition)
	}
	for i := range c.Tasks {
		t := &c.Tasks[i]
		if p := x.cfg.Plugin(t.Plugin); p != nil {
			s.add("plugin", string(p.Name), string(p.Tree), marshal(p.Programs))
		}
		if t.Call != nil {
			call(t.Call.Composition)
		}
		if t.OnFailure != nil {
			call(t.OnFailure.Composition)
		}
	}
}
