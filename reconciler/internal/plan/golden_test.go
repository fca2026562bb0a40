package plan_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// TestRenderings shows each plan of testdata in every form. "input.json" is a
// plan.Input; "options.json", if any, says how markdown is wanted.
func TestRenderings(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, p := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(p), ".txtar"), func(t *testing.T) {
			t.Parallel()
			golden(t, p)
		})
	}
}

func golden(t *testing.T, path string) {
	t.Helper()
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var in plan.Input
	o := plan.MarkdownOptions{Marker: "<!-- maestro:v1:plan -->", Onto: "main", URL: "https://ci.example/changes/louder"}
	want := map[string]string{}
	var kept []txtar.File
	for _, f := range archive.Files {
		switch f.Name {
		case "input.json":
			err = json.Unmarshal(f.Data, &in)
		case "options.json":
			err = json.Unmarshal(f.Data, &o)
		default:
			want[f.Name] = string(f.Data)
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		kept = append(kept, f)
	}
	got := plan.Of(in)
	asJSON, err := json.MarshalIndent(&got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	sides := plan.TextOptions{What: "louder (bbbb)", With: "main (aaaa)"}
	full := sides
	full.Full = true
	for _, f := range []txtar.File{
		{Name: "want/plan.txt", Data: []byte(got.Text(sides))},
		{Name: "want/full.txt", Data: []byte(got.Text(full))},
		{Name: "want/comment.md", Data: []byte(got.Markdown(o))},
		{Name: "want/plan.json", Data: append(asJSON, '\n')},
	} {
		kept = append(kept, f)
		if d := cmp.Diff(want[f.Name], string(f.Data)); d != "" && os.Getenv("UPDATE") == "" {
			t.Errorf("%s is not what %s says (-want +got), UPDATE=1 replaces it:\n%s", f.Name, path, d)
		}
	}
	if os.Getenv("UPDATE") != "" {
		archive.Files = kept
		if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
