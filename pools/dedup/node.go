package dedup

import (
	"encoding/binary"
	"math/bits"

	"github.com/holdfast-backup/holdfast"
)

// docs/formats/recipe.md is the format of what this file encodes and decodes.
const (
	nodeMagic   = "HFRN"
	nodeVersion = 1
	nodeHead    = 16
	kindLeaf    = 1
	kindInner   = 2

	leafSpan  = 28 // log2 of the bytes a segment covers: 256 MiB
	fanBits   = 8  // log2 of the children of an interior node above the segments
	splitBits = 4  // log2 of the parts a segment is split into where its leaf would be too long
	minSpan   = 12 // no leaf covers less
	maxSpan   = leafSpan + 3*fanBits
	maxFan    = 1 << fanBits

	maxLeaf     = 512 << 10 // bytes of an encoded leaf; longer ones are split
	maxNode     = holdfast.MaxChunk
	maxLeafRefs = maxNode / 4 // each takes at least four bytes
)

// A node is one decoded node of a recipe. Offsets are relative to the node.
type node struct {
	span     uint8
	child    uint8             // of an interior node: log2 of the bytes a child covers; 0 for a leaf
	refs     []holdfast.Ref    // of a leaf
	children []holdfast.Digest // of an interior node, 1<<(span-child) of them; zero: no data
}

func (n *node) leaf() bool { return n.child == 0 }

func badNode(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Corrupt, "read recipe node", format, args...)
}

// childSpan returns what an interior node of a span has as children, or 0 where only leaves have the span.
func childSpan(span uint8) uint8 {
	switch {
	case span > leafSpan && span <= maxSpan && (span-leafSpan)%fanBits == 0:
		return span - fanBits
	case span > minSpan && span <= leafSpan && (leafSpan-span)%splitBits == 0:
		return span - splitBits
	}
	return 0
}

func leafSpanOK(span uint8) bool {
	return span >= minSpan && span <= leafSpan && (leafSpan-span)%splitBits == 0
}

// rootSpan returns the span of the root of a disk's recipe: the smallest that covers it.
func rootSpan(size int64) uint8 {
	s := uint8(leafSpan)
	for s < maxSpan && size > 1<<s {
		s += fanBits
	}
	return s
}

// appendNode encodes a node.
func appendNode(b []byte, n *node) []byte {
	b = append(b, nodeMagic...)
	if !n.leaf() {
		return appendInner(b, n)
	}
	b = append(b, nodeVersion, kindLeaf, n.span, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(n.refs)))
	at := len(b)
	b = binary.LittleEndian.AppendUint32(b, 0)
	seen := make(map[holdfast.Digest]uint32, len(n.refs))
	for i := range n.refs {
		d := n.refs[i].Digest
		if _, ok := seen[d]; !ok {
			seen[d] = uint32(len(seen))
			b = append(b, d[:]...)
		}
	}
	binary.LittleEndian.PutUint32(b[at:], uint32(len(seen)))
	end, used := int64(0), uint32(0)
	for i := range n.refs {
		r := &n.refs[i]
		b = binary.AppendUvarint(b, uint64(r.Off-end))
		b = binary.AppendUvarint(b, uint64(r.Len))
		which := uint64(seen[r.Digest]) + 1
		if which == uint64(used)+1 {
			which, used = 0, used+1
		}
		b = binary.AppendUvarint(b, which)
		b = binary.AppendUvarint(b, uint64(r.Skip))
		end = r.End()
	}
	return b
}

func appendInner(b []byte, n *node) []byte {
	var set [maxFan / 8]byte
	count := 0
	for i := range n.children {
		if !n.children[i].IsZero() {
			set[i/8] |= 1 << (i % 8)
			count++
		}
	}
	b = append(b, nodeVersion, kindInner, n.span, n.child)
	b = binary.LittleEndian.AppendUint32(b, uint32(count))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = append(b, set[:(len(n.children)+7)/8]...)
	for i := range n.children {
		if !n.children[i].IsZero() {
			b = append(b, n.children[i][:]...)
		}
	}
	return b
}

// parseNode decodes a node that fills b. What it accepts encodes to the same bytes. The error is Corrupt.
func parseNode(b []byte) (*node, error) {
	if len(b) < nodeHead || len(b) > maxNode || string(b[:4]) != nodeMagic {
		return nil, badNode("not a node")
	}
	if b[4] != nodeVersion {
		return nil, holdfast.Errorf(holdfast.Unsupported, "read recipe node", "version %d", b[4]).Advise("open the pool with a newer version of Holdfast")
	}
	n := &node{span: b[6], child: b[7]}
	count, distinct := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	switch b[5] {
	case kindLeaf:
		if n.child != 0 || !leafSpanOK(n.span) {
			return nil, badNode("a leaf of span %d", n.span)
		}
		return n, n.parseLeaf(b[nodeHead:], count, distinct)
	case kindInner:
		if childSpan(n.span) == 0 || n.child != childSpan(n.span) || distinct != 0 {
			return nil, badNode("an interior node of span %d with children of span %d", n.span, n.child)
		}
		return n, n.parseInner(b[nodeHead:], count)
	}
	return nil, badNode("unknown kind %d", b[5])
}

func (n *node) parseInner(b []byte, count uint32) error {
	fan := 1 << (n.span - n.child)
	set := (fan + 7) / 8
	if len(b) < set || count == 0 || int(count) > fan || len(b) != set+32*int(count) {
		return badNode("%d bytes for %d children", len(b), count)
	}
	have := 0
	for _, x := range b[:set] {
		have += bits.OnesCount8(x)
	}
	if have != int(count) {
		return badNode("%d children instead of %d", have, count)
	}
	n.children = make([]holdfast.Digest, fan)
	p := b[set:]
	for i := range n.children {
		if b[i/8]>>(i%8)&1 == 0 {
			continue
		}
		copy(n.children[i][:], p)
		p = p[32:]
		if n.children[i].IsZero() {
			return badNode("child %d has the zero digest", i)
		}
	}
	return nil
}

func (n *node) parseLeaf(b []byte, count, distinct uint32) error {
	if count == 0 || count > maxLeafRefs || distinct == 0 || distinct > count || uint64(distinct)*32+uint64(count)*4 > uint64(len(b)) {
		return badNode("%d bytes for %d refs of %d chunks", len(b), count, distinct)
	}
	table := b[:distinct*32]
	if i := repeated(table); i >= 0 {
		return badNode("digest %d is zero or there twice", i)
	}
	v := varints{b: b[distinct*32:]}
	n.refs = make([]holdfast.Ref, 0, count)
	end, used := int64(0), uint64(0)
	for i := range count {
		gap, length, which, skip := v.next(), v.next(), v.next(), v.next()
		if which == 0 {
			used++
			which = used
		} else if which > used {
			return badNode("ref %d names a digest before its turn", i)
		}
		if v.bad || which > uint64(distinct) || gap > 1<<leafSpan || length == 0 || length > holdfast.MaxChunk || skip > holdfast.MaxChunk-length ||
			end+int64(gap+length) > 1<<n.span {
			return badNode("ref %d is out of bounds", i)
		}
		r := holdfast.Ref{Extent: holdfast.Extent{Off: end + int64(gap), Len: int64(length)}, Digest: holdfast.Digest(table[(which-1)*32:]), Skip: uint32(skip)}
		n.refs = append(n.refs, r)
		end = r.End()
	}
	if used != uint64(distinct) || len(v.b) != 0 {
		return badNode("%d of %d digests used, %d bytes left over", used, distinct, len(v.b))
	}
	return nil
}

// varints reads unsigned varints in their shortest form.
type varints struct {
	b   []byte
	bad bool
}

func (v *varints) next() uint64 {
	x, n := binary.Uvarint(v.b)
	if n <= 0 || (n > 1 && v.b[n-1] == 0) {
		v.bad, v.b = true, nil
		return 0
	}
	v.b = v.b[n:]
	return x
}

// repeated returns the position of a digest in a table of them that is zero or was there before, or -1. Digests are uniform where the node is ours; where
// somebody made the first bytes of many alike, it takes longer, but no longer than maxLeaf allows.
func repeated(table []byte) int {
	n := len(table) / 32
	mask := 1<<bits.Len(uint(2*n)) - 1
	slots := make([]uint32, mask+1) // position+1
	for i := range n {
		d := (*holdfast.Digest)(table[i*32:])
		if d.IsZero() {
			return i
		}
		at := int(fingerprint(d)) & mask
		for slots[at] != 0 {
			if *(*holdfast.Digest)(table[(slots[at]-1)*32:]) == *d {
				return i
			}
			at = (at + 1) & mask
		}
		slots[at] = uint32(i) + 1
	}
	return -1
}
