package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// checkMentions looks at the names that units could not judge alone. Its only
// errors are ours: reading the tree.
func (r *repository) checkMentions(s *survey) error {
	said := map[string]int{} // mistakes by name and file; place among the diagnostics
	for _, res := range r.results {
		for _, m := range res.Mentions {
			switch m.Kind {
			case mentionUnknown:
				r.advise(s, m)
			case mentionProgram, mentionFile, mentionLoose:
				if err := r.checkProgram(s, res, m); err != nil {
					return err
				}
			case mentionPool:
				r.checkDeclared(res.Dir, m, poolNames(r.cfg.Pools), said)
			case mentionSecret:
				r.checkDeclared(res.Dir, m, secretNames(r.cfg.Secrets), said)
			case mentionRepository:
				r.checkDeclared(res.Dir, m, r.repositoryNames(), said)
			}
		}
	}
	// Only now: each of a plugin's programs has been looked at.
	r.cfg.Plugins = slices.DeleteFunc(r.cfg.Plugins, func(p pipeline.Plugin) bool { return slices.Contains(r.broken, p.Dir) })
	return nil
}

// checkDeclared reports a pool, a secret or a source repository that is not declared,
// once for all the tasks of a file that name it.
func (r *repository) checkDeclared(unit string, m mention, known []string, said map[string]int) {
	if slices.Contains(known, m.Name) {
		return
	}
	r.unusable[m.Composition] = true
	key := keyOf([]string{m.Kind, m.Name, m.Pos.File})
	if i, ok := said[key]; ok {
		d := &r.cfg.Diagnostics[i]
		d.Note = also(d.Note, d.Pos, m.Pos)
		return
	}
	said[key] = len(r.cfg.Diagnostics)
	verb, code, undeclared := "requires", codePool, "the repository does not declare"
	help := fmt.Sprintf("declare it in pools/%s/%s.cue: pools: %s: {}", m.Name, m.Name, quoteLabel(m.Name))
	switch m.Kind {
	case mentionSecret:
		verb, code = "refers to", codeSecret
		help = fmt.Sprintf("declare it in secrets/%s.cue or in ops.cue: secrets: %s: from: env: %q",
			m.Name, quoteLabel(m.Name), strings.ToUpper(strings.ReplaceAll(m.Name, "-", "_")))
	case mentionRepository:
		verb, code, undeclared = "has a trigger on", codeSourceRepo, "nothing declares"
		help = "declare it in ops.cue: repositories: NAME: url: \"https://…\", and write repo: \"NAME\""
		if pipeline.ValidName(m.Name) {
			help = fmt.Sprintf("declare it in ops.cue: repositories: %s: url: \"https://…\"", quoteLabel(m.Name))
		}
	}
	who := fmt.Sprintf("task %q", m.Task)
	if m.Task == "" {
		who = fmt.Sprintf("composition %q", m.Composition)
	}
	d := diag(code, m.Pos, "%s %s %s %q, which %s", who, verb, m.Kind, m.Name, undeclared)
	d.Help = help
	if near := nearest(m.Name, known); near != "" {
		d.Help = fmt.Sprintf("did you mean %q?", near)
	} else if len(known) > 0 && len(known) <= 10 {
		d.Note = "it declares " + strings.Join(known, ", ")
	}
	d.Unit = unit
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, r.mayFollow(d, m.Name))
}

// mayFollow marks what is said of a name that nothing declares: a file that cannot be
// read has it.
func (r *repository) mayFollow(d pipeline.Diagnostic, name string) pipeline.Diagnostic {
	for _, res := range r.results {
		if len(res.Unread) > 0 && slices.Contains(res.Says, name) {
			d.Note, d.Follows = fmt.Sprintf("%s has the name, and cannot be read", res.Unread[0]), true
			d.Help = "mend that file first"
			return d
		}
	}
	return d
}

// quoteLabel writes a name as CUE wants it on the left of a colon.
func quoteLabel(name string) string {
	if strings.Contains(name, "-") {
		return fmt.Sprintf("%q", name)
	}
	return name
}

