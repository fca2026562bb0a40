package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// demoSources is the folder that the demo's change adds, and what its main
	// composition waits for.
	demoSources = "site"
	demoChange  = "first-site"
	// demoReviewer is another person than the author of the change.
	demoReviewer = "reviewer"
)

// change tells how something changes: it is proposed, planned, reviewed and merged,
// what the plan said happens, and it comes to a gate that is reviewed as well. All
// that people do here, they do with git push.
func (d *demo) change(ctx context.Context) (pipeline.CommitID, error) {
	head, err := d.propose(ctx)
	if err != nil {
		return "", err
	}
	if err := d.showPlan(ctx, head); err != nil {
		return "", err
	}
	if err := d.review(ctx, head, "the change"); err != nil {
		return "", err
	}
	if err := d.awaitStatus(ctx, head); err != nil {
		return "", err
	}
	if _, err := d.git(ctx, d.work, "push", "--quiet", d.bare, "HEAD:refs/heads/main"); err != nil {
		return "", err
	}
	d.say("git push ops.git %s:main         merged", demoChange)
	if err := d.passGate(ctx); err != nil {
		return "", err
	}
	return head, d.follow(ctx, head)
}

// propose pushes a branch that adds the site's sources and changes a composition.
func (d *demo) propose(ctx context.Context) (pipeline.CommitID, error) {
	if _, err := d.git(ctx, d.work, "switch", "--quiet", "--create", demoChange); err != nil {
		return "", err
	}
	file := filepath.Join(d.work, "compositions", "acceptance", "acceptance.cue")
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("change the example: %w", err)
	}
	changed := bytes.Replace(b, []byte(`"2h"`), []byte(`"1h"`), 1)
	if bytes.Equal(changed, b) {
		return "", fault.New(fault.Internal, "%s has nothing to change", file)
	}
	if err := os.WriteFile(file, changed, 0o644); err != nil {
		return "", fmt.Errorf("change the example: %w", err)
	}
	head, err := d.commit(ctx, demoChange, "a site, and less time to look at it", ".")
	if err == nil {
		d.say("git push ops.git %s              commit %s proposes a change", demoChange, head.Short())
	}
	return head, err
}

// showPlan prints what the change would do, as it stands in the note of its head.
func (d *demo) showPlan(ctx context.Context, head pipeline.CommitID) error {
	var note string
	err := d.await(ctx, "wait for the plan of the change", func() bool {
		var err error
		note, err = d.git(ctx, d.bare, "notes", "--ref=refs/notes/maestro/plan", "show", string(head))
		return err == nil
	})
	if err != nil {
		return err
	}
	d.say("git notes --ref=refs/notes/maestro/plan show %s", head.Short())
	for line := range strings.Lines(note) {
		if strings.HasPrefix(line, "<details>") {
			fmt.Fprintln(d.out, "    …")
			break
		}
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "<!--") {
			fmt.Fprintf(d.out, "    %s\n", line)
		}
	}
	return nil
}

// review approves a head, of a change or of a gate, as another person would.
func (d *demo) review(ctx context.Context, head pipeline.CommitID, what string) error {
	ref := fmt.Sprintf("refs/reviews/%s/%s", head, demoReviewer)
	// The head is in the repository already, so that only the reference is pushed.
	if _, err := d.git(ctx, d.bare, "push", "--quiet", ".", string(head)+":"+ref); err != nil {
		return err
	}
	d.say("git push ops.git %s:refs/reviews/%s/%s\n    %s approves %s", head.Short(), head, demoReviewer, demoReviewer, what)
	return nil
}

// awaitStatus waits until the change may be merged.
func (d *demo) awaitStatus(ctx context.Context, head pipeline.CommitID) error {
	return d.await(ctx, "wait for the status of the change", func() bool {
		text, err := d.git(ctx, d.bare, "notes", "--ref=refs/notes/maestro/status", "show", string(head))
		if err != nil {
			return false
		}
		for line := range strings.Lines(text) {
			if strings.Contains(line, `"context":"maestro"`) {
				return strings.Contains(line, `"state":"success"`)
			}
		}
		return false
	})
}

// passGate waits until a run is held, and lets it go on.
func (d *demo) passGate(ctx context.Context) error {
	var gate, ref string
	err := d.await(ctx, "wait for the gate", func() bool {
		out, err := d.git(ctx, d.bare, "for-each-ref", "--format=%(objectname) %(refname)", "refs/maestro/gates/")
		gate, ref, _ = strings.Cut(strings.TrimSpace(out), " ")
		return err == nil && ref != ""
	})
	if err != nil {
		return err
	}
	text, err := d.git(ctx, d.bare, "cat-file", "-p", gate+":maestro-gate.json")
	if err != nil {
		return err
	}
	var g struct{ Message string }
	if err := json.Unmarshal([]byte(text), &g); err != nil {
		return fault.New(fault.Internal, "the gate %s is not what was written: %w", ref, err)
	}
	d.say("git show %s:maestro-gate.json\n    %s", ref, g.Message)
	return d.review(ctx, pipeline.CommitID(gate), "the gate")
}
