package mount

import (
	"errors"
	"io"
	"math/bits"
	"os"
	"sync"
	"syscall"

	"github.com/holdfast-backup/holdfast"
)

const (
	grain     = 4096 // what is written over as one
	pageWords = 512  // of a page of marks: 32,768 grains, 128 MiB of the disk
	pageBytes = pageWords * 64 * grain
)

// A Base is what an Overlay lies over.
type Base interface {
	io.ReaderAt
	Size() int64
	Allocated(off, n int64) (holdfast.Extents, error)
}

// An Overlay is a disk that can be written: what was written is read from a file of its own, everything else from the disk below, which never
// hears of a write. It is an nbd.Backend. Nothing of it outlives Close: a flush promises nothing, for there is nothing to come back to.
type Overlay struct {
	base Base
	file *os.File

	writing sync.Mutex // held by one writer at a time

	mu    sync.RWMutex // guards the marks; never held during I/O
	pages map[int64]*page
}

// A page marks grains: over says that the grain is not the base's, data that its bytes are in the file, else they are zeros.
type page struct{ over, data [pageWords]uint64 }

// NewOverlay makes an overlay with its file in a folder. The file has no name from then on, where the system allows it, so that nothing is left
// of a process that is killed. The caller ends it with Close.
func NewOverlay(base Base, dir string) (*Overlay, error) {
	f, err := os.CreateTemp(dir, "holdfast-overlay-*")
	if err != nil {
		kind := holdfast.Internal
		switch {
		case errors.Is(err, os.ErrNotExist):
			kind = holdfast.NotExist
		case errors.Is(err, os.ErrPermission):
			kind = holdfast.Permission
		}
		return nil, holdfast.Errorf(kind, "make overlay", "%w", err).Advise("name a folder that you may write to with --scratch")
	}
	_ = os.Remove(f.Name()) // Windows does not let go of a file in use: Close removes it
	return &Overlay{base: base, file: f, pages: map[int64]*page{}}, nil
}

// Close throws everything written away.
func (o *Overlay) Close() error {
	err := o.file.Close()
	if rerr := os.Remove(o.file.Name()); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, "remove overlay", "%w", err)
	}
	return nil
}

// Size returns the disk's length in bytes.
func (o *Overlay) Size() int64 { return o.base.Size() }

// state of a grain.
type state int

const (
	below state = iota
	zeros
	written
)

func (o *Overlay) state(off int64) state {
	p := o.pages[off/pageBytes]
	if p == nil {
		return below
	}
	i := off % pageBytes / grain
	switch bit := uint64(1) << (i % 64); {
	case p.over[i/64]&bit == 0:
		return below
	case p.data[i/64]&bit == 0:
		return zeros
	}
	return written
}

// mark sets the state of whole grains to zeros or written.
func (o *Overlay) mark(off, end int64, s state) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for ; off < end; off += grain {
		p := o.pages[off/pageBytes]
		if p == nil {
			p = &page{}
			o.pages[off/pageBytes] = p
		}
		i := off % pageBytes / grain
		bit := uint64(1) << (i % 64)
		p.over[i/64] |= bit
		if s == written {
			p.data[i/64] |= bit
		} else {
			p.data[i/64] &^= bit
		}
	}
}

// A part is a piece of the disk that is in one state.
type part struct {
	off, end int64
	state    state
}

// parts cuts a range where its state changes. Pages nobody wrote to are passed over as one.
func (o *Overlay) parts(off, end int64) (out []part) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for off < end {
		s := o.state(off)
		to := min(end, off-off%grain+grain)
		if o.pages[off/pageBytes] == nil {
			to = min(end, off-off%pageBytes+pageBytes)
		}
		if n := len(out); n > 0 && out[n-1].state == s {
			out[n-1].end = to
		} else {
			out = append(out, part{off, to, s})
		}
		off = to
	}
	return out
}

