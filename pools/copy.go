package pools

import (
	"context"
	"iter"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
)

// copyBatch is the number of refs of a map that are copied at a time: what is asked, read and placed together.
const copyBatch = 4096

// Copy copies a set from one pool to another and commits it there, under its id. The copy stands alone: it is a full set
// without a parent, whatever the source was written as; its other facts and counts are kept. Exist if dst knows the id.
//
// Within one domain dst is asked first and only what it lacks is read, and groups pass as they are. Between domains all
// data is read, every chunk gets its new digest, and again only what dst lacks is sent. Chunks keep their bounds. Every chunk
// is verified on the way. The meter, which may be nil, counts bytes read and sent (payload), done (of the disks) and stored.
func Copy(ctx context.Context, dst, src Pool, id holdfast.SetID, meter *holdfast.Meter) (Receipt, error) {
	set, err := src.Open(ctx, id)
	if err != nil {
		return Receipt{}, err
	}
	r, err := copySet(ctx, dst, src, set, meter)
	if e := set.Close(); err == nil && e != nil {
		return r, e
	}
	return r, err
}

func copySet(ctx context.Context, dst, src Pool, set Set, meter *holdfast.Meter) (Receipt, error) {
	m := set.Manifest()
	m.Kind, m.Parent, m.Disks = holdfast.Full, holdfast.SetID{}, slices.Clone(m.Disks)
	for i := range m.Disks {
		m.Disks[i].Inherit = false
		meter.AddTotal(m.Disks[i].Size)
	}
	ses, err := dst.Begin(ctx, m)
	if err != nil {
		return Receipt{}, err
	}
	from, to := src.Traits().Domain, dst.Traits().Domain
	c := &copier{ses: ses, set: set, same: from == to, tools: openers(0, from), meter: meter}
	if !c.same {
		c.hash = to.Hasher()
	}
	c.build, c.enc = chunk.NewBuilder(), chunk.NewEncoder(chunk.LevelDefault)
	for i := range m.Disks {
		if err := c.disk(ctx, &m.Disks[i]); err != nil {
			_ = ses.Abort(context.WithoutCancel(ctx)) // the first error is the one to tell
			return Receipt{}, err
		}
	}
	r, err := ses.Commit(ctx, m)
	if err == nil {
		meter.AddStored(r.Manifest.Stats.Stored)
	}
	return r, err
}

// A copier is one Copy.
type copier struct {
	ses   Session
	set   Set
	same  bool // one domain: digests mean the same on both sides
	tools []*opener
	meter *holdfast.Meter
	w     DiskWriter // of the disk at hand; used under mu

	mu    sync.Mutex // guards what follows while workers run
	hash  *holdfast.Hasher
	build *chunk.Builder
	enc   *chunk.Encoder
	out   []byte                              // encoded payload
	need  map[holdfast.Digest]bool            // chunks of the batch that have to come, and have not
	names map[holdfast.Digest]holdfast.Digest // what chunks of the batch are called in the other domain
}

func (c *copier) disk(ctx context.Context, d *holdfast.Disk) error {
	var err error
	if c.w, err = c.ses.Disk(ctx, d.ID); err != nil {
		return err
	}
	batch, done := make([]holdfast.Ref, 0, copyBatch), int64(0)
	for r, err := range c.set.Map(ctx, d.ID) {
		if err != nil {
			return err
		}
		if batch = append(batch, r); len(batch) < copyBatch {
			continue
		}
		if err := c.batch(ctx, d, batch); err != nil {
			return err
		}
		c.meter.AddDone(r.End() - done)
		batch, done = batch[:0], r.End()
	}
	if err := c.batch(ctx, d, batch); err != nil {
		return err
	}
	c.meter.AddDone(d.Size - done)
	return c.w.Close(ctx)
}

