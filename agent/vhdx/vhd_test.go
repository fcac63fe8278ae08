package vhdx

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// vhdSpec describes a VHD to build: this package writes none, so the test has its own builder.
type vhdSpec struct {
	kind   uint32
	size   int64
	block  uint32
	id     holdfast.ID
	parent string // for differencing
	from   holdfast.ID
	cut    bool // leave the footer's last byte out
}

// buildVHD makes a VHD that holds data at the given places (multiples of 512).
func buildVHD(fs *memFS, path string, s vhdSpec, data map[int64][]byte) {
	d := &memData{pages: make(map[int64][]byte)}
	fs.files[path] = d
	foot := vhdFooter{headerAt: ^uint64(0), size: uint64(s.size), kind: s.kind, id: s.id}
	end := s.size
	if s.kind == vhdFixed {
		for at, b := range data {
			d.writeAt(b, at)
		}
	} else {
		foot.headerAt = 512
		end = buildSparse(d, s, data)
		d.writeAt(foot.encode(), 0)
	}
	f := foot.encode()
	if s.cut {
		f = f[:511]
	}
	d.writeAt(f, end)
	d.size = end + int64(len(f))
}

// buildSparse writes header, table, locator and blocks, and returns where the footer goes.
func buildSparse(d *memData, s vhdSpec, data map[int64][]byte) int64 {
	bs := int64(s.block)
	n := (s.size + bs - 1) / bs
	h := vhdHeader{tableAt: 2048, entries: uint32(n), blockSize: s.block, parentID: s.from}
	end := (2048 + 4*n + 511) / 512 * 512
	if s.kind == vhdDiff {
		name := utf16LE(`.\` + s.parent)
		h.name, h.locators = s.parent, []vhdLocator{{"W2ru", uint32(len(name)), uint64(end)}}
		d.writeAt(name, end)
		end += 512
	}
	d.writeAt(h.encode(), 512)
	bitmap := (bs/512/8 + 511) / 512 * 512
	blocks := make(map[int64]int64)
	for i := range n {
		d.writeAt([]byte{0xff, 0xff, 0xff, 0xff}, 2048+4*i)
	}
	for at, b := range data {
		for ; len(b) > 0; at, b = at+512, b[512:] {
			i := at / bs
			if blocks[i] == 0 {
				blocks[i] = end
				end += bitmap + bs
				d.writeAt(binary.BigEndian.AppendUint32(nil, uint32(blocks[i]/512)), 2048+4*i)
			}
			sec := at % bs / 512
			var one [1]byte
			_, _ = d.readAt(one[:], blocks[i]+sec/8)
			one[0] |= 0x80 >> (sec % 8)
			d.writeAt(one[:], blocks[i]+sec/8)
			d.writeAt(b[:512], blocks[i]+bitmap+at%bs)
		}
	}
	return end
}

func TestVHDOfEachKindIsRead(t *testing.T) {
	const size = 9<<20 + 512
	for _, cut := range []bool{false, true} {
		for _, kind := range []string{"fixed", "dynamic", "differencing"} {
			t.Run(fmt.Sprintf("%s/511 %v", kind, cut), func(t *testing.T) {
				fs, r, m := newMemFS(), rand.New(rand.NewPCG(8, 8)), newModel(size)
				ids := []holdfast.ID{holdfast.NewID(), holdfast.NewID(), holdfast.NewID()}
				data := func() map[int64][]byte {
					out := make(map[int64][]byte)
					for range 6 {
						at, n := r.Int64N(size/512-40)*512, (1+r.Int64N(40))*512
						b := randBytes(r, n)
						for o := range out { // pieces must not overlap: maps have no order
							if at < o+int64(len(out[o])) && o < at+n {
								b = nil
							}
						}
						if b != nil {
							out[at] = b
							m.writeAt(b, at)
						}
					}
					return out
				}
				depth := 1
				switch kind {
				case "fixed":
					buildVHD(fs, "d/a", vhdSpec{kind: vhdFixed, size: size, id: ids[0], cut: cut}, data())
				default:
					buildVHD(fs, "d/a", vhdSpec{kind: vhdDynamic, size: size, block: 2 << 20, id: ids[0], cut: cut}, data())
				}
				if kind == "differencing" {
					depth = 3
					buildVHD(fs, "d/b", vhdSpec{vhdDiff, size, 2 << 20, ids[1], "a", ids[0], cut}, data())
					buildVHD(fs, "d/c", vhdSpec{vhdDiff, size, 1 << 19, ids[2], "b", ids[1], cut}, data())
				}
				top := "d/" + string(rune('a'+depth-1))
				d := must1(openChain(fs, top))(t)
				must(t, m.same(d, r))
				i := d.Info()
				if i.Format != "vhd" || i.Subformat != kind || len(i.Chain) != depth || i.DiskID.ID != ids[depth-1] {
					t.Fatal(i)
				}
				rep := must1(check(fs, top))(t)
				if len(rep.Problems) > 0 {
					t.Fatal(rep.Problems)
				}
				if _, err := openLive(fs, top); holdfast.KindOf(err) != holdfast.Unsupported {
					t.Fatalf("a VHD opens for writing: %v", err)
				}
			})
		}
	}
}

func TestVHDFallsBackToTheFirstFooter(t *testing.T) {
	fs := newMemFS()
	buildVHD(fs, "d/a", vhdSpec{kind: vhdDynamic, size: 4 << 20, block: 2 << 20, id: holdfast.NewID()}, map[int64][]byte{512: bytes.Repeat([]byte("x"), 512)})
	d := fs.files["d/a"]
	d.zero(d.size-512, 512)
	v := must1(openChain(fs, "d/a"))(t)
	b := make([]byte, 2)
	must(t, second(v.ReadAt(b, 1023)))
	if string(b) != "x\x00" {
		t.Fatalf("%q", b)
	}
	rep := must1(check(fs, "d/a"))(t)
	if len(rep.Problems) == 0 {
		t.Fatal("check passes over the lost footer")
	}
}

func TestVHDParentOfAnotherDiskIsRefused(t *testing.T) {
	fs := newMemFS()
	buildVHD(fs, "d/a", vhdSpec{kind: vhdDynamic, size: 4 << 20, block: 2 << 20, id: holdfast.NewID()}, nil)
	buildVHD(fs, "d/b", vhdSpec{vhdDiff, 4 << 20, 2 << 20, holdfast.NewID(), "a", holdfast.NewID(), false}, nil)
	if _, err := openChain(fs, "d/b"); holdfast.KindOf(err) != holdfast.Corrupt {
		t.Fatal(err)
	}
}

// vhdBase is a small chain for the tests with hostile bytes: footer copy, header, table, locator and one block in 6 KiB.
func vhdBase(kind uint32) *memFS {
	fs := newMemFS()
	a, b := mustGUID("aaaaaaaa-0000-0000-0000-000000000001"), mustGUID("aaaaaaaa-0000-0000-0000-000000000002")
	sector := bytes.Repeat([]byte("s"), 512)
	buildVHD(fs, "d/base", vhdSpec{kind: vhdDynamic, size: 64 << 10, block: 4096, id: a}, map[int64][]byte{512: sector})
	buildVHD(fs, "d/a", vhdSpec{kind, 64 << 10, 4096, b, "base", a, false}, map[int64][]byte{4096: sector})
	return fs
}

func resealVHD(d *memData) {
	for _, x := range []struct{ at, n, field int64 }{{0, 512, 64}, {512, 1024, 36}, {d.size - 512, 512, 64}} {
		b := make([]byte, x.n)
		if k, _ := d.readAt(b, max(x.at, 0)); int64(k) == x.n {
			d.writeAt(binary.BigEndian.AppendUint32(nil, vhdSum(b, int(x.field))), x.at+x.field)
		}
	}
}

func TestHostileVHDFieldsGiveErrorsNotHarm(t *testing.T) {
	for _, kind := range []uint32{vhdDynamic, vhdDiff, vhdFixed} {
		base := vhdBase(kind)
		for at := int64(0); at < 2048+128; at += 4 {
			if at >= 88 && at < 512 || at >= 512+80 && at < 512+576 || at >= 512+700 && at < 2048 {
				continue
			}
			for _, v := range []uint32{0, 1, 3, 512, 0x7fffffff, 0xfffffffe, 0xffffffff} {
				fs := base.clone()
				d := fs.files["d/a"]
				b := binary.BigEndian.AppendUint32(nil, v)
				d.writeAt(b, at)
				if at < 512 {
					d.writeAt(b, d.size-512+at)
				}
				resealVHD(d)
				exerciseNamed(t, fs, fmt.Sprintf("kind %d: %#x at %d", kind, v, at))
			}
		}
	}
}

func FuzzVHD(f *testing.F) {
	f.Add(byte(0), []byte{})
	f.Add(byte(1), record(2048, []byte{0, 0, 0, 1}))
	f.Add(byte(2), record(512+28, []byte{0xff, 0xff, 0xff, 0xff}))
	f.Fuzz(func(t *testing.T, how byte, in []byte) {
		fs := vhdBase([]uint32{vhdDynamic, vhdDiff, vhdFixed}[how%3])
		d := fs.files["d/a"]
		patch(d, in)
		if how < 128 {
			resealVHD(d)
		}
		b := make([]byte, 1024)
		_, _ = d.readAt(b[:512], 0)
		if foot, err := decodeVHDFooter(b); err == nil {
			if again, err := decodeVHDFooter(foot.encode()); err != nil || again != foot {
				t.Fatalf("footer: %v, %v, %v", foot, again, err)
			}
		}
		_, _ = d.readAt(b, 512)
		if h, err := decodeVHDHeader(b); err == nil {
			again, err := decodeVHDHeader(h.encode())
			again.name, h.name = "", "" // text that is no UTF-16 is replaced on the way
			if err != nil || fmt.Sprint(again) != fmt.Sprint(h) {
				t.Fatalf("header: %v, %v, %v", h, again, err)
			}
		}
		exercise(t, fs, "d/a")
	})
}
