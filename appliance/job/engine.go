package job

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

const (
	// DefaultVMs is how many VMs of one host are worked on at once.
	DefaultVMs = 8
	// DefaultReconnect is how long a task waits for its agent to come back.
	DefaultReconnect = 10 * time.Minute
	// forgotten is how long an agent that came back may take to speak of a task before the task counts as lost: it speaks of all its
	// tasks when its stream opens, and every second.
	forgotten = 4 * time.Second
)

// Options makes an Engine. Catalog is needed.
type Options struct {
	Catalog   *catalog.Catalog
	Clock     clock.Clock // nil: clock.System
	Listener  holdfast.Listener
	VMs       int           // of one host at once; 0: DefaultVMs
	Reconnect time.Duration // 0: DefaultReconnect
	// Ended, if set, is called with each run that is over, after its record is durable. It must return quickly and may call the engine.
	Ended func(View)
	// Route, if set, says which way the data of a host's task goes, where its job names a network or "" for what holds for the host. It must
	// return quickly and must not call the engine.
	Route func(host holdfast.HostID, network string) *wire.Route
}

// An Engine runs runs. Methods are safe for concurrent use.
type Engine struct {
	o      Options
	ctx    context.Context // of the timers
	cancel context.CancelFunc
	wg     sync.WaitGroup

	writes sync.Mutex // held while records go to the catalog; before mu

	mu     sync.Mutex
	closed bool
	hosts  map[holdfast.HostID]*host
	runs   map[holdfast.RunID]*run // not over
	tasks  map[holdfast.TaskID]*task

	refreshed time.Time     // when the agents were last asked for inventories
	changed   chan struct{} // closed and replaced when an inventory was recorded
}

// New returns an engine without runs; call Recover before anything else.
func New(o Options) *Engine {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.VMs <= 0 {
		o.VMs = DefaultVMs
	}
	if o.Reconnect <= 0 {
		o.Reconnect = DefaultReconnect
	}
	e := &Engine{o: o, hosts: map[holdfast.HostID]*host{}, runs: map[holdfast.RunID]*run{}, tasks: map[holdfast.TaskID]*task{},
		changed: make(chan struct{})}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

var errInterrupted = holdfast.Errorf(holdfast.Transient, "", "the appliance was restarted while the run was under way").
	Advise("start it again; sets that were committed are kept, and what they hold is not sent twice")

// Recover ends the runs that a daemon before this one left under way. Restores go on when their hosts are there again.
func (e *Engine) Recover(ctx context.Context) error {
	now := e.o.Clock.Now()
	return e.o.Catalog.Update(ctx, func(tx *catalog.Tx) error {
		for rec, err := range tx.ActiveRuns() {
			if err != nil {
				return err
			}
			if e.adopt(&rec) {
				if err := putRun(tx, rec); err != nil {
					return err
				}
				continue
			}
			done := 0
			for i := range rec.Tasks {
				t := &rec.Tasks[i]
				switch {
				case t.State.Ended():
				case rec.Kind == catalog.RunBackup && !t.Set.IsZero(): // the set is safe; what was left to do does not matter to it
					t.State, t.Ended = catalog.RunDone, now
				default:
					t.State, t.Ended, t.Error = catalog.RunFailed, now, catalog.NewTaskError(errInterrupted)
				}
				if t.State == catalog.RunDone {
					done++
				}
			}
			rec.State, rec.Ended, rec.Error = catalog.RunFailed, now, catalog.NewTaskError(errInterrupted)
			switch done {
			case 0:
			case len(rec.Tasks):
				rec.State, rec.Error = catalog.RunDone, nil
			default:
				rec.State = catalog.RunPartial
			}
			if err := putRun(tx, rec); err != nil {
				return err
			}
		}
		return nil
	})
}

// Close ends every task stream and every wait. Runs that are not over stay so in the catalog, for Recover. It may be called again.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	for _, h := range e.hosts {
		h.drop(errShutdown)
	}
	e.mu.Unlock()
	e.cancel()
	e.wg.Wait()
}

var errShutdown = holdfast.Errorf(holdfast.Offline, "", "the appliance shuts down").Advise("try again when it is up")

