package workspace_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/workspace"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

var (
	warm = workspace.Key{Composition: "build"}
	wild = workspace.Key{Composition: "build", Untrusted: true}
)

func open(t *testing.T, dir string) *workspace.Store {
	t.Helper()
	s, err := workspace.Open(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// use takes a workspace, leaves a file in it and tells what was there before.
func use(t *testing.T, s *workspace.Store, k workspace.Key, run pipeline.RunID) (dir string, before int) {
	t.Helper()
	dir, release, err := s.Acquire(k, run)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "left-by-"+string(run)), bytes.Repeat([]byte("x"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, len(files)
}

func TestTrustedWorkspaceStaysWarmBetweenRuns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, _ := use(t, open(t, dir), warm, "r1")
	second, before := use(t, open(t, dir), warm, "r2")
	if first != second || before != 1 {
		t.Errorf("second run got %s with %d files, want %s with 1", second, before, first)
	}
}

func TestRepositoriesDoNotShareAWorkspace(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	dirs := map[string]bool{}
	for _, k := range []workspace.Key{
		warm, wild,
		{Composition: "build", Source: "https://example.com/a.git"},
		{Composition: "build", Source: "https://example.com/b.git"},
		{Composition: "build", Source: "https://example.com/a.git", Untrusted: true},
		{Composition: "build", Source: "https://example.com/a.git", Slot: 1},
	} {
		dir, before := use(t, s, k, "r1")
		if dirs[dir] || before != 0 {
			t.Errorf("%+v got %s, which another one has", k, dir)
		}
		dirs[dir] = true
	}
	if dir, before := use(t, s, workspace.Key{Composition: "build", Source: "https://example.com/a.git"}, "r2"); !dirs[dir] || before != 1 {
		t.Errorf("the next run found %s with %d files", dir, before)
	}
}

func TestUntrustedWorkspaceIsEmptyForTheNextRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	use(t, open(t, dir), wild, "r1")
	if _, before := use(t, open(t, dir), wild, "r1"); before != 1 {
		t.Errorf("the same run found %d files, want its own", before)
	}
	if _, before := use(t, open(t, dir), wild, "r2"); before != 0 {
		t.Errorf("another run found %d files", before)
	}
}

func TestEndedUntrustedRunLeavesNothing(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	gone, _ := use(t, s, wild, "r1")
	kept, _ := use(t, s, warm, "r1")
	s.Forget([]pipeline.RunID{"r1"})
	if _, err := os.Stat(gone); !os.IsNotExist(err) {
		t.Errorf("untrusted workspace: %v", err)
	}
	if _, err := os.Stat(filepath.Join(kept, "left-by-r1")); err != nil {
		t.Errorf("trusted workspace: %v", err)
	}
}

func TestWorkspaceInUseIsNotRemoved(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	dir, release, err := s.Acquire(wild, "r1")
	if err != nil {
		t.Fatal(err)
	}
	s.Forget([]pipeline.RunID{"r1"})
	s.Collect(workspace.Policy{MaxAge: time.Nanosecond, MaxBytes: 1})
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
	release()
	s.Collect(workspace.Policy{MaxAge: time.Nanosecond})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("after its release: %v", err)
	}
}

func TestLongestUnusedGoesFirstWhenSpaceIsShort(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	old, _ := use(t, s, workspace.Key{Composition: "old"}, "r1")
	recent, _ := use(t, s, workspace.Key{Composition: "recent"}, "r1")
	s.Collect(workspace.Policy{MaxBytes: 1500})
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("old: %v", err)
	}
	if _, err := os.Stat(recent); err != nil {
		t.Errorf("recent: %v", err)
	}
}

func TestKeyThatLeadsElsewhereIsRefused(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	for _, k := range []workspace.Key{
		{Composition: ".."},
		{Composition: ""},
		{Composition: "a/../../b"},
		{Composition: "/etc"},
		{Composition: "A"},
		{Composition: "a", Slot: -1},
		{Composition: "a", Slot: 1 << 40},
	} {
		if _, _, err := s.Acquire(k, "r1"); !fault.Is(err, fault.Invalid) {
			t.Errorf("Acquire(%+v) = %v, want invalid", k, err)
		}
	}
}

// A task may leave links in place of anything it can reach.
func TestLinksLeftByATaskLeadNowhere(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	precious := filepath.Join(outside, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	s := open(t, base)
	dir, _ := use(t, s, wild, "r1")
	for link, target := range map[string]string{
		filepath.Join(dir, "link"): outside,
		dir + "-2":                 outside,
		dir + ".json.tmp":          precious,
	} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	use(t, s, wild, "r2")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, dir); err != nil {
		t.Fatal(err)
	}
	if _, before := use(t, s, wild, "r3"); before != 0 {
		t.Errorf("the next run was led to a directory with %d files", before)
	}
	s.Forget([]pipeline.RunID{"r3"})
	s.Collect(workspace.Policy{MaxAge: time.Nanosecond})
	if b, err := os.ReadFile(precious); err != nil || len(b) > 0 {
		t.Errorf("the file outside: %q, %v", b, err)
	}
	if all, err := os.ReadDir(outside); err != nil || len(all) != 1 {
		t.Errorf("outside there is now %v, %v", all, err)
	}
}

func TestWorkspaceThatMayNotBeWrittenIsRemovedToo(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	dir, _ := use(t, s, wild, "r1")
	if err := os.Chmod(dir, 0); err != nil {
		t.Fatal(err)
	}
	if _, before := use(t, s, wild, "r2"); before != 0 {
		t.Errorf("the next run found %d files", before)
	}
	if left, err := os.ReadDir(filepath.Join(filepath.Dir(filepath.Dir(dir)), ".trash")); err != nil || len(left) > 0 {
		t.Errorf("the trash holds %v, %v", left, err)
	}
}

func TestReadOnlyDirectoriesAreRemovedToo(t *testing.T) {
	t.Parallel()
	// Root may write anywhere, so this proves more to whoever runs it as a person.
	dir := filepath.Join(t.TempDir(), "cache")
	deep := filepath.Join(dir, "mod", "pkg@v1")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(deep, "go.mod"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{deep, filepath.Dir(deep)} {
		if err := os.Chmod(d, 0o500); err != nil {
			t.Fatal(err)
		}
	}
	if err := workspace.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Error(err)
	}
	if err := workspace.RemoveAll(dir); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
}
