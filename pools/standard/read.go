package standard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
)

// Bounds of a read.
const (
	windowBytes = 1 << 30   // of the disk are planned at once, and read in the data files' order
	windowRefs  = 32 << 10  // or so many chunks: 3 MiB of plan
	joinGap     = 256 << 10 // unwanted bytes between two groups that are read along rather than sought over
	joinBytes   = 4 << 20   // of one read
	readers     = 4         // reads under way for one Read
	queued      = 12        // reads planned and done ahead: at most 64 MiB with what readers hold. What the receiver holds is its own
)

// Read implements pools.Set. A planner walks the map window by window and sorts each window by data file; workers read; the consumer
// gets the parcels in the planned order. All of them end before the iteration does.
func (s *set) Read(ctx context.Context, id holdfast.DiskID, want holdfast.Extents) iter.Seq2[*holdfast.Parcel, error] {
	const op = "read disk"
	return func(yield func(*holdfast.Parcel, error) bool) {
		i, err := s.disk(id, op)
		if err == nil {
			err = alive(ctx, op)
		}
		if err != nil {
			yield(nil, err)
			return
		}
		outer := ctx
		ctx, cancel := context.WithCancel(ctx)
		rd := &reading{s: s, ctx: ctx, disk: i, want: want.Normal(s.rec.manifest.Disks[i].Size), order: make(chan *fetch, queued), work: make(chan *fetch, queued)}
		rd.start()
		defer func() {
			cancel()
			rd.stop()
		}()
		rd.deliver(outer, yield)
	}
}

// A reading is one Read under way.
type reading struct {
	s     *set
	ctx   context.Context // of this one Read
	disk  int
	want  holdfast.Extents
	order chan *fetch // to the consumer, in the planned order; closed by the planner
	work  chan *fetch // to the workers; closed by the planner
	wg    sync.WaitGroup
}

