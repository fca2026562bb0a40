package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/codeowners"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// mostOwnerMistakes bounds what is said of one file.
const mostOwnerMistakes = 20

// readOwners reads CODEOWNERS when a rule of the policy asks for owners. Its errors are
// ours.
func (r *repository) readOwners(tree Tree) error {
	asks := func(c pipeline.ChangeRule) bool { return c.Codeowners }
	if !slices.ContainsFunc(r.cfg.Policy.Changes, asks) {
		return nil
	}
	file, text, err := findOwners(tree)
	switch {
	case err == nil && file == "":
		r.noOwners("the repository has no CODEOWNERS", "write one, as "+codeowners.Places()[0])
		return nil
	case fault.Is(err, fault.Invalid):
		r.cfg.Owners.File = file
		r.noOwners(fmt.Sprintf("%s cannot be read: %s", file, plain(err.Error())), "make it a text of this repository of at most 1 MiB")
		return nil
	case err != nil:
		return fmt.Errorf("read %s: %w", file, err)
	}
	rules, mistakes := codeowners.Parse(text)
	r.cfg.Owners = pipeline.Owners{File: file, Rules: rules}
	for i, m := range mistakes {
		if i == mostOwnerMistakes {
			r.sayOwners(warn(codeOwners, pipeline.Position{File: file, Line: m.Line, Column: m.Col}, "%d more lines are skipped", len(mistakes)-i))
			break
		}
		d := warn(codeOwners, pipeline.Position{File: file, Line: m.Line, Column: m.Col}, "this line is skipped: %s", plain(m.Why))
		d.Note = "its paths belong to those whom another line names, or to nobody"
		r.sayOwners(d)
	}
	r.checkAddresses()
	return nil
}

// noOwners says at each rule that asks for owners that there are none to be asked.
func (r *repository) noOwners(why, help string) {
	r.cfg.Owners.Problem = why
	for _, c := range r.cfg.Policy.Changes {
		if c.Codeowners {
			d := diag(codeOwners, c.Pos, "policy: changes %q asks for the owners of what is changed, and %s", c.Name, why)
			d.Note, d.Help = "nobody could ever approve it", help
			d.Unit = path.Dir(c.Pos.File)
			r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
		}
	}
}

// checkAddresses warns of owners that not every forge can tell.
func (r *repository) checkAddresses() {
	said := 0
	for _, o := range r.cfg.Owners.Rules {
		for _, owner := range o.Owners {
			if !strings.Contains(owner, "@") || strings.HasPrefix(owner, "@") || said == mostOwnerMistakes {
				continue
			}
			said++
			d := warn(codeOwners, pipeline.Position{File: r.cfg.Owners.File, Line: o.Line, Column: 1}, "%s is an e-mail address, and GitHub does not tell whose it is", owner)
			d.Note = "only a key that allowed_signers gives to that address proves that a review is its owner's"
			d.Help = "name the account, as @USER"
			r.sayOwners(d)
		}
	}
}

func (r *repository) sayOwners(d pipeline.Diagnostic) {
	d.Unit = path.Dir(d.Pos.File)
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
}

// findOwners reads the first CODEOWNERS that is there; file is "" when none is. A folder
// of that name is none.
func findOwners(tree Tree) (file, text string, err error) {
	for _, file := range codeowners.Places() {
		in, err := fs.Stat(tree, path.Dir(file))
		if absent(err) || fault.Is(err, fault.Invalid) || err == nil && !in.IsDir() {
			continue
		}
		var is fs.FileInfo
		if err == nil {
			is, err = fs.Stat(tree, file)
		}
		if absent(err) || err == nil && is.IsDir() {
			continue
		}
		var text []byte
		if err == nil {
			text, err = readBlob(tree, file)
		}
		return file, string(text), err
	}
	return "", "", nil
}

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) || fault.Is(err, fault.NotFound) }
