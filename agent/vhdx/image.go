package vhdx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/holdfast-backup/holdfast"
)

// Block table states.
const (
	stateAbsent    = 0 // with a parent: look there; without: zeros
	stateUndefined = 1
	stateZero      = 2
	stateUnmapped  = 3
	stateFull      = 6
	statePartial   = 7 // the sector bitmap says which sectors are here
)

const (
	pageSize   = 64 * kib
	cachePages = 32 // 2 MiB per file: the block table of 8 TiB in 32 MiB blocks
)

// image is one open VHDX file.
type image struct {
	f        file
	path     string
	realSize int64 // of the file
	fileSize int64 // with what the log adds
	raw      struct{ headers, regions [2][]byte }
	hdr      header
	slot     int // of hdr
	regs     []region
	regSlot  int
	bat      region
	meta     region
	items    []metaItem
	p        params
	ov       *overlay // nil: the log was clean
	cache    pageCache
}

// isVHDX reports whether the file begins as one.
func isVHDX(f file) bool {
	var b [8]byte
	_, err := f.ReadAt(b[:], 0)
	return err == nil && bytes.Equal(b[:], magicFile)
}

// openImage reads headers, regions, log and metadata. It does not take over f on failure.
func openImage(f file, path string) (*image, error) {
	size, err := f.Size()
	if err != nil {
		return nil, ioError("open virtual disk", path, err)
	}
	if size > maxFileSize {
		return nil, corrupt("%s has %d bytes, more than any disk needs", path, size)
	}
	m := &image{f: f, path: path, realSize: size, fileSize: size}
	m.cache.load = m.readFile
	for i := range 2 {
		m.raw.headers[i], m.raw.regions[i] = make([]byte, headerSize), make([]byte, regionSize)
		if err := m.readFile(m.raw.headers[i], headerAt[i]); err != nil {
			return nil, err
		}
		if err := m.readFile(m.raw.regions[i], regionAt[i]); err != nil {
			return nil, err
		}
	}
	if m.hdr, m.slot, err = pickHeader(m.raw.headers); err != nil {
		return nil, err
	}
	if m.regs, m.regSlot, err = pickRegions(m.raw.regions); err != nil {
		return nil, err
	}
	if err := m.openLog(); err != nil {
		return nil, err
	}
	for _, r := range m.regs {
		switch r.guid {
		case guidBAT:
			m.bat = r
		case guidMetadata:
			m.meta = r
		}
	}
	return m, m.openMeta()
}

// openLog replays a dirty log into memory.
func (m *image) openLog() error {
	if m.hdr.logGUID.IsZero() {
		return nil
	}
	if err := m.hdr.checkLog(m.realSize); err != nil {
		return err
	}
	if m.hdr.logLength > maxLog {
		return unsupported("the log of %d bytes needs a replay; at most %d are done here", m.hdr.logLength, maxLog).(*holdfast.Error).
			Advise("mount the disk once on the host that wrote it")
	}
	l := logReader{read: m.readFile, off: int64(m.hdr.logOffset), size: int64(m.hdr.logLength), guid: m.hdr.logGUID}
	o, err := l.replay(m.realSize)
	if err != nil {
		return err
	}
	m.ov, m.fileSize = o, o.size
	return nil
}

// openMeta reads the metadata and checks that the block table can hold the disk.
func (m *image) openMeta() error {
	table := make([]byte, metaTableSize)
	if err := m.readFile(table, m.meta.off); err != nil {
		return err
	}
	items, err := decodeMetaTable(table, m.meta.length)
	if err != nil {
		return err
	}
	m.items = items
	m.p, err = decodeParams(items, m.readItem)
	if err != nil {
		return err
	}
	if need := m.p.entries() * 8; need > int64(m.bat.length) || m.bat.off+need > m.fileSize {
		return corrupt("a block table of %d bytes at %d cannot hold the %d needed", m.bat.length, m.bat.off, need)
	}
	return nil
}

func (m *image) readItem(it metaItem) ([]byte, error) {
	b := make([]byte, it.len)
	return b, m.readFile(b, m.meta.off+int64(it.off))
}

