package pipeline

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Note is what a running task last said of itself, all it said so far taken
// together. It is for people, kept in memory only, and gone when the task ends.
type Note struct {
	// Progress is done parts of 1; nil when the task did not say.
	Progress *float64 `json:"progress,omitempty"`
	// Waiting is what it waits for, "" when it goes on.
	Waiting string `json:"waiting,omitempty"`
	// Text is what it is doing.
	Text  string `json:"text,omitempty"`
	Links []Link `json:"links,omitempty"`
	// At is when it last said something.
	At time.Time `json:"at"`
}

// String puts the note into words, such as "40% done, waits for the lock, copying".
func (n *Note) String() string {
	var parts []string
	if n.Progress != nil {
		parts = append(parts, fmt.Sprintf("%.0f%% done", 100*min(1, max(0, *n.Progress))))
	}
	if n.Waiting != "" {
		parts = append(parts, "waits for "+strings.TrimPrefix(n.Waiting, "for "))
	}
	if n.Text != "" {
		parts = append(parts, n.Text)
	}
	return strings.Join(parts, ", ")
}

// Empty reports whether the note says nothing.
func (n *Note) Empty() bool {
	return n.Progress == nil && n.Waiting == "" && n.Text == "" && len(n.Links) == 0
}

// Clone copies the note, so that one of them may be changed.
func (n *Note) Clone() Note {
	c := *n
	c.Links = slices.Clone(n.Links)
	return c
}
