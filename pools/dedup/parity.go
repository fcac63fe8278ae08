package dedup

import (
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/sidecar"
)

// sidecars is a pool's store with side-cars beside containers, and what it repaired since the last Verify of the whole pool.
type sidecars struct {
	*sidecar.Store
	mu      sync.Mutex // leaf
	repairs []sidecar.Repair
}

func newSidecars(store blob.Store, l holdfast.Listener, pool holdfast.PoolID) *sidecars {
	c := &sidecars{}
	c.Store = sidecar.New(store, sidecar.Options{Folder: containersDir, Repaired: func(r sidecar.Repair) {
		c.mu.Lock()
		if len(c.repairs) < maxDamage {
			c.repairs = append(c.repairs, r)
		}
		c.mu.Unlock()
		l.Emit(holdfast.Event{Type: holdfast.EventChunkCorrupt, Severity: holdfast.Warning, Text: r.Text(),
			Fields: map[string]string{"pool": pool.String(), "container": r.Name, "repaired": "true"}})
	}})
	return c
}

// take returns what was repaired since it was last called.
func (c *sidecars) take() []sidecar.Repair {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.repairs
	c.repairs = nil
	return out
}

// sidecars checks the side-cars of containers that were read, makes those that are missing, and reports what was repaired, by this Verify and by
// reads since the last one.
func (v *verifier) sidecars(conts []*cont) error {
	c := v.p.cars
	if c == nil {
		return nil
	}
	missing, err := c.Complete(v.ctx)
	if err != nil {
		return err
	}
	for _, x := range conts {
		if err := v.ctx.Err(); err != nil {
			return err
		}
		ok, err := c.CheckSideCar(v.ctx, contName(x.id))
		if err != nil && holdfast.KindOf(err) != holdfast.NotExist {
			return err
		}
		if err == nil && !ok && !slices.Contains(missing, contName(x.id)) {
			missing = append(missing, contName(x.id)) // it says nothing any more
		}
	}
	sick := map[string]bool{}
	for _, f := range v.found {
		sick[f.Where] = true
	}
	for _, name := range missing {
		if sick[name] {
			continue // parity over damage would keep the damage
		}
		switch _, err := c.Check(v.ctx, name, true); holdfast.KindOf(err) {
		case holdfast.NotExist, holdfast.NoSpace: // removed meanwhile; or the next Verify tries again
		default:
			if err != nil {
				return err
			}
		}
	}
	for _, r := range c.take() {
		v.damage(pools.Damage{Where: r.Name, Text: r.Text()})
	}
	return nil
}
