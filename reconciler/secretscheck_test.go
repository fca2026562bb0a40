package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/sops"
	"github.com/maestro-cd/maestro/internal/testkit"
)

func sealed(t *testing.T, name, text string, to ...string) string {
	t.Helper()
	out, err := sops.Seal(name, []byte(text), sops.How{Recipients: to})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestEverySecretIsCheckedAndItsUsersNamed(t *testing.T) {
	real(t)
	private, to, err := sops.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := sops.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	const theirs = "secrets/theirs.sops.yaml"
	write := func(files map[string]string) {
		for name, text := range files {
			file := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(testkit.Files(testkit.Ops(), testkit.Shell("hello", "true", `fields: env: {A: secret: "mine", B: secret: "by-env"}`), map[string]string{
		"secrets/all.sops.yaml": sealed(t, "secrets/all.sops.yaml", "mine: CANARY-0001\nshort: CANARY\n", to),
		theirs:                  sealed(t, theirs, "theirs: CANARY-0002\n", stranger),
		"secrets/all.cue": `package ops

secrets: {
	mine: from: sops: "secrets/all.sops.yaml"
	theirs: from: sops: "secrets/theirs.sops.yaml"
	"by-env": from: env: "MAESTRO_TEST_ABSENT"
}
policy: secrets: mine: {compositions: ["hello"], branches: ["main"]}
`,
	}))
	env := []string{"SOPS_AGE_KEY=" + private, "MAESTRO_TEST_ABSENT="}
	check := func(exit int, args ...string) string {
		t.Helper()
		out, got := testkit.RunIn(t, dir, env, "reconciler", append([]string{"secrets", "check"}, args...)...)
		if got != exit || strings.Contains(out, "CANARY") {
			t.Fatalf("exit %d, want %d, and no value\n%s", got, exit, out)
		}
		return out
	}
	var found struct {
		Secrets []struct {
			Name, State, From, For string
			UsedBy                 []string `json:"used_by"`
		}
		Files []struct {
			Path, State string
			Recipients  []string
		}
		Problems, Warnings int
	}
	if err := json.Unmarshal([]byte(check(0, "--json")), &found); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range found.Secrets {
		got[s.Name] = s.State + ", " + s.For + ", " + strings.Join(s.UsedBy, "; ")
	}
	for _, f := range found.Files {
		got[f.Path] = f.State + ", " + strings.Join(f.Recipients, ";")
	}
	want := map[string]string{
		"mine":                  "ok, only hello, on main (secrets/all.cue:8:18), hello: task work",
		"by-env":                "warning, every composition, on the default branch, hello: task work",
		"theirs":                "warning, every composition, on the default branch, ",
		"secrets/all.sops.yaml": "ok, " + to,
		theirs:                  "warning, " + stranger,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}

	write(map[string]string{
		"secrets/all.sops.yaml":   sealed(t, "secrets/all.sops.yaml", "mine: CANARY\n", to),
		"secrets/clear.sops.yaml": "token: CANARY-0003\n",
		".sops.yaml":              "creation_rules:\n  - age: " + to + "\n",
		"secrets/more.cue":        "package ops\n\nsecrets: gone: from: sops: \"secrets/gone.sops.yaml\"\n",
	})
	out := check(1)
	for _, says := range []string{
		"✗ mine", "cannot be masked", "✗ gone", "no file secrets/gone.sops.yaml", "✗ secrets/clear.sops.yaml", "is not encrypted",
		"✗ " + theirs, stranger + " too, whom .sops.yaml does not name", "only hello, on main", "used  by nothing", "4 problems",
	} {
		if !strings.Contains(out, says) {
			t.Errorf("it does not say %q:\n%s", says, out)
		}
	}
}
