package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Options of an Evaluator.
type Options struct {
	// Child is the command that runs ServeChild, such as the program itself with a
	// hidden subcommand. Required.
	Child []string
	// CacheDir keeps results between processes; "" keeps none. It may be lost.
	CacheDir string
	Log      *slog.Logger
	Limits   Limits
}

// Limits bound what a commit may cost. Zero values are replaced by the defaults.
type Limits struct {
	// UnitCPU is the CPU time of one unit; whole seconds. Default 5 s: a thousand
	// times what an ordinary unit needs.
	UnitCPU time.Duration
	// UnitWall is the wall time of one unit. Default 20 s.
	UnitWall time.Duration
	// Total is the wall time of a commit. Default 2 min.
	Total time.Duration
	// Tasks of one composition. Default 2,000.
	Tasks int
	// Workers is how many children work at a time. Default: the CPUs, at most 4.
	Workers int
}

func (l Limits) orDefaults() Limits {
	set := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	set(&l.UnitCPU, 5*time.Second)
	set(&l.UnitWall, 20*time.Second)
	set(&l.Total, 2*time.Minute)
	if l.Tasks <= 0 {
		l.Tasks = 2000
	}
	if l.Workers <= 0 {
		l.Workers = min(4, runtime.NumCPU())
	}
	return l
}

// An Evaluator turns commits into configurations. It is safe for concurrent use.
type Evaluator struct {
	log    *slog.Logger
	limits Limits
	crew   *crew
	memo   *memo
	cache  *cache
}

// New makes an Evaluator. It starts nothing; children start with the first commit.
func New(opts Options) *Evaluator {
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Evaluator{
		log: log, limits: opts.Limits.orDefaults(),
		crew: &crew{argv: slices.Clone(opts.Child), log: log}, memo: &memo{}, cache: newCache(opts.CacheDir, log),
	}
}

// Close ends the children that wait for work and blocks until they are gone.
// Calls under way end with an error when they next need a child.
func (e *Evaluator) Close() error {
	e.crew.close()
	return nil
}

// Evaluate reads all that a commit declares. Every mistake of its authors is a
// diagnostic in the Config; an error means that we failed: fault.Internal, or the
// context's cause. The Config shares memory with others and must only be read.
func (e *Evaluator) Evaluate(ctx context.Context, commit pipeline.CommitID, tree Tree) (pipeline.Config, error) {
	began := time.Now()
	s, err := newSurvey(tree, e.memo)
	if err != nil {
		return pipeline.Config{}, fmt.Errorf("evaluate commit %s: %w", commit, err)
	}
	run := &evaluation{e: e, s: s, results: map[string]*unitResult{}, keys: map[string]string{}, deadline: began.Add(e.limits.Total)}
	if !s.tooMany {
		if err := run.all(ctx); err != nil {
			return pipeline.Config{}, fmt.Errorf("evaluate commit %s: %w", commit, err)
		}
	}
	cfg, err := assemble(commit, s, run.results)
	if err != nil {
		return pipeline.Config{}, fmt.Errorf("evaluate commit %s: %w", commit, err)
	}
	e.crew.spare()
	e.log.Debug("commit evaluated", "commit", commit, "units", len(run.results), "evaluated", run.fresh,
		"diagnostics", len(cfg.Diagnostics), "took", time.Since(began))
	return cfg, nil
}

// evaluation is the work on one commit.
type evaluation struct {
	e        *Evaluator
	s        *survey
	deadline time.Time
	keys     map[string]string // immutable while workers run

	mu      sync.Mutex
	results map[string]*unitResult // guarded by mu; by directory
	fresh   int                    // guarded by mu
}

// batchSize is how many units share a context: fewer repeat the work on what they
// import, more hold memory.
const batchSize = 16

// all evaluates what is imported first, then package ops from the root down, so
// that what is broken for many is found once and blamed once.
func (r *evaluation) all(ctx context.Context) error {
	var packages []unitRef
	for _, name := range builtinNames() {
		packages = append(packages, unitRef{kindPlugin, builtinDir + name})
	}
	for _, dir := range sortedKeys(r.s.packages) {
		packages = append(packages, packageUnit(dir))
	}
	above, leaves := r.layers()
	for _, layer := range [][]unitRef{packages, above, leaves} {
		if err := r.layer(ctx, layer); err != nil {
			return err
		}
	}
	return nil
}

// layers splits the units of package ops into those that others inherit from and
// the rest.
func (r *evaluation) layers() (above, leaves []unitRef) {
	parents := map[string]bool{".": true}
	for _, dir := range r.s.ops {
		for d := dir; d != "."; {
			d = path.Dir(d)
			parents[d] = true
		}
	}
	for _, dir := range r.s.ops {
		u := unitRef{kindOps, dir}
		if parents[dir] {
			above = append(above, u)
		} else {
			leaves = append(leaves, u)
		}
	}
	return above, leaves
}

func (r *evaluation) layer(ctx context.Context, units []unitRef) error {
	var todo []unitRef
	for _, u := range units {
		if d, blocked := r.blocked(u); blocked {
			r.results[u.Dir] = &unitResult{Dir: u.Dir, Fatal: true, Diagnostics: d}
			continue
		}
		key := r.s.key(r.e.cache.version(), u)
		r.keys[u.Dir] = key
		if res := r.e.cache.get(key); res != nil {
			r.results[u.Dir] = res
			continue
		}
		todo = append(todo, u)
	}
	if len(todo) == 0 {
		return nil
	}
	return r.spread(ctx, todo)
}

