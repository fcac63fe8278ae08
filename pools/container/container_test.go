package container

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

var update = flag.Bool("update", false, "write the golden files anew")

func testHeader() Header {
	return Header{ID: 0x0123456789abcdef, Pool: holdfast.PoolID{ID: holdfast.ID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}}
}

// randomGroups makes plain groups with the digests of their chunks.
func randomGroups(rng *rand.Rand, n, maxChunks, maxLen int) []holdfast.Group {
	h := holdfast.Domain{Key: [32]byte{7}}.Hasher()
	groups := make([]holdfast.Group, n)
	for i := range groups {
		g := &groups[i]
		for range 1 + rng.IntN(maxChunks) {
			p := make([]byte, 1+rng.IntN(maxLen))
			for j := range p {
				p[j] = byte(rng.Uint32())
			}
			g.Chunks = append(g.Chunks, holdfast.Piece{Digest: h.Sum(p), Len: uint32(len(p))})
			g.Payload = append(g.Payload, p...)
		}
	}
	return groups
}

func build(t testing.TB, groups []holdfast.Group) ([]byte, *Footer) {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b, testHeader(), nil)
	for i := range groups {
		typ := Data
		if i%3 == 2 {
			typ = Node
		}
		if _, err := w.Append(typ, &groups[i]); err != nil {
			t.Fatal(err)
		}
	}
	size, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if size != int64(b.Len()) {
		t.Fatalf("Finish says %d bytes, %d were written", size, b.Len())
	}
	return b.Bytes(), w.Footer()
}

