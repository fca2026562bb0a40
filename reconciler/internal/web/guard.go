package web

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
)

func invalidPublic(s string) error {
	return fault.New(fault.Invalid, "public address %q: want a URL such as https://maestro.example.org", s)
}

// policy lets a page load what this binary carries and nothing else. data: is
// for the icon of the page itself.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; " +
	"connect-src 'self'; worker-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// guard stands before every route: it sets the headers that all responses have,
// and refuses what no route should ever see.
func (s *server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		switch {
		case strings.HasPrefix(r.URL.Path, agentPaths):
			s.wrongDoor(w)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			s.fail(w, r, http.StatusMethodNotAllowed,
				"This view is read-only: it answers GET and HEAD. Change things through Git.")
		case !s.knownHost(r):
			s.fail(w, r, http.StatusMisdirectedRequest,
				"This address answers only to the names of its own machine; set the public address to use another.")
		case !plainPath(r):
			s.fail(w, r, http.StatusBadRequest, "The path is not in its plain form.")
		case repeated(r):
			s.fail(w, r, http.StatusBadRequest, "A query parameter is given twice, or the query cannot be read.")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// agentPaths is where an agent looks for its server, at another address than ours.
const agentPaths = "/agent/"

// wrongDoor tells an agent that was given the address of the pages where to go, in
// the form that it reads.
func (s *server) wrongDoor(w http.ResponseWriter) {
	at := "the address that the reconciler prints as agents, or was given as --intake"
	if s.intake != "" {
		at = s.intake + " on its machine"
	}
	b, err := json.Marshal(map[string]string{"error": "this is the web view of a reconciler; agents connect to its intake, which is " + at + ": give that as --server"})
	if err != nil {
		s.log.Error("answer not encoded", "err", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	if _, err := w.Write(b); err != nil {
		s.log.Debug("client went away", "path", agentPaths, "err", err)
	}
}

// knownHost refuses a page elsewhere that had its own name resolve to this
// machine: over loopback only names of this machine, and the public one, count.
func (s *server) knownHost(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return true
	}
	addr, err := netip.ParseAddrPort(local.String())
	if err != nil || !addr.Addr().Unmap().IsLoopback() {
		return true
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		(s.publicHost != "" && host == strings.ToLower(s.publicHost))
}

// plainPath reports whether the path is written in the one way we link to it.
// Names need no escape, so a path with one was made to confuse somebody.
func plainPath(r *http.Request) bool {
	p := r.URL.Path
	clean := path.Clean(p)
	if clean != "/" && strings.HasSuffix(p, "/") {
		clean += "/"
	}
	return p == clean && r.URL.RawPath == "" && !strings.ContainsAny(r.URL.EscapedPath(), "%;\\")
}

func repeated(r *http.Request) bool {
	if strings.Contains(r.URL.RawQuery, ";") {
		return true
	}
	for _, values := range r.URL.Query() {
		if len(values) > 1 {
			return true
		}
	}
	return false
}
