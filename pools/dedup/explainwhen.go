package dedup

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// pins lists what keeps bytes that no set needs: readers of deleted sets and sessions.
func (x *explanation) pins() []pools.Pin {
	out := []pools.Pin{}
	x.p.mu.RLock()
	defer x.p.mu.RUnlock()
	for l := range x.p.leases {
		pin := pools.Pin{Set: l.set, Use: pools.PinReading}
		if _, there := x.p.sets[l.set]; !there && !slices.Contains(out, pin) {
			out = append(out, pin)
		}
	}
	for s := range x.p.sessions {
		out = append(out, pools.Pin{Set: s.m.ID, VM: s.m.VM.Name, Use: pools.PinWriting})
	}
	slices.SortFunc(out, func(a, b pools.Pin) int {
		return cmp.Or(cmp.Compare(a.Use, b.Use), bytes.Compare(a.Set.ID[:], b.Set.ID[:]))
	})
	return out
}

// container shares a container's bytes out by the plaintexts of its chunks, of which so many live.
func (x *explanation) container(s *pools.Space, c *cont, sums map[uint16]int64, live int) error {
	share := func(plain int64) int64 { return int64(float64(c.size) * float64(plain) / float64(max(c.plain, 1))) }
	for o, plain := range sums {
		switch bytes := share(plain); o {
		case nobody:
			s.Reclaimable += bytes
		case pinnedOnly:
			s.Pinned += bytes
		case severalVMs:
			s.Live += bytes
		default:
			s.Live += bytes
			x.vms[o-1].Unique += bytes
		}
	}
	free := share(sums[nobody])
	if free == 0 {
		return nil
	}
	when, until, err := x.when(c, live, sums[pinnedOnly] > 0)
	if err != nil {
		return err
	}
	s.AddWait(free, when, until)
	return nil
}

// when says when what nobody needs of a container comes back, by the rules of sweep and compact.
func (x *explanation) when(c *cont, live int, pinned bool) (pools.WaitWhen, time.Time, error) {
	p := x.p
	if p.heldUntil != nil {
		until, err := p.heldUntil(x.ctx, contName(c.id))
		if err != nil && holdfast.KindOf(err) != holdfast.NotExist {
			return "", until, err
		}
		if err == nil && !until.IsZero() {
			return pools.WaitLock, until, nil
		}
	}
	p.mu.RLock()
	condemned := c.lifeless()
	p.mu.RUnlock()
	switch {
	case live == 0 && pinned:
		return pools.WaitPin, time.Time{}, nil
	case live == 0 && p.patient && !condemned:
		return pools.WaitTwice, time.Time{}, nil
	case live == 0 || live*100 < int(c.n)*compactBelow:
		return pools.WaitCollect, time.Time{}, nil
	}
	return pools.WaitSparse, time.Time{}, nil
}
