package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/container"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/media"
)

// A set is a record open for reading.
type set struct {
	p     *Pool
	rec   *record
	media holdfast.ID

	mu     sync.Mutex // guards closed
	closed bool
}

// Manifest implements pools.Set.
func (s *set) Manifest() holdfast.Manifest {
	m := s.rec.manifest
	m.Disks = slices.Clone(m.Disks)
	return m
}

// Close implements pools.Set.
func (s *set) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.p.leave(s.media)
	}
	return nil
}

// disk returns the map of a disk of a set that is open.
func (s *set) disk(ctx context.Context, op string, id holdfast.DiskID) ([]ref, error) {
	if err := ctx.Err(); err != nil {
		return nil, holdfast.Errorf(holdfast.KindOf(err), op, "%w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	refs, ok := s.rec.refs(id)
	switch {
	case s.closed:
		return nil, holdfast.Errorf(holdfast.Invalid, op, "the set is closed")
	case !ok:
		return nil, holdfast.Errorf(holdfast.NotExist, op, "the set has no disk %s", id)
	}
	return refs, nil
}

// Map implements pools.Set.
func (s *set) Map(ctx context.Context, id holdfast.DiskID) iter.Seq2[holdfast.Ref, error] {
	const op = "read map"
	return func(yield func(holdfast.Ref, error) bool) {
		refs, err := s.disk(ctx, op, id)
		if err != nil {
			yield(holdfast.Ref{}, err)
			return
		}
		for _, r := range refs {
			if err := ctx.Err(); err != nil {
				yield(holdfast.Ref{}, holdfast.Errorf(holdfast.KindOf(err), op, "%w", err))
				return
			}
			if !yield(s.rec.export(r), nil) {
				return
			}
		}
	}
}

// A want is what is wanted of one container: places by group.
type want map[uint32][]holdfast.Place

// plan returns what the wanted extents need, by container.
func (r *record) plan(refs []ref, extents holdfast.Extents) map[uint32]want {
	out := map[uint32]want{}
	for _, f := range refs {
		for len(extents) > 0 && extents[0].End() <= f.Off {
			extents = extents[1:]
		}
		if f.chunk == noChunk {
			continue
		}
		c := &r.chunks[f.chunk]
		for _, e := range extents {
			if e.Off >= f.End() {
				break
			}
			part := cut(f, max(f.Off, e.Off), min(f.End(), e.End()))
			if out[c.box] == nil {
				out[c.box] = want{}
			}
			out[c.box][c.group] = append(out[c.box][c.group], holdfast.Place{Off: part.Off, At: c.at + part.skip, Len: uint32(part.Len)})
		}
	}
	return out
}

// Read implements pools.Set. Containers come in the order in which they lie on tape: each is brought to a file as a whole, so that the drive streams and is
// free again before the receiver gets anything; the next one is brought meanwhile.
func (s *set) Read(ctx context.Context, id holdfast.DiskID, extents holdfast.Extents) iter.Seq2[*holdfast.Parcel, error] {
	const op = "read disk"
	return func(yield func(*holdfast.Parcel, error) bool) {
		refs, err := s.disk(ctx, op, id)
		var order []uint32
		var plan map[uint32]want
		if err == nil {
			plan = s.rec.plan(refs, extents)
			order, err = s.p.order(s.rec, s.media, func(b uint32) bool { return plan[b] != nil })
		}
		if err != nil {
			yield(nil, err)
			return
		}
		ahead, stop := context.WithCancel(ctx)
		type brought struct {
			*fetched
			box uint32
			err error
		}
		ch := make(chan brought)
		go func() {
			defer close(ch)
			for _, b := range order {
				f, err := s.p.fetch(ahead, s.media, s.rec.boxes[b])
				select {
				case ch <- brought{f, b, err}:
				case <-ahead.Done():
					f.close() // nobody waits for it; what is left in the spool goes with the next opening
					return
				}
				if err != nil {
					return
				}
			}
		}()
		defer func() {
			stop()
			for f := range ch {
				f.close()
			}
		}()
		for f := range ch {
			if f.err != nil {
				yield(nil, f.err)
				return
			}
			ok := f.deliver(ctx, plan[f.box], yield)
			if err := f.close(); ok && err != nil {
				yield(nil, err)
				return
			}
			if !ok {
				return
			}
		}
	}
}

// deliver hands on the wanted groups of a container, and then what was wrong with it. It reports whether to go on.
func (f *fetched) deliver(ctx context.Context, w want, yield func(*holdfast.Parcel, error) bool) bool {
	groups := make([]uint32, 0, len(w))
	for g := range w {
		groups = append(groups, g)
	}
	slices.Sort(groups)
	for _, g := range groups {
		if err := ctx.Err(); err != nil {
			yield(nil, holdfast.Errorf(holdfast.KindOf(err), "read disk", "%w", err))
			return false
		}
		if f.footer == nil || int(g) >= len(f.footer.Groups) {
			err := f.bad
			if err == nil {
				err = holdfast.Errorf(holdfast.Corrupt, "read disk", "a container on tape has %d groups, and the set names number %d", len(f.footer.Groups), g)
			}
			yield(nil, err)
			return false
		}
		group, err := container.ReadGroup(f.file, f.footer, g, nil)
		if err != nil {
			yield(nil, err)
			return false
		}
		if !yield(&holdfast.Parcel{Group: group, Places: w[g]}, nil) {
			return false
		}
	}
	return true
}

// parts returns where an object lies: its parts in order. The caller holds mu.
func (p *Pool) parts(set, id holdfast.ID) []hft.Entry {
	var out []hft.Entry
	for _, e := range p.objects[set] {
		if e.ID == id {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b hft.Entry) int { return cmp.Compare(a.Part, b.Part) })
	for i, e := range out {
		if e.Part != i+1 || e.More != (i+1 < len(out)) {
			return nil
		}
	}
	return out
}

// where returns the parts of the wanted containers of a record, by number. Corrupt: one is not there.
func (p *Pool) where(r *record, set holdfast.ID, wanted func(uint32) bool) (map[uint32][]hft.Entry, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	no := map[holdfast.ID]uint32{}
	for i, id := range r.boxes {
		if wanted(uint32(i)) {
			no[id] = uint32(i)
		}
	}
	out := map[uint32][]hft.Entry{}
	for _, e := range p.objects[set] {
		if b, ok := no[e.ID]; ok {
			out[b] = append(out[b], e)
		}
	}
	for id, b := range no {
		if out[b] = p.parts1(out[b]); out[b] == nil {
			return nil, holdfast.Errorf(holdfast.Corrupt, "find container on tape", "container %s of set %s is on no tape that is known", id, r.manifest.ID).
				Advise("read the catalog from all cartridges of media set %s again", set)
		}
	}
	return out, nil
}

// parts1 puts an object's parts in order; nil if one is missing.
func (p *Pool) parts1(es []hft.Entry) []hft.Entry {
	slices.SortFunc(es, func(a, b hft.Entry) int { return cmp.Compare(a.Part, b.Part) })
	for i, e := range es {
		if e.Part != i+1 || e.More != (i+1 < len(es)) {
			return nil
		}
	}
	return es
}

// order returns the numbers of the wanted containers of a record as they lie on tape: by cartridge, then by address.
func (p *Pool) order(r *record, set holdfast.ID, wanted func(uint32) bool) ([]uint32, error) {
	at, err := p.where(r, set, wanted)
	if err != nil {
		return nil, err
	}
	out := make([]uint32, 0, len(at))
	for b := range at {
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b uint32) int {
		x, y := at[a][0], at[b][0]
		return cmp.Or(cmp.Compare(x.Seq, y.Seq), cmp.Compare(x.At, y.At))
	})
	return out, nil
}

// A fetched container lies in a file.
type fetched struct {
	p      *Pool
	name   string
	file   fsys.File
	footer *container.Footer
	bad    error // why it is not whole: the groups before what is broken are there
}

func (f *fetched) close() error {
	if f == nil || f.file == nil {
		return nil
	}
	err := errors.Join(f.file.Close(), f.p.fs.Remove(f.name))
	f.file = nil
	return fsys.Classify("read tape", err)
}

// fetch brings a container from tape to a file. What a drive fails at is tried again in another one.
func (p *Pool) fetch(ctx context.Context, set, id holdfast.ID) (*fetched, error) {
	p.mu.Lock()
	parts := p.parts(set, id)
	p.spools++
	f := &fetched{p: p, name: fmt.Sprintf("%s/%d", spoolDir, p.spools)}
	p.mu.Unlock()
	if parts == nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read tape", "container %s is on no tape that is known", id)
	}
	var err error
	for range mountTries {
		if f.file, err = p.fs.Create(f.name); err != nil {
			return nil, fsys.Classify("read tape", err)
		}
		if err = p.read(ctx, parts, f.file); err == nil || holdfast.KindOf(err) == holdfast.Corrupt {
			break
		}
		if cerr := f.close(); cerr != nil {
			return nil, errors.Join(err, cerr)
		}
		if k := holdfast.KindOf(err); k != holdfast.Offline && k != holdfast.Transient && k != holdfast.Internal || errors.Is(err, errAway) {
			return nil, err
		}
	}
	if f.file == nil {
		return nil, err
	}
	st, serr := f.file.Stat()
	if serr != nil {
		return nil, errors.Join(fsys.Classify("read tape", serr), f.close())
	}
	if f.bad = err; err == nil {
		_, f.footer, f.bad = container.Load(f.file, st.Size())
	}
	if f.bad != nil {
		if _, f.footer, err = container.Scan(f.file, st.Size()); err != nil {
			f.footer = nil
		}
	}
	return f, nil
}

// read reads an object's parts from their tapes.
func (p *Pool) read(ctx context.Context, parts []hft.Entry, w io.Writer) error {
	j := hft.NewJoin(w)
	for _, e := range parts {
		p.mu.Lock()
		c := p.book.Tape(e.Tape)
		var tape media.Cartridge
		if c != nil {
			tape = *c
		}
		p.mu.Unlock()
		if c == nil {
			return holdfast.Errorf(holdfast.Corrupt, "read tape", "tape %s is not in the book", e.Tape).Advise("read the catalog from the cartridges again")
		}
		x, err := p.mount(ctx, tape)
		if err != nil {
			return err
		}
		if err = p.part(ctx, x, e, j); err != nil && holdfast.KindOf(err) != holdfast.Corrupt {
			p.stations.doubt(ctx, x, err)
		}
		p.stations.give(x)
		if err != nil {
			return err
		}
	}
	return nil
}

// part reads one part from the tape in a station.
func (p *Pool) part(ctx context.Context, x *station, e hft.Entry, j *hft.Join) error {
	x.tape.writer = nil // the position is not its any more
	if x.tape.reader == nil {
		r, err := hft.Open(ctx, x.hold.Drive)
		if err != nil {
			return err
		}
		key, err := p.keyOf(r.Label())
		if err != nil {
			return err
		}
		if err := r.Unlock(ctx, key); err != nil {
			return err
		}
		x.tape.reader = r
	}
	return x.tape.reader.Read(ctx, e, j)
}
