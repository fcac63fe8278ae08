package pooltest

import (
	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

var damageChecks = []Check{
	{"verify of a sound pool is clean", checkVerifyClean},
	{"verify finds flipped bytes and names VM and disk", checkVerifyFinds},
	{"damaged bytes are never restored", checkDamagedRead},
}

func checkVerifyClean(b *bench) {
	p := b.full()
	q := b.next(p, 4)
	b.delete(p)
	for name, verify := range verifiers(b.pool) {
		r, err := verify(pools.VerifyOptions{})
		must(b, err, "verify %s", name)
		if len(r.Damaged) > 0 || r.Sets != 1 || r.Bytes <= 0 || r.Chunks <= 0 {
			b.Errorf("verify %s of a sound pool: %+v", name, r)
		}
		if r, err = verify(pools.VerifyOptions{Sets: []holdfast.SetID{q.m.ID}}); err != nil || len(r.Damaged) > 0 || r.Sets != 1 {
			b.Errorf("verify %s of one set: %+v, %v", name, r, err)
		}
		_, err = verify(pools.VerifyOptions{Sets: []holdfast.SetID{p.m.ID}})
		wantKind(b, err, "verify "+name+" of a deleted set", holdfast.NotExist)
		_, err = verify(pools.VerifyOptions{Progress: func(done, all int64) {
			if done < 0 || done > all {
				b.Errorf("verify %s: progress %d of %d", name, done, all)
			}
		}})
		must(b, err, "verify %s with progress", name)
	}
}

// verifiers returns the ways to verify a pool: the best it has, and by reading its sets.
func verifiers(p pools.Pool) map[string]func(pools.VerifyOptions) (pools.VerifyReport, error) {
	return map[string]func(pools.VerifyOptions) (pools.VerifyReport, error){
		"as the pool does": func(o pools.VerifyOptions) (pools.VerifyReport, error) { return pools.Verify(background, p, o) },
		"by reading": func(o pools.VerifyOptions) (pools.VerifyReport, error) {
			return pools.VerifyByReading(background, p, o)
		},
	}
}

// damagedPool makes a pool with two VMs and damages it, or returns nil where the harness cannot.
func (b *bench) damagedPool() []*point {
	if b.h.Corrupt == nil {
		b.Logf("not checked: this harness does not corrupt")
		return nil
	}
	var all []*point
	for _, vm := range []string{"mail", "web"} {
		img := newImage(512 << 10)
		img.write(0, b.data(300<<10))
		p := b.backup(spec{images: one(img), vm: vm})
		all = append(all, p, b.next(p, 4))
	}
	b.pool = b.h.Corrupt(b.T, b.pool)
	b.spoiled = true
	return all
}

func checkVerifyFinds(b *bench) {
	all := b.damagedPool()
	if all == nil {
		return
	}
	for name, verify := range verifiers(b.pool) {
		r, err := verify(pools.VerifyOptions{})
		must(b, err, "verify %s of a damaged pool", name)
		if len(r.Damaged) == 0 {
			b.Errorf("verify %s found nothing in a damaged pool", name)
		}
		bad := map[holdfast.SetID]holdfast.Extents{}
		for _, d := range r.Damaged {
			p := find(all, d.Set)
			if p == nil {
				b.Errorf("verify %s: damage that names no set: %+v", name, d)
				continue
			}
			if d.VM != p.m.VM.Name || d.Disk != p.m.Disks[0].Name || d.Text == "" || d.Where == "" || len(d.Extents) == 0 {
				b.Errorf("verify %s: damage that does not say where and what: %+v", name, d)
			}
			bad[d.Set] = append(bad[d.Set], d.Extents...)
		}
		for _, p := range all {
			b.checkOutside(p, bad[p.m.ID].Normal(p.m.Disks[0].Size), name)
		}
	}
}

func find(all []*point, id holdfast.SetID) *point {
	for _, p := range all {
		if p.m.ID == id {
			return p
		}
	}
	return nil
}

// checkOutside checks that all of a disk but what was named as bad can be read.
func (b *bench) checkOutside(p *point, bad holdfast.Extents, name string) {
	b.Helper()
	d := p.m.Disks[0]
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	good := holdfast.Extents{{Off: 0, Len: d.Size}}.Subtract(bad)
	got := newImage(d.Size)
	if _, err := b.tryRead(background, set, d.ID, good, got); err != nil {
		b.Errorf("verify %s: set %s cannot be read outside of the extents named as damaged %v: %v", name, p.m.ID, bad, err)
	}
	for _, e := range good {
		if string(got.read(e)) != string(p.images[d.ID].read(e)) {
			b.Errorf("verify %s: set %s: wrong bytes outside of the extents named as damaged", name, p.m.ID)
		}
	}
	must(b, set.Close(), "close set")
}

func checkDamagedRead(b *bench) {
	all := b.damagedPool()
	failed := 0
	for _, p := range all {
		d := p.m.Disks[0]
		set, err := b.pool.Open(background, p.m.ID)
		if err != nil {
			wantKind(b, err, "open a damaged set", holdfast.Corrupt)
			failed++
			continue
		}
		got := &lockedImage{image: newImage(d.Size)}
		err = pools.ReadDisk(background, set, d.ID, holdfast.Extents{{Off: 0, Len: d.Size}}, got, pools.ReadOptions{Domain: b.pool.Traits().Domain})
		if err != nil {
			wantKind(b, err, "restore a damaged set", holdfast.Corrupt)
			failed++
		} else if at := p.images[d.ID].differ(got.image); at >= 0 {
			b.Errorf("a restore from a damaged pool succeeded with other bytes from offset %d on", at)
		}
		must(b, set.Close(), "close set")
	}
	if all != nil && failed == 0 {
		b.Errorf("every set of a damaged pool was restored, so nothing was damaged")
	}
}
