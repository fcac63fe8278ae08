package appliance

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
)

// planEvery is how long the planner sleeps at most: a clock that was changed, or a machine that slept, is noticed after that.
const planEvery = 15 * time.Second

// A planner starts jobs when their schedules say so. What it decides is decided by job.Plan; it keeps the outcome with the job before a run
// starts, so that a moment is never run twice, and tells of moments that were missed.
type planner struct {
	s     *Service
	kick  chan struct{}
	mu    sync.Mutex // one start of a job at a time: held while the catalog and the engine are called
	ended chan job.View
}

func newPlanner(s *Service) *planner {
	return &planner{s: s, kick: make(chan struct{}, 1), ended: make(chan job.View, 1024)}
}

// wake makes the planner look again.
func (p *planner) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// over takes a run that has ended; it never waits. One that finds no room is looked up by its job's state later.
func (p *planner) over(v job.View) {
	if v.Job == "" {
		return
	}
	select {
	case p.ended <- v:
	default:
		p.s.d.c.Log.Error("the planner is behind: the end of a run is not noted with its job", "run", v.ID.String(), "job", v.Job)
	}
	p.wake()
}

// run plans until the daemon stops.
func (p *planner) run() {
	ctx := p.s.d.ctx
	for {
		next := p.round(ctx)
		pause := planEvery
		if !next.IsZero() {
			pause = min(max(next.Sub(p.s.now()), 0), planEvery)
		}
		late, stop := p.s.d.c.Clock.After(pause)
		select {
		case <-late:
		case <-p.kick:
		case <-ctx.Done():
			stop()
			return
		}
		stop()
	}
}

// round notes the runs that have ended, looks at every job and returns when to look again at the latest.
func (p *planner) round(ctx context.Context) time.Time {
	for more := true; more; {
		select {
		case v := <-p.ended:
			p.note(ctx, v)
		default:
			more = false
		}
	}
	recs, err := everyPage(p.s.d.cat, func(tx *catalog.Tx, pg catalog.Page) ([]catalog.Job, catalog.Cursor, error) { return tx.Jobs(pg) })
	if err != nil {
		p.s.d.c.Log.Error("jobs cannot be listed", "error", err)
		return time.Time{}
	}
	var next time.Time
	for _, rec := range recs {
		if ctx.Err() != nil {
			return time.Time{}
		}
		at, err := p.job(ctx, rec.Name)
		if err != nil {
			p.s.d.c.Log.Error("planning a job", "job", rec.Name, "error", err)
			continue
		}
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	if at := p.s.retainDaily(ctx); !at.IsZero() && (next.IsZero() || at.Before(next)) {
		next = at
	}
	return next
}

// job plans one job and starts what is due.
func (p *planner) job(ctx context.Context, name string) (time.Time, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rec, d, st, err := p.s.jobRecord(name)
	if err != nil {
		return time.Time{}, err
	}
	busy := len(p.s.d.jobs.ActiveOf(name)) > 0
	if !busy && !st.Last.IsZero() && st.Result == "" { // its end was not noted: the appliance was restarted in the middle
		if run, err := p.s.d.jobs.Get(st.Last); err == nil && run.State.Ended() {
			p.note(ctx, run)
			if rec, d, st, err = p.s.jobRecord(name); err != nil {
				return time.Time{}, err
			}
		}
	}
	v, err := job.Plan(d, st, p.s.now(), busy)
	if err != nil {
		return time.Time{}, err
	}
	if v.Start != nil || v.Retry != nil || len(v.Missed) > 0 || changedPlan(st, v.State) {
		// Before the run: a crash in between loses a run, which shows as missed, and never runs one twice.
		err := p.s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
			now, err := tx.Job(rec.Name)
			if err != nil {
				return err
			}
			d, err := job.ReadDefinition(now)
			if err != nil {
				return err
			}
			return putJob(tx, now, d, v.State)
		})
		if err != nil {
			return time.Time{}, err
		}
	}
	for _, m := range v.Missed {
		p.tell(name, m)
	}
	start := jobStart{name: name, d: d}
	switch {
	case v.Start != nil:
		start.typ, start.cause = v.Start.Type, v.Start.Spec
	case v.Retry != nil:
		start.retry, start.cause = v.Retry, "retry"
	default:
		return v.Next, nil
	}
	if _, err := p.begin(ctx, start, v.State); err != nil {
		p.s.d.events.Emit(holdfast.Event{Type: eventJobMissed, Severity: holdfast.Alarm, Text: "the job " + name + " could not be started: " + err.Error(),
			Fields: map[string]string{"job": name, "code": holdfast.KindOf(err).Code()}})
	}
	return v.Next, nil
}

