package standard

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// Goal: deleting a set gives back at once what no other set names, in whatever order sets go, over restarts, without a Collect.
func TestDeleteFreesSpaceAtOnce(t *testing.T) {
	for _, restart := range []bool{false, true} {
		rng := rand.New(rand.NewPCG(1, 1))
		l := newLab(t, shape{paths: 1, target: 16 << 10})
		base, mid, top := noise(rng, 128<<10), noise(rng, 64<<10), noise(rng, 64<<10)
		full := l.must(l.backup(128<<10, holdfast.SetID{}, write{0, base}))
		inc := l.must(l.backup(128<<10, full, write{0, mid}))
		top2 := l.must(l.backup(128<<10, inc, write{32 << 10, top}))
		want := over(over(base, 0, mid), 32<<10, top)
		before := l.usage()
		l.delete(full)
		if restart {
			l.reopen()
		}
		// The files of the first half of the full are nobody's; those of the second half are inherited.
		if got := before.Stored - l.usage().Stored; got < 60<<10 {
			t.Fatalf("deleting the full gave %d bytes back", got)
		}
		l.same(inc, over(base, 0, mid))
		l.same(top2, want)
		l.delete(inc)
		l.same(top2, want)
		if restart {
			l.reopen()
		}
		l.delete(top2)
		if left := l.objects(""); len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
		if u := l.usage(); u.Stored != 0 || u.Sets != 0 {
			t.Fatalf("usage: %+v", u)
		}
	}
}

