package pooltest

import (
	"fmt"

	"github.com/holdfast-backup/holdfast"
)

var sizeChecks = []Check{
	{"a sparse disk of 2 TiB is small", checkSparse},
	{"the largest disk works to its end", checkLargest},
	{"the largest groups and chunks work", checkLargestGroups},
	{"a VM can have all disks it may have", checkManyDisks},
	{"the smallest disk works", checkSmallest},
}

func checkSparse(b *bench) {
	img := newImage(2 << 40)
	for _, off := range []int64{0, 1<<32 - 100, 1 << 40, 2<<40 - 5000} {
		img.write(off, b.data(5000))
	}
	p := b.backup(spec{images: one(img)})
	o := b.change(p, 0)
	img = o.images[diskID(1)]
	exts := holdfast.Extents{{Off: 1<<32 - 50, Len: 100}, {Off: 1 << 39, Len: 3000}}
	for _, e := range exts {
		img.write(e.Off, b.data(int(e.Len)))
	}
	hole := holdfast.Extent{Off: 1 << 40, Len: 1 << 39}
	img.zero(hole)
	m := b.manifest(spec{parent: p, images: one(img), changed: map[holdfast.DiskID]holdfast.Extents{diskID(1): nil}})
	ses, err := b.pool.Begin(background, m)
	must(b, err, "begin")
	w, err := b.open(background, ses, diskID(1), b.rng)
	must(b, err, "open disk")
	must(b, w.extents(background, img, exts, nil), "write")
	must(b, w.placeZeros(background, hole), "place half a TiB of zeros")
	must(b, w.Close(background), "close disk")
	q, err := b.commit(background, ses, m, spec{images: one(img)})
	must(b, err, "commit")
	for _, p := range []*point{p, q} {
		if n := p.m.Stats.Stored; n > 1<<20 {
			b.Errorf("20 kB of a disk of 2 TiB took %d bytes", n)
		}
	}
	b.checkAll("with a disk of 2 TiB")
}

func checkLargest(b *bench) {
	img := newImage(holdfast.MaxDiskSize)
	img.write(holdfast.MaxDiskSize-4000, b.data(4000))
	img.write(12345, b.data(700))
	p := b.backup(spec{images: one(img)})
	o := b.change(p, 0)
	e := holdfast.Extent{Off: holdfast.MaxDiskSize - 1, Len: 1}
	o.images[diskID(1)].write(e.Off, []byte{0xa5})
	o.changed[diskID(1)] = holdfast.Extents{e}
	b.backup(o)
}

func checkLargestGroups(b *bench) {
	img := newImage(8 << 20)
	o := spec{images: one(img)}
	ses, w, m := b.begin(o)
	off := int64(0)
	for level := range b.codecs {
		big := fill(b.rng, holdfast.MaxChunk)
		must(b, w.put(background, level, big), "put a chunk of %d bytes", len(big))
		img.write(off, big)
		must(b, w.place(background, off, big), "place")
		off += int64(len(big))
	}
	many := make([][]byte, holdfast.MaxGroupChunks)
	refs := make([]holdfast.Ref, len(many))
	for i := range many {
		many[i] = []byte(fmt.Sprintf("chunk number %d of many", i))
		img.write(off, many[i])
		refs[i] = holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: int64(len(many[i]))}, Digest: b.learn(many[i])}
		off += int64(len(many[i]))
	}
	must(b, w.put(background, 0, many...), "put %d chunks", len(many))
	must(b, w.put(background, 0, []byte{7}), "put a chunk of one byte")
	must(b, w.Place(background, refs), "place %d refs", len(refs))
	img.write(off, []byte{7})
	must(b, w.place(background, off, []byte{7}), "place one byte")
	must(b, w.Close(background), "close disk")
	p, err := b.commit(background, ses, m, o)
	must(b, err, "commit")
	b.next(p, 20)
}

func checkManyDisks(b *bench) {
	o := spec{images: map[holdfast.DiskID]*image{}}
	for i := range holdfast.MaxDisks {
		img := newImage(4096)
		img.write(int64(i), []byte{byte(i), 1})
		o.images[diskID(i)] = img
	}
	o.edit = func(m *holdfast.Manifest) {
		for i := range holdfast.MaxAttachments {
			m.Attachments = append(m.Attachments, holdfast.Attachment{Name: fmt.Sprint(i), Data: []byte{byte(i)}})
		}
		m.Attachments[0].Data = b.data(holdfast.MaxAttachmentBytes)
	}
	b.backup(o)
}

func checkSmallest(b *bench) {
	img := newImage(512)
	p := b.backup(spec{images: one(img)})
	for range 5 {
		p = b.next(p, 1)
	}
}
