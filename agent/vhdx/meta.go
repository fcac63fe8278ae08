package vhdx

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/holdfast-backup/holdfast"
)

// Limits of the metadata region.
const (
	metaTableSize = 64 * kib
	maxMetaItems  = 2047
	maxItemSize   = mib
	maxLocator    = 256 // key-value pairs of a parent locator; real ones have five

	minBlock = mib
	maxBlock = 256 * mib

	flagUser     = 1
	flagVirtual  = 2
	flagRequired = 4
)

var magicMeta = []byte("metadata")

// metaItem is an entry of the metadata table. off counts from the start of the region.
type metaItem struct {
	guid     holdfast.ID
	off, len uint32
	flags    uint32
}

// decodeMetaTable reads the first 64 KiB of the metadata region:
//
//	0 "metadata"  10 count u16  32 entries of 32 bytes: guid, offset u32, length u32, flags u32
func decodeMetaTable(b []byte, regionLen uint32) ([]metaItem, error) {
	if !bytes.Equal(b[:8], magicMeta) {
		return nil, corrupt("no metadata signature")
	}
	n := int(binary.LittleEndian.Uint16(b[10:]))
	if n > maxMetaItems {
		return nil, corrupt("%d metadata items; at most %d are possible", n, maxMetaItems)
	}
	items := make([]metaItem, 0, n)
	seen := make(map[holdfast.ID]bool, n)
	for i := range n {
		e := b[32+32*i:]
		it := metaItem{getGUID(e), binary.LittleEndian.Uint32(e[16:]), binary.LittleEndian.Uint32(e[20:]), binary.LittleEndian.Uint32(e[24:])}
		if it.len > maxItemSize || it.len > 0 && (it.off < metaTableSize || uint64(it.off)+uint64(it.len) > uint64(regionLen)) {
			return nil, corrupt("metadata item %s is misplaced: %d bytes at %d", it.guid, it.len, it.off)
		}
		if it.flags&flagUser == 0 { // users may name their items as they like
			if seen[it.guid] {
				return nil, corrupt("metadata item %s is listed twice", it.guid)
			}
			seen[it.guid] = true
		}
		if it.flags&flagRequired != 0 && (it.flags&flagUser != 0 || !knownItem(it.guid)) {
			return nil, unsupported("the file needs metadata item %s, which this program does not know", it.guid)
		}
		items = append(items, it)
	}
	return items, nil
}

func knownItem(g holdfast.ID) bool {
	switch g {
	case guidFileParams, guidDiskSize, guidDiskID, guidLogical, guidPhysical, guidLocator:
		return true
	}
	return false
}

func encodeMetaTable(items []metaItem) []byte {
	b := make([]byte, metaTableSize)
	copy(b, magicMeta)
	binary.LittleEndian.PutUint16(b[10:], uint16(len(items)))
	for i, it := range items {
		e := b[32+32*i:]
		putGUID(e, it.guid)
		binary.LittleEndian.PutUint32(e[16:], it.off)
		binary.LittleEndian.PutUint32(e[20:], it.len)
		binary.LittleEndian.PutUint32(e[24:], it.flags)
	}
	return b
}

// params is what the metadata says about the disk.
type params struct {
	blockSize         int64
	fixed, hasParent  bool
	size              int64
	diskID            holdfast.ID
	logical, physical uint32
	locator           locator
}

// ratioShift is the base-two logarithm of the chunk ratio: all sizes it comes from are powers of two.
func (p params) ratioShift() int {
	return 23 + bits.TrailingZeros32(p.logical) - bits.TrailingZeros64(uint64(p.blockSize))
}

// chunkRatio is the number of payload blocks one sector bitmap covers.
func (p params) chunkRatio() int64 { return 1 << p.ratioShift() }

func (p params) blocks() int64 { return (p.size + p.blockSize - 1) / p.blockSize }

// entries is the number of block table entries.
func (p params) entries() int64 {
	if p.hasParent {
		return (p.blocks() + p.chunkRatio() - 1) / p.chunkRatio() * (p.chunkRatio() + 1)
	}
	return p.blocks() + (p.blocks()-1)/p.chunkRatio()
}

// payloadIndex and bitmapIndex give the place of a block and of its sector bitmap in the block table.
func (p params) payloadIndex(block int64) int64 { return block + block>>p.ratioShift() }
func (p params) bitmapIndex(block int64) int64 {
	return block/p.chunkRatio()*(p.chunkRatio()+1) + p.chunkRatio()
}

// bitmapOffset is where the bits of a block begin in its sector bitmap, in bytes; bitmapLen is how many bytes they are.
func (p params) bitmapOffset(block int64) int64 { return block % p.chunkRatio() * p.bitmapLen() }
func (p params) bitmapLen() int64               { return p.blockSize / int64(p.logical) / 8 }

