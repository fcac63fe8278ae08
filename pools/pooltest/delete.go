package pooltest

import (
	"context"
	"math/rand/v2"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

var deleteChecks = []Check{
	{"sets can be deleted in any order", checkDeleteOrder},
	{"delete is idempotent and survives a crash", checkDeleteTwice},
	{"a set deleted while open stays readable", checkDeleteOpen},
	{"collect gives space back", checkCollectFrees},
	{"a dry collect changes nothing", checkCollectDry},
	{"a chunk answered as present survives a collect", checkPins},
	{"chunks of an aborted session that another one counts on stay", checkPinsOfAborted},
	{"chunks put and not yet placed survive a collect", checkCollectUnplaced},
	{"collect runs beside backups and reads", checkCollectBeside},
	{"chunks come back after they were collected", checkComeBack},
}

func checkDeleteOrder(b *bench) {
	p := b.full()
	var chain []*point
	for range 9 {
		chain = append(chain, p)
		p = b.next(p, 3)
	}
	b.rng.Shuffle(len(chain), func(i, j int) { chain[i], chain[j] = chain[j], chain[i] })
	for i, q := range chain {
		b.delete(q)
		if i%2 == 0 {
			b.collect()
		}
		b.checkAll("after a deletion")
	}
	b.next(p, 3)
}

func checkDeleteTwice(b *bench) {
	p := b.full()
	q := b.next(p, 3)
	b.delete(p)
	must(b, b.pool.Delete(background, p.m.ID), "delete again")
	_, err := b.pool.Open(background, p.m.ID)
	wantKind(b, err, "open a deleted set", holdfast.NotExist)
	if b.crash() {
		b.checkAll("after a crash")
		must(b, b.pool.Delete(background, p.m.ID), "delete again after a crash")
	}
	b.delete(q)
	b.checkAll("after everything was deleted")
	b.reopen()
	must(b, b.pool.Delete(background, q.m.ID), "delete again")
}

func checkDeleteOpen(b *bench) {
	p := b.full()
	q := b.next(p, 3)
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	started := false
	all := holdfast.Extents{{Off: 0, Len: p.m.Disks[0].Size}}
	for parcel, err := range set.Read(background, diskID(1), all) {
		must(b, err, "read")
		if !started { // in the middle of a read
			started = true
			b.delete(p)
			b.delete(q)
			b.collect()
		}
		parcel.Release()
	}
	b.checkSet(set, p, "deleted while open")
	must(b, set.Close(), "close set")
	b.collect()
	b.checkAll("after the last reader was closed")
}

func checkCollectFrees(b *bench) {
	c := b.collector()
	if c == nil {
		return // that there must be one is another check
	}
	empty, err := b.pool.Usage(background)
	must(b, err, "usage")
	var all []*point
	for range 4 {
		img := newImage(1 << 20)
		img.write(0, b.data(1<<20))
		all = append(all, b.backup(spec{images: one(img)}))
	}
	b.reopen()
	c = b.collector()
	before, err := b.pool.Usage(background)
	must(b, err, "usage")
	r, err := c.Collect(background, pools.CollectOptions{})
	must(b, err, "collect where all is live")
	if u, err := b.pool.Usage(background); err != nil || u.Data < before.Data {
		b.Errorf("a collect where all is live left %+v of %+v (report %+v, error %v)", u, before, r, err)
	}
	for _, p := range all[1:] {
		b.delete(p)
	}
	var freed int64
	for range 3 { // condemn first, free later: a pool may take more than one
		r, err := c.Collect(background, pools.CollectOptions{})
		must(b, err, "collect")
		freed += r.Freed
	}
	after, err := b.pool.Usage(background)
	must(b, err, "usage")
	if got := before.Stored - after.Stored; got < 2<<20 {
		b.Errorf("3 of 4 MiB were deleted, and collecting gave %d bytes back (said %d): %+v, then %+v", got, freed, before, after)
	}
	b.delete(all[0])
	for range 3 {
		b.collect()
	}
	last, err := b.pool.Usage(background)
	must(b, err, "usage")
	if last.Stored-empty.Stored > 1<<20 || last.Data != 0 {
		b.Errorf("everything was deleted and collected, and what is left is %+v", last)
	}
}

func checkCollectDry(b *bench) {
	c := b.collector()
	if c == nil {
		return
	}
	p := b.full()
	q := b.next(p, 5)
	b.delete(p)
	before, err := b.pool.Usage(background)
	must(b, err, "usage")
	calls := 0
	_, err = c.Collect(background, pools.CollectOptions{DryRun: true, Progress: func(done, all int64) {
		if calls++; done > all || done < 0 {
			b.Errorf("progress: %d of %d", done, all)
		}
	}})
	must(b, err, "collect dry")
	after, err := b.pool.Usage(background)
	must(b, err, "usage")
	if before.Stored != after.Stored || before.Data != after.Data {
		b.Errorf("a dry collect changed the usage from %+v to %+v", before, after)
	}
	b.next(q, 1)
}

func checkPins(b *bench) {
	data := b.data(20_000)
	img := newImage(64 << 10)
	img.write(0, data)
	old := b.backup(spec{images: one(img)})
	parts := cut(data)
	ask := make([]holdfast.Digest, len(parts))
	for i, p := range parts {
		ask[i] = b.learn(p)
	}
	o := spec{images: one(img)}
	ses, w, m := b.begin(o)
	missing := make([]bool, len(ask))
	must(b, w.Missing(background, ask, missing), "missing")
	b.delete(old)
	b.collect()
	b.collect()
	off := int64(0)
	for i, p := range parts {
		if missing[i] { // a pool without dedup
			must(b, w.put(background, 0, p), "put")
		}
		must(b, w.place(background, off, p), "place a chunk that was answered as present before a collect")
		off += int64(len(p))
	}
	b.collect()
	must(b, w.Close(background), "close disk")
	b.collect()
	_, err := b.commit(background, ses, m, o)
	must(b, err, "commit")
	b.collect()
	b.checkAll("after collects around a session")
}

func checkPinsOfAborted(b *bench) {
	data := b.data(9000)
	img := newImage(64 << 10)
	img.write(0, data)
	o := spec{images: one(img)}
	if b.pool.Traits().Streams == 1 {
		return // there are no two sessions with a disk open
	}
	first, w1, _ := b.begin(o)
	must(b, w1.put(background, 1, data), "put")
	second, w2, m := b.begin(o)
	missing := []bool{true}
	must(b, w2.Missing(background, []holdfast.Digest{b.learn(data)}, missing), "missing")
	must(b, first.Abort(background), "abort")
	b.collect()
	if missing[0] { // right as well: what is not committed need not be known to others
		must(b, w2.put(background, 0, data), "put")
	}
	must(b, w2.place(background, 0, data), "place")
	must(b, w2.Close(background), "close disk")
	_, err := b.commit(background, second, m, o)
	must(b, err, "commit")
	b.collect()
	if b.crash() {
		b.checkAll("after a crash")
	}
}

func checkCollectUnplaced(b *bench) {
	img := newImage(64 << 10)
	o := spec{images: one(img)}
	ses, w, m := b.begin(o)
	var all [][]byte
	for i := range 8 {
		p := b.data(1000 + i)
		all = append(all, p)
		must(b, w.put(background, i%3, p), "put")
		b.collect()
	}
	off := int64(0)
	for _, p := range all {
		img.write(off, p)
		must(b, w.place(background, off, p), "place after a collect")
		off += int64(len(p))
		b.collect()
	}
	must(b, w.Close(background), "close disk")
	_, err := b.commit(background, ses, m, o)
	must(b, err, "commit")
	b.collect()
}

func checkCollectBeside(b *bench) {
	if b.pool.Traits().Streams == 1 {
		return
	}
	base := b.full()
	ctx, stop := context.WithCancel(background)
	var collecting, working sync.WaitGroup
	if c := b.collector(); c != nil {
		collecting.Go(func() {
			for ctx.Err() == nil {
				if _, err := c.Collect(ctx, pools.CollectOptions{}); err != nil && ctx.Err() == nil {
					b.Errorf("collect beside backups: %v", err)
					return
				}
			}
		})
	}
	for i := range 2 {
		working.Go(func() {
			mine := &bench{site: b.site, rng: rand.New(rand.NewPCG(uint64(i), 9))}
			p := base
			for k := range 8 {
				q := mine.next(p, 3)
				if mine.checkPoint(q, "beside a collect"); k%2 == 1 {
					mine.delete(q)
				} else {
					p = q
				}
			}
		})
	}
	working.Wait()
	stop()
	collecting.Wait()
	b.checkAll("after collects beside backups")
	b.checkClean("after collects beside backups")
}

func checkComeBack(b *bench) {
	img := b.disk(256<<10, 6)
	for range 3 {
		p := b.backup(spec{images: one(img)})
		b.checkAll("after a backup")
		b.delete(p)
		for range 3 {
			b.collect()
		}
	}
	b.backup(spec{images: one(img)})
}
