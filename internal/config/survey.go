package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/parser"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// A survey is what the parent knows of a commit without evaluating it: where the
// units are, what each imports, and a hash of all that goes into each.
type survey struct {
	tree    Tree
	memo    *memo
	module  string
	version string
	head    []byte // module.cue
	// ops are the units of package ops; the root is first.
	ops []string
	// packages are plugins and whatever else is imported, by directory.
	packages map[string]bool
	dirs     map[string]*dirInfo
	diags    []pipeline.Diagnostic
	files    int
	bytes    int64
	tooMany  bool
}

// dirInfo is what is remembered of one directory, by its tree hash.
type dirInfo struct {
	cue     []string // names of its CUE files
	subdirs []string
	imports []string // import paths, sorted
	hash    string   // over the names and texts of its CUE files
	bytes   int64
	yaml    string // the name of a YAML file
	stray   string // the path of a file of package ops, where nobody looks
	// problems are with names and files in it; Pos.File is relative to it.
	problems []pipeline.Diagnostic
}

// memo remembers directories between commits. It is safe for concurrent use.
type memo struct {
	mu   sync.Mutex
	dirs map[string]*dirInfo // guarded by mu; by tree hash
}

// maxMemo bounds the directories remembered; the memo starts anew beyond it.
const maxMemo = 50_000

func (m *memo) get(hash string) *dirInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dirs[hash]
}

func (m *memo) put(hash string, d *dirInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dirs == nil || len(m.dirs) >= maxMemo {
		m.dirs = map[string]*dirInfo{}
	}
	m.dirs[hash] = d
}

const (
	maxBlob  = 1 << 20
	maxBytes = 64 << 20
	maxFiles = 20_000
	// maxDepth bounds how deep directories nest.
	maxDepth = 32
)

// opsRoots are the directories below which units lie. What lies elsewhere belongs
// to plugins and libraries, or to nobody.
var opsRoots = []string{"compositions", "policy", "pools", "repositories", "secrets"}

// newSurvey reads what it has not seen before. Mistakes of the author are in diags;
// an error is ours.
func newSurvey(tree Tree, m *memo) (*survey, error) {
	s := &survey{tree: tree, memo: m, packages: map[string]bool{}, dirs: map[string]*dirInfo{}}
	if ok, err := s.readModule(); err != nil || !ok {
		return s, err
	}
	root, err := s.look(".")
	if err != nil {
		return s, s.refused(".", err)
	}
	if !slices.Contains(root.cue, "ops.cue") {
		d := diag(codeNoOps, pipeline.Position{File: "ops.cue"}, "the repository has no ops.cue at its root, so it declares nothing")
		d.Help = "run \"reconciler init\" in it, or copy ops.cue from an existing repository"
		s.diags = append(s.diags, d)
		return s, nil
	}
	s.ops = append(s.ops, ".")
	if err := s.misspelt(root); err != nil {
		return nil, err
	}
	for _, dir := range opsRoots {
		if err := s.walk(dir, 0, true); err != nil {
			return nil, err
		}
	}
	if err := s.walk("plugins", 0, false); err != nil {
		return nil, err
	}
	if err := s.follow(); err != nil {
		return nil, err
	}
	return s, nil
}

// walk finds the units below a directory, or the plugins in it.
func (s *survey) walk(dir string, depth int, ops bool) error {
	hash, err := s.tree.Hash(dir)
	if err != nil {
		return s.refused(dir, err)
	}
	if hash == "" || s.tooMany {
		return nil
	}
	info, err := s.look(dir)
	if err != nil {
		return s.refused(dir, err)
	}
	switch {
	case len(info.cue) == 0 && ops:
		s.otherFormat(dir, info)
	case len(info.cue) == 0:
	case ops:
		s.ops = append(s.ops, dir)
	case depth == 1:
		s.packages[dir] = true
	}
	if !ops && depth == 1 {
		return nil // what is below a plugin's folder belongs to its programs
	}
	if depth >= maxDepth {
		s.diags = append(s.diags, diag(codeTooMany, pipeline.Position{File: dir}, "directories nest more than %d deep", maxDepth))
		return nil
	}
	for _, sub := range info.subdirs {
		if err := s.walk(path.Join(dir, sub), depth+1, ops); err != nil {
			return err
		}
	}
	return nil
}

