package standard

import (
	"cmp"
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

// Goal: a set without a parent is compared with the VM's newest one when its disks were read whole for want of tracking, and only then;
// what it shares outlives that set. Method: the reasons a disk can have, an older set with other bytes, a set of another VM.
func TestFullReadIsComparedWithTheNewestSet(t *testing.T) {
	const size = 4 << 20
	for reason, finds := range map[holdfast.Reason]bool{
		holdfast.ReasonTrackingLost: true, holdfast.ReasonTokenUnknown: true, holdfast.ReasonNoToken: true, holdfast.ReasonReverted: true,
		holdfast.ReasonUnsupported: true, holdfast.ReasonFirst: false, holdfast.ReasonRequested: false, "": false,
	} {
		t.Run(cmp.Or(string(reason), "none"), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(3, 2))
			l := newLab(t, shape{paths: 1, target: 1 << 20})
			img := noise(rng, size)
			older := l.must(l.backup(size, holdfast.SetID{}, write{0, noise(rng, size)}))
			newest := l.must(l.backup(size, holdfast.SetID{}, write{0, img}))
			mine := l.vm
			l.vm = holdfast.VMID{ID: holdfast.NewID()}
			l.must(l.backup(size, holdfast.SetID{}, write{0, noise(rng, 64<<10)}))
			l.vm = mine
			l.reopen()
			copy(img[2<<20:], noise(rng, 3*labChunk))
			m := l.manifest(size, holdfast.SetID{})
			m.Disks[0].Reason = reason
			s, w := l.begin(m)
			lacked := 0
			for off := 0; off < size; off += 1 << 20 { // with holes, as a file system leaves them
				n, err := l.put(w, write{int64(off), img[off:][:960<<10]}, 64)
				if err != nil {
					t.Fatal(err)
				}
				clear(img[off+960<<10:][:64<<10])
				lacked += n
			}
			l.delete(newest, older)
			r := l.commit(s, w, m)
			l.collect()
			l.same(m.ID, img)
			if all := size / labChunk * 15 / 16; finds && lacked != 3 || !finds && lacked != all {
				t.Errorf("%d chunks of %d were missing, 3 changed", lacked, all)
			}
			if finds == (r.Manifest.Stats.Stored > 1<<20) {
				t.Errorf("%d bytes stored", r.Manifest.Stats.Stored)
			}
			l.reopen()
			l.same(m.ID, img)
			if rep := l.verify(); len(rep.Damaged) != 0 {
				t.Errorf("damage: %+v", rep.Damaged)
			}
		})
	}
}

// Goal: a newest set whose record is damaged is no failure of the next full read: an older one is taken, or none.
func TestFullReadPassesOverADamagedSet(t *testing.T) {
	const size = 1 << 20
	rng := rand.New(rand.NewPCG(4, 2))
	l := newLab(t, shape{paths: 1})
	img := noise(rng, size)
	l.must(l.backup(size, holdfast.SetID{}, write{0, img}))
	bad := l.must(l.backup(size, holdfast.SetID{}, write{0, img}))
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, l.pl.fss[0], l.p.sets[bad].folder+"/"+recordName, 300)
	l.p = l.pl.open(t)
	m := l.manifest(size, holdfast.SetID{})
	m.Disks[0].Reason = holdfast.ReasonTrackingLost
	s, w := l.begin(m)
	lacked, err := l.put(w, write{0, img}, 64)
	if err != nil || lacked != 0 {
		t.Fatalf("%d chunks were missing: %v", lacked, err)
	}
	l.commit(s, w, m)
	l.same(m.ID, img)
}
