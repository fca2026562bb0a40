// Package forge shows people what Maestro thinks of a commit, where they look:
// as commit statuses on GitHub, or as Git notes where a bare repository is all
// there is. What is to be shown is kept by the record as desired state; a
// Converger posts the latest of it until the forge shows it. Nothing here reads
// configuration or decides what a status says.
package forge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Forge is where statuses are shown.
type Forge interface {
	// Name says in a word or two where that is, for logs and messages.
	Name() string
	// Post makes a status the one that its commit shows for its context. Posting
	// one twice is harmless. fault.Unavailable may carry a time, see NextAt;
	// fault.Invalid means that a person has to grant or change something.
	Post(ctx context.Context, s pipeline.Status) error
	// Statuses returns what a commit shows, the latest of each context, sorted
	// by context.
	Statuses(ctx context.Context, commit pipeline.CommitID) ([]pipeline.Status, error)
}

// LaterError is in the chain of a fault.Unavailable when the forge said when to
// ask again. Asking earlier makes the wait longer.
type LaterError struct {
	At  time.Time
	Err error
}

func (e *LaterError) Error() string { return e.Err.Error() }

// Unwrap returns what the forge said.
func (e *LaterError) Unwrap() error { return e.Err }

// Later is when to ask again.
func (e *LaterError) Later() time.Time { return e.At }

// NextAt returns the time before which the forge must not be asked again, if err
// carries one.
func NextAt(err error) (time.Time, bool) {
	var later *LaterError
	if errors.As(err, &later) {
		return later.At, true
	}
	return time.Time{}, false
}

const (
	maxDescription = 140 // GitHub refuses longer ones
	maxContext     = 255
)

// fit checks a status and cuts what is too long for a forge. The texts come from
// commits and tasks, so characters that would disturb a page or a terminal go.
func fit(s pipeline.Status) (pipeline.Status, error) {
	switch s.State {
	case "pending", "success", "failure", "error":
	default:
		return s, fault.New(fault.Invalid, "status %s of commit %s: the state %q is not one that a forge knows", s.Context, s.Commit.Short(), s.State)
	}
	if s.Context == "" {
		return s, fault.New(fault.Invalid, "status of commit %s: the context is empty", s.Commit.Short())
	}
	if s.URL != "" {
		u, err := url.Parse(s.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			return s, fault.New(fault.Invalid, "status %s of commit %s: the link is not an http or https URL", s.Context, s.Commit.Short())
		}
	}
	s.Context = fitContext(s.Context)
	s.Description = fitText(s.Description, maxDescription)
	return s, nil
}

// fitContext keeps long contexts apart by the hash of what is cut off.
func fitContext(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxContext {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	tail := "-" + hex.EncodeToString(sum[:6])
	return strings.ToValidUTF8(s[:maxContext-len(tail)], "") + tail
}

// fitText makes one line of at most most runes.
func fitText(s string, most int) string {
	var b strings.Builder
	n := 0
	for _, c := range strings.ToValidUTF8(s, "\uFFFD") {
		switch {
		case unicode.IsSpace(c):
			c = ' '
		case unicode.IsControl(c) || unicode.In(c, unicode.Cf, unicode.Co):
			continue
		}
		if n++; n > most {
			cut := []rune(b.String())
			return strings.TrimRight(string(cut[:most-1]), " ") + "…"
		}
		b.WriteRune(c)
	}
	return b.String()
}
