// Package memorytest makes pools of the reference driver for the shared checks and histories of pools/pooltest: every driver's random
// histories run beside them. Only tests import it.
package memorytest

import (
	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

// Harness makes memory pools and remembers which medium each of them has open.
func Harness() pooltest.Harness {
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
			c, err := holdfast.ParseChunking("")
			if err != nil {
				t.Fatalf("chunking: %v", err)
			}
			m, err := memory.NewMedium(holdfast.PoolID{ID: holdfast.NewID()}, c)
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
		Corrupt: func(t pooltest.T, p pools.Pool) pools.Pool {
			for _, d := range media[p].Digests()[:3] {
				media[p].Flip(d)
			}
			return p
		},
	}
}
