package loop

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// Forge is where pull requests live. Lists are complete, or an error. What cannot be
// asked now is fault.Unavailable, what a person has to grant fault.Invalid.
type Forge interface {
	// RepositoryID is the number that the repository has for as long as it lives: a name
	// can be given to another one.
	RepositoryID(ctx context.Context) (int64, error)
	// Self is the account that Maestro writes by.
	Self(ctx context.Context) (pipeline.Account, error)
	// Pulls are the open pull requests. One that others come and go beside may be
	// missing; Pull tells of one whatever its state, fault.NotFound when it is not there.
	Pulls(ctx context.Context) ([]pipeline.Pull, error)
	Pull(ctx context.Context, number int) (pipeline.Pull, error)
	Reviews(ctx context.Context, number int) ([]pipeline.PullReview, error)
	People(ctx context.Context, p *pipeline.Pull) (pipeline.PullPeople, error)
	// MayWrite and IsMember tell what an account may do and where it belongs now.
	MayWrite(ctx context.Context, a pipeline.Account) (bool, error)
	IsMember(ctx context.Context, team string, a pipeline.Account) (bool, error)
	// Comments of a pull request, oldest first; CommentsSince are those of all that
	// were written or changed since then.
	Comments(ctx context.Context, number int) ([]pipeline.PullComment, error)
	CommentsSince(ctx context.Context, since time.Time) ([]pipeline.PullComment, error)
	// PullsOf are those of a branch of the repository itself whatever their state, the
	// newest first; one that was just opened may be missing. After fault.Unavailable
	// from OpenPull there may be one; there is never more than one that is open.
	PullsOf(ctx context.Context, branch string) ([]pipeline.Pull, error)
	OpenPull(ctx context.Context, branch, target, title, body string) (int, error)
	// EditPull makes one say a text, and "open" or "closed", or "" to leave that as it is;
	// fault.NotFound when it is not there. Doing it again is harmless.
	EditPull(ctx context.Context, number int, title, body, state string) error
	// ClosedBy is who closed one and when; nobody when that is not known.
	ClosedBy(ctx context.Context, number int) (pipeline.Account, time.Time, error)
	// Behind are those who brought about what head has that base has not, or head alone
	// when there is no base, and who made the branch point at it, when it has a name.
	Behind(ctx context.Context, branch string, base, head pipeline.CommitID) (pipeline.PullPeople, error)
	// AddComment returns the number of the comment. After fault.Unavailable it may be
	// there all the same. EditComment is fault.NotFound for one that is gone.
	AddComment(ctx context.Context, number int, body string) (int64, error)
	EditComment(ctx context.Context, id int64, body string) error
	RemoveComment(ctx context.Context, id int64) error
	React(ctx context.Context, id int64, sign string) error
	// Checks reports whether ShowCheck can do anything. ShowCheck makes a commit show
	// what it comes to; doing it again is harmless.
	Checks() bool
	ShowCheck(ctx context.Context, head pipeline.CommitID, c pipeline.PullCheck) error
	// EndCheck ends what a commit shows as under way, if it does; doing it again is
	// harmless.
	EndCheck(ctx context.Context, head pipeline.CommitID, title, summary string) error
}

// PullsConfig configures Pulls. All fields but Problem are required.
type PullsConfig struct {
	DB        *store.DB
	Forge     Forge
	Proposals *Proposals
	Commits   *Commits
	Log       *slog.Logger
	// Name of the repository in the record.
	Name string
	// Bring makes heads readable and returns where the refs point.
	Bring func(ctx context.Context, refs []pipeline.Ref) (map[pipeline.Ref]pipeline.CommitID, error)
	// Poll is how often to look without a hint.
	Poll time.Duration
	// Problem is told why the forge cannot be asked, nil when it can; it may be nil.
	Problem func(ctx context.Context, err error)
}

