package dedup

import (
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// Goal: a container that vanishes is reported with the sets and bytes it hits, whether the pool was open or not, and the next full backup heals.
func TestMissingContainerIsReportedAndHealed(t *testing.T) {
	for _, closed := range []bool{false, true} {
		fs := fsys.NewMem(1)
		l := newLab(t, fs)
		img := noise(rand.New(rand.NewPCG(1, 2)), 256<<10)
		id := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
		names, err := l.p.med.List(background, containersDir)
		if err != nil || len(names) != 2 {
			t.Fatalf("%v %v", names, err)
		}
		if err := fs.Remove(names[0]); err != nil {
			t.Fatal(err)
		}
		if closed {
			l.reopen()
		}
		rep := l.verify()
		if len(rep.Damaged) == 0 || rep.Damaged[0].Set != id || rep.Damaged[0].VM != "vm" || rep.Damaged[0].Extents[0].Len != 4096 {
			t.Fatalf("closed %v: %+v", closed, rep.Damaged)
		}
		if _, err := l.restore(id); err == nil {
			t.Fatal("restored without a container")
		}
		again := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
		want := append(slices.Clone(img), make([]byte, 1<<20-len(img))...)
		l.same(again, want)
		l.same(id, want) // the chunks are back for the damaged set too
	}
}

// Goal: a damaged chunk is no dedup hit from the first time a read or Verify finds it, and the next backup heals all sets.
func TestDamagedChunkIsStoredAnew(t *testing.T) {
	for _, finder := range []string{"verify", "read"} {
		fs := fsys.NewMem(1)
		l := newLab(t, fs)
		img := noise(rand.New(rand.NewPCG(1, 2)), 256<<10)
		want := append(slices.Clone(img), make([]byte, 1<<20-len(img))...)
		id := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
		corrupt(t, fs)
		if finder == "verify" {
			if rep := l.verify(); len(rep.Damaged) == 0 {
				t.Fatal("verify found nothing")
			}
		}
		if _, err := l.restore(id); holdfast.KindOf(err) != holdfast.Corrupt {
			t.Fatalf("restore of damaged bytes: %v", err)
		}
		l.reopen() // the mark outlasts the process
		again := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
		l.same(again, want)
		l.same(id, want)
	}
}

// Goal: an I/O error at any operation fails the session or the collect cleanly: the pool stays usable, acknowledged sets restore, staging is empty.
// Method: the n-th create, write, sync, rename or directory sync fails, for every n.
func TestEveryWriteErrorFailsCleanly(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	base, extra := noise(rng, 128<<10), noise(rng, 64<<10)
	for _, at := range []fsys.Rule{{Op: fsys.OpCreate, Glob: "staging/*"}, {Op: fsys.OpWrite, Glob: "staging/*"}, {Op: fsys.OpSync, Glob: "staging/*"},
		{Op: fsys.OpRename, Glob: "containers/*/*"}, {Op: fsys.OpRename, Glob: "sets/*"}, {Op: fsys.OpSyncDir, Glob: "containers/*"}, {Op: fsys.OpSyncDir, Glob: "sets"}} {
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
			at.Err = cause
			for at.Nth = 1; failNth(t, at, base, extra); at.Nth++ {
			}
			if at.Nth == 1 {
				t.Fatalf("%s of %s never came up", at.Op, at.Glob)
			}
		}
	}
}

// Goal: a kv folder that fails in the middle costs nothing but the time to read footers.
func TestFailingIndexFolderIsNoFailure(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for _, op := range []fsys.Op{fsys.OpWrite, fsys.OpSync, fsys.OpCreate} {
		fault := fsys.NewFault(fsys.NewMem(1))
		l := newLab(t, fault)
		img := noise(rng, 1<<20)
		id := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
		fault.Inject(fsys.Rule{Op: op, Glob: "index/*", Err: syscall.EIO, Times: fsys.Forever})
		id = l.must(l.backup(1<<20, id, write{bytes: img[:4096]}))
		l.same(id, img)
		if _, err := l.p.Collect(background, pools.CollectOptions{}); err != nil && op != fsys.OpSync && op != fsys.OpWrite {
			t.Fatal(err)
		}
		fault.Clear()
		l.reopen()
		l.same(id, img)
		l.collect()
		l.same(id, img)
	}
}

// failNth reports whether the n-th operation came up.
func failNth(t *testing.T, at fsys.Rule, base, extra []byte) bool {
	t.Helper()
	op, n := at.Op, at.Nth
	fault := fsys.NewFault(fsys.NewMem(1))
	l := newLab(t, fault)
	want := append(slices.Clone(base), make([]byte, 1<<20-len(base))...)
	id := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: base}))
	w := fault.Inject(at)
	second, err := l.backup(1<<20, id, write{off: 512 << 10, bytes: extra})
	hit := w.Failed() > 0
	fault.Clear()
	if hit == (err == nil) {
		t.Fatalf("%v %d: hit %v, error %v", op, n, hit, err)
	}
	if err != nil {
		if _, err := l.p.Open(background, second); err == nil {
			t.Fatalf("%v %d: a failed set is there", op, n)
		}
	}
	if names, _ := fault.List(folderStaging); len(names) != 0 {
		t.Fatalf("%v %d: staging holds %v", op, n, names)
	}
	l.same(id, want)
	third := l.must(l.backup(1<<20, id, write{off: 512 << 10, bytes: extra}))
	copy(want[512<<10:], extra)
	l.same(third, want)
	l.collect()
	l.same(third, want)
	return hit
}

// Goal: on a medium without a free byte sets can be deleted and whole containers are given back, over a restart too.
func TestFullMediumIsFreed(t *testing.T) {
	fault := fsys.NewFault(fsys.NewMem(1))
	l := newLab(t, fault)
	rng := rand.New(rand.NewPCG(2, 2))
	img := noise(rng, 256<<10)
	keep := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
	gone := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: noise(rng, 256<<10)}))
	fault.SetFree(0)
	if _, err := l.backup(1<<20, keep, write{bytes: noise(rng, 64<<10)}); holdfast.KindOf(err) != holdfast.NoSpace {
		t.Fatalf("backup on a full medium: %v", err)
	}
	if err := l.p.Delete(background, gone); err != nil {
		t.Fatal(err)
	}
	rep := l.collect()
	if rep.Removed != 2 || rep.Freed < 256<<10 {
		t.Fatalf("report: %+v", rep)
	}
	l.same(keep, append(slices.Clone(img), make([]byte, 1<<20-len(img))...))
	l.reopen()
	l.same(keep, append(slices.Clone(img), make([]byte, 1<<20-len(img))...))
}

// Goal: a container that a Collect removed just before a crash is no alarm at the next open; one that vanished otherwise is.
func TestOnlyUnexpectedAbsenceIsAnAlarm(t *testing.T) {
	fs := fsys.NewMem(1)
	l := newLab(t, fs)
	l.p.st.put(&contRecord{id: 7, size: 1, prints: []uint64{5, 6}})
	l.p.st.put(&contRecord{id: 8, size: 1, prints: []uint64{5, 6}})
	if err := l.p.st.mark([]markUpdate{{id: 8, n: 2, dead: bitmap(nil).complement(2)}}); err != nil {
		t.Fatal(err)
	}
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	var alarms []string
	p, err := OpenOn(background, pools.Env{Listener: func(e holdfast.Event) { alarms = append(alarms, e.Fields["container"]) }}, fs, l.id)
	if err != nil {
		t.Fatal(err)
	}
	l.p = p
	if !slices.Equal(alarms, []string{contName(7)}) {
		t.Fatalf("alarms: %v", alarms)
	}
}
