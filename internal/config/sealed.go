package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/sops"
)

// checkSealed looks at the encrypted files that secrets are read from, as far as that
// goes without a key: the file is there and encrypted, it has the key, and nobody is
// among those who can open it whom .sops.yaml does not name. Its errors are ours.
func (r *repository) checkSealed(tree Tree) error {
	files := map[string]sealed{}
	var rules *sops.Rules
	for i := range r.cfg.Secrets {
		s := &r.cfg.Secrets[i]
		if s.Sops == "" {
			continue
		}
		if len(files) == 0 {
			text, err := readSealed(tree, sops.RulesFile)
			if err == nil {
				rules, err = sops.ParseRules(text)
			}
			if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Invalid) {
				return err
			}
			if fault.Is(err, fault.Invalid) {
				r.saySealed(s, diag(codeSealed, pipeline.Position{File: sops.RulesFile}, "%s", plain(err.Error())))
			}
		}
		f, seen := files[s.Sops]
		if !seen {
			var err error
			if f, err = openSealed(tree, s.Sops); err != nil {
				return err
			}
			files[s.Sops] = f
			r.checkStrangers(s, f, rules)
		}
		r.checkKey(s, f)
	}
	return nil
}

// sealed is an encrypted file, or what is wrong with it.
type sealed struct {
	file *sops.File
	why  error
}

// openSealed reads an encrypted file; its error is ours.
func openSealed(tree Tree, name string) (sealed, error) {
	text, err := readSealed(tree, name)
	if err != nil {
		if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
			return sealed{why: err}, nil
		}
		return sealed{}, err
	}
	f, err := sops.Parse(name, text)
	return sealed{file: f, why: err}, nil
}

func readSealed(tree Tree, name string) ([]byte, error) {
	if !fs.ValidPath(name) {
		return nil, fault.New(fault.Invalid, "%q is no plain path in the repository: write it from the root, as \"secrets/prod.sops.yaml\"", name)
	}
	f, err := tree.Open(name)
	if errors.Is(err, fs.ErrNotExist) || fault.Is(err, fault.NotFound) {
		return nil, fault.New(fault.NotFound, "the repository has no file %s", name)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "%s is no file", name)
	}
	text, err := io.ReadAll(io.LimitReader(f, sops.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return text, nil
}

func (r *repository) checkKey(s *pipeline.Secret, f sealed) {
	err := f.why
	if err == nil {
		err = f.file.Check(s.Key)
	}
	if err == nil {
		return
	}
	d := diag(codeSealed, s.Pos, "secret %q: %s", s.Name, plain(err.Error()))
	switch {
	case f.file == nil && fault.Is(err, fault.NotFound):
		d.Help = "make it with: reconciler secrets edit " + s.Sops
	case fault.Is(err, fault.NotFound):
		d.Help = fmt.Sprintf("add it with: reconciler secrets edit %s, or name one that it has: from: {sops: %q, key: \"NAME\"}", s.Sops, s.Sops)
		d = withHelp(d, didYouMean(s.Key, f.file.Keys()))
	}
	r.saySealed(s, d)
}

func (r *repository) checkStrangers(s *pipeline.Secret, f sealed, rules *sops.Rules) {
	if f.file == nil || rules == nil {
		return
	}
	strange := rules.Strangers(s.Sops, f.file.Recipients())
	if len(strange) == 0 {
		return
	}
	d := diag(codeStranger, s.Pos, "%s is encrypted to %s too, whom %s does not name", s.Sops, plain(strings.Join(strange, ", ")), sops.RulesFile)
	d.Note = "whoever has that key reads what is written into the file"
	d.Help = "name it there, or encrypt the file to those alone whom it names, with: reconciler secrets edit --rekey " + s.Sops
	r.saySealed(s, d)
}

func (r *repository) saySealed(s *pipeline.Secret, d pipeline.Diagnostic) {
	d.Unit = path.Dir(s.Pos.File)
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
}
