package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func dirOf(args []string) string {
	if len(args) == 0 {
		return "."
	}
	return args[0]
}

func newInit() *cobra.Command {
	return &cobra.Command{
		Use: "init [DIR]", Short: "Write a repository that works", Args: cobra.MaximumNArgs(1),
		Long: `Write a starter ops repository into DIR: one composition, one pool, and the
schema, so that editors and the cue command understand it. A file that is there
already is never touched.`,
		Example: "  reconciler init ~/pipelines && cd ~/pipelines && git init -b main && git add -A && git commit -m start",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirOf(args)
			files := config.InitFiles()
			if err := writeNew(dir, files, false); err != nil {
				return err
			}
			for _, name := range slices.Sorted(maps.Keys(files)) {
				if !vendored(name) {
					fmt.Fprintln(cmd.OutOrStdout(), filepath.Join(dir, name))
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n\nnext: cd %s && reconciler vet, then commit and push\n",
				filepath.Join(dir, "cue.mod", "pkg")+" (the schema, for editors and cue vet -c=false)", dir)
			return nil
		},
	}
}

func vendored(name string) bool {
	ok, _ := filepath.Match("cue.mod/pkg/*", filepath.ToSlash(name)[:min(len(name), len("cue.mod/pkg/x"))])
	return ok
}

func newVendor() *cobra.Command {
	return &cobra.Command{
		Use: "vendor [DIR]", Short: "Write this version's schema into cue.mod, for editors", Args: cobra.MaximumNArgs(1),
		Long: `Write the schema and the standard plugins of this version below cue.mod/pkg, where
editors and the cue command find them. The server never reads them there: it uses
its own.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			files := map[string][]byte{}
			for name, b := range config.InitFiles() {
				if vendored(name) {
					files[name] = b
				}
			}
			if err := writeNew(dirOf(args), files, true); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d files below %s\n", len(files), filepath.Join(dirOf(args), "cue.mod", "pkg"))
			return nil
		},
	}
}

// writeNew writes files below dir. Unless replace is set it writes none when any
// of them is there already.
func writeNew(dir string, files map[string][]byte, replace bool) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fault.New(fault.Invalid, "make %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fault.New(fault.Invalid, "open %s: %w", dir, err)
	}
	defer root.Close()
	names := slices.Sorted(maps.Keys(files))
	if !replace {
		for _, name := range names {
			if _, err := root.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
				return fault.New(fault.Conflict, "%s is there already; init writes into a new folder and replaces nothing", filepath.Join(dir, name))
			}
		}
	}
	for _, name := range names {
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fault.New(fault.Invalid, "write %s: %w", filepath.Join(dir, name), err)
		}
		if err := root.WriteFile(name, files[name], 0o644); err != nil {
			return fault.New(fault.Invalid, "write %s: %w", filepath.Join(dir, name), err)
		}
	}
	return nil
}

func newVet() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "vet [DIR]", Short: "Check the compositions of a working copy", Args: cobra.MaximumNArgs(1),
		Long: `Check every composition, pool and plugin of a working copy, as the server would
check a commit of it, and report all mistakes. The exit code is 1 when there is
an error.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirOf(args)
			if info, err := os.Stat(dir); err != nil || !info.IsDir() {
				return fault.New(fault.NotFound, "%s is not a folder", dir)
			}
			e, err := newEvaluator(slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			defer e.Close()
			folder := os.DirFS(dir)
			cfg, err := e.Evaluate(cmd.Context(), "", config.FSTree(folder))
			if err != nil {
				return err
			}
			return printVet(cmd, folder, &cfg, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the diagnostics as JSON")
	return cmd
}

func printVet(cmd *cobra.Command, folder fs.FS, cfg *pipeline.Config, asJSON bool) error {
	errs := count(cfg.Diagnostics, pipeline.SeverityError)
	warnings := len(cfg.Diagnostics) - errs
	switch {
	case asJSON:
		if err := writeJSON(cmd.OutOrStdout(), slices.Concat([]pipeline.Diagnostic{}, cfg.Diagnostics)); err != nil {
			return err
		}
	default:
		source := func(file string) []byte {
			b, _ := fs.ReadFile(folder, file)
			return b
		}
		if err := config.RenderDiagnostics(cmd.OutOrStdout(), cfg.Diagnostics, source, colour(os.Stdout)); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %d errors, %d warnings\n", describe(cfg), errs, warnings)
	}
	if errs > 0 {
		return &exitError{code: exitFailed}
	}
	return nil
}