// Pulls looks at the pull requests of a forge and tells Proposals how they are. Looking
// is the truth; hints only make it come at once.
type Pulls struct {
	cfg  PullsConfig
	hint chan struct{}
	// id of the repository, 0 before the first look.
	id atomic.Int64

	mu     sync.Mutex
	hinted map[int]bool // to be read again whatever they say of themselves
	reruns []Rerun      // that are not answered yet

	// Owned by Run.
	known    map[int]*Discussed
	turns    turns
	left     bool // some were not read that have to be
	failures int
	alone    map[int]trouble  // by number, of those that cannot be read while others can
	since    time.Time        // comments until then are answered
	lookedAt time.Time        // when the last look began that told all
	owning   map[int][]string // teams that own what pull requests change
	self     pipeline.Account
}

// Discussed is a pull request with what people said of it, as it was last read.
type Discussed struct {
	pipeline.Pull
	Reviews []pipeline.PullReview
	People  pipeline.PullPeople
	// Standing of all who gave a review, in teams of the policy and those that own what
	// it changes.
	Standing map[pipeline.Account]review.Standing
	owning   []string
	// Unread says why not all of that could be read, "" when it could.
	Unread string
	// denied is what somebody has to grant or mend before it can be read, "" when that was
	// not the last answer.
	denied string
	// readAt is when it was read, zero when that was before its head moved; triedAt is when
	// that was last attempted.
	readAt, triedAt time.Time
	// heard: it was read since the start. doubted: so it was, and then the forge could not
	// be asked for all.
	heard, doubted bool
}

// Asked is a comment that asks for something, from somebody who may or may not, or the
// button of a check.
type Asked struct {
	pipeline.PullComment
	review.Command
	// Object stands for it where requests are kept by their objects.
	Object   string
	Standing review.Standing
	May      bool
}

const (
	// staleAfter is when a pull request is read again at the latest although nothing says
	// that it changed, where there are no more than can be read in that time: permissions
	// and teams change beside it.
	staleAfter = 5 * time.Minute
	// justNow is how long after a change it is read again: the forge tells times in
	// seconds, and its lists may lag.
	justNow = 5 * time.Second
	// overlapOfComments: comments are read again for that long, for lists that lag.
	overlapOfComments = 2 * time.Minute
)

const commentsSince = "comments-since"

// NewPulls returns Pulls that do nothing until Run.
func NewPulls(cfg PullsConfig) *Pulls {
	if cfg.Problem == nil {
		cfg.Problem = func(context.Context, error) {}
	}
	return &Pulls{cfg: cfg, hint: make(chan struct{}, 1), hinted: map[int]bool{}, known: map[int]*Discussed{}, alone: map[int]trouble{}}
}

// Hint makes the next look come at once, and read what is said of a pull request; 0
// for none in particular. It never blocks.
func (w *Pulls) Hint(number int) {
	if number > 0 {
		w.mu.Lock()
		if len(w.hinted) < mostOpenProposals {
			w.hinted[number] = true
		}
		w.mu.Unlock()
	}
	select {
	case w.hint <- struct{}{}:
	default:
	}
}

// Run looks until ctx ends, and returns nil then.
func (w *Pulls) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.hint:
		case <-timer.C:
		}
		err := w.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		w.cfg.Problem(ctx, errors.Join(err, w.troubles()))
		if err == nil {
			w.failures = 0
			timer.Reset(w.rest())
			continue
		}
		w.failures++
		w.cfg.Log.Warn("pull requests cannot be looked at", "err", err, "failures", w.failures)
		timer.Reset(min(time.Second<<min(w.failures-1, 6), time.Minute))
	}
}

// rest is until the next look.
func (w *Pulls) rest() time.Duration {
	rest := w.cfg.Poll
	if w.left {
		rest = min(rest, catchUp)
	}
	for _, t := range w.alone {
		rest = min(rest, max(time.Until(t.due), min(time.Duration(len(w.alone))*time.Second, catchUp)))
	}
	for _, d := range w.known {
		if time.Since(d.UpdatedAt) < justNow {
			return min(justNow, rest)
		}
	}
	return rest
}

const repositoryID = "repository-id"

