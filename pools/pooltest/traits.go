package pooltest

import (
	"context"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

var traitChecks = []Check{
	{"traits are complete", checkTraits},
	{"optional interfaces agree with traits", checkAbilities},
	{"streams are bounded as declared", checkStreams},
	{"an empty pool is empty", checkEmpty},
	{"usage is plausible", checkUsage},
	{"equal chunks are stored once where traits say dedup", checkDedup},
	{"order is by offset where traits say so", checkOrder},
	{"a cancelled context ends every call", checkCancel},
}

func checkTraits(b *bench) {
	t := b.pool.Traits()
	if t.Kind == "" || t.ID.IsZero() || t.Streams < 0 || t.Domain.Key == [32]byte{} {
		b.Errorf("kind %q, id %s, streams %d, or no domain key", t.Kind, t.ID, t.Streams)
	}
	if t.Order != pools.ByOffset && t.Order != pools.ByMedium {
		b.Errorf("order is %q", t.Order)
	}
	if err := t.Chunking.Check(); err != nil {
		b.Errorf("chunking: %v", err)
	}
	if b.pool.Traits() != t {
		b.Errorf("traits changed between two calls")
	}
	b.reopen()
	if b.pool.Traits() != t {
		b.Errorf("traits changed when the pool was opened again: %+v, then %+v", t, b.pool.Traits())
	}
	other := b.h.New(b.T)
	if o := other.Traits(); o.ID == t.ID || o.Domain == t.Domain {
		b.Errorf("two pools share an id or a domain")
	}
	must(b, other.Close(), "close the other pool")
}

func checkAbilities(b *bench) {
	t := b.pool.Traits()
	if _, ok := b.pool.(pools.Stager); ok != t.Offline {
		b.Errorf("Stager: %v, but traits say offline: %v", ok, t.Offline)
	}
	if _, ok := b.pool.(pools.Collector); t.Dedup && !ok {
		b.Errorf("traits say dedup, but there is no Collector: chunks that sets share are freed by nobody else")
	}
	_, verifies := b.pool.(pools.Verifier)
	_, holds := b.pool.(pools.Holder)
	b.Logf("kind %s: collects %v, verifies by itself %v, holds %v", t.Kind, b.collector() != nil, verifies, holds)
}

func checkStreams(b *bench) {
	n := b.pool.Traits().Streams
	bound := n > 0
	if !bound {
		n = 16
	}
	o := spec{images: map[holdfast.DiskID]*image{}}
	for i := range n + 1 {
		o.images[diskID(i)] = newImage(4096)
	}
	m := b.manifest(o)
	ses, err := b.pool.Begin(background, m)
	must(b, err, "begin")
	var open []pools.DiskWriter
	for i := range n {
		w, err := ses.Disk(background, diskID(i))
		must(b, err, "open disk %d of %d allowed", i+1, n)
		open = append(open, w)
	}
	w, err := ses.Disk(background, diskID(n))
	switch {
	case bound:
		wantKind(b, err, "open one disk more than streams", holdfast.Busy)
		must(b, open[0].Close(background), "close disk")
		if w, err = ses.Disk(background, diskID(n)); err == nil {
			open[0] = w
		}
		must(b, err, "open a disk after one was closed")
	case err == nil:
		open = append(open, w)
	default:
		b.Errorf("open disk %d where streams have no bound: %v", n+1, err)
	}
	for _, w := range open {
		must(b, w.Close(background), "close disk")
	}
	must(b, ses.Abort(background), "abort")
}

func checkEmpty(b *bench) {
	u, err := b.pool.Usage(background)
	must(b, err, "usage")
	if u.Sets != 0 || u.Logical != 0 || u.Data != 0 || u.Chunks != 0 || u.Stored < 0 {
		b.Errorf("usage of an empty pool: %+v", u)
	}
	_, err = b.pool.Open(background, holdfast.SetID{ID: namedID("nobody")})
	wantKind(b, err, "open a set that was never there", holdfast.NotExist)
	must(b, b.pool.Delete(background, holdfast.SetID{ID: namedID("nobody")}), "delete a set that was never there")
	b.collect()
	b.checkClean("empty")
}

func checkUsage(b *bench) {
	first := b.full()
	u1, err := b.pool.Usage(background)
	must(b, err, "usage")
	if u1.Sets != 1 || u1.Logical != first.m.Disks[0].Size || u1.Data <= 0 || u1.Stored <= 0 || u1.Chunks <= 0 {
		b.Errorf("usage with one set: %+v", u1)
	}
	if u1.Size < u1.Stored || u1.Free < 0 || u1.Free > u1.Size || u1.Reclaimable < 0 || u1.Reclaimable > u1.Stored {
		b.Errorf("usage with one set: %+v", u1)
	}
	b.next(first, 5)
	u2, err := b.pool.Usage(background)
	must(b, err, "usage")
	if u2.Sets != 2 || u2.Logical != 2*u1.Logical || u2.Stored < u1.Stored {
		b.Errorf("usage with two sets: %+v, after %+v with one", u2, u1)
	}
	b.delete(first)
	u3, err := b.pool.Usage(background)
	must(b, err, "usage")
	if u3.Sets != 1 || u3.Logical != u1.Logical {
		b.Errorf("usage after one of two sets was deleted: %+v", u3)
	}
	b.reopen()
	u4, err := b.pool.Usage(background)
	must(b, err, "usage")
	if u4.Sets != u3.Sets || u4.Logical != u3.Logical || u4.Data <= 0 || u4.Stored <= 0 {
		b.Errorf("usage opened again: %+v, before %+v", u4, u3)
	}
}

func checkDedup(b *bench) {
	img := newImage(512 << 10)
	img.write(0, b.data(400<<10))
	first := b.backup(spec{images: one(img)})
	stored := first.m.Stats.Stored
	if stored < 400<<10 {
		b.Errorf("400 KiB of random data were stored in %d bytes", stored)
	}
	clone := b.backup(spec{images: map[holdfast.DiskID]*image{diskID(7): img}, vm: "vm-2"})
	if dup := clone.m.Stats.Stored; b.pool.Traits().Dedup && dup > stored/10 {
		b.Errorf("the same data took %d bytes for one VM and %d more for its clone", stored, dup)
	}
}

func checkOrder(b *bench) {
	img := newImage(1 << 20)
	img.write(0, b.data(1<<20))
	p := b.backup(spec{images: one(img)})
	if b.pool.Traits().Order != pools.ByOffset {
		return
	}
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	n, back, last := 0, 0, int64(-1)
	for p, err := range set.Read(background, diskID(1), holdfast.Extents{{Off: 0, Len: img.size}}) {
		must(b, err, "read")
		if n++; p.Places[0].Off < last {
			back++
		}
		last = p.Places[0].Off
		p.Release()
	}
	if back > n/4 {
		b.Errorf("%d of %d parcels began before the one before them", back, n)
	}
	must(b, set.Close(), "close set")
}

func checkCancel(b *bench) {
	ctx, cancel := context.WithCancel(background)
	cancel()
	p := b.full()
	cancelled := func(err error, doing string) {
		b.Helper()
		wantKind(b, err, doing+" with a cancelled context", holdfast.Cancelled)
	}
	m := b.manifest(spec{images: one(newImage(4096))})
	_, err := b.pool.Begin(ctx, m)
	cancelled(err, "begin")
	_, err = b.pool.Open(ctx, p.m.ID)
	cancelled(err, "open")
	cancelled(b.pool.Delete(ctx, p.m.ID), "delete")
	for _, e := range b.pool.Sets(ctx) {
		err = e
	}
	cancelled(err, "list sets")
	if c := b.collector(); c != nil {
		_, err = c.Collect(ctx, pools.CollectOptions{})
		cancelled(err, "collect")
	}
	_, err = pools.Verify(ctx, b.pool, pools.VerifyOptions{})
	cancelled(err, "verify")
	cancelWriting(b, ctx, m, cancelled)
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	err = nil
	for _, e := range set.Map(ctx, diskID(1)) {
		err = e
	}
	cancelled(err, "map")
	err = nil
	for q, e := range set.Read(ctx, diskID(1), holdfast.Extents{{Off: 0, Len: p.m.Disks[0].Size}}) {
		if err = e; q != nil {
			q.Release()
		}
	}
	cancelled(err, "read")
	must(b, set.Close(), "close set")
}

// cancelWriting checks the calls of a session. The context comes second because it is the thing under test.
func cancelWriting(b *bench, ctx context.Context, m holdfast.Manifest, cancelled func(error, string)) {
	b.Helper()
	ses, err := b.pool.Begin(background, m)
	must(b, err, "begin after a cancelled begin")
	_, err = ses.Disk(ctx, diskID(1))
	cancelled(err, "open disk")
	w, err := ses.Disk(background, diskID(1))
	must(b, err, "open disk after a cancelled try")
	data := b.data(1000)
	cancelled(w.Put(ctx, b.group(0, data)), "put")
	must(b, w.Put(background, b.group(0, data)), "put")
	d := b.learn(data)
	cancelled(w.Missing(ctx, []holdfast.Digest{d}, make([]bool, 1)), "missing")
	refs := []holdfast.Ref{{Extent: holdfast.Extent{Off: 0, Len: 1000}, Digest: d}}
	cancelled(w.Place(ctx, refs), "place")
	must(b, w.Place(background, refs), "place after a cancelled place")
	must(b, w.Close(background), "close disk")
	_, err = ses.Commit(ctx, m)
	cancelled(err, "commit")
	_, err = b.pool.Open(background, m.ID)
	wantKind(b, err, "open a set whose commit was cancelled", holdfast.NotExist)
	must(b, ses.Abort(background), "abort after a cancelled commit")
}
