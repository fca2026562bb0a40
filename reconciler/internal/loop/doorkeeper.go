package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// DoorkeeperConfig configures a Doorkeeper. All fields but URL are required.
type DoorkeeperConfig struct {
	DB         *store.DB
	Forge      Forge
	Discussion Discussion
	Proposals  *Proposals
	// Look makes a pull request be read at once.
	Look func(number int)
	Log  *slog.Logger
	// URL of the web view, without a slash at its end.
	URL string
}

// Doorkeeper keeps a pull request open for each gate that has none to be reviewed at,
// saying what the run has done, and closes it with the outcome when the gate is settled.
// Nothing is remembered over a restart: the branch says what was not finished, and the
// forge which pull request is of it.
type Doorkeeper struct {
	cfg DoorkeeperConfig

	// Owned by Run.
	known map[string]*keeping // by branch
	self  pipeline.Account
}

// keeping is what is known of one door.
type keeping struct {
	number int
	shown  pipeline.Digest // of its texts
	done   string          // the object of the branch that was taken away
	tries  int
	due    time.Time // not to be touched earlier
}

const (
	// restOfDoor is how long a pull request is left alone after it was written.
	restOfDoor = 3 * time.Second
	// restOfDoors is how often all are compared when nothing seems to happen.
	restOfDoors = 30 * time.Second
)

// NewDoorkeeper returns a Doorkeeper that does nothing until Run.
func NewDoorkeeper(cfg DoorkeeperConfig) *Doorkeeper {
	return &Doorkeeper{cfg: cfg, known: map[string]*keeping{}}
}

// Run opens and closes pull requests until ctx ends, and returns nil then.
func (k *Doorkeeper) Run(ctx context.Context) error {
	timer := time.NewTimer(restOfDoors)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.cfg.Proposals.doorsMoved:
		case <-timer.C:
		}
		next, err := k.pass(ctx)
		if err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("pull requests of gates not looked after", "err", err)
		}
		timer.Reset(next)
	}
}

// pass compares all doors with how they should be, and returns when to do so again.
func (k *Doorkeeper) pass(ctx context.Context) (time.Duration, error) {
	k.cfg.Proposals.mu.Lock()
	d := k.cfg.Proposals.doors
	k.cfg.Proposals.mu.Unlock()
	if d == nil {
		return restOfDoors, nil
	}
	var errs []error
	next := restOfDoors
	each := func(branch string, f func(*keeping) error) {
		one := k.known[branch]
		if one == nil {
			one = &keeping{}
			k.known[branch] = one
		}
		if err := k.touch(one, f); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", branch, err))
		}
		if wait := time.Until(one.due); wait > 0 {
			next = min(next, wait)
		}
	}
	for _, branch := range slices.Sorted(maps.Keys(d.open)) {
		want := d.open[branch]
		each(branch, func(one *keeping) error { return k.open(ctx, branch, one, &want) })
	}
	for _, branch := range slices.Sorted(maps.Keys(d.branches)) {
		if _, _, _, ok := doorName(branch); ok && !d.kept[branch] && ctx.Err() == nil {
			each(branch, func(one *keeping) error { return k.close(ctx, branch, one, d.branches[branch], d.elsewhere[branch]) })
		}
	}
	maps.DeleteFunc(k.known, func(branch string, _ *keeping) bool { return !d.kept[branch] && d.branches[branch] == "" })
	return next, errors.Join(errs...)
}

// touch does something to a door unless that has to wait, later each time it fails.
func (k *Doorkeeper) touch(one *keeping, f func(*keeping) error) error {
	if time.Now().Before(one.due) {
		return nil
	}
	one.due = time.Time{}
	err := f(one)
	if err == nil {
		one.tries = 0
		return nil
	}
	one.tries++
	one.due = time.Now().Add(min(time.Second<<min(one.tries-1, 8), 5*time.Minute))
	return err
}

// open makes the forge show a door as it should be.
func (k *Doorkeeper) open(ctx context.Context, branch string, one *keeping, want *door) error {
	if !want.there {
		return nil
	}
	title, body := want.talk.Title(), want.talk.Markdown()
	digest := pipeline.DigestOf([]byte(title + "\x00" + body))
	if one.number != 0 && one.shown == digest && !want.reopen {
		return nil
	}
	err := k.show(ctx, branch, one, want, title, body)
	if err != nil {
		k.cfg.Proposals.doorOpened(branch, opened{number: one.number, problem: err.Error()})
		return err
	}
	one.shown, one.due = digest, time.Now().Add(restOfDoor)
	k.cfg.Proposals.doorOpened(branch, opened{number: one.number})
	if want.reopen {
		k.cfg.Look(one.number)
	}
	return nil
}