func poolNames(ps []pipeline.Pool) []string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = string(p.Name)
	}
	return out
}

func secretNames(ss []pipeline.Secret) []string {
	out := make([]string, len(ss))
	for i, s := range ss {
		out[i] = string(s.Name)
	}
	return out
}

// idle warns of usable compositions that nothing starts and that do not say so. One
// that is named where there are errors may be called there.
func (r *repository) idle() {
	mayCall := func(name pipeline.CompositionName, own string) bool {
		return slices.ContainsFunc(r.results, func(res *unitResult) bool { return res.Dir != own && slices.Contains(res.Says, string(name)) })
	}
	for _, res := range r.results {
		for _, m := range res.Mentions {
			if m.Kind != mentionIdle || r.cfg.Composition(m.Composition) == nil || r.called[m.Composition] || mayCall(m.Composition, res.Dir) {
				continue
			}
			d := warn(codeIdle, m.Pos, "nothing starts composition %q: it has no triggers", m.Composition)
			d.Help = `add triggers: [{push: branches: ["main"]}], or triggers: [] if that is meant`
			d.Unit = res.Dir
			r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
		}
	}
}

// checkProgram looks for a program that a manifest says is in the plugin's folder.
// An agent would find out only when a task is to start.
func (r *repository) checkProgram(s *survey, res *unitResult, m mention) error {
	isPlugin := func(p pipeline.Plugin) bool { return p.Dir == res.Dir }
	if !slices.ContainsFunc(r.cfg.Plugins, isPlugin) {
		return nil // something worse is wrong with it
	}
	name := path.Join(res.Dir, m.Name)
	info, err := fs.Stat(s.tree, name)
	if m.Kind == mentionLoose {
		if err == nil && info.Mode().IsRegular() && underAny(name, res.Dir) {
			r.warnLoose(res.Dir, m, strings.TrimPrefix(name, res.Dir+"/"))
		}
		return nil // what cannot be read is no file of the plugin
	}
	d := diag(codeProgram, m.Pos, "plugin %q has no file %s", pluginName(res.Dir), m.Name)
	d.Unit = res.Dir
	switch {
	case path.IsAbs(m.Name) || !underAny(name, res.Dir):
		d.Message = fmt.Sprintf("the program %q of plugin %q is not in the plugin's folder", m.Name, pluginName(res.Dir))
		d.Help = "a program is named by its path from the folder, such as ./run; one without a slash is looked up in PATH"
	case errors.Is(err, fs.ErrNotExist):
		d.Help = fmt.Sprintf("add %s, and make it executable: git update-index --add --chmod=+x %s", name, name)
		if m.Kind == mentionFile {
			d.Help = fmt.Sprintf("add %s", name)
		}
	case fault.Is(err, fault.Invalid):
		d.Message = fmt.Sprintf("the program of plugin %q cannot be read: %s", pluginName(res.Dir), plain(err.Error()))
	case err != nil:
		return fmt.Errorf("look for %s: %w", name, err)
	case !info.Mode().IsRegular():
		d.Message = fmt.Sprintf("%s of plugin %q is no file", m.Name, pluginName(res.Dir))
	case m.Kind == mentionProgram && info.Mode()&0o111 == 0:
		d.Message = fmt.Sprintf("%s of plugin %q is not executable", m.Name, pluginName(res.Dir))
		d.Help = fmt.Sprintf("run: chmod +x %s && git update-index --add --chmod=+x %s", name, name)
	default:
		return nil
	}
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
	r.broken = append(r.broken, res.Dir)
	return nil
}

// warnLoose says that a command names a file of the plugin, which it will not find.
func (r *repository) warnLoose(dir string, m mention, file string) {
	d := warn(codeProgram, m.Pos, "%q is looked for in the task's workspace, and plugin %q has a file of that name", m.Name, pluginName(dir))
	d.Help = fmt.Sprintf("write %q for the plugin's own file", "./"+file)
	d.Unit = dir
	r.cfg.Diagnostics = append(r.cfg.Diagnostics, d)
}
