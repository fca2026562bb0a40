package config

import (
	"path"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/build"
	"cuelang.org/go/cue/cuecontext"
	"cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/parser"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/plugins"
	"github.com/maestro-cd/maestro/schema"
)

const (
	schemaPath  = "github.com/maestro-cd/maestro"
	pluginsPath = schemaPath + "/plugins/"
	// builtinPrefix begins the names of embedded files in positions.
	builtinPrefix = "(builtin)/"
	// builtinDir begins the directory of a standard plugin.
	builtinDir = "builtin:"
	opsPackage = "ops"
	// defaultLanguage is assumed when module.cue names no version.
	defaultLanguage = "v0.17.0"
)

// A batch is the text of some units and one cue.Context. Contexts never shrink,
// so a batch is short-lived.
type batch struct {
	req     *request
	ctx     *cue.Context
	bctx    *build.Context
	listing map[string][]string
	// packages holds what was imported, by directory; units share it.
	packages map[string]*pkg
	// loading breaks import cycles.
	loading map[string]bool
	plugins map[string]*manifest
	// unknown are names and last elements of import paths that lead nowhere, by place.
	unknown map[pipeline.Position]string
	// names are the fields that may be written at a path, see namesAt.
	names map[string][]string
}

// pkg is a parsed package that is not of the ops kind.
type pkg struct {
	dir   string
	inst  *build.Instance
	files []*ast.File
	diags []pipeline.Diagnostic
	value *cue.Value
}

func newBatch(req *request) *batch {
	b := &batch{
		req: req, ctx: cuecontext.New(),
		listing:  map[string][]string{},
		packages: map[string]*pkg{},
		loading:  map[string]bool{},
		plugins:  map[string]*manifest{},
		unknown:  map[pipeline.Position]string{},
		names:    map[string][]string{},
	}
	if req.Version == "" {
		req.Version = defaultLanguage
	}
	for name := range req.Files {
		b.listing[path.Dir(name)] = append(b.listing[path.Dir(name)], name)
	}
	for _, names := range b.listing {
		slices.Sort(names)
	}
	b.bctx = build.NewContext(build.Loader(b.load))
	return b
}

// source is one parsed file and what is wrong with it.
func (b *batch) parse(name string, text []byte) (*ast.File, []pipeline.Diagnostic) {
	f, err := parser.ParseFile(name, text, parser.ParseComments, parser.Version(b.req.Version))
	if err != nil {
		return nil, syntaxDiagnostics(name, text, err)
	}
	return f, refusedAttributes(f)
}

// opsFiles parses the files of a unit's package: those of its directory and of
// package ops in the directories above it. They are parsed anew for each unit,
// because resolving identifiers writes into the syntax tree.
func (b *batch) opsFiles(dir string) (own, inherited []*ast.File, diags []pipeline.Diagnostic) {
	for d := dir; ; d = path.Dir(d) {
		for _, name := range b.listing[d] {
			f, ds := b.parse(name, b.req.Files[name])
			diags = append(diags, ds...)
			if f == nil {
				continue
			}
			if pkg := f.PackageName(); pkg != opsPackage {
				if d != dir {
					continue
				}
				diags = append(diags, wrongPackage(name, f, opsPackage))
				setPackage(f, opsPackage) // so that the others find what it declares
			}
			if d == dir {
				own = append(own, f)
			} else {
				inherited = append(inherited, f)
			}
		}
		if d == "." {
			return own, inherited, diags
		}
	}
}

// instance makes a CUE instance of parsed files whose imports are known to be good.
func (b *batch) instance(dir, importPath, pkgName string, files []*ast.File) *build.Instance {
	inst := b.bctx.NewInstance(dir, b.load)
	inst.Module, inst.Root, inst.PkgName = b.req.Module, "/", pkgName
	inst.ImportPath = importPath
	for _, f := range files {
		_ = inst.AddSyntax(f) // what it finds is in inst.Err as well
	}
	_ = inst.Complete()
	return inst
}

