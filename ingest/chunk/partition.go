package chunk

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"slices"
)

// Bounds of what is believed of a partition table.
const (
	maxPartitions = 256      // starts returned at most
	maxGPTTable   = 64 << 10 // bytes of GPT entries read: 512 entries of the usual size
	maxLogical    = 128      // links of a chain of logical partitions followed
)

// PartitionStarts returns the byte offsets at which the partitions of a disk begin, ascending, without 0: GPT (either copy) and
// MBR with logical partitions. They are only hints where to align: whatever the disk holds, the answer is bounded, sector
// offsets within the disk, and nil where there is no table, it makes no sense or it cannot be read. secsize is the logical
// sector size in bytes, 512 or 4096; other values count as 512.
func PartitionStarts(r io.ReaderAt, size int64, secsize uint32) []int64 {
	if secsize != 4096 {
		secsize = 512
	}
	t := table{r: r, size: size, sector: int64(secsize)}
	mbr := t.read(0, 512)
	if mbr == nil || mbr[510] != 0x55 || mbr[511] != 0xaa {
		return nil
	}
	protective := false
	for i := range 4 {
		protective = protective || mbr[446+16*i+4] == 0xee
	}
	if protective {
		if !t.gpt(1) {
			t.gpt(size/t.sector - 1)
		}
	} else {
		t.mbr(mbr)
	}
	slices.Sort(t.starts)
	return slices.Compact(t.starts)
}

// table collects partition starts.
type table struct {
	r      io.ReaderAt
	size   int64
	sector int64
	starts []int64
}

// read returns n bytes at a byte offset, or nil.
func (t *table) read(off int64, n int) []byte {
	if off < 0 || off > t.size-int64(n) {
		return nil
	}
	p := make([]byte, n)
	if m, _ := t.r.ReadAt(p, off); m < n {
		return nil
	}
	return p
}

// add notes a partition that starts at sector lba.
func (t *table) add(lba uint64) bool {
	if lba == 0 || lba >= uint64(t.size/t.sector) || len(t.starts) >= maxPartitions {
		return false
	}
	t.starts = append(t.starts, int64(lba)*t.sector)
	return true
}

// gpt reads the table whose header is at sector lba and reports whether its header and entries are sound.
func (t *table) gpt(lba int64) bool {
	const headerLen = 92
	h := t.read(lba*t.sector, 512)
	if h == nil || !bytes.Equal(h[:8], []byte("EFI PART")) || binary.LittleEndian.Uint32(h[12:]) != headerLen {
		return false
	}
	sum := binary.LittleEndian.Uint32(h[16:])
	binary.LittleEndian.PutUint32(h[16:], 0)
	if crc32.ChecksumIEEE(h[:headerLen]) != sum {
		return false
	}
	at := binary.LittleEndian.Uint64(h[72:])
	count, each := binary.LittleEndian.Uint32(h[80:]), binary.LittleEndian.Uint32(h[84:])
	if each < 128 || each > 4096 || count == 0 || uint64(count)*uint64(each) > maxGPTTable || at >= uint64(t.size/t.sector) {
		return false
	}
	entries := t.read(int64(at)*t.sector, int(count*each))
	if entries == nil || crc32.ChecksumIEEE(entries) != binary.LittleEndian.Uint32(h[88:]) {
		return false
	}
	for ; len(entries) > 0; entries = entries[each:] {
		if !IsZero(entries[:16]) {
			t.add(binary.LittleEndian.Uint64(entries[32:]))
		}
	}
	return true
}

// mbr reads the four primary entries, and the logical partitions of those that are extended.
func (t *table) mbr(p []byte) {
	for i := range 4 {
		e := p[446+16*i:]
		start := uint64(binary.LittleEndian.Uint32(e[8:]))
		if e[4] == 0 || e[0]&0x7f != 0 || !t.add(start) {
			continue
		}
		if isExtended(e[4]) {
			t.logical(start)
		}
	}
}

// logical follows the chain of boot records in an extended partition. Its links are relative to the partition, a logical
// partition's start to its own record.
func (t *table) logical(extended uint64) {
	at := extended
	for range maxLogical {
		p := t.read(int64(at)*t.sector, 512)
		if p == nil || p[510] != 0x55 || p[511] != 0xaa {
			return
		}
		if p[446+4] != 0 {
			t.add(at + uint64(binary.LittleEndian.Uint32(p[446+8:])))
		}
		next := p[462:]
		link := uint64(binary.LittleEndian.Uint32(next[8:]))
		if !isExtended(next[4]) || link == 0 {
			return
		}
		at = extended + link
	}
}

func isExtended(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }
