package chunk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// disk returns n bytes of made-up disk content: random blocks, blocks of text, blocks half empty, and runs of zeros of all lengths.
func disk(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for at := 0; at < n; {
		run := min(n-at, 512*(1+rnd.IntN(1+rnd.IntN(600))))
		q := p[at : at+run]
		switch rnd.IntN(4) {
		case 0: // zeros
		case 1:
			for i := 0; i+8 <= len(q); i += 8 {
				copy(q[i:], []byte("disk    ")[:8])
				q[i+7] = byte(rnd.Uint32())
			}
		default:
			fill(rnd, q)
		}
		at += run
	}
	return p
}

func fill(rnd *rand.Rand, q []byte) {
	for i := range q {
		if i%8 == 0 {
			v := rnd.Uint64()
			for j := i; j < min(i+8, len(q)); j++ {
				q[j] = byte(v >> (8 * (j - i)))
			}
		}
	}
}

func random(seed uint64, n int) []byte {
	p := make([]byte, n)
	fill(rand.New(rand.NewPCG(seed, 2)), p)
	return p
}

func chunkings(t testing.TB) []holdfast.Chunking {
	var cs []holdfast.Chunking
	for _, name := range []string{"adaptive", "variable", "fixed-64K", "fixed-512K"} {
		c, err := holdfast.ParseChunking(name)
		if err != nil {
			t.Fatal(err)
		}
		cs = append(cs, c)
	}
	cs[1].Seed = 7
	return append(cs, holdfast.Chunking{Mode: holdfast.ModeAdaptive, Min: 4096, Avg: 4096, Max: 4096, Seed: 1},
		holdfast.Chunking{Mode: holdfast.ModeAdaptive, Min: 8192, Avg: 20480, Max: holdfast.MaxChunk, Seed: 2})
}

func mustCutter(t testing.TB, c holdfast.Chunking, starts ...int64) Cutter {
	t.Helper()
	cut, err := NewCutter(c, starts...)
	if err != nil {
		t.Fatal(err)
	}
	return cut
}

// Goal: whatever the cutter, the run's offset and partitions: every byte is in one chunk, chunks keep their bounds, lie on the grid
// they promise, and partition starts are cut at. Method: random runs.
func TestChunksCoverEveryByteWithinBounds(t *testing.T) {
	for _, c := range chunkings(t) {
		for seed := uint64(1); seed <= 8; seed++ {
			rnd := rand.New(rand.NewPCG(seed, 3))
			p := disk(seed, 512*(1+rnd.IntN(6000)))
			off := 512 * rnd.Int64N(1<<20)
			starts := []int64{off + 512*rnd.Int64N(3000), 63 * 512, off + 2<<20}
			slices.Sort(starts)
			cut := mustCutter(t, c, starts...)
			ends := cut.Cut(p, off, true, nil)
			at := 0
			for i, e := range ends {
				name := fmt.Sprintf("%v seed %d chunk %d [%d,%d)", c, seed, i, at, e)
				if n := e - at; n <= 0 || n > int(c.Max) {
					t.Fatalf("%s: out of bounds", name)
				}
				forced := e == len(p) || slices.Contains(starts, off+int64(e))
				if e-at < int(c.Min) && !forced && c.Mode != holdfast.ModeFixed && c.Min < c.Max {
					t.Fatalf("%s: shorter than the minimum", name)
				}
				base, _, _ := newBases(starts).segment(nil, off+int64(e)-1)
				switch {
				case forced:
				case c.Mode == holdfast.ModeAdaptive && (off+int64(e)-base)%Block != 0:
					t.Fatalf("%s: not on the grid of the partition at %d", name, base)
				case c.Mode == holdfast.ModeFixed && (off+int64(e))%int64(c.Avg) != 0:
					t.Fatalf("%s: not at a multiple on the disk", name)
				case (off+int64(e))%sector != 0:
					t.Fatalf("%s: not on a sector", name)
				}
				at = e
			}
			if at != len(p) {
				t.Fatalf("%v seed %d: %d of %d bytes covered", c, seed, at, len(p))
			}
			if c.Mode != holdfast.ModeFixed {
				for _, s := range starts {
					if i := s - off; i > 0 && i < int64(len(p)) && !slices.Contains(ends, int(i)) {
						t.Fatalf("%v seed %d: not cut at the partition start %d", c, seed, s)
					}
				}
			}
		}
	}
}

