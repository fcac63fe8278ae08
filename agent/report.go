package agent

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
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
)

// running is a task at work, and what is told of it.
type running struct {
	task   wire.Task
	cancel context.CancelCauseFunc
	over   chan struct{} // closed when it has ended

	mu    sync.Mutex
	phase string
	note  string
	disks []metered
	vm    *wire.VM
	token map[holdfast.DiskID]string
	ended bool
	err   error
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
	w := wire.Report{Task: r.task.ID, Phase: r.phase, Ended: r.ended, Note: r.note, VM: r.vm, Tokens: r.token}
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
