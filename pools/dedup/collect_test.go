package dedup

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// Goal: collecting beside sessions and readers never takes a chunk that somebody needs. Method: backups, deletions, restores and
// collects at the same time, several seeds; every set that is there restores what it was.
func TestCollectBesideSessionsAndReaders(t *testing.T) {
	for seed := range uint64(3 * soak(t)) {
		l := newLab(t, fsys.NewMem(seed))
		rng := rand.New(rand.NewPCG(seed, 9))
		blocks := make([][]byte, 24) // few blocks, so that sets share and dead chunks come back
		for i := range blocks {
			blocks[i] = noise(rng, 16<<10)
		}
		const size = 1 << 20
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for n := range 3 {
			rng := rand.New(rand.NewPCG(seed, uint64(n)))
			wg.Go(func() { l.worker(rng, blocks, size) })
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				if _, err := l.p.Collect(background, pools.CollectOptions{}); err != nil {
					t.Errorf("seed %d: %v", seed, err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		}()
		wg.Wait()
		close(stop)
		<-done
		l.collect()
		if rep := l.verify(); len(rep.Damaged) != 0 {
			t.Fatalf("seed %d: %+v", seed, rep.Damaged[0])
		}
	}
}

// worker backs up, restores and deletes sets of its own.
func (l *lab) worker(rng *rand.Rand, blocks [][]byte, size int64) {
	type point struct {
		id  holdfast.SetID
		img []byte
	}
	var points []point
	for range 12 {
		img := make([]byte, size)
		var parent holdfast.SetID
		if len(points) > 0 && rng.IntN(3) > 0 {
			k := rng.IntN(len(points))
			parent = points[k].id
			copy(img, points[k].img)
		}
		var ws []write
		for off := int64(0); off < size; off += 64 << 10 {
			if b := blocks[rng.IntN(len(blocks))]; rng.IntN(2) == 0 {
				ws = append(ws, write{off: off, bytes: b})
				copy(img[off:], b)
			}
		}
		id, err := l.backup(size, parent, ws...)
		if err != nil {
			l.t.Errorf("backup: %v", err)
			return
		}
		points = append(points, point{id, img})
		k := rng.IntN(len(points))
		got, err := l.restore(points[k].id)
		if err != nil || !bytes.Equal(got, points[k].img) {
			l.t.Errorf("set %s is not what it was: %v", points[k].id, err)
			return
		}
		if len(points) > 3 {
			if err := l.p.Delete(background, points[k].id); err != nil {
				l.t.Errorf("delete: %v", err)
				return
			}
			points = slices.Delete(points, k, k+1)
		}
	}
	for _, pt := range points {
		if got, err := l.restore(pt.id); err != nil || !bytes.Equal(got, pt.img) {
			l.t.Errorf("set %s is not what it was: %v", pt.id, err)
		}
	}
}

// Goal: compaction gives space back and restores stay identical, over a restart too, also with a lost index.
func TestCompactionKeepsRestoresIdentical(t *testing.T) {
	fs := fsys.NewMem(1)
	l := newLab(t, fs)
	rng := rand.New(rand.NewPCG(8, 8))
	const size = 4 << 20
	img := noise(rng, size)
	first := l.must(l.backup(size, holdfast.SetID{}, write{bytes: img}))
	var ws []write
	for off := int64(0); off < size; off += 16 << 10 { // three of four chunks become garbage
		b := noise(rng, 12<<10)
		ws = append(ws, write{off: off, bytes: b})
	}
	second := l.must(l.backup(size, first, ws...))
	now := slices.Clone(img)
	for _, w := range ws {
		copy(now[w.off:], w.bytes)
	}
	before, err := l.p.Usage(background)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.p.Delete(background, first); err != nil {
		t.Fatal(err)
	}
	rep := l.collect()
	if rep.Rewritten == 0 || rep.ChunksDead == 0 || rep.Freed < size/2 {
		t.Fatalf("report: %+v", rep)
	}
	after, err := l.p.Usage(background)
	if err != nil {
		t.Fatal(err)
	}
	if before.Stored-after.Stored < size/2 {
		t.Fatalf("stored %d, then %d", before.Stored, after.Stored)
	}
	l.same(second, now)
	if rep := l.collect(); rep.Rewritten+rep.Removed != 0 || rep.ChunksDead != 0 {
		t.Fatalf("a second collect found work: %+v", rep)
	}
	l.reopen()
	l.same(second, now)
	if err := clearFolder2(l); err != nil {
		t.Fatal(err)
	}
	l.same(second, now)
}

// clearFolder2 loses the kv folder between two opens.
func clearFolder2(l *lab) error {
	if err := l.p.Close(); err != nil {
		return err
	}
	if err := clearFolder(l.fs, indexDir); err != nil {
		return err
	}
	l.p = open(l.t, l.fs, l.id)
	return nil
}

// Goal: an unreadable node or set record stops a collect before anything is removed.
func TestCollectFailsClosed(t *testing.T) {
	fs := fsys.NewMem(1)
	l := newLab(t, fs)
	rng := rand.New(rand.NewPCG(1, 2))
	keep := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: noise(rng, 64<<10)}))
	gone := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: noise(rng, 64<<10)}))
	if err := l.p.Delete(background, gone); err != nil {
		t.Fatal(err)
	}
	flip(t, fs, setName(keep), 100)
	before, _ := l.p.med.List(background, containersDir)
	if _, err := l.p.Collect(background, pools.CollectOptions{}); holdfast.KindOf(err) != holdfast.Corrupt || holdfast.HintOf(err) == "" {
		t.Fatalf("collect with a damaged set record: %v", err)
	}
	flip(t, fs, setName(keep), 100)
	node, _ := l.p.med.List(background, containersDir)
	flip(t, fs, node[1], 128+64+36+20) // the second container of the first set holds its nodes
	l.reopen()
	if _, err := l.p.Collect(background, pools.CollectOptions{}); holdfast.KindOf(err) != holdfast.Corrupt {
		t.Fatalf("collect with a damaged node: %v", err)
	}
	after, _ := l.p.med.List(background, containersDir)
	if !slices.Equal(before, after) {
		t.Fatal("containers were removed")
	}
}
