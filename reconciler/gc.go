package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

const (
	// collectEvery is how often the server removes what the policy does not keep, and
	// firstCollect when it begins: a start has better things to do.
	collectEvery = 10 * time.Minute
	firstCollect = time.Minute
	// packEvery is how often logs of attempts that have ended are packed.
	packEvery = 30 * time.Second
	// collectBatch runs, or rows of a kind, go in one transaction, and collectPause
	// after it belongs to everybody else.
	collectBatch = 20
	sweepBatch   = 200
	collectPause = 10 * time.Millisecond
	// mostListed bounds the runs that a dry run names.
	mostListed = 100
)

// collector removes from record and logs what the policy does not keep.
type collector struct {
	db   *store.DB
	logs *store.Logs
	// policy returns the policy in force, fault.Unavailable while that is not known.
	policy func() (*pipeline.Policy, error)
	// followed returns the change up to which what follows from ended runs was done.
	followed func() pipeline.Seq
	log      *slog.Logger

	damaged atomic.Pointer[string] // that logs could not be packed

	mu sync.Mutex // one collection at a time
}

// collected is what a collection removed, or would remove.
type collected struct {
	Keep     pipeline.Keep `json:"keep"`
	Runs     int           `json:"runs"`
	Logs     int           `json:"logs"`
	LogBytes int64         `json:"log_bytes"`
	// Packed are logs that were made smaller.
	Packed int `json:"packed"`
	// Rows are commits, statuses, changes and the like.
	Rows int `json:"rows"`
	// Named are the runs of a dry run, oldest first, at most 100.
	Named []string `json:"named,omitempty"`
}

// run packs logs and collects now and then until ctx ends.
func (c *collector) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.pack(ctx) }) // ends with ctx
	for wait := firstCollect; ; wait = collectEvery {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		done, err := c.collect(ctx, false)
		switch {
		case ctx.Err() != nil:
			return nil
		case fault.Is(err, fault.Unavailable):
			c.log.Debug("nothing removed yet", "err", err)
		case err != nil:
			c.log.Error("what the policy does not keep was not removed", "err", err)
		case done.Runs+done.Logs > 0:
			c.log.Info("removed what the policy does not keep", "runs", done.Runs, "logs", done.Logs, "log_bytes", done.LogBytes, "rows", done.Rows)
		}
	}
}

// pack makes the logs of attempts that have ended smaller.
func (c *collector) pack(ctx context.Context) {
	tick := time.NewTicker(packEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c.mu.Lock()
		err := c.packAll(ctx, store.Keep{}, &collected{})
		c.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			c.log.Error("logs not packed", "err", err)
		}
	}
}

