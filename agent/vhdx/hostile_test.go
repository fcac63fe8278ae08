package vhdx

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// memoryLimit is what opening, mapping and reading any of the small hostile files below may take in all.
const memoryLimit = 48 * mib

// exercise does everything a caller does with a foreign file. Errors are fine; panics and memory are not.
func exercise(t testing.TB, fs *memFS, path string) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if d, err := openChain(fs, path); err == nil {
		b := make([]byte, 64*kib)
		size := d.Info().Size
		for _, off := range []int64{0, mib - 100, size / 2, size - 5} {
			_, _ = d.ReadAt(b, max(off, 0))
		}
		if size <= 1<<36 { // a larger map takes time, not memory
			ext, err := d.Allocated()
			if err == nil && len(ext.Normal(size)) != len(ext) {
				t.Fatalf("not a normal list: %v", ext)
			}
		}
		must(t, d.Close())
	} else if k := holdfast.KindOf(err); k == holdfast.Internal {
		t.Fatalf("an error nobody classified: %v", err)
	}
	rep, err := check(fs, path)
	if err == nil && len(rep.Problems) == 0 {
		if _, err := openChain(fs, path); err != nil {
			t.Fatalf("check is content, open is not: %v", err)
		}
	}
	if l, err := openLive(fs, path); err == nil {
		_, _ = l.WriteAt([]byte("x"), 5)
		must(t, l.Close())
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > memoryLimit {
		t.Fatalf("%d MiB were allocated", n>>20)
	}
}

// reseal makes the checksums right again, so that the values behind them are looked at.
func reseal(d *memData) {
	fix := func(at, n int64) {
		b := make([]byte, n)
		if k, _ := d.readAt(b, at); int64(k) == n {
			binary.LittleEndian.PutUint32(b[4:], checksum(b))
			d.writeAt(b[4:8], at+4)
		}
	}
	for i := range 2 {
		fix(headerAt[i], headerSize)
		fix(regionAt[i], regionSize)
	}
	head := make([]byte, 64)
	for at := int64(mib); at < mib+16*logSector; at += logSector {
		if _, err := d.readAt(head, at); err == nil && bytes.Equal(head[:4], magicEntry) {
			if n := int64(binary.LittleEndian.Uint32(head[8:])); n >= logSector && n < 16*logSector {
				fix(at, n)
			}
		}
	}
}

// hostileBases are small valid files, with the places whose bytes are worth changing.
func hostileBases(t testing.TB) map[string]func() *memFS {
	diff := newMemFS()
	w := must1(create(diff, "d/base", CreateOptions{Size: 3 * mib, Subformat: "dynamic", BlockSize: mib}))(t)
	must(t, second(w.WriteAt([]byte("base"), mib)))
	must(t, w.Finish())
	w = must1(create(diff, "d/a", CreateOptions{Subformat: "differencing", BlockSize: mib, Parent: "d/base"}))(t)
	must(t, second(w.WriteAt([]byte("child"), mib+9000)))
	must(t, second(w.WriteAt(bytes.Repeat([]byte("c"), mib), 0)))
	must(t, w.Finish())
	dirty, _ := dirtyMem(t)
	return map[string]func() *memFS{"differencing": diff.clone, "dirty log": dirty.clone}
}

// TestHostileFieldsGiveErrorsNotHarm sets every field of headers, regions, log, metadata and block table to nasty values, with the
// checksums made right, and uses the file.
func TestHostileFieldsGiveErrorsNotHarm(t *testing.T) {
	values := []uint64{0, 1, 0x7fffffff, 1 << 20, 1<<40 | 7, 0x7ffffffffffff000, ^uint64(0)}
	areas := []struct {
		name    string
		at, n   int64
		width   int64
		onlyFor string
	}{
		{"header 1", headerAt[0], 80, 4, ""}, {"header 2", headerAt[1], 80, 4, ""}, {"region table 1", regionAt[0], 80, 4, ""},
		{"log", mib, 128, 4, "dirty log"}, {"log data", mib + logSector, 16, 4, "dirty log"},
		{"block table", 2 * mib, 40, 8, ""}, {"block table end", 2*mib + 8*4096, 8, 8, "differencing"}, {"metadata", 3 * mib, 32 + 32*6, 4, ""},
		{"items", 3*mib + metaTableSize, 160, 4, ""},
	}
	for name, base := range hostileBases(t) {
		for _, a := range areas {
			if a.onlyFor != "" && a.onlyFor != name {
				continue
			}
			t.Run(name+"/"+a.name, func(t *testing.T) {
				fs := base()
				orig := make([]byte, 8)
				for at := a.at; at < a.at+a.n; at += a.width {
					for _, v := range values {
						fs := fs.clone()
						d := fs.files["d/a"]
						_, _ = d.readAt(orig, at)
						binary.LittleEndian.PutUint64(orig, v)
						d.writeAt(orig[:a.width], at)
						reseal(d)
						exerciseNamed(t, fs, fmt.Sprintf("%#x at %#x", v, at))
					}
				}
			})
		}
	}
}

