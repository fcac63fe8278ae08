package dedup

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// A compaction takes so many sources at a time: enough that what a disk needs one after the other comes to lie together, few enough that little
// space is needed before the sources go.
const (
	batchSources = 16
	batchBytes   = 4 * container.TargetStored // of live chunks
)

// compact copies what lives in sparse containers to new ones, some source containers at a time.
func (p *Pool) compact(ctx context.Context, m *marking, rep *pools.CollectReport) error {
	sources := p.sparse(ctx, m)
	ranks, err := p.rank(ctx, sources)
	if err != nil {
		return err
	}
	slices.SortStableFunc(sources, func(a, b *cont) int { return cmp.Compare(ranks.first(a), ranks.first(b)) })
	for len(sources) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := p.batch(sources)
		c := &compaction{p: p, s: p.internalSession(), ranks: ranks}
		gone, err := c.run(ctx, sources[:n])
		if err != nil && holdfast.KindOf(err) == holdfast.NoSpace && n > 1 { // one alone may fit, and gives back what the next one needs
			n, c = 1, &compaction{p: p, s: p.internalSession(), ranks: ranks}
			gone, err = c.run(ctx, sources[:n])
		}
		if err != nil {
			return err
		}
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

// batch returns how many sources one compaction takes.
func (p *Pool) batch(sources []*cont) int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var live int64
	for i, c := range sources {
		if live += c.size - c.reclaimable(); i > 0 && (i == batchSources || live > batchBytes) {
			return i
		}
	}
	return len(sources)
}

// ranks say in which order the newest points in time read the chunks of some containers: by slot, then by ordinal. 0: not at all.
type ranks map[uint32][]uint32

// rank walks the newest set of each VM, newest first, and numbers the chunks of the sources as they come. Copying in this order lets what
// is restored most likely lie together, whatever wrote it when.
func (p *Pool) rank(ctx context.Context, sources []*cont) (ranks, error) {
	if len(sources) == 0 {
		return nil, nil
	}
	r := ranks{}
	for _, c := range sources {
		r[c.slot] = make([]uint32, c.n)
	}
	names, err := p.med.List(ctx, setsDir)
	if err != nil {
		return nil, err
	}
	seen := map[holdfast.VMID]bool{}
	next := uint32(1)
	var locs []loc
	for _, n := range slices.Backward(names) {
		id, ok := setOfName(n)
		if !ok {
			continue
		}
		rec, err := p.loadSet(ctx, id)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil: // deleted meanwhile, or damaged: order is only a kindness
			continue
		case seen[rec.manifest.VM.ID]:
			continue
		}
		seen[rec.manifest.VM.ID] = true
		for i, d := range rec.disks {
			size := rec.manifest.Disks[i].Size
			err := p.walk(ctx, diskTree{d.root, size}, holdfast.Extents{{Len: size}}, func(ref holdfast.Ref) error {
				p.mu.RLock()
				locs = p.index.appendLocs(locs[:0], fingerprint(&ref.Digest))
				p.mu.RUnlock()
				for _, l := range locs {
					if of := r[l.slot()]; of != nil && of[l.ordinal()] == 0 && next < math.MaxUint32 {
						of[l.ordinal()] = next
						next++
					}
				}
				return nil
			})
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				break
			}
		}
	}
	return r, nil
}

// first returns the lowest rank of a container's chunks; one without any comes last.
func (r ranks) first(c *cont) uint32 { return r.least(c, 0, c.n) }

// least returns the lowest rank of the chunks [from, to).
func (r ranks) least(c *cont, from, to uint32) uint32 {
	low := uint32(math.MaxUint32)
	if of := r[c.slot]; of != nil {
		for _, n := range of[from:to] {
			if n > 0 && n < low {
				low = n
			}
		}
	}
	return low
}

