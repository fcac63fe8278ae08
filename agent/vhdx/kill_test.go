package vhdx

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// Goal: whatever the instant a process dies, the file left behind is valid, and every sector holds its old or its new bytes.
// Method: run a script on files in memory that die at their n-th change, for every n and several ways to tear that change.

const killBlock = 1 << 20

// op is one step of a script; data nil zeroes, n < 0 resizes to off.
type op struct {
	off, n int64
	data   []byte
}

// apply returns what the disk holds after the step.
func (o op) apply(disk []byte) []byte {
	next := bytes.Clone(disk)
	switch {
	case o.n < 0:
		return append(next, make([]byte, o.off-int64(len(next)))...)
	case o.data == nil:
		clear(next[o.off : o.off+o.n])
	default:
		copy(next[o.off:], o.data)
	}
	return next
}

func (o op) run(l *Live) error {
	switch {
	case o.n < 0:
		return l.Resize(o.off)
	case o.data == nil:
		return l.Zero(o.off, o.n)
	}
	_, err := l.WriteAt(o.data, o.off)
	return err
}

func randBytes(r *rand.Rand, n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// killScript touches every path of the writer: new blocks, partial blocks, overwrites, whole and partial zeros, reuse of freed
// space, unaligned edges, growth.
func killScript(r *rand.Rand, size int64) []op {
	w := func(off, n int64) op { return op{off, n, randBytes(r, n)} }
	return []op{
		w(0, 512), w(4096, 8192), w(killBlock-1024, 3000), w(2*killBlock+512*3, 512), w(killBlock, killBlock),
		{off: killBlock, n: killBlock}, w(3*killBlock+100, 1000), {off: 2 * killBlock, n: 5000}, w(killBlock+9*512, 1024),
		{off: 0, n: killBlock}, w(77*512, 4096), w(3*killBlock, size-3*killBlock),
		{off: size + 3*killBlock, n: -1}, w(size-700, 3*killBlock), {off: size, n: 2 * killBlock},
	}
}

// killSetups make the disk to be changed, at top, and say what it holds.
func killSetups(t *testing.T) map[string]func(*memFS, *rand.Rand) []byte {
	const size = 4*killBlock - 7*4096
	fill := func(w *Writer, disk []byte, r *rand.Rand, places ...int64) {
		for _, at := range places {
			b := randBytes(r, 4096*3)
			must(t, second(w.WriteAt(b, at)))
			copy(disk[at:], b)
		}
		must(t, w.Finish())
	}
	plain := func(sub string, sector uint32, places ...int64) func(*memFS, *rand.Rand) []byte {
		return func(fs *memFS, r *rand.Rand) []byte {
			disk := make([]byte, size)
			w := must1(create(fs, "d/top", CreateOptions{Size: size, Subformat: sub, BlockSize: killBlock, LogicalSector: sector}))(t)
			fill(w, disk, r, places...)
			return disk
		}
	}
	diff := func(sector uint32) func(*memFS, *rand.Rand) []byte {
		return func(fs *memFS, r *rand.Rand) []byte {
			disk := make([]byte, size)
			w := must1(create(fs, "d/base", CreateOptions{Size: size, Subformat: "dynamic", BlockSize: 2 * killBlock, LogicalSector: sector}))(t)
			fill(w, disk, r, 0, 5*4096, 3*killBlock)
			w = must1(create(fs, "d/top", CreateOptions{Subformat: "differencing", BlockSize: killBlock, Parent: "d/base"}))(t)
			fill(w, disk, r, 4096, 2*killBlock-4096)
			return disk
		}
	}
	return map[string]func(*memFS, *rand.Rand) []byte{
		"dynamic": plain("dynamic", 512, 4096, 3*killBlock), "fixed": plain("fixed", 512, 4096), "dynamic 4Kn": plain("dynamic", 4096, 4096),
		"differencing": diff(512), "differencing 4Kn": diff(4096),
	}
}

func second[T any](_ T, err error) error { return err }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must1[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// oldOrNew compares sector by sector; resized disks may have either length.
func oldOrNew(got, old, next []byte) error {
	if len(got) != len(old) && len(got) != len(next) {
		return fmt.Errorf("the disk has %d bytes, want %d or %d", len(got), len(old), len(next))
	}
	for at := 0; at < len(got); at += 512 {
		s := got[at : at+512]
		if !(at < len(old) && bytes.Equal(s, old[at:at+512])) && !(at < len(next) && bytes.Equal(s, next[at:at+512])) &&
			!(at >= len(old) && isZero(s)) {
			return fmt.Errorf("sector at %d is neither old nor new", at)
		}
	}
	return nil
}

// readAll opens a disk, checks it and returns its contents.
func readAll(t *testing.T, fs fileSystem, path string) []byte {
	t.Helper()
	rep := must1(check(fs, path))(t)
	if len(rep.Problems) > 0 {
		t.Fatalf("%s: %v", path, rep.Problems)
	}
	d := must1(openChain(fs, path))(t)
	defer d.Close()
	b := make([]byte, d.Info().Size)
	must(t, second(d.ReadAt(b, 0)))
	return b
}

func TestLiveKilledAtAnyWriteLeavesOldOrNewSectors(t *testing.T) {
	for name, setup := range killSetups(t) {
		for _, torn := range []int64{0, 1, 5} {
			t.Run(fmt.Sprintf("%s/torn %d", name, torn), func(t *testing.T) {
				t.Parallel()
				start := newMemFS()
				disk := setup(start, rand.New(rand.NewPCG(1, 1)))
				script := killScript(rand.New(rand.NewPCG(2, 2)), int64(len(disk)))
				states := [][]byte{disk}
				for _, o := range script {
					states = append(states, o.apply(states[len(states)-1]))
				}
				for n := 0; ; n++ {
					fs := start.clone()
					fs.limit, fs.torn = n, torn
					if done := killLive(t, fs, script, states, n); done {
						t.Logf("%d changes", n)
						return
					}
				}
			})
		}
	}
}

// killLive runs the script until the file dies, and reports whether it did not.
func killLive(t *testing.T, fs *memFS, script []op, states [][]byte, n int) bool {
	at := 0
	l, err := openLive(fs, "d/top")
	if err == nil {
		for ; at < len(script) && err == nil; at++ {
			if err = script[at].run(l); err != nil {
				break
			}
		}
	}
	done := err == nil
	fs.revive()
	old, next := states[at], states[min(at+1, len(script))]
	got := readAll(t, fs, "d/top")
	if err := oldOrNew(got, old, next); err != nil {
		t.Fatalf("killed at change %d, step %d: %v", n, at, err)
	}
	// The next process goes on with the same file.
	l = must1(openLive(fs, "d/top"))(t)
	r := rand.New(rand.NewPCG(3, uint64(n)))
	for range 3 {
		w := op{off: r.Int64N(int64(len(got)) - 5000), n: 1}
		w.data = randBytes(r, 1+r.Int64N(4999))
		must(t, w.run(l))
		got = w.apply(got)
	}
	if at < len(script) && script[at].n < 0 {
		must(t, l.Resize(script[at].off))
		got = op{off: script[at].off, n: -1}.apply(got)
	}
	must(t, l.Close())
	if again := readAll(t, fs, "d/top"); !bytes.Equal(again, got) {
		t.Fatalf("killed at change %d, step %d: writes after the kill went wrong", n, at)
	}
	return done
}

func TestMergeKilledAtAnyWriteCanBeRunAgain(t *testing.T) {
	for _, parent := range []string{"dynamic", "fixed", "differencing"} {
		for _, torn := range []int64{0, 3} {
			t.Run(fmt.Sprintf("%s/torn %d", parent, torn), func(t *testing.T) {
				t.Parallel()
				start := newMemFS()
				base, disk := mergeSetup(t, start, parent)
				for n := 0; ; n++ {
					fs := start.clone()
					fs.limit, fs.torn = n, torn
					err := merge(fs, "d/child")
					fs.revive()
					if got := readAll(t, fs, "d/child"); !bytes.Equal(got, disk) {
						t.Fatalf("killed at change %d: the child reads differently", n)
					}
					if e := oldOrNew(readAll(t, fs, "d/parent"), base, disk); e != nil {
						t.Fatalf("killed at change %d: parent: %v", n, e)
					}
					must(t, merge(fs, "d/child"))
					must(t, merge(fs, "d/child"))
					if !bytes.Equal(readAll(t, fs, "d/parent"), disk) || !bytes.Equal(readAll(t, fs, "d/child"), disk) {
						t.Fatalf("killed at change %d: the second merge did not complete", n)
					}
					if err == nil {
						t.Logf("%d changes", n)
						return
					}
				}
			})
		}
	}
}

// mergeSetup makes d/child over d/parent, which itself may have a parent, and returns what both hold.
func mergeSetup(t *testing.T, fs *memFS, kind string) (base, disk []byte) {
	const size = 5 * killBlock
	r := rand.New(rand.NewPCG(7, 7))
	base = make([]byte, size)
	o := CreateOptions{Size: size, Subformat: kind, BlockSize: killBlock}
	put := func(w *Writer, disk []byte, at, n int64) {
		b := randBytes(r, n)
		must(t, second(w.WriteAt(b, at)))
		copy(disk[at:], b)
	}
	if kind == "differencing" {
		w := must1(create(fs, "d/root", CreateOptions{Size: size, Subformat: "dynamic", BlockSize: killBlock}))(t)
		put(w, base, 0, 9000)
		put(w, base, 3*killBlock, 9000)
		must(t, w.Finish())
		o.Parent = "d/root"
	}
	w := must1(create(fs, "d/parent", o))(t)
	put(w, base, 512, 9000)
	put(w, base, killBlock, 9000)
	must(t, w.Finish())
	w = must1(create(fs, "d/child", CreateOptions{Subformat: "differencing", BlockSize: killBlock, Parent: "d/parent"}))(t)
	disk = bytes.Clone(base)
	put(w, disk, 4096, 512)
	put(w, disk, 2*killBlock, killBlock)
	must(t, w.Finish())
	l := must1(openLive(fs, "d/child"))(t)
	for _, o := range []op{{off: killBlock, n: killBlock}, {off: 3*killBlock + 512, n: 512}, {off: size + killBlock, n: -1}, {size - 512, 1, randBytes(r, 3000)}} {
		must(t, o.run(l))
		disk = o.apply(disk)
	}
	must(t, l.Close())
	return base, disk
}

func TestWriterKilledAtAnyWriteIsNoValidDisk(t *testing.T) {
	const size = 5*killBlock - 4096
	for _, sub := range []string{"dynamic", "fixed", "differencing"} {
		t.Run(sub, func(t *testing.T) {
			for _, torn := range []int64{0, 2} {
				for n := 0; ; n++ {
					fs := newMemFS()
					r := rand.New(rand.NewPCG(1, 9))
					w := must1(create(fs, "d/base", CreateOptions{Size: size, Subformat: "dynamic", BlockSize: killBlock}))(t)
					must(t, w.Finish())
					fs.limit, fs.torn = fs.changes+n, torn
					disk, err := writeNew(fs, r, sub, size)
					fs.revive()
					if fs.files["d/new"] == nil {
						continue
					}
					d, oerr := openChain(fs, "d/new")
					if oerr == nil {
						must(t, d.Close())
						if got := readAllQuiet(t, fs); !bytes.Equal(got, disk) {
							t.Fatalf("killed at change %d: a valid disk without its bytes", n)
						}
					} else if holdfast.KindOf(oerr) != holdfast.Corrupt {
						t.Fatalf("killed at change %d: %v", n, oerr)
					}
					if err == nil {
						must(t, oerr)
						break
					}
				}
			}
		})
	}
}

func readAllQuiet(t *testing.T, fs *memFS) []byte {
	d := must1(openChain(fs, "d/new"))(t)
	defer d.Close()
	b := make([]byte, d.Info().Size)
	must(t, second(d.ReadAt(b, 0)))
	return b
}

// writeNew fills a new disk and returns what it should hold.
func writeNew(fs *memFS, r *rand.Rand, sub string, size int64) ([]byte, error) {
	disk := make([]byte, size)
	o := CreateOptions{Size: size, Subformat: sub, BlockSize: killBlock}
	if sub == "differencing" {
		o.Parent = filepath.FromSlash("d/base")
	}
	var ops []op
	for _, p := range [][2]int64{{0, 5000}, {3*killBlock - 600, 1300}, {100, 700}, {size - 512, 512}} {
		o := op{p[0], p[1], randBytes(r, p[1])}
		ops, disk = append(ops, o), o.apply(disk)
	}
	w, err := create(fs, "d/new", o)
	if err != nil {
		return disk, err
	}
	for _, o := range ops {
		if _, err := w.WriteAt(o.data, o.off); err != nil {
			return disk, err
		}
	}
	return disk, w.Finish()
}
