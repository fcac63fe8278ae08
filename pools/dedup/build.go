package dedup

import (
	"context"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// A treeBuilder makes a disk's recipe out of refs that come in ascending order. It keeps one segment's refs in memory and one digest
// for each segment that changed; segments nobody touched are the parent's, by digest, without being read.
type treeBuilder struct {
	s      *session
	r      resolver
	size   int64
	parent treeView
	has    bool // there is a parent

	seg     int64            // the segment that is collected; -1: none
	refs    []holdfast.Ref   // data placed in it
	covered holdfast.Extents // what was placed in it, zeros too; adjacent ones are merged
	changed []segment        // finished, ascending
	placed  int64
	enc     []byte
}

// A segment is a finished part of the recipe.
type segment struct {
	index  int64
	digest holdfast.Digest
}

func newTreeBuilder(s *session, size int64, parent parentDisk) *treeBuilder {
	return &treeBuilder{s: s, r: resolver{p: s.p}, size: size, has: parent.has, parent: treeView{p: s.p, tree: parent.diskTree}, seg: -1}
}

// place adds one ref, which begins at or behind the end of the one before.
func (b *treeBuilder) place(ctx context.Context, r holdfast.Ref) error {
	for off := r.Off; off < r.End(); {
		seg := off >> leafSpan
		end := min((seg+1)<<leafSpan, r.End())
		if seg != b.seg {
			if err := b.endSegment(ctx); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			b.seg = seg
		}
		part := pools.CutRef(r, off, end)
		if n := len(b.covered); n > 0 && b.covered[n-1].End() == off {
			b.covered[n-1].Len += part.Len
		} else {
			b.covered = append(b.covered, part.Extent)
		}
		if !part.Digest.IsZero() {
			b.refs = appendRef(b.refs, part)
			b.placed += part.Len
		}
		off = end
	}
	return nil
}

// appendRef appends a ref, joined with the last one where both are neighbours in the disk and in the chunk.
func appendRef(refs []holdfast.Ref, r holdfast.Ref) []holdfast.Ref {
	if n := len(refs); n > 0 {
		l := &refs[n-1]
		if l.Digest == r.Digest && l.End() == r.Off && int64(l.Skip)+l.Len == int64(r.Skip) {
			l.Len += r.Len
			return refs
		}
	}
	return append(refs, r)
}

// segmentEnd returns where a segment ends on a disk of a size.
func segmentEnd(seg, size int64) int64 { return min((seg+1)<<leafSpan, size) }

// endSegment turns the collected segment into a leaf.
func (b *treeBuilder) endSegment(ctx context.Context) error {
	if b.seg < 0 {
		return nil
	}
	refs := b.refs
	whole := len(b.covered) == 1 && b.covered[0] == holdfast.Extent{Off: b.seg << leafSpan, Len: segmentEnd(b.seg, b.size) - b.seg<<leafSpan}
	if b.has && !whole {
		old, err := b.parent.segment(ctx, b.seg)
		if err != nil {
			return err
		}
		refs = merge(old, b.refs, b.covered, b.size)
	}
	d, err := b.store(ctx, refs, leafSpan, b.seg<<leafSpan)
	if err != nil {
		return err
	}
	b.changed = append(b.changed, segment{b.seg, d})
	b.seg, b.refs, b.covered = -1, b.refs[:0], b.covered[:0]
	return nil
}

// merge returns old's refs outside the covered extents, cut to size, together with placed, which lie inside them.
func merge(old, placed []holdfast.Ref, covered holdfast.Extents, size int64) []holdfast.Ref {
	out := make([]holdfast.Ref, 0, len(old)+len(placed)+2*len(covered))
	next := 0
	upTo := func(off int64) {
		for next < len(placed) && placed[next].Off < off {
			out = appendRef(out, placed[next])
			next++
		}
	}
	for _, r := range old {
		off, end := r.Off, min(r.End(), size)
		for len(covered) > 0 && covered[0].End() <= off {
			covered = covered[1:]
		}
		for c := covered; off < end; c = c[1:] {
			stop := end
			if len(c) > 0 {
				stop = min(end, c[0].Off)
			}
			if stop > off {
				upTo(off)
				out = appendRef(out, pools.CutRef(r, off, stop))
			}
			if len(c) == 0 {
				break
			}
			off = max(off, c[0].End())
		}
	}
	upTo(size)
	return out
}

// store stores the node that has refs (at the disk's offsets) and returns its digest, zero for no refs. A leaf that
// would be too long becomes an interior node of smaller leaves.
func (b *treeBuilder) store(ctx context.Context, refs []holdfast.Ref, span uint8, base int64) (holdfast.Digest, error) {
	if len(refs) == 0 {
		return holdfast.Digest{}, nil
	}
	if len(refs) <= maxLeaf/4 { // no ref takes less than four bytes
		leaf := node{span: span, refs: make([]holdfast.Ref, len(refs))}
		for i, r := range refs {
			r.Off -= base
			leaf.refs[i] = r
		}
		b.enc = appendNode(b.enc[:0], &leaf)
		if len(b.enc) <= maxLeaf || span == minSpan {
			return b.s.putNode(ctx, &b.r, b.enc)
		}
	}
	n := node{span: span, child: childSpan(span)}
	n.children = make([]holdfast.Digest, 1<<(span-n.child))
	var part []holdfast.Ref
	for i := range n.children {
		off := base + int64(i)<<n.child
		end := off + 1<<n.child
		part = part[:0]
		for _, r := range refs {
			if r.Off >= end {
				break
			}
			part = append(part, pools.CutRef(r, max(r.Off, off), min(r.End(), end)))
			if r.End() > end {
				break
			}
			refs = refs[1:]
		}
		d, err := b.store(ctx, part, n.child, off)
		if err != nil {
			return d, err
		}
		n.children[i] = d
	}
	return b.s.putNode(ctx, &b.r, appendNode(nil, &n))
}

// finish stores the rest of the recipe and returns its root.
func (b *treeBuilder) finish(ctx context.Context) (diskRoot, error) {
	root := diskRoot{}
	if err := b.endSegment(ctx); err != nil {
		return root, err
	}
	root.placed = b.placed
	if err := b.adjust(ctx); err != nil {
		return root, err
	}
	if len(b.changed) == 0 {
		root.root = b.parent.tree.root // the disk is the parent's, or has no data
		return root, nil
	}
	level := b.changed
	for span := uint8(leafSpan); span < rootSpan(b.size); span += fanBits {
		if err := ctx.Err(); err != nil {
			return root, err
		}
		var err error
		if level, err = b.level(ctx, level, span+fanBits); err != nil {
			return root, err
		}
	}
	root.root = level[0].digest
	return root, nil
}

// adjust makes segments count as changed where the disk's size is not the parent's: the one that a smaller disk cuts off, and
// the first one where the root lies higher or lower.
func (b *treeBuilder) adjust(ctx context.Context) error {
	old := b.parent.tree.size
	if !b.has || old == b.size || b.parent.tree.root.IsZero() {
		return nil
	}
	last := (min(old, b.size) - 1) >> leafSpan
	for _, i := range [...]int64{0, last} {
		if err := b.touch(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// touch makes a segment count as changed that was not placed in.
func (b *treeBuilder) touch(ctx context.Context, i int64) error {
	at := len(b.changed)
	for at > 0 && b.changed[at-1].index >= i {
		at--
	}
	if at < len(b.changed) && b.changed[at].index == i {
		return nil
	}
	old, err := b.parent.segment(ctx, i)
	if err != nil {
		return err
	}
	d, err := b.store(ctx, merge(old, nil, nil, b.size), leafSpan, i<<leafSpan)
	if err != nil {
		return err
	}
	b.changed = append(b.changed, segment{})
	copy(b.changed[at+1:], b.changed[at:])
	b.changed[at] = segment{i, d}
	return nil
}

// level stores the interior nodes of a span above what changed below.
func (b *treeBuilder) level(ctx context.Context, below []segment, span uint8) ([]segment, error) {
	var out []segment
	n := node{span: span, child: span - fanBits}
	var children [maxFan]holdfast.Digest
	for len(below) > 0 {
		index := below[0].index >> fanBits
		clear(children[:])
		if b.has {
			if err := b.parent.children(ctx, span, index, &children); err != nil {
				return nil, err
			}
		}
		any := false
		for len(below) > 0 && below[0].index>>fanBits == index {
			children[below[0].index&(maxFan-1)] = below[0].digest
			below = below[1:]
		}
		for i := range children {
			if (index<<fanBits+int64(i))<<n.child >= b.size {
				children[i] = holdfast.Digest{} // cut off
			}
			any = any || !children[i].IsZero()
		}
		d := holdfast.Digest{}
		if any {
			n.children = children[:]
			var err error
			b.enc = appendNode(b.enc[:0], &n)
			if d, err = b.s.putNode(ctx, &b.r, b.enc); err != nil {
				return nil, err
			}
		}
		out = append(out, segment{index, d})
	}
	return out, nil
}
