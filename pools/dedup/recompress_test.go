package dedup

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// prose makes bytes that compress: words of a small vocabulary.
func prose(rng *rand.Rand, n int) []byte {
	words := make([][]byte, 300)
	for i := range words {
		words[i] = noise(rng, 3+rng.IntN(9))
	}
	var b []byte
	for len(b) < n {
		b = append(b, words[rng.IntN(len(words))]...)
	}
	return b[:n]
}

func (l *lab) recompress() pools.RecompressReport {
	l.t.Helper()
	rep, err := l.p.Recompress(background, pools.RecompressOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	return rep
}

// Goal: what was written fast takes fewer bytes afterwards, everything restores, twice is once, also after the pool was opened again.
func TestRecompressSavesBytesAndKeepsSets(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	l := newLab(t, fsys.NewMem(1))
	img := prose(rng, 2<<20)
	a := l.must(l.backup(int64(len(img)), holdfast.SetID{}, write{off: 0, bytes: img}))
	img2 := bytes.Clone(img)
	copy(img2[1<<20:], noise(rng, 256<<10))
	b := l.must(l.backup(int64(len(img)), a, write{off: 1 << 20, bytes: img2[1<<20 : 1<<20+256<<10]}))
	before, err := l.p.Usage(background)
	if err != nil {
		t.Fatal(err)
	}
	rep := l.recompress()
	after, err := l.p.Usage(background)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Containers == 0 || rep.Left != 0 || rep.After >= rep.Before*9/10 || after.Stored >= before.Stored || after.Chunks != before.Chunks {
		t.Errorf("%+v: %+v, then %+v", rep, before, after)
	}
	for range 2 {
		l.same(a, img)
		l.same(b, img2)
		if rep := l.verify(); len(rep.Damaged) != 0 {
			t.Errorf("%+v", rep.Damaged)
		}
		if rep := l.recompress(); rep.Containers != 0 || rep.Left != 0 {
			t.Errorf("again: %+v", rep)
		}
		if rep := l.collect(); rep.ChunksDead != 0 || rep.Rewritten != 0 {
			t.Errorf("collect: %+v", rep)
		}
		l.reopen()
	}
}

// Goal: a recompression that stops at any operation of the medium loses nothing. Method: every write, sync and rename fails once, and the
// power goes at the same moment.
func TestRecompressSurvivesACrashAtEverySync(t *testing.T) {
	for n := 1; ; n++ {
		rng := rand.New(rand.NewPCG(6, 6))
		mem := fsys.NewMem(uint64(n))
		l := newLab(t, mem)
		img := prose(rng, 512<<10)
		id := l.must(l.backup(int64(len(img)), holdfast.SetID{}, write{off: 0, bytes: img}))
		count := 0
		mem.OnSync(func(string, string) {
			if count++; count == n {
				mem.Halt(errors.New("power is off"))
			}
		})
		_, err := l.p.Recompress(background, pools.RecompressOptions{})
		mem.OnSync(nil)
		done := count < n
		if done && err != nil {
			t.Fatal(err)
		}
		_ = l.p.Close() // the medium is gone
		l.fs = mem.Crash(nil, 50)
		l.p = openSealed(t, l.fs, l.id, l.seal)
		l.same(id, img)
		l.recompress()
		l.same(id, img)
		if rep := l.verify(); len(rep.Damaged) != 0 {
			t.Fatalf("sync %d: %+v", n, rep.Damaged)
		}
		if done {
			t.Logf("%d crash points", n-1)
			return
		}
	}
}

// Goal: sessions and readers beside a recompression notice nothing.
func TestRecompressBesideSessionsAndReaders(t *testing.T) {
	l := newLab(t, fsys.NewMem(3))
	rng := rand.New(rand.NewPCG(3, 3))
	blocks := make([][]byte, 24)
	for i := range blocks {
		blocks[i] = prose(rng, 16<<10)
	}
	var wg sync.WaitGroup
	for n := range 3 {
		rng := rand.New(rand.NewPCG(3, uint64(n)))
		wg.Go(func() { l.worker(rng, blocks, 1<<20) })
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		l.recompress()
		l.collect()
	}
	if rep := l.verify(); len(rep.Damaged) != 0 {
		t.Fatalf("%+v", rep.Damaged[0])
	}
}

func TestRecompressStopsAtItsLimit(t *testing.T) {
	l := newLab(t, fsys.NewMem(1))
	rng := rand.New(rand.NewPCG(7, 7))
	var parent holdfast.SetID
	for i := range 4 {
		parent = l.must(l.backup(1<<20, parent, write{off: int64(i) * 64 << 10, bytes: prose(rng, 64<<10)}))
	}
	rep, err := l.p.Recompress(background, pools.RecompressOptions{Limit: 1})
	if err != nil || rep.Containers != 1 || rep.Left == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if rep := l.recompress(); rep.Containers != 3 || rep.Left != 0 {
		t.Errorf("then %+v", rep)
	}
}

// Goal: what a Collect copies comes to lie in the order in which the newest point in time needs it. Method: one disk written in a scattered
// order by many sets, most of which go.
func TestCollectLaysTheNewestPointTogether(t *testing.T) {
	l := newLab(t, fsys.NewMem(1))
	rng := rand.New(rand.NewPCG(8, 8))
	const piece, pieces = 64 << 10, 32
	img := make([]byte, piece*pieces)
	var sets []holdfast.SetID
	var parent holdfast.SetID
	for _, k := range rng.Perm(pieces) {
		off := int64(k * piece)
		fresh := noise(rng, piece)
		copy(img[off:], fresh)
		// What goes with it dies with its set, so that every container becomes sparse.
		parent = l.must(l.backup(int64(len(img)), parent, write{off: off, bytes: fresh}))
		sets = append(sets, parent)
		dead := l.must(l.backup(int64(len(img)), parent, write{off: off, bytes: noise(rng, piece)}))
		sets = append(sets, dead)
	}
	for _, id := range sets {
		if id != parent {
			if err := l.p.Delete(background, id); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.collect()
	l.same(parent, img)
	s, err := l.p.Open(background, parent)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	last, breaks := int64(-1), 0
	for pc, err := range s.Read(background, l.disk, holdfast.Extents{{Len: int64(len(img))}}) {
		if err != nil {
			t.Fatal(err)
		}
		if pc.Places[0].Off < last {
			breaks++
		}
		last = pc.Places[0].Off
		pc.Release()
	}
	if breaks > 0 {
		t.Errorf("reading the newest point goes back %d times", breaks)
	}
}
