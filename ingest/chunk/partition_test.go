package chunk

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"
)

const testDisk = 64 << 20

// mbrDisk returns the first MiB of a disk with an MBR whose entries are (type, start) pairs.
func mbrDisk(entries ...[2]uint32) []byte {
	p := make([]byte, testDisk)
	bootRecord(p, entries...)
	return p
}

func bootRecord(p []byte, entries ...[2]uint32) {
	for i, e := range entries {
		q := p[446+16*i:]
		q[4] = byte(e[0])
		binary.LittleEndian.PutUint32(q[8:], e[1])
		binary.LittleEndian.PutUint32(q[12:], 1000)
	}
	p[510], p[511] = 0x55, 0xaa
}

// gptDisk returns a disk with both copies of a GPT.
func gptDisk(sector int, starts ...uint64) []byte {
	p := mbrDisk([2]uint32{0xee, 1})
	entries := make([]byte, 128*128)
	for i, s := range starts {
		entries[128*i] = 1
		binary.LittleEndian.PutUint64(entries[128*i+32:], s)
	}
	last := len(p)/sector - 1
	tables := last - (len(entries)+sector-1)/sector
	for _, h := range [][2]int{{1, 2}, {last, tables}} {
		q := p[h[0]*sector:]
		copy(q, "EFI PART")
		binary.LittleEndian.PutUint32(q[12:], 92)
		binary.LittleEndian.PutUint64(q[72:], uint64(h[1]))
		binary.LittleEndian.PutUint32(q[80:], 128)
		binary.LittleEndian.PutUint32(q[84:], 128)
		binary.LittleEndian.PutUint32(q[88:], crc32.ChecksumIEEE(entries))
		binary.LittleEndian.PutUint32(q[16:], crc32.ChecksumIEEE(q[:92]))
		copy(p[h[1]*sector:], entries)
	}
	return p
}

func TestPartitionStartsAreFound(t *testing.T) {
	logical := mbrDisk([2]uint32{0x83, 63}, [2]uint32{0x0f, 10000})
	bootRecord(logical[10000*512:], [2]uint32{0x83, 63}, [2]uint32{0x05, 5000})
	bootRecord(logical[15000*512:], [2]uint32{0x83, 64})
	loop := mbrDisk([2]uint32{0x05, 2048})
	bootRecord(loop[2048*512:], [2]uint32{0x83, 2}, [2]uint32{0x05, 100})
	bootRecord(loop[2148*512:], [2]uint32{0x83, 2}, [2]uint32{0x05, 100})
	second := gptDisk(512, 2048, 4096)
	clear(second[512:1024])
	spoilt := gptDisk(512, 2048)
	spoilt[1024+32]++
	for _, c := range []struct {
		name   string
		disk   []byte
		sector uint32
		want   []int64
	}{
		{"blank", make([]byte, testDisk), 512, nil},
		{"tiny", []byte{1, 2, 3}, 512, nil},
		{"mbr", mbrDisk([2]uint32{7, 63}, [2]uint32{0x83, 2048}), 512, []int64{63 * 512, 2048 * 512}},
		{"mbr 4Kn", mbrDisk([2]uint32{7, 256}), 4096, []int64{256 * 4096}},
		{"mbr outside the disk", mbrDisk([2]uint32{7, 1 << 30}), 512, nil},
		{"mbr entry at 0", mbrDisk([2]uint32{7, 0}), 512, nil},
		{"logical", logical, 512, []int64{63 * 512, 10000 * 512, 10063 * 512, 15064 * 512}},
		{"logical in a circle", loop, 512, []int64{2048 * 512, 2050 * 512, 2150 * 512}},
		{"gpt", gptDisk(512, 2048, 34, 4096), 512, []int64{34 * 512, 2048 * 512, 4096 * 512}},
		{"gpt 4Kn", gptDisk(4096, 256, 6), 4096, []int64{6 * 4096, 256 * 4096}},
		{"gpt, second copy", second, 512, []int64{2048 * 512, 4096 * 512}},
		{"gpt, first table spoilt", spoilt, 512, []int64{2048 * 512}},
	} {
		if got := PartitionStarts(bytes.NewReader(c.disk), int64(len(c.disk)), c.sector); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// FuzzPartitionStarts: whatever a disk holds, the answer is bounded, ascending and inside the disk.
func FuzzPartitionStarts(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 1))
	f.Add(mbrDisk([2]uint32{5, 1}, [2]uint32{7, 20})[:8192], uint32(512))
	f.Add(gptDisk(512, 34)[:34*512], uint32(512))
	f.Add(gptDisk(4096, 6)[:32768], uint32(4096))
	junk := make([]byte, 4096)
	fill(rnd, junk)
	f.Add(junk, uint32(9))
	f.Fuzz(func(t *testing.T, p []byte, sector uint32) {
		got := PartitionStarts(bytes.NewReader(p), int64(len(p)), sector)
		if len(got) > maxPartitions || !slices.IsSorted(got) {
			t.Fatalf("%d starts: %v", len(got), got)
		}
		for _, s := range got {
			if s <= 0 || s >= int64(len(p)) || s%512 != 0 {
				t.Fatalf("start %d of a disk of %d bytes", s, len(p))
			}
		}
	})
}
