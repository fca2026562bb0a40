package testkit

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Proc is what /proc tells of a process; what we may not read is empty.
type Proc struct {
	PID, Parent       int
	Cmdline, Cwd, Env string // words and variables end in NUL
}

// Procs lists the processes of the machine that live. It is empty where there is no /proc.
func Procs() []Proc {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var all []Proc
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue // it has just ended, or is a zombie
		}
		p := Proc{PID: pid, Cmdline: string(cmdline)}
		p.Cwd, _ = os.Readlink(filepath.Join(d, "cwd"))
		env, _ := os.ReadFile(filepath.Join(d, "environ"))
		p.Env = string(env)
		stat, _ := os.ReadFile(filepath.Join(d, "stat"))
		// "pid (name) state parent"; the name may hold anything.
		if f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(f) > 1 {
			p.Parent, _ = strconv.Atoi(f[1])
		}
		all = append(all, p)
	}
	return all
}

// In reports whether the process has to do with the folder: it was started with
// its name, or is at home in it.
func (p *Proc) In(dir string) bool {
	return strings.Contains(p.Cmdline, dir) || strings.Contains(p.Env, dir) || p.Cwd == dir || strings.HasPrefix(p.Cwd, dir+"/")
}

// Shims returns the attempts of the agent's shims that live, by process.
func (a *Agent) Shims() map[int]pipeline.AttemptID {
	told := map[int]pipeline.AttemptID{}
	files, _ := filepath.Glob(filepath.Join(a.Dir, "attempts", "*", "pid"))
	for _, f := range files {
		var p struct{ PID int }
		if b, err := os.ReadFile(f); err == nil && json.Unmarshal(b, &p) == nil {
			told[p.PID] = pipeline.AttemptID(filepath.Base(filepath.Dir(f)))
		}
	}
	found, parents := map[int]pipeline.AttemptID{}, map[int]int{}
	for _, p := range Procs() {
		parents[p.PID] = p.Parent
		if !strings.HasSuffix(p.Cmdline, "agentd\x00shim\x00") {
			continue
		}
		// One that is just starting has no pid file, but may still be looked at.
		if filepath.Dir(p.Cwd) == filepath.Join(a.Dir, "attempts") {
			found[p.PID] = pipeline.AttemptID(filepath.Base(p.Cwd))
		} else if id := told[p.PID]; id != "" {
			found[p.PID] = id
		}
	}
	// The child of a shim looks like it until it becomes the task's program.
	shims := map[int]pipeline.AttemptID{}
	for pid, id := range found {
		if found[parents[pid]] == "" {
			shims[pid] = id
		}
	}
	return shims
}

// end kills the agent and all that it started, which would go on without it.
func (a *Agent) end() {
	a.Kill()
	for pid := range a.Shims() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, p := range Procs() {
		if p.In(a.Dir) {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
}
