package dedup

import (
	"context"
	"io"
	"maps"
	"runtime"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/container"
)

const (
	verifyBlock = 4 << 20 // bytes of one read; holds any record
	maxDamage   = 10_000  // entries of a report; a pool that is gone altogether needs no longer one
)

// Verify implements pools.Verifier. It reads every container (or those that the chosen sets need) from the medium, checks each record,
// decodes it and compares each chunk's digest; then it walks the sets and says which bytes of which disks are hit. Chunks found
// damaged leave deduplication at once; chunks that were marked as damaged and are whole come back.
func (p *Pool) Verify(ctx context.Context, o pools.VerifyOptions) (pools.VerifyReport, error) {
	v := &verifier{p: p, ctx: ctx, progress: o.Progress, clean: map[holdfast.Digest]struct{}{}, cause: map[holdfast.Digest]*finding{}}
	v.rep.Damaged = []pools.Damage{}
	defer v.close()
	if err := v.open(o.Sets); err != nil {
		return v.rep, err
	}
	if len(o.Sets) == 0 {
		if err := v.roots(); err != nil {
			return v.rep, err
		}
	}
	conts, err := v.choose(len(o.Sets) > 0)
	if err != nil {
		return v.rep, err
	}
	err = v.containers(conts)
	for _, c := range conts {
		p.drop(c)
	}
	if err != nil {
		return v.rep, err
	}
	for _, s := range v.sets {
		if err := v.set(s); err != nil {
			return v.rep, err
		}
		v.rep.Sets++
	}
	for _, f := range v.found {
		if !f.named && len(o.Sets) == 0 {
			v.damage(f.Damage)
		}
	}
	if len(o.Sets) == 0 {
		err = v.sidecars(conts)
	}
	return v.rep, err
}

// A finding is damage in a container. It becomes a part of the report by the sets that need its chunks, or by itself where none does.
type finding struct {
	pools.Damage
	named bool // by a set
}

// A verifier is one Verify under way.
type verifier struct {
	p        *Pool
	ctx      context.Context // of this one Verify
	progress func(done, all int64)
	sets     []*set
	clean    map[holdfast.Digest]struct{} // nodes below which nothing is damaged

	mu    sync.Mutex // guards what follows while containers are read
	found []*finding // damage in containers
	cause map[holdfast.Digest]*finding
	rep   pools.VerifyReport
	all   int64
	done  int64
}

func (v *verifier) close() {
	for _, s := range v.sets {
		_ = s.Close() // cannot fail
	}
}

func (v *verifier) damage(d pools.Damage) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.rep.Damaged) < maxDamage {
		v.rep.Damaged = append(v.rep.Damaged, d)
	}
}

// open opens the sets to verify: those named, or all.
func (v *verifier) open(ids []holdfast.SetID) error {
	p := v.p
	all := len(ids) == 0
	if all {
		names, err := p.med.List(v.ctx, setsDir)
		if err != nil {
			return err
		}
		listed := map[holdfast.SetID]bool{}
		for _, n := range names {
			id, ok := setOfName(n)
			if !ok {
				v.damage(pools.Damage{Where: n, Text: "not a name of a set record"})
				continue
			}
			listed[id] = true
			ids = append(ids, id)
		}
		for id := range p.knownSets() {
			if !listed[id] {
				ids = append(ids, id) // opening it tells what happened
			}
		}
	}
	for _, id := range ids {
		s, err := p.openSet(v.ctx, id)
		switch k := holdfast.KindOf(err); {
		case err == nil:
			v.sets = append(v.sets, s)
		case v.ctx.Err() != nil || k != holdfast.Corrupt && k != holdfast.NotExist:
			return err
		case k == holdfast.Corrupt || p.knownSets()[id]:
			v.damage(pools.Damage{Where: setName(id), Set: id, Text: err.Error()})
		case !all:
			return err // named, and not there
		}
	}
	return nil
}

