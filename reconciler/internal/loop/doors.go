package loop

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

// A gate that no pull request led to is reviewed at one of its own, its door: a branch
// with the commit that stands for the gate, against a branch that has nothing, so that
// merging it changes nothing. Proposals says which doors there should be and judges what
// is said at them; Doorkeeper opens and closes them.

const (
	doorSpace = "maestro-gate/"
	// doorBase is the branch that doors are compared with. No composition is called so.
	doorBase = doorSpace + "_base"
	headsOf  = "refs/heads/"
)

// DoorBranch is the branch of the pull request by which a gate is reviewed.
func DoorBranch(c pipeline.CompositionName, number int, task pipeline.TaskName) string {
	return doorSpace + strings.TrimPrefix(string(GateRef(c, number, task)), gateSpace)
}

// isDoor reports whether a pull request is of a branch of Maestro's own. Such a one
// proposes nothing.
func isDoor(p *pipeline.Pull) bool { return !p.Fork && strings.HasPrefix(p.Branch, doorSpace) }

// empty is the commit that doors are compared with.
func empty() Draft {
	return Draft{Message: "Gates are reviewed against this commit, which has no files\n", At: time.Unix(1_700_000_000, 0).UTC()}
}

// door is one that there should be.
type door struct {
	head pipeline.CommitID
	// there: the branches are.
	there bool
	talk  plan.GateTalk
	// reopen: it was closed by somebody whose word does not count.
	reopen bool
}

// doors are those that there should be, by their branch, and the branches that there
// are. A branch that is kept is neither opened nor closed.
type doors struct {
	open     map[string]door
	kept     map[string]bool
	branches map[string]string
	// elsewhere are the pull requests at which gates are reviewed that need no door.
	elsewhere map[string]int
}

// opened is what became of a door. Problem says why it is not open, "" when it is.
type opened struct {
	number  int
	problem string
}

// tellDoors hands on which doors there should be.
func (p *Proposals) tellDoors(m *moment, d doors) {
	if !p.cfg.Pulls {
		return
	}
	d.branches = map[string]string{}
	for ref, object := range m.Own {
		if branch, ok := strings.CutPrefix(string(ref), headsOf+doorSpace); ok {
			d.branches[doorSpace+branch] = object
		}
	}
	p.mu.Lock()
	p.doors = &d
	p.mu.Unlock()
	select {
	case p.doorsMoved <- struct{}{}:
	default:
	}
}

// doorOpened takes in what became of a door. It does not wait.
func (p *Proposals) doorOpened(branch string, o opened) {
	p.mu.Lock()
	before := p.opened[branch]
	p.opened[branch] = o
	p.mu.Unlock()
	if before == o {
		return
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// doorOf returns what became of a door.
func (p *Proposals) doorOf(branch string) opened {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened[branch]
}

// forgetDoors drops what is known of doors that there are no more.
func (p *Proposals) forgetDoors(d *doors) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.opened, func(branch string, _ opened) bool { return !d.kept[branch] })
}

// doorway says what the door of a gate should be, when it is to have one, and returns
// where it is reviewed besides, "" for nowhere.
func (p *Proposals) doorway(ctx context.Context, m *moment, due *doors, d Draft, r *pipeline.Run, t *pipeline.RunTask, plain review.Input, now *review.Decision) (string, error) {
	if !p.cfg.Pulls {
		return "", nil
	}
	n, err := p.origin(ctx, r)
	if err != nil {
		return "", err
	}
	branch := DoorBranch(r.Composition, r.Number, t.Name)
	if n != 0 {
		delete(due.kept, branch)
		due.elsewhere[branch] = n
		return "", nil
	}
	if p.proposedAt.Before(t.StartedAt) {
		// A pull request may have been merged that nobody has looked at since.
		if p.early = true; p.mayTry("look", m.now) && p.cfg.Look != nil {
			p.cfg.Look()
		}
		return p.atDoor(branch), nil
	}
	if due.open[branch], err = p.door(ctx, m, branch, d, r, t, plain, now); err != nil {
		return "", err
	}
	return p.atDoor(branch), nil
}

// door makes the branches of the door of a gate, and says what it should tell. in is
// the input of the decision without what was said at pull requests, now the decision.
func (p *Proposals) door(ctx context.Context, m *moment, branch string, d Draft, r *pipeline.Run, t *pipeline.RunTask, in review.Input, now *review.Decision) (door, error) {
	ref := pipeline.Ref(headsOf + branch)
	base, err := p.publish(ctx, m, headsOf+doorBase, empty())
	if err != nil {
		return door{}, err
	}
	head, err := p.publish(ctx, m, ref, d)
	if err != nil {
		return door{}, err
	}
	asked := review.Approved(in).Needs[0]
	asked.Have = now.Needs[0].Have
	out := door{head: head, there: p.isThere(m, headsOf+doorBase, base) && p.isThere(m, ref, head)}
	if at := m.pulledOf(p.doorOf(branch).number); at != nil {
		for _, a := range at.People.Accounts {
			asked.People = review.Others(asked.People, []review.Person{{Name: a.Login}})
		}
		out.reopen = at.Closed && at.Merge == "" && at.Unread == "" && now.Approval != pipeline.ApprovalRefused
	}
	out.talk = plan.GateTalk{
		Run: r, Task: t, Need: asked, Opinions: now.Opinions, Nobody: now.Nobody, Expires: engine.Due(t), URL: p.cfg.URL,
	}
	return out, nil
}

// pulledOf returns a pull request, nil when it is not known.
func (m *moment) pulledOf(number int) *Discussed {
	i := slices.IndexFunc(m.pulled, func(d *Discussed) bool { return d.Number == number })
	if i < 0 {
		return nil
	}
	return m.pulled[i]
}

// atDoor says where a gate is reviewed besides.
func (p *Proposals) atDoor(branch string) string {
	o := p.doorOf(branch)
	switch problem := p.unpublished[pipeline.Ref(headsOf+branch)]; {
	case problem != "":
		return "no pull request can be opened for it: " + problem
	case o.problem != "":
		return "no pull request can be opened for it: " + o.problem
	case o.number > 0:
		return fmt.Sprintf("or review its pull request %d", o.number)
	}
	return ""
}