// load is CUE's import function. Imports are checked before an instance is
// built, so what it cannot find it leaves to CUE, which treats nil as a package
// of the standard library.
func (b *batch) load(pos token.Pos, importPath string) *build.Instance {
	dir, ok := b.resolve(importPath)
	if !ok {
		return nil
	}
	p := b.importPackage(dir, ast.ParseImportPath(importPath).Qualifier)
	if p.inst == nil {
		inst := b.bctx.NewInstance(dir, b.load)
		inst.ReportError(errors.Newf(pos, "package %s has errors", importPath))
		return inst
	}
	return p.inst
}

// resolve finds the directory of an import: "builtin:…" for what is embedded, a
// directory of the repository, or nothing for the standard library and the rest.
func (b *batch) resolve(importPath string) (dir string, ok bool) {
	return resolveImport(moduleBase(b.req.Module), importPath)
}

func resolveImport(module, importPath string) (dir string, ok bool) {
	p := ast.ParseImportPath(importPath).Path
	switch {
	case p == schemaPath:
		return builtinDir, true
	case strings.HasPrefix(p, pluginsPath):
		return builtinDir + strings.TrimPrefix(p, pluginsPath), true
	case module != "" && strings.HasPrefix(p, module+"/"):
		return path.Clean(strings.TrimPrefix(p, module+"/")), true
	}
	return "", false
}

