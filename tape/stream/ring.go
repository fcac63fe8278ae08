// Package stream keeps a tape drive streaming: a ring of memory between a source that comes in gusts and a drive that must not get less than its lowest speed.
//
// A drive that runs out of data stops, goes back and starts again, which takes seconds and wears the tape. So the ring hands out nothing until it is three quarters full, then everything
// it has, and when it has run empty it waits for three quarters again: the drive stops once instead of trickling. It owns memory only; on a crash nothing of it matters, because
// nothing counts before the tape's commit. It imports the ground floor only.
package stream

import (
	"context"
	"io"
	"sync"

	"github.com/holdfast-backup/holdfast"
)

// Sizes of rings in bytes.
const (
	DefaultSize = 4 << 30
	MinSize     = 1 << 20
)

// A Ring is a buffer with one writer and one reader, each in a goroutine of its own.
type Ring struct {
	mu        sync.Mutex
	change    *sync.Cond
	buf       []byte
	from, n   int // n bytes from there on
	filling   bool
	closed    bool
	err       error // of the writer, met by the reader after everything before it; io.EOF at the end
	gone      error // of the reader, met by the writer
	underruns int
	total     int64
}

// New returns an empty ring of a size.
func New(size int) *Ring {
	r := &Ring{buf: make([]byte, max(size, MinSize)), filling: true}
	r.change = sync.NewCond(&r.mu)
	return r
}

// mark is how full the ring must be before it hands anything out.
func (r *Ring) mark() int { return len(r.buf) / 4 * 3 }

// Write puts bytes in and waits for room. It fails with what the reader has given up with.
func (r *Ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := 0
	for done < len(p) {
		for r.n == len(r.buf) && r.gone == nil {
			r.change.Wait()
		}
		if r.gone != nil {
			return done, r.gone
		}
		if r.closed {
			return done, holdfast.Errorf(holdfast.Invalid, "write to tape buffer", "it is closed")
		}
		at := (r.from + r.n) % len(r.buf)
		end := len(r.buf)
		if at < r.from {
			end = r.from
		}
		k := copy(r.buf[at:end], p[done:])
		r.n, done, r.total = r.n+k, done+k, r.total+int64(k)
		r.change.Broadcast()
	}
	return done, nil
}

// Close ends what is written. The reader meets err after everything before it; nil stands for io.EOF.
func (r *Ring) Close(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if r.closed, r.err = true, err; err == nil {
		r.err = io.EOF
	}
	r.change.Broadcast()
}

// Abandon ends reading; the writer meets err.
func (r *Ring) Abandon(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		err = holdfast.Errorf(holdfast.Cancelled, "write to tape buffer", "nobody reads it any more")
	}
	r.gone = err
	r.change.Broadcast()
}

// Read takes bytes out. Where the ring is being filled it waits until that is done, or nothing more comes.
func (r *Ring) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == 0 && !r.filling && !r.closed {
		r.filling = true
		r.underruns++
	}
	for r.filling && r.n < r.mark() && !r.closed && r.gone == nil {
		r.change.Wait()
	}
	if r.gone != nil {
		return 0, r.gone
	}
	r.filling = false
	if r.n == 0 {
		return 0, r.err
	}
	k := copy(p, r.buf[r.from:min(r.from+r.n, len(r.buf))])
	r.from, r.n = (r.from+k)%len(r.buf), r.n-k
	r.change.Broadcast()
	return k, nil
}

// Stats is what a ring has seen.
type Stats struct {
	Level     int   `json:"level"`
	Size      int   `json:"size"`
	Bytes     int64 `json:"bytes"`     // put in so far
	Underruns int   `json:"underruns"` // how often it ran empty after its start: as often the drive had to stop
}

// Stats returns what the ring has seen so far.
func (r *Ring) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Stats{Level: r.n, Size: len(r.buf), Bytes: r.total, Underruns: r.underruns}
}

// Pump copies from a source through a ring of a size to do, which reads until io.EOF, and returns when both are done: the source's error, or do's.
func Pump(ctx context.Context, size int, src io.Reader, do func(io.Reader) error) (Stats, error) {
	r := New(size)
	stop := context.AfterFunc(ctx, func() { r.Abandon(holdfast.Errorf(holdfast.KindOf(ctx.Err()), "fill tape buffer", "%w", ctx.Err())) })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{r}, src, make([]byte, 256<<10))
		r.Close(err)
	})
	err := do(r)
	r.Abandon(err)
	wg.Wait()
	return r.Stats(), err
}

// lowest is the lowest speed at which drives keep streaming, in bytes a second, by the generation of the medium.
var lowest = map[int]int64{7: 101e6, 8: 112e6, 9: 177e6}

// TooSlow reports whether a rate is below the lowest speed of an LTO generation's drives, and what that is. Generations whose speed is not known are never too slow.
func TooSlow(generation int, bytesPerSecond int64) (bool, int64) {
	least := lowest[generation]
	return bytesPerSecond < least, least
}
