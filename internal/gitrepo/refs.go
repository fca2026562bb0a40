package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Refs is where a repository's branches and tags point at one moment. Maestro's
// own refs are apart, so that nothing in them can trigger a run.
type Refs struct {
	// Head is the full name of the default branch, which may not exist yet; ""
	// when the repository names none.
	Head pipeline.Ref
	// Tips maps full names under refs/heads/ and refs/tags/ to commits. A tag
	// object is followed to its commit; a tag of anything else is left out.
	Tips map[pipeline.Ref]pipeline.CommitID
	// Own maps full names under refs/reviews/, refs/maestro/ and GateBranches to the
	// objects that they point at, see Repo.Tag. OwnTruncated: there are more than Limits.Own, and
	// some are missing.
	Own          map[pipeline.Ref]string
	OwnTruncated bool
}

// Names returns the refs in order.
func (r Refs) Names() []pipeline.Ref { return slices.Sorted(maps.Keys(r.Tips)) }

// Tip returns the commit of the default branch, "" when it has none.
func (r Refs) Tip() pipeline.CommitID { return r.Tips[r.Head] }

// Equal reports whether both show the same refs at the same commits.
func (r Refs) Equal(o Refs) bool {
	return r.Head == o.Head && maps.Equal(r.Tips, o.Tips) && r.OwnTruncated == o.OwnTruncated && maps.Equal(r.Own, o.Own)
}

var watchedSpaces = []string{"refs/heads/", "refs/tags/"}

// Fetch returns the refs as they are now. A repository on this machine is read
// directly; one behind HTTP is asked, and objects that the mirror lacks are
// fetched. A ref that was forced elsewhere or deleted is simply different from
// last time. An empty repository has no refs and is no error.
//
// The errors say what to do next: fault.Unavailable when there is no answer,
// fault.NotFound when there is no such folder or repository, fault.Invalid when
// it is not a repository, refuses the credentials or exceeds the limits.
func (r *Repo) Fetch(ctx context.Context) (Refs, error) {
	done, err := r.begin(ctx, r.fetching)
	if err != nil {
		return Refs{}, err
	}
	defer done()
	if r.remote != nil {
		return r.fetchRemote(ctx)
	}
	return r.readLocal(ctx)
}

func (r *Repo) readLocal(ctx context.Context) (Refs, error) {
	l, err := findLayout(r.where.path)
	if err != nil {
		return Refs{}, err
	}
	if l != r.layout {
		return Refs{}, fault.New(fault.Invalid, "read repository %s: it has moved inside its folder since it was opened; restart to open it anew", r)
	}
	r.store.refresh()
	raw, err := readRefs(r.layout.common, watchedSpaces, r.limits.Refs)
	if err != nil {
		return Refs{}, fault.New(fault.KindOf(err), "read refs of %s: %w", r, err)
	}
	maps.DeleteFunc(raw, func(ref pipeline.Ref, _ rawRef) bool { return inSpaces(string(ref), ownSpaces) })
	refs := Refs{Head: readHead(r.layout.git), Tips: make(map[pipeline.Ref]pipeline.CommitID, len(raw))}
	if refs.Own, refs.OwnTruncated, err = r.ownLocal(); err != nil {
		return Refs{}, err
	}
	return refs, r.peelInto(ctx, refs.Tips, raw)
}

// rawRef is a ref before tag objects are followed.
type rawRef struct {
	hash plumbing.Hash
	// peeled is the object behind a tag object where that is known.
	peeled plumbing.Hash
}

// peelInto fills tips with commits. It remembers tag objects between calls, and
// forgets those that no ref names any more.
func (r *Repo) peelInto(ctx context.Context, tips map[pipeline.Ref]pipeline.CommitID, raw map[pipeline.Ref]rawRef) error {
	r.mu.Lock()
	known := r.peeled
	r.mu.Unlock()
	next := make(map[plumbing.Hash]plumbing.Hash, len(known))
	for name, ref := range raw {
		target := ref.hash
		if strings.HasPrefix(string(name), "refs/tags/") {
			var seen bool
			if target, seen = known[ref.hash]; !seen {
				if err := ctx.Err(); err != nil {
					return fault.New(fault.Unavailable, "read refs of %s: %w", r, err)
				}
				var err error
				if target, err = r.peel(ref); err != nil {
					r.log.Warn("tag cannot be followed to a commit and is left out",
						"repository", r.String(), "ref", display(string(name), 200), "err", err)
					continue
				}
			}
			next[ref.hash] = target
		}
		if !target.IsZero() {
			tips[name] = pipeline.CommitID(target.String())
		}
	}
	r.mu.Lock()
	r.peeled = next
	r.mu.Unlock()
	return nil
}

// peel follows tag objects to a commit; zero when there is none behind them.
func (r *Repo) peel(ref rawRef) (plumbing.Hash, error) {
	h := ref.hash
	if !ref.peeled.IsZero() {
		h = ref.peeled
	}
	const deepest = 8 // tags of tags are an oddity, endless ones an attack
	for range deepest {
		kind, data, err := r.store.readAny(h, maxCommitBytes)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		switch kind {
		case plumbing.CommitObject:
			return h, nil
		case plumbing.TagObject:
			line, _, _ := bytes.Cut(data, []byte("\n"))
			id, ok := strings.CutPrefix(string(line), "object ")
			if !ok || !isHex40(id) {
				return plumbing.ZeroHash, errors.New("the tag object is malformed")
			}
			h = plumbing.NewHash(id)
		default:
			return plumbing.ZeroHash, nil
		}
	}
	return plumbing.ZeroHash, errors.New("tags of tags are nested too deeply")
}

