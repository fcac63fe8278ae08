package sidecar

import (
	"bytes"
	"context"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/blobtest"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
)

var update = flag.Bool("update", false, "write the golden files")

func patterns() int {
	n, _ := strconv.Atoi(os.Getenv("HOLDFAST_SOAK"))
	return 100 * max(1, min(n, 1000))
}

func noise(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// A damaged is an object and its side-car in memory.
type damaged struct {
	t        *testing.T
	obj, par []byte
	truth    []byte
	table    *table
}

func damage(t *testing.T, truth, par []byte) *damaged {
	d := &damaged{t: t, obj: bytes.Clone(truth), par: bytes.Clone(par), truth: truth}
	var err error
	if d.table, err = readTable(bytes.NewReader(par), int64(len(par))); err != nil {
		t.Fatal(err)
	}
	return d
}

// spoil damages a block of data, or of parity for i beyond the data.
func (d *damaged) spoil(rng *rand.Rand, i int) {
	b := d.obj
	off, n := int64(i)*int64(d.table.block), 0
	if i < d.table.blocks {
		n = d.table.len(i)
	} else {
		k := i - d.table.blocks
		b, off, n = d.par, d.table.parityOff(k/parityShards, k%parityShards), d.table.block
	}
	switch p := b[off : off+int64(n)]; rng.IntN(3) {
	case 0:
		p[rng.IntN(n)] ^= 1 << rng.IntN(8)
	case 1:
		for j := range p {
			p[j] ^= byte(1 + rng.IntN(255))
		}
	default:
		for j := rng.IntN(n); j < n; j++ {
			p[j] = ^p[j]
		}
	}
}

// repair returns the object after a repair.
func (d *damaged) repair() ([]byte, error) {
	obj, par := bytes.NewReader(d.obj), bytes.NewReader(d.par)
	f, err := d.table.survey(obj, par)
	if err != nil {
		d.t.Fatal(err)
	}
	fixed, err := d.table.rebuild(obj, par, f)
	if err != nil {
		return nil, err
	}
	out := make([]byte, len(d.truth))
	return out, readFull(&patched{obj, d.table, fixed}, out, 0)
}

// stripe lists the blocks of a stripe, parity as numbers beyond the data.
func (s shape) stripe(n int) []int {
	var out []int
	for i := n; i < s.blocks; i += s.stripes {
		out = append(out, i)
	}
	for j := range parityShards {
		out = append(out, s.blocks+n*parityShards+j)
	}
	return out
}

var sizes = []int{1, 63, 64, 65, 4095, 70_000, 1 << 20, 4<<20 - 1, 4 << 20, 4<<20 + 1, 9<<20 + 12345}

// Goal: any 4 blocks of every stripe, data or parity, come back bit by bit. Method: 100 patterns of 1 to 4 blocks in each stripe.
func TestFourBlocksOfEveryStripeComeBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	n := 0
	for n < patterns() {
		for _, size := range sizes {
			truth := noise(uint64(size), size)
			par, err := encode(bytes.NewReader(truth), int64(size))
			if err != nil {
				t.Fatal(err)
			}
			for range 10 {
				d := damage(t, truth, par)
				for k := range d.table.stripes {
					blocks := d.table.stripe(k)
					rng.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
					for _, i := range blocks[:1+rng.IntN(parityShards)] {
						d.spoil(rng, i)
					}
				}
				if got, err := d.repair(); err != nil || !bytes.Equal(got, truth) {
					t.Fatalf("size %d: %v, or other bytes", size, err)
				}
				n++
			}
		}
	}
	t.Logf("%d patterns", n)
}

// Goal: a fifth damaged block of a stripe is noticed and nothing is made up. Method: 100 patterns of 5 to 9 blocks of one stripe.
func TestFiveBlocksOfAStripeAreRefused(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	n := 0
	for n < patterns() {
		for _, size := range sizes[4:] {
			truth := noise(uint64(size), size)
			par, err := encode(bytes.NewReader(truth), int64(size))
			if err != nil {
				t.Fatal(err)
			}
			for range 10 {
				d := damage(t, truth, par)
				blocks := d.table.stripe(rng.IntN(d.table.stripes))
				data := 0
				rng.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
				for _, i := range blocks[:parityShards+1+rng.IntN(5)] {
					d.spoil(rng, i)
					if i < d.table.blocks {
						data++
					}
				}
				if got, err := d.repair(); data > 0 && holdfast.KindOf(err) != holdfast.Corrupt {
					t.Fatalf("size %d: repaired (%v), bytes as they were: %v", size, err, bytes.Equal(got, truth))
				}
				n++
			}
		}
	}
	t.Logf("%d patterns", n)
}

// Goal: one burst as long as four blocks of each stripe comes back, wherever it lies: 4 MiB in an object of 64 MiB.
func TestBurstComesBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 3))
	n := 0
	for _, size := range []int{100_000, 5 << 20, 64 << 20} {
		truth := noise(uint64(size), size)
		par, err := encode(bytes.NewReader(truth), int64(size))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("object of %d bytes: side-car of %d, %.2f %%", size, len(par), float64(len(par))/float64(size)*100)
		times := patterns() / 2
		if size == 64<<20 {
			times = patterns() / 20 // it takes a second each
		}
		for range times {
			d := damage(t, truth, par)
			// A burst that begins in the middle of a block touches one block more than its length has.
			length := d.table.block*(d.table.stripes*parityShards-1) + 1
			if length == 15*64<<10*4+3*64<<10+1 { // exactly 4 MiB when it begins with a block
				length = 4 << 20
			}
			at := rng.IntN(size - length + 1)
			if length == d.table.block*d.table.stripes*parityShards {
				at = at / d.table.block * d.table.block
			}
			for i := range d.obj[at : at+length] {
				d.obj[at+i] = ^d.obj[at+i]
			}
			if got, err := d.repair(); err != nil || !bytes.Equal(got, truth) {
				t.Fatalf("size %d: burst of %d at %d: %v, or other bytes", size, length, at, err)
			}
			n++
		}
	}
	t.Logf("%d bursts", n)
}

