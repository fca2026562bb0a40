package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// noteSpace is where notes live; beside them only writableSpaces are ever written.
const noteSpace = "refs/notes/"

// Notes returns the text that ref, a full name under refs/notes/, attaches to a
// commit, and "" when there is none. For a repository behind HTTP it asks the
// server.
func (r *Repo) Notes(ctx context.Context, ref pipeline.Ref, id pipeline.CommitID) (string, error) {
	h, err := r.checkNote(ref, id)
	if err != nil {
		return "", err
	}
	tip, done, err := r.noteTip(ctx, ref)
	if err != nil {
		return "", err
	}
	defer done()
	text, err := r.readNote(tip, h)
	if err != nil {
		return "", objectFault("read note of "+id.Short()+" in "+string(ref), err)
	}
	return text, nil
}

// WriteNote makes text the note that ref attaches to a commit, which need not
// exist here, and leaves the other notes as they are. See EditNote.
func (r *Repo) WriteNote(ctx context.Context, ref pipeline.Ref, id pipeline.CommitID, text string) error {
	return r.EditNote(ctx, ref, id, func(string) (string, error) { return text, nil })
}

// EditNote replaces the note that ref attaches to a commit by what edit makes of
// it; edit gets "" when there is none, must not return "", and may be called
// several times. The ref is moved compare-and-swap, in the way that git itself
// does, and for a repository behind HTTP by a push; when somebody else moved it
// first, all is done again, and fault.Conflict is returned when that goes on. A
// text that is there already is not written again. An error of edit comes back
// as it is.
func (r *Repo) EditNote(ctx context.Context, ref pipeline.Ref, id pipeline.CommitID, edit func(old string) (string, error)) error {
	h, err := r.checkNote(ref, id)
	if err != nil {
		return err
	}
	// Our own writers queue up; only others are met at the ref.
	done, err := r.begin(ctx, r.noting)
	if err != nil {
		return err
	}
	defer done()
	const tries = 20 // with a pause of 25 ms on average, half a second
	for range tries {
		err = r.editNoteOnce(ctx, ref, h, edit)
		if !fault.Is(err, fault.Conflict) {
			return err
		}
		pause := time.NewTimer(time.Duration(rand.IntN(50)) * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return fault.New(fault.Unavailable, "write note of %s in %s: %w", id.Short(), ref, context.Cause(ctx))
		}
	}
	return err
}

func (r *Repo) checkNote(ref pipeline.Ref, id pipeline.CommitID) (plumbing.Hash, error) {
	if !strings.HasPrefix(string(ref), noteSpace) || !validRef(string(ref)) {
		return plumbing.ZeroHash, fault.New(fault.Invalid, "%s is not a ref for notes: it must begin with %s", quote(string(ref)), noteSpace)
	}
	return parseID(id)
}

func (r *Repo) editNoteOnce(ctx context.Context, ref pipeline.Ref, h plumbing.Hash, edit func(string) (string, error)) error {
	tip, done, err := r.noteTip(ctx, ref)
	if err != nil {
		return err
	}
	defer done()
	old, err := r.readNote(tip, h)
	if err != nil {
		return objectFault("read notes in "+string(ref), err)
	}
	text, err := edit(old)
	if err != nil {
		return err
	}
	if text == "" || int64(len(text)) > r.limits.Blob {
		return fault.New(fault.Invalid, "write note of %s in %s: the text is empty or larger than %d bytes", pipeline.CommitID(h.String()).Short(), ref, r.limits.Blob)
	}
	if text == old {
		return nil
	}
	w := noteWriter{maker{repo: r, made: memory.NewStorage()}}
	id, err := w.write(tip, h, text)
	if err != nil {
		return fault.New(fault.KindOf(err), "write note of %s in %s of %s: %w", pipeline.CommitID(h.String()).Short(), ref, r, err)
	}
	if r.remote == nil {
		return moveRef(ctx, r.layout.common, string(ref), tip, id)
	}
	pack, err := w.pack()
	if err != nil {
		return fault.New(fault.Internal, "pack note for %s: %w", r, err)
	}
	ctx, cancel := context.WithTimeout(ctx, r.limits.Fetch)
	defer cancel()
	return r.remote.talk().push(ctx, string(ref), tip, id, pack)
}

