package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/sshsig"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

// allowedSigners is the file at the root of the ops repository that says whose keys
// prove a review.
const allowedSigners = "allowed_signers"

// Notes that commits get beside their statuses.
const (
	planNotes    pipeline.Ref = "refs/notes/maestro/plan"
	requestNotes pipeline.Ref = "refs/notes/maestro/requests"
)

// discussion is what people and Maestro say to each other through the repository.
type discussion struct {
	*repository
	sources *sourceSet
	mu      sync.Mutex
	// signers of the base that was asked about last; guarded by mu.
	base    pipeline.CommitID
	signers sshsig.Signers
}

var _ loop.Discussion = (*discussion)(nil)

func (d *discussion) Between(ctx context.Context, base, head pipeline.CommitID) (loop.Span, error) {
	return span(ctx, d.repo, base, head)
}

func (d *discussion) BetweenIn(ctx context.Context, repo string, base, head pipeline.CommitID) (loop.Span, error) {
	return d.sources.between(ctx, repo, base, head)
}

func span(ctx context.Context, repo *gitrepo.Repo, base, head pipeline.CommitID) (loop.Span, error) {
	if base == "" {
		c, err := repo.Commit(ctx, head)
		return loop.Span{Commits: 1, People: people(c)}, err
	}
	s, err := repo.Between(ctx, base, head)
	out := loop.Span{Commits: len(s.Commits), Truncated: s.Truncated, Fork: s.Fork, Others: s.Others}
	for _, c := range s.Commits {
		out.People = append(out.People, people(c)...)
		out.List = append(out.List, loop.Commit{ID: c.ID, Merges: len(c.Parents) > 1})
	}
	return out, err
}

func people(c gitrepo.CommitInfo) []review.Person {
	return []review.Person{{Name: c.AuthorName, Email: c.AuthorEmail}, {Name: c.CommitterName, Email: c.CommitterEmail}}
}

func (d *discussion) Statement(ctx context.Context, object string, base pipeline.CommitID) (loop.Statement, error) {
	t, err := d.repo.Tag(ctx, object)
	if err != nil {
		return loop.Statement{}, err
	}
	s := loop.Statement{Target: t.Target, Message: t.Message, At: t.When}
	if t.Signature == "" {
		return s, nil
	}
	signers, err := d.allowed(ctx, base)
	if err != nil {
		return s, err
	}
	if s.Signers, err = sshsig.Verify(signers, t.Signed, t.Signature, sshsig.GitNamespace, time.Now()); err != nil {
		s.Forged = err.Error()
		switch {
		case len(signers.Names()) == 0 && len(signers.Refused) == 0:
			s.Forged += "; the default branch has no " + allowedSigners
		case len(signers.Refused) > 0:
			s.Forged += fmt.Sprintf("; %s, %s", allowedSigners, strings.Join(signers.Refused[:min(3, len(signers.Refused))], "; "))
		}
	}
	return s, nil
}

// allowed reads the list of a base. Without the file nobody is allowed.
func (d *discussion) allowed(ctx context.Context, base pipeline.CommitID) (sshsig.Signers, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.base == base && base != "" {
		return d.signers, nil
	}
	tree, err := d.repo.Tree(ctx, base)
	if err != nil {
		return sshsig.Signers{}, err
	}
	text, err := fs.ReadFile(tree, allowedSigners)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !fault.Is(err, fault.Invalid) {
		return sshsig.Signers{}, err
	}
	d.base, d.signers = base, sshsig.ParseSigners(string(text))
	return d.signers, nil
}

func (d *discussion) FillPlanned(ctx context.Context, at pipeline.CommitID, c *pipeline.Composition, b plan.Blank, e pipeline.Event) ([]byte, error) {
	tree, err := d.repo.Tree(ctx, at)
	if err != nil {
		return nil, err
	}
	return d.evaluator.Fill(ctx, config.FillRequest{
		Tree: tree, Unit: c.Unit, Composition: c.Name, Blank: b.Blank, Event: e, Params: b.Params,
	})
}

func (d *discussion) WritePlan(ctx context.Context, head pipeline.CommitID, text string) error {
	return d.repo.WriteNote(ctx, planNotes, head, text)
}

// TellRequester keeps the last lines, so that a commit to which many requests are
// tied does not get an endless note.
func (d *discussion) TellRequester(ctx context.Context, target pipeline.CommitID, line string) error {
	const most = 100
	return d.repo.EditNote(ctx, requestNotes, target, func(old string) (string, error) {
		lines := strings.Split(strings.TrimSuffix(old, "\n"), "\n")
		if old == "" {
			lines = nil
		}
		lines = append(lines, strings.Join(strings.Fields(line), " "))
		return strings.Join(lines[max(0, len(lines)-most):], "\n") + "\n", nil
	})
}

func (d *discussion) Head(f loop.Draft) (pipeline.CommitID, error) { return draft(f).ID() }

func (d *discussion) Publish(ctx context.Context, ref pipeline.Ref, f loop.Draft) error {
	_, err := d.repo.Publish(ctx, ref, draft(f))
	return err
}

func (d *discussion) Remove(ctx context.Context, ref pipeline.Ref, object string) error {
	return d.repo.Remove(ctx, ref, object)
}

func draft(f loop.Draft) gitrepo.Draft {
	out := gitrepo.Draft{Files: map[string]string{}, Message: f.Message, At: f.At}
	if f.File != "" {
		out.Files[f.File] = f.Text
	}
	if f.Onto != nil {
		base := draft(*f.Onto)
		out.Onto = &base
	}
	return out
}
