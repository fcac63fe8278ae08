package container

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// testRing opens the golden keyring.
func testRing(t testing.TB) *seal.Ring {
	t.Helper()
	dir := filepath.Join("..", "seal", "testdata")
	b, err := os.ReadFile(filepath.Join(dir, "v1.ring"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(dir, "v1.key"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := seal.Read(seal.KeyFile, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := seal.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Unlock(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// testCipher is always the same: for golden files.
func testCipher(t testing.TB, id uint64) *seal.Cipher {
	t.Helper()
	r := testRing(t)
	c, err := r.Cipher(r.NewCipher(id).KeyID, [32]byte{1, 2, 3}, id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func buildSealed(t testing.TB, groups []holdfast.Group, c *seal.Cipher) ([]byte, *Footer) {
	t.Helper()
	var b bytes.Buffer
	w := NewSealedWriter(&b, testHeader(), nil, c)
	for i := range groups {
		if _, err := w.Append(Data, &groups[i]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), w.Footer()
}

// Goal: an encrypted container gives back what was appended with its key, and nothing without it or with another. Method: random groups.
func TestSealedContainerNeedsItsKey(t *testing.T) {
	rng := rand.New(rand.NewPCG(21, 22))
	for range 10 {
		groups := randomGroups(rng, 1+rng.IntN(30), 20, 9000)
		groups[0].Payload = append(bytes.Repeat([]byte("finance-db"), 10), groups[0].Payload[min(100, len(groups[0].Payload)):]...)[:len(groups[0].Payload)]
		file, wrote := buildSealed(t, groups, testRing(t).NewCipher(testHeader().ID))
		if bytes.Contains(file, []byte("finance")) {
			t.Fatal("plaintext in the file")
		}
		r := bytes.NewReader(file)
		h, f, err := Load(r, int64(len(file)))
		if err != nil {
			t.Fatal(err)
		}
		if _, s, err := Scan(r, int64(len(file))); err != nil || !reflect.DeepEqual(s, f) {
			t.Fatalf("a scan finds other records: %v", err)
		}
		if _, err := ReadGroup(r, f, 0, nil); !errors.Is(err, holdfast.Permission) || holdfast.HintOf(err) == "" {
			t.Fatalf("without the key: %v", err)
		}
		if f.Cipher, err = testRing(t).Cipher(h.KeyID, h.Salt, h.ID+1); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadGroup(r, f, 0, nil); !errors.Is(err, holdfast.Corrupt) {
			t.Fatalf("with another container's key: %v", err)
		}
		if f.Cipher, err = testRing(t).Cipher(h.KeyID, h.Salt, h.ID); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(f.Groups, wrote.Groups) || !reflect.DeepEqual(f.Chunks, wrote.Chunks) {
			t.Fatal("footer differs from what was written")
		}
		for i := range groups {
			g, err := ReadGroup(r, f, uint32(i), nil)
			if err != nil || !bytes.Equal(g.Payload, groups[i].Payload) || g.Codec != groups[i].Codec {
				t.Fatalf("group %d: %v", i, err)
			}
			if err := f.CheckRecord(uint32(i), file[f.Groups[i].Off:f.Groups[i].End()]); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Goal: no flipped bit of an encrypted container goes unnoticed without the key. Method: flip each byte's random bit.
func TestSealedContainerNoticesEveryFlipWithoutTheKey(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	file, _ := buildSealed(t, randomGroups(rng, 5, 4, 300), testCipher(t, testHeader().ID))
	for at := range file {
		bad := bytes.Clone(file)
		bad[at] ^= 1 << rng.IntN(8)
		if !noticed(bad) {
			t.Fatalf("a flip in byte %d of %d was not noticed", at, len(file))
		}
	}
}

// Goal: a record moved to another place, or whose head or names were changed by someone who corrects all checksums, does not decrypt.
func TestForgedRecordDoesNotDecrypt(t *testing.T) {
	c := testCipher(t, testHeader().ID)
	file, _ := buildSealed(t, randomGroups(rand.New(rand.NewPCG(5, 6)), 3, 3, 300), c)
	for name, forge := range map[string]func(*Footer){
		"codec":  func(f *Footer) { f.Groups[0].Codec = holdfast.Zstd },
		"type":   func(f *Footer) { f.Groups[0].Type = Node },
		"digest": func(f *Footer) { f.Chunks[0].Digest[3] ^= 1 },
		"first":  func(f *Footer) { f.Groups[0].First++ },
	} {
		_, f, err := Load(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			t.Fatal(err)
		}
		f.Cipher = c
		g := f.Groups[0]
		stored := bytes.Clone(file[g.PayloadOff() : g.PayloadOff()+int64(g.Stored)])
		if _, err := f.OpenPayload(0, bytes.Clone(stored)); err != nil {
			t.Fatal(err)
		}
		forge(f)
		if _, err := f.OpenPayload(0, stored); !errors.Is(err, holdfast.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Goal: encrypted containers of version 1 open for ever. Method: a golden file, written byte for byte and read.
func TestGoldenSealedContainer(t *testing.T) {
	groups := randomGroups(rand.New(rand.NewPCG(11, 12)), 4, 3, 100)
	c := testCipher(t, testHeader().ID)
	file, _ := buildSealed(t, groups, c)
	name := filepath.Join("testdata", "v1.sealed")
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
	_, f, err := Load(bytes.NewReader(want), int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	f.Cipher = c
	for i := range groups {
		if g, err := ReadGroup(bytes.NewReader(want), f, uint32(i), nil); err != nil || !bytes.Equal(g.Payload, groups[i].Payload) {
			t.Fatalf("group %d: %v", i, err)
		}
	}
}

// FuzzSealed: headers and footers of encrypted containers survive decoding and encoding.
func FuzzSealed(f *testing.F) {
	file, foot := buildSealed(f, randomGroups(rand.New(rand.NewPCG(13, 14)), 3, 3, 60), testCipher(f, testHeader().ID))
	f.Add(file)
	f.Add(AppendFooter(nil, foot))
	f.Fuzz(func(t *testing.T, b []byte) {
		if foot, err := ParseFooter(b); err == nil && !bytes.Equal(AppendFooter(nil, foot), b) {
			t.Fatal("a footer does not encode to what it was decoded from")
		}
		if h, err := parseHeader(b); err == nil && !bytes.Equal(appendHeader(nil, h), b[:headerLen]) {
			t.Fatal("a header does not encode to what it was decoded from")
		}
		if _, foot, err := Load(bytes.NewReader(b), int64(len(b))); err == nil {
			foot.Cipher = testCipher(t, 1)
			for i := range foot.Groups {
				if g, err := ReadGroup(bytes.NewReader(b), foot, uint32(i), nil); err == nil && foot.Groups[i].Sealed {
					t.Fatalf("group %d of a foreign container opened: %v", i, g.Codec)
				}
			}
		}
	})
}

// BenchmarkAppendSealed is BenchmarkAppend with encryption.
func BenchmarkAppendSealed(b *testing.B) {
	g := randomGroups(rand.New(rand.NewPCG(1, 1)), 1, 1, 8)[0]
	g.Payload = make([]byte, 1<<20)
	g.Chunks = nil
	for range 16 {
		g.Chunks = append(g.Chunks, holdfast.Piece{Digest: holdfast.Digest{1}, Len: 64 << 10})
	}
	b.SetBytes(1 << 20)
	ring := testRing(b)
	var w *Writer
	for range b.N {
		if w == nil || w.Full() {
			w = NewSealedWriter(discard{}, testHeader(), nil, ring.NewCipher(testHeader().ID))
		}
		if _, err := w.Append(Data, &g); err != nil {
			b.Fatal(err)
		}
	}
}
