package holdfast

import (
	"math/rand/v2"
	"testing"
)

// TestExtentAlgebraMatchesBitmaps compares every operation with the same operation on a bitmap, on random lists.
func TestExtentAlgebraMatchesBitmaps(t *testing.T) {
	const size = 200
	seed := uint64(1)
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	random := func() Extents {
		es := make(Extents, rng.IntN(8))
		for i := range es {
			es[i] = Extent{rng.Int64N(size+40) - 20, rng.Int64N(40) - 3}
		}
		return es
	}
	bits := func(es Extents) (b [size]bool) {
		for _, e := range es {
			for i := max(e.Off, 0); i < min(e.End(), size); i++ {
				b[i] = true
			}
		}
		return b
	}
	check := func(name string, got Extents, want func(i int) bool) {
		t.Helper()
		b := bits(got)
		var total int64
		for i := range b {
			if b[i] != want(i) {
				t.Fatalf("%s: byte %d is %v in %v", name, i, b[i], got)
			}
			if b[i] {
				total++
			}
		}
		if got.Total() != total {
			t.Fatalf("%s: total %d of %v, %d bytes set", name, got.Total(), got, total)
		}
		for i, e := range got {
			if e.Len <= 0 || e.Off < 0 || e.End() > size || i > 0 && got[i-1].End() >= e.Off {
				t.Fatalf("%s: %v is not normal", name, got)
			}
		}
	}
	for range 5000 {
		ra, rb := random(), random()
		a, b := ra.Normal(size), rb.Normal(size)
		ba, bb := bits(ra), bits(rb)
		check("normal", a, func(i int) bool { return ba[i] })
		check("intersect", a.Intersect(b), func(i int) bool { return ba[i] && bb[i] })
		check("subtract", a.Subtract(b), func(i int) bool { return ba[i] && !bb[i] })
		check("union", a.Union(b), func(i int) bool { return ba[i] || bb[i] })
		check("align", a.Align(16, size), func(i int) bool {
			for j := i / 16 * 16; j < min(i/16*16+16, size); j++ {
				if ba[j] {
					return true
				}
			}
			return false
		})
	}
}

func TestNormalClipsOverflow(t *testing.T) {
	got := Extents{{Off: 10, Len: 1<<63 - 1}, {Off: -1 << 62, Len: 5}}.Normal(100)
	if len(got) != 1 || got[0] != (Extent{10, 90}) {
		t.Fatalf("got %v", got)
	}
}
