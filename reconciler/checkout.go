package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// checkout is a person's working copy of the ops repository. The git program answers
// what only a working copy knows; commits are read as the server reads them.
type checkout struct {
	root string // of the working copy, or the bare repository itself
	repo *gitrepo.Repo
}

// worktree is what people call the files as they are, committed or not.
const worktree = "worktree"

func openCheckout(ctx context.Context, dir string) (*checkout, error) {
	c := &checkout{root: dir}
	root, err := c.git(ctx, "rev-parse", "--show-toplevel")
	if err != nil {
		if bare, bareErr := c.git(ctx, "rev-parse", "--absolute-git-dir"); bareErr == nil && bare != "" {
			root = bare
		} else {
			return nil, fault.New(fault.Invalid, "%s is in no Git repository: run this in a clone of the ops repository (%w)", dir, err)
		}
	}
	c.root = root
	if c.repo, err = gitrepo.Open(ctx, gitrepo.Options{URL: c.root}); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *checkout) close() { _ = c.repo.Close() }

// git runs the git program in the working copy and returns what it prints, trimmed.
func (c *checkout) git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = c.root
	cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0", "GIT_OPTIONAL_LOCKS=0")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fault.New(fault.NotFound, "git is not installed: apt-get install git")
		}
		return "", fault.New(fault.Invalid, "git %s: %s", args[0], strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// commit resolves what a person calls a commit: a branch, a tag, an id, HEAD~1.
func (c *checkout) commit(ctx context.Context, name string) (pipeline.CommitID, error) {
	id, err := c.git(ctx, "rev-parse", "--verify", "--quiet", "--end-of-options", name+"^{commit}")
	if err != nil {
		return "", fault.New(fault.NotFound, "there is no commit %q here: give a branch, a tag or an id", name)
	}
	return pipeline.CommitID(id), nil
}

// trunk returns the name that leads to the default branch, and the branch: what the
// remote says, else main or master.
func (c *checkout) trunk(ctx context.Context) (name, branch string, err error) {
	if name, err := c.git(ctx, "rev-parse", "--abbrev-ref", "--verify", "--quiet", "origin/HEAD"); err == nil {
		return name, strings.TrimPrefix(name, "origin/"), nil
	}
	for _, branch := range []string{"main", "master"} {
		for _, name := range []string{"origin/" + branch, branch} {
			if _, err := c.commit(ctx, name); err == nil {
				return name, branch, nil
			}
		}
	}
	return "", "", fault.New(fault.NotFound, "neither main nor master is here, and no remote says what its default branch is: name it with --base")
}

// fork returns the commit from which head left base, and how many commits base has
// since. Without a common commit it is base itself.
func (c *checkout) fork(ctx context.Context, base, head pipeline.CommitID) (pipeline.CommitID, int) {
	from, err := c.git(ctx, "merge-base", string(base), string(head))
	if err != nil || from == string(base) || from == "" {
		return base, 0
	}
	list, _ := c.git(ctx, "rev-list", "--max-count=1000", from+".."+string(base))
	return pipeline.CommitID(from), len(strings.Fields(list))
}

// tree opens the files of a commit, or those of the working copy.
func (c *checkout) tree(ctx context.Context, id pipeline.CommitID) (config.Tree, error) {
	if id == "" {
		return config.FSTree(os.DirFS(c.root)), nil
	}
	return c.repo.Tree(ctx, id)
}

// changed lists the paths that differ between base and head; "" is the working copy.
func (c *checkout) changed(ctx context.Context, base, head pipeline.CommitID) (paths []string, complete bool, err error) {
	if head != "" {
		changes, err := c.repo.ChangedPaths(ctx, base, head)
		return changes.Paths, !changes.Truncated, err
	}
	tracked, err := c.git(ctx, "diff", "--name-only", "--no-renames", "-z", string(base), "--")
	if err != nil {
		return nil, false, err
	}
	fresh, err := c.git(ctx, "ls-files", "--others", "--exclude-standard", "-z")
	if err != nil {
		return nil, false, err
	}
	paths = slices.DeleteFunc(strings.Split(tracked+"\x00"+fresh, "\x00"), func(p string) bool { return p == "" })
	slices.Sort(paths)
	return slices.Compact(paths), true, nil
}

// remotes are the places that the working copy knows, and itself.
func (c *checkout) remotes(ctx context.Context) []string {
	out := []string{c.root}
	list, err := c.git(ctx, "config", "--get-regexp", `^remote\..*\.url$`)
	if err != nil {
		return out // it has none
	}
	for line := range strings.Lines(list) {
		if _, url, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			out = append(out, url)
		}
	}
	return out
}

// same reports whether the address of a repository is one of list.
func sameRepository(list []string, url string) bool {
	plain := func(s string) string {
		return strings.TrimSuffix(filepath.Clean(strings.TrimPrefix(s, "file://")), string(filepath.Separator)+".git")
	}
	return slices.ContainsFunc(list, func(s string) bool { return plain(s) == plain(url) })
}
