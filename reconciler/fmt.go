package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
)

func newFmt() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use: "fmt [PATH...]", Short: "Format CUE files", Args: cobra.ArbitraryArgs,
		Long: `Lay out CUE files in the one way that all tools agree on, and name those that were
changed. A folder means all CUE files below it, except those in cue.mod. With --check
nothing is written, and the exit code is 1 when a file would be.`,
		Example: "  reconciler fmt\n  reconciler fmt --check compositions",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"."}
			}
			files, err := cueFiles(args)
			if err != nil {
				return err
			}
			changed := 0
			var errs []error
			for _, f := range files {
				differs, err := formatFile(f, check)
				if err != nil {
					errs = append(errs, err)
				}
				if differs {
					changed++
					fmt.Fprintln(cmd.OutOrStdout(), f)
				}
			}
			if err := errors.Join(errs...); err != nil {
				return fault.New(fault.Invalid, "%w", err)
			}
			if check && changed > 0 {
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "write nothing; exit with 1 when a file is not formatted")
	return cmd
}

// cueFiles lists the files that are meant. Links are not followed.
func cueFiles(paths []string) ([]string, error) {
	var out []string
	for _, p := range paths {
		err := filepath.WalkDir(p, func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case e.IsDir() && path != p && (e.Name() == "cue.mod" || strings.HasPrefix(e.Name(), ".")):
				return fs.SkipDir
			case e.Type().IsRegular() && (path == p || strings.HasSuffix(path, ".cue")):
				out = append(out, path)
			}
			return nil
		})
		if err != nil {
			return nil, fault.New(fault.NotFound, "look for CUE files: %w", err)
		}
	}
	return out, nil
}

// formatFile reports whether the file is not formatted, and formats it unless only
// that is asked.
func formatFile(path string, check bool) (differs bool, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	neat, err := config.Format(path, text)
	if err != nil || bytes.Equal(text, neat) {
		return false, err
	}
	if check {
		return true, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	return true, durable.WriteFile(path, neat, info.Mode().Perm())
}
