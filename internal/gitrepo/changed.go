package gitrepo

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Changes is which paths differ between two commits.
type Changes struct {
	// Paths in byte order, as "git diff --name-only --no-renames" names them:
	// files, links and submodules, added, changed or removed.
	Paths []string
	// Truncated: there are more than Limits.Changed; treat every path as changed.
	Truncated bool
}

// ChangedPaths compares the trees of two commits; equal subtrees are not
// entered. An empty base means every path of head. It returns fault.NotFound
// when the repository lacks one of the commits, as after a force-push and gc.
func (r *Repo) ChangedPaths(ctx context.Context, base, head pipeline.CommitID) (Changes, error) {
	var from plumbing.Hash
	if base != "" {
		c, err := r.commit(base)
		if err != nil {
			return Changes{}, err
		}
		from = c.tree
	}
	c, err := r.commit(head)
	if err != nil {
		return Changes{}, err
	}
	d := treeDiff{ctx: ctx, repo: r}
	err = d.trees("", from, c.tree, 0)
	if errors.Is(err, errEnough) {
		d.out.Truncated, err = true, nil
	}
	if err != nil {
		return Changes{}, err
	}
	slices.Sort(d.out.Paths)
	return d.out, nil
}

var errEnough = errors.New("enough changes")

// treeDiff lives as long as one ChangedPaths, hence the context in it.
type treeDiff struct {
	ctx  context.Context
	repo *Repo
	out  Changes
	// visited bounds the work where trees are many and files few.
	visited int
}

func (d *treeDiff) trees(dir string, a, b plumbing.Hash, depth int) error {
	if a == b {
		return nil
	}
	if err := d.ctx.Err(); err != nil {
		return fault.New(fault.Unavailable, "compare trees: %w", err)
	}
	if depth > maxDepth {
		return fault.New(fault.Invalid, "%s: directories are nested deeper than %d", quote(dir), maxDepth)
	}
	if d.visited++; d.visited > d.repo.limits.Entries {
		return errEnough
	}
	x, err := d.list(dir, a)
	if err != nil {
		return err
	}
	y, err := d.list(dir, b)
	if err != nil {
		return err
	}
	for len(x) > 0 || len(y) > 0 {
		var l, r entry
		switch {
		case len(y) == 0 || len(x) > 0 && x[0].name < y[0].name:
			l, x = x[0], x[1:]
		case len(x) == 0 || y[0].name < x[0].name:
			r, y = y[0], y[1:]
		default:
			l, x, r, y = x[0], x[1:], y[0], y[1:]
		}
		if err := d.pair(dir+cmp.Or(l.name, r.name), l, r, depth); err != nil {
			return err
		}
	}
	return nil
}

// pair compares what two trees have under one name; the zero entry is nothing.
// A file that became a directory counts as itself and as what is in it.
func (d *treeDiff) pair(path string, l, r entry, depth int) error {
	if l == r {
		return nil
	}
	var from, to plumbing.Hash
	leaf := false
	if l.isDir() {
		from = l.hash
	} else if l.mode != 0 {
		leaf = true
	}
	if r.isDir() {
		to = r.hash
	} else if r.mode != 0 {
		leaf = true
	}
	if leaf {
		if len(d.out.Paths) >= d.repo.limits.Changed {
			return errEnough
		}
		d.out.Paths = append(d.out.Paths, strings.ToValidUTF8(path, "\uFFFD"))
	}
	return d.trees(path+"/", from, to, depth+1)
}

func (d *treeDiff) list(dir string, h plumbing.Hash) ([]entry, error) {
	if h.IsZero() {
		return nil, nil
	}
	l, err := d.repo.listing(h)
	if err != nil {
		return nil, objectFault("compare directory "+quote(dir), err)
	}
	return l.entries, nil
}
