package hft_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// dump writes what is on a cartridge in the form of the golden file.
func dump(c *emu.Cartridge) []byte {
	var out []byte
	for i := range c.Objects(0) {
		p, mark := c.Block(0, i)
		if mark {
			out = binary.LittleEndian.AppendUint32(out, 0xffffffff)
			continue
		}
		out = append(binary.LittleEndian.AppendUint32(out, uint32(len(p))), p...)
	}
	return out
}

// restore writes the golden form to a tape, through the drive.
func restore(b *bed, raw []byte) {
	b.Helper()
	for len(raw) >= 4 {
		n := binary.LittleEndian.Uint32(raw)
		raw = raw[4:]
		if n == 0xffffffff {
			b.must(b.d.Filemarks(ctx, 1))
			continue
		}
		b.must(b.d.Write(ctx, raw[:n]))
		raw = raw[n:]
	}
}

// TestGoldenTapeIsReadForEver: the tape in testdata, written by the first version, is read; appending to it works. The ids of catalogs are random, so what is written
// today is compared by what it reads as, and by the blocks that have no random part.
func TestGoldenTapeIsReadForEver(t *testing.T) {
	name := filepath.Join("testdata", "golden.hft")
	b := newBed(t, emu.Options{})
	c := b.media(emu.Media{})
	b.load(c)
	l := label(1)
	w, err := hft.Create(ctx, b.d, l, nil, nil)
	b.must(err)
	b.must(w.Put(ctx, stream(1, 5000)))
	b.must(w.Put(ctx, stream(2, 0)))
	_, err = w.Commit(ctx)
	b.must(err)
	if *update {
		b.must(os.MkdirAll("testdata", 0o755))
		b.must(os.WriteFile(name, dump(c), 0o644))
	}
	raw, err := os.ReadFile(name)
	b.must(err)
	old := b.media(emu.Media{})
	b.load(old)
	restore(b, raw)
	for _, i := range []int{0, 6, 7, 8, 9, 11, 12} { // label, and both objects
		now, _ := c.Block(0, i)
		then, _ := old.Block(0, i)
		if !bytes.Equal(now, then) {
			t.Errorf("block %d is written otherwise than by the first version", i)
		}
	}
	w, err = hft.Append(ctx, b.d, l, nil, nil)
	b.must(err)
	r, err := hft.Open(ctx, b.d)
	b.must(err)
	if got := w.Objects(); len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	b.check(r, w.Objects()[0], 1, 5000)
	b.check(r, w.Objects()[1], 2, 0)
}

// FuzzTape: whatever is on a tape, reading it ends without a panic, and nothing is taken for whole that is not in our form.
func FuzzTape(f *testing.F) {
	raw, err := os.ReadFile(filepath.Join("testdata", "golden.hft"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, 9, byte(1), false)
	for at := 0; at < len(raw); at += 97 { // past the checksums: every header, label, catalog and trailer with something changed
		f.Add(raw, at, byte(1<<(at%8)), true)
	}
	f.Add(raw[:700], 500, byte(0), false)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 'H'}, 0, byte(0), true)
	f.Fuzz(func(t *testing.T, raw []byte, at int, flip byte, mend bool) {
		if len(raw) > 1<<20 {
			return
		}
		raw = bytes.Clone(raw)
		if len(raw) > 0 && at >= 0 {
			raw[at%len(raw)] ^= flip
		}
		b := newBed(t, emu.Options{})
		b.load(b.media(emu.Media{}))
		for len(raw) >= 4 {
			n := binary.LittleEndian.Uint32(raw)
			raw = raw[4:]
			switch {
			case n == 0xffffffff:
				b.must(b.d.Filemarks(ctx, 1))
				continue
			case n == 0 || uint64(n) > uint64(len(raw)) || n > drive.MaxBlock:
				raw = nil
				continue
			}
			if mend && n >= 64 { // the header's own words stay as they are, its checksum fits
				sum := crc32.Checksum(raw[:60], crc32.MakeTable(crc32.Castagnoli))
				binary.LittleEndian.PutUint32(raw[60:], crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), raw[64:n]))
			}
			b.must(b.d.Write(ctx, raw[:n]))
			raw = raw[n:]
		}
		r, err := hft.Open(ctx, b.d)
		if err != nil {
			return
		}
		_, _ = r.Tail(ctx)
		if _, err := r.Scan(ctx); err != nil {
			t.Errorf("scan: %v", err)
		}
	})
}

// BenchmarkWrite is the path from a stream of sealed containers to the emulator's memory at full speed: blocks of 512 KiB, both checksums.
func BenchmarkWrite(b *testing.B) {
	lib := emu.New(emu.Options{Drives: 1, Slots: 1})
	lib.Add(0, emu.Media{Barcode: "HF0001L8", Capacity: 1 << 40})
	robot := lib.Connect("a", emu.Changer)
	for range 3 {
		_, _ = robot.Exec(ctx, scsi.Command{CDB: scsi.MoveMedium(0, emu.AddrSlot, emu.AddrDrive)}) // the first meets an attention
	}
	d, err := drive.Open(ctx, lib.Connect("a", emu.Drive(0)), drive.Options{})
	if err == nil {
		err = d.Ready(ctx)
	}
	if err != nil {
		b.Fatal(err)
	}
	l, data := label(1), content(1, 64<<20)
	l.Block = hft.DefaultBlock
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		w, err := hft.Create(ctx, d, l, nil, nil) // anew each time, so that memory does not grow
		if err != nil {
			b.Fatal(err)
		}
		if err := w.Put(ctx, hft.NewStream(id(5), hft.Container, "c", bytes.NewReader(data))); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Commit(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
