// Command reconciler is Maestro's control plane and its command line. This package
// parses, wires the rooms together and runs them; it decides nothing about runs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
	_ "time/tzdata" // schedules name time zones, and a small machine may know none

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
)

// Exit codes. They are part of the interface, so that scripts can tell a failed
// run from a server that cannot be reached.
const (
	exitOK          = 0
	exitFailed      = 1 // the thing asked about failed: a run, a check, a file with mistakes
	exitUsage       = 2 // the command line or our own configuration is wrong, or names what is not there
	exitUnreachable = 5 // server, git or forge do not answer
	exitBlocked     = 6 // as things are, what was asked for can never start
	exitInterrupted = 130
)

// exitError carries the exit code of a command. A nil err prints nothing: the
// command has said all.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// evaluateCommand is the hidden first argument that makes this program the
// sandboxed child that evaluates CUE. It is looked at before anything else, so
// that the child starts fast and opens nothing.
const evaluateCommand = "internal-evaluate"

func main() {
	if len(os.Args) == 2 && os.Args[1] == evaluateCommand {
		if err := config.ServeChild(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(exitFailed)
		}
		return
	}
	os.Exit(run())
}

// sameSignal is how soon a second signal counts as the first: some senders reach a
// program and its group, and both would keep it from ending in good order.
const sameSignal = time.Second

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		time.Sleep(sameSignal)
		stop() // from here on a signal ends the program at once
	}()
	root := newRoot()
	understood := false
	root.PersistentPreRun = func(*cobra.Command, []string) { understood = true }
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !understood {
		fmt.Fprintf(os.Stderr, "error: %v\nsee: %s --help\n", err, cmd.CommandPath())
		return exitUsage
	}
	return report(err, ctx.Err() != nil)
}

// report prints what went wrong with a command that began, and returns the exit
// code for it.
func report(err error, interrupted bool) int {
	if err == nil {
		return exitOK
	}
	if e := new(exitError); errors.As(err, &e) {
		if e.err != nil {
			fmt.Fprintln(os.Stderr, "error:", e.err)
		}
		return e.code
	}
	if interrupted && errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	fmt.Fprintln(os.Stderr, "error:", err)
	switch fault.KindOf(err) {
	case fault.Unavailable:
		return exitUnreachable
	case fault.Invalid, fault.NotFound, fault.Conflict:
		return exitUsage
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "reconciler",
		Short: "Maestro: run workflows from Git, and say before the merge what it will do",
		Long: `Maestro runs the compositions of a Git repository: it watches the repository,
turns commits into runs, gives their tasks to agents, and reports back in Git.

Nothing is changed through this program or the web view. People change
compositions by commit; this program serves, checks and shows.

Environment:
  RECONCILER_SERVER   address of the web view that commands ask, as --server
  RECONCILER_…        any flag of serve, dev and the commands that operate one:
                      --git-token-file is RECONCILER_GIT_TOKEN_FILE
  NO_COLOR            no colours, whatever its value

Exit codes:
  0    it is well, or succeeded
  1    what was asked about is not: a run failed, a file has mistakes
  2    the command line or the settings are wrong, or name what is not there
  5    server, git or forge cannot be reached
  6    as things are it can never start
  130  interrupted`,
		SilenceErrors: true, SilenceUsage: true, Version: version(),
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddGroup(
		&cobra.Group{ID: "start", Title: "Start here:"},
		&cobra.Group{ID: "author", Title: "Author:"},
		&cobra.Group{ID: "watch", Title: "Watch:"},
		&cobra.Group{ID: "ask", Title: "Ask, with git:"},
		&cobra.Group{ID: "operate", Title: "Operate:"},
	)
	for group, cmds := range map[string][]*cobra.Command{
		"start":   {newDemo(), newInit(), newDev()},
		"author":  {newVet(), newPlan(), newExec(), newGraph(), newFmt(), newExplain(), newVendor(), newSecrets()},
		"watch":   {newRuns(), newRun(), newWatch(), newLogs(), newWhy(), newChange()},
		"ask":     {newReview(), newRequest()},
		"operate": {newServe(), newCheck(), newAgents(), newBackup(), newRestore(), newFsck(), newGC()},
	} {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	return root
}

// version is what the build says of itself.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			v += " " + s.Value[:12]
		}
	}
	return v
}