func (rd *reading) start() {
	rd.wg.Go(func() {
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
	})
	for range readers {
		rd.wg.Go(func() {
			for f := range rd.work {
				f.run(rd)
				close(f.done)
			}
		})
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

func (rd *reading) deliver(outer context.Context, yield func(*holdfast.Parcel, error) bool) {
	for f := range rd.order {
		<-f.done
		for len(f.parcels) > 0 {
			pc := f.parcels[0]
			f.parcels = f.parcels[1:]
			if !yield(pc, nil) {
				f.discard()
				return
			}
		}
		if f.err != nil {
			err := f.err
			if e := alive(outer, "read disk"); e != nil {
				err = e
			}
			yield(nil, err)
			return
		}
	}
	if err := alive(outer, "read disk"); err != nil {
		yield(nil, err)
	}
}

// A piece is a wanted part of a group.
type piece struct {
	file  uint32 // index into the map's table
	rank  uint32 // of the file in its window, by first use
	group uint32
	place holdfast.Place
	ord   uint32 // as the map has it; used by Verify
	chunk holdfast.Piece
}

// A walker walks the wanted part of a map and hands out windows of pieces, sorted by data file and group.
type walker struct {
	p     *Pool
	m     *mapReader
	files []*file
	ps    []piece
	ranks map[uint32]uint32
	first int64 // where the window begins
	// window gets the pieces; they are its own until it returns. bad gets a run whose file cannot be looked into, and decides whether to go on.
	window func(ps []piece) error
	bad    func(r *run, err error) error
}

// walk goes through all runs that hold wanted bytes.
func (k *walker) walk(ctx context.Context, want holdfast.Extents) error {
	if len(want) == 0 {
		return nil
	}
	if want[0].Off > 0 {
		if err := k.m.seek(want[0].Off); err != nil {
			return err
		}
	}
	for len(want) > 0 {
		if err := alive(ctx, "read disk"); err != nil {
			return err
		}
		r, ok, err := k.m.read()
		if err != nil {
			return k.last(err)
		}
		if !ok {
			break
		}
		for len(want) > 0 && want[0].End() <= r.off {
			want = want[1:]
		}
		if len(want) > 0 && want[0].Off > r.end()+windowBytes { // a long way to go
			if err := k.m.seek(want[0].Off); err != nil {
				return err
			}
			continue
		}
		if r.zeros() || len(want) == 0 || want[0].Off >= r.end() {
			continue
		}
		if err := k.run(ctx, &r, want); err != nil {
			return k.last(err)
		}
	}
	return k.flush()
}

// last hands out what was found before an error.
func (k *walker) last(err error) error {
	if e := k.flush(); e != nil {
		return e
	}
	return err
}

// run adds the wanted pieces of a run.
func (k *walker) run(ctx context.Context, r *run, want holdfast.Extents) error {
	d, err := k.p.openData(ctx, k.files[r.file])
	if err == nil {
		err = d.each(r, func(ref holdfast.Ref, at spot, ord uint32) error {
			for len(want) > 0 && want[0].End() <= ref.Off {
				want = want[1:]
			}
			for _, e := range want {
				off, end := max(e.Off, ref.Off), min(e.End(), ref.End())
				if off >= end {
					break
				}
				skip := ref.Skip + uint32(off-ref.Off)
				if err := k.add(piece{file: r.file, group: at.group, ord: ord, chunk: at.piece,
					place: holdfast.Place{Off: off, At: at.at + skip, Len: uint32(end - off)}}); err != nil {
					return err
				}
			}
			return nil
		})
		k.p.data.release(d)
	}
	if err != nil && k.bad != nil {
		return k.bad(r, err)
	}
	return err
}

// add adds a piece, and hands out the window if it is full.
func (k *walker) add(pc piece) error {
	if len(k.ps) > 0 && (len(k.ps) >= windowRefs || pc.place.Off-k.first > windowBytes) {
		if err := k.flush(); err != nil {
			return err
		}
	}
	if len(k.ps) == 0 {
		k.first, k.ranks = pc.place.Off, map[uint32]uint32{}
	}
	rank, ok := k.ranks[pc.file]
	if !ok {
		rank = uint32(len(k.ranks))
		k.ranks[pc.file] = rank
	}
	pc.rank = rank
	k.ps = append(k.ps, pc)
	return nil
}

func (k *walker) flush() error {
	if len(k.ps) == 0 {
		return nil
	}
	slices.SortFunc(k.ps, func(a, b piece) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.group, b.group), cmp.Compare(a.place.Off, b.place.Off))
	})
	err := k.window(k.ps)
	k.ps = k.ps[:0]
	return err
}

// plan walks the map and hands out fetches.
func (rd *reading) plan() error {
	s := rd.s
	m, files, err := s.p.openMap(rd.ctx, s.st, s.rec, rd.disk)
	if err != nil {
		return err
	}
	defer m.close()
	k := &walker{p: s.p, m: m, files: files}
	k.window = func(ps []piece) error {
		for len(ps) > 0 {
			n := 1
			for n < len(ps) && ps[n].file == ps[0].file {
				n++
			}
			if err := rd.file(files[ps[0].file], slices.Clone(ps[:n])); err != nil {
				return err
			}
			ps = ps[n:]
		}
		return nil
	}
	return k.walk(rd.ctx, rd.want)
}

// file hands out the reads of one data file.
func (rd *reading) file(f *file, ps []piece) error {
	d, err := rd.s.p.openData(rd.ctx, f)
	if err != nil {
		return err
	}
	defer rd.s.p.data.release(d)
	if len(d.moves) > 0 { // it may have been rewritten since the window was planned
		for i := range ps {
			at, err := d.chunk(ps[i].ord)
			if err != nil {
				return err
			}
			if at.piece != ps[i].chunk {
				return holdfast.Errorf(holdfast.Corrupt, "read disk", "chunk %d of %s is not what it was", ps[i].ord, d.name())
			}
			ps[i].group = at.group
		}
	}
	for len(ps) > 0 {
		g := &d.footer.Groups[ps[0].group]
		from, end := g.PayloadOff(), g.PayloadOff()+int64(g.Stored)
		n := 1
		for ; n < len(ps); n++ {
			g := &d.footer.Groups[ps[n].group]
			to := g.PayloadOff() + int64(g.Stored)
			if g.PayloadOff() > end+joinGap || to > from+joinBytes {
				break
			}
			end = max(end, to)
		}
		if err := rd.hand(&fetch{d: d, from: from, n: int(end - from), pieces: ps[:n:n], done: make(chan struct{})}); err != nil {
			return err
		}
		ps = ps[n:]
	}
	return nil
}

