package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// CommitInfo is what people are shown of a commit. Its texts are cut, and
// control and direction characters in them are written out as escapes; they are
// claims of whoever pushed, never an identity.
type CommitInfo struct {
	ID      pipeline.CommitID
	Parents []pipeline.CommitID
	// AuthorName and AuthorEmail as the commit says.
	AuthorName, AuthorEmail string
	// CommitterName and CommitterEmail likewise.
	CommitterName, CommitterEmail string
	// Subject is the first line of the message, at most 200 characters.
	Subject string
	// When it was committed, in UTC; a date outside 1970 to 9999 becomes the
	// nearer end.
	When time.Time
}

type commit struct {
	CommitInfo
	tree plumbing.Hash
}

// Commit returns what a commit says of itself. fault.NotFound when the
// repository has no such commit, fault.Invalid when id does not name one.
func (r *Repo) Commit(ctx context.Context, id pipeline.CommitID) (CommitInfo, error) {
	if err := ctx.Err(); err != nil {
		return CommitInfo{}, fault.New(fault.Unavailable, "read commit %s: %w", id.Short(), err)
	}
	c, err := r.commit(id)
	return c.CommitInfo, err
}

func (r *Repo) commit(id pipeline.CommitID) (commit, error) {
	h, err := parseID(id)
	if err != nil {
		return commit{}, err
	}
	what := "read commit " + id.Short() + " of " + r.String()
	data, err := r.store.read(plumbing.CommitObject, h, maxCommitBytes)
	if err != nil {
		return commit{}, objectFault(what, err)
	}
	c, err := parseCommit(data)
	if err != nil {
		return commit{}, objectFault(what, err)
	}
	c.ID = id
	return c, nil
}

const maxParents = 1000 // an octopus merge of more has never been seen

func parseCommit(data []byte) (commit, error) {
	var c commit
	head, message, _ := bytes.Cut(data, []byte("\n\n"))
	sawTree := false
	for line := range strings.Lines(string(head)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch {
		case key == "tree" && !sawTree:
			if !isHex40(value) {
				return commit{}, errors.New("the commit names no tree")
			}
			c.tree, sawTree = plumbing.NewHash(value), true
		case key == "parent":
			if !isHex40(value) || len(c.Parents) >= maxParents {
				return commit{}, errors.New("the commit has a malformed list of parents")
			}
			c.Parents = append(c.Parents, pipeline.CommitID(value))
		case key == "author" && c.AuthorName == "" && c.AuthorEmail == "":
			name, email, _ := parseSignature(value)
			c.AuthorName, c.AuthorEmail = display(name, 100), display(email, 200)
		case key == "committer" && c.When.IsZero():
			var name, email string
			name, email, c.When = parseSignature(value)
			c.CommitterName, c.CommitterEmail = display(name, 100), display(email, 200)
		}
	}
	if !sawTree {
		return commit{}, errors.New("the commit names no tree")
	}
	subject, _, _ := strings.Cut(strings.TrimLeft(string(message), "\r\n"), "\n")
	c.Subject = display(strings.TrimSpace(subject), 200)
	return c, nil
}

// parseSignature reads "Name <email> SECONDS ZONE" as far as it makes sense.
func parseSignature(s string) (name, email string, when time.Time) {
	open, end := strings.IndexByte(s, '<'), strings.LastIndexByte(s, '>')
	when = time.Unix(0, 0).UTC()
	if open < 0 || end < open {
		return strings.TrimSpace(s), "", when
	}
	name, email = strings.TrimSpace(s[:open]), strings.TrimSpace(s[open+1:end])
	seconds, _, _ := strings.Cut(strings.TrimSpace(s[end+1:]), " ")
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return name, email, when
	}
	const last = 253402300799 // 9999-12-31T23:59:59Z: JSON and SQL take no later year
	return name, email, time.Unix(min(max(n, 0), last), 0).UTC()
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