// follow adds the packages that are imported, however indirectly.
func (s *survey) follow() error {
	queue := append(slices.Clone(s.ops), sortedKeys(s.packages)...)
	base := moduleBase(s.module)
	for len(queue) > 0 {
		dir := queue[0]
		queue = queue[1:]
		for _, imp := range s.dirs[dir].imports {
			to, ok := resolveImport(base, imp)
			if !ok || strings.HasPrefix(to, builtinDir) || s.dirs[to] != nil || underAny(to, opsRoots...) || strings.HasPrefix(to, "..") {
				continue
			}
			hash, err := s.tree.Hash(to)
			if err == nil && hash == "" {
				continue
			}
			if err == nil {
				_, err = s.look(to)
			}
			if err != nil {
				if err := s.refused(to, err); err != nil {
					return err
				}
				s.dirs[to] = &dirInfo{} // looked at; its importers say that it is not there
				continue
			}
			s.packages[to] = true
			queue = append(queue, to)
		}
	}
	return nil
}

// refused turns an error of the tree into a diagnostic when the commit is to
// blame for it, and returns it when we are.
func (s *survey) refused(dir string, err error) error {
	if !fault.Is(err, fault.Invalid) {
		return fmt.Errorf("read tree of %s: %w", dir, err)
	}
	s.diags = append(s.diags, diag(codeFileName, pipeline.Position{File: dir}, "%s", plain(err.Error())))
	return nil
}

// look reads a directory once for each content that it has had.
func (s *survey) look(dir string) (*dirInfo, error) {
	if d := s.dirs[dir]; d != nil {
		return d, nil
	}
	d, err := s.remembered(dir)
	if err != nil {
		return nil, err
	}
	s.dirs[dir] = d
	for _, p := range d.problems {
		p.Pos.File = path.Join(dir, p.Pos.File)
		p.Unit = dir
		s.diags = append(s.diags, p)
	}
	s.files += len(d.cue)
	s.bytes += d.bytes
	if !s.tooMany && (s.files > maxFiles || s.bytes > maxBytes) {
		s.tooMany = true
		s.diags = append(s.diags, diag(codeTooMany, pipeline.Position{File: dir},
			"the commit has more than %d CUE files or %d MiB of CUE", maxFiles, maxBytes>>20))
	}
	return d, nil
}

// remembered reads a directory, or knows it from another commit. The root differs
// in every commit, and is small without its subdirectories.
func (s *survey) remembered(dir string) (*dirInfo, error) {
	if dir == "." {
		return s.readDir(dir)
	}
	hash, err := s.tree.Hash(dir)
	if err != nil {
		return nil, err
	}
	if d := s.memo.get(hash); d != nil {
		return d, nil
	}
	d, err := s.readDir(dir)
	if err == nil {
		s.memo.put(hash, d)
	}
	return d, err
}

// goodName is what a CUE file and a directory of units may be called. It is
// narrower than Git and CUE allow: no name differs from another only by case
// folding or normalization rules that differ between systems.
var goodName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

