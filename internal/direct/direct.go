// Package direct moves large aligned pieces of files past the system's page cache.
//
// Copying gigabytes through the page cache costs more processor time than hashing them, and throws out what others keep there. A File
// does direct I/O wherever a piece is aligned, in the file, in length and in memory, and the system and the file system can;
// everywhere else it does silently what os.File does. A piece that is wholly in the cache already is read from there. What is written is as
// durable as with os.File, after Sync. It must not import anything of the house.
package direct

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	// Align is what offset, length and memory of a piece must be multiples of.
	Align = 4 << 10
	// MinPiece is the length from which going past the cache is worth it.
	MinPiece = 32 << 10
)

// A File does direct I/O on an open file. It is safe for concurrent use as far as os.File is. The caller owns the os.File and closes it
// after the File.
type File struct {
	f        *os.File
	flags    int // os.O_RDONLY or os.O_RDWR
	once     sync.Once
	d        *os.File // second opening of the same file, for direct I/O; nil: there is none
	off      atomic.Bool
	uncached atomic.Bool // pages in the cache are not looked for
	end      int64
}

// New returns a File over f, which is open for reading, and for writing if write is set. Nothing is opened before the first large piece.
func New(f *os.File, write bool) *File {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	return &File{f: f, flags: flags}
}

// Close gives back the second opening. The os.File stays open.
func (f *File) Close() error {
	f.once.Do(func() {})
	if f.d == nil {
		return nil
	}
	return f.d.Close()
}

// Uncached makes reads of large pieces come from the medium even where the cache has them.
func (f *File) Uncached() { f.uncached.Store(true) }

// handle returns the opening for direct I/O, or nil.
func (f *File) handle() *os.File {
	f.once.Do(func() { f.d = reopen(f.f, f.flags) })
	if f.off.Load() {
		return nil
	}
	return f.d
}

// Buffer returns n bytes of zeros that are aligned.
func Buffer(n int) []byte {
	b := make([]byte, n+Align)
	skip := 0
	if r := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % Align); r != 0 {
		skip = Align - r
	}
	return b[skip : skip+n : skip+n]
}

// Aligned reports whether p could be a piece in memory, wherever it goes in the file.
func Aligned(p []byte) bool {
	return len(p)%Align == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(p)))%Align == 0
}

func fits(p []byte, off int64) bool { return len(p) >= MinPiece && off%Align == 0 && Aligned(p) }

// ReadAt is io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if !fits(p, off) {
		return f.f.ReadAt(p, off)
	}
	d := f.handle()
	if d == nil || !f.uncached.Load() && cached(f.f, p, off) {
		return f.f.ReadAt(p, off)
	}
	n := 0
	for n < len(p) {
		m, err := readDirect(d, p[n:], off+int64(n))
		n += max(m, 0)
		if err == nil && m > 0 && m%Align == 0 {
			continue
		}
		if unable(err) {
			f.off.Store(true)
		}
		// The end of the file, or a medium that does not want to: the ordinary way says what is the matter.
		m, err = f.f.ReadAt(p[n:], off+int64(n))
		return n + m, err
	}
	return n, nil
}

// WriteAt is io.WriterAt. A piece whose memory is not aligned goes through the cache: see Buffer.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if !fits(p, off) {
		return f.f.WriteAt(p, off)
	}
	d := f.handle()
	n := 0
	for d != nil && n < len(p) {
		m, err := writeDirect(d, p[n:], off+int64(n))
		n += max(m, 0)
		switch {
		case unable(err):
			f.off.Store(true)
			d = nil
		case err != nil:
			return n, &os.PathError{Op: "write", Path: f.f.Name(), Err: err}
		case m <= 0:
			return n, &os.PathError{Op: "write", Path: f.f.Name(), Err: io.ErrShortWrite}
		case m%Align != 0:
			d = nil
		}
	}
	if n == len(p) {
		return n, nil
	}
	m, err := f.f.WriteAt(p[n:], off+int64(n))
	return n + m, err
}

// Write appends to what Write wrote before; the first one begins at the front of the file. Not safe for concurrent use.
func (f *File) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, f.end)
	f.end += int64(n)
	return n, err
}