// changedPlan tells whether a state has to be kept. A mark that only moved on need not be: what lies between it and now named no moment, and
// names none when it is looked at again after a restart.
func changedPlan(was, is job.State) bool {
	return was.Mark.IsZero() || (was.Pending == nil) != (is.Pending == nil) || was.Pending != nil && *was.Pending != *is.Pending || (was.Retry == nil) != (is.Retry == nil)
}

func (p *planner) tell(name string, m job.Missed) {
	text := fmt.Sprintf("the job %s did not run at %s: %s", name, m.Moment.At.Format("2006-01-02 15:04 MST"), m.Why)
	if m.Count > 1 {
		text = fmt.Sprintf("the job %s did not run %d times, first at %s: %s", name, m.Count, m.Moment.At.Format("2006-01-02 15:04 MST"), m.Why)
	}
	caught := "no"
	if m.Caught {
		text, caught = text+"; it is run now", "yes"
	}
	p.s.d.events.Emit(holdfast.Event{Type: eventJobMissed, Severity: holdfast.Warning, Text: text,
		Fields: map[string]string{"job": name, "moment": m.Moment.At.UTC().Format(time.RFC3339), "caught_up": caught, "count": fmt.Sprint(m.Count)}})
}

// A jobStart is a run of a job that is to begin.
type jobStart struct {
	name  string
	d     job.Definition
	typ   string // "": the job's
	cause string
	retry *job.Retry // only what that run failed for
}

// start begins a run of a job for somebody who asked for it.
func (p *planner) start(ctx context.Context, j jobStart) (job.View, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ids := p.s.d.jobs.ActiveOf(j.name); len(ids) > 0 {
		return job.View{}, holdfast.Errorf(holdfast.Busy, "run job", "the job %s is running: run %s", j.name, ids[0]).
			Advise("follow it with 'holdfast run follow %s', or stop it with 'holdfast job stop %s'", ids[0], j.name)
	}
	_, _, st, err := p.s.jobRecord(j.name)
	if err != nil {
		return job.View{}, err
	}
	return p.begin(ctx, j, st)
}

// begin chooses the VMs and starts the run. The caller has p.mu.
func (p *planner) begin(ctx context.Context, j jobStart, st job.State) (job.View, error) {
	s := p.s
	pool, err := s.poolRecord(j.d.Pool.String())
	if err != nil {
		return job.View{}, err
	}
	s.d.jobs.RefreshStale()
	vms, err := s.vmRecords()
	if err != nil {
		return job.View{}, err
	}
	spec := job.Spec{Pool: pool.ID, PoolName: pool.Name, Job: j.name, Type: j.typ, Cause: j.cause, Options: j.d.Options, Zone: j.d.Zone, Skip: map[string][]string{}}
	if spec.Type == "" {
		spec.Type = j.d.Type
	}
	spec.Full, spec.Compress = spec.Type == job.TypeFull, j.d.Options.Compression
	if spec.Compress == "" {
		spec.Compress = "fast"
	}
	sel := j.d.Source.Select(vms)
	known := st.Known
	if j.retry != nil {
		if sel, err = p.failed(sel, j.retry.Run); err != nil {
			return job.View{}, err
		}
		spec.RetryOf, spec.Attempt = j.retry.Run, j.retry.Attempt
	} else {
		spec.Warnings = p.changes(j.name, st.Known, sel, vms)
		known = ids(sel.VMs)
	}
	spec.Gone = sel.Gone
	for _, vm := range sel.VMs {
		if skip := j.d.Source.SkippedDisks(vm); len(skip) > 0 {
			spec.Skip[vm.ID.String()] = skip
		}
	}
	if len(sel.VMs)+len(sel.Gone) == 0 {
		return job.View{}, holdfast.Errorf(holdfast.NotExist, "run job", "the job %s finds no virtual machine to back up", j.name).
			Advise("'holdfast job show %s' says what it looks for, 'holdfast vm list' what there is", j.name)
	}
	v, err := s.d.jobs.Start(ctx, catalog.RunBackup, spec, sel.VMs)
	if err != nil {
		return v, err
	}
	return v, s.keepJob(ctx, j.name, func(_ *job.Definition, now *job.State) error {
		now.Last, now.Known, now.Result = v.ID, known, ""
		return nil
	})
}

