package catalog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// An image is the file system as a power cut at one sync point leaves it, with how many steps of the history were acknowledged
// and begun by then.
type image struct {
	m            *fsys.Mem
	acked, begun int
}

// history does numbered steps, each one Update: a set is announced and added, then the oldest gets a tombstone and goes, and a
// setting counts the steps.
func history(t testing.TB, c *Catalog, steps int, begin, end func(int)) {
	for n := 1; n <= steps; n++ {
		begin(n)
		update(t, c, func(tx *Tx) error {
			must(t, tx.PutSetting("step", fmt.Appendf(nil, "%d", n)))
			s := n/4 + 1
			switch n % 4 {
			case 0:
				return tx.PutIntent(Intent{Set: set(s), Pool: pool(1), Manifest: manifest(s, 1, day0.Add(time.Duration(s)*time.Hour))})
			case 1:
				return tx.AddSet(NewSet(pool(1), manifest(s, 1, day0.Add(time.Duration(s)*time.Hour))), map[holdfast.DiskID]string{disk(1): "x"})
			case 2:
				if s > 3 {
					return tx.PutTombstone(set(s - 3))
				}
			case 3:
				if s > 3 {
					return tx.DeleteSet(set(s - 3))
				}
			}
			return nil
		})
		end(n)
	}
}

// TestUpdatesSurviveCrashAtEverySyncPoint runs a history, takes an image at each sync point, and opens each: the checker finds
// nothing, every acknowledged update is there, and at most the one that was under way besides.
func TestUpdatesSurviveCrashAtEverySyncPoint(t *testing.T) {
	const seed = 11
	steps := 60
	if os.Getenv("HOLDFAST_SOAK") != "" {
		steps = 1000
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	m := fsys.NewMem(seed)
	var images []image
	var mu sync.Mutex // the store syncs in goroutines of its own too
	acked, begun := 0, 0
	c, err := Open(m, "catalog")
	must(t, err)
	locked := func(do func()) { mu.Lock(); defer mu.Unlock(); do() }
	m.OnSync(func(string, string) {
		locked(func() { images = append(images, image{m.Crash(rng, rng.IntN(101)), acked, begun}) })
	})
	history(t, c, steps, func(n int) { locked(func() { begun = n }) }, func(n int) { locked(func() { acked = n }) })
	must(t, c.db.Flush())
	m.OnSync(nil)
	must(t, c.Close())
	if len(images) < steps {
		t.Fatalf("%d sync points in %d updates", len(images), steps)
	}
	for i, im := range images {
		c, err := Open(im.m, "catalog")
		if err != nil {
			t.Fatalf("seed %d, point %d: %v", seed, i, err)
		}
		must(t, c.Check())
		var step int
		view(t, c, func(tx *Tx) error {
			v, err := tx.Setting("step")
			if err == nil {
				_, err = fmt.Sscan(string(v), &step)
			} else if errors.Is(err, holdfast.NotExist) {
				err = nil
			}
			return err
		})
		if step < im.acked || step > im.begun {
			t.Fatalf("seed %d, point %d: step %d found, %d acknowledged, %d begun", seed, i, step, im.acked, im.begun)
		}
		must(t, c.Close())
	}
	t.Logf("%d sync points", len(images))
}

func TestFullMediumRefusesUpdatesAndHarmsNothing(t *testing.T) {
	f := fsys.NewFault(fsys.NewMem(1))
	c := open(t, f)
	update(t, c, func(tx *Tx) error { return tx.PutPool(Pool{ID: pool(1), Name: "one"}) })
	f.SetFree(1 << 20)
	err := c.Update(context.Background(), func(tx *Tx) error { return tx.PutPool(Pool{ID: pool(2), Name: "two"}) })
	wantKind(t, "update on a full medium", err, holdfast.NoSpace)
	f.SetFree(1 << 30)
	update(t, c, func(tx *Tx) error {
		_, err := tx.Pool(pool(2))
		wantKind(t, "refused pool", err, holdfast.NotExist)
		return tx.PutPool(Pool{ID: pool(2), Name: "two"})
	})
}
