package dedup

import (
	"cmp"
	"context"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// Owners of a chunk besides VMs, which are numbered from 1.
const (
	nobody     = 0
	severalVMs = 0xffff
	pinnedOnly = 0xfffe
	maxOwner   = 0xfffd // further VMs are counted as one
)

// An explanation is one Explain under way. It takes two bytes a chunk.
type explanation struct {
	p      *Pool
	ctx    context.Context // of this one Explain
	owners map[uint32][]uint16
	r      resolver
	vms    []pools.VMSpace
	number map[holdfast.VMID]uint16
	seen   map[nodeOf]struct{}

	pieces, jumps int64
	slot, group   uint32 // of the piece before
}

// nodeOf is a node as one owner sees it.
type nodeOf struct {
	d     holdfast.Digest
	owner uint16
}

var _ pools.Explainer = (*Pool)(nil)

// Explain implements pools.Explainer. Sessions, reads and collects go on meanwhile; what they change may or may not be in it.
func (p *Pool) Explain(ctx context.Context) (pools.Space, error) {
	x := &explanation{p: p, ctx: ctx, owners: map[uint32][]uint16{}, r: resolver{p: p}, number: map[holdfast.VMID]uint16{}, seen: map[nodeOf]struct{}{}}
	defer x.r.release()
	s := pools.Space{VMs: []pools.VMSpace{}, PinnedBy: x.pins(), Waits: []pools.Wait{}}
	newest := map[holdfast.VMID]*setRecord{}
	for id := range p.knownSets() {
		rec, l, err := p.leaseSet(ctx, id)
		if err != nil && holdfast.KindOf(err) == holdfast.NotExist {
			continue // deleted meanwhile
		}
		if err != nil {
			return s, err
		}
		err = x.set(rec)
		p.endLease(l)
		if err != nil {
			return s, err
		}
		s.Records += rec.bytes
		if old := newest[rec.manifest.VM.ID]; old == nil || old.manifest.Created.Before(rec.manifest.Created) {
			newest[rec.manifest.VM.ID] = rec
		}
	}
	if err := x.leases(); err != nil {
		return s, err
	}
	for _, rec := range newest {
		if err := x.measure(rec); err != nil {
			return s, err
		}
	}
	if x.pieces > 0 {
		s.Jumps = float64(x.jumps) / float64(x.pieces)
	}
	if err := x.sum(&s); err != nil {
		return s, err
	}
	s.Stored = s.Live + s.Pinned + s.Reclaimable + s.Records
	s.VMs = append(s.VMs, x.vms...)
	slices.SortFunc(s.VMs, func(a, b pools.VMSpace) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.ID.ID[:], b.ID.ID[:]))
	})
	return s, nil
}

// vm returns the number of a set's VM.
func (x *explanation) vm(m *holdfast.Manifest) uint16 {
	n := x.number[m.VM.ID]
	if n == nobody {
		x.vms = append(x.vms, pools.VMSpace{ID: m.VM.ID, Name: m.VM.Name})
		n = uint16(min(len(x.vms), maxOwner))
		x.number[m.VM.ID] = n
	}
	v := &x.vms[n-1]
	v.Sets++
	for _, d := range m.Disks {
		v.Logical += d.Size
	}
	return n
}

// set gives a set's chunks to its VM.
func (x *explanation) set(rec *setRecord) error {
	owner := x.vm(&rec.manifest)
	for i, d := range rec.disks {
		if err := x.node(d.root, rootSpan(rec.manifest.Disks[i].Size), owner); err != nil {
			return err
		}
	}
	return nil
}

// leases gives what only readers and parents of sessions keep to them.
func (x *explanation) leases() error {
	var roots []diskTree
	x.p.mu.RLock()
	for l := range x.p.leases {
		if _, there := x.p.sets[l.set]; !there {
			roots = append(roots, l.roots...)
		}
	}
	x.p.mu.RUnlock()
	for _, t := range roots {
		if err := x.node(t.root, rootSpan(t.size), pinnedOnly); err != nil {
			return err
		}
	}
	return nil
}

func (x *explanation) node(d holdfast.Digest, span uint8, owner uint16) error {
	if _, known := x.seen[nodeOf{d, owner}]; known || d.IsZero() {
		return nil
	}
	x.seen[nodeOf{d, owner}] = struct{}{}
	if err := x.give([]holdfast.Digest{d}, owner); err != nil {
		return err
	}
	n, err := x.p.loadNode(x.ctx, d, span)
	if err != nil {
		return x.only(err)
	}
	for _, c := range n.children {
		if err := x.node(c, n.child, owner); err != nil {
			return err
		}
	}
	return x.give(refDigests(n.refs), owner)
}

