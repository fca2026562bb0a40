package web_test

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/web"
)

// fakeSource holds plain values. Its fields may be set before it is served;
// afterwards change and write are the ways to move it.
type fakeSource struct {
	board     web.Board
	live      []pipeline.Composition
	pools     []pipeline.Pool
	plugins   []pipeline.Plugin
	icons     map[pipeline.PluginName]fakeIcon
	agents    []web.AgentView
	verdicts  []pipeline.Verdict
	commits   []pipeline.CommitRecord
	proposals []pipeline.Proposal
	attempts  []pipeline.Attempt

	mu      sync.Mutex
	err     error // what every method returns, if set
	runs    []pipeline.Run
	changes []pipeline.Change
	logs    map[pipeline.AttemptID]*fakeLog
	noted   []pipeline.RunID
	watch   map[chan struct{}]pipeline.AttemptID // "" watches the record, noteWatch the notes
}

const noteWatch pipeline.AttemptID = "notes"

type fakeIcon struct {
	data      string
	mediaType string
}

// fakeLog is text, or a function that makes line n of many.
type fakeLog struct {
	text   []byte
	line   func(n int64) []byte
	lines  int64
	sealed bool
}

func (l *fakeLog) count() int64 {
	if l.line != nil {
		return l.lines
	}
	n := int64(bytes.Count(l.text, []byte("\n")))
	if len(l.text) > 0 && l.text[len(l.text)-1] != '\n' {
		n++
	}
	return n
}

func (l *fakeLog) at(n int64) []byte {
	if l.line != nil {
		return l.line(n)
	}
	return bytes.Split(l.text, []byte("\n"))[n-1]
}

func (f *fakeSource) lock() (func(), error) {
	f.mu.Lock()
	return f.mu.Unlock, f.err
}

// change records a change and what goes with it, then tells those who watch.
func (f *fakeSource) change(c pipeline.Change, apply func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if apply != nil {
		apply()
	}
	c.Seq = pipeline.Seq(len(f.changes) + 1)
	f.changes = append(f.changes, c)
	f.signalLocked("")
}

// write appends to a log; seal ends it.
func (f *fakeSource) write(id pipeline.AttemptID, text string, seal bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.logs == nil {
		f.logs = map[pipeline.AttemptID]*fakeLog{}
	}
	if f.logs[id] == nil {
		f.logs[id] = &fakeLog{}
	}
	f.logs[id].text = append(f.logs[id].text, text...)
	f.logs[id].sealed = seal
	f.signalLocked(id)
}

func (f *fakeSource) signalLocked(id pipeline.AttemptID) {
	for ch, of := range f.watch {
		if of != id {
			continue
		}
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (f *fakeSource) watchers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watch)
}

func (f *fakeSource) Watch() (<-chan struct{}, func()) { return f.WatchLog("") }

func (f *fakeSource) WatchLog(id pipeline.AttemptID) (<-chan struct{}, func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan struct{}, 1)
	if f.watch == nil {
		f.watch = map[chan struct{}]pipeline.AttemptID{}
	}
	f.watch[ch] = id
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watch, ch)
	}
}

func (f *fakeSource) Board(context.Context) (web.Board, error) {
	unlock, err := f.lock()
	defer unlock()
	b := f.board
	b.Unfinished, b.Names = nil, map[pipeline.AgentID]string{}
	for _, a := range f.agents {
		b.Names[a.ID] = a.Name
	}
	for _, run := range f.runs {
		if !run.State.Terminal() {
			b.Unfinished = append(b.Unfinished, run)
		}
	}
	b.Compositions = slices.Clone(b.Compositions)
	for i := range b.Compositions {
		for k := range f.runs {
			if f.runs[k].Composition == b.Compositions[i].Name {
				latest := f.runs[k]
				b.Compositions[i].Latest = &latest
				break
			}
		}
	}
	return b, err
}

func (f *fakeSource) Runs(_ context.Context, flt web.RunFilter) ([]pipeline.Run, error) {
	unlock, err := f.lock()
	defer unlock()
	var out []pipeline.Run
	for _, run := range f.runs {
		onAgent := flt.Agent == "" || slices.ContainsFunc(run.Tasks, func(t pipeline.RunTask) bool { return t.Agent == flt.Agent })
		if (flt.Composition == "" || run.Composition == flt.Composition) && (flt.State == "" || run.State == flt.State) &&
			(flt.Before == "" || run.ID < flt.Before) && (flt.Commit == "" || run.Commit == flt.Commit) && onAgent && len(out) < flt.Limit {
			if !flt.Tasks {
				run.Tasks = nil
			}
			out = append(out, run)
		}
	}
	return out, err
}

