// Package dirstore keeps objects as files of a folder tree: the object "containers/17" is the file containers/17.
//
// It owns every file below its file system whose name is an object's name, and the folder "~staging", which no object can be
// called. As in any folder tree, no object's name may be the folder of another's. Other files and folders (a lock, a database, lost+found) may live beside; they are neither listed nor touched.
//
// An object is written in ~staging, synced, renamed into place, and the folder is synced: after a crash at any point a name has
// the whole object or none, and one whose Commit returned is there. What a dead process left in ~staging is removed at Open,
// so one process at a time may have the tree open for writing; who keeps others out is the pool's lock, not this package.
// Remove allocates nothing and so works on a full medium. A folder goes with its last object.
package dirstore

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

const (
	stagingDir = "~staging" // '~' is not a letter of object names
	tempSuffix = ".tmp"
	// Renaming into a folder that Remove takes away at the same moment fails; so often it is made again.
	maxFolderTries = 8
)

// Options say how a tree is opened. The zero value is for the owner of the pool.
type Options struct {
	// ReadOnly leaves the tree as it is, staging too: for looking into a pool that another process may own, or that
	// lies on a medium that cannot be written. Create and Remove fail with kind Permission.
	ReadOnly bool
}

// A Store keeps objects as files. Make one with Open.
type Store struct {
	fs   fsys.FS
	opts Options
	seq  atomic.Uint64 // numbers staging files, so that one name may be created twice at once

	mu      sync.Mutex
	made    map[string]bool // folders known to be there durably
	removed int             // how many folders were removed, by us or behind our back
}

var _ blob.Store = (*Store)(nil)

// Open returns the store in f, which may be empty, and removes what dead processes left in staging.
func Open(f fsys.FS, opts Options) (*Store, error) {
	s := &Store{fs: f, opts: opts, made: map[string]bool{}}
	if opts.ReadOnly {
		return s, nil
	}
	names, err := f.List(stagingDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fsys.Classify("list staging", err)
	}
	for _, n := range names {
		if err := f.Remove(path.Join(stagingDir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fsys.Classify("clear staging", err)
		}
	}
	return s, nil
}

// check is the beginning of every method.
func check(ctx context.Context, op, name string) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	return blob.Cancelled(ctx, op+" "+name)
}

func (s *Store) writable(op string) error {
	if s.opts.ReadOnly {
		return holdfast.Errorf(holdfast.Permission, op, "the pool is open for reading only")
	}
	return nil
}

// mkdir makes a folder durably, once. A folder that is there may have been made by a process that died before it synced the
// parent, so the first use of each folder syncs all folders above it. The count of folders removed so far is returned: while
// it stays the same, the folder is the one that was made durable.
func (s *Store) mkdir(dir string) (removed int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if dir == "." || s.made[dir] {
		return s.removed, nil
	}
	if err := s.fs.MkdirAll(dir); err != nil {
		return 0, err
	}
	for above := path.Dir(dir); ; above = path.Dir(above) {
		if err := s.fs.SyncDir(above); err != nil {
			return 0, err
		}
		if above == "." {
			break
		}
	}
	s.made[dir] = true
	return s.removed, nil
}

// forget takes all folders from the known ones, after one was found gone.
func (s *Store) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.made)
	s.removed++
}

func (s *Store) removedSince(count int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removed != count
}

// Create implements blob.Store.
func (s *Store) Create(ctx context.Context, name string) (blob.Object, error) {
	op := "create " + name
	if err := check(ctx, "create", name); err != nil {
		return nil, err
	}
	if err := s.writable(op); err != nil {
		return nil, err
	}
	flat := strings.ReplaceAll(name, "/", "~")
	for try := 0; ; try++ {
		if _, err := s.mkdir(stagingDir); err != nil {
			return nil, fsys.Classify(op, err)
		}
		temp := path.Join(stagingDir, strconv.FormatUint(s.seq.Add(1), 10)+"~"+flat+tempSuffix)
		f, err := s.fs.Create(temp)
		switch {
		case err == nil:
			return &object{s: s, f: f, temp: temp, name: name}, nil
		case errors.Is(err, fs.ErrNotExist) && try < maxFolderTries: // somebody tidied up the empty folder
			s.forget()
		case !errors.Is(err, fs.ErrExist) || try >= maxFolderTries:
			return nil, fsys.Classify(op, err)
		}
	}
}

