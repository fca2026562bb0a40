package config

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/parser"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// A checker checks one unit of package ops.
type checker struct {
	batch *batch
	unit  string
	own   *index // the unit's own files
	all   *index // with those of the directories above
	root  cue.Value
	x     explainer
	res   *unitResult
	// templates: all has the definitions in it that a composition is made of.
	templates bool
}

// check evaluates one unit. Whatever is wrong is in the result.
func (b *batch) check(u unitRef) *unitResult {
	res := &unitResult{Dir: u.Dir}
	switch u.Kind {
	case kindOps:
		b.checkOps(u.Dir, res)
	case kindPlugin:
		b.checkPlugin(u.Dir, res)
	case kindPackage:
		files := b.packageFiles(u.Dir)
		p := b.importPackage(u.Dir, b.packageName(files, pluginName(u.Dir)))
		res.Diagnostics = p.diags
		if p.inst != nil {
			if err := b.build(p).Validate(); err != nil {
				x := explainer{batch: b, unit: u.Dir, idx: newIndex(p.files)}
				res.Diagnostics = append(res.Diagnostics, x.errors(err)...)
			}
		}
	}
	if pipeline.HasErrors(res.Diagnostics) {
		res.Says = b.says(u.Dir)
		unusedFollows(res.Diagnostics)
	}
	for i := range res.Diagnostics {
		d := &res.Diagnostics[i]
		d.Unit = u.Dir
		if name := b.unknown[d.Pos]; name != "" {
			res.Mentions = append(res.Mentions, mention{Kind: mentionUnknown, Name: name, Pos: d.Pos})
		}
	}
	return res
}

func (b *batch) checkPlugin(dir string, res *unitResult) {
	m := b.manifestOf(dir)
	if m == nil {
		return
	}
	res.Diagnostics = m.diags
	if !pipeline.HasErrors(m.diags) {
		plugin := m.plugin
		res.Plugin = &plugin
		if !strings.HasPrefix(dir, builtinDir) {
			res.Mentions = m.programs
		}
	}
}

func (b *batch) checkOps(dir string, res *unitResult) {
	v, own, all, ok := b.buildOps(dir, res)
	if !ok {
		if res.Fatal = pipeline.HasErrors(res.Diagnostics); res.Fatal {
			files, _, _ := b.opsFiles(dir)
			b.checkText(dir, files, res)
		}
		return
	}
	defer func() {
		if res.Fatal {
			res.Compositions, res.Pools, res.Secrets, res.Repositories = nil, nil, nil, nil
		}
	}()
	c := &checker{batch: b, unit: dir, own: own, all: all, root: v, res: res}
	c.x = explainer{batch: b, unit: dir, idx: all, root: v, definition: c.definitionOf, meant: map[string]bool{}}
	c.compositions()
	c.pools()
	c.secrets()
	c.repositories()
	c.policy()
}

// buildOps parses and builds a unit's package. It reports false, and what is
// wrong, when there is no value worth looking at.
func (b *batch) buildOps(dir string, res *unitResult) (v cue.Value, ownIdx, all *index, ok bool) {
	own, inherited, diags := b.opsFiles(dir)
	files := append(slices.Clone(own), inherited...)
	diags = append(diags, b.checkImports(files)...)
	ownIdx = newIndex(own)
	res.Declared, res.Unread = declarations(ownIdx), b.unread(dir, own)
	if pipeline.HasErrors(diags) || len(own) == 0 {
		res.Diagnostics = append(res.Diagnostics, diags...)
		return v, nil, nil, false
	}
	// A misspelt name at the top takes nothing from the rest, but what it was to
	// declare is not there.
	top := checkTopLevel(own)
	res.Fatal = len(top) > 0
	res.Diagnostics = append(append(res.Diagnostics, diags...), top...)
	// What is wrong with the text of an import is known; its values are looked at
	// once here, so that misspelt definitions are found before CUE repeats them.
	if ds := b.checkSelectors(files); len(ds) > 0 {
		res.Diagnostics = append(res.Diagnostics, ds...)
		return v, nil, nil, false
	}
	inst := b.instance(dir, b.req.Module+"/"+dir+":"+opsPackage, opsPackage, append(files, b.bindMissing(files)...))
	all = newIndex(files)
	x := explainer{batch: b, unit: dir, idx: all, files: files}
	if err := errors.Append(inst.Err, inst.ResolutionErr); err != nil {
		res.Diagnostics = append(res.Diagnostics, x.buildErrors(err)...)
		return v, nil, nil, false
	}
	v = b.ctx.BuildInstance(inst)
	if inst.Err != nil {
		res.Diagnostics = append(res.Diagnostics, x.buildErrors(inst.Err)...)
		return v, nil, nil, false
	}
	if err := v.Err(); err != nil && !v.LookupPath(cue.MakePath(cue.Str("compositions"))).Exists() &&
		!v.LookupPath(cue.MakePath(cue.Str("pools"))).Exists() {
		res.Diagnostics = append(res.Diagnostics, x.buildErrors(err)...)
		return v, nil, nil, false
	}
	return v, ownIdx, all, true
}

