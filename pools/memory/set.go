package memory

import (
	"context"
	"iter"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// A set is a record open for reading: while it is, its chunks are live.
type set struct {
	pool *Pool
	rec  *record
}

func (s *set) Manifest() holdfast.Manifest { return s.rec.decoded() }

func (s *set) Close() error {
	s.pool.medium.mu.Lock()
	defer s.pool.medium.mu.Unlock()
	delete(s.pool.readers, s)
	return nil
}

// lock takes the mutex for reading a disk of a set that is open and returns the disk's map.
func (s *set) lock(ctx context.Context, op string, id holdfast.DiskID) ([]holdfast.Ref, error) {
	if err := s.pool.lock(ctx, op); err != nil {
		return nil, err
	}
	refs, ok := s.rec.maps[id]
	var err error
	switch {
	case !s.pool.readers[s]:
		err = holdfast.Errorf(holdfast.Invalid, op, "the set is closed")
	case !ok:
		err = holdfast.Errorf(holdfast.NotExist, op, "the set has no disk %s", id)
	default:
		return refs, nil
	}
	s.pool.unlock()
	return nil, err
}

func (s *set) Map(ctx context.Context, id holdfast.DiskID) iter.Seq2[holdfast.Ref, error] {
	const op = "read map"
	return func(yield func(holdfast.Ref, error) bool) {
		refs, err := s.lock(ctx, op, id)
		if err != nil {
			yield(holdfast.Ref{}, err)
			return
		}
		s.pool.unlock() // maps of records never change
		for _, r := range refs {
			if err := ctx.Err(); err != nil {
				yield(holdfast.Ref{}, holdfast.Errorf(holdfast.KindOf(err), op, "%w", err))
				return
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}

func (s *set) Read(ctx context.Context, id holdfast.DiskID, want holdfast.Extents) iter.Seq2[*holdfast.Parcel, error] {
	const op = "read disk"
	return func(yield func(*holdfast.Parcel, error) bool) {
		refs, err := s.lock(ctx, op, id)
		if err != nil {
			yield(nil, err)
			return
		}
		parcels := s.parcels(refs, want)
		s.pool.unlock()
		for _, p := range parcels {
			if err := ctx.Err(); err != nil {
				yield(nil, holdfast.Errorf(holdfast.KindOf(err), op, "%w", err))
				return
			}
			p.Chunks, p.Payload = slices.Clone(p.Chunks), slices.Clone(p.Payload) // the receiver owns them
			if !yield(p, nil) {
				return
			}
		}
	}
}

// parcels returns one parcel for each group that the wanted part of the map needs, in the order of first use. The caller
// holds the mutex.
func (s *set) parcels(refs []holdfast.Ref, want holdfast.Extents) []*holdfast.Parcel {
	var out []*holdfast.Parcel
	of := map[*group]*holdfast.Parcel{}
	for _, r := range refs {
		for len(want) > 0 && want[0].End() <= r.Off {
			want = want[1:]
		}
		for _, e := range want {
			if e.Off >= r.End() {
				break
			}
			if r.Digest.IsZero() {
				continue
			}
			spot, ok := s.pool.medium.where[r.Digest]
			if !ok {
				panic("memory: a set names a chunk that is not there")
			}
			p := of[spot.g]
			if p == nil {
				p = &holdfast.Parcel{Group: spot.g.Group}
				of[spot.g] = p
				out = append(out, p)
			}
			c := pools.CutRef(r, max(r.Off, e.Off), min(r.End(), e.End()))
			p.Places = append(p.Places, holdfast.Place{Off: c.Off, At: spot.at + c.Skip, Len: uint32(c.Len)})
		}
	}
	return out
}
