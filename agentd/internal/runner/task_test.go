//go:build linux

package runner_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// seen is what a task saw: its input, and its environment with NUL after each.
type seen struct {
	input map[string]any
	env   map[string]string
}

const look = `cat > input; env -0 > environment; pwd > where`

// observe runs a task that keeps what it sees.
func (h *host) observe(o *wire.Offer, secrets map[string]wire.Redacted) (seen, pipeline.Result) {
	h.Helper()
	h.r.Handle(o)
	expect[*wire.Accept](h.control, o.Attempt)
	h.r.Handle(&wire.Go{Attempt: o.Attempt, Token: o.Token, Secrets: secrets})
	r := h.result(o)
	trust := "trusted-"
	if o.Spec.Untrusted {
		trust = "untrusted-"
	}
	dir := filepath.Join(h.dir, "work", string(o.Spec.Composition), trust+"0")
	s := seen{env: map[string]string{}}
	b, err := os.ReadFile(filepath.Join(dir, "environment"))
	if err != nil {
		return s, r
	}
	for e := range strings.SplitSeq(strings.TrimSuffix(string(b), "\x00"), "\x00") {
		k, v, _ := strings.Cut(e, "=")
		s.env[k] = v
	}
	if b, err = os.ReadFile(filepath.Join(dir, "input")); err == nil {
		err = json.Unmarshal(b, &s.input)
	}
	if err != nil {
		h.Errorf("input of the task: %v", err)
	}
	return s, r
}

func TestTaskGetsWhatItIsPromised(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.cfg.Facts = func() json.RawMessage { return json.RawMessage(`{"memory":{"total_mb":512}}`) }
	h.open().connect()
	o := job(look)
	o.Spec.Previous = json.RawMessage(`{"reference":"abc"}`)
	o.Spec.Fields = json.RawMessage(`{"script":"` + look + `","n":3,"yes":true,"two-words":"a b"}`)
	s, r := h.observe(o, nil)
	want(t, r, pipeline.Success, "")
	work := filepath.Join(h.dir, "work", "build", "trusted-0")
	for k, v := range map[string]any{
		"task": "compile", "uses": "shell/run", "composition": "build", "run": "01JDRUN", "number": 7.0, "attempt": string(o.Attempt),
		"try": 1.0, "workspace": work, "commit": "c0ffee", "ref": "refs/heads/main", "repo": "file:///ops.git",
		"cache": filepath.Join(h.dir, "cache", "trusted"),
	} {
		if s.input[k] != v {
			t.Errorf("input %s = %v, want %v", k, s.input[k], v)
		}
	}
	if p, _ := s.input["previous"].(map[string]any); p["reference"] != "abc" {
		t.Errorf("previous = %v", s.input["previous"])
	}
	if f, _ := s.input["facts"].(map[string]any); fmt.Sprint(f) != "map[memory:map[total_mb:512]]" {
		t.Errorf("facts = %v", s.input["facts"])
	}
	for k, v := range map[string]string{
		"MAESTRO_WORKSPACE": work, "PWD": work, "MAESTRO_CACHE": filepath.Join(h.dir, "cache", "trusted"),
		"MAESTRO_PLUGIN_DIR": "/", "MAESTRO_AGENTD": "/agentd", "MAESTRO_RUN": "01JDRUN", "MAESTRO_NUMBER": "7",
		"MAESTRO_COMPOSITION": "build", "MAESTRO_TASK": "compile", "MAESTRO_USES": "shell/run", "MAESTRO_ATTEMPT": string(o.Attempt),
		"MAESTRO_TRY": "1", "MAESTRO_COMMIT": "c0ffee", "MAESTRO_REF": "refs/heads/main", "MAESTRO_REPO": "file:///ops.git",
		"MAESTRO_IDEMPOTENCY_KEY": "key-1", "MAESTRO_FIELDS": "n script two-words yes", "FIELD_N": "3", "FIELD_YES": "true", "FIELD_TWO_WORDS": "a b",
		"TMPDIR": s.env["MAESTRO_SCRATCH"], "HOME": os.Getenv("HOME"),
	} {
		if s.env[k] != v {
			t.Errorf("%s = %q, want %q", k, s.env[k], v)
		}
	}
}

func TestNoFieldBecomesAnotherVariable(t *testing.T) {
	t.Parallel()
	known := []string{"PATH", "LANG", "HOME", "TMPDIR", "PWD", "SHLVL", "_", "OLDPWD"}
	for name, fields := range hostile(t, "fields") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t).open().connect()
			o := job("")
			o.Spec.Fields = bytes.Replace(fields, []byte(`"S"`), []byte(`"`+look+`"`), 1)
			s, r := h.observe(o, nil)
			if r.Outcome == pipeline.Success != bytes.Contains(fields, []byte(`"script"`)) {
				// Without a script the shell has nothing to do, and says so by doing it.
				if r.Outcome != pipeline.Success && r.Outcome != pipeline.Error {
					t.Errorf("result %+v", r)
				}
			}
			for k, v := range s.env {
				if !strings.HasPrefix(k, "FIELD_") && !strings.HasPrefix(k, "MAESTRO_") && !slices.Contains(known, k) {
					t.Errorf("the task has %s=%q", k, v)
				}
				if strings.Contains(v, "/tmp/evil") && !strings.HasPrefix(k, "FIELD_") {
					t.Errorf("a field reached %s=%q", k, v)
				}
			}
			if v, ok := s.env["FIELD_A_B"]; name == "names.json" && (!ok || v != "9") {
				t.Errorf("FIELD_A_B = %q; of two fields the first by name has it", v)
			}
			if name == "values.json" && (s.env["FIELD_NUMBER"] != "12345678901234567000" && s.env["FIELD_NUMBER"] != "1.2345678901234567e+19" ||
				s.env["FIELD_QUOTES"] != "'\"`$(id)\\" || s.env["FIELD_BIG"] != "" || s.env["FIELD_LIST"] != "") {
				t.Errorf("env = %.500v", s.env)
			}
		})
	}
}