// bindMissing binds to the schema what ops.cue does not, so that no commit can
// loosen its own checks.
func (b *batch) bindMissing(files []*ast.File) []*ast.File {
	have := bound(files)
	var body strings.Builder
	for _, name := range topLevel {
		if have[name] {
			continue
		}
		if name == "event" || name == "policy" {
			body.WriteString(name + ": schema." + bindings[name] + "\n")
			continue
		}
		body.WriteString(name + ": [Name=_]: schema." + bindings[name] + " & {name: Name}\n")
	}
	if body.Len() == 0 {
		return nil
	}
	// The same spelling as authors use: CUE takes another one for another package.
	src := "package ops\nimport schema \"" + schemaPath + "\"\n" + body.String()
	f, err := parser.ParseFile(builtinPrefix+"ops.cue", src)
	if err != nil {
		return nil // the text above is CUE
	}
	return []*ast.File{f}
}

// unusedFollows marks what nothing uses where something else is wrong: what is missing
// there may be the use.
func unusedFollows(ds []pipeline.Diagnostic) {
	other := slices.ContainsFunc(ds, func(d pipeline.Diagnostic) bool {
		return d.Severity == pipeline.SeverityError && d.Code != codeUnused
	})
	for i := range ds {
		ds[i].Follows = ds[i].Follows || other && ds[i].Code == codeUnused
	}
}

// unread are the files of a directory that are not among those that were parsed.
func (b *batch) unread(dir string, parsed []*ast.File) []string {
	var out []string
	for _, name := range b.listing[dir] {
		if !slices.ContainsFunc(parsed, func(f *ast.File) bool { return f.Filename == name }) {
			out = append(out, name)
		}
	}
	return out
}

var saidName = regexp.MustCompile(`"([a-z][a-z0-9-]{0,62})"|([a-z][a-z0-9-]{0,62})\s*:`)

