package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var testName = regexp.MustCompile("`(Test[A-Za-z0-9]+)`")

// namingTests reads a document and fails for each test that it names and nobody finds.
func namingTests(t *testing.T, file string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	there := testsOf(t, "..")
	for _, m := range testName.FindAllSubmatch(raw, -1) {
		if !there[string(m[1])] {
			t.Errorf("%s is named and is no test", m[1])
		}
	}
	return string(raw)
}

// TestPromisesNameTestsThatExist fails for a test that docs/reliability.md names and
// that nobody finds, and for a promise that names none and does not say why.
func TestPromisesNameTestsThatExist(t *testing.T) {
	t.Parallel()
	raw := namingTests(t, "reliability.md")
	_, table, _ := strings.Cut(raw, "## Promises\n")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 || strings.HasPrefix(cells[1], "--") || strings.Contains(cells[3], "held by") {
			continue
		}
		rows++
		if !testName.MatchString(cells[3]) && !strings.Contains(cells[3], "no test: ") && !strings.Contains(cells[3], "not promised") {
			t.Errorf("no test holds, and nothing says why: %s", line)
		}
	}
	const least = 18 // as many as there are kinds of fault
	if rows < least {
		t.Errorf("%d promises, want at least %d", rows, least)
	}
}

// TestSecurityIsHeldByTestsThatExist is the same for docs/security.md: each row of a table
// that says what holds it names a test.
func TestSecurityIsHeldByTestsThatExist(t *testing.T) {
	t.Parallel()
	raw := namingTests(t, "security.md")
	held, rows := false, 0
	for line := range strings.Lines(raw) {
		switch {
		case !strings.HasPrefix(line, "|"):
			held = false
		case strings.HasSuffix(strings.TrimSpace(line), "| held by |"):
			held = true
		case held && !strings.HasPrefix(line, "|--"):
			if rows++; !testName.MatchString(line) {
				t.Errorf("no test holds: %s", line)
			}
		}
	}
	const least = 80 // so that a table which is not found is noticed
	if rows < least {
		t.Errorf("%d rows, want at least %d", rows, least)
	}
}

// testsOf lists the tests below a folder.
func testsOf(t *testing.T, root string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9]+)\(`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(b, -1) {
			found[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