// Goal: what was appended is read back, by the footer and by a scan without it. Method: random groups.
func TestContainerGivesBackWhatWasAppended(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		groups := randomGroups(rng, 1+rng.IntN(40), 30, 9000)
		file, wrote := build(t, groups)
		h, f, err := Load(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			t.Fatal(err)
		}
		if h != testHeader() || !reflect.DeepEqual(f, wrote) {
			t.Fatal("header or footer differ from what was written")
		}
		_, scanned, err := Scan(bytes.NewReader(file), int64(len(file)))
		if err != nil || !reflect.DeepEqual(scanned, wrote) {
			t.Fatalf("a scan finds other records: %v", err)
		}
		for i := range groups {
			g, err := ReadGroup(bytes.NewReader(file), f, uint32(i), nil)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(g.Payload, groups[i].Payload) || !reflect.DeepEqual(g.Chunks, groups[i].Chunks) {
				t.Fatalf("group %d differs", i)
			}
			e := &f.Groups[i]
			if err := f.CheckRecord(uint32(i), file[e.Off:e.End()]); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Goal: no flipped bit of a container goes unnoticed. Method: flip each byte's random bit; Load or a record's check must refuse.
func TestContainerNoticesEveryFlip(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	file, _ := build(t, randomGroups(rng, 5, 4, 300))
	for at := range file {
		bad := bytes.Clone(file)
		bad[at] ^= 1 << rng.IntN(8)
		if noticed(bad) {
			continue
		}
		t.Fatalf("a flip in byte %d of %d was not noticed", at, len(file))
	}
}

func noticed(file []byte) bool {
	_, f, err := Load(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return true
	}
	for i := range f.Groups {
		g := &f.Groups[i]
		if f.CheckRecord(uint32(i), file[g.Off:g.End()]) != nil {
			return true
		}
	}
	return false
}

// Goal: a container cut off anywhere is not taken for a sealed one, and a scan still finds the whole records in front of the cut.
func TestTruncatedContainerIsNotSealed(t *testing.T) {
	file, f := build(t, randomGroups(rand.New(rand.NewPCG(5, 6)), 6, 4, 300))
	for n := range file {
		if _, _, err := Load(bytes.NewReader(file[:n]), int64(n)); !errors.Is(err, holdfast.Corrupt) {
			t.Fatalf("%d of %d bytes: %v", n, len(file), err)
		}
		if n < headerLen {
			continue
		}
		whole := 0
		for i := range f.Groups {
			if f.Groups[i].End() <= int64(n) {
				whole++
			}
		}
		_, got, err := Scan(bytes.NewReader(file[:n]), int64(n))
		if err != nil || len(got.Groups) != whole {
			t.Fatalf("scan of %d bytes: %d records, expected %d: %v", n, len(got.Groups), whole, err)
		}
	}
}

// Goal: writes are large and aligned whatever is appended, and the buffer is bounded.
func TestWriterWritesAlignedUnits(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	var rec recorder
	w := NewWriter(&rec, testHeader(), nil)
	for _, g := range randomGroups(rng, 60, 3, 90_000) {
		if _, err := w.Append(Data, &g); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	for i, n := range rec {
		if i < len(rec)-1 && (n == 0 || n%writeUnit != 0) {
			t.Fatalf("write %d of %d has %d bytes", i, len(rec), n)
		}
	}
	if c := cap(w.Buffer()); c > 2*bufferCap {
		t.Fatalf("the buffer grew to %d bytes", c)
	}
}

type recorder []int

func (r *recorder) Write(p []byte) (int, error) { *r = append(*r, len(p)); return len(p), nil }

// Goal: a medium that fails fails the container for good.
func TestWriterStaysFailed(t *testing.T) {
	boom := errors.New("boom")
	w := NewWriter(failing{boom}, testHeader(), nil)
	g := randomGroups(rand.New(rand.NewPCG(9, 9)), 1, 1, 10)[0]
	if _, err := w.Append(Data, &g); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := w.Finish(); !errors.Is(err, boom) {
			t.Fatalf("Finish: %v", err)
		}
	}
	if _, err := w.Append(Data, &g); !errors.Is(err, boom) {
		t.Fatalf("Append: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// Goal: the format does not change unnoticed: a golden container must be written byte for byte and read.
func TestGoldenContainer(t *testing.T) {
	file, _ := build(t, randomGroups(rand.New(rand.NewPCG(11, 12)), 4, 3, 100))
	name := filepath.Join("testdata", "v1.container")
	if *update {
		if err := os.WriteFile(name, file, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file, want) {
		t.Fatal("this version writes other bytes than version 1")
	}
	if noticed(want) {
		t.Fatal("this version cannot read version 1")
	}
}

// FuzzContainer: whatever bytes are, Load, Scan and the parsers return an error or something that encodes to the same bytes.
func FuzzContainer(f *testing.F) {
	file, foot := build(f, randomGroups(rand.New(rand.NewPCG(13, 14)), 3, 3, 60))
	f.Add(file)
	f.Add(AppendFooter(nil, foot))
	f.Add(file[headerLen:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if foot, err := ParseFooter(b); err == nil && !bytes.Equal(AppendFooter(nil, foot), b) {
			t.Fatal("a footer does not encode to what it was decoded from")
		}
		if h, err := parseHeader(b); err == nil && !bytes.Equal(appendHeader(nil, h), b[:headerLen]) {
			t.Fatal("a header does not encode to what it was decoded from")
		}
		var rec Footer
		if g, ok := rec.scanRecord(b, headerLen); ok {
			again := bytes.Clone(b[:g.End()-headerLen])
			putRecordHead(again, &g, 0)
			if !bytes.Equal(again, b[:len(again)]) {
				t.Fatal("a record does not encode to what it was decoded from")
			}
		}
		if h, foot, err := Load(bytes.NewReader(b), int64(len(b))); err == nil {
			enc := AppendFooter(nil, foot)
			again := appendTrailer(bytes.Clone(b[:foot.end()]), h.ID, foot, enc)
			again = append(again[:foot.end()], append(enc, again[foot.end():]...)...)
			if !bytes.Equal(again, b) {
				t.Fatal("a container does not encode to what it was decoded from")
			}
		}
		if _, _, err := Scan(bytes.NewReader(b), int64(len(b))); err != nil && !errors.Is(err, holdfast.Corrupt) && !errors.Is(err, holdfast.Unsupported) {
			t.Fatal(err)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	g := holdfast.Group{Codec: holdfast.Zstd, Payload: make([]byte, 300<<10)}
	for range 16 {
		g.Chunks = append(g.Chunks, holdfast.Piece{Len: 64 << 10})
	}
	var buf []byte
	w := NewWriter(discard{}, testHeader(), buf)
	b.SetBytes(int64(len(g.Payload)))
	b.ReportAllocs()
	for b.Loop() {
		if w.Full() {
			if _, err := w.Finish(); err != nil {
				b.Fatal(err)
			}
			w = NewWriter(discard{}, testHeader(), w.Buffer())
		}
		if _, err := w.Append(Data, &g); err != nil {
			b.Fatal(err)
		}
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
