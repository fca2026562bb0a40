package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// mostChanges are read in one look; a client further behind than that is told
	// that everything changed.
	mostChanges = 1000
	// mostTopics in one message; beyond it the message is "all".
	mostTopics = 100
	// mostLogs that one stream follows: about as many as a person has tabs.
	mostLogs = 16
)

// changedEvent tells that pages about these topics are out of date.
type changedEvent struct {
	Seq    pipeline.Seq `json:"seq"`
	Topics []string     `json:"topics"`
}

// logEvent tells that a log has grown, or is complete.
type logEvent struct {
	Attempt pipeline.AttemptID `json:"attempt"`
	LogInfo
}

// topicsOf says which pages a change concerns.
func topicsOf(c pipeline.Change) []string {
	switch c.Kind {
	case pipeline.ChangeRunCreated:
		return []string{topicRuns, topicRun(c.Run), topicBoard}
	case pipeline.ChangeRun:
		return []string{topicRun(c.Run), topicBoard}
	case pipeline.ChangeTask:
		return []string{topicRun(c.Run), topicTasks, topicBoard}
	case pipeline.ChangeAgent:
		return []string{topicAgents, topicBoard}
	case pipeline.ChangeCommit:
		return []string{topicCommits, topicBoard}
	case pipeline.ChangeProposal:
		return []string{topicChanges, topicBoard}
	case pipeline.ChangeRequest:
		return []string{topicBoard}
	case pipeline.ChangeRepository:
		return []string{topicBoard}
	}
	return []string{topicAll}
}

// events is the stream that tells browsers what to fetch again. It never carries
// what changed, only that it did, so a message lost or repeated does no harm.
func (s *server) events(w http.ResponseWriter, r *http.Request) error {
	logs, err := logsToFollow(r)
	if err != nil {
		return err
	}
	seq, resumed, err := s.startOf(r)
	if err != nil {
		return err
	}
	st, release, err := s.openStream(w)
	if err != nil {
		return err
	}
	defer release()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	f := &follower{src: s.src, out: st, seq: seq, logs: map[pipeline.AttemptID]LogInfo{}, watch: logs}
	if err := f.hello(resumed); err != nil {
		return s.broken(r, err)
	}
	signal, stop := s.src.Watch()
	defer stop()
	grown, stopLogs := watchAll(r.Context(), s.src, logs)
	defer stopLogs()
	noted, stopNotes := s.src.WatchNotes()
	defer stopNotes()
	_, f.noted = s.src.Noted(0)
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	isBeat := false
	for {
		if err := f.look(r.Context(), isBeat); err != nil {
			return s.broken(r, err)
		}
		var ok bool
		if !rest(r.Context()) {
			return nil
		}
		if isBeat, ok = wait(r.Context(), beat, signal, grown, noted); !ok {
			return nil
		}
	}
}

// startOf returns the change after which the stream begins: that which a browser
// saw last, when it can be resumed from, else the newest.
func (s *server) startOf(r *http.Request) (seq pipeline.Seq, resumed bool, err error) {
	newest, err := s.src.LastSeq(r.Context())
	if err != nil {
		return 0, false, err
	}
	text := r.Header.Get("Last-Event-ID")
	if text == "" {
		return newest, false, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	// A number from the future is of another record, or of one before a restore.
	if err != nil || n < 0 || pipeline.Seq(n) > newest || newest-pipeline.Seq(n) > mostChanges {
		return newest, false, nil
	}
	return pipeline.Seq(n), true, nil
}

func logsToFollow(r *http.Request) ([]pipeline.AttemptID, error) {
	text := r.URL.Query().Get("logs")
	if text == "" {
		return nil, nil
	}
	var ids []pipeline.AttemptID
	for id := range strings.SplitSeq(text, ",") {
		if !idRE.MatchString(id) {
			return nil, fault.New(fault.Invalid, "logs: %.80q is not an attempt", id)
		}
		if !slices.Contains(ids, pipeline.AttemptID(id)) {
			ids = append(ids, pipeline.AttemptID(id))
		}
	}
	if len(ids) > mostLogs {
		return nil, fault.New(fault.Invalid, "logs: at most %d can be followed at once, %d were asked for", mostLogs, len(ids))
	}
	return ids, nil
}

// watchAll merges the signals of several logs. stop ends and awaits the
// goroutines that do it.
func watchAll(ctx context.Context, src Source, ids []pipeline.AttemptID) (merged <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan struct{}, 1)
	var all sync.WaitGroup
	for _, id := range ids {
		signal, stopOne := src.WatchLog(id)
		all.Go(func() {
			defer stopOne()
			for {
				select {
				case <-ctx.Done():
					return
				case <-signal:
				}
				select {
				case out <- struct{}{}:
				default:
				}
			}
		})
	}
	return out, func() { cancel(); all.Wait() }
}

// follower is one event stream; only its request's goroutine touches it.
type follower struct {
	src   Source
	out   *stream
	seq   pipeline.Seq
	noted int64 // the newest note that was told
	watch []pipeline.AttemptID
	logs  map[pipeline.AttemptID]LogInfo // as last told
}

func (f *follower) hello(resumed bool) error {
	_, err := fmt.Fprintf(f.out, "retry: 2000\nid: %d\nevent: hello\ndata: {\"seq\":%d,\"resumed\":%t}\n\n", f.seq, f.seq, resumed)
	if err != nil {
		return err
	}
	return f.out.flush()
}

// look sends what is new since the last look, or a comment when nothing is and
// the client should hear that we are here.
func (f *follower) look(ctx context.Context, isBeat bool) error {
	told, err := f.lookAtRecord(ctx)
	if err != nil {
		return err
	}
	for _, id := range f.watch {
		info, err := f.src.LogInfo(ctx, id)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if before, seen := f.logs[id]; seen && before == info {
			continue
		}
		f.logs[id] = info
		told = true
		if err := f.send("log", 0, logEvent{id, info}); err != nil {
			return err
		}
	}
	if isBeat && !told {
		if _, err := f.out.Write([]byte(": here\n\n")); err != nil {
			return err
		}
	}
	return f.out.flush()
}

func (f *follower) lookAtRecord(ctx context.Context) (told bool, err error) {
	changes, err := f.src.Changes(ctx, f.seq, mostChanges)
	if err != nil {
		return false, err
	}
	runs, noted := f.src.Noted(f.noted)
	f.noted = noted
	if len(changes) == 0 && len(runs) == 0 {
		return false, nil
	}
	e := changedEvent{Seq: f.seq}
	if len(changes) > 0 {
		e.Seq = changes[len(changes)-1].Seq
	}
	if len(changes) == mostChanges {
		if e.Seq, err = f.src.LastSeq(ctx); err != nil {
			return false, err
		}
		e.Topics = []string{topicAll}
	}
	seen := map[string]bool{}
	for _, id := range runs {
		seen[topicRun(id)] = true
		e.Topics = append(e.Topics, topicRun(id))
	}
	for _, c := range changes {
		for _, t := range topicsOf(c) {
			if !seen[t] {
				seen[t] = true
				e.Topics = append(e.Topics, t)
			}
		}
	}
	if len(e.Topics) > mostTopics || seen[topicAll] {
		e.Topics = []string{topicAll}
	}
	f.seq = e.Seq
	return true, f.send("changed", e.Seq, e)
}

func (f *follower) send(event string, id pipeline.Seq, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	line := ""
	if id > 0 {
		line = "id: " + i64toa(int64(id)) + "\n"
	}
	_, err = fmt.Fprintf(f.out, "%sevent: %s\ndata: %s\n\n", line, event, b)
	return err
}
