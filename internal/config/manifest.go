package config

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// manifest is an evaluated plugin package.
type manifest struct {
	name   string // of the plugin: the last element of its directory
	pkg    *pkg
	plugin pipeline.Plugin
	defs   map[string]*definition // by uses
	diags  []pipeline.Diagnostic
	// programs are the files of the folder that it names.
	programs []mention
}

// definition is one task that a plugin offers.
type definition struct {
	name    string // "#Checkout"
	uses    string // "git/checkout"
	doc     string
	value   cue.Value
	fields  []fieldDef
	outputs []fieldDef
	// openOutputs: a composition may declare outputs of its own.
	openOutputs bool
}

type presence int

const (
	presencePlain presence = iota
	presenceOptional
	presenceRequired
)

// fieldDef is a field or an output of a definition.
type fieldDef struct {
	pipeline.Field
	presence presence
	// inherit is the key in the context, "" for none; soft: it may be absent there.
	inherit string
	soft    bool
	provide string
	pos     pipeline.Position
	value   cue.Value
	// derived: its default refers to other fields of the same task.
	derived bool
}

func (d *definition) field(name string) *fieldDef {
	for i := range d.fields {
		if d.fields[i].Name == name {
			return &d.fields[i]
		}
	}
	return nil
}

func (d *definition) fieldNames() []string {
	names := make([]string, len(d.fields))
	for i, f := range d.fields {
		names[i] = f.Name
	}
	return names
}

// pluginDir is where a plugin's folder is: embedded, or in the repository.
func pluginDir(name string) string {
	if slices.Contains(builtinNames(), name) {
		return builtinDir + name
	}
	return "plugins/" + name
}

// pluginName is the reverse.
func pluginName(dir string) string {
	if rest, ok := strings.CutPrefix(dir, builtinDir); ok {
		return rest
	}
	return path.Base(dir)
}

// manifestOf evaluates a plugin once for the batch. It is nil when there is no
// such package among the files.
func (b *batch) manifestOf(dir string) *manifest {
	if m, ok := b.plugins[dir]; ok {
		return m
	}
	m := b.readManifest(dir)
	b.plugins[dir] = m
	return m
}

func (b *batch) readManifest(dir string) *manifest {
	files := b.packageFiles(dir)
	if len(files) == 0 {
		return nil
	}
	name := pluginName(dir)
	p := b.packages[dir]
	if p == nil {
		// As imports assume; only a folder whose name is no identifier can differ.
		pkgName := name
		if !ast.IsValidIdent(name) {
			pkgName = b.packageName(files, name)
		}
		p = b.importPackage(dir, pkgName)
	}
	m := &manifest{name: name, pkg: p, defs: map[string]*definition{}, diags: p.diags}
	if p.inst == nil {
		return m
	}
	v := b.build(p)
	if err := v.Validate(); err != nil {
		x := explainer{batch: b, unit: dir, idx: newIndex(p.files), root: v}
		m.diags = append(m.diags, x.errors(err)...)
		return m
	}
	m.plugin = pipeline.Plugin{Name: pipeline.PluginName(name), Dir: dir}
	m.readHead(v, newIndex(p.files))
	m.readDefinitions(v)
	return m
}

// packageName is the name that the first file with one gives.
func (b *batch) packageName(files []sourceFile, otherwise string) string {
	for _, src := range files {
		if f, _ := b.parse(src.name, src.text); f != nil && f.PackageName() != "" {
			return f.PackageName()
		}
	}
	return otherwise
}

func (m *manifest) complain(d pipeline.Diagnostic) { m.diags = append(m.diags, d) }

func (m *manifest) readHead(v cue.Value, idx *index) {
	head := v.LookupPath(cue.ParsePath("manifest"))
	if !head.Exists() {
		d := diag(codeManifest, pipeline.Position{File: m.pkg.files[0].Filename, Line: 1, Column: 1}, "plugin %q has no manifest", m.name)
		d.Help = `add: manifest: maestro.#Plugin & {description: "…", programs: [{argv: ["./run"]}]}`
		m.complain(d)
		return
	}
	pos, _ := idx.label("manifest")
	m.plugin.Pos = pos
	if err := head.Validate(cue.Concrete(true)); err != nil {
		x := explainer{unit: m.pkg.dir, idx: idx, root: v}
		m.diags = append(m.diags, x.errors(err)...)
		return
	}
	if err := decode(head, &m.plugin); err != nil || len(m.plugin.Programs) == 0 {
		d := diag(codeManifest, pos, "the manifest of plugin %q is not a maestro.#Plugin", m.name)
		d.Help = `write: manifest: maestro.#Plugin & {description: "…", programs: [{argv: ["./run"]}]}`
		m.complain(d)
	}
	if m.plugin.Pos == (pipeline.Position{}) {
		m.plugin.Pos = pos
	}
	for i, p := range m.plugin.Programs {
		if (p.URL == "") != (p.SHA256 == "") {
			m.complain(diag(codeManifest, pos, "program %d of plugin %q must have both url and sha256, or neither", i+1, m.name))
		}
		if p.URL == "" {
			m.mentionFiles(i, p.Argv, idx)
		}
	}
}