// Goal: where a disk is cut does not depend on how its bytes arrive. Method: the same run whole and in random portions, with the
// undecided rest carried over.
func TestCutsDoNotDependOnBuffers(t *testing.T) {
	for _, c := range chunkings(t) {
		for seed := uint64(1); seed <= 6; seed++ {
			rnd := rand.New(rand.NewPCG(seed, 4))
			p := disk(seed, 4<<20)
			off := 512 * rnd.Int64N(1<<20)
			cut := mustCutter(t, c, off+512*1000+512)
			whole := cut.Cut(p, off, true, nil)
			var parts, ends []int
			for from, to := 0, 0; from < len(p); {
				to = min(len(p), max(to+512*rnd.IntN(1200), from))
				ends = cut.Cut(p[from:to], off+int64(from), to == len(p), ends[:0])
				if len(ends) == 0 && to-from >= int(c.Max) {
					t.Fatalf("%v seed %d: no cut in %d bytes", c, seed, to-from)
				}
				start := from
				for _, e := range ends {
					parts = append(parts, start+e)
					from = start + e
				}
			}
			if !slices.Equal(whole, parts) {
				t.Fatalf("%v seed %d: %d cuts whole, %d in parts", c, seed, len(whole), len(parts))
			}
		}
	}
}

// Goal: inserting blocks moves content without making it new: nearly all chunks after the insertion are the old ones, and
// with partitions moved by whole sectors too. Method: content cutters over random data.
func TestInsertedBlocksCostOnlyTheirNeighbourhood(t *testing.T) {
	for _, c := range chunkings(t)[:2] {
		a := random(11, 8<<20)
		for name, ins := range map[string]int{"one block": Block, "17 blocks": 17 * Block} {
			b := slices.Concat(a[:1<<20+8192], random(12, ins), a[1<<20+8192:])
			if n := newBytes(t, c, a, 0, nil, b, 0, nil); n > ins+3*int(c.Max) {
				t.Errorf("%v, %s inserted: %d new bytes", c, name, n)
			}
		}
		// The same partition at sector 63 of one disk and at sector 2048 of the other.
		if n := newBytes(t, c, a, 63*512, []int64{63 * 512}, a, 2048*512, []int64{2048 * 512}); n != 0 {
			t.Errorf("%v: %d bytes are new because the partition lies elsewhere", c, n)
		}
	}
}

// newBytes returns how many bytes of b's chunks are not chunks of a.
func newBytes(t *testing.T, c holdfast.Chunking, a []byte, aOff int64, aStarts []int64, b []byte, bOff int64, bStarts []int64) int {
	known := map[string]bool{}
	at := 0
	for _, e := range mustCutter(t, c, aStarts...).Cut(a, aOff, true, nil) {
		known[string(a[at:e])] = true
		at = e
	}
	at, n := 0, 0
	for _, e := range mustCutter(t, c, bStarts...).Cut(b, bOff, true, nil) {
		if !known[string(b[at:e])] {
			n += e - at
		}
		at = e
	}
	return n
}

// Goal: cut positions never change between versions: another position would make every stored chunk new. Method: fixed content,
// recorded positions.
func TestCutPositionsAreFixedForever(t *testing.T) {
	want := map[string]string{
		"adaptive": "[102400 122880 139264 237568 311296 335872 356352 393216 471040 487424 561152 643072 679936 708608 729088 811008 851968 880640 1019904 1036288 1048576]",
		"variable": "[164864 353792 428544 536576 693248 766976 852480 992256 1048576]",
	}
	p := random(99, 1<<20)
	for mode, pos := range want {
		c, err := holdfast.ParseChunking(mode)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(mustCutter(t, c).Cut(p, 0, true, nil)); got != pos {
			t.Errorf("%s: cut at %s, used to be at %s", mode, got, pos)
		}
	}
	for seed, want := range map[uint64]string{0: "0x2411b97884dfad", 1: "0x2a8ed94864d043"} {
		pol, err := polynomial(seed)
		if err != nil || pol.String() != want {
			t.Errorf("seed %d: polynomial %v, %v; used to be %s", seed, pol, err, want)
		}
	}
}

