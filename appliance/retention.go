package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/appliance/retain"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest"
	"github.com/holdfast-backup/holdfast/pools"
)

const (
	retentionZone  = "retention:zone"
	retentionLast  = "retention:last"
	retentionJobs  = "retention:job:"
	retentionPools = "retention:pool:"
	holdPrefix     = "hold:"
	// retainEvery is how often retention is applied to every pool, beside after each job.
	retainEvery = 24 * time.Hour
)

func retentionOfJob(name string) string            { return retentionJobs + name }
func retentionOfPool(id holdfast.PoolID) string    { return retentionPools + id.String() }
func holdName(id holdfast.SetID) string            { return holdPrefix + id.String() }
func quoted(s string) (b json.RawMessage, _ error) { return json.Marshal(s) }

// A keptPolicy is a policy as a setting of the catalog.
type keptPolicy struct {
	Policy string `json:"policy"`
}

// retention is all that the settings say about it.
type retention struct {
	zone  *time.Location
	jobs  map[string]string
	pools map[string]string // by id
	holds map[string]time.Time
	last  time.Time
}

func (s *Service) retention() (r retention, err error) {
	r = retention{zone: time.UTC, jobs: map[string]string{}, pools: map[string]string{}, holds: map[string]time.Time{}}
	var all map[string]json.RawMessage
	if err = s.d.cat.View(func(tx *catalog.Tx) error { all, err = tx.Settings(); return err }); err != nil {
		return r, err
	}
	for name, raw := range all {
		var p keptPolicy
		switch {
		case strings.HasPrefix(name, retentionJobs):
			if err = json.Unmarshal(raw, &p); err == nil {
				r.jobs[strings.TrimPrefix(name, retentionJobs)] = p.Policy
			}
		case strings.HasPrefix(name, retentionPools):
			if err = json.Unmarshal(raw, &p); err == nil {
				r.pools[strings.TrimPrefix(name, retentionPools)] = p.Policy
			}
		case strings.HasPrefix(name, holdPrefix):
			var t time.Time
			if err = json.Unmarshal(raw, &t); err == nil {
				r.holds[strings.TrimPrefix(name, holdPrefix)] = t
			}
		case name == retentionLast:
			err = json.Unmarshal(raw, &r.last)
		case name == retentionZone:
			var z string
			if err = json.Unmarshal(raw, &z); err == nil {
				r.zone, err = job.Zone(z)
			}
		}
		if err != nil {
			return r, holdfast.Errorf(holdfast.Corrupt, "read retention", "setting %s: %w", name, err)
		}
	}
	for id, until := range s.d.mounts.holds() {
		if until.After(r.holds[id]) {
			r.holds[id] = until
		}
	}
	return r, nil
}

// Policies implements api.Service.
func (s *Service) Policies(context.Context) (api.Policies, error) {
	out := api.Policies{Jobs: []api.Policy{}, Pools: []api.Policy{}}
	r, err := s.retention()
	if err != nil {
		return out, err
	}
	out.Zone, out.Last = r.zone.String(), r.last
	recs, err := s.poolRecords()
	if err != nil {
		return out, err
	}
	for _, p := range recs {
		if text, ok := r.pools[p.ID.String()]; ok {
			out.Pools = append(out.Pools, api.Policy{Name: p.Name, Policy: text})
		}
	}
	jobs, err := everyPage(s.d.cat, func(tx *catalog.Tx, p catalog.Page) ([]catalog.Job, catalog.Cursor, error) { return tx.Jobs(p) })
	for _, j := range jobs {
		if text, ok := r.jobs[j.Name]; ok {
			out.Jobs = append(out.Jobs, api.Policy{Name: j.Name, Policy: text})
		}
	}
	return out, err
}

