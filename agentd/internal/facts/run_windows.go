package facts

import (
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
)

// ownGroup has no equal without a job object: the program itself is killed, and
// what it started may go on.
func ownGroup(*exec.Cmd) {}

// commandLine is how to run the file, nil when its extension is not a program's.
func commandLine(path string, _ fs.FileMode) []string {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".exe", ".com", ".bat", ".cmd":
		return []string{path}
	case ".ps1":
		return []string{"powershell.exe", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File", path}
	}
	return nil
}