// noteTip returns the commit that the ref points at, zero when there is no such
// ref, with its objects at hand. done ends the turn.
func (r *Repo) noteTip(ctx context.Context, ref pipeline.Ref) (tip plumbing.Hash, done func(), err error) {
	if r.remote == nil {
		tip, err = readRef(r.layout.common, string(ref))
		return tip, func() {}, err
	}
	turn, err := r.begin(ctx, r.fetching)
	if err != nil {
		return tip, nil, err
	}
	defer func() {
		if err != nil {
			turn()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, r.limits.Fetch)
	defer cancel()
	t := r.remote.talk()
	adv, session, err := t.ask(ctx)
	if err != nil {
		return tip, nil, err
	}
	tip = adv.all[string(ref)]
	if tip.IsZero() || r.store.has(tip) {
		return tip, turn, nil
	}
	return tip, turn, r.fetchObjects(ctx, t, session, []plumbing.Hash{tip})
}

// readNote finds a note below a notes commit. Git spreads notes over directories
// named by the first characters of the id once there are many.
func (r *Repo) readNote(tip, h plumbing.Hash) (string, error) {
	tree, err := r.treeOf(tip)
	if err != nil || tree.IsZero() {
		return "", err
	}
	rest := h.String()
	for {
		l, err := r.listing(tree)
		if err != nil {
			return "", err
		}
		if e, ok := l.find(rest); ok && e.isFile() {
			data, err := r.store.read(plumbing.BlobObject, e.hash, r.limits.Blob)
			return string(data), err
		}
		if len(rest) <= 2 {
			return "", nil
		}
		e, ok := l.find(rest[:2])
		if !ok || !e.isDir() {
			return "", nil
		}
		tree, rest = e.hash, rest[2:]
	}
}

func (r *Repo) treeOf(tip plumbing.Hash) (plumbing.Hash, error) {
	if tip.IsZero() {
		return plumbing.ZeroHash, nil
	}
	data, err := r.store.read(plumbing.CommitObject, tip, maxCommitBytes)
	if err != nil {
		return plumbing.ZeroHash, err
	}
	c, err := parseCommit(data)
	return c.tree, err
}

// noteWriter makes the objects of one new note.
type noteWriter struct{ maker }

func (w *noteWriter) write(tip, h plumbing.Hash, text string) (plumbing.Hash, error) {
	tree, err := w.repo.treeOf(tip)
	if err != nil {
		return plumbing.ZeroHash, objectFault("read the notes", err)
	}
	blob, err := w.put(plumbing.BlobObject, []byte(text))
	if err != nil {
		return plumbing.ZeroHash, err
	}
	name := h.String()
	if tree, err = w.place(tree, name, blob, true); err != nil {
		return plumbing.ZeroHash, err
	}
	return w.put(plumbing.CommitObject, encodeCommit(tree, tip, time.Now(), "note for "+name[:12]+"\n"))
}

// encodeCommit writes the raw form of a commit of ours; a zero parent is none.
func encodeCommit(tree, parent plumbing.Hash, at time.Time, message string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "tree %s\n", tree)
	if !parent.IsZero() {
		fmt.Fprintf(&b, "parent %s\n", parent)
	}
	const who = "Maestro <maestro@localhost>"
	fmt.Fprintf(&b, "author %s %d +0000\ncommitter %s %d +0000\n\n%s", who, at.Unix(), who, at.Unix(), message)
	return b.Bytes()
}

// place returns tree with the note in it: where it is, or else in a directory
// of two characters, so that one write touches one small directory.
func (w *noteWriter) place(tree plumbing.Hash, rest string, blob plumbing.Hash, top bool) (plumbing.Hash, error) {
	var entries []entry
	if !tree.IsZero() {
		l, err := w.repo.listing(tree)
		if err != nil {
			return plumbing.ZeroHash, objectFault("read the notes", err)
		}
		entries = slices.Clone(l.entries)
	}
	at := func(name string) int {
		return slices.IndexFunc(entries, func(e entry) bool { return e.name == name })
	}
	set := func(e entry) {
		if i := at(e.name); i >= 0 {
			entries[i] = e
		} else {
			entries = append(entries, e)
		}
	}
	dir := at(rest[:2])
	switch {
	case at(rest) >= 0 || len(rest) <= 2 || !top && dir < 0:
		set(entry{name: rest, mode: modeFile, hash: blob})
	default:
		var sub plumbing.Hash
		if dir >= 0 && entries[dir].isDir() {
			sub = entries[dir].hash
		}
		sub, err := w.place(sub, rest[2:], blob, false)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		set(entry{name: rest[:2], mode: modeDir, hash: sub})
	}
	return w.put(plumbing.TreeObject, encodeTree(entries))
}

// encodeTree writes the raw form of a tree; git sorts directories as if their
// names ended in a slash.
func encodeTree(entries []entry) []byte {
	key := func(e entry) string {
		if e.isDir() {
			return e.name + "/"
		}
		return e.name
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(key(a), key(b)) })
	var b bytes.Buffer
	for _, e := range entries {
		fmt.Fprintf(&b, "%o %s\x00", e.mode, e.name)
		b.Write(e.hash[:])
	}
	return b.Bytes()
}

// encodePack writes a pack of those objects.
func encodePack(from *memory.Storage, hashes []plumbing.Hash) (io.ReadCloser, error) {
	var b bytes.Buffer
	if _, err := packfile.NewEncoder(&b, from, false).Encode(hashes, 0); err != nil {
		return nil, errors.Join(err)
	}
	return io.NopCloser(&b), nil
}
