package pooltest

import (
	"context"
	"math/rand/v2"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// A writer writes one disk as an agent and ingest would: it asks what is missing, puts that in groups of all kinds, and places.
type writer struct {
	pools.DiskWriter
	s   *site
	rng *rand.Rand
}

func (s *site) open(ctx context.Context, ses pools.Session, id holdfast.DiskID, rng *rand.Rand) (*writer, error) {
	w, err := ses.Disk(ctx, id)
	if err != nil {
		return nil, err
	}
	return &writer{w, s, rng}, nil
}

// put puts chunks as one group and then spoils the caller's memory, which the pool may not have kept.
func (w *writer) put(ctx context.Context, level int, chunks ...[]byte) error {
	g := w.s.group(level, chunks...)
	err := w.DiskWriter.Put(ctx, g)
	for i := range g.Payload {
		g.Payload[i] = 0xdb
	}
	clear(g.Chunks)
	return err
}

// place places one chunk at an offset, as a whole.
func (w *writer) place(ctx context.Context, off int64, p []byte) error {
	return w.Place(ctx, []holdfast.Ref{{Extent: holdfast.Extent{Off: off, Len: int64(len(p))}, Digest: w.s.learn(p)}})
}

// placeZeros places explicit zeros.
func (w *writer) placeZeros(ctx context.Context, e holdfast.Extent) error {
	return w.Place(ctx, []holdfast.Ref{{Extent: e}})
}

// extents writes what the image holds in the extents. The refs of reuse, ascending and part of what, are placed as they are; the
// chunks they name must be known to the pool.
func (w *writer) extents(ctx context.Context, img *image, what holdfast.Extents, reuse []holdfast.Ref) error {
	for _, e := range what {
		for at := e.Off; at < e.End(); {
			for len(reuse) > 0 && reuse[0].Off < at {
				reuse = reuse[1:]
			}
			stop := e.End()
			if len(reuse) > 0 {
				stop = min(stop, reuse[0].Off)
			}
			if stop == at {
				if err := w.refs(ctx, reuse[:1]); err != nil {
					return err
				}
				at = reuse[0].End()
				continue
			}
			stop = min(stop, at+64<<10) // a bounded step, as a reader has
			if err := w.bytes(ctx, at, img.read(holdfast.Extent{Off: at, Len: stop - at})); err != nil {
				return err
			}
			at = stop
		}
	}
	return nil
}

// refs places refs to chunks that the pool should know.
func (w *writer) refs(ctx context.Context, refs []holdfast.Ref) error {
	for _, r := range refs {
		missing := []bool{true}
		if err := w.Missing(ctx, []holdfast.Digest{r.Digest}, missing); err != nil {
			return err
		}
		if missing[0] {
			// A pool may not know the chunks of a committed set by their digest. Then they are put again.
			if err := w.put(ctx, w.rng.IntN(3), w.s.plain(r.Digest)); err != nil {
				return err
			}
		}
	}
	return w.Place(ctx, refs)
}

// bytes writes a stretch of the disk.
func (w *writer) bytes(ctx context.Context, off int64, p []byte) error {
	chunks := cut(p)
	refs := make([]holdfast.Ref, 0, len(chunks))
	var ask []holdfast.Digest
	var data [][]byte
	for _, c := range chunks {
		r := holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: int64(len(c))}}
		off += r.Len
		if !isZero(c) {
			r.Digest = w.s.learn(c)
			ask, data = append(ask, r.Digest), append(data, c)
		}
		if n := len(refs); n > 0 && r.Digest.IsZero() && refs[n-1].Digest.IsZero() {
			refs[n-1].Len += r.Len // one ref for a run of zeros, as agents place it
			continue
		}
		refs = append(refs, r)
	}
	missing := make([]bool, len(ask))
	if err := w.Missing(ctx, ask, missing); err != nil {
		return err
	}
	asked := map[holdfast.Digest]bool{}
	var group [][]byte
	for i, d := range ask {
		if !missing[i] || asked[d] {
			continue
		}
		asked[d] = true
		if group = append(group, data[i]); len(group) >= 1+w.rng.IntN(12) {
			if err := w.put(ctx, w.rng.IntN(3), group...); err != nil {
				return err
			}
			group = nil
		}
	}
	if len(group) > 0 {
		if err := w.put(ctx, w.rng.IntN(3), group...); err != nil {
			return err
		}
	}
	for len(refs) > 0 { // in several calls, because order counts across them
		n := 1 + w.rng.IntN(len(refs))
		if err := w.Place(ctx, refs[:n]); err != nil {
			return err
		}
		refs = refs[n:]
	}
	return nil
}
