package standard

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// Verify implements pools.Verifier: every map is read and checked against its record, and every group that the sets need is read from
// the medium, decoded and re-hashed once, however many sets share it. A path that is not there is reported once, and with each
// set that needs it.
func (p *Pool) Verify(ctx context.Context, o pools.VerifyOptions) (pools.VerifyReport, error) {
	const op = "verify pool"
	v := &verifying{p: p, o: o, files: map[*file]*fileCheck{}}
	if err := alive(ctx, op); err != nil {
		return v.report, err
	}
	p.working.Lock()
	defer p.working.Unlock()
	ids := o.Sets
	if len(ids) == 0 {
		all, err := p.snapshot(ctx, op)
		if err != nil {
			return v.report, err
		}
		for _, st := range all {
			ids = append(ids, st.id)
		}
		for _, pa := range p.paths {
			if pa != nil && pa.lost != nil {
				v.damaged(pools.Damage{Where: pa.Label, Text: pa.lostError(op).Error()})
			}
		}
		_ = p.readRecords(ctx) // for the sizes; what cannot be read is met again
		p.mu.Lock()
		for _, st := range all {
			v.all += st.logical
		}
		p.mu.Unlock()
	}
	for _, id := range ids {
		if err := v.set(ctx, id); err != nil {
			return v.report, err
		}
	}
	return v.report, nil
}

// A verifying is one Verify.
type verifying struct {
	p         *Pool
	o         pools.VerifyOptions
	files     map[*file]*fileCheck
	done, all int64
	report    pools.VerifyReport
}

// A fileCheck is what is known of a data file's groups.
type fileCheck struct {
	done bitmap            // groups that were looked at
	bad  map[uint32]string // by ordinal in the object: what is wrong with the chunk
}

func (v *verifying) damaged(d pools.Damage) {
	switch n := len(v.report.Damaged); {
	case n < pools.MaxDamaged:
		v.report.Damaged = append(v.report.Damaged, d)
	case n == pools.MaxDamaged:
		v.report.Damaged = append(v.report.Damaged, pools.Damage{Where: "report", Text: "there is more damage than is listed here"})
	}
}

// only passes on errors that say nothing about stored bytes.
func only(err error) error {
	switch holdfast.KindOf(err) {
	case holdfast.Corrupt, holdfast.Offline:
		return nil
	}
	return err
}

func (v *verifying) set(ctx context.Context, id holdfast.SetID) error {
	s, err := v.p.openSet(ctx, id)
	if err != nil {
		if holdfast.KindOf(err) == holdfast.NotExist && len(v.o.Sets) == 0 {
			return nil // deleted since it was listed
		}
		if only(err) == nil {
			v.damaged(pools.Damage{Where: "set record", Set: id, Text: err.Error()})
			return nil
		}
		return err
	}
	defer func() { _ = s.Close() }() // it never fails
	if len(v.o.Sets) > 0 {
		for _, d := range s.rec.manifest.Disks {
			v.all += d.Size
		}
	}
	v.report.Sets++
	for i := range s.rec.manifest.Disks {
		d := &diskCheck{v: v, s: s, disk: &s.rec.manifest.Disks[i], hits: map[hit]*pools.Damage{}}
		if err := d.run(ctx, i); err != nil {
			return err
		}
		for _, h := range d.order {
			v.damaged(*h)
		}
		if v.done += d.disk.Size; v.o.Progress != nil {
			v.o.Progress(v.done, max(v.all, v.done))
		}
	}
	return nil
}

// A diskCheck verifies one disk of one set.
type diskCheck struct {
	v     *verifying
	s     *set
	disk  *holdfast.Disk
	hits  map[hit]*pools.Damage
	order []*pools.Damage
}

// A hit is what damage is listed by: a chunk, or a whole data file or map.
type hit struct {
	where string
	d     holdfast.Digest
}

func (d *diskCheck) hit(where string, chunk holdfast.Digest, e holdfast.Extent, text string) {
	k := hit{where, chunk}
	h := d.hits[k]
	if h == nil {
		h = &pools.Damage{Where: where, Digest: chunk, Set: d.s.st.id, VM: d.s.rec.manifest.VM.Name, Disk: d.disk.Name, Text: text}
		d.hits[k] = h
		d.order = append(d.order, h)
	}
	if n := len(h.Extents); n > 0 && h.Extents[n-1].End() == e.Off {
		h.Extents[n-1].Len += e.Len
		return
	}
	h.Extents = append(h.Extents, e)
}