func exerciseNamed(t *testing.T, fs *memFS, what string) {
	defer func() {
		if p := recover(); p != nil {
			t.Fatalf("%s: panic: %v", what, p)
		}
		if t.Failed() {
			t.Log(what)
		}
	}()
	exercise(t, fs, "d/a")
}

func TestTruncatedFilesGiveErrors(t *testing.T) {
	for name, base := range hostileBases(t) {
		fs := base()
		for _, size := range []int64{0, 1, 7, 511, 512, 64 * kib, headerAt[0] + 5000, 300 * kib, mib, mib + 5000, 2 * mib, 2*mib + 8, 3 * mib, 3*mib + 65536, 4 * mib, 4*mib + 5} {
			c := fs.clone()
			f := must1(c.Open("d/a", modeRead))(t)
			must(t, f.Truncate(size))
			exerciseNamed(t, c, fmt.Sprintf("%s cut to %d", name, size))
			if d, err := openChain(c, "d/a"); err == nil && size < 3*mib {
				t.Fatalf("%s cut to %d opens: %v", name, size, d.Info())
			}
		}
	}
}

// decodable asserts decode∘encode = identity for all structures found in a file.
func decodable(t testing.TB, d *memData) {
	b := make([]byte, regionSize)
	for i := range 2 {
		if k, _ := d.readAt(b[:headerSize], headerAt[i]); k == headerSize {
			if h, err := decodeHeader(b[:headerSize]); err == nil {
				if again, err := decodeHeader(h.encode()); err != nil || again != h {
					t.Fatalf("header: %v, %v, %v", h, again, err)
				}
			}
		}
		if k, _ := d.readAt(b, regionAt[i]); k == regionSize {
			if rs, err := decodeRegions(b); err == nil {
				if again, err := decodeRegions(encodeRegions(rs)); err != nil || fmt.Sprint(again) != fmt.Sprint(rs) {
					t.Fatalf("regions: %v, %v, %v", rs, again, err)
				}
			}
		}
	}
	if k, _ := d.readAt(b, 3*mib); k == metaTableSize {
		if items, err := decodeMetaTable(b, mib); err == nil {
			if again, err := decodeMetaTable(encodeMetaTable(items), mib); err != nil || fmt.Sprint(again) != fmt.Sprint(items) {
				t.Fatalf("metadata: %v, %v, %v", items, again, err)
			}
			for _, it := range items {
				raw := make([]byte, it.len)
				_, _ = d.readAt(raw, 3*mib+int64(it.off))
				if l, err := decodeLocator(raw); err == nil && it.guid == guidLocator {
					if enc := l.encode(); len(enc) < 64*kib {
						if again, err := decodeLocator(enc); err != nil || fmt.Sprint(again) != fmt.Sprint(l) {
							t.Fatalf("locator: %v, %v, %v", l, again, err)
						}
					}
				}
			}
		}
	}
}

// patch applies fuzz input to a file: records of offset (3 bytes, into the first 16 MiB in steps of 4 bytes), length and bytes.
func patch(d *memData, in []byte) {
	for len(in) >= 4 {
		at := int64(in[0]) | int64(in[1])<<8 | int64(in[2])<<16
		n := min(int(in[3]), len(in)-4)
		if at*4 < d.size {
			d.writeAt(in[4:4+n], at*4)
		}
		in = in[4+n:]
	}
}

// record is the inverse of patch for one change.
func record(at int64, b []byte) []byte {
	at /= 4
	return append([]byte{byte(at), byte(at >> 8), byte(at >> 16), byte(len(b))}, b...)
}

func FuzzVHDX(f *testing.F) {
	bases := hostileBases(f)
	f.Add(byte(0), []byte{})
	f.Add(byte(1), record(headerAt[0]+8, []byte{9}))
	f.Add(byte(2), record(mib+64, []byte("zero")))
	f.Add(byte(3), record(2*mib, []byte{7, 0, 0x40}))
	f.Add(byte(0), record(3*mib+metaTableSize+16, []byte{0xff, 0xff, 0xff, 0xff, 0xff}))
	f.Fuzz(func(t *testing.T, how byte, in []byte) {
		name := []string{"differencing", "dirty log"}[how&1]
		fs := bases[name]()
		d := fs.files["d/a"]
		patch(d, in)
		if how&2 == 0 {
			reseal(d)
		}
		decodable(t, d)
		exercise(t, fs, "d/a")
	})
}

func TestBitRunsAgreeWithSingleBits(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	for range 2000 {
		b := make([]byte, 1+r.IntN(40))
		for i := range b {
			b[i] = []byte{0, 0, 0xff, 0xff, byte(r.Uint32())}[r.IntN(5)]
		}
		bit := func(i int) bool { return b[i/8]>>(i%8)&1 != 0 }
		i := r.IntN(len(b) * 8)
		n := 1
		for i+n < len(b)*8 && bit(i+n) == bit(i) {
			n++
		}
		if set, run := bitRun(b, i); set != bit(i) || run != n {
			t.Fatalf("bitRun(%x, %d) = %v, %d, want %v, %d", b, i, set, run, bit(i), n)
		}
	}
}
