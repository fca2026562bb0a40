package main

import (
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
		return fault.New(fault.Unavailable, "read the answer of %s: %w", c.base, err)
	}
	return nil
}

// open starts reading an answer, which may be a stream. The caller closes it.
func (c *client) open(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	u := strings.TrimRight(c.base, "/") + "/api/v1" + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "--server %s: %w", c.base, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fault.New(fault.Unavailable, "no server answers at %s: start one with `reconciler serve` or `reconciler dev`, or name it with --server (%w)", c.base, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	return nil, problemOf(resp)
}

// problemOf reads an error answer (RFC 9457).
func problemOf(resp *http.Response) error {
	var p struct {
		Title  string `json:"title"`
		Detail string `json:"detail"`
	}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	text := strings.TrimSpace(string(raw))
	if json.Unmarshal(raw, &p) == nil {
		if text = p.Detail; text == "" {
			text = p.Title
		}
	}
	kind := fault.Unavailable
	switch resp.StatusCode {
	case http.StatusNotFound:
		kind = fault.NotFound
	case http.StatusBadRequest:
		kind = fault.Invalid
	}
	if text == "" {
		text = resp.Status
	}
	return fault.New(kind, "%s", text)
}

var runRE = regexp.MustCompile(`^([a-z][a-z0-9-]*)[#/]([0-9]+)$`)

// find returns the run that a person means: COMPOSITION#N, COMPOSITION/N, an id, or
// a composition's name for its newest run.
func (c *client) find(ctx context.Context, s string) (pipeline.Run, error) {
	var r pipeline.Run
	if m := runRE.FindStringSubmatch(s); m != nil {
		return r, c.named(c.get(ctx, "/compositions/"+m[1]+"/runs/"+m[2], nil, &r), s)
	}
	if pipeline.ValidName(s) {
		var list struct {
			Runs []pipeline.Run `json:"runs"`
		}
		err := c.get(ctx, "/runs", url.Values{"composition": {s}, "limit": {"1"}, "tasks": {"1"}}, &list)
		if err != nil {
			return r, err
		}
		if len(list.Runs) == 0 {
			return r, fault.New(fault.NotFound, "composition %s has no runs; see: reconciler runs", s)
		}
		return list.Runs[0], nil
	}
	return r, c.named(c.get(ctx, "/runs/"+url.PathEscape(s), nil, &r), s)
}

func (c *client) named(err error, s string) error {
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.NotFound, "there is no run %q; see: reconciler runs", s)
	}
	return err
}

// changes follows the record from after, calling each until it is done or the
// stream ends. It reports whether it was done.
func (c *client) changes(ctx context.Context, after pipeline.Seq, each func(pipeline.Change) (done bool, err error)) (bool, error) {
	body, err := c.open(ctx, "/changes", url.Values{"after": {strconv.FormatInt(int64(after), 10)}, "follow": {"1"}})
	if err != nil {
		return false, err
	}
	defer body.Close()
	d := json.NewDecoder(body)
	for {
		var ch pipeline.Change
		if err := d.Decode(&ch); err != nil {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return false, nil
			}
			return false, fault.New(fault.Unavailable, "the stream of changes broke: %w", err)
		}
		if done, err := each(ch); done || err != nil {
			return done, err
		}
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
	return fmt.Sprintf("%s/c/%s/%d", strings.TrimRight(c.base, "/"), r.Composition, r.Number)
}
