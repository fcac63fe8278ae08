package mount

import (
	"container/list"
	"context"
	"io"
	"sync"

	"github.com/holdfast-backup/holdfast"
)

const (
	// Block is what is fetched and kept as one: small enough for random reads, large enough that a file system's neighbours come along.
	Block = 128 << 10

	maxAhead   = 64        // blocks fetched at once and read ahead of somebody who reads on: 8 MiB
	minRun     = 2         // blocks read one after the other before reading ahead begins
	fetches    = 8         // under way at once, of one disk
	MinCache   = 16 << 20  // the least that Options.Cache may be
	DefaultMem = 128 << 20 // Options.Cache where nothing is said
)

// Options makes a Disk.
type Options struct {
	Source Source
	No     int   // of the disk in the set
	Size   int64 // of the disk, bytes
	Cache  int64 // bytes of blocks kept; 0: DefaultMem
}

// A Disk reads a disk of a set at random. It is an nbd.Backend that refuses to be written. What was read is kept, least recently used goes
// first; a failed read is not kept and is tried again by the next one. Safe for concurrent use. The caller ends it with Close.
type Disk struct {
	o      Options
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	slots  chan struct{} // one for each fetch under way
	mapped chan struct{} // closed when m is known, or will never be

	mu     sync.Mutex
	m      *Map // nil: not known
	blocks map[int64]*block
	recent list.List // ready blocks with data, the most recently used in front
	closed bool
}

// A block is a piece of the disk, or its coming.
type block struct {
	no   int64
	done chan struct{} // closed when data or err is there
	data []byte        // nil: zeros
	err  error
	run  int // how many blocks before this one were asked for in a row, and this one; 0: it was only read ahead
	at   *list.Element
}

// errClosed is what reads of a mount that has ended get.
var errClosed = holdfast.Errorf(holdfast.Offline, "read mounted disk", "the mount has ended")

// NewDisk begins to serve a disk. Its map is asked for at once; reads do not wait for it.
func NewDisk(ctx context.Context, o Options) *Disk {
	if o.Cache == 0 {
		o.Cache = DefaultMem
	}
	o.Cache = max(o.Cache, MinCache)
	d := &Disk{o: o, slots: make(chan struct{}, fetches), mapped: make(chan struct{}), blocks: map[int64]*block{}}
	d.ctx, d.cancel = context.WithCancelCause(ctx)
	d.wg.Go(func() {
		defer close(d.mapped)
		m, err := o.Source.Map(d.ctx, o.No)
		if err != nil {
			return // every byte may be data then
		}
		d.mu.Lock()
		d.m = &m
		d.mu.Unlock()
	})
	return d
}

// Mapped is closed when the disk's map is there, or could not be had.
func (d *Disk) Mapped() <-chan struct{} { return d.mapped }

// Size returns the disk's length in bytes.
func (d *Disk) Size() int64 { return d.o.Size }

// Close ends what is under way; reads fail from now on.
func (d *Disk) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.cancel(errClosed)
	d.wg.Wait()
	return nil
}