func open(t blobtest.T, o Options) (*fsys.Mem, *Store) {
	mem := fsys.NewMem(1)
	d, err := dirstore.Open(mem, dirstore.Options{})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return mem, New(d, o)
}

// Goal: damage is repaired while it is read, told, and gone from the medium; damage beyond repair is delivered as it rests.
func TestReadingRepairs(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(1, 4))
	truth := noise(5, 300_000)
	for i := range patterns() {
		var told []Repair
		mem, s := open(t, Options{Folder: "c", Repaired: func(r Repair) { told = append(told, r) }})
		if err := blob.WriteAll(ctx, s, "c/1", truth); err != nil {
			t.Fatal(err)
		}
		name := []string{"c/1", "c/1.par"}[rng.IntN(2)]
		if i%4 > 0 {
			name = "c/1"
		}
		st, err := mem.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := mem.OpenWrite(name)
		if err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 && name == "c/1" {
			err = f.Truncate(st.Size() - 1 - rng.Int64N(10_000))
		} else {
			_, err = f.WriteAt(noise(uint64(i+100), 1+rng.IntN(8000)), rng.Int64N(st.Size()-8000))
		}
		if err != nil || f.Sync() != nil || f.Close() != nil {
			t.Fatal(err)
		}
		got, err := blob.ReadAll(ctx, s, "c/1", 1<<20)
		if err != nil || !bytes.Equal(got, truth) {
			t.Fatalf("%d: %v, or other bytes", i, err)
		}
		if whole, err := s.Check(ctx, "c/1", false); !whole || err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if len(told) != 1 || !told[0].Stored || told[0].Name != "c/1" {
			t.Fatalf("%d: %s: told: %+v", i, name, told)
		}
		raw, err := blob.ReadAll(ctx, s.Store, "c/1", 1<<20)
		if err != nil || !bytes.Equal(raw, truth) {
			t.Fatalf("%d: not written anew: %v", i, err)
		}
	}
}

// Goal: objects from before get side-cars, side-cars of objects that are gone go, and neither is seen by who lists.
func TestCompleteFindsWhatLacksASideCar(t *testing.T) {
	ctx := context.Background()
	_, s := open(t, Options{Folder: "c"})
	for _, n := range []string{"c/1", "c/2", "d/3"} {
		if err := blob.WriteAll(ctx, s, n, noise(1, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Store.Remove(ctx, "c/1.par"); err != nil {
		t.Fatal(err)
	}
	if err := s.Store.Remove(ctx, "c/2"); err != nil {
		t.Fatal(err)
	}
	without, err := s.Complete(ctx)
	if err != nil || len(without) != 1 || without[0] != "c/1" {
		t.Fatal(without, err)
	}
	if ok, err := s.Check(ctx, "c/1", true); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if names, err := s.Store.List(ctx, ""); err != nil || len(names) != 3 {
		t.Fatal(names, err)
	}
	if names, err := s.List(ctx, ""); err != nil || len(names) != 2 {
		t.Fatal(names, err)
	}
}

// Goal: a store with side-cars is a store.
func TestStoreKeepsTheLaw(t *testing.T) {
	blobtest.Run(t, blobtest.Harness{New: func(t blobtest.T) blob.Store { _, s := open(t, Options{}); return s }})
}

// Goal: the side-cars of today are repaired from for ever.
func TestGoldenSideCar(t *testing.T) {
	truth := noise(77, 5000)
	par, err := encode(bytes.NewReader(truth), int64(len(truth)))
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join("testdata", "v1.par")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, par, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(golden, par) {
		t.Fatalf("%v, or another format: a version of its own needs a number of its own", err)
	}
	d := damage(t, truth, golden)
	clear(d.obj[100:300])
	if got, err := d.repair(); err != nil || !bytes.Equal(got, truth) {
		t.Fatal(err)
	}
}

// FuzzTable: whatever a side-car holds, reading it takes memory by its size, and what is accepted is what encode writes.
func FuzzTable(f *testing.F) {
	for _, n := range []int{0, 1, 1000, 70_000} {
		par, err := encode(bytes.NewReader(noise(1, n)), int64(n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(par)
	}
	f.Fuzz(func(t *testing.T, par []byte) {
		tb, err := readTable(bytes.NewReader(par), int64(len(par)))
		if err != nil {
			if holdfast.KindOf(err) != holdfast.Corrupt {
				t.Fatal(err)
			}
			return
		}
		if tb.whole && tb.parSize() != int64(len(par)) || len(tb.data) != tb.blocks || len(tb.parity) != tb.parities() {
			t.Fatalf("%+v", tb.shape)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	truth := noise(1, 64<<20)
	b.SetBytes(int64(len(truth)))
	for b.Loop() {
		if _, err := encode(bytes.NewReader(truth), int64(len(truth))); err != nil {
			b.Fatal(err)
		}
	}
}
