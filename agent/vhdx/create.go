package vhdx

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"sync"

	"github.com/holdfast-backup/holdfast"
)

// CreateOptions describe a new VHDX.
type CreateOptions struct {
	Size           int64           // bytes; 0 for a differencing disk means the parent's
	Subformat      string          // "fixed", "dynamic" or "differencing"
	BlockSize      uint32          // 0: 32 MiB, 2 MiB for differencing
	LogicalSector  uint32          // 0: 512, the parent's for differencing
	PhysicalSector uint32          // 0: 4096, the parent's for differencing
	DiskID         holdfast.DiskID // zero: a new one; the parent's for differencing, as it is the same disk
	Parent         string          // path of the parent, for differencing only
}

// A Writer fills a new VHDX. Methods are safe for concurrent use; after Finish or Abort they fail.
type Writer struct {
	fs   fileSystem
	m    *mutable
	mu   sync.RWMutex
	done bool
}

// Create makes a new VHDX, all zeros or, for a differencing disk, all its parent. It fails with Exist if there is a file. The file
// becomes a valid VHDX by Finish; until then no program takes it for one, however it was cut off.
func Create(path string, o CreateOptions) (*Writer, error) { return create(osFS{}, path, o) }

func create(fs fileSystem, path string, o CreateOptions) (*Writer, error) {
	p, parent, err := o.params(fs, path)
	if err != nil {
		return nil, err
	}
	f, err := fs.Open(path, modeCreate)
	if err != nil {
		return nil, errors.Join(ioError("create virtual disk", path, err), parent.Close())
	}
	m := &mutable{image: newImage(f, path, p), parent: parent, bare: true}
	if err := m.layOut(); err != nil {
		err = errors.Join(err, m.close())
		return nil, errors.Join(err, fs.Remove(path))
	}
	return &Writer{fs: fs, m: m}, nil
}

// params fills in the defaults and opens the parent.
func (o CreateOptions) params(fs fileSystem, path string) (params, *Disk, error) {
	p := params{blockSize: int64(o.BlockSize), size: o.Size, diskID: o.DiskID.ID, logical: o.LogicalSector, physical: o.PhysicalSector,
		fixed: o.Subformat == "fixed", hasParent: o.Subformat == "differencing"}
	invalid := func(format string, args ...any) error {
		return holdfast.Errorf(holdfast.Invalid, "create virtual disk", format, args...)
	}
	if !p.fixed && !p.hasParent && o.Subformat != "dynamic" {
		return p, nil, invalid("unknown subformat %q", o.Subformat)
	}
	if p.hasParent != (o.Parent != "") {
		return p, nil, invalid("a parent is for differencing disks, and those need one")
	}
	if p.blockSize == 0 {
		p.blockSize = 32 * mib
		if p.hasParent {
			p.blockSize = 2 * mib
		}
	}
	var parent *Disk
	if p.hasParent {
		var err error
		if parent, err = openDepth(fs, o.Parent, []string{filepath.Clean(path)}); err != nil {
			return p, nil, err
		}
		if err := p.inherit(path, o.Parent, parent.info()); err != nil {
			return p, nil, errors.Join(err, parent.Close())
		}
	}
	if p.logical == 0 {
		p.logical = 512
	}
	if p.physical == 0 {
		p.physical = 4096
	}
	if p.diskID.IsZero() {
		p.diskID = holdfast.NewID()
	}
	if err := p.check(); err != nil {
		return p, nil, errors.Join(invalid("%w", err), parent.Close())
	}
	return p, parent, nil
}

// inherit takes from the parent what was left open and refuses what does not fit.
func (p *params) inherit(path, parentPath string, pi Info) error {
	if p.size == 0 {
		p.size = pi.Size
	}
	if p.logical == 0 {
		p.logical = pi.LogicalSector
	}
	if p.physical == 0 {
		p.physical = pi.PhysicalSector
	}
	if p.diskID.IsZero() {
		p.diskID = pi.DiskID.ID
	}
	if pi.Format != "vhdx" || pi.LogicalSector != p.logical || pi.Size > p.size {
		return holdfast.Errorf(holdfast.Invalid, "create virtual disk", "%s (%s, %d bytes, sectors of %d) cannot be the parent of a VHDX of %d bytes with sectors of %d",
			parentPath, pi.Format, pi.Size, pi.LogicalSector, p.size, p.logical)
	}
	var err error
	p.locator, err = makeLocator(path, parentPath, pi.DataWriteGUID)
	return err
}

// newImage lays a new file out: log of 1 MiB at 1 MiB, block table, metadata of 1 MiB, payload.
func newImage(f file, path string, p params) *image {
	table := (8*p.entries() + mib - 1) / mib * mib
	m := &image{f: f, path: path, p: p, slot: 1}
	m.cache.load = m.readFile
	m.hdr = header{fileWrite: holdfast.NewID(), dataWrite: holdfast.NewID(), logLength: mib, logOffset: mib}
	m.bat = region{guidBAT, 2 * mib, uint32(table), true}
	m.meta = region{guidMetadata, m.bat.end(), mib, true}
	m.regs = []region{m.bat, m.meta}
	return m
}