// ReadAt implements io.ReaderAt. Every byte was verified.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, holdfast.Errorf(holdfast.Invalid, "read mounted disk", "offset %d", off)
	}
	if off >= d.o.Size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), d.o.Size-off))
	first, last := off/Block, (off+int64(n)-1)/Block
	for from := first; n > 0 && from <= last; from += maxAhead {
		bs, err := d.demand(from, min(from+maxAhead-1, last))
		if err != nil {
			return 0, err
		}
		for _, b := range bs {
			select {
			case <-b.done:
			case <-d.ctx.Done():
				return 0, context.Cause(d.ctx)
			}
			if b.err != nil {
				return 0, b.err
			}
			start := max(off, b.no*Block)
			to := p[start-off : min(off+int64(n), (b.no+1)*Block)-off]
			if b.data == nil {
				clear(to)
			} else {
				copy(to, b.data[start-b.no*Block:])
			}
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// demand returns the blocks from first to last, and sees to it that they come, with those that are likely to be asked for next.
func (d *Disk) demand(first, last int64) ([]*block, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errClosed
	}
	out := make([]*block, 0, last-first+1)
	var missing []*block
	for no := first; no <= last; no++ {
		b := d.blocks[no]
		if b == nil {
			b = d.coming(no)
			missing = append(missing, b)
		} else if b.at != nil {
			d.recent.MoveToFront(b.at)
		}
		before := d.blocks[no-1]
		b.run = max(b.run, 1)
		if before != nil && before.run > 0 {
			b.run = min(before.run+1, maxAhead)
		}
		out = append(out, b)
	}
	d.fetch(missing)
	d.fetch(d.ahead(last, out[len(out)-1].run))
	return out, nil
}

// ahead returns the blocks to be read ahead of the last one of a run. They are fetched when half of what is to be there is not yet asked for,
// so that fetches are large.
func (d *Disk) ahead(last int64, run int) (out []*block) {
	blocks := (d.o.Size + Block - 1) / Block
	window := min(int64(run)*2, maxAhead, d.o.Cache/Block/4)
	if half := last + window/2; run < minRun || half >= blocks || d.blocks[half] != nil {
		return nil
	}
	for no := last + 1; no <= min(last+window, blocks-1); no++ {
		if d.blocks[no] == nil {
			out = append(out, d.coming(no))
		}
	}
	return out
}

// coming makes a block that is not there yet.
func (d *Disk) coming(no int64) *block {
	b := &block{no: no, done: make(chan struct{})}
	d.blocks[no] = b
	return b
}

// fetch begins to fetch blocks in ascending order, each row of neighbours as one. Blocks that the map knows to be zeros are ready at once.
func (d *Disk) fetch(bs []*block) {
	for len(bs) > 0 {
		n := 0
		for n < len(bs) && bs[n].no == bs[0].no+int64(n) && n < maxAhead && !d.hole(bs[n]) {
			n++
		}
		if n == 0 {
			d.ready(bs[:1], nil)
			bs = bs[1:]
			continue
		}
		row := bs[:n:n]
		bs = bs[n:]
		d.wg.Go(func() { d.load(row) })
	}
}

func (d *Disk) hole(b *block) bool { return d.m != nil && d.m.data(d.extent(b, b)) == 0 }

func (d *Disk) extent(first, last *block) holdfast.Extent {
	off := first.no * Block
	return holdfast.Extent{Off: off, Len: min((last.no+1)*Block, d.o.Size) - off}
}

// load fetches a row of blocks.
func (d *Disk) load(bs []*block) {
	var err error
	select {
	case d.slots <- struct{}{}:
		err = d.place(bs)
		<-d.slots
	case <-d.ctx.Done():
		err = context.Cause(d.ctx)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ready(bs, err)
}

// place fills the blocks' data, which nobody else sees before they are ready.
func (d *Disk) place(bs []*block) error {
	e := d.extent(bs[0], bs[len(bs)-1])
	var placed int64
	o := openers.Get().(*opener)
	defer openers.Put(o)
	err := d.o.Source.Fetch(d.ctx, d.o.No, e, func(dom holdfast.Domain, p *holdfast.Parcel) error {
		defer p.Release()
		return o.open(dom, p, e, func(off int64, p []byte) {
			placed += int64(len(p))
			for len(p) > 0 {
				b := bs[off/Block-bs[0].no]
				if b.data == nil {
					b.data = make([]byte, Block)
				}
				n := copy(b.data[off%Block:], p)
				off, p = off+int64(n), p[n:]
			}
		})
	})
	if err != nil {
		return err
	}
	d.mu.Lock()
	m := d.m
	d.mu.Unlock()
	if m != nil && m.Exact && m.data(e) != placed {
		return holdfast.Errorf(holdfast.Corrupt, "read mounted disk", "%d bytes of %d to %d were delivered; the map says %d", placed, e.Off, e.End(), m.data(e)).
			Advise("verify the set")
	}
	return nil
}

// ready hands blocks to those who wait for them, and lets go of what was not used for longest.
func (d *Disk) ready(bs []*block, err error) {
	for _, b := range bs {
		if b.err = err; err != nil {
			b.data = nil
			delete(d.blocks, b.no)
		} else if b.at = d.recent.PushFront(b); int64(d.recent.Len()) > d.o.Cache/Block {
			old := d.recent.Remove(d.recent.Back()).(*block)
			delete(d.blocks, old.no)
		}
		close(b.done)
	}
}

// Allocated returns the parts of n bytes at off that may hold data.
func (d *Disk) Allocated(off, n int64) (holdfast.Extents, error) {
	e := holdfast.Extent{Off: off, Len: min(n, d.o.Size-off)}
	if off < 0 || e.Len <= 0 {
		return nil, nil
	}
	d.mu.Lock()
	m := d.m
	d.mu.Unlock()
	if m == nil {
		return holdfast.Extents{e}, nil
	}
	return m.within(e), nil
}

var errReadOnly = holdfast.Errorf(holdfast.Permission, "write mounted disk", "the disk is of a backup set, which never changes")

// WriteAt refuses.
func (d *Disk) WriteAt([]byte, int64) (int, error) { return 0, errReadOnly }

// Zero refuses.
func (d *Disk) Zero(int64, int64) error { return errReadOnly }

// Flush has nothing to do.
func (d *Disk) Flush() error { return nil }
