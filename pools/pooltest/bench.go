package pooltest

import (
	"math/rand/v2"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// A bench is where one check works: a pool of its own and the harness.
type bench struct {
	*site
	h       Harness
	rng     *rand.Rand
	spoiled bool // the check damaged the pool: it is not expected to be clean at the end
}

func newBench(t T, h Harness) *bench {
	return &bench{site: newSite(t, h.New(t)), h: h, rng: rand.New(rand.NewPCG(1, 2))}
}

// reopen closes the pool and opens it again.
func (b *bench) reopen() {
	b.Helper()
	b.pool = b.h.Reopen(b.T, b.pool)
}

// crash lets the pool's process die, and reports false where the harness cannot.
func (b *bench) crash() bool {
	if b.h.Crash == nil {
		b.Logf("not checked: this harness has no crash")
		return false
	}
	b.pool = b.h.Crash(b.T, b.pool)
	return true
}

// collector returns the pool's collector, or nil.
func (b *bench) collector() pools.Collector {
	c, _ := b.pool.(pools.Collector)
	return c
}

// finish is the end of every check: what should be there is, before and after the pool is closed and opened again.
func (b *bench) finish() {
	b.Helper()
	if !b.spoiled {
		b.checkAll("at the end")
		b.reopen()
		b.checkAll("opened again")
		b.checkClean("opened again")
	}
	if err := b.pool.Close(); err != nil {
		b.Errorf("close pool: %v", err)
	}
}

// disk returns an image of size bytes with n stretches of data in it.
func (b *bench) disk(size int64, n int) *image {
	img := newImage(size)
	for range n {
		e := b.extent(size, 48<<10)
		img.write(e.Off, fill(b.rng, int(e.Len)))
	}
	return img
}

// extent returns a random extent of a disk, of at most most bytes.
func (b *bench) extent(size, most int64) holdfast.Extent {
	off := b.rng.Int64N(size)
	return holdfast.Extent{Off: off, Len: 1 + b.rng.Int64N(min(most, size-off))}
}

// one returns the images of a VM with one disk.
func one(img *image) map[holdfast.DiskID]*image { return map[holdfast.DiskID]*image{diskID(1): img} }

// full backs up a VM with one disk of 256 KiB and returns the point.
func (b *bench) full() *point {
	b.Helper()
	return b.backup(spec{images: one(b.disk(256<<10, 6))})
}

// next backs a VM up incrementally, after n random changes to its first disk.
func (b *bench) next(parent *point, n int) *point {
	b.Helper()
	o := b.change(parent, n)
	return b.backup(o)
}

// change returns what an incremental set after n random changes to every disk is.
func (b *bench) change(parent *point, n int) spec {
	o := spec{parent: parent, images: map[holdfast.DiskID]*image{}, changed: map[holdfast.DiskID]holdfast.Extents{}, vm: parent.m.VM.Name}
	for id, old := range parent.images {
		img := old.clone()
		var exts holdfast.Extents
		for range n {
			e := b.extent(img.size, 9<<10)
			img.write(e.Off, fill(b.rng, int(e.Len)))
			exts = append(exts, e)
		}
		o.images[id], o.changed[id] = img, exts.Normal(img.size)
	}
	return o
}

// begin begins a set and opens its first disk, for checks that write by hand.
func (b *bench) begin(o spec) (pools.Session, *writer, holdfast.Manifest) {
	b.Helper()
	m := b.manifest(o)
	ses, err := b.pool.Begin(background, m)
	must(b, err, "begin")
	w, err := b.open(background, ses, m.Disks[0].ID, b.rng)
	must(b, err, "open disk")
	return ses, w, m
}

// data returns n random bytes that do not compress.
func (b *bench) data(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(b.rng.Uint32())
	}
	return p
}
