package main

import (
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestARequestIsNotSaidToBeStartedByItself(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]struct {
		event   pipeline.Event
		trigger string
	}{
		"asked for by ana of 111111111111":                    {pipeline.Event{Kind: pipeline.EventManual, Author: "ana"}, "asked for by ana"},
		`started by push to main of 111111111111 "on" by ana`: {pipeline.Event{Kind: pipeline.EventPush, Subject: "on", Author: "ana"}, "push to main"},
	} {
		r := pipeline.Run{Commit: "1111111111111111111111111111111111111111", Event: c.event}
		if got := startedBy(&r.Event, c.trigger) + " of " + whose(&r); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
