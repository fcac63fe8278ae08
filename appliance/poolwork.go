package appliance

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest"
	"github.com/holdfast-backup/holdfast/pools"
)

// work starts a run that the appliance works on itself, and shows it.
func (s *Service) work(ctx context.Context, kind catalog.RunKind, spec job.Spec, name string, do func(context.Context, *job.Work) (any, error)) (api.Run, error) {
	v, err := s.d.jobs.Work(ctx, kind, spec, name, do)
	return s.showRun(v, err)
}

// maxToldDamage bounds the alarms of one verification, and the list of damage that is kept with its run.
const maxToldDamage = 100

// VerifyPool implements api.Service.
func (s *Service) VerifyPool(ctx context.Context, name string) (api.Run, error) {
	rec, p, err := s.findPool(ctx, name)
	if err != nil {
		return api.Run{}, err
	}
	return s.work(ctx, catalog.RunVerify, job.Spec{Pool: rec.ID, PoolName: rec.Name}, "pool "+rec.Name, func(ctx context.Context, w *job.Work) (any, error) {
		return s.verify(ctx, rec, p, nil, w.Progress)
	})
}

// verify checks a pool, or sets of it, and raises alarms about damage. Damage is an error too, so that the run shows as failed.
func (s *Service) verify(ctx context.Context, rec catalog.Pool, p pools.Pool, sets []holdfast.SetID, progress func(done, all int64)) (pools.VerifyReport, error) {
	r, err := pools.Verify(ctx, p, pools.VerifyOptions{Sets: sets, Progress: progress})
	if err != nil {
		return r, err
	}
	if r.Damaged == nil {
		r.Damaged = []pools.Damage{}
	}
	for _, dmg := range r.Damaged[:min(len(r.Damaged), maxToldDamage)] {
		s.d.events.Emit(holdfast.Event{Type: holdfast.EventChunkCorrupt, Severity: holdfast.Alarm, Text: "damage in pool " + rec.Name + ": " + dmg.Text,
			Fields: map[string]string{"pool": rec.Name, "where": dmg.Where, "vm": dmg.VM, "disk": dmg.Disk}})
	}
	if n := len(r.Damaged); n > 0 {
		return r, holdfast.Errorf(holdfast.Corrupt, "verify", "%d damaged parts, the first: %s", n, r.Damaged[0].Text).
			Advise("run a new full backup of the virtual machines named; restores of other points are not affected")
	}
	return r, nil
}

// VerifySet implements api.Service. What was found is kept with the set.
func (s *Service) VerifySet(ctx context.Context, id string) (api.Run, error) {
	set, err := s.findSet(id)
	if err != nil {
		return api.Run{}, err
	}
	rec, p, err := s.findPool(ctx, set.Pool.String())
	if err != nil {
		return api.Run{}, err
	}
	setID := set.Manifest.ID
	return s.work(ctx, catalog.RunVerify, job.Spec{Pool: rec.ID, PoolName: rec.Name, Set: setID}, "set "+setID.String(), func(ctx context.Context, w *job.Work) (any, error) {
		r, err := s.verify(ctx, rec, p, []holdfast.SetID{setID}, w.Progress)
		if err != nil && len(r.Damaged) == 0 {
			return r, err
		}
		return r, errors.Join(err, s.keepVerdict(ctx, setID, len(r.Damaged) > 0))
	})
}

// keepVerdict notes with a set how its verification went.
func (s *Service) keepVerdict(ctx context.Context, id holdfast.SetID, damaged bool) error {
	return s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		now, err := tx.Set(id)
		if errors.Is(err, holdfast.NotExist) || err == nil && now.State == catalog.SetDeleting {
			return nil // deleted meanwhile
		}
		if err != nil {
			return err
		}
		now.State, now.VerifiedAt = catalog.SetVerified, s.now()
		if damaged {
			now.State = catalog.SetDamaged
		}
		return tx.PutSet(now)
	})
}

