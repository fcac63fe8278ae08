package dedup

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: this version writes other bytes than version 1", name)
	}
}

func digestOf(rng *rand.Rand) holdfast.Digest {
	var d holdfast.Digest
	for i := range d {
		d[i] = byte(rng.Uint32())
	}
	return d
}

// randomLeaf makes a leaf of n refs to few chunks.
func randomLeaf(rng *rand.Rand, span uint8, n int) *node {
	ds := make([]holdfast.Digest, 1+n/3)
	for i := range ds {
		ds[i] = digestOf(rng)
	}
	leaf := &node{span: span}
	off := int64(0)
	for range n {
		off += int64(rng.IntN(3)) * 512
		l := int64(1 + rng.IntN(20_000))
		if off+l > 1<<span {
			break
		}
		leaf.refs = append(leaf.refs, holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: l}, Digest: ds[rng.IntN(len(ds))], Skip: uint32(rng.IntN(5000))})
		off += l
	}
	return leaf
}

func randomInner(rng *rand.Rand, span uint8) *node {
	n := &node{span: span, child: childSpan(span)}
	n.children = make([]holdfast.Digest, 1<<(span-n.child))
	n.children[len(n.children)-1] = digestOf(rng)
	for range rng.IntN(20) {
		n.children[rng.IntN(len(n.children))] = digestOf(rng)
	}
	return n
}

// Goal: nodes survive encoding, and no shortened or lengthened node is taken for one.
func TestNodesSurviveEncoding(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var nodes []*node
	for _, span := range []uint8{12, 16, 20, 24, 28} {
		nodes = append(nodes, randomLeaf(rng, span, 1+rng.IntN(40)))
	}
	for _, span := range []uint8{16, 20, 24, 28, 36, 44, 52} {
		nodes = append(nodes, randomInner(rng, span))
	}
	for _, n := range nodes {
		if n.leaf() && len(n.refs) == 0 {
			n.refs = []holdfast.Ref{{Extent: holdfast.Extent{Off: 0, Len: 1}, Digest: digestOf(rng)}}
		}
		b := appendNode(nil, n)
		got, err := parseNode(b)
		if err != nil || !reflect.DeepEqual(got, n) {
			t.Fatalf("span %d: %v", n.span, err)
		}
		for i := range b {
			if _, err := parseNode(b[:i]); err == nil {
				t.Fatalf("span %d: %d of %d bytes were taken for a node", n.span, i, len(b))
			}
		}
		if _, err := parseNode(append(b, 0)); err == nil {
			t.Fatal("a node with a byte too many was accepted")
		}
	}
}

// Goal: the recipe's format does not change unnoticed.
func TestGoldenRecipe(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	golden(t, "v1.leaf", appendNode(nil, randomLeaf(rng, 28, 30)))
	golden(t, "v1.inner", appendNode(nil, randomInner(rng, 36)))
	golden(t, "v1.split", appendNode(nil, randomInner(rng, 28)))
}

// FuzzRecipe: what parses as a node encodes to the same bytes.
func FuzzRecipe(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 3))
	f.Add(appendNode(nil, randomLeaf(rng, 28, 5)))
	f.Add(appendNode(nil, randomLeaf(rng, 12, 2)))
	f.Add(appendNode(nil, randomInner(rng, 36)))
	f.Add(appendNode(nil, randomInner(rng, 24)))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseNode(b)
		if err == nil && !bytes.Equal(appendNode(nil, n), b) {
			t.Fatal("a node does not encode to what it was decoded from")
		}
	})
}

func testRecord() *setRecord {
	id := func(b byte) holdfast.ID {
		return holdfast.ID{b, 1, 2, 3, 4, 5, 0x70, 7, 0x80, 9, 10, 11, 12, 13, 14, 15}
	}
	return &setRecord{
		pool: holdfast.PoolID{ID: id(1)},
		manifest: holdfast.Manifest{ID: holdfast.SetID{ID: id(2)}, Created: time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC), Kind: holdfast.Full,
			VM: holdfast.VMInfo{ID: holdfast.VMID{ID: id(3)}, Name: "web", Generation: 2}, Consistency: holdfast.CrashConsistent,
			Disks: []holdfast.Disk{{ID: holdfast.DiskID{ID: id(4)}, Name: "web.vhdx", Size: 1 << 30}, {ID: holdfast.DiskID{ID: id(5)}, Name: "data.vhdx", Size: 1 << 20}}},
		disks: []diskRoot{{root: holdfast.Digest{1, 2, 3}, placed: 12345}, {}},
	}
}

// Goal: the set record's format does not change unnoticed, and no flipped or cut record is accepted.
func TestGoldenSetRecord(t *testing.T) {
	h := holdfast.Domain{Key: [32]byte{9}}.Hasher()
	b, err := appendSetRecord(nil, testRecord(), h)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "v1.set", b)
	got, err := parseSetRecord(b, h)
	if err != nil || !reflect.DeepEqual(got, testRecord()) {
		t.Fatalf("the record differs: %v", err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 4
		if _, err := parseSetRecord(bad, h); err == nil {
			t.Fatalf("a flip in byte %d was not noticed", i)
		}
		if _, err := parseSetRecord(b[:i], h); err == nil {
			t.Fatalf("%d of %d bytes were accepted", i, len(b))
		}
	}
}

// FuzzSetRecord: what parses encodes to the same bytes. The checksum is put right first, so that the fuzzer gets behind it.
func FuzzSetRecord(f *testing.F) {
	h := holdfast.Domain{}.Hasher()
	b, err := appendSetRecord(nil, testRecord(), h)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:len(b)-32])
	f.Fuzz(func(t *testing.T, b []byte) {
		sum := h.Sum(b)
		b = append(bytes.Clone(b), sum[:]...)
		r, err := parseSetRecord(b, h)
		if err != nil {
			return
		}
		again, err := appendSetRecord(nil, r, h)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("a record does not encode to what it was decoded from: %v", err)
		}
	})
}

// Goal: the superblock is found in either copy, and one of another format is refused.
func TestSuperblockFrame(t *testing.T) {
	s, err := newSuperblock(poolKind, holdfast.PoolID{ID: holdfast.NewID()}, defaultChunking(t), time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseSuperblock(poolKind, b)
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Fatalf("the superblock differs: %v", err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := parseSuperblock(poolKind, bad); err == nil {
			t.Fatalf("a flip in byte %d was not noticed", i)
		}
	}
	s.Incompat = 1 << 9
	if b, err = s.encode(); err != nil {
		t.Fatal(err)
	}
	if _, err := parseSuperblock(poolKind, b); holdfast.KindOf(err) != holdfast.Unsupported {
		t.Fatalf("a pool of a newer version: %v", err)
	}
}
