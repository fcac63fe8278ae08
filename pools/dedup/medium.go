package dedup

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// A medium is where a pool's objects live: whole objects, created at once and never changed, as object storage has them.
// Everything of a pool that is not rebuildable goes through it. Methods are safe for concurrent use. Errors carry a Kind.
type medium interface {
	// create starts a new object. Nothing is seen under its name before commit.
	create(name string) (object, error)
	// open opens an object for reading; NotExist if there is none.
	open(name string) (reader, error)
	// list returns the names of the objects under one of the pool's prefixes, sorted. A prefix that is not there is Corrupt.
	list(prefix string) ([]string, error)
	// exists tells whether there is an object of the name.
	exists(name string) (bool, error)
	// remove takes an object away, durably when it returns. An object that is not there is no error. It needs no free space.
	remove(name string) error
	usage() (free, size int64, err error)
}

// An object is one that is being created. Exactly one of commit and abort ends it.
type object interface {
	io.Writer
	// commit makes the object durable, whole, under its name. After an error there is no object of that name.
	commit() error
	abort()
}

// A reader reads one object.
type reader interface {
	io.ReaderAt
	io.Closer
	size() int64
	dropCache()
}

const (
	stagingDir    = "staging"
	containersDir = "containers"
	setsDir       = "sets"
	tempSuffix    = ".tmp"
)

// A folder is the medium of a file system: objects are files, staged in a folder of their own.
type folder struct {
	fs   fsys.FS
	mu   sync.Mutex
	made map[string]bool // folders known to be there
}

func newFolder(f fsys.FS) *folder { return &folder{fs: f, made: map[string]bool{}} }

// mkdir makes the folder of a name once.
func (m *folder) mkdir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.made[dir] || dir == "." {
		return nil
	}
	if err := m.fs.MkdirAll(dir); err != nil {
		return classify("make folder", err)
	}
	m.made[dir] = true
	return nil
}

func (m *folder) create(name string) (object, error) {
	if err := m.mkdir(stagingDir); err != nil {
		return nil, err
	}
	if err := m.mkdir(path.Dir(name)); err != nil {
		return nil, err
	}
	temp := path.Join(stagingDir, strings.ReplaceAll(name, "/", "-")+tempSuffix)
	f, err := m.fs.Create(temp)
	if errors.Is(err, fs.ErrExist) { // of an attempt whose removal failed
		if err = m.fs.Remove(temp); err == nil {
			f, err = m.fs.Create(temp)
		}
	}
	if err != nil {
		return nil, classify("create "+name, err)
	}
	return &staged{m: m, f: f, temp: temp, name: name}, nil
}

// staged is an object on its way.
type staged struct {
	m          *folder
	f          fsys.File
	temp, name string
}

func (o *staged) Write(p []byte) (int, error) {
	n, err := o.f.Write(p)
	if err != nil {
		return n, classify("write "+o.name, err)
	}
	return n, nil
}

func (o *staged) commit() error {
	err := o.f.Sync()
	if cerr := o.f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = o.m.fs.Rename(o.temp, o.name)
	}
	if err != nil {
		_ = o.m.fs.Remove(o.temp) // garbage that the next open removes; the first error is the one that counts
		return classify("seal "+o.name, err)
	}
	if err := o.m.fs.SyncDir(path.Dir(o.name)); err != nil {
		_ = o.m.remove(o.name) // the name may or may not survive: it must not be there for those who look now
		return classify("seal "+o.name, err)
	}
	return nil
}

func (o *staged) abort() {
	_ = o.f.Close() // the file is garbage either way
	_ = o.m.fs.Remove(o.temp)
}

func (m *folder) open(name string) (reader, error) {
	f, err := m.fs.Open(name)
	if err != nil {
		return nil, classify("open "+name, err)
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close() // only read
		return nil, classify("open "+name, err)
	}
	return &fileReader{f, st.Size(), name}, nil
}

type fileReader struct {
	f    fsys.File
	n    int64
	name string
}

func (r *fileReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.f.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = classify("read "+r.name, err)
	}
	return n, err
}

func (r *fileReader) Close() error { return r.f.Close() }
func (r *fileReader) size() int64  { return r.n }
func (r *fileReader) dropCache()   { r.f.DropCache() }

func (m *folder) list(prefix string) ([]string, error) {
	names, err := m.fs.List(prefix)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			// An empty answer could be taken for an empty pool.
			return nil, holdfast.Errorf(holdfast.Corrupt, "list "+prefix, "the pool's folder %q is missing", prefix).Advise("look whether the pool's disk is mounted")
		}
		return nil, classify("list "+prefix, err)
	}
	var out []string
	for _, n := range names {
		full := path.Join(prefix, n)
		if prefix != containersDir {
			out = append(out, full)
			continue
		}
		below, err := m.fs.List(full)
		if err != nil {
			return nil, classify("list "+full, err)
		}
		for _, b := range below {
			out = append(out, path.Join(full, b))
		}
	}
	return out, nil
}

func (m *folder) exists(name string) (bool, error) {
	_, err := m.fs.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, classify("look for "+name, err)
}

func (m *folder) remove(name string) error {
	err := m.fs.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // an earlier attempt may have removed it without reaching the sync
	}
	if err == nil {
		err = m.fs.SyncDir(path.Dir(name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not even the folder is there
	}
	return classify("remove "+name, err)
}

func (m *folder) usage() (free, size int64, err error) {
	free, size, err = m.fs.Usage(".")
	return free, size, classify("ask for free space", err)
}

// sweepStaging removes what a dead process left. Only called before any session begins.
func (m *folder) sweepStaging() error {
	names, err := m.list(stagingDir)
	for _, n := range names {
		if err := m.fs.Remove(n); err != nil {
			return classify("remove "+n, err)
		}
	}
	return err
}

// readAll reads a whole object of at most limit bytes.
func readAll(m medium, name string, limit int64) ([]byte, error) {
	r, err := m.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }() // only read
	if r.size() > limit {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read "+name, "%d bytes; at most %d are expected", r.size(), limit)
	}
	b := make([]byte, r.size())
	if n, err := r.ReadAt(b, 0); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, holdfast.Errorf(holdfast.Corrupt, "read "+name, "ends after %d of %d bytes", n, len(b))
		}
		return nil, err
	}
	return b, nil
}

// writeAll creates a small object.
func writeAll(m medium, name string, b []byte) error {
	o, err := m.create(name)
	if err != nil {
		return err
	}
	if _, err := o.Write(b); err != nil {
		o.abort()
		return err
	}
	return o.commit()
}

// classify gives an error of the file system its Kind; nil stays nil and what has a kind keeps it.
func classify(op string, err error) error { return fsys.Classify(op, err) }