// readHead returns the branch that HEAD names, "" when it is detached or unreadable.
func readHead(gitDir string) pipeline.Ref {
	b, err := readSmall(filepath.Join(gitDir, "HEAD"))
	if err != nil {
		return ""
	}
	name, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "ref: ")
	if !ok || !validRef(name) || !strings.HasPrefix(name, "refs/heads/") {
		return ""
	}
	return pipeline.Ref(name)
}

// readRefs reads refs under the given spaces. Loose refs are read before packed
// ones: git packs a ref before it removes the loose file, so in this order no
// ref can be missed. With errTooManyRefs, the first most of them are returned.
func readRefs(common string, spaces []string, most int) (map[pipeline.Ref]rawRef, error) {
	w := refWalk{root: common, most: most, refs: map[pipeline.Ref]rawRef{}, links: map[pipeline.Ref]pipeline.Ref{}}
	for _, space := range spaces {
		if err := w.walk(space); err != nil {
			return w.refs, err
		}
	}
	if err := w.readPacked(spaces); err != nil {
		return w.refs, err
	}
	for name, target := range w.links {
		if ref, ok := w.refs[target]; ok {
			w.refs[name] = ref
		}
	}
	return w.refs, nil
}

var errTooManyRefs = errors.New("there are too many refs")

type refWalk struct {
	root  string
	most  int
	refs  map[pipeline.Ref]rawRef
	links map[pipeline.Ref]pipeline.Ref // symbolic refs, one level
	buf   [4096]byte
}

func (w *refWalk) readSmall(path string) ([]byte, error) { return readInto(w.buf[:], path) }

// walk reads the loose refs in a directory; dir ends in a slash.
func (w *refWalk) walk(dir string) error {
	entries, err := os.ReadDir(filepath.Join(w.root, filepath.FromSlash(dir)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // git removes empty directories while we look
	}
	if err != nil {
		return fault.New(fault.Unavailable, "%w; check the permissions of the repository", err)
	}
	for _, e := range entries {
		name := dir + e.Name()
		switch {
		case e.IsDir():
			err = w.walk(name + "/")
		case e.Type().IsRegular() && validRef(name):
			err = w.readLoose(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *refWalk) readLoose(name string) error {
	b, err := w.readSmall(filepath.Join(w.root, filepath.FromSlash(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted or packed meanwhile
	}
	if err != nil {
		return fault.New(fault.Unavailable, "%w; check the permissions of the repository", err)
	}
	text := strings.TrimSpace(string(b))
	if target, ok := strings.CutPrefix(text, "ref: "); ok {
		w.links[pipeline.Ref(name)] = pipeline.Ref(target)
		return nil
	}
	if !isHex40(text) {
		return fault.New(fault.Invalid, "ref %s holds no commit id; repair it with: git update-ref", quote(name))
	}
	return w.add(name, rawRef{hash: plumbing.NewHash(text)})
}

func (w *refWalk) add(name string, ref rawRef) error {
	if len(w.refs) >= w.most {
		return fault.New(fault.Invalid, "%w: more than %d; delete those that are no longer needed", errTooManyRefs, w.most)
	}
	w.refs[pipeline.Ref(name)] = ref
	return nil
}

func (w *refWalk) readPacked(spaces []string) error {
	b, err := os.ReadFile(filepath.Join(w.root, "packed-refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Unavailable, "%w; check the permissions of the repository", err)
	}
	loose := maps.Clone(w.refs)
	last := pipeline.Ref("")
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, "\r\n")
		if id, ok := strings.CutPrefix(line, "^"); ok {
			if ref, found := w.refs[last]; found && last != "" && isHex40(id) {
				ref.peeled = plumbing.NewHash(id)
				w.refs[last] = ref
			}
			continue
		}
		last = ""
		id, name, ok := strings.Cut(line, " ")
		if !ok || !isHex40(id) || !inSpaces(name, spaces) || !validRef(name) {
			continue
		}
		if _, isLoose := loose[pipeline.Ref(name)]; isLoose {
			continue
		}
		if _, isLink := w.links[pipeline.Ref(name)]; isLink {
			continue
		}
		if err := w.add(name, rawRef{hash: plumbing.NewHash(id)}); err != nil {
			return err
		}
		last = pipeline.Ref(name)
	}
	return nil
}

func inSpaces(name string, spaces []string) bool {
	return slices.ContainsFunc(spaces, func(s string) bool { return strings.HasPrefix(name, s) })
}

// readSmall reads a file that holds one line; a larger one is not a ref.
func readSmall(path string) ([]byte, error) { return readInto(make([]byte, 4096), path) }

func readInto(buf []byte, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return buf[:n], nil
}

// validRef applies the rules of git check-ref-format to a full name.
func validRef(name string) bool {
	if !strings.HasPrefix(name, "refs/") || len(name) > 1024 || strings.HasSuffix(name, "/") || strings.HasSuffix(name, ".") ||
		strings.Contains(name, "..") || strings.Contains(name, "@{") || strings.ContainsAny(name, " ~^:?*[\\\x7f") {
		return false
	}
	for i := range len(name) {
		if name[i] < 0x20 {
			return false
		}
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || strings.HasPrefix(part, ".") || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return true
}