// readFile fills p from the file with the log laid over. Bytes the log adds to the file's end are zeros.
func (m *image) readFile(p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > m.fileSize {
		return corrupt("%s ends at %d, %d bytes at %d are needed", m.path, m.fileSize, len(p), off)
	}
	n := max(min(int64(len(p)), m.realSize-off), 0)
	if err := readFull(m.f, m.path, p[:n], off); err != nil {
		return err
	}
	clear(p[n:])
	if m.ov != nil {
		m.ov.patch(p, off)
	}
	return nil
}

// readFull fills p from a file that is known to be long enough.
func readFull(f file, path string, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := f.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return corrupt("%s was cut while open: %d bytes at %d are gone", path, len(p), off)
	}
	return ioError("read virtual disk", path, err)
}

// batReader reads block table entries in batches.
type batReader struct {
	m     *image
	last  int64 // the highest index that will be asked for
	first int64
	n     int64
	buf   [64 * 8]byte
}

func (r *batReader) get(i int64) (uint64, error) {
	if i < r.first || i >= r.first+r.n {
		r.first, r.n = i, min(int64(len(r.buf))/8, max(r.last-i+1, 1))
		if err := r.m.cache.read(r.buf[:8*r.n], r.m.bat.off+8*i, r.m.fileSize); err != nil {
			r.n = 0
			return 0, err
		}
	}
	return binary.LittleEndian.Uint64(r.buf[8*(i-r.first):]), nil
}

// entry reads one block table entry.
func (m *image) entry(i int64) (uint64, error) {
	var b [8]byte
	err := m.cache.read(b[:], m.bat.off+8*i, m.fileSize)
	return binary.LittleEndian.Uint64(b[:]), err
}

func entryState(e uint64) int { return int(e & 7) }

// entryOff is where an entry's block is in the file: bits 20–63 count MiB.
func entryOff(e uint64) uint64 { return e &^ (mib - 1) }

// place verifies that a block of n bytes fits at an entry's offset and returns it.
func (m *image) place(e uint64, n int64) (int64, error) {
	off := entryOff(e)
	if off < reservedArea || off > maxFileSize || int64(off)+n > m.fileSize {
		return 0, corrupt("%s: the block table points to %d, the file ends at %d", m.path, off, m.fileSize)
	}
	return int64(off), nil
}

// pageCache keeps the recently used pages of the block table and the sector bitmaps.
type pageCache struct {
	load  func(p []byte, off int64) error
	mu    sync.Mutex
	pages map[int64]*cachePage
	tick  uint64
}

type cachePage struct {
	data []byte // shorter than a page at the end of the file
	used uint64
}

// read fills p from the file through the cache; size is where the file ends.
func (c *pageCache) read(p []byte, off, size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(p) > 0 {
		base := off / pageSize * pageSize
		at := off - base
		n := min(int64(len(p)), pageSize-at)
		pg := c.pages[base]
		if pg == nil || int64(len(pg.data)) < at+n {
			data := make([]byte, min(pageSize, max(size-base, at+n)))
			if err := c.load(data, base); err != nil {
				return err
			}
			pg = c.put(base, data)
		}
		c.tick++
		pg.used = c.tick
		copy(p[:n], pg.data[at:])
		p, off = p[n:], off+n
	}
	return nil
}

// put keeps a page and lets the one unused for longest go.
func (c *pageCache) put(base int64, data []byte) *cachePage {
	if c.pages == nil {
		c.pages = make(map[int64]*cachePage)
	}
	if len(c.pages) >= cachePages {
		oldest := int64(-1)
		for at, pg := range c.pages {
			if oldest < 0 || pg.used < c.pages[oldest].used {
				oldest = at
			}
		}
		delete(c.pages, oldest)
	}
	pg := &cachePage{data: data}
	c.pages[base] = pg
	return pg
}

// update repeats a write to the file in the pages held.
func (c *pageCache) update(p []byte, off int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(p) > 0 {
		base := off / pageSize * pageSize
		at := off - base
		n := min(int64(len(p)), pageSize-at)
		if pg := c.pages[base]; pg != nil {
			if int64(len(pg.data)) < at+n {
				delete(c.pages, base)
			} else {
				copy(pg.data[at:], p[:n])
			}
		}
		p, off = p[n:], off+n
	}
}

// drop forgets the pages of a range that changed behind the cache.
func (c *pageCache) drop(off, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for base := range c.pages {
		if base < off+n && base+pageSize > off {
			delete(c.pages, base)
		}
	}
}
