package config

import (
	"io/fs"
	"path"
	"slices"
	"strings"

	"cuelang.org/go/cue/parser"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// misspelt warns of directories that nobody looks at and that are called almost
// like one that is, or that hold files of package ops all the same.
func (s *survey) misspelt(root *dirInfo) error {
	known := append(slices.Clone(opsRoots), "plugins")
	for _, name := range root.subdirs {
		if slices.Contains(known, name) || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
			continue
		}
		hint := didYouMean(name, known)
		stray, err := s.strayIn(name)
		if err != nil {
			return err
		}
		if hint == "" && stray == "" {
			continue
		}
		d := warn(codeTopLevel, pipeline.Position{File: name}, "the directory %q is not looked at", plain(name))
		d.Note = "declarations are below " + strings.Join(opsRoots, ", ") + "; plugins are below plugins"
		if stray != "" {
			d.Pos.File = stray
			d.Help = "it is of package ops: move it to " + path.Join("compositions", path.Base(path.Dir(stray)), path.Base(stray))
		}
		s.diags = append(s.diags, withHelp(d, hint))
	}
	return nil
}

// strayIn finds a file of package ops in a directory that is not looked at, or in
// one directly below it. It remembers what it found by tree hash.
func (s *survey) strayIn(dir string) (string, error) {
	hash, err := s.tree.Hash(dir)
	if err != nil || hash == "" {
		return "", s.unreadable(dir, err)
	}
	key := "stray\x00" + dir + "\x00" + hash
	if d := s.memo.get(key); d != nil {
		return d.stray, nil
	}
	found, err := s.findStray(dir, 1)
	if err != nil {
		return "", s.unreadable(dir, err)
	}
	s.memo.put(key, &dirInfo{stray: found})
	return found, nil
}

// unreadable is an error of ours, and nil when the commit is to blame: what nobody
// looks at may hold anything.
func (s *survey) unreadable(dir string, err error) error {
	if err == nil || fault.Is(err, fault.Invalid) {
		return nil
	}
	return s.refused(dir, err)
}

func (s *survey) findStray(dir string, deeper int) (string, error) {
	entries, err := fs.ReadDir(s.tree, dir)
	if err != nil {
		return "", err
	}
	const most = 200 // a directory of more is no place where somebody begins
	var subdirs []string
	for _, e := range entries[:min(len(entries), most)] {
		name := path.Join(dir, e.Name())
		switch {
		case e.IsDir():
			subdirs = append(subdirs, name)
		case e.Type().IsRegular() && strings.HasSuffix(name, ".cue"):
			text, err := readBlob(s.tree, name)
			if err != nil {
				return "", err
			}
			if f, err := parser.ParseFile(name, text, parser.PackageClauseOnly); err == nil && f.PackageName() == opsPackage {
				return name, nil
			}
		}
	}
	if deeper == 0 {
		return "", nil
	}
	for _, sub := range subdirs {
		if found, err := s.findStray(sub, deeper-1); found != "" || err != nil {
			return found, err
		}
	}
	return "", nil
}

// otherFormat warns of a directory of declarations that holds none, but files in
// a format that others use.
func (s *survey) otherFormat(dir string, info *dirInfo) {
	if len(info.cue) > 0 || info.yaml == "" {
		return
	}
	d := warn(codeTopLevel, pipeline.Position{File: path.Join(dir, info.yaml)}, "%s is not looked at: declarations are CUE files", info.yaml)
	d.Help = "write them into " + strings.TrimSuffix(info.yaml, path.Ext(info.yaml)) + ".cue, which begins with package ops"
	s.diags = append(s.diags, d)
}