// only passes over what is damaged: Verify tells that.
func (x *explanation) only(err error) error {
	if k := holdfast.KindOf(err); k == holdfast.Corrupt || k == holdfast.NotExist {
		return x.ctx.Err()
	}
	return err
}

// give notes the owner of chunks.
func (x *explanation) give(ds []holdfast.Digest, owner uint16) error {
	if len(ds) == 0 {
		return nil
	}
	if err := x.r.resolve(x.ctx, ds, forReading); err != nil {
		return x.only(err)
	}
	for i := range x.r.hits {
		h := &x.r.hits[i]
		if h.c == nil {
			continue
		}
		o := x.owners[h.c.slot]
		if o == nil {
			o = make([]uint16, h.c.n)
			x.owners[h.c.slot] = o
		}
		switch was := o[h.ordinal]; {
		case was == nobody:
			o[h.ordinal] = owner
		case was != owner && owner != pinnedOnly:
			o[h.ordinal] = severalVMs
		}
	}
	return nil
}

// measure walks a set in the order of its disks and counts how often the next piece lies somewhere else.
func (x *explanation) measure(rec *setRecord) error {
	for i, d := range rec.disks {
		var refs []holdfast.Ref
		flush := func() error {
			if err := x.r.resolve(x.ctx, refDigests(refs), forReading); err != nil {
				return x.only(err)
			}
			for k := range x.r.hits {
				h := &x.r.hits[k]
				if h.c == nil {
					continue
				}
				x.pieces++
				if h.c.slot != x.slot || h.chunk.Group != x.group && h.chunk.Group != x.group+1 {
					x.jumps++
				}
				x.slot, x.group = h.c.slot, h.chunk.Group
			}
			refs = refs[:0]
			return nil
		}
		size := rec.manifest.Disks[i].Size
		err := x.p.walk(x.ctx, diskTree{d.root, size}, holdfast.Extents{{Off: 0, Len: size}}, func(r holdfast.Ref) error {
			if refs = append(refs, r); len(refs) == 4096 {
				return flush()
			}
			return nil
		})
		if err == nil {
			err = flush()
		}
		if err != nil {
			if err := x.only(err); err != nil {
				return err
			}
		}
	}
	return nil
}

// sum adds up what every container's chunks take.
func (x *explanation) sum(s *pools.Space) error {
	p := x.p
	var conts []*cont
	busy := map[*cont]bool{}
	pins := map[uint32]bitmap{}
	p.mu.RLock()
	for _, c := range p.byID {
		c.refs.Add(1)
		conts = append(conts, c)
		busy[c] = c.owner != nil
	}
	for se := range p.sessions {
		se.pinMu.Lock()
		for slot, b := range se.pins {
			have := slices.Clone(pins[slot])
			if have == nil {
				have = make(bitmap, len(b))
			}
			have.or(b)
			pins[slot] = have
		}
		se.pinMu.Unlock()
	}
	left := slices.Clone(p.leftover)
	p.mu.RUnlock()
	defer func() {
		for _, c := range conts {
			p.drop(c)
		}
	}()
	for _, c := range left { // nothing in them is needed, and they could not be removed yet
		when, until, err := x.when(c, 0, false)
		if err != nil {
			return err
		}
		s.Reclaimable += c.size
		s.AddWait(c.size, when, until)
	}
	s.Containers = len(conts)
	for _, c := range conts {
		f, err := p.loadFooter(x.ctx, c)
		if err != nil {
			if err := x.only(err); err != nil {
				return err
			}
			s.Live += c.size // nobody can say; it stays until it is repaired
			continue
		}
		live := 0
		owners := x.owners[c.slot]
		sums := map[uint16]int64{}
		for i := range f.Chunks {
			o := uint16(nobody)
			if owners != nil {
				o = owners[i]
			}
			if o != nobody && o != pinnedOnly {
				live++
			} else if busy[c] || pins[c.slot].get(uint32(i)) {
				o = pinnedOnly
			}
			sums[o] += int64(f.Chunks[i].Len)
		}
		if err := x.container(s, c, sums, live); err != nil {
			return err
		}
		s.Liveness[min(live*10/max(int(c.n), 1), 9)]++
	}
	return nil
}