// Start begins a run of the kind with one task for each VM, on the VM's host.
func (e *Engine) Start(ctx context.Context, kind catalog.RunKind, spec Spec, vms []catalog.VM) (View, error) {
	const op = "start run"
	if len(vms) == 0 && len(spec.Gone) == 0 || len(vms) > catalog.MaxTasks/2 {
		return View{}, holdfast.Errorf(holdfast.Invalid, op, "%d virtual machines; 1 to %d are allowed", len(vms), catalog.MaxTasks/2)
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return View{}, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	now := e.o.Clock.Now().UTC()
	r := &run{spec: spec, done: make(chan struct{}), dirty: true}
	r.rec = catalog.Run{ID: holdfast.RunID{ID: holdfast.NewTimeID(now)}, Kind: kind, Job: spec.Job, Created: now, State: catalog.RunQueued, Spec: raw}
	r.logStart(now)
	for _, vm := range vms {
		r.rec.Tasks = append(r.rec.Tasks, catalog.Task{ID: holdfast.TaskID{ID: holdfast.NewTimeID(now)}, VM: vm.ID, VMName: vm.Name,
			Host: vm.Host, State: catalog.RunQueued, Set: spec.setOf(vm.ID)})
	}
	r.rec.Tasks = append(r.rec.Tasks, r.scripts(now)...)
	for _, g := range spec.Gone {
		r.rec.Tasks = append(r.rec.Tasks, catalog.Task{ID: holdfast.TaskID{ID: holdfast.NewTimeID(now)}, VM: g.ID, VMName: g.Name, State: catalog.RunQueued})
	}
	// Durable as queued first: a crash from here on is explained to whoever asks for the run.
	if err := e.o.Catalog.Update(ctx, func(tx *catalog.Tx) error { return tx.PutRun(r.rec) }); err != nil {
		return View{}, err
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return View{}, errShutdown
	}
	e.runs[r.rec.ID] = r
	for i := range r.rec.Tasks {
		t := &task{run: r, rec: &r.rec.Tasks[i]}
		t.host = e.host(t.rec.Host)
		r.tasks = append(r.tasks, t)
		e.tasks[t.rec.ID] = t
		if t.rec.Host.IsZero() {
			t.end(now, holdfast.Errorf(holdfast.NotExist, "", "no host has the virtual machine %s (%s) any more", t.rec.VMName, t.rec.VM).
				Advise("was it deleted, or its host removed? take it out with 'holdfast job set %s --remove-vm %s'", spec.Job, t.rec.VM))
			continue
		}
		if t.host.stream == nil {
			t.end(now, offline(t.host))
			continue
		}
		t.host.queue = append(t.host.queue, t)
	}
	e.dispatch()
	v := r.view()
	e.mu.Unlock()
	e.persist()
	return v, nil
}

// Get returns a run, under way or not.
func (e *Engine) Get(id holdfast.RunID) (View, error) {
	e.mu.Lock()
	if r := e.runs[id]; r != nil {
		defer e.mu.Unlock()
		return r.view(), nil
	}
	e.mu.Unlock()
	var rec catalog.Run
	err := e.o.Catalog.View(func(tx *catalog.Tx) (err error) {
		rec, err = tx.Run(id)
		return err
	})
	if err != nil {
		return View{}, err
	}
	return viewOf(rec)
}

// Wait waits until the run is over, but not longer than wait or ctx.
func (e *Engine) Wait(ctx context.Context, id holdfast.RunID, wait time.Duration) {
	e.mu.Lock()
	r := e.runs[id]
	e.mu.Unlock()
	if r == nil || wait <= 0 {
		return
	}
	late, stop := e.o.Clock.After(wait)
	defer stop()
	select {
	case <-r.done:
	case <-late:
	case <-ctx.Done():
	case <-e.ctx.Done():
	}
}

// List returns the newest runs.
func (e *Engine) List(limit int) ([]View, error) {
	var recs []catalog.Run
	err := e.o.Catalog.View(func(tx *catalog.Tx) (err error) {
		recs, _, err = tx.Runs(catalog.Page{Limit: limit})
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]View, 0, len(recs))
	for _, rec := range recs {
		v, err := viewOf(rec)
		if err != nil {
			return nil, err
		}
		e.mu.Lock()
		if r := e.runs[rec.ID]; r != nil {
			v = r.view()
		}
		e.mu.Unlock()
		out = append(out, v)
	}
	return out, nil
}

// Cancel asks for a run to end. Tasks that wait end at once, others when their agent says so. Cancelling a run that is over is
// Invalid.
func (e *Engine) Cancel(id holdfast.RunID) error {
	e.mu.Lock()
	r := e.runs[id]
	if r == nil {
		e.mu.Unlock()
		v, err := e.Get(id)
		if err != nil {
			return err
		}
		return holdfast.Errorf(holdfast.Invalid, "cancel run", "run %s is over: %s", id, v.State).Advise("'holdfast run show %s' says how it went", id)
	}
	r.cancelled = true
	r.log(e.o.Clock.Now(), "", "the run is being stopped")
	for _, t := range r.tasks {
		switch {
		case t.rec.State.Ended():
		case t.rec.Stage == StagePost && !t.pointless(): // it cleans up, with little time
			if t.sent && t.host.stream != nil {
				e.reap(t, stoppedTimeout)
			}
		case t.work != nil:
			t.stop(errCancelled)
		case !t.sent, t.host.stream == nil:
			e.conclude(t, errCancelled, true)
		default:
			t.host.stream.cancel(t.rec.ID)
			e.reap(t, reapAfter)
		}
	}
	e.dispatch()
	e.mu.Unlock()
	e.persist()
	return nil
}

// reapAfter is how long a task that was cancelled may take to end by itself. An agent that merges a checkpoint goes on with that when its task
// is ended here: its journal has it, and it reports to nobody.
const reapAfter = 60 * time.Second

// reap ends a task that was cancelled and has not ended in time. The caller has e.mu.
func (e *Engine) reap(t *task, d time.Duration) {
	if e.closed {
		return
	}
	e.wg.Go(func() {
		e.after(d, func() {
			e.mu.Lock()
			if !t.rec.State.Ended() {
				t.note = join(t.note, "the agent goes on cleaning up")
				e.conclude(t, errCancelled, true)
				e.dispatch()
			}
			e.mu.Unlock()
			e.persist()
		})
	})
}

var errCancelled = holdfast.Errorf(holdfast.Cancelled, "", "the run was cancelled")

// persist writes the records that have changed, and lets go of runs that are over. A record that cannot be written stays, to be
// written with the next change; the catalog says by itself when it has failed.
func (e *Engine) persist() {
	e.writes.Lock()
	defer e.writes.Unlock()
	e.mu.Lock()
	var changed []*run
	var recs []catalog.Run
	for _, r := range e.runs {
		if r.dirty {
			r.dirty = false
			r.settle(e.o.Clock.Now().UTC())
			changed = append(changed, r)
			recs = append(recs, r.view().Run)
		}
	}
	e.mu.Unlock()
	if len(recs) == 0 {
		return
	}
	err := e.o.Catalog.Update(context.WithoutCancel(e.ctx), func(tx *catalog.Tx) error {
		for _, rec := range recs {
			if err := putRun(tx, rec); err != nil {
				return err
			}
		}
		return nil
	})
	e.mu.Lock()
	var over []View
	for i, r := range changed {
		switch {
		case err != nil:
			r.dirty = true
		case recs[i].State.Ended():
			over = append(over, r.view())
			delete(e.runs, r.rec.ID)
			for _, t := range r.tasks {
				delete(e.tasks, t.rec.ID)
			}
			close(r.done)
		}
	}
	e.mu.Unlock()
	if err != nil {
		e.o.Listener.Emit(holdfast.Event{Type: holdfast.EventRunFinished, Severity: holdfast.Alarm, Text: "a run could not be recorded: " + err.Error()})
	}
	for _, v := range over {
		e.o.Listener.Emit(finished(v))
		if e.o.Ended != nil {
			e.o.Ended(v)
		}
	}
}

// putRun writes a record. Where work began and ended between two writes, the state in between is written first: the catalog
// refuses steps that leave one out.
func putRun(tx *catalog.Tx, rec catalog.Run) error {
	old, err := tx.Run(rec.ID)
	if err != nil {
		return err
	}
	step := false
	for i := range old.Tasks {
		if t := &old.Tasks[i]; i < len(rec.Tasks) && !t.State.May(rec.Tasks[i].State) {
			t.State, step = catalog.RunRunning, true
		}
	}
	if step || !old.State.May(rec.State) {
		old.State = catalog.RunRunning
		if err := tx.PutRun(old); err != nil {
			return err
		}
	}
	return tx.PutRun(rec)
}

// settle moves the run's state to what its tasks say.
func (r *run) settle(now time.Time) {
	open, begun := 0, false
	for _, t := range r.tasks {
		if !t.rec.State.Ended() {
			open++
		}
		begun = begun || t.rec.State != catalog.RunQueued
	}
	if begun && r.rec.State == catalog.RunQueued {
		r.rec.State, r.rec.Started = catalog.RunRunning, now
	}
	if open > 0 || r.over {
		return
	}
	r.over = true
	caused := false
	r.rec.State, r.rec.Ended = r.outcome(), now
	r.log(now, "", "the run is over: %s", r.rec.State)
	for _, t := range r.tasks {
		cause := t.rec.State == catalog.RunFailed // what others were aborted or cancelled for
		if t.rec.Error != nil && (r.rec.Error == nil || cause && !caused) {
			r.rec.Error, caused = t.rec.Error, cause
		}
	}
}

// logStart writes the head of a run's log.
func (r *run) logStart(now time.Time) {
	if r.spec.Job != "" {
		r.log(now, "", "%s %s of job %s, %s", or(r.spec.Type, TypeIncremental), r.rec.Kind, r.spec.Job, r.spec.Cause)
	} else {
		r.log(now, "", "%s, by hand", r.rec.Kind)
	}
	for _, w := range r.spec.Warnings {
		r.log(now, "", "%s", w)
	}
}

func finished(v View) holdfast.Event {
	ev := holdfast.Event{Type: holdfast.EventRunFinished, Text: string(v.Kind) + " of "}
	if v.Job != "" {
		ev.Text = "job " + v.Job + ": " + ev.Text
	}
	for i, t := range slices.DeleteFunc(slices.Clone(v.Tasks), func(t catalog.Task) bool { return t.Stage != "" }) {
		if i == 3 {
			ev.Text += " and others"
			break
		}
		if i > 0 {
			ev.Text += ", "
		}
		ev.Text += t.VMName
	}
	ev.Text += ": " + string(v.State)
	ev.Fields = map[string]string{"run": v.ID.String(), "state": string(v.State), "kind": string(v.Kind)}
	if v.Job != "" {
		ev.Fields["job"] = v.Job
	}
	switch v.State {
	case catalog.RunFailed:
		ev.Severity = holdfast.Alarm
	case catalog.RunPartial, catalog.RunCancelled:
		ev.Severity = holdfast.Warning
	}
	if v.Error != nil {
		ev.Text += ": " + v.Error.Message
	}
	return ev
}

// ActiveOf returns the runs of a job that are under way, oldest first.
func (e *Engine) ActiveOf(job string) []holdfast.RunID {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []holdfast.RunID
	for id, r := range e.runs {
		if r.rec.Job == job {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b holdfast.RunID) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return out
}

// WaitLog waits until the log of a run has more than n lines or the run is over, but not longer than wait or ctx.
func (e *Engine) WaitLog(ctx context.Context, id holdfast.RunID, n int, wait time.Duration) {
	late, stop := e.o.Clock.After(wait)
	defer stop()
	for {
		e.mu.Lock()
		r := e.runs[id]
		if r == nil || len(r.rec.Log) > n {
			e.mu.Unlock()
			return
		}
		if r.lines == nil {
			r.lines = make(chan struct{})
		}
		lines := r.lines
		e.mu.Unlock()
		select {
		case <-lines:
		case <-r.done:
		case <-late:
			return
		case <-ctx.Done():
			return
		case <-e.ctx.Done():
			return
		}
	}
}