// packAll makes the logs smaller of all attempts that have ended. One that is damaged
// stays as it is.
func (c *collector) packAll(ctx context.Context, _ store.Keep, done *collected) error {
	var damaged []pipeline.AttemptID
	for after := int64(0); ; {
		id, next, err := c.logs.Pack(ctx, after)
		switch {
		case store.IsDamaged(err) && id != "":
			damaged = append(damaged, id)
		case err != nil:
			return err
		case id == "":
			c.tellDamaged(damaged)
			return nil
		default:
			done.Packed++
		}
		after = next
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// tellDamaged makes a notice of the logs that could not be packed, none for none.
func (c *collector) tellDamaged(ids []pipeline.AttemptID) {
	if len(ids) == 0 {
		c.damaged.Store(nil)
		return
	}
	said := fmt.Sprintf("%s cannot be packed for damage, the first is that of attempt %s. The rest of it can be read, and nothing else is touched; "+
		"what is damaged is told by: reconciler fsck", counted(len(ids), "log"), ids[0])
	if before := c.damaged.Swap(&said); before == nil || *before != said {
		c.log.Error("logs are damaged and not packed", "attempts", len(ids), "attempt_id", ids[0])
	}
}

// notices are sentences on what needs a person.
func (c *collector) notices() []string {
	if said := c.damaged.Load(); said != nil {
		return []string{*said}
	}
	return nil
}

// collect removes, or with dry only counts, what the policy in force does not keep. It
// is done in small transactions, and may be cut off between any two of them.
func (c *collector) collect(ctx context.Context, dry bool) (collected, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var done collected
	law, err := c.policy()
	if err != nil {
		return done, err
	}
	if r := c.db.Rollback(); r != nil {
		return done, fault.New(fault.Unavailable, "nothing is removed: %s", r.Sentence())
	}
	done.Keep = pipeline.DefaultKeep()
	if law.Keep != nil {
		done.Keep = *law.Keep
	}
	now := time.Now()
	keep := store.Keep{
		RunsSince: now.Add(-time.Duration(done.Keep.Runs.Age)), RunsEach: done.Keep.Runs.Count,
		LogsSince: now.Add(-time.Duration(done.Keep.Logs.Age)), Followed: c.followed(),
	}
	if dry {
		return done, c.count(ctx, keep, &done)
	}
	for _, step := range []func(context.Context, store.Keep, *collected) error{c.runs, c.oldLogs, c.packAll, c.sweep, c.shrink} {
		if err := step(ctx, keep, &done); err != nil {
			return done, err
		}
	}
	return done, nil
}

// count tells what would go. What goes only because its caller went first is not seen.
func (c *collector) count(ctx context.Context, keep store.Keep, done *collected) error {
	const all = 1 << 30
	runs, err := c.db.Removable(ctx, keep, all)
	if err != nil {
		return err
	}
	done.Runs = len(runs)
	for _, r := range runs[:min(len(runs), mostListed)] {
		done.Named = append(done.Named, fmt.Sprintf("%s#%d", r.Composition, r.Number))
	}
	return c.expired(ctx, keep, func(old []pipeline.AttemptID) error {
		for _, id := range old {
			n, err := c.logs.Length(ctx, id)
			if err != nil {
				return err
			}
			done.Logs++
			done.LogBytes += n.Bytes
		}
		return nil
	})
}

// runs removes runs, their logs first: what a crash leaves is a run whose log is gone,
// and goes next time.
func (c *collector) runs(ctx context.Context, keep store.Keep, done *collected) error {
	for {
		runs, err := c.db.Removable(ctx, keep, collectBatch)
		if err != nil || len(runs) == 0 {
			return err
		}
		attempts, err := c.db.AttemptsOf(ctx, runs)
		if err != nil {
			return err
		}
		bytes, err := c.logs.Remove(ctx, attempts, "")
		if err != nil {
			return err
		}
		n, err := c.db.RemoveRuns(ctx, keep, runs)
		if err != nil {
			return err
		}
		done.Runs += n
		done.Logs += len(attempts)
		done.LogBytes += bytes
		if n == 0 { // all of them have become needed meanwhile
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// expired calls each with attempts whose logs are older than they are kept.
func (c *collector) expired(ctx context.Context, keep store.Keep, each func([]pipeline.AttemptID) error) error {
	const page = 1000
	for after := int64(0); ; {
		here, next, err := c.logs.Here(ctx, after, page)
		if err != nil || len(here) == 0 {
			return err
		}
		after = next
		old, err := c.db.EndedBefore(ctx, keep.LogsSince, here)
		if err == nil && len(old) > 0 {
			err = each(old)
		}
		if err != nil {
			return err
		}
	}
}

// oldLogs removes logs for their age.
func (c *collector) oldLogs(ctx context.Context, keep store.Keep, done *collected) error {
	notice := fmt.Sprintf("[maestro] the log was removed: the policy keeps logs for %s", done.Keep.Logs.Age)
	return c.expired(ctx, keep, func(old []pipeline.AttemptID) error {
		for batch := range slices.Chunk(old, collectBatch) {
			bytes, err := c.logs.Remove(ctx, batch, notice)
			if err != nil {
				return err
			}
			done.Logs += len(batch)
			done.LogBytes += bytes
			if err := pause(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// sweep removes what nothing needs any more.
func (c *collector) sweep(ctx context.Context, keep store.Keep, done *collected) error {
	for {
		n, err := c.db.Sweep(ctx, keep, sweepBatch)
		if err != nil {
			return err
		}
		done.Rows += n
		if n == 0 {
			break
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	if done.Runs == 0 {
		return nil
	}
	n, err := c.db.SweepCompositions(ctx)
	done.Rows += n
	return err
}

// shrink gives what is not used back to the file system.
func (c *collector) shrink(ctx context.Context, _ store.Keep, _ *collected) error {
	for _, shrink := range []func(context.Context) (bool, error){c.db.Shrink, c.logs.Shrink} {
		for more := true; more; {
			var err error
			if more, err = shrink(ctx); err != nil {
				return err
			}
			if err := pause(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// pause lets others write.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(collectPause):
		return nil
	}
}

func newGC() *cobra.Command {
	var data string
	var dry, asJSON bool
	cmd := &cobra.Command{
		Use: "gc", Short: "Remove from the record what the policy does not keep, now", Args: cobra.NoArgs,
		Long: `Remove runs and logs that are older than the policy in force keeps them (policy:
keep), now and not when the server would do it by itself, which is every ten minutes.
The latest success of a composition on each branch stays, and all that is under way.
It asks the server that runs on the data folder.`,
		Example: "  reconciler gc --dry-run\n  reconciler gc",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, "RECONCILER_"); err != nil {
				return err
			}
			data, err := dataFolder(cmd.Context(), data)
			if err != nil {
				return err
			}
			var done collected
			if err := askAdmin(cmd.Context(), data, "/gc", gcRequest{dry}, &done); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), done)
			}
			w := cmd.OutOrStdout()
			for _, name := range done.Named {
				fmt.Fprintln(w, name)
			}
			verb := "removed"
			if dry {
				verb = "would remove"
			}
			fmt.Fprintf(w, "%s %s and %s of %s; the policy keeps runs for %s and %d of each composition, logs for %s\n", verb,
				counted(done.Runs, "run"), counted(done.Logs, "log"), size(done.LogBytes), done.Keep.Runs.Age, done.Keep.Runs.Count, done.Keep.Logs.Age)
			if done.Packed > 0 {
				fmt.Fprintf(w, "packed %s\n", counted(done.Packed, "log"))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "data folder of the running server (the one that runs, by serve or dev)")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "tell what would go, and remove nothing")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was removed as JSON")
	return cmd
}

type gcRequest struct {
	Dry bool `json:"dry"`
}

// gc is the server's side of the command.
func (s *server) gc(w http.ResponseWriter, r *http.Request) {
	var req gcRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<10)).Decode(&req); err != nil {
		http.Error(w, "not a request to remove: "+err.Error(), http.StatusBadRequest)
		return
	}
	// It takes as long as there is to remove; whoever asks may go away.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	done, err := s.collector.collect(r.Context(), req.Dry)
	if err != nil {
		s.log.Warn("not collected", "err", err)
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	answerJSON(w, done)
}
