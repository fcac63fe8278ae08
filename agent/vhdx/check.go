package vhdx

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/holdfast-backup/holdfast"
)

// maxProblems bounds a report.
const maxProblems = 100

// A Report says what Check found.
type Report struct {
	Problems []string `json:"problems"` // rules of the format that the file breaks
	Notes    []string `json:"notes"`    // worth knowing, but right
}

func (r *Report) problem(format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	} else if len(r.Problems) == maxProblems {
		r.Problems = append(r.Problems, "and more")
	}
}

func (r *Report) note(format string, args ...any) {
	if len(r.Notes) < maxProblems {
		r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
	}
}

// Check verifies every rule of a VHDX or VHD file and of its chain, and reports each one broken. It never writes. Its error means
// that the file could not be read at all.
func Check(path string) (Report, error) { return check(osFS{}, path) }

func check(fs fileSystem, path string) (Report, error) {
	r := Report{Problems: []string{}, Notes: []string{}}
	f, err := fs.Open(path, modeRead)
	if err != nil {
		return r, ioError("check virtual disk", path, err)
	}
	if isVHDX(f) {
		r.checkVHDX(f, path)
	} else {
		r.checkVHD(f, path)
	}
	if err := f.Close(); err != nil {
		return r, ioError("check virtual disk", path, err)
	}
	if len(r.Problems) > 0 {
		return r, nil
	}
	d, err := openChain(fs, path)
	if err != nil {
		if k := holdfast.KindOf(err); k == holdfast.Internal || k == holdfast.Permission {
			return r, err
		}
		r.problem("chain: %v", err)
		return r, nil
	}
	for p := d.parent; p != nil; p = p.parent {
		if c, ok := p.layer.(*image); ok && d.info().DataWriteGUID == c.hdr.dataWrite {
			r.note("%s holds the contents of %s: it was merged", p.path, path)
		}
	}
	return r, d.Close()
}

// checkVHDX checks one VHDX file without its parents.
func (r *Report) checkVHDX(f file, path string) {
	for i := range 2 {
		b := make([]byte, regionSize)
		if _, err := f.ReadAt(b[:headerSize], headerAt[i]); err != nil {
			r.problem("header %d: %v", i+1, err)
		} else if _, err := decodeHeader(b); err != nil {
			r.problem("header %d: %v", i+1, err)
		}
		if _, err := f.ReadAt(b, regionAt[i]); err != nil {
			r.problem("region table %d: %v", i+1, err)
		} else if _, err := decodeRegions(b); err != nil {
			r.problem("region table %d: %v", i+1, err)
		}
	}
	m, err := openImage(f, path)
	if err != nil {
		r.problem("%v", err)
		return
	}
	if !bytes.Equal(m.raw.regions[0], m.raw.regions[1]) {
		r.note("the two region tables differ; the first valid one counts")
	}
	if m.ov != nil {
		r.note("the log holds %d entries that a writer has not applied yet", m.ov.entries)
	}
	var a allocator
	a.mark(0, reservedArea)
	if err := m.hdr.checkLog(m.fileSize); err != nil {
		r.problem("%v", err)
	} else if !a.mark(int64(m.hdr.logOffset), int64(m.hdr.logLength)) {
		r.problem("the log overlaps the headers")
	}
	for _, g := range m.regs {
		if g.end() > m.fileSize {
			r.problem("region %s ends at %d, past the end of the file at %d", g.guid, g.end(), m.fileSize)
		} else if !a.mark(g.off, int64(g.length)) {
			r.problem("region %s overlaps the log", g.guid)
		}
	}
	r.checkItems(m)
	r.checkTable(m, &a)
	if end := a.end * mib; end < m.fileSize {
		r.note("%d bytes at the end of the file are not in use", m.fileSize-end)
	}
	if a.free > 0 {
		r.note("%d MiB between blocks are not in use", a.free)
	}
}

// checkItems checks that metadata items do not overlap.
func (r *Report) checkItems(m *image) {
	for i, a := range m.items {
		for _, b := range m.items[:i] {
			if a.len > 0 && b.len > 0 && uint64(a.off) < uint64(b.off)+uint64(b.len) && uint64(b.off) < uint64(a.off)+uint64(a.len) {
				r.problem("metadata items %s and %s overlap", a.guid, b.guid)
			}
		}
	}
	if m.p.diskID.IsZero() {
		r.note("the virtual disk id is zero")
	}
}

