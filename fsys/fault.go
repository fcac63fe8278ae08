package fsys

import (
	"cmp"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"
	"syscall"
)

// An Op names a kind of operation for Fault.
type Op string

// The operations that Fault can fail. For Rename and Link the name is the new one.
const (
	OpAny         Op = "" // in a Rule: every operation
	OpCreate      Op = "create"
	OpOpen        Op = "open" // Open and OpenWrite
	OpRename      Op = "rename"
	OpLink        Op = "link"
	OpRemove      Op = "remove"
	OpMkdir       Op = "mkdir"
	OpList        Op = "list"
	OpStat        Op = "stat"
	OpSyncDir     Op = "syncdir"
	OpLock        Op = "lock"
	OpUsage       Op = "usage"
	OpRead        Op = "read"
	OpWrite       Op = "write"
	OpSync        Op = "sync"
	OpTruncate    Op = "truncate"
	OpPreallocate Op = "preallocate"
	OpClose       Op = "close"
)

// A Rule says which operation fails how. An operation matches if its kind is Op and its name matches Glob, a pattern of
// path.Match that is compared with the whole name if it has a slash and with the last element otherwise; "" matches all.
type Rule struct {
	Op    Op
	Glob  string
	Nth   int   // the how manyth match fails, counted from 1; 0 means 1
	Times int   // how many matches fail from there on; 0 means 1, Forever means all
	Err   error // what they fail with; nil only counts
}

// Forever as Rule.Times makes every match from the Nth on fail.
const Forever = -1

// A Watch counts the operations that a Rule matched and those it failed.
type Watch struct {
	f               *Fault
	rule            Rule
	matched, failed int
}

// Matched returns how many operations matched so far, failed ones included.
func (w *Watch) Matched() int { w.f.mu.Lock(); defer w.f.mu.Unlock(); return w.matched }

// Failed returns how many operations the rule failed so far.
func (w *Watch) Failed() int { w.f.mu.Lock(); defer w.f.mu.Unlock(); return w.failed }

// A Fault passes everything to another file system, except for the operations it was told to fail. A failed operation does not
// reach the inner file system. Methods are safe for concurrent use.
type Fault struct {
	inner FS

	mu      sync.Mutex
	watches []*Watch
	counts  map[Op]int
	limited bool
	free    int64
	files   map[string]*faultSpace // by name: what a file holds of the quota
}

// faultSpace is what one file takes of a Fault's quota. It is guarded by Fault.mu.
type faultSpace struct {
	bytes int64 // allocated: the length, or more where space was reserved
	names int
}

// NewFault returns a Fault that fails nothing yet.
func NewFault(inner FS) *Fault {
	return &Fault{inner: inner, counts: map[Op]int{}, files: map[string]*faultSpace{}}
}

// Inject adds a rule and returns its counters. Rules are asked in the order they were added; the first that fails wins.
func (f *Fault) Inject(r Rule) *Watch {
	r.Nth, r.Times = max(r.Nth, 1), cmp.Or(r.Times, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &Watch{f: f, rule: r}
	f.watches = append(f.watches, w)
	return w
}

// Clear takes all rules and the quota away.
func (f *Fault) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watches, f.limited = nil, false
}

// Count returns how many operations of a kind were tried, OpAny for all.
func (f *Fault) Count(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if op != OpAny {
		return f.counts[op]
	}
	sum := 0
	for _, n := range f.counts {
		sum += n
	}
	return sum
}

// SetFree makes the medium look as if bytes more can be allocated: writing and preallocating take from it, removing the last
// name of a file and truncating give back. A write that does not fit writes what fits and fails with ENOSPC.
func (f *Fault) SetFree(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limited, f.free = true, bytes
}

// check counts the operation and returns the error it shall fail with.
func (f *Fault) check(op Op, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[op]++
	var first error
	for _, w := range f.watches {
		if !w.rule.matches(op, name) {
			continue
		}
		w.matched++
		over := w.matched - w.rule.Nth
		if first == nil && w.rule.Err != nil && over >= 0 && (w.rule.Times == Forever || over < w.rule.Times) {
			w.failed++
			first = pathErr(string(op), name, w.rule.Err)
		}
	}
	return first
}