func TestSecretsReachTheirTaskAndNothingElse(t *testing.T) {
	t.Parallel()
	const key, other = "CANARY-runner-deploy-key", "CANARY-runner-prod-root"
	h := newHost(t).open().connect()
	o := job("")
	o.Spec.Secrets = []pipeline.SecretName{"deploy-key"}
	script := `cat > /dev/null; printf %s \"$FIELD_KEY\" | od -An -tx1 | tr -d ' \\n' | wc -c; echo $FIELD_KEY; echo \"{\\\"output\\\":{\\\"name\\\":\\\"leak\\\",\\\"value\\\":\\\"$FIELD_KEY\\\"}}\" >> $MAESTRO_EVENTS; echo \"{\\\"waiting\\\":\\\"$FIELD_KEY\\\"}\" >> $MAESTRO_EVENTS; env | grep -c runner-pro[d]-root; sleep 0.5`
	o.Spec.Fields = json.RawMessage(`{"key":{"secret":"deploy-key"},"other":{"secret":"prod-root"},"script":"` + script + `"}`)
	// The control plane never sends what was not declared; if it did, the task would not get it.
	_, r := h.observe(o, map[string]wire.Redacted{"deploy-key": key, "prod-root": other})
	want(t, r, pipeline.Success, "")
	if !strings.Contains(string(r.Outputs), `***deploy-key***`) {
		t.Errorf("outputs = %s", r.Outputs)
	}
	if log := h.log(o.Attempt); !strings.Contains(log, "***deploy-key***\n0\n") || !strings.Contains(log, "48\n") {
		t.Errorf("log = %q", log)
	}
	h.mu.Lock()
	if all := show(h.messages); strings.Contains(all, "CANARY") {
		t.Errorf("the control plane was told: %s", all)
	}
	h.mu.Unlock()
	err := filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // removed meanwhile
		}
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte("CANARY")) {
			t.Errorf("%s holds a secret", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestSecretIsPutBesideItsReference(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	o := job("")
	o.Spec.Secrets = []pipeline.SecretName{"deploy-key"}
	o.Spec.Fields = bytes.Replace(hostile(t, "fields")["secrets.json"], []byte(`"S"`), []byte(`"`+look+`"`), 1)
	s, _ := h.observe(o, map[string]wire.Redacted{"deploy-key": "CANARY-beside"})
	fields, _ := s.input["fields"].(map[string]any)
	got, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	for text, n := range map[string]int{
		`{"secret":"deploy-key","value":"CANARY-beside"}`: 2, `{"secret":"prod-root"}`: 1, `{"secret":"deploy-key","x":1}`: 1, `{"secret":5}`: 1,
	} {
		if strings.Count(string(got), text) != n {
			t.Errorf("fields have %s %d times, want %d:\n%s", text, strings.Count(string(got), text), n, got)
		}
	}
	if s.env["FIELD_KEY"] != "CANARY-beside" || s.env["FIELD_OTHER"] != "" || s.env["FIELD_TEXT"] != "deploy-key" {
		t.Errorf("env = %v", s.env)
	}
}

func TestSecretThatCannotBeUsedStartsNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		secrets map[string]wire.Redacted
		want    string
	}{
		"no value":             {nil, `secret "deploy-key" has no value`},
		"too short to be kept": {map[string]wire.Redacted{"deploy-key": "abc"}, "cannot be masked"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t).open().connect()
			o := job("echo ran")
			o.Spec.Secrets = []pipeline.SecretName{"deploy-key"}
			_, r := h.observe(o, c.secrets)
			want(t, r, pipeline.Error, c.want)
			if count[*wire.Started](h.control, o.Attempt) > 0 {
				t.Error("it started")
			}
		})
	}
}

func TestUntrustedWorkLeavesNothingToTrustedWork(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	leave := `touch $HOME/.profile $MAESTRO_CACHE/poison left; ls -A > files; ls -A $MAESTRO_CACHE >> files; ` + look
	o := job(leave)
	o.Spec.Untrusted = true
	first, r := h.observe(o, nil)
	want(t, r, pipeline.Success, "")
	if home := first.env["HOME"]; !strings.HasPrefix(home, filepath.Join(h.dir, "scratch")) {
		t.Errorf("HOME = %s", home)
	}
	h.r.Handle(&wire.Forget{Runs: []pipeline.RunID{o.Spec.Run}})
	h.eventually("the workspace is gone", func() bool {
		_, err := os.Stat(filepath.Join(h.dir, "work", "build", "untrusted-0"))
		return os.IsNotExist(err)
	})
	trusted := job("ls -A $MAESTRO_CACHE .")
	h.start(trusted)
	h.result(trusted)
	if log := h.log(trusted.Attempt); strings.Contains(log, "poison") || strings.Contains(log, "left") {
		t.Errorf("the trusted task found %q", log)
	}
}