// Goal: a data file of a deleted set of which little is needed is rewritten, restores as before, over restarts and again, and a file of which
// most is needed is left alone. Method: increments that eat more and more of a full.
func TestCollectRewritesPartlyNeededFiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	l := newLab(t, shape{paths: 2, target: 1 << 20})
	want := noise(rng, 512<<10)
	last := l.must(l.backup(512<<10, holdfast.SetID{}, write{0, want}))
	rewritten := 0
	for i := range 7 { // 64 KiB of the full die each time
		p := noise(rng, 64<<10)
		next := l.must(l.backup(512<<10, last, write{int64(i) << 16, p}))
		want = over(want, i<<16, p)
		l.delete(last)
		last = next
		dry, err := l.p.Collect(background, pools.CollectOptions{DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		before := l.usage()
		rep := l.collect()
		after := l.usage()
		if dry.Rewritten != rep.Rewritten || before.Stored-after.Stored != rep.Freed {
			t.Fatalf("dry %+v, real %+v, usage %+v, then %+v", dry, rep, before, after)
		}
		if rewritten += rep.Rewritten; i < 3 && rewritten > 0 {
			t.Fatal("a file of which most is needed was rewritten")
		}
		l.same(last, want)
		if i != 4 { // also with what the process knew
			l.reopen()
			l.same(last, want)
			if u := l.usage(); u != after {
				t.Fatalf("usage %+v, opened again %+v", after, u)
			}
		}
		if rep := l.verify(); len(rep.Damaged) > 0 {
			t.Fatalf("%+v", rep.Damaged)
		}
	}
	if rewritten < 2 || len(l.objects(".c2.data")) != 1 || len(l.objects(".c1.data")) != 0 {
		t.Fatalf("rewritten %d times: %v", rewritten, l.objects(".data"))
	}
	if u := l.usage(); u.Stored > 700<<10 {
		t.Fatalf("512 KiB of data take %d bytes", u.Stored)
	}
}

// Goal: what is open while its files are rewritten goes on reading, and the old files go when it is closed.
func TestRewriteWaitsForReaders(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	l := newLab(t, shape{paths: 1, target: 1 << 20})
	base, p := noise(rng, 256<<10), noise(rng, 200<<10)
	full := l.must(l.backup(256<<10, holdfast.SetID{}, write{0, base}))
	inc := l.must(l.backup(256<<10, full, write{0, p}))
	want := over(base, 0, p)
	l.delete(full)
	s, err := l.p.Open(background, inc)
	if err != nil {
		t.Fatal(err)
	}
	out, first := make(buffer, 256<<10), true
	for pc, err := range s.Read(background, l.disk, holdfast.Extents{{Off: 0, Len: 256 << 10}}) {
		if err != nil {
			t.Fatal(err)
		}
		if first {
			first = false
			if rep := l.collect(); rep.Rewritten != 1 {
				t.Fatalf("%+v", rep)
			}
		}
		pc.Release()
	}
	if err := pools.ReadDisk(background, s, l.disk, holdfast.Extents{{Off: 0, Len: 256 << 10}}, out, pools.ReadOptions{Domain: l.p.domain}); err != nil || string(out) != string(want) {
		t.Fatalf("the open set: %v", err)
	}
	if n := len(l.objects("disk-0.000001.")); n != 3 { // the full's two generations, the increment's
		t.Fatalf("%d data files while the set is open: %v", n, l.objects(".data"))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(l.objects("disk-0.000001.")); n != 2 {
		t.Fatalf("%d data files after it was closed: %v", n, l.objects(".data"))
	}
	l.same(inc, want)
}

// Goal: sets go to the path with the most room, data flows over to the next path when a quota is reached, no quota is ever
// exceeded by data, and NoSpace tells what to do.
func TestQuotasSpreadAPool(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	l := newLab(t, shape{paths: 3, quota: 300 << 10, target: 64 << 10})
	img := noise(rng, 500<<10)
	id := l.must(l.backup(1<<20, holdfast.SetID{}, write{0, img}))
	used := 0
	for _, pa := range l.p.paths[1:] {
		if n := pa.taken.Load(); n > 0 {
			used++
			if n > 310<<10 {
				t.Fatalf("path %d has %d bytes", pa.number, n)
			}
		}
	}
	if used < 2 {
		t.Fatalf("500 KiB lie on %d paths with quotas of 300", used)
	}
	l.same(id, padded(img, 1<<20))
	if _, err := l.backup(1<<20, holdfast.SetID{}, write{0, noise(rng, 600<<10)}); holdfast.KindOf(err) != holdfast.NoSpace || !strings.Contains(holdfast.HintOf(err), "quota") {
		t.Fatalf("beyond all quotas: %v (%s)", err, holdfast.HintOf(err))
	}
	if u := l.usage(); u.Free > 900<<10-u.Stored || u.Size > 900<<10 {
		t.Fatalf("usage with quotas: %+v", u)
	}
	l.reopen()
	l.must(l.backup(1<<20, id, write{0, noise(rng, 200<<10)}))
	for _, pa := range l.p.paths[1:] {
		if n := pa.taken.Load(); n > 310<<10 {
			t.Fatalf("path %d has %d bytes after a restart", pa.number, n)
		}
	}
}

// Goal: a lost path takes the sets on it and nothing else, it is said clearly, nothing is removed meanwhile, and it all comes back
// with the path, or goes on without it once it is given up.
func TestLostPathLosesOnlyItsSets(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 1))
	l := newLab(t, shape{paths: 2, target: 64 << 10})
	ids, images := map[uint16]holdfast.SetID{}, map[uint16][]byte{}
	for len(ids) < 2 {
		img := noise(rng, 128<<10)
		id := l.must(l.backup(128<<10, holdfast.SetID{}, write{0, img}))
		ids[l.p.sets[id].path], images[l.p.sets[id].path] = id, img
	}
	lostFS := l.pl.fss[1]
	l.pl.fss[1] = nil
	var told []holdfast.Event
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := OpenOn(background, pools.Env{Listener: func(e holdfast.Event) { told = append(told, e) }}, l.pl.stores(t), l.pl.id)
	if err != nil {
		t.Fatal(err)
	}
	l.p = p
	if len(told) != 1 || told[0].Severity != holdfast.Alarm || !strings.Contains(told[0].Text, "path b") {
		t.Fatalf("told: %+v", told)
	}
	l.same(ids[1], images[1])
	var listed []error
	for m, err := range l.p.Sets(background) {
		if err != nil {
			listed = append(listed, err)
		} else if m.ID != ids[1] && l.p.sets[m.ID].path != 1 {
			t.Fatalf("listed: %s", m.ID)
		}
	}
	if len(listed) != 1 || holdfast.KindOf(listed[0]) != holdfast.Offline || !strings.Contains(listed[0].Error(), "(b)") {
		t.Fatalf("listed: %v", listed)
	}
	if _, err := l.p.Collect(background, pools.CollectOptions{}); holdfast.KindOf(err) != holdfast.Offline {
		t.Fatalf("collect with a lost path: %v", err)
	}
	if rep := l.verify(); len(rep.Damaged) != 1 || rep.Damaged[0].Where != "b" {
		t.Fatalf("%+v", rep)
	}
	more := noise(rng, 64<<10)
	inc := l.must(l.backup(128<<10, ids[1], write{0, more}))
	l.delete(ids[1])
	l.same(inc, over(images[1], 0, more))
	l.pl.fss[1] = lostFS
	l.reopen()
	l.same(ids[2], images[2])
	l.same(inc, over(images[1], 0, more))
	l.collect()
	l.same(inc, over(images[1], 0, more))
	l.pl.fss[1] = nil
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	if l.p, err = OpenOn(background, pools.Env{}, l.pl.stores(t)[:1], l.pl.id, 2); err != nil {
		t.Fatal(err)
	}
	l.collect()
	l.same(inc, over(images[1], 0, more))
	if _, err := l.p.Open(background, ids[2]); holdfast.KindOf(err) != holdfast.NotExist {
		t.Fatalf("a set on a path that was given up: %v", err)
	}
}

