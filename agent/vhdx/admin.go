package vhdx

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// resize grows the disk. The block table gets room first, the size comes last: a kill before leaves the old disk.
func (m *mutable) resize(size int64) error {
	p := m.p
	p.size = size
	if size < m.p.size || p.check() != nil {
		return holdfast.Errorf(holdfast.Invalid, "resize virtual disk", "a disk of %d bytes cannot become %d", m.p.size, size).
			Advise("a disk can only grow, by whole sectors, up to 64 TiB")
	}
	if size == m.p.size {
		return nil
	}
	if err := m.begin(); err != nil {
		return err
	}
	if err := m.zeroTail(); err != nil {
		return err
	}
	if err := m.growTable(p.entries()); err != nil {
		return err
	}
	if m.p.fixed {
		for b := m.p.blocks(); b < p.blocks(); b++ {
			at, err := m.allocate(p.blockSize)
			if err != nil {
				return err
			}
			if err := m.setEntry(p.payloadIndex(b), at, stateFull); err != nil {
				return err
			}
		}
	}
	if err := m.sync(); err != nil {
		return err
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(size))
	if err := m.setItem(guidDiskSize, b[:]); err != nil {
		return err
	}
	m.p.size = size
	return m.sync()
}

// zeroTail clears what the last block holds past the end of the disk, before that becomes part of the disk.
func (m *mutable) zeroTail() error {
	block := m.p.blocks() - 1
	n := m.blockLen(block)
	if n == m.p.blockSize {
		return nil
	}
	e, err := m.entry(m.p.payloadIndex(block))
	if err != nil {
		return err
	}
	switch entryState(e) {
	case stateFull:
		at, err := m.place(e, m.p.blockSize)
		if err != nil {
			return err
		}
		return m.punch(at+n, m.p.blockSize-n)
	case statePartial:
		bm, err := m.bitmapAt(block)
		if err != nil {
			return err
		}
		slice := make([]byte, m.p.bitmapLen())
		if err := m.cache.read(slice, bm, m.fileSize); err != nil {
			return err
		}
		for i := n / int64(m.p.logical); i < int64(len(slice))*8; i++ {
			slice[i/8] &^= 1 << (i % 8)
		}
		return m.putTable(slice, bm)
	}
	return nil
}

// growTable makes room for n entries, all zero past those in use: in the region, or in a larger one at a new place.
func (m *mutable) growTable(n int64) error {
	old := m.p.entries()
	if n <= old {
		return nil
	}
	if 8*n <= int64(m.bat.length) {
		m.cache.drop(m.bat.off+8*old, 8*(n-old))
		return m.punch(m.bat.off+8*old, 8*(n-old))
	}
	length := (8*n + mib - 1) / mib * mib
	to, err := m.allocate(length)
	if err != nil {
		return err
	}
	buf := make([]byte, min(8*old, mib))
	for at := int64(0); at < 8*old; at += int64(len(buf)) {
		c := buf[:min(int64(len(buf)), 8*old-at)]
		if err := m.readFile(c, m.bat.off+at); err != nil {
			return err
		}
		if err := m.put(c, to+at); err != nil {
			return err
		}
	}
	if err := m.sync(); err != nil {
		return err
	}
	moved := m.bat
	moved.off, moved.length = to, uint32(length)
	regs := append([]region(nil), m.regs...)
	for i, r := range regs {
		if r.guid == guidBAT {
			regs[i] = moved
		}
	}
	// One copy at a time: a kill leaves a good one. The first counts, and begin repairs the second.
	raw := encodeRegions(regs)
	for i := range 2 {
		if err := m.put(raw, regionAt[i]); err != nil {
			return err
		}
		if err := m.sync(); err != nil {
			return err
		}
		m.raw.regions[i] = raw
	}
	m.cache.drop(to, length)
	m.space.release(m.bat.off, int64(m.bat.length))
	m.regs, m.regSlot, m.bat = regs, 0, moved
	return nil
}

// setItem changes a metadata item: in place where that is one write within a sector, else at a new place, which the item's table
// entry then points to with one write.
func (m *mutable) setItem(guid holdfast.ID, b []byte) error {
	i := -1
	for j, it := range m.items {
		if it.guid == guid && it.flags&flagUser == 0 {
			i = j
		}
	}
	if i < 0 {
		return corrupt("%s: metadata item %s is missing", m.path, guid)
	}
	it := m.items[i]
	at := m.meta.off + int64(it.off)
	if int(it.len) == len(b) && at/512 == (at+int64(len(b))-1)/512 {
		return m.put(b, at)
	}
	off, ok := m.itemGap(uint32(len(b)))
	if !ok {
		return unsupported("%s: the metadata region has no room for %d bytes", m.path, len(b))
	}
	if err := m.put(b, m.meta.off+int64(off)); err != nil {
		return err
	}
	if err := m.sync(); err != nil {
		return err
	}
	it.off, it.len = off, uint32(len(b))
	var e [8]byte
	binary.LittleEndian.PutUint32(e[:], it.off)
	binary.LittleEndian.PutUint32(e[4:], it.len)
	if err := m.put(e[:], m.meta.off+32+32*int64(i)+16); err != nil {
		return err
	}
	m.items[i] = it
	return nil
}

