package parity

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// The format is docs/formats/stripe.md.

const (
	labelMagic  = "HFSTRIPE"
	memberMagic = "HFMEMBER"
	version     = 1
	labelLen    = 320
	memberLen   = 64
	sumLen      = 4  // behind each block
	grain       = 64 // blocks are multiples of this
	maxShards   = 32

	// DefaultBlock is the size of a full block: what is read at least to check a single byte.
	DefaultBlock = 64 << 10
	maxBlock     = 1 << 20
	// maxObject bounds the length that a label may claim: 16 TiB, far above any object.
	maxObject = 1 << 44
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// geometry is what all objects of a stripe have in common.
type geometry struct {
	id    holdfast.ID
	k, m  int
	block int // a multiple of grain
}

func (g geometry) n() int { return g.k + g.m }

func (g geometry) check() error {
	if g.m < 1 || g.k <= g.m || g.n() > maxShards {
		return holdfast.Errorf(holdfast.Invalid, "stripe", "%d+%d cannot be striped", g.k, g.m).
			Advise("choose at least one parity shard, more data than parity shards, and at most %d in all, as 2+1 or 4+2", maxShards)
	}
	if g.block < grain || g.block > maxBlock || g.block%grain != 0 {
		return holdfast.Errorf(holdfast.Invalid, "stripe", "blocks of %d bytes; they are multiples of %d up to %d", g.block, grain, maxBlock)
	}
	return nil
}

// turn is how far an object's shards are rotated over the members, so that parity and small reads spread over all of them.
func (g geometry) turn(name string) int {
	return int(crc32.Checksum([]byte(name), castagnoli) % uint32(g.n()))
}

// position is the member that keeps a shard; index is the shard that a member keeps.
func (g geometry) position(name string, index int) int { return (index + g.turn(name)) % g.n() }
func (g geometry) index(name string, position int) int {
	return (position - g.turn(name) + g.n()) % g.n()
}

// layout is where an object's bytes lie in its shards.
type layout struct {
	k, block int
	length   int64
	full     int64 // stripes of full blocks
	last     int   // length of the blocks of the stripe behind those; 0: there is none
}

func (g geometry) layout(length int64) layout {
	stripe := int64(g.k) * int64(g.block)
	l := layout{k: g.k, block: g.block, length: length, full: length / stripe}
	if rest := length % stripe; rest > 0 {
		each := (rest + int64(g.k) - 1) / int64(g.k)
		l.last = int((each + grain - 1) / grain * grain)
	}
	return l
}

func (l layout) stripes() int64 {
	if l.last > 0 {
		return l.full + 1
	}
	return l.full
}

// blockLen is the length of the blocks of a stripe.
func (l layout) blockLen(stripe int64) int {
	if stripe < l.full {
		return l.block
	}
	return l.last
}

// at is where the record of a stripe begins in a shard; at(stripes()) is where the label begins.
func (l layout) at(stripe int64) int64 {
	if stripe <= l.full {
		return stripe * int64(l.block+sumLen)
	}
	return l.full*int64(l.block+sumLen) + int64(l.last+sumLen)
}

func (l layout) shardSize() int64 { return l.at(l.stripes()) + labelLen }

// find returns the stripe, the data block and the offset in it of a byte of the object.
func (l layout) find(off int64) (stripe int64, block, in int) {
	wide := int64(l.k) * int64(l.block)
	if stripe = off / wide; stripe < l.full {
		rest := off % wide
		return stripe, int(rest / int64(l.block)), int(rest % int64(l.block))
	}
	rest := off - l.full*wide
	return l.full, int(rest / int64(l.last)), int(rest % int64(l.last))
}

// sums makes the checksums of one shard's blocks. They cover whose block it is, so that one in a wrong place is found.
type sums struct{ seed uint32 }

func newSums(g geometry, name string, index int) sums {
	var head [20]byte
	copy(head[:], g.id[:])
	head[16], head[17], head[18] = byte(g.k), byte(g.m), byte(index)
	return sums{crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, []byte(name))}
}

