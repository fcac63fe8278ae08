package pooltest

import (
	"math/rand/v2"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

var writeChecks = []Check{
	{"a set becomes visible by commit and not before", checkCommitVisible},
	{"a committed set survives a crash", checkCommitSurvives},
	{"a manifest comes back as committed", checkManifest},
	{"abort leaves nothing", checkAbort},
	{"a lost session is aborted", checkLostSession},
	{"a session is of no use when it is over", checkSessionOver},
	{"begin refuses a known id", checkBeginExist},
	{"begin refuses an unknown parent", checkBeginParent},
	{"begin refuses a bad manifest", checkBeginInvalid},
	{"commit refuses an open writer", checkCommitOpenWriter},
	{"commit refuses another manifest", checkCommitOther},
	{"disks are opened by their id, once", checkDiskIDs},
	{"disks of a set are written in parallel", checkParallelDisks},
	{"sets are written in parallel", checkParallelSessions},
}

func checkCommitVisible(b *bench) {
	o := spec{images: one(b.disk(128<<10, 4))}
	o.before = func(_ pools.Session, m holdfast.Manifest) {
		if len(b.listed()) != 0 {
			b.Errorf("a set is listed before its commit")
		}
		_, err := b.pool.Open(background, m.ID)
		wantKind(b, err, "open a set before its commit", holdfast.NotExist)
	}
	b.backup(o)
	b.checkAll("after the commit")
}

func checkCommitSurvives(b *bench) {
	p := b.full()
	if !b.crash() {
		return
	}
	b.checkAll("after a crash")
	b.next(p, 3)
	b.crash()
	b.checkAll("after another crash")
}

func checkManifest(b *bench) {
	var final holdfast.Manifest
	o := spec{images: map[holdfast.DiskID]*image{diskID(1): b.disk(64<<10, 2), diskID(2): b.disk(512, 1)}}
	o.edit = func(m *holdfast.Manifest) {
		m.VM.Name = "Büro \"7\"\t<&>\u2028 日本 \\ .. /"
		m.Attachments = []holdfast.Attachment{{Name: "vm.vmcx", Data: b.data(70_000)}, {Name: "empty", Data: []byte{}}}
	}
	m := b.manifest(o)
	ses, err := b.pool.Begin(background, m)
	must(b, err, "begin")
	must(b, b.write(background, ses, m, o), "write")
	final = m
	final.Note = strings.Repeat("why ", 500)
	final.Consistency = holdfast.AppConsistent
	final.Run = holdfast.RunID{ID: namedID("run")}
	final.Stats = holdfast.Stats{Logical: 1, Read: 2, Sent: 3, Stored: 123456789, Changed: 5}
	final.Disks[0].Reason = holdfast.ReasonResized
	final.Disks[1].Stats.Changed = 77
	p, err := b.commit(background, ses, final, o)
	must(b, err, "commit")
	if p.m.Note != final.Note || p.m.Disks[0].Reason != holdfast.ReasonResized {
		b.Errorf("what was filled in between begin and commit is not in the receipt")
	}
	// A set of a VM without disks, and one of a disk that nobody writes.
	b.backup(spec{images: map[holdfast.DiskID]*image{}})
	none := b.manifest(spec{images: one(newImage(1 << 20))})
	ses, err = b.pool.Begin(background, none)
	must(b, err, "begin")
	_, err = b.commit(background, ses, none, spec{images: one(newImage(1 << 20))})
	must(b, err, "commit a set of a disk that was never opened")
}

func checkAbort(b *bench) {
	kept := b.full()
	ses, w, m := b.begin(spec{images: one(newImage(64 << 10))})
	data := b.data(5000)
	must(b, w.put(background, 0, data), "put")
	must(b, w.place(background, 512, data), "place")
	must(b, w.Close(background), "close disk")
	must(b, ses.Abort(background), "abort")
	must(b, ses.Abort(background), "abort again")
	_, err := b.pool.Open(background, m.ID)
	wantKind(b, err, "open an aborted set", holdfast.NotExist)
	_, err = ses.Commit(background, m)
	if err == nil {
		b.Errorf("an aborted session was committed")
	}
	b.checkAll("after the abort")
	// The id is free again, and a commit cannot be aborted.
	o := spec{images: one(b.disk(64<<10, 2)), edit: func(n *holdfast.Manifest) { n.ID = m.ID }}
	var committed pools.Session
	o.before = func(s pools.Session, _ holdfast.Manifest) { committed = s }
	b.backup(o)
	must(b, committed.Abort(background), "abort after the commit")
	b.collect()
	b.checkAll("after an abort that came too late")
	b.delete(kept)
	b.collect()
}

func checkLostSession(b *bench) {
	kept := b.full()
	o := b.change(kept, 4)
	m := b.manifest(o)
	ses, err := b.pool.Begin(background, m)
	must(b, err, "begin")
	must(b, b.write(background, ses, m, o), "write")
	if !b.crash() {
		must(b, ses.Abort(background), "abort")
		return
	}
	b.checkAll("after a crash that lost a session")
	b.checkClean("after a crash that lost a session")
	o.edit = func(n *holdfast.Manifest) { n.ID = m.ID }
	b.backup(o) // with the same id: nothing of it was there
	b.collect()
	b.checkAll("after the lost set was written again")
}

func checkSessionOver(b *bench) {
	var s pools.Session
	var w pools.DiskWriter
	img := b.disk(64<<10, 2)
	ses, writer, m := b.begin(spec{images: one(img)})
	s, w = ses, writer.DiskWriter
	must(b, writer.extents(background, img, img.data(), nil), "write")
	must(b, w.Close(background), "close disk")
	after := func(when string) {
		data := b.data(100)
		if w.Put(background, b.group(0, data)) == nil {
			b.Errorf("%s: a put succeeded", when)
		}
		if w.Place(background, []holdfast.Ref{{Extent: holdfast.Extent{Off: img.size - 512, Len: 512}}}) == nil {
			b.Errorf("%s: a place succeeded", when)
		}
	}
	after("after close of the disk")
	_, err := b.commit(background, s, m, spec{images: one(img)})
	must(b, err, "commit")
	after("after the commit")
	if _, err := s.Disk(background, diskID(1)); err == nil {
		b.Errorf("after the commit: a disk was opened")
	}
	if _, err := s.Commit(background, m); err == nil {
		b.Errorf("a second commit succeeded")
	}
}

func checkBeginExist(b *bench) {
	p := b.full()
	_, err := b.pool.Begin(background, p.m)
	wantKind(b, err, "begin a set that is committed", holdfast.Exist)
	// Two sessions of one id: the second begin or the second commit is refused.
	o := spec{images: one(newImage(4096))}
	m := b.manifest(o)
	first, err := b.pool.Begin(background, m)
	must(b, err, "begin")
	second, errSecond := b.pool.Begin(background, m)
	_, err = b.commit(background, first, m, o)
	must(b, err, "commit the first of two sessions with one id")
	if errSecond == nil {
		_, errSecond = second.Commit(background, m)
	}
	wantKind(b, errSecond, "begin and commit a set twice at the same time", holdfast.Exist)
}

func checkBeginParent(b *bench) {
	p := b.full()
	o := b.change(p, 1)
	o.edit = func(m *holdfast.Manifest) { m.Parent = holdfast.SetID{ID: namedID("nobody")} }
	_, err := b.pool.Begin(background, b.manifest(o))
	wantKind(b, err, "begin with a parent that was never there", holdfast.NotExist)
	b.delete(p)
	_, err = b.pool.Begin(background, b.manifest(b.change(p, 1)))
	wantKind(b, err, "begin with a deleted parent", holdfast.NotExist)
	// A session is no parent.
	open := b.manifest(spec{images: one(newImage(4096))})
	ses, err := b.pool.Begin(background, open)
	must(b, err, "begin")
	_, err = b.pool.Begin(background, b.manifest(spec{parent: &point{m: open}, images: one(newImage(4096))}))
	wantKind(b, err, "begin with a parent that is not committed", holdfast.NotExist)
	must(b, ses.Abort(background), "abort")
}

func checkBeginInvalid(b *bench) {
	p := b.full()
	for name, edit := range map[string]func(m *holdfast.Manifest){
		"no id":                     func(m *holdfast.Manifest) { m.ID = holdfast.SetID{} },
		"no VM id":                  func(m *holdfast.Manifest) { m.VM.ID = holdfast.VMID{} },
		"a disk twice":              func(m *holdfast.Manifest) { m.Disks = append(m.Disks, m.Disks[0]) },
		"a disk of no size":         func(m *holdfast.Manifest) { m.Disks[0].Size = 0 },
		"a disk beyond the bound":   func(m *holdfast.Manifest) { m.Disks[0].Size = holdfast.MaxDiskSize + 512 },
		"a full set that inherits":  func(m *holdfast.Manifest) { m.Disks[0].Inherit = true },
		"a full set with a parent":  func(m *holdfast.Manifest) { m.Parent = p.m.ID },
		"an incremental, no parent": func(m *holdfast.Manifest) { m.Kind = holdfast.Incremental },
	} {
		m := b.manifest(spec{images: one(newImage(4096)), edit: edit})
		_, err := b.pool.Begin(background, m)
		wantKind(b, err, "begin with "+name, holdfast.Invalid)
	}
}

func checkCommitOpenWriter(b *bench) {
	p := b.full()
	ses, w, m := b.begin(spec{images: one(newImage(64 << 10))})
	data := b.data(3000)
	must(b, w.put(background, 0, data), "put")
	must(b, w.place(background, 0, data), "place")
	if _, err := ses.Commit(background, m); err == nil {
		b.Fatalf("a commit succeeded with a disk open")
	}
	must(b, ses.Abort(background), "abort after a refused commit")
	b.checkAll("after a refused commit")
	b.next(p, 2)
}

func checkCommitOther(b *bench) {
	p := b.full()
	for name, edit := range map[string]func(m *holdfast.Manifest){
		"another id":     func(m *holdfast.Manifest) { m.ID = holdfast.SetID{ID: namedID("other")} },
		"another size":   func(m *holdfast.Manifest) { m.Disks[0].Size += 512 },
		"another disk":   func(m *holdfast.Manifest) { m.Disks[0].ID = diskID(99) },
		"a disk more":    func(m *holdfast.Manifest) { m.Disks = append(m.Disks, holdfast.Disk{ID: diskID(98), Size: 512}) },
		"a disk less":    func(m *holdfast.Manifest) { m.Disks = nil },
		"another parent": func(m *holdfast.Manifest) { m.Parent = holdfast.SetID{ID: namedID("other")} },
		"no parent": func(m *holdfast.Manifest) {
			m.Kind, m.Parent, m.Disks[0].Inherit = holdfast.Full, holdfast.SetID{}, false
		},
		"no inheritance":   func(m *holdfast.Manifest) { m.Disks[0].Inherit = false },
		"a bad manifest":   func(m *holdfast.Manifest) { m.VM.ID = holdfast.VMID{} },
		"a manifest of 0s": func(m *holdfast.Manifest) { *m = holdfast.Manifest{} },
	} {
		o := b.change(p, 1)
		m := b.manifest(o)
		ses, err := b.pool.Begin(background, m)
		must(b, err, "begin")
		must(b, b.write(background, ses, m, o), "write")
		final := m
		final.Disks = append([]holdfast.Disk(nil), m.Disks...)
		edit(&final)
		_, err = ses.Commit(background, final)
		wantKind(b, err, "commit with "+name, holdfast.Invalid)
		_, err = b.pool.Open(background, m.ID)
		wantKind(b, err, "open a set whose commit was refused", holdfast.NotExist)
		must(b, ses.Abort(background), "abort after a refused commit")
	}
}

func checkDiskIDs(b *bench) {
	img := b.disk(64<<10, 2)
	p := b.backup(spec{images: one(img)})
	ses, w, _ := b.begin(spec{images: one(newImage(4096))})
	_, err := ses.Disk(background, diskID(2))
	wantKind(b, err, "open a disk for writing that the manifest does not name", holdfast.NotExist)
	_, err = ses.Disk(background, diskID(1))
	wantKind(b, err, "open a disk for writing twice", holdfast.Exist, holdfast.Busy)
	must(b, w.Close(background), "close disk")
	_, err = ses.Disk(background, diskID(1))
	wantKind(b, err, "open a disk for writing again", holdfast.Exist)
	must(b, ses.Abort(background), "abort")
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	err = nil
	for _, e := range set.Map(background, diskID(2)) {
		err = e
	}
	wantKind(b, err, "map of a disk that the set does not have", holdfast.NotExist)
	_, err = b.tryRead(background, set, diskID(2), holdfast.Extents{{Off: 0, Len: 512}}, newImage(512))
	wantKind(b, err, "read of a disk that the set does not have", holdfast.NotExist)
	must(b, set.Close(), "close set")
}

func checkParallelDisks(b *bench) {
	n := 4
	if s := b.pool.Traits().Streams; s > 0 {
		n = min(n, s)
	}
	o := spec{images: map[holdfast.DiskID]*image{}}
	for i := range n {
		o.images[diskID(i)] = b.disk(256<<10, 5)
	}
	m := b.manifest(o)
	ses, err := b.pool.Begin(background, m)
	must(b, err, "begin")
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			w, err := b.open(background, ses, diskID(i), rand.New(rand.NewPCG(uint64(i), 3)))
			if err == nil {
				img := o.images[diskID(i)]
				err = w.extents(background, img, img.data(), nil)
			}
			if err == nil {
				err = w.Close(background)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	for i, err := range errs {
		must(b, err, "write disk %d of %d in parallel", i, n)
	}
	_, err = b.commit(background, ses, m, o)
	must(b, err, "commit")
}

func checkParallelSessions(b *bench) {
	n := 5
	if s := b.pool.Traits().Streams; s > 0 {
		n = min(n, s)
	}
	shared := b.disk(256<<10, 6)
	var errs []error
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range n {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 4))
			img := shared.clone()
			img.write(rng.Int64N(100<<10), fill(rng, 20<<10))
			p, err := b.tryBackup(background, spec{images: one(img), rng: rng})
			if err == nil {
				next := img.clone()
				next.write(77, fill(rng, 5000))
				_, err = b.tryBackup(background, spec{parent: p, images: one(next), rng: rng,
					changed: map[holdfast.DiskID]holdfast.Extents{diskID(1): {{Off: 77, Len: 5000}}}})
			}
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		})
	}
	wg.Wait()
	for _, err := range errs {
		must(b, err, "back up in parallel")
	}
}
