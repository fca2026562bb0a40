package facts_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/agentd/internal/facts"
)

// logged is a log that a test reads.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newLog() (*slog.Logger, *logged) {
	l := &logged{}
	return slog.New(slog.NewTextHandler(l, nil)), l
}

// folder makes a facts.d with the files; scripts are executable.
func folder(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func collect(t testing.TB, dir string) (map[string]any, string) {
	t.Helper()
	log, said := newLog()
	raw := facts.Collect(t.Context(), dir, log)
	var f map[string]any
	if err := json.Unmarshal(raw, &f); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return f, said.String()
}

func TestBuiltInFactsDescribeThisMachine(t *testing.T) {
	t.Parallel()
	f, _ := collect(t, filepath.Join(t.TempDir(), "missing"))
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]any{"architecture": runtime.GOARCH, "hostname": host, "cpus.count": float64(runtime.NumCPU())} {
		if got := at(f, path); got != want {
			t.Errorf("%s = %v, want %v", path, got, want)
		}
	}
	for _, path := range []string{"kernel", "kernelrelease", "os.name", "os.family", "os.release", "network.interfaces", "virtual", "tools.sh", "tools.git"} {
		if v := at(f, path); v == nil || v == "" {
			t.Errorf("%s is missing", path)
		}
	}
	for _, path := range []string{"memory.total_mb", "memory.available_mb", "disk.total_mb", "disk.free_mb"} {
		if n, ok := at(f, path).(float64); !ok || n <= 0 {
			t.Errorf("%s = %v, want a positive number", path, at(f, path))
		}
	}
	if runtime.GOOS == "linux" && f["kernel"] != "Linux" {
		t.Errorf("kernel = %v, want Linux as Facter says", f["kernel"])
	}
}

func at(f map[string]any, path string) any {
	var v any = f
	for name := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

func TestFactsStayTheSame(t *testing.T) {
	t.Parallel()
	dir := folder(t, map[string]string{"a.txt": "x=1"})
	one, _ := collect(t, dir)
	two, _ := collect(t, dir)
	for _, f := range []map[string]any{one, two} {
		delete(f, "memory") // rounded, but a test beside this one may fill it
		delete(f, "disk")
	}
	if d := cmp.Diff(one, two); d != "" {
		t.Error(d)
	}
}

func TestExternalFactsOfEveryKind(t *testing.T) {
	t.Parallel()
	f, said := collect(t, folder(t, map[string]string{
		"a.txt":       "# a comment\nrole = build\nzone=a=b\n\n",
		"b.json":      `{"gpu":{"model":"A100","count":4},"big":9007199254740993}`,
		"c.yaml":      "rack: {row: 3}\nlabels: [x, y]\nsince: 2012-06-01\n1: one\n",
		"d.yml":       "# nothing\n",
		"e.sh":        "#!/bin/sh\necho lines=yes\n",
		"f":           "#!/bin/sh\necho '{\"object\": {\"a\": true}}'\n",
		"backup.txt~": "never=1",
		".hidden.txt": "never=1",
	}))
	for path, want := range map[string]any{
		"role": "build", "zone": "a=b", "gpu.model": "A100", "gpu.count": 4.0, "rack.row": 3.0, "1": "one", "lines": "yes", "object.a": true, "never": nil,
	} {
		if got := at(f, path); got != want {
			t.Errorf("%s = %v, want %v", path, got, want)
		}
	}
	if d := cmp.Diff(f["labels"], []any{"x", "y"}); d != "" {
		t.Error(d)
	}
	if !strings.HasPrefix(f["since"].(string), "2012-06-01") {
		t.Errorf("since = %v", f["since"])
	}
	if said != "" {
		t.Errorf("complaints: %s", said)
	}
	raw := facts.Collect(t.Context(), folder(t, map[string]string{"n.json": `{"big":9007199254740993}`}), slog.New(slog.DiscardHandler))
	if !bytes.Contains(raw, []byte(`"big":9007199254740993`)) {
		t.Error("a large number was changed")
	}
}

func TestLaterFilesWinFactByFact(t *testing.T) {
	t.Parallel()
	f, _ := collect(t, folder(t, map[string]string{
		"10-site.json": `{"site":{"name":"a","floor":1},"virtual":"vbox"}`,
		"20-host.yaml": "site: {name: b}\nhostname: known-as\n",
	}))
	if got, want := f["site"], map[string]any{"name": "b", "floor": 1.0}; !cmp.Equal(got, any(want)) {
		t.Errorf("site = %v, want %v", got, want)
	}
	if f["virtual"] != "vbox" || f["hostname"] != "known-as" {
		t.Errorf("external facts do not override built-in ones: %v, %v", f["virtual"], f["hostname"])
	}
}

func TestBrokenFactFileIsNamedAndDoesNotStopTheRest(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"bad.json": `{"a":`, "list.json": `[1]`, "two.json": `{} {}`, "bad.yaml": "a: [", "scalar.yaml": "just text", "bad.txt": "no equals sign",
		"big.txt": "a=" + strings.Repeat("x", 70<<10), "exit.sh": "#!/bin/sh\necho a=1\necho the reason >&2\nexit 3\n", "noexec.sh": "echo a=1",
		"noise.sh": "#!/bin/sh\necho hello world\n", "missing-interpreter.sh": "#!/no/such/program\n",
		"flood.sh": "#!/bin/sh\nexec yes a=1\n", "zz-good.txt": "good=1",
		"bomb.yaml": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
	}
	dir := folder(t, files)
	if err := os.Mkdir(filepath.Join(dir, "folder.json"), 0o755); err != nil {
		t.Fatal(err)
	}
	fifo(t, filepath.Join(dir, "fifo.txt"))
	files["folder.json"], files["fifo.txt"] = "", ""
	f, said := collect(t, dir)
	if f["good"] != "1" || f["kernel"] == nil {
		t.Errorf("good = %v: the rest was stopped", f["good"])
	}
	for name := range files {
		if name != "zz-good.txt" && !strings.Contains(said, filepath.Join(dir, name)) {
			t.Errorf("the log does not name %s", name)
		}
	}
	if !strings.Contains(said, "the reason") {
		t.Error("what the program said is not in the log")
	}
	if f["a"] != nil {
		t.Errorf("a = %v came out of a broken file", f["a"])
	}
}

