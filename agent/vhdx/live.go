package vhdx

import (
	"errors"

	"github.com/holdfast-backup/holdfast"
)

// A Live is a VHDX open for reading and writing in place; the parents of its chain are only read. It serves the lab host. One
// Live per file exists at a time; its methods are safe for concurrent use, but overlapping writes are the caller's to order.
type Live struct {
	m  *mutable
	fs fileSystem
}

// OpenLive opens a VHDX for writing. A dirty log is replayed into the file first; nothing else is written before the first change.
// The first change gives the file new file and data ids, so a child made before no longer fits: never open the parent of a
// differencing disk that is still needed. It fails with Busy while another writer has the file, with Unsupported for a VHD.
func OpenLive(path string) (*Live, error) { return openLive(osFS{}, path) }

func openLive(fs fileSystem, path string) (*Live, error) {
	m, err := openMutable(fs, path)
	if err != nil {
		return nil, err
	}
	if m.parent, err = openParent(fs, m.image, path, nil); err != nil {
		return nil, errors.Join(err, m.f.Close())
	}
	return &Live{m: m, fs: fs}, nil
}

// openMutable opens one file for writing, without its parents.
func openMutable(fs fileSystem, path string) (*mutable, error) {
	f, err := fs.Open(path, modeWrite)
	if err != nil {
		return nil, ioError("open disk for writing", path, err)
	}
	m, err := makeMutable(f, path)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return m, nil
}

func makeMutable(f file, path string) (*mutable, error) {
	if !isVHDX(f) {
		if _, err := openVHD(f, path); err != nil {
			return nil, err
		}
		return nil, unsupported("%s is a VHD: only VHDX files are written", path)
	}
	img, err := openImage(f, path)
	if err != nil {
		return nil, err
	}
	m := &mutable{image: img}
	if err := m.applyLog(); err != nil {
		return nil, err
	}
	return m, m.findSpace()
}

// applyLog does what the log asks for, makes it durable and marks the log as empty. A kill in between leaves the log to be
// applied again, with the same result.
func (m *mutable) applyLog() error {
	if m.ov == nil {
		return nil
	}
	o, size := m.ov, m.realSize
	if m.fileSize > m.realSize {
		if err := m.truncate(m.fileSize); err != nil {
			return err
		}
	}
	for _, z := range o.zeros.Normal(size) { // what was just added is zero
		if err := m.punch(z.Off, z.Len); err != nil {
			return err
		}
	}
	for off, b := range o.sectors {
		if err := m.put(b, off); err != nil {
			return err
		}
	}
	if err := m.sync(); err != nil {
		return err
	}
	m.ov = nil
	return m.updateHeader(func(h *header) { h.fileWrite, h.logGUID = holdfast.NewID(), holdfast.ID{} })
}

// findSpace marks what the file uses. Overlapping blocks are refused: writing to one would change the other.
func (m *mutable) findSpace() error {
	m.space.mark(0, reservedArea)
	if m.hdr.logLength > 0 {
		if err := m.hdr.checkLog(m.fileSize); err != nil {
			return err
		}
		if !m.space.mark(int64(m.hdr.logOffset), int64(m.hdr.logLength)) {
			return corrupt("%s: the log overlaps the headers", m.path)
		}
	}
	for _, r := range m.regs {
		if r.end() > m.fileSize {
			return corrupt("%s: region %s ends at %d, past the end of the file", m.path, r.guid, r.end())
		}
		if !m.space.mark(r.off, int64(r.length)) {
			return corrupt("%s: region %s overlaps the log", m.path, r.guid)
		}
	}
	n := m.p.entries()
	r := batReader{m: m.image, last: n - 1}
	for i := range n {
		e, err := r.get(i)
		if err != nil {
			return err
		}
		if err := m.markEntry(e, i); err != nil {
			return err
		}
	}
	return nil
}

// markEntry marks the block of entry i.
func (m *mutable) markEntry(e uint64, i int64) error {
	size := m.p.blockSize
	if i%(m.p.chunkRatio()+1) == m.p.chunkRatio() {
		size = mib
	}
	switch s := entryState(e); {
	case s == stateFull || s == statePartial:
		off, err := m.place(e, size)
		if err != nil {
			return err
		}
		if !m.space.mark(off, size) {
			return corrupt("%s: block table entry %d points into space used otherwise", m.path, i)
		}
	case s > stateUnmapped:
		return corrupt("%s: block table entry %d has the unknown state %d", m.path, i, s)
	case entryOff(e) != 0:
		// Reserved for the block by a writer with other habits: not ours to use.
		if off, err := m.place(e, size); err == nil {
			m.space.mark(off, size)
		}
	}
	return nil
}

// Info describes the disk.
func (l *Live) Info() Info {
	l.m.mu.RLock()
	defer l.m.mu.RUnlock()
	i := l.m.info()
	i.Chain = []string{l.m.path}
	if l.m.parent != nil {
		i.Chain = append(i.Chain, l.m.parent.Info().Chain...)
	}
	return i
}

// ReadAt fills p from off. Past the end of the disk it returns io.EOF, as io.ReaderAt asks.
func (l *Live) ReadAt(p []byte, off int64) (int, error) {
	l.m.mu.RLock()
	defer l.m.mu.RUnlock()
	return readClipped(p, off, l.m.p.size, func(p []byte, off int64) error { return readLayer(l.m.image, l.m.parent, p, off) })
}

// WriteAt writes p at any offset and length inside the disk. It is durable after Flush. After an error an unknown part of p is
// written, as on a real disk.
func (l *Live) WriteAt(p []byte, off int64) (int, error) { return l.m.writeAt(p, off) }

// Zero makes a range read as zero. Whole blocks are given back; no space is taken except where a parent's data must be hidden in
// part of a block.
func (l *Live) Zero(off, n int64) error { return l.m.zero(off, n) }

// Flush makes all finished writes durable.
func (l *Live) Flush() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return l.m.sync()
}

// Allocated returns what may hold bytes other than zero, as Disk.Allocated does.
func (l *Live) Allocated() (holdfast.Extents, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return allocated(l.m.image, l.m.parent)
}

// Resize makes the disk larger; the new part reads as zero. It is durable when it returns. The guest must not use the disk.
func (l *Live) Resize(newSize int64) error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return l.m.resize(newSize)
}

// Close makes everything durable and closes the files.
func (l *Live) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return errors.Join(l.m.sync(), l.m.close())
}

// close closes the files without flushing.
func (m *mutable) close() error {
	var err error
	if cerr := m.f.Close(); cerr != nil {
		err = ioError("close virtual disk", m.path, cerr)
	}
	return errors.Join(err, m.parent.Close())
}
