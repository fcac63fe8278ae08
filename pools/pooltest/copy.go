package pooltest

import (
	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

var copyChecks = []Check{
	{"copies to another pool stand alone", checkCopy},
}

// checkCopy copies there and back: into a pool of another domain, and home again under the old ids.
func checkCopy(b *bench) {
	var chain []*point
	p := b.full()
	for range 4 {
		chain = append(chain, p)
		p = b.next(p, 3)
	}
	chain = append(chain, b.shift(p), b.backup(spec{images: map[holdfast.DiskID]*image{diskID(1): newImage(4096), diskID(2): b.disk(64<<10, 3)}}))
	far := newSite(b.T, b.h.New(b.T))
	for _, data := range b.known {
		far.learn(data)
	}
	for _, p := range chain {
		var meter holdfast.Meter
		r, err := pools.Copy(background, far.pool, b.pool, p.m.ID, &meter)
		must(b, err, "copy set %s", p.m.ID)
		far.points = append(far.points, &point{m: r.Manifest, images: p.images})
		b.checkCopied(p.m, r.Manifest)
		if s := meter.Sample(); s.Done != s.Total || s.Done == 0 {
			b.Errorf("copy: the meter says %+v", s)
		}
	}
	_, err := pools.Copy(background, far.pool, b.pool, chain[0].m.ID, nil)
	wantKind(b, err, "copy a set that is there", holdfast.Exist)
	_, err = pools.Copy(background, far.pool, b.pool, holdfast.SetID{ID: namedID("nobody")}, nil)
	wantKind(b, err, "copy a set that is not there", holdfast.NotExist)
	for _, p := range chain {
		b.delete(p)
	}
	b.collect()
	far.delete(far.points[0])
	far.collect()
	far.checkAll("after the originals and one copy were deleted")
	for _, q := range far.points {
		r, err := pools.Copy(background, b.pool, far.pool, q.m.ID, nil)
		must(b, err, "copy set %s back", q.m.ID)
		b.points = append(b.points, &point{m: r.Manifest, images: q.images})
	}
	far.checkClean("after copies")
	must(b, far.pool.Close(), "close the other pool")
}

// checkCopied compares a copy's manifest with the original's.
func (b *bench) checkCopied(m, c holdfast.Manifest) {
	b.Helper()
	want := m
	want.Kind, want.Parent, want.Disks = holdfast.Full, holdfast.SetID{}, append([]holdfast.Disk(nil), m.Disks...)
	want.Stats.Stored = c.Stats.Stored
	for i := range want.Disks {
		want.Disks[i].Inherit = false
		want.Disks[i].Stats.Stored = c.Disks[i].Stats.Stored
	}
	b.sameManifest(want, c, "the copy")
}