// Open implements blob.Store.
func (s *Store) Open(ctx context.Context, name string) (blob.Reader, error) {
	if err := check(ctx, "open", name); err != nil {
		return nil, err
	}
	f, err := s.fs.Open(name)
	if err != nil {
		return nil, absent("open "+name, err)
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist} // a folder is no object
	}
	if err != nil {
		_ = f.Close() // only read
		return nil, fsys.Classify("open "+name, err)
	}
	return &reader{f: f, size: st.Size(), name: name}, nil
}

// absent classifies an error of looking a name up. Below a file there is nothing, whatever the system calls that.
func absent(op string, err error) error {
	if isNotDir(err) {
		return holdfast.Errorf(holdfast.NotExist, op, "%w", err)
	}
	return fsys.Classify(op, err)
}

// List implements blob.Store.
func (s *Store) List(ctx context.Context, folder string) ([]string, error) {
	if err := blob.CheckFolder(folder); err != nil {
		return nil, err
	}
	var out []string
	if err := s.walk(ctx, folder, &out); err != nil {
		return nil, fsys.Classify("list "+folder, err)
	}
	slices.Sort(out) // folder by folder is not the order of whole names
	return out, nil
}

func (s *Store) walk(ctx context.Context, folder string, out *[]string) error {
	if err := blob.Cancelled(ctx, "list "+folder); err != nil {
		return err
	}
	names, err := s.fs.List(path.Clean(folder))
	if errors.Is(err, fs.ErrNotExist) || isNotDir(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		full := path.Join(folder, n)
		if blob.CheckName(full) != nil {
			continue // not ours
		}
		st, err := s.fs.Stat(full)
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
		case err != nil:
			return err
		case st.IsDir():
			if err := s.walk(ctx, full, out); err != nil {
				return err
			}
		case st.Mode().IsRegular():
			*out = append(*out, full)
		}
	}
	return nil
}

// Exists implements blob.Store.
func (s *Store) Exists(ctx context.Context, name string) (bool, error) {
	if err := check(ctx, "look for", name); err != nil {
		return false, err
	}
	st, err := s.fs.Stat(name)
	if err != nil {
		if err = absent("look for "+name, err); errors.Is(err, holdfast.NotExist) {
			return false, nil
		}
		return false, err
	}
	return !st.IsDir(), nil
}

// Remove implements blob.Store.
func (s *Store) Remove(ctx context.Context, name string) error {
	op := "remove " + name
	if err := check(ctx, "remove", name); err != nil {
		return err
	}
	if err := s.writable(op); err != nil {
		return err
	}
	there, err := s.Exists(ctx, name)
	if err != nil {
		return err
	}
	if there {
		err = s.fs.Remove(name)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		// Also where it is gone already: an earlier attempt may have removed it without reaching the sync.
		err = s.fs.SyncDir(path.Dir(name))
	}
	if errors.Is(err, fs.ErrNotExist) || isNotDir(err) {
		return nil // not even the folder is there
	}
	if err != nil {
		return fsys.Classify(op, err)
	}
	if there {
		s.prune(path.Dir(name))
	}
	return nil
}

// prune removes folders that have become empty. An empty folder does no harm, so errors do not matter, and neither does
// whether this survives a crash.
func (s *Store) prune(dir string) {
	for ; dir != "."; dir = path.Dir(dir) {
		if names, err := s.fs.List(dir); err != nil || len(names) > 0 {
			return
		}
		if !s.rmdir(dir) {
			return
		}
	}
}

// rmdir removes a folder if it is empty. It excludes mkdir, and tells those who have just called it by counting up.
func (s *Store) rmdir(dir string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fs.Remove(dir); err != nil {
		return false
	}
	delete(s.made, dir)
	s.removed++
	return true
}

// Usage implements blob.Store.
func (s *Store) Usage(ctx context.Context) (free, size int64, err error) {
	if err := blob.Cancelled(ctx, "ask for free space"); err != nil {
		return 0, 0, err
	}
	free, size, err = s.fs.Usage(".")
	return free, size, fsys.Classify("ask for free space", err)
}

// Close implements blob.Store. Open objects and readers stay usable; they are the caller's to end.
func (s *Store) Close() error { return nil }

// reader reads one file.
type reader struct {
	f    fsys.File
	size int64
	name string
}

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, holdfast.Errorf(holdfast.Invalid, "read "+r.name, "at the negative offset %d", off)
	}
	n, err := r.f.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fsys.Classify("read "+r.name, err)
	}
	return n, err
}

func (r *reader) Close() error { return r.f.Close() }
func (r *reader) Size() int64  { return r.size }
func (r *reader) DropCache()   { r.f.DropCache() }
