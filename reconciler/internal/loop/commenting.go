package loop

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// CommenterConfig configures a Commenter. All fields but URL are required.
type CommenterConfig struct {
	DB    *store.DB
	Forge Forge
	Log   *slog.Logger
	// Name of the repository in the record.
	Name string
	// URL of the web view, without a slash at its end.
	URL string
}

// Commenter keeps one comment on each pull request that says how it stands, and one
// check of its head. What they should say follows from the record; what the forge shows
// is remembered, so that the latest is written once, whatever happened in between.
type Commenter struct {
	cfg CommenterConfig

	// Owned by Run.
	key    []byte // of the markers
	self   pipeline.Account
	edited map[string]time.Time // when a comment was last written
	swept  map[string]time.Time // when others of our own were last looked for
	doubt  map[string]time.Time // when to look for them again
	checks map[string]checked   // by change
	// going are the heads that were made to show a check that is under way, with their
	// changes, nil before they are read; ending is when those are tried again that could not
	// be ended.
	going  map[pipeline.CommitID]string
	ending map[pipeline.CommitID]trouble
	seq    pipeline.Seq // of the last change that was looked at
}

const (
	// restOfComment is how long a comment is left alone after it was written.
	restOfComment = 3 * time.Second
	// restOfComments is how often all are compared when nothing seems to happen.
	restOfComments = 30 * time.Second
	// sweepAfter is how long a list of comments is believed to be all that there are;
	// listsLag is how long one may lack what was just written.
	sweepAfter = 10 * time.Minute
	listsLag   = 10 * time.Second
	// mostAnswers is how many answers a comment shows, and mostLooked among how many the
	// one to the button of the check is looked for.
	mostAnswers = 5
	mostLooked  = 100
	// longestUnwritten is the longest pause of what is refused.
	longestUnwritten = 5 * time.Minute
	// overAfter is how long a change that is over is looked after.
	overAfter = 24 * time.Hour
)

const markerKey = "marker-key"

// NewCommenter returns a Commenter that does nothing until Run.
func NewCommenter(cfg CommenterConfig) *Commenter {
	return &Commenter{cfg: cfg, edited: map[string]time.Time{}, swept: map[string]time.Time{}, doubt: map[string]time.Time{}, checks: map[string]checked{}, ending: map[pipeline.CommitID]trouble{}}
}

// Run writes comments until ctx ends, and returns nil then.
func (c *Commenter) Run(ctx context.Context) error {
	changed, stop := c.cfg.DB.Watch()
	defer stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			if settled == nil {
				settled = time.After(gatherTime)
			}
			continue
		case <-settled:
			settled = nil
			if !c.concerned(ctx) {
				continue
			}
		case <-timer.C:
		}
		next, err := c.pass(ctx)
		if err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("comments not looked after", "err", err)
		}
		timer.Reset(next)
	}
}

// concerned reports whether something happened that a comment may tell.
func (c *Commenter) concerned(ctx context.Context) bool {
	const most = 1000
	list, err := c.cfg.DB.Changes(ctx, c.seq, most)
	if err != nil || len(list) == most {
		if last, err := c.cfg.DB.LastSeq(ctx); err == nil {
			c.seq = last
		}
		return true
	}
	yes := false
	for _, e := range list {
		c.seq = e.Seq
		switch e.Kind {
		case pipeline.ChangeProposal, pipeline.ChangeRequest, pipeline.ChangeRun, pipeline.ChangeRunCreated:
			yes = true
		}
	}
	return yes
}

