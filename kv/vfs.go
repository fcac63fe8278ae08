package kv

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// A disk is pebble's view of a fsys.FS, and the place where a failed write stops being pebble's problem.
//
// Pebble ends the process when it cannot write its log or manifest. A disk does not let it come to that: the first write that
// fails there is reported to the DB, which refuses everything from then on, and from that moment on nothing changes on the
// medium any more. Pebble is told that its writes succeed, what it writes goes to a memory file system, and it can be closed
// in peace. Nothing it believes to have written is ever acknowledged, because the DB asks failed before it answers.
type disk struct {
	fs   fsys.FS
	fail func(error) // reports the first failure

	mu    sync.RWMutex
	after *fsys.Mem // the files made since the failure; nil while all is well
}

// trip turns to the memory file system.
func (d *disk) trip() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.after == nil {
		d.after = fsys.NewMem(0)
	}
}

func (d *disk) aside() *fsys.Mem {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.after
}

// wrote passes on the outcome of a write. A failure trips the disk; it is hidden from pebble, except where the caller can do
// without the file.
func (d *disk) wrote(err error) error {
	if err == nil || d.aside() != nil {
		return nil
	}
	d.fail(err)
	d.trip()
	return nil
}

func clean(name string) string {
	if name == "" {
		return "."
	}
	return path.Clean(name)
}

func (d *disk) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	name = clean(name)
	if m := d.aside(); m != nil {
		return d.createAside(m, name)
	}
	if d.barrier(name); d.aside() != nil {
		return d.createAside(d.aside(), name)
	}
	f, err := d.fs.Create(name)
	if errors.Is(err, fs.ErrExist) {
		if err = d.fs.Remove(name); err == nil {
			f, err = d.fs.Create(name)
		}
	}
	if err != nil {
		_ = d.wrote(err)
		return d.createAside(d.aside(), name)
	}
	return d.file(f, name), nil
}

// barrier makes the names in a folder durable before a marker comes or goes. Markers name the manifest and the format that count. Pebble
// syncs the folder once, after it has made the new marker and removed the old one; on a file system that does not keep the order of
// names, a power cut in between could leave a marker whose manifest is not there, or no marker at all, which is an empty store.
func (d *disk) barrier(name string) {
	if strings.HasPrefix(path.Base(name), "marker.") {
		_ = d.wrote(d.fs.SyncDir(path.Dir(name)))
	}
}

func (d *disk) createAside(m *fsys.Mem, name string) (vfs.File, error) {
	if err := m.MkdirAll(path.Dir(name)); err != nil {
		return nil, err
	}
	_ = m.Remove(name) // it need not be there
	f, err := m.Create(name)
	if err != nil {
		return nil, err
	}
	return d.file(f, name), nil
}

func (d *disk) file(f fsys.File, name string) *file {
	return &file{File: f, d: d, mayFail: strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob")}
}

func (d *disk) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	name = clean(name)
	f, err := d.open(name)
	if err != nil {
		return nil, err
	}
	out := d.file(f, name)
	for _, o := range opts {
		o.Apply(out)
	}
	return out, nil
}

func (d *disk) open(name string) (fsys.File, error) {
	if m := d.aside(); m != nil {
		if f, err := m.Open(name); err == nil {
			return f, nil
		}
	}
	return d.fs.Open(name)
}

func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	name = clean(name)
	if m := d.aside(); m != nil {
		return d.createAside(m, name)
	}
	f, err := d.fs.OpenWrite(name)
	if errors.Is(err, fs.ErrNotExist) {
		return d.Create(name, c)
	}
	if err != nil {
		return nil, err
	}
	return d.file(f, name), nil
}

func (d *disk) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if d.aside() == nil {
		if err := d.Rename(oldname, newname); err != nil {
			return nil, err
		}
	}
	return d.OpenReadWrite(newname, c)
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	if _, err := d.fs.Stat(clean(name)); err != nil {
		return nil, err
	}
	return &dir{d: d, name: clean(name)}, nil
}

func (d *disk) Link(oldname, newname string) error {
	if d.aside() != nil {
		return nil
	}
	return d.fs.Link(clean(oldname), clean(newname)) // only checkpoints link; they can fail
}

func (d *disk) Rename(oldname, newname string) error {
	if d.aside() != nil {
		return nil
	}
	return d.wrote(d.fs.Rename(clean(oldname), clean(newname)))
}

// Remove removes nothing once the disk has tripped: what is on the medium then is what the next Open needs.
func (d *disk) Remove(name string) error {
	if m := d.aside(); m != nil {
		_ = m.Remove(clean(name)) // it gives memory back; most names are not there
		return nil
	}
	if d.barrier(clean(name)); d.aside() != nil {
		return nil
	}
	return d.fs.Remove(clean(name))
}

