package standard

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// A tale is a small history on a file system that fails: full, increment, delete of the full, collect. It remembers what
// was acknowledged.
type tale struct {
	l     *lab
	f     *fsys.Fault
	base  []byte
	next  []byte
	full  holdfast.SetID
	inc   holdfast.SetID
	there map[holdfast.SetID][]byte // acknowledged sets
	maybe map[holdfast.SetID]bool   // sets of which a deletion failed
}

const taleSize = 256 << 10

func newTale(t *testing.T) *tale {
	f := fsys.NewFault(fsys.NewMem(1))
	rng := rand.New(rand.NewPCG(7, 7))
	x := &tale{f: f, l: newLab(t, shape{target: 32 << 10}, f), there: map[holdfast.SetID][]byte{}, maybe: map[holdfast.SetID]bool{}}
	x.base, x.next = noise(rng, 128<<10), noise(rng, 100<<10)
	return x
}

// run tells the tale; errors are what is under test.
func (x *tale) run() (failures int) {
	note := func(err error) bool {
		if err != nil {
			failures++
		}
		return err == nil
	}
	var err error
	if x.full, err = x.l.backup(taleSize, holdfast.SetID{}, write{0, x.base}); note(err) {
		x.there[x.full] = padded(x.base, taleSize)
		if x.inc, err = x.l.backup(taleSize, x.full, write{4096, x.next}); note(err) {
			x.there[x.inc] = over(x.there[x.full], 4096, x.next)
		}
		if err := x.l.p.Delete(background, x.full); note(err) {
			delete(x.there, x.full)
		} else {
			x.maybe[x.full] = true
		}
	}
	_, err = x.l.p.Collect(background, pools.CollectOptions{})
	note(err)
	return failures
}

// check looks at what is there: every acknowledged set and no other, all whole.
func (x *tale) check(when string) {
	t := x.l.t
	t.Helper()
	n := 0
	for m, err := range x.l.p.Sets(background) {
		if err != nil {
			if x.maybe[m.ID] {
				continue
			}
			t.Fatalf("%s: list: %v", when, err)
		}
		n++
		if _, ok := x.there[m.ID]; !ok {
			t.Fatalf("%s: set %s is there, though its commit failed or it was deleted", when, m.ID)
		}
	}
	for id, want := range x.there {
		got, err := x.l.restore(id)
		if err != nil && x.maybe[id] && holdfast.KindOf(err) != holdfast.Internal {
			continue // its record is gone; only the sync of that failed
		}
		if err != nil || string(got) != string(want) {
			t.Fatalf("%s: set %s: %v", when, id, err)
		}
	}
	if len(x.there)-len(x.maybe) > n {
		t.Fatalf("%s: %d sets are listed, want %d", when, n, len(x.there))
	}
}

// after checks that the pool works on, now and opened again, and that nothing is left behind.
func (x *tale) after(when string) {
	x.l.t.Helper()
	x.check(when)
	for id := range x.maybe {
		x.l.delete(id)
		delete(x.there, id)
	}
	x.maybe = nil
	id, err := x.l.backup(taleSize, holdfast.SetID{}, write{512, x.base})
	if err != nil {
		x.l.t.Fatalf("%s: backup afterwards: %v", when, err)
	}
	x.there[id] = padded(over(make([]byte, 512+len(x.base)), 512, x.base), taleSize)
	x.l.collect()
	x.check(when + ", collected")
	x.l.reopen()
	x.check(when + ", opened again")
	if rep := x.l.verify(); len(rep.Damaged) > 0 || rep.Sets != len(x.there) {
		x.l.t.Fatalf("%s: verify: %+v", when, rep)
	}
	for id := range x.there {
		x.l.delete(id)
	}
	x.l.collect()
	if left := x.l.objects(""); len(left) > 0 {
		x.l.t.Fatalf("%s: everything was deleted, and this is left: %v", when, left)
	}
	if u := x.l.usage(); u.Stored != 0 || u.Data != 0 {
		x.l.t.Fatalf("%s: everything was deleted, and usage is %+v", when, u)
	}
	if n := x.l.p.paths[1].taken.Load(); n != 0 {
		x.l.t.Fatalf("%s: everything was deleted, and %d bytes count against the quota", when, n)
	}
}

// Goal: an error at any operation loses no acknowledged set, makes no set visible whose Commit failed, and leaves a pool that works and
// can be emptied. Method: the n-th operation of each kind fails, once or from there on, for every n.
func TestAnyErrorLosesNothingAcknowledged(t *testing.T) {
	ops := []fsys.Op{fsys.OpCreate, fsys.OpWrite, fsys.OpSync, fsys.OpRename, fsys.OpSyncDir, fsys.OpMkdir, fsys.OpRemove, fsys.OpOpen, fsys.OpRead, fsys.OpStat, fsys.OpList, fsys.OpUsage, fsys.OpClose}
	for _, op := range ops {
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
			for _, times := range []int{1, fsys.Forever} {
				n := 1
				for ; ; n++ {
					x := newTale(t)
					w := x.f.Inject(fsys.Rule{Op: op, Nth: n, Times: times, Err: cause})
					x.run()
					hit := w.Failed() > 0
					x.f.Clear()
					if !hit {
						break
					}
					x.after(fmt.Sprintf("%s number %d fails with %v, times %d", op, n, cause, times))
				}
				if n == 1 {
					t.Fatalf("%s never came up", op)
				}
			}
		}
	}
}

// Goal: on a medium without a free byte backups fail cleanly with NoSpace, and sets can be deleted, which gives their space back.
// Method: the tale with less and less space, at every few KiB.
func TestFullMediumIsFreed(t *testing.T) {
	for free := int64(0); ; free += 7 << 10 {
		x := newTale(t)
		x.f.SetFree(free)
		failures := x.run()
		if id := x.full; x.there[id] == nil && x.inc.IsZero() && failures == 0 {
			t.Fatal("nothing was backed up and nothing failed")
		}
		x.check("while it is full")
		for id := range x.there {
			x.l.delete(id)
		}
		x.there = map[holdfast.SetID][]byte{}
		if left := x.l.objects(""); len(left) > 0 {
			t.Fatalf("%d bytes free: everything was deleted, and this is left: %v", free, left)
		}
		x.f.Clear()
		x.after("space is back")
		if failures == 0 {
			if free == 0 {
				t.Fatal("nothing failed without space")
			}
			return
		}
	}
}
