package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/maestro-cd/maestro/agentd/internal/emit"
	"github.com/maestro-cd/maestro/agentd/internal/facts"
	"github.com/maestro-cd/maestro/internal/fault"
)

// Exit codes: it did not work, the settings are wrong, the server is out of reach.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 5
)

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func exitCode(err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage), fault.Is(err, fault.Invalid):
		return exitUsage
	case fault.Is(err, fault.Unavailable):
		return exitUnreachable
	}
	return exitFailed
}

// settings are the flags, each with a variable of the environment.
type settings struct {
	server, ca       string
	token, tokenFile string
	data, name       string
	seats            int
	verbose          bool
}

func newCommand() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "agentd --server URL --token-file FILE",
		Short: "Run tasks of a Maestro reconciler on this machine",
		Long: `agentd connects to a reconciler and runs the tasks that it is given, one
composition at a time. The first connection needs a join token, which
"reconciler agents invite" prints; from then on the key in the data folder is
enough. Tasks outlive agentd: it may be stopped, upgraded or killed while they run.

Each flag may be given as a variable: --token-file as AGENTD_TOKEN_FILE.
SIGTERM stops agentd and leaves tasks running; on Unix, SIGUSR1 makes it take no
new tasks and end when those it has are done.`,
		Args:              noArgs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Version:           build(),
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnv(cmd.Flags(), os.LookupEnv) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			harden()
			return serve(cmd.Context(), s, newLog(cmd.ErrOrStderr(), s.verbose))
		},
	}
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	f := cmd.PersistentFlags()
	f.StringVar(&s.data, "data", defaultData(), "folder for the key, the journal, workspaces and plugins")
	f.BoolVarP(&s.verbose, "verbose", "v", false, "log steps too")
	f = cmd.Flags()
	f.StringVar(&s.server, "server", "", "address of the reconciler, as https://host:port")
	f.StringVar(&s.ca, "ca", "", "file of certificates to trust besides the system's")
	f.StringVar(&s.token, "token", "", "join token; better in a file, because arguments can be seen by others")
	f.StringVar(&s.tokenFile, "token-file", "", "file that holds the join token")
	f.StringVar(&s.name, "name", hostName(), "name to show people; not an identity")
	f.IntVar(&s.seats, "seats", 0, "most tasks at a time, 0 for no limit")
	cmd.AddCommand(factsCommand(&s), emitCommand(), envCommand(), versionCommand())
	return cmd
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command %q; see %s --help", args[0], cmd.CommandPath())}
	}
	return nil
}

// fromEnv gives every flag that was not set the value of its variable.
func fromEnv(flags *pflag.FlagSet, lookup func(string) (string, bool)) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := "AGENTD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v, ok := lookup(name); ok && !f.Changed && f.Name != "help" {
			if err := flags.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("%s=%q: %w", name, v, err))
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		return usageError{err}
	}
	return nil
}

func factsCommand(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "facts",
		Short: "Print what this machine would be chosen by",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := facts.New(factsDir(s.data), newLog(cmd.ErrOrStderr(), s.verbose))
			c.Refresh(cmd.Context())
			return printFacts(cmd.OutOrStdout(), c.Collect(cmd.Context()), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func printFacts(w io.Writer, raw json.RawMessage, asJSON bool) error {
	var all map[string]any
	if err := json.Unmarshal(raw, &all); err != nil {
		return fmt.Errorf("print facts: %w", err)
	}
	if !asJSON {
		return printTree(w, "", all)
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", b)
	}
	return err
}

// printTree prints one fact a line, with the path by which a requirement names it.
func printTree(w io.Writer, prefix string, m map[string]any) error {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if sub, ok := m[k].(map[string]any); ok {
			if err := printTree(w, prefix+k+".", sub); err != nil {
				return err
			}
			continue
		}
		v, err := json.Marshal(m[k])
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s%s: %s\n", prefix, k, v); err != nil {
			return err
		}
	}
	return nil
}

// emitCommand is here to be found in the help; main has dealt with it before.
func emitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "emit", Short: "Tell the agent something about the running task (for plugins)", Long: emit.Usage,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return usageError{errors.New("emit goes before all flags")}
		},
	}
}

// envCommand is here for the same reason.
func envCommand() *cobra.Command {
	return &cobra.Command{
		Use: "env", Short: "Turn a task's field env into shell assignments (for plugins)", Long: envUsage,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return usageError{errors.New("env goes before all flags")}
		},
	}
}

const envUsage = `Read the task's JSON from standard input, and print a line
export NAME='VALUE' for each member of its field env, for a shell to eval:

  exports=$("$MAESTRO_AGENTD" env) && eval "$exports"
`

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), build())
			return err
		},
	}
}

// build names what this binary was made from.
func build() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return info.Main.Version + " " + s.Value[:12]
		}
	}
	return info.Main.Version
}

func newLog(w io.Writer, verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

func factsDir(data string) string { return filepath.Join(data, "facts.d") }

// defaultData: the system's place for a service, a person's own for a person.
func defaultData() string {
	if os.Geteuid() == 0 {
		return "/var/lib/agentd"
	}
	if dir, err := os.UserConfigDir(); err == nil {
		return filepath.Join(dir, "agentd")
	}
	return "agentd-data"
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "agent"
	}
	return name
}
