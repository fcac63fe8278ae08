package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
)

// Events of jobs.
const (
	eventJobCreated holdfast.EventType = "job-created"
	eventJobChanged holdfast.EventType = "job-changed"
	eventJobDeleted holdfast.EventType = "job-deleted"
	eventJobMissed  holdfast.EventType = "job-missed"     // a schedule's moment passed without a run
	eventJobVMs     holdfast.EventType = "job-vm-changed" // what a job backs up became more or less by itself
)

const jobHint = "'holdfast job list' shows the jobs there are"

func (s *Service) jobRecord(name string) (rec catalog.Job, d job.Definition, st job.State, err error) {
	err = s.d.cat.View(func(tx *catalog.Tx) error {
		rec, err = tx.Job(name)
		return advise(err, jobHint)
	})
	if err == nil {
		d, err = job.ReadDefinition(rec)
	}
	if err == nil {
		st, err = job.ReadState(rec)
	}
	return rec, d, st, err
}

// keepJob changes a job's definition and state in one transaction and wakes the planner.
func (s *Service) keepJob(ctx context.Context, name string, change func(*job.Definition, *job.State) error) error {
	err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		rec, err := tx.Job(name)
		if err != nil {
			return advise(err, jobHint)
		}
		d, err := job.ReadDefinition(rec)
		if err != nil {
			return err
		}
		st, err := job.ReadState(rec)
		if err != nil {
			return err
		}
		if err := change(&d, &st); err != nil {
			return err
		}
		return putJob(tx, rec, d, st)
	})
	s.d.planner.wake()
	return err
}

func putJob(tx *catalog.Tx, rec catalog.Job, d job.Definition, st job.State) (err error) {
	if rec.Spec, err = json.Marshal(d); err == nil {
		rec.State, err = json.Marshal(st)
	}
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, "keep job", "%w", err)
	}
	return tx.PutJob(rec)
}

// CreateJob implements api.Service.
func (s *Service) CreateJob(ctx context.Context, spec api.JobSpec) (api.JobCreated, error) {
	var out api.JobCreated
	if strings.TrimSpace(spec.Name) != spec.Name || strings.ContainsAny(spec.Name, "/\\\x00") || spec.Name == "" || len(spec.Name) > 64 {
		return out, holdfast.Errorf(holdfast.Invalid, "create job", "%q is no name for a job", spec.Name).Advise("1 to 64 characters, without slashes")
	}
	d := job.Definition{Enabled: !spec.Disabled, Type: spec.Type, Zone: spec.Zone}
	if d.Type == "" {
		d.Type = job.TypeIncremental
	}
	now := slices.Contains(spec.Schedules, "now")
	c := api.JobChange{Pool: &spec.Pool, AddVMs: spec.VMs, Hosts: &spec.Hosts, Match: &spec.Match, Exclude: &spec.Exclude, ExcludeDisks: &spec.ExcludeDisks, Options: spec.Options}
	later := slices.DeleteFunc(slices.Clone(spec.Schedules), func(t string) bool { return t == "now" })
	c.Schedules = &later
	if err := s.applyChange(ctx, &d, c); err != nil {
		return out, err
	}
	err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		if _, err := tx.Job(spec.Name); err == nil {
			return holdfast.Errorf(holdfast.Exist, "create job", "there is a job %s already", spec.Name).Advise("change it with 'holdfast job set %s', or choose another name", spec.Name)
		} else if !errors.Is(err, holdfast.NotExist) {
			return err
		}
		return putJob(tx, catalog.Job{Name: spec.Name, Kind: catalog.RunBackup, Created: s.now()}, d, job.State{Mark: s.now()})
	})
	if err != nil {
		return out, err
	}
	s.d.planner.wake()
	s.d.events.Emit(holdfast.Event{Type: eventJobCreated, Text: "the job " + spec.Name + " was created", Fields: map[string]string{"job": spec.Name}})
	if now {
		r, err := s.RunJob(ctx, spec.Name, api.JobRun{})
		if err != nil {
			return out, fmt.Errorf("the job was created, but could not be started: %w", err)
		}
		out.Run = &r
	}
	out.Job, err = s.Job(ctx, spec.Name)
	return out, err
}