func (d *diskCheck) run(ctx context.Context, i int) error {
	name := mapName(d.s.st.folder, i)
	m, files, err := d.v.p.openMap(ctx, d.s.st, d.s.rec, i)
	if err != nil {
		if err := only(err); err != nil {
			return err
		}
		d.hit(name, holdfast.Digest{}, holdfast.Extent{Off: 0, Len: d.disk.Size}, err.Error())
		return nil
	}
	defer m.close()
	m.r.DropCache()
	if err := m.verify(ctx); err != nil {
		if err := only(err); err != nil {
			return err
		}
		// Which bytes it says wrong nobody knows; blocks have checksums of their own, so what can be read is looked at as well.
		d.hit(name, holdfast.Digest{}, holdfast.Extent{Off: 0, Len: d.disk.Size}, err.Error())
	}
	k := &walker{p: d.v.p, m: m, files: files}
	k.window = func(ps []piece) error { return d.window(ctx, files, ps) }
	k.bad = func(r *run, err error) error {
		if err := only(err); err != nil {
			return err
		}
		f := files[r.file]
		d.hit(f.key.dataName(0), holdfast.Digest{}, holdfast.Extent{Off: r.off, Len: r.len}, err.Error())
		return nil
	}
	err = k.walk(ctx, holdfast.Extents{{Off: 0, Len: d.disk.Size}})
	if err == nil {
		return nil
	}
	if err := only(err); err != nil {
		return err
	}
	d.hit(name, holdfast.Digest{}, holdfast.Extent{Off: m.last, Len: max(d.disk.Size-m.last, 1)}, err.Error())
	return nil
}

// window checks the groups of a window that were not looked at yet, and lists the pieces in bad chunks.
func (d *diskCheck) window(ctx context.Context, files []*file, ps []piece) error {
	for len(ps) > 0 {
		n := 1
		for n < len(ps) && ps[n].file == ps[0].file {
			n++
		}
		if err := d.file(ctx, files[ps[0].file], ps[:n]); err != nil {
			return err
		}
		ps = ps[n:]
	}
	return nil
}

func (d *diskCheck) file(ctx context.Context, f *file, ps []piece) error {
	data, err := d.v.p.openData(ctx, f)
	if err != nil {
		if err := only(err); err != nil {
			return err
		}
		for i := range ps {
			d.hit(f.key.dataName(0), holdfast.Digest{}, extentOf(&ps[i]), err.Error())
		}
		return nil
	}
	defer d.v.p.data.release(data)
	c := d.v.files[f]
	if c == nil {
		c = &fileCheck{done: newBitmap(int64(len(data.footer.Groups))), bad: map[uint32]string{}}
		d.v.files[f] = c
		data.r.DropCache()
	}
	var todo []uint32
	for i := range ps {
		if g := ps[i].group; !c.done.get(g) {
			c.done.fill(g, g+1)
			todo = append(todo, g)
		}
	}
	if err := d.v.check(ctx, data, c, todo); err != nil {
		return err
	}
	if len(c.bad) == 0 {
		return nil
	}
	for i := range ps {
		at, err := data.chunk(ps[i].ord)
		if err != nil {
			return err
		}
		if text, bad := c.bad[data.ordinal(at)]; bad {
			d.hit(data.name(), ps[i].chunk.Digest, extentOf(&ps[i]), text)
		}
	}
	return nil
}

func extentOf(pc *piece) holdfast.Extent {
	return holdfast.Extent{Off: pc.place.Off, Len: int64(pc.place.Len)}
}

// ordinal returns the number of a chunk in the object.
func (d *dataFile) ordinal(s spot) uint32 {
	g := &d.footer.Groups[s.group]
	chunks := d.footer.Chunks[g.First : g.First+g.Count]
	i, _ := slices.BinarySearchFunc(chunks, s.at, func(c container.Chunk, at uint32) int { return int(c.At) - int(at) })
	return g.First + uint32(i)
}

// check reads groups, decodes and re-hashes them, several at a time.
func (v *verifying) check(ctx context.Context, data *dataFile, c *fileCheck, groups []uint32) error {
	var mu sync.Mutex // guards the report, c.bad and first
	var first error
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(groups)) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(groups) {
					return
				}
				bad, chunks, err := v.group(ctx, data, groups[i])
				mu.Lock()
				v.report.Bytes += int64(data.footer.Groups[groups[i]].Stored)
				v.report.Chunks += chunks
				for ord, text := range bad {
					c.bad[ord] = text
				}
				stop := err != nil || first != nil
				if first == nil {
					first = err
				}
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	return first
}

// group checks one group and returns what is wrong with which of its chunks.
func (v *verifying) group(ctx context.Context, data *dataFile, i uint32) (bad map[uint32]string, chunks int64, err error) {
	if err := alive(ctx, "verify pool"); err != nil {
		return nil, 0, err
	}
	entry := &data.footer.Groups[i]
	bad = map[uint32]string{}
	all := func(err error) (map[uint32]string, int64, error) {
		for k := range entry.Count {
			bad[entry.First+k] = err.Error()
		}
		return bad, int64(entry.Count), only(err)
	}
	g, err := data.readGroup(i)
	if err != nil {
		if err := only(err); err != nil && holdfast.KindOf(err) != holdfast.Internal { // a medium's error is damage too
			return nil, 0, err
		}
		bad, chunks, _ = all(err)
		return bad, chunks, nil
	}
	dec := v.p.decoders.Get().(*chunk.Decoder)
	defer v.p.decoders.Put(dec)
	plain, err := dec.Decode(&g, nil)
	if err != nil {
		return all(err)
	}
	h := v.p.hashers.Get().(*holdfast.Hasher)
	defer v.p.hashers.Put(h)
	at := uint32(0)
	for k, c := range g.Chunks {
		if h.Sum(plain[at:at+c.Len]) != c.Digest {
			bad[entry.First+uint32(k)] = "the stored bytes do not have the chunk's digest"
		}
		at += c.Len
	}
	return bad, int64(len(g.Chunks)), nil
}
