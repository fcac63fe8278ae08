package standard

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

var _ pools.Explainer = (*Pool)(nil)

// An explanation is one Explain under way. It takes two bits a chunk.
type explanation struct {
	collecting
	live, pinned map[*file]bitmap
	owners       map[*file]int // of the file's live chunks: number in vms, severalVMs
	vms          []pools.VMSpace
	number       map[holdfast.VMID]int
	newest       map[holdfast.VMID]newestSet

	pieces, jumps int64
}

const severalVMs = -1

type newestSet struct {
	st  *setState
	rec *setRecord
}

// Explain implements pools.Explainer. Sessions, reads and collects go on meanwhile; what they change may or may not be in it.
func (p *Pool) Explain(ctx context.Context) (pools.Space, error) {
	const op = "explain space"
	s := pools.Space{VMs: []pools.VMSpace{}, PinnedBy: []pools.Pin{}, Waits: []pools.Wait{}}
	if err := p.lock(ctx, op); err != nil {
		return s, err
	}
	p.mu.Unlock()
	if err := p.readRecords(ctx); err != nil {
		return s, err
	}
	x := &explanation{collecting: collecting{p: p}, live: map[*file]bitmap{}, pinned: map[*file]bitmap{}, owners: map[*file]int{}, number: map[holdfast.VMID]int{},
		newest: map[holdfast.VMID]newestSet{}}
	sets, gone := x.lease(&s)
	var first error
	for _, st := range sets {
		if first == nil {
			first = x.set(ctx, &s, st, slices.Contains(gone, st))
		}
	}
	for _, n := range x.newest {
		if first == nil {
			first = x.scatter(ctx, n)
		}
	}
	for _, st := range sets {
		p.unlease(ctx, st)
	}
	if first != nil {
		return s, first
	}
	x.sum(&s)
	if x.pieces > 0 {
		s.Jumps = float64(x.jumps) / float64(x.pieces)
	}
	s.VMs = append(s.VMs, x.vms...)
	slices.SortFunc(s.VMs, func(a, b pools.VMSpace) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), bytes.Compare(a.ID.ID[:], b.ID.ID[:]))
	})
	return s, nil
}

// lease leases all sets, those that were deleted and are still used too, and tells about what pins bytes.
func (x *explanation) lease(s *pools.Space) (sets, gone []*setState) {
	p := x.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, st := range p.sets {
		sets = append(sets, st)
	}
	for st := range p.gone {
		gone = append(gone, st)
		s.PinnedBy = append(s.PinnedBy, pools.Pin{Set: st.id, Use: pools.PinReading})
	}
	for se := range p.sessions {
		s.PinnedBy = append(s.PinnedBy, pools.Pin{Set: se.begun.ID, VM: se.begun.VM.Name, Use: pools.PinWriting})
	}
	sets = append(sets, gone...)
	for _, st := range sets {
		p.lease(st)
		for _, f := range st.files {
			if x.live[f] == nil {
				x.live[f], x.pinned[f] = newBitmap(f.wrote[2]), newBitmap(f.wrote[2])
			}
		}
	}
	slices.SortFunc(s.PinnedBy, func(a, b pools.Pin) int {
		return cmp.Or(cmp.Compare(a.Use, b.Use), bytes.Compare(a.Set.ID[:], b.Set.ID[:]))
	})
	return sets, gone
}