func (k *Doorkeeper) show(ctx context.Context, branch string, one *keeping, want *door, title, body string) error {
	if one.number == 0 {
		// One may be open of which the answer was lost, or that was opened before a restart.
		if err := k.find(ctx, branch, one, string(want.head)); err != nil {
			return err
		}
	}
	if one.number != 0 {
		state := "" // whoever closed it is to be heard first
		if want.reopen {
			state = "open"
		}
		err := k.cfg.Forge.EditPull(ctx, one.number, title, body, state)
		if !fault.Is(err, fault.NotFound) && !(want.reopen && fault.Is(err, fault.Invalid)) {
			return err
		}
		one.number = 0 // it is gone, or cannot be opened again
	}
	number, err := k.cfg.Forge.OpenPull(ctx, branch, doorBase, title, body)
	if err != nil {
		return err
	}
	one.number = number
	k.cfg.Log.Info("pull request of a gate opened", "branch", branch, "pull", number, "head", want.head)
	return nil
}

// find looks for the pull request of a door, an open one first.
func (k *Doorkeeper) find(ctx context.Context, branch string, one *keeping, head string) error {
	if k.self.ID == 0 {
		self, err := k.cfg.Forge.Self(ctx)
		if err != nil {
			return err
		}
		k.self = self
	}
	list, err := k.cfg.Forge.PullsOf(ctx, branch)
	if err != nil {
		return err
	}
	for _, p := range list {
		// Who may push could have opened another one of the branch.
		if p.Author.ID != k.self.ID || string(p.Head) != head || p.Target != doorBase {
			continue
		}
		if one.number == 0 || !p.Closed {
			one.number = p.Number
		}
		if !p.Closed {
			break
		}
	}
	return nil
}

// close closes a door with what came of its gate, and takes the branch away, in this
// order: while there is a branch it is not done. elsewhere is the pull request at which
// the gate is reviewed instead, 0 for none.
func (k *Doorkeeper) close(ctx context.Context, branch string, one *keeping, object string, elsewhere int) error {
	if one.done == object {
		return nil // those that were observed last do not show it yet
	}
	if one.number == 0 {
		if err := k.find(ctx, branch, one, object); err != nil {
			return err
		}
	}
	if one.number != 0 {
		title, body, err := k.outcome(ctx, branch, elsewhere)
		if err != nil {
			return err
		}
		// What a person has to grant does not keep the branch.
		if err := k.cfg.Forge.EditPull(ctx, one.number, title, body, "closed"); fault.Is(err, fault.Unavailable) {
			return err
		} else if err != nil {
			k.cfg.Log.Warn("pull request of a gate not closed", "branch", branch, "pull", one.number, "err", err)
		}
	}
	err := k.cfg.Discussion.Remove(ctx, pipeline.Ref(headsOf+branch), object)
	if err != nil && !fault.Is(err, fault.Conflict) {
		return err
	}
	k.cfg.Log.Info("pull request of a gate closed", "branch", branch, "pull", one.number)
	one.done, one.number = object, 0
	return nil
}

// outcome says how a gate ended.
func (k *Doorkeeper) outcome(ctx context.Context, branch string, elsewhere int) (title, body string, err error) {
	composition, number, task, _ := doorName(branch)
	title = fmt.Sprintf("%s#%d waits at %s", composition, number, task)
	if elsewhere != 0 {
		return title, fmt.Sprintf("**maestro: it is reviewed at #%d, which the run comes from**\n", elsewhere), nil
	}
	r, err := k.cfg.DB.RunByNumber(ctx, composition, number)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return "", "", err
	}
	if err != nil || r.Task(task) == nil || !r.Task(task).State.Terminal() {
		return title, "**maestro: nothing waits here any more**\n", nil
	}
	talk := plan.GateTalk{Run: r, Task: r.Task(task), URL: k.cfg.URL}
	return talk.Title(), talk.Markdown(), nil
}

// doorName reads the name of a door's branch.
func doorName(branch string) (c pipeline.CompositionName, number int, task pipeline.TaskName, ok bool) {
	parts := strings.Split(strings.TrimPrefix(branch, doorSpace), "/")
	if len(parts) != 3 {
		return "", 0, "", false
	}
	number, err := strconv.Atoi(parts[1])
	c, task = pipeline.CompositionName(parts[0]), pipeline.TaskName(parts[2])
	return c, number, task, err == nil && DoorBranch(c, number, task) == branch && pipeline.ValidName(parts[0]) && pipeline.ValidName(parts[2])
}
