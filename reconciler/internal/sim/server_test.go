package sim_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/fleet"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

const (
	repoName = "/srv/ops.git"
	mainRef  = pipeline.Ref("refs/heads/main")
)

// server is one life of the control plane, wired as its program does, but for the
// repository and the forge, which are the test's.
type server struct {
	dir     string
	db      *store.DB
	logs    *store.Logs
	runs    *loop.Runs
	commits *loop.Commits
	fleet   *fleet.Fleet
	http    *http.Server
	cancel  context.CancelFunc
	all     sync.WaitGroup
	pushed  chan struct{}

	mu   sync.Mutex
	errs []error
}

// startServer opens the record in dir and serves on ln.
func startServer(dir string, ln *listener, world *world, log *slog.Logger) (_ *server, err error) {
	s := &server{dir: dir, pushed: make(chan struct{}, 1)}
	ctx := context.Background()
	if s.db, err = store.Open(ctx, dir, log); err != nil {
		return nil, err
	}
	late := &lateFleet{}
	if s.logs, err = store.OpenLogs(ctx, dir, log, store.LogOptions{OnDurable: late.durable}); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	converger := forge.NewConverger(forge.Config{Forge: &world.forge, Register: s.db.Register(""), Log: log})
	s.runs = loop.New(loop.Config{
		DB: s.db, Logs: lengths{s.logs}, Fleet: late, Filler: noBlanks{}, Secrets: noBlanks{}, Law: func() (*pipeline.Policy, error) { return s.commits.Law() },
		Log: log, Default: mainRef, Repo: repoName, StatusesChanged: converger.Wake,
	})
	s.commits = loop.NewCommits(loop.CommitsConfig{
		DB: s.db, Repository: &world.repo, Filler: noBlanks{}, Runs: s.runs, Log: log, Name: repoName, Default: mainRef,
		StatusesChanged: converger.Wake,
	})
	s.fleet = fleet.New(fleet.Config{
		Server: s.db.ID(), Log: log, Registry: s.db, Events: s.runs, Logs: s.logs, Bundles: noBlanks{},
		Reached: func() (int64, pipeline.Seq) {
			w := s.db.Watermark()
			return w.Incarnation, w.Seq
		},
		Admit: s.admit,
	})
	late.fleet.Store(s.fleet)
	s.http = &http.Server{Handler: s.fleet.Handler(), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	ctx, s.cancel = context.WithCancel(ctx)
	// All end with ctx, but the last, which ends with Close.
	s.all.Go(func() { s.failed(s.runs.Run(ctx)) })
	s.all.Go(func() { s.failed(s.commits.Run(ctx)) })
	s.all.Go(func() { s.failed(converger.Run(ctx)) })
	s.all.Go(func() { s.poll(ctx, world, log) })
	s.all.Go(func() { _ = s.http.Serve(ln) })
	return s, nil
}

func (s *server) failed(err error) {
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.errs = append(s.errs, err)
	}
}

// admit hears how far an agent knows the record to have been. Nothing is ever put back
// here, so no agent may know more than the record.
func (s *server) admit(a pipeline.Agent, seen wire.Seen) string {
	known := store.Watermark{StoreID: seen.Server, Incarnation: seen.Incarnation, Seq: seen.Seq}
	r, err := s.db.Saw(context.Background(), known, "agent "+a.Name)
	s.failed(err)
	if r == nil {
		return ""
	}
	return r.Sentence()
}

