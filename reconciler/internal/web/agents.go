package web

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

type agentsView struct {
	page
	Pools  []poolView
	Counts AgentCounts
}

type poolView struct {
	Name pipeline.PoolName
	// Declared is nil for a pool that only agents know.
	Declared *pipeline.Pool
	Agents   []agentRow
	Queued   int
	Online   int
	Busy     int
}

type agentRow struct {
	AgentView
	URL     string
	Machine string
}

func (s *server) agents(r *http.Request) (view, error) {
	agents, err := s.src.Agents(r.Context())
	if err != nil {
		return nil, err
	}
	pools, err := s.src.Pools(r.Context())
	if err != nil {
		return nil, err
	}
	moment, err := s.src.Moment(r.Context(), "")
	if err != nil {
		return nil, err
	}
	v := &agentsView{page: s.plainPage("Agents", "agents")}
	v.Topics = []string{topicAgents, topicTasks, topicCommits}
	v.Pools = poolsOf(agents, pools, moment.Queue)
	for _, p := range v.Pools {
		v.Counts.Enrolled += len(p.Agents)
		v.Counts.Online += p.Online
		v.Counts.Busy += p.Busy
	}
	return v, nil
}

func poolsOf(agents []AgentView, declared []pipeline.Pool, queue []Waiting) []poolView {
	byName := map[pipeline.PoolName]*poolView{}
	get := func(name pipeline.PoolName) *poolView {
		if byName[name] == nil {
			byName[name] = &poolView{Name: name}
		}
		return byName[name]
	}
	for i := range declared {
		get(declared[i].Name).Declared = &declared[i]
	}
	for _, a := range agents {
		p := get(a.Pool)
		p.Agents = append(p.Agents, agentRow{a, agentURL(a.ID), machineOf(a.Facts)})
		if a.Online {
			p.Online++
			if len(a.Running) > 0 {
				p.Busy++
			}
		}
	}
	for _, w := range queue {
		if w.Pool != "" {
			get(w.Pool).Queued++
		}
	}
	out := make([]poolView, 0, len(byName))
	for _, p := range byName {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b poolView) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

type agentPage struct {
	page
	Agent AgentView
	Facts []factNode
	Runs  []runRow
}

// factNode is a fact: a value, or a group of more.
type factNode struct {
	Name, Value string
	Children    []factNode
}

func (s *server) agent(r *http.Request) (view, error) {
	id, err := identifier(r, "agent")
	if err != nil {
		return nil, err
	}
	a, err := s.src.Agent(r.Context(), pipeline.AgentID(id))
	if err != nil {
		return nil, err
	}
	runs, err := s.src.Runs(r.Context(), RunFilter{Agent: a.ID, Limit: 20})
	if err != nil {
		return nil, err
	}
	v := &agentPage{page: s.plainPage("Agent "+a.Name, "agents"), Agent: a, Facts: factsOf(a.Facts)}
	v.Crumbs = []crumb{{"Agents", "/agents"}, {a.Name, ""}}
	v.Topics = []string{topicAgents, topicTasks}
	for i := range runs {
		v.Runs = append(v.Runs, runRow{Run: runs[i], URL: runURL(runs[i].Composition, runs[i].Number), Took: took(&runs[i], v.Now)})
	}
	return v, nil
}

// mostFactDepth and mostFacts bound the tree: facts are text from outside.
const (
	mostFactDepth = 12
	mostFacts     = 2000
)

func factsOf(raw json.RawMessage) []factNode {
	if len(raw) == 0 {
		return nil
	}
	v, err := pipeline.DecodeJSON(raw)
	if err != nil {
		return []factNode{{Name: "facts", Value: "are not JSON: " + err.Error()}}
	}
	left := mostFacts
	return childrenOf(v, 0, &left)
}

func childrenOf(v any, depth int, left *int) []factNode {
	var out []factNode
	add := func(name string, value any) {
		if *left--; *left < 0 {
			return
		}
		n := factNode{Name: name}
		if depth < mostFactDepth {
			n.Children = childrenOf(value, depth+1, left)
		}
		if n.Children == nil {
			n.Value = brief(value)
		}
		out = append(out, n)
	}
	switch v := v.(type) {
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			add(name, v[name])
		}
	case []any:
		for i, e := range v {
			add(itoa(i), e)
		}
	}
	return out
}

func brief(v any) string {
	text, ok := v.(string)
	if !ok {
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Sprint(v)
		}
		text = string(b)
	}
	if len(text) > mostValue {
		return strings.ToValidUTF8(text[:mostValue], "") + "…"
	}
	return text
}

// machineOf sums up an agent's facts in a few words.
func machineOf(raw json.RawMessage) string {
	var f struct {
		OS struct {
			Name    any `json:"name"`
			Release any `json:"release"`
		} `json:"os"`
		Architecture any `json:"architecture"`
		CPUs         struct {
			Count json.Number `json:"count"`
		} `json:"cpus"`
		Memory struct {
			Total json.Number `json:"total_mb"`
		} `json:"memory"`
	}
	if len(raw) == 0 || json.Unmarshal(raw, &f) != nil {
		return ""
	}
	var parts []string
	for _, v := range []any{f.OS.Name, f.OS.Release, f.Architecture} {
		if text, ok := v.(string); ok && text != "" && len(text) < 40 {
			parts = append(parts, text)
		}
	}
	text := strings.Join(parts, " ")
	if n, err := f.CPUs.Count.Int64(); err == nil && n > 0 {
		text += fmt.Sprintf(" · %d cpu", n)
	}
	if n, err := f.Memory.Total.Float64(); err == nil && n > 0 {
		text += fmt.Sprintf(" · %.1f GiB", n/1024)
	}
	return strings.TrimPrefix(text, " · ")
}

// agentByID finds an agent that may be gone.
func (s *server) agentByID(r *http.Request, id pipeline.AgentID) (*AgentView, error) {
	if id == "" {
		return nil, nil
	}
	a, err := s.src.Agent(r.Context(), id)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &a, nil
}
