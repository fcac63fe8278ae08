package pools

import (
	"context"
	"io"
	"iter"
	"sort"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
)

// ReadOptions steers ReadDisk.
type ReadOptions struct {
	Domain  holdfast.Domain // of the pool: Traits().Domain
	Workers int             // that decode, verify and write at the same time; 0: one per processor
	Meter   *holdfast.Meter // counts read (payload) and done (plaintext, zeros too) bytes; may be nil
}

// ReadDisk writes the data of the wanted extents of a set's disk to w, at the disk's offsets, in no order, with several
// WriteAt at the same time for different bytes. Zeros are not written: w must be zeros there already.
//
// Every byte written has been verified, and after nil none is missing: what came is compared with the map. The error is Corrupt
// where stored bytes are damaged or a pool delivered other than its map says; then w holds a part. want need not be normal, and
// is clipped to the disk.
func ReadDisk(ctx context.Context, set Set, disk holdfast.DiskID, want holdfast.Extents, w io.WriterAt, o ReadOptions) error {
	const op = "read disk"
	m := set.Manifest()
	d := m.Disk(disk)
	if d == nil {
		return holdfast.Errorf(holdfast.NotExist, op, "set %s has no disk %s", m.ID, disk)
	}
	want = want.Normal(d.Size)
	var due, got cover
	data, err := due.addMap(set.Map(ctx, disk), want)
	if err != nil {
		return err
	}
	o.Meter.AddDone(want.Total() - data)
	read := func(ctx context.Context) iter.Seq2[*holdfast.Parcel, error] { return set.Read(ctx, disk, want) }
	err = eachParcel(ctx, openers(o.Workers, o.Domain), read, func(t *opener, p *holdfast.Parcel) error {
		plain, err := t.open(p)
		if err != nil {
			return err
		}
		o.Meter.AddRead(int64(len(p.Payload)))
		for _, pl := range p.Places {
			e := holdfast.Extent{Off: pl.Off, Len: int64(pl.Len)}
			if !inside(want, e) {
				return holdfast.Errorf(holdfast.Corrupt, op, "the pool delivered %d bytes at %d, which nobody wanted", e.Len, e.Off)
			}
			if _, err := w.WriteAt(plain[pl.At:pl.At+pl.Len], pl.Off); err != nil {
				return err
			}
			got.add(e)
			o.Meter.AddDone(e.Len)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if due.sum.Load() != got.sum.Load() {
		return holdfast.Errorf(holdfast.Corrupt, op, "the pool did not deliver what the map of disk %s in set %s says", d.Name, m.ID).
			Advise("verify the pool")
	}
	return nil
}

// inside reports whether e lies in one extent of a normal list.
func inside(list holdfast.Extents, e holdfast.Extent) bool {
	i := sort.Search(len(list), func(i int) bool { return list[i].End() > e.Off })
	return i < len(list) && list[i].Off <= e.Off && e.End() <= list[i].End()
}

// A cover is a fingerprint of a multiset of bytes given as extents: equal for the same bytes in whatever order and however
// cut, and different, but for a chance of 2^-64, if one byte is missing or there twice. It takes no memory, where a list of
// what came would take gigabytes for a large disk. The sum of mix(end)-mix(off) telescopes where extents touch.
type cover struct{ sum atomic.Uint64 }

func (c *cover) add(e holdfast.Extent) { c.sum.Add(mix(uint64(e.End())) - mix(uint64(e.Off))) }

// addMap adds the data of a map that lies in want, and returns how many bytes that is.
func (c *cover) addMap(refs iter.Seq2[holdfast.Ref, error], want holdfast.Extents) (data int64, err error) {
	for r, err := range refs {
		if err != nil {
			return data, err
		}
		for len(want) > 0 && want[0].End() <= r.Off {
			want = want[1:]
		}
		if len(want) == 0 {
			return data, nil
		}
		if r.Digest.IsZero() {
			continue
		}
		for _, e := range want {
			if e.Off >= r.End() {
				break
			}
			off, end := max(e.Off, r.Off), min(e.End(), r.End())
			c.add(holdfast.Extent{Off: off, Len: end - off})
			data += end - off
		}
	}
	return data, nil
}

// mix is a bijection of 64-bit numbers without any pattern that offsets have (the finisher of splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