// mentionFiles notes what a program's command may name in the plugin's folder.
func (m *manifest) mentionFiles(program int, argv []string, idx *index) {
	for i, word := range argv {
		kind := mentionLoose
		switch {
		case i == 0 && strings.Contains(word, "/"):
			kind = mentionProgram
		case i == 0 || word == "" || strings.HasPrefix(word, "-"):
			continue
		case strings.HasPrefix(word, "./"):
			kind = mentionFile
		}
		at, _ := idx.value("manifest", "programs", itoa(program), "argv", itoa(i))
		m.programs = append(m.programs, mention{Kind: kind, Name: word, Pos: at})
	}
}

func (m *manifest) readDefinitions(v cue.Value) {
	iter, err := v.Fields(cue.Definitions(true))
	if err != nil {
		return
	}
	for iter.Next() {
		if !iter.Selector().IsDefinition() {
			continue
		}
		name := iter.Selector().String()
		uses, err := iter.Value().LookupPath(cue.ParsePath("uses")).String()
		isTask, pos := m.declaresTask(name)
		switch {
		case err != nil && !isTask: // a helper
		case err != nil:
			d := diag(codeManifest, pos, "%s does not say what it is called: it has no uses", name)
			d.Help = fmt.Sprintf("add uses: %q", m.name+"/"+asName(name))
			m.complain(d)
		case !isTask:
			d := diag(codeManifest, pos, "%s says uses: %q, but is no maestro.#Task", name, plain(uses))
			d.Help = "write " + name + ": maestro.#Task & {…}"
			m.complain(d)
		default:
			m.readDefinition(name, uses, iter.Value())
		}
	}
	slices.SortFunc(m.plugin.Tasks, func(a, b pipeline.PluginTask) int { return strings.Compare(a.Name, b.Name) })
}

// declaresTask reports whether a definition is made of maestro.#Task, directly or
// by way of another definition, and where it is written.
func (m *manifest) declaresTask(name string) (bool, pipeline.Position) {
	var pos pipeline.Position
	for seen := map[string]bool{}; name != "" && !seen[name]; {
		seen[name] = true
		next := ""
		for _, f := range m.pkg.files {
			for _, d := range f.Decls {
				field, ok := d.(*ast.Field)
				if !ok {
					continue
				}
				if label, _, err := ast.LabelName(field.Label); err != nil || label != name {
					continue
				}
				if pos.File == "" {
					pos = position(field.Pos())
				}
				if hasConjunct(field.Value, "#Task") {
					return true, pos
				}
				next = cmp.Or(next, definitionIn(field.Value))
			}
		}
		name = next
	}
	return false, pos
}

// definitionIn is the first definition of the same package among what an
// expression is made of, or "".
func definitionIn(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return definitionIn(e.X)
	case *ast.BinaryExpr:
		return cmp.Or(definitionIn(e.X), definitionIn(e.Y))
	case *ast.Ident:
		if strings.HasPrefix(e.Name, "#") || strings.HasPrefix(e.Name, "_#") {
			return e.Name
		}
	}
	return ""
}

func (m *manifest) readDefinition(name, uses string, v cue.Value) {
	pos := position(v.LookupPath(cue.ParsePath("uses")).Pos())
	plugin, task, _ := strings.Cut(uses, "/")
	if plugin != m.name {
		d := diag(codeManifest, pos, "%s says uses: %q, but the plugin is called %q", name, uses, m.name)
		d.Help = "write: uses: \"" + m.name + "/" + task + "\""
		m.complain(d)
		return
	}
	if other := m.defs[uses]; other != nil {
		m.complain(diag(codeManifest, pos, "%s and %s both say uses: %q", other.name, name, uses))
		return
	}
	d := &definition{name: name, uses: uses, doc: docOf(v), value: v}
	d.fields = m.readFields(name, v.LookupPath(cue.ParsePath("fields")), false)
	outputs := v.LookupPath(cue.ParsePath("outputs"))
	d.outputs = m.readFields(name, outputs, true)
	d.openOutputs = !outputs.Exists() || outputs.IncompleteKind() == cue.TopKind || outputs.Allows(cue.AnyString)
	m.defs[uses] = d
	doc := pipeline.PluginTask{Name: task, Definition: name, Description: d.doc}
	for _, f := range d.fields {
		doc.Fields = append(doc.Fields, f.Field)
	}
	for _, f := range d.outputs {
		doc.Outputs = append(doc.Outputs, f.Field)
	}
	m.plugin.Tasks = append(m.plugin.Tasks, doc)
}