func (f *fakeSource) find(what string, ok func(pipeline.Run) bool) (pipeline.Run, error) {
	unlock, err := f.lock()
	defer unlock()
	if err != nil {
		return pipeline.Run{}, err
	}
	for _, run := range f.runs {
		if ok(run) {
			return *run.Clone(), nil
		}
	}
	return pipeline.Run{}, fault.New(fault.NotFound, "there is no run %s", what)
}

func (f *fakeSource) Run(_ context.Context, id pipeline.RunID) (pipeline.Run, error) {
	return f.find(string(id), func(r pipeline.Run) bool { return r.ID == id })
}

func (f *fakeSource) RunByNumber(_ context.Context, c pipeline.CompositionName, n int) (pipeline.Run, error) {
	return f.find(string(c), func(r pipeline.Run) bool { return r.Composition == c && r.Number == n })
}

func (f *fakeSource) Attempts(_ context.Context, id pipeline.RunID) ([]pipeline.Attempt, error) {
	unlock, err := f.lock()
	defer unlock()
	var out []pipeline.Attempt
	for _, a := range f.attempts {
		if a.Run == id {
			out = append(out, a)
		}
	}
	return out, err
}

func (f *fakeSource) Moment(_ context.Context, id pipeline.RunID) (web.Moment, error) {
	unlock, err := f.lock()
	defer unlock()
	m := f.board.Moment
	m.Queue, m.Names = nil, map[pipeline.AgentID]string{}
	for _, w := range f.board.Queue {
		if id == "" || w.Run == id {
			m.Queue = append(m.Queue, w)
		}
	}
	for _, a := range f.agents {
		m.Names[a.ID] = a.Name
	}
	return m, err
}

// note makes a task say something; the number of notes stands for all of them.
func (f *fakeSource) note(run pipeline.RunID, id pipeline.AttemptID, n pipeline.Note) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.board.Notes == nil {
		f.board.Notes = map[pipeline.AttemptID]pipeline.Note{}
	}
	f.board.Notes[id] = n
	f.noted = append(f.noted, run)
	f.signalLocked(noteWatch)
}

func (f *fakeSource) Noted(after int64) ([]pipeline.RunID, int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.noted[min(after, int64(len(f.noted))):]), int64(len(f.noted))
}

func (f *fakeSource) WatchNotes() (<-chan struct{}, func()) { return f.WatchLog(noteWatch) }

func (f *fakeSource) Composition(_ context.Context, name pipeline.CompositionName) (pipeline.Composition, error) {
	unlock, err := f.lock()
	defer unlock()
	if err != nil {
		return pipeline.Composition{}, err
	}
	for _, c := range f.live {
		if c.Name == name {
			return c, nil
		}
	}
	return pipeline.Composition{}, fault.New(fault.NotFound, "composition %s is not declared", name)
}

func (f *fakeSource) Pools(context.Context) ([]pipeline.Pool, error) {
	unlock, err := f.lock()
	defer unlock()
	return f.pools, err
}

func (f *fakeSource) Plugins(context.Context) ([]pipeline.Plugin, error) {
	unlock, err := f.lock()
	defer unlock()
	return f.plugins, err
}

func (f *fakeSource) Icon(_ context.Context, name pipeline.PluginName) ([]byte, string, error) {
	icon, ok := f.icons[name]
	if !ok {
		return nil, "", fault.New(fault.NotFound, "plugin %s has no icon", name)
	}
	return []byte(icon.data), icon.mediaType, nil
}

func (f *fakeSource) Agents(context.Context) ([]web.AgentView, error) {
	unlock, err := f.lock()
	defer unlock()
	return f.agents, err
}

func (f *fakeSource) Agent(_ context.Context, id pipeline.AgentID) (web.AgentView, error) {
	unlock, err := f.lock()
	defer unlock()
	if err != nil {
		return web.AgentView{}, err
	}
	for _, a := range f.agents {
		if a.ID == id {
			return a, nil
		}
	}
	return web.AgentView{}, fault.New(fault.NotFound, "there is no agent %s", id)
}