// Goal: a set on a lost path finds what it inherits from another path when it comes back, though the parent was deleted meanwhile.
func TestLostPathsSetsKeepWhatTheyInherit(t *testing.T) {
	rng := rand.New(rand.NewPCG(12, 1))
	l := newLab(t, shape{paths: 2, quota: 1 << 20, target: 64 << 10})
	base := noise(rng, 256<<10)
	full := l.must(l.backup(256<<10, holdfast.SetID{}, write{0, base}))
	inc := l.must(l.backup(256<<10, full, write{0, base[:4096]}))
	if l.p.sets[full].path == l.p.sets[inc].path {
		t.Fatal("both sets lie on one path: the test tests nothing")
	}
	i := l.p.sets[inc].path - 1
	whole := l.pl.fss[i]
	l.pl.fss[i] = nil
	l.reopen()
	l.delete(full)
	if _, err := l.p.Collect(background, pools.CollectOptions{}); err == nil {
		t.Fatal("a collect with a lost path")
	}
	l.pl.fss[i] = whole
	l.reopen()
	l.collect()
	l.same(inc, base)
}

// Goal: an increment whose data lies on two paths says at once that one is missing.
func TestSetThatNeedsALostPathIsOffline(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 1))
	l := newLab(t, shape{paths: 2, quota: 200 << 10, target: 64 << 10})
	img := noise(rng, 300<<10)
	id := l.must(l.backup(512<<10, holdfast.SetID{}, write{0, img}))
	for i := range l.pl.fss {
		whole := l.pl.fss[i]
		home := l.p.sets[id].path == uint16(i+1)
		l.pl.fss[i] = nil
		l.reopen()
		_, err := l.p.Open(background, id)
		if holdfast.KindOf(err) != holdfast.Offline { // NotExist would be a lie also where the record is on the lost path
			t.Fatalf("home %v: %v", home, err)
		}
		if !home {
			if rep := l.verify(); len(rep.Damaged) < 2 || rep.Damaged[1].Set != id || rep.Damaged[1].VM != "Mail Server" {
				t.Fatalf("%+v", rep)
			}
		}
		l.pl.fss[i] = whole
		l.reopen()
		l.same(id, padded(img, 512<<10))
	}
}

// Goal: a path can be added to a pool and is used.
func TestPathIsAdded(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	l := newLab(t, shape{paths: 1, quota: 200 << 10, target: 32 << 10})
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	more := fsys.NewMem(9)
	s, err := openDir(more)
	if err != nil {
		t.Fatal(err)
	}
	if err := AddOn(background, pools.Env{}, l.pl.stores(t), l.pl.id, Path{Label: "c", Store: s}); err != nil {
		t.Fatal(err)
	}
	if err := AddOn(background, pools.Env{}, l.pl.stores(t), l.pl.id, Path{Label: "c", Store: s}); holdfast.KindOf(err) != holdfast.Exist {
		t.Fatalf("added again: %v", err)
	}
	l.p = l.pl.open(t) // without the new path: as before
	l.pl.fss = append(l.pl.fss, more)
	l.reopen()
	img := noise(rng, 350<<10)
	id := l.must(l.backup(350<<10, holdfast.SetID{}, write{0, img}))
	l.reopen()
	l.same(id, img)
	if len(l.objects("2:")) == 0 && l.p.paths[2].taken.Load() == 0 {
		t.Fatal("the new path is not used")
	}
}

// faulty makes a pool of one path whose store is told what to spoil.
func faulty(t *testing.T) (*lab, func() *blob.Fault) {
	var f *blob.Fault
	l := newLab(t, shape{paths: 1, target: 32 << 10, wrap: func(s blob.Store) blob.Store {
		f = blob.NewFault(s)
		return f
	}})
	return l, func() *blob.Fault { return f }
}