// applyChange changes a definition as asked and checks it.
func (s *Service) applyChange(ctx context.Context, d *job.Definition, c api.JobChange) error {
	if c.Pool != nil {
		rec, err := s.poolRecord(*c.Pool)
		if err != nil {
			return err
		}
		d.Pool, d.PoolName = rec.ID, rec.Name
	}
	if err := s.changeVMs(ctx, d, c); err != nil {
		return err
	}
	if c.Hosts != nil {
		d.Source.Hosts = nil
		err := s.d.cat.View(func(tx *catalog.Tx) error {
			for _, name := range *c.Hosts {
				h, err := tx.FindHost(name)
				if err != nil {
					return advise(err, "'holdfast host list' shows the hosts there are")
				}
				if !slices.Contains(d.Source.Hosts, h.ID) {
					d.Source.Hosts = append(d.Source.Hosts, h.ID)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, x := range []struct {
		from *[]string
		to   *[]string
	}{{c.Match, &d.Source.Match}, {c.Exclude, &d.Source.Exclude}, {c.ExcludeDisks, &d.Source.ExcludeDisks}} {
		if x.from != nil {
			*x.to = *x.from
		}
	}
	if c.Type != nil {
		d.Type = *c.Type
	}
	if c.Zone != nil {
		d.Zone = *c.Zone
	}
	if c.Schedules != nil {
		d.Schedules = nil
		for _, text := range *c.Schedules {
			t, err := job.ParseTimed(text)
			if err != nil {
				return err
			}
			d.Schedules = append(d.Schedules, t)
		}
	}
	for _, o := range c.Options {
		if err := d.Options.Set(o); err != nil {
			return err
		}
	}
	if err := s.checkNetwork(d.Options.Network); err != nil {
		return err
	}
	if c.Enabled != nil {
		d.Enabled = *c.Enabled
	}
	return d.Check()
}

// changeVMs adds VMs by their ids, and takes out those that are named; of the latter the names suffice that they had when they were added.
func (s *Service) changeVMs(ctx context.Context, d *job.Definition, c api.JobChange) error {
	add, err := s.namedVMs(c.AddVMs)
	if errors.Is(err, holdfast.NotExist) { // it may be new
		s.refresh(ctx)
		add, err = s.namedVMs(c.AddVMs)
	}
	if err != nil {
		return err
	}
	for _, v := range add {
		if !slices.ContainsFunc(d.Source.VMs, func(r job.VMRef) bool { return r.ID == v.ID }) {
			d.Source.VMs = append(d.Source.VMs, job.VMRef{ID: v.ID, Name: v.Name})
		}
	}
	for _, name := range c.RemoveVMs {
		n := len(d.Source.VMs)
		d.Source.VMs = slices.DeleteFunc(d.Source.VMs, func(r job.VMRef) bool { return r.Name == name || r.ID.String() == name })
		if len(d.Source.VMs) == n {
			return holdfast.Errorf(holdfast.NotExist, "change job", "the job does not name a virtual machine %s", name).
				Advise("one that a host or a pattern brings in is left out with --exclude")
		}
	}
	return nil
}

// SetJob implements api.Service.
func (s *Service) SetJob(ctx context.Context, name string, c api.JobChange) (api.Job, error) {
	// Names are resolved before the transaction, which the catalog runs alone.
	_, d, _, err := s.jobRecord(name)
	if err != nil {
		return api.Job{}, err
	}
	if err := s.applyChange(ctx, &d, c); err != nil {
		return api.Job{}, err
	}
	s.d.planner.mu.Lock()
	err = s.keepJob(ctx, name, func(was *job.Definition, st *job.State) error {
		if c.Schedules != nil || c.Zone != nil || c.Enabled != nil {
			st.Mark = s.now() // new schedules begin now: what they would have named before is not missed
			st.Pending = nil
		}
		*was = d
		return nil
	})
	s.d.planner.mu.Unlock()
	if err != nil {
		return api.Job{}, err
	}
	s.d.events.Emit(holdfast.Event{Type: eventJobChanged, Text: "the job " + name + " was changed", Fields: map[string]string{"job": name}})
	return s.Job(ctx, name)
}

// DeleteJob implements api.Service.
func (s *Service) DeleteJob(ctx context.Context, name string) (api.Job, error) {
	j, err := s.Job(ctx, name)
	if err != nil {
		return j, err
	}
	if len(j.Running) > 0 {
		return j, holdfast.Errorf(holdfast.Busy, "delete job", "the job %s is running: run %s", name, j.Running[0]).Advise("stop it with 'holdfast job stop %s', or wait", name)
	}
	if err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		return errors.Join(tx.DeleteJob(name), tx.DeleteSetting(retentionOfJob(name)))
	}); err != nil {
		return j, err
	}
	s.d.planner.wake()
	s.d.events.Emit(holdfast.Event{Type: eventJobDeleted, Text: "the job " + name + " was deleted; its sets stay", Fields: map[string]string{"job": name}})
	return j, nil
}

// Jobs implements api.Service.
func (s *Service) Jobs(ctx context.Context) ([]api.Job, error) {
	recs, err := everyPage(s.d.cat, func(tx *catalog.Tx, p catalog.Page) ([]catalog.Job, catalog.Cursor, error) { return tx.Jobs(p) })
	if err != nil {
		return nil, err
	}
	out := make([]api.Job, 0, len(recs))
	for _, rec := range recs {
		j, err := s.showJob(rec)
		if err != nil {
			return nil, err
		}
		out = append(out, j)
	}
	return out, nil
}

// Job implements api.Service.
func (s *Service) Job(_ context.Context, name string) (api.Job, error) {
	rec, _, _, err := s.jobRecord(name)
	if err != nil {
		return api.Job{}, err
	}
	return s.showJob(rec)
}

func (s *Service) showJob(rec catalog.Job) (api.Job, error) {
	d, err := job.ReadDefinition(rec)
	if err != nil {
		return api.Job{}, err
	}
	st, err := job.ReadState(rec)
	if err != nil {
		return api.Job{}, err
	}
	zone := d.Zone
	if zone == "" {
		zone = "UTC"
	}
	j := api.Job{Name: rec.Name, State: "idle", Enabled: d.Enabled, Pool: d.PoolName, PoolID: d.Pool.String(), Type: d.Type, Zone: zone, Schedules: []string{},
		VMs: []api.JobVM{}, Hosts: []string{}, Match: orEmpty(d.Source.Match), Exclude: orEmpty(d.Source.Exclude), ExcludeDisks: orEmpty(d.Source.ExcludeDisks),
		Options: d.Options.Shown(), Selected: []api.JobVM{}, Created: rec.Created, LastRun: st.Last.String(), LastResult: st.Result, LastEnded: st.Ended, LastGood: st.Good, Running: []string{},
		LastBegan: st.Began, Totals: api.JobTotals{Read: st.Totals.Read, Sent: st.Totals.Sent, Stored: st.Totals.Stored}}
	for _, t := range d.Schedules {
		j.Schedules = append(j.Schedules, t.String())
	}
	var names map[holdfast.HostID]string
	err = s.d.cat.View(func(tx *catalog.Tx) error {
		if p, err := tx.Pool(d.Pool); err == nil {
			j.Pool = p.Name
		}
		names, err = s.hostNames(tx)
		return err
	})
	if err != nil {
		return j, err
	}
	for _, h := range d.Source.Hosts {
		if names[h] == "" {
			names[h] = h.String()
		}
		j.Hosts = append(j.Hosts, names[h])
	}
	vms, err := s.vmRecords()
	if err != nil {
		return j, err
	}
	sel := d.Source.Select(vms)
	for _, v := range sel.VMs {
		j.Selected = append(j.Selected, api.JobVM{ID: v.ID.String(), Name: v.Name, Host: names[v.Host]})
	}
	for _, v := range d.Source.VMs {
		j.VMs = append(j.VMs, api.JobVM{ID: v.ID.String(), Name: v.Name, Gone: slices.Contains(sel.Gone, v)})
	}
	for _, id := range s.d.jobs.ActiveOf(rec.Name) {
		j.Running = append(j.Running, id.String())
	}
	if v, err := job.Plan(d, st, s.now(), len(j.Running) > 0); err == nil {
		j.Next = v.Next
	}
	switch {
	case len(j.Running) > 0:
		j.State = "running"
	case !d.Enabled:
		j.State = "disabled"
	case st.Pending != nil || st.Retry != nil:
		j.State = "waiting"
	}
	return j, nil
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// RunJob implements api.Service.
func (s *Service) RunJob(ctx context.Context, name string, r api.JobRun) (api.Run, error) {
	_, d, st, err := s.jobRecord(name)
	if err != nil {
		return api.Run{}, err
	}
	start := jobStart{name: name, d: d, typ: r.Type, cause: "by hand"}
	if r.Failed {
		if st.Last.IsZero() {
			return api.Run{}, holdfast.Errorf(holdfast.NotExist, "run job", "the job %s has not run yet", name)
		}
		start.retry = &job.Retry{Run: st.Last, Attempt: 1}
	}
	v, err := s.d.planner.start(ctx, start)
	return s.showRun(v, err)
}

// StopJob implements api.Service.
func (s *Service) StopJob(ctx context.Context, name string) (api.Job, error) {
	s.d.planner.mu.Lock()
	err := s.keepJob(ctx, name, func(_ *job.Definition, st *job.State) error {
		st.Pending, st.Retry = nil, nil
		return nil
	})
	s.d.planner.mu.Unlock()
	if err != nil {
		return api.Job{}, err
	}
	for _, id := range s.d.jobs.ActiveOf(name) {
		if err := s.d.jobs.Cancel(id); err != nil && !errors.Is(err, holdfast.Invalid) { // Invalid: it has just ended
			return api.Job{}, err
		}
	}
	return s.Job(ctx, name)
}

// PreviewSchedule implements api.Service.
func (s *Service) PreviewSchedule(_ context.Context, spec, zone string, n int) (api.SchedulePreview, error) {
	t, z, times, err := job.Preview(spec, zone, s.now(), n)
	if err != nil {
		return api.SchedulePreview{}, err
	}
	return api.SchedulePreview{Spec: t.Spec, Type: t.Type, Zone: z.String(), Times: times}, nil
}

// RunLog implements api.Service.
func (s *Service) RunLog(ctx context.Context, id string, from int, wait time.Duration) (api.RunLog, error) {
	x, err := runID(id)
	if err != nil {
		return api.RunLog{}, err
	}
	v, err := s.d.jobs.Get(x)
	if err == nil && !v.State.Ended() && from >= len(v.Log) && wait > 0 {
		s.d.jobs.WaitLog(ctx, x, from, wait)
		v, err = s.d.jobs.Get(x)
	}
	if err != nil {
		return api.RunLog{}, advise(err, "'holdfast run list' shows the runs")
	}
	out := api.RunLog{Run: v.ID.String(), State: string(v.State), Lines: []api.LogLine{}, Next: len(v.Log)}
	for _, l := range v.Log[min(from, len(v.Log)):] {
		out.Lines = append(out.Lines, api.LogLine{Time: l.Time, Task: l.Task, Text: l.Text})
	}
	return out, nil
}