func (d *disk) RemoveAll(name string) error {
	if d.aside() != nil {
		return nil
	}
	return removeAll(d.fs, clean(name))
}

// removeAll removes a folder of at most pebble's depth.
func removeAll(f fsys.FS, name string) error {
	st, err := f.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.IsDir() {
		names, err := f.List(name)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := removeAll(f, path.Join(name, n)); err != nil {
				return err
			}
		}
	}
	return f.Remove(name)
}

func (d *disk) MkdirAll(name string, _ os.FileMode) error {
	if m := d.aside(); m != nil {
		return m.MkdirAll(clean(name))
	}
	return d.fs.MkdirAll(clean(name))
}

type noLock struct{}

func (noLock) Close() error { return nil }

// Lock has nothing to do: Open holds the lock.
func (d *disk) Lock(string) (io.Closer, error) { return noLock{}, nil }

func (d *disk) List(name string) ([]string, error) { return d.fs.List(clean(name)) }

func (d *disk) Stat(name string) (vfs.FileInfo, error) {
	name = clean(name)
	if m := d.aside(); m != nil {
		if st, err := m.Stat(name); err == nil {
			return info{st}, nil
		}
	}
	st, err := d.fs.Stat(name)
	if err != nil {
		return nil, err
	}
	return info{st}, nil
}

func (d *disk) PathBase(p string) string       { return path.Base(p) }
func (d *disk) PathJoin(elem ...string) string { return path.Join(elem...) }
func (d *disk) PathDir(p string) string        { return path.Dir(p) }
func (d *disk) Unwrap() vfs.FS                 { return nil }

func (d *disk) GetDiskUsage(name string) (vfs.DiskUsage, error) {
	free, size, err := d.fs.Usage(clean(name))
	switch {
	case errors.Is(err, holdfast.Unsupported):
		return vfs.DiskUsage{}, vfs.ErrUnsupported
	case err != nil:
		return vfs.DiskUsage{}, err
	}
	return vfs.DiskUsage{AvailBytes: uint64(free), TotalBytes: uint64(size), UsedBytes: uint64(size - free)}, nil
}

type info struct{ fs.FileInfo }

func (info) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }

// A file is pebble's view of a fsys.File. If a write to it fails, pebble is told so only where it can do without the file: it
// gives up on a table and makes another; without its log or manifest it would end the process.
type file struct {
	fsys.File
	d       *disk
	mayFail bool
}

func (f *file) wrote(err error) error {
	_ = f.d.wrote(err)
	if f.mayFail {
		return err
	}
	return nil
}

func (f *file) Write(p []byte) (int, error) {
	if f.frozen() {
		return len(p), nil
	}
	_, err := f.File.Write(p)
	if err = f.wrote(err); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if f.frozen() {
		return len(p), nil
	}
	_, err := f.File.WriteAt(p, off)
	if err = f.wrote(err); err != nil {
		return 0, err
	}
	return len(p), nil
}

// frozen tells whether the file was begun before the disk tripped and may take nothing more. Tables go on: they are not part
// of the store before the manifest names them, and that is frozen.
func (f *file) frozen() bool { return !f.mayFail && f.d.aside() != nil }

func (f *file) Sync() error {
	if f.frozen() {
		return nil
	}
	return f.wrote(f.File.Sync())
}

func (f *file) SyncData() error            { return f.Sync() }
func (f *file) SyncTo(int64) (bool, error) { return false, nil }
func (f *file) Prefetch(_, _ int64) error  { return nil }
func (f *file) Fd() uintptr                { return vfs.InvalidFd }

// Close counts as a write: a medium may tell only then what it could not keep.
func (f *file) Close() error {
	err := f.File.Close()
	if f.frozen() {
		return nil
	}
	return f.wrote(err)
}

// Preallocate is a hint: where there is no space for it, the write finds out.
func (f *file) Preallocate(offset, length int64) error {
	if !f.frozen() {
		_ = f.File.Preallocate(offset + length)
	}
	return nil
}

func (f *file) Stat() (vfs.FileInfo, error) {
	st, err := f.File.Stat()
	if err != nil {
		return nil, err
	}
	return info{st}, nil
}

// A dir is an open folder: all that can be done with it is to sync it.
type dir struct {
	vfs.File // nil: pebble calls nothing else of a folder
	d        *disk
	name     string
}

func (d *dir) Sync() error {
	if d.d.aside() != nil {
		return nil
	}
	return d.d.wrote(d.d.fs.SyncDir(d.name))
}

func (d *dir) SyncData() error             { return d.Sync() }
func (d *dir) SyncTo(int64) (bool, error)  { return false, nil }
func (d *dir) Close() error                { return nil }
func (d *dir) Fd() uintptr                 { return vfs.InvalidFd }
func (d *dir) Stat() (vfs.FileInfo, error) { return d.d.Stat(d.name) }
