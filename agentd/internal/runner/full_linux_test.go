package runner_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestTaskThatFillsTheDiskIsReportedWithItsOutputs(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if err := syscall.Mount("tmpfs", h.dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		h.close()
		h.killAll()
		if err := syscall.Unmount(h.dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	h.open().connect()
	// The disk fills up once the first line is safe.
	first := filepath.Join(t.TempDir(), "first")
	fill := `echo '{"output":{"name":"n","value":1}}' >> $MAESTRO_EVENTS; echo begun; until [ -e ` + first + ` ]; do sleep 0.01; done; dd if=/dev/zero of=big bs=1k count=9000 2>/dev/null; echo 'the disk is full'; `
	o := h.start(job(fill + `head -c 200000 /dev/zero | tr '\0' x; exit 0`))
	h.untilLog(o.Attempt, "begun\n")
	if err := os.WriteFile(first, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := h.result(o)
	want(t, r, pipeline.Success, "bytes of its log could not be kept: no space left")
	if string(r.Outputs) != `{"n":1}` {
		t.Errorf("outputs = %s", r.Outputs)
	}
	if log := h.log(o.Attempt); !strings.HasPrefix(log, "begun\n") || !strings.Contains(log, "are missing here") {
		t.Errorf("log = %q", log)
	}
	h.eventually("it is acknowledged", func() bool { return len(h.r.Held(0)) == 0 })
}