// Goal: seeds change the cuts, so that chunk lengths of one pool say little about another's.
func TestSeedMovesTheCuts(t *testing.T) {
	p := random(5, 4<<20)
	for _, c := range chunkings(t)[:2] {
		a := mustCutter(t, c).Cut(p, 0, true, nil)
		c.Seed += 1000
		b := mustCutter(t, c).Cut(p, 0, true, nil)
		if slices.Equal(a, b) {
			t.Errorf("%v: the seed makes no difference", c)
		}
	}
}

func TestChunkingOutOfBoundsIsRefused(t *testing.T) {
	for _, c := range []holdfast.Chunking{{}, {Mode: "adaptive", Min: 1, Avg: 2, Max: 3}, {Mode: "fixed", Min: 4096, Avg: 8192, Max: 8192}} {
		if _, err := NewCutter(c); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
		if _, err := NewSplitter(c); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// Goal: zero runs are found whole, are really zero, lie on the grid, and neither they nor the chunks depend on the buffers.
// Method: random disks, split whole and in portions; adjacent zero spans are joined.
func TestSpansDoNotDependOnBuffers(t *testing.T) {
	type span struct {
		off, end int
		zero     bool
	}
	for _, c := range chunkings(t) {
		for seed := uint64(1); seed <= 8; seed++ {
			rnd := rand.New(rand.NewPCG(seed, 5))
			p := disk(seed, 4<<20)
			off := 512 * rnd.Int64N(1<<20)
			split := func(step int) []span {
				s, err := NewSplitter(c, off+512*777)
				if err != nil {
					t.Fatal(err)
				}
				var out []span
				var spans []Span
				for from, to := 0, 0; from < len(p); {
					to = min(len(p), max(to+512*(1+rnd.IntN(step)), from))
					spans = s.Split(p[from:to], off+int64(from), to == len(p), spans[:0])
					start := from
					for _, sp := range spans {
						v := span{from, start + sp.End, sp.Zero}
						if n := len(out); n > 0 && v.zero && out[n-1].zero && out[n-1].end == v.off && off+int64(v.off) != off+512*777 {
							out[n-1].end = v.end
						} else {
							out = append(out, v)
						}
						from = start + sp.End
					}
					if to-from > MaxCarry(c) {
						t.Fatalf("%v seed %d: %d bytes undecided", c, seed, to-from)
					}
				}
				return out
			}
			whole := split(1 << 30)
			at := 0
			for _, s := range whole {
				if s.off != at || s.end <= s.off || (s.zero && !IsZero(p[s.off:s.end])) || (!s.zero && s.end-s.off > int(c.Max)) {
					t.Fatalf("%v seed %d: span %+v after %d", c, seed, s, at)
				}
				at = s.end
			}
			if parts := split(900); !slices.Equal(whole, parts) {
				t.Fatalf("%v seed %d: %d spans whole, %d in parts", c, seed, len(whole), len(parts))
			}
		}
	}
}

func TestZeroRunsAreFoundWhole(t *testing.T) {
	p := bytes.Repeat([]byte{1}, 1<<20)
	clear(p[100<<10 : 300<<10]) // a run on the grid
	s, e := ZeroRuns(p, 0, 0)
	if s != 100<<10 || e != 300<<10 {
		t.Errorf("found [%d,%d)", s, e)
	}
	if s, _ := ZeroRuns(p, e, 0); s != len(p) {
		t.Errorf("found a second one at %d", s)
	}
	if s, e = ZeroRuns(p, 0, 512); s != 104<<10-512 || e != 300<<10-512 {
		t.Errorf("on another grid: [%d,%d)", s, e)
	}
	for n := range 3 * Block {
		if q := make([]byte, n); !IsZero(q) {
			t.Fatalf("%d zeros are not zero", n)
		}
	}
	for _, i := range []int{0, 7, 8, Block - 1, Block, 2*Block + 1} {
		q := make([]byte, 2*Block+2)
		if q[i] = 1; IsZero(q) {
			t.Errorf("byte %d was overlooked", i)
		}
	}
}
