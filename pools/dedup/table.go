package dedup

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
)

// A loc says where a chunk lies: the slot of its container (a number of this process, not the container's id) and its ordinal in it.
type loc uint64

func makeLoc(slot, ordinal uint32) loc { return loc(slot)<<16 | loc(ordinal) }
func (l loc) slot() uint32             { return uint32(l >> 16) }
func (l loc) ordinal() uint32          { return uint32(l & 0xffff) }

// fingerprint is the part of a digest that the index keeps. Never zero: zero marks an empty entry.
func fingerprint(d *holdfast.Digest) uint64 {
	return max(binary.LittleEndian.Uint64(d[:8]), 1)
}

// A table maps fingerprints to locations: open addressing with linear probing in 16 bytes an entry, at a load of 0.8 to 0.9,
// so 18 to 20 bytes a chunk. Digests are uniform, so a fingerprint is its own hash. A fingerprint may be there
// several times (copies of a chunk, or a collision): the caller confirms each with the full digest.
//
// An entry that is further from its home displaces one that is nearer (Robin Hood hashing). So a search may stop at the first entry that is nearer
// to its home than the searched one would be: a few probes, where one that went on to the next hole would need fifty at a load of 0.9.
//
// The table is cut into shards by the fingerprint's first byte, each of which grows by an eighth when it is 0.9 full: growing
// never needs more than 1/256 of the table's memory again. Not safe for concurrent use; the pool's lock guards it.
type table struct{ shards [256]shard }

type shard struct {
	entries []entry
	used    int
}

type entry struct {
	fp  uint64
	loc loc
}

const minShard = 16

// home is the entry where a probe for fp begins.
func (s *shard) home(fp uint64) int {
	hi, _ := bits.Mul64(fp<<8, uint64(len(s.entries)))
	return int(hi)
}

// insert adds an entry. The same entry must not be there yet.
func (t *table) insert(fp uint64, l loc) {
	s := &t.shards[fp>>56]
	if (s.used+1)*10 > len(s.entries)*9 {
		s.grow(max(minShard, len(s.entries)+len(s.entries)/8))
	}
	s.put(fp, l)
	s.used++
}

func (s *shard) put(fp uint64, l loc) {
	e, i, far := entry{fp, l}, s.home(fp), 0
	for s.entries[i].fp != 0 {
		if d := s.distance(i); d < far {
			e, s.entries[i], far = s.entries[i], e, d
		}
		far++
		if i++; i == len(s.entries) {
			i = 0
		}
	}
	s.entries[i] = e
}

// distance is how far an entry, which is there, lies from its home.
func (s *shard) distance(i int) int {
	d := i - s.home(s.entries[i].fp)
	if d < 0 {
		d += len(s.entries)
	}
	return d
}

func (s *shard) grow(n int) {
	old := s.entries
	s.entries = make([]entry, n)
	for _, e := range old {
		if e.fp != 0 {
			s.put(e.fp, e.loc)
		}
	}
}

// reserve makes room for n more entries, spread evenly, so that loading an index does not grow it step by step.
func (t *table) reserve(n int) {
	per := n/len(t.shards) + n/len(t.shards)/16 // a little over the mean: shards differ
	for i := range t.shards {
		s := &t.shards[i]
		if want := (s.used+per)*7/6 + minShard; want > len(s.entries) {
			s.grow(want)
		}
	}
}

// appendLocs appends the locations of a fingerprint to dst.
func (t *table) appendLocs(dst []loc, fp uint64) []loc {
	s := &t.shards[fp>>56]
	if len(s.entries) == 0 {
		return dst
	}
	for i, far := s.home(fp), 0; s.entries[i].fp != 0; far++ {
		if s.entries[i].fp == fp {
			dst = append(dst, s.entries[i].loc)
		} else if s.distance(i) < far {
			break
		}
		if i++; i == len(s.entries) {
			i = 0
		}
	}
	return dst
}

