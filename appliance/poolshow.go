package appliance

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/pools"
)

// Pools implements api.Service.
func (s *Service) Pools(ctx context.Context) ([]api.Pool, error) {
	recs, err := s.poolRecords()
	if err != nil {
		return nil, err
	}
	out := make([]api.Pool, 0, len(recs))
	for _, rec := range recs {
		out = append(out, s.showPool(ctx, rec))
	}
	return out, nil
}

// Pool implements api.Service. It waits a moment for what the sets refer to to be counted.
func (s *Service) Pool(ctx context.Context, name string) (api.Pool, error) {
	rec, err := s.poolRecord(name)
	if err != nil {
		return api.Pool{}, err
	}
	if p, err := s.d.shelf.Pool(ctx, rec.ID); err == nil {
		s.d.measure.await(ctx, s, rec.ID, p)
	}
	return s.showPool(ctx, rec), nil
}

// showPool shows a pool as it is now; one that cannot be opened is offline, which is no error of the listing.
func (s *Service) showPool(ctx context.Context, rec catalog.Pool) api.Pool {
	p := api.Pool{ID: rec.ID.String(), Name: rec.Name, Kind: rec.Kind, State: api.PoolOffline, Config: s.redacted(rec), Created: rec.Created}
	o, err := s.poolOptions(rec.ID)
	if err == nil {
		p.Quota, p.Maintenance = o.Quota, o.Maintenance
		var pool pools.Pool
		if pool, err = s.d.shelf.Pool(ctx, rec.ID); err == nil {
			var u pools.Usage
			if u, err = pool.Usage(ctx); err == nil {
				fillUsage(&p, u)
				if n, ok := s.d.measure.known(s, rec.ID); ok {
					p.Referenced = n
					if u.Stored > 0 {
						p.DataRatio = float64(n) / float64(u.Stored)
					}
				}
				p.State, p.Chunking = api.PoolOpen, pool.Traits().Chunking.String()
				return p
			}
		}
	}
	p.Error = err.Error()
	return p
}

// fillUsage shows a pool's space, bounded by its quota.
func fillUsage(p *api.Pool, u pools.Usage) {
	if p.Quota > 0 {
		left := max(p.Quota-u.Stored, 0)
		if u.Free < 0 || u.Size <= 0 || u.Free > left {
			u.Free = left
		}
		if u.Size <= 0 || u.Size > p.Quota {
			u.Size = p.Quota
		}
	}
	p.Usage = &u
	p.Filled = filled(p.Quota, u)
	if u.Stored > 0 {
		p.Ratio = float64(u.Logical) / float64(u.Stored)
	}
}

// filled returns how full a pool is, from 0 to 1: by its quota, or else its medium. 0 where neither bounds it.
func filled(quota int64, u pools.Usage) float64 {
	var part float64
	if quota > 0 {
		return min(max(float64(u.Stored)/float64(quota), 0), 1)
	}
	if u.Size > 0 && u.Free >= 0 {
		part = 1 - float64(u.Free)/float64(u.Size)
	}
	return min(max(part, 0), 1)
}

// redacted returns a pool's config as it may be shown. Of a kind that is not there any more nothing is: nobody can say what is secret in it.
func (s *Service) redacted(rec catalog.Pool) []byte {
	drv, err := s.d.c.Drivers.Find(rec.Kind)
	switch {
	case err != nil:
		return nil
	case drv.Redact == nil:
		return rec.Config
	}
	return drv.Redact(rec.Config)
}

// poolWarnings says what is wrong with pools, for the status.
func poolWarnings(ps []api.Pool) []string {
	var out []string
	for _, p := range ps {
		switch {
		case p.State != api.PoolOpen:
			out = append(out, fmt.Sprintf("pool %s is offline: %s", p.Name, p.Error))
		case p.Filled >= nearFull:
			out = append(out, fmt.Sprintf("pool %s is %.0f %% full", p.Name, p.Filled*100))
		}
		if p.Maintenance {
			out = append(out, fmt.Sprintf("pool %s is in maintenance: it takes no new backups", p.Name))
		}
	}
	return out
}

// measureWait is how long a listing waits for a count that is under way.
const measureWait = 2 * time.Second

// measures counts the bytes of data that sets refer to: what would be stored without deduplication and compression. A set never changes,
// so each is counted once, in the background; a restart counts anew.
type measures struct {
	mu      sync.Mutex
	data    map[holdfast.SetID]int64
	working map[holdfast.PoolID]chan struct{} // closed when the count of the pool ends
}

func newMeasures() *measures {
	return &measures{data: map[holdfast.SetID]int64{}, working: map[holdfast.PoolID]chan struct{}{}}
}

// known returns the sum over a pool's sets; false while one of them is not counted.
func (m *measures) known(s *Service, id holdfast.PoolID) (int64, bool) {
	sets, err := s.setsIn(id)
	if err != nil {
		return 0, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var sum int64
	for _, x := range sets {
		n, ok := m.data[x.Manifest.ID]
		if !ok {
			return 0, false
		}
		sum += n
	}
	return sum, true
}

// await starts a count if one is needed, and waits a moment for it.
func (m *measures) await(ctx context.Context, s *Service, id holdfast.PoolID, p pools.Pool) {
	if _, ok := m.known(s, id); ok || s.d.ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	done := m.working[id]
	if done == nil {
		done = make(chan struct{})
		m.working[id] = done
		s.d.wg.Go(func() {
			m.count(s, id, p)
			m.mu.Lock()
			delete(m.working, id)
			m.mu.Unlock()
			close(done)
		})
	}
	m.mu.Unlock()
	late, stop := s.d.c.Clock.After(measureWait)
	defer stop()
	select {
	case <-done:
	case <-late:
	case <-ctx.Done():
	}
}

// count counts the sets of a pool that were not counted. A set that cannot be read is left out until the next time.
func (m *measures) count(s *Service, id holdfast.PoolID, p pools.Pool) {
	sets, err := s.setsIn(id)
	if err != nil {
		return
	}
	for _, x := range sets {
		m.mu.Lock()
		_, ok := m.data[x.Manifest.ID]
		m.mu.Unlock()
		if ok {
			continue
		}
		n, err := dataOf(s.d.ctx, p, x.Manifest.ID)
		if s.d.ctx.Err() != nil {
			return
		}
		if err == nil {
			m.mu.Lock()
			m.data[x.Manifest.ID] = n
			m.mu.Unlock()
		}
	}
}

// dataOf adds up the bytes of data, not zeros, of a set's disks.
func dataOf(ctx context.Context, p pools.Pool, id holdfast.SetID) (n int64, err error) {
	set, err := p.Open(ctx, id)
	if err != nil {
		return 0, err
	}
	defer func() {
		if cerr := set.Close(); err == nil {
			err = cerr
		}
	}()
	for _, d := range set.Manifest().Disks {
		for ref, err := range set.Map(ctx, d.ID) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return 0, err
			}
			if !ref.Digest.IsZero() {
				n += ref.Len
			}
		}
	}
	return n, nil
}
