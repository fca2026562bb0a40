package shim_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestBinaryOutputIsKeptAsItIs(t *testing.T) {
	t.Parallel()
	k := newTask(t, `i=0; while [ $i -lt 256 ]; do printf "\\$(printf %03o $i)"; i=$((i+1)); done`)
	k.start().result()
	want := make([]byte, 256)
	for i := range want {
		want[i] = byte(i)
	}
	if got := k.log(); got != string(want) {
		t.Errorf("log = %q", got)
	}
}

func TestLineOfAHundredMegabytesIsKept(t *testing.T) {
	t.Parallel()
	k := newTask(t, `head -c 100000000 /dev/zero | tr '\0' x`)
	k.start()
	<-k.handle.Done()
	r, err := shim.ReadResult(k.dir)
	if err != nil || r == nil || r.Outcome != pipeline.Success || r.LogBytes != 100_000_000 {
		t.Fatalf("result = %+v, %v", r, err)
	}
	if fi, err := os.Stat(filepath.Join(k.dir, shim.LogFile)); err != nil || fi.Size() != r.LogBytes {
		t.Errorf("log is %v, %v", fi.Size(), err)
	}
}

func TestLogOverItsLimitIsCutVisiblyAndTheTaskGoesOn(t *testing.T) {
	t.Parallel()
	k := newTask(t, `head -c 300000 /dev/zero | tr '\0' x; echo '{"output":{"name":"a","value":1}}' >> $MAESTRO_EVENTS`)
	k.cfg.LogLimit = 100_000
	r := k.start().result()
	wantOutcome(t, r, pipeline.Success, "")
	if log := k.log(); log[99_999] != 'x' || log[100_000] != '\n' || !strings.Contains(log[100_000:], "what follows is not kept") || len(log) > 100_200 {
		t.Errorf("log of %d bytes ends in %q", len(log), log[min(len(log), 99_990):])
	}
	if r.LogLost != 200_000 {
		t.Errorf("lost = %d, want 200000", r.LogLost)
	}
	if b, err := os.ReadFile(filepath.Join(k.dir, shim.OutputsFile)); err != nil || len(b) == 0 {
		t.Errorf("outputs = %q, %v", b, err)
	}
}

func TestSecretsDoNotReachTheDisk(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-shim-0123456789"
	k := newTask(t, `
printf "%s" "$FIELD_KEY" | cut -c1-10 | tr -d '\n'; sleep 0.1; printf "%s" "$FIELD_KEY" | cut -c11-
printf "$FIELD_KEY" | base64
echo "{\"output\":{\"name\":\"leak\",\"value\":\"$FIELD_KEY\"}}" >> $MAESTRO_EVENTS
sleep 0.5; cat > "seen"`)
	k.cfg.Secrets = []shim.Secret{{Name: "key", Value: canary}}
	k.cfg.Env = append(k.cfg.Env, "FIELD_KEY="+canary)
	k.cfg.Input = json.RawMessage(`{"key":"` + canary + `"}`)
	wantOutcome(t, k.start().result(), pipeline.Success, "")
	if b, err := os.ReadFile(filepath.Join(k.work, "seen")); err != nil || !bytes.Contains(b, []byte(canary)) {
		t.Errorf("the task did not get its secret: %q, %v", b, err)
	}
	err := filepath.WalkDir(k.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("CANARY")) || bytes.Contains(b, []byte("Q0FOQVJZ")) {
			t.Errorf("%s holds the secret: %q", d.Name(), b)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, name := range []string{shim.LogFile, shim.EventsFile, shim.OutputsFile} {
		if b, err := os.ReadFile(filepath.Join(k.dir, name)); err != nil || !bytes.Contains(b, []byte("***key***")) {
			t.Errorf("%s = %q, %v; want the secret's name", name, b, err)
		}
	}
}

func TestEventsFileThatIsNoFileIsReportedAndHangsNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ script, want string }{
		"symlink":      {`ln -s /etc/passwd $MAESTRO_EVENTS`, "a symbolic link"},
		"fifo":         {`mkfifo $MAESTRO_EVENTS`, "a FIFO"},
		"directory":    {`mkdir $MAESTRO_EVENTS`, "a directory"},
		"device":       {`ln -s /dev/zero $MAESTRO_EVENTS`, "a symbolic link"},
		"too large":    {`head -c 1100000 /dev/zero > $MAESTRO_EVENTS`, "most is 1048576"},
		"sparse":       {`truncate -s 1T $MAESTRO_EVENTS`, "most is 1048576"},
		"none at all":  {`:`, ""},
		"link of it":   {`ln -s nowhere $MAESTRO_EVENTS; echo x`, "a symbolic link"},
		"not readable": {`echo '{}' > $MAESTRO_EVENTS`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newTask(t, c.script+"; sleep 0.3")
			r := k.start().result()
			wantOutcome(t, r, pipeline.Success, "")
			if !strings.Contains(r.EventsError, c.want) || (c.want == "" && r.EventsError != "") {
				t.Errorf("events error = %q, want %q", r.EventsError, c.want)
			}
			if b, err := os.ReadFile(filepath.Join(k.dir, shim.OutputsFile)); err == nil && c.want != "" {
				t.Errorf("outputs = %.40q", b)
			}
		})
	}
}

func TestOverwrittenEventsFileIsReadAsItIsInTheEnd(t *testing.T) {
	t.Parallel()
	k := newTask(t, `echo '{"text":"first, and a long one"}' > $MAESTRO_EVENTS; sleep 0.5; echo '{"text":"second"}' > $MAESTRO_EVENTS`)
	k.start().result()
	if b, err := os.ReadFile(filepath.Join(k.dir, shim.OutputsFile)); err != nil || string(b) != `{"text":"second"}`+"\n" {
		t.Errorf("outputs = %q, %v", b, err)
	}
}
