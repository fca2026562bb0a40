package facts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// programTime bounds a program that tells facts; Facter needs three seconds on
	// a busy machine.
	programTime = 10 * time.Second
	// drainTime is how long a descendant may keep the output open after the program
	// has ended.
	drainTime = time.Second
	// maxFacter bounds Facter's output, which tells of every processor and mount.
	maxFacter = 1 << 20
)

var (
	errTooSlow  = fmt.Errorf("took longer than %v", programTime)
	errTooLarge = errors.New("printed too much")
)

// run returns what a program prints, at most most bytes. On an error that is only
// its exit status the output is returned as well.
func run(ctx context.Context, argv []string, most int) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ctx, stop := context.WithTimeoutCause(ctx, programTime, errTooSlow)
	defer stop()

	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = filepath.Dir(argv[0])
	cmd.Env = environment()
	out := &capped{most: most, full: func() { cancel(errTooLarge) }}
	said := &capped{most: 1 << 10, full: func() {}}
	cmd.Stdout, cmd.Stderr = out, said
	cmd.WaitDelay = drainTime
	ownGroup(cmd)
	err := cmd.Run()
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	if err != nil {
		return out.kept, fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(string(said.kept)), " "))
	}
	return out.kept, nil
}

// capped keeps the first bytes, and calls full when there are more. It does not
// embed a bytes.Buffer, whose ReadFrom would take everything.
type capped struct {
	kept []byte
	most int
	full func()
}

func (c *capped) Write(p []byte) (int, error) {
	keep := min(len(p), c.most-len(c.kept))
	c.kept = append(c.kept, p[:keep]...)
	if keep < len(p) {
		c.full()
	}
	return len(p), nil // the rest is read and forgotten
}

// environment is what a program that tells facts gets. The agent's own variables
// may hold its join token.
func environment() []string {
	var out []string
	for _, name := range []string{
		"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR",
		"SystemRoot", "SystemDrive", "USERPROFILE", "TEMP", "TMP", "PATHEXT", "ComSpec", "ProgramData", "ProgramFiles",
	} {
		if v, ok := os.LookupEnv(name); ok {
			out = append(out, name+"="+v)
		}
	}
	return out
}

// Parts of Facter's answer that differ from one minute to the next.
var changing = []string{
	"system_uptime", "uptime", "uptime_days", "uptime_hours", "uptime_seconds", "load_averages",
	"memory", "memoryfree", "memoryfree_mb", "swapfree", "swapfree_mb", "mountpoints",
}

// runFacter returns what Facter says without what changes all the time, or nil.
func runFacter(ctx context.Context, log *slog.Logger) map[string]any {
	path, err := exec.LookPath("facter")
	if err != nil {
		return nil
	}
	raw, runErr := run(ctx, []string{path, "--json"}, maxFacter)
	if ctx.Err() != nil {
		return nil // we stop; it is not Facter's fault
	}
	// Some versions tell their facts and then exit with 1 over a single one.
	f, err := parseJSON(raw)
	if err != nil || len(f) == 0 {
		if runErr != nil {
			err = runErr
		}
		log.WarnContext(ctx, "facter is installed and does not work", slog.String("path", path), slog.Any("err", err))
		return nil
	}
	for _, name := range changing {
		delete(f, name)
	}
	if cpus, ok := f["processors"].(map[string]any); ok {
		delete(cpus, "speed")
	}
	return f
}
