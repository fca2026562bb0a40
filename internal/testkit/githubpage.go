package testkit

import (
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// githubPage shows people a pull request as far as the fake knows it.
var githubPage = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2"><title>octo/ops: pull requests</title>
<style>body{font:15px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}pre{white-space:pre-wrap;border-left:3px solid #888;padding-left:1rem}</style>
<h1>octo/ops, at a GitHub that is made up</h1>
{{range .}}<h2 id="{{.Number}}">#{{.Number}} {{.Title}}</h2>
<p>{{.Author}} wants to merge <code>{{.Branch}}</code> into <code>{{.Base}}</code>; it is {{.State}}</p>
<ul>{{range .Statuses}}<li><code>{{.Context}}</code> {{.State}}: {{.Description}} {{if .URL}}<a href="{{.URL}}">details</a>{{end}}</li>{{end}}</ul>
{{range .Said}}<p><b>{{.By}}</b> {{.How}}</p><pre>{{.Text}}</pre>{{end}}
{{else}}<p>There is no pull request yet.</p>{{end}}`))

type shownPull struct {
	Number                             int
	Title, Author, Branch, Base, State string
	Statuses                           []shownStatus
	Said                               []shownWord
}

type shownStatus struct{ Context, State, Description, URL string }

type shownWord struct {
	By, How, Text string
	at            time.Time
}

// page serves people what programs get below /api/v3.
func (g *GitHub) page(w http.ResponseWriter) {
	g.mu.Lock()
	var all []shownPull
	for _, p := range g.pulls {
		all = append(all, g.shown(p))
	}
	g.mu.Unlock()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := githubPage.Execute(w, all); err != nil {
		g.t.Errorf("the page: %v", err) // it has no other cause than a mistake above
	}
}

// shown is what the page tells of a pull request. Called with mu.
func (g *GitHub) shown(p *githubPull) shownPull {
	out := shownPull{Number: p.number, Title: p.title, Author: p.author, Branch: p.branch, Base: p.base, State: "open"}
	head := p.head
	switch {
	case p.merge != "":
		out.State, head = "merged as "+p.merge[:12], p.merge
	case p.closed:
		out.State = "closed"
	}
	at := map[string]int{}
	for _, s := range g.statuses {
		if string(s.Commit) != head {
			continue
		}
		i, ok := at[s.Context]
		if !ok {
			i = len(out.Statuses)
			at[s.Context], out.Statuses = i, append(out.Statuses, shownStatus{})
		}
		out.Statuses[i] = shownStatus{s.Context, s.State, s.Description, s.URL}
	}
	if p.body != "" {
		out.Said = append(out.Said, shownWord{p.author, "opens it", p.body, p.opened})
	}
	for _, r := range g.reviews {
		if r.pull == p.number {
			out.Said = append(out.Said, shownWord{r.by, "reviews: " + strings.ToLower(r.state), r.body, r.at})
		}
	}
	for _, c := range g.comments {
		if c.pull == p.number {
			out.Said = append(out.Said, shownWord{c.by, "comments", c.body, c.at})
		}
	}
	return out
}

// Page is the address of a page that shows a pull request to people, 0 for all.
func (g *GitHub) Page(number int) string {
	if number == 0 {
		return g.URL + "/octo/ops/pulls"
	}
	return g.URL + "/octo/ops/pulls#" + strconv.Itoa(number)
}
