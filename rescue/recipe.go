package rescue

import (
	"encoding/binary"
	"math/bits"

	"github.com/holdfast-backup/holdfast"
)

// docs/formats/recipe.md, section "Node".
const (
	nodeMagic    = "HFRN"
	nodeHead     = 16
	nodeLeaf     = 1
	nodeInterior = 2
	maxNode      = 1 << 20
	segmentSpan  = 28
	topSpan      = 52
)

// A node is a decoded node of a recipe.
type node struct {
	span, child uint8
	children    []childAt      // of an interior node
	refs        []holdfast.Ref // of a leaf: offsets from the node's start
	digests     []holdfast.Digest
}

// A childAt is a child that is there.
type childAt struct {
	index  int
	digest holdfast.Digest
}

// rootSpan returns the span of the root of a disk's recipe.
func rootSpan(size int64) uint8 {
	for span := uint8(segmentSpan); ; span += 8 {
		if span >= topSpan || size <= 1<<span {
			return span
		}
	}
}

func badNode(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Corrupt, "read node", format, args...)
}

// parseNode decodes a node that must be of the span.
func parseNode(b []byte, span uint8) (*node, error) {
	le := binary.LittleEndian
	if len(b) < nodeHead || len(b) > maxNode || string(b[:4]) != nodeMagic {
		return nil, badNode("not a node")
	}
	if b[4] != 1 {
		return nil, holdfast.Errorf(holdfast.Unsupported, "read node", "version %d", b[4]).Advise("use a newer version of this program")
	}
	n := &node{span: b[6], child: b[7]}
	count, distinct := le.Uint32(b[8:]), le.Uint32(b[12:])
	if n.span != span || count == 0 || n.span > topSpan {
		return nil, badNode("span %d with %d entries, where span %d is expected", n.span, count, span)
	}
	switch b[5] {
	case nodeInterior:
		return n, n.interior(b[nodeHead:], count, distinct)
	case nodeLeaf:
		return n, n.leaf(b[nodeHead:], count, distinct)
	}
	return nil, badNode("kind %d", b[5])
}

// childSpan returns the span of the children of an interior node.
func childSpan(span uint8) uint8 {
	if span > segmentSpan {
		return span - 8
	}
	return span - 4
}

func (n *node) interior(b []byte, count, reserved uint32) error {
	if n.span <= 12 || n.child != childSpan(n.span) || reserved != 0 {
		return badNode("an interior node of span %d with children of %d", n.span, n.child)
	}
	slots := 1 << (n.span - n.child)
	if len(b) < slots/8 {
		return badNode("no bitmap")
	}
	bitmap, rest := b[:slots/8], b[slots/8:]
	set := 0
	for _, x := range bitmap {
		set += bits.OnesCount8(x)
	}
	if set != int(count) || len(rest) != 32*set {
		return badNode("%d children, %d bits and %d bytes of digests", count, set, len(rest))
	}
	for i := range slots {
		if bitmap[i/8]>>(i%8)&1 == 1 {
			n.children = append(n.children, childAt{i, holdfast.Digest(rest[:32])})
			rest = rest[32:]
		}
	}
	return nil
}

func (n *node) leaf(b []byte, count, distinct uint32) error {
	if n.child != 0 || n.span > segmentSpan || distinct > count || int64(distinct)*32 > int64(len(b)) {
		return badNode("a leaf of span %d with %d refs and %d digests", n.span, count, distinct)
	}
	for i := range int(distinct) {
		n.digests = append(n.digests, holdfast.Digest(b[32*i:]))
	}
	b = b[32*distinct:]
	if int64(count)*4 > int64(len(b)) {
		return badNode("%d refs in %d bytes", count, len(b))
	}
	pos, named := uint64(0), uint64(0)
	for range count {
		var v [4]uint64 // gap, length, which, skip
		for i := range v {
			x, k := binary.Uvarint(b)
			if k <= 0 || k > 1 && b[k-1] == 0 {
				return badNode("a number that is cut off or too long")
			}
			v[i], b = x, b[k:]
		}
		which := v[2]
		if which == 0 {
			named++
			which = named
		}
		if which > named || which > uint64(distinct) || v[0] > 1<<n.span || v[1] == 0 || v[1] > holdfast.MaxChunk || v[3]+v[1] > holdfast.MaxChunk {
			return badNode("a ref out of bounds")
		}
		pos += v[0]
		if pos+v[1] > 1<<n.span {
			return badNode("a ref behind the node's end")
		}
		n.refs = append(n.refs, holdfast.Ref{Extent: holdfast.Extent{Off: int64(pos), Len: int64(v[1])}, Digest: n.digests[which-1], Skip: uint32(v[3])})
		pos += v[1]
	}
	if len(b) != 0 || named != uint64(distinct) {
		return badNode("%d bytes behind the last ref, %d of %d digests named", len(b), named, distinct)
	}
	return nil
}
