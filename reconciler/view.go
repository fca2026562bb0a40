package main

import (
	"cmp"
	"context"
	"io"
	"io/fs"
	"mime"
	"path"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
	"github.com/maestro-cd/maestro/reconciler/internal/web"
)

// view is what the web face may see of the server: reads only.
type view struct{ s *server }

var _ web.Source = (*view)(nil)

// mostExplained bounds how many waiting tasks are explained for one page.
const mostExplained = 200

func (v *view) live() *pipeline.Config {
	if cfg := v.s.commits.Live(); cfg != nil {
		return cfg
	}
	return &pipeline.Config{}
}

func (v *view) Board(ctx context.Context) (web.Board, error) {
	var b web.Board
	summaries, err := v.s.db.Board(ctx)
	if err != nil {
		return b, err
	}
	b.Compositions = v.compositions(summaries)
	unfinished, err := v.s.runs.Active(ctx)
	if err != nil {
		return b, err
	}
	b.Unfinished = values(unfinished)
	if b.Moment, err = v.Moment(ctx, ""); err != nil {
		return b, err
	}
	if b.Repository, err = v.repository(ctx); err != nil {
		return b, err
	}
	b.Notices = append(v.s.keeper.notices(), v.s.collector.notices()...)
	agents, err := v.Agents(ctx)
	if err != nil {
		return b, err
	}
	b.Agents.Enrolled = len(agents)
	for _, a := range agents {
		if a.Online {
			b.Agents.Online++
			if len(a.Running) > 0 {
				b.Agents.Busy++
			}
		}
	}
	newest, err := v.s.db.NewestEvaluated(ctx)
	if fault.Is(err, fault.NotFound) {
		return b, nil
	}
	b.Newest = &newest
	return b, err
}

