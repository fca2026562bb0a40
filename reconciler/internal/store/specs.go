package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// mostSpecs bounds the cache: a large composition is a few hundred kilobytes, and
// there are seldom more in use at a time.
const mostSpecs = 64

// specs keeps the compositions read last, by digest. A digest always names the
// same content, so nothing in it grows old. The zero value is ready for use.
type specs struct {
	mu   sync.Mutex
	kept map[pipeline.Digest]*pipeline.Composition // guarded by mu
}

// get returns the composition of that digest; the caller must not change it.
func (s *specs) get(ctx context.Context, q querier, d pipeline.Digest) (*pipeline.Composition, error) {
	s.mu.Lock()
	c := s.kept[d]
	s.mu.Unlock()
	if c != nil {
		return c, nil
	}
	var body string
	err := q.QueryRowContext(ctx, `SELECT body FROM compositions WHERE digest = ?`, string(d)).Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "composition %s is not in the record", d)
	}
	if err != nil {
		return nil, fmt.Errorf("composition %s: %w", d, err)
	}
	c = new(pipeline.Composition)
	if err := json.Unmarshal([]byte(body), c); err != nil {
		return nil, fmt.Errorf("composition %s: %w", d, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil || len(s.kept) >= mostSpecs {
		s.kept = make(map[pipeline.Digest]*pipeline.Composition, mostSpecs)
	}
	s.kept[d] = c
	return c, nil
}

// Composition returns a composition as runs were planned with it. One that no run
// was planned with is a fault.NotFound. The caller must not change it.
func (db *DB) Composition(ctx context.Context, d pipeline.Digest) (*pipeline.Composition, error) {
	c, err := db.specs.get(ctx, db.file.reader, d)
	return c, db.read(err, "composition %s", d)
}
