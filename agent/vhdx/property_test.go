package vhdx

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// Goal: what is written is read back, for every shape of disk; and qemu-img agrees wherever it can read.
// Method: 200 generated chains on real sparse files, against a model in memory. The seed of each is its number.

// qemuImg runs qemu-img, which these tests need.
func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// model is a disk as a map of pages.
type model struct{ memData }

func newModel(size int64) *model { return &model{memData{pages: make(map[int64][]byte), size: size}} }

func (m *model) clone() *model {
	c := newModel(m.size)
	for i, p := range m.pages {
		c.pages[i] = bytes.Clone(p)
	}
	return c
}

// reader is what Disk and Live have in common.
type reader interface {
	io.ReaderAt
	Info() Info
	Allocated() (holdfast.Extents, error)
}

// same compares a disk with the model: all pages ever written with their surroundings, random ranges, the end, and the map.
func (m *model) same(d reader, r *rand.Rand) error {
	if got := d.Info().Size; got != m.size {
		return fmt.Errorf("size %d, want %d", got, m.size)
	}
	ranges := holdfast.Extents{{Off: 0, Len: min(m.size, 3*memPage)}, {Off: max(m.size-memPage, 0), Len: memPage}}
	pages := make(holdfast.Extents, 0, len(m.pages))
	for i, p := range m.pages {
		ranges = append(ranges, holdfast.Extent{Off: i*memPage - 700, Len: memPage + 1400})
		for at := 0; at < memPage; at += 512 {
			if !isZero(p[at : at+512]) {
				pages = append(pages, holdfast.Extent{Off: i*memPage + int64(at), Len: 512})
			}
		}
	}
	for range 10 {
		ranges = append(ranges, holdfast.Extent{Off: r.Int64N(m.size), Len: 1 + r.Int64N(1<<20)})
	}
	for _, e := range ranges.Normal(m.size) {
		for off := e.Off; off < e.End(); {
			n := min(e.End()-off, 1+r.Int64N(3<<20))
			got, want := make([]byte, n), make([]byte, n)
			if k, err := d.ReadAt(got, off); err != nil || int64(k) != n {
				return fmt.Errorf("read %d bytes at %d: %d, %w", n, off, k, err)
			}
			_, _ = m.readAt(want, off)
			if !bytes.Equal(got, want) {
				return fmt.Errorf("%d bytes at %d differ", n, off)
			}
			off += n
		}
	}
	alloc, err := d.Allocated()
	if err != nil {
		return err
	}
	if left := pages.Normal(m.size).Subtract(alloc); len(left) > 0 {
		return fmt.Errorf("the map lacks %v", left[0])
	}
	b := make([]byte, 10)
	if k, err := d.ReadAt(b, m.size-4); k != 4 || err != io.EOF {
		return fmt.Errorf("read across the end: %d, %v", k, err)
	}
	return nil
}

// target is what Writer and Live have in common.
type target interface {
	WriteAt(p []byte, off int64) (int, error)
}

// scribble writes at random places of a disk and its model.
func (m *model) scribble(t *testing.T, d target, r *rand.Rand, block int64) {
	for range 3 + r.IntN(8) {
		n := []int64{512, 4096, 1 + r.Int64N(20000), 64 * kib, min(block, 1<<20)}[r.IntN(5)]
		off := r.Int64N(m.size)
		if r.IntN(2) == 0 { // around the edge of a block
			off = max(off/block*block-r.Int64N(n+1), 0)
		}
		b := make([]byte, min(n, m.size-off))
		if r.IntN(5) > 0 {
			for i := 0; i < len(b); i += 1 + r.IntN(64) {
				b[i] = byte(r.Uint32())
			}
		}
		must(t, second(d.WriteAt(b, off)))
		m.writeAt(b, off)
	}
	live, ok := d.(*Live)
	if !ok {
		return
	}
	for range r.IntN(4) {
		off := r.Int64N(m.size)
		n := min(r.Int64N(2*block), m.size-off)
		must(t, live.Zero(off, n))
		m.zero(off, n)
	}
}

// generated is one image: how it was made, for messages, and what it holds.
type generated struct {
	path  string
	model *model
	info  Info
	depth int
}

// generate makes a chain from a seed.
func generate(t *testing.T, seed uint64, dir string) generated {
	r := rand.New(rand.NewPCG(seed, 11))
	block := uint32(1) << (20 + r.IntN(9))
	sector := []uint32{512, 4096}[r.IntN(2)]
	size := (1 + r.Int64N([]int64{8 << 20, 200 << 20, 3 << 30, 1 << 40}[r.IntN(4)])) * int64(sector)
	size = max(int64(sector), size/512/int64(sector)*int64(sector))
	o := CreateOptions{Size: size, Subformat: []string{"dynamic", "dynamic", "fixed"}[r.IntN(3)], BlockSize: block, LogicalSector: sector,
		PhysicalSector: []uint32{0, 512, 4096}[r.IntN(3)]}
	if o.Subformat == "fixed" && size > 1<<32 {
		o.Size = 1 << 30
	}
	g := generated{model: newModel(o.Size), depth: 1}
	for {
		g.path = filepath.Join(dir, fmt.Sprintf("%d-%d.vhdx", seed, g.depth))
		w, err := create(noSync{}, g.path, o)
		must(t, err)
		g.model.scribble(t, w, r, int64(block))
		must(t, w.Finish())
		if r.IntN(2) == 0 {
			g.relive(t, r, int64(block))
		}
		if g.depth == 4 || r.IntN(2) == 0 {
			break
		}
		g.depth++
		o = CreateOptions{Subformat: "differencing", Parent: g.path}
		if r.IntN(2) == 0 {
			o.BlockSize = uint32(1) << (20 + r.IntN(9))
		}
	}
	return g
}

// relive changes an image in place, perhaps growing it.
func (g *generated) relive(t *testing.T, r *rand.Rand, block int64) {
	l, err := openLive(noSync{}, g.path)
	must(t, err)
	g.model.scribble(t, l, r, block)
	if r.IntN(3) == 0 {
		s := int64(l.Info().LogicalSector)
		size := g.model.size + (1+r.Int64N(3*block/s))*s
		must(t, l.Resize(size))
		g.model.size = size
		g.model.scribble(t, l, r, block)
	}
	if err := g.model.same(l, r); err != nil {
		t.Fatalf("live: %v", err)
	}
	must(t, l.Close())
}

func TestTwoHundredGeneratedImagesRoundTrip(t *testing.T) {
	for part := range uint64(8) {
		t.Run(fmt.Sprintf("seeds %d mod 8", part), func(t *testing.T) {
			t.Parallel()
			for seed := part; seed < 200; seed += 8 {
				dir := filepath.Join(t.TempDir(), "g")
				must(t, os.Mkdir(dir, 0o700))
				roundTrip(t, seed, dir)
				must(t, os.RemoveAll(dir))
			}
		})
	}
}

func roundTrip(t *testing.T, seed uint64, dir string) {
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	g := generate(t, seed, dir)
	r := rand.New(rand.NewPCG(seed, 12))
	rep, err := Check(g.path)
	must(t, err)
	if len(rep.Problems) > 0 {
		t.Fatalf("check: %v", rep.Problems)
	}
	d, err := Open(g.path)
	must(t, err)
	defer d.Close()
	g.info = d.Info()
	if len(g.info.Chain) != g.depth {
		t.Fatalf("chain %v, want %d files", g.info.Chain, g.depth)
	}
	if err := g.model.same(d, r); err != nil {
		t.Fatalf("%s %s block %d sector %d: %v", g.info.Format, g.info.Subformat, g.info.BlockSize, g.info.LogicalSector, err)
	}
	g.judge(t, dir)
}

// judge asks qemu-img where it can read the file: 512-byte sectors, no parent. Whole comparisons are for sizes that take no time.
func (g generated) judge(t *testing.T, dir string) {
	if g.depth > 1 || g.info.LogicalSector != 512 {
		return
	}
	qemuImg(t, "check", g.path)
	if g.model.size > 100<<20 {
		return
	}
	raw := filepath.Join(dir, "raw")
	g.model.writeRaw(t, raw)
	qemuImg(t, "compare", "-f", "raw", "-F", "vhdx", raw, g.path)
}

// writeRaw writes the model as a sparse file.
func (m *model) writeRaw(t *testing.T, path string) {
	f, err := os.Create(path)
	must(t, err)
	must(t, f.Truncate(m.size))
	for i, p := range m.pages {
		must(t, second(f.WriteAt(p[:min(memPage, m.size-i*memPage)], i*memPage)))
	}
	must(t, f.Close())
}

// qemu's own files, and files of qemu changed by us, hold the same for both.
func TestImagesOfQemuAreReadAndChangedAlike(t *testing.T) {
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(5, 5))
	m := newModel(70<<20 + 512*3)
	for range 40 {
		off := r.Int64N(m.size - 300000)
		m.writeAt(randBytes(r, 1+r.Int64N(300000)), off)
	}
	raw := filepath.Join(dir, "raw")
	m.writeRaw(t, raw)
	for _, opts := range []string{"subformat=dynamic,block_size=1M", "subformat=dynamic,block_size=16M,block_state_zero=off", "subformat=fixed",
		"subformat=dynamic,block_size=256M,log_size=8M", "subformat=fixed,block_size=4M"} {
		t.Run(opts, func(t *testing.T) {
			m := m.clone()
			path := filepath.Join(dir, opts)
			qemuImg(t, "convert", "-O", "vhdx", "-o", opts, raw, path)
			d := must1(Open(path))(t)
			must(t, m.same(d, r))
			must(t, d.Close())
			l := must1(OpenLive(path))(t)
			m.scribble(t, l, r, 1<<20)
			must(t, l.Resize(m.size+5<<20))
			m.size += 5 << 20
			m.scribble(t, l, r, 1<<20)
			must(t, m.same(l, r))
			must(t, l.Close())
			rep := must1(Check(path))(t)
			if len(rep.Problems) > 0 {
				t.Fatal(rep.Problems)
			}
			qemuImg(t, "check", path)
			again := filepath.Join(dir, "again")
			m.writeRaw(t, again)
			qemuImg(t, "compare", "-f", "raw", "-F", "vhdx", again, path)
		})
	}
	for _, opts := range []string{"subformat=dynamic,force_size=on", "subformat=fixed,force_size=on", "subformat=dynamic"} {
		t.Run("vpc "+opts, func(t *testing.T) {
			path := filepath.Join(dir, opts+".vhd")
			qemuImg(t, "convert", "-O", "vpc", "-o", opts, raw, path)
			m := m.clone()
			d := must1(Open(path))(t)
			defer d.Close()
			m.size = max(m.size, d.Info().Size) // qemu rounds up to a geometry
			must(t, m.same(d, r))
			rep := must1(Check(path))(t)
			if len(rep.Problems) > 0 {
				t.Fatal(rep.Problems)
			}
		})
	}
}