// batch copies a stretch of the map.
func (c *copier) batch(ctx context.Context, d *holdfast.Disk, refs []holdfast.Ref) error {
	if len(refs) == 0 {
		return nil
	}
	want, err := c.lacking(ctx, refs)
	if err != nil {
		return err
	}
	if len(want) > 0 {
		read := func(ctx context.Context) iter.Seq2[*holdfast.Parcel, error] {
			return c.set.Read(ctx, d.ID, want.Normal(d.Size))
		}
		if err := eachParcel(ctx, c.tools, read, func(t *opener, p *holdfast.Parcel) error { return c.parcel(ctx, t, p) }); err != nil {
			return err
		}
	}
	if len(c.need) > 0 {
		return holdfast.Errorf(holdfast.Corrupt, "copy set", "the source did not deliver %d chunks that its map of disk %s names", len(c.need), d.Name).
			Advise("verify the source pool")
	}
	if !c.same {
		for i, r := range refs {
			if !r.Digest.IsZero() {
				refs[i].Digest = c.names[r.Digest]
			}
		}
	}
	return c.w.Place(ctx, refs)
}

// lacking sets need and names for a batch, and returns an extent for each chunk that is needed.
func (c *copier) lacking(ctx context.Context, refs []holdfast.Ref) (holdfast.Extents, error) {
	c.need, c.names = map[holdfast.Digest]bool{}, map[holdfast.Digest]holdfast.Digest{}
	var ds []holdfast.Digest
	var at holdfast.Extents
	for _, r := range refs {
		if !r.Digest.IsZero() && !c.need[r.Digest] {
			c.need[r.Digest] = true
			ds, at = append(ds, r.Digest), append(at, r.Extent)
		}
	}
	if !c.same || len(ds) == 0 {
		return at, nil
	}
	missing := make([]bool, len(ds))
	if err := c.w.Missing(ctx, ds, missing); err != nil {
		return nil, err
	}
	want := at[:0]
	for i, e := range at {
		if missing[i] {
			want = append(want, e)
		} else {
			delete(c.need, ds[i])
		}
	}
	return want, nil
}

// parcel verifies a parcel's needed chunks and hands them on.
func (c *copier) parcel(ctx context.Context, t *opener, p *holdfast.Parcel) error {
	if err := p.Check(); err != nil {
		return err
	}
	c.meter.AddRead(int64(len(p.Payload)))
	c.mu.Lock()
	var take []int // the chunks that are needed and that no other parcel brought
	bytes := 0
	for i, k := range p.Chunks {
		if c.need[k.Digest] {
			delete(c.need, k.Digest)
			take, bytes = append(take, i), bytes+int(k.Len)
		}
	}
	c.mu.Unlock()
	if len(take) == 0 {
		return nil
	}
	// A group of which most is needed passes as it is. Then all of it is verified: dst trusts every digest in it.
	whole := c.same && 2*bytes >= p.PlainLen()
	p.Places = nil
	if err := t.survey(p); err != nil {
		return err
	}
	for _, i := range take {
		t.used[i] = true
	}
	plain, err := t.dec.Open(t.hash, &p.Group, t.buf, func(i int) bool { return whole || t.used[i] })
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if whole {
		return c.put(ctx, &p.Group)
	}
	return c.chunks(ctx, t, &p.Group, plain, take)
}

// chunks sends single chunks of a group in a group of their own. The caller holds mu.
func (c *copier) chunks(ctx context.Context, t *opener, g *holdfast.Group, plain []byte, take []int) error {
	ds, missing := make([]holdfast.Digest, len(take)), make([]bool, len(take))
	for k, i := range take {
		ds[k], missing[k] = g.Chunks[i].Digest, true
		if !c.same {
			ds[k] = c.hash.Sum(t.chunk(plain, i))
			c.names[g.Chunks[i].Digest] = ds[k]
		}
	}
	if !c.same { // within one domain it has been asked
		if err := c.w.Missing(ctx, ds, missing); err != nil {
			return err
		}
	}
	c.build.Reset()
	for k, i := range take {
		if missing[k] {
			c.build.Add(ds[k], t.chunk(plain, i)) // fits: they come out of one group
		}
	}
	if n, _ := c.build.Len(); n == 0 {
		return nil
	}
	if c.out == nil {
		c.out = make([]byte, chunk.MaxEncoded)
	}
	out := c.build.Encode(c.enc, c.out)
	return c.put(ctx, &out)
}

// put sends a group. The caller holds mu.
func (c *copier) put(ctx context.Context, g *holdfast.Group) error {
	c.meter.AddSent(int64(len(g.Payload)))
	return c.w.Put(ctx, g)
}
