package vhdx

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"slices"

	"github.com/holdfast-backup/holdfast"
)

// VHD structures are big-endian.
const (
	vhdFooterSize = 512
	vhdHeaderSize = 1024
	vhdSector     = 512
	vhdFixed      = 2
	vhdDynamic    = 3
	vhdDiff       = 4
	vhdUnused     = 0xFFFFFFFF
	maxVHDSize    = 2040 << 30
	maxVHDPath    = 64 * kib // of one parent locator
)

// vhdFooter is the 512-byte structure at the end of a VHD, with a copy at the start of a dynamic one.
//
//	0 "conectix"  16 offset of the dynamic header u64  48 size u64  60 type u32  64 checksum u32  68 unique id
type vhdFooter struct {
	headerAt uint64
	size     uint64
	kind     uint32
	id       holdfast.ID
}

// vhdSum is the ones' complement of the sum of all bytes, those of the field itself left out.
func vhdSum(b []byte, field int) uint32 {
	var s uint32
	for i, c := range b {
		if i < field || i >= field+4 {
			s += uint32(c)
		}
	}
	return ^s
}

// decodeVHDFooter reads a footer; a missing last byte was made zero by the caller.
func decodeVHDFooter(b []byte) (vhdFooter, error) {
	if !bytes.Equal(b[:8], []byte("conectix")) {
		return vhdFooter{}, corrupt("no VHD footer")
	}
	if binary.BigEndian.Uint32(b[64:]) != vhdSum(b[:vhdFooterSize], 64) {
		return vhdFooter{}, corrupt("wrong VHD footer checksum")
	}
	if v := binary.BigEndian.Uint16(b[12:]); v != 1 {
		return vhdFooter{}, unsupported("VHD version %d", v)
	}
	f := vhdFooter{headerAt: binary.BigEndian.Uint64(b[16:]), size: binary.BigEndian.Uint64(b[48:]), kind: binary.BigEndian.Uint32(b[60:])}
	copy(f.id[:], b[68:84])
	switch {
	case f.kind != vhdFixed && f.kind != vhdDynamic && f.kind != vhdDiff:
		return f, unsupported("VHD of type %d", f.kind)
	case f.size == 0 || f.size%vhdSector != 0 || f.size > maxVHDSize:
		return f, corrupt("VHD disk size %d is not a positive multiple of 512 up to 2040 GiB", f.size)
	}
	return f, nil
}

// encode returns the footer with its checksum.
func (f vhdFooter) encode() []byte {
	b := make([]byte, vhdFooterSize)
	copy(b, "conectix")
	binary.BigEndian.PutUint32(b[8:], 2) // the feature bit that is always set
	binary.BigEndian.PutUint32(b[12:], 0x00010000)
	binary.BigEndian.PutUint64(b[16:], f.headerAt)
	copy(b[28:], "hold")
	binary.BigEndian.PutUint64(b[40:], f.size)
	binary.BigEndian.PutUint64(b[48:], f.size)
	binary.BigEndian.PutUint32(b[60:], f.kind)
	copy(b[68:], f.id[:])
	binary.BigEndian.PutUint32(b[64:], vhdSum(b, 64))
	return b
}

// vhdHeader is the dynamic header of 1024 bytes.
//
//	0 "cxsparse"  16 table offset u64  24 version u32  28 entries u32  32 block size u32  36 checksum u32  40 parent id
//	64 parent name, UTF-16BE, 512 bytes  576 eight locators of 24 bytes: code, space u32, length u32, reserved, offset u64
type vhdHeader struct {
	tableAt   uint64
	entries   uint32
	blockSize uint32
	parentID  holdfast.ID
	name      string
	locators  []vhdLocator
}

type vhdLocator struct {
	code   string
	length uint32
	off    uint64
}

func decodeVHDHeader(b []byte) (vhdHeader, error) {
	if !bytes.Equal(b[:8], []byte("cxsparse")) {
		return vhdHeader{}, corrupt("no VHD dynamic header")
	}
	if binary.BigEndian.Uint32(b[36:]) != vhdSum(b[:vhdHeaderSize], 36) {
		return vhdHeader{}, corrupt("wrong VHD dynamic header checksum")
	}
	h := vhdHeader{tableAt: binary.BigEndian.Uint64(b[16:]), entries: binary.BigEndian.Uint32(b[28:]), blockSize: binary.BigEndian.Uint32(b[32:]),
		name: fromUTF16(b[64:576], binary.BigEndian)}
	copy(h.parentID[:], b[40:56])
	for i := range 8 {
		l := b[576+24*i:]
		if binary.BigEndian.Uint32(l) != 0 {
			h.locators = append(h.locators, vhdLocator{string(l[:4]), binary.BigEndian.Uint32(l[8:]), binary.BigEndian.Uint64(l[16:])})
		}
	}
	switch {
	case h.blockSize < 4*kib || h.blockSize > maxBlock || h.blockSize&(h.blockSize-1) != 0:
		return h, corrupt("VHD block size %d is not a power of two from 4 KiB to 256 MiB", h.blockSize)
	case h.tableAt%vhdSector != 0 || h.tableAt > maxFileSize:
		return h, corrupt("VHD block table at %d", h.tableAt)
	}
	return h, nil
}

