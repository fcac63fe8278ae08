package vhdx

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/direct"
)

// openMode says what a file is opened for.
type openMode int

const (
	modeRead   openMode = iota // shared with everybody
	modeWrite                  // the one writer; Busy if there is another
	modeCreate                 // as modeWrite, for a file that must not exist
)

// file is what the package needs of a file. Tests put a layer under it that dies after a number of writes.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	Sync() error
	// Punch makes a range inside the file read as zero, giving its space back where the system can.
	Punch(off, n int64) error
	// NextData returns the first range at or after off, before end, that may hold bytes other than zero; start == end
	// means there is none. A system that cannot tell answers [off, end).
	NextData(off, end int64) (start, stop int64)
}

// fileSystem opens files by path.
type fileSystem interface {
	Open(path string, mode openMode) (file, error)
	Remove(path string) error
	SyncDir(dir string) error // makes names in dir durable
}

// osFS is the real thing.
type osFS struct{}

func (osFS) Open(path string, mode openMode) (file, error) {
	if mode != modeCreate {
		// A parent path is foreign input: a pipe would block forever.
		st, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !st.Mode().IsRegular() {
			return nil, holdfast.Errorf(holdfast.Invalid, "", "%s is not a regular file", path)
		}
	}
	f, err := openOS(path, mode)
	if err != nil {
		return nil, err
	}
	o := osFile{File: f, locked: mode != modeRead}
	if mode != modeWrite { // a live disk's writer and its readers in other programs share the cache
		o.d = direct.New(f, mode == modeCreate)
	}
	return o, nil
}

func (osFS) Remove(path string) error { return os.Remove(path) }

func (osFS) SyncDir(dir string) error { return syncDir(dir) }

// osFile moves large aligned pieces past the page cache where d is set.
type osFile struct {
	*os.File
	locked bool
	d      *direct.File // nil: never
}

func (f osFile) ReadAt(p []byte, off int64) (int, error) {
	if f.d == nil {
		return f.File.ReadAt(p, off)
	}
	return f.d.ReadAt(p, off)
}

func (f osFile) WriteAt(p []byte, off int64) (int, error) {
	if f.d == nil {
		return f.File.WriteAt(p, off)
	}
	return f.d.WriteAt(p, off)
}

// Close gives the lock back before the file: a child process being started just now holds a copy of the descriptor until its
// exec, and with it the lock.
func (f osFile) Close() error {
	var err error
	if f.d != nil {
		err = f.d.Close()
	}
	if f.locked {
		err = errors.Join(err, unlockOS(f.File))
	}
	return errors.Join(err, f.File.Close())
}

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f osFile) Punch(off, n int64) error {
	if punchOS(f.File, off, n) {
		return nil
	}
	return writeZeros(f, off, n)
}

func (f osFile) NextData(off, end int64) (start, stop int64) { return nextDataOS(f.File, off, end) }

// writeZeros is Punch for systems without holes.
func writeZeros(w io.WriterAt, off, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		c := min(n, int64(len(buf)))
		if _, err := w.WriteAt(buf[:c], off); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return nil
}

// ioError classifies an error of the operating system. A classified error passes with its kind kept.
func ioError(op, path string, err error) error {
	var e *holdfast.Error
	if errors.As(err, &e) {
		return err
	}
	kind := holdfast.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = holdfast.NotExist
	case errors.Is(err, fs.ErrExist):
		kind = holdfast.Exist
	case errors.Is(err, fs.ErrPermission):
		kind = holdfast.Permission
	case isNoSpace(err):
		kind = holdfast.NoSpace
	}
	return holdfast.Errorf(kind, op, "%s: %w", path, err)
}

// errBusy is the answer to a second writer.
func errBusy(path string) error {
	return holdfast.Errorf(holdfast.Busy, "open disk for writing", "%s has another writer", path).
		Advise("close the program that uses the disk, or wait until it is done")
}