// says are the names in the files of a directory, sorted: labels and what is in quotes.
func (b *batch) says(dir string) []string {
	var out []string
	for _, name := range b.listing[dir] {
		for _, m := range saidName.FindAllSubmatch(b.req.Files[name], -1) {
			out = append(out, string(m[1])+string(m[2]))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// declarations are the names that the indexed files declare, whether or not they are valid.
func declarations(x *index) []mention {
	var out []mention
	for _, kind := range []string{mentionComposition, mentionPool, mentionRepository, mentionSecret} {
		for _, name := range x.children(plural(kind)) {
			out = append(out, mention{Kind: kind, Name: name, Pos: position(x.at(plural(kind), name)[0].label)})
		}
	}
	slices.SortFunc(out, func(a, b mention) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
	return out
}

// plural is the top-level name that declares things of a kind, and singular the kind.
func plural(kind string) string {
	if stem, ok := strings.CutSuffix(kind, "y"); ok {
		return stem + "ies"
	}
	return kind + "s"
}

func singular(name string) string {
	if stem, ok := strings.CutSuffix(name, "ies"); ok {
		return stem + "y"
	}
	return strings.TrimSuffix(name, "s")
}

func (c *checker) complain(ds ...pipeline.Diagnostic) {
	c.res.Diagnostics = append(c.res.Diagnostics, ds...)
}

// each visits what the unit itself declares of a kind, in the order of the file.
// What a directory above declares is that directory's.
func (c *checker) each(kind string, visit func(name string, v cue.Value)) {
	v := get(c.root, kind)
	if !v.Exists() {
		return
	}
	iter, err := v.Fields()
	if err != nil {
		// The whole struct is broken: visit by name, so that each is explained.
		for _, m := range c.res.Declared {
			if plural(m.Kind) == kind {
				visit(m.Name, get(c.root, kind, m.Name))
			}
		}
		return
	}
	for iter.Next() {
		name := iter.Selector().Unquoted()
		if len(c.own.at(kind, name)) > 0 || len(c.all.at(kind, name)) == 0 {
			visit(name, iter.Value())
		}
	}
}

func (c *checker) pools() {
	c.each("pools", func(name string, v cue.Value) {
		if err := v.Validate(cue.Concrete(true)); err != nil {
			c.complain(c.x.errors(err)...)
			return
		}
		p := pipeline.Pool{Name: pipeline.PoolName(name)}
		p.Pos, _ = c.all.label("pools", name)
		p.Untrusted = flag(get(v, "untrusted"))
		if facts := get(v, "facts"); facts.Exists() {
			p.Facts, _ = facts.MarshalJSON() // validated as concrete
		}
		c.res.Pools = append(c.res.Pools, p)
	})
}

func (c *checker) secrets() {
	c.each("secrets", func(name string, v cue.Value) {
		pos, _ := c.all.label("secrets", name)
		if err := v.Validate(cue.Concrete(true)); err != nil {
			c.complain(c.secretErrors(name, err)...)
			return
		}
		s := pipeline.Secret{Name: pipeline.SecretName(name), Pos: pos}
		s.Env, s.File = text(get(v, "from", "env")), text(get(v, "from", "file"))
		if s.Sops = text(get(v, "from", "sops")); s.Sops != "" {
			s.Key = cmp.Or(text(get(v, "from", "key")), name)
		}
		if cmp.Or(s.Env, s.File, s.Sops) == "" {
			d := diag(codeRequired, pos, "secret %q does not say where it is read", name)
			d.Help = helpFrom
			c.complain(d)
			return
		}
		c.res.Secrets = append(c.res.Secrets, s)
	})
}

// helpFrom says what a secret's from may be.
const helpFrom = `write from: env: "NAME", from: file: "/path", or from: sops: "secrets/NAME.sops.yaml"`

// secretErrors collapses the alternatives of from to one diagnostic.
func (c *checker) secretErrors(name string, err error) []pipeline.Diagnostic {
	ds := c.x.errors(err)
	for _, d := range ds {
		if d.Code == codeName {
			return []pipeline.Diagnostic{d}
		}
	}
	pos, exact := c.all.value("secrets", name, "from")
	if !exact {
		pos, _ = c.all.value("secrets", name)
	}
	d := diag(codeValue, pos, "secret %q: from must be exactly one of env, file and sops", name)
	d.Note = "the repository holds names of secrets, and their values only encrypted"
	d.Help = helpFrom
	return []pipeline.Diagnostic{d}
}

func (c *checker) definitionOf(composition, task string) *definition {
	uses := text(get(c.root, "compositions", composition, "tasks", task, "uses"))
	return c.batch.definition(uses)
}

// definition finds a plugin's definition by what a task uses.
func (b *batch) definition(uses string) *definition {
	plugin, _, ok := strings.Cut(uses, "/")
	if !ok {
		return nil
	}
	if plugin == string(pipeline.CorePlugin) {
		return b.core().defs[uses]
	}
	m := b.manifestOf(pluginDir(plugin))
	if m == nil {
		return nil
	}
	return m.defs[uses]
}