// encode returns the header with its checksum.
func (h vhdHeader) encode() []byte {
	b := make([]byte, vhdHeaderSize)
	copy(b, "cxsparse")
	binary.BigEndian.PutUint64(b[8:], ^uint64(0))
	binary.BigEndian.PutUint64(b[16:], h.tableAt)
	binary.BigEndian.PutUint32(b[24:], 0x00010000)
	binary.BigEndian.PutUint32(b[28:], h.entries)
	binary.BigEndian.PutUint32(b[32:], h.blockSize)
	copy(b[40:], h.parentID[:])
	for i, c := range utf16LE(h.name) {
		if i < 510 {
			b[64+i^1] = c
		}
	}
	for i, l := range h.locators {
		at := b[576+24*i:]
		copy(at, l.code)
		binary.BigEndian.PutUint32(at[4:], 512)
		binary.BigEndian.PutUint32(at[8:], l.length)
		binary.BigEndian.PutUint64(at[16:], l.off)
	}
	binary.BigEndian.PutUint32(b[36:], vhdSum(b, 36))
	return b
}

// vhdImage is one open VHD file.
type vhdImage struct {
	f        file
	path     string
	fileSize int64
	foot     vhdFooter
	head     vhdHeader // of dynamic and differencing disks
	parents  []string  // candidate paths
	cache    pageCache
}

// openVHD reads footer, dynamic header and parent locators. It does not take over f on failure.
func openVHD(f file, path string) (layer, error) {
	size, err := f.Size()
	if err != nil {
		return nil, ioError("open virtual disk", path, err)
	}
	if size > maxFileSize {
		return nil, corrupt("%s has %d bytes, more than any disk needs", path, size)
	}
	v := &vhdImage{f: f, path: path, fileSize: size}
	v.cache.load = v.readFile
	var end int64
	if v.foot, end, err = v.footer(); err != nil {
		return nil, err
	}
	if v.foot.kind == vhdFixed {
		if int64(v.foot.size) > end {
			return nil, corrupt("%s has %d bytes before its footer, the disk has %d", path, end, v.foot.size)
		}
		return v, nil
	}
	if v.foot.headerAt > uint64(size) {
		return nil, corrupt("%s: dynamic header at %d, the file ends at %d", path, v.foot.headerAt, size)
	}
	b := make([]byte, vhdHeaderSize)
	if err := v.readFile(b, int64(v.foot.headerAt)); err != nil {
		return nil, err
	}
	if v.head, err = decodeVHDHeader(b); err != nil {
		return nil, err
	}
	if n := (int64(v.foot.size) + int64(v.head.blockSize) - 1) / int64(v.head.blockSize); int64(v.head.entries) < n || int64(v.head.tableAt)+4*n > size {
		return nil, corrupt("%s: a block table of %d entries at %d cannot hold %d blocks", path, v.head.entries, v.head.tableAt, n)
	}
	if v.foot.kind == vhdDiff {
		return v, v.readLocators()
	}
	return v, nil
}

// footer finds the footer: in the last 512 bytes, in the last 511 (some writers leave the last byte out), or its copy at the
// start. It returns where the data before it ends.
func (v *vhdImage) footer() (vhdFooter, int64, error) {
	var unfit error
	for _, n := range []int64{vhdFooterSize, vhdFooterSize - 1} {
		if v.fileSize < n {
			continue
		}
		b := make([]byte, vhdFooterSize)
		if err := v.readFile(b[:n], v.fileSize-n); err != nil {
			return vhdFooter{}, 0, err
		}
		f, err := decodeVHDFooter(b)
		if err == nil {
			return f, v.fileSize - n, nil
		}
		if unfit == nil && bytes.Equal(b[:8], []byte("conectix")) {
			unfit = err
		}
	}
	if v.fileSize >= vhdFooterSize {
		b := make([]byte, vhdFooterSize)
		if err := v.readFile(b, 0); err != nil {
			return vhdFooter{}, 0, err
		}
		f, err := decodeVHDFooter(b)
		if err == nil && f.kind != vhdFixed {
			return f, v.fileSize, nil
		}
	}
	if unfit != nil {
		return vhdFooter{}, 0, unfit
	}
	return vhdFooter{}, 0, corrupt("%s is neither a VHDX nor a VHD", v.path).(*holdfast.Error).
		Advise("a restore that was stopped leaves such a file; otherwise look whether the path is right")
}