func (s sums) of(stripe int64, block []byte) uint32 {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(stripe))
	return crc32.Update(crc32.Update(s.seed, castagnoli, n[:]), castagnoli, block)
}

// label ends a shard and says what it is.
type label struct {
	geometry
	index  int
	length int64  // of the object
	sum    uint32 // crc32c of the object
	name   string
}

func (l label) encode() []byte {
	b := make([]byte, labelLen)
	copy(b, labelMagic)
	le := binary.LittleEndian
	le.PutUint16(b[8:], version)
	b[10], b[11], b[12] = byte(l.k), byte(l.m), byte(l.index)
	le.PutUint16(b[14:], uint16(len(l.name)))
	le.PutUint32(b[16:], uint32(l.block))
	copy(b[24:], l.id[:])
	le.PutUint64(b[40:], uint64(l.length))
	le.PutUint32(b[48:], l.sum)
	copy(b[56:256], l.name)
	le.PutUint32(b[316:], crc32.Checksum(b[:316], castagnoli))
	return b
}

func decodeLabel(b []byte) (label, error) {
	var l label
	bad := func(why string) (label, error) {
		return label{}, holdfast.Errorf(holdfast.Corrupt, "read label", "%s", why)
	}
	le := binary.LittleEndian
	if len(b) != labelLen || string(b[:8]) != labelMagic || crc32.Checksum(b[:316], castagnoli) != le.Uint32(b[316:]) {
		return bad("not a shard's label, or a damaged one")
	}
	if v := le.Uint16(b[8:]); v != version || le.Uint32(b[20:]) != 0 {
		return label{}, holdfast.Errorf(holdfast.Unsupported, "read label", "version %d of striping", v).Advise("use a newer Holdfast")
	}
	l.k, l.m, l.index, l.block = int(b[10]), int(b[11]), int(b[12]), int(le.Uint32(b[16:]))
	copy(l.id[:], b[24:])
	l.length, l.sum = int64(le.Uint64(b[40:])), le.Uint32(b[48:])
	n := int(le.Uint16(b[14:]))
	if n > blob.MaxName {
		return bad("a name that is too long")
	}
	l.name = string(b[56 : 56+n])
	if l.check() != nil || l.index >= l.n() || l.length < 0 || l.length > maxObject || blob.CheckName(l.name) != nil || !zero(b[13:14], b[52:56], b[56+n:316]) {
		return bad("values out of bounds")
	}
	return l, nil
}

// memberLabel says which member of which stripe a store is.
type memberLabel struct {
	geometry
	position int
}

func (l memberLabel) encode() []byte {
	b := make([]byte, memberLen)
	copy(b, memberMagic)
	le := binary.LittleEndian
	le.PutUint16(b[8:], version)
	b[10], b[11], b[12] = byte(l.k), byte(l.m), byte(l.position)
	le.PutUint32(b[16:], uint32(l.block))
	copy(b[24:], l.id[:])
	le.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

func decodeMember(b []byte) (memberLabel, error) {
	var l memberLabel
	le := binary.LittleEndian
	if len(b) != memberLen || string(b[:8]) != memberMagic || crc32.Checksum(b[:60], castagnoli) != le.Uint32(b[60:]) {
		return l, holdfast.Errorf(holdfast.Corrupt, "read member label", "not a member's label, or a damaged one")
	}
	if v := le.Uint16(b[8:]); v != version || le.Uint32(b[20:]) != 0 {
		return l, holdfast.Errorf(holdfast.Unsupported, "read member label", "version %d of striping", v).Advise("use a newer Holdfast")
	}
	l.k, l.m, l.position, l.block = int(b[10]), int(b[11]), int(b[12]), int(le.Uint32(b[16:]))
	copy(l.id[:], b[24:])
	if l.check() != nil || l.position >= l.n() || l.id.IsZero() || !zero(b[13:16], b[40:60]) {
		return memberLabel{}, holdfast.Errorf(holdfast.Corrupt, "read member label", "values out of bounds")
	}
	return l, nil
}

func zero(parts ...[]byte) bool {
	for _, p := range parts {
		for _, c := range p {
			if c != 0 {
				return false
			}
		}
	}
	return true
}
