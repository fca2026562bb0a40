package facts_test

import (
	"os"
	"testing"
)

// fifo stands in with a folder: Windows has no FIFO in a file system.
func fifo(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
}
