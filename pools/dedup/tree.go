package dedup

import (
	"context"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// repack returns a group of the chosen chunks of g, which is in the pool's domain and whose chosen chunks are checked on the way.
func (p *Pool) repack(g *holdfast.Group, keep func(i int) bool) (*holdfast.Group, error) {
	h, dec := p.hasher(), p.decoder()
	defer p.hashers.Put(h)
	defer p.decoders.Put(dec)
	plain, err := dec.Open(h, g, nil, keep)
	if err != nil {
		return nil, err
	}
	out := &holdfast.Group{}
	var kept []byte
	at := uint32(0)
	for i, c := range g.Chunks {
		if keep(i) {
			out.Chunks = append(out.Chunks, c)
			kept = append(kept, plain[at:at+c.Len]...)
		}
		at += c.Len
	}
	enc := p.encoder()
	defer p.encoders.Put(enc)
	out.Codec, out.Payload = enc.Encode(nil, kept)
	if _, err := dec.Open(h, out, nil, nil); err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "encode group", "what was encoded does not decode: %w", err)
	}
	return out, nil
}

// loadNode reads a node of a recipe, by way of the caches, and checks it. Its span must be the one given.
func (p *Pool) loadNode(ctx context.Context, d holdfast.Digest, span uint8) (*node, error) {
	plain, err := p.loadChunk(ctx, d)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.KindOf(err), "recipe node "+d.String(), "%w", err)
	}
	n, err := parseNode(plain)
	if err == nil && n.span != span {
		err = badNode("it has span %d, expected %d", n.span, span)
	}
	if err != nil {
		return nil, holdfast.Errorf(holdfast.KindOf(err), "recipe node "+d.String(), "%w", err)
	}
	return n, nil
}

// loadChunk reads one chunk through the cache of decoded groups: neighbours are likely to be asked for next. A copy that is damaged
// is marked as such, and the next copy is tried.
func (p *Pool) loadChunk(ctx context.Context, d holdfast.Digest) ([]byte, error) {
	r := resolver{p: p}
	defer r.release()
	var first error
	for {
		if err := r.resolve(ctx, []holdfast.Digest{d}, forReading); err != nil {
			return nil, err
		}
		hit := r.hits[0]
		if hit.c == nil && first == nil {
			return nil, holdfast.Errorf(holdfast.Corrupt, "read chunk", "the pool does not hold chunk %s any more", d).
				Advise("verify the pool to learn which sets need it")
		}
		if hit.c == nil {
			return nil, first
		}
		plain, err := p.readChunk(ctx, &hit)
		if holdfast.KindOf(err) != holdfast.Corrupt || err == nil {
			return plain, err
		}
		if first == nil {
			first = err
		}
		p.markBad(hit.c, []uint32{hit.ordinal}, err)
	}
}

func (p *Pool) readChunk(ctx context.Context, h *hit) ([]byte, error) {
	key := groupKey{h.c.slot, h.chunk.Group}
	plain := p.groups.get(key)
	if plain == nil {
		f, err := p.loadFooter(ctx, h.c)
		if err != nil {
			return nil, err
		}
		r, err := p.med.Open(ctx, contName(h.c.id))
		if err != nil {
			return nil, err
		}
		defer func() { _ = r.Close() }() // only read
		g, err := container.ReadGroup(r, f, h.chunk.Group, nil)
		if err != nil {
			return nil, err
		}
		dec := p.decoder()
		defer p.decoders.Put(dec)
		if plain, err = dec.Decode(&g, nil); err != nil {
			return nil, err
		}
		p.groups.put(key, plain, int64(len(plain)))
	}
	b := plain[h.chunk.At : h.chunk.At+h.chunk.Len]
	hs := p.hasher()
	defer p.hashers.Put(hs)
	if hs.Sum(b) != h.chunk.Digest {
		p.groups.remove(key)
		return nil, holdfast.Errorf(holdfast.Corrupt, "read chunk", "the bytes of chunk %s are not what they were", h.chunk.Digest)
	}
	return b, nil
}

// walk visits the refs of a recipe that touch the wanted extents (a normal list), in order of offsets, cut to them. It loads a node when it comes to it.
func (p *Pool) walk(ctx context.Context, t diskTree, want holdfast.Extents, visit func(holdfast.Ref) error) error {
	if t.root.IsZero() {
		return nil
	}
	w := walker{p: p, ctx: ctx, want: want, visit: visit}
	return w.node(t.root, rootSpan(t.size), 0)
}

