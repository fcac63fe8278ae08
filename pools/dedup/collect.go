package dedup

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// A container is compacted when less than compactBelow percent of its chunks live: over a hundred days that copies half a byte for each
// byte it gives back. On a medium with less than a tenth free, space is worth more copying.
const (
	compactBelow      = 40
	compactBelowTight = 80
)

// Containers below smallBytes are put together when there are at least smallCount of them: many short incrementals leave many.
const (
	smallBytes = container.TargetStored / 64
	smallCount = 32
)

// Collect implements pools.Collector: mark, condemn, remove containers without live chunks, compact those with few. One runs at a
// time (else Busy). Every step can be the last one: what is left is found again by the next Collect.
func (p *Pool) Collect(ctx context.Context, o pools.CollectOptions) (pools.CollectReport, error) {
	var rep pools.CollectReport
	if !p.collecting.TryLock() {
		return rep, holdfast.Errorf(holdfast.Busy, "collect", "the pool is being collected already")
	}
	defer p.collecting.Unlock()
	p.mu.RLock()
	closed, all := p.closed, int64(len(p.sets))
	p.mu.RUnlock()
	if closed {
		return rep, errClosed("collect")
	}
	if err := ctx.Err(); err != nil {
		return rep, err
	}
	p.retryLeftover(&rep)
	done := int64(0)
	step := func() {
		if done++; o.Progress != nil {
			o.Progress(min(done, all), all)
		}
	}
	m := p.startMarking()
	defer p.stopMarking()
	if err := m.sets(ctx, step); err != nil {
		return rep, err
	}
	updates, t, err := m.condemn(ctx, o.DryRun)
	if err != nil {
		return rep, err
	}
	rep.ChunksLive, rep.ChunksDead = t.live, t.dead
	if o.DryRun {
		rep.Freed, rep.Removed = t.freeable, 0
		return rep, nil
	}
	return rep, p.sweep(ctx, m, updates, &rep)
}

// sweep removes and compacts after the marks are durable.
func (p *Pool) sweep(ctx context.Context, m *marking, updates []markUpdate, rep *pools.CollectReport) error {
	err := p.st.mark(updates)
	full := holdfast.KindOf(err) == holdfast.NoSpace
	if err != nil && !full {
		return err
	}
	// On a full medium containers without any live chunk go although their marks are in memory only: after a crash they are
	// either there, whole, or not listed, and the index is made from the listing.
	p.removeDead(m, rep)
	if err := ctx.Err(); err != nil {
		return err
	}
	if !full {
		if err := p.compact(ctx, m, rep); err != nil && holdfast.KindOf(err) != holdfast.NoSpace {
			return err
		}
		if err := p.recompressIdle(ctx); err != nil {
			return err
		}
	}
	p.mu.RLock()
	for _, c := range p.byID {
		rep.Pending += c.reclaimable()
	}
	p.mu.RUnlock()
	p.listener.Emit(holdfast.Event{Type: holdfast.EventCollected, Severity: holdfast.Info,
		Text:   fmt.Sprintf("collecting gave back %d bytes; %d containers removed, %d rewritten", rep.Freed, rep.Removed, rep.Rewritten),
		Fields: map[string]string{"pool": p.sb.Pool.String()}})
	return nil
}

// retryLeftover removes objects that an earlier Collect could not remove.
func (p *Pool) retryLeftover(rep *pools.CollectReport) {
	p.mu.Lock()
	left := p.leftover
	p.leftover = nil
	p.mu.Unlock()
	for _, c := range left {
		if p.removeObject(c) {
			rep.Freed += c.size
			rep.Removed++
		}
	}
}

// removeDead removes the containers without live chunks. No reader can hold one: what a reader may need was marked.
func (p *Pool) removeDead(m *marking, rep *pools.CollectReport) {
	var gone []*cont
	p.mu.Lock()
	for slot, c := range m.conts {
		if c != nil && p.slots[slot] == c && c.lifeless() && (m.ripe[c] || !p.patient) {
			p.unindex(c)
			gone = append(gone, c)
		}
	}
	p.mu.Unlock()
	p.retire(gone, rep)
}

// retire removes containers that are out of the index.
func (p *Pool) retire(gone []*cont, rep *pools.CollectReport) {
	if len(gone) == 0 {
		return
	}
	p.sweepIndex()
	for _, c := range gone {
		if p.drop(c) {
			rep.Freed += c.size
			rep.Removed++
		} else {
			rep.Pending += c.size
		}
	}
}

// sparse lists the containers to compact, in order of their slots, so that neighbours stay neighbours.
func (p *Pool) sparse(ctx context.Context, m *marking) []*cont {
	below := compactBelow
	if free, size, err := p.med.Usage(ctx); err == nil && size > 0 && free < size/10 {
		below = compactBelowTight
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	redo := p.redoKeys()
	var out, small []*cont
	for slot, c := range m.conts {
		if c == nil || p.slots[slot] != c || c.damagedLive() || c.lifeless() {
			continue
		}
		live := int(c.n)
		if c.dead != nil {
			live -= c.dead.count()
		}
		switch {
		case live*100 < int(c.n)*below, c.id < redo:
			out = append(out, c)
		case c.size < smallBytes:
			small = append(small, c)
		}
	}
	if len(small) >= smallCount {
		out = append(out, small...)
		slices.SortFunc(out, func(a, b *cont) int { return int(a.slot) - int(b.slot) })
	}
	return out
}

// damagedLive reports that a chunk which is needed is damaged: such a container is left for a repair. Pool.mu is held.
func (c *cont) damagedLive() bool {
	for i := range c.bad {
		dead := uint64(0)
		if c.dead != nil {
			dead = c.dead[i]
		}
		if c.bad[i]&^dead != 0 {
			return true
		}
	}
	return false
}

// internalSession returns a session that only owns containers.
func (p *Pool) internalSession() *session {
	s := &session{p: p, pins: map[uint32]bitmap{}, hasher: p.domain.Hasher()}
	s.life, s.stop = context.WithCancel(p.life)
	s.data = packer{s: s, kind: container.Data}
	s.nodes = packer{s: s, kind: container.Node}
	p.mu.Lock()
	p.sessions[s] = struct{}{}
	p.mu.Unlock()
	return s
}