// A compaction copies live chunks of some containers to new ones.
type compaction struct {
	p       *Pool
	s       *session
	ranks   ranks    // nil: as they lie
	dense   *recoder // nil: groups are copied as they are where they can be
	sources []*cont  // copied whole
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

// A source is a container that is being copied.
type source struct {
	c      *cont
	footer *container.Footer
	file   blob.Reader
	dead   bitmap
	failed bool // damaged: it stays where it is, for a repair
}

// A sourceGroup is a group of a source with live chunks.
type sourceGroup struct {
	*source
	number uint32
	live   int
	rank   uint32
}

// run copies sources, makes the copies durable, and takes the sources out of the index. It returns those that are out.
func (c *compaction) run(ctx context.Context, sources []*cont) ([]*cont, error) {
	err := c.copy(ctx, sources)
	if err == nil {
		err = c.seal()
	}
	if err != nil {
		c.s.end(nil, err)
		return nil, err
	}
	gone := c.switchOver()
	c.s.end(nil, holdfast.Cancelled) // its containers are the pool's now
	return gone, nil
}

// copy copies the live groups of the sources in the order of their ranks.
func (c *compaction) copy(ctx context.Context, sources []*cont) error {
	var open []*source
	defer func() {
		for _, s := range open {
			_ = s.file.Close() // only read
		}
	}()
	var groups []sourceGroup
	for _, src := range sources {
		s, err := c.open(ctx, src)
		if err != nil && holdfast.KindOf(err) == holdfast.Corrupt {
			continue // stays where it is, for a repair
		}
		if err != nil {
			return err
		}
		open = append(open, s)
		groups = c.list(s, groups)
	}
	slices.SortStableFunc(groups, func(a, b sourceGroup) int { return cmp.Compare(a.rank, b.rank) })
	for i := range groups {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.copyGroup(&groups[i]); err != nil {
			return err
		}
	}
	if c.dense != nil {
		if err := c.dense.flush(c); err != nil {
			return err
		}
	}
	for _, s := range open {
		if !s.failed {
			c.sources = append(c.sources, s.c)
		}
	}
	c.moves = slices.DeleteFunc(c.moves, func(m move) bool { return !slices.Contains(c.sources, m.from) })
	return nil
}

func (c *compaction) open(ctx context.Context, src *cont) (*source, error) {
	p := c.p
	p.mu.RLock()
	dead := slices.Clone(src.dead)
	p.mu.RUnlock()
	footer, err := p.loadFooter(ctx, src)
	if err != nil {
		return nil, err
	}
	r, err := p.med.Open(ctx, contName(src.id))
	if err != nil {
		return nil, err
	}
	return &source{c: src, footer: footer, file: r, dead: dead}, nil
}

// list appends the groups of a source that have live chunks.
func (c *compaction) list(s *source, groups []sourceGroup) []sourceGroup {
	for i := range s.footer.Groups {
		g := &s.footer.Groups[i]
		sg := sourceGroup{source: s, number: uint32(i), rank: c.ranks.least(s.c, g.First, g.First+g.Count)}
		for o := g.First; o < g.First+g.Count; o++ {
			if !s.dead.get(o) {
				sg.live++
			}
		}
		if sg.live > 0 {
			groups = append(groups, sg)
		}
	}
	return groups
}

// copyGroup copies a group. A whole one is copied as it is, after its checksum; of others the live chunks are encoded again, after their
// digests. One that is damaged spoils its source, which then stays.
func (c *compaction) copyGroup(sg *sourceGroup) error {
	if sg.failed {
		return nil
	}
	fg := &sg.footer.Groups[sg.number]
	keep := func(k int) bool { return !sg.dead.get(fg.First + uint32(k)) }
	got, err := container.ReadGroup(sg.file, sg.footer, sg.number, nil)
	g := &got
	switch {
	case err != nil:
	case c.dense != nil && fg.Type == container.Data:
		err = c.dense.add(c, sg, g, keep)
		g = nil
	case sg.live < int(fg.Count) || fg.Codec == holdfast.S2 && fg.Type == container.Data:
		// The fast codec was for the time of the backup; what has lived until now is worth more.
		g, err = c.p.repack(g, keep)
	}
	if holdfast.KindOf(err) == holdfast.Corrupt && err != nil {
		c.p.markBad(sg.c, groupOrdinals(fg), err)
		sg.source.failed = true
		return nil
	}
	if err != nil || g == nil {
		return err
	}
	from := make([]origin, 0, sg.live)
	for k := range int(fg.Count) {
		if keep(k) {
			from = append(from, origin{sg.c, fg.First + uint32(k)})
		}
	}
	return c.put(fg.Type, g, from)
}

// An origin is where a chunk was.
type origin struct {
	c       *cont
	ordinal uint32
}

// put stores a group whose chunks come from the given places.
func (c *compaction) put(t container.Type, g *holdfast.Group, from []origin) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	pk := &c.s.data
	if t == container.Node {
		pk = &c.s.nodes
	}
	n, err := pk.put(g)
	if err != nil {
		return err
	}
	c.copied += n
	first := uint32(len(pk.cur.chunks()) - len(g.Chunks))
	for i, o := range from {
		c.moves = append(c.moves, move{o.c, o.ordinal, pk.cur.id, first + uint32(i)})
	}
	return nil
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