type walker struct {
	p     *Pool
	ctx   context.Context // of this one walk
	want  holdfast.Extents
	visit func(holdfast.Ref) error
}

// skip drops wanted extents that end before off and reports whether any of [off, end) is wanted.
func (w *walker) skip(off, end int64) bool {
	for len(w.want) > 0 && w.want[0].End() <= off {
		w.want = w.want[1:]
	}
	return len(w.want) > 0 && w.want[0].Off < end
}

func (w *walker) node(d holdfast.Digest, span uint8, base int64) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	n, err := w.p.loadNode(w.ctx, d, span)
	if err != nil {
		return err
	}
	for i, c := range n.children {
		off := base + int64(i)<<n.child
		if c.IsZero() || !w.skip(off, off+1<<n.child) {
			continue
		}
		if err := w.node(c, n.child, off); err != nil {
			return err
		}
	}
	for _, r := range n.refs {
		r.Off += base
		for w.skip(r.Off, r.End()) {
			e := w.want[0]
			end := min(e.End(), r.End())
			if err := w.visit(pools.CutRef(r, max(e.Off, r.Off), end)); err != nil {
				return err
			}
			if e.End() > r.End() {
				break
			}
			w.want = w.want[1:]
		}
	}
	return nil
}

// treeView looks nodes up in a finished recipe by their place.
type treeView struct {
	p    *Pool
	tree diskTree
	path [8]viewNode // last node loaded of each level: calls come in ascending order
}

type viewNode struct {
	span  uint8
	index int64
	n     *node
}

// child returns the digest of the node of a span that covers [index<<span, …): zero where the recipe has no data there.
func (v *treeView) child(ctx context.Context, span uint8, index int64) (holdfast.Digest, error) {
	top := rootSpan(v.tree.size)
	switch {
	case v.tree.root.IsZero() || index<<span >= v.tree.size:
		return holdfast.Digest{}, nil
	case span == top:
		return v.tree.root, nil
	case span > top:
		return holdfast.Digest{}, holdfast.Errorf(holdfast.Internal, "read recipe", "no node of span %d in one of span %d", span, top)
	}
	n, err := v.node(ctx, span+fanBits, index>>fanBits)
	if err != nil || n == nil {
		return holdfast.Digest{}, err
	}
	return n.children[index&(maxFan-1)], nil
}

// node loads the interior node of a place; nil where there is none.
func (v *treeView) node(ctx context.Context, span uint8, index int64) (*node, error) {
	level := &v.path[(span-leafSpan)/fanBits]
	if level.n != nil && level.span == span && level.index == index {
		return level.n, nil
	}
	d, err := v.child(ctx, span, index)
	if err != nil || d.IsZero() {
		return nil, err
	}
	n, err := v.p.loadNode(ctx, d, span)
	if err != nil {
		return nil, err
	}
	*level = viewNode{span, index, n}
	return n, nil
}

// children copies the digests of an interior node's children to dst; nodes above the recipe's root are made up.
func (v *treeView) children(ctx context.Context, span uint8, index int64, dst *[maxFan]holdfast.Digest) error {
	clear(dst[:])
	top := rootSpan(v.tree.size)
	if span <= top {
		n, err := v.node(ctx, span, index)
		if err == nil && n != nil {
			copy(dst[:], n.children)
		}
		return err
	}
	if index != 0 {
		return nil
	}
	if span-fanBits <= top {
		d, err := v.child(ctx, span-fanBits, 0)
		dst[0] = d
		return err
	}
	return nil // the level below is made up too and was written as a change
}

// segment returns the refs of segment i, at the disk's offsets.
func (v *treeView) segment(ctx context.Context, i int64) ([]holdfast.Ref, error) {
	d, err := v.child(ctx, leafSpan, i)
	if err != nil || d.IsZero() {
		return nil, err
	}
	return v.flatten(ctx, nil, d, leafSpan, i<<leafSpan)
}

func (v *treeView) flatten(ctx context.Context, refs []holdfast.Ref, d holdfast.Digest, span uint8, base int64) ([]holdfast.Ref, error) {
	n, err := v.p.loadNode(ctx, d, span)
	if err != nil {
		return nil, err
	}
	for _, r := range n.refs {
		r.Off += base
		refs = append(refs, r)
	}
	for i, c := range n.children {
		if !c.IsZero() {
			if refs, err = v.flatten(ctx, refs, c, n.child, base+int64(i)<<n.child); err != nil {
				return nil, err
			}
		}
	}
	return refs, nil
}
