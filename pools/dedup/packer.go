package dedup

import (
	"context"
	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// A packer fills a session's containers of one kind, one after the other. While one is being sealed in the background, the next is
// filled already. The session's mu guards it.
type packer struct {
	s       *session
	kind    container.Type
	cur     *filling // nil: none open
	sealing *filling // nil: none
	buf     []byte   // a writer's buffer between containers
}

// A filling is a container that is not sealed yet. Its chunks are known to its own session only.
type filling struct {
	id    uint64
	obj   blob.Object
	w     *container.Writer
	known finder

	done chan struct{} // closed when sealing has ended; then buf and err are set
	buf  []byte
	err  error
}

func (f *filling) chunks() []chunkEntry { return f.w.Footer().Chunks }

// find looks for a chunk in what is not sealed yet.
func (p *packer) find(d *holdfast.Digest) (chunkEntry, bool) {
	for _, f := range [...]*filling{p.cur, p.sealing} {
		if f == nil {
			continue
		}
		if o, ok := f.known.find(f.chunks(), d); ok {
			return f.chunks()[o], true
		}
	}
	return chunkEntry{}, false
}

// put appends a group and returns the bytes it takes.
func (p *packer) put(g *holdfast.Group) (int64, error) {
	if err := p.reap(false); err != nil {
		return 0, err
	}
	if p.cur != nil && (p.cur.w.Full() || !p.cur.w.Fits(len(g.Chunks))) {
		if err := p.roll(); err != nil {
			return 0, err
		}
	}
	if p.cur == nil {
		if err := p.open(); err != nil {
			return 0, err
		}
	}
	f := p.cur
	before := f.w.Size()
	first, err := f.w.Append(p.kind, g)
	if err != nil {
		return 0, err
	}
	for i := range g.Chunks {
		f.known.add(f.chunks(), first+uint32(i))
	}
	return f.w.Size() - before, nil
}

func (p *packer) open() error {
	id, cipher, err := p.s.p.newContainer()
	if err != nil {
		return err
	}
	obj, err := p.s.p.med.Create(p.s.life, contName(id))
	if err != nil {
		return err
	}
	h := container.Header{ID: id, Pool: p.s.p.sb.Pool}
	if p.s.dense {
		h.Compat |= container.CompatDense
	}
	p.cur = &filling{id: id, obj: obj, w: container.NewSealedWriter(obj, h, p.buf, cipher)}
	p.buf = nil
	return nil
}

// roll begins sealing the current container, after the one before it.
func (p *packer) roll() error {
	if err := p.before(); err != nil {
		return err
	}
	if err := p.reap(true); err != nil {
		return err
	}
	f := p.cur
	p.cur, p.sealing = nil, f
	f.done = make(chan struct{})
	go p.s.seal1(f)
	return nil
}

// before keeps the order: no node is durable before the data that was stored before it.
func (p *packer) before() error {
	if p.kind == container.Node {
		return p.s.data.finish()
	}
	return nil
}

// seal1 seals one container and enters it into the index. It runs beside the session, which waits for it by reap.
func (s *session) seal1(f *filling) {
	defer close(f.done)
	size, err := f.w.Finish()
	if err != nil {
		f.obj.Abort()
		f.err = err
		return
	}
	if f.err = f.obj.Commit(); f.err != nil {
		return
	}
	rec := newContRecord(f.id, size, f.w.Footer())
	s.p.addRecord(rec, s)
	s.p.st.put(rec)
}

// reap takes in a sealing that has ended, or waits for it.
func (p *packer) reap(wait bool) error {
	f := p.sealing
	if f == nil {
		return nil
	}
	if !wait {
		select {
		case <-f.done:
		default:
			return nil
		}
	}
	<-f.done
	p.sealing = nil
	p.buf = f.w.Buffer()
	return f.err
}

// finish seals what there is and waits for it.
func (p *packer) finish() error {
	if p.cur != nil {
		if err := p.roll(); err != nil {
			return err
		}
	}
	return p.reap(true)
}

// abandon drops what is not sealed. A sealing under way is waited for: it becomes garbage for the next Collect.
func (p *packer) abandon() {
	_ = p.reap(true) // the session has ended; what failed is dropped
	if p.cur != nil {
		p.cur.obj.Abort()
		p.cur = nil
	}
}

// nodeBatch collects nodes to one group.
type nodeBatch struct {
	plain  []byte
	pieces []holdfast.Piece
	known  map[holdfast.Digest]struct{}
	out    []byte
	check  []byte
}

// putNode stores a node unless the pool has it, and returns its digest. plain is the caller's again on return. s.mu is not held.
func (s *session) putNode(ctx context.Context, r *resolver, plain []byte) (holdfast.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.hasher.Sum(plain)
	if s.failure != nil {
		return d, s.failure
	}
	if _, ok := s.batch.known[d]; ok {
		return d, nil
	}
	if _, ok := s.own(&d); ok {
		return d, nil
	}
	if err := r.resolve(ctx, []holdfast.Digest{d}, forReuse); err != nil {
		return d, err
	}
	there := false
	s.pin(r, func(_ int, found bool) { there = found })
	r.release()
	if there {
		return d, nil
	}
	if b := &s.batch; len(b.plain)+len(plain) > holdfast.MaxGroupPlain || len(b.pieces) == holdfast.MaxGroupChunks {
		if err := s.flushNodes(); err != nil {
			return d, err
		}
	}
	b := &s.batch
	if b.known == nil {
		b.known = map[holdfast.Digest]struct{}{}
	}
	b.plain = append(b.plain, plain...)
	b.pieces = append(b.pieces, holdfast.Piece{Digest: d, Len: uint32(len(plain))})
	b.known[d] = struct{}{}
	return d, nil
}

// own looks for a chunk among those of this session that are not sealed yet. s.mu is held.
func (s *session) own(d *holdfast.Digest) (chunkEntry, bool) {
	if e, ok := s.data.find(d); ok {
		return e, true
	}
	return s.nodes.find(d)
}

// flushNodes stores the nodes collected so far as one group. What was encoded is decoded again before it is
// stored: a recipe is worth more than the time. s.mu is held.
func (s *session) flushNodes() error {
	b := &s.batch
	if len(b.pieces) == 0 {
		return nil
	}
	if s.enc == nil {
		s.enc, s.dec = chunk.NewEncoder(chunk.LevelDefault), chunk.NewDecoder()
	}
	g := holdfast.Group{Chunks: b.pieces}
	if cap(b.out) == 0 {
		b.out = make([]byte, 0, len(b.plain)+len(b.plain)/8+1024)
	}
	g.Codec, g.Payload = s.enc.Encode(b.out, b.plain)
	var err error
	if b.check, err = s.dec.Open(s.hasher, &g, b.check, nil); err != nil {
		return s.fail(holdfast.Errorf(holdfast.Internal, "encode recipe", "what was encoded does not decode: %w", err))
	}
	if g.Codec == holdfast.Plain {
		b.check = nil // it is plain's own memory
	}
	if _, err := s.nodes.put(&g); err != nil {
		return s.fail(err)
	}
	b.plain, b.pieces = b.plain[:0], b.pieces[:0]
	clear(b.known)
	return nil
}