func ids(vms []catalog.VM) []holdfast.VMID {
	out := make([]holdfast.VMID, 0, len(vms))
	for _, v := range vms {
		out = append(out, v.ID)
	}
	return out
}

// failed narrows a selection to what a run did not back up.
func (p *planner) failed(sel job.Selection, id holdfast.RunID) (job.Selection, error) {
	v, err := p.s.d.jobs.Get(id)
	if err != nil {
		return sel, err
	}
	open := map[holdfast.VMID]bool{}
	for _, t := range v.Tasks {
		if t.Stage == "" && t.State != catalog.RunDone {
			open[t.VM] = true
		}
	}
	sel.VMs = slices.DeleteFunc(sel.VMs, func(v catalog.VM) bool { return !open[v.ID] })
	sel.Gone = nil // they were told
	if len(sel.VMs) == 0 {
		return sel, holdfast.Errorf(holdfast.NotExist, "run job", "nothing of run %s is left to be tried again", id)
	}
	return sel, nil
}

// changes tells which VMs a job has found or lost since its last run.
func (p *planner) changes(name string, known []holdfast.VMID, sel job.Selection, all []catalog.VM) []string {
	if len(known) == 0 {
		return nil
	}
	var added, lost []string
	for _, v := range sel.VMs {
		if !slices.Contains(known, v.ID) {
			added = append(added, v.Name)
		}
	}
	names := map[holdfast.VMID]string{}
	for _, v := range all {
		names[v.ID] = v.Name
	}
	for _, id := range known {
		if slices.ContainsFunc(sel.VMs, func(v catalog.VM) bool { return v.ID == id }) {
			continue
		}
		n := names[id]
		if n == "" {
			n = p.lastName(id)
		}
		lost = append(lost, n)
	}
	var out []string
	for _, x := range []struct {
		text     string
		names    []string
		severity holdfast.Severity
	}{{"new in job " + name, added, holdfast.Info}, {"no longer in job " + name, lost, holdfast.Warning}} {
		if len(x.names) == 0 {
			continue
		}
		shown := strings.Join(x.names[:min(len(x.names), 20)], ", ")
		if n := len(x.names); n > 20 {
			shown += fmt.Sprintf(" and %d more", n-20)
		}
		out = append(out, x.text+": "+shown)
		p.s.d.events.Emit(holdfast.Event{Type: eventJobVMs, Severity: x.severity, Text: x.text + ": " + shown, Fields: map[string]string{"job": name}})
	}
	return out
}

// lastName is what a VM was called that no host has any more.
func (p *planner) lastName(id holdfast.VMID) string {
	name := id.String()
	_ = p.s.d.cat.View(func(tx *catalog.Tx) error { // its id will do
		for set, err := range tx.Sets(catalog.SetFilter{VM: id, NewestFirst: true}) {
			if err == nil {
				name = set.Manifest.VM.Name
			}
			break
		}
		return nil
	})
	return name
}

// note keeps with a job how its run ended, plans a retry if the job has any left, and applies the retention of what the run wrote to.
func (p *planner) note(ctx context.Context, v job.View) {
	err := p.s.keepJob(ctx, v.Job, func(d *job.Definition, st *job.State) error {
		st.Totals.Count(v)
		if st.Last != v.ID {
			return nil // another has begun since
		}
		st.Result, st.Began, st.Ended = string(v.State), v.Created, v.Ended
		if v.State == catalog.RunDone {
			st.Good = v.Ended
		}
		again := v.State == catalog.RunFailed || v.State == catalog.RunPartial
		if again && v.Spec.Attempt < d.Options.Retries {
			st.Retry = &job.Retry{At: v.Ended.Add(d.Options.RetryPause()), Run: v.ID, Attempt: v.Spec.Attempt + 1}
		}
		return nil
	})
	if err != nil && holdfast.KindOf(err) != holdfast.NotExist { // the job was deleted meanwhile
		p.s.d.c.Log.Error("the end of a run could not be noted with its job", "job", v.Job, "run", v.ID.String(), "error", err)
	}
	p.s.retainAfter(ctx, v)
}
