// Package shim is the process between agentd and a task. It owns the task's
// process, log and result, and outlives agentd: a task goes on while agentd is
// restarted, upgraded or killed, and whoever comes after reads the files.
//
// agentd starts the shim in a session of its own, writes a Config to its standard
// input and closes it (see Spawn). A shim that does not get the whole of its
// Config ends without having started anything, so an agentd that dies half-way
// leaves nothing behind. In Config.Dir the shim keeps:
//
//	pid      its own identity; there before the task starts
//	log      standard output and standard error, masked before they reach the disk
//	events   what the task reported so far, for live display; may have gaps
//	outputs  what the task reported, complete; there before the result
//	result   how it ended; there when everything else is, and only once
//
// and reads, at least every tick:
//
//	lease    how long the task may go on without news, see WriteLease
//	cancel   why the task shall stop, see Handle.Cancel
//
// The package is not for deciding what an ending means: the runner does that. It
// starts often, so its imports stay light and it does nothing before it is asked.
package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/redact"
)

// Names of the files in Config.Dir.
const (
	PIDFile     = "pid"
	LogFile     = "log"
	EventsFile  = "events"
	OutputsFile = "outputs"
	ResultFile  = "result"
	LeaseFile   = "lease"
	CancelFile  = "cancel"
	reserveFile = "reserve"
)

const (
	// DefaultGrace is the time between TERM and KILL.
	DefaultGrace = 10 * time.Second
	// killing bounds what comes after the grace. Both together stay below the 12 s
	// that are promised.
	killing = 1500 * time.Millisecond
	// draining is what children of a task that ended by itself get to end too,
	// such as the "tee" at the end of a pipe.
	draining = 200 * time.Millisecond
	// tick bounds how late a cancelled lease, a cancel file or an event is seen.
	tick = 200 * time.Millisecond
	// MaxLog is the default cap on a log.
	MaxLog = 1 << 30
	// MaxEvents bounds what a task reports.
	MaxEvents = 1 << 20
	// mostConfig bounds the Config: fields and previous outputs are bounded far below.
	mostConfig = 16 << 20
	// mostReason keeps a result within the space reserved for it.
	mostReason = 4 << 10
)

// Config is what a shim has to do. It holds secret values, so it is never
// written to a disk.
type Config struct {
	Attempt pipeline.AttemptID `json:"attempt"`
	// Dir is the attempt's directory; it exists, and the task does not know it.
	Dir string `json:"dir"`
	// Argv: a first element with a slash is relative to PluginDir, any other is
	// looked up in the PATH of Env.
	Argv      []string `json:"argv"`
	PluginDir string   `json:"plugin_dir"`
	WorkDir   string   `json:"work_dir"`
	// Env is the whole environment.
	Env []string `json:"env"`
	// Input is written to the task's standard input, which is then closed.
	Input json.RawMessage `json:"input"`
	// Events is the file that the task may append to, outside Dir.
	Events  string   `json:"events"`
	Secrets []Secret `json:"secrets,omitempty"`
	// Timeout of the task; 0 is none.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Grace is DefaultGrace when 0.
	Grace time.Duration `json:"grace,omitempty"`
	// Lease is the first deadline, on the clock of BootNow. Once tasks go on after it.
	Lease time.Duration `json:"lease"`
	Once  bool          `json:"once,omitempty"`
	// LogLimit is MaxLog when 0.
	LogLimit int64 `json:"log_limit,omitempty"`
}

// Secret is a value to mask in the log and in what the task reports.
type Secret struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// String hides the value.
func (s Secret) String() string { return "***" + s.Name + "***" }

// GoString hides the value.
func (s Secret) GoString() string { return s.String() }

// Result is how a task ended.
type Result struct {
	// Outcome is success, failure, timeout, cancelled or error.
	Outcome pipeline.State `json:"outcome"`
	// Reason is a sentence; "" for a success.
	Reason string `json:"reason,omitempty"`
	// Exit is the program's exit code; nil when it did not exit by itself or did not start.
	Exit *int `json:"exit,omitempty"`
	// Lost: stopped because the control plane was silent for too long.
	Lost     bool  `json:"lost,omitempty"`
	LogBytes int64 `json:"log_bytes"`
	// LogLost counts bytes of output that could not be kept, LogError says why.
	LogLost  int64  `json:"log_lost,omitempty"`
	LogError string `json:"log_error,omitempty"`
	// EventsError says why what the task reported could not be read.
	EventsError string    `json:"events_error,omitempty"`
	StartedAt   time.Time `json:"started_at,omitzero"`
	EndedAt     time.Time `json:"ended_at"`
}

