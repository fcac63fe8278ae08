package agent

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// A sender puts messages on the way to the appliance; *wire.Link is one. Buffers in a message are free again on return.
type sender interface {
	Send(ctx context.Context, m wire.Message) error
}

// A pipeline reads one disk and tells the appliance what it holds.
type pipeline struct {
	e       *engine
	link    sender
	channel uint16
	disk    *holdfast.Disk
	src     hv.Reader
	work    []work
	split   *chunk.Splitter
	hashers *hashers
	level   chunk.Level
	meter   *holdfast.Meter
	reads   *bucket // nil: no limit
	sends   *bucket
	waits   *waits // nil: nobody asks

	haves chan wire.Message // from the receiver; room for every slab there is, so that it never waits

	cut, ask, gather chan *slab
	items            chan item
	refFree          chan []holdfast.Ref
	asked            atomic.Uint32 // number of the newest Ask
	claims           claims
}

// An item is a group to be put, or refs that may be placed once all groups before it were.
type item struct {
	slot    *slot
	digests []holdfast.Digest // of the slot's chunks
	refs    []holdfast.Ref
}

const (
	itemsAhead = 8    // items between gatherer and sender
	refsAtOnce = 4096 // refs after which a group is sent even if it is not full, to bound memory
)

// run reads the disk and returns when everything was sent and the channel was ended with DiskDone, or with the first error.
func (p *pipeline) run(ctx context.Context) error {
	p.cut, p.ask, p.gather = make(chan *slab, maxSlabs), make(chan *slab, maxSlabs), make(chan *slab, maxSlabs)
	p.items = make(chan item, itemsAhead)
	p.refFree = make(chan []holdfast.Ref, itemsAhead+2)
	p.claims.at = map[holdfast.Digest]struct{}{}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, stage := range []func(context.Context) error{p.read, p.cutAll, p.askAll, p.gatherAll, p.sendAll} {
		wg.Go(func() {
			if err := stage(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	p.drain()
	return context.Cause(ctx)
}

// drain gives back what a failed run left in the queues.
func (p *pipeline) drain() {
	for _, q := range []chan *slab{p.cut, p.ask, p.gather} {
		for s := range q {
			p.e.freeSlab(s)
		}
	}
	for it := range p.items {
		if it.slot != nil {
			p.e.freeSlot(it.slot)
		}
	}
}

// pass hands a value to the next stage.
func pass[T any](ctx context.Context, to chan<- T, v T) error {
	select {
	case to <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take receives from a stage; false when it has ended.
func take[T any](ctx context.Context, from <-chan T) (v T, ok bool, err error) {
	select {
	case v, ok = <-from:
		return v, ok, nil
	case <-ctx.Done():
		return v, false, context.Cause(ctx)
	}
}

// read fills slabs with the bytes of the extents. Small extents share a slab.
func (p *pipeline) read(ctx context.Context) (err error) {
	defer close(p.cut)
	var s *slab
	flush := func() error {
		full := s
		s = nil
		if err := pass(ctx, p.cut, full); err != nil {
			p.e.freeSlab(full)
			return err
		}
		return nil
	}
	defer func() {
		switch {
		case s == nil:
		case err != nil:
			p.e.freeSlab(s)
		default:
			err = flush()
		}
	}()
	for _, w := range p.work {
		for off := w.Off; off < w.End(); {
			if s == nil {
				if s, err = p.e.slab(ctx); err != nil {
					return err
				}
			}
			r := run{off: off, len: w.End() - off, at: s.end, last: true, zero: w.zero}
			if !w.zero {
				r.len = min(r.len, int64(len(s.buf)-s.end))
				r.last = off+r.len == w.End()
				if err = p.readAt(ctx, s.buf[s.end:s.end+int(r.len)], off); err != nil {
					return err
				}
				s.end += int(r.len)
			}
			s.runs = append(s.runs, r)
			off += r.len
			if len(s.buf)-s.end < minRoom || len(s.runs) >= maxRuns {
				if err = flush(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (p *pipeline) readAt(ctx context.Context, b []byte, off int64) error {
	if err := p.reads.take(ctx, len(b)); err != nil {
		return err
	}
	over := p.waits.source(p.e.clock)
	n, err := readParts(p.src, b, off)
	over()
	if n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return sourceError(p.disk, "read", holdfast.Errorf(holdfast.KindOf(err), "", "%d bytes at offset %d: %w", len(b), off, err))
	}
	p.meter.AddRead(int64(n))
	return nil
}

// readPart is the least that is read by a request of its own: several at once keep a disk busier than one.
const readPart = 512 << 10

// readParts is r.ReadAt by several requests at once. n counts the bytes before the first that are missing.
func readParts(r io.ReaderAt, b []byte, off int64) (n int, err error) {
	parts := (len(b) + readPart - 1) / readPart
	if parts <= 1 {
		return r.ReadAt(b, off)
	}
	got, errs := make([]int, parts), make([]error, parts)
	var wg sync.WaitGroup
	for i := range parts {
		wg.Go(func() {
			at := i * readPart
			got[i], errs[i] = r.ReadAt(b[at:min(at+readPart, len(b))], off+int64(at))
		})
	}
	wg.Wait()
	for i := range parts {
		n += got[i]
		if got[i] < min(readPart, len(b)-i*readPart) {
			return n, errs[i]
		}
	}
	return n, nil
}

// cutAll divides slabs into pieces and hands them to the workers. What is undecided at a slab's end is carried to the next, so
// that cuts do not depend on where slabs end.
func (p *pipeline) cutAll(ctx context.Context) error {
	defer close(p.ask)
	var carry []byte
	var spans []chunk.Span
	for {
		s, ok, err := take(ctx, p.cut)
		if !ok {
			return err
		}
		for _, r := range s.runs {
			if r.zero {
				s.pieces = append(s.pieces, piece{off: r.off, len: r.len, zero: true})
				continue
			}
			at := r.at - len(carry) // only a slab's first run goes on with what was carried
			copy(s.buf[at:], carry)
			diff := r.off - int64(r.at) // what makes a disk offset of a place in the buffer
			end := r.at + int(r.len)
			carry = carry[:0]
			spans = p.split.Split(s.buf[at:end], int64(at)+diff, r.last, spans[:0])
			start := at
			for _, sp := range spans {
				stop := start + sp.End
				s.pieces = append(s.pieces, piece{off: int64(at) + diff, len: int64(stop - at), at: at, zero: sp.Zero})
				if !sp.Zero {
					s.chunks++
				}
				at = stop
			}
			carry = append(carry, s.buf[at:end]...)
		}
		s.hashers, s.hashing = p.hashers, true
		p.e.hash <- s // has room for every slab
		if err := pass(ctx, p.ask, s); err != nil {
			p.e.freeSlab(s)
			return err
		}
	}
}

// askAll asks which chunks the pool lacks, slab by slab, without waiting for answers.
func (p *pipeline) askAll(ctx context.Context) error {
	defer close(p.gather)
	var digests []holdfast.Digest
	for {
		s, ok, err := take(ctx, p.ask)
		if !ok {
			return err
		}
		<-s.ready // the workers never stop in the middle
		s.hashing = false
		if s.chunks > 0 {
			digests = digests[:0]
			for i := range s.pieces {
				if q := &s.pieces[i]; !q.zero {
					digests = append(digests, q.digest)
				}
			}
			s.batch = p.asked.Add(1)
			err = p.link.Send(ctx, wire.Message{Type: wire.TypeAsk, Channel: p.channel, Body: wire.Ask{Batch: s.batch, Digests: digests}})
		}
		if err == nil {
			err = pass(ctx, p.gather, s)
		}
		if err != nil {
			p.e.freeSlab(s)
			return err
		}
	}
}

// gatherAll collects missing chunks into groups, in logical order, and frees the slabs.
func (p *pipeline) gatherAll(ctx context.Context) error {
	defer close(p.items)
	g := &gatherer{pipeline: p, builder: chunk.NewBuilder()}
	for {
		s, ok, err := take(ctx, p.gather)
		if err != nil {
			return err
		}
		if !ok {
			return g.flush(ctx)
		}
		err = g.slab(ctx, s)
		p.e.freeSlab(s)
		if err != nil {
			return err
		}
	}
}

// gatherer is the state of gatherAll.
type gatherer struct {
	*pipeline
	builder *chunk.Builder
	digests []holdfast.Digest // in builder
	refs    []holdfast.Ref    // whose chunks are in builder or were passed on
	end     int64             // of the last chunk in builder
}

// A group of scattered changes ends where the disk goes on elsewhere: by tomorrow half of them have changed again, and a restore has to read and decode the
// whole group for the rest. Below scatteredPlain a group would compress worse; gaps below scatteredGap are zeros and known chunks of the same neighbourhood.
const (
	scatteredPlain = 128 << 10
	scatteredGap   = 1 << 20
)

// scattered reports whether a chunk at off should begin a group of its own.
func (g *gatherer) scattered(off int64) bool {
	_, plain := g.builder.Len()
	return plain >= scatteredPlain && (off > g.end+scatteredGap || off < g.end)
}

func (g *gatherer) slab(ctx context.Context, s *slab) error {
	var missing []bool
	if s.batch > 0 {
		var m wire.Message
		var err error
		over := g.waits.answer(g.e.clock)
		g.e.waitFar(g.link, func() { m, _, err = take(ctx, g.haves) })
		over()
		if err != nil {
			return err
		}
		defer m.Release()
		have := m.Body.(wire.Have)
		if have.Batch != s.batch || len(have.Missing) != s.chunks {
			return holdfast.Errorf(holdfast.Invalid, "read answer", "%d answers to question %d, where %d to question %d were due",
				len(have.Missing), have.Batch, s.chunks, s.batch)
		}
		missing = have.Missing
		g.claims.forget(s.batch)
	}
	n := 0
	for i := range s.pieces {
		q := &s.pieces[i]
		if len(g.refs) >= refsAtOnce {
			if err := g.flush(ctx); err != nil {
				return err
			}
		}
		if q.zero {
			g.zeros(q.off, q.len)
			continue
		}
		if missing[n] && g.claims.claim(q.digest) {
			if !g.builder.Fits(int(q.len)) || g.scattered(q.off) {
				if err := g.flush(ctx); err != nil {
					return err
				}
			}
			g.end = q.off + q.len
			g.builder.Add(q.digest, s.buf[q.at:q.at+int(q.len)])
			g.digests = append(g.digests, q.digest)
		}
		n++
		g.refs = append(g.refs, holdfast.Ref{Extent: holdfast.Extent{Off: q.off, Len: q.len}, Digest: q.digest})
	}
	if len(g.digests) == 0 {
		return g.flush(ctx)
	}
	return nil
}

// zeros adds a zero entry, or lengthens the one before.
func (g *gatherer) zeros(off, n int64) {
	if k := len(g.refs); k > 0 {
		if last := &g.refs[k-1]; last.Digest.IsZero() && last.End() == off {
			last.Len += n
			return
		}
	}
	g.refs = append(g.refs, holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: n}})
}

// flush passes the group on, if there is one, and after it the refs.
func (g *gatherer) flush(ctx context.Context) error {
	if len(g.digests) > 0 {
		s, err := g.e.slot(ctx)
		if err != nil {
			return err
		}
		s.builder, g.builder = g.builder, s.builder
		s.level, s.encoding = g.level, true
		g.e.encode <- s // has room for every slot
		if err := pass(ctx, g.items, item{slot: s, digests: g.digests}); err != nil {
			g.e.freeSlot(s)
			return err
		}
		g.digests = make([]holdfast.Digest, 0, cap(g.digests)) // the old ones stay with the claims
	}
	if len(g.refs) == 0 {
		return nil
	}
	if err := pass(ctx, g.items, item{refs: g.refs}); err != nil {
		return err
	}
	select {
	case g.refs = <-g.refFree:
		g.refs = g.refs[:0]
	default:
		g.refs = make([]holdfast.Ref, 0, 256)
	}
	return nil
}

// sendAll puts groups and places refs, in order, and ends the channel.
func (p *pipeline) sendAll(ctx context.Context) error {
	for {
		it, ok, err := take(ctx, p.items)
		if err != nil {
			return err
		}
		if !ok {
			return p.link.Send(ctx, wire.Message{Type: wire.TypeDiskDone, Channel: p.channel})
		}
		if it.slot != nil {
			err = p.put(ctx, it)
		} else {
			err = p.place(ctx, it.refs)
		}
		if err != nil {
			return err
		}
	}
}

func (p *pipeline) put(ctx context.Context, it item) error {
	s := it.slot
	<-s.ready
	s.encoding = false
	defer p.e.freeSlot(s)
	n := len(s.group.Payload)
	if err := p.sends.take(ctx, n); err != nil {
		return err
	}
	over := p.waits.send(p.e.clock)
	err := p.link.Send(ctx, wire.Message{Type: wire.TypePut, Channel: p.channel, Body: &s.group})
	over()
	if err != nil {
		return err
	}
	p.claims.sent(it.digests, p.asked.Load())
	p.meter.AddSent(int64(n))
	return nil
}

func (p *pipeline) place(ctx context.Context, refs []holdfast.Ref) error {
	err := p.link.Send(ctx, wire.Message{Type: wire.TypePlace, Channel: p.channel, Body: wire.Place{Refs: refs}})
	if err != nil {
		return err
	}
	var n int64
	for i := range refs {
		n += refs[i].Len
	}
	p.meter.AddDone(n)
	select {
	case p.refFree <- refs:
	default:
	}
	return nil
}

// claims are the digests that were put, or will be, but that an Ask under way may still find missing. They keep a chunk
// that occurs twice in a short time from being sent twice; once every Ask from before the Put was answered, the pool itself knows.
type claims struct {
	mu   sync.Mutex
	at   map[holdfast.Digest]struct{}
	done []claimed // sent, in order
}

type claimed struct {
	digests []holdfast.Digest
	asked   uint32 // newest Ask when they were sent
}

// claim reports whether the caller is the first to send d.
func (c *claims) claim(d holdfast.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.at[d]; ok {
		return false
	}
	c.at[d] = struct{}{}
	return true
}

// sent notes that chunks were sent when asked was the number of the newest Ask.
func (c *claims) sent(digests []holdfast.Digest, asked uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = append(c.done, claimed{digests, asked})
}

// forget drops what was sent before the Ask with the number batch: its answer knows of it.
func (c *claims) forget(batch uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for n < len(c.done) && c.done[n].asked < batch {
		for _, d := range c.done[n].digests {
			delete(c.at, d)
		}
		n++
	}
	c.done = append(c.done[:0], c.done[n:]...)
}
