package vhdx

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"github.com/holdfast-backup/holdfast"
)

// Where the fixed structures are, and their sizes.
const (
	kib = 1 << 10
	mib = 1 << 20

	headerSize   = 4 * kib
	regionSize   = 64 * kib
	reservedArea = mib // nothing else is below it

	maxRegions  = 2047
	maxDiskSize = 64 << 40
	// maxFileSize bounds what a file may claim to be: the largest disk plus its tables. It keeps sums far from overflow.
	maxFileSize = 2 * maxDiskSize
)

var (
	headerAt = [2]int64{64 * kib, 128 * kib}
	regionAt = [2]int64{192 * kib, 256 * kib}

	magicFile   = []byte("vhdxfile")
	magicHeader = []byte("head")
	magicRegion = []byte("regi")
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// corrupt makes the error for a broken rule.
func corrupt(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Corrupt, "read virtual disk", format, args...)
}

// unsupported makes the error for a file that is right but beyond this package.
func unsupported(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Unsupported, "read virtual disk", format, args...)
}

// checksum is CRC-32C of b with the four bytes at 4 taken as zero.
func checksum(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[:4])
	c = crc32.Update(c, castagnoli, []byte{0, 0, 0, 0})
	return crc32.Update(c, castagnoli, b[8:])
}

// header is one of the two headers: 4096 bytes.
//
//	0 "head"  4 crc  8 sequence  16 file write guid  32 data write guid  48 log guid
//	64 log version  66 version  68 log length  72 log offset
type header struct {
	seq                           uint64
	fileWrite, dataWrite, logGUID holdfast.ID
	logLength                     uint32
	logOffset                     uint64
}

func decodeHeader(b []byte) (header, error) {
	if !bytes.Equal(b[:4], magicHeader) {
		return header{}, corrupt("no header signature")
	}
	if binary.LittleEndian.Uint32(b[4:]) != checksum(b[:headerSize]) {
		return header{}, corrupt("wrong header checksum")
	}
	h := header{
		seq: binary.LittleEndian.Uint64(b[8:]), fileWrite: getGUID(b[16:]), dataWrite: getGUID(b[32:]), logGUID: getGUID(b[48:]),
		logLength: binary.LittleEndian.Uint32(b[68:]), logOffset: binary.LittleEndian.Uint64(b[72:]),
	}
	if v := binary.LittleEndian.Uint16(b[66:]); v != 1 {
		return h, unsupported("version %d; this program reads version 1", v)
	}
	if v := binary.LittleEndian.Uint16(b[64:]); v != 0 {
		return h, unsupported("log version %d; this program reads version 0", v)
	}
	return h, nil
}

func (h header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, magicHeader)
	binary.LittleEndian.PutUint64(b[8:], h.seq)
	putGUID(b[16:], h.fileWrite)
	putGUID(b[32:], h.dataWrite)
	putGUID(b[48:], h.logGUID)
	binary.LittleEndian.PutUint16(b[66:], 1)
	binary.LittleEndian.PutUint32(b[68:], h.logLength)
	binary.LittleEndian.PutUint64(b[72:], h.logOffset)
	binary.LittleEndian.PutUint32(b[4:], checksum(b))
	return b
}

// checkLog verifies where the log is.
func (h header) checkLog(fileSize int64) error {
	if h.logLength == 0 || h.logLength%mib != 0 || h.logOffset < reservedArea || h.logOffset%mib != 0 ||
		h.logOffset > maxFileSize || int64(h.logOffset)+int64(h.logLength) > fileSize {
		return corrupt("log of %d bytes at %d is misplaced in a file of %d bytes", h.logLength, h.logOffset, fileSize)
	}
	return nil
}

