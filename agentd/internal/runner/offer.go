package runner

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/journal"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// Policy is what the owner of a machine allows on it, whatever the control plane
// asks for. An empty list allows all.
type Policy struct {
	// Repos are the ops repositories whose tasks may run, as the offer names them.
	Repos []string `json:"repos,omitempty"`
	// Plugins are names, or digests of trees, "git:…".
	Plugins []string `json:"plugins,omitempty"`
	// MaxTimeout shortens the timeout of every task, and gives one to those without.
	MaxTimeout pipeline.Duration `json:"max_timeout,omitempty"`
	// RefuseUntrusted declines what nobody approved.
	RefuseUntrusted bool `json:"refuse_untrusted,omitempty"`
}

// LoadPolicy reads a policy from a JSON file; without the file everything is
// allowed. A file with a key that is unknown is fault.Invalid: a rule that was
// meant and is not understood must not be skipped.
func LoadPolicy(path string) (Policy, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Policy{}, nil
	}
	if err != nil {
		return Policy{}, fmt.Errorf("load policy: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var p Policy
	if err := d.Decode(&p); err != nil {
		return Policy{}, fault.New(fault.Invalid, "load policy %s: %w", path, err)
	}
	return p, nil
}

// refuses returns why the policy does not allow a task, or "".
func (p *Policy) refuses(s *wire.Spec) string {
	switch {
	case len(p.Repos) > 0 && !slices.Contains(p.Repos, s.Repo):
		return fmt.Sprintf("the policy of this agent does not allow tasks of repository %q", s.Repo)
	case len(p.Plugins) > 0 && !slices.Contains(p.Plugins, string(s.Plugin.Name)) && !slices.Contains(p.Plugins, string(s.Plugin.Tree)):
		return fmt.Sprintf("the policy of this agent does not allow plugin %q", s.Plugin.Name)
	case p.RefuseUntrusted && s.Untrusted:
		return "the policy of this agent does not allow untrusted tasks"
	}
	return ""
}

// timeout is the task's own, or the policy's when that is shorter.
func (p *Policy) timeout(s *wire.Spec) time.Duration {
	own, most := time.Duration(s.Timeout), time.Duration(p.MaxTimeout)
	if most > 0 && (own <= 0 || own > most) {
		return most
	}
	return max(own, 0)
}

const endedHere = "it has ended here and was acknowledged"

// offered answers an offer: a new one gets an attempt, which admits or declines
// it; a known one is told where it stands.
func (r *Runner) offered(m *wire.Offer) {
	decline := func(reason string) {
		r.cfg.Log.Info("offer declined", "attempt_id", m.Attempt, "task", m.Spec.Task, "reason", reason)
		r.send(&wire.Decline{Attempt: m.Attempt, Token: m.Token, Reason: reason})
	}
	if !goodID(m.Attempt) {
		decline("its identity is not a ULID")
		return
	}
	r.mu.Lock()
	if a := r.attempts[m.Attempt]; a != nil {
		r.mu.Unlock()
		if a.token != m.Token {
			decline("it is held under another token")
			return
		}
		if a.at() == phaseGone {
			decline(endedHere)
			return
		}
		a.tellStatus()
		return
	}
	if reason := r.refuseLocked(m); reason != "" {
		r.mu.Unlock()
		decline(reason)
		return
	}
	a := newAttempt(r, m.Attempt, m.Token, m.Spec)
	a.link = r.link
	r.attempts[m.Attempt] = a
	r.spawnLocked(a.live)
	r.mu.Unlock()
}

// goodID: a ULID is safe as a path element, and what log frames carry.
func goodID(id pipeline.AttemptID) bool {
	const length = 26
	if len(id) != length {
		return false
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// refuseLocked returns why an offer cannot be taken, as far as that is known
// without looking at the machine.
func (r *Runner) refuseLocked(m *wire.Offer) string {
	if r.draining {
		return "the agent takes no new tasks; it is being stopped"
	}
	if r.journal.Acked(m.Attempt) {
		return endedHere
	}
	if p := (pipeline.Plugin{Programs: m.Spec.Plugin.Programs}); p.For(runtime.GOOS, runtime.GOARCH) == nil {
		return fmt.Sprintf("plugin %q has no program for %s/%s", m.Spec.Plugin.Name, runtime.GOOS, runtime.GOARCH)
	}
	if reason := r.cfg.Policy.refuses(&m.Spec); reason != "" {
		return reason
	}
	taken := 0
	for _, a := range r.attempts {
		same := a.spec.Run == m.Spec.Run && a.spec.Task == m.Spec.Task
		switch phase := a.at(); {
		case phase == wire.HeldEnded || phase == phaseGone:
		case same && phase != wire.HeldRunning:
			// The control plane has moved on from it, and it has not started.
			a.fenced("another attempt of the task was offered", r.incarnation)
		case same:
			return fmt.Sprintf("attempt %s of the same task still runs here", a.id)
		default:
			taken++
		}
	}
	if r.cfg.Seats > 0 && taken >= r.cfg.Seats {
		return fmt.Sprintf("all %d places for tasks are taken", r.cfg.Seats)
	}
	return ""
}

// admit looks at the machine and writes the promise down. The reason is why not.
func (a *attempt) admit() (reason string) {
	free, err := a.r.cfg.Machine.Free(a.r.cfg.Dir)
	switch {
	case err != nil:
		return "free disk space is not known: " + err.Error()
	case free < a.r.cfg.MinFree:
		return fmt.Sprintf("%s has %d MiB left, tasks want %d MiB", a.r.cfg.Dir, free>>20, a.r.cfg.MinFree>>20)
	}
	err = a.r.journal.Promise(journal.Record{
		Kind: journal.Accepted, Attempt: a.id, Token: a.token, At: time.Now().UTC(), Spec: &a.spec,
	})
	if err != nil {
		return "the agent cannot write down that it accepts: " + err.Error()
	}
	return ""
}
