package journal

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// Kind says what a record promises. The words are stored, so none is renamed or reused.
type Kind string

const (
	// Accepted: the agent took the attempt. Carries Spec. Nothing has started.
	Accepted Kind = "accepted"
	// Started: the shim exists and is about to be told what to run. Carries Process.
	Started Kind = "started"
	// Ended: how it ended. Carries Result, or Lost.
	Ended Kind = "ended"
	// Fenced: the control plane disowned the attempt; it is to be killed and forgotten.
	Fenced Kind = "fenced"
	// Acked: the control plane has the result, or disowned the attempt and nothing
	// of it runs any more. What remains of it is a tombstone, and for a while the
	// result. Carries Incarnation, and Result when it is the first record of the attempt.
	Acked Kind = "acked"
)

// Process identifies a process for as long as the machine is up: a pid alone is reused.
type Process struct {
	PID int `json:"pid"`
	// Start is the process's start time in the unit of the operating system.
	Start uint64 `json:"start"`
	// Boot names the boot of the machine.
	Boot string `json:"boot"`
}

// Record is one line of the journal.
type Record struct {
	Kind    Kind               `json:"kind"`
	Attempt pipeline.AttemptID `json:"attempt"`
	Token   pipeline.Token     `json:"token"`
	At      time.Time          `json:"at"`
	Spec    *wire.Spec         `json:"spec,omitempty"`
	Process *Process           `json:"process,omitempty"`
	Result  *pipeline.Result   `json:"result,omitempty"`
	// Lost says why it cannot be known how the attempt ended.
	Lost string `json:"lost,omitempty"`
	// Incarnation of the record that acknowledged.
	Incarnation int64 `json:"incarnation,omitempty"`
}

// Entry is all that the journal knows of one attempt.
type Entry struct {
	Attempt pipeline.AttemptID
	Token   pipeline.Token
	Spec    wire.Spec // zero once acked
	// AcceptedAt, StartedAt and AckedAt are zero until then.
	AcceptedAt time.Time
	StartedAt  time.Time
	AckedAt    time.Time
	// AckedBy is the incarnation of the record that acknowledged last.
	AckedBy int64
	Process *Process
	Result  *pipeline.Result
	Lost    string
	Fenced  bool
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mostLine bounds a record; a spec and a result are each bounded by wire.MaxFrame.
const mostLine = 4 * wire.MaxFrame

// encode returns the line of r: its CRC-32C, a space, its JSON, a newline. JSON
// holds no raw newline, so that a damaged line does not cost its neighbours.
func encode(r Record) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode %s record of %s: %w", r.Kind, r.Attempt, err)
	}
	if len(body) > mostLine {
		return nil, fmt.Errorf("encode %s record of %s: %d bytes, most is %d", r.Kind, r.Attempt, len(body), mostLine)
	}
	line := fmt.Appendf(make([]byte, 0, len(body)+10), "%08x ", crc32.Checksum(body, castagnoli))
	return append(append(line, body...), '\n'), nil
}

func decode(line []byte) (Record, bool) {
	const head = 9
	if len(line) <= head || line[head-1] != ' ' {
		return Record{}, false
	}
	sum, err := strconv.ParseUint(string(line[:head-1]), 16, 32)
	if err != nil || crc32.Checksum(line[head:], castagnoli) != uint32(sum) {
		return Record{}, false
	}
	var r Record
	return r, json.Unmarshal(line[head:], &r) == nil && r.Attempt != ""
}

// Damage is what a reader found that is not a record.
type Damage struct {
	// Lines in the middle that are not records: the disk, or a foreign writer.
	Lines int
	// Torn bytes at the end: a write that a crash cut short.
	Torn int
}

// Read returns the entries that the bytes of a journal tell of. It takes any
// input: what is not a whole, correct record is counted and left out.
func Read(b []byte) (map[pipeline.AttemptID]*Entry, Damage) {
	entries := map[pipeline.AttemptID]*Entry{}
	var d Damage
	for len(b) > 0 {
		n := bytes.IndexByte(b, '\n')
		if n < 0 {
			d.Torn = len(b)
			break
		}
		if r, ok := decode(b[:n]); ok {
			apply(entries, r)
		} else {
			d.Lines++
		}
		b = b[n+1:]
	}
	return entries, d
}

// apply brings entries up to date with r. A record that is not preceded by an
// accepted one is of no use to anybody and is left out, but for a tombstone.
func apply(entries map[pipeline.AttemptID]*Entry, r Record) {
	e := entries[r.Attempt]
	if e == nil {
		if r.Kind != Acked && (r.Kind != Accepted || r.Spec == nil) {
			return
		}
		e = &Entry{Attempt: r.Attempt, Token: r.Token}
		entries[r.Attempt] = e
	}
	if !e.AckedAt.IsZero() {
		if r.Kind == Acked {
			e.AckedBy = max(e.AckedBy, r.Incarnation)
		}
		return
	}
	switch r.Kind {
	case Accepted:
		if r.Spec != nil {
			e.Token, e.Spec, e.AcceptedAt = r.Token, *r.Spec, r.At
		}
	case Started:
		e.Process, e.StartedAt = r.Process, r.At
	case Ended:
		e.Result, e.Lost = r.Result, r.Lost
	case Fenced:
		e.Fenced = true
	case Acked:
		result := cmp.Or(r.Result, e.Result)
		if e.Fenced {
			result = nil // nobody wanted it
		}
		*e = Entry{Attempt: r.Attempt, Token: r.Token, AckedAt: r.At, AckedBy: r.Incarnation, Result: result}
		if e.AckedAt.IsZero() {
			e.AckedAt = time.Unix(0, 0).UTC()
		}
	}
}

// records returns what, applied in order, makes e.
func (e *Entry) records() []Record {
	base := Record{Attempt: e.Attempt, Token: e.Token}
	with := func(k Kind, at time.Time, set func(*Record)) Record {
		r := base
		r.Kind, r.At = k, at
		if set != nil {
			set(&r)
		}
		return r
	}
	if !e.AckedAt.IsZero() {
		return []Record{with(Acked, e.AckedAt, func(r *Record) { r.Incarnation, r.Result = e.AckedBy, e.Result })}
	}
	all := []Record{with(Accepted, e.AcceptedAt, func(r *Record) { r.Spec = &e.Spec })}
	if !e.StartedAt.IsZero() {
		all = append(all, with(Started, e.StartedAt, func(r *Record) { r.Process = e.Process }))
	}
	if e.Result != nil || e.Lost != "" {
		all = append(all, with(Ended, time.Time{}, func(r *Record) { r.Result, r.Lost = e.Result, e.Lost }))
	}
	if e.Fenced {
		all = append(all, with(Fenced, time.Time{}, nil))
	}
	return all
}