// blocked reports whether a unit cannot be evaluated because of another: a
// directory above it that has no value, or an import that used up its limits.
func (r *evaluation) blocked(u unitRef) ([]pipeline.Diagnostic, bool) {
	for _, dir := range r.s.closure(u) {
		if pipeline.HasErrors(r.s.dirs[dir].problems) {
			return nil, true // said already; what is left of it must not count as the whole
		}
		res := r.results[dir]
		if dir == u.Dir || res == nil || !res.Fatal {
			continue
		}
		if r.s.packages[dir] {
			d := diag(codeBrokenDep, pipeline.Position{File: u.Dir}, "%s imports %s, which cannot be evaluated", u.Dir, dir)
			d.Unit, d.Follows = u.Dir, true
			return []pipeline.Diagnostic{d}, true
		}
		return nil, true // the directory above says it for all below
	}
	return nil, false
}

// spread evaluates units in batches on several children at a time.
func (r *evaluation) spread(ctx context.Context, units []unitRef) error {
	batches := make(chan []unitRef)
	workers := min(r.e.limits.Workers, (len(units)+batchSize-1)/batchSize)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range workers {
		wg.Add(1)
		go func() { // ends when batches is closed
			defer wg.Done()
			for b := range batches {
				if err := r.batch(ctx, b); err != nil {
					cancel(err)
				}
			}
		}()
	}
	for b := range slices.Chunk(units, batchSize) {
		batches <- b
	}
	close(batches)
	wg.Wait()
	return context.Cause(ctx)
}

// batch evaluates units on one child. When the child dies of what the units before
// may have a part in, such as memory, the unit it was at is tried alone and blamed
// if it dies again. The rest go on.
func (r *evaluation) batch(ctx context.Context, units []unitRef) error {
	alone := 0 // how many units at the front must be tried alone
	for len(units) > 0 {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if time.Now().After(r.deadline) {
			r.overBudget(units)
			return nil
		}
		n := len(units)
		if alone > 0 {
			n, alone = alone, 0
		}
		answered, err := r.ask(ctx, units[:n])
		var died *errDied
		switch {
		case err == nil && answered == n:
		case errors.As(err, &died) && (died.certain || answered == 0 && n == 1):
			r.blame(units[answered], died)
			answered++
		case errors.As(err, &died):
			alone = 1
		case err == nil:
			return fault.New(fault.Internal, "the evaluator answered %d of %d units", answered, n)
		default:
			return err
		}
		units = units[answered:]
	}
	return nil
}

// ask has one child evaluate units, and returns how many it answered in order.
func (r *evaluation) ask(ctx context.Context, units []unitRef) (int, error) {
	req := &request{
		Module: r.s.module, Version: r.s.version, Units: units,
		UnitCPU: int(r.e.limits.UnitCPU / time.Second), MaxTasks: r.e.limits.Tasks,
	}
	var err error
	if req.Files, err = r.s.texts(units); err != nil {
		return 0, err
	}
	w, err := r.e.crew.take()
	if err != nil {
		return 0, fault.New(fault.Internal, "evaluator: %w", err)
	}
	answered := 0
	err = w.ask(ctx, req, r.e.limits.UnitWall, func(rep reply) {
		if rep.Result != nil && answered < len(units) {
			r.done(units[answered], rep.Result, true)
			answered++
		}
	})
	if err != nil {
		return answered, err
	}
	r.e.crew.put(w)
	return answered, nil
}

func (r *evaluation) done(u unitRef, res *unitResult, keep bool) {
	res.Dir = u.Dir
	r.mu.Lock()
	r.results[u.Dir] = res
	r.fresh++
	r.mu.Unlock()
	if keep {
		r.e.cache.put(r.keys[u.Dir], res)
	}
}

func (r *evaluation) blame(u unitRef, died *errDied) {
	r.e.log.Warn("unit is beyond its limits", "unit", u.Dir, "reason", died.why)
	d := limitDiagnostic(u.Dir, died.why)
	r.done(u, &unitResult{Dir: u.Dir, Fatal: true, Diagnostics: []pipeline.Diagnostic{d}}, !died.transient)
}

func (r *evaluation) overBudget(units []unitRef) {
	for _, u := range units {
		d := diag(codeBudget, pipeline.Position{File: u.Dir}, "%s was not evaluated: the commit used up its %s", u.Dir, r.e.limits.Total)
		d.Unit = u.Dir
		r.done(u, &unitResult{Dir: u.Dir, Fatal: true, Diagnostics: []pipeline.Diagnostic{d}}, false)
	}
}

// texts reads all files that go into evaluating some units.
func (s *survey) texts(units []unitRef) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, u := range units {
		for _, dir := range s.closure(u) {
			for _, name := range s.dirs[dir].cue {
				p := path.Join(dir, name)
				if _, ok := out[p]; ok {
					continue
				}
				text, err := readBlob(s.tree, p)
				if err != nil {
					return nil, fmt.Errorf("read %s again: %w", p, err)
				}
				out[p] = text
			}
		}
	}
	return out, nil
}
