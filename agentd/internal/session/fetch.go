package session

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/wire"
)

// staleTime is how long a connection whose token was refused may still look alive:
// a little more than a silent peer takes to be found.
const staleTime = 20 * time.Second

// Fetch downloads a path below wire.PathPlugin or wire.PathArchive with the token
// of the connection, and waits for one if there is none. What the server does not
// have is fault.NotFound, another path fault.Invalid, everything else, the end of
// ctx included, fault.Unavailable. The caller closes the body; ctx bounds reading
// it, and a body that breaks off ends in an error other than io.EOF.
func (s *Session) Fetch(ctx context.Context, path string) (io.ReadCloser, error) {
	if !strings.HasPrefix(path, wire.PathPlugin) && !strings.HasPrefix(path, wire.PathArchive) {
		return nil, fault.New(fault.Invalid, "fetch %s: not a path of plugins or archives", path)
	}
	for {
		l, moved := s.current()
		if l == nil {
			select {
			case <-moved:
				continue
			case <-ctx.Done():
				return nil, fault.New(fault.Unavailable, "fetch %s: not connected: %w", path, context.Cause(ctx))
			}
		}
		body, stale, err := s.get(ctx, path, l.fetch)
		if !stale {
			return body, err
		}
		// The server has ended this connection and we have not noticed yet.
		t := time.NewTimer(staleTime)
		select {
		case <-moved:
		case <-t.C:
			return nil, err
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// get makes one request; stale means that the server does not know the token.
func (s *Session) get(ctx context.Context, path, token string) (body io.ReadCloser, stale bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.Server+path, nil)
	if err != nil {
		return nil, false, fault.New(fault.Invalid, "fetch %s: %w", path, err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, false, fault.New(fault.Unavailable, "fetch %s: %w", path, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, false, nil
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	kind := fault.Unavailable
	switch resp.StatusCode {
	case http.StatusNotFound:
		kind = fault.NotFound
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		kind = fault.Invalid // what was asked for is wrong, and stays so
	}
	return nil, resp.StatusCode == http.StatusUnauthorized, fault.New(kind, "fetch %s: %s", path, sentence(resp, said))
}

func (s *Session) current() (*link, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link, s.moved
}

// move makes l the current link and wakes those who wait for one.
func (s *Session) move(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link = l
	close(s.moved)
	s.moved = make(chan struct{})
}