func (f *fakeSource) Commits(_ context.Context, limit int) ([]pipeline.CommitRecord, error) {
	unlock, err := f.lock()
	defer unlock()
	return f.commits[:min(limit, len(f.commits))], err
}

func (f *fakeSource) Commit(_ context.Context, id pipeline.CommitID) (pipeline.CommitRecord, error) {
	unlock, err := f.lock()
	defer unlock()
	if err != nil {
		return pipeline.CommitRecord{}, err
	}
	for _, c := range f.commits {
		if strings.HasPrefix(string(c.Commit), string(id)) {
			return c, nil
		}
	}
	return pipeline.CommitRecord{}, fault.New(fault.NotFound, "commit %s was not evaluated", id)
}

func (f *fakeSource) Proposals(_ context.Context, limit int) ([]pipeline.Proposal, error) {
	unlock, err := f.lock()
	defer unlock()
	return f.proposals[:min(limit, len(f.proposals))], err
}

func (f *fakeSource) Proposal(_ context.Context, branch string) (pipeline.Proposal, error) {
	unlock, err := f.lock()
	defer unlock()
	for _, p := range f.proposals {
		if p.Branch == branch && err == nil {
			return p, nil
		}
	}
	if err == nil {
		err = fault.New(fault.NotFound, "no change is proposed on branch %q", branch)
	}
	return pipeline.Proposal{}, err
}

func (f *fakeSource) Verdicts(_ context.Context, id pipeline.CommitID) ([]pipeline.Verdict, error) {
	unlock, err := f.lock()
	defer unlock()
	var out []pipeline.Verdict
	for _, v := range f.verdicts {
		if v.Commit == id {
			out = append(out, v)
		}
	}
	return out, err
}

func (f *fakeSource) LastSeq(context.Context) (pipeline.Seq, error) {
	unlock, err := f.lock()
	defer unlock()
	return pipeline.Seq(len(f.changes)), err
}

func (f *fakeSource) Changes(_ context.Context, after pipeline.Seq, limit int) ([]pipeline.Change, error) {
	unlock, err := f.lock()
	defer unlock()
	rest := f.changes[min(int(after), len(f.changes)):]
	return slices.Clone(rest[:min(limit, len(rest))]), err
}

func (f *fakeSource) log(id pipeline.AttemptID) *fakeLog {
	if l := f.logs[id]; l != nil {
		return l
	}
	return &fakeLog{}
}

func (f *fakeSource) LogInfo(_ context.Context, id pipeline.AttemptID) (web.LogInfo, error) {
	unlock, err := f.lock()
	defer unlock()
	l := f.log(id)
	size := int64(len(l.text))
	if l.line != nil {
		size = l.lines * 84
	}
	return web.LogInfo{Bytes: size, Lines: l.count(), Sealed: l.sealed}, err
}

func (f *fakeSource) LogLines(_ context.Context, id pipeline.AttemptID, from int64, n int) ([]web.LogLine, error) {
	unlock, err := f.lock()
	defer unlock()
	var out []web.LogLine
	l := f.log(id)
	for i := from; i < from+int64(n) && i <= l.count(); i++ {
		out = append(out, web.LogLine{N: i, Text: l.at(i)})
	}
	return out, err
}

func (f *fakeSource) LogSearch(_ context.Context, id pipeline.AttemptID, text string, limit int) (web.LogMatches, error) {
	unlock, err := f.lock()
	defer unlock()
	var m web.LogMatches
	l := f.log(id)
	for i := int64(1); i <= l.count(); i++ {
		if line := l.at(i); bytes.Contains(line, []byte(text)) {
			m.Total++
			if len(m.Lines) < limit {
				m.Lines = append(m.Lines, web.LogLine{N: i, Text: line})
			}
		}
	}
	return m, err
}

func (f *fakeSource) LogCopy(_ context.Context, id pipeline.AttemptID, off int64, w io.Writer) (int64, error) {
	unlock, err := f.lock()
	text := bytes.Clone(f.log(id).text)
	unlock()
	if err != nil {
		return 0, err
	}
	n, err := w.Write(text[min(off, int64(len(text))):])
	return int64(n), err
}

func (f *fakeSource) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}
