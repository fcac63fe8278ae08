package vhdx

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"sync"
)

// errKilled is what a file answers once its process is "dead".
var errKilled = errors.New("killed")

// memFS is a file system in memory that can die after a number of changes: the change at the limit is done in part (cut after torn
// sectors of 512 bytes) and nothing works any more until revive.
type memFS struct {
	mu      sync.Mutex
	files   map[string]*memData
	changes int
	limit   int // < 0: immortal
	torn    int64
	dead    bool
	syncs   int
	reads   int
}

type memData struct {
	pages  map[int64][]byte
	size   int64
	locked bool
}

func newMemFS() *memFS { return &memFS{files: make(map[string]*memData), limit: -1} }

// clone copies everything; the copy is alive.
func (m *memFS) clone() *memFS {
	c := newMemFS()
	for name, d := range m.files {
		n := &memData{pages: make(map[int64][]byte, len(d.pages)), size: d.size}
		for i, p := range d.pages {
			n.pages[i] = append([]byte(nil), p...)
		}
		c.files[name] = n
	}
	return c
}

// revive is the next process.
func (m *memFS) revive() {
	m.dead, m.limit = false, -1
	for _, d := range m.files {
		d.locked = false
	}
}

func (m *memFS) Open(path string, mode openMode) (file, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, errKilled
	}
	d := m.files[path]
	switch {
	case mode == modeCreate && d != nil:
		return nil, fs.ErrExist
	case mode == modeCreate:
		d = &memData{pages: make(map[int64][]byte)}
		m.files[path] = d
	case d == nil:
		return nil, fs.ErrNotExist
	}
	if mode != modeRead {
		if d.locked {
			return nil, errBusy(path)
		}
		d.locked = true
	}
	return &memFile{fs: m, d: d, writer: mode != modeRead}, nil
}

func (m *memFS) Remove(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return errKilled
	}
	delete(m.files, path)
	return nil
}

func (m *memFS) SyncDir(string) error { return m.Sync() }

func (m *memFS) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return errKilled
	}
	m.syncs++
	return nil
}

// step counts a change of n bytes at off and returns how many of them happen: systems tear writes between sectors.
func (m *memFS) step(off, n int64) (int64, error) {
	if m.dead {
		return 0, errKilled
	}
	if m.limit >= 0 && m.changes >= m.limit {
		m.dead = true
		return max(min(n, (off/512+m.torn)*512-off), 0), errKilled
	}
	m.changes++
	return n, nil
}

type memFile struct {
	fs     *memFS
	d      *memData
	writer bool
}

const memPage = 4096

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.dead {
		return 0, errKilled
	}
	f.fs.reads++
	return f.d.readAt(p, off)
}

func (d *memData) readAt(p []byte, off int64) (int, error) {
	n := int(max(min(int64(len(p)), d.size-off), 0))
	for done := 0; done < n; {
		at := off + int64(done)
		c := min(n-done, int(memPage-at%memPage))
		if pg := d.pages[at/memPage]; pg != nil {
			copy(p[done:done+c], pg[at%memPage:])
		} else {
			clear(p[done : done+c])
		}
		done += c
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *memData) writeAt(p []byte, off int64) {
	for len(p) > 0 {
		c := min(int64(len(p)), memPage-off%memPage)
		pg := d.pages[off/memPage]
		if pg == nil {
			pg = make([]byte, memPage)
			d.pages[off/memPage] = pg
		}
		copy(pg[off%memPage:], p[:c])
		p, off = p[c:], off+c
		d.size = max(d.size, off)
	}
}

func (d *memData) zero(off, n int64) {
	var z [memPage]byte
	if n > 1<<26 { // too long to go page by page
		from, to := off/memPage+1, (off+n)/memPage
		maps.DeleteFunc(d.pages, func(i int64, _ []byte) bool { return i >= from && i < to })
		d.zero(to*memPage, off+n-to*memPage)
		n = from*memPage - off
	}
	for n > 0 {
		c := min(n, memPage-off%memPage)
		if c == memPage {
			delete(d.pages, off/memPage)
		} else if d.pages[off/memPage] != nil {
			d.writeAt(z[:c], off)
		}
		off, n = off+c, n-c
	}
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n, err := f.fs.step(off, int64(len(p)))
	f.d.writeAt(p[:n], off)
	return int(n), err
}

func (f *memFile) Punch(off, n int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n, err := f.fs.step(off, n)
	f.d.zero(off, n)
	return err
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n, err := f.fs.step(0, 1)
	if n == 0 || err != nil {
		return err
	}
	if size < f.d.size {
		f.d.zero(size, min(f.d.size-size, memPage-size%memPage))
		maps.DeleteFunc(f.d.pages, func(i int64, _ []byte) bool { return i*memPage >= size })
	}
	f.d.size = size
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.d.size, nil
}

func (f *memFile) Sync() error { return f.fs.Sync() }

func (f *memFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.writer {
		f.d.locked = false
	}
	return nil
}

func (f *memFile) NextData(off, end int64) (start, stop int64) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	first := int64(-1)
	for i := range f.d.pages {
		if i >= off/memPage && i*memPage < end && (first < 0 || i < first) {
			first = i
		}
	}
	if first < 0 {
		return end, end
	}
	return max(off, first*memPage), min(end, (first+1)*memPage)
}

// noSync is the real file system without the waiting, for tests that make many files.
type noSync struct{ osFS }

type noSyncFile struct{ file }

func (n noSync) Open(path string, mode openMode) (file, error) {
	f, err := n.osFS.Open(path, mode)
	if err != nil {
		return nil, err
	}
	return noSyncFile{f}, nil
}

func (noSync) SyncDir(string) error { return nil }
func (noSyncFile) Sync() error      { return nil }