func (m *manifest) readFields(def string, v cue.Value, outputs bool) []fieldDef {
	if !v.Exists() || v.IncompleteKind() == cue.TopKind {
		return nil
	}
	iter, err := v.Fields(cue.Optional(true))
	if err != nil {
		return nil
	}
	var out []fieldDef
	for iter.Next() {
		if iter.Selector().LabelType() != cue.StringLabel || iter.Selector().ConstraintType() == cue.PatternConstraint {
			continue
		}
		f := m.readField(def, iter, outputs)
		out = append(out, f)
	}
	return out
}

func (m *manifest) readField(def string, iter *cue.Iterator, output bool) fieldDef {
	v := iter.Value()
	f := fieldDef{value: v, pos: position(v.Pos())}
	f.Name, f.Doc = iter.Selector().Unquoted(), docOf(v)
	switch iter.Selector().ConstraintType() {
	case cue.OptionalConstraint:
		f.presence, f.Optional = presenceOptional, true
	case cue.RequiredConstraint:
		f.presence = presenceRequired
	}
	f.Default = defaultOf(v)
	t, err := compileType(v)
	if err != nil {
		// CUE itself checks fields; the type here is for documentation.
		t = pipeline.Type{Kind: pipeline.KindAny}
	}
	f.Type = t
	f.Type.Text = constraintText(v)
	where := def + ": "
	if !keyRE.MatchString(f.Name) {
		kind := "a field of "
		if output {
			kind = "an output of "
		}
		m.complain(badKey(kind+def, f.Name, f.pos))
	}
	if output {
		where += "output"
		m.diags = append(m.diags, checkOutput(where, f.Name, f.pos, iter, err)...)
	} else {
		where += "field"
		m.lintField(where, &f)
	}
	m.readAttributes(where, v, &f, output)
	return f
}

// lintField refuses a field of which nobody could tell whether it is set.
func (m *manifest) lintField(where string, f *fieldDef) {
	f.derived = refersToSiblings(f.value)
	if f.presence != presencePlain || f.Default != nil || f.derived || f.value.IsConcrete() {
		return
	}
	switch f.value.IncompleteKind() {
	case cue.StructKind, cue.ListKind:
		return // empty when nothing is set
	}
	d := diag(codeManifest, f.pos, "%s %q is neither required, optional, nor has it a default", where, f.Name)
	d.Help = "write " + f.Name + "!: " + f.Type.Text + " if the author must set it, " + f.Name + "?: if it may be absent"
	m.complain(d)
}

func (m *manifest) readAttributes(where string, v cue.Value, f *fieldDef, output bool) {
	if a := v.Attribute("provide"); a.Err() == nil {
		f.provide, _ = a.String(0)
		if !output {
			m.complain(diag(codeAttribute, f.pos, "%s %q has @provide, which belongs to outputs", where, f.Name))
		}
	}
	a := v.Attribute("inherit")
	if a.Err() != nil {
		return
	}
	f.inherit, _ = a.String(0)
	f.soft, _ = a.Flag(1, "optional")
	switch {
	case output:
		m.complain(diag(codeAttribute, f.pos, "%s %q has @inherit, which belongs to fields", where, f.Name))
	case f.presence == presencePlain:
		d := diag(codeAttribute, f.pos, "%s %q has @inherit, but cannot be absent", where, f.Name)
		d.Help = "write " + f.Name + "?: " + f.Type.Text + " @inherit(" + f.inherit + ")"
		m.complain(d)
	}
}

// refersToSiblings reports whether a manifest's expression mentions another field.
func refersToSiblings(v cue.Value) bool {
	var found bool
	var expr ast.Node = v.Source()
	if f, ok := expr.(*ast.Field); ok {
		expr = f.Value
	}
	if expr == nil {
		return false
	}
	ast.Walk(expr, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			return n.Value != nil
		case *ast.Ident:
			_, imported := n.Node.(*ast.ImportSpec)
			if n.Node != nil && !imported && !strings.HasPrefix(n.Name, "#") && !strings.HasPrefix(n.Name, "_#") {
				found = true
			}
		}
		return true
	}, nil)
	return found
}

// checkOutput refuses the forms of outputs that would let a task look as if it
// had reported what it did not.
func checkOutput(where, name string, pos pipeline.Position, iter *cue.Iterator, typeErr error) []pipeline.Diagnostic {
	var out []pipeline.Diagnostic
	if iter.Selector().ConstraintType() != 0 {
		d := diag(codeOutputForm, pos, "%s %q must not be optional: what refers to it relies on it", where, name)
		d.Help = "write " + name + ": TYPE, and report an empty value or null where there is nothing"
		out = append(out, d)
	}
	if d := defaultOf(iter.Value()); d != nil {
		out = append(out, diag(codeOutputForm, pos, "%s %q must not have a default: it would be read before the task has run", where, name))
	}
	if typeErr != nil {
		out = append(out, diag(codeTypeForm, pos, "the type of %s %q cannot be checked while tasks run: %s", where, name, typeErr))
	}
	return out
}