// pass compares all comments with what they should say, and returns when to do so again.
func (c *Commenter) pass(ctx context.Context) (time.Duration, error) {
	open, err := c.cfg.DB.OpenProposals(ctx, c.cfg.Name)
	if err != nil {
		return restOfComments, err
	}
	kept, err := c.cfg.DB.Comments(ctx, c.cfg.Name)
	if err != nil {
		return restOfComments, err
	}
	of := make(map[string]store.Comment, len(kept))
	for _, k := range kept {
		of[k.Branch] = k
	}
	var errs []error
	next := restOfComments
	each := func(p *pipeline.Proposal, k store.Comment) {
		t, err := c.talk(ctx, p)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.Branch, err))
			return
		}
		wait, err := c.one(ctx, p, k, t)
		if err != nil {
			errs = append(errs, fmt.Errorf("comment on %s: %w", p.Branch, err))
		}
		again, err := c.check(ctx, p, t)
		if err != nil {
			errs = append(errs, fmt.Errorf("check of %s: %w", p.Branch, err))
		}
		for _, w := range []time.Duration{wait, again} {
			if w > 0 {
				next = min(next, w)
			}
		}
	}
	for i := range open {
		p := &open[i].Proposal
		k, ok := of[p.Branch]
		if !ok {
			k = store.Comment{Branch: p.Branch}
		}
		delete(of, p.Branch)
		if pipeline.PullNumber(p.Branch) > 0 && ctx.Err() == nil {
			each(p, k)
		}
	}
	for name, k := range of { // those that are over
		p, err := c.cfg.DB.Proposal(ctx, c.cfg.Name, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		each(&p, k)
	}
	wait, err := c.endChecks(ctx, open)
	if wait > 0 {
		next = min(next, wait)
	}
	return next, errors.Join(append(errs, err)...)
}

// one brings one comment up to date. wait is when to look at it again, 0 for never.
func (c *Commenter) one(ctx context.Context, p *pipeline.Proposal, k store.Comment, t *plan.Talk) (wait time.Duration, err error) {
	silent := p.Draft && len(t.Answers) == 0 || t.Silent() || p.State == pipeline.ProposalOpen && p.Digest == ""
	over := p.State != pipeline.ProposalOpen && (time.Since(p.ChangedAt) > overAfter || p.State == pipeline.ProposalClosed)
	if silent && k.Digest == "" && k.Number == 0 && k.Tries == 0 {
		return 0, nil // it has none, and needs none
	}
	text := t.Markdown()
	digest := pipeline.DigestOf([]byte(text))
	rank := t.Rank()
	doubted := !c.doubt[k.Branch].IsZero()
	if wait := time.Until(c.doubt[k.Branch]); doubted && wait > 0 && digest == k.Digest {
		return wait, nil
	}
	if digest == k.Digest && rank <= k.Rank && !doubted {
		if over && !k.Done {
			k.Done = true
			return 0, c.save(ctx, k)
		}
		return 0, nil
	}
	now := time.Now()
	due := c.edited[k.Branch].Add(restOfComment)
	if k.NextAt.After(due) {
		due = k.NextAt
	}
	if due.After(now) {
		return due.Sub(now), nil
	}
	if err := c.write(ctx, p, &k, text, rank); err != nil {
		// The forge may have done it and the answer was lost: look before the next try.
		k.Digest, k.Number, k.Problem = "", 0, err.Error()
		c.doubt[k.Branch] = time.Now().Add(listsLag)
		k.Tries, k.NextAt = again(err, k.Tries, longestUnwritten)
		return time.Until(k.NextAt), errors.Join(err, c.save(context.WithoutCancel(ctx), k))
	}
	c.edited[k.Branch] = time.Now()
	if doubted && !time.Now().Before(c.doubt[k.Branch]) {
		delete(c.doubt, k.Branch) // there is one, and the list that says so is not too young
	}
	k.Digest, k.Rank, k.Tries, k.NextAt, k.Problem = digest, max(k.Rank, rank), 0, time.Time{}, ""
	return max(0, time.Until(c.doubt[k.Branch])), c.save(context.WithoutCancel(ctx), k)
}

func (c *Commenter) save(ctx context.Context, k store.Comment) error {
	return c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.SaveComment(c.cfg.Name, k) })
}