// Goal: a set whose Commit failed is not there, though the medium stored its record and only lost the answer, and though it could
// not be removed at once; meanwhile nothing goes that it names.
func TestLostAnswerOfTheRecordIsNoCommit(t *testing.T) {
	lost := holdfast.Errorf(holdfast.Transient, "put", "the connection was cut")
	for _, stuck := range []bool{false, true} {
		for _, restart := range []bool{false, true} {
			rng := rand.New(rand.NewPCG(8, 1))
			l, f := faulty(t)
			base := noise(rng, 128<<10)
			full := l.must(l.backup(128<<10, holdfast.SetID{}, write{0, base}))
			f().Inject(blob.FaultRule{Verb: blob.VerbCommit, Glob: recordName, Err: lost, Done: true})
			if stuck {
				f().Inject(blob.FaultRule{Verb: blob.VerbRemove, Glob: recordName, Err: lost})
			}
			id, err := l.backup(128<<10, full, write{0, base[:32<<10]})
			if err == nil {
				t.Fatal("the commit did not fail")
			}
			if _, err := l.p.Open(background, id); holdfast.KindOf(err) != holdfast.NotExist {
				t.Fatalf("the set is there: %v", err)
			}
			f().Clear()
			l.delete(full)
			if restart && stuck { // the record was there all the time: now it is a set, and it must be whole
				l.reopen()
				l.same(id, base)
				l.delete(id)
			}
			l.collect()
			if left := l.objects(""); len(left) > 0 {
				t.Fatalf("stuck %v: left %v", stuck, left)
			}
		}
	}
}

// Goal: a marker that could not be removed after the commit does not make the next Open take the folder for garbage, not even when
// the set is deleted and later ones need its data.
func TestStuckMarkerIsHarmless(t *testing.T) {
	cut := holdfast.Errorf(holdfast.Transient, "remove", "the connection was cut")
	rng := rand.New(rand.NewPCG(9, 1))
	l, f := faulty(t)
	base := noise(rng, 128<<10)
	f().Inject(blob.FaultRule{Verb: blob.VerbRemove, Glob: markerName, Err: cut, Times: 1})
	full := l.must(l.backup(128<<10, holdfast.SetID{}, write{0, base}))
	inc := l.must(l.backup(128<<10, full, write{0, base[:4096]}))
	if len(l.objects("/"+markerName)) != 1 {
		t.Fatal("no marker is left: the test tests nothing")
	}
	l.delete(full)
	l.reopen()
	l.same(inc, base)
	l.collect()
	l.same(inc, base)
}

// Goal: a set that a listing left out is not taken for garbage, nor is what it needs.
func TestListingThatIsBehindLosesNothing(t *testing.T) {
	for _, where := range []string{"open", "collect"} {
		rng := rand.New(rand.NewPCG(10, 1))
		l, f := faulty(t)
		base := noise(rng, 128<<10)
		full := l.must(l.backup(128<<10, holdfast.SetID{}, write{0, base}))
		inc := l.must(l.backup(128<<10, full, write{0, base[:4096]}))
		if hidden := l.p.sets[inc].folder + "/" + recordName; where == "open" {
			wrap := l.pl.shape.wrap
			l.pl.shape.wrap = func(s blob.Store) blob.Store {
				s = wrap(s)
				f().Inject(blob.FaultRule{Verb: blob.VerbList, Glob: hidden, Hidden: true, Times: -1})
				return s
			}
			l.reopen()
		} else {
			f().Inject(blob.FaultRule{Verb: blob.VerbList, Hidden: true, Times: -1})
		}
		l.delete(full)
		l.collect()
		l.same(inc, base)
	}
}

// Goal: where a set record cannot be read nothing is removed that it may need, the error says what to do, and doing it helps.
func TestUnreadableRecordKeepsEverything(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 1))
	l := newLab(t, shape{paths: 1, target: 32 << 10})
	base := noise(rng, 128<<10)
	full := l.must(l.backup(128<<10, holdfast.SetID{}, write{0, base}))
	inc := l.must(l.backup(128<<10, full, write{0, base[:4096]}))
	other := l.must(l.backup(128<<10, holdfast.SetID{}, write{0, noise(rng, 4096)}))
	name := l.p.sets[inc].folder + "/" + recordName
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, l.pl.fss[0], name, 300)
	l.p = l.pl.open(t)
	data := len(l.objects(".data"))
	l.delete(full, other)
	if n := len(l.objects(".data")); n != data {
		t.Fatalf("%d data files, then %d", data, n)
	}
	_, err := l.p.Collect(background, pools.CollectOptions{})
	if holdfast.KindOf(err) != holdfast.Corrupt || holdfast.HintOf(err) == "" || !strings.Contains(err.Error(), inc.String()) {
		t.Fatalf("collect: %v", err)
	}
	if rep := l.verify(); len(rep.Damaged) != 1 || rep.Damaged[0].Set != inc {
		t.Fatalf("%+v", rep)
	}
	l.delete(inc)
	l.collect()
	if left := l.objects(""); len(left) > 0 {
		t.Fatalf("left: %v", left)
	}
}
