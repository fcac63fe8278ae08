package pooltest

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
)

// checkPoint opens a set and compares all of it with what was written.
func (s *site) checkPoint(p *point, when string) {
	s.Helper()
	set, err := s.pool.Open(background, p.m.ID)
	if err != nil {
		s.Errorf("%s: open set %s: %v", when, p.m.ID, err)
		return
	}
	s.checkSet(set, p, when)
	if err := set.Close(); err != nil {
		s.Errorf("%s: close set %s: %v", when, p.m.ID, err)
	}
}

// checkSet compares an open set with what was written.
func (s *site) checkSet(set pools.Set, p *point, when string) {
	s.Helper()
	s.sameManifest(p.m, set.Manifest(), when+": the set")
	for _, d := range p.m.Disks {
		img := p.images[d.ID]
		if img == nil {
			img = newImage(d.Size)
		}
		data := s.checkMap(set, d, img, when)
		got := s.read(set, d, holdfast.Extents{{Off: 0, Len: d.Size}}, data, when)
		if at := img.differ(got); at >= 0 {
			s.Errorf("%s: set %s disk %s (%d bytes): restored bytes differ from offset %d on: want % x, got % x", when, p.m.ID, d.Name, d.Size,
				at, clipped(img, at), clipped(got, at))
		}
	}
}

// clipped returns a few bytes of an image for a message.
func clipped(m *image, at int64) []byte {
	return m.read(holdfast.Extent{Off: at, Len: max(0, min(16, m.size-at))})
}

// checkMap checks a disk's map against the image and returns the extents that the map says are data.
func (s *site) checkMap(set pools.Set, d holdfast.Disk, img *image, when string) holdfast.Extents {
	s.Helper()
	var data holdfast.Extents
	end := int64(0)
	for r, err := range set.Map(background, d.ID) {
		if err != nil {
			s.Errorf("%s: map of disk %s: %v", when, d.Name, err)
			return data
		}
		if err := pools.CheckRefs([]holdfast.Ref{r}, end, d.Size); err != nil {
			s.Errorf("%s: map of disk %s: %v", when, d.Name, err)
			return data
		}
		end = r.End()
		if r.Digest.IsZero() {
			continue
		}
		data = append(data, r.Extent)
		p := s.plain(r.Digest)
		switch {
		case p == nil:
			s.Errorf("%s: map of disk %s names chunk %s, which nobody made", when, d.Name, r.Digest)
		case int64(r.Skip)+r.Len > int64(len(p)):
			s.Errorf("%s: map of disk %s names bytes %d to %d of a chunk of %d", when, d.Name, r.Skip, int64(r.Skip)+r.Len, len(p))
		case !bytes.Equal(p[r.Skip:int64(r.Skip)+r.Len], img.read(r.Extent)):
			s.Errorf("%s: map of disk %s: at %d (%d bytes) it names a chunk with other bytes", when, d.Name, r.Off, r.Len)
		}
	}
	data = data.Normal(d.Size)
	if holes := img.data().Subtract(data); len(holes) > 0 {
		for _, h := range holes { // pages count as data as a whole, so a hole may well be zeros
			if !isZero(img.read(h)) {
				s.Errorf("%s: map of disk %s: bytes at %d (%d) are not in it", when, d.Name, h.Off, h.Len)
				break
			}
		}
	}
	return data
}

// read reads extents and returns them as an image. It reports bytes that were delivered twice, not wanted or not delivered:
// data is what the map says there is.
func (s *site) read(set pools.Set, d holdfast.Disk, want, data holdfast.Extents, when string) *image {
	s.Helper()
	img := newImage(d.Size)
	got, err := s.tryRead(background, set, d.ID, want, img)
	if err != nil {
		s.Errorf("%s: read disk %s: %v", when, d.Name, err)
		return img
	}
	slices.SortFunc(got, func(a, b holdfast.Extent) int { return cmp.Compare(a.Off, b.Off) })
	for i := 1; i < len(got); i++ {
		if got[i].Off < got[i-1].End() {
			s.Errorf("%s: read disk %s: bytes at %d were delivered twice", when, d.Name, got[i].Off)
			return img
		}
	}
	due := want.Normal(d.Size).Intersect(data)
	if more := got.Normal(d.Size).Subtract(due); len(more) > 0 {
		s.Errorf("%s: read disk %s: %d bytes at %d were delivered, but are not both wanted and data", when, d.Name, more[0].Len, more[0].Off)
	}
	if less := due.Subtract(got.Normal(d.Size)); len(less) > 0 {
		s.Errorf("%s: read disk %s: %d bytes at %d were not delivered", when, d.Name, less[0].Len, less[0].Off)
	}
	return img
}

// tryRead reads extents into an image and lists what came, in its order. The error is the pool's, or Corrupt where what came
// is not what its digests say.
func (s *site) tryRead(ctx context.Context, set pools.Set, id holdfast.DiskID, want holdfast.Extents, img *image) (holdfast.Extents, error) {
	var got holdfast.Extents
	dec, h := chunk.NewDecoder(), s.pool.Traits().Domain.Hasher()
	for p, err := range set.Read(ctx, id, want) {
		if err != nil {
			return got, err
		}
		exts, err := openParcel(dec, h, p, img)
		p.Release()
		got = append(got, exts...)
		if err != nil {
			return got, err
		}
	}
	return got, nil
}

// openParcel decodes, verifies and places one parcel.
func openParcel(dec *chunk.Decoder, h *holdfast.Hasher, p *holdfast.Parcel, img *image) (holdfast.Extents, error) {
	plain, err := dec.Decode(&p.Group, nil)
	if err != nil {
		return nil, err
	}
	good := make([]bool, len(p.Chunks)) // hashed and right
	var got holdfast.Extents
	for _, pl := range p.Places {
		end := uint64(pl.At) + uint64(pl.Len)
		if pl.Len == 0 || end > uint64(len(plain)) {
			return got, holdfast.Errorf(holdfast.Invalid, "open parcel", "%d bytes at %d of a group of %d", pl.Len, pl.At, len(plain))
		}
		at := uint64(0)
		for i, c := range p.Chunks {
			from, to := at, at+uint64(c.Len)
			at = to
			if to <= uint64(pl.At) || from >= end || good[i] {
				continue
			}
			if h.Sum(plain[from:to]) != c.Digest {
				return got, holdfast.Errorf(holdfast.Corrupt, "open parcel", "chunk %s is not what it was", c.Digest)
			}
			good[i] = true
		}
		if _, err := img.WriteAt(plain[pl.At:end], pl.Off); err != nil {
			return got, err
		}
		got = append(got, holdfast.Extent{Off: pl.Off, Len: int64(pl.Len)})
	}
	return got, nil
}
