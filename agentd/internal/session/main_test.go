package session_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails the package when a goroutine of ours outlives the tests.
func TestMain(m *testing.M) {
	code := m.Run()
	if left := leaked(); left != "" {
		fmt.Fprintln(os.Stderr, "goroutines left behind:\n"+left)
		code = 1
	}
	os.Exit(code)
}

// leaked waits for goroutines to end and returns the stacks of those that do not.
func leaked() string {
	const patience = 5 * time.Second
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); ; <-tick.C {
		buf := make([]byte, 1<<20)
		var ours []string
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "maestro-cd") && !strings.Contains(g, "TestMain") {
				ours = append(ours, g)
			}
		}
		if len(ours) == 0 || time.Since(start) > patience {
			return strings.Join(ours, "\n\n")
		}
	}
}
