package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func newBackup() *cobra.Command {
	var data, to string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "backup", Short: "Copy record and logs while the server runs, or when it does not", Args: cobra.NoArgs,
		Long: `Copy record and logs into a folder of their own, check the copy, and print where it
is. Run it on the reconciler's machine, as its user: a running server makes the
backup itself and goes on working meanwhile.

Backups made by this command stay until somebody removes them, and share no file with
others; those that the server makes by itself are replaced by newer ones.`,
		Example: "  reconciler backup\n  reconciler backup --to /mnt/backups --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, "RECONCILER_"); err != nil {
				return err
			}
			data, err := dataFolder(cmd.Context(), data)
			if err != nil {
				return err
			}
			if to != "" {
				if to, err = filepath.Abs(to); err != nil {
					return fmt.Errorf("--to: %w", err)
				}
			}
			told := progress(cmd.ErrOrStderr(), asJSON)
			b, err := makeBackup(cmd.Context(), data, to, told)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), b)
			}
			fmt.Fprintln(cmd.OutOrStdout(), b.Path)
			fmt.Fprintf(cmd.ErrOrStderr(), "%s up to change %d, %s. To put it back: reconciler restore %s --data %s\n",
				counted(b.Runs, "run"), b.Seq, size(b.Bytes()), b.Path, data)
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "data folder (that of the server that runs, or "+defaultData()+")")
	cmd.Flags().StringVar(&to, "to", "", "folder for the backup (that of the server's own backups)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the description of the backup as JSON")
	return cmd
}

// dataFolder is the folder that an operator means: the one named, that of the server
// that runs, or the usual one.
func dataFolder(ctx context.Context, named string) (string, error) {
	if named != "" {
		return filepath.Abs(named)
	}
	data, err := runningData(ctx)
	if fault.Is(err, fault.Unavailable) {
		return defaultData(), nil
	}
	return data, err
}

// madeBackup is a backup as the commands print it.
type madeBackup struct {
	Path string `json:"path"`
	store.BackupInfo
}

// makeBackup asks the server that runs on the folder, or does it itself when none does.
func makeBackup(ctx context.Context, data, to string, told store.Progress) (madeBackup, error) {
	release, err := store.Hold(data)
	if fault.Is(err, fault.Conflict) {
		return askBackup(ctx, data, to, told)
	}
	if err != nil {
		return madeBackup{}, err
	}
	if to == "" {
		to = filepath.Join(data, store.BackupFolder)
	}
	b, err := store.Backup(ctx, data, to, store.WhyRequest, told)
	return madeBackup{b.Path, b}, errors.Join(err, release())
}

type backupRequest struct {
	To string `json:"to"`
}

// backupNews is a line of the server's answer: how far it is, and at last what it made
// or why it did not.
type backupNews struct {
	Step  string      `json:"step,omitempty"`
	Done  int64       `json:"done,omitempty"`
	Total int64       `json:"total,omitempty"`
	Made  *madeBackup `json:"made,omitempty"`
	Error string      `json:"error,omitempty"`
}

func askBackup(ctx context.Context, data, to string, told store.Progress) (madeBackup, error) {
	answer, err := openAdmin(ctx, data, "/backup", backupRequest{to})
	if err != nil {
		return madeBackup{}, err
	}
	defer answer.Close()
	for d := json.NewDecoder(answer); ; {
		var news backupNews
		if err := d.Decode(&news); err != nil {
			return madeBackup{}, fault.New(fault.Unavailable, "the server did not end the backup: %w; look into its log, and ask again", err)
		}
		switch {
		case news.Made != nil:
			return *news.Made, nil
		case news.Error != "":
			return madeBackup{}, fault.New(fault.Internal, "%s", news.Error)
		}
		told(news.Step, news.Done, news.Total)
	}
}

// backup is the server's side of the command.
func (s *server) backup(w http.ResponseWriter, r *http.Request) {
	var req backupRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&req); err != nil || req.To != "" && !filepath.IsAbs(req.To) {
		http.Error(w, "not a request for a backup", http.StatusBadRequest)
		return
	}
	if req.To == "" {
		req.To = s.opt.backups()
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, control := json.NewEncoder(w), http.NewResponseController(w)
	say := func(news backupNews) {
		// A backup may take longer than an answer usually may.
		_ = control.SetWriteDeadline(time.Now().Add(time.Minute))
		if out.Encode(news) == nil {
			_ = control.Flush()
		}
	}
	b, err := s.keeper.backup(r.Context(), req.To, store.WhyRequest, func(step string, done, total int64) {
		say(backupNews{Step: step, Done: done, Total: total})
	})
	if err != nil {
		say(backupNews{Error: err.Error()})
		return
	}
	say(backupNews{Made: &madeBackup{b.Path, b}})
}

// progress prints the steps of a copy: each when it ends, and a long one every second.
func progress(w io.Writer, quiet bool) store.Progress {
	if quiet {
		return func(string, int64, int64) {}
	}
	var mu sync.Mutex
	said := time.Now()
	return func(step string, done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if done < total && time.Since(said) < time.Second {
			return
		}
		said = time.Now()
		fmt.Fprintf(w, "%s: %s of %s\n", step, size(done), size(total))
	}
}

func newRestore() *cobra.Command {
	var data string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "restore BACKUP", Short: "Put a backup in the place of record and logs", Args: cobra.ExactArgs(1),
		Long: `Check a backup and put it in the place of record and logs. The server must not
run. What was there is moved into a folder before-restore-TIME, not removed.

The record gets a new incarnation: the assignments of before stay valid, and agents
report again what they still hold. Commits and requests that came after the backup
are looked at again, so that their runs start again.`,
		Example: "  reconciler restore /var/lib/maestro/backups/20260301T101500.000Z-4711 --data /var/lib/maestro",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := fromEnvironment(cmd, "RECONCILER_"); err != nil {
				return err
			}
			dir, err := filepath.Abs(data)
			if err != nil {
				return fmt.Errorf("--data: %w", err)
			}
			backup, err := filepath.Abs(args[0])
			if err != nil {
				return fmt.Errorf("backup: %w", err)
			}
			done, err := store.Restore(cmd.Context(), backup, dir, progress(cmd.ErrOrStderr(), asJSON))
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), done)
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "%s has the state of %s: %s up to change %d, incarnation %d\n", dir,
				done.Backup.MadeAt.Format(time.RFC3339), counted(done.Backup.Runs, "run"), done.Backup.Seq, done.Incarnation)
			if len(done.Damaged) > 0 {
				fmt.Fprintf(w, "%s lost, because of the backup's files these are damaged: %s; an older backup may have them whole\n",
					counted(done.LogsLost, "log"), strings.Join(done.Damaged, ", "))
			}
			if done.Aside != "" {
				fmt.Fprintf(w, "what was there is in %s; remove it when nothing is missing\n", done.Aside)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", defaultData(), "data folder")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was done as JSON")
	return cmd
}