// RepositoryID is the number of the repository, 0 while it is not known.
func (w *Pulls) RepositoryID() int64 { return w.id.Load() }

// same reports that the repository is another one than when it was first looked at: what
// people may do and say there is about something else.
func (w *Pulls) same(ctx context.Context) error {
	id, err := w.cfg.Forge.RepositoryID(ctx)
	if err != nil {
		return err
	}
	known := w.id.Load()
	if known == 0 {
		text, err := w.cfg.DB.ForgeFact(ctx, repositoryID)
		if err != nil {
			return err
		}
		if text == "" {
			text = strconv.FormatInt(id, 10)
			if err := w.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.SetForgeFact(repositoryID, text) }); err != nil {
				return err
			}
		}
		if known, err = strconv.ParseInt(text, 10, 64); err != nil {
			return fault.New(fault.Internal, "%s in the record is %q: %w", repositoryID, text, err)
		}
		w.id.Store(known)
	}
	if id != known {
		return fault.New(fault.Invalid, "the repository is another one of the same name (number %d, and it was %d); when that is meant, serve it with another --data folder", id, known)
	}
	return nil
}

// look reads all that changed and tells Proposals.
func (w *Pulls) look(ctx context.Context) error {
	began := time.Now().UTC()
	err := w.same(ctx)
	var list []pipeline.Pull
	if err == nil {
		list, err = w.list(ctx)
	}
	if err != nil {
		// What was known of reviews may not hold any more.
		w.doubt(err)
		return err
	}
	errs := []error{w.resume(ctx), w.bring(ctx, list)}
	errs = append(errs, w.readSome(ctx, list))
	w.lookedAt = began
	asked, err := w.asked(ctx)
	errs = append(errs, err)
	pressed, err := w.pressed(ctx)
	asked, errs = append(asked, pressed...), append(errs, err)
	w.tell(asked)
	return errors.Join(errs...)
}

func (w *Pulls) tell(asked []Asked) {
	list := make([]*Discussed, 0, len(w.known))
	for _, d := range w.known {
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b *Discussed) int { return a.Number - b.Number })
	w.cfg.Proposals.observePulls(list, asked, w.lookedAt)
}

// doubt lets nothing be approved by what was read before.
func (w *Pulls) doubt(err error) {
	if len(w.known) == 0 {
		return
	}
	for n, old := range w.known {
		d := *old
		d.doubted = d.doubted || d.Unread == ""
		d.Unread = err.Error()
		w.known[n] = &d
	}
	w.tell(nil)
}

// list returns the pull requests that are open, and how those ended that were.
func (w *Pulls) list(ctx context.Context) ([]pipeline.Pull, error) {
	list, err := w.cfg.Forge.Pulls(ctx)
	if err != nil {
		return nil, err
	}
	there := map[int]bool{}
	list = slices.DeleteFunc(list, func(p pipeline.Pull) bool {
		twice := there[p.Number]
		there[p.Number] = true
		return twice
	})
	open, err := w.cfg.DB.OpenProposals(ctx, w.cfg.Name)
	if err != nil {
		return nil, err
	}
	w.owning = map[int][]string{}
	for i := range open {
		n := pipeline.PullNumber(open[i].Branch)
		w.owning[n] = review.OwningTeams(open[i].Needs)
		if n == 0 || there[n] {
			continue
		}
		there[n] = true
		p, err := w.one(ctx, n)
		if fault.Is(err, fault.NotFound) {
			p, err = &pipeline.Pull{Number: n, Head: open[i].Head, Target: open[i].Target, Closed: true}, nil
		}
		if err != nil {
			return nil, err
		}
		if p != nil {
			list = append(list, *p)
		}
	}
	for n := range w.cfg.Proposals.awaitedPulls() { // merged, and a run of it is held
		if there[n] {
			continue
		}
		there[n] = true
		p, err := w.one(ctx, n)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if p != nil {
			list = append(list, *p)
		}
	}
	maps.DeleteFunc(w.alone, func(n int, _ trouble) bool { return !there[n] })
	return list, nil
}