func (r *Rule) matches(op Op, name string) bool {
	if r.Op != OpAny && r.Op != op {
		return false
	}
	if r.Glob == "" {
		return true
	}
	if !strings.Contains(r.Glob, "/") {
		name = path.Base(name)
	}
	ok, err := path.Match(r.Glob, name)
	return ok && err == nil
}

// space returns the account of the file name, which has size bytes.
func (f *Fault) space(name string, size int64) *faultSpace {
	name = path.Clean(name)
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.files[name]
	if s == nil {
		s = &faultSpace{bytes: size, names: 1}
		f.files[name] = s
	}
	return s
}

// take gives the account up to want bytes in all and returns how many it has then.
func (f *Fault) take(s *faultSpace, want int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if more := want - s.bytes; more > 0 {
		if f.limited {
			more = min(more, max(f.free, 0))
			f.free -= more
		}
		s.bytes += more
	}
	return s.bytes
}

// reserve gives the account want bytes in all, or nothing more if they are not free.
func (f *Fault) reserve(s *faultSpace, want int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	more := max(want-s.bytes, 0)
	if f.limited {
		if more > f.free {
			return false
		}
		f.free -= more
	}
	s.bytes += more
	return true
}

// drop gives back what the name held, if it was the file's last. The lock is held.
func (f *Fault) drop(name string, size int64) {
	name = path.Clean(name)
	s := f.files[name]
	delete(f.files, name)
	if s == nil {
		s = &faultSpace{bytes: size, names: 1}
	}
	if s.names--; s.names == 0 && f.limited {
		f.free += s.bytes
	}
}

// sizeOf returns the length of a file, 0 if it is not there.
func (f *Fault) sizeOf(name string) (int64, bool) {
	st, err := f.inner.Stat(name)
	if err != nil || st.IsDir() {
		return 0, false
	}
	return st.Size(), true
}

func (f *Fault) open(op Op, name string, open func(string) (File, error)) (File, error) {
	if err := f.check(op, name); err != nil {
		return nil, err
	}
	file, err := open(name)
	if err != nil {
		return nil, err
	}
	size := int64(0)
	if st, err := file.Stat(); err == nil {
		size = st.Size()
	}
	return &faultFile{File: file, f: f, name: name, space: f.space(name, size)}, nil
}

// Create implements FS.
func (f *Fault) Create(name string) (File, error) { return f.open(OpCreate, name, f.inner.Create) }

// Open implements FS.
func (f *Fault) Open(name string) (File, error) { return f.open(OpOpen, name, f.inner.Open) }

// OpenWrite implements FS.
func (f *Fault) OpenWrite(name string) (File, error) { return f.open(OpOpen, name, f.inner.OpenWrite) }

// Rename implements FS.
func (f *Fault) Rename(oldname, newname string) error {
	if err := f.check(OpRename, newname); err != nil {
		return err
	}
	size, isFile := f.sizeOf(oldname)
	was, replaced := f.sizeOf(newname)
	if err := f.inner.Rename(oldname, newname); err != nil {
		return err
	}
	if !isFile || path.Clean(oldname) == path.Clean(newname) {
		return nil
	}
	s := f.space(oldname, size)
	f.mu.Lock()
	defer f.mu.Unlock()
	if replaced {
		f.drop(newname, was)
	}
	delete(f.files, path.Clean(oldname))
	f.files[path.Clean(newname)] = s
	return nil
}

// Link implements FS.
func (f *Fault) Link(oldname, newname string) error {
	if err := f.check(OpLink, newname); err != nil {
		return err
	}
	if err := f.inner.Link(oldname, newname); err != nil {
		return err
	}
	size, _ := f.sizeOf(oldname)
	s := f.space(oldname, size)
	f.mu.Lock()
	defer f.mu.Unlock()
	s.names++
	f.files[path.Clean(newname)] = s
	return nil
}

