package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func newFsck() *cobra.Command {
	var data string
	var asJSON, accept bool
	cmd := &cobra.Command{
		Use: "fsck", Short: "Check record and logs, or a backup of them", Args: cobra.NoArgs,
		Long: `Check that the files of a data folder or of a backup are whole, and that what they
say is consistent, and compare every packed log with its digest. Nothing is changed,
and the server may run meanwhile.
The exit code is 1 when something is broken.

A server whose record is older than agents or the folder know it to have been gives
no work to agents. When an old backup was put in place on purpose, --accept-rollback
says so, to the server that runs or in a folder that none has.`,
		Example: "  reconciler fsck\n  reconciler fsck --data /mnt/backups/20260301T101500.000Z-4711 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, "RECONCILER_"); err != nil {
				return err
			}
			data, err := dataFolder(cmd.Context(), data)
			if err != nil {
				return err
			}
			if accept {
				return acceptRollback(cmd, data)
			}
			return fsck(cmd, data, asJSON)
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "data folder or backup (the folder of the server that runs, or "+defaultData()+")")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was found as JSON")
	cmd.Flags().BoolVar(&accept, "accept-rollback", false, "confirm that the record is meant to be older than it was")
	return cmd
}

func fsck(cmd *cobra.Command, data string, asJSON bool) error {
	report, err := store.Fsck(cmd.Context(), data)
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	if asJSON {
		if err := writeJSON(w, report); err != nil {
			return err
		}
	} else {
		broken := 0
		for _, f := range report.Findings {
			mark := "!"
			if !f.Warning {
				mark = "✗"
				broken++
			}
			fmt.Fprintf(w, "%s %-4s %s\n       where: %s\n       next:  %s\n", mark, f.Rule, oneLine(f.What), oneLine(f.Where), oneLine(f.Next))
		}
		fmt.Fprintf(w, "%s: %s, %s, change %d of incarnation %d: %s, %s\n", report.Dir, counted(report.Runs, "run"), counted(report.Logs, "log"),
			report.Seq, report.Incarnation, counted(broken, "problem"), counted(len(report.Findings)-broken, "warning"))
	}
	if report.Broken() {
		return &exitError{code: exitFailed}
	}
	return nil
}

type acceptAnswer struct {
	Incarnation int64 `json:"incarnation"`
}

func acceptRollback(cmd *cobra.Command, data string) error {
	var done acceptAnswer
	release, err := store.Hold(data)
	switch {
	case err == nil:
		if err := release(); err != nil {
			return err
		}
		db, err := store.Open(cmd.Context(), data, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
		if err != nil {
			return err
		}
		defer db.Close()
		if err := db.AcceptRollback(cmd.Context()); err != nil {
			return err
		}
		done.Incarnation = db.Incarnation()
	case fault.Is(err, fault.Conflict):
		if err := askAdmin(cmd.Context(), data, "/accept-rollback", struct{}{}, &done); err != nil {
			return err
		}
	default:
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "accepted: the record goes on from here as incarnation %d\n", done.Incarnation)
	return nil
}

// acceptRollback is the server's side of the command.
func (s *server) acceptRollback(w http.ResponseWriter, r *http.Request) {
	if err := s.db.AcceptRollback(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	answerJSON(w, acceptAnswer{s.db.Incarnation()})
}