// Main is the shim's program: it reads a Config from in, runs the task to its end
// and returns the exit code of the process. What it has to say goes to stderr;
// whoever started it keeps that.
func Main(in io.Reader, stderr io.Writer) int {
	cfg, err := readConfig(in)
	if err == nil {
		err = run(cfg)
	}
	if err != nil {
		fmt.Fprintf(stderr, "shim: %v\n", err)
		return 1
	}
	return 0
}

func readConfig(in io.Reader) (Config, error) {
	var cfg Config
	b, err := io.ReadAll(io.LimitReader(in, mostConfig+1))
	if err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if len(b) > mostConfig {
		return cfg, fmt.Errorf("read configuration: more than %d bytes", mostConfig)
	}
	// Half a configuration is not valid JSON, so nothing starts when agentd died
	// while it wrote.
	if err := json.Unmarshal(b, &cfg); err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if !filepath.IsAbs(cfg.Dir) || len(cfg.Argv) == 0 || cfg.Argv[0] == "" {
		return cfg, errors.New("read configuration: no directory or no program")
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.LogLimit == 0 {
		cfg.LogLimit = MaxLog
	}
	return cfg, nil
}

// run does all the work. An error means that the task was not started and no
// result written.
func run(cfg Config) error {
	log, err := os.OpenFile(filepath.Join(cfg.Dir, LogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	result, err := reserve(filepath.Join(cfg.Dir, ResultFile+".tmp"), 2*mostReason+1024)
	if err != nil {
		return fmt.Errorf("reserve space for the result: %w", err)
	}
	defer result.Close()
	spare, err := reserve(filepath.Join(cfg.Dir, reserveFile), 4096)
	if err != nil {
		return fmt.Errorf("reserve space for the end of the log: %w", err)
	}
	spare.Close()
	harden()
	s := newSupervisor(cfg, log)
	// A signal before this ends the shim, and without a pid file it is known that
	// nothing had started.
	stopSignals := listen(s.stops)
	defer stopSignals()
	if err := writePID(cfg.Dir); err != nil {
		return err
	}
	r := s.supervise()
	// The log is made safe before the result that tells its length.
	if err := log.Sync(); err != nil && r.LogError == "" {
		r.LogError = err.Error()
	}
	return writeResult(cfg.Dir, result, r)
}

// reserve returns a file with n bytes of real space, so that what is written into
// it later fits on a full disk.
func reserve(path string, n int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	// Spaces, because JSON may end in them: the file need never be shortened.
	if _, err := f.Write([]byte(strings.Repeat(" ", n))); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func writeResult(dir string, f *os.File, r Result) error {
	if len(r.Reason) > mostReason {
		r.Reason = strings.ToValidUTF8(r.Reason[:mostReason], "") + "…"
	}
	b, err := json.Marshal(r)
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, ResultFile))
	}
	if err == nil {
		err = durable.SyncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// ReadResult returns the result in an attempt's directory, nil when there is none yet.
func ReadResult(dir string) (*Result, error) {
	b, err := os.ReadFile(filepath.Join(dir, ResultFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	var r Result
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	return &r, nil
}

// writePID tells who the shim is, and that from here on the task may have started.
func writePID(dir string) error {
	p, err := Identify(os.Getpid())
	if err != nil {
		return err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	// Not fsynced: it is believed only within the same boot of the machine.
	path := filepath.Join(dir, PIDFile)
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return fmt.Errorf("write pid: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("write pid: %w", err)
	}
	return nil
}

func (c *Config) masks() []redact.Secret {
	all := make([]redact.Secret, len(c.Secrets))
	for i, s := range c.Secrets {
		all[i] = redact.Secret{Name: s.Name, Value: s.Value}
	}
	return all
}
