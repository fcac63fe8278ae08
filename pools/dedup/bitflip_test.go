package dedup

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// A flipWorld is a closed pool of two VMs with a history, and what each set holds.
type flipWorld struct {
	mem   *fsys.Mem
	lab   *lab
	sets  []holdfast.SetID
	truth map[holdfast.SetID][]byte
	files []string // of the pool, with sizes
	sizes map[string]int64
	all   int64
}

const flipDisk = 512 << 10

func newFlipWorld(t *testing.T) *flipWorld {
	mem := fsys.NewMem(1)
	l := newLab(t, mem)
	w := &flipWorld{mem: mem, lab: l, truth: map[holdfast.SetID][]byte{}, sizes: map[string]int64{}}
	rng := rand.New(rand.NewPCG(1, 4))
	add := func(parent holdfast.SetID, ws ...write) holdfast.SetID {
		id := l.must(l.backup(flipDisk, parent, ws...))
		image := make([]byte, flipDisk)
		copy(image, w.truth[parent])
		for _, x := range ws {
			copy(image[x.off:], x.bytes)
		}
		w.truth[id], w.sets = image, append(w.sets, id)
		return id
	}
	text := []byte(strings.Repeat("the same line again and again\n", 2000))
	first := add(holdfast.SetID{}, write{bytes: noise(rng, 100<<10)}, write{off: 200 << 10, bytes: text[:40<<10]})
	second := add(first, write{off: 52 << 10, bytes: noise(rng, 20<<10)})
	l.vm = holdfast.VMID{ID: holdfast.NewID()}
	add(second, write{off: 300 << 10, bytes: noise(rng, 28<<10)})
	add(holdfast.SetID{}, write{bytes: w.truth[first][:60<<10]}, write{off: 400 << 10, bytes: noise(rng, 28<<10)})
	if err := l.p.Close(); err != nil {
		t.Fatal(err)
	}
	w.mem = mem.Snapshot()
	w.walk(t, ".")
	l.p = open(t, mem, l.id) // for the cleanup
	return w
}

func (w *flipWorld) walk(t *testing.T, dir string) {
	names, err := w.mem.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		n = path.Join(dir, n)
		st, err := w.mem.Stat(n)
		if err != nil {
			t.Fatal(err)
		}
		if st.IsDir() {
			w.walk(t, n)
		} else if st.Size() > 0 {
			w.files, w.sizes[n] = append(w.files, n), st.Size()
			w.all += st.Size()
		}
	}
}

// A bitFlip is where a bit turned over.
type bitFlip struct {
	file string
	off  int64
	bit  int
}

func (f bitFlip) String() string { return fmt.Sprintf("bit %d of byte %d of %s", f.bit, f.off, f.file) }

// kind is the sort of file.
func (f bitFlip) kind() string { return strings.Split(f.file, "/")[0] }

// choose takes half of the flips by bytes and half by files, so that small files have their share.
func (w *flipWorld) choose(rng *rand.Rand) bitFlip {
	f := w.files[rng.IntN(len(w.files))]
	if rng.IntN(2) == 0 {
		k := rng.Int64N(w.all)
		for _, f = range w.files {
			if k < w.sizes[f] {
				break
			}
			k -= w.sizes[f]
		}
	}
	return bitFlip{f, rng.Int64N(w.sizes[f]), rng.IntN(8)}
}

