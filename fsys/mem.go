package fsys

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// memSize is the size that a Mem claims its medium has.
const memSize = 1 << 40

// A Mem is a file system in memory that keeps apart what is written and what would survive a power cut.
//
// The rules of survival: bytes and length of a file survive once its Sync returned; a name made, renamed or removed survives
// once SyncDir of its folder returned (MkdirAll includes that). Everything later may survive or not, see Crash. A rename takes
// the old name away only where it also made the new one. Syncing a file does not make its name durable.
//
// Memory is taken by 4 KiB pages, and shared between a Mem and its snapshots until one of them writes.
type Mem struct {
	mu    sync.RWMutex
	root  *memNode
	locks map[string]bool
	hook  func(op, name string)
	dead  error // set by Halt
	seed  uint64
	tick  int64 // stands for the time in modification times: every change counts one up
}

// NewMem returns an empty file system. The seed decides what survives a Crash that is handed no random source.
func NewMem(seed uint64) *Mem {
	return &Mem{root: newMemDir(), locks: map[string]bool{}, seed: seed}
}

// OnSync sets the function that is called at every sync point, before it takes effect: op is "sync" for a file, "syncdir" or
// "mkdir" for a folder. It may call Snapshot, Crash and Halt. It runs in the goroutine that syncs; nil takes it away.
func (m *Mem) OnSync(hook func(op, name string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = hook
}

// Halt makes every later operation, also on open files, fail with err: the machine is off for whoever still holds m.
func (m *Mem) Halt(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = err
}

// Snapshot returns a copy of m as it is at this instant, synced and unsynced parts kept apart as in m, without locks and
// hook. It costs time by the number of files, not by their size; Crash of the copy is what Crash of m would have been.
func (m *Mem) Snapshot() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &cloner{seen: map[*memNode]*memNode{}, ops: map[*memOp]*memOp{}}
	return &Mem{root: c.node(m.root), locks: map[string]bool{}, seed: m.seed, tick: m.tick}
}

// Crash returns what would be found if the power went at this instant; m itself goes on. Of what was not synced, each 4 KiB
// page and each change of a name is kept with a chance of keepPercent (0: only what was synced, 100: everything). Changes of
// one name are kept in their order: a later one never without the earlier. A file that grew may end anywhere between its
// synced and its new length, in the middle of a page too, and pages that were lost read as zeros. The random source nil
// stands for one made from the Mem's seed.
func (m *Mem) Crash(rng *rand.Rand, keepPercent int) *Mem {
	if rng == nil {
		rng = rand.New(rand.NewPCG(m.seed, 0x6372617368))
	}
	s := m.Snapshot()
	k := &crasher{rng: rng, keep: keepPercent, seen: map[*memNode]bool{}}
	k.dir(s.root)
	return s
}

// point announces a sync point. It must be called without the lock.
func (m *Mem) point(op, name string) error {
	m.mu.RLock()
	hook, dead := m.hook, m.dead
	m.mu.RUnlock()
	if dead != nil {
		return dead
	}
	if hook != nil {
		hook(op, name)
	}
	return nil
}

// find returns the node of a cleaned name. The lock is held.
func (m *Mem) find(op, name string) (*memNode, error) {
	if m.dead != nil {
		return nil, m.dead
	}
	n := m.root
	if name == "." {
		return n, nil
	}
	for rest := name; rest != ""; {
		var elem string
		elem, rest, _ = strings.Cut(rest, "/")
		if n.dir == nil {
			return nil, pathErr(op, name, syscall.ENOTDIR)
		}
		if n = n.dir.now[elem]; n == nil {
			return nil, pathErr(op, name, syscall.ENOENT)
		}
	}
	return n, nil
}

// parent returns the folder that name lies in and the name's last part. The lock is held.
func (m *Mem) parent(op, name string) (*memNode, string, error) {
	if name == "." {
		return nil, "", pathErr(op, name, syscall.EINVAL)
	}
	d, err := m.find(op, path.Dir(name))
	if err != nil {
		return nil, "", err
	}
	if d.dir == nil {
		return nil, "", pathErr(op, name, syscall.ENOTDIR)
	}
	return d, path.Base(name), nil
}

func (m *Mem) stamp(n *memNode) {
	m.tick++
	n.mtime = m.tick
}

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	name, err := clean("create", name)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.parent("create", name)
	if err != nil {
		return nil, err
	}
	if d.dir.now[base] != nil {
		return nil, pathErr("create", name, syscall.EEXIST)
	}
	n := &memNode{data: newMemData()}
	m.stamp(n)
	d.dir.change(base, &memOp{node: n})
	return &memFile{m: m, n: n, name: name, write: true}, nil
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) { return m.open(name, false) }

// OpenWrite implements FS.
func (m *Mem) OpenWrite(name string) (File, error) { return m.open(name, true) }

func (m *Mem) open(name string, write bool) (File, error) {
	name, err := clean("open", name)
	if err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	n, err := m.find("open", name)
	if err != nil {
		return nil, err
	}
	if n.dir != nil && write {
		return nil, pathErr("open", name, syscall.EISDIR)
	}
	return &memFile{m: m, n: n, name: name, write: write}, nil
}

