package standard

import (
	"context"
	"errors"
	"math"
	"slices"
	"sort"

	"github.com/holdfast-backup/holdfast"
)

const (
	// So many chunks, put or answered as present last, a session finds without reading anything: about 25 MiB.
	windowChunks = 256 << 10
	// So many chunks of the parent's disk are looked at ahead of what was placed last; doubled as long as that pays.
	aheadLeast = 512
	aheadMost  = 16 << 10
)

// A loc says where a chunk lies.
type loc struct {
	f   *file
	ord uint32
	len uint32 // of the chunk
}

// A recent remembers the last chunks of a session: at least window/2 and at most window of them.
type recent struct {
	window     int
	young, old map[holdfast.Digest]loc
}

func (r *recent) get(d holdfast.Digest) (loc, bool) {
	l, ok := r.young[d]
	if ok {
		return l, true
	}
	if l, ok = r.old[d]; ok {
		r.put(d, l)
	}
	return l, ok
}

func (r *recent) put(d holdfast.Digest, l loc) {
	if r.young == nil || len(r.young) >= r.window/2 {
		r.old, r.young = r.young, map[holdfast.Digest]loc{}
	}
	r.young[d] = l
}

// A nearby is the part of the parent's disk around the place where a disk is being written: which chunks are there. It is what
// finds unchanged data again without an index of the whole disk. Not safe for concurrent use.
type nearby struct {
	p     *Pool
	m     *mapReader
	files []*file
	cur   run    // the rest of the run at hand
	fifo  []near // by offset
	at    map[holdfast.Digest]loc
	read  int64 // the parent's disk was looked at up to here
	ahead int
	hits  int // since ahead was set
}

type near struct {
	end int64
	d   holdfast.Digest
	l   loc
}

// errEnough ends a walk whose caller has had enough.
var errEnough = errors.New("enough")

// get finds a chunk of the parent's around the place that move was given.
func (n *nearby) get(d holdfast.Digest) (loc, bool) {
	l, ok := n.at[d]
	if ok {
		n.hits++
	}
	return l, ok
}

// move makes the window begin a little before pos, which never goes back, and reach ahead of it.
func (n *nearby) move(ctx context.Context, pos int64) error {
	if n.ahead == 0 || n.read < pos {
		n.fifo, n.at, n.ahead, n.hits, n.cur, n.read = nil, map[holdfast.Digest]loc{}, aheadLeast, 0, run{}, pos
		if err := n.m.seek(pos); err != nil {
			return err
		}
	}
	if n.hits > n.ahead/2 && n.ahead < aheadMost {
		n.ahead, n.hits = n.ahead*2, 0
	}
	behind := sort.Search(len(n.fifo), func(i int) bool { return n.fifo[i].end > pos })
	for ; behind > n.ahead/8; behind-- { // a little stays, because questions come before places do
		if old := n.fifo[0]; n.at[old.d] == old.l {
			delete(n.at, old.d)
		}
		n.fifo = n.fifo[1:]
	}
	for len(n.fifo)-behind < n.ahead {
		if n.cur.len == 0 {
			r, ok, err := n.m.read()
			if err != nil {
				return err
			}
			if !ok {
				n.read = math.MaxInt64 // there is no more, wherever pos goes
				return nil
			}
			if n.cur = r; r.zeros() {
				n.cur, n.read = run{}, max(n.read, r.end())
				continue
			}
		}
		if err := n.add(ctx, pos, behind+n.ahead); err != nil {
			return err
		}
	}
	return nil
}