// choose returns the containers to read, held.
func (v *verifier) choose(some bool) ([]*cont, error) {
	p := v.p
	need := map[uint32]bool{}
	if some {
		for _, s := range v.sets {
			if err := v.needed(s, need); err != nil {
				return nil, err
			}
		}
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []*cont
	for slot, c := range p.slots {
		if c != nil && (!some || need[uint32(slot)]) {
			c.refs.Add(1)
			out = append(out, c)
			v.all += c.size
		}
	}
	return out, nil
}

// needed notes the containers of a set's chunks and nodes. What cannot be found is left to the second pass.
func (v *verifier) needed(s *set, need map[uint32]bool) error {
	r := resolver{p: v.p}
	defer r.release()
	note := func(ds []holdfast.Digest) error {
		if err := r.resolve(v.ctx, ds, forReading); err != nil && holdfast.KindOf(err) != holdfast.Corrupt {
			return err
		}
		for _, k := range r.cands { // every copy, damaged or not
			need[k.loc.slot()] = true
		}
		return nil
	}
	var visit func(d holdfast.Digest, span uint8) error
	seen := map[holdfast.Digest]bool{}
	visit = func(d holdfast.Digest, span uint8) error {
		if d.IsZero() || seen[d] {
			return nil
		}
		seen[d] = true
		if err := note([]holdfast.Digest{d}); err != nil {
			return err
		}
		n, err := v.p.loadNode(v.ctx, d, span)
		if err != nil {
			return v.only(err)
		}
		for _, c := range n.children {
			if err := visit(c, n.child); err != nil {
				return err
			}
		}
		return note(refDigests(n.refs))
	}
	for i, d := range s.rec.disks {
		if err := visit(d.root, rootSpan(s.rec.manifest.Disks[i].Size)); err != nil {
			return err
		}
	}
	return v.ctx.Err()
}

// only returns err unless it is about damage.
func (v *verifier) only(err error) error {
	if k := holdfast.KindOf(err); k == holdfast.Corrupt || k == holdfast.NotExist {
		return v.ctx.Err()
	}
	return err
}

// refDigests returns the digests of refs, without repeating neighbours.
func refDigests(refs []holdfast.Ref) []holdfast.Digest {
	out := make([]holdfast.Digest, 0, len(refs))
	for i := range refs {
		if n := len(out); n == 0 || out[n-1] != refs[i].Digest {
			out = append(out, refs[i].Digest)
		}
	}
	return out
}

// containers reads containers, several at a time.
func (v *verifier) containers(conts []*cont) error {
	work := make(chan *cont)
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	stop := make(chan struct{})
	for range min(4, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			buf := make([]byte, verifyBlock)
			for c := range work {
				if err := v.container(c, buf); err != nil {
					once.Do(func() { first = err; close(stop) })
				}
			}
		})
	}
	for _, c := range conts {
		select {
		case work <- c:
			continue
		case <-stop:
		case <-v.ctx.Done():
		}
		break
	}
	close(work)
	wg.Wait()
	if first != nil {
		return first
	}
	return v.ctx.Err()
}