// ahead is how many look-ups are prepared together.
const ahead = 64

// touch fetches the memory that a look-up of fp is going to need. Look-ups wait for memory one after the other; touches do not, so a run
// of touches before the look-ups makes these several times as fast in a large table. The result is of no use.
func (t *table) touch(fp uint64) uint64 {
	s := &t.shards[fp>>56]
	if len(s.entries) == 0 {
		return 0
	}
	return s.entries[s.home(fp)].fp
}

// filter keeps the entries that keep says.
func (s *shard) filter(keep func(loc) bool) {
	gone := 0
	for i := range s.entries {
		if e := &s.entries[i]; e.fp != 0 && !keep(e.loc) {
			gone++
			*e = entry{}
		}
	}
	if gone == 0 {
		return
	}
	s.used -= gone
	s.grow(max(minShard, s.used*6/5+1)) // holes end probes too early: everything is put anew
}

// len returns the number of entries.
func (t *table) len() int {
	n := 0
	for i := range t.shards {
		n += t.shards[i].used
	}
	return n
}

// A bitmap has one bit for each chunk of a container.
type bitmap []uint64

func newBitmap(n uint32) bitmap { return make(bitmap, (n+63)/64) }

// get reports bit i; the nil bitmap has none.
func (b bitmap) get(i uint32) bool { return b != nil && b[i/64]>>(i%64)&1 != 0 }
func (b bitmap) set(i uint32)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) clear(i uint32)    { b[i/64] &^= 1 << (i % 64) }

// getAtomic and setAtomic are get and set beside others that do the same.
func (b bitmap) getAtomic(i uint32) bool { return atomic.LoadUint64(&b[i/64])>>(i%64)&1 != 0 }
func (b bitmap) setAtomic(i uint32) {
	if !b.getAtomic(i) {
		atomic.OrUint64(&b[i/64], 1<<(i%64))
	}
}

// or adds the bits of o, which may be nil.
func (b bitmap) or(o bitmap) {
	for i := range o {
		b[i] |= o[i]
	}
}

func (b bitmap) count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// A finder finds the chunks of one container that is being written: open addressing over ordinals.
type finder struct {
	slots []uint32 // ordinal+1; zero is empty
	used  int
}

// find returns the ordinal of d among chunks.
func (f *finder) find(chunks []chunkEntry, d *holdfast.Digest) (uint32, bool) {
	if len(f.slots) == 0 {
		return 0, false
	}
	mask := uint32(len(f.slots) - 1)
	for i := uint32(fingerprint(d)) & mask; f.slots[i] != 0; i = (i + 1) & mask {
		if o := f.slots[i] - 1; chunks[o].Digest == *d {
			return o, true
		}
	}
	return 0, false
}

// add enters the chunk with the ordinal.
func (f *finder) add(chunks []chunkEntry, ordinal uint32) {
	if (f.used+1)*2 > len(f.slots) {
		old := f.slots
		f.slots = make([]uint32, max(256, 2*len(old)))
		for _, o := range old {
			if o != 0 {
				f.put(chunks, o-1)
			}
		}
	}
	f.put(chunks, ordinal)
	f.used++
}

func (f *finder) put(chunks []chunkEntry, ordinal uint32) {
	mask := uint32(len(f.slots) - 1)
	i := uint32(fingerprint(&chunks[ordinal].Digest)) & mask
	for f.slots[i] != 0 {
		i = (i + 1) & mask
	}
	f.slots[i] = ordinal + 1
}

// complement returns the first n bits turned round; the nil bitmap gives n bits.
func (b bitmap) complement(n uint32) bitmap {
	out := newBitmap(n)
	for i := range out {
		out[i] = ^uint64(0)
		if b != nil {
			out[i] = ^b[i]
		}
	}
	if n%64 != 0 {
		out[len(out)-1] &= 1<<(n%64) - 1
	}
	return out
}
