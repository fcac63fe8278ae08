package standard

import (
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// begin begins a set and opens the lab's disk.
func (l *lab) begin(m holdfast.Manifest) (pools.Session, pools.DiskWriter) {
	l.t.Helper()
	s, err := l.p.Begin(background, m)
	if err != nil {
		l.t.Fatal(err)
	}
	w, err := s.Disk(background, l.disk)
	if err != nil {
		l.t.Fatal(err)
	}
	return s, w
}

func (l *lab) commit(s pools.Session, w pools.DiskWriter, m holdfast.Manifest) pools.Receipt {
	l.t.Helper()
	if err := w.Close(background); err != nil {
		l.t.Fatal(err)
	}
	r, err := s.Commit(background, m)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// Goal: a disk that is read whole again because tracking was lost is stored only where it changed, with a window that is much smaller
// than the disk. Method: 48 MiB in windows of 512 chunks, a few changes, zeros and a hole in it.
func TestUnchangedDataIsFoundAgain(t *testing.T) {
	const size = 48 << 20
	rng := rand.New(rand.NewPCG(1, 2))
	l := newLab(t, shape{paths: 1, target: 8 << 20, window: 2048})
	img := noise(rng, size)
	clear(img[10<<20 : 12<<20])
	full := l.must(l.backup(size, holdfast.SetID{}, write{0, img[:10<<20]}, write{12 << 20, img[12<<20:]}))
	for _, off := range []int{0, 5 << 20, 13<<20 + 4096, size - 8192} {
		copy(img[off:], noise(rng, 8192))
	}
	m := l.manifest(size, full)
	m.Disks[0].Inherit = false
	s, w := l.begin(m)
	a, err := l.put(w, write{0, img[:10<<20]}, 64)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.put(w, write{12 << 20, img[12<<20:]}, 64)
	if err != nil {
		t.Fatal(err)
	}
	r := l.commit(s, w, m)
	// 8 chunks changed. After the hole the window begins anew, once 8 MiB were placed in a row.
	if most := 8 + 8<<20/labChunk + 64; a+b < 8 || a > 4 || a+b > most {
		t.Fatalf("%d and %d chunks were missing, 8 changed", a, b)
	}
	if r.Manifest.Stats.Stored > 10<<20 {
		t.Fatalf("%d bytes stored", r.Manifest.Stats.Stored)
	}
	l.same(m.ID, img)
	l.delete(full)
	l.collect()
	l.same(m.ID, img)
}

// Goal: a chunk may be placed however long ago it was put or answered as present, by whichever disk. Method: windows of 8 chunks, chunks
// placed in the wrong order at the end, from finished and unfinished data files and from the parent.
func TestChunksAreFoundHoweverOld(t *testing.T) {
	const n = 200
	rng := rand.New(rand.NewPCG(2, 2))
	l := newLab(t, shape{paths: 1, target: 64 << 10, window: 8, look: true})
	old := noise(rng, n*labChunk)
	full := l.must(l.backup(n*labChunk, holdfast.SetID{}, write{0, old}))
	h := l.p.domain.Hasher()
	m := l.manifest((2*n+1)*labChunk, full)
	m.Disks[0].Inherit = false
	s, w := l.begin(m)
	fresh := noise(rng, n*labChunk)
	var refs []holdfast.Ref
	want := make([]byte, (2*n+1)*labChunk)
	present := 0
	for i := range n {
		c, o := fresh[i*labChunk:][:labChunk], old[(n-1-i)*labChunk:][:labChunk]
		g := holdfast.Group{Chunks: []holdfast.Piece{{Digest: h.Sum(c), Len: labChunk}}, Payload: c}
		if err := w.Put(background, &g); err != nil {
			t.Fatal(err)
		}
		missing := []bool{true}
		d := h.Sum(o)
		if err := w.Missing(background, []holdfast.Digest{d}, missing); err != nil {
			t.Fatal(err)
		}
		if !missing[0] {
			present++
			copy(want[(n+i)*labChunk:], o)
			refs = append(refs, holdfast.Ref{Extent: holdfast.Extent{Off: int64(n+i) * labChunk, Len: labChunk}, Digest: d})
		}
	}
	if present == 0 {
		t.Fatal("no chunk of the parent's was found")
	}
	var first []holdfast.Ref
	for i := range n {
		k := (i*37 + 5) % n
		copy(want[i*labChunk:], fresh[k*labChunk:][:labChunk])
		first = append(first, holdfast.Ref{Extent: holdfast.Extent{Off: int64(i) * labChunk, Len: labChunk}, Digest: h.Sum(fresh[k*labChunk:][:labChunk])})
	}
	for _, batch := range [][]holdfast.Ref{first[:50], first[50:], refs} {
		if err := w.Place(background, batch); err != nil {
			t.Fatal(err)
		}
	}
	unknown := []holdfast.Ref{{Extent: holdfast.Extent{Off: 2 * n * labChunk, Len: 5}, Digest: h.Sum([]byte("nobody"))}}
	if err := w.Place(background, unknown); holdfast.KindOf(err) != holdfast.NotExist {
		t.Fatalf("an unknown chunk: %v", err)
	}
	l.commit(s, w, m)
	l.same(m.ID, want)
}
