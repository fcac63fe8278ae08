package pooltest

import (
	"math"

	"github.com/holdfast-backup/holdfast"
)

var placeChecks = []Check{
	{"missing says what the pool holds", checkMissing},
	{"place refuses what is out of order or bounds", checkPlaceInvalid},
	{"place refuses unknown chunks", checkPlaceUnknown},
	{"parts of chunks can be placed", checkSubChunks},
	{"a chunk can be placed many times", checkManyPlaces},
	{"explicit zeros are zeros", checkZeros},
	{"groups of all codecs are kept", checkCodecs},
	{"a chunk put twice is one chunk", checkPutTwice},
}

func checkMissing(b *bench) {
	have, lack, mine := b.data(3000), b.data(3001), b.data(3002)
	img := newImage(64 << 10)
	img.write(0, have)
	ses, w, m := b.begin(spec{images: one(img)})
	must(b, w.put(background, 1, have), "put")
	must(b, w.place(background, 0, have), "place")
	must(b, w.Close(background), "close disk")
	_, err := b.commit(background, ses, m, spec{images: one(img)})
	must(b, err, "commit")

	ses, w, m = b.begin(spec{images: one(img)})
	must(b, w.put(background, 0, mine), "put")
	ask := []holdfast.Digest{b.learn(lack), b.learn(have), b.learn(mine), b.learn(have), b.learn(lack)}
	missing := []bool{false, true, true, true, false} // wrong everywhere
	must(b, w.Missing(background, ask, missing), "missing")
	if !missing[0] || !missing[4] {
		b.Errorf("a chunk that nobody put was answered as present")
	}
	if missing[2] {
		b.Errorf("a chunk put in this session was answered as missing")
	}
	if b.pool.Traits().Dedup && (missing[1] || missing[3]) {
		b.Errorf("traits say dedup, but a chunk of a committed set was answered as missing")
	}
	must(b, w.Missing(background, nil, nil), "ask nothing")
	if err := w.Missing(background, ask, missing[:4]); err == nil {
		b.Errorf("missing with room for fewer answers than questions succeeded")
	}
	// What was answered as present can be placed without a put.
	off := int64(0)
	img = newImage(64 << 10)
	for i, p := range [][]byte{lack, have, mine} {
		if !missing[i] {
			img.write(off, p)
			must(b, w.place(background, off, p), "place a chunk answered as present")
		}
		off += int64(len(p))
	}
	must(b, w.Close(background), "close disk")
	_, err = b.commit(background, ses, m, spec{images: one(img)})
	must(b, err, "commit")
}

func checkPlaceInvalid(b *bench) {
	const size = 64 << 10
	data := b.data(4096)
	d := b.learn(data)
	ref := func(off, n int64, skip uint32) holdfast.Ref {
		return holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: n}, Digest: d, Skip: skip}
	}
	zero := func(off, n int64) holdfast.Ref { return holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: n}} }
	cases := map[string][]holdfast.Ref{
		"descending refs":                {ref(16384, 4096, 0), ref(8192, 4096, 0)},
		"overlapping refs":               {ref(8192, 4096, 0), ref(8192+4095, 1, 0)},
		"the same ref twice":             {ref(8192, 4096, 0), ref(8192, 4096, 0)},
		"zeros over data":                {ref(8192, 4096, 0), zero(8192, 512)},
		"a ref before the last call's":   {ref(0, 512, 0)},
		"a ref over the last call's":     {ref(4095, 512, 0)},
		"zeros over the last call's":     {zero(0, 4096)},
		"a ref beyond the disk":          {ref(size, 512, 0)},
		"a ref over the disk's end":      {ref(size-4095, 4096, 0)},
		"zeros over the disk's end":      {zero(size-512, 513)},
		"an empty ref":                   {ref(8192, 0, 0)},
		"empty zeros":                    {zero(8192, 0)},
		"a negative length":              {ref(8192, -1, 0)},
		"a negative offset":              {ref(-512, 512, 0)},
		"an offset that overflows":       {ref(math.MaxInt64-100, 512, 0)},
		"a length that overflows":        {zero(8192, math.MaxInt64)},
		"more than the chunk has":        {ref(8192, 4097, 0)},
		"a part beyond the chunk":        {ref(8192, 512, 4096)},
		"a part over the chunk's end":    {ref(8192, 512, 3585)},
		"a skip of 4 GiB less one":       {ref(8192, 512, math.MaxUint32)},
		"zeros with bytes skipped":       {{Extent: holdfast.Extent{Off: 8192, Len: 512}, Skip: 1}},
		"a good ref and one beyond disk": {ref(8192, 512, 0), ref(size, 512, 0)},
	}
	for name, refs := range cases {
		ses, w, m := b.begin(spec{images: one(newImage(size))})
		must(b, w.put(background, 0, data), "put")
		must(b, w.place(background, 0, data), "place")
		err := w.Place(background, refs)
		if err == nil { // a pool may look at lengths of chunks only when it commits
			if err = w.Close(background); err == nil {
				_, err = ses.Commit(background, m)
			}
		}
		wantKind(b, err, "place "+name, holdfast.Invalid)
		must(b, ses.Abort(background), "abort")
	}
}

