package gitrepo_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const noteRef pipeline.Ref = "refs/notes/maestro/status"

func TestGitShowsNotesAndWeReadItsNotes(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	r := open(t, gitrepo.Options{URL: g.dir})
	var ids []pipeline.CommitID
	for i := range 40 { // enough for two in one directory of the notes
		id := g.commit(fmt.Sprint(i))
		ids = append(ids, id)
		if i%3 == 0 {
			g.run("notes", "--ref", "maestro/status", "add", "-f", "-m", "by git "+fmt.Sprint(i), string(id))
		} else if err := r.WriteNote(t.Context(), noteRef, id, fmt.Sprintf("by us %d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.WriteNote(t.Context(), noteRef, ids[0], "changed\n"); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		want := fmt.Sprintf("by us %d", i)
		if i == 0 {
			want = "changed"
		} else if i%3 == 0 {
			want = fmt.Sprintf("by git %d", i)
		}
		if got := g.run("notes", "--ref", "maestro/status", "show", string(id)); got != want {
			t.Errorf("git shows %q for commit %d, want %q", got, i, want)
		}
		if got, err := r.Notes(t.Context(), noteRef, id); err != nil || got != want+"\n" {
			t.Errorf("Notes of commit %d = %q, %v, want %q", i, got, err, want)
		}
	}
	g.run("fsck", "--strict")
	g.run("pack-refs", "--all", "--prune")
	g.run("gc", "-q", "--prune=now")
	if got, err := r.Notes(t.Context(), noteRef, ids[1]); err != nil || got != "by us 1\n" {
		t.Errorf("after gc: %q, %v", got, err)
	}
	if err := r.WriteNote(t.Context(), noteRef, ids[1], "after gc\n"); err != nil {
		t.Fatal(err)
	}
	if got := g.run("notes", "--ref", "maestro/status", "show", string(ids[1])); got != "after gc" {
		t.Errorf("git shows %q", got)
	}
}

func TestNotesWrittenAtOnceByManyAreAllKept(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	var ids []pipeline.CommitID
	for i := range 24 {
		ids = append(ids, g.commit(fmt.Sprint(i)))
	}
	var wg sync.WaitGroup
	for w := range 3 { // each like a process of its own
		r := open(t, gitrepo.Options{URL: g.dir})
		wg.Go(func() {
			for i := w; i < len(ids); i += 4 {
				if err := r.WriteNote(t.Context(), noteRef, ids[i], fmt.Sprint("note ", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for i := 3; i < len(ids); i += 4 {
			g.run("notes", "--ref", "maestro/other", "add", "-m", "x", string(ids[i]))
			g.run("pack-refs", "--all", "--prune")
		}
	})
	wg.Wait()
	for i, id := range ids {
		if i%4 != 3 {
			if got := g.run("notes", "--ref", "maestro/status", "show", string(id)); got != fmt.Sprint("note ", i) {
				t.Errorf("note %d = %q", i, got)
			}
		}
	}
}

func TestEditsOfOneNoteDoNotOverwriteEachOther(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	var wg sync.WaitGroup
	for w := range 4 {
		r := open(t, gitrepo.Options{URL: g.dir})
		wg.Go(func() {
			for i := range 5 {
				err := r.EditNote(t.Context(), noteRef, id, func(old string) (string, error) { return fmt.Sprintf("%s%d.%d\n", old, w, i), nil })
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(strings.Fields(g.run("notes", "--ref", "maestro/status", "show", string(id)))); n != 20 {
		t.Errorf("%d of 20 edits survived", n)
	}
}

func TestHeldLockIsAConflictAndALeftOverOneIsBroken(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	r := open(t, gitrepo.Options{URL: g.dir})
	lock := filepath.Join(g.dir, ".git", "refs", "notes", "maestro", "status.lock")
	g.write(".git/refs/notes/maestro/status.lock", "")
	if err := r.WriteNote(t.Context(), noteRef, id, "x"); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "status.lock") {
		t.Errorf("WriteNote = %v, want a conflict that names the lock", err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(lock, old, old); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteNote(t.Context(), noteRef, id, "x"); err != nil {
		t.Errorf("WriteNote = %v, want success over a lock of an hour ago", err)
	}
	if _, err := os.Stat(lock); err == nil {
		t.Error("the lock is still there")
	}
}

func TestUnchangedNoteIsNotWrittenAgain(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	r := open(t, gitrepo.Options{URL: g.dir})
	for range 3 {
		if err := r.WriteNote(t.Context(), noteRef, id, "same"); err != nil {
			t.Fatal(err)
		}
	}
	if n := g.run("rev-list", "--count", string(noteRef)); n != "1" {
		t.Errorf("%s commits of notes, want 1", n)
	}
}

func TestOnlyNotesCanBeWritten(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	r := open(t, gitrepo.Options{URL: g.dir})
	for _, ref := range []pipeline.Ref{"refs/heads/main", "HEAD", "refs/notes/../heads/main", "refs/notes/x.lock", "refs/notes/", "notes", "refs/notes/a b", "refs/notes/a\nb"} {
		if err := r.WriteNote(t.Context(), ref, id, "x"); !fault.Is(err, fault.Invalid) {
			t.Errorf("WriteNote(%q) = %v, want invalid", ref, err)
		}
	}
	if err := r.WriteNote(t.Context(), noteRef, id, ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("empty note: %v, want invalid", err)
	}
	cause := errors.New("no")
	if err := r.EditNote(t.Context(), noteRef, id, func(string) (string, error) { return "", cause }); !errors.Is(err, cause) {
		t.Errorf("EditNote = %v, want the error of the edit", err)
	}
	if got, err := r.Notes(t.Context(), noteRef, id); got != "" || err != nil {
		t.Errorf("Notes = %q, %v, want none", got, err)
	}
}
