package agent

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

const (
	reportEvery = time.Second
	lastReports = 5 * time.Second // for the reports of tasks that ended because the agent stops
)

// The phases of a task as reports name them.
const (
	phaseCheckpoint  = "checkpoint"
	phaseReading     = "reading"
	phaseCommitting  = "committing"
	phaseMerging     = "merging"
	phaseWriting     = "writing"
	phaseRegistering = "registering"
	phaseScript      = "script"
)

// running is a task at work, and what is told of it.
type running struct {
	task   wire.Task
	cancel context.CancelCauseFunc
	waits  waits
	over   chan struct{} // closed when it has ended

	mu    sync.Mutex
	phase string
	note  string
	disks []metered
	vm    *wire.VM
	token map[holdfast.DiskID]string
	ended bool
	err   error

	result *wire.ScriptResult // of a script
}

// waits counts the time that a backup's disks wait, by what they wait for. The nil waits counts nothing.
type waits struct{ sources, sends, answers atomic.Int64 }

func (w *waits) source(c clock.Clock) func() {
	if w == nil {
		return func() {}
	}
	return count(c, &w.sources)
}

func (w *waits) send(c clock.Clock) func() {
	if w == nil {
		return func() {}
	}
	return count(c, &w.sends)
}

func (w *waits) answer(c clock.Clock) func() {
	if w == nil {
		return func() {}
	}
	return count(c, &w.answers)
}

// count returns a function that adds the time since.
func count(c clock.Clock, to *atomic.Int64) func() {
	began := c.Now()
	return func() { to.Add(int64(c.Now().Sub(began))) }
}

func (w *waits) wire() wire.Waits {
	return wire.Waits{Source: time.Duration(w.sources.Load()), Send: time.Duration(w.sends.Load()), Answer: time.Duration(w.answers.Load())}
}

// scripted takes how a script ended.
func (r *running) scripted(s *wire.ScriptResult) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result = s
}

// metered is a disk and its meter.
type metered struct {
	disk  holdfast.Disk
	meter *holdfast.Meter
}

func (r *running) enter(phase string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phase = phase
}

// remark adds a sentence to the task's note.
func (r *running) remark(s string) {
	if s == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.note != "" {
		r.note += "; "
	}
	r.note += s
}

// meterFor returns the meter of a disk that is going to be worked on.
func (r *running) meterFor(d holdfast.Disk, total int64) *holdfast.Meter {
	m := &holdfast.Meter{}
	m.AddTotal(total)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.disks = append(r.disks, metered{d, m})
	return m
}

func (r *running) made(vm wire.VM, tokens map[holdfast.DiskID]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.vm, r.token = &vm, tokens
}

func (r *running) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended, r.err = true, err
}

func (r *running) report() wire.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := wire.Report{Task: r.task.ID, Phase: r.phase, Ended: r.ended, Note: r.note, VM: r.vm, Script: r.result, Waits: r.waits.wire(), Tokens: r.token}
	for _, d := range r.disks {
		w.Disks = append(w.Disks, wire.DiskProgress{Disk: d.disk.ID, Name: d.disk.Name, Reason: d.disk.Reason, Sample: d.meter.Sample()})
	}
	if r.err != nil {
		f := wire.FailureOf(r.err)
		w.Error = &f
	}
	return w
}

// report tells the appliance how tasks go, about once a second while there are any. A task's end is told until the appliance has
// heard it.
func (a *Agent) report(ctx context.Context) {
	for {
		tick, stop := a.o.Clock.After(reportEvery)
		select {
		case <-ctx.Done():
			stop()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastReports)
			a.sendReports(last)
			cancel()
			return
		case <-a.news:
		case <-tick:
		}
		stop()
		a.sendReports(ctx)
	}
}

func (a *Agent) sendReports(ctx context.Context) {
	a.mu.Lock()
	rs := make([]wire.Report, 0, len(a.tasks))
	for _, r := range a.tasks {
		rs = append(rs, r.report())
	}
	a.mu.Unlock()
	if len(rs) == 0 {
		return
	}
	if err := a.o.Control.Report(ctx, rs); err != nil {
		a.o.Log.Debug("sending reports", "error", err)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range rs {
		if r.Ended {
			delete(a.tasks, r.Task)
			a.past[a.next] = r.Task
			a.next = (a.next + 1) % len(a.past)
		}
	}
}
