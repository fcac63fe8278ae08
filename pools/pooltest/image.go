package pooltest

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/holdfast-backup/holdfast"
)

// page is the granularity of an image's memory. It is no power the pool knows of.
const page = 4096

// An image is the model of a disk: bytes that take memory only where something was written. It is an io.WriterAt for restores.
type image struct {
	size  int64
	pages map[int64]*[page]byte // by page number
	wrote holdfast.Extents      // what WriteAt was called with, if track is set
	track bool
}

func newImage(size int64) *image { return &image{size: size, pages: map[int64]*[page]byte{}} }

// clone returns a copy that shares nothing.
func (m *image) clone() *image {
	c := newImage(m.size)
	for n, p := range m.pages {
		q := *p
		c.pages[n] = &q
	}
	return c
}

// resized returns a copy of another size: cut off, or with zeros behind.
func (m *image) resized(size int64) *image {
	c := m.clone()
	if size < c.size {
		c.write(size, make([]byte, min(c.size-size, page-size%page)))
		maps.DeleteFunc(c.pages, func(n int64, _ *[page]byte) bool { return n*page >= size })
	}
	c.size = size
	return c
}

func (m *image) write(off int64, p []byte) {
	for len(p) > 0 {
		n, at := off/page, off%page
		pg := m.pages[n]
		if pg == nil {
			pg = new([page]byte)
			m.pages[n] = pg
		}
		k := copy(pg[at:], p)
		p, off = p[k:], off+int64(k)
	}
}

// WriteAt implements io.WriterAt. Restores call it from several goroutines only for different pages or through a lock.
func (m *image) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > m.size {
		return 0, holdfast.Errorf(holdfast.Invalid, "restore", "%d bytes at %d of a disk of %d bytes", len(p), off, m.size)
	}
	if m.track {
		m.wrote = append(m.wrote, holdfast.Extent{Off: off, Len: int64(len(p))})
	}
	m.write(off, p)
	return len(p), nil
}

// zero makes a range zeros, and gives back the pages that lie in it.
func (m *image) zero(e holdfast.Extent) {
	for n := range m.pages {
		lo, hi := max(e.Off-n*page, 0), min(e.End()-n*page, page)
		switch {
		case lo >= hi:
		case lo == 0 && hi == page:
			delete(m.pages, n)
		default:
			clear(m.pages[n][lo:hi])
		}
	}
}

// read returns a copy of a range.
func (m *image) read(e holdfast.Extent) []byte {
	out := make([]byte, e.Len)
	for at := int64(0); at < e.Len; {
		n, k := (e.Off+at)/page, (e.Off+at)%page
		step := min(page-k, e.Len-at)
		if pg := m.pages[n]; pg != nil {
			copy(out[at:at+step], pg[k:])
		}
		at += step
	}
	return out
}

// data lists the pages that hold anything but zeros.
func (m *image) data() holdfast.Extents {
	var out holdfast.Extents
	for n, p := range m.pages {
		if *p != [page]byte{} {
			out = append(out, holdfast.Extent{Off: n * page, Len: min(page, m.size-n*page)})
		}
	}
	return out.Normal(m.size)
}

// differ returns the first byte in which two images differ, or -1.
func (m *image) differ(o *image) int64 {
	if m.size != o.size {
		return min(m.size, o.size)
	}
	numbers := slices.AppendSeq(slices.Collect(maps.Keys(m.pages)), maps.Keys(o.pages))
	slices.Sort(numbers)
	var none [page]byte
	for _, n := range slices.Compact(numbers) {
		a, b := m.pages[n], o.pages[n]
		if a == nil {
			a = &none
		}
		if b == nil {
			b = &none
		}
		if *a != *b {
			return n*page + int64(firstDifference(a[:], b[:]))
		}
	}
	return -1
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// fill returns n bytes: random ones, text that compresses, or a mix.
func fill(rng *rand.Rand, n int) []byte {
	out := make([]byte, n)
	words := rng.IntN(3)
	for i := 0; i < n; {
		if words == 1 || words == 2 && rng.IntN(2) == 0 {
			i += copy(out[i:], "the same words again and again, ")
			continue
		}
		for k := 0; k < 32 && i < n; k++ {
			out[i] = byte(rng.Uint32())
			i++
		}
	}
	return out
}

// cut divides bytes into chunks, by their content, at multiples of 512 from the start. Short chunks: histories have small
// disks and many of them. It is no cutter that any pool declares: a pool takes every chunk within the bounds.
func cut(p []byte) [][]byte {
	const block, most = 512, 8 << 10
	var out [][]byte
	for len(p) > 0 {
		n := 0
		for n < len(p) && n < most {
			b := p[n:min(n+block, len(p))]
			n += len(b)
			if h := 31*uint32(b[0]) + 7*uint32(b[len(b)/2]) + uint32(b[len(b)-1]); h%5 == 0 {
				break
			}
		}
		out = append(out, p[:n])
		p = p[n:]
	}
	return out
}

func isZero(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }
