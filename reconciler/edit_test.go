package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/sops"
)

// desk is a working copy, a key, and a place for texts in the clear that is watched.
type desk struct {
	t        *testing.T
	dir, to  string
	key, tmp string
	out      string // of the last command
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t, dir: t.TempDir(), key: filepath.Join(t.TempDir(), "key"), tmp: t.TempDir()}
	d.put("cue.mod/module.cue", "")
	if base, ok := memoryFolder(); ok { // the real one, in a folder of our own
		tmp, err := os.MkdirTemp(base, "maestro-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(tmp) })
		d.tmp = tmp
	}
	t.Setenv("XDG_RUNTIME_DIR", d.tmp)
	t.Setenv("TMPDIR", d.tmp)
	t.Setenv("SOPS_AGE_KEY", "")
	t.Setenv("SOPS_AGE_KEY_FILE", d.key)
	t.Setenv("VISUAL", "")
	d.to = d.keygen(d.key)
	return d
}

func (d *desk) keygen(file string) string {
	d.t.Helper()
	if err := d.run("keygen", file); err != nil {
		d.t.Fatal(err)
	}
	return strings.TrimSpace(d.out)
}

func (d *desk) put(name, text string) {
	d.t.Helper()
	file := filepath.Join(d.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) read(name string) string {
	d.t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		d.t.Fatal(err)
	}
	return string(b)
}

// editor makes the editor a script; $1 is the file.
func (d *desk) editor(script string) {
	d.t.Setenv("EDITOR", "set -eu; edit() { "+script+"\n}; edit")
}

// run runs reconciler secrets, and looks whether it left a text in the clear.
func (d *desk) run(args ...string) error {
	d.t.Helper()
	return d.runFor(context.Background(), args...)
}

func (d *desk) runFor(ctx context.Context, args ...string) error {
	d.t.Helper()
	var out bytes.Buffer
	cmd := newSecrets()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(""))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(ctx)
	d.out = out.String()
	if strings.Contains(fmt.Sprint(d.out, err), "CANARY") {
		d.t.Errorf("a value was printed: %s %v", d.out, err)
	}
	left, _ := os.ReadDir(d.tmp)
	for _, l := range left {
		d.t.Errorf("%s was left behind by %v", l.Name(), args)
	}
	return err
}

func (d *desk) edit(name string, args ...string) error {
	return d.run(append([]string{"edit", filepath.Join(d.dir, name)}, args...)...)
}

// value opens a file of the working copy with a key.
func (d *desk) value(name, key, keyFile string) (string, error) {
	d.t.Helper()
	f, err := sops.Parse(name, []byte(d.read(name)))
	if err != nil {
		return "", err
	}
	k, err := (&options{secretsKeyFile: keyFile}).secretKeys()
	if err != nil {
		d.t.Fatal(err)
	}
	o, err := f.Open(k)
	if err != nil {
		return "", err
	}
	return o.Value(key)
}

func (d *desk) wants(err error, says ...string) {
	d.t.Helper()
	for _, s := range says {
		if err == nil || !strings.Contains(err.Error(), s) {
			d.t.Errorf("error = %v, want one that says %q", err, s)
		}
	}
}

const prod = "secrets/prod.sops.yaml"

func TestEncryptedFileIsMadeAndEdited(t *testing.T) {
	d := newDesk(t)
	d.wants(d.edit(prod), "to whom", "--to age1")
	d.editor(`echo 'token: CANARY-1' >> "$1"; stat -c %a "$1" "$(dirname "$1")" > ` + filepath.Join(d.dir, "modes"))
	if err := d.edit(prod, "--to", d.to); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(d.read(prod), "CANARY") || d.read("modes") != "600\n700\n" {
		t.Errorf("modes of the text are %q, the file is\n%s", d.read("modes"), d.read(prod))
	}
	if v, err := d.value(prod, "token", d.key); v != "CANARY-1" || err != nil {
		t.Errorf("token = %q, %v", v, err)
	}
	if v, err := d.value(prod, "_path", d.key); v != prod || err != nil {
		t.Errorf("_path = %q, %v", v, err)
	}
	before := d.read(prod)
	d.editor("true")
	if err := d.edit(prod); err != nil || d.read(prod) != before || !strings.Contains(d.out, "as it was") {
		t.Errorf("a look changes the file: %v, %s", err, d.out)
	}
	d.editor(`sed -i s/CANARY-1/CANARY-2/ "$1"`)
	if err := d.edit(prod); err != nil {
		t.Fatal(err)
	}
	if v, err := d.value(prod, "token", d.key); v != "CANARY-2" || err != nil {
		t.Errorf("token = %q, %v", v, err)
	}
	enc := func(s string) string {
		_, s, _ = strings.Cut(s, "enc: |")
		s, _, _ = strings.Cut(s, "-----END")
		return s
	}
	if enc(before) == enc(d.read(prod)) {
		t.Error("the data key is not fresh")
	}
	d.put("secrets/dev.sops.yaml", d.read(prod))
	d.wants(d.edit("secrets/dev.sops.yaml"), "is a copy of "+prod)
}

