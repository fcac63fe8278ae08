package dedup

import (
	"os"
	"strconv"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory"
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

// memoryHarness makes pools of the reference driver.
func memoryHarness() pooltest.Harness {
	media := map[pools.Pool]*memory.Medium{}
	open := func(t pooltest.T, m *memory.Medium) pools.Pool {
		p, err := m.Open()
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		media[p] = m
		return p
	}
	return pooltest.Harness{
		New: func(t pooltest.T) pools.Pool {
			m, err := memory.NewMedium(holdfast.PoolID{ID: holdfast.NewID()}, defaultChunking(t))
			if err != nil {
				t.Fatalf("new: %v", err)
			}
			return open(t, m)
		},
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return open(t, media[p])
		},
		Crash: func(t pooltest.T, p pools.Pool) pools.Pool {
			media[p].Kill()
			return open(t, media[p])
		},
	}
}

// Goal: whatever happens, dedup and memory pools restore the same. Method: random histories with crashes and restarts.
func TestHistoriesRestoreAsTheReferenceDoes(t *testing.T) {
	for seed := range uint64(6 * soak(t)) {
		pooltest.RunHistory(t, pooltest.History{Seed: seed, Steps: 60, Pools: map[string]pooltest.Harness{"dedup": harness(t), "memory": memoryHarness()}})
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