func checkPlaceUnknown(b *bench) {
	kept := b.full()
	ses, w, m := b.begin(spec{images: one(newImage(64 << 10))})
	lack := b.data(2000)
	must(b, w.Missing(background, []holdfast.Digest{b.learn(lack)}, []bool{false}), "missing")
	err := w.place(background, 0, lack)
	if err == nil {
		err = w.Close(background)
	}
	if err == nil {
		_, err = ses.Commit(background, m)
	}
	wantKind(b, err, "place a chunk that nobody put", holdfast.NotExist)
	must(b, ses.Abort(background), "abort")
	b.next(kept, 2)
}

func checkSubChunks(b *bench) {
	const size = 64 << 10
	big, small := b.data(10_000), b.data(700)
	img := newImage(size)
	ses, w, m := b.begin(spec{images: one(img)})
	must(b, w.put(background, 2, small, big), "put")
	at := int64(3)
	for _, r := range []struct{ skip, n int64 }{{0, 1}, {9999, 1}, {1, 9998}, {512, 4096}, {4095, 2}, {0, 10_000}, {5000, 5000}} {
		img.write(at, big[r.skip:r.skip+r.n])
		must(b, w.Place(background, []holdfast.Ref{
			{Extent: holdfast.Extent{Off: at, Len: r.n}, Digest: b.learn(big), Skip: uint32(r.skip)},
		}), "place %d bytes from byte %d of a chunk on", r.n, r.skip)
		at += r.n + 5
	}
	img.write(size-699, small[:699])
	must(b, w.Place(background, []holdfast.Ref{{Extent: holdfast.Extent{Off: size - 699, Len: 699}, Digest: b.learn(small)}}), "place at the end")
	must(b, w.Close(background), "close disk")
	p, err := b.commit(background, ses, m, spec{images: one(img)})
	must(b, err, "commit")
	// Parts of parts, by overwriting the middle of what was placed.
	for range 4 {
		p = b.next(p, 5)
	}
	// Parts of the parent's chunks somewhere else on the disk, as they are.
	b.shift(p)
}

// shift writes a set in which parts of the parent's chunks lie somewhere else.
func (b *bench) shift(parent *point) *point {
	b.Helper()
	o := b.change(parent, 0)
	id := diskID(1)
	img, size := o.images[id], o.images[id].size
	set, err := b.pool.Open(background, parent.m.ID)
	must(b, err, "open")
	o.reuse = map[holdfast.DiskID][]holdfast.Ref{}
	end := int64(0)
	for r, err := range set.Map(background, id) {
		must(b, err, "map")
		if r.Digest.IsZero() || r.Len < 3 || b.rng.IntN(3) == 0 {
			continue
		}
		skip := b.rng.Int64N(r.Len - 1)
		n := 1 + b.rng.Int64N(r.Len-skip)
		off := end + b.rng.Int64N(3000)
		if off+n > size {
			break
		}
		end = off + n
		img.write(off, parent.images[id].read(holdfast.Extent{Off: r.Off + skip, Len: n}))
		o.changed[id] = append(o.changed[id], holdfast.Extent{Off: off, Len: n})
		o.reuse[id] = append(o.reuse[id], holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: n}, Digest: r.Digest, Skip: r.Skip + uint32(skip)})
	}
	must(b, set.Close(), "close set")
	o.changed[id] = o.changed[id].Normal(size)
	return b.backup(o)
}

