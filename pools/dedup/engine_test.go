package dedup

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
)

// Goal: the index is rebuildable: from kv, from footers, and from a mixture. Method: the kv folder is removed, or put back to an older state.
func TestLostIndexIsRebuiltFromContainers(t *testing.T) {
	fs := fsys.NewMem(1)
	l := newLab(t, fs)
	rng := rand.New(rand.NewPCG(1, 1))
	img := noise(rng, 1<<20)
	var ids []holdfast.SetID
	ids = append(ids, l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img})))
	check := func(how string, want map[string]int) {
		t.Helper()
		got := indexOf(l.p)
		if len(got) != len(want) {
			t.Fatalf("%s: %d entries, expected %d", how, len(got), len(want))
		}
		for k, n := range want {
			if got[k] != n {
				t.Fatalf("%s: entry %s", how, k)
			}
		}
		for _, id := range ids {
			l.same(id, img)
		}
	}
	want := indexOf(l.p)
	l.reopen()
	check("from kv", want)
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := clearFolder(fs, indexDir); err != nil {
		t.Fatal(err)
	}
	l.p = open(t, fs, l.id)
	check("from footers", want)
	// kv forgets one container, as after a crash, and knows one that is not there any more.
	ids = append(ids, l.must(l.backup(1<<20, ids[0])))
	l.must(l.backup(1<<20, ids[0], write{off: 4096, bytes: noise(rng, 8192)}))
	want = indexOf(l.p)
	for id := range l.p.byID {
		l.p.st.drop(id)
		break
	}
	l.p.st.put(&contRecord{id: 77, size: 1, prints: []uint64{5, 6}})
	l.reopen()
	check("from both", want)
}

// Goal: a fingerprint alone never decides. Method: chunks whose digests share their first 8 bytes are put and placed; the pool itself
// does not recompute digests on Put.
func TestEqualFingerprintsAreNotTakenForEqualChunks(t *testing.T) {
	l := newLab(t, fsys.NewMem(1))
	twin := func(b byte) holdfast.Digest { return holdfast.Digest{1, 2, 3, 4, 5, 6, 7, 8, b} }
	put := func(b byte, n int) error {
		m := l.manifest(1<<20, holdfast.SetID{})
		s, err := l.p.Begin(background, m)
		if err != nil {
			return err
		}
		defer func() { _ = s.Abort(background) }()
		w, err := s.Disk(background, l.disk)
		if err != nil {
			return err
		}
		missing := []bool{false}
		if err := w.Missing(background, []holdfast.Digest{twin(b)}, missing); err != nil || !missing[0] {
			t.Fatalf("twin %d is said to be there: %v", b, err)
		}
		g := holdfast.Group{Chunks: []holdfast.Piece{{Digest: twin(b), Len: uint32(n)}}, Payload: bytes.Repeat([]byte{b}, n)}
		if err := w.Put(background, &g); err != nil {
			return err
		}
		if err := w.Missing(background, []holdfast.Digest{twin(b)}, missing); err != nil || missing[0] {
			t.Fatalf("twin %d is said to be missing: %v", b, err)
		}
		if err := w.Place(background, []holdfast.Ref{{Extent: holdfast.Extent{Off: 0, Len: int64(n)}, Digest: twin(b)}}); err != nil {
			return err
		}
		if err := w.Close(background); err != nil {
			return err
		}
		_, err = s.Commit(background, m)
		return err
	}
	for b := byte(1); b < 5; b++ {
		if err := put(b, 1000+int(b)); err != nil {
			t.Fatal(err)
		}
	}
	r := resolver{p: l.p}
	defer r.release()
	if err := r.resolve(background, []holdfast.Digest{twin(3), twin(9), twin(1)}, forReading); err != nil {
		t.Fatal(err)
	}
	if r.hits[0].chunk.Len != 1003 || r.hits[1].c != nil || r.hits[2].chunk.Len != 1001 {
		t.Fatalf("hits: %+v", r.hits)
	}
	if rep := l.collect(); rep.ChunksDead != 0 {
		t.Fatalf("collect takes %d twins for dead", rep.ChunksDead)
	}
}

