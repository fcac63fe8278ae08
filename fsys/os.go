package fsys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/direct"
)

func isExist(err error) bool { return errors.Is(err, fs.ErrExist) }

// NewOS returns the real files below the folder root, which must be there. Files are made with mode 0600 and folders with
// 0700. Symbolic links that an admin has put there are followed.
func NewOS(root string) (FS, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, Classify("open folder", err)
	}
	st, err := os.Stat(abs)
	if err != nil {
		return nil, Classify("open folder", err)
	}
	if !st.IsDir() {
		return nil, holdfast.Errorf(holdfast.Invalid, "open folder", "%s is not a folder", abs)
	}
	return osFS{abs}, nil
}

// CreateOS is NewOS, but makes the folder and its parents durably where they are missing.
func CreateOS(root string) (FS, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, Classify("make folder", err)
	}
	if err := mkdirSynced(abs); err != nil {
		return nil, Classify("make folder", err)
	}
	return NewOS(abs)
}

// mkdirSynced makes dir and its missing parents and syncs each folder that got a new name.
func mkdirSynced(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case err == nil && st.IsDir():
		return nil
	case err == nil:
		return pathErr("mkdir", dir, errNotDir)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := mkdirSynced(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !isExist(err) {
		return err
	}
	return syncDir(parent)
}

type osFS struct{ root string }

func (o osFS) at(op, name string) (string, error) {
	n, err := clean(op, name)
	if err != nil {
		return "", err
	}
	local, err := filepath.Localize(n)
	if err != nil {
		return "", badName(op, name)
	}
	return filepath.Join(o.root, local), nil
}

func (o osFS) open(name string, flag int) (File, error) {
	p, err := o.at("open", name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(p, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f, direct.New(f, flag&os.O_RDWR != 0)}, nil
}

func (o osFS) Create(name string) (File, error)    { return o.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL) }
func (o osFS) Open(name string) (File, error)      { return o.open(name, os.O_RDONLY) }
func (o osFS) OpenWrite(name string) (File, error) { return o.open(name, os.O_RDWR) }

func (o osFS) Rename(oldname, newname string) error {
	return o.two("rename", oldname, newname, os.Rename)
}
func (o osFS) Link(oldname, newname string) error { return o.two("link", oldname, newname, os.Link) }

func (o osFS) two(op, a, b string, do func(a, b string) error) error {
	pa, err := o.at(op, a)
	if err != nil {
		return err
	}
	pb, err := o.at(op, b)
	if err != nil {
		return err
	}
	return do(pa, pb)
}

func (o osFS) one(op, name string, do func(string) error) error {
	p, err := o.at(op, name)
	if err != nil {
		return err
	}
	return do(p)
}

func (o osFS) Remove(name string) error   { return o.one("remove", name, os.Remove) }
func (o osFS) MkdirAll(name string) error { return o.one("mkdir", name, mkdirSynced) }
func (o osFS) SyncDir(name string) error  { return o.one("syncdir", name, syncDir) }

func (o osFS) List(name string) ([]string, error) {
	p, err := o.at("list", name)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p) // sorted
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (o osFS) Stat(name string) (fs.FileInfo, error) {
	p, err := o.at("stat", name)
	if err != nil {
		return nil, err
	}
	return os.Stat(p)
}

func (o osFS) Usage(name string) (free, size int64, err error) {
	p, err := o.at("usage", name)
	if err != nil {
		return 0, 0, err
	}
	return diskUsage(p)
}

// maxLockNote bounds what is read of a lock file to say who holds it.
const maxLockNote = 200

func (o osFS) Lock(name string) (io.Closer, error) {
	p, err := o.at("lock", name)
	if err != nil {
		return nil, err
	}
	f, err := lockFile(p)
	if err != nil {
		if !errors.Is(err, errLocked) {
			return nil, err
		}
		return nil, busy(path.Base(name), lockHolder(p))
	}
	// What is written here is only for the message above; the lock itself is the open file's.
	note := fmt.Appendf(nil, "process %d (%s)\n", os.Getpid(), filepath.Base(os.Args[0]))
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt(note[:min(len(note), maxLockNote)], 0)
	}
	return f, nil
}

func busy(name, holder string) error {
	return holdfast.Errorf(holdfast.Busy, "lock "+name, "it is held by %s", holder).
		Advise("stop the other process, or wait until it is done")
}

func lockHolder(p string) string {
	f, err := os.Open(p)
	if err != nil {
		return "another process"
	}
	defer f.Close() // only read
	b := make([]byte, maxLockNote)
	n, _ := f.ReadAt(b, 0)
	if note := bytes.TrimSpace(b[:n]); len(note) > 0 {
		return string(note)
	}
	return "another process"
}

// osFile moves large aligned pieces past the page cache, as far as the system can: see package direct.
type osFile struct {
	*os.File
	d *direct.File
}

func (f osFile) ReadAt(p []byte, off int64) (int, error)  { return f.d.ReadAt(p, off) }
func (f osFile) WriteAt(p []byte, off int64) (int, error) { return f.d.WriteAt(p, off) }
func (f osFile) Write(p []byte) (int, error)              { return f.d.Write(p) }

func (f osFile) Close() error {
	err := f.d.Close()
	if cerr := f.File.Close(); cerr != nil {
		err = cerr
	}
	return err
}

func (f osFile) Preallocate(size int64) error { return preallocate(f.File, size) }

func (f osFile) DropCache() {
	f.d.Uncached()
	dropCache(f.File)
}