// Remove implements FS.
func (f *Fault) Remove(name string) error {
	if err := f.check(OpRemove, name); err != nil {
		return err
	}
	size, isFile := f.sizeOf(name)
	if err := f.inner.Remove(name); err != nil {
		return err
	}
	if isFile {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.drop(name, size)
	}
	return nil
}

// MkdirAll implements FS.
func (f *Fault) MkdirAll(name string) error {
	if err := f.check(OpMkdir, name); err != nil {
		return err
	}
	return f.inner.MkdirAll(name)
}

// List implements FS.
func (f *Fault) List(name string) ([]string, error) {
	if err := f.check(OpList, name); err != nil {
		return nil, err
	}
	return f.inner.List(name)
}

// Stat implements FS.
func (f *Fault) Stat(name string) (fs.FileInfo, error) {
	if err := f.check(OpStat, name); err != nil {
		return nil, err
	}
	return f.inner.Stat(name)
}

// SyncDir implements FS.
func (f *Fault) SyncDir(name string) error {
	if err := f.check(OpSyncDir, name); err != nil {
		return err
	}
	return f.inner.SyncDir(name)
}

// Lock implements FS.
func (f *Fault) Lock(name string) (io.Closer, error) {
	if err := f.check(OpLock, name); err != nil {
		return nil, err
	}
	return f.inner.Lock(name)
}

// Usage implements FS; under SetFree no more is free than what is left of it.
func (f *Fault) Usage(name string) (free, size int64, err error) {
	if err := f.check(OpUsage, name); err != nil {
		return 0, 0, err
	}
	free, size, err = f.inner.Usage(name)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.limited {
		free = min(free, max(f.free, 0))
	}
	return free, size, err
}

type faultFile struct {
	File
	f     *Fault
	name  string
	space *faultSpace

	mu  sync.Mutex // serialises Read, Write; taken before Fault.mu
	pos int64
}

func (w *faultFile) Read(p []byte) (int, error) {
	if err := w.f.check(OpRead, w.name); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.File.Read(p)
	w.pos += int64(n)
	return n, err
}

func (w *faultFile) ReadAt(p []byte, off int64) (int, error) {
	if err := w.f.check(OpRead, w.name); err != nil {
		return 0, err
	}
	return w.File.ReadAt(p, off)
}

func (w *faultFile) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.write(p, w.pos, func(p []byte) (int, error) { return w.File.Write(p) })
	w.pos += int64(n)
	return n, err
}

func (w *faultFile) WriteAt(p []byte, off int64) (int, error) {
	return w.write(p, off, func(p []byte) (int, error) { return w.File.WriteAt(p, off) })
}

func (w *faultFile) write(p []byte, off int64, do func([]byte) (int, error)) (int, error) {
	if err := w.f.check(OpWrite, w.name); err != nil {
		return 0, err
	}
	end := off + int64(len(p))
	have := w.f.take(w.space, end)
	if have >= end {
		return do(p)
	}
	n := 0
	if have > off {
		var err error
		if n, err = do(p[:have-off]); err != nil {
			return n, err
		}
	}
	return n, pathErr("write", w.name, syscall.ENOSPC)
}

func (w *faultFile) Sync() error {
	if err := w.f.check(OpSync, w.name); err != nil {
		return err
	}
	return w.File.Sync()
}

func (w *faultFile) Truncate(size int64) error {
	if err := w.f.check(OpTruncate, w.name); err != nil {
		return err
	}
	if err := w.File.Truncate(size); err != nil {
		return err
	}
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	if back := w.space.bytes - size; back > 0 {
		w.space.bytes = size
		if w.f.limited {
			w.f.free += back
		}
	}
	return nil
}

func (w *faultFile) Preallocate(size int64) error {
	if err := w.f.check(OpPreallocate, w.name); err != nil {
		return err
	}
	if !w.f.reserve(w.space, size) {
		return pathErr("preallocate", w.name, syscall.ENOSPC)
	}
	return w.File.Preallocate(size)
}

// Close closes the inner file even where it is told to fail, so that a test leaks nothing.
func (w *faultFile) Close() error {
	bad := w.f.check(OpClose, w.name)
	err := w.File.Close()
	if bad != nil {
		return bad
	}
	return err
}
