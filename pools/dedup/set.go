package dedup

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
)

// A set is a committed set that is open for reading. Its lease keeps everything it needs.
type set struct {
	p      *Pool
	rec    *setRecord
	lease  *lease
	closed atomic.Bool
}

// Manifest implements pools.Set.
func (s *set) Manifest() holdfast.Manifest { return s.rec.manifest }

// tree returns the recipe of a disk.
func (s *set) tree(d holdfast.DiskID, op string) (diskTree, error) {
	if s.closed.Load() {
		return diskTree{}, holdfast.Errorf(holdfast.Invalid, op, "the set is closed")
	}
	for i := range s.rec.manifest.Disks {
		if m := &s.rec.manifest.Disks[i]; m.ID == d {
			return diskTree{s.rec.disks[i].root, m.Size}, nil
		}
	}
	return diskTree{}, holdfast.Errorf(holdfast.NotExist, op, "the set has no disk %s", d)
}

// errStop ends a walk whose consumer has had enough.
var errStop = errors.New("stop")

// Map implements pools.Set. Nodes are read when the walk comes to them.
func (s *set) Map(ctx context.Context, d holdfast.DiskID) iter.Seq2[holdfast.Ref, error] {
	return func(yield func(holdfast.Ref, error) bool) {
		t, err := s.tree(d, "map disk")
		if err == nil {
			err = s.p.walk(ctx, t, holdfast.Extents{{Off: 0, Len: t.size}}, func(r holdfast.Ref) error {
				if !yield(r, nil) {
					return errStop
				}
				return nil
			})
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(holdfast.Ref{}, err)
		}
	}
}

// Close implements pools.Set.
func (s *set) Close() error {
	if !s.closed.Swap(true) {
		s.p.endLease(s.lease)
	}
	return nil
}
