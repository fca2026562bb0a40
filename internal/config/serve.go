package config

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// maxReply bounds one line of the child: a text of a few lines can describe a
	// value of a size beyond measure.
	maxReply = 4 << 20
	// childMemory is what the child may allocate; the collector works harder from
	// softMemory on, so that an honest unit never meets the limit.
	childMemory = 512 << 20
	softMemory  = 384 << 20
	// childStack bounds recursion: CUE recurses over whatever nests.
	childStack = 64 << 20
	// exitCPU is the exit status of a child that used up its CPU time.
	exitCPU = 86
)

// ServeChild is the program of the sandboxed child: it puts limits on its own
// process that cannot be lifted, then answers requests from in on out until in
// ends. It must be called early in a process of its own, which it may end at any
// time. It returns an error only when in or out fail.
func ServeChild(in io.Reader, out io.Writer) error {
	debug.SetMaxStack(childStack)
	debug.SetMemoryLimit(softMemory)
	// The heap is small and short-lived; collecting less often saves a third of the time.
	debug.SetGCPercent(400)
	if err := restrict(); err != nil {
		return fmt.Errorf("limit the evaluator: %w", err)
	}
	s := server{out: bufio.NewWriter(out)}
	dec := json.NewDecoder(bufio.NewReaderSize(in, 1<<16))
	for {
		var req request
		if err := dec.Decode(&req); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		if err := s.serve(&req); err != nil {
			return fmt.Errorf("write reply: %w", err)
		}
	}
}

type server struct{ out *bufio.Writer }

func (s *server) serve(req *request) error {
	b := newBatch(req)
	for i, u := range req.Units {
		if err := s.send(reply{Begin: &i}); err != nil {
			return err
		}
		allowCPU(req.UnitCPU)
		if err := s.sendResult(checkSafely(b, u)); err != nil {
			return err
		}
	}
	if req.Fill != nil {
		allowCPU(req.UnitCPU)
		f := fillSafely(b, req.Fill)
		if err := s.send(reply{Filled: &f}); err != nil {
			return err
		}
	}
	return s.send(reply{Done: true})
}

func (s *server) sendResult(res *unitResult) error {
	raw, err := json.Marshal(reply{Result: res})
	if err != nil || len(raw) > maxReply {
		raw, err = json.Marshal(reply{Result: &unitResult{Dir: res.Dir, Fatal: true, Diagnostics: []pipeline.Diagnostic{
			limitDiagnostic(res.Dir, "it describes more than can be handed on"),
		}}})
	}
	if err != nil {
		return err
	}
	return s.write(raw)
}

func (s *server) send(r reply) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.write(raw)
}

func (s *server) write(raw []byte) error {
	s.out.Write(raw)
	s.out.WriteByte('\n')
	return s.out.Flush()
}

// checkSafely keeps a bug of the evaluator from taking the batch with it.
func checkSafely(b *batch, u unitRef) (res *unitResult) {
	defer func() {
		if p := recover(); p != nil {
			d := diag(codeEvaluate, pipeline.Position{File: u.Dir}, "%s cannot be evaluated: the evaluator gave up on it", u.Dir)
			d.Note = "the evaluator says: " + plain(fmt.Sprint(p))
			d.Unit = u.Dir
			res = &unitResult{Dir: u.Dir, Fatal: true, Diagnostics: []pipeline.Diagnostic{d}}
		}
	}()
	return b.check(u)
}

func limitDiagnostic(dir, why string) pipeline.Diagnostic {
	d := diag(codeLimit, pipeline.Position{File: dir}, "%s cannot be evaluated: %s", dir, why)
	d.Note = "a unit has a few seconds of CPU time and " + fmt.Sprint(childMemory>>20) + " MiB of memory; an ordinary one needs a few milliseconds"
	d.Help = "look for comprehensions within comprehensions, disjunctions that multiply, and values that double"
	d.Unit = dir
	return d
}