// SetPolicy implements api.Service.
func (s *Service) SetPolicy(ctx context.Context, c api.PolicyChange) (api.Policies, error) {
	const op = "set retention"
	if (c.Job != "") == (c.Pool != "") && (c.Zone == nil || c.Job != "") {
		return api.Policies{}, holdfast.Errorf(holdfast.Invalid, op, "a policy is that of one job or of one pool").Advise("say which with --job or --pool")
	}
	policy, err := retain.ParsePolicy(c.Policy)
	if c.Policy != "" && err != nil {
		return api.Policies{}, err
	}
	name := ""
	switch {
	case c.Job != "":
		if _, _, _, err := s.jobRecord(c.Job); err != nil {
			return api.Policies{}, err
		}
		name = retentionOfJob(c.Job)
	case c.Pool != "":
		rec, err := s.poolRecord(c.Pool)
		if err != nil {
			return api.Policies{}, err
		}
		name = retentionOfPool(rec.ID)
	}
	if c.Zone != nil {
		if _, err := job.Zone(*c.Zone); err != nil {
			return api.Policies{}, err
		}
	}
	err = s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		if c.Zone != nil {
			raw, err := quoted(*c.Zone)
			if err != nil {
				return err
			}
			if err := tx.PutSetting(retentionZone, raw); err != nil {
				return err
			}
		}
		switch {
		case name == "":
			return nil
		case c.Policy == "":
			return tx.DeleteSetting(name)
		}
		raw, err := json.Marshal(keptPolicy{policy.String()})
		if err != nil {
			return holdfast.Errorf(holdfast.Internal, op, "%w", err)
		}
		return tx.PutSetting(name, raw)
	})
	if err != nil {
		return api.Policies{}, err
	}
	return s.Policies(ctx)
}

// SimulateRetention implements api.Service.
func (s *Service) SimulateRetention(ctx context.Context, a api.RetentionAsk) (api.RetentionReport, error) {
	r, err := s.retention()
	if err != nil {
		return api.RetentionReport{}, err
	}
	now := s.now()
	if !a.Now.IsZero() {
		now = a.Now
	}
	if a.Zone != "" {
		if r.zone, err = job.Zone(a.Zone); err != nil {
			return api.RetentionReport{}, err
		}
	}
	if a.Policy != "" {
		if _, err := retain.ParsePolicy(a.Policy); err != nil {
			return api.RetentionReport{}, err
		}
	}
	if len(a.Points) == 0 {
		rec, p, err := s.findPool(ctx, a.Pool)
		if err != nil {
			return api.RetentionReport{}, err
		}
		return s.retain(ctx, rec, p, r, a.Policy, now)
	}
	return api.SimulateTimeline(a, now, r.zone)
}

