package memory

import (
	"bytes"
	"context"
	"iter"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// A Pool is a Medium in use. It implements pools.Pool, pools.Collector and pools.Verifier.
type Pool struct {
	medium   *Medium
	sessions map[*session]bool
	readers  map[*set]bool
}

var (
	_ pools.Pool      = (*Pool)(nil)
	_ pools.Collector = (*Pool)(nil)
	_ pools.Verifier  = (*Pool)(nil)
)

// lock takes the medium's mutex for an operation of this pool. After an error it is not held: Cancelled, or Offline if
// the pool was closed or killed.
func (p *Pool) lock(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return holdfast.Errorf(holdfast.KindOf(err), op, "%w", err)
	}
	p.medium.mu.Lock()
	if p.medium.user != p {
		p.medium.mu.Unlock()
		return holdfast.Errorf(holdfast.Offline, op, "the pool is closed")
	}
	return nil
}

func (p *Pool) unlock() { p.medium.mu.Unlock() }

// Traits implements pools.Pool.
func (p *Pool) Traits() pools.Traits { return p.medium.traits() }

// Begin implements pools.Pool.
func (p *Pool) Begin(ctx context.Context, m holdfast.Manifest) (pools.Session, error) {
	const op = "begin set"
	if err := m.Check(); err != nil {
		return nil, err
	}
	b, err := holdfast.MarshalManifest(&m)
	if err != nil {
		return nil, err
	}
	if err := p.lock(ctx, op); err != nil {
		return nil, err
	}
	defer p.unlock()
	taken := p.medium.sets[m.ID] != nil
	for s := range p.sessions {
		taken = taken || s.begun.ID == m.ID
	}
	if taken {
		return nil, holdfast.Errorf(holdfast.Exist, op, "set %s is there already", m.ID)
	}
	s := &session{
		pool: p, parent: p.medium.sets[m.Parent],
		pins: map[holdfast.Digest]uint32{}, disks: map[holdfast.DiskID]*diskWriter{},
	}
	s.begun = (&record{manifest: b}).decoded()
	if !m.Parent.IsZero() && s.parent == nil {
		return nil, holdfast.Errorf(holdfast.NotExist, op, "parent set %s is not in this pool", m.Parent)
	}
	for _, d := range m.Disks {
		if !d.Inherit {
			continue
		}
		if _, ok := s.parent.maps[d.ID]; !ok {
			return nil, holdfast.Errorf(holdfast.Invalid, op, "disk %s inherits, but parent set %s does not have it", d.ID, m.Parent)
		}
	}
	p.sessions[s] = true
	return s, nil
}

// Open implements pools.Pool.
func (p *Pool) Open(ctx context.Context, id holdfast.SetID) (pools.Set, error) {
	const op = "open set"
	if err := p.lock(ctx, op); err != nil {
		return nil, err
	}
	defer p.unlock()
	r := p.medium.sets[id]
	if r == nil {
		return nil, holdfast.Errorf(holdfast.NotExist, op, "set %s is not in this pool", id)
	}
	s := &set{pool: p, rec: r}
	p.readers[s] = true
	return s, nil
}

// Delete implements pools.Pool.
func (p *Pool) Delete(ctx context.Context, id holdfast.SetID) error {
	if err := p.lock(ctx, "delete set"); err != nil {
		return err
	}
	defer p.unlock()
	delete(p.medium.sets, id)
	return nil
}

// Sets implements pools.Pool. The order is by id.
func (p *Pool) Sets(ctx context.Context) iter.Seq2[holdfast.Manifest, error] {
	return func(yield func(holdfast.Manifest, error) bool) {
		if err := p.lock(ctx, "list sets"); err != nil {
			yield(holdfast.Manifest{}, err)
			return
		}
		all := make([]holdfast.Manifest, 0, len(p.medium.sets))
		for _, r := range p.medium.sets {
			all = append(all, r.decoded())
		}
		p.unlock()
		slices.SortFunc(all, func(a, b holdfast.Manifest) int { return bytes.Compare(a.ID.ID[:], b.ID.ID[:]) })
		for _, m := range all {
			if err := ctx.Err(); err != nil {
				yield(holdfast.Manifest{}, holdfast.Errorf(holdfast.KindOf(err), "list sets", "%w", err))
				return
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}

// Usage implements pools.Pool.
func (p *Pool) Usage(ctx context.Context) (pools.Usage, error) {
	if err := p.lock(ctx, "measure pool"); err != nil {
		return pools.Usage{}, err
	}
	defer p.unlock()
	m := p.medium
	u := pools.Usage{Sets: len(m.sets), Size: mediumSize, Chunks: int64(len(m.where))}
	for _, r := range m.sets {
		d := r.decoded()
		for _, disk := range d.Disks {
			u.Logical += disk.Size
		}
	}
	for _, s := range m.where {
		u.Data += int64(s.g.Chunks[s.i].Len)
	}
	for g := range m.groups {
		u.Stored += int64(len(g.Payload))
	}
	for _, g := range m.dead(m.live()) {
		u.Reclaimable += int64(len(g.Payload))
	}
	u.Free = u.Size - u.Stored
	return u, nil
}

// Close implements pools.Pool. Closing twice is a no-op.
func (p *Pool) Close() error {
	p.medium.mu.Lock()
	defer p.medium.mu.Unlock()
	if p.medium.user != p {
		return nil
	}
	if len(p.sessions) > 0 || len(p.readers) > 0 {
		return holdfast.Errorf(holdfast.Busy, "close pool", "%d sessions and %d sets are still open", len(p.sessions), len(p.readers))
	}
	p.medium.user = nil
	return nil
}

// Collect implements pools.Collector. It drops every group without a live chunk, at once and whole.
func (p *Pool) Collect(ctx context.Context, o pools.CollectOptions) (pools.CollectReport, error) {
	if err := p.lock(ctx, "collect"); err != nil {
		return pools.CollectReport{}, err
	}
	r := p.collect(o.DryRun)
	p.unlock()
	if o.Progress != nil {
		o.Progress(1, 1)
	}
	return r, nil
}

// collect does the work of Collect; the caller holds the mutex.
func (p *Pool) collect(dry bool) pools.CollectReport {
	m, live := p.medium, p.medium.live()
	r := pools.CollectReport{ChunksLive: int64(len(live)), ChunksDead: int64(len(m.where) - len(live))}
	for _, g := range m.dead(live) {
		r.Removed++
		r.Freed += int64(len(g.Payload))
		if dry {
			continue
		}
		delete(m.groups, g)
		for _, c := range g.Chunks {
			if m.where[c.Digest].g == g {
				delete(m.where, c.Digest)
			}
		}
	}
	return r
}

// sorted returns the keys of a map of records by id, so that reports have one order.
func sorted(sets map[holdfast.SetID]*record) []holdfast.SetID {
	ids := make([]holdfast.SetID, 0, len(sets))
	for id := range sets {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b holdfast.SetID) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return ids
}