// itemGap finds n unused bytes of the metadata region, at a multiple of 4 KiB.
func (m *mutable) itemGap(n uint32) (uint32, bool) {
	for off := uint64(metaTableSize); off+uint64(n) <= uint64(m.meta.length); off += 4 * kib {
		free := true
		for _, it := range m.items {
			if it.len > 0 && off < uint64(it.off)+uint64(it.len) && uint64(it.off) < off+uint64(n) {
				free = false
				break
			}
		}
		if free {
			return uint32(off), true
		}
	}
	return 0, false
}

// SetDiskID gives a VHDX another virtual disk id. The disk must not be in use. Only this file of a chain is changed, and its
// contents keep their data id, so its children still fit.
func SetDiskID(path string, id holdfast.DiskID) error { return setDiskID(osFS{}, path, id) }

func setDiskID(fs fileSystem, path string, id holdfast.DiskID) error {
	if id.IsZero() {
		return holdfast.Errorf(holdfast.Invalid, "set disk id", "the id is zero")
	}
	return edit(fs, path, func(m *mutable) error {
		var b [16]byte
		putGUID(b[:], id.ID)
		return m.setItem(guidDiskID, b[:])
	})
}

// edit changes a file's metadata and makes that durable.
func edit(fs fileSystem, path string, change func(*mutable) error) error {
	m, err := openMutable(fs, path)
	if err != nil {
		return err
	}
	m.keep = true
	if err = m.begin(); err == nil {
		if err = change(m); err == nil {
			err = m.sync()
		}
	}
	return errors.Join(err, m.close())
}

// SetParent connects a differencing VHDX to a parent at another path, after verifying that it is the parent the child was made
// from, or a disk that parent was merged into (see Merge). The disk must not be open for writing.
func SetParent(child, parent string) error { return setParent(osFS{}, child, parent) }

func setParent(fs fileSystem, child, parent string) error {
	return edit(fs, child, func(m *mutable) error {
		_, err := m.connect(fs, parent)
		return err
	})
}

// SetParent is like the function SetParent for a disk that is open: after a merge of the parent into its own parent, the
// running disk is connected to the latter, and the merged file is closed and can be removed.
func (l *Live) SetParent(parent string) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if !l.m.begun { // metadata changes, guest data does not
		if err := l.m.updateHeader(func(h *header) { h.fileWrite = holdfast.NewID() }); err != nil {
			return err
		}
	}
	p, err := l.m.connect(l.fs, parent)
	if err != nil {
		return err
	}
	old := l.m.parent
	l.m.parent = p
	return errors.Join(l.m.sync(), old.Close())
}

// connect verifies a parent, writes the locator and returns the open parent where m has its parents open; else nil.
func (m *mutable) connect(fs fileSystem, parent string) (_ *Disk, err error) {
	if !m.p.hasParent {
		return nil, holdfast.Errorf(holdfast.Invalid, "set parent disk", "%s is not a differencing disk", m.path)
	}
	p, err := openDepth(fs, parent, []string{filepath.Clean(m.path)})
	if err != nil {
		return nil, err
	}
	keep := false
	defer func() {
		if !keep {
			err = errors.Join(err, p.Close())
		}
	}()
	if err := m.verifyParent(p); err != nil {
		return nil, err
	}
	loc, err := makeLocator(m.path, parent, p.info().DataWriteGUID)
	if err != nil {
		return nil, err
	}
	if err := m.setItem(guidLocator, loc.encode()); err != nil {
		return nil, err
	}
	m.p.locator = loc
	if m.parent == nil {
		return nil, nil
	}
	keep = true
	return p, nil
}

// makeLocator describes a parent as Windows expects it: the relative path with backslashes, the absolute one where the system
// has such paths.
func makeLocator(child, parent string, linkage holdfast.ID) (locator, error) {
	c, err1 := filepath.Abs(child)
	p, err2 := filepath.Abs(parent)
	if err := errors.Join(err1, err2); err != nil {
		return nil, ioError("find parent disk", parent, err)
	}
	l := locator{{keyLinkage, braced(linkage)}}
	if rel, err := filepath.Rel(filepath.Dir(c), p); err == nil {
		if filepath.Separator != '\\' && strings.Contains(rel, `\`) {
			return nil, holdfast.Errorf(holdfast.Invalid, "find parent disk", "%s: a backslash in a name cannot be written into the child", parent)
		}
		rel = strings.ReplaceAll(filepath.ToSlash(rel), "/", `\`)
		if !strings.HasPrefix(rel, `..\`) {
			rel = `.\` + rel
		}
		l = append(l, struct{ key, value string }{keyRelative, rel})
	}
	if runtime.GOOS == "windows" {
		l = append(l, struct{ key, value string }{keyAbsolute, p})
	}
	if len(utf16LE(l[len(l)-1].value)) >= 64*kib {
		return nil, holdfast.Errorf(holdfast.Invalid, "find parent disk", "the path of %s is too long", parent)
	}
	return l, nil
}