func (f bitFlip) do(t *testing.T, fs fsys.FS) {
	t.Helper()
	file, err := fs.OpenWrite(f.file)
	if err != nil {
		t.Fatal(err)
	}
	b := []byte{0}
	if _, err := file.ReadAt(b, f.off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << f.bit
	if _, err := file.WriteAt(b, f.off); err != nil {
		t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

// Goal: a single bit that turns over anywhere in a pool is found by a scrub, is never restored as if it were right, is named by VM and disk where it
// hits a set, stops being a dedup hit, and is healed by the next backup of the same data; a backup made before anybody knew is either right
// or found to be damaged when it is verified. Method: 1,000 random flips (10,000 under HOLDFAST_SOAK=10), half of them while the pool is open.
func TestEveryFlippedBitIsFound(t *testing.T) {
	t.Parallel() // with the other long one, after all short ones
	w := newFlipWorld(t)
	rng := rand.New(rand.NewPCG(11, 12))
	n := 1000 * soak(t)
	if testing.Short() {
		n /= 10
	}
	count := map[string]int{}
	for i := range n {
		f := w.choose(rng)
		x := &flipCase{T: t, w: w, f: f, fs: w.mem.Snapshot(), count: count, open: i%2 == 0 && f.kind() != indexDir, early: rng.IntN(4) == 0}
		x.run(rng)
		count[f.kind()]++
		if t.Failed() {
			t.Fatalf("flip %d: %v (pool open: %v, backup before verify: %v)", i, f, x.open, x.early)
		}
	}
	t.Logf("%d bits: %v", n, count)
}

// A flipCase is one flipped bit and what became of it.
type flipCase struct {
	*testing.T
	w     *flipWorld
	f     bitFlip
	fs    *fsys.Mem
	count map[string]int
	open  bool // the pool was open when it happened
	early bool // a backup comes before anybody looks

	l *lab
}

func (x *flipCase) run(rng *rand.Rand) {
	x.l = &lab{t: x.T, fs: x.fs, id: x.w.lab.id, vm: x.w.lab.vm, disk: x.w.lab.disk}
	if x.open {
		x.l.p = open(x.T, x.fs, x.l.id)
		x.f.do(x.T, x.fs)
	} else {
		x.f.do(x.T, x.fs)
		p, err := OpenOn(background, pools.Env{}, x.fs, x.l.id)
		if err != nil {
			x.Errorf("the pool does not open: %v", err)
			return
		}
		x.l.p = p
	}
	defer func() {
		if err := x.l.p.Close(); err != nil {
			x.Error(err)
		}
	}()
	index := x.f.kind() == "index"
	var blind holdfast.SetID
	if x.early {
		blind = x.again(x.w.sets[rng.IntN(len(x.w.sets))])
	}
	rep := x.l.verify()
	if len(rep.Damaged) == 0 && !index {
		x.Errorf("the scrub found nothing")
	}
	if len(rep.Damaged) > 0 && index {
		x.Errorf("damage of what can be made anew is reported as damage of sets: %+v", rep.Damaged)
	}
	x.check(rep, blind)
	if x.Failed() {
		return
	}
	if x.lostRecord(rep) {
		x.count["(set records lost)"]++
		return
	}
	for _, id := range x.w.sets { // every VM is backed up anew
		if _, err := x.l.restore(id); err == nil {
			continue
		}
		x.count["(sets damaged)"]++
		fresh := x.again(id)
		x.count["(sets healed)"]++
		x.l.same(fresh, x.w.truth[id])
	}
	for _, id := range x.w.sets {
		x.l.same(id, x.w.truth[id])
	}
}

// again backs a set's content up as a full and returns the new set.
func (x *flipCase) again(id holdfast.SetID) holdfast.SetID {
	x.Helper()
	truth := x.w.truth[id]
	var ws []write
	for off := 0; off < len(truth); off += 4096 {
		if b := truth[off : off+4096]; !bytes.Equal(b, make([]byte, 4096)) {
			ws = append(ws, write{off: int64(off), bytes: b})
		}
	}
	fresh, err := x.l.backup(flipDisk, holdfast.SetID{}, ws...)
	x.l.must(fresh, err)
	x.w.truth[fresh] = truth
	return fresh
}

// lostRecord tells whether the damage is a set's record, which no backup brings back.
func (x *flipCase) lostRecord(rep pools.VerifyReport) bool { return x.f.kind() == setsDir }

// check compares what restores give with what the report says.
func (x *flipCase) check(rep pools.VerifyReport, blind holdfast.SetID) {
	sets := x.w.sets
	if !blind.IsZero() {
		sets = append(slices.Clone(sets), blind)
	}
	for _, id := range sets {
		got, err := x.l.restore(id)
		if err == nil {
			if !bytes.Equal(got, x.w.truth[id]) {
				x.Errorf("set %s was restored with WRONG BYTES", id)
			}
			continue
		}
		named := slices.ContainsFunc(rep.Damaged, func(d pools.Damage) bool {
			return d.Set == id && (d.VM == "vm" && d.Disk == "disk.vhdx" && len(d.Extents) > 0 || x.f.kind() == setsDir)
		})
		if !named {
			x.Errorf("set %s does not restore (%v), and the scrub does not name it: %+v", id, err, rep.Damaged)
		}
	}
}
