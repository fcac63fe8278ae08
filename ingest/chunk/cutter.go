package chunk

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"sort"

	"github.com/cespare/xxhash/v2"
	"github.com/restic/chunker"

	"github.com/holdfast-backup/holdfast"
)

// Block is the grain of adaptive cutting: the block and cluster size of nearly every guest file system.
const Block = 4096

// sector is what every cut of a disk is a multiple of, so that restores write whole sectors.
const sector = 512

// A Cutter finds chunk boundaries in a run of bytes that lies at disk offset off. It keeps nothing between calls, but is not
// safe for concurrent use.
//
// Cut appends to ends the end positions of chunks within p, ascending. With last set, the final end is len(p) and that chunk
// may be shorter than the minimum. Without last, the bytes after the final end belong to a chunk that is not decided yet: the
// next call gets them again, together with more bytes. Where p is cut this way does not depend on how the run is divided
// into calls. A call with at least Max bytes finds at least one end.
type Cutter interface {
	Cut(p []byte, off int64, last bool, ends []int) []int
}

// NewCutter returns the cutter that a pool's chunking asks for. Partition starts (byte offsets, ascending; see
// PartitionStarts) are always cut at, and the adaptive grid begins anew at each. The error is Invalid.
//
//   - adaptive: cuts on 4 KiB boundaries, where the hash of the block before the boundary is below a threshold;
//   - variable: restic/chunker's cuts, moved up to the next sector; the polynomial is derived from Seed (see polynomial);
//   - fixed: at multiples of Avg on the disk. Partition starts make no difference.
func NewCutter(c holdfast.Chunking, starts ...int64) (Cutter, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	b := newBases(starts)
	switch c.Mode {
	case holdfast.ModeAdaptive:
		return newAdaptive(c, b), nil
	case holdfast.ModeVariable:
		return newVariable(c, b)
	default:
		return fixed{int64(c.Avg)}, nil
	}
}

// bases are the offsets where alignment begins anew: 0 and the starts of partitions.
type bases []int64

func newBases(starts []int64) bases {
	b := append(bases{0}, starts...)
	slices.Sort(b)
	b = slices.Compact(b)
	for b[0] < 0 {
		b = b[1:]
	}
	return b
}

// segment returns the base that off lies on, and where the bytes of p (which lies at off) reach the next one: stop is at most
// len(p), and closed says that a base, not the end of p, ends the segment.
func (b bases) segment(p []byte, off int64) (base int64, stop int, closed bool) {
	i := sort.Search(len(b), func(i int) bool { return b[i] > off })
	if i > 0 {
		base = b[i-1]
	}
	if i < len(b) && b[i]-off < int64(len(p)) {
		return base, int(b[i] - off), true
	}
	return base, len(p), false
}

// each cuts p segment by segment with cut, which gets the segment, its disk offset and base, and whether it is closed.
func (b bases) each(p []byte, off int64, last bool, ends []int, cut func(p []byte, off, base int64, closed bool, add int, ends []int) []int) []int {
	for start := 0; start < len(p); {
		base, n, closed := b.segment(p[start:], off+int64(start))
		ends = cut(p[start:start+n], off+int64(start), base, closed || last, start, ends)
		if !closed {
			break
		}
		start += n
	}
	return ends
}

// adaptive cuts by content on block boundaries. The decision whether a chunk ends after a block is taken from that block
// alone, so chunks that begin differently soon meet in a common cut.
type adaptive struct {
	min, avg, max int64
	seed          uint64
	tight, loose  uint64 // a boundary is a cut if its hash is below; tight before avg, loose after
	bases         bases
}

func newAdaptive(c holdfast.Chunking, b bases) *adaptive {
	// Normalised thresholds: before the average a boundary is a cut once in 5/4 of the average (in blocks), after it once in half
	// of it. Part of the format of deduplication: another value makes every old chunk new (docs/design/0001-cutting.md).
	blocks := max(uint64(c.Avg)/Block, 1)
	return &adaptive{
		min: int64(c.Min), avg: int64(c.Avg), max: int64(c.Max), seed: c.Seed,
		tight: math.MaxUint64 / (blocks * 5) * 4,
		loose: math.MaxUint64 / max(blocks, 2) * 2,
		bases: b,
	}
}