// add enters chunks of the run at hand that end after pos, until the window has most.
func (n *nearby) add(ctx context.Context, pos int64, most int) error {
	d, err := n.p.openData(ctx, n.files[n.cur.file])
	if err != nil {
		return err
	}
	defer n.p.data.release(d)
	whole := n.cur
	err = d.each(&whole, func(ref holdfast.Ref, at spot, ord uint32) error {
		n.read = max(n.read, ref.End())
		n.cur = run{off: ref.End(), len: whole.end() - ref.End(), file: whole.file, first: ord + 1, count: whole.last() - ord - 1}
		if ref.End() <= pos {
			return nil
		}
		l := loc{d.f, ord, at.piece.Len}
		n.fifo, n.at[ref.Digest] = append(n.fifo, near{ref.End(), ref.Digest, l}), l
		if len(n.fifo) >= most && n.cur.len > 0 {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func (n *nearby) close() {
	if n != nil {
		n.m.close()
	}
}

// find returns where the chunks of refs lie; those that the session does not know are left out.
func (s *session) find(ctx context.Context, refs []holdfast.Ref) ([]loc, error) {
	locs := make([]loc, len(refs))
	var lack map[holdfast.Digest]loc
	s.mu.Lock()
	for i := range refs {
		if d := refs[i].Digest; !d.IsZero() {
			var ok bool
			if locs[i], ok = s.recent.get(d); !ok {
				if lack == nil {
					lack = map[holdfast.Digest]loc{}
				}
				lack[d] = loc{}
			}
		}
	}
	s.mu.Unlock()
	if lack == nil {
		return locs, nil
	}
	if err := s.search(ctx, lack); err != nil {
		return nil, err
	}
	for i := range refs {
		if l, ok := lack[refs[i].Digest]; ok {
			locs[i] = l
		}
	}
	return locs, nil
}

// search looks for chunks that were put or answered as present too long ago to be remembered: in the session's own data files and
// in what the parent's maps name. It reads footers only, but all of them; who places chunks soon after putting them never
// comes here.
func (s *session) search(ctx context.Context, lack map[holdfast.Digest]loc) error {
	left := len(lack)
	found := func(d holdfast.Digest, l loc) {
		if old, ok := lack[d]; ok && old.f == nil {
			lack[d] = l
			left--
		}
	}
	s.mu.Lock()
	var done []*file
	for _, f := range s.files {
		tail, open := s.tails[f]
		if !open {
			done = append(done, f)
		}
		for i, c := range tail {
			found(c.Digest, loc{f, uint32(i), c.Len})
		}
	}
	s.mu.Unlock()
	for _, f := range slices.Backward(done) {
		if left == 0 {
			return nil
		}
		if err := s.p.eachChunk(ctx, f, func(ord uint32, c *holdfast.Piece) { found(c.Digest, loc{f, ord, c.Len}) }); err != nil {
			return err
		}
	}
	if s.parent == nil {
		return nil
	}
	for i := range s.inherit.manifest.Disks {
		if left == 0 {
			break
		}
		if err := s.searchParent(ctx, i, found); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) searchParent(ctx context.Context, disk int, found func(holdfast.Digest, loc)) error {
	m, files, err := s.p.openMap(ctx, s.parent, s.inherit, disk)
	if err != nil {
		return err
	}
	defer m.close()
	for {
		r, ok, err := m.read()
		if err != nil || !ok {
			return err
		}
		if err := alive(ctx, "look for chunks"); err != nil {
			return err
		}
		if r.zeros() {
			continue
		}
		d, err := s.p.openData(ctx, files[r.file])
		if err != nil {
			return err
		}
		err = d.each(&r, func(ref holdfast.Ref, at spot, ord uint32) error {
			found(ref.Digest, loc{d.f, ord, at.piece.Len})
			return nil
		})
		s.p.data.release(d)
		if err != nil {
			return err
		}
	}
}

// eachChunk calls f for the chunks of a data file that was never rewritten.
func (p *Pool) eachChunk(ctx context.Context, f *file, do func(ord uint32, c *holdfast.Piece)) error {
	if err := alive(ctx, "look for chunks"); err != nil {
		return err
	}
	d, err := p.openData(ctx, f)
	if err != nil {
		return err
	}
	defer p.data.release(d)
	for i := range d.footer.Chunks {
		do(uint32(i), &d.footer.Chunks[i].Piece)
	}
	return nil
}