// bring makes the heads readable that are not.
func (w *Pulls) bring(ctx context.Context, list []pipeline.Pull) error {
	var refs []pipeline.Ref
	for i := range list {
		if old := w.known[list[i].Number]; !list[i].Closed && !isDoor(&list[i]) && (old == nil || old.Head != list[i].Head || w.failures > 0) {
			refs = append(refs, pipeline.PullRef(list[i].Number))
		}
	}
	if len(refs) == 0 {
		return nil
	}
	_, err := w.cfg.Bring(ctx, refs)
	return err
}

// due reports whether something may have changed since it was read, or a run waits for
// what is said of it.
func (d *Discussed) due(now time.Time, awaited bool) bool {
	return d.Unread != "" || d.UpdatedAt.Add(justNow).After(d.readAt) || awaited && now.Sub(d.readAt) > justNow
}

// read reads what people said of a pull request, and who they are now. cause is not nil
// when it is the door of a gate.
func (w *Pulls) read(ctx context.Context, d *Discussed, cause *pipeline.Event) error {
	d.triedAt = time.Now().UTC()
	err := w.readAll(ctx, d, cause)
	if err != nil {
		d.Unread = err.Error()
		if !fault.Is(err, fault.Unavailable) {
			d.denied = d.Unread
		}
		return err
	}
	d.Unread, d.denied, d.readAt, d.heard = "", "", d.triedAt, true
	return nil
}

func (w *Pulls) readAll(ctx context.Context, d *Discussed, cause *pipeline.Event) error {
	reviews, err := w.cfg.Forge.Reviews(ctx, d.Number)
	if err != nil {
		return err
	}
	var people pipeline.PullPeople
	if cause == nil {
		people, err = w.cfg.Forge.People(ctx, &d.Pull)
	} else if people, err = w.behind(ctx, cause); err == nil {
		reviews, err = w.closing(ctx, d, reviews)
	}
	if err != nil {
		return err
	}
	standing := map[pipeline.Account]review.Standing{}
	for _, r := range review.Latest(reviews) {
		if r.By.ID == 0 {
			continue
		}
		if standing[r.By], err = w.standing(ctx, r.By, w.owning[d.Number]...); err != nil {
			return err
		}
	}
	d.Reviews, d.People, d.Standing, d.owning = reviews, people, standing, w.owning[d.Number]
	return nil
}

// behind are those who brought about what a run does. Commits of source repositories
// only name them.
func (w *Pulls) behind(ctx context.Context, e *pipeline.Event) (pipeline.PullPeople, error) {
	if e.Repo != "" && e.Pull != nil {
		return pipeline.PullPeople{Accounts: []pipeline.Account{e.Pull.Author}}, nil
	}
	if e.Repo != "" || e.Head == "" {
		return pipeline.PullPeople{}, nil
	}
	branch := ""
	if e.Kind == pipeline.EventPush {
		branch = e.Ref.Branch()
	}
	return w.cfg.Forge.Behind(ctx, branch, e.Base, e.Head)
}

// closing adds to the reviews at a door that somebody closed it, which refuses.
func (w *Pulls) closing(ctx context.Context, d *Discussed, reviews []pipeline.PullReview) ([]pipeline.PullReview, error) {
	if !d.Closed || d.Merge != "" {
		return reviews, nil
	}
	by, at, err := w.cfg.Forge.ClosedBy(ctx, d.Number)
	if err == nil && w.self.ID == 0 {
		err = fault.New(fault.Unavailable, "it is not known yet by which account Maestro acts")
	}
	if err != nil || by.ID == w.self.ID {
		return reviews, err
	}
	return append(reviews, pipeline.PullReview{By: by, State: "CHANGES_REQUESTED", Commit: d.Head, Body: "closed its pull request", At: at}), nil
}

