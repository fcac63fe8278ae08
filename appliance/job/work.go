package job

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
)

// Kinds of runs that the appliance works on itself, beside catalog.RunVerify and catalog.RunCollect.
const (
	RunCheck       catalog.RunKind = "check"        // try a pool's target
	RunRebuild     catalog.RunKind = "rebuild"      // list pools' sets in the catalog
	RunReplacePath catalog.RunKind = "replace-path" // fill a new path of a pool
	RunRetention   catalog.RunKind = "retention"    // delete what has expired in a pool
	RunRecompress  catalog.RunKind = "recompress"   // encode what a pool holds with fewer bytes
)

// Units of a Work's progress.
const (
	UnitBytes = "" // as everywhere else
	UnitSteps = "steps"
)

// maxResult bounds what is kept of how a work ended: the record of a run has a bound of its own, far above.
const maxResult = 4 << 20

// A Work is a run that the appliance works on itself, without an agent. Methods are safe for concurrent use.
type Work struct {
	e    *Engine
	t    *task
	unit atomic.Value // string
	done atomic.Int64
	all  atomic.Int64
}

// Unit says what Progress counts; bytes until it is called.
func (w *Work) Unit(unit string) { w.unit.Store(unit) }

// Progress says how far the work is. It is what pools call with their counts.
func (w *Work) Progress(done, all int64) {
	w.done.Store(done)
	w.all.Store(all)
}

// Phase says in a word or two what is being done.
func (w *Work) Phase(text string) {
	w.e.mu.Lock()
	defer w.e.mu.Unlock()
	w.t.phase = text
}

// live is what the task's progress is now.
func (w *Work) live() (unit string, s holdfast.Sample) {
	unit, _ = w.unit.Load().(string)
	return unit, holdfast.Sample{Total: w.all.Load(), Done: w.done.Load()}
}

// Work starts a run of one task whose work is do, called in a goroutine of its own: its context ends when the run is cancelled or the
// engine closed. What do returns is kept as JSON in the run's spec (Result), also beside an error. name is what is worked on. Busy if a run of
// that kind works on the pool of the spec already.
func (e *Engine) Work(ctx context.Context, kind catalog.RunKind, spec Spec, name string, do func(context.Context, *Work) (any, error)) (View, error) {
	const op = "start run"
	raw, err := json.Marshal(spec)
	if err != nil {
		return View{}, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	now := e.o.Clock.Now().UTC()
	r := &run{spec: spec, done: make(chan struct{}), dirty: true}
	r.rec = catalog.Run{ID: holdfast.RunID{ID: holdfast.NewTimeID(now)}, Kind: kind, Created: now, Started: now, State: catalog.RunRunning, Spec: raw,
		Tasks: []catalog.Task{{ID: holdfast.TaskID{ID: holdfast.NewTimeID(now)}, VMName: name, State: catalog.RunRunning, Started: now, Set: spec.Set}}}
	if err := e.admit(r); err != nil {
		return View{}, err
	}
	if err := e.o.Catalog.Update(ctx, func(tx *catalog.Tx) error { return tx.PutRun(r.rec) }); err != nil {
		e.expel(r)
		return View{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return View{}, errShutdown // Recover tells the run's end
	}
	t := &task{run: r, rec: &r.rec.Tasks[0]}
	t.work = &Work{e: e, t: t}
	r.tasks = []*task{t}
	e.tasks[t.rec.ID] = t
	wctx, cancel := context.WithCancelCause(e.ctx)
	t.stop = cancel
	if r.cancelled { // between admit and here
		cancel(errCancelled)
	}
	e.wg.Go(func() {
		defer cancel(nil)
		result, err := do(wctx, t.work)
		if cause := context.Cause(wctx); err != nil && cause != nil && errors.Is(err, context.Canceled) {
			err = cause
		}
		e.worked(t, result, err)
	})
	return r.view(), nil
}

// admit enters a run, unless one like it is under way.
func (e *Engine) admit(r *run) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errShutdown
	}
	for id, other := range e.runs {
		if !other.over && other.rec.Kind == r.rec.Kind && other.spec.Pool == r.spec.Pool && other.spec.Set == r.spec.Set {
			return holdfast.Errorf(holdfast.Busy, "start run", "a %s is under way already: run %s", r.rec.Kind, id).
				Advise("wait for it with 'holdfast run show %s --wait', or end it with 'holdfast run cancel %s'", id, id)
		}
	}
	r.dirty = false // it is written by Work first
	e.runs[r.rec.ID] = r
	return nil
}

func (e *Engine) expel(r *run) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.runs, r.rec.ID)
}

// worked ends the task of a work. When the engine is closed, the record stays as it is: Recover tells the end.
func (e *Engine) worked(t *task, result any, err error) {
	raw, merr := json.Marshal(result)
	if merr != nil || len(raw) > maxResult {
		raw = nil
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	if string(raw) != "null" {
		t.run.spec.Result = raw
	}
	if spec, merr := json.Marshal(t.run.spec); merr == nil {
		t.run.rec.Spec = spec
	}
	_, s := t.work.live()
	if err == nil && s.Total > 0 {
		s.Done = s.Total
	}
	t.rec.Disks = []catalog.DiskProgress{{Name: t.rec.VMName, Sample: s}}
	t.end(e.o.Clock.Now().UTC(), err)
	e.mu.Unlock()
	e.persist()
}

// ActiveOn returns the ids and kinds of runs under way that work on a pool.
func (e *Engine) ActiveOn(pool holdfast.PoolID) map[holdfast.RunID]catalog.RunKind {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[holdfast.RunID]catalog.RunKind{}
	for id, r := range e.runs {
		if r.spec.Pool == pool && !r.over {
			out[id] = r.rec.Kind
		}
	}
	return out
}
