package kv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// small makes a store that flushes and compacts often.
var small = Options{MemtableBytes: 32 << 10, CacheBytes: 1 << 20}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustOpen(t testing.TB, f fsys.FS, o Options) *DB {
	t.Helper()
	d, err := Open(f, "db", o)
	must(t, err)
	return d
}

func set(t testing.TB, d *DB, pairs ...string) {
	t.Helper()
	b := d.Batch()
	for i := 0; i < len(pairs); i += 2 {
		b.Set([]byte(pairs[i]), []byte(pairs[i+1]))
	}
	must(t, b.Commit(true))
}

func keys(t testing.TB, r Reader, lo, hi string, back bool) string {
	t.Helper()
	scan, out := r.Scan, ""
	if back {
		scan = r.ScanBack
	}
	var l, h []byte
	if lo != "" {
		l = []byte(lo)
	}
	if hi != "" {
		h = []byte(hi)
	}
	for it, err := range scan(l, h) {
		must(t, err)
		out += string(it.Key) + "=" + string(it.Value) + " "
	}
	return out
}

func TestReadsSeeWhatWasCommitted(t *testing.T) {
	f, err := fsys.NewOS(t.TempDir())
	must(t, err)
	d := mustOpen(t, f, Options{Bloom: true})
	set(t, d, "a", "1", "b", "2", "c", "3", "d", "")
	if v, ok, err := d.Get([]byte("d")); err != nil || !ok || v == nil || len(v) != 0 {
		t.Errorf("empty value: %q %v %v", v, ok, err)
	}
	if _, ok, err := d.Get([]byte("x")); err != nil || ok {
		t.Errorf("missing key: %v %v", ok, err)
	}
	must(t, d.View(func(r Reader) error {
		b := d.Batch()
		b.DeleteRange([]byte("a"), []byte("c"))
		b.Delete([]byte("nothing"))
		must(t, b.Commit(false))
		if got := keys(t, r, "", "", false); got != "a=1 b=2 c=3 d= " {
			t.Errorf("view: %s", got)
		}
		return nil
	}))
	set(t, d, "e", "5")
	for _, c := range []struct {
		lo, hi string
		back   bool
		want   string
	}{{"", "", false, "c=3 d= e=5 "}, {"", "", true, "e=5 d= c=3 "}, {"d", "e", false, "d= "}, {"c", "e", true, "d= c=3 "}, {"x", "", false, ""}} {
		if got := keys(t, d.Reader(), c.lo, c.hi, c.back); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
	must(t, d.Close())
	must(t, d.Close())
	if _, _, err := d.Get([]byte("c")); holdfast.KindOf(err) != holdfast.Invalid {
		t.Errorf("get after close: %v", err)
	}
	d = mustOpen(t, f, Options{MustExist: true})
	if _, err := Open(f, "db", Options{}); !errors.Is(err, holdfast.Busy) {
		t.Errorf("second open: %v", err)
	}
	must(t, d.Checkpoint("copy"))
	set(t, d, "z", "later")
	must(t, d.Compact())
	if n, err := d.DiskUsage(); err != nil || n <= 0 {
		t.Errorf("usage %d %v", n, err)
	}
	must(t, d.Close())
	c, err := Open(f, "copy", Options{})
	must(t, err)
	if got := keys(t, c.Reader(), "", "", false); got != "c=3 d= e=5 " {
		t.Errorf("checkpoint: %s", got)
	}
	must(t, c.Close())
	if _, err := Open(f, "none", Options{MustExist: true}); !errors.Is(err, holdfast.NotExist) {
		t.Errorf("no store: %v", err)
	}
}

func TestIndexedBatchReadsItself(t *testing.T) {
	d := mustOpen(t, fsys.NewMem(1), small)
	set(t, d, "a", "1", "b", "2")
	b := d.IndexedBatch()
	b.Set([]byte("c"), []byte("3"))
	b.Delete([]byte("a"))
	if got := keys(t, b.Reader(), "", "", false); got != "b=2 c=3 " {
		t.Error(got)
	}
	if _, ok, err := b.Reader().Get([]byte("a")); ok || err != nil {
		t.Error("deleted key", ok, err)
	}
	b.Discard()
	b.Discard()
	if got := keys(t, d.Reader(), "", "", true); got != "b=2 a=1 " {
		t.Error(got)
	}
	if err := b.Commit(true); holdfast.KindOf(err) != holdfast.Invalid {
		t.Error(err)
	}
	must(t, d.Close())
}

// TestSyncedBatchesSurvivePowerCut commits numbered batches, each rewriting the same group of keys with its number, cuts the
// power at a random sync point, and looks: the group is whole, no older than the last acknowledged batch, no newer than the
// last begun.
func TestSyncedBatchesSurvivePowerCut(t *testing.T) {
	crashes := 300
	if s := os.Getenv("HOLDFAST_SOAK"); s != "" {
		n, err := strconv.Atoi(s)
		must(t, err)
		crashes = min(crashes*n, 100000)
	}
	for seed := range uint64(crashes) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := fsys.NewMem(seed)
		stop, cut := rng.IntN(60), rand.New(rand.NewPCG(seed, 2)) // cut is used in pebble's goroutines, under mu
		var crashed *fsys.Mem
		var mu sync.Mutex
		var acked, ackedAtCrash int
		point := 0
		m.OnSync(func(string, string) {
			mu.Lock()
			defer mu.Unlock()
			if point++; point == stop+1 {
				ackedAtCrash = acked
				crashed = m.Crash(cut, cut.IntN(101))
			}
		})
		begun := 0
		func() {
			d := mustOpen(t, m, small)
			defer d.Close()
			for i := 1; i < 80; i++ {
				mu.Lock()
				done := crashed != nil
				mu.Unlock()
				if done {
					return
				}
				begun = i
				must(t, numbered(d, i, rng.IntN(3000)).Commit(true))
				mu.Lock()
				acked = i
				mu.Unlock()
				if i%17 == 0 {
					must(t, d.Flush())
				}
			}
		}()
		if crashed == nil {
			continue
		}
		d, err := Open(crashed, "db", small)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got := checkGroup(t, d, seed)
		if got < ackedAtCrash || got > begun {
			t.Fatalf("seed %d: batch %d found, %d acknowledged, %d begun", seed, got, ackedAtCrash, begun)
		}
		must(t, numbered(d, begun+1, 10).Commit(true))
		must(t, d.Close())
	}
}