// readLocators turns the parent locators into candidate paths: relative, absolute, then the bare name next to the child.
func (v *vhdImage) readLocators() error {
	dir := filepath.Dir(v.path)
	var rel, abs []string
	for _, l := range v.head.locators {
		if l.code != "W2ru" && l.code != "W2ku" {
			continue
		}
		if l.length > maxVHDPath || l.off > maxFileSize {
			return corrupt("%s: a parent locator of %d bytes at %d", v.path, l.length, l.off)
		}
		b := make([]byte, l.length)
		if err := v.readFile(b, int64(l.off)); err != nil {
			return err
		}
		p := fromUTF16(b, binary.LittleEndian)
		switch {
		case p == "":
		case l.code == "W2ru":
			rel = append(rel, filepath.Join(dir, fromWindows(p)))
		default:
			abs = append(abs, p, filepath.Join(dir, filepath.Base(fromWindows(p))))
		}
	}
	v.parents = append(rel, abs...)
	if v.head.name != "" {
		v.parents = append(v.parents, filepath.Join(dir, filepath.Base(fromWindows(v.head.name))))
	}
	seen := make(map[string]bool, len(v.parents))
	v.parents = slices.DeleteFunc(v.parents, func(p string) bool {
		again := seen[p]
		seen[p] = true
		return again
	})
	return nil
}

// verifyParent checks that a disk is the parent this child was made from.
func (v *vhdImage) verifyParent(p *Disk) error {
	pi := p.info()
	if pi.Format != "vhd" {
		return corrupt("%s is a %s, a VHD needs a VHD as parent", p.path, pi.Format)
	}
	if pi.DiskID.ID != v.head.parentID {
		return corrupt("%s has the id %s, the child %s expects %s", p.path, pi.DiskID, v.path, v.head.parentID)
	}
	return compareParent(v.info(), pi, p.path)
}

func (v *vhdImage) underlying() file { return v.f }
func (v *vhdImage) mayHole() bool    { return true }

func (v *vhdImage) info() Info {
	return Info{Format: "vhd", Subformat: map[uint32]string{vhdFixed: "fixed", vhdDynamic: "dynamic", vhdDiff: "differencing"}[v.foot.kind],
		Size: int64(v.foot.size), BlockSize: v.head.blockSize, LogicalSector: vhdSector, PhysicalSector: vhdSector, DiskID: holdfast.DiskID{ID: v.foot.id}}
}

// readFile fills p from the file.
func (v *vhdImage) readFile(p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > v.fileSize {
		return corrupt("%s ends at %d, %d bytes at %d are needed", v.path, v.fileSize, len(p), off)
	}
	return readFull(v.f, v.path, p, off)
}

// walk hands out the segments of [off, off+n), which lies inside the disk.
func (v *vhdImage) walk(off, n int64, emit func(seg) error) error {
	if v.foot.kind == vhdFixed {
		return emit(seg{segHere, off, n, off})
	}
	j := joiner{emit: emit}
	bs := int64(v.head.blockSize)
	for n > 0 {
		block := off / bs
		in := off - block*bs
		c := min(n, bs-in)
		var b [4]byte
		if err := v.cache.read(b[:], int64(v.head.tableAt)+4*block, v.fileSize); err != nil {
			return err
		}
		if err := v.walkBlock(binary.BigEndian.Uint32(b[:]), block, in, c, &j); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return j.flush()
}

// bitmapLen is the size of the sector bitmap before each block.
func (v *vhdImage) bitmapLen() int64 {
	return (int64(v.head.blockSize)/vhdSector/8 + vhdSector - 1) / vhdSector * vhdSector
}

func (v *vhdImage) walkBlock(entry uint32, block, in, c int64, j *joiner) error {
	off := block*int64(v.head.blockSize) + in
	if entry == vhdUnused {
		if v.foot.kind == vhdDiff {
			return j.add(seg{kind: segParent, off: off, n: c})
		}
		return j.add(seg{kind: segZero, off: off, n: c})
	}
	at := int64(entry) * vhdSector
	data := at + v.bitmapLen()
	if at < vhdFooterSize || data+in+c > v.fileSize {
		return corrupt("%s: block %d is at %d, the file ends at %d", v.path, block, at, v.fileSize)
	}
	if v.foot.kind == vhdDynamic { // its bitmap tells nothing a reader needs: sectors never written are zeros
		return j.add(seg{segHere, off, c, data + in})
	}
	return walkBits(bitWalk{sector: vhdSector, base: block * int64(v.head.blockSize), file: data, msb: true}, in, c, j,
		func(p []byte, from int64) error { return v.cache.read(p, at+from, v.fileSize) })
}
