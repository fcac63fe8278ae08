package standard

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// A set is a committed set that is open for reading. Its lease keeps everything it needs.
type set struct {
	p      *Pool
	st     *setState
	rec    *setRecord
	closed atomic.Bool
}

// Open implements pools.Pool. A set that needs a path that is not there is Offline.
func (p *Pool) Open(ctx context.Context, id holdfast.SetID) (pools.Set, error) {
	s, err := p.openSet(ctx, id)
	if err != nil {
		return nil, err
	}
	for i := range s.rec.files.Data {
		d := &s.rec.files.Data[i]
		if _, err := p.store(d.Path, d.Folder); err != nil {
			_ = s.Close() // it never fails
			return nil, err
		}
	}
	return s, nil
}

// openSet opens a set whether all it needs is there or not.
func (p *Pool) openSet(ctx context.Context, id holdfast.SetID) (*set, error) {
	const op = "open set"
	if err := p.lock(ctx, op); err != nil {
		return nil, err
	}
	st := p.sets[id]
	if st == nil {
		p.mu.Unlock()
		if err := p.anyLost(op); err != nil {
			return nil, err // it may be there: nobody must take it for gone
		}
		return nil, holdfast.Errorf(holdfast.NotExist, op, "set %s is not in this pool", id)
	}
	p.lease(st)
	p.leases++
	p.mu.Unlock()
	s := &set{p: p, st: st}
	var err error
	if s.rec, err = p.record(ctx, st); err != nil {
		_ = s.Close() // it never fails
		return nil, err
	}
	return s, nil
}

// openMap opens the map of disk number i of a set that the caller has leased, and returns the files of its table.
func (p *Pool) openMap(ctx context.Context, st *setState, rec *setRecord, i int) (*mapReader, []*file, error) {
	s, err := p.store(st.path, st.folder)
	if err != nil {
		return nil, nil, err
	}
	m, err := openMap(ctx, s, mapName(st.folder, i), p.sb.Pool, rec.files.Maps[i])
	if err != nil {
		return nil, nil, err
	}
	files, err := p.resolve(m.table)
	if err == nil && m.end.size != rec.manifest.Disks[i].Size {
		err = mapCorrupt("it is of a disk of %d bytes, not %d", m.end.size, rec.manifest.Disks[i].Size)
	}
	if err != nil {
		m.close()
		return nil, nil, err
	}
	return m, files, nil
}

// resolve finds the files of a table.
func (p *Pool) resolve(t *mapTable) ([]*file, error) {
	files := make([]*file, len(t.keys))
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, k := range t.keys {
		f := p.files[k]
		if f == nil {
			return nil, mapCorrupt("it names %s, which the set record does not name", k.dataName(0))
		}
		if !f.id.CompareAndSwap(0, t.ids[i]) && f.id.Load() != t.ids[i] {
			return nil, mapCorrupt("it means container %016x by %s, another map means %016x", t.ids[i], k.dataName(0), f.id.Load())
		}
		files[i] = f
	}
	return files, nil
}

// Manifest implements pools.Set.
func (s *set) Manifest() holdfast.Manifest { return s.rec.manifest }

// disk returns the number of a disk.
func (s *set) disk(id holdfast.DiskID, op string) (int, error) {
	if s.closed.Load() {
		return 0, holdfast.Errorf(holdfast.Invalid, op, "the set is closed")
	}
	for i := range s.rec.manifest.Disks {
		if s.rec.manifest.Disks[i].ID == id {
			return i, nil
		}
	}
	return 0, holdfast.Errorf(holdfast.NotExist, op, "the set has no disk %s", id)
}

// Map implements pools.Set. Digests are read from the data files' footers; where one is lost, see yieldLost.
func (s *set) Map(ctx context.Context, id holdfast.DiskID) iter.Seq2[holdfast.Ref, error] {
	const op = "map disk"
	return func(yield func(holdfast.Ref, error) bool) {
		i, err := s.disk(id, op)
		if err == nil {
			err = alive(ctx, op)
		}
		var m *mapReader
		var files []*file
		if err == nil {
			m, files, err = s.p.openMap(ctx, s.st, s.rec, i)
		}
		if err != nil {
			yield(holdfast.Ref{}, err)
			return
		}
		defer m.close()
		for {
			r, ok, err := m.read()
			if err == nil && !ok {
				return
			}
			if err == nil {
				ok, err = s.yieldRun(ctx, files, &r, yield)
			}
			if err != nil {
				yield(holdfast.Ref{}, err)
				return
			}
			if !ok {
				return
			}
		}
	}
}

// yieldRun yields the refs of a run, and returns false when the consumer has had enough.
func (s *set) yieldRun(ctx context.Context, files []*file, r *run, yield func(holdfast.Ref, error) bool) (bool, error) {
	if err := alive(ctx, "map disk"); err != nil {
		return false, err
	}
	if r.zeros() {
		return yield(holdfast.Ref{Extent: holdfast.Extent{Off: r.off, Len: r.len}}, nil), nil
	}
	d, err := s.p.openData(ctx, files[r.file])
	if holdfast.KindOf(err) == holdfast.Corrupt && err != nil {
		return yieldLost(files[r.file], r, yield), nil
	}
	if err != nil {
		return false, err
	}
	defer s.p.data.release(d)
	more := true
	err = d.each(r, func(ref holdfast.Ref, _ spot, _ uint32) error {
		if more = yield(ref, nil); !more {
			return errEnough
		}
		return nil
	})
	if !more {
		err = nil
	}
	return more, err
}

// yieldLost yields the refs of a run whose data file is damaged or gone. What the chunks were called nobody knows any more, so
// they get digests that no chunk has: a read of these bytes fails, and the rest of the disk stays as readable as it is.
func yieldLost(f *file, r *run, yield func(holdfast.Ref, error) bool) bool {
	for off := r.off; off < r.end(); {
		n := min(r.end()-off, holdfast.MaxChunk)
		d := sum(fmt.Appendf(nil, "lost %s %d", f.key.dataName(0), off))
		if !yield(holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: n}, Digest: d}, nil) {
			return false
		}
		off += n
	}
	return true
}

// Close implements pools.Set.
func (s *set) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.p.mu.Lock()
	s.p.leases--
	s.p.mu.Unlock()
	s.p.unlease(context.Background(), s.st)
	return nil
}