func (s *survey) readDir(dir string) (*dirInfo, error) {
	entries, err := fs.ReadDir(s.tree, dir)
	if err != nil {
		return nil, err
	}
	d := &dirInfo{}
	sum := sha256.New()
	folded := map[string]string{}
	imports := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		isCUE := strings.HasSuffix(name, ".cue")
		hidden := strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")
		switch {
		case dangerousName(name):
			d.problem(name, codeFileName, "the name %q is refused", plain(name))
			continue
		case hidden, name == "cue.mod":
			continue
		case !e.IsDir() && !e.Type().IsRegular() && dir != ".":
			d.problem(name, codeUnreadable, "%s is a symbolic link or a submodule, which is not followed", name)
			continue
		case !e.IsDir() && !isCUE:
			if ext := path.Ext(name); (ext == ".yaml" || ext == ".yml") && !strings.Contains(name, ".sops.") {
				d.yaml = name
			}
			continue
		case strings.HasSuffix(name, "_test.cue"), strings.HasSuffix(name, "_tool.cue"):
			continue
		case dir == "." && e.IsDir():
			d.subdirs = append(d.subdirs, name)
			continue
		case !goodName.MatchString(name):
			d.problem(name, codeFileName, "the name %q is refused: use letters, digits, \".\", \"_\" and \"-\"", plain(name))
			continue
		}
		if other, ok := folded[strings.ToLower(name)]; ok {
			d.problem(name, codeFileName, "%q and %q differ only by case, and would be one file on some systems", other, name)
			continue
		}
		folded[strings.ToLower(name)] = name
		if e.IsDir() {
			d.subdirs = append(d.subdirs, name)
			continue
		}
		text, err := readBlob(s.tree, path.Join(dir, name))
		if err != nil && !fault.Is(err, fault.Invalid) {
			return nil, err
		}
		if err != nil {
			d.problem(name, codeUnreadable, "%s cannot be read: %s", name, plain(err.Error()))
			continue
		}
		d.cue = append(d.cue, name)
		d.bytes += int64(len(text))
		fmt.Fprintf(sum, "%s\x00%d\x00", name, len(text))
		sum.Write(text)
		for _, imp := range importsOf(name, text) {
			imports[imp] = true
		}
	}
	d.hash = hex.EncodeToString(sum.Sum(nil))
	d.imports = sortedKeys(imports)
	return d, nil
}

func (d *dirInfo) problem(name, code, format string, args ...any) {
	d.problems = append(d.problems, diag(code, pipeline.Position{File: name}, format, args...))
}

// dangerousName recognises what no tree made by an honest Git holds: names that
// lead elsewhere, or that some system takes for the repository itself.
func dangerousName(name string) bool {
	low := strings.ToLower(name)
	bare := strings.Map(func(r rune) rune {
		if r >= 0x200b && r <= 0x200f || r >= 0x202a && r <= 0x202e || r == 0x2060 || r == 0xfeff {
			return -1 // some systems ignore these
		}
		return r
	}, low)
	return name == "" || name == "." || name == ".." || bare == ".git" || strings.HasPrefix(low, "git~") ||
		strings.ContainsAny(name, "/\\\x00") || strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 || r == 0x7f }) ||
		len(name) > 255
}

func readBlob(tree Tree, name string) ([]byte, error) {
	f, err := tree.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxBlob+1))
	if err == nil && len(text) > maxBlob {
		err = fault.New(fault.Invalid, "it is larger than %d KiB", maxBlob>>10)
	}
	return text, err
}

// importsOf reads no further than the import clauses. A file that does not parse
// imports nothing; the child says what is wrong with it.
func importsOf(name string, text []byte) []string {
	f, err := parser.ParseFile(name, text, parser.ImportsOnly)
	if err != nil {
		return nil
	}
	var out []string
	for spec := range f.ImportSpecs() {
		out = append(out, unquote(spec.Path.Value))
	}
	return out
}

const moduleFile = "cue.mod/module.cue"

