package dedup

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// A container is compacted when less than compactBelow percent of its chunks live.
const compactBelow = 60

// Containers below smallBytes are put together when there are at least smallCount of them: many short incrementals leave many.
const (
	smallBytes = container.TargetStored / 8
	smallCount = 16
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

// compact copies what lives in sparse containers to new ones, some source containers at a time.
func (p *Pool) compact(ctx context.Context, m *marking, rep *pools.CollectReport) error {
	sources := p.sparse(m)
	for len(sources) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		c := &compaction{p: p, s: p.internalSession()}
		n, err := c.copySome(ctx, sources)
		if err == nil {
			err = c.seal()
		}
		if err != nil {
			c.s.end(nil, err)
			return err
		}
		gone := c.switchOver()
		c.s.end(nil, holdfast.Cancelled) // its containers are the pool's now
		rep.Rewritten += len(gone)
		rep.Copied += c.copied
		// Durable first, so that their absence after a crash is no alarm. Where that fails nothing else is in danger: see sweep.
		_ = p.markAllDead(gone)
		if !p.patient {
			removed := rep.Removed
			p.retire(gone, rep)
			rep.Removed = removed // they count as rewritten
		}
		rep.Freed -= c.copied
		sources = sources[n:]
	}
	rep.Freed = max(rep.Freed, 0)
	return nil
}

// sparse lists the containers to compact, in order of their slots, so that neighbours stay neighbours.
func (p *Pool) sparse(m *marking) []*cont {
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
		case live*100 < int(c.n)*compactBelow, c.id < redo:
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

// A compaction copies live chunks of some containers.
type compaction struct {
	p       *Pool
	s       *session
	sources []*cont
	moves   []move
	copied  int64
}

// A move says where a chunk went.
type move struct {
	from *cont
	was  uint32
	to   uint64 // container id
	now  uint32
}

// copySome copies sources until about one container is full and returns how many it took.
func (c *compaction) copySome(ctx context.Context, sources []*cont) (int, error) {
	for i, src := range sources {
		if err := ctx.Err(); err != nil {
			return i, err
		}
		if i > 0 && c.copied >= container.TargetStored {
			return i, nil
		}
		moves, copied, err := c.copyOne(ctx, src)
		if holdfast.KindOf(err) == holdfast.Corrupt && err != nil {
			continue // stays where it is, for a repair
		}
		if err != nil {
			return i, err
		}
		c.sources = append(c.sources, src)
		c.moves = append(c.moves, moves...)
		c.copied += copied
	}
	return len(sources), nil
}

// copyOne copies the live groups of a container. Whole groups are copied as they are, after their checksum; of others
// the live chunks are encoded again, after their digests.
func (c *compaction) copyOne(ctx context.Context, src *cont) ([]move, int64, error) {
	p := c.p
	p.mu.RLock()
	dead := slices.Clone(src.dead)
	p.mu.RUnlock()
	footer, err := p.loadFooter(ctx, src)
	if err != nil {
		return nil, 0, err
	}
	r, err := p.med.Open(ctx, contName(src.id))
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = r.Close() }() // only read
	var moves []move
	var copied int64
	for i := range footer.Groups {
		fg := &footer.Groups[i]
		live := 0
		for o := fg.First; o < fg.First+fg.Count; o++ {
			if !dead.get(o) {
				live++
			}
		}
		if live == 0 {
			continue
		}
		got, err := container.ReadGroup(r, footer, uint32(i), nil)
		g := &got
		if err == nil && live < int(fg.Count) {
			g, err = p.repack(g, func(k int) bool { return !dead.get(fg.First + uint32(k)) })
		}
		if err != nil {
			if holdfast.KindOf(err) == holdfast.Corrupt {
				p.markBad(src, groupOrdinals(fg), err)
			}
			return nil, 0, err
		}
		to, first, n, err := c.put(fg.Type, g)
		if err != nil {
			return nil, 0, err
		}
		copied += n
		for o := fg.First; o < fg.First+fg.Count; o++ {
			if !dead.get(o) {
				moves = append(moves, move{src, o, to, first})
				first++
			}
		}
	}
	return moves, copied, nil
}

func (c *compaction) put(t container.Type, g *holdfast.Group) (id uint64, first uint32, n int64, err error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	pk := &c.s.data
	if t == container.Node {
		pk = &c.s.nodes
	}
	if n, err = pk.put(g); err != nil {
		return 0, 0, 0, err
	}
	return pk.cur.id, uint32(len(pk.cur.chunks()) - len(g.Chunks)), n, nil
}

func (c *compaction) seal() error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if err := c.s.data.finish(); err != nil {
		return err
	}
	return c.s.nodes.finish()
}

// switchOver moves pins to the new places and takes the sources out of the index, all at once.
func (c *compaction) switchOver() []*cont {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.sessions {
		s.pinMu.Lock()
		for _, mv := range c.moves {
			if !s.pins[mv.from.slot].get(mv.was) {
				continue
			}
			to := p.byID[mv.to]
			if s.pins[to.slot] == nil {
				s.pins[to.slot] = newBitmap(to.n)
			}
			s.pins[to.slot].set(mv.now)
		}
		s.pinMu.Unlock()
	}
	for _, src := range c.sources {
		if p.patient {
			src.dead = bitmap(nil).complement(src.n) // it goes with the next Collect
		} else {
			p.unindex(src)
		}
	}
	return c.sources
}

// markAllDead makes durable that containers hold nothing of worth any more, so that their absence after a crash is no alarm.
func (p *Pool) markAllDead(gone []*cont) error {
	updates := make([]markUpdate, len(gone))
	for i, c := range gone {
		updates[i] = markUpdate{id: c.id, n: c.n, dead: bitmap(nil).complement(c.n)}
	}
	return p.st.mark(updates)
}
