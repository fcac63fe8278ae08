package vhdx

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// logOp is a descriptor: zeros if data is nil.
type logOp struct {
	off, n int64
	data   []byte // 4096 bytes
}

// encodeEntry makes a log entry. tail is the offset of the oldest entry needed.
func encodeEntry(guid holdfast.ID, seq uint64, tail int64, flushed, last int64, ops ...logOp) []byte {
	head := (64 + 32*len(ops) + logSector - 1) / logSector * logSector
	b := make([]byte, head)
	for i, o := range ops {
		d := b[64+32*i:]
		binary.LittleEndian.PutUint64(d[16:], uint64(o.off))
		binary.LittleEndian.PutUint64(d[24:], seq)
		if o.data == nil {
			copy(d, magicZero)
			binary.LittleEndian.PutUint64(d[8:], uint64(o.n))
			continue
		}
		copy(d, magicDesc)
		copy(d[4:8], o.data[4092:])
		copy(d[8:16], o.data[:8])
		s := make([]byte, logSector)
		copy(s, magicData)
		binary.LittleEndian.PutUint32(s[4:], uint32(seq>>32))
		copy(s[8:4092], o.data[8:4092])
		binary.LittleEndian.PutUint32(s[4092:], uint32(seq))
		b = append(b, s...)
	}
	copy(b, magicEntry)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[12:], uint32(tail))
	binary.LittleEndian.PutUint64(b[16:], seq)
	binary.LittleEndian.PutUint32(b[24:], uint32(len(ops)))
	putGUID(b[32:], guid)
	binary.LittleEndian.PutUint64(b[48:], uint64(flushed))
	binary.LittleEndian.PutUint64(b[56:], uint64(last))
	binary.LittleEndian.PutUint32(b[4:], checksum(b))
	return b
}

// logCase writes entries into a log and says which count.
type logCase struct {
	name  string
	start int64 // slot of the first entry
	// entries are groups of descriptors; applied tells which of them a replay does
	entries [][]logOp
	applied []int
	tail    int                          // index of the entry the head's tail names
	spoil   func(log []byte, at []int64) // damages the log; at are the entries' offsets
	alone   string                       // why qemu-img cannot judge the case
	fails   holdfast.Kind                // 0: the replay works
}

// TestDirtyLogsAreReplayed: a log made by hand is read through the overlay, applied by OpenLive, and applied by qemu-img, all with the
// same result.
func TestDirtyLogsAreReplayed(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	const payload = 4 * mib // the first block of the file below
	sector := func(at int64) logOp { return logOp{payload + at, 0, randBytes(r, logSector)} }
	many := func(n int) (ops []logOp) {
		for i := range n {
			ops = append(ops, sector(int64(i)*logSector))
		}
		return ops
	}
	zero := func(at, n int64) logOp { return logOp{off: payload + at, n: n} }
	const noWrap = "it begins at the start of the ring and takes the first run it finds"
	cases := []logCase{
		{name: "one entry", entries: [][]logOp{{sector(0), sector(8192)}}, applied: []int{0}},
		{name: "later entries win", start: 3, entries: [][]logOp{{sector(0), sector(4096)}, {zero(0, 8192)}, {sector(4096)}}, applied: []int{0, 1, 2}},
		{name: "wraps in an entry", alone: noWrap, start: 250, entries: [][]logOp{{sector(0)}, {sector(4096), sector(8192), zero(16384, 65536), sector(20480), sector(0), sector(28672)}, {zero(4096, 4096)}}, applied: []int{0, 1, 2}},
		{name: "wraps between entries", alone: noWrap, start: 254, entries: [][]logOp{{sector(0)}, {sector(4096)}}, applied: []int{0, 1}},
		{name: "127 descriptors take a second sector", alone: "it reads all descriptor sectors into the place of the first", entries: [][]logOp{many(127)}, applied: []int{0}},
		{name: "126 descriptors do not", entries: [][]logOp{many(126), {zero(0, 4096)}}, applied: []int{0, 1}},
		{name: "entries before the tail are done", alone: "it ignores the tail", entries: [][]logOp{{sector(0)}, {sector(4096)}, {sector(8192)}}, applied: []int{1, 2}, tail: 1},
		{name: "a torn last entry is left out", entries: [][]logOp{{sector(0)}, {sector(4096)}, {sector(0), sector(8192)}}, applied: []int{0, 1},
			spoil: func(log []byte, at []int64) { log[at[2]+2*logSector+100] ^= 1 }},
		{name: "a torn data sector is seen by its number", alone: "it refuses the file where it should leave out the entry", entries: [][]logOp{{sector(0)}, {sector(4096)}}, applied: []int{0},
			spoil: func(log []byte, at []int64) {
				e := log[at[1] : at[1]+2*logSector]
				e[2*logSector-1] ^= 1
				binary.LittleEndian.PutUint32(e[4:], checksum(e))
			}},
		{name: "no valid entry", entries: [][]logOp{{sector(0)}}, spoil: func(log []byte, at []int64) { log[at[0]] = 0 }, fails: holdfast.Corrupt},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t) })
	}
}