// poll looks at the repository as sources does.
func (s *server) poll(ctx context.Context, world *world, log *slog.Logger) {
	_ = s.commits.Resume(ctx) // Observe does the same
	for {
		wait := 30 * time.Second
		if err := s.commits.Observe(ctx, world.repo.refs()); err != nil {
			log.Warn("repository not observed", "err", err)
			wait = time.Second
		}
		if err := s.db.Mark(); err != nil {
			s.failed(err)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-s.pushed:
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}

// stop ends everything. The network was cut before, so that nobody hears of what
// it still does, and the caller goes on with an image of how it was at the cut.
func (s *server) stop() error {
	s.cancel()
	s.mu.Lock()
	errs := s.errs
	s.mu.Unlock()
	errs = append(errs, s.fleet.Close(context.Background()))
	_ = s.http.Close()
	s.all.Wait()
	_ = s.logs.Close() // its disk may be full
	_ = s.db.Close()
	return errors.Join(errs...)
}

const watermark = "watermark.json"

// written is how much a server has written at one moment.
type written struct {
	mark []byte           // how far its record is said to be, nil for not yet
	logs map[string]int64 // how long its logs of writes are
}

// writtenIn reads first how far the record is said to be, which must never be further
// than it is.
func writtenIn(dir string) written {
	w := written{logs: map[string]int64{}}
	w.mark, _ = os.ReadFile(filepath.Join(dir, watermark)) // it need not be there
	for _, name := range []string{"maestro.db", "logs.db"} {
		if fi, err := os.Stat(filepath.Join(dir, name+"-wal")); err == nil {
			w.logs[name] = fi.Size()
		}
	}
	return w
}

// image copies the files as they were when so much was written: what a SIGKILL at that
// instant would leave, a moment ago. A reader keeps the logs of writes from being begun
// anew meanwhile.
func (s *server) image(then written) (dir string, err error) {
	to, err := os.MkdirTemp(filepath.Dir(s.dir), "server")
	if err != nil {
		return "", err
	}
	if then.mark != nil {
		if err := os.WriteFile(filepath.Join(to, watermark), then.mark, 0o600); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"maestro.db", "logs.db"} {
		if err := s.copyFile(name, to, then.logs[name]); err != nil {
			return "", fmt.Errorf("image of %s: %w", name, err)
		}
	}
	return to, nil
}

func (s *server) copyFile(name, to string, then int64) (err error) {
	db, err := openRaw(s.dir, name)
	if err != nil {
		return err
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var n int
	if err := tx.QueryRow(`SELECT count(*) FROM meta`).Scan(&n); err != nil {
		return err
	}
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(filepath.Join(s.dir, name+suffix))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		// SQLite brings a log of a thousand pages into the file: what is much shorter is
		// whole, and what came since is at its end.
		const short = 800 * 4096
		if suffix != "" && then < short {
			b = b[:min(int64(len(b)), then)]
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name+suffix), b, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func openRaw(dir, name string) (*sql.DB, error) {
	path := (&url.URL{Path: filepath.Join(dir, name)}).EscapedPath()
	db, err := sql.Open("sqlite3", "file:"+path+"?_busy_timeout=10000")
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}

// exec runs statements beside the server.
func execRaw(dir, name string, statements ...string) error {
	db, err := openRaw(dir, name)
	if err != nil {
		return err
	}
	defer db.Close()
	for _, q := range statements {
		if _, err := db.Exec(q); err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
	}
	return nil
}

// fill makes each write of the record and of the logs fail, or lets them go on.
func fill(dir string, full bool) error {
	record, logs := `DROP TRIGGER IF EXISTS full`, `DROP TRIGGER IF EXISTS full`
	if full {
		record = `CREATE TRIGGER IF NOT EXISTS full BEFORE INSERT ON changes BEGIN SELECT RAISE(ABORT, 'the disk is full'); END`
		logs = `CREATE TRIGGER IF NOT EXISTS full BEFORE INSERT ON chunks BEGIN SELECT RAISE(ABORT, 'the disk is full'); END`
	}
	return errors.Join(execRaw(dir, "maestro.db", record), execRaw(dir, "logs.db", logs))
}

// shift moves every time that the record has of what goes on. To a server that starts
// it looks as if the clock had been set meanwhile.
func shift(dir string, by time.Duration) error {
	ns := by.Nanoseconds()
	return execRaw(dir, "maestro.db",
		fmt.Sprintf(`UPDATE attempts SET offered_at = offered_at + %[1]d, started_at = started_at + %[1]d WHERE state IN ('offered', 'running')`, ns),
		fmt.Sprintf(`UPDATE tasks SET ready_at = ready_at + %[1]d, started_at = started_at + %[1]d, not_before = not_before + min(0, %[1]d) WHERE finished_at IS NULL`, ns),
		fmt.Sprintf(`UPDATE runs SET created_at = created_at + %[1]d, started_at = started_at + %[1]d WHERE finished_at IS NULL`, ns),
		fmt.Sprintf(`UPDATE agents SET seen_at = seen_at + %[1]d`, ns),
	)
}

type lateFleet struct{ fleet atomic.Pointer[fleet.Fleet] }

func (l *lateFleet) Send(id pipeline.AgentID, m wire.Message) bool {
	f := l.fleet.Load()
	return f != nil && f.Send(id, m)
}

func (l *lateFleet) Drop(id pipeline.AgentID, reason string) {
	if f := l.fleet.Load(); f != nil {
		f.Drop(id, reason)
	}
}

func (l *lateFleet) durable(id pipeline.AttemptID, length int64, gap bool) {
	if f := l.fleet.Load(); f != nil {
		f.LogDurable(id, length, gap)
	}
}

type lengths struct{ *store.Logs }

func (l lengths) Received(ctx context.Context, id pipeline.AttemptID) (int64, error) {
	n, err := l.Length(ctx, id)
	return n.Received, err
}

// noBlanks is for what the compositions here do not use.
type noBlanks struct{}

func (noBlanks) Fill(context.Context, *pipeline.Composition, *pipeline.Run, pipeline.Blank, map[pipeline.TaskName]json.RawMessage) (json.RawMessage, error) {
	return nil, fault.New(fault.Invalid, "nothing is left blank here")
}

func (noBlanks) Secret(pipeline.SecretName) (string, error) {
	return "", fault.New(fault.Invalid, "there are no secrets here")
}

func (noBlanks) Plugin(context.Context, pipeline.Digest, io.Writer) error {
	return fault.New(fault.NotFound, "no plugin is fetched here")
}

func (noBlanks) Archive(context.Context, string) (io.ReadCloser, error) {
	return nil, fault.New(fault.NotFound, "no archive is fetched here")
}