// ReadAt implements io.ReaderAt.
func (o *Overlay) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, holdfast.Errorf(holdfast.Invalid, "read overlay", "offset %d", off)
	}
	n := max(0, min(int64(len(p)), o.Size()-off))
	for _, x := range o.parts(off, off+n) {
		b := p[x.off-off : x.end-off]
		var err error
		switch x.state {
		case below:
			_, err = o.base.ReadAt(b, x.off)
		case zeros:
			clear(b)
		case written:
			_, err = o.file.ReadAt(b, x.off)
			err = fileError("read overlay", err)
		}
		if err != nil {
			return 0, err
		}
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// WriteAt keeps bytes in the overlay's file. Grains that are written in part are filled from what they were.
func (o *Overlay) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || int64(len(p)) > o.Size()-off {
		return 0, holdfast.Errorf(holdfast.Invalid, "write overlay", "%d bytes at %d of a disk of %d", len(p), off, o.Size())
	}
	if len(p) == 0 {
		return 0, nil
	}
	o.writing.Lock()
	defer o.writing.Unlock()
	from := off - off%grain
	end := off + int64(len(p))
	if up := end + (grain-end%grain)%grain; from != off || up != end && end != o.Size() {
		whole := make([]byte, min(up, o.Size())-from)
		if err := o.fill(whole, from, off, end); err != nil {
			return 0, err
		}
		copy(whole[off-from:], p)
		if _, err := o.file.WriteAt(whole, from); err != nil {
			return 0, fileError("write overlay", err)
		}
	} else if _, err := o.file.WriteAt(p, off); err != nil {
		return 0, fileError("write overlay", err)
	}
	o.mark(from, end, written)
	return len(p), nil
}

// fill reads the grains at both ends of a write that do not lie in it whole.
func (o *Overlay) fill(whole []byte, from, off, end int64) error {
	for _, at := range []int64{from, end - end%grain} {
		if at >= off && (at+grain <= end || at >= end) {
			continue
		}
		b := whole[at-from : min(at-from+grain, int64(len(whole)))]
		if _, err := o.ReadAt(b, at); err != nil {
			return err
		}
	}
	return nil
}

// Zero makes a range read as zeros.
func (o *Overlay) Zero(off, n int64) error {
	end := off + n
	if off < 0 || n < 0 || end > o.Size() {
		return holdfast.Errorf(holdfast.Invalid, "zero overlay", "%d bytes at %d of a disk of %d", n, off, o.Size())
	}
	from, to := off+(grain-off%grain)%grain, end-end%grain
	if end == o.Size() {
		to = end
	}
	if from >= to {
		_, err := o.WriteAt(make([]byte, n), off)
		return err
	}
	if _, err := o.WriteAt(make([]byte, from-off), off); err != nil {
		return err
	}
	o.writing.Lock()
	o.mark(from, to, zeros)
	o.writing.Unlock()
	_, err := o.WriteAt(make([]byte, end-to), to)
	return err
}

// Flush has nothing to do: nothing outlives the process.
func (o *Overlay) Flush() error { return nil }

// Allocated returns the parts of n bytes at off that may hold data.
func (o *Overlay) Allocated(off, n int64) (holdfast.Extents, error) {
	var out holdfast.Extents
	for _, x := range o.parts(off, min(off+n, o.Size())) {
		switch x.state {
		case below:
			es, err := o.base.Allocated(x.off, x.end-x.off)
			if err != nil {
				return nil, err
			}
			out = append(out, es...)
		case written:
			out = append(out, holdfast.Extent{Off: x.off, Len: x.end - x.off})
		}
	}
	return out.Normal(o.Size()), nil
}

// Written returns how many bytes the overlay holds.
func (o *Overlay) Written() (n int64) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, p := range o.pages {
		for _, w := range p.data {
			n += int64(bits.OnesCount64(w)) * grain
		}
	}
	return n
}

func fileError(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC):
		return holdfast.Errorf(holdfast.NoSpace, op, "%w", err)
	}
	return holdfast.Errorf(holdfast.Internal, op, "%w", err)
}
