package plan

import (
	"slices"
	"strconv"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// seal gathers what a plan means, line by line, in any order.
type seal struct {
	*forester
	lines []string
	// codes are the canonical texts of the head's compositions that are known.
	codes map[pipeline.CompositionName]string
}

func newSeal() *seal {
	return &seal{forester: newForester(), codes: map[pipeline.CompositionName]string{}}
}

// code returns the canonical text of a composition of the head.
func (s *seal) code(c *pipeline.Composition) string {
	if _, known := s.codes[c.Name]; !known {
		s.codes[c.Name] = string(s.treeOf(c).encode(nil))
	}
	return s.codes[c.Name]
}

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
	s.add("event", p.Event.Kind, p.Event.Repo, string(p.Event.Ref), p.Event.Target, p.Event.Name, string(jsonTree(in.Params).encode(nil)))
	text := texts{cfg: in.Head, seal: s, done: map[pipeline.CompositionName]bool{}}
	for i := range p.Runs {
		r := &p.Runs[i]
		s.add("run", string(r.Name), strconv.Itoa(r.Trigger))
		text.run(r.Composition)
	}
	for i := range p.Verdicts {
		if v := &p.Verdicts[i]; in.Head.Composition(v.Composition) != nil { // a folder's name means nothing
			s.add("verdict", string(v.Composition), v.Outcome)
		}
	}
	for _, a := range p.Approvals {
		s.add("approval", a.Rule, strings.Join(a.Approvers, ","), strings.Join(a.People, ","), strconv.Itoa(a.Count))
		if a.Echo {
			s.add("echo", a.Rule)
		}
		if len(a.Owners) > 0 || a.Nobody != "" {
			s.add("owners", a.Rule, strings.Join(a.Owners, " "), a.about, a.Nobody)
		}
	}
	for i := range p.Diagnostics {
		if d := &p.Diagnostics[i]; d.Severity == pipeline.SeverityError {
			s.add("error", d.Code)
		}
	}
}

// texts seals the compositions that a run can come to execute, each once.
type texts struct {
	*seal
	cfg  *pipeline.Config
	done map[pipeline.CompositionName]bool
}

func (x *texts) run(c *pipeline.Composition) {
	if c == nil || x.done[c.Name] {
		return
	}
	x.done[c.Name] = true
	x.add("text", string(c.Name), x.code(c))
	if c.OnFailure != nil {
		x.run(x.cfg.Composition(c.OnFailure.Composition))
	}
	plugins := map[pipeline.PluginName]bool{}
	for i := range c.Tasks {
		t := &c.Tasks[i]
		if p := x.cfg.Plugin(t.Plugin); p != nil && !plugins[t.Plugin] {
			plugins[t.Plugin] = true
			x.add("plugin", string(p.Name), string(p.Tree), marshal(p.Programs))
		}
		if t.Call != nil {
			x.run(x.cfg.Composition(t.Call.Composition))
		}
		if t.OnFailure != nil {
			x.run(x.cfg.Composition(t.OnFailure.Composition))
		}
	}
}
