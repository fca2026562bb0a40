package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

const (
	defaultBackupEvery = 15 * time.Minute
	defaultBackupKeep  = 8
	// watchEvery is how often the server looks after its folder.
	watchEvery = 5 * time.Second
	// retryBackup is the pause after a backup that went wrong.
	retryBackup = time.Minute
)

// keeper looks after the data folder of a running server: it makes backups, notes how
// far the record is, and tells when something needs a person. Make it with newKeeper,
// run it with run; its other methods may be called by any goroutine.
type keeper struct {
	opt options
	db  *store.DB
	log *slog.Logger
	// rolled, if any, is called again and again while there is a rollback.
	rolled func()

	backups sync.Mutex // one at a time

	low atomic.Pointer[string] // that there is too little room

	mu      sync.Mutex
	problem string // of the last backup; guarded by mu
}

func newKeeper(opt options, db *store.DB, log *slog.Logger) *keeper {
	return &keeper{opt: opt, db: db, log: log}
}

// run works until ctx ends, and returns nil then.
func (k *keeper) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if k.opt.backupEvery > 0 {
		wg.Go(func() { k.scheduled(ctx) }) // ends with ctx
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	k.watch()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		k.watch()
		if k.low.Load() == nil { // not before the first tick: a start has better things to write
			if err := store.Reserve(k.opt.data); err != nil {
				k.log.Error("no reserve on the disk", "err", err)
			}
		}
	}
}

// watch is one look at the folder.
func (k *keeper) watch() {
	if err := k.db.Mark(); err != nil {
		k.log.Error("data folder not looked after", "err", err)
	}
	k.look()
	if k.rolled != nil && k.db.Rollback() != nil {
		k.rolled()
	}
}

// heldBack is what tasks and agents wait for while there is a rollback.
const heldBack = "nothing is given to agents: the server's record is older than it was, and somebody has to confirm that, with: reconciler fsck --accept-rollback"

// hold says why nothing is given to agents, "" when it is.
func (k *keeper) hold() string {
	if r := k.db.Rollback(); r != nil {
		return heldBack
	}
	if low := k.low.Load(); low != nil {
		return *low
	}
	return ""
}

// look compares the room on the disk with what there must be.
func (k *keeper) look() {
	space, err := store.SpaceOf(k.opt.data)
	if err != nil {
		k.log.Error("room on the disk not known", "err", err)
		return
	}
	before := k.low.Load()
	mark := k.opt.lowWater.mark(space)
	if space.Free < mark {
		said := fmt.Sprintf("nothing is given to agents: the disk of %s has %s free, and %s are needed; results are still taken. "+
			"Make room, and it goes on by itself", k.opt.data, size(space.Free), size(mark))
		k.low.Store(&said)
		if before == nil {
			k.log.Error("disk is nearly full", "free", space.Free, "low_water", mark)
		}
		return
	}
	k.low.Store(nil)
	if before != nil {
		k.log.Info("disk has room again", "free", space.Free, "low_water", mark)
	}
}

// notices are sentences on what needs a person, most urgent first.
func (k *keeper) notices() []string {
	var out []string
	if r := k.db.Rollback(); r != nil {
		out = append(out, r.Sentence())
	}
	if low := k.low.Load(); low != nil {
		out = append(out, *low)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.problem != "" {
		out = append(out, k.problem)
	}
	return out
}

// scheduled makes a backup whenever the newest is old enough and something has happened
// since.
func (k *keeper) scheduled(ctx context.Context) {
	began := time.Now()
	for {
		wait := k.untilBackup(began)
		if wait <= 0 && k.low.Load() != nil {
			wait = watchEvery // a backup takes room
		}
		if wait <= 0 {
			_, err := k.backup(ctx, k.opt.backups(), store.WhySchedule, nil)
			if err == nil {
				err = store.PruneBackups(k.opt.backups(), k.opt.backupKeep)
			}
			if ctx.Err() != nil {
				return
			}
			k.tell(err)
			wait = min(k.opt.backupEvery, retryBackup)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// tell remembers how the last backup went.
func (k *keeper) tell(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.problem = ""
	if err != nil {
		k.problem = fmt.Sprintf("No backup was made at %s, and it is tried again: %v", time.Now().UTC().Format(time.RFC3339), err)
		k.log.Error("backup not made", "err", err)
	}
}

// untilBackup returns how long the next backup may wait. One is made for news alone.
func (k *keeper) untilBackup(began time.Time) time.Duration {
	list, err := store.Backups(k.opt.backups())
	if err != nil {
		k.tell(err)
		return retryBackup
	}
	last := began
	if len(list) > 0 && list[0].StoreID == k.db.ID() {
		last = list[0].MadeAt
		// A clock that was set back must not put it off for as long.
		if last.After(time.Now()) {
			last = began
		}
		if list[0].Seq == k.db.Watermark().Seq && !k.newLogs(list[0].MadeAt) {
			return min(k.opt.backupEvery, retryBackup)
		}
	}
	return time.Until(last.Add(k.opt.backupEvery))
}

// newLogs reports whether log bytes may have been written since.
func (k *keeper) newLogs(since time.Time) bool {
	for _, name := range []string{"logs.db", "logs.db-wal"} {
		if info, err := os.Stat(filepath.Join(k.opt.data, name)); err == nil && info.ModTime().After(since) {
			return true
		}
	}
	return false
}

func (k *keeper) backup(ctx context.Context, to, why string, told store.Progress) (store.BackupInfo, error) {
	k.backups.Lock()
	defer k.backups.Unlock()
	began := time.Now()
	b, err := store.Backup(ctx, k.opt.data, to, why, told)
	if err == nil {
		k.log.Info("backup made", "path", b.Path, "why", why, "seq", b.Seq, "bytes", b.Bytes(), "took", time.Since(began))
		if len(b.Replaced) > 0 {
			k.log.Error("files of backups were damaged on the disk, and are made anew", "folder", to, "files", b.Replaced)
		}
	}
	return b, err
}

// backups is the folder of the backups.
func (o *options) backups() string {
	return cmp.Or(o.backupDir, filepath.Join(o.data, store.BackupFolder))
}

// backupBeforeMigration copies the files of the data folder when opening them would
// change their form.
func backupBeforeMigration(ctx context.Context, opt options, log *slog.Logger) error {
	// What is wrong with a file is said by whoever opens it.
	if pending, err := store.Pending(ctx, opt.data); err != nil || !pending {
		return nil
	}
	release, err := store.Hold(opt.data)
	if err != nil {
		return err
	}
	b, err := store.Backup(ctx, opt.data, opt.backups(), store.WhyMigration, nil)
	if releaseErr := release(); err == nil {
		err = releaseErr
	}
	if err != nil {
		return fault.New(fault.KindOf(err), "before the record is brought to the form of this version: %w", err)
	}
	log.Info("backup made", "path", b.Path, "why", store.WhyMigration, "seq", b.Seq, "bytes", b.Bytes())
	return nil
}
