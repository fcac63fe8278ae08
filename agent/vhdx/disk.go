package vhdx

import (
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// maxChain bounds the files of a differencing chain; hypervisors stop far earlier.
const maxChain = 256

// maxExtents bounds the memory of an allocation map. A map with more pieces is widened, never cut.
const maxExtents = 1 << 20

// Info describes a virtual disk.
type Info struct {
	Format         string          // "vhdx" or "vhd"
	Subformat      string          // "fixed", "dynamic" or "differencing"
	Size           int64           // of the virtual disk, in bytes
	BlockSize      uint32          // 0 for a fixed VHD
	LogicalSector  uint32          // 512 or 4096
	PhysicalSector uint32          // 512 or 4096
	DiskID         holdfast.DiskID // the virtual disk id; for VHD the footer's unique id
	DataWriteGUID  holdfast.ID     // changes when the disk's contents do; zero for VHD
	Chain          []string        // the files, the topmost first
}

// layer is one file of a chain.
type layer interface {
	walk(off, n int64, emit func(seg) error) error
	readFile(p []byte, off int64) error // fills p with bytes of the file
	mayHole() bool                      // holes of the file may be told from data
	info() Info                         // without Chain
	underlying() file
}

func (m *image) underlying() file { return m.f }

// mayHole is false while a log lies over the file: its sectors may be where the file has holes.
func (m *image) mayHole() bool { return m.ov == nil }

func (m *image) info() Info {
	i := Info{Format: "vhdx", Subformat: "dynamic", Size: m.p.size, BlockSize: uint32(m.p.blockSize), LogicalSector: m.p.logical,
		PhysicalSector: m.p.physical, DiskID: holdfast.DiskID{ID: m.p.diskID}, DataWriteGUID: m.hdr.dataWrite}
	switch {
	case m.p.hasParent:
		i.Subformat = "differencing"
	case m.p.fixed:
		i.Subformat = "fixed"
	}
	return i
}

// A Disk is a virtual disk open for reading, with all the files of its chain. Methods are safe for concurrent use.
type Disk struct {
	layer
	path   string
	parent *Disk // nil for the bottom of the chain
}

// Open opens a VHDX or VHD, told apart by content, and the chain of its parents. It never writes, not even to replay a log.
// Each parent is verified by the identity its child recorded, by sector size and by size. The files must not change while
// open, except that a frozen parent may be merged into.
func Open(path string) (*Disk, error) { return openChain(osFS{}, path) }

// openChain opens a disk and its parents.
func openChain(fs fileSystem, path string) (*Disk, error) { return openDepth(fs, path, nil) }

// openDepth opens a file and its parents; above are the files that lead to it.
func openDepth(fs fileSystem, path string, above []string) (*Disk, error) {
	if len(above) >= maxChain {
		return nil, corrupt("the chain of %s has more than %d files", above[0], maxChain)
	}
	if slices.Contains(above, filepath.Clean(path)) {
		return nil, corrupt("%s is its own ancestor", path)
	}
	f, err := fs.Open(path, modeRead)
	if err != nil {
		return nil, ioError("open virtual disk", path, err)
	}
	l, err := openLayer(f, path)
	if err == nil {
		d := &Disk{layer: l, path: path}
		if d.parent, err = openParent(fs, l, path, above); err == nil {
			return d, nil
		}
	}
	return nil, errors.Join(err, f.Close())
}

// openLayer opens one file, VHDX or VHD.
func openLayer(f file, path string) (layer, error) {
	if isVHDX(f) {
		return openImage(f, path)
	}
	return openVHD(f, path)
}

// openParent opens and verifies the parent of a differencing disk; nil for others.
func openParent(fs fileSystem, l layer, path string, above []string) (*Disk, error) {
	if l.info().Subformat != "differencing" {
		return nil, nil
	}
	above = append(slices.Clip(above), filepath.Clean(path))
	var candidates []string
	var verify func(*Disk) error
	switch l := l.(type) {
	case *image:
		candidates, verify = l.p.locator.paths(path), l.verifyParent
	case *vhdImage:
		candidates, verify = l.parents, l.verifyParent
	}
	var errs []error
	for _, c := range candidates {
		if slices.Contains(above, filepath.Clean(c)) {
			errs = append(errs, corrupt("%s is its own ancestor", c))
			continue
		}
		p, err := openDepth(fs, c, above)
		if err == nil {
			if err = verify(p); err == nil {
				return p, nil
			}
			err = errors.Join(err, p.Close())
		}
		errs = append(errs, err)
	}
	return nil, parentError(path, errs)
}

// parentError picks what to report of several failed candidates: the first that was there.
func parentError(path string, errs []error) error {
	kind, cause := holdfast.NotExist, errors.New("its locator names no file")
	for i, err := range errs {
		if k := holdfast.KindOf(err); i == 0 || kind == holdfast.NotExist && k != kind {
			kind, cause = k, err
		}
	}
	return holdfast.Errorf(kind, "open parent disk", "the parent of %s: %w", path, cause).
		Advise("put the parent back where it was, or reconnect the disk to it")
}

// paths turns a locator into candidate paths, in the order the format asks for, then the parent's bare name next to the child.
func (l locator) paths(child string) []string {
	var out []string
	add := func(p string) {
		if p != "" && !slices.Contains(out, p) && len(p) < 32*kib && !strings.ContainsRune(p, 0) {
			out = append(out, p)
		}
	}
	dir := filepath.Dir(child)
	if r := l.get(keyRelative); r != "" {
		add(filepath.Join(dir, fromWindows(r)))
	}
	add(l.get(keyVolume))
	add(l.get(keyAbsolute))
	for _, k := range []string{keyRelative, keyAbsolute, keyVolume} {
		if b := filepath.Base(fromWindows(l.get(k))); l.get(k) != "" && b != "." && b != ".." && b != string(filepath.Separator) {
			add(filepath.Join(dir, b))
		}
	}
	return out
}

func fromWindows(p string) string { return filepath.FromSlash(strings.ReplaceAll(p, `\`, "/")) }

// verifyParent checks that a disk is the parent this child was made from. A parent whose data id is the child's own is a parent
// the child was merged into (see Merge): it holds the child's contents, so reading through the child stays right.
func (m *image) verifyParent(p *Disk) error {
	pi := p.info()
	if pi.Format != "vhdx" {
		return corrupt("%s is a %s, a VHDX needs a VHDX as parent", p.path, pi.Format)
	}
	id := pi.DataWriteGUID
	ok := id == m.hdr.dataWrite
	for _, k := range []string{keyLinkage, keyLinkage2} {
		want, err := holdfast.ParseID(m.p.locator.get(k))
		ok = ok || err == nil && want == id
	}
	if !ok || id.IsZero() {
		return corrupt("%s was changed or replaced: its data id is %s, the child %s expects %s", p.path, id, m.path, m.p.locator.get(keyLinkage))
	}
	return compareParent(m.info(), pi, p.path)
}

// compareParent checks sizes. A child may have grown; past the parent's end it reads zeros.
func compareParent(child, parent Info, path string) error {
	if parent.LogicalSector != child.LogicalSector {
		return corrupt("%s has sectors of %d bytes, its child of %d", path, parent.LogicalSector, child.LogicalSector)
	}
	if parent.Size > child.Size {
		return corrupt("%s has %d bytes, more than the %d of its child", path, parent.Size, child.Size)
	}
	return nil
}

// Info describes the disk as its topmost file does.
func (d *Disk) Info() Info {
	i := d.info()
	for ; d != nil; d = d.parent {
		i.Chain = append(i.Chain, d.path)
	}
	return i
}

// ReadAt fills p from off. Past the end of the disk it returns io.EOF, as io.ReaderAt asks.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	return readClipped(p, off, d.info().Size, d.readAt)
}

// readClipped does the io.ReaderAt part of a read.
func readClipped(p []byte, off, size int64, read func([]byte, int64) error) (int, error) {
	if off < 0 {
		return 0, holdfast.Errorf(holdfast.Invalid, "read virtual disk", "offset %d is negative", off)
	}
	if off >= size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), size-off))
	if n > 0 {
		if err := read(p[:n], off); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readAt fills p, which lies inside the disk.
func (d *Disk) readAt(p []byte, off int64) error { return readLayer(d.layer, d.parent, p, off) }

// readLayer fills p from a layer and what is below it.
func readLayer(l layer, parent *Disk, p []byte, off int64) error {
	return l.walk(off, int64(len(p)), func(s seg) error {
		q := p[s.off-off:][:s.n]
		switch s.kind {
		case segHere:
			return l.readFile(q, s.file)
		case segParent:
			return parent.readBelow(q, s.off)
		}
		clear(q)
		return nil
	})
}

// readBelow reads for a child, which may be larger.
func (d *Disk) readBelow(p []byte, off int64) error {
	n := max(min(int64(len(p)), d.info().Size-off), 0)
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return d.readAt(p[:n], off)
}

// Allocated returns, as a normal list, what may hold bytes other than zero: the blocks and sectors present in the file or visible
// through it in its parents. Where the system knows the holes of a file (Linux), they are left out, so that a sparse fixed
// disk has a map too.
func (d *Disk) Allocated() (holdfast.Extents, error) { return allocated(d.layer, d.parent) }

func allocated(l layer, parent *Disk) (holdfast.Extents, error) {
	var here, below extentSink
	err := l.walk(0, l.info().Size, func(s seg) error {
		switch s.kind {
		case segParent:
			below.add(s.off, s.n)
		case segHere:
			here.addData(l, s)
		}
		return nil
	})
	if err != nil || parent == nil || len(below.list) == 0 {
		return here.list, err
	}
	under, err := parent.Allocated()
	if err != nil {
		return nil, err
	}
	return here.list.Union(under.Intersect(below.list)), nil
}

// extentSink collects rising extents with a bound on their number.
type extentSink struct{ list holdfast.Extents }

func (x *extentSink) add(off, n int64) {
	if k := len(x.list); k > 0 && (x.list[k-1].End() == off || k >= maxExtents) {
		x.list[k-1].Len = off + n - x.list[k-1].Off
		return
	}
	x.list = append(x.list, holdfast.Extent{Off: off, Len: n})
}

// addData adds what of a segment may hold data.
func (x *extentSink) addData(l layer, s seg) {
	if !l.mayHole() {
		x.add(s.off, s.n)
		return
	}
	for at := s.file; at < s.file+s.n; {
		start, stop := l.underlying().NextData(at, s.file+s.n)
		if start >= stop {
			return
		}
		x.add(s.off+start-s.file, stop-start)
		at = stop
	}
}

// Close closes the files of the chain.
func (d *Disk) Close() error {
	var errs []error
	for ; d != nil; d = d.parent {
		if err := d.underlying().Close(); err != nil {
			errs = append(errs, ioError("close virtual disk", d.path, err))
		}
	}
	return errors.Join(errs...)
}