// Goal: recipes of every shape restore what was placed. Method: disks over several levels of the tree, leaves that must be split, and
// children of other sizes, against a model of extents.
func TestRecipesOfEveryShape(t *testing.T) {
	l := newLab(t, fsys.NewMem(1))
	rng := rand.New(rand.NewPCG(4, 4))
	type spot struct {
		off  int64
		data []byte
	}
	read := func(id holdfast.SetID, size int64, spots []spot) {
		t.Helper()
		s, err := l.p.Open(background, id)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		var total, want int64
		for r, err := range s.Map(background, l.disk) {
			if err != nil || r.End() > size {
				t.Fatalf("map: %v %v", r, err)
			}
			total += r.Len
		}
		for _, sp := range spots {
			n := min(int64(len(sp.data)), size-sp.off)
			if n <= 0 {
				continue
			}
			want += n
			got := make([]byte, n)
			dec := chunk.NewDecoder()
			for pc, err := range s.Read(background, l.disk, holdfast.Extents{{Off: sp.off, Len: n}}) {
				if err != nil {
					t.Fatal(err)
				}
				plain, err := dec.Decode(&pc.Group, nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, pl := range pc.Places {
					copy(got[pl.Off-sp.off:], plain[pl.At:pl.At+pl.Len])
				}
				pc.Release()
			}
			if !bytes.Equal(got, sp.data[:n]) {
				t.Fatalf("size %d: bytes at %d differ", size, sp.off)
			}
		}
		if total != want {
			t.Fatalf("size %d: %d bytes mapped, expected %d", size, total, want)
		}
	}
	const gib = int64(1) << 30
	spots := []spot{{0, noise(rng, 10_000)}, {256<<20 - 5000, noise(rng, 9_000)}, {3 * gib, noise(rng, 4096)}, {64*gib - 4096, noise(rng, 8192)}, {20_000 * gib, noise(rng, 4096)}}
	var ws []write
	for _, s := range spots {
		ws = append(ws, write{off: s.off, bytes: s.data})
	}
	parent := l.must(l.backup(holdfast.MaxDiskSize, holdfast.SetID{}, ws...))
	read(parent, holdfast.MaxDiskSize, spots)
	for _, size := range []int64{64*gib + 512, 64 * gib, 300 << 20, 256<<20 - 2048, 512, 256 << 20, 100 * gib, holdfast.MaxDiskSize} {
		id := l.must(l.backup(size, parent))
		read(id, size, spots)
		if size >= 64*gib {
			continue
		}
		grown := l.must(l.backup(holdfast.MaxDiskSize, id)) // what was cut off does not come back
		var cut []spot
		for _, s := range spots {
			if s.off < size {
				cut = append(cut, spot{s.off, s.data[:min(int64(len(s.data)), size-s.off)]})
			}
		}
		read(grown, holdfast.MaxDiskSize, cut)
	}
}

// Goal: a segment with so many small extents that its leaf would be too long is split, and inherits like any other.
func TestFragmentedSegmentIsSplit(t *testing.T) {
	l := newLab(t, fsys.NewMem(1))
	rng := rand.New(rand.NewPCG(6, 6))
	const size = 256 << 20
	block := noise(rng, 64<<10) // distinct 4 KiB chunks at scattered places, in parts of 512 bytes
	m := l.manifest(size, holdfast.SetID{})
	s, err := l.p.Begin(background, m)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Disk(background, l.disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.write(w, write{bytes: block}); err != nil {
		t.Fatal(err)
	}
	h := l.p.domain.Hasher()
	var refs []holdfast.Ref
	for i := range int64(200_000) {
		c := rng.IntN(16)
		skip := rng.IntN(7) * 512
		refs = append(refs, holdfast.Ref{Extent: holdfast.Extent{Off: 1<<20 + i*1024, Len: 512}, Digest: h.Sum(block[c*4096 : (c+1)*4096]), Skip: uint32(skip)})
	}
	if err := w.Place(background, refs); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(background); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(background, m); err != nil {
		t.Fatal(err)
	}
	child := l.must(l.backup(size, m.ID, write{off: 2 << 20, bytes: block[:4096]}))
	for _, id := range []holdfast.SetID{m.ID, child} {
		set, err := l.p.Open(background, id)
		if err != nil {
			t.Fatal(err)
		}
		var got []holdfast.Ref
		for r, err := range set.Map(background, l.disk) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, r)
		}
		_ = set.Close()
		got = got[16:]
		want := refs
		if id == child {
			want = slices.DeleteFunc(slices.Clone(refs), func(r holdfast.Ref) bool { return r.Off >= 2<<20 && r.Off < 2<<20+4096 })
			got = slices.DeleteFunc(got, func(r holdfast.Ref) bool { return r.Off == 2<<20 })
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%d refs, expected %d", len(got), len(want))
		}
	}
	if rep := l.verify(); len(rep.Damaged) != 0 {
		t.Fatalf("damaged: %+v", rep.Damaged)
	}
}

// Goal: a consumer that breaks off leaves no goroutine, no file and no budget behind. goleak in TestMain looks for the goroutines.
func TestBrokenOffReadLeavesNothingBehind(t *testing.T) {
	l := newLab(t, fsys.NewMem(1))
	id := l.must(l.backup(8<<20, holdfast.SetID{}, write{bytes: noise(rand.New(rand.NewPCG(1, 2)), 8<<20)}))
	s, err := l.p.Open(background, id)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		k := 0
		var held []*holdfast.Parcel
		for pc, err := range s.Read(background, l.disk, holdfast.Extents{{Off: 0, Len: 8 << 20}}) {
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, pc)
			if k++; k > n {
				break
			}
		}
		for _, pc := range held {
			pc.Release()
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range l.p.byID {
		if n := c.refs.Load(); n != 1 {
			t.Fatalf("container %x is held %d times", c.id, n)
		}
	}
}

// Goal: the hot question of a backup, which chunks are missing, does not allocate per chunk.
func TestMissingDoesNotAllocatePerChunk(t *testing.T) {
	l := newLab(t, fsys.NewMem(1))
	img := noise(rand.New(rand.NewPCG(1, 2)), 4<<20)
	l.must(l.backup(4<<20, holdfast.SetID{}, write{bytes: img}))
	m := l.manifest(4<<20, holdfast.SetID{})
	s, err := l.p.Begin(background, m)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Abort(background) }()
	w, err := s.Disk(background, l.disk)
	if err != nil {
		t.Fatal(err)
	}
	h := l.p.domain.Hasher()
	var ds []holdfast.Digest
	for at := 0; at < len(img); at += 4096 {
		ds = append(ds, h.Sum(img[at:at+4096]))
	}
	missing := make([]bool, len(ds))
	n := testing.AllocsPerRun(20, func() {
		if err := w.Missing(background, ds, missing); err != nil {
			t.Fatal(err)
		}
	})
	if n > 8 || slices.Contains(missing, true) {
		t.Fatalf("%.0f allocations for %d chunks", n, len(ds))
	}
}
