package appliance

import (
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// TestALongMapIsJoinedAndLosesNothing gives a joiner random extents: the list is short, normal, has every byte, and is exact where it was not
// joined.
func TestALongMapIsJoinedAndLosesNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		most := 4 + rng.IntN(60)
		j := joiner{most: most}
		var all holdfast.Extents
		for off := int64(0); len(all) < 1+rng.IntN(400); {
			e := holdfast.Extent{Off: off + rng.Int64N(1<<rng.IntN(22)), Len: 1 + rng.Int64N(1<<16)}
			off = e.End()
			all = append(all, e)
			j.add(e)
		}
		size := all[len(all)-1].End()
		got := holdfast.Extents(j.list)
		if len(got) > most || len(got.Normal(size)) != len(got) {
			t.Fatalf("%d extents of at most %d, or they are not normal", len(got), most)
		}
		if lost := all.Normal(size).Subtract(got); len(lost) > 0 {
			t.Fatalf("lost: %v", lost)
		}
		if j.gap == 0 && got.Total() != all.Normal(size).Total() {
			t.Fatal("bytes were added to an exact map")
		}
	}
}