// Rename implements FS.
func (m *Mem) Rename(oldname, newname string) error {
	return m.twoNames("rename", oldname, newname, func(from, to *memNode, n *memNode, a, b string) error {
		old := to.dir.now[b]
		switch {
		case old == n:
			return nil
		case old != nil && old.dir != nil && n.dir == nil:
			return syscall.EISDIR
		case old != nil && old.dir == nil && n.dir != nil:
			return syscall.ENOTDIR
		case old != nil && old.dir != nil && len(old.dir.now) > 0:
			return syscall.ENOTEMPTY
		case n.dir != nil && n.holds(to):
			return syscall.EINVAL
		}
		made := &memOp{node: n}
		to.dir.change(b, made)
		from.dir.change(a, &memOp{with: made, in: to, as: b})
		return nil
	})
}

// Link implements FS.
func (m *Mem) Link(oldname, newname string) error {
	return m.twoNames("link", oldname, newname, func(_, to *memNode, n *memNode, _, b string) error {
		switch {
		case n.dir != nil:
			return syscall.EPERM
		case to.dir.now[b] != nil:
			return syscall.EEXIST
		}
		to.dir.change(b, &memOp{node: n})
		return nil
	})
}

func (m *Mem) twoNames(op, oldname, newname string, do func(from, to, n *memNode, a, b string) error) error {
	oldname, err := clean(op, oldname)
	if err != nil {
		return err
	}
	if newname, err = clean(op, newname); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	from, a, err := m.parent(op, oldname)
	if err != nil {
		return err
	}
	n, err := m.find(op, oldname)
	if err != nil {
		return err
	}
	to, b, err := m.parent(op, newname)
	if err != nil {
		return err
	}
	if err := do(from, to, n, a, b); err != nil {
		return pathErr(op, newname, err)
	}
	return nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	name, err := clean("remove", name)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.parent("remove", name)
	if err != nil {
		return err
	}
	n := d.dir.now[base]
	if n == nil {
		return pathErr("remove", name, syscall.ENOENT)
	}
	if n.dir != nil && len(n.dir.now) > 0 {
		return pathErr("remove", name, syscall.ENOTEMPTY)
	}
	d.dir.change(base, &memOp{})
	return nil
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(name string) error {
	name, err := clean("mkdir", name)
	if err != nil {
		return err
	}
	if err := m.point("mkdir", name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead != nil {
		return m.dead
	}
	if name == "." {
		return nil
	}
	n := m.root
	for rest := name; rest != ""; {
		var elem string
		elem, rest, _ = strings.Cut(rest, "/")
		next := n.dir.now[elem]
		if next == nil {
			next = newMemDir()
			m.stamp(next)
			n.dir.change(elem, &memOp{node: next})
		}
		if next.dir == nil {
			return pathErr("mkdir", name, syscall.ENOTDIR)
		}
		n.dir.settleName(elem)
		n = next
	}
	return nil
}

// List implements FS.
func (m *Mem) List(name string) ([]string, error) {
	name, err := clean("list", name)
	if err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	n, err := m.find("list", name)
	if err != nil {
		return nil, err
	}
	if n.dir == nil {
		return nil, pathErr("list", name, syscall.ENOTDIR)
	}
	names := make([]string, 0, len(n.dir.now))
	for k := range n.dir.now {
		names = append(names, k)
	}
	slices.Sort(names)
	return names, nil
}

// Stat implements FS.
func (m *Mem) Stat(name string) (fs.FileInfo, error) {
	name, err := clean("stat", name)
	if err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	n, err := m.find("stat", name)
	if err != nil {
		return nil, err
	}
	return n.info(name), nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(name string) error {
	name, err := clean("syncdir", name)
	if err != nil {
		return err
	}
	if err := m.point("syncdir", name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find("syncdir", name)
	if err != nil {
		return err
	}
	if n.dir == nil {
		return pathErr("syncdir", name, syscall.ENOTDIR)
	}
	n.dir.settle()
	return nil
}

// Lock implements FS. The locks of a Mem are not those of its snapshots.
func (m *Mem) Lock(name string) (io.Closer, error) {
	name, err := clean("lock", name)
	if err != nil {
		return nil, err
	}
	f, err := m.Create(name)
	if errors.Is(err, fs.ErrExist) {
		f, err = m.OpenWrite(name)
	}
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locks[name] {
		return nil, busy(path.Base(name), "this process")
	}
	m.locks[name] = true
	return &memLock{m: m, name: name}, nil
}

type memLock struct {
	m    *Mem
	name string
	once sync.Once
}

func (l *memLock) Close() error {
	l.once.Do(func() {
		l.m.mu.Lock()
		defer l.m.mu.Unlock()
		delete(l.m.locks, l.name)
	})
	return nil
}

// Usage implements FS.
func (m *Mem) Usage(name string) (free, size int64, err error) {
	if _, err := m.Stat(name); err != nil {
		return 0, 0, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return memSize - m.root.bytes(map[*memNode]bool{}), memSize, nil
}

type memInfo struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime int64
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) Mode() fs.FileMode  { return i.mode }
func (i memInfo) ModTime() time.Time { return time.Unix(i.mtime, 0).UTC() }
func (i memInfo) IsDir() bool        { return i.mode.IsDir() }
func (i memInfo) Sys() any           { return nil }