// standardLibrary reports whether an import path is one of CUE's own packages:
// its first element has no dot.
func standardLibrary(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

func moduleBase(module string) string { return ast.ParseImportPath(module).Path }

// importPackage parses and builds an imported package once for the batch.
func (b *batch) importPackage(dir, name string) *pkg {
	if p := b.packages[dir]; p != nil {
		return p
	}
	p := &pkg{dir: dir}
	if b.loading[dir] {
		p.diags = append(p.diags, diag(codeImport, pipeline.Position{File: dir}, "package %s imports itself in a circle", dir))
		return p
	}
	b.loading[dir] = true
	defer delete(b.loading, dir)
	defer func() { b.packages[dir] = p }()

	for _, src := range b.packageFiles(dir) {
		f, ds := b.parse(src.name, src.text)
		p.diags = append(p.diags, ds...)
		if f == nil {
			continue
		}
		if f.PackageName() != name {
			p.diags = append(p.diags, wrongPackage(src.name, f, name))
			setPackage(f, name)
		}
		p.files = append(p.files, f)
	}
	if !pipeline.HasErrors(p.diags) {
		p.diags = append(p.diags, b.checkImports(p.files)...)
	}
	if pipeline.HasErrors(p.diags) || len(p.files) == 0 {
		return p
	}
	importPath := b.req.Module + "/" + dir + ":" + name
	if rest, ok := strings.CutPrefix(dir, builtinDir); ok {
		importPath = strings.TrimSuffix(pluginsPath+rest, "/") // the plugin
		if rest == "" {
			importPath = schemaPath
		}
	}
	inst := b.instance(dir, importPath, name, p.files)
	if inst.Err != nil || inst.ResolutionErr != nil {
		x := explainer{batch: b, unit: dir, files: p.files}
		p.diags = append(p.diags, x.buildErrors(errors.Append(inst.Err, inst.ResolutionErr))...)
		return p
	}
	p.inst = inst
	return p
}

// build evaluates an imported package.
func (b *batch) build(p *pkg) cue.Value {
	if p.value == nil {
		v := b.ctx.BuildInstance(p.inst)
		p.value = &v
	}
	return *p.value
}

type sourceFile struct {
	name string
	text []byte
}

// packageFiles returns the text of a directory: embedded files, whatever the
// repository has vendored, or the commit's.
func (b *batch) packageFiles(dir string) []sourceFile {
	if rest, ok := strings.CutPrefix(dir, builtinDir); ok {
		if rest == "" {
			text, err := schema.Files.ReadFile("schema.cue")
			if err != nil {
				return nil
			}
			return []sourceFile{{builtinPrefix + "schema/schema.cue", text}}
		}
		text, err := plugins.Files.ReadFile(rest + "/plugin.cue")
		if err != nil {
			return nil
		}
		return []sourceFile{{builtinPrefix + "plugins/" + rest + "/plugin.cue", text}}
	}
	var out []sourceFile
	for _, name := range b.listing[dir] {
		out = append(out, sourceFile{name, b.req.Files[name]})
	}
	return out
}

// schema returns the value of the schema package.
func (b *batch) schema() cue.Value { return b.build(b.importPackage(builtinDir, "maestro")) }

// checkImports reports what the import clauses name that is not there, at the
// clause, and imported packages that are broken.
func (b *batch) checkImports(files []*ast.File) []pipeline.Diagnostic {
	var out []pipeline.Diagnostic
	for _, f := range files {
		for spec := range f.ImportSpecs() {
			if d, bad := b.checkImport(spec); bad {
				out = append(out, d)
			}
		}
	}
	return out
}

func (b *batch) checkImport(spec *ast.ImportSpec) (pipeline.Diagnostic, bool) {
	importPath := unquote(spec.Path.Value)
	pos := position(spec.Path.Pos())
	dir, ok := b.resolve(importPath)
	switch {
	case !ok && standardLibrary(importPath):
		if !knownStandard(importPath) {
			return b.unknownImport(importPath, pos), true
		}
		return pipeline.Diagnostic{}, false
	case !ok:
		d := diag(codeImport, pos, "cannot import %q", importPath)
		d.Note = "a composition may import the schema, the standard plugins, packages of its own repository and CUE's standard library; nothing is fetched"
		d.Help = "import it as \"" + moduleBase(b.req.Module) + "/plugins/NAME\" from a directory of this repository"
		return d, true
	case dir == "." || underAny(dir, opsRoots...):
		d := diag(codeImport, pos, "cannot import %q: what declares compositions, pools and secrets is not imported", importPath)
		d.Help = "move what they share to a directory such as lib/NAME with a package of its own"
		return d, true
	}
	name := ast.ParseImportPath(importPath).Qualifier
	p := b.importPackage(dir, name)
	switch {
	case p.inst != nil && strings.HasPrefix(dir, "plugins/"):
		if m := b.manifestOf(dir); m != nil && pipeline.HasErrors(m.diags) {
			return brokenImport(importPath, pos, m.diags), true
		}
		return pipeline.Diagnostic{}, false
	case p.inst != nil:
		return pipeline.Diagnostic{}, false
	case len(p.files) == 0 && len(p.diags) == 0:
		return b.unknownPackage(importPath, dir, name, pos), true
	}
	return brokenImport(importPath, pos, p.diags), true
}

func brokenImport(importPath string, pos pipeline.Position, ds []pipeline.Diagnostic) pipeline.Diagnostic {
	d := diag(codeBrokenDep, pos, "%q cannot be used, because it has errors", importPath)
	first := ds[slices.IndexFunc(ds, func(d pipeline.Diagnostic) bool { return d.Severity == pipeline.SeverityError })]
	d.Note, d.Follows = "the first is "+first.Pos.String()+": "+first.Message, true
	return d
}

func (b *batch) unknownPackage(importPath, dir, name string, pos pipeline.Position) pipeline.Diagnostic {
	if rest, ok := strings.CutPrefix(dir, builtinDir); ok {
		d := diag(codeImport, pos, "no standard plugin is called %q", rest)
		d.Note = "the standard plugins are " + strings.Join(builtinNames(), ", ")
		b.unknown[pos] = rest
		return d
	}
	b.unknown[pos] = path.Base(dir)
	return diag(codeImport, pos, "unknown package %q: the repository has no directory %s with files of package %s", importPath, dir, name)
}

func underAny(dir string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(r string) bool { return dir == r || strings.HasPrefix(dir, r+"/") })
}

// isAuthor reports whether a position is in the repository and not in what is embedded.
func isAuthor(file string) bool { return file != "" && !strings.HasPrefix(file, builtinPrefix) }