// compositions joins what is declared with what has run.
func (v *view) compositions(summaries []store.Summary) []web.CompositionSummary {
	byName := map[pipeline.CompositionName]*web.CompositionSummary{}
	for _, s := range summaries {
		c := &web.CompositionSummary{Name: s.Composition, Removed: true, Latest: s.Latest, Median: pipeline.Duration(s.Median)}
		for _, r := range slices.Backward(s.Recent) {
			c.Recent = append(c.Recent, web.RunPoint{ID: r.ID, Number: r.Number, State: r.State, Duration: duration(r)})
		}
		byName[s.Composition] = c
	}
	cfg := v.live()
	for i := range cfg.Compositions {
		d := &cfg.Compositions[i]
		c := byName[d.Name]
		if c == nil {
			c = &web.CompositionSummary{Name: d.Name}
			byName[d.Name] = c
		}
		c.Description, c.Suspended, c.Removed = d.Description, d.Suspend, false
	}
	out := make([]web.CompositionSummary, 0, len(byName))
	for _, c := range byName {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b web.CompositionSummary) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func duration(r *pipeline.Run) pipeline.Duration {
	switch {
	case r.StartedAt.IsZero():
		return 0
	case r.FinishedAt.IsZero():
		return pipeline.Duration(time.Since(r.StartedAt))
	}
	return pipeline.Duration(r.FinishedAt.Sub(r.StartedAt))
}

func (v *view) repository(ctx context.Context) (web.Repository, error) {
	r := web.Repository{URL: v.s.repo.String(), Ref: v.s.opt.ref()}
	if at := v.s.seenAt.Load(); at != 0 {
		r.SeenAt = time.Unix(0, at).UTC()
	}
	live, err := v.s.db.LiveCommit(ctx, v.s.opt.repo)
	switch {
	case err == nil:
		r.Live, r.Subject, r.Author = live.Commit, live.Subject, live.Author
	case !fault.Is(err, fault.NotFound):
		return r, err
	}
	problems, err := v.s.db.RepositoryProblems(ctx)
	if err != nil {
		return r, err
	}
	unposted, err := v.s.db.Unposted(ctx)
	if err != nil {
		return r, err
	}
	unwritten, err := v.s.db.Unwritten(ctx, v.s.opt.repo)
	r.Problem = problems[v.s.opt.repo]
	switch {
	case r.Problem != "":
	case unposted[""] != "":
		r.Problem = "its statuses cannot be written: " + unposted[""]
	case unwritten != "":
		r.Problem = "its pull requests cannot be commented on: " + unwritten
	}
	for _, d := range v.s.sources.inForce().Repositories {
		s := web.SourceRepository{Name: d.Name, URL: d.URL, Problem: problems[loop.SourceKey(&d)]}
		if why := unposted[d.Name]; why != "" && s.Problem == "" {
			s.Problem = "its statuses cannot be written: " + why
		}
		if x := v.s.sources.watch(d.Name); x != nil {
			if at := x.seenAt.Load(); at != 0 {
				s.SeenAt = time.Unix(0, at).UTC()
			}
		}
		r.Sources = append(r.Sources, s)
	}
	return r, err
}

func values(runs []*pipeline.Run) []pipeline.Run {
	out := make([]pipeline.Run, len(runs))
	for i, r := range runs {
		out[i] = *r
	}
	return out
}

func (v *view) Runs(ctx context.Context, f web.RunFilter) ([]pipeline.Run, error) {
	runs, err := v.s.db.Runs(ctx, store.Filter{
		Composition: f.Composition, State: f.State, Ref: f.Ref, Commit: f.Commit, Agent: f.Agent,
		Before: f.Before, Limit: f.Limit, Tasks: f.Tasks,
	})
	return values(runs), err
}

func (v *view) Run(ctx context.Context, id pipeline.RunID) (pipeline.Run, error) {
	return deref(v.s.db.Run(ctx, id))
}

func (v *view) RunByNumber(ctx context.Context, c pipeline.CompositionName, n int) (pipeline.Run, error) {
	return deref(v.s.db.RunByNumber(ctx, c, n))
}

func deref(r *pipeline.Run, err error) (pipeline.Run, error) {
	if err != nil {
		return pipeline.Run{}, err
	}
	return *r, nil
}

func (v *view) Attempts(ctx context.Context, id pipeline.RunID) ([]pipeline.Attempt, error) {
	return v.s.db.Attempts(ctx, id)
}

func (v *view) Moment(ctx context.Context, run pipeline.RunID) (web.Moment, error) {
	now, err := v.s.runs.Moment(ctx, run, mostExplained)
	if err != nil {
		return web.Moment{}, err
	}
	m := web.Moment{Notes: now.Notes, Silent: now.Silent, Names: now.Names, Queue: make([]web.Waiting, 0, len(now.Queue))}
	for _, w := range now.Queue {
		m.Queue = append(m.Queue, web.Waiting{
			TaskRef:  ref(w.Run, w.Task.Name),
			Pool:     w.Task.Spec.Requirement.Pool,
			Priority: w.Run.PriorityOf(w.Task),
			Since:    w.Task.ReadyAt, Blocked: w.Blocked, Sentence: w.Sentence,
		})
	}
	return m, nil
}

func (v *view) Noted(after int64) ([]pipeline.RunID, int64) { return v.s.runs.Noted(after) }

func (v *view) WatchNotes() (<-chan struct{}, func()) { return v.s.runs.WatchNotes() }

func ref(r *pipeline.Run, t pipeline.TaskName) web.TaskRef {
	return web.TaskRef{Run: r.ID, Composition: r.Composition, Number: r.Number, Task: t}
}

func (v *view) Composition(_ context.Context, name pipeline.CompositionName) (pipeline.Composition, error) {
	if c := v.live().Composition(name); c != nil {
		return *c, nil
	}
	return pipeline.Composition{}, fault.New(fault.NotFound, "the live configuration has no composition %q", name)
}

func (v *view) Pools(context.Context) ([]pipeline.Pool, error) { return v.live().Pools, nil }

func (v *view) Plugins(context.Context) ([]pipeline.Plugin, error) { return v.live().Plugins, nil }

// maxIcon bounds an icon; it is shown small.
const maxIcon = 256 << 10

func (v *view) Icon(ctx context.Context, name pipeline.PluginName) ([]byte, string, error) {
	cfg := v.live()
	p := cfg.Plugin(name)
	if p == nil || p.Icon == "" {
		return nil, "", fault.New(fault.NotFound, "plugin %s has no icon", name)
	}
	var folder fs.FS
	var err error
	if p.Dir == "builtin:"+string(name) {
		folder, _, err = config.BuiltinPlugin(name)
	} else {
		var tree fs.FS
		if tree, err = v.s.repo.Tree(ctx, cfg.Commit); err == nil {
			folder, err = fs.Sub(tree, p.Dir)
		}
	}
	if err != nil {
		return nil, "", err
	}
	b, err := fs.ReadFile(folder, path.Clean(p.Icon))
	if err != nil || len(b) > maxIcon {
		return nil, "", fault.New(fault.NotFound, "plugin %s: icon %s cannot be shown", name, p.Icon)
	}
	return b, mime.TypeByExtension(path.Ext(p.Icon)), nil
}

func (v *view) Agents(ctx context.Context) ([]web.AgentView, error) {
	agents, err := v.s.db.Agents(ctx)
	if err != nil {
		return nil, err
	}
	at, err := v.s.runs.Connections(ctx)
	if err != nil {
		return nil, err
	}
	running, err := v.running(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]web.AgentView, 0, len(agents))
	for _, a := range agents {
		renewed, online := at[a.ID]
		if renewed.After(a.SeenAt) {
			a.SeenAt = renewed.UTC()
		}
		switch {
		case !online:
			a.State = pipeline.AgentOffline
		case time.Since(renewed) > loop.StalledAfter:
			a.State = pipeline.AgentStalled
		default:
			a.State = pipeline.AgentOnline
		}
		out = append(out, web.AgentView{Agent: a, Online: online, Running: running[a.ID]})
	}
	slices.SortFunc(out, func(a, b web.AgentView) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// running lists the tasks that each agent holds.
func (v *view) running(ctx context.Context) (map[pipeline.AgentID][]web.TaskRef, error) {
	runs, err := v.s.runs.Active(ctx)
	if err != nil {
		return nil, err
	}
	out := map[pipeline.AgentID][]web.TaskRef{}
	for _, r := range runs {
		for i := range r.Tasks {
			if t := &r.Tasks[i]; t.State.Active() {
				out[t.Agent] = append(out[t.Agent], ref(r, t.Name))
			}
		}
	}
	return out, nil
}

func (v *view) Agent(ctx context.Context, id pipeline.AgentID) (web.AgentView, error) {
	agents, err := v.Agents(ctx)
	if err != nil {
		return web.AgentView{}, err
	}
	for _, a := range agents {
		if a.ID == id {
			return a, nil
		}
	}
	return web.AgentView{}, fault.New(fault.NotFound, "no agent %s is enrolled", id)
}

func (v *view) Commits(ctx context.Context, limit int) ([]pipeline.CommitRecord, error) {
	return v.s.db.Commits(ctx, limit)
}

func (v *view) Commit(ctx context.Context, id pipeline.CommitID) (pipeline.CommitRecord, error) {
	full, err := v.s.db.FindCommit(ctx, string(id))
	if err != nil {
		return pipeline.CommitRecord{}, err
	}
	return v.s.db.Commit(ctx, full)
}

func (v *view) Proposals(ctx context.Context, limit int) ([]pipeline.Proposal, error) {
	return v.s.db.Proposals(ctx, limit)
}

func (v *view) Proposal(ctx context.Context, branch string) (pipeline.Proposal, error) {
	return v.s.db.Proposal(ctx, v.s.opt.repo, branch)
}

func (v *view) Verdicts(ctx context.Context, id pipeline.CommitID) ([]pipeline.Verdict, error) {
	verdicts, err := v.s.db.Verdicts(ctx, id)
	return nameRejected(verdicts, v.live()), err
}

// nameRejected puts the names of compositions in the place of a folder that could not
// be evaluated, where the live configuration knows which it held.
func nameRejected(verdicts []pipeline.Verdict, live *pipeline.Config) []pipeline.Verdict {
	var out []pipeline.Verdict
	for _, d := range verdicts {
		folder := d.Composition
		named := false
		for i := range live.Compositions {
			if c := &live.Compositions[i]; d.Outcome == pipeline.VerdictRejected && c.Unit == string(folder) && !pipeline.ValidName(c.Unit) {
				d.Composition, named = c.Name, true
				out = append(out, d)
			}
		}
		if !named {
			out = append(out, d)
		}
	}
	slices.SortStableFunc(out, func(a, b pipeline.Verdict) int { return cmp.Compare(a.Composition, b.Composition) })
	return out
}

func (v *view) LastSeq(ctx context.Context) (pipeline.Seq, error) { return v.s.db.LastSeq(ctx) }

func (v *view) Changes(ctx context.Context, after pipeline.Seq, limit int) ([]pipeline.Change, error) {
	return v.s.db.Changes(ctx, after, limit)
}

func (v *view) Watch() (<-chan struct{}, func()) { return v.s.db.Watch() }

func (v *view) LogInfo(ctx context.Context, id pipeline.AttemptID) (web.LogInfo, error) {
	n, err := v.s.logs.Length(ctx, id)
	if err != nil {
		return web.LogInfo{}, err
	}
	if !n.Sealed {
		// A log is sealed after its attempt's end is recorded; an attempt that was
		// lost, declined, or whose seal a crash cut off, has ended all the same.
		a, err := v.s.db.Attempt(ctx, id)
		if err != nil {
			return web.LogInfo{}, err
		}
		n.Sealed = a.State != pipeline.AttemptOffered && a.State != pipeline.AttemptRunning
	}
	return web.LogInfo{Bytes: n.Bytes, Lines: n.Lines, Truncated: n.Truncated, Sealed: n.Sealed}, nil
}

func (v *view) LogLines(ctx context.Context, id pipeline.AttemptID, from int64, n int) ([]web.LogLine, error) {
	lines, err := v.s.logs.Lines(ctx, id, from, n)
	return logLines(lines), err
}

func (v *view) LogSearch(ctx context.Context, id pipeline.AttemptID, text string, limit int) (web.LogMatches, error) {
	lines, total, err := v.s.logs.Search(ctx, id, text, limit)
	return web.LogMatches{Lines: logLines(lines), Total: total}, err
}

func logLines(lines []store.Line) []web.LogLine {
	out := make([]web.LogLine, len(lines))
	for i, l := range lines {
		out[i] = web.LogLine{N: l.N, Text: l.Text}
	}
	return out
}

func (v *view) LogCopy(ctx context.Context, id pipeline.AttemptID, off int64, w io.Writer) (int64, error) {
	return v.s.logs.Copy(ctx, id, off, w)
}

func (v *view) WatchLog(id pipeline.AttemptID) (<-chan struct{}, func()) { return v.s.logs.Watch(id) }
