package ingest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// faultBase is a world with some history, closed: every campaign starts from a copy of it.
func faultBase(t *testing.T) (*fsys.Mem, *sim) {
	t.Helper()
	ctx := context.Background()
	mem := fsys.NewMem(1)
	s, err := newSim(mem, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []func(*sim, context.Context) error{(*sim).backup, (*sim).backup, (*sim).backup, (*sim).backup, (*sim).backup, (*sim).delete, (*sim).collect,
		(*sim).backup, (*sim).backup, (*sim).delete} {
		if err := op(s, ctx); err != nil {
			t.Fatal(err)
		}
	}
	s.close()
	return mem, s
}

// A faultRun is one operation in which one I/O operation fails.
type faultRun struct {
	op   string
	do   func(*sim, context.Context) error
	rule fsys.Rule
}

func (r faultRun) String() string {
	return fmt.Sprintf("%s, %q number %d fails with %v", r.op, r.rule.Op, r.rule.Nth, r.rule.Err)
}

// run does the operation on a copy of the world and reports whether the fault came up, and whether the operation failed.
func (r faultRun) run(mem *fsys.Mem, base *sim) (hit, failed bool, err error) {
	ctx := context.Background()
	fault := fsys.NewFault(mem.Snapshot())
	model := base.snapshot()
	model.sets = maps.Clone(model.sets)
	s := base.on(fault, model, rand.New(rand.NewPCG(7, 7)))
	s.steady = true
	for i := range s.vms {
		s.vms[i].image = slices.Clone(s.vms[i].image)
	}
	if err := s.open(ctx); err != nil {
		return false, false, err
	}
	defer func() { s.close() }()
	w := fault.Inject(r.rule)
	failed = r.do(s, ctx) != nil
	hit = w.Failed() > 0
	fault.Clear()
	if s.pool != nil {
		if err := s.restoreAcknowledged(ctx); err != nil {
			return hit, failed, fmt.Errorf("in the same process: %w", err)
		}
		if s.cat != nil && s.cat.Failed() == nil && !s.rebuilding {
			if err := s.explained(ctx); err != nil {
				return hit, failed, err
			}
		}
	}
	if err := s.reopen(ctx); err != nil {
		return hit, failed, fmt.Errorf("started again: %w", err)
	}
	if err := s.settle(ctx); err != nil {
		return hit, failed, err
	}
	if err := s.restoreAll(ctx); err != nil {
		return hit, failed, fmt.Errorf("started again: %w", err)
	}
	return hit, failed, s.goOn(ctx, s.rng)
}

// restoreAcknowledged restores what is acknowledged and not being deleted.
func (s *sim) restoreAcknowledged(ctx context.Context) error {
	for id, x := range s.sets {
		if id == s.going {
			continue
		}
		if err := s.restore(ctx, x); err != nil {
			return fmt.Errorf("set %s: %w", id, err)
		}
	}
	return nil
}

// restoreSome is a restore as an operation: an error is an answer, other bytes are not.
func (s *sim) restoreSome(ctx context.Context) error { return s.restoreAll(ctx) }

// Goal: an I/O error or a full medium at any operation of a backup, delete, collect, restore, rebuild or start loses no acknowledged set
// and gives no wrong byte; after a new start everything works. Method: the n-th operation fails, for every n; every third of the reads and
// opens in the normal run, all under HOLDFAST_SOAK.
func TestIOErrorAnywhereLosesNothing(t *testing.T) {
	mem, base := faultBase(t)
	factor, _ := soakFactor()
	writes := []fsys.Op{fsys.OpCreate, fsys.OpWrite, fsys.OpSync, fsys.OpSyncDir, fsys.OpRename, fsys.OpRemove, fsys.OpMkdir, fsys.OpClose, fsys.OpPreallocate, fsys.OpTruncate}
	reads := []fsys.Op{fsys.OpOpen, fsys.OpRead, fsys.OpList, fsys.OpStat, fsys.OpUsage, fsys.OpLock}
	full := []fsys.Op{fsys.OpCreate, fsys.OpWrite, fsys.OpRename, fsys.OpMkdir, fsys.OpPreallocate, fsys.OpSync}
	for _, op := range []struct {
		name string
		do   func(*sim, context.Context) error
	}{{"backup", (*sim).backup}, {"delete", (*sim).delete}, {"collect", (*sim).collect}, {"restore", (*sim).restoreSome},
		{"rebuild", (*sim).rebuild}, {"reindex", (*sim).reindex}, {"start", (*sim).reopen}} {
		points, failures := 0, 0
		campaign := func(kind fsys.Op, cause error, stride int) {
			for n := 1; ; n += stride {
				r := faultRun{op: op.name, do: op.do, rule: fsys.Rule{Op: kind, Nth: n, Err: cause}}
				hit, failed, err := r.run(mem, base)
				if err != nil {
					if t.Errorf("%v: %v", r, err); errors.Is(err, errWrong) {
						t.Fatal("the one thing that must not happen")
					}
				}
				if !hit {
					return
				}
				if points++; failed {
					failures++
				}
			}
		}
		for _, kind := range writes {
			campaign(kind, syscall.EIO, 1)
		}
		for _, kind := range reads {
			stride := 1
			if factor == 1 && (kind == fsys.OpRead || kind == fsys.OpOpen || kind == fsys.OpStat) {
				stride = 3
			}
			campaign(kind, syscall.EIO, stride)
		}
		for _, kind := range full {
			campaign(kind, syscall.ENOSPC, 1)
		}
		if t.Logf("%s: %d operations failed; %d of them failed it", op.name, points, failures); points == 0 {
			t.Errorf("%s did nothing", op.name)
		}
	}
}

// Goal: on a medium without a free byte sets are listed, restored and deleted, and a collect gives back 95 % of what can be given back, with a
// reserve for the catalog only. Method: a quota of nothing; what the ballast gives is allowed again before delete and collect.
func TestFullMediumListsRestoresDeletesAndCollects(t *testing.T) {
	ctx := context.Background()
	mem, base := faultBase(t)
	fault := fsys.NewFault(mem.Snapshot())
	s := base.on(fault, base.snapshot(), rand.New(rand.NewPCG(7, 7)))
	s.steady = true
	if err := s.open(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() { s.close() }()
	fault.SetFree(0)
	if err := s.restoreAll(ctx); err != nil {
		t.Fatalf("restore: %v", err)
	}
	if err := s.backup(ctx); holdfast.KindOf(err) != holdfast.NoSpace {
		t.Fatalf("backup on a full medium: %v", err)
	}
	if err := s.delete(ctx); holdfast.KindOf(err) != holdfast.NoSpace || s.cat.Failed() != nil {
		t.Fatalf("delete before the ballast is given up: %v; catalog: %v", err, s.cat.Failed())
	}
	fault.SetFree(64 << 20) // what a ballast gives
	for len(s.sets) > 1 {
		if err := s.delete(ctx); err != nil {
			t.Fatalf("delete: %v", err)
		}
	}
	before, err := s.pool.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.collect(ctx); err != nil {
		t.Fatalf("collect: %v", err)
	}
	if err := s.collect(ctx); err != nil {
		t.Fatalf("collect again: %v", err)
	}
	after, err := s.pool.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.restoreAll(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("stored %d bytes before, %d after with %d still reclaimable", before.Stored, after.Stored, after.Reclaimable)
	if after.Reclaimable*20 > before.Stored-after.Stored {
		t.Errorf("%d bytes could still be given back, %d were", after.Reclaimable, before.Stored-after.Stored)
	}
}
