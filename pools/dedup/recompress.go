package dedup

import (
	"context"
	"runtime"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// Recompress implements pools.Recompressor. Containers that were not written by it before are written anew, their chunks in full groups and
// encoded as well as can be. It excludes Collect and Verify, and stands back while the pool is being collected (Busy). Every step can be the
// last one: a source goes when its copies are durable, and copies of a source that stays are found by the next Collect.
func (p *Pool) Recompress(ctx context.Context, o pools.RecompressOptions) (pools.RecompressReport, error) {
	var rep pools.RecompressReport
	if !p.collecting.TryLock() {
		return rep, holdfast.Errorf(holdfast.Busy, "recompress", "the pool is being collected or verified")
	}
	defer p.collecting.Unlock()
	p.mu.RLock()
	closed := p.closed
	p.mu.RUnlock()
	if closed {
		return rep, errClosed("recompress")
	}
	always := func() bool { return true }
	return rep, p.recompress(ctx, o, &rep, func(*cont) bool { return true }, always)
}

// What a Collect recompresses when the pool is idle.
const (
	idleAge   = 2         // containers that have lived through so many Collects of this process
	idleBytes = 512 << 20 // at most so much in one Collect
	idleLeast = 8 << 20   // smaller containers are not worth it
)

// recompressIdle recompresses some of what has come to stay, for as long as nobody uses the pool. What goes wrong is for the next Collect.
func (p *Pool) recompressIdle(ctx context.Context) error {
	p.mu.Lock()
	for _, c := range p.byID {
		c.age = min(c.age+1, idleAge)
	}
	p.mu.Unlock()
	idle := func() bool {
		p.mu.RLock()
		defer p.mu.RUnlock()
		return len(p.sessions)+len(p.leases) == 0
	}
	old := func(c *cont) bool { return c.age >= idleAge && c.size >= idleLeast }
	if p.patient || !idle() {
		return nil
	}
	var rep pools.RecompressReport
	err := p.recompress(ctx, pools.RecompressOptions{Limit: idleBytes}, &rep, old, idle)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if holdfast.KindOf(err) == holdfast.NoSpace {
		return nil
	}
	return err
}

// recompress does the work on containers that want chooses, while goOn says so. want is called with p.mu held. p.collecting is held.
func (p *Pool) recompress(ctx context.Context, o pools.RecompressOptions, rep *pools.RecompressReport, want func(*cont) bool, goOn func() bool) error {
	sources, err := p.loose(ctx, want)
	if err != nil {
		return err
	}
	all := int64(0)
	for _, c := range sources {
		all += c.size
	}
	for len(sources) > 0 && (o.Limit == 0 || rep.Before < o.Limit) && goOn() {
		if err := ctx.Err(); err != nil {
			return err
		}
		c := &compaction{p: p, s: p.internalSession(), dense: newRecoder(p)}
		c.s.dense = true
		gone, err := c.run(ctx, sources[:1])
		if err != nil {
			return err
		}
		for _, src := range gone {
			rep.Containers++
			rep.Before += src.size
		}
		rep.After += c.copied
		_ = p.markAllDead(gone) // only against an alarm after a crash: see compact
		if !p.patient {
			p.retire(gone, &pools.CollectReport{})
		}
		sources = sources[1:]
		if o.Progress != nil {
			o.Progress(rep.Before, all)
		}
	}
	for _, c := range sources {
		rep.Left += c.size
	}
	return nil
}

// loose lists the containers that are not dense yet, in order of their slots.
func (p *Pool) loose(ctx context.Context, want func(*cont) bool) ([]*cont, error) {
	p.mu.RLock()
	var all []*cont
	for _, c := range p.slots {
		if c != nil && c.owner == nil && !c.dense.Load() && !c.damagedLive() && !c.lifeless() && want(c) {
			all = append(all, c)
		}
	}
	p.mu.RUnlock()
	out := all[:0]
	for _, c := range all {
		ok, err := p.isLoose(ctx, c)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, c)
		}
	}
	return out, nil
}

