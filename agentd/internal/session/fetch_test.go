package session_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/session"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
)

func TestDownloadUsesTheConnectionsToken(t *testing.T) {
	t.Parallel()
	s := newServer()
	r := onLoopback(t, s, session.Config{})
	s.next(t)
	body, err := r.Fetch(t.Context(), wire.PathPlugin+"good.tar")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(body)
	body.Close()
	if err != nil || string(b) != "a tar stream" {
		t.Errorf("fetched %q, %v", b, err)
	}
	for path, want := range map[string]fault.Kind{
		wire.PathPlugin + "none.tar":  fault.NotFound,
		wire.PathArchive + "none":     fault.NotFound,
		wire.PathPlugin + "moved.tar": fault.Unavailable, // to wherever, with our token
		"/api/v1/runs":                fault.Invalid,
		wire.PathEnrol:                fault.Invalid,
	} {
		if _, err := r.Fetch(t.Context(), path); !fault.Is(err, want) {
			t.Errorf("Fetch %s = %v, want %s", path, err, want)
		}
	}
	body, err = r.Fetch(t.Context(), wire.PathPlugin+"broken.tar")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadAll(body); err == nil {
		t.Error("a body that broke off looks whole")
	}
}

func TestDownloadWaitsForAConnection(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.down = true
		r := run(cfg)
		defer r.stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := r.Fetch(ctx, wire.PathPlugin+"good.tar"); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Fetch without a server = %v, want unavailable", err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			body, err := r.Fetch(context.Background(), wire.PathPlugin+"good.tar")
			if err != nil {
				t.Error(err)
				return
			}
			body.Close()
		})
		time.Sleep(time.Minute)
		s.set(func() { s.down = false })
		wg.Wait()
	})
}

func TestDownloadOutlivesItsConnection(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		r := run(cfg)
		defer r.stop()
		c := s.next(t)
		<-r.runner.links
		s.set(func() { s.fetch = "another" }) // as after a restart that we have not noticed
		var wg sync.WaitGroup
		wg.Go(func() {
			body, err := r.Fetch(context.Background(), wire.PathPlugin+"good.tar")
			if err != nil {
				t.Error(err)
				return
			}
			body.Close()
		})
		synctest.Wait()
		c.Close(wsconn.CodeGoingAway, "restart")
		wg.Wait()
	})
}