func TestProgramsDoNotSeeTheAgentsVariables(t *testing.T) {
	t.Setenv("AGENTD_TOKEN", "CANARY-join-token")
	f, said := collect(t, folder(t, map[string]string{"env.sh": "#!/bin/sh\nenv\n"}))
	raw, err := json.Marshal(f)
	if err != nil || strings.Contains(string(raw)+said, "CANARY") {
		t.Errorf("a fact program saw the join token")
	}
	if f["PATH"] == nil {
		t.Error("a fact program has no PATH")
	}
}

func TestHangingProgramIsGivenUp(t *testing.T) {
	t.Parallel()
	// The descendant keeps the output open, ignores TERM, and is not waited for.
	dir := folder(t, map[string]string{"slow.sh": "#!/bin/sh\ntrap '' TERM\nsleep 1000 &\nsleep 1000\n", "zz.txt": "good=1"})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	log, said := newLog()
	began := time.Now()
	raw := facts.Collect(ctx, dir, log)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if !strings.Contains(said.String(), "slow.sh") || !bytes.Contains(raw, []byte(`"good":"1"`)) {
		t.Errorf("log %s, facts %.200s", said, raw)
	}
}

func TestLimitsDropAndSaySo(t *testing.T) {
	t.Parallel()
	many := map[string]any{}
	for i := range 600 {
		many["k"+strings.Repeat("0", i%5)+string(rune('a'+i%26))+strings.Repeat("z", i/26)] = i
	}
	deep := "1"
	for range 20 {
		deep = `{"d":` + deep + `}`
	}
	list, err := json.Marshal(many)
	if err != nil {
		t.Fatal(err)
	}
	for what, file := range map[string]string{
		"long value":     `{"long":"` + strings.Repeat("x", 1025) + `"}`,
		"many":           `{"many":` + string(list) + `}`,
		"deep":           `{"deep":` + deep + `}`,
		"trusted":        `{"trusted":{"pool":"prod"}}`,
		"long name":      `{"` + strings.Repeat("n", 200) + `":1}`,
		"control in key": `{"a\u0007b":1}`,
	} {
		f, said := collect(t, folder(t, map[string]string{"x.json": file}))
		if !strings.Contains(said, "fact dropped") {
			t.Errorf("%s: nothing in the log", what)
		}
		if f["trusted"] != nil || f["long"] != nil || f["kernel"] == nil {
			t.Errorf("%s: wrong facts left", what)
		}
		if lines := strings.Count(said, "\n"); lines > 12 {
			t.Errorf("%s: %d log lines", what, lines)
		}
	}
	files := map[string]string{}
	for _, n := range []string{"a", "b", "c", "d"} {
		var b strings.Builder
		for i := range 40 {
			b.WriteString(n + strings.Repeat("i", i) + "=" + strings.Repeat(n, 900) + "\n")
		}
		files[n+".txt"] = b.String()
	}
	log, said := newLog()
	if raw := facts.Collect(t.Context(), folder(t, files), log); len(raw) > 64<<10 {
		t.Errorf("facts have %d bytes", len(raw))
	} else if !strings.Contains(said.String(), "exceed 64 KiB") {
		t.Errorf("log: %.300s", said)
	}
}

