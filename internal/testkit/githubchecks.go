package testkit

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// CheckRun is one that an App has made.
type CheckRun struct {
	ID                   int64
	Name, Head, External string
	Status, Conclusion   string
	Title, Summary       string
	Annotations          []Annotation
	completed            string
}

// Annotation is a remark of a check run on a line.
type Annotation struct {
	Path    string `json:"path"`
	Line    int    `json:"start_line"`
	Level   string `json:"annotation_level"`
	Message string `json:"message"`
}

var (
	checkRE    = regexp.MustCompile(`^` + repoPath + `/check-runs(/\d+)?$`)
	checksOfRE = regexp.MustCompile(`^` + repoPath + `/commits/([0-9a-f]{40})/check-runs$`)
)

// checkRoute answers what an App asks about check runs. Called with mu.
func (g *GitHub) checkRoute(r *http.Request, path string, body []byte) (reply, bool) {
	if m := checksOfRE.FindStringSubmatch(path); m != nil {
		var out []obj
		for _, c := range g.checks {
			if c.Head == m[1] && c.Name == r.URL.Query().Get("check_name") && r.URL.Query().Get("app_id") == "42" {
				out = []obj{c.shown()} // the latest of the name
			}
		}
		return reply{http.StatusOK, obj{"total_count": len(out), "check_runs": orNone(out)}}, true
	}
	m := checkRE.FindStringSubmatch(path)
	if m == nil {
		return reply{}, false
	}
	if g.app.grants["checks"] != "write" {
		return reply{http.StatusForbidden, nil}, true
	}
	var ask struct {
		Name, Status, Conclusion string
		HeadSHA                  string `json:"head_sha"`
		External                 string `json:"external_id"`
		Completed                string `json:"completed_at"`
		Output                   struct {
			Title, Summary string
			Annotations    []Annotation
		}
	}
	if err := json.Unmarshal(body, &ask); err != nil {
		g.t.Error(err)
	}
	var c *CheckRun
	status := http.StatusOK
	if m[1] == "" {
		g.ids++
		c, status = &CheckRun{ID: g.ids, Head: ask.HeadSHA}, http.StatusCreated
		g.checks = append(g.checks, c)
	} else if i := slices.IndexFunc(g.checks, func(c *CheckRun) bool { return m[1] == "/"+strconv.FormatInt(c.ID, 10) }); i >= 0 {
		c = g.checks[i]
	} else {
		return reply{http.StatusNotFound, nil}, true
	}
	c.Name, c.External, c.Status, c.Conclusion, c.completed = ask.Name, ask.External, ask.Status, ask.Conclusion, ask.Completed
	c.Title, c.Summary = ask.Output.Title, ask.Output.Summary
	c.Annotations = append(c.Annotations, ask.Output.Annotations...)
	return reply{status, c.shown()}, true
}

func (c *CheckRun) shown() obj {
	out := obj{
		"id": c.ID, "name": c.Name, "head_sha": c.Head, "external_id": c.External, "status": c.Status, "app": obj{"id": 42},
		"output": obj{"title": c.Title, "summary": c.Summary, "annotations_count": len(c.Annotations)},
	}
	if c.Conclusion != "" {
		out["conclusion"], out["completed_at"] = c.Conclusion, c.completed
	}
	return out
}

// Check returns the check run that a commit shows, and how many it had in all.
func (g *GitHub) Check(head pipeline.CommitID) (last CheckRun, all int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.checks {
		if c.Head == string(head) {
			last, all = *c, all+1
		}
	}
	return last, all
}

// AwaitCheck waits until a commit shows a check run that has ended, and its title has
// the text in it.
func (g *GitHub) AwaitCheck(head pipeline.CommitID, conclusion, title string) CheckRun {
	g.t.Helper()
	var c CheckRun
	Eventually(g.t, fmt.Sprintf("the check run of %s is %s: %s", head.Short(), conclusion, title), func() (bool, string) {
		c, _ = g.Check(head)
		return c.Status == "completed" && c.Conclusion == conclusion && strings.Contains(c.Title, title), fmt.Sprintf("%+v", c)
	})
	return c
}

// Rerequest presses the button "Re-run" of the check run that a commit shows.
func (g *GitHub) Rerequest(by string, head pipeline.CommitID) {
	c, _ := g.Check(head)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.post("check_run", obj{"action": "rerequested", "check_run": c.shown(), "sender": g.user(by)})
}
