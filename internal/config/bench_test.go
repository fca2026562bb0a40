package config_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// memTree is a tree whose hashes are known, as those of a Git repository are.
type memTree struct {
	fstest.MapFS
	dirs   map[string][]fs.DirEntry
	hashes map[string]string
}

func newMemTree(t testing.TB, m fstest.MapFS) *memTree {
	t.Helper()
	out := &memTree{MapFS: m, dirs: map[string][]fs.DirEntry{}, hashes: map[string]string{}}
	tree := config.FSTree(out)
	seen := map[string]bool{".": true}
	for name, f := range m {
		out.dirs[path.Dir(name)] = append(out.dirs[path.Dir(name)], fs.FileInfoToDirEntry(memInfo{path.Base(name), f}))
		for d := path.Dir(name); !seen[d]; d = path.Dir(d) {
			seen[d] = true
			out.dirs[path.Dir(d)] = append(out.dirs[path.Dir(d)], fs.FileInfoToDirEntry(memInfo{path.Base(d), nil}))
		}
	}
	for d := range out.dirs {
		slices.SortFunc(out.dirs[d], func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	}
	for d := range seen {
		h, err := tree.Hash(d)
		if err != nil {
			t.Fatal(err)
		}
		out.hashes[d] = h
	}
	return out
}

func (t *memTree) ReadDir(name string) ([]fs.DirEntry, error) { return slices.Clone(t.dirs[name]), nil }
func (t *memTree) Hash(dir string) (string, error)            { return t.hashes[dir], nil }

type memInfo struct {
	name string
	file *fstest.MapFile
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return 0 }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.file == nil }
func (i memInfo) Sys() any           { return nil }
func (i memInfo) Mode() fs.FileMode {
	if i.file == nil {
		return fs.ModeDir | 0o755
	}
	return 0o644
}

// sevenTasks is a composition of ordinary size.
const sevenTasks = `package ops

import (
	"acme.example/ops/plugins/fog"
	"github.com/maestro-cd/maestro/plugins/git"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: "c-%d": {
	description: "Deploy on a fresh machine and run the acceptance tests %d"
	params: version: *"1.0" | string
	agent: facts: {
		kernel: "Linux"
		memory: total_mb: >=4096
	}
	tasks: {
		checkout: git.#Checkout & {fields: url: "https://git.example.com/acceptance.git"}
		build: shell.#Run & {
			needs: ["checkout"]
			fields: script: "make VERSION=\(params.version)"
			outputs: file: string
		}
		provision: fog.#Provision & {
			fields: {
				provider: "aws"
				image_id: "ami-1234"
				credentials: secret: "aws-ci"
			}
			timeout: "15m"
			retries: max: 2
		}
		deploy: shell.#Run & {
			needs: ["build"]
			fields: {
				script: "deploy"
				env: {
					URL:  "http://\(tasks.provision.outputs.public_ip):8080"
					FILE: tasks.build.outputs.file
				}
			}
			outputs: app_url: string
		}
		test: shell.#Run & {
			needs: ["checkout"]
			fields: {
				script: "verify"
				env: APP: tasks.deploy.outputs.app_url
			}
			outputs: failed: int
		}
		report: shell.#Run & {
			needs: ["checkout"]
			fields: script: "echo \(tasks.test.outputs.failed)"
		}
		deprovision: fog.#Deprovision & {
			needs: ["report"]
			run: "always"
		}
	}
	triggers: [{push: branches: ["main"]}]
	timeout: "1h"
}
`

func manyCompositions(t testing.TB, n int) fstest.MapFS {
	m := files(t, base)
	for i := range n {
		m[fmt.Sprintf("compositions/c%04d/c.cue", i)] = &fstest.MapFile{Data: fmt.Appendf(nil, sevenTasks, i, i)}
	}
	m["compositions/secret/secret.cue"] = &fstest.MapFile{Data: []byte("package ops\n\nsecrets: \"aws-ci\": from: env: \"AWS\"\n")}
	return m
}

// childTime is the CPU time of the children that have ended.
func childTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func ownTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkCold(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tree := newMemTree(b, manyCompositions(b, n))
			for b.Loop() {
				children, own := childTime(), ownTime()
				e := newEvaluator(b, nil)
				cfg, err := e.Evaluate(context.Background(), "c", tree)
				if err != nil || len(cfg.Compositions) != n {
					b.Fatal(len(cfg.Compositions), err, cfg.Diagnostics[:min(3, len(cfg.Diagnostics))])
				}
				e.Close()
				b.ReportMetric((childTime() - children + ownTime() - own).Seconds(), "cpu-s/op")
			}
		})
	}
}

// BenchmarkCueVet is what CUE's own command needs for the same repositories, of
// which it finds less. It runs when there is a program called cue.
func BenchmarkCueVet(b *testing.B) {
	program, err := exec.LookPath("cue")
	if err != nil {
		b.Skip("no cue in PATH")
	}
	for _, n := range []int{10, 100, 1000, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			for name, f := range manyCompositions(b, n) {
				p := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					b.Fatal(err)
				}
				if err := os.WriteFile(p, f.Data, f.Mode); err != nil {
					b.Fatal(err)
				}
			}
			if err := config.Vendor(dir); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				before := childTime()
				cmd := exec.Command(program, "vet", "-c=false", "./...")
				cmd.Dir, cmd.Env = dir, append(os.Environ(), "CUE_REGISTRY=none", "CUE_CACHE_DIR="+b.TempDir())
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v\n%.2000s", err, out)
				}
				b.ReportMetric((childTime() - before).Seconds(), "cpu-s/op")
			}
		})
	}
}

func BenchmarkOneChanged(b *testing.B) {
	e := newEvaluator(b, nil)
	m := manyCompositions(b, 1000)
	if _, err := e.Evaluate(context.Background(), "c", newMemTree(b, m)); err != nil {
		b.Fatal(err)
	}
	i := 1000
	for b.Loop() {
		b.StopTimer()
		i++
		m["compositions/c0500/c.cue"] = &fstest.MapFile{Data: []byte(strings.ReplaceAll(fmt.Sprintf(sevenTasks, 500, i), "c-500", "c-500"))}
		tree := newMemTree(b, m)
		runtime.GC()
		b.StartTimer()
		cfg, err := e.Evaluate(context.Background(), "c", tree)
		if err != nil || len(cfg.Compositions) != 1000 {
			b.Fatal(len(cfg.Compositions), err)
		}
	}
}

func BenchmarkFill(b *testing.B) {
	e := newEvaluator(b, nil)
	tree := newMemTree(b, manyCompositions(b, 1))
	for b.Loop() {
		_, err := e.Fill(context.Background(), config.FillRequest{
			Tree: tree, Unit: "compositions/c0000", Composition: "c-0", Blank: pipeline.Blank{Part: pipeline.PartFields, Task: "build"}, Params: []byte(`{"version":"2"}`),
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