// check verifies the values. Its errors carry no kind: they are the file's fault or the caller's.
func (p params) check() error {
	switch {
	case p.blockSize < minBlock || p.blockSize > maxBlock || bits.OnesCount64(uint64(p.blockSize)) != 1:
		return fmt.Errorf("block size %d is not a power of two from 1 MiB to 256 MiB", p.blockSize)
	case p.logical != 512 && p.logical != 4096:
		return fmt.Errorf("logical sector size %d is neither 512 nor 4096", p.logical)
	case p.physical != 512 && p.physical != 4096:
		return fmt.Errorf("physical sector size %d is neither 512 nor 4096", p.physical)
	case p.size <= 0 || p.size > maxDiskSize || p.size%int64(p.logical) != 0:
		return fmt.Errorf("disk size %d is not a positive multiple of %d up to 64 TiB", p.size, p.logical)
	}
	return nil
}

// decodeParams reads the known items; read fetches the bytes of one.
func decodeParams(items []metaItem, read func(metaItem) ([]byte, error)) (params, error) {
	var p params
	sizes := map[holdfast.ID]uint32{guidFileParams: 8, guidDiskSize: 8, guidDiskID: 16, guidLogical: 4, guidPhysical: 4}
	raw := make(map[holdfast.ID][]byte, 8)
	for _, it := range items {
		if it.flags&flagUser != 0 || !knownItem(it.guid) {
			continue
		}
		if want, ok := sizes[it.guid]; ok && it.len < want {
			return p, corrupt("metadata item %s has %d bytes, %d are needed", it.guid, it.len, want)
		}
		b, err := read(it)
		if err != nil {
			return p, err
		}
		raw[it.guid] = b
	}
	for g := range sizes {
		if raw[g] == nil {
			return p, corrupt("metadata item %s is missing", g)
		}
	}
	flags := binary.LittleEndian.Uint32(raw[guidFileParams][4:])
	p.blockSize = int64(binary.LittleEndian.Uint32(raw[guidFileParams]))
	p.fixed, p.hasParent = flags&1 != 0, flags&2 != 0
	size := binary.LittleEndian.Uint64(raw[guidDiskSize])
	if size > maxDiskSize {
		return p, corrupt("disk size %d is over 64 TiB", size)
	}
	p.size = int64(size)
	p.diskID = getGUID(raw[guidDiskID])
	p.logical = binary.LittleEndian.Uint32(raw[guidLogical])
	p.physical = binary.LittleEndian.Uint32(raw[guidPhysical])
	if err := p.check(); err != nil {
		return p, corrupt("%w", err)
	}
	if p.hasParent {
		if raw[guidLocator] == nil {
			return p, corrupt("the disk has a parent but no parent locator")
		}
		var err error
		if p.locator, err = decodeLocator(raw[guidLocator]); err != nil {
			return p, err
		}
	}
	return p, nil
}

// Keys of a parent locator.
const (
	keyLinkage  = "parent_linkage"
	keyLinkage2 = "parent_linkage2"
	keyRelative = "relative_path"
	keyVolume   = "volume_path"
	keyAbsolute = "absolute_win32_path"
)

// locator says where the parent of a differencing disk is: key-value pairs in file order.
type locator []struct{ key, value string }

func (l locator) get(key string) string {
	for _, e := range l {
		if e.key == key {
			return e.value
		}
	}
	return ""
}

// decodeLocator reads a parent locator item:
//
//	0 type guid  18 count u16  20 entries of 12 bytes: key offset u32, value offset u32, key length u16, value length u16
func decodeLocator(b []byte) (locator, error) {
	if len(b) < 20 {
		return nil, corrupt("the parent locator has only %d bytes", len(b))
	}
	if g := getGUID(b); g != guidLocVHDX {
		return nil, unsupported("parent locator of type %s", g)
	}
	n := int(binary.LittleEndian.Uint16(b[18:]))
	if n > maxLocator || 20+12*n > len(b) {
		return nil, corrupt("a parent locator of %d bytes cannot have %d entries", len(b), n)
	}
	var l locator
	for i := range n {
		e := b[20+12*i:]
		key, ok1 := locatorText(b, binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint16(e[8:]))
		val, ok2 := locatorText(b, binary.LittleEndian.Uint32(e[4:]), binary.LittleEndian.Uint16(e[10:]))
		if !ok1 || !ok2 {
			return nil, corrupt("entry %d of the parent locator is misplaced", i)
		}
		l = append(l, struct{ key, value string }{key, val})
	}
	return l, nil
}

func locatorText(b []byte, off uint32, n uint16) (string, bool) {
	if n%2 != 0 || uint64(off)+uint64(n) > uint64(len(b)) {
		return "", false
	}
	return fromUTF16(b[off:uint64(off)+uint64(n)], binary.LittleEndian), true
}

func (l locator) encode() []byte {
	b := make([]byte, 20+12*len(l))
	putGUID(b, guidLocVHDX)
	binary.LittleEndian.PutUint16(b[18:], uint16(len(l)))
	for i, e := range l {
		k, v := utf16LE(e.key), utf16LE(e.value)
		at := b[20+12*i:]
		binary.LittleEndian.PutUint32(at, uint32(len(b)))
		binary.LittleEndian.PutUint32(at[4:], uint32(len(b)+len(k)))
		binary.LittleEndian.PutUint16(at[8:], uint16(len(k)))
		binary.LittleEndian.PutUint16(at[10:], uint16(len(v)))
		b = append(append(b, k...), v...)
	}
	return b
}
