package ingest

import (
	"context"
	"errors"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/pools"
)

// A RecoverReport says what Recover found.
type RecoverReport struct {
	Adopted int // sets that the pool had committed and the catalog did not list
	Dropped int // intents of sets that never were
	Deleted int // deletions that were finished
	Waiting int // intents and tombstones whose pool is not there or could not answer; they stay for the next time
}

// Recover sorts out what a crash left between catalog and pools. It is called with open pools before any session or deletion of
// theirs, and may be called again for pools that come later. The error joins what pools and catalog said; what could be done was done.
func Recover(ctx context.Context, cat *catalog.Catalog, open map[holdfast.PoolID]pools.Pool) (RecoverReport, error) {
	var r RecoverReport
	var intents []catalog.Intent
	var stones []catalog.Tombstone
	err := cat.View(func(tx *catalog.Tx) error {
		for i, err := range tx.Intents() {
			if err != nil {
				return err
			}
			intents = append(intents, i)
		}
		for t, err := range tx.Tombstones() {
			if err != nil {
				return err
			}
			stones = append(stones, t)
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	var errs []error
	for _, i := range intents {
		if err := r.intent(ctx, cat, open[i.Pool], i); err != nil {
			r.Waiting++
			errs = append(errs, err)
		}
	}
	for _, t := range stones {
		pool := open[t.Pool]
		if pool == nil {
			r.Waiting++
			continue
		}
		if err := bury(ctx, cat, pool, t.Set, grave{state: catalog.SetCommitted}); err != nil {
			r.Waiting++
			errs = append(errs, err)
			continue
		}
		r.Deleted++
	}
	return r, errors.Join(errs...)
}

// intent asks the pool of an intent whether the set is there.
func (r *RecoverReport) intent(ctx context.Context, cat *catalog.Catalog, pool pools.Pool, i catalog.Intent) error {
	if pool == nil {
		r.Waiting++
		return nil
	}
	set, err := pool.Open(ctx, i.Set)
	if errors.Is(err, holdfast.NotExist) {
		if err := cat.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteIntent(i.Set) }); err != nil {
			return err
		}
		r.Dropped++
		return nil
	}
	if err != nil {
		return err
	}
	m := set.Manifest()
	if err := set.Close(); err != nil {
		return err
	}
	err = cat.Update(ctx, func(tx *catalog.Tx) error { return tx.AddSet(catalog.NewSet(i.Pool, m), i.Tokens) })
	if err != nil {
		return err
	}
	r.Adopted++
	return nil
}

// DeleteSet makes a set invisible in catalog and pool. After a crash Recover finishes it. Deleting a set that is being deleted is
// no error. NotExist if the catalog has no such set, Invalid if it is of another pool. A set that the pool keeps by a lock (Immutable) stays what it was.
func DeleteSet(ctx context.Context, cat *catalog.Catalog, poolID holdfast.PoolID, pool pools.Pool, id holdfast.SetID) error {
	g := grave{state: catalog.SetCommitted}
	err := cat.Update(ctx, func(tx *catalog.Tx) error {
		s, err := tx.Set(id)
		if err != nil {
			return err
		}
		if s.Pool != poolID {
			return holdfast.Errorf(holdfast.Invalid, "delete set", "set %s is in pool %s, not in %s", id, s.Pool, poolID)
		}
		if s.State != catalog.SetDeleting {
			g.state = s.State
		}
		t, err := tx.Tracking(s.Manifest.VM.ID, poolID)
		if err == nil && t.Set == id {
			g.tracking = &t
		}
		if err != nil && !errors.Is(err, holdfast.NotExist) {
			return err
		}
		return tx.PutTombstone(id)
	})
	if err != nil {
		return err
	}
	return bury(ctx, cat, pool, id, g)
}

// A grave is what a set was before it got its tombstone.
type grave struct {
	state    catalog.SetState
	tracking *catalog.Tracking // that stood on it; nil if none
}

// bury finishes the deletion of a set that has a tombstone. One that the pool refuses to delete is none that is being deleted: its tombstone is lifted,
// so that it can be restored as before.
func bury(ctx context.Context, cat *catalog.Catalog, pool pools.Pool, id holdfast.SetID, was grave) error {
	err := pool.Delete(ctx, id)
	if errors.Is(err, holdfast.Immutable) {
		if e := cat.Update(ctx, func(tx *catalog.Tx) error { return tx.LiftTombstone(id, was.state, was.tracking) }); e != nil {
			return errors.Join(err, e)
		}
		return err
	}
	if err != nil {
		return err
	}
	return cat.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteSet(id) })
}

