package forge

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// StatusNotes is the ref under which Local keeps statuses:
// git log --notes=maestro/status shows them.
const StatusNotes pipeline.Ref = "refs/notes/maestro/status"

// Local is the forge of a plain repository: a commit's statuses are its note, a
// line of JSON for each context. Whoever may push can write such notes, so they
// are shown and never believed.
type Local struct {
	repo *gitrepo.Repo
}

// NewLocal keeps statuses in repo, which must outlive it.
func NewLocal(repo *gitrepo.Repo) *Local { return &Local{repo: repo} }

// Name returns "git notes".
func (l *Local) Name() string { return "git notes" }

// Post implements Forge.
func (l *Local) Post(ctx context.Context, s pipeline.Status) error {
	return l.PostAll(ctx, s.Commit, []pipeline.Status{s})
}

// PostAll posts several statuses of one commit in one write: all of them or,
// with an error, none. Of two with one context the later counts. Contexts that
// are not named keep theirs.
func (l *Local) PostAll(ctx context.Context, commit pipeline.CommitID, list []pipeline.Status) error {
	fitted := make([]pipeline.Status, len(list))
	for i, s := range list {
		s.Commit = commit
		var err error
		if fitted[i], err = fit(s); err != nil {
			return err
		}
	}
	return l.repo.EditNote(ctx, StatusNotes, commit, func(old string) (string, error) {
		lines := parseNote(old)
		for _, s := range fitted {
			lines[s.Context] = noteLine{Context: s.Context, State: s.State, Description: s.Description, URL: s.URL}
		}
		return formatNote(lines)
	})
}

// Statuses implements Forge.
func (l *Local) Statuses(ctx context.Context, commit pipeline.CommitID) ([]pipeline.Status, error) {
	text, err := l.repo.Notes(ctx, StatusNotes, commit)
	if err != nil {
		return nil, err
	}
	lines := parseNote(text)
	out := make([]pipeline.Status, 0, len(lines))
	for _, context := range slices.Sorted(maps.Keys(lines)) {
		n := lines[context]
		s := pipeline.Status{Commit: commit, Context: n.Context, State: n.State, Description: n.Description, URL: n.URL}
		if s, err := fit(s); err == nil {
			out = append(out, s)
		}
	}
	return out, nil
}

// noteLine is the stored form; its names are never changed.
type noteLine struct {
	Context     string `json:"context"`
	State       string `json:"state"`
	Description string `json:"description"`
	URL         string `json:"url,omitempty"`
}

// parseNote reads what it understands; a line that someone else wrote is dropped.
func parseNote(text string) map[string]noteLine {
	lines := map[string]noteLine{}
	for line := range strings.Lines(text) {
		var n noteLine
		if json.Unmarshal([]byte(line), &n) == nil && n.Context != "" {
			lines[n.Context] = n
		}
	}
	return lines
}

func formatNote(lines map[string]noteLine) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b) // ends each value with a line break
	enc.SetEscapeHTML(false)
	for _, context := range slices.Sorted(maps.Keys(lines)) {
		if err := enc.Encode(lines[context]); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}