// retain decides about the sets of a pool: those of jobs with a policy by that, the others by the pool's, or all by one that is tried out.
func (s *Service) retain(ctx context.Context, rec catalog.Pool, p pools.Pool, r retention, try string, now time.Time) (api.RetentionReport, error) {
	out := api.RetentionReport{Pool: rec.Name, Decisions: []api.RetentionDecision{}, Estimate: true}
	sets, err := s.setsIn(rec.ID)
	if err != nil {
		return out, err
	}
	u, err := p.Usage(ctx)
	if err != nil {
		return out, err
	}
	o, err := s.poolOptions(rec.ID)
	if err != nil {
		return out, err
	}
	fill := retain.PoolFill{Used: u.Stored, Size: u.Size, Pending: u.Reclaimable}
	if o.Quota > 0 && (fill.Size == 0 || o.Quota < fill.Size) {
		fill.Size = o.Quota
	}
	names, groups := []string{}, map[string][]retain.Point{}
	jobOf := map[holdfast.RunID]string{}
	err = s.d.cat.View(func(tx *catalog.Tx) error {
		for _, set := range sets {
			if set.State == catalog.SetDeleting {
				continue
			}
			of := ""
			if try == "" {
				if of, err = policyOwner(tx, jobOf, set.Manifest.Run, r); err != nil {
					return err
				}
			}
			if _, ok := groups[of]; !ok {
				names = append(names, of)
			}
			groups[of] = append(groups[of], pointOf(set, r))
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	for _, name := range names {
		text, of := r.pools[rec.ID.String()], "pool "+rec.Name
		if name != "" {
			text, of = r.jobs[name], "job "+name
		}
		if try != "" {
			text, of = try, ""
		}
		if text == "" {
			text = retain.Forever
		}
		policy, err := retain.ParsePolicy(text)
		if err != nil {
			return out, err
		}
		fill.Pending += out.Add(retain.Decide(policy, groups[name], now, r.zone, fill), policy.String(), of)
	}
	return out, nil
}

// policyOwner returns the job whose policy is for the sets of a run; "" if the pool's is.
func policyOwner(tx *catalog.Tx, known map[holdfast.RunID]string, run holdfast.RunID, r retention) (string, error) {
	name, ok := known[run]
	if !ok && !run.IsZero() {
		rec, err := tx.Run(run)
		if err != nil && !errors.Is(err, holdfast.NotExist) { // the catalog was rebuilt: nobody knows any more
			return "", err
		}
		name = rec.Job
		known[run] = name
	}
	if _, ok := r.jobs[name]; !ok {
		return "", nil
	}
	return name, nil
}

func pointOf(set catalog.Set, r retention) retain.Point {
	m := &set.Manifest
	p := retain.Point{Set: m.ID, VM: m.VM.ID, VMName: m.VM.Name, Time: m.Created, Hold: r.holds[m.ID.String()], Unique: m.Stats.Stored}
	switch set.State {
	case catalog.SetVerified:
		p.State = retain.Good
	case catalog.SetDamaged:
		p.State = retain.Damaged
	}
	return p
}

// ApplyRetention implements api.Service.
func (s *Service) ApplyRetention(ctx context.Context, pool string) (api.Run, error) {
	rec, p, err := s.findPool(ctx, pool)
	if err != nil {
		return api.Run{}, err
	}
	return s.work(ctx, job.RunRetention, job.Spec{Pool: rec.ID, PoolName: rec.Name}, "pool "+rec.Name, func(ctx context.Context, w *job.Work) (any, error) {
		return s.applyRetention(ctx, w, rec, p)
	})
}

// applyRetention deletes what has expired, earliest first, so that a round that is interrupted has removed what was least missed.
func (s *Service) applyRetention(ctx context.Context, w *job.Work, rec catalog.Pool, p pools.Pool) (api.RetentionReport, error) {
	r, err := s.retention()
	if err != nil {
		return api.RetentionReport{}, err
	}
	out, err := s.retain(ctx, rec, p, r, "", s.now())
	if err != nil {
		return out, err
	}
	w.Unit("sets")
	ds := make([]retain.Decision, 0, len(out.Decisions))
	for _, d := range out.Decisions {
		ds = append(ds, d.Decision)
	}
	gone := retain.Removed(ds)
	s.d.room.make()
	for i, d := range gone {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		w.Progress(int64(i), int64(len(gone)))
		if err := ingest.DeleteSet(context.WithoutCancel(ctx), s.d.cat, rec.ID, p, d.Set); err != nil && !errors.Is(err, holdfast.NotExist) {
			out.Errors = append(out.Errors, d.Set.String()+": "+err.Error())
			continue
		}
		s.d.events.Emit(holdfast.Event{Type: holdfast.EventSetDeleted, Text: "the point in time " + d.Time.Format(time.RFC3339) + " of " + d.VMName + " has expired: " + d.Reason,
			Fields: map[string]string{"set": d.Set.String(), "vm": d.VMName, "pool": rec.Name, "cause": string(d.Cause)}})
	}
	w.Progress(int64(len(gone)), int64(len(gone)))
	s.d.watch.look()
	if len(out.Errors) > 0 {
		return out, holdfast.Errorf(holdfast.Internal, "apply retention", "%d sets could not be deleted, the first: %s", len(out.Errors), out.Errors[0])
	}
	return out, nil
}

// HoldSet implements api.Service.
func (s *Service) HoldSet(ctx context.Context, id string, until time.Time) (api.Set, error) {
	set, err := s.findSet(id)
	if err != nil {
		return api.Set{}, err
	}
	if !until.After(s.now()) {
		return api.Set{}, holdfast.Errorf(holdfast.Invalid, "hold set", "%s is not in the future", until.Format(time.RFC3339))
	}
	rec, err := s.poolRecord(set.Pool.String())
	if err != nil {
		return api.Set{}, err
	}
	s.d.holding.Lock()
	defer s.d.holding.Unlock()
	err = s.d.cat.View(func(tx *catalog.Tx) error {
		was, err := holdOf(tx, set.Manifest.ID)
		if err != nil {
			return err
		}
		if until.Before(was) {
			return holdfast.Errorf(holdfast.Immutable, "hold set", "set %s is held until %s already; a hold can only be extended", set.Manifest.ID, was.Format(time.RFC3339))
		}
		return err
	})
	hold := map[string]time.Time{set.Manifest.ID.String(): until.UTC()}
	if err == nil { // the files first: a catalog that says so is never the only one that knows
		err = s.keepHolds(rec, hold)
	}
	if err == nil {
		err = s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
			_, err := adoptHolds(tx, hold, s.now())
			return err
		})
	}
	if err != nil {
		return api.Set{}, err
	}
	return s.showSet(set)
}

// holdOf returns until when a set is held; the zero time if it is not.
func holdOf(tx *catalog.Tx, id holdfast.SetID) (t time.Time, err error) {
	raw, err := tx.Setting(holdName(id))
	if errors.Is(err, holdfast.NotExist) {
		return t, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &t)
	}
	return t, err
}