// A RebuildReport says what Rebuild found.
type RebuildReport struct {
	Added   int
	Known   int   // were listed already and are left as they are
	Gone    int   // were listed, are not in the pool, and are listed no more
	Damaged error // joins the errors of sets that the pool could not read; nil if there are none
}

// rebuildBatch is how many sets are added, or removed, in one transaction.
const rebuildBatch = 64

// Rebuild lists in the catalog every set that the pool has, and forgets those that it lists and the pool does not have: the pool is asked for
// each of them by id, so that a listing that is late, or a set that cannot be read, loses nothing. The error is the catalog's.
func Rebuild(ctx context.Context, cat *catalog.Catalog, poolID holdfast.PoolID, pool pools.Pool) (RebuildReport, error) {
	var r RebuildReport
	listed, err := listedIn(cat, poolID) // before the pool is: a set committed meanwhile must not look gone
	if err != nil {
		return r, err
	}
	var batch []catalog.Set
	for m, err := range pool.Sets(ctx) {
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
		if err != nil {
			r.Damaged = errors.Join(r.Damaged, err)
			continue
		}
		delete(listed, m.ID)
		if batch = append(batch, catalog.NewSet(poolID, m)); len(batch) == rebuildBatch {
			if err := r.add(ctx, cat, batch); err != nil {
				return r, err
			}
			batch = batch[:0]
		}
	}
	if err := r.add(ctx, cat, batch); err != nil {
		return r, err
	}
	return r, r.forget(ctx, cat, pool, listed)
}

// listedIn returns the sets of a pool that the catalog lists and that nobody is deleting.
func listedIn(cat *catalog.Catalog, poolID holdfast.PoolID) (map[holdfast.SetID]bool, error) {
	listed := map[holdfast.SetID]bool{}
	err := cat.View(func(tx *catalog.Tx) error {
		for s, err := range tx.Sets(catalog.SetFilter{Pool: poolID}) {
			if err != nil {
				return err
			}
			if s.State != catalog.SetDeleting {
				listed[s.Manifest.ID] = true
			}
		}
		return nil
	})
	return listed, err
}

// add lists sets that are not listed.
func (r *RebuildReport) add(ctx context.Context, cat *catalog.Catalog, batch []catalog.Set) error {
	return cat.Update(ctx, func(tx *catalog.Tx) error {
		for _, s := range batch {
			_, err := tx.Set(s.Manifest.ID)
			switch {
			case err == nil:
				r.Known++
			case !errors.Is(err, holdfast.NotExist):
				return err
			default:
				if err := tx.AddSet(s, nil); err != nil {
					return err
				}
				r.Added++
			}
		}
		return nil
	})
}

// forget takes sets out of the catalog that the pool says it does not have.
func (r *RebuildReport) forget(ctx context.Context, cat *catalog.Catalog, pool pools.Pool, missing map[holdfast.SetID]bool) error {
	var gone []holdfast.SetID
	for id := range missing {
		set, err := pool.Open(ctx, id)
		switch {
		case err == nil:
			if err := set.Close(); err != nil {
				return err
			}
			r.Known++ // the listing was late
		case errors.Is(err, holdfast.NotExist):
			gone = append(gone, id)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		default:
			r.Damaged = errors.Join(r.Damaged, err)
		}
	}
	for part := range slices.Chunk(gone, rebuildBatch) {
		err := cat.Update(ctx, func(tx *catalog.Tx) error {
			for _, id := range part {
				if err := tx.DeleteSet(id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		r.Gone += len(part)
	}
	return nil
}