func (a *adaptive) Cut(p []byte, off int64, last bool, ends []int) []int {
	return a.bases.each(p, off, last, ends, a.cut)
}

func (a *adaptive) cut(p []byte, off, base int64, closed bool, add int, ends []int) []int {
	// All positions below are relative to base: multiples of Block are the grid, p[i] lies at from+i.
	from := off - base
	end := from + int64(len(p))
	for start := from; start < end; {
		limit := (start + a.max) &^ (Block - 1)
		pos := min((start+a.min+Block-1)&^(Block-1), limit)
		for pos < limit && pos <= end && !a.isCut(p[pos-Block-from:pos-from], pos-start < a.avg) {
			pos += Block
		}
		if pos > end {
			if closed {
				ends = append(ends, add+len(p))
			}
			return ends
		}
		ends = append(ends, add+int(pos-from))
		start = pos
	}
	return ends
}

func (a *adaptive) isCut(block []byte, early bool) bool {
	h := mix(xxhash.Sum64(block) ^ a.seed)
	if early {
		return h < a.tight
	}
	return h < a.loose
}

// mix is a finaliser: it makes every bit of the result depend on every bit of seed and hash.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// variable cuts with restic/chunker, starting afresh at every chunk.
type variable struct {
	start, work chunker.BaseChunker
	bases       bases
}

func newVariable(c holdfast.Chunking, b bases) (*variable, error) {
	pol, err := polynomial(c.Seed)
	if err != nil {
		return nil, err
	}
	// The mean on random data is Min + 2^bits.
	shift := max(bits.Len32(c.Avg-c.Min)-1, 8)
	base := chunker.NewBase(pol, chunker.WithBaseBoundaries(uint(c.Min), uint(c.Max)), chunker.WithBaseAverageBits(shift))
	return &variable{start: *base, work: *base, bases: b}, nil
}

// polynomial derives the irreducible polynomial of degree 53 that belongs to a seed: chunker.DerivePolynomial over the stream
// of little-endian xxhash64(seed ‖ n), n = 0, 1, 2, … (both 8 bytes, little-endian).
func polynomial(seed uint64) (chunker.Pol, error) {
	pol, err := chunker.DerivePolynomial(&seedStream{seed: seed})
	if err != nil {
		return 0, holdfast.Errorf(holdfast.Invalid, "derive polynomial", "%w", err)
	}
	return pol, nil
}

type seedStream struct {
	seed, n uint64
	rest    []byte
}

func (s *seedStream) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		in := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, s.seed), s.n)
		s.rest = binary.LittleEndian.AppendUint64(nil, xxhash.Sum64(in))
		s.n++
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (v *variable) Cut(p []byte, off int64, last bool, ends []int) []int {
	return v.bases.each(p, off, last, ends, v.cut)
}

func (v *variable) cut(p []byte, off, _ int64, closed bool, add int, ends []int) []int {
	v.work = v.start
	for start := 0; start < len(p); {
		n := v.work.NextSplitPoint(p[start:])
		if n < 0 {
			if closed {
				ends = append(ends, add+len(p))
			}
			break
		}
		end := int(roundUp(off+int64(start+n), sector) - off)
		if end > len(p) {
			if !closed {
				break
			}
			end = len(p)
		}
		ends = append(ends, add+end)
		start = end
	}
	return ends
}

// fixed cuts at multiples of its size on the disk.
type fixed struct{ size int64 }

func (f fixed) Cut(p []byte, off int64, last bool, ends []int) []int {
	for end := off/f.size*f.size + f.size - off; end <= int64(len(p)); end += f.size {
		ends = append(ends, int(end))
	}
	if last && len(p) > 0 && (len(ends) == 0 || ends[len(ends)-1] != len(p)) {
		ends = append(ends, len(p))
	}
	return ends
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