// layOut sizes the file and writes metadata and, for a fixed disk, the block table.
func (m *mutable) layOut() error {
	m.space.mark(0, m.meta.end())
	end := m.meta.end()
	if m.p.fixed {
		end += m.p.blocks() * m.p.blockSize
		m.space.mark(m.meta.end(), m.p.blocks()*m.p.blockSize)
	}
	if err := m.truncate(end); err != nil {
		return err
	}
	if err := m.writeMeta(); err != nil {
		return err
	}
	if !m.p.fixed {
		return nil
	}
	buf := make([]byte, 0, mib)
	at := m.bat.off
	for i, block := int64(0), int64(0); i < m.p.entries(); i++ {
		e := uint64(0)
		if i%(m.p.chunkRatio()+1) != m.p.chunkRatio() {
			e = uint64(m.meta.end()+block*m.p.blockSize) | stateFull
			block++
		}
		buf = binary.LittleEndian.AppendUint64(buf, e)
		if len(buf) == cap(buf) || i == m.p.entries()-1 {
			if err := m.put(buf, at); err != nil {
				return err
			}
			at, buf = at+int64(len(buf)), buf[:0]
		}
	}
	return nil
}

// writeMeta writes the metadata region of a new file.
func (m *mutable) writeMeta() error {
	p := m.p
	file := make([]byte, 8)
	binary.LittleEndian.PutUint32(file, uint32(p.blockSize))
	if p.fixed {
		file[4] |= 1
	}
	if p.hasParent {
		file[4] |= 2
	}
	id := make([]byte, 16)
	putGUID(id, p.diskID)
	type item struct {
		guid  holdfast.ID
		flags uint32
		data  []byte
	}
	list := []item{
		{guidFileParams, flagRequired, file},
		{guidDiskSize, flagRequired | flagVirtual, binary.LittleEndian.AppendUint64(nil, uint64(p.size))},
		{guidDiskID, flagRequired | flagVirtual, id},
		{guidLogical, flagRequired | flagVirtual, binary.LittleEndian.AppendUint32(nil, p.logical)},
		{guidPhysical, flagRequired | flagVirtual, binary.LittleEndian.AppendUint32(nil, p.physical)},
	}
	if p.hasParent {
		list = append(list, item{guidLocator, flagRequired, p.locator.encode()})
	}
	b := make([]byte, metaTableSize)
	for _, it := range list {
		m.items = append(m.items, metaItem{it.guid, uint32(len(b)), uint32(len(it.data)), it.flags})
		b = append(b, it.data...)
		b = append(b, make([]byte, -len(b)&15)...) // no small item crosses a sector
	}
	copy(b, encodeMetaTable(m.items))
	return m.put(b, m.meta.off)
}

// Info describes the disk being made.
func (w *Writer) Info() Info {
	i := w.m.info()
	i.Chain = []string{w.m.path}
	if w.m.parent != nil {
		i.Chain = append(i.Chain, w.m.parent.Info().Chain...)
	}
	return i
}

// WriteAt writes p at any offset and length inside the disk, in any order. Zeros for a block not yet there take no space.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.done {
		return 0, w.errDone()
	}
	return w.m.writeAt(p, off)
}

func (w *Writer) errDone() error {
	return holdfast.Errorf(holdfast.Invalid, "write virtual disk", "%s is already closed", w.m.path)
}

// Finish makes everything durable, and only then the file a valid VHDX. It closes the file, also on failure; then the file is to
// be removed.
func (w *Writer) Finish() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return w.errDone()
	}
	w.done = true
	err := errors.Join(w.m.seal(), w.m.close())
	if err != nil {
		return err
	}
	dir := filepath.Dir(w.m.path)
	if err := w.fs.SyncDir(dir); err != nil {
		return ioError("flush folder", dir, err)
	}
	return nil
}

// seal writes what makes the file a VHDX, after all else is durable.
func (m *mutable) seal() error {
	regs := encodeRegions(m.regs)
	for _, at := range regionAt {
		if err := m.put(regs, at); err != nil {
			return err
		}
	}
	if err := m.sync(); err != nil {
		return err
	}
	id := append([]byte(nil), magicFile...)
	if err := m.put(append(id, utf16LE("Holdfast")...), 0); err != nil {
		return err
	}
	return m.updateHeader(func(*header) {})
}

// Abort closes and removes the file.
func (w *Writer) Abort() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return w.errDone()
	}
	w.done = true
	err := w.m.close()
	if rerr := w.fs.Remove(w.m.path); rerr != nil {
		err = errors.Join(err, ioError("remove virtual disk", w.m.path, rerr))
	}
	return err
}