const group = 20

func numbered(d *DB, n, size int) *Batch {
	b := d.Batch()
	for k := range group {
		v := binary.BigEndian.AppendUint64(nil, uint64(n))
		b.Set(fmt.Appendf(nil, "key%02d", k), append(v, bytes.Repeat([]byte{byte(n)}, size)...))
	}
	return b
}

func checkGroup(t *testing.T, d *DB, seed uint64) int {
	t.Helper()
	found, last := 0, -1
	for it, err := range d.Scan(nil, nil) {
		must(t, err)
		n := int(binary.BigEndian.Uint64(it.Value))
		if last >= 0 && n != last {
			t.Fatalf("seed %d: torn batch: %d beside %d", seed, n, last)
		}
		last = n
		found++
	}
	if found != 0 && found != group {
		t.Fatalf("seed %d: %d of %d keys", seed, found, group)
	}
	return max(last, 0)
}

// TestFailedWriteFailsTheStoreAndNotTheProcess fails the n-th operation of each kind on files of each sort, and then opens the
// store again: whatever was acknowledged is there.
func TestFailedWriteFailsTheStoreAndNotTheProcess(t *testing.T) {
	for _, op := range []fsys.Op{fsys.OpWrite, fsys.OpSync, fsys.OpCreate, fsys.OpRename, fsys.OpSyncDir, fsys.OpClose, fsys.OpRemove, fsys.OpPreallocate} {
		for _, glob := range []string{"*.log", "*.sst", "MANIFEST-*", "marker.*", "db"} {
			for _, nth := range []int{1, 2, 4} {
				for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
					t.Run(fmt.Sprintf("%s %s %d %v", op, glob, nth, cause), func(t *testing.T) {
						m := fsys.NewMem(1)
						must(t, mustOpen(t, m, small).Close())
						fault := fsys.NewFault(m)
						w := fault.Inject(fsys.Rule{Op: op, Glob: glob, Nth: nth, Times: fsys.Forever, Err: cause})
						acked, err := 0, error(nil)
						d, err := Open(fault, "db", small)
						for i := 1; err == nil && i < 60; i++ {
							if err = numbered(d, i, 1000).Commit(true); err == nil {
								acked = i
							}
						}
						if err != nil && d != nil {
							kind := holdfast.KindOf(err)
							if kind != holdfast.Internal && kind != holdfast.NoSpace || holdfast.HintOf(err) == "" {
								t.Errorf("%v (%v) hint %q", err, kind, holdfast.HintOf(err))
							}
							if d.Failed() == nil {
								t.Errorf("not marked as failed: %v", err)
							}
							if _, _, err := d.Get([]byte("key01")); err == nil {
								t.Error("a failed store was read")
							}
						}
						if d != nil {
							must(t, d.Close())
						}
						_ = w.Failed()
						d = mustOpen(t, m, small)
						if got := checkGroup(t, d, 0); got < acked || got > acked+1 {
							t.Errorf("found %d, acknowledged %d", got, acked)
						}
						must(t, d.Close())
					})
				}
			}
		}
	}
}

