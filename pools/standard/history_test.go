package standard

import (
	"os"
	"strconv"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory/memorytest"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

// soak returns by how much HOLDFAST_SOAK multiplies a campaign.
func soak() int {
	n, err := strconv.Atoi(os.Getenv("HOLDFAST_SOAK"))
	if err != nil {
		return 1
	}
	return max(1, min(n, 1000))
}

// Goal: whatever happens, standard and memory pools restore the same. Method: random histories with crashes and restarts, on a pool as
// it is and on one in which everything is so small that it ends, slides and falls back all the time.
func TestHistoriesRestoreAsTheReferenceDoes(t *testing.T) {
	for seed := range uint64(6 * soak()) {
		pooltest.RunHistory(t, pooltest.History{Seed: seed, Steps: 60, Pools: map[string]pooltest.Harness{
			"standard": harness(shape{paths: 1}),
			"small":    harness(shape{paths: 2, target: 4 << 10, window: 6, look: true}),
			"memory":   memorytest.Harness(),
		}})
	}
}

// crashOpen opens a pool of two paths in folders of f, or makes one where there is none.
func crashOpen(t *testing.T, f fsys.FS, id holdfast.PoolID) (pools.Pool, error) {
	pl := &place{id: id, shape: shape{target: 4 << 10, window: 6, look: true}}
	for _, dir := range []string{"a", "b"} {
		s, err := newSub(f, dir)
		if err != nil {
			return nil, err
		}
		pl.fss = append(pl.fss, s)
	}
	err := CreateOn(background, pools.Env{}, pl.stores(t), id, defaultChunking(t))
	if err != nil && holdfast.KindOf(err) != holdfast.Exist {
		return nil, err
	}
	p, err := OpenOn(background, pools.Env{}, pl.stores(t), id)
	if err != nil {
		return nil, err
	}
	pl.tune(p)
	return p, nil
}

// Goal: a power cut at any sync point loses no acknowledged set and leaves no partial one. Method: images at sync points of random
// histories on two paths of one medium.
func TestPowerCutsLoseNothingAcknowledged(t *testing.T) {
	for seed := range uint64(soak()) {
		id := holdfast.PoolID{ID: holdfast.NewID()}
		pooltest.RunCrashes(t, pooltest.Crashes{Seed: seed, Steps: 25, Points: 300, Open: func(f fsys.FS) (pools.Pool, error) { return crashOpen(t, f, id) }})
	}
}