// set marks what a set needs.
func (x *explanation) set(ctx context.Context, s *pools.Space, st *setState, gone bool) error {
	if gone {
		if !st.read {
			return nil // its record went before anybody read it: what it needs is not known, and not counted as live
		}
		s.Pinned += st.bytes
		return x.only(ctx, x.mark(ctx, st, x.pinned))
	}
	rec, err := x.p.record(ctx, st)
	if err != nil {
		return x.only(ctx, err)
	}
	s.Records += st.bytes
	m := &rec.manifest
	n, known := x.number[m.VM.ID]
	if !known {
		n = len(x.vms)
		x.number[m.VM.ID] = n
		x.vms = append(x.vms, pools.VMSpace{ID: m.VM.ID, Name: m.VM.Name})
	}
	v := &x.vms[n]
	v.Sets, v.Unique = v.Sets+1, v.Unique+st.bytes
	for _, d := range m.Disks {
		v.Logical += d.Size
	}
	for _, f := range st.files {
		if o, ok := x.owners[f]; ok && o != n {
			x.owners[f] = severalVMs
		} else {
			x.owners[f] = n
		}
	}
	if old, ok := x.newest[m.VM.ID]; !ok || old.rec.manifest.Created.Before(m.Created) {
		x.newest[m.VM.ID] = newestSet{st, rec}
	}
	return x.only(ctx, x.mark(ctx, st, x.live))
}

// only passes over what is damaged or gone: Verify tells that.
func (x *explanation) only(ctx context.Context, err error) error {
	if k := holdfast.KindOf(err); err != nil && (k == holdfast.Corrupt || k == holdfast.NotExist) {
		return alive(ctx, "explain space")
	}
	return err
}

// scatter counts how often the next piece of a set's disks lies somewhere else.
func (x *explanation) scatter(ctx context.Context, n newestSet) error {
	for i := range n.rec.manifest.Disks {
		m, _, err := x.p.openMap(ctx, n.st, n.rec, i)
		if err != nil {
			if err = x.only(ctx, err); err != nil {
				return err
			}
			continue
		}
		var before run
		for {
			r, ok, err := m.read()
			if err != nil || !ok {
				m.close()
				if err = x.only(ctx, err); err != nil {
					return err
				}
				break
			}
			if r.zeros() {
				continue
			}
			if r.file != before.file || r.first != before.last() {
				x.jumps++
			}
			x.pieces += int64(r.count)
			before = r
		}
	}
	return alive(ctx, "explain space")
}

// sum adds up what every data file's chunks take.
func (x *explanation) sum(s *pools.Space) {
	folders := x.p.folders()
	p := x.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.files {
		s.Stored += f.fact[0]
		s.Containers++
		live, pinned := x.live[f].count(), x.pinned[f].without(x.live[f]).count()
		if _, there := folders[f.key.folder]; there && live == 0 && pinned == 0 && f.pins > 0 {
			pinned = f.fact[2] // of a session that has just ended
		}
		chunks := max(f.fact[2], live+pinned, 1)
		part := func(n int64) int64 { return int64(float64(f.fact[0]) * float64(n) / float64(chunks)) }
		s.Liveness[min(live*10/chunks, 9)]++
		free := f.fact[0] - part(live) - part(pinned)
		if live+pinned == chunks {
			free = 0
		}
		s.Live, s.Pinned, s.Reclaimable = s.Live+f.fact[0]-part(pinned)-free, s.Pinned+part(pinned), s.Reclaimable+free
		if n, ok := x.owners[f]; ok && n != severalVMs {
			x.vms[n].Unique += f.fact[0] - part(pinned) - free
		}
		_, own := folders[f.key.folder]
		switch {
		case live == 0 && pinned > 0:
			s.AddWait(free, pools.WaitPin, time.Time{})
		case live == 0 || !own && float64(live+pinned) < rewriteBelow*float64(chunks):
			s.AddWait(free, pools.WaitCollect, time.Time{})
		default:
			s.AddWait(free, pools.WaitSparse, time.Time{})
		}
	}
	for se := range p.sessions {
		se.mu.Lock()
		for _, f := range se.files {
			if _, open := se.tails[f]; !open { // what is being written counts once it is finished, as in Usage
				s.Stored += f.fact[0]
				s.Pinned += f.fact[0]
			}
		}
		se.mu.Unlock()
	}
	s.Stored += s.Records
	for st := range p.gone {
		s.Stored += st.bytes
	}
}
