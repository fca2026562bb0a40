// Command agentd runs the tasks that a reconciler gives to this machine.
//
// The binary is also the shim that watches over a task, and the command by which
// shell scripts talk to the agent. Those start for every task and many times in
// it, so they are told apart before anything else is set up.
package main

import (
	"fmt"
	"os"

	"github.com/maestro-cd/maestro/agentd/internal/emit"
	"github.com/maestro-cd/maestro/agentd/internal/shim"
)

func main() { os.Exit(run(os.Args[1:])) }

func asksHelp(args []string) bool {
	return len(args) == 1 && (args[0] == "--help" || args[0] == "-h" || args[0] == "help")
}

func run(args []string) int {
	if len(args) > 0 {
		switch args[0] {
		case "shim":
			return shim.Main(os.Stdin, os.Stderr)
		case "emit":
			if asksHelp(args[1:]) {
				fmt.Print(emit.Usage)
				return 0
			}
			return emit.Run(args[1:], os.Getenv, os.Stdout)
		case "env":
			if asksHelp(args[1:]) {
				fmt.Print(envUsage)
				return 0
			}
			return emit.Env(os.Stdin, os.Stdout, os.Stderr)
		}
	}
	cmd := newCommand()
	cmd.SetArgs(args)
	if err := cmd.Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "agentd: %v\n", err)
		return exitCode(err)
	}
	return 0
}