func TestNothingIsLostOrLeftWhenEditingFails(t *testing.T) {
	d := newDesk(t)
	d.editor(`echo 'token: CANARY-1' >> "$1"`)
	if err := d.edit(prod, "--to", d.to); err != nil {
		t.Fatal(err)
	}
	before := d.read(prod)
	for script, says := range map[string]string{
		`echo "x: 1" >> "$1"; exit 3`:     "exit status 3",
		`rm "$1"`:                         "removed the text",
		`echo 'x: [CANARY' > "$1"`:        prod,
		`: > "$1"`:                        "empty",
		`echo '_path: other.yaml' > "$1"`: "a copy of other.yaml",
		`cp "$1" "$1~"`:                   "",
	} {
		d.editor(script)
		err := d.edit(prod)
		if says == "" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		d.wants(err, says)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("error is %s", fault.KindOf(err))
		}
	}
	d.editor("true")
	t.Setenv("SOPS_AGE_KEY_FILE", "")
	t.Setenv("XDG_CONFIG_HOME", d.dir)
	d.wants(d.edit(prod), "there is no age key")
	// What a killed command left goes with the next.
	if err := os.Mkdir(filepath.Join(d.tmp, "maestro-edit-2147483000-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOPS_AGE_KEY_FILE", d.key)
	if err := d.edit(prod); err != nil {
		t.Error(err)
	}
	if d.read(prod) != before {
		t.Error("the file was changed")
	}
}

func TestEditingThatIsInterruptedLeavesNothing(t *testing.T) {
	d := newDesk(t)
	ctx, cancel := context.WithCancel(t.Context())
	open := filepath.Join(d.dir, "open")
	if err := syscall.Mkfifo(open, 0o600); err != nil {
		t.Fatal(err)
	}
	d.editor(`echo 'token: CANARY-1' >> "$1"; : > ` + open + `; exec sleep 600`)
	var waits sync.WaitGroup
	waits.Go(func() { // until the editor has opened its end
		_, _ = os.ReadFile(open)
		cancel()
	})
	err := d.runFor(ctx, "edit", filepath.Join(d.dir, prod), "--to", d.to)
	waits.Wait()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	if _, err := os.Stat(filepath.Join(d.dir, prod)); !os.IsNotExist(err) {
		t.Errorf("there is a file: %v", err)
	}
}

func TestRecipientsAreThoseOfTheRules(t *testing.T) {
	d := newDesk(t)
	second := filepath.Join(d.dir, "second")
	other := d.keygen(second)
	rules := func(to ...string) {
		d.put(sops.RulesFile, "creation_rules:\n  - path_regex: ^secrets/\n    age: "+strings.Join(to, ",")+"\n")
	}
	rules(d.to)
	d.editor(`echo 'token: CANARY-1' >> "$1"`)
	if err := d.edit(prod); err != nil {
		t.Fatal(err)
	}
	if _, err := d.value(prod, "token", second); err == nil {
		t.Error("somebody whom no rule names can open the file")
	}
	d.wants(d.edit(prod, "--to", other), "--rekey")
	d.wants(d.edit(prod, "--rekey", "--to", other), other, "does not name")
	rules(d.to, other)
	if err := d.edit(prod, "--rekey"); err != nil {
		t.Fatal(err)
	}
	if v, err := d.value(prod, "token", second); v != "CANARY-1" || err != nil {
		t.Errorf("with the second key: %q, %v", v, err)
	}
	// The list in the file is anybody's to change: what is written is for those of the rules.
	rules(d.to)
	d.editor(`echo 'more: CANARY-2' >> "$1"`)
	d.wants(d.edit(prod), other, "--rekey")
	if err := d.edit(prod, "--rekey"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.value(prod, "token", second); err == nil {
		t.Error("whoever was taken out can still open the file")
	}
	d.put("secrets/clear.yaml", "token: CANARY-3\n")
	d.editor("true")
	if err := d.edit("secrets/clear.yaml"); err != nil || !strings.Contains(d.out, "is not encrypted yet") {
		t.Errorf("%v: %s", err, d.out)
	}
	if v, err := d.value("secrets/clear.yaml", "token", d.key); v != "CANARY-3" || err != nil {
		t.Errorf("token = %q, %v", v, err)
	}
	d.wants(d.edit("x.toml"), ".yaml")
	d.wants(d.edit("secrets/new.yaml", "--to", "age1nonsense"), "no recipient")
}

func TestKeygenReplacesNothing(t *testing.T) {
	d := newDesk(t)
	info, err := os.Stat(d.key)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	d.wants(d.run("keygen", d.key), "is there already")
	if k, err := (&options{secretsKeyFile: d.key}).secretKeys(); err != nil || k.Recipients()[0] != d.to {
		t.Errorf("the key is %v, %v", k.Recipients(), err)
	}
}
