package forge

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// CheckName is what check runs are called. It is not the status that branch
	// protection requires: GitHub would take the one for the other.
	CheckName = "maestro/plan"

	needsChecks = "write access to checks of the repository"
	// remarksAtOnce is how many annotations GitHub takes with one request.
	remarksAtOnce = 50
	mostSummary   = 65_000
)

// Checks reports whether check runs can be shown: GitHub takes them of Apps alone.
func (g *GitHub) Checks() bool { return g.app != nil }

// ShowCheck makes a commit show a check run, and may be called again when it failed or
// when nobody knows: what is there is looked at first, because annotations cannot be
// taken back, and those that are sent twice are there twice.
func (g *GitHub) ShowCheck(ctx context.Context, head pipeline.CommitID, c pipeline.PullCheck) error {
	doing := "show a check run of " + head.Short()
	if g.app == nil || !commitRE.MatchString(string(head)) {
		return fault.New(fault.Invalid, "%s: that takes a GitHub App and a commit id", doing)
	}
	s := &showing{GitHub: g, head: head, check: c, remarks: annotations(c.Remarks)}
	raw, err := json.Marshal(s.remarks)
	if err != nil {
		return fault.New(fault.Internal, "%s: %w", doing, err)
	}
	s.lines = string(pipeline.DigestOf(append(raw, c.Again...)))
	if raw, err = json.Marshal(c); err != nil {
		return fault.New(fault.Internal, "%s: %w", doing, err)
	}
	s.whole = s.lines + " " + string(pipeline.DigestOf(raw))
	if err := s.show(ctx); err != nil {
		return g.explain(doing, needsChecks, err)
	}
	return nil
}

// EndCheck ends the check run that a commit shows as under way, if there is one: as
// neutral, because nothing was found wrong. Doing it again is harmless.
func (g *GitHub) EndCheck(ctx context.Context, head pipeline.CommitID, title, summary string) error {
	doing := "end the check run of " + head.Short()
	if g.app == nil || !commitRE.MatchString(string(head)) {
		return fault.New(fault.Invalid, "%s: that takes a GitHub App and a commit id", doing)
	}
	s := &showing{GitHub: g, head: head, check: pipeline.PullCheck{Title: title, Summary: summary}}
	r, err := s.shown(ctx)
	if err == nil && r != nil && r.GetStatus() != "completed" {
		status, conclusion := "completed", "neutral"
		_, _, err = g.client.Checks.UpdateCheckRun(ctx, g.cfg.Owner, g.cfg.Repo, r.GetID(), github.UpdateCheckRunOptions{
			Name: CheckName, ExternalID: r.ExternalID, Output: s.output(nil), Status: &status, Conclusion: &conclusion, CompletedAt: &github.Timestamp{Time: time.Now().UTC()},
		})
	}
	if err != nil {
		return g.explain(doing, needsChecks, err)
	}
	return nil
}

// showing is one ShowCheck under way.
type showing struct {
	*GitHub
	head    pipeline.CommitID
	check   pipeline.PullCheck
	remarks []*github.CheckRunAnnotation
	// lines is the digest of the remarks and of Again, whole that of everything: by them it
	// is told what the forge shows.
	lines, whole string
}

// shown is the newest check run of ours that the commit shows, nil for none.
func (s *showing) shown(ctx context.Context) (*github.CheckRun, error) {
	name, filter := CheckName, "latest"
	list, _, err := s.client.Checks.ListCheckRunsForRef(ctx, s.cfg.Owner, s.cfg.Repo, string(s.head), &github.ListCheckRunsOptions{
		CheckName: &name, Filter: &filter, AppID: &s.app.app.ID, ListOptions: github.ListOptions{PerPage: perPage},
	})
	if err != nil {
		return nil, err
	}
	there := slices.DeleteFunc(list.CheckRuns, func(r *github.CheckRun) bool { return r.GetApp().GetID() != s.app.app.ID || r.GetName() != CheckName })
	slices.SortFunc(there, func(a, b *github.CheckRun) int { return cmp.Compare(b.GetID(), a.GetID()) })
	if len(there) == 0 {
		return nil, nil
	}
	return there[0], nil
}

