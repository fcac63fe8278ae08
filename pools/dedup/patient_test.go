package dedup

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
)

// storeLab is a lab on a store that can be spoiled, run as drivers of slow and distant stores run the engine.
func storeLab(t *testing.T, env pools.Env, o OpenOptions) (*lab, *blob.Fault, func()) {
	dir, err := dirstore.Open(fsys.NewMem(1), dirstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	store := blob.NewFault(dir)
	l := &lab{t: t, id: holdfast.PoolID{ID: holdfast.NewID()}, vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}
	if err := CreateStore(background, env, store, l.id, CreateOptions{Chunking: defaultChunking(t)}); err != nil {
		t.Fatal(err)
	}
	reopen := func() {
		t.Helper()
		if l.p != nil {
			if err := l.p.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if l.p, err = OpenStore(background, env, store, l.id, o); err != nil {
			t.Fatal(err)
		}
	}
	reopen()
	t.Cleanup(func() {
		if err := l.p.Close(); err != nil {
			t.Error(err)
		}
	})
	return l, store, reopen
}

// Goal: a set that one listing leaves out loses nothing: neither with what the index store remembers, nor without it.
func TestAListingThatIsBehindCostsNoSet(t *testing.T) {
	for _, remembered := range []bool{true, false} {
		env := pools.Env{}
		if remembered {
			env.StateDir = t.TempDir()
		}
		l, store, reopen := storeLab(t, env, OpenOptions{Patient: true})
		img := noise(rand.New(rand.NewPCG(1, 1)), 1<<20)
		id := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
		// Known to the process, or to the index store: the record is asked for.
		store.Inject(blob.FaultRule{Verb: blob.VerbList, Glob: "*.set", Hidden: true})
		if rep := l.collect(); rep.ChunksDead != 0 {
			t.Errorf("remembered %v: %d chunks of a set that was not listed were condemned", remembered, rep.ChunksDead)
		}
		store.Clear()
		// Not known at all after a restart without index store: the next listing has it, before anything is removed.
		times := 1
		if !remembered {
			times = 2 // the listing at open, and that of the Collect
		}
		store.Inject(blob.FaultRule{Verb: blob.VerbList, Glob: "*.set", Hidden: true, Nth: 1, Times: 2 * times})
		reopen()
		l.collect()
		store.Clear()
		l.collect()
		l.same(id, img)
		l.collect()
		if rep := l.verify(); len(rep.Damaged) != 0 {
			t.Errorf("remembered %v: %+v", remembered, rep.Damaged[0])
		}
	}
}

// Goal: a container that one listing leaves out is no alarm and no loss.
func TestAContainerThatIsNotListedIsAskedFor(t *testing.T) {
	var alarms int
	env := pools.Env{StateDir: t.TempDir(), Listener: func(e holdfast.Event) {
		if e.Severity == holdfast.Alarm {
			alarms++
		}
	}}
	l, store, reopen := storeLab(t, env, OpenOptions{})
	img := noise(rand.New(rand.NewPCG(1, 1)), 1<<20)
	id := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
	store.Inject(blob.FaultRule{Verb: blob.VerbList, Glob: "containers/*/*", Hidden: true, Times: -1})
	reopen()
	l.same(id, img)
	l.collect()
	l.same(id, img)
	if alarms != 0 {
		t.Errorf("%d alarms", alarms)
	}
}

// Goal: a patient pool removes what two Collects in a row found dead, and gives compacted containers back too.
func TestPatientCollectRemovesWithTheNext(t *testing.T) {
	l, store, _ := storeLab(t, pools.Env{}, OpenOptions{Patient: true})
	rng := rand.New(rand.NewPCG(1, 1))
	img := noise(rng, 1<<20)
	first := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
	second := l.must(l.backup(1<<20, first, write{off: 0, bytes: img[:900<<10]}, write{off: 900 << 10, zeros: 124 << 10}))
	third := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: noise(rng, 1<<20)}))
	if err := errors.Join(l.p.Delete(background, first), l.p.Delete(background, third)); err != nil {
		t.Fatal(err)
	}
	count := func() int {
		names, err := store.List(background, containersDir)
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	before := count()
	if rep := l.collect(); rep.Removed != 0 || rep.Pending == 0 || count() < before {
		t.Errorf("the first collect removed %d, left %d of %d: %+v", rep.Removed, count(), before, rep)
	}
	if rep := l.collect(); rep.Removed == 0 || count() >= before {
		t.Errorf("the second collect left %d of %d: %+v", count(), before, rep)
	}
	want := slices.Clone(img)
	clear(want[900<<10:])
	l.same(second, want)
}

// Goal: the driver hears of all containers a set needs before its record is written, and can refuse.
func TestBeforeRecordHearsOfSharedContainers(t *testing.T) {
	var heard []string
	var refuse error
	l, _, _ := storeLab(t, pools.Env{}, OpenOptions{BeforeRecord: func(_ context.Context, names []string) error {
		all := len(names)
		heard = slices.DeleteFunc(names, func(n string) bool { return !blob.In(n, containersDir) })
		if all != len(heard)+2 {
			t.Errorf("%d names, not those of the containers and the superblocks", all)
		}
		return refuse
	}})
	img := noise(rand.New(rand.NewPCG(1, 1)), 256<<10)
	first := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
	if len(heard) != 2 {
		t.Errorf("first set: %q", heard)
	}
	l.must(l.backup(1<<20, first, write{off: 512 << 10, bytes: noise(rand.New(rand.NewPCG(2, 1)), 4096)}))
	if len(heard) != 3 { // the data of the first, data and recipe of its own
		t.Errorf("second set: %q", heard)
	}
	refuse = holdfast.Errorf(holdfast.Unsupported, "hold", "no")
	id, err := l.backup(1<<20, first)
	if !errors.Is(err, holdfast.Unsupported) {
		t.Errorf("commit: %v", err)
	}
	if _, err := l.p.Open(background, id); !errors.Is(err, holdfast.NotExist) {
		t.Errorf("open: %v", err)
	}
	objects, err := l.p.Objects(background, first)
	if err != nil || len(objects) != 5 {
		t.Errorf("objects: %q, %v", objects, err)
	}
}

// Goal: what a listing left out at open is found when it is needed, and not before it is, twice or after it was removed.
func TestContainersThatWereNotListedAreFoundWhenNeeded(t *testing.T) {
	l, store, reopen := storeLab(t, pools.Env{}, OpenOptions{Patient: true})
	img := noise(rand.New(rand.NewPCG(1, 1)), 1<<20)
	id := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
	for _, hidden := range []string{"containers/*/*1", "containers/*/*2", "containers/*/*"} {
		store.Inject(blob.FaultRule{Verb: blob.VerbList, Glob: hidden, Hidden: true})
		reopen()
		l.same(id, img)
		if n := len(l.p.byID); n != 2 {
			t.Errorf("%s: %d containers are known", hidden, n)
		}
		l.same(id, img)
		l.collect()
		l.collect()
		l.same(id, img)
		store.Clear()
	}
}