// hand queues a fetch: for the consumer first, so that whatever a worker does has somebody who waits for it.
func (rd *reading) hand(f *fetch) error {
	rd.s.p.data.hold(f.d)
	select {
	case rd.order <- f:
	case <-rd.ctx.Done():
		rd.s.p.data.release(f.d)
		return rd.ctx.Err()
	}
	select {
	case rd.work <- f:
		return nil
	case <-rd.ctx.Done():
		f.err = rd.ctx.Err()
		rd.s.p.data.release(f.d)
		close(f.done)
		return rd.ctx.Err()
	}
}

// A fetch is one read of a data file and the parcels cut from it.
type fetch struct {
	d       *dataFile
	from    int64
	n       int
	pieces  []piece
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
}

// run reads the bytes and cuts them into parcels, one a group.
func (f *fetch) run(rd *reading) {
	defer rd.s.p.data.release(f.d)
	if f.err = rd.ctx.Err(); f.err != nil {
		return
	}
	l := newLoan(rd.s.p, f.n)
	defer l.drop() // the fetch's own share; the parcels hold theirs
	n, err := f.d.r.ReadAt(l.b, f.from)
	if n < len(l.b) && err != nil && !errors.Is(err, io.EOF) {
		f.err = err
		return
	}
	for at := 0; at < len(f.pieces) && f.err == nil; {
		end := at + 1
		for end < len(f.pieces) && f.pieces[end].group == f.pieces[at].group {
			end++
		}
		f.err = f.group(l, n, f.pieces[at:end])
		at = end
	}
}

// group makes the parcel of one group; n bytes of the loan were read.
func (f *fetch) group(l *loan, n int, ps []piece) error {
	g := &f.d.footer.Groups[ps[0].group]
	lo := int(g.PayloadOff() - f.from)
	payload := l.b[min(lo, n):min(lo+int(g.Stored), n)]
	if err := g.Check(payload); err != nil {
		pl := ps[0].place
		return holdfast.Errorf(holdfast.Corrupt, "read disk", "bytes %d to %d of the disk are damaged in %s: %w", pl.Off, pl.Off+int64(pl.Len), f.d.name(), err).
			Advise("restore another point in time; the next full backup stores the data anew")
	}
	p := &holdfast.Parcel{Group: holdfast.Group{Codec: g.Codec, Chunks: f.d.footer.Pieces(make([]holdfast.Piece, 0, g.Count), ps[0].group), Payload: payload}}
	p.Places = make([]holdfast.Place, len(ps))
	for i := range ps {
		p.Places[i] = ps[i].place
	}
	l.refs.Add(1)
	p.Free = l.drop
	f.parcels = append(f.parcels, p)
	return nil
}

// A loan is a buffer that several parcels share. The last one gives it back.
type loan struct {
	p    *Pool
	b    []byte
	refs atomic.Int32
}

func newLoan(p *Pool, n int) *loan {
	l := &loan{p: p}
	if b, _ := p.spares.Get().(*[]byte); b != nil && cap(*b) >= n {
		l.b = (*b)[:n]
	} else {
		l.b = make([]byte, n, max(n, 64<<10))
	}
	l.refs.Store(1)
	return l
}

func (l *loan) drop() {
	switch n := l.refs.Add(-1); {
	case n == 0:
		b := l.b
		l.b = nil
		l.p.spares.Put(&b)
	case n < 0:
		panic(fmt.Sprintf("standard: a buffer was given back %d times too often", -n))
	}
}
