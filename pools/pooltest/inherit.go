package pooltest

import (
	"github.com/holdfast-backup/holdfast"
)

var inheritChecks = []Check{
	{"ranges not written are the parent's", checkInherit},
	{"many generations are one set each", checkGenerations},
	{"a disk that does not inherit is zeros where not written", checkNoInherit},
	{"inheriting from a parent without the disk is refused", checkInheritUnknown},
	{"a resized disk inherits what both have, or is refused", checkResized},
	{"siblings inherit from one parent", checkSiblings},
	{"nothing changed is a set too", checkNothingChanged},
	{"the parent stays readable for a session though it is deleted", checkParentDeleted},
}

func checkInherit(b *bench) {
	p := b.full()
	size := p.m.Disks[0].Size
	// The edges: first and last byte, single bytes, neighbours, everything.
	for _, exts := range []holdfast.Extents{
		{{Off: 0, Len: 1}},
		{{Off: size - 1, Len: 1}},
		{{Off: 0, Len: 1}, {Off: 4095, Len: 2}, {Off: 8192, Len: 4096}, {Off: size - 512, Len: 512}},
		{{Off: 1, Len: size - 2}},
		{{Off: 0, Len: size}},
	} {
		o := b.change(p, 0)
		for _, e := range exts {
			o.images[diskID(1)].write(e.Off, fill(b.rng, int(e.Len)))
		}
		o.changed[diskID(1)] = exts
		q := b.backup(o)
		b.next(q, 3)
	}
}

func checkGenerations(b *bench) {
	p := b.backup(spec{images: map[holdfast.DiskID]*image{diskID(1): b.disk(128<<10, 4), diskID(2): b.disk(64<<10, 2)}})
	for i := range 12 {
		p = b.next(p, 3)
		if i == 6 {
			b.reopen()
		}
	}
}

func checkNoInherit(b *bench) {
	p := b.backup(spec{images: map[holdfast.DiskID]*image{diskID(1): b.disk(128<<10, 4), diskID(2): b.disk(128<<10, 4)}})
	// Disk 1 inherits, disk 2 is written anew and sparse, disk 3 is new, and disk 4 is never opened.
	o := b.change(p, 2)
	delete(o.changed, diskID(2))
	o.images[diskID(2)], o.images[diskID(3)] = b.disk(128<<10, 1), b.disk(64<<10, 2)
	q := b.backup(o)
	b.next(q, 2)
	o = b.change(p, 0)
	delete(o.changed, diskID(1))
	delete(o.changed, diskID(2))
	o.images[diskID(1)], o.images[diskID(2)] = newImage(128<<10), newImage(128<<10)
	m := b.manifest(o)
	ses, err := b.pool.Begin(background, m)
	must(b, err, "begin")
	_, err = b.commit(background, ses, m, o)
	must(b, err, "commit an incremental set whose disks neither inherit nor are written")
	// The parent's disk of another id is not inherited from, and a disk left out is gone.
	o = b.change(p, 1)
	delete(o.images, diskID(2))
	delete(o.changed, diskID(2))
	b.backup(o)
	// A disk that inherits and is never opened is the parent's.
	o = b.change(p, 0)
	m = b.manifest(o)
	ses, err = b.pool.Begin(background, m)
	must(b, err, "begin")
	_, err = b.commit(background, ses, m, o)
	must(b, err, "commit a set whose disks inherit and were not opened")
}

func checkInheritUnknown(b *bench) {
	p := b.full()
	o := b.change(p, 0)
	o.images[diskID(5)], o.changed[diskID(5)] = newImage(4096), holdfast.Extents{}
	m := b.manifest(o)
	ses, err := b.pool.Begin(background, m)
	if err == nil {
		if err = b.write(background, ses, m, o); err == nil {
			_, err = ses.Commit(background, m)
		}
		must(b, ses.Abort(background), "abort")
	}
	wantKind(b, err, "inherit from a disk that the parent does not have", holdfast.Invalid, holdfast.NotExist)
}

func checkResized(b *bench) {
	p := b.full()
	for _, size := range []int64{p.m.Disks[0].Size + 64<<10, p.m.Disks[0].Size - 64<<10, p.m.Disks[0].Size - 512, 512} {
		o := b.change(p, 0)
		o.images[diskID(1)] = p.images[diskID(1)].resized(size)
		e := holdfast.Extent{Off: size - 300, Len: 300}
		o.images[diskID(1)].write(e.Off, b.data(300))
		o.changed[diskID(1)] = holdfast.Extents{e}
		q, err := b.tryBackup(background, o)
		if err != nil {
			wantKind(b, err, "inherit from a disk of another size", holdfast.Invalid)
			continue
		}
		b.next(q, 2)
	}
}

func checkSiblings(b *bench) {
	p := b.full()
	left, right := b.next(p, 4), b.next(p, 4)
	b.next(left, 2)
	b.next(right, 2)
	b.delete(left)
	b.collect()
	b.next(p, 2)
}

func checkNothingChanged(b *bench) {
	p := b.full()
	q := b.next(p, 0)
	r := b.next(q, 0)
	b.delete(p)
	b.delete(q)
	b.collect()
	b.next(r, 1)
	b.backup(spec{images: one(newImage(1 << 20))})
}

func checkParentDeleted(b *bench) {
	p := b.full()
	o := b.change(p, 3)
	m := b.manifest(o)
	ses, err := b.pool.Begin(background, m)
	must(b, err, "begin")
	b.delete(p)
	b.collect()
	must(b, b.write(background, ses, m, o), "write")
	b.collect()
	q, err := b.commit(background, ses, m, o)
	must(b, err, "commit after the parent was deleted")
	b.checkAll("after the parent was deleted")
	b.next(q, 2)
}
