package dedup

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// Goal: the table answers as a map of lists does. Method: random inserts and filters, with many equal fingerprints.
func TestTableAgreesWithModel(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var tab table
		model := map[uint64][]loc{}
		if seed%2 == 1 {
			tab.reserve(5000)
		}
		for i := range 20_000 {
			fp := rng.Uint64()
			switch rng.IntN(4) {
			case 0:
				fp &^= 1<<56 - 1 // many homes at the start of a shard
				fp += uint64(rng.IntN(50))
			case 1:
				fp |= 1<<56 - 1 // and at its end: probes wrap around
			}
			fp = max(fp, 1)
			l := makeLoc(uint32(rng.IntN(40)), uint32(i))
			tab.insert(fp, l)
			model[fp] = append(model[fp], l)
			if i%4999 == 4998 {
				gone := uint32(rng.IntN(40))
				for s := range tab.shards {
					tab.shards[s].filter(func(l loc) bool { return l.slot() != gone })
				}
				for fp, ls := range model {
					model[fp] = slices.DeleteFunc(ls, func(l loc) bool { return l.slot() == gone })
				}
			}
		}
		n := 0
		for fp, want := range model {
			got := tab.appendLocs(nil, fp)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d: fingerprint %x: %v, expected %v", seed, fp, got, want)
			}
			n += len(want)
		}
		if tab.len() != n {
			t.Fatalf("seed %d: %d entries, expected %d", seed, tab.len(), n)
		}
	}
}

// Goal: the index keeps its promise of memory: at most 21 bytes a chunk once it has grown.
func TestTableTakesAtMost21BytesAChunk(t *testing.T) {
	var tab table
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 1_000_000 {
		tab.insert(max(rng.Uint64(), 1), makeLoc(uint32(i>>16), uint32(i&0xffff)))
	}
	bytes := 0
	for i := range tab.shards {
		bytes += 16 * len(tab.shards[i].entries)
	}
	if per := float64(bytes) / 1_000_000; per > 21 {
		t.Fatalf("%.1f bytes a chunk", per)
	}
}

// Goal: bitmaps do what their names say at every length.
func TestBitmaps(t *testing.T) {
	for _, n := range []uint32{1, 63, 64, 65, 130} {
		b := newBitmap(n)
		for i := uint32(0); i < n; i += 3 {
			b.set(i)
		}
		c := b.complement(n)
		if b.count()+c.count() != int(n) || bitmap(nil).complement(n).count() != int(n) {
			t.Fatalf("%d bits: %d and %d", n, b.count(), c.count())
		}
		b.clear(0)
		c.or(b)
		if c.get(0) || n > 3 && !c.get(3) || bitmap(nil).get(n) {
			t.Fatalf("%d bits: wrong bit", n)
		}
	}
}

// Goal: a finder finds what was added and nothing else.
func TestFinderFinds(t *testing.T) {
	var f finder
	h := holdfast.Domain{}.Hasher()
	var chunks []chunkEntry
	for i := range 5000 {
		chunks = append(chunks, chunkEntry{Piece: holdfast.Piece{Digest: h.Sum([]byte{byte(i), byte(i >> 8)})}})
		if _, ok := f.find(chunks, &chunks[i].Digest); ok {
			t.Fatal("found before it was added")
		}
		f.add(chunks, uint32(i))
	}
	for i := range chunks {
		if o, ok := f.find(chunks, &chunks[i].Digest); !ok || o != uint32(i) {
			t.Fatalf("chunk %d: %d %v", i, o, ok)
		}
	}
}

func BenchmarkTableLookup(b *testing.B) {
	var tab table
	rng := rand.New(rand.NewPCG(1, 1))
	fps := make([]uint64, 4_000_000)
	tab.reserve(len(fps))
	for i := range fps {
		fps[i] = max(rng.Uint64(), 1)
		tab.insert(fps[i], makeLoc(uint32(i>>16), uint32(i&0xffff)))
	}
	var locs []loc
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		locs = tab.appendLocs(locs[:0], fps[i])
		if i += 7919; i >= len(fps) {
			i -= len(fps)
		}
	}
}
