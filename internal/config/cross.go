package config

import (
	"bytes"
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/schema"
)

// repository compares the results of all units of a commit.
type repository struct {
	cfg     pipeline.Config
	results []*unitResult
	// unusable are the compositions that something here speaks against.
	unusable map[pipeline.CompositionName]bool
	// compositions are those of all units that are sound by themselves, by name;
	// declared are the names of all that are written.
	compositions map[pipeline.CompositionName]*pipeline.Composition
	declared     map[pipeline.CompositionName]bool
	// called are the compositions that others call.
	called map[pipeline.CompositionName]bool
	// broken are the folders of plugins whose programs are not there.
	broken []string
}

// assemble makes a configuration of the results of units. Its only errors are
// ours: reading the hash of a plugin's folder.
func assemble(commit pipeline.CommitID, s *survey, results map[string]*unitResult) (pipeline.Config, error) {
	r := &repository{cfg: pipeline.Config{Commit: commit}, unusable: map[pipeline.CompositionName]bool{}}
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, s.diags...)
	for _, dir := range sortedKeys(results) {
		res := results[dir]
		r.results = append(r.results, res)
		r.cfg.Diagnostics = append(r.cfg.Diagnostics, res.Diagnostics...)
		r.cfg.Pools = append(r.cfg.Pools, res.Pools...)
		r.cfg.Secrets = append(r.cfg.Secrets, res.Secrets...)
		r.cfg.Repositories = append(r.cfg.Repositories, res.Repositories...)
		if res.Plugin != nil {
			if err := r.addPlugin(s, *res.Plugin); err != nil {
				return pipeline.Config{}, err
			}
		}
	}
	slices.SortFunc(r.cfg.Pools, func(a, b pipeline.Pool) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(r.cfg.Secrets, func(a, b pipeline.Secret) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(r.cfg.Repositories, func(a, b pipeline.Repository) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(r.cfg.Plugins, func(a, b pipeline.Plugin) int { return cmp.Compare(a.Name, b.Name) })
	r.gatherPolicy()
	r.gatherNames()
	r.duplicates()
	if err := r.checkMentions(s); err != nil {
		return pipeline.Config{}, err
	}
	for _, res := range r.results {
		for i := range res.Compositions {
			r.checkAgents(&res.Compositions[i])
		}
	}
	r.checkRepositories()
	if err := r.checkSealed(s.tree); err != nil {
		return pipeline.Config{}, err
	}
	r.checkPolicy()
	if err := r.readOwners(s.tree); err != nil {
		return pipeline.Config{}, err
	}
	r.checkWebhooks()
	r.checkCalls()
	for _, res := range r.results {
		for i := range res.Compositions {
			if c := &res.Compositions[i]; !r.unusable[c.Name] {
				r.cfg.Compositions = append(r.cfg.Compositions, *c)
			}
		}
	}
	slices.SortFunc(r.cfg.Compositions, func(a, b pipeline.Composition) int { return cmp.Compare(a.Name, b.Name) })
	r.idle()
	r.vendored(s)
	r.cfg.Diagnostics = tidy(r.cfg.Diagnostics)
	return r.cfg, nil
}

// gatherNames looks up once what is asked for often.
func (r *repository) gatherNames() {
	r.compositions = map[pipeline.CompositionName]*pipeline.Composition{}
	r.declared, r.called = map[pipeline.CompositionName]bool{}, map[pipeline.CompositionName]bool{}
	for _, res := range r.results {
		for i := range res.Compositions {
			r.compositions[res.Compositions[i].Name] = &res.Compositions[i]
		}
		for _, m := range res.Declared {
			if m.Kind == mentionComposition {
				r.declared[pipeline.CompositionName(m.Name)] = true
			}
		}
		for _, c := range res.Calls {
			if c.Kind == callTask || c.Kind == callHook {
				r.called[c.Target] = true
			}
		}
	}
}

// tidy orders diagnostics and drops what several units said of one place.
func tidy(ds []pipeline.Diagnostic) []pipeline.Diagnostic {
	pipeline.SortDiagnostics(ds)
	return slices.CompactFunc(ds, func(a, b pipeline.Diagnostic) bool {
		return a.Code == b.Code && a.Pos == b.Pos && a.Message == b.Message
	})
}

func (r *repository) addPlugin(s *survey, p pipeline.Plugin) error {
	if strings.HasPrefix(p.Dir, builtinDir) {
		_, tree, err := BuiltinPlugin(p.Name)
		if err != nil {
			return err
		}
		p.Tree = tree
		r.cfg.Plugins = append(r.cfg.Plugins, p)
		return nil
	}
	if slices.Contains(builtinNames(), string(p.Name)) || p.Name == pipeline.CorePlugin {
		d := diag(codeDuplicate, p.Pos, "plugin %q has the name of a standard plugin", p.Name)
		d.Help, d.Unit = "rename its directory", p.Dir
		r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
		return nil
	}
	hash, err := s.tree.Hash(p.Dir)
	if err != nil {
		return fmt.Errorf("read tree of %s: %w", p.Dir, err)
	}
	p.Tree = pipeline.Digest("git:" + hash)
	r.cfg.Plugins = append(r.cfg.Plugins, p)
	return nil
}

// duplicates reports names that two directories declare. Neither counts: which
// one was meant is for a person to say.
func (r *repository) duplicates() {
	type where struct {
		mention
		unit string
	}
	first := map[[2]string]where{}
	for _, res := range r.results {
		for _, m := range res.Declared {
			key := [2]string{m.Kind, m.Name}
			f, twice := first[key]
			if !twice {
				first[key] = where{m, res.Dir}
				continue
			}
			d := diag(codeDuplicate, m.Pos, "%s %q is declared in two directories", m.Kind, m.Name)
			d.Note = fmt.Sprintf("the other is at %s", f.Pos)
			d.Help = "rename one of them, or move both to one directory"
			d.Unit = res.Dir
			r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
			if m.Kind == mentionComposition {
				r.unusable[pipeline.CompositionName(m.Name)] = true
			}
		}
	}
}

// complain speaks against a composition.
func (r *repository) complain(unit string, c pipeline.CompositionName, d pipeline.Diagnostic) {
	d.Unit = unit
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
	r.unusable[c] = true
}

// vendored warns when the copy of the schema in the repository is another one:
// editors and "cue vet" would judge by it, and this evaluator does not.
func (r *repository) vendored(s *survey) {
	name := path.Join(vendorDir, "schema.cue")
	have, err := readBlob(s.tree, name)
	if err != nil {
		return // there need not be a copy
	}
	want, err := schema.Files.ReadFile("schema.cue")
	if err == nil && bytes.Equal(have, want) {
		return
	}
	d := warn(codeVendored, pipeline.Position{File: name}, "the vendored schema is not the one that is in force")
	d.Note = "it serves editors and \"cue vet\"; the reconciler uses its own"
	d.Help = "run \"reconciler vendor\""
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
}
