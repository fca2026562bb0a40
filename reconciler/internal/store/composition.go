package store

import (
	"context"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Composition returns a composition as runs were planned with it, or
// fault.NotFound. The caller must not change it.
func (db *DB) Composition(ctx context.Context, d pipeline.Digest) (c *pipeline.Composition, err error) {
	err = db.snapshot(ctx, func(q querier) error {
		c, err = db.specs.get(ctx, q, d)
		return err
	})
	return c, db.read(err, "composition %s", d)
}