func (c logCase) run(t *testing.T) {
	dir := t.TempDir()
	path, m := filepath.Join(dir, "log.vhdx"), newModel(40*mib)
	w := must1(create(noSync{}, path, CreateOptions{Size: m.size, Subformat: "dynamic", BlockSize: 8 * mib}))(t)
	r := rand.New(rand.NewPCG(9, 9))
	b := randBytes(r, 600000)
	must(t, second(w.WriteAt(b, 0)))
	m.writeAt(b, 0)
	must(t, w.Finish())
	raw := must1(os.ReadFile(path))(t)
	guid := holdfast.NewID()
	log := raw[mib : 2*mib]
	at := make([]int64, len(c.entries))
	slot := c.start
	for i := range c.entries {
		at[i] = slot * logSector
		e := encodeEntry(guid, uint64(1<<32|7+i), at[min(c.tail, i)], int64(len(raw)), int64(len(raw))+mib, c.entries[i]...)
		for j := 0; j < len(e); j += logSector {
			copy(log[slot*logSector:], e[j:j+logSector])
			slot = (slot + 1) % (mib / logSector)
		}
	}
	if c.spoil != nil {
		c.spoil(log, at)
	}
	for _, i := range c.applied {
		for _, o := range c.entries[i] {
			if o.data == nil {
				m.zero(o.off-4*mib, o.n)
			} else {
				m.writeAt(o.data, o.off-4*mib)
			}
		}
	}
	h := must1(decodeHeader(raw[headerAt[1]:]))(t)
	h.logGUID, h.seq = guid, h.seq+1
	copy(raw[headerAt[0]:], h.encode())
	must(t, os.WriteFile(path, raw, 0o600))
	d, err := Open(path)
	if c.fails != 0 {
		if holdfast.KindOf(err) != c.fails {
			t.Fatalf("got %v, want %v", err, c.fails)
		}
		return
	}
	must(t, err)
	must(t, m.same(d, r))
	must(t, d.Close())
	if now := must1(os.ReadFile(path))(t); !bytes.Equal(now, raw) {
		t.Fatal("reading changed the file")
	}
	theirs, want := filepath.Join(dir, "qemu.vhdx"), filepath.Join(dir, "raw")
	must(t, os.WriteFile(theirs, raw, 0o600))
	m.writeRaw(t, want)
	if c.alone == "" {
		qemuImg(t, "check", "-r", "all", theirs)
		qemuImg(t, "compare", "-f", "raw", "-F", "vhdx", want, theirs)
	}
	l := must1(openLive(noSync{}, path))(t)
	must(t, m.same(l, r))
	must(t, l.Close())
	if m2, err := openImage(must1(osFS{}.Open(path, modeRead))(t), path); err != nil || m2.ov != nil || m2.realSize != int64(len(raw))+mib {
		t.Fatalf("the log was not applied: %v", err)
	}
	qemuImg(t, "compare", "-f", "raw", "-F", "vhdx", want, path)
}

func TestLogReplayKilledAtAnyWriteIsDoneAgain(t *testing.T) {
	start, _ := dirtyMem(t)
	want := readAll(t, start, "d/a")
	for n := 0; ; n++ {
		fs := start.clone()
		fs.limit, fs.torn = n, 3
		l, err := openLive(fs, "d/a")
		if err == nil {
			must(t, l.Close())
		}
		fs.revive()
		if !bytes.Equal(readAll(t, fs, "d/a"), want) {
			t.Fatalf("killed at change %d: contents differ", n)
		}
		must(t, must1(openLive(fs, "d/a"))(t).Close())
		if !bytes.Equal(readAll(t, fs, "d/a"), want) {
			t.Fatalf("killed at change %d: contents differ after the second replay", n)
		}
		if err == nil {
			return
		}
	}
}

// dirtyMem makes a small disk d/a in memory with a dirty log of three entries.
func dirtyMem(t testing.TB) (*memFS, *memData) {
	fs := newMemFS()
	w := must1(create(fs, "d/a", CreateOptions{Size: 3 * mib, Subformat: "dynamic", BlockSize: mib}))(t)
	r := rand.New(rand.NewPCG(3, 3))
	must(t, second(w.WriteAt(randBytes(r, 70000), 1000)))
	must(t, w.Finish())
	d := fs.files["d/a"]
	guid := mustGUID("11111111-2222-3333-4444-555555555555")
	at := int64(mib)
	for i, ops := range [][]logOp{{{4 * mib, 0, randBytes(r, 4096)}}, {{off: 4*mib + 8192, n: 8192}}, {{4*mib + 8192, 0, randBytes(r, 4096)}}} {
		e := encodeEntry(guid, uint64(i+1), 0, 5*mib, 6*mib, ops...)
		d.writeAt(e, at)
		at += int64(len(e))
	}
	b := make([]byte, headerSize)
	_, _ = d.readAt(b, headerAt[1])
	h := must1(decodeHeader(b))(t)
	h.logGUID, h.seq = guid, h.seq+1
	d.writeAt(h.encode(), headerAt[0])
	return fs, d
}
