package forge

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Register is the desired state, one row for each commit and context, as the
// record keeps it. A row is due while what was last posted has another digest
// than what is desired, and its time has come. When the desire changes, the
// register forgets what was posted: a post whose reply was lost may have arrived,
// so a return to an earlier status has to be posted again.
type Register interface {
	// DueStatuses returns rows that are due, at most limit, the longest waiting
	// first.
	DueStatuses(ctx context.Context, now time.Time, limit int) ([]pipeline.DueStatus, error)
	// MarkPosted notes that the forge shows the versions with these digests. Where
	// another version is desired by then, the row stays due.
	MarkPosted(ctx context.Context, posted []pipeline.DueStatus) error
	// MarkFailed notes why the version with this digest could not be posted, in
	// words for people, and when to try again. It raises Tries. If another
	// version is desired by then, nothing happens.
	MarkFailed(ctx context.Context, s pipeline.Status, digest, problem string, next time.Time) error
}

// Config says what to converge.
type Config struct {
	Forge    Forge
	Register Register
	Log      *slog.Logger
	// Parallel is how many posts may be under way at a time; 8.
	Parallel int
	// Poll is how often the register is read when nobody called Wake; 10 s.
	Poll time.Duration
	// Pace is how long a commit rests after its statuses were posted, where the
	// forge takes them together, while the latest wins; 500 ms. A commit with a
	// thousand runs then costs a few posts, and its first status is as fast as ever.
	Pace time.Duration
}

const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
	// readAhead is how many rows are read for each free place: a few, because
	// rows change while posts are under way, and the latest is what counts.
	readAhead = 16
	// readTogether is read where the statuses of a commit go in one post.
	readTogether = 4096
	defaultPace  = 500 * time.Millisecond
	// grain is waited longer than asked, because the record may round times.
	grain = 2 * time.Millisecond
	// markTimeout bounds the note of what has been done, which must not be lost
	// because we are stopping.
	markTimeout = 5 * time.Second
)

// Converger brings a forge to the desired state. Posts of one commit and context
// never overlap, so the forge cannot end with an older one; others go in
// parallel. No transaction is open while it talks to the forge.
type Converger struct {
	cfg  Config
	wake chan struct{}

	// Owned by Run.
	under  map[key]bool                    // posts under way
	places int                             // of Parallel that are taken
	quiet  time.Time                       // the forge asked for silence until then
	soon   time.Time                       // when the next failed one is due
	rests  map[pipeline.CommitID]time.Time // until when a commit is left alone
	marks  map[key]string                  // digests that are posted and that the register does not know of
	ended  chan outcome                    // buffered for Parallel, so that workers never wait
}

type (
	due = pipeline.DueStatus
	// key names a row; a job for several contexts of a commit takes all of them.
	key struct {
		commit  pipeline.CommitID
		context string
	}
	job struct {
		list []due
		// known: the forge shows it already, only the register has to learn it.
		known bool
	}
	outcome struct {
		job job
		// failed holds the rows that the forge did not take, and why.
		failed map[key]error
		// mark is why the register could not be told.
		mark error
		// next is when the first of the failed rows is due, quiet the time that
		// the forge named.
		next, quiet time.Time
		// stopped: Run is ending, nothing was learnt.
		stopped bool
	}
)

// batcher is a Forge for which several statuses of a commit cost as much as one.
type batcher interface {
	PostAll(ctx context.Context, commit pipeline.CommitID, list []pipeline.Status) error
}

// NewConverger returns a Converger that does nothing until Run.
func NewConverger(cfg Config) *Converger {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = 8
	}
	if cfg.Poll <= 0 {
		cfg.Poll = 10 * time.Second
	}
	if cfg.Pace <= 0 {
		cfg.Pace = defaultPace
	}
	cfg.Log = cfg.Log.With("forge", cfg.Forge.Name())
	return &Converger{
		cfg: cfg, wake: make(chan struct{}, 1),
		under: map[key]bool{}, rests: map[pipeline.CommitID]time.Time{}, marks: map[key]string{}, ended: make(chan outcome, cfg.Parallel),
	}
}

// Wake says that the register has changed. It never blocks.
func (c *Converger) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run converges until ctx ends, waits for the posts that are under way, and
// returns nil.
func (c *Converger) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case o := <-c.ended:
			c.end(o)
		case <-timer.C:
		}
		pause := c.start(ctx, &workers)
		timer.Reset(pause)
	}
}

// start begins as many posts as there are places, and returns when to look again.
func (c *Converger) start(ctx context.Context, workers *sync.WaitGroup) time.Duration {
	now := time.Now()
	if wait := c.quiet.Sub(now); wait > 0 {
		return wait + grain
	}
	if !c.soon.IsZero() && !c.soon.After(now) {
		c.soon = time.Time{}
	}
	if free := c.cfg.Parallel - c.places; free > 0 {
		ahead := free * readAhead
		if c.together() {
			ahead = readTogether
		}
		rows, err := c.cfg.Register.DueStatuses(ctx, now, len(c.under)+ahead)
		if err != nil {
			if ctx.Err() == nil {
				c.cfg.Log.Error("due statuses cannot be read", "err", err)
			}
			return firstPause
		}
		for _, j := range c.jobs(c.rested(rows, now), free) {
			c.places++
			for _, d := range j.list {
				c.under[keyOf(d)] = true
			}
			workers.Go(func() { c.ended <- c.work(ctx, j) })
		}
	}
	if c.soon.IsZero() {
		return c.cfg.Poll
	}
	return min(c.cfg.Poll, max(c.soon.Sub(now), 0)+grain)
}

func (c *Converger) together() bool {
	_, ok := c.cfg.Forge.(batcher)
	return ok
}

// rested leaves out the rows of commits that were posted to a moment ago or are
// being posted to, and sees to it that they are looked at again.
func (c *Converger) rested(rows []due, now time.Time) []due {
	if !c.together() {
		return rows
	}
	for id, until := range c.rests {
		if !until.After(now) {
			delete(c.rests, id)
		} else if c.soon.IsZero() || until.Before(c.soon) {
			c.soon = until
		}
	}
	busy := map[pipeline.CommitID]bool{}
	for k := range c.under {
		busy[k.commit] = true
	}
	return slices.DeleteFunc(rows, func(d due) bool {
		_, rests := c.rests[d.Status.Commit]
		return rests || busy[d.Status.Commit]
	})
}

func keyOf(d due) key { return key{d.Status.Commit, d.Status.Context} }

// jobs picks what can begin: rows that are not under way, those of one commit
// together where the forge takes them so.
func (c *Converger) jobs(rows []due, free int) []job {
	together := c.together()
	var out []job
	at := map[key]int{} // of the job that a row joins
	for _, d := range rows {
		k := keyOf(d)
		if c.under[k] {
			continue
		}
		digest, known := c.marks[k]
		known = known && digest == d.Digest
		group := k
		if together {
			group.context = ""
			if known {
				group.context = "known"
			}
		}
		if i, ok := at[group]; ok {
			out[i].list = append(out[i].list, d)
			continue
		}
		if len(out) < free {
			at[group] = len(out)
			out = append(out, job{list: []due{d}, known: known})
		}
	}
	return out
}

// work posts a job and notes the result. It runs in a goroutine of its own and
// touches nothing that Run owns.
func (c *Converger) work(ctx context.Context, j job) outcome {
	o := outcome{job: j}
	if !j.known {
		o.failed = c.send(ctx, j)
		if len(o.failed) > 0 && ctx.Err() != nil {
			o.stopped = true // not the forge's fault; it is due again at the next start
			return o
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTimeout)
	defer cancel()
	var posted []due
	for _, d := range j.list {
		failed := o.failed[keyOf(d)]
		if failed == nil {
			posted = append(posted, d)
		} else if err := c.markFailed(ctx, d, failed, &o); err != nil {
			o.mark = err
		}
	}
	if len(posted) > 0 {
		if err := c.cfg.Register.MarkPosted(ctx, posted); err != nil {
			o.mark = err
		}
	}
	return o
}

// markFailed tells the register that a row could not be posted.
func (c *Converger) markFailed(ctx context.Context, d due, failed error, o *outcome) error {
	next, named := NextAt(failed)
	if named {
		o.quiet = later(o.quiet, next)
	} else {
		tries := d.Tries + 1
		if fault.Is(failed, fault.Conflict) {
			tries = 1 // somebody else writes, and will be done in a moment
		}
		next = time.Now().Add(pauseAfter(tries))
	}
	if o.next.IsZero() || next.Before(o.next) {
		o.next = next
	}
	return c.cfg.Register.MarkFailed(ctx, d.Status, d.Digest, failed.Error(), next)
}

// send posts what is in a job. Where one of several is refused, each is tried
// alone, so that it does not hold up the others.
func (c *Converger) send(ctx context.Context, j job) map[key]error {
	failed := map[key]error{}
	if b, ok := c.cfg.Forge.(batcher); ok && len(j.list) > 1 {
		list := make([]pipeline.Status, len(j.list))
		for i, d := range j.list {
			list[i] = d.Status
		}
		err := b.PostAll(ctx, list[0].Commit, list)
		if !fault.Is(err, fault.Invalid) {
			if err != nil {
				for _, d := range j.list {
					failed[keyOf(d)] = err
				}
			}
			return failed
		}
	}
	for _, d := range j.list {
		if err := c.cfg.Forge.Post(ctx, d.Status); err != nil {
			failed[keyOf(d)] = err
		}
	}
	return failed
}

// end takes in what a worker did.
func (c *Converger) end(o outcome) {
	c.places--
	if c.together() && !o.stopped {
		c.rests[o.job.list[0].Status.Commit] = time.Now().Add(c.cfg.Pace)
	}
	for _, d := range o.job.list {
		k := keyOf(d)
		delete(c.under, k)
		delete(c.marks, k)
		if o.mark != nil && !o.stopped && o.failed[k] == nil {
			c.marks[k] = d.Digest
		}
		if err := o.failed[k]; err != nil && !o.stopped {
			c.cfg.Log.Warn("status cannot be posted", "commit", k.commit, "context", k.context, "tries", d.Tries+1, "err", err)
		}
	}
	c.quiet = later(c.quiet, o.quiet)
	if !o.next.IsZero() && (c.soon.IsZero() || o.next.Before(c.soon)) {
		c.soon = o.next
	}
	if o.mark != nil {
		c.cfg.Log.Error("result of a post cannot be noted", "err", o.mark)
		// The rows are due still; without a pause they would come back at once.
		c.quiet = later(c.quiet, time.Now().Add(firstPause))
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// pauseAfter doubles from firstPause to lastPause; up to a quarter is taken off
// at random, so that rows that failed together do not come back in step.
func pauseAfter(tries int) time.Duration {
	d := lastPause
	if tries < 10 {
		d = min(firstPause<<(tries-1), lastPause)
	}
	return max(d-time.Duration(rand.Int64N(int64(d/4))), firstPause)
}