// isLoose looks into a container.
func (p *Pool) isLoose(ctx context.Context, c *cont) (bool, error) {
	r, err := p.med.Open(ctx, contName(c.id))
	if holdfast.KindOf(err) == holdfast.NotExist && err != nil {
		return false, nil // Verify tells
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = r.Close() }() // only read
	h, f, err := container.Load(r, r.Size())
	if k := holdfast.KindOf(err); err != nil && (k == holdfast.Corrupt || k == holdfast.Unsupported) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	data := false
	for i := range f.Groups {
		data = data || f.Groups[i].Type == container.Data
	}
	if !data || h.Compat&container.CompatDense != 0 {
		c.dense.Store(true) // nothing to gain
		return false, nil
	}
	return true, nil
}

// A recoder collects chunks to full groups and encodes several at once.
type recoder struct {
	p     *Pool
	full  []*recoding
	cur   *recoding
	plain []byte
}

// A recoding is a group that is being made.
type recoding struct {
	b    *chunk.Builder
	from []origin
	out  []byte
	g    holdfast.Group
	err  error
}

func newRecoder(p *Pool) *recoder { return &recoder{p: p, cur: newRecoding()} }

func newRecoding() *recoding { return &recoding{b: chunk.NewBuilder()} }

// add takes the kept chunks of a group, after their digests.
func (r *recoder) add(c *compaction, sg *sourceGroup, g *holdfast.Group, keep func(k int) bool) error {
	h, dec := r.p.hasher(), r.p.decoder()
	plain, err := dec.Open(h, g, r.plain, keep)
	r.p.hashers.Put(h)
	r.p.decoders.Put(dec)
	if err != nil {
		return err
	}
	if g.Codec != holdfast.Plain {
		r.plain = plain[:0]
	}
	at := 0
	for k, q := range g.Chunks {
		chunkBytes := plain[at : at+int(q.Len)]
		at += int(q.Len)
		if !keep(k) {
			continue
		}
		if !r.cur.b.Fits(int(q.Len)) {
			if err := r.next(c); err != nil {
				return err
			}
		}
		r.cur.b.Add(q.Digest, chunkBytes)
		r.cur.from = append(r.cur.from, origin{sg.c, sg.footer.Groups[sg.number].First + uint32(k)})
	}
	return nil
}

// next begins another group.
func (r *recoder) next(c *compaction) error {
	r.full, r.cur = append(r.full, r.cur), newRecoding()
	if len(r.full) < runtime.GOMAXPROCS(0) {
		return nil
	}
	return r.store(c)
}

func (r *recoder) flush(c *compaction) error {
	if n, _ := r.cur.b.Len(); n > 0 {
		r.full, r.cur = append(r.full, r.cur), newRecoding()
	}
	return r.store(c)
}

// store encodes the full groups, decodes each again to be sure, and stores them in order.
func (r *recoder) store(c *compaction) error {
	var wg sync.WaitGroup
	for _, x := range r.full {
		wg.Go(func() { x.encode(r.p) })
	}
	wg.Wait()
	for _, x := range r.full {
		if x.err != nil {
			return x.err
		}
		if err := c.put(container.Data, &x.g, x.from); err != nil {
			return err
		}
	}
	r.full = r.full[:0]
	return nil
}

func (x *recoding) encode(p *Pool) {
	enc := p.denseEncoders.Get().(*chunk.Encoder)
	x.g = x.b.Encode(enc, make([]byte, 0, chunk.MaxEncoded))
	p.denseEncoders.Put(enc)
	h, dec := p.hasher(), p.decoder()
	defer p.hashers.Put(h)
	defer p.decoders.Put(dec)
	if _, err := dec.Open(h, &x.g, nil, nil); err != nil {
		x.err = holdfast.Errorf(holdfast.Internal, "encode group", "what was encoded does not decode: %w", err)
	}
}