// standing asks what somebody may do now, and which teams of the policy and of others
// they are in.
func (w *Pulls) standing(ctx context.Context, a pipeline.Account, others ...string) (s review.Standing, err error) {
	if a.Bot {
		return s, nil
	}
	if s.Writes, err = w.cfg.Forge.MayWrite(ctx, a); err != nil || !s.Writes {
		return s, err
	}
	if s.Known, err = w.cfg.DB.KnowAccount(ctx, a.Login, a.ID); err != nil {
		return s, err
	}
	live := w.cfg.Commits.Live()
	if live == nil {
		return s, nil
	}
	teams := slices.Concat(review.Teams(live.Policy.Groups), others)
	slices.Sort(teams)
	for _, team := range slices.Compact(teams) {
		in, err := w.cfg.Forge.IsMember(ctx, team, a)
		if err != nil {
			return s, err
		}
		if in {
			s.Teams = append(s.Teams, team)
		}
	}
	return s, nil
}

// asked finds the comments that ask for something and are not answered, and puts a sign
// on those that are.
func (w *Pulls) asked(ctx context.Context) ([]Asked, error) {
	if err := w.resume(ctx); err != nil {
		return nil, err
	}
	list, err := w.cfg.Forge.CommentsSince(ctx, w.since.Add(-overlapOfComments))
	if err != nil {
		return nil, err
	}
	var out []Asked
	var errs []error
	last, settled := w.since, true
	for i := range list {
		c := &list[i]
		if c.UpdatedAt.After(last) && settled {
			last = c.UpdatedAt
		}
		// One that cannot be dealt with holds up no other.
		a, err := w.ask(ctx, c)
		if err != nil {
			errs = append(errs, err)
		} else if a != nil {
			out = append(out, *a)
		}
		settled = settled && err == nil && a == nil // or it is read again until it is answered
	}
	if last.After(w.since.Add(overlapOfComments)) { // the same question again costs nothing
		err := w.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.SetForgeFact(commentsSince, last.Format(time.RFC3339)) })
		if err == nil {
			w.since = last
		}
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// resume goes on where the last start ended; what was written before the first one is
// not for us.
func (w *Pulls) resume(ctx context.Context) error {
	if !w.since.IsZero() {
		return nil
	}
	self, err := w.cfg.Forge.Self(ctx)
	if err != nil {
		return err
	}
	text, err := w.cfg.DB.ForgeFact(ctx, commentsSince)
	if err != nil {
		return err
	}
	since := time.Now().UTC().Truncate(time.Second).Add(overlapOfComments)
	if text == "" {
		err = w.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.SetForgeFact(commentsSince, since.Format(time.RFC3339)) })
	} else {
		since, err = time.Parse(time.RFC3339, text)
	}
	if err == nil {
		w.self, w.since = self, since
	}
	return err
}

// ask returns what a comment asks for, nil when it asks for nothing or is answered.
func (w *Pulls) ask(ctx context.Context, c *pipeline.PullComment) (*Asked, error) {
	command, ok := review.ParseCommand(c.Body)
	if !ok || c.Edited() || c.By.Bot || c.By.ID == 0 || c.By.ID == w.self.ID || c.Pull == 0 {
		return nil, nil
	}
	done, err := w.cfg.DB.Request(ctx, w.cfg.Name, commentObject(c.ID))
	switch {
	case fault.Is(err, fault.NotFound):
	case err != nil || done.Told:
		return nil, err
	default:
		sign := "+1"
		if strings.Contains(done.Answer, refusing) {
			sign = "confused"
		}
		if err := w.cfg.Forge.React(ctx, c.ID, sign); fault.Is(err, fault.Unavailable) {
			return nil, err
		} else if err != nil { // a sign that is refused is not worth more: the answer is there to read
			w.cfg.Log.Warn("comment answered without a sign", "pull", c.Pull, "comment", c.ID, "err", err)
		}
		return nil, w.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.RequestTold(w.cfg.Name, done.Object) })
	}
	standing, err := w.standing(ctx, c.By)
	return &Asked{*c, command, commentObject(c.ID), standing, standing.Writes && standing.Known == c.By.ID}, err
}
