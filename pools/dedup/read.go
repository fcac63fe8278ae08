package dedup

import (
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/direct"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// Bounds of a read.
const (
	windowBytes  = 1 << 30   // of the disk are planned at once, and read in the containers' order
	windowRefs   = 32 << 10  // or so many refs: 3 MiB of plan
	joinGap      = 256 << 10 // unwanted bytes between two groups that are read along rather than sought over
	joinBytes    = 2 << 20   // of one read
	readers      = 4         // reads under way for one Read
	queued       = 16        // reads planned ahead
	readBytesOut = 64 << 20  // at most: parcels' bytes out or under way for one Read; a slow consumer holds up only itself
)

// Read implements pools.Set. A planner walks the recipe window by window and sorts each window by container; workers read; the
// consumer gets the parcels in the planned order. All of them end before the iteration does.
func (s *set) Read(ctx context.Context, d holdfast.DiskID, want holdfast.Extents) iter.Seq2[*holdfast.Parcel, error] {
	return func(yield func(*holdfast.Parcel, error) bool) {
		t, err := s.tree(d, "read disk")
		if err != nil {
			yield(nil, err)
			return
		}
		want = want.Normal(t.size)
		ctx, cancel := context.WithCancel(ctx)
		rd := &reading{p: s.p, ctx: ctx, tree: t, want: want, order: make(chan *fetch, queued), work: make(chan *fetch, queued)}
		rd.budget.init(s.p.shape.out())
		rd.start()
		defer func() {
			cancel()
			rd.stop()
		}()
		rd.deliver(yield)
	}
}

// out returns how many bytes of parcels are out or under way for one Read: two requests for each reader.
func (s Shape) out() int64 { return min(readBytesOut, 2*int64(s.Readers)*largestRead(s.Join)) }

// largestRead is the most that one request takes: groups up to join, or one that is longer, and what alignment adds.
func largestRead(join int64) int64 {
	return max(join, holdfast.MaxGroupPlain+seal.Overhead) + 2*direct.Align
}

// A reading is one Read under way.
type reading struct {
	p     *Pool
	ctx   context.Context // of this one Read
	tree  diskTree
	want  holdfast.Extents
	order chan *fetch // to the consumer, in the planned order; closed by the planner
	work  chan *fetch // to the workers; closed by the planner
	wg    sync.WaitGroup

	budget budget
}

func (rd *reading) start() {
	rd.wg.Add(1 + rd.p.shape.Readers)
	go func() {
		defer rd.wg.Done()
		defer close(rd.order)
		defer close(rd.work)
		if err := rd.plan(); err != nil {
			f := &fetch{err: err, done: make(chan struct{})}
			close(f.done)
			select {
			case rd.order <- f:
			case <-rd.ctx.Done():
			}
		}
	}()
	for range rd.p.shape.Readers {
		go func() {
			defer rd.wg.Done()
			for f := range rd.work {
				f.run(rd)
				close(f.done)
			}
		}()
	}
}

// stop waits for the planner and the workers and gives back what was not delivered. The context is cancelled.
func (rd *reading) stop() {
	for f := range rd.order {
		<-f.done
		f.discard()
	}
	rd.wg.Wait()
}

func (rd *reading) deliver(yield func(*holdfast.Parcel, error) bool) {
	for f := range rd.order {
		<-f.done
		if f.err != nil {
			err := f.err
			if rd.ctx.Err() != nil {
				err = rd.ctx.Err()
			}
			f.discard()
			yield(nil, err)
			return
		}
		for len(f.parcels) > 0 {
			pc := f.parcels[0]
			f.parcels = f.parcels[1:]
			if !yield(pc, nil) {
				f.discard()
				return
			}
		}
	}
	if err := rd.ctx.Err(); err != nil {
		yield(nil, err)
	}
}

// A piece is a wanted part of a group.
type piece struct {
	c      *cont
	group  uint32
	digest holdfast.Digest // of the chunk, to find another copy
	place  holdfast.Place
}

// plan walks the recipe and hands out fetches, window by window.
func (rd *reading) plan() error {
	var refs []holdfast.Ref
	var first int64
	flush := func() error {
		err := rd.window(refs)
		refs = refs[:0]
		return err
	}
	err := rd.p.walk(rd.ctx, rd.tree, rd.want, func(r holdfast.Ref) error {
		if len(refs) > 0 && (len(refs) == windowRefs || r.End()-first > windowBytes) {
			if err := flush(); err != nil {
				return err
			}
		}
		if len(refs) == 0 {
			first = r.Off
		}
		refs = append(refs, r)
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// window plans the refs of a window.
func (rd *reading) window(refs []holdfast.Ref) error {
	if len(refs) == 0 {
		return nil
	}
	r := resolver{p: rd.p}
	defer r.release()
	ds := make([]holdfast.Digest, len(refs))
	for i := range refs {
		ds[i] = refs[i].Digest
	}
	if err := r.resolve(rd.ctx, ds, forReading); err != nil {
		return err
	}
	pieces := make([]piece, 0, len(refs))
	for i := range refs {
		pc, err := r.hits[i].piece(&refs[i])
		if err != nil {
			return err
		}
		pieces = append(pieces, pc)
	}
	sortPieces(pieces)
	return rd.fetches(pieces)
}

// piece says where in which group the bytes of a ref lie.
func (h *hit) piece(ref *holdfast.Ref) (piece, error) {
	if h.c == nil {
		return piece{}, holdfast.Errorf(holdfast.Corrupt, "read disk", "the pool does not hold chunk %s any more, which bytes %d to %d of the disk need", ref.Digest, ref.Off, ref.End()).
			Advise("restore another point in time, and verify the pool")
	}
	if int64(ref.Skip)+ref.Len > int64(h.chunk.Len) {
		return piece{}, holdfast.Errorf(holdfast.Corrupt, "read disk", "the recipe names bytes beyond the end of chunk %s", ref.Digest)
	}
	return piece{c: h.c, group: h.chunk.Group, digest: ref.Digest,
		place: holdfast.Place{Off: ref.Off, At: h.chunk.At + ref.Skip, Len: uint32(ref.Len)}}, nil
}

// sortPieces brings pieces into the containers' order.
func sortPieces(ps []piece) {
	slices.SortFunc(ps, func(a, b piece) int {
		return cmp.Or(cmp.Compare(a.c.slot, b.c.slot), cmp.Compare(a.group, b.group), cmp.Compare(a.place.Off, b.place.Off))
	})
}

// fetches cuts sorted pieces into reads of neighbouring groups and hands them out.
func (rd *reading) fetches(ps []piece) error {
	for len(ps) > 0 {
		c := ps[0].c
		n := 1
		for n < len(ps) && ps[n].c == c {
			n++
		}
		footer, err := rd.p.loadFooter(rd.ctx, c)
		if err != nil {
			return err
		}
		file, err := rd.p.openShared(rd.ctx, c)
		if err != nil {
			return err
		}
		err = rd.container(c, footer, file, ps[:n])
		file.release()
		if err != nil {
			return err
		}
		ps = ps[n:]
	}
	return nil
}

// container hands out the reads of one container.
func (rd *reading) container(c *cont, footer *container.Footer, file *sharedFile, ps []piece) error {
	for len(ps) > 0 {
		from := footer.Groups[ps[0].group].PayloadOff()
		end := from + int64(footer.Groups[ps[0].group].Stored)
		n := 1
		for ; n < len(ps); n++ {
			g := &footer.Groups[ps[n].group]
			to := g.PayloadOff() + int64(g.Stored)
			if g.PayloadOff() > end+rd.p.shape.Gap || to > from+rd.p.shape.Join {
				break
			}
			end = max(end, to)
		}
		// Whole pages, so that the medium is read past the page cache.
		from, end = from&^(direct.Align-1), min((end+direct.Align-1)&^(direct.Align-1), max(file.Size(), end))
		f := &fetch{c: c, footer: footer, file: file, from: from, pieces: ps[:n:n], done: make(chan struct{})}
		size := spareSize(int(end - from))
		if err := rd.budget.take(rd.ctx, int64(size)); err != nil {
			return err
		}
		f.buf = newLoan(rd, int(end-from))
		file.refs.Add(1)
		if err := rd.hand(f); err != nil {
			return err
		}
		ps = ps[n:]
	}
	return nil
}

// hand queues a fetch: for the consumer first, so that whatever a worker does has somebody who waits for it.
func (rd *reading) hand(f *fetch) error {
	select {
	case rd.order <- f:
	case <-rd.ctx.Done():
		f.file.release()
		f.buf.drop()
		return rd.ctx.Err()
	}
	select {
	case rd.work <- f:
		return nil
	case <-rd.ctx.Done():
		f.err = rd.ctx.Err()
		f.file.release()
		close(f.done)
		return rd.ctx.Err()
	}
}

// A fetch is one read of a container and the parcels cut from it.
type fetch struct {
	c       *cont
	footer  *container.Footer
	file    *sharedFile
	from    int64
	pieces  []piece
	buf     *loan
	parcels []*holdfast.Parcel
	err     error
	done    chan struct{} // closed when parcels and err are set
}

// discard gives back what was not delivered.
func (f *fetch) discard() {
	for _, p := range f.parcels {
		p.Release()
	}
	f.parcels = nil
	if f.buf != nil {
		f.buf.drop()
		f.buf = nil
	}
}

// run reads the bytes and cuts them into parcels, one a group.
func (f *fetch) run(rd *reading) {
	defer f.file.release()
	if f.err = rd.ctx.Err(); f.err != nil {
		return
	}
	n, err := f.file.ReadAt(f.buf.b, f.from)
	if n < len(f.buf.b) && !errors.Is(err, io.EOF) && err != nil {
		f.err = err
		return
	}
	short := f.buf.b[:n]
	for at := 0; at < len(f.pieces); {
		group := f.pieces[at].group
		end := at + 1
		for end < len(f.pieces) && f.pieces[end].group == group {
			end++
		}
		f.group(rd, short, group, f.pieces[at:end])
		if f.err != nil {
			return
		}
		at = end
	}
	f.buf.drop() // the fetch's own share; the parcels hold theirs
	f.buf = nil
}

// group makes the parcel of one group, from another copy of its chunks where this one is damaged.
func (f *fetch) group(rd *reading, b []byte, group uint32, ps []piece) {
	g := &f.footer.Groups[group]
	lo := g.PayloadOff() - f.from
	payload := b[min(lo, int64(len(b))):min(lo+int64(g.Stored), int64(len(b)))]
	err := g.Check(payload)
	if err == nil {
		payload, err = f.footer.OpenPayload(group, payload)
	}
	if err != nil {
		rd.p.markBad(f.c, groupOrdinals(g), err)
		f.elsewhere(rd, ps, err)
		return
	}
	p := &holdfast.Parcel{Group: holdfast.Group{Codec: g.Codec, Chunks: f.footer.Pieces(make([]holdfast.Piece, 0, g.Count), group), Payload: payload}}
	p.Places = make([]holdfast.Place, len(ps))
	for i := range ps {
		p.Places[i] = ps[i].place
	}
	f.buf.hold()
	p.Free = f.buf.drop
	f.parcels = append(f.parcels, p)
}

// elsewhere reads pieces of a damaged group from other copies of their chunks.
func (f *fetch) elsewhere(rd *reading, ps []piece, damage error) {
	r := resolver{p: rd.p}
	defer r.release()
	for i := range ps {
		pc := &ps[i]
		if f.err = r.resolve(rd.ctx, []holdfast.Digest{pc.digest}, forReading); f.err != nil {
			return
		}
		h := &r.hits[0]
		if h.c == nil {
			f.err = holdfast.Errorf(holdfast.Corrupt, "read disk", "bytes %d to %d of the disk are damaged in container %s: %w",
				pc.place.Off, pc.place.Off+int64(pc.place.Len), hex16(f.c.id), damage).Advise("restore another point in time; the next backup stores the chunk anew")
			return
		}
		old := &f.footer.Groups[pc.group]
		skip := uint32(0)
		for _, e := range f.footer.Chunks[old.First : old.First+old.Count] {
			if e.Digest == pc.digest && pc.place.At >= e.At && pc.place.At < e.At+e.Len {
				skip = pc.place.At - e.At
			}
		}
		pl := holdfast.Place{Off: pc.place.Off, At: h.chunk.At + skip, Len: pc.place.Len}
		if f.err = f.copyFrom(rd, h, pl); f.err != nil {
			return
		}
	}
}

// copyFrom makes a parcel of one place out of another container.
func (f *fetch) copyFrom(rd *reading, h *hit, pl holdfast.Place) error {
	footer, err := rd.p.loadFooter(rd.ctx, h.c)
	if err != nil {
		return err
	}
	file, err := rd.p.openShared(rd.ctx, h.c)
	if err != nil {
		return err
	}
	defer file.release()
	g, err := container.ReadGroup(file, footer, h.chunk.Group, nil)
	if err != nil {
		rd.p.markBad(h.c, []uint32{h.ordinal}, err)
		return err
	}
	f.parcels = append(f.parcels, &holdfast.Parcel{Group: g, Places: []holdfast.Place{pl}})
	return nil
}

// A sharedFile is an open container that several fetches read. It keeps the container from being removed.
type sharedFile struct {
	blob.Reader
	p    *Pool
	c    *cont
	refs atomic.Int32
}

// openShared opens a container that the caller holds.
func (p *Pool) openShared(ctx context.Context, c *cont) (*sharedFile, error) {
	r, err := p.med.Open(ctx, contName(c.id))
	if err != nil {
		return nil, err
	}
	c.refs.Add(1)
	f := &sharedFile{Reader: r, p: p, c: c}
	f.refs.Store(1)
	return f, nil
}

func (f *sharedFile) release() {
	if f.refs.Add(-1) == 0 {
		_ = f.Reader.Close() // only read
		f.p.drop(f.c)
	}
}

// A loan is a buffer that several parcels share. The last one gives it back.
type loan struct {
	rd   *reading
	b    []byte
	refs atomic.Int32
}

// newLoan returns a buffer of n bytes that were taken from the budget.
func newLoan(rd *reading, n int) *loan {
	l := &loan{rd: rd, b: rd.p.spares.get(n)}
	l.refs.Store(1)
	return l
}

func (l *loan) hold() { l.refs.Add(1) }

func (l *loan) drop() {
	if l.refs.Add(-1) == 0 {
		l.rd.budget.give(int64(cap(l.b)))
		l.rd.p.spares.put(l.b)
		l.b = nil
	}
}

// A budget bounds the bytes that one Read holds.
type budget struct {
	mu   sync.Mutex
	free int64
	wait chan struct{} // closed and renewed whenever bytes come back
}

func (b *budget) init(n int64) { b.free, b.wait = n, make(chan struct{}) }

// take waits until n bytes are free.
func (b *budget) take(ctx context.Context, n int64) error {
	for {
		b.mu.Lock()
		if b.free >= n {
			b.free -= n
			b.mu.Unlock()
			return nil
		}
		wait := b.wait
		b.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	close(b.wait)
	b.wait = make(chan struct{})
}

// spares keeps buffers of ended reads for the next ones.
type spares struct {
	mu    sync.Mutex
	list  [][]byte
	bytes int
}

const (
	maxSpareBytes = 16 << 20
	leastSpare    = 128 << 10
)

// spareSize is the size of the buffer for n bytes: of few sizes, so that one fits the next read.
func spareSize(n int) int {
	size := leastSpare
	for size < n {
		size += size / 2 &^ (direct.Align - 1)
	}
	return size
}

func (s *spares) get(n int) []byte {
	size := spareSize(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.list) - 1; i >= 0; i-- {
		if b := s.list[i]; cap(b) == size {
			s.list = slices.Delete(s.list, i, i+1)
			s.bytes -= size
			return b[:n]
		}
	}
	return direct.Buffer(size)[:n]
}

func (s *spares) put(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.list) > 0 && s.bytes+cap(b) > maxSpareBytes {
		s.bytes -= cap(s.list[0])
		s.list = slices.Delete(s.list, 0, 1) // the one that was of no use for longest
	}
	s.list = append(s.list, b)
	s.bytes += cap(b)
}
