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
		Long: `Write a starter ops repository into DIR, or into the folder that you are in: one
composition, one pool, and the schema, so that editors and the cue command understand
it. A file that is there already is kept as it is.`,
		Example: "  reconciler init ~/pipelines && cd ~/pipelines && git init -b main && git add -A && git commit -m start",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := dirOf(args)
			if _, err := os.Stat(filepath.Join(dir, opsFile)); err == nil {
				return fault.New(fault.Conflict, "%s is there: this is an ops repository already, and nothing is written. To check it: %sreconciler vet; to renew its copy of the schema: %sreconciler vendor",
					filepath.Join(dir, opsFile), changeTo(dir), changeTo(dir))
			}
			kept, err := writeNew(dir, config.InitFiles(), false)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			for _, name := range slices.Sorted(maps.Keys(config.InitFiles())) {
				switch {
				case vendored(name):
				case slices.Contains(kept, name):
					fmt.Fprintf(w, "%s (kept: it was there)\n", filepath.Join(dir, name))
				default:
					fmt.Fprintln(w, filepath.Join(dir, name))
				}
			}
			fmt.Fprintf(w, "%s (the schema, for editors and cue vet -c=false)\n\nnext: %sreconciler vet, then commit and push\n",
				filepath.Join(dir, "cue.mod", "pkg"), changeTo(dir))
			return nil
		},
	}
}

// opsFile is at the root of every ops repository.
const opsFile = "ops.cue"

// changeTo is the beginning of a command line that is for dir.
func changeTo(dir string) string {
	if filepath.Clean(dir) == "." {
		return ""
	}
	return "cd " + dir + " && "
}

// moduleAbove returns the root of the CUE module that dir is in, which is a folder
// above it or dir itself; dir when it is in none.
func moduleAbove(dir string) (string, error) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "", fault.New(fault.NotFound, "%s is not a folder", dir)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("path of %s: %w", dir, err)
	}
	for at := abs; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "cue.mod", "module.cue")); err == nil {
			if at == abs {
				return dir, nil
			}
			return at, nil
		}
		if at == filepath.Dir(at) {
			return dir, nil
		}
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
			dir, err := moduleAbove(dirOf(args))
			if err != nil {
				return err
			}
			files := map[string][]byte{}
			for name, b := range config.InitFiles() {
				if vendored(name) {
					files[name] = b
				}
			}
			if _, err := writeNew(dir, files, true); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d files below %s\n", len(files), filepath.Join(dir, "cue.mod", "pkg"))
			return nil
		},
	}
}

// writeNew writes files below dir. Unless replace is set it keeps those that are
// there already, and returns their names.
func writeNew(dir string, files map[string][]byte, replace bool) (kept []string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fault.New(fault.Invalid, "make %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.New(fault.Invalid, "open %s: %w", dir, err)
	}
	defer root.Close()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !replace {
			if _, err := root.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
				kept = append(kept, name)
				continue
			}
		}
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return nil, fault.New(fault.Invalid, "write %s: %w", filepath.Join(dir, name), err)
		}
		if err := root.WriteFile(name, files[name], 0o644); err != nil {
			return nil, fault.New(fault.Invalid, "write %s: %w", filepath.Join(dir, name), err)
		}
	}
	return kept, nil
}

func newVet() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "vet [DIR]", Short: "Check the compositions of a working copy", Args: cobra.MaximumNArgs(1),
		Long: `Check every composition, pool and plugin of a working copy, as the server would
check a commit of it, and report all mistakes. DIR may be any folder of it. The exit code
is 1 when there is an error. The ranges of --json count as the Language Server Protocol
does: from zero, in UTF-16 code units.`,
		Example: "  reconciler vet\n  reconciler vet ~/pipelines --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := moduleAbove(dirOf(args))
			if err != nil {
				return err
			}
			if dir != dirOf(args) {
				fmt.Fprintln(cmd.ErrOrStderr(), "in", dir)
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
	source := func(file string) []byte {
		b, _ := fs.ReadFile(folder, file)
		return b
	}
	switch {
	case asJSON:
		if err := writeJSON(cmd.OutOrStdout(), config.ForEditors(cfg.Diagnostics, source)); err != nil {
			return err
		}
	default:
		if err := config.RenderDiagnostics(cmd.OutOrStdout(), cfg.Diagnostics, source, colour(os.Stdout)); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %s\n", describe(cfg), counted(errs, "error"), counted(warnings, "warning"))
	}
	if errs > 0 {
		return &exitError{code: exitFailed}
	}
	return nil
}
