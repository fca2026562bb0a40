// Package docs_test keeps the documents true: what they draw, list and show is
// compared with the code. It is for tests only.
package docs_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	begin = "<!-- states: generated, run UPDATE=1 go test ./docs -->\n"
	end   = "<!-- end -->\n"
)

// diagram draws the transition table as Mermaid.
func diagram() string {
	var b strings.Builder
	b.WriteString("```mermaid\nstateDiagram-v2\n  [*] --> pending\n")
	for _, s := range pipeline.States() {
		for _, n := range s.Next() {
			fmt.Fprintf(&b, "  %s --> %s\n", s, n)
		}
		if s.Terminal() {
			fmt.Fprintf(&b, "  %s --> [*]\n", s)
		}
	}
	b.WriteString("```\n")
	return b.String()
}

func TestDrawingIsTheTransitionTable(t *testing.T) {
	t.Parallel()
	const file = "ARCHITECTURE.md"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(raw), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the drawing", file)
	}
	if want := diagram(); got != want {
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		t.Errorf("the drawing is not the table; run UPDATE=1 go test ./docs\ngot:\n%s\nwant:\n%s", got, want)
	}
}

// TestMapNamesEveryRoom fails for a folder that the map leaves out.
func TestMapNamesEveryRoom(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"../internal", "../reconciler/internal", "../agentd/internal"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() && !strings.Contains(string(raw), e.Name()+"/") {
				t.Errorf("the map does not name %s/%s", dir, e.Name())
			}
		}
	}
}
