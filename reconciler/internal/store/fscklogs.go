package store

import (
	"fmt"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// logRules are the invariants of the logs that one statement decides.
var logRules = []rule{
	{
		name: "I4", what: "the pieces of a log do not follow one another", next: restoreAdvice, since: 3,
		query: `SELECT l.attempt || ' at byte ' || c.off FROM (
				SELECT log_id, off, lag(off + coalesce(size, length(data))) OVER (PARTITION BY log_id ORDER BY off) AS last FROM chunks) c
			JOIN logs l ON l.id = c.log_id WHERE c.off <> coalesce(c.last, 0)`,
	}, {
		name: "I4", what: "a log is not as long as it says", next: restoreAdvice, since: 3,
		query: `SELECT l.attempt || ': ' || l.bytes FROM logs l
			WHERE l.removed <> 1 AND l.bytes <> coalesce((SELECT sum(coalesce(c.size, length(c.data))) FROM chunks c WHERE c.log_id = l.id), 0)`,
	},
}

// logs checks logs.db, and that every accepted result of the record has its whole log.
func (c *fsck) logs(done map[pipeline.AttemptID]int64) error {
	if c.report.Broken() {
		return nil
	}
	if err := c.check(logRules); err != nil {
		return err
	}
	if err := c.references(); err != nil {
		return err
	}
	type log struct {
		attempt  pipeline.AttemptID
		received int64
	}
	list, err := query(c.ctx, c.r.conn, func(row scanner) (l log, err error) {
		err = row.Scan(&l.attempt, &l.received)
		return l, err
	}, `SELECT attempt, received FROM logs`)
	if err != nil {
		return err
	}
	c.report.Logs = len(list)
	for _, l := range list {
		if want, ok := done[l.attempt]; ok && l.received < want {
			c.find("I4", fmt.Sprintf("a result was accepted with %d bytes of log, and %d are here", want, l.received), string(l.attempt), restoreAdvice)
		}
		delete(done, l.attempt)
	}
	missing := 0
	for id, want := range done {
		if missing++; missing > mostFindings {
			break
		}
		c.find("I4", fmt.Sprintf("a result was accepted with %d bytes of log, and none is here", want), string(id), restoreAdvice)
	}
	return nil
}
