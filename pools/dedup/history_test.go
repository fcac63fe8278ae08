package dedup

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
func soak(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("HOLDFAST_SOAK"))
	if err != nil {
		return 1
	}
	return max(1, min(n, 1000))
}

// Goal: whatever happens, dedup and memory pools restore the same. Method: random histories with crashes and restarts.
func TestHistoriesRestoreAsTheReferenceDoes(t *testing.T) {
	for seed := range uint64(6 * soak(t)) {
		pooltest.RunHistory(t, pooltest.History{Seed: seed, Steps: 60, Pools: map[string]pooltest.Harness{"dedup": harness(t), "memory": memorytest.Harness()}})
	}
}

// Goal: a power cut at any sync point loses no acknowledged set and leaves no partial one. Method: images at sync points of random histories.
func TestPowerCutsLoseNothingAcknowledged(t *testing.T) {
	id := holdfast.PoolID{ID: holdfast.NewID()}
	for seed := range uint64(soak(t)) {
		pooltest.RunCrashes(t, pooltest.Crashes{Seed: seed, Steps: 25, Points: 60, Open: func(fs fsys.FS) (pools.Pool, error) {
			err := CreateOn(background, pools.Env{}, fs, id, defaultChunking(t))
			if err != nil && holdfast.KindOf(err) != holdfast.Exist {
				return nil, err
			}
			p, err := OpenOn(background, pools.Env{}, fs, id)
			if err != nil {
				return nil, err
			}
			return p, nil
		}})
	}
}
