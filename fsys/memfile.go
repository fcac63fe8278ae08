package fsys

import (
	"io"
	"io/fs"
	"sync"
	"syscall"
)

// A memFile is an open file of a Mem.
type memFile struct {
	m     *Mem
	n     *memNode
	name  string
	write bool

	mu     sync.Mutex // guards what follows; taken before m.mu
	pos    int64
	closed bool
}

// check tells whether the file can be used. The file system's lock is held.
func (f *memFile) check(op string) error {
	switch {
	case f.m.dead != nil:
		return f.m.dead
	case f.n.dir != nil:
		return pathErr(op, f.name, syscall.EISDIR)
	case f.n.data == nil:
		return pathErr(op, f.name, fs.ErrClosed)
	}
	return nil
}

func (f *memFile) isClosed(op string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return pathErr(op, f.name, fs.ErrClosed)
	}
	return nil
}

func (f *memFile) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, pathErr("read", f.name, fs.ErrClosed)
	}
	n, err := f.readAt(p, f.pos)
	f.pos += int64(n)
	if n == 0 && len(p) > 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.isClosed("read"); err != nil {
		return 0, err
	}
	n, err := f.readAt(p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

func (f *memFile) readAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, pathErr("read", f.name, syscall.EINVAL)
	}
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	if err := f.check("read"); err != nil {
		return 0, err
	}
	return f.n.data.readAt(p, off), nil
}

func (f *memFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, pathErr("write", f.name, fs.ErrClosed)
	}
	n, err := f.writeAt(p, f.pos)
	f.pos += int64(n)
	return n, err
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.isClosed("write"); err != nil {
		return 0, err
	}
	return f.writeAt(p, off)
}

func (f *memFile) writeAt(p []byte, off int64) (int, error) {
	switch {
	case !f.write:
		return 0, pathErr("write", f.name, syscall.EBADF)
	case off < 0:
		return 0, pathErr("write", f.name, syscall.EINVAL)
	case off+int64(len(p)) > memSize || off+int64(len(p)) < 0:
		return 0, pathErr("write", f.name, syscall.ENOSPC)
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("write"); err != nil {
		return 0, err
	}
	f.n.own().writeAt(p, off)
	f.m.stamp(f.n)
	return len(p), nil
}

func (f *memFile) Sync() error {
	if err := f.isClosed("sync"); err != nil {
		return err
	}
	if err := f.m.point("sync", f.name); err != nil {
		return err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("sync"); err != nil {
		return err
	}
	if d := f.n.data; len(d.dirty) > 0 || d.size != d.syncedSize {
		f.n.own().sync()
	}
	return nil
}

func (f *memFile) Truncate(size int64) error {
	if err := f.isClosed("truncate"); err != nil {
		return err
	}
	if !f.write || size < 0 || size > memSize {
		return pathErr("truncate", f.name, syscall.EINVAL)
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("truncate"); err != nil {
		return err
	}
	f.n.own().truncate(size)
	f.m.stamp(f.n)
	return nil
}

func (f *memFile) Stat() (fs.FileInfo, error) {
	if err := f.isClosed("stat"); err != nil {
		return nil, err
	}
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	if f.m.dead != nil {
		return nil, f.m.dead
	}
	return f.n.info(f.name), nil
}

func (f *memFile) Preallocate(int64) error { return f.isClosed("preallocate") }

func (f *memFile) DropCache() {}

func (f *memFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return pathErr("close", f.name, fs.ErrClosed)
	}
	f.closed = true
	return nil
}