// checkTable checks every block table entry.
func (r *Report) checkTable(m *image, a *allocator) {
	n := m.p.entries()
	br := batReader{m: m, last: n - 1}
	ratio := m.p.chunkRatio()
	bitmap := false // of the chunk at hand
	for i := range n {
		e, err := br.get(i)
		if err != nil {
			r.problem("block table: %v", err)
			return
		}
		isBitmap := i%(ratio+1) == ratio
		if i%(ratio+1) == 0 && m.p.hasParent {
			b, err := m.entry(i + ratio)
			bitmap = err == nil && entryState(b) == stateFull
		}
		r.checkEntry(m, a, i, e, isBitmap)
		if !isBitmap && entryState(e) == statePartial && !bitmap {
			r.problem("block table entry %d: partly present without a sector bitmap", i)
		}
	}
}

func (r *Report) checkEntry(m *image, a *allocator, i int64, e uint64, isBitmap bool) {
	s, off, size := entryState(e), entryOff(e), m.p.blockSize
	if isBitmap {
		size = mib
	}
	switch {
	case e&(mib-1)&^7 != 0:
		r.problem("block table entry %d: reserved bits are set (%#x)", i, e)
	case isBitmap && s != stateAbsent && s != stateFull:
		r.problem("block table entry %d: a sector bitmap cannot be in state %d", i, s)
	case s > stateUnmapped && s < stateFull:
		r.problem("block table entry %d: unknown state %d", i, s)
	case s == statePartial && !m.p.hasParent:
		r.problem("block table entry %d: partly present, but the disk has no parent", i)
	case isBitmap && s == stateFull && !m.p.hasParent:
		r.problem("block table entry %d: a sector bitmap, but the disk has no parent", i)
	case s == stateFull || s == statePartial:
		at, err := m.place(e, size)
		if err != nil {
			r.problem("block table entry %d: %v", i, err)
		} else if !a.mark(at, size) {
			r.problem("block table entry %d: the block at %d overlaps something else", i, at)
		}
	case off != 0:
		if at, err := m.place(e, size); err == nil {
			a.mark(at, size)
		}
		r.note("block table entry %d: state %d with space reserved at %d", i, s, off)
	case m.p.fixed && !isBitmap:
		r.note("block table entry %d: state %d without space in a fixed disk", i, s)
	}
}

// checkVHD checks one VHD file without its parents.
func (r *Report) checkVHD(f file, path string) {
	l, err := openVHD(f, path)
	if err != nil {
		r.problem("%v", err)
		return
	}
	v := l.(*vhdImage)
	if v.foot.kind == vhdFixed {
		return
	}
	b := make([]byte, vhdFooterSize)
	for i, at := range []int64{0, v.fileSize - vhdFooterSize} {
		if err := v.readFile(b, at); err != nil {
			r.problem("footer: %v", err)
		} else if g, err := decodeVHDFooter(b); err != nil {
			if i == 1 { // perhaps one of 511 bytes
				if _, end, err := v.footer(); err == nil && end == v.fileSize-vhdFooterSize+1 {
					r.note("the footer has 511 bytes")
					continue
				}
			}
			r.problem("footer %d: %v", i+1, err)
		} else if g != v.foot {
			r.problem("the two footers differ")
		}
	}
	r.checkVHDTable(v)
}

func (r *Report) checkVHDTable(v *vhdImage) {
	bs := int64(v.head.blockSize)
	blocks := (int64(v.foot.size) + bs - 1) / bs
	seen := make(map[uint32]int64)
	for i := range blocks {
		var b [4]byte
		if err := v.cache.read(b[:], int64(v.head.tableAt)+4*i, v.fileSize); err != nil {
			r.problem("block table: %v", err)
			return
		}
		e := binary.BigEndian.Uint32(b[:])
		if e == vhdUnused {
			continue
		}
		at := int64(e) * vhdSector
		if at < vhdFooterSize+vhdHeaderSize || at+v.bitmapLen()+min(bs, int64(v.foot.size)-i*bs) > v.fileSize {
			r.problem("block table entry %d: the block at %d is outside the file", i, at)
		}
		if j, ok := seen[e]; ok {
			r.problem("block table entries %d and %d point to the same block", j, i)
		}
		seen[e] = i
	}
}
