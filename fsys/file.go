package fsys

import (
	"io"
	"io/fs"
	"path"

	"github.com/holdfast-backup/holdfast"
)

// TempSuffix ends the names of files that Replace has not finished. Such a file is rubbish of a crash; the next Replace of
// the same name removes it.
const TempSuffix = ".tmp"

// Replace makes name hold data, atomically and durably: when it returns nil, every later crash finds data; when it fails or
// the power goes while it runs, name holds either what it held before or data. It is not safe to replace one name from two
// goroutines at once. It is meant for small files: data is written in one call.
func Replace(f FS, name string, data []byte) error {
	tmp := name + TempSuffix
	w, err := f.Create(tmp)
	if isExist(err) {
		if err = f.Remove(tmp); err != nil {
			return err
		}
		w, err = f.Create(tmp)
	}
	if err != nil {
		return err
	}
	if err = writeSynced(w, data); err != nil {
		_ = f.Remove(tmp) // best effort: the next Replace removes it otherwise
		return err
	}
	if err = f.Rename(tmp, name); err != nil {
		_ = f.Remove(tmp)
		return err
	}
	return f.SyncDir(path.Dir(name))
}

// writeSynced writes data to w, makes it durable and closes w, whatever happens.
func writeSynced(w File, data []byte) error {
	if _, err := w.Write(data); err != nil {
		_ = w.Close()
		return err
	}
	if err := w.Sync(); err != nil {
		_ = w.Close()
		return err
	}
	return w.Close()
}

// ReadFile returns what name holds, if that is at most limit bytes; a longer file is refused with kind Invalid before memory
// is taken for it.
func ReadFile(f FS, name string, limit int64) ([]byte, error) {
	r, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close() // only read
	st, err := r.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > limit {
		return nil, holdfast.Errorf(holdfast.Invalid, "read "+name, "%d bytes; at most %d are allowed", st.Size(), limit)
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, pathErr("read", name, err)
	}
	return b, nil
}

// Sub returns the part of f below the folder dir as a file system of its own. The folder need not be there yet. A lock taken
// through Sub is the lock of the same file in f. If dir leads out of f, every method fails with kind Invalid.
func Sub(f FS, dir string) FS {
	d, err := clean("open folder", dir)
	if err == nil && d == "." {
		return f
	}
	return sub{f, d, err}
}

type sub struct {
	fs  FS
	dir string
	bad error // why dir cannot be used
}

func (s sub) at(op, name string) (string, error) {
	if s.bad != nil {
		return "", s.bad
	}
	n, err := clean(op, name)
	return path.Join(s.dir, n), err
}

func (s sub) Create(name string) (File, error) {
	n, err := s.at("create", name)
	if err != nil {
		return nil, err
	}
	return s.fs.Create(n)
}

func (s sub) Open(name string) (File, error) {
	n, err := s.at("open", name)
	if err != nil {
		return nil, err
	}
	return s.fs.Open(n)
}

func (s sub) OpenWrite(name string) (File, error) {
	n, err := s.at("open", name)
	if err != nil {
		return nil, err
	}
	return s.fs.OpenWrite(n)
}

func (s sub) Rename(oldname, newname string) error {
	return s.two("rename", oldname, newname, s.fs.Rename)
}

func (s sub) Link(oldname, newname string) error { return s.two("link", oldname, newname, s.fs.Link) }

func (s sub) two(op, a, b string, do func(a, b string) error) error {
	an, err := s.at(op, a)
	if err != nil {
		return err
	}
	bn, err := s.at(op, b)
	if err != nil {
		return err
	}
	return do(an, bn)
}

func (s sub) one(op, name string, do func(string) error) error {
	n, err := s.at(op, name)
	if err != nil {
		return err
	}
	return do(n)
}

func (s sub) Remove(name string) error   { return s.one("remove", name, s.fs.Remove) }
func (s sub) MkdirAll(name string) error { return s.one("mkdir", name, s.fs.MkdirAll) }
func (s sub) SyncDir(name string) error  { return s.one("syncdir", name, s.fs.SyncDir) }

func (s sub) List(name string) ([]string, error) {
	n, err := s.at("list", name)
	if err != nil {
		return nil, err
	}
	return s.fs.List(n)
}

func (s sub) Stat(name string) (fs.FileInfo, error) {
	n, err := s.at("stat", name)
	if err != nil {
		return nil, err
	}
	return s.fs.Stat(n)
}

func (s sub) Lock(name string) (io.Closer, error) {
	n, err := s.at("lock", name)
	if err != nil {
		return nil, err
	}
	return s.fs.Lock(n)
}

func (s sub) Usage(name string) (free, size int64, err error) {
	n, err := s.at("usage", name)
	if err != nil {
		return 0, 0, err
	}
	return s.fs.Usage(n)
}