// write makes the forge show the text. Where it got worse it is a new comment, which
// notifies people, and the old one goes.
func (c *Commenter) write(ctx context.Context, p *pipeline.Proposal, k *store.Comment, text string, rank int) error {
	marker, err := c.marker(ctx, p.Branch)
	if err != nil {
		return err
	}
	body := marker + "\n" + text
	number := pipeline.PullNumber(p.Branch)
	worse, shown := rank > k.Rank, false
	if k.Number == 0 || worse || time.Since(c.swept[p.Branch]) > sweepAfter || !c.doubt[p.Branch].IsZero() {
		own, err := c.own(ctx, number, marker)
		if err != nil {
			return err
		}
		if c.swept[p.Branch].IsZero() { // what a crash left may be too young for the list
			c.doubt[p.Branch] = time.Now().Add(listsLag)
		}
		c.swept[p.Branch] = time.Now()
		if k.Number == 0 && len(own) > 0 {
			k.Number = own[len(own)-1].ID // the newest stays
		}
		for _, o := range own { // the list may lack the one that is known
			if o.ID == k.Number {
				shown = strings.TrimSpace(o.Body) == strings.TrimSpace(body)
			} else if err := c.cfg.Forge.RemoveComment(ctx, o.ID); err != nil {
				return err
			}
		}
	}
	if shown {
		return nil
	}
	if k.Number != 0 && !worse {
		err := c.cfg.Forge.EditComment(ctx, k.Number, body)
		if !fault.Is(err, fault.NotFound) {
			return err
		}
		k.Number = 0 // somebody deleted it
	}
	old := k.Number
	id, err := c.cfg.Forge.AddComment(ctx, number, body)
	if err != nil {
		return err
	}
	k.Number = id
	c.cfg.Log.Info("commented", "change", p.Branch, "comment", id, "rank", rank)
	if old != 0 {
		return c.cfg.Forge.RemoveComment(ctx, old)
	}
	return nil
}

// own are Maestro's comments of a topic on a pull request, the oldest first. The marker
// alone proves nothing: people see it.
func (c *Commenter) own(ctx context.Context, number int, marker string) ([]pipeline.PullComment, error) {
	if c.self.ID == 0 {
		self, err := c.cfg.Forge.Self(ctx)
		if err != nil {
			return nil, err
		}
		c.self = self
	}
	all, err := c.cfg.Forge.Comments(ctx, number)
	if err != nil {
		return nil, err
	}
	var out []pipeline.PullComment
	for _, o := range all {
		if o.By.ID == c.self.ID && strings.HasPrefix(o.Body, marker) {
			out = append(out, o)
		}
	}
	return out, nil
}

// marker is by what the comment of a change is found again.
func (c *Commenter) marker(ctx context.Context, name string) (string, error) {
	if c.key == nil {
		text, err := c.cfg.DB.ForgeFact(ctx, markerKey)
		if err == nil && text == "" {
			text = rand.Text()
			err = c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.SetForgeFact(markerKey, text) })
		}
		if err != nil {
			return "", err
		}
		c.key = []byte(text)
	}
	mac := hmac.New(sha256.New, c.key)
	fmt.Fprintf(mac, "%s\x00%s\x00plan", c.cfg.Name, name)
	return fmt.Sprintf("<!-- maestro:v1:plan:%s -->", hex.EncodeToString(mac.Sum(nil)[:16])), nil
}

// talk reads what the comment of a change tells.
func (c *Commenter) talk(ctx context.Context, p *pipeline.Proposal) (*plan.Talk, error) {
	t := &plan.Talk{Proposal: p, URL: c.cfg.URL}
	var err error
	if t.Runs, err = runsOf(ctx, c.cfg.DB, p); err != nil {
		return nil, err
	}
	answers, err := c.cfg.DB.RequestsOf(ctx, c.cfg.Name, CommandRef(p.Branch), mostLooked)
	for i, a := range answers {
		if i < mostAnswers {
			t.Answers = append(t.Answers, a.Answer)
		}
		if t.Again == "" && isPress(a.Object) && a.Target == p.Head {
			t.Again, t.AgainAnswer = a.Object, a.Answer
		}
	}
	return t, err
}

// runsOf are the runs of the head of a change, or of what it was merged by, those that
// others called left out.
func runsOf(ctx context.Context, db *store.DB, p *pipeline.Proposal) ([]*pipeline.Run, error) {
	f := store.Filter{Commit: p.Head, Limit: mostOfCommit}
	if p.Merge != nil {
		f.Commit, f.Ref = p.Merge.Commit, pipeline.Ref("refs/heads/"+p.Target)
	}
	runs, err := db.Runs(ctx, f)
	return slices.DeleteFunc(runs, func(r *pipeline.Run) bool {
		return r.Called() || p.Merge == nil && r.Event.Proposal != p.Branch
	}), err
}

// plannedVerdicts are those of the plan of a change.
func plannedVerdicts(p *pipeline.Proposal) []pipeline.Verdict {
	var on struct {
		Verdicts []pipeline.Verdict `json:"verdicts"`
	}
	if json.Unmarshal(p.Plan, &on) != nil {
		return nil
	}
	return on.Verdicts
}