// CollectPool implements api.Service.
func (s *Service) CollectPool(ctx context.Context, name string, dryRun bool) (api.Run, error) {
	s.d.room.make() // on a full disk a collect needs some, and so does the record of its run
	rec, p, err := s.findPool(ctx, name)
	if err != nil {
		return api.Run{}, err
	}
	c, ok := p.(pools.Collector)
	if !ok {
		return api.Run{}, holdfast.Errorf(holdfast.Unsupported, "collect", "a pool of kind %q gives its space back by itself", rec.Kind)
	}
	return s.work(ctx, catalog.RunCollect, job.Spec{Pool: rec.ID, PoolName: rec.Name, DryRun: dryRun}, "pool "+rec.Name, func(ctx context.Context, w *job.Work) (any, error) {
		w.Unit(job.UnitSteps)
		r, err := c.Collect(ctx, pools.CollectOptions{DryRun: dryRun, Progress: w.Progress})
		s.d.watch.look()
		return r, err
	})
}

// RecompressPool implements api.Service.
func (s *Service) RecompressPool(ctx context.Context, name string, limit int64) (api.Run, error) {
	rec, p, err := s.findPool(ctx, name)
	if err != nil {
		return api.Run{}, err
	}
	c, ok := p.(pools.Recompressor)
	if !ok {
		return api.Run{}, holdfast.Errorf(holdfast.Unsupported, "recompress", "a pool of kind %q keeps bytes as they came", rec.Kind)
	}
	if err := s.mayWrite(ctx, rec, p); err != nil {
		return api.Run{}, err
	}
	return s.work(ctx, job.RunRecompress, job.Spec{Pool: rec.ID, PoolName: rec.Name}, "pool "+rec.Name, func(ctx context.Context, w *job.Work) (any, error) {
		r, err := c.Recompress(ctx, pools.RecompressOptions{Limit: limit, Progress: w.Progress})
		s.d.watch.look()
		return r, err
	})
}

// RebuildCatalog implements api.Service.
func (s *Service) RebuildCatalog(ctx context.Context) (api.Run, error) {
	recs, err := s.poolRecords()
	if err != nil {
		return api.Run{}, err
	}
	if len(recs) == 0 {
		return api.Run{}, holdfast.Errorf(holdfast.NotExist, "rebuild catalog", "no pool is known").
			Advise("take the pools over first: 'holdfast pool import NAME --kind KIND --path DIR'")
	}
	return s.rebuild(ctx, recs, holdfast.PoolID{}, "")
}

// rebuild starts a run that lists the sets of pools in the catalog. Sets that the catalog lists and a pool that can be read does not have are forgotten.
func (s *Service) rebuild(ctx context.Context, recs []catalog.Pool, id holdfast.PoolID, name string) (api.Run, error) {
	return s.work(ctx, job.RunRebuild, job.Spec{Pool: id, PoolName: name}, "catalog", func(ctx context.Context, w *job.Work) (any, error) {
		w.Unit("pools")
		out := api.Rebuilt{Errors: []string{}}
		for i, rec := range recs {
			w.Progress(int64(i), int64(len(recs)))
			w.Phase("reading pool " + rec.Name)
			p, err := s.d.shelf.Pool(ctx, rec.ID)
			if err != nil {
				out.Errors = append(out.Errors, fmt.Sprintf("pool %s: %v", rec.Name, err))
				continue
			}
			held, notes, err := s.bringHolds(ctx, rec)
			if err != nil {
				out.Errors = append(out.Errors, fmt.Sprintf("pool %s: %v", rec.Name, err))
			}
			out.Held += held
			r, err := ingest.Rebuild(ctx, s.d.cat, rec.ID, p)
			if r.Added > 0 {
				out.Notes = append(out.Notes, notes...)
			}
			out.Sets += r.Added + r.Known
			out.Added += r.Added
			out.Gone += r.Gone
			if r.Damaged != nil {
				out.Errors = append(out.Errors, fmt.Sprintf("pool %s: %v", rec.Name, r.Damaged))
			}
			if err != nil {
				return out, err
			}
		}
		w.Progress(int64(len(recs)), int64(len(recs)))
		return out, nil
	})
}
