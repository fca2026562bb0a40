package shim_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// smallDisk puts a file system of that size on a directory.
func smallDisk(t *testing.T, dir, size string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestFullDiskCutsTheLogVisiblyAndKeepsTheResult(t *testing.T) {
	t.Parallel()
	k := newTask(t, `echo '{"output":{"name":"a","value":1}}' >> $MAESTRO_EVENTS
head -c 3000000 /dev/zero | tr '\0' x
rm filler
sleep 0.1; echo room again; exit 7`)
	smallDisk(t, k.dir, "1m")
	// The work directory is on the same disk, as it is in life.
	k.cfg.WorkDir = filepath.Join(k.dir, "work")
	k.cfg.Events = filepath.Join(k.cfg.WorkDir, "events")
	k.cfg.Env[2] = "MAESTRO_EVENTS=" + k.cfg.Events
	if err := os.Mkdir(k.cfg.WorkDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.cfg.WorkDir, "filler"), make([]byte, 300_000), 0o600); err != nil {
		t.Fatal(err)
	}
	r := k.start().result()
	wantOutcome(t, r, pipeline.Failure, "code 7")
	if r.LogLost < 2_000_000 || !strings.Contains(r.LogError, "no space left") {
		t.Errorf("lost %d bytes because of %q", r.LogLost, r.LogError)
	}
	log := k.log()
	if !strings.Contains(log, "bytes of output are missing here: ") || !strings.HasSuffix(log, "room again\n") {
		t.Errorf("log of %d bytes ends in %q", len(log), log[max(0, len(log)-200):])
	}
	if b, err := os.ReadFile(filepath.Join(k.dir, shim.OutputsFile)); err != nil || !strings.Contains(string(b), `"a"`) {
		t.Errorf("outputs = %q, %v", b, err)
	}
}

func TestFullDiskToTheEndStillTellsWhatIsMissing(t *testing.T) {
	t.Parallel()
	k := newTask(t, `head -c 3000000 /dev/zero | tr '\0' x; dd if=/dev/zero of="$0/more" bs=1k count=2000 2>/dev/null; exit 0`)
	k.cfg.Argv = append(k.cfg.Argv, k.dir)
	smallDisk(t, k.dir, "1m")
	r := k.start().result()
	wantOutcome(t, r, pipeline.Success, "")
	if log := k.log(); !strings.Contains(log, "bytes of output are missing here: ") || r.LogLost == 0 {
		t.Errorf("lost %d; log of %d bytes ends in %q", r.LogLost, len(log), log[max(0, len(log)-200):])
	}
}

func TestDiskThatIsFullBeforeTheStartStartsNothing(t *testing.T) {
	t.Parallel()
	k := newTask(t, "echo ran")
	smallDisk(t, k.dir, "64k")
	b := make([]byte, 1<<20)
	_ = os.WriteFile(filepath.Join(k.dir, "filler"), b, 0o600) // as much as there is room for
	k.start()
	<-k.handle.Done()
	if shim.Told(k.dir) {
		t.Error("it started")
	}
	if r, err := shim.ReadResult(k.dir); r != nil || err != nil {
		t.Errorf("result = %+v, %v", r, err)
	}
}