// pickHeader returns the current header and its slot: the valid one with the higher sequence number.
func pickHeader(raw [2][]byte) (header, int, error) {
	h0, err0 := decodeHeader(raw[0])
	h1, err1 := decodeHeader(raw[1])
	switch {
	case err0 == nil && (err1 != nil || h0.seq >= h1.seq):
		return h0, 0, nil
	case err1 == nil:
		return h1, 1, nil
	case holdfast.KindOf(err0) == holdfast.Unsupported:
		return h0, 0, err0
	case holdfast.KindOf(err1) == holdfast.Unsupported:
		return h1, 1, err1
	}
	return h0, 0, corrupt("no valid header: 1: %w, 2: %w", err0, err1)
}

// region is an entry of the region table.
type region struct {
	guid     holdfast.ID
	off      int64
	length   uint32
	required bool
}

func (r region) end() int64 { return r.off + int64(r.length) }

// decodeRegions reads a region table of 64 KiB:
//
//	0 "regi"  4 crc  8 count  16 entries of 32 bytes: guid, offset u64, length u32, flags u32 (bit 0 required)
func decodeRegions(b []byte) ([]region, error) {
	if !bytes.Equal(b[:4], magicRegion) {
		return nil, corrupt("no region table signature")
	}
	if binary.LittleEndian.Uint32(b[4:]) != checksum(b[:regionSize]) {
		return nil, corrupt("wrong region table checksum")
	}
	n := binary.LittleEndian.Uint32(b[8:])
	if n > maxRegions {
		return nil, corrupt("%d regions; at most %d are possible", n, maxRegions)
	}
	rs := make([]region, 0, n)
	for i := range int(n) {
		e := b[16+32*i:]
		off, length := binary.LittleEndian.Uint64(e[16:]), binary.LittleEndian.Uint32(e[24:])
		if off < reservedArea || off%mib != 0 || off > maxFileSize || length == 0 || length%mib != 0 {
			return nil, corrupt("region %d is misplaced: %d bytes at %d", i, length, off)
		}
		r := region{getGUID(e), int64(off), length, binary.LittleEndian.Uint32(e[28:])&1 != 0}
		if r.required && r.guid != guidBAT && r.guid != guidMetadata {
			return nil, unsupported("the file needs region %s, which this program does not know", r.guid)
		}
		rs = append(rs, r)
	}
	return rs, checkRegions(rs)
}

// checkRegions verifies that the two known regions are there once and that none overlap.
func checkRegions(rs []region) error {
	seen := make(map[holdfast.ID]bool, len(rs))
	for i, r := range rs {
		if seen[r.guid] {
			return corrupt("region %s is listed twice", r.guid)
		}
		seen[r.guid] = true
		for _, s := range rs[:i] {
			if r.off < s.end() && s.off < r.end() {
				return corrupt("regions %s and %s overlap", r.guid, s.guid)
			}
		}
	}
	if !seen[guidBAT] || !seen[guidMetadata] {
		return corrupt("the region table lacks the block table or the metadata")
	}
	return nil
}

func encodeRegions(rs []region) []byte {
	b := make([]byte, regionSize)
	copy(b, magicRegion)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(rs)))
	for i, r := range rs {
		e := b[16+32*i:]
		putGUID(e, r.guid)
		binary.LittleEndian.PutUint64(e[16:], uint64(r.off))
		binary.LittleEndian.PutUint32(e[24:], r.length)
		if r.required {
			e[28] = 1
		}
	}
	binary.LittleEndian.PutUint32(b[4:], checksum(b))
	return b
}

// pickRegions returns the regions of the first valid table, and which it was.
func pickRegions(raw [2][]byte) ([]region, int, error) {
	rs, err0 := decodeRegions(raw[0])
	if err0 == nil {
		return rs, 0, nil
	}
	rs, err1 := decodeRegions(raw[1])
	if err1 == nil {
		return rs, 1, nil
	}
	if holdfast.KindOf(err0) == holdfast.Unsupported {
		return nil, 0, err0
	}
	return nil, 0, corrupt("no valid region table: 1: %w, 2: %w", err0, err1)
}