// readModule takes module and language from module.cue. It is not evaluated:
// both are written out.
func (s *survey) readModule() (bool, error) {
	text, err := readBlob(s.tree, moduleFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !fault.Is(err, fault.Invalid) {
		return false, fmt.Errorf("read %s: %w", moduleFile, err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		d := diag(codeNoModule, pipeline.Position{File: moduleFile}, "the repository has no %s", moduleFile)
		d.Help = "run \"reconciler init\" in it, or write: module: \"example.com/ops@v0\" and language: version: \"" + defaultLanguage + "\""
		s.diags = append(s.diags, d)
		return false, nil
	}
	if err != nil {
		s.diags = append(s.diags, diag(codeUnreadable, pipeline.Position{File: moduleFile}, "%s cannot be read: %s", moduleFile, plain(err.Error())))
		return false, nil
	}
	s.head = text
	f, err := parser.ParseFile(moduleFile, text)
	if err != nil {
		s.diags = append(s.diags, syntaxDiagnostics(moduleFile, text, err)...)
		return false, nil
	}
	idx := newIndex([]*ast.File{f})
	s.module, s.version = idx.literal("module"), idx.literal("language", "version")
	if s.module == "" || standardLibrary(moduleBase(s.module)) || moduleBase(s.module) == schemaPath {
		pos, _ := idx.value("module")
		if pos.File == "" {
			pos.File = moduleFile
		}
		d := diag(codeNoModule, pos, "%s does not name a module of its own", moduleFile)
		d.Help = `write: module: "example.com/ops@v0", with a domain of yours`
		s.diags = append(s.diags, d)
		return false, nil
	}
	if s.version != "" && !supportedLanguage(s.version) {
		pos, _ := idx.value("language", "version")
		d := diag(codeNoModule, pos, "CUE language version %q is not supported", plain(s.version))
		d.Help = "write language: version: \"" + defaultLanguage + "\""
		s.diags = append(s.diags, d)
		return false, nil
	}
	return true, nil
}

var languageRE = regexp.MustCompile(`^v0\.([0-9]{1,2})\.[0-9]{1,3}$`)

// supportedLanguage: module.cue exists since 0.8, and we carry 0.17.
func supportedLanguage(version string) bool {
	m := languageRE.FindStringSubmatch(version)
	if m == nil {
		return false
	}
	minor := 0
	fmt.Sscan(m[1], &minor)
	return minor >= 8 && minor <= 17
}

// literal returns a string that is written out at a path.
func (x *index) literal(p ...string) string {
	for _, pl := range x.at(p...) {
		if lit, ok := pl.value.(*ast.BasicLit); ok {
			return unquote(lit.Value)
		}
	}
	return ""
}

// closure is every directory whose files go into evaluating a unit: its own,
// those above it for package ops, and what they import, however indirectly.
func (s *survey) closure(u unitRef) []string {
	seen := map[string]bool{}
	var queue []string
	add := func(dir string) {
		if s.dirs[dir] != nil && !seen[dir] {
			seen[dir] = true
			queue = append(queue, dir)
		}
	}
	add(u.Dir)
	if u.Kind == kindOps {
		for d := u.Dir; d != "."; {
			d = path.Dir(d)
			add(d)
		}
	}
	base := moduleBase(s.module)
	for len(queue) > 0 {
		dir := queue[0]
		queue = queue[1:]
		for _, imp := range s.dirs[dir].imports {
			if to, ok := resolveImport(base, imp); ok && !strings.HasPrefix(to, builtinDir) {
				add(to)
			}
		}
	}
	return sortedKeys(seen)
}

// key names the result of a unit: equal keys, equal results.
func (s *survey) key(version string, u unitRef) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s\x00", version, u.Kind, u.Dir, s.head)
	for _, dir := range s.closure(u) {
		fmt.Fprintf(h, "%s\x00%s\x00", dir, s.dirs[dir].hash)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// packageUnit says what a directory that is not of package ops is evaluated as.
func packageUnit(dir string) unitRef {
	if strings.HasPrefix(dir, builtinDir) || path.Dir(dir) == "plugins" {
		return unitRef{kindPlugin, dir}
	}
	return unitRef{kindPackage, dir}
}
