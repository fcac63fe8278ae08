// Package restore puts a disk back: it takes parcels as a pool delivers them, decodes them in parallel, checks the digest of every
// chunk it uses, and writes each place.
//
// It serves the agent (into a disk under construction) and exports (into any io.WriterAt). No byte is written that was not
// verified. It promises nothing on a crash: until its caller finishes the target, the target is not a valid disk. It imports the
// root, internal/direct and ingest/chunk, and knows neither wire nor hypervisor.
package restore

import (
	"context"
	"io"
	"runtime"
	"sort"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/internal/direct"
)

// queued is how many parcels wait per worker, so that no worker waits for the wire.
const queued = 2

// Options steers a Disk. The zero value is the default.
type Options struct {
	Workers int             // 0: GOMAXPROCS
	Meter   *holdfast.Meter // counts Read (payload received) and Done (bytes written); nil counts nothing
}

// A Disk places the parcels of one disk.
type Disk struct {
	to    io.WriterAt
	size  int64
	meter *holdfast.Meter
	in    chan *holdfast.Parcel
	wg    sync.WaitGroup

	mu     sync.Mutex
	err    error
	failed chan struct{} // closed with the first error
	placed int64
	closed bool
}

// New starts placing into w, a target of size bytes that reads as zeros. WriteAt must be safe for concurrent use. Exactly one Close
// ends the Disk.
func New(dom holdfast.Domain, w io.WriterAt, size int64, o Options) *Disk {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	d := &Disk{to: w, size: size, meter: o.Meter, in: make(chan *holdfast.Parcel, queued*o.Workers), failed: make(chan struct{})}
	for range o.Workers {
		d.wg.Go(func() {
			k := &worker{d: d, dec: chunk.NewDecoder(), hash: dom.Hasher(), buf: direct.Buffer(holdfast.MaxGroupPlain)}
			for p := range d.in {
				k.handle(p)
			}
		})
	}
	return d
}

// Put takes a parcel, which it releases in any case, and waits while too many are under way. The error is the first one of the
// Disk, not necessarily of this parcel. Parcels may come in any order; Put is not called after or during Close.
func (d *Disk) Put(ctx context.Context, p *holdfast.Parcel) error {
	select {
	case d.in <- p:
		return nil
	case <-d.failed:
		p.Release()
		return d.failure()
	case <-ctx.Done():
		p.Release()
		return context.Cause(ctx)
	}
}

// Failed is closed when something went wrong; Close says what.
func (d *Disk) Failed() <-chan struct{} { return d.failed }

// Close waits until everything taken is written, and returns the first error and the number of bytes written.
func (d *Disk) Close() (int64, error) {
	d.mu.Lock()
	again := d.closed
	d.closed = true
	d.mu.Unlock()
	if !again {
		close(d.in)
	}
	d.wg.Wait()
	return d.placed, d.failure()
}

func (d *Disk) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// worker decodes and writes with buffers of its own.
type worker struct {
	d      *Disk
	dec    *chunk.Decoder
	hash   *holdfast.Hasher
	buf    []byte // aligned, as spare is: so that the target can write past the page cache
	spare  []byte // made when first needed
	starts []int  // of the group's chunks in its plaintext, and the end
	used   []bool // chunks that a place needs
}

func (k *worker) handle(p *holdfast.Parcel) {
	defer p.Release()
	select {
	case <-k.d.failed:
		return
	default:
	}
	n, err := k.place(p)
	k.d.mu.Lock()
	defer k.d.mu.Unlock()
	k.d.placed += n
	if err == nil && k.d.placed > k.d.size {
		err = holdfast.Errorf(holdfast.Corrupt, "place parcel", "more bytes were delivered than the disk has")
	}
	if err != nil && k.d.err == nil {
		k.d.err = err
		close(k.d.failed)
	}
}

func (k *worker) place(p *holdfast.Parcel) (int64, error) {
	const op = "place parcel"
	if err := p.Check(); err != nil {
		return 0, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	if err := k.mark(p); err != nil {
		return 0, err
	}
	plain, err := k.dec.Open(k.hash, &p.Group, k.buf, func(i int) bool { return k.used[i] })
	if err != nil {
		return 0, err
	}
	k.d.meter.AddRead(int64(len(p.Payload)))
	var total int64
	for i := 0; i < len(p.Places); {
		x := p.Places[i]
		// Chunks that lie one after the other in the group and on the disk become one write.
		for i++; i < len(p.Places) && p.Places[i].At == x.At+x.Len && p.Places[i].Off == x.Off+int64(x.Len); i++ {
			x.Len += p.Places[i].Len
		}
		if _, err := k.d.to.WriteAt(k.align(plain[x.At:x.At+x.Len]), x.Off); err != nil {
			return total, holdfast.Errorf(holdfast.KindOf(err), "write disk", "%d bytes at offset %d: %w", x.Len, x.Off, err)
		}
		total += int64(x.Len)
		k.d.meter.AddDone(int64(x.Len))
	}
	return total, nil
}

// align returns p, or a copy of it where p is large and its memory is not aligned: the plaintext of a group that was not compressed
// is the message it came in.
func (k *worker) align(p []byte) []byte {
	if len(p) < direct.MinPiece || len(p)%direct.Align != 0 || direct.Aligned(p) {
		return p
	}
	if k.spare == nil {
		k.spare = direct.Buffer(holdfast.MaxGroupPlain)
	}
	return k.spare[:copy(k.spare, p)]
}

// mark finds the chunks that the places use, and refuses places outside the group or the disk.
func (k *worker) mark(p *holdfast.Parcel) error {
	k.starts, k.used = k.starts[:0], k.used[:0]
	at := 0
	for _, c := range p.Chunks {
		k.starts, k.used = append(k.starts, at), append(k.used, false)
		at += int(c.Len)
	}
	for _, x := range p.Places {
		if x.Len == 0 || int64(x.At)+int64(x.Len) > int64(at) || x.Off < 0 || x.Off > k.d.size-int64(x.Len) {
			return holdfast.Errorf(holdfast.Corrupt, "place parcel", "%d bytes from %d of %d at offset %d of a disk of %d bytes",
				x.Len, x.At, at, x.Off, k.d.size)
		}
		i := sort.SearchInts(k.starts, int(x.At)+1) - 1
		for ; i < len(k.starts) && k.starts[i] < int(x.At+x.Len); i++ {
			k.used[i] = true
		}
	}
	return nil
}
