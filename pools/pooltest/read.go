package pooltest

import (
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
)

var readChecks = []Check{
	{"read delivers exactly what is wanted, once", checkWants},
	{"read of nothing delivers nothing", checkWantNothing},
	{"read can be stopped early", checkStopEarly},
	{"parcels may be released late and from anywhere", checkRelease},
	{"sets are read in parallel", checkParallelReads},
	{"map can be stopped early and read again", checkMapAgain},
	{"the listing is exactly the committed sets", checkListing},
	{"a set can be open twice", checkOpenTwice},
	{"pools.ReadDisk restores", checkReadDisk},
}

func checkWants(b *bench) {
	p := b.full()
	for range 3 {
		p = b.next(p, 4)
	}
	p = b.shift(p)
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	d := p.m.Disks[0]
	img := p.images[d.ID]
	data := b.checkMap(set, d, img, "wants")
	for i := range 60 {
		var want holdfast.Extents
		for range 1 + b.rng.IntN(8) {
			want = append(want, b.extent(d.Size, []int64{1, 600, 5000, 100_000}[i%4]))
		}
		want = want.Normal(d.Size)
		got := b.read(set, d, want, data, "wants")
		for _, e := range want {
			if string(got.read(e)) != string(img.read(e)) {
				b.Fatalf("restored bytes differ in the %d bytes at %d; wanted were %v", e.Len, e.Off, want)
			}
		}
	}
	must(b, set.Close(), "close set")
}

func checkWantNothing(b *bench) {
	img := newImage(1 << 20)
	img.write(512<<10, b.data(page))
	p := b.backup(spec{images: one(img)})
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	for _, want := range []holdfast.Extents{nil, {}, {{Off: 0, Len: 512 << 10}}, {{Off: 516 << 10, Len: 1000}}} {
		got, err := b.tryRead(background, set, diskID(1), want, newImage(img.size))
		must(b, err, "read %v", want)
		if len(got) > 0 {
			b.Errorf("read of %v, where there is no data, delivered %v", want, got)
		}
	}
	must(b, set.Close(), "close set")
}

func checkStopEarly(b *bench) {
	p := b.full()
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	all := holdfast.Extents{{Off: 0, Len: p.m.Disks[0].Size}}
	for range 50 { // more often than there is room for parcels that are out
		for q, err := range set.Read(background, diskID(1), all) {
			must(b, err, "read")
			q.Release()
			break
		}
	}
	var kept *holdfast.Parcel
	for q, err := range set.Read(background, diskID(1), all) {
		must(b, err, "read")
		kept = q
		break
	}
	b.checkSet(set, p, "after reads that were stopped")
	if _, err := openParcel(chunk.NewDecoder(), b.pool.Traits().Domain.Hasher(), kept, newImage(p.m.Disks[0].Size)); err != nil {
		b.Errorf("a parcel that was not released changed: %v", err)
	}
	kept.Release()
	kept.Release() // of no effect
	must(b, set.Close(), "close set")
}

func checkRelease(b *bench) {
	img := newImage(1 << 20)
	img.write(0, b.data(1<<20))
	p := b.backup(spec{images: one(img)})
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	// Two parcels are always out, and are opened and released in the wrong order by another goroutine.
	pairs, done := make(chan [2]*holdfast.Parcel), make(chan error, 1)
	got := newImage(img.size)
	go func() {
		dec, h := chunk.NewDecoder(), b.pool.Traits().Domain.Hasher()
		var first error
		for pair := range pairs {
			for _, q := range []*holdfast.Parcel{pair[1], pair[0]} {
				if q == nil {
					continue
				}
				if _, err := openParcel(dec, h, q, got); err != nil && first == nil {
					first = err
				}
				q.Release()
			}
		}
		done <- first
	}()
	var held *holdfast.Parcel
	for q, err := range set.Read(background, diskID(1), holdfast.Extents{{Off: 0, Len: img.size}}) {
		if err != nil {
			b.Errorf("read: %v", err)
			break
		}
		if held == nil {
			held = q
			continue
		}
		pairs <- [2]*holdfast.Parcel{held, q}
		held = nil
	}
	pairs <- [2]*holdfast.Parcel{held}
	close(pairs)
	must(b, <-done, "open parcels that were out together")
	if at := img.differ(got); at >= 0 {
		b.Errorf("restored bytes differ from offset %d on", at)
	}
	must(b, set.Close(), "close set")
}

func checkParallelReads(b *bench) {
	p := b.full()
	q := b.next(p, 8)
	one, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	two, err := b.pool.Open(background, q.m.ID)
	must(b, err, "open")
	var wg sync.WaitGroup
	for range 3 { // readers of different sets, and of one set
		wg.Go(func() { b.checkSet(one, p, "in parallel") })
		wg.Go(func() { b.checkSet(two, q, "in parallel") })
	}
	wg.Wait()
	must(b, one.Close(), "close set")
	must(b, two.Close(), "close set")
}

func checkMapAgain(b *bench) {
	p := b.full()
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	for r, err := range set.Map(background, diskID(1)) {
		must(b, err, "map")
		if r.Len <= 0 {
			b.Errorf("an empty ref: %+v", r)
		}
		break
	}
	b.checkSet(set, p, "after a map that was stopped")
	must(b, set.Close(), "close set")
}

func checkListing(b *bench) {
	var all []*point
	for range 6 {
		all = append(all, b.backup(spec{images: one(b.disk(32<<10, 1))}))
		b.checkAll("after a backup")
	}
	n := 0
	for range b.pool.Sets(background) {
		if n++; n == 2 {
			break
		}
	}
	b.delete(all[2])
	b.delete(all[5])
	b.checkAll("after two were deleted")
	b.reopen()
	b.checkAll("opened again")
}

func checkOpenTwice(b *bench) {
	p := b.full()
	one, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	two, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open again")
	must(b, one.Close(), "close set")
	b.checkSet(two, p, "after another reader was closed")
	must(b, two.Close(), "close set")
}

func checkReadDisk(b *bench) {
	p := b.next(b.full(), 6)
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	d := p.m.Disks[0]
	var meter holdfast.Meter
	got := &lockedImage{image: newImage(d.Size)}
	o := pools.ReadOptions{Domain: b.pool.Traits().Domain, Workers: 3, Meter: &meter}
	must(b, pools.ReadDisk(background, set, d.ID, holdfast.Extents{{Off: 0, Len: d.Size}}, got, o), "ReadDisk")
	if at := p.images[d.ID].differ(got.image); at >= 0 {
		b.Errorf("ReadDisk: restored bytes differ from offset %d on", at)
	}
	if s := meter.Sample(); s.Done != d.Size || s.Read <= 0 {
		b.Errorf("ReadDisk: the meter says %+v for a disk of %d bytes", s, d.Size)
	}
	must(b, set.Close(), "close set")
}

// lockedImage lets several goroutines write one image.
type lockedImage struct {
	mu sync.Mutex
	*image
}

func (l *lockedImage) WriteAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.image.WriteAt(p, off)
}
