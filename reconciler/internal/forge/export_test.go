package forge

import (
	"context"
	"net/http"
	"net/url"
)

// RewriteNote reads the statuses of a note and writes them again.
func RewriteNote(text string) (string, error) { return formatNote(parseNote(text)) }

// NewLane is the way to an API, with its token.
func NewLane(base *url.URL, token string, next http.RoundTripper) http.RoundTripper {
	return &lane{base: base, next: next, token: func(context.Context) (string, error) { return token, nil }}
}

// PowerRows are the permissions that a GitHub App needs, as rows of a table.
func PowerRows() []string {
	var out []string
	for _, p := range powers {
		out = append(out, "| `"+p.name+"` | "+p.level+" | "+p.why+" |")
	}
	return out
}