// container checks one container. Errors are those of a medium that does not answer; damage goes to the report.
func (v *verifier) container(c *cont, buf []byte) error {
	r, err := v.p.med.Open(v.ctx, contName(c.id))
	if holdfast.KindOf(err) == holdfast.NotExist && err != nil {
		v.bad(c, nil, allOrdinals(c.n), err)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // only read
	r.DropCache()
	h, f, err := container.Load(r, r.Size())
	if err == nil && (h.ID != c.id || h.Pool != v.p.sb.Pool || len(f.Chunks) != int(c.n)) {
		err = holdfast.Errorf(holdfast.Corrupt, "open container", "it holds another container")
	}
	if err == nil {
		err = v.p.unlockFooter(&h, f)
	}
	if k := holdfast.KindOf(err); err != nil && k != holdfast.Corrupt && k != holdfast.Unsupported {
		return err
	} else if err != nil {
		v.p.footers.evict(c.slot)
		v.bad(c, nil, allOrdinals(c.n), err)
		return nil
	}
	dec, hs := v.p.decoder(), v.p.hasher()
	defer v.p.decoders.Put(dec)
	defer v.p.hashers.Put(hs)
	var plain []byte
	for i := 0; i < len(f.Groups); {
		if err := v.ctx.Err(); err != nil {
			return err
		}
		from, end := f.Groups[i].Off, i
		for end < len(f.Groups) && f.Groups[end].End() <= from+int64(len(buf)) {
			end++
		}
		block := buf[:f.Groups[end-1].End()-from]
		if n, err := r.ReadAt(block, from); n < len(block) && err != nil && err != io.EOF {
			return err
		} else if n < len(block) {
			clear(block[n:])
		}
		for ; i < end; i++ {
			g := &f.Groups[i]
			plain = v.group(c, f, uint32(i), block[g.Off-from:g.End()-from], dec, hs, plain)
		}
		v.step(int64(len(block)))
	}
	return nil
}

// group checks one record and returns a buffer for the next one's plaintext. Chunks whose payload is whole are whole, whatever
// became of the record's head, which only a rescue reads: that is reported, and the chunks stay.
func (v *verifier) group(c *cont, f *container.Footer, i uint32, rec []byte, dec *chunk.Decoder, hs *holdfast.Hasher, buf []byte) []byte {
	g := &f.Groups[i]
	payload := rec[g.PayloadOff()-g.Off:][:g.Stored]
	err := g.Check(payload)
	headErr := f.CheckRecord(i, rec) // before the payload is decrypted in its place
	if err == nil {
		payload, err = f.OpenPayload(i, payload)
	}
	var plain []byte
	if err == nil {
		group := holdfast.Group{Codec: g.Codec, Chunks: f.Pieces(nil, i), Payload: payload}
		plain, err = dec.Decode(&group, buf)
	}
	if err != nil {
		v.bad(c, f, groupOrdinals(g), err)
		return buf
	}
	if headErr != nil {
		v.note(c, f, nil, "the chunks are whole, but "+headErr.Error())
	}
	var good []uint32
	for _, o := range groupOrdinals(g) {
		e := &f.Chunks[o]
		if hs.Sum(plain[e.At:e.At+e.Len]) != e.Digest {
			v.bad(c, f, []uint32{o}, holdfast.Errorf(holdfast.Corrupt, "check chunk", "the bytes of chunk %s are not what they were", e.Digest))
			continue
		}
		good = append(good, o)
	}
	v.p.mu.RLock()
	marked := c.bad != nil
	v.p.mu.RUnlock()
	if marked {
		v.p.setBad(c, good, false)
	}
	v.mu.Lock()
	v.rep.Chunks += int64(len(good))
	v.mu.Unlock()
	if g.Codec == holdfast.Plain {
		return buf
	}
	return plain
}

func (v *verifier) step(n int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rep.Bytes += n
	v.done += n
	if v.progress != nil {
		v.progress(min(v.done, v.all), v.all)
	}
}

func allOrdinals(n uint32) []uint32 {
	out := make([]uint32, n)
	for i := range out {
		out[i] = uint32(i)
	}
	return out
}

// bad notes damaged chunks: in the pool, so that they are not relied on any more, and for the report. f is nil where the footer cannot be
// read; then which chunks they were is found by walking the sets.
func (v *verifier) bad(c *cont, f *container.Footer, ordinals []uint32, err error) {
	v.p.markBad(c, ordinals, err)
	v.note(c, f, ordinals, err.Error())
}

func (v *verifier) note(c *cont, f *container.Footer, ordinals []uint32, text string) {
	n := &finding{Damage: pools.Damage{Where: contName(c.id), Text: text}}
	if f != nil && len(ordinals) == 1 {
		n.Digest = f.Chunks[ordinals[0]].Digest
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.found) == maxDamage {
		return
	}
	v.found = append(v.found, n)
	for _, o := range ordinals {
		if f != nil {
			v.cause[f.Chunks[o].Digest] = n
		}
	}
}

// set walks a set and reports what of it is damaged.
func (v *verifier) set(s *set) error {
	for i, d := range s.rec.disks {
		m := &s.rec.manifest.Disks[i]
		w := &diskCheck{v: v, s: s, disk: m, hits: map[holdfast.Digest]*pools.Damage{}, r: resolver{p: v.p}}
		if d.root.IsZero() {
			continue
		}
		_, err := w.node(d.root, rootSpan(m.Size), 0)
		w.r.release()
		if err != nil {
			return err
		}
		for _, k := range slices.SortedFunc(maps.Keys(w.hits), func(a, b holdfast.Digest) int { return slices.Compare(a[:], b[:]) }) {
			v.damage(*w.hits[k])
		}
	}
	return nil
}

// A diskCheck finds the damage of one disk.
type diskCheck struct {
	v    *verifier
	s    *set
	disk *holdfast.Disk
	r    resolver
	hits map[holdfast.Digest]*pools.Damage
}

// node checks a subtree and reports whether it is whole.
func (w *diskCheck) node(d holdfast.Digest, span uint8, base int64) (bool, error) {
	if _, ok := w.v.clean[d]; ok {
		return true, nil
	}
	if err := w.v.ctx.Err(); err != nil {
		return false, err
	}
	n, err := w.v.p.loadNode(w.v.ctx, d, span)
	if err != nil {
		if err := w.v.only(err); err != nil {
			return false, err
		}
		w.hit(d, holdfast.Extent{Off: base, Len: min(1<<span, w.disk.Size-base)}, err.Error())
		return false, nil
	}
	whole := true
	for i, c := range n.children {
		if c.IsZero() {
			continue
		}
		ok, err := w.node(c, n.child, base+int64(i)<<n.child)
		if err != nil {
			return false, err
		}
		whole = whole && ok
	}
	if len(n.refs) > 0 {
		ok, err := w.leaf(n, base)
		if err != nil {
			return false, err
		}
		whole = ok
	}
	if whole {
		w.v.clean[d] = struct{}{}
	}
	return whole, nil
}

func (w *diskCheck) leaf(n *node, base int64) (bool, error) {
	ds := make([]holdfast.Digest, len(n.refs))
	for i := range n.refs {
		ds[i] = n.refs[i].Digest
	}
	if err := w.r.resolve(w.v.ctx, ds, forReading); err != nil && holdfast.KindOf(err) != holdfast.Corrupt && holdfast.KindOf(err) != holdfast.NotExist {
		return false, err
	}
	whole := true
	for i := range n.refs {
		r := &n.refs[i]
		h := &w.r.hits[i]
		if h.c != nil && int64(r.Skip)+r.Len <= int64(h.chunk.Len) {
			continue
		}
		whole = false
		w.hit(r.Digest, holdfast.Extent{Off: base + r.Off, Len: r.Len}, "the chunk is damaged or not in the pool any more")
	}
	return whole, nil
}

func (w *diskCheck) hit(d holdfast.Digest, e holdfast.Extent, text string) {
	m := &w.s.rec.manifest
	h := w.hits[d]
	if h == nil {
		h = &pools.Damage{Where: setName(m.ID), Digest: d, Set: m.ID, VM: m.VM.Name, Disk: w.disk.Name, Text: text}
		if c := w.v.cause[d]; c != nil {
			c.named = true
			h.Where, h.Text = c.Where, c.Text
		}
		w.hits[d] = h
	}
	if k := len(h.Extents); k > 0 && h.Extents[k-1].End() == e.Off {
		h.Extents[k-1].Len += e.Len
		return
	}
	h.Extents = append(h.Extents, e)
}