func (s *showing) show(ctx context.Context) error {
	now, err := s.shown(ctx)
	if err != nil {
		return err
	}
	done := now.GetOutput().GetAnnotationsCount()
	switch {
	case now == nil, !strings.HasPrefix(now.GetExternalID(), s.lines), now.GetStatus() == "completed" && !s.check.Done:
		if now, err = s.create(ctx); err != nil {
			return err
		}
		if done = min(len(s.remarks), remarksAtOnce); done == len(s.remarks) {
			return nil
		}
	case now.GetExternalID() == s.whole:
		return nil
	}
	return s.update(ctx, now.GetID(), min(done, len(s.remarks)))
}

// create makes a check run with the first annotations. It is complete when it has all.
func (s *showing) create(ctx context.Context) (*github.CheckRun, error) {
	n := min(len(s.remarks), remarksAtOnce)
	last := n == len(s.remarks)
	external := s.external(last)
	r, _, err := s.client.Checks.CreateCheckRun(ctx, s.cfg.Owner, s.cfg.Repo, github.CreateCheckRunOptions{
		Name: CheckName, HeadSHA: string(s.head), DetailsURL: s.url(), ExternalID: &external, Output: s.output(s.remarks[:n]),
		Status: s.status(last), Conclusion: s.conclusion(last), CompletedAt: s.completed(last),
	})
	if err == nil && r.GetID() == 0 {
		err = fault.New(fault.Unavailable, "the answer is not a check run")
	}
	return r, err
}

// update adds the annotations from one on, and says the rest with the last of them.
func (s *showing) update(ctx context.Context, id int64, from int) error {
	for {
		to := min(from+remarksAtOnce, len(s.remarks))
		last := to == len(s.remarks)
		external := s.external(last)
		_, _, err := s.client.Checks.UpdateCheckRun(ctx, s.cfg.Owner, s.cfg.Repo, id, github.UpdateCheckRunOptions{
			Name: CheckName, DetailsURL: s.url(), ExternalID: &external, Output: s.output(s.remarks[from:to]),
			Status: s.status(last), Conclusion: s.conclusion(last), CompletedAt: s.completed(last),
		})
		if err != nil || last {
			return err
		}
		from = to
	}
}

func (s *showing) external(last bool) string {
	if last {
		return s.whole
	}
	return s.lines
}

func (s *showing) status(last bool) *string {
	status := "in_progress"
	if s.check.Done && last {
		status = "completed"
	}
	return &status
}

func (s *showing) conclusion(last bool) *string {
	if !s.check.Done || !last {
		return nil
	}
	conclusion := "failure"
	if s.check.Good {
		conclusion = "success"
	}
	return &conclusion
}

func (s *showing) completed(last bool) *github.Timestamp {
	if !s.check.Done || !last {
		return nil
	}
	return &github.Timestamp{Time: time.Now().UTC()}
}

func (s *showing) url() *string {
	if s.check.URL == "" {
		return nil
	}
	return &s.check.URL
}

func (s *showing) output(remarks []*github.CheckRunAnnotation) *github.CheckRunOutput {
	title := fitText(s.check.Title, 200)
	summary := strings.ToValidUTF8(s.check.Summary[:min(len(s.check.Summary), mostSummary)], "")
	return &github.CheckRunOutput{Title: &title, Summary: &summary, Annotations: remarks}
}

// annotations are the remarks as GitHub takes them. Their texts come from commits.
func annotations(list []pipeline.Diagnostic) []*github.CheckRunAnnotation {
	out := make([]*github.CheckRunAnnotation, 0, len(list))
	for _, d := range list {
		level := "failure"
		if d.Severity != pipeline.SeverityError {
			level = "warning"
		}
		message := fitText(d.Message, 2000)
		for _, more := range []string{d.Note, d.Help} {
			if more != "" {
				message += "\n" + fitText(more, 2000)
			}
		}
		path, line, title := d.Pos.File, max(d.Pos.Line, 1), fitText(d.Code, 100)
		a := &github.CheckRunAnnotation{Path: &path, StartLine: &line, EndLine: &line, AnnotationLevel: &level, Message: &message}
		if title != "" {
			a.Title = &title
		}
		if column := d.Pos.Column; d.Pos.Line > 0 && column > 0 {
			a.StartColumn, a.EndColumn = &column, &column
		}
		out = append(out, a)
	}
	return out
}