func checkManyPlaces(b *bench) {
	const size = 8 << 20
	data := b.data(1024)
	img := newImage(size)
	ses, w, m := b.begin(spec{images: one(img)})
	must(b, w.put(background, 0, data), "put")
	refs := make([]holdfast.Ref, 0, size/2048)
	for off := int64(0); off < size; off += 2048 {
		img.write(off, data)
		refs = append(refs, holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: 1024}, Digest: b.learn(data)})
	}
	must(b, w.Place(background, refs), "place a chunk %d times", len(refs))
	must(b, w.Close(background), "close disk")
	p, err := b.commit(background, ses, m, spec{images: one(img)})
	must(b, err, "commit")
	b.next(p, 10)
}

func checkZeros(b *bench) {
	img := newImage(256 << 10)
	img.write(0, b.data(256<<10))
	p := b.backup(spec{images: one(img)})
	// Zeros over the parent's data: whole, at the edges, inside of chunks, and over everything.
	for _, exts := range []holdfast.Extents{
		{{Off: 0, Len: 1}, {Off: 1000, Len: 1}, {Off: 8000, Len: 20_000}},
		{{Off: 255 << 10, Len: 1 << 10}},
		{{Off: 0, Len: 256 << 10}},
	} {
		o := b.change(p, 0)
		for _, e := range exts {
			o.images[diskID(1)].zero(e)
		}
		o.changed[diskID(1)] = exts
		b.backup(o)
		m := b.manifest(o) // the same with one ref for each extent, however long
		ses, err := b.pool.Begin(background, m)
		must(b, err, "begin")
		w, err := b.open(background, ses, diskID(1), b.rng)
		must(b, err, "open disk")
		for _, e := range exts {
			must(b, w.placeZeros(background, e), "place zeros")
		}
		must(b, w.Close(background), "close disk")
		_, err = b.commit(background, ses, m, o)
		must(b, err, "commit")
	}
	// A chunk may be zeros too.
	zeros := make([]byte, 4096)
	img = newImage(8192)
	ses, w, m := b.begin(spec{images: one(img)})
	must(b, w.put(background, 2, zeros), "put")
	must(b, w.place(background, 4096, zeros), "place")
	must(b, w.Close(background), "close disk")
	_, err := b.commit(background, ses, m, spec{images: one(img)})
	must(b, err, "commit")
}

func checkCodecs(b *bench) {
	img := newImage(1 << 20)
	ses, w, m := b.begin(spec{images: one(img)})
	off := int64(0)
	seen := map[holdfast.Codec]bool{}
	for level := range b.codecs {
		for i := range 6 {
			data := fill(b.rng, 4000+level)
			text := []byte(string(b.data(20)) + "the same words again and again, the same words again and again, the same words again and again")
			more := b.data(1 + i)
			g := b.group(level, data, text, more)
			seen[g.Codec] = true
			must(b, w.Put(background, g), "put a group of codec %v", g.Codec)
			for _, p := range [][]byte{more, data, text} {
				img.write(off, p)
				must(b, w.place(background, off, p), "place")
				off += int64(len(p))
			}
		}
	}
	if len(seen) != 3 {
		b.Errorf("the check made only groups of codecs %v", seen)
	}
	must(b, w.Close(background), "close disk")
	_, err := b.commit(background, ses, m, spec{images: one(img)})
	must(b, err, "commit")
}

func checkPutTwice(b *bench) {
	x, y, z := b.data(5000), b.data(5000), b.data(5000)
	img := newImage(64 << 10)
	for i, p := range [][]byte{x, y, z} {
		img.write(int64(i)*5000, p)
	}
	o := spec{images: one(img)}
	for range 2 {
		ses, w, m := b.begin(o)
		must(b, w.put(background, 0, x, y), "put")
		must(b, w.put(background, 1, y, z), "put with a chunk that was put before")
		must(b, w.put(background, 2, x, y), "put again")
		must(b, w.put(background, 0, z, z), "put with a chunk twice")
		for i, p := range [][]byte{x, y, z} {
			must(b, w.place(background, int64(i)*5000, p), "place")
		}
		must(b, w.Close(background), "close disk")
		_, err := b.commit(background, ses, m, o)
		must(b, err, "commit")
	}
}