func TestFacterIsCollectedInTheBackground(t *testing.T) {
	bin := folder(t, map[string]string{"facter": "#!/bin/sh\n" +
		`echo '{"kernel":"Linux","system_uptime":{"seconds":5},"load_averages":{"1m":1},"zruby":{"version":"3"},"processors":{"speed":"2 GHz","count":2}}'` +
		"\necho noise >&2\nexit 1\n"})
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	log, said := newLog()
	c := facts.New(t.TempDir(), log)
	if raw := c.Collect(t.Context()); bytes.Contains(raw, []byte(`"zruby"`)) {
		t.Error("Collect waited for facter")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	c.Watch(ctx, time.Hour, func(raw json.RawMessage) {
		got = append(got, string(raw))
		cancel()
	})
	if len(got) != 1 || !strings.Contains(got[0], `"facter":{"kernel":"Linux","processors":{"count":2},"zruby":{"version":"3"}}`) {
		t.Errorf("Watch told %q, log %s", got, said)
	}
	if raw := c.Collect(t.Context()); !bytes.Contains(raw, []byte(`"zruby"`)) {
		t.Error("a later Collect does not have what facter said")
	}
}

func TestBrokenFacterIsLoggedAndKeepsItsLastAnswer(t *testing.T) {
	bin := folder(t, map[string]string{"facter": "#!/bin/sh\necho '{\"a\":1}'\n"})
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	log, said := newLog()
	c := facts.New(t.TempDir(), log)
	c.Refresh(t.Context())
	if err := os.WriteFile(filepath.Join(bin, "facter"), []byte("#!/bin/sh\necho 'no ruby' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.Refresh(t.Context())
	if raw := c.Collect(t.Context()); !bytes.Contains(raw, []byte(`"facter":{"a":1}`)) {
		t.Errorf("facts: %.300s", raw)
	}
	if !strings.Contains(said.String(), "no ruby") {
		t.Errorf("log: %s", said)
	}
}

func TestWatchTellsChangesOnly(t *testing.T) {
	t.Setenv("PATH", "/usr/bin:/bin") // whatever facter there is, it is run
	dir := folder(t, map[string]string{"a.txt": "x=1"})
	log, _ := newLog()
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan json.RawMessage)
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		facts.New(dir, log).Watch(ctx, 10*time.Millisecond, func(raw json.RawMessage) {
			select {
			case seen <- raw:
			case <-ctx.Done():
			}
		})
	}()
	<-seen
	if err := os.WriteFile(filepath.Join(dir, "a.txt"), []byte("x=2"), 0o644); err != nil {
		t.Fatal(err)
	}
	for raw := range seen {
		if bytes.Contains(raw, []byte(`"x":"2"`)) {
			break
		}
	}
	cancel()
	<-done
}

func FuzzExternal(f *testing.F) {
	f.Add("x.json", `{"a":[1,{"b":null}]}`)
	f.Add("x.yaml", "a: &a {b: 1}\nc: *a\n<<: *a\n? [1,2]\n: x\n")
	f.Add("x.yaml", "a: !!binary aGk=\nb: .nan\nc: 2001-01-01\nd: 0x1F\ne: !!set {x}")
	f.Add("x.txt", "a=b\n=c\n")
	f.Fuzz(func(t *testing.T, name, text string) {
		switch name {
		case "x.json", "x.yaml", "x.txt":
		default:
			return
		}
		raw := facts.Collect(t.Context(), folder(t, map[string]string{name: text}), slog.New(slog.DiscardHandler))
		var got map[string]any
		if err := json.Unmarshal(raw, &got); err != nil || len(raw) > 64<<10 || got["architecture"] == nil && !strings.Contains(text, "architecture") {
			t.Errorf("%v: %.200s", err, raw)
		}
	})
}
