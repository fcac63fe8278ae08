package chunk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// estimateDisk makes a disk of text, noise, repetitions and zeros in parts of half a MiB.
func estimateDisk(seed uint64, parts int) []byte {
	rng := rand.New(rand.NewPCG(seed, 9))
	var out []byte
	for range parts {
		p := make([]byte, 512<<10)
		switch k := rng.IntN(6); {
		case k == 0:
		case k == 1 && len(out) > 0:
			copy(p, out[rng.IntN(len(out)/len(p)+1)*len(p)%len(out):])
		case k < 4:
			for i := 0; i < len(p); {
				i += copy(p[i:], fmt.Sprintf("%d: the line %x of a log, and so on\n", rng.IntN(1000), rng.Uint32()))
			}
		default:
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
		}
		out = append(out, p...)
	}
	return out
}

// Goal: an estimate is within 15 % of what a backup stores, also when only one group in 2 is compressed or one slab in 3 is looked at. Method: the same
// disks cut, deduplicated and encoded whole, as a backup does.
func TestEstimateIsNearWhatABackupStores(t *testing.T) {
	c, err := holdfast.ParseChunking("")
	if err != nil {
		t.Fatal(err)
	}
	c.Seed = 7
	for _, seed := range []uint64{1, 2} {
		disk := estimateDisk(seed, 400)
		stored := func(everyGroup, everySlab int) Estimate {
			x, err := NewEstimator(c, LevelDefault, everyGroup, everySlab)
			if err != nil {
				t.Fatal(err)
			}
			all := holdfast.Extents{{Off: 0, Len: int64(len(disk))}}
			if err := x.Add(t.Context(), bytes.NewReader(disk), int64(len(disk)), all, nil); err != nil {
				t.Fatal(err)
			}
			return x.Result()
		}
		truth := trueSize(t, c, disk)
		for _, s := range [][2]int{{1, 1}, {2, 1}, {1, 3}} {
			e := stored(s[0], s[1])
			off := float64(e.Stored)/float64(truth) - 1
			t.Logf("seed %d, one group in %d, one slab in %d: %d bytes estimated, %d stored: %+.1f %%", seed, s[0], s[1], e.Stored, truth, off*100)
			if off < -0.15 || off > 0.15 {
				t.Errorf("%+v", e)
			}
			if e.Zero+e.Data < e.Size*98/100 || e.Zero+e.Data > e.Size*102/100 {
				t.Errorf("parts do not sum up: %+v", e)
			}
		}
	}
}

// trueSize encodes a disk as a backup does.
func trueSize(t *testing.T, c holdfast.Chunking, disk []byte) (sum int64) {
	split, err := NewSplitter(c)
	if err != nil {
		t.Fatal(err)
	}
	hash, enc, b := holdfast.Domain{}.Hasher(), NewEncoder(LevelDefault), NewBuilder()
	known := map[holdfast.Digest]bool{}
	flush := func() {
		if n, _ := b.Len(); n > 0 {
			g := b.Encode(enc, make([]byte, 0, MaxEncoded))
			sum += int64(len(g.Payload)) + int64(n)*chunkOverhead + groupOverhead
			b.Reset()
		}
	}
	at := 0
	for _, s := range split.Split(disk, 0, true, nil) {
		p := disk[at:s.End]
		at = s.End
		if s.Zero || IsZero(p) {
			continue
		}
		d := hash.Sum(p)
		if known[d] {
			continue
		}
		known[d] = true
		if !b.Fits(len(p)) {
			flush()
		}
		b.Add(d, p)
	}
	flush()
	return sum
}
