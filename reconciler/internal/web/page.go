package web

import (
	"bytes"
	"net/http"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// page is what every page has; the views embed it.
type page struct {
	Title   string // of the document
	Site    string
	Version string
	Nav     string // which entry of the navigation is current
	Now     time.Time
	Crumbs  []crumb
	// Mood chooses the icon of the page: "good", "bad", "busy" or "".
	Mood string
	// Refresh asks a browser without scripts to load the page again.
	Refresh bool
	// Seq is the newest change when the page was built; Topics are those whose
	// changes concern it.
	Seq    pipeline.Seq
	Topics []string
}

type crumb struct{ Text, URL string }

func (s *server) plainPage(title, nav string) page {
	return page{Title: title, Site: s.title, Version: s.version, Nav: nav, Now: s.now().UTC()}
}

// view is a page's data; mutable access to the part that all have.
type view interface{ base() *page }

func (p *page) base() *page { return p }

// show wraps the function that builds a page's view. A request for a fragment
// gets the live part alone.
func (s *server) show(name string, build func(r *http.Request) (view, error)) http.Handler {
	fresh := s.showFresh(name, build)
	return s.handle(func(w http.ResponseWriter, r *http.Request) error {
		if same, err := s.unchanged(w, r); same || err != nil {
			return err
		}
		fresh.ServeHTTP(w, r)
		return nil
	})
}

// showFresh is show for a page whose content is not told by the newest change,
// as a log that grows is not.
func (s *server) showFresh(name string, build func(r *http.Request) (view, error)) http.Handler {
	return s.handle(func(w http.ResponseWriter, r *http.Request) error {
		// Read before the data: a change in between is then announced again, not lost.
		seq, err := s.src.LastSeq(r.Context())
		if err != nil {
			return err
		}
		v, err := build(r)
		if err != nil {
			return err
		}
		v.base().Seq = seq
		template := name
		if r.URL.Query().Has("fragment") {
			template = name + "-main"
		}
		var b bytes.Buffer
		if err := s.ui.Render(&b, template, v); err != nil {
			return err
		}
		s.send(w, r, http.StatusOK, "text/html; charset=utf-8", b.Bytes())
		return nil
	})
}

// moodOf chooses the icon for a state.
func moodOf(state pipeline.State) string {
	switch {
	case bad(state):
		return "bad"
	case state.Good():
		return "good"
	case state == pipeline.Running || state == pipeline.Offered:
		return "busy"
	}
	return ""
}

// bad reports whether somebody should look at what ended so.
func bad(state pipeline.State) bool {
	return state == pipeline.Failure || state == pipeline.Error || state == pipeline.Timeout || state == pipeline.InDoubt
}