func TestFullMediumIsRefusedBeforehandAndIsNoFailure(t *testing.T) {
	fault := fsys.NewFault(fsys.NewMem(1))
	d := mustOpen(t, fault, small)
	must(t, numbered(d, 1, 100).Commit(true))
	fault.SetFree(100 << 10)
	if err := numbered(d, 2, 100).Commit(true); !errors.Is(err, holdfast.NoSpace) || holdfast.HintOf(err) == "" {
		t.Errorf("grown on a full medium: %v", err)
	}
	must(t, d.Failed())
	b := d.Batch()
	b.Delete([]byte("key00"))
	must(t, b.Commit(true))
	fault.SetFree(1 << 30)
	must(t, numbered(d, 3, 100).Commit(true))
	if got := checkGroup(t, d, 0); got != 3 {
		t.Errorf("found %d", got)
	}
	must(t, d.Close())
}

func TestDamageIsReportedAsCorrupt(t *testing.T) {
	m := fsys.NewMem(1)
	d := mustOpen(t, m, small)
	for i := range 200 {
		set(t, d, fmt.Sprintf("key%03d", i), string(bytes.Repeat([]byte{byte(i)}, 1000)))
	}
	must(t, d.Compact())
	must(t, d.Close())
	names, err := m.List("db")
	must(t, err)
	for _, n := range names {
		if len(n) > 4 && n[len(n)-4:] == ".sst" {
			w, err := m.OpenWrite("db/" + n)
			must(t, err)
			_, err = w.WriteAt([]byte("damage"), 500)
			must(t, err)
			must(t, w.Close())
		}
	}
	d, err = Open(m, "db", small)
	if err == nil {
		for _, e := range d.Scan(nil, nil) {
			err = e
		}
		if d.Failed() == nil {
			t.Error("not marked as failed")
		}
		must(t, d.Close())
	}
	if !errors.Is(err, holdfast.Corrupt) || holdfast.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
}

func TestWritersAndReadersTogether(t *testing.T) {
	d := mustOpen(t, fsys.NewMem(1), small)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 200 {
				b := d.Batch()
				b.Set(fmt.Appendf(nil, "%d-%04d", w, i), make([]byte, 300))
				if err := b.Commit(i%3 == 0); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 30 {
				for _, err := range d.Scan(nil, nil) {
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	n := 0
	for range d.Scan(nil, nil) {
		n++
	}
	if n != 800 {
		t.Errorf("%d keys", n)
	}
	must(t, d.Close())
}