// holdsOf returns until when sets are held, by id.
func holdsOf(tx *catalog.Tx) (map[string]time.Time, error) {
	all, err := tx.Settings()
	out := map[string]time.Time{}
	for name, raw := range all {
		if id, ok := strings.CutPrefix(name, holdPrefix); ok && err == nil {
			var t time.Time
			err = json.Unmarshal(raw, &t)
			out[id] = t
		}
	}
	return out, err
}

// mayDelete refuses to delete a set that is held.
func (s *Service) mayDelete(id holdfast.SetID) error {
	var until time.Time
	err := s.d.cat.View(func(tx *catalog.Tx) (err error) {
		until, err = holdOf(tx, id)
		return err
	})
	if err == nil && until.After(s.now()) {
		err = holdfast.Errorf(holdfast.Immutable, "delete set", "set %s is held until %s", id, until.Format(time.RFC3339)).Advise("wait until then")
	}
	if err == nil {
		err = s.d.mounts.busy("delete set", id, holdfast.PoolID{})
	}
	return err
}

// retained tells whether a pool has sets that a policy may be for: its own, or that of any job.
func (r retention) retained(id holdfast.PoolID) bool {
	return r.pools[id.String()] != "" || len(r.jobs) > 0
}

// retainPool applies retention to a pool if it would remove anything. Whoever is at it already does it.
func (s *Service) retainPool(ctx context.Context, id holdfast.PoolID) {
	log := func(err error) {
		if err != nil && holdfast.KindOf(err) != holdfast.Busy {
			s.d.c.Log.Error("applying retention", "pool", id.String(), "error", err)
		}
	}
	r, err := s.retention()
	if err != nil || !r.retained(id) {
		log(err)
		return
	}
	rec, p, err := s.findPool(ctx, id.String())
	if err != nil {
		log(err)
		return
	}
	report, err := s.retain(ctx, rec, p, r, "", s.now())
	if err == nil && report.Removed > 0 {
		_, err = s.ApplyRetention(ctx, id.String())
	}
	log(err)
}

// retainAfter applies retention to the pool that a job's run wrote to.
func (s *Service) retainAfter(ctx context.Context, v job.View) {
	if v.Kind == catalog.RunBackup && (v.State == catalog.RunDone || v.State == catalog.RunPartial) {
		s.retainPool(ctx, v.Spec.Pool)
	}
}

// retainDaily applies retention to every pool once a day, and returns when it does so next.
func (s *Service) retainDaily(ctx context.Context) time.Time {
	r, err := s.retention()
	if err != nil {
		s.d.c.Log.Error("reading retention", "error", err)
		return time.Time{}
	}
	now := s.now()
	if len(r.jobs)+len(r.pools) == 0 {
		return time.Time{}
	}
	if next := r.last.Add(retainEvery); next.After(now) && !r.last.After(now) {
		return next
	}
	raw, err := json.Marshal(now)
	if err == nil { // first: a round that fails is tried again tomorrow, not at once and for ever
		err = s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.PutSetting(retentionLast, raw) })
	}
	if err != nil {
		s.d.c.Log.Error("keeping when retention was applied", "error", err)
		return time.Time{}
	}
	recs, err := s.poolRecords()
	if err != nil {
		s.d.c.Log.Error("listing pools", "error", err)
	}
	for _, rec := range recs {
		s.retainPool(ctx, rec.ID)
	}
	return now.Add(retainEvery)
}
