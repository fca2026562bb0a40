package config

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// checkAgents reports tasks that no agent could ever take, as far as pools promise
// facts. A fact that a pool does not promise may still be reported.
func (r *repository) checkAgents(c *pipeline.Composition) {
	if slices.ContainsFunc(c.Tasks, func(t pipeline.Task) bool { return !t.BuiltIn() && r.cfg.Plugin(t.Plugin) == nil }) {
		r.unusable[c.Name] = true // what is wrong with the plugin is said there
	}
	for i := range c.Tasks {
		t := &c.Tasks[i]
		if t.BuiltIn() || t.Each != nil && t.Each.Index > 1 {
			continue
		}
		var why []string
		possible := false
		for j := range r.cfg.Pools {
			p := &r.cfg.Pools[j]
			if t.Requirement.Pool != "" && t.Requirement.Pool != p.Name {
				continue
			}
			no := r.excluded(t, p)
			if no == "" {
				possible = true
				break
			}
			why = append(why, fmt.Sprintf("pool %q %s", p.Name, no))
		}
		if !possible && len(why) > 0 {
			r.noAgent(c, t, why)
		}
	}
}

func (r *repository) noAgent(c *pipeline.Composition, t *pipeline.Task, why []string) {
	pos, name := t.Pos, t.Name
	if len(t.Requirement.Facts) > 0 && t.Requirement.Facts[0].Pos.File != "" {
		pos = t.Requirement.Facts[0].Pos
	}
	if t.Each != nil {
		name = t.Each.Of
	}
	d := diag(codeNoAgent, pos, "no agent can ever take task %q", name)
	d.Note = strings.Join(why, "; ")
	r.complain(c.Unit, c.Name, d)
}

// excluded says why no agent of a pool can take a task, "" when one may.
func (r *repository) excluded(t *pipeline.Task, p *pipeline.Pool) string {
	if p.Untrusted && t.Requirement.Pool == "" {
		return "is untrusted, and the task does not name it"
	}
	if p.Untrusted && len(t.Secrets) > 0 {
		return fmt.Sprintf("is untrusted, and the task gets secret %q", t.Secrets[0])
	}
	if clash := promiseBroken(t.Requirement, p); clash != "" {
		return "promises " + clash
	}
	return r.platformBroken(t, p)
}

// platformBroken compares what a pool promises to run on with the plugin's programs.
func (r *repository) platformBroken(t *pipeline.Task, p *pipeline.Pool) string {
	plugin := r.cfg.Plugin(t.Plugin)
	facts, err := pipeline.DecodeJSON(p.Facts)
	if plugin == nil || err != nil {
		return ""
	}
	kernel, _ := lookup(facts, []string{"kernel"})
	arch, _ := lookup(facts, []string{"architecture"})
	goos, goarch := "", ""
	if s, ok := kernel.(string); ok {
		goos = strings.ToLower(s)
	}
	if s, ok := arch.(string); ok {
		goarch = s
	}
	var offers []string
	for _, prog := range plugin.Programs {
		if (goos == "" || prog.OS == "" || prog.OS == goos) && (goarch == "" || prog.Arch == "" || prog.Arch == goarch) {
			return ""
		}
		offers = append(offers, strings.Trim(prog.OS+"/"+prog.Arch, "/"))
	}
	return fmt.Sprintf("promises %s, and plugin %q has programs for %s", strings.Trim(goos+"/"+goarch, "/"), t.Plugin, strings.Join(offers, ", "))
}

// promiseBroken names the first promised fact that does not fit a requirement.
func promiseBroken(req pipeline.Requirement, p *pipeline.Pool) string {
	if len(p.Facts) == 0 {
		return ""
	}
	facts, err := pipeline.DecodeJSON(p.Facts)
	if err != nil {
		return ""
	}
	for _, c := range req.Facts {
		v, ok := lookup(facts, c.Path)
		if ok && !c.Type.Fits(v) {
			b, err := json.Marshal(v)
			if err != nil {
				continue
			}
			return fmt.Sprintf("%s: %s, and the task requires %s", strings.Join(c.Path, "."), plain(string(b)), c.Type)
		}
	}
	return ""
}

func lookup(v any, p []string) (any, bool) {
	for _, name := range p {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = m[name]; !ok {
			return nil, false
		}
	}
	return v, true
}
