package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// client reads from a server's API.
type client struct{ base string }

const defaultServer = "http://127.0.0.1:8420"

// serverFlag adds --server; the environment's RECONCILER_SERVER is its default.
func serverFlag(cmd *cobra.Command, c *client) {
	def := os.Getenv("RECONCILER_SERVER")
	if def == "" {
		def = defaultServer
	}
	cmd.Flags().StringVar(&c.base, "server", def, "address of the web view to ask")
}

// get reads one JSON answer. What the server refuses keeps its kind; a server that
// is not there is fault.Unavailable with the next step.
func (c *client) get(ctx context.Context, path string, query url.Values, out any) error {
	body, err := c.open(ctx, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(out); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.New(fault.Unavailable, "read the answer of %s: %w", c.base, err)
	}
	return nil
}

// open starts reading an answer, which may be a stream. The caller closes it.
func (c *client) open(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, path, query)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// do returns an answer that is good. The caller closes its body.
func (c *client) do(ctx context.Context, method, path string, query url.Values) (*http.Response, error) {
	base, err := c.address()
	if err != nil {
		return nil, err
	}
	u := base + "/api/v1" + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "--server %s: %w", c.base, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if u := new(url.Error); errors.As(err, &u) {
			err = u.Err // without the address once more
		}
		return nil, fault.New(fault.Unavailable, "no server answers at %s: start one with `reconciler serve` or `reconciler dev`, or name it with --server (%w)", c.base, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, problemOf(resp)
}

// address returns --server without a slash at its end; a host alone is taken as http.
func (c *client) address() (string, error) {
	s := strings.TrimRight(c.base, "/")
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", fault.New(fault.Invalid, "--server %q is not an address of a web view, such as %s", c.base, defaultServer)
	}
	return s, nil
}

// problemOf reads an error answer (RFC 9457). What is not one comes from something
// else than a reconciler, or from a proxy before it.
func problemOf(resp *http.Response) error {
	var p struct {
		Title  string `json:"title"`
		Detail string `json:"detail"`
	}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") || json.Unmarshal(raw, &p) != nil {
		return fault.New(fault.Unavailable, "%s://%s answers %s, but not as a reconciler's web view does; is it the right --server?",
			resp.Request.URL.Scheme, resp.Request.URL.Host, resp.Status)
	}
	text := cmp.Or(p.Detail, p.Title, resp.Status)
	kind := fault.Unavailable
	switch resp.StatusCode {
	case http.StatusNotFound:
		kind = fault.NotFound
	case http.StatusBadRequest:
		kind = fault.Invalid
	case http.StatusConflict:
		kind = fault.Conflict
	}
	return fault.New(kind, "%s", text)
}

// shownRun is a run as the API tells it: the record, with what people see just now.
type shownRun struct {
	pipeline.Run
	Shown    pipeline.State `json:"shown"`
	Sentence string         `json:"sentence,omitempty"`
	Tasks    []shownTask    `json:"tasks"`
}

// shownTask is a task of a shownRun. Now is what it last said of itself while it runs.
type shownTask struct {
	pipeline.RunTask
	Shown       pipeline.State `json:"shown"`
	Sentence    string         `json:"sentence,omitempty"`
	AgentName   string         `json:"agent_name,omitempty"`
	Now         *pipeline.Note `json:"now,omitempty"`
	SilentSince time.Time      `json:"silent_since,omitzero"`
}

// Task returns the task of that name, or nil.
func (r *shownRun) Task(name pipeline.TaskName) *shownTask {
	for i := range r.Tasks {
		if r.Tasks[i].Name == name {
			return &r.Tasks[i]
		}
	}
	return nil
}

var (
	runRE = regexp.MustCompile(`^([a-z][a-z0-9-]*)[#/]([0-9]+)$`)
	// ulidRE is the form of a run's id.
	ulidRE = regexp.MustCompile(`^[0-9A-Za-z]{26}$`)
)

// find returns the run that a person means: COMPOSITION#N, COMPOSITION/N, an id, or
// a composition's name for its newest run.
func (c *client) find(ctx context.Context, s string) (shownRun, error) {
	var r shownRun
	if m := runRE.FindStringSubmatch(s); m != nil {
		err := c.get(ctx, "/compositions/"+m[1]+"/runs/"+m[2], nil, &r)
		if fault.Is(err, fault.NotFound) {
			if err := c.knows(ctx, m[1]); err != nil {
				return r, err
			}
			return r, fault.New(fault.NotFound, "composition %s has no run %s; see: reconciler runs --composition %s", m[1], m[2], m[1])
		}
		return r, err
	}
	switch {
	case pipeline.ValidName(s):
		var list struct {
			Runs []shownRun `json:"runs"`
		}
		err := c.get(ctx, "/runs", url.Values{"composition": {s}, "limit": {"1"}, "tasks": {"1"}}, &list)
		if err != nil {
			return r, err
		}
		if len(list.Runs) > 0 {
			return list.Runs[0], nil
		}
		if err := c.knows(ctx, s); err != nil {
			return r, err
		}
		return r, fault.New(fault.NotFound, "composition %s has not run yet", s)
	case ulidRE.MatchString(s):
		err := c.get(ctx, "/runs/"+strings.ToUpper(s), nil, &r)
		if fault.Is(err, fault.NotFound) {
			err = fault.New(fault.NotFound, "there is no run %s; see: reconciler runs", s)
		}
		return r, err
	}
	return r, fault.New(fault.Invalid, "%q does not name a run: give COMPOSITION#N, such as hello#3, or a composition for its newest run; see: reconciler runs", s)
}

// knows returns fault.NotFound, with what may be meant, unless a composition of that
// name is declared or has run.
func (c *client) knows(ctx context.Context, name string) error {
	var board struct {
		Compositions []struct {
			Name string `json:"name"`
		} `json:"compositions"`
	}
	if err := c.get(ctx, "/board", nil, &board); err != nil {
		return err
	}
	names := make([]string, 0, len(board.Compositions))
	for _, b := range board.Compositions {
		if b.Name == name {
			return nil
		}
		names = append(names, b.Name)
	}
	return fault.New(fault.NotFound, "there is no composition %s%s", name, didYouMean(name, names))
}

// changes calls each with what is recorded after a change, and with what tasks say of
// themselves, until ctx or the stream ends, which is an error in either case.
func (c *client) changes(ctx context.Context, after pipeline.Seq, each func(pipeline.Change)) error {
	body, err := c.open(ctx, "/events", url.Values{"after": {strconv.FormatInt(int64(after), 10)}, "follow": {"1"}, "notes": {"1"}})
	if err != nil {
		return err
	}
	defer body.Close()
	d := json.NewDecoder(body)
	for {
		var ch pipeline.Change
		if err := d.Decode(&ch); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Unavailable, "the stream of changes broke: %w", err)
		}
		each(ch)
	}
}

func (c *client) lastSeq(ctx context.Context) (pipeline.Seq, error) {
	var h struct {
		Seq pipeline.Seq `json:"seq"`
	}
	return h.Seq, c.get(ctx, "/health", nil, &h)
}

func (c *client) attempts(ctx context.Context, id pipeline.RunID) ([]pipeline.Attempt, error) {
	var a struct {
		Attempts []pipeline.Attempt `json:"attempts"`
	}
	return a.Attempts, c.get(ctx, "/runs/"+string(id)+"/attempts", nil, &a)
}

// runURL is where people look at a run.
func (c *client) runURL(r *pipeline.Run) string {
	base, _ := c.address()
	return fmt.Sprintf("%s/c/%s/%d", base, r.Composition, r.Number)
}
