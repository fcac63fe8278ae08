package pooltest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// History is a random history: one seed stands for its steps and all bytes in them.
type History struct {
	Seed  uint64
	Steps int
	// Pools are the pools that go through the history side by side, by name. Each must restore what the model has, so all
	// restore the same.
	Pools map[string]Harness
}

// RunHistory runs a history of full and incremental backups, deletions, collections, verifies, restarts, crashes and restores. A
// failing history is made shorter while it goes on failing, and is then run again and printed step by step with its seed.
func RunHistory(t T, h History) {
	t.Helper()
	steps := makeSteps(h.Seed, h.Steps)
	if runSteps(&quiet{}, h, steps) {
		return
	}
	short := shorten(h, steps)
	t.Logf("history of seed %d fails; %d of its %d steps suffice:", h.Seed, len(short), len(steps))
	w := &tally{T: t}
	if runSteps(w, h, short); !w.failed {
		t.Errorf("history of seed %d failed, but not when it was run again: it depends on more than the seed", h.Seed)
	}
}

// shortenRuns bounds the work of making a failing history shorter.
const shortenRuns = 80

// shorten leaves out steps as long as the rest fails.
func shorten(h History, steps []step) []step {
	runs := 0
	for n := len(steps) / 2; n > 0; n /= 2 {
		for at := 0; at+n <= len(steps) && runs < shortenRuns; {
			runs++
			try := slices.Delete(slices.Clone(steps), at, at+n)
			if runSteps(&quiet{}, h, try) {
				at += n
			} else {
				steps = try
			}
		}
	}
	return steps
}

// quiet is a T that says nothing.
type quiet struct{}

func (quiet) Helper()               {}
func (quiet) Logf(string, ...any)   {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(string, ...any) { panic("pooltest: Fatalf of quiet is replaced by named") }

// tally is a T that knows whether something failed.
type tally struct {
	T
	mu     sync.Mutex
	failed bool
}

func (w *tally) Errorf(format string, args ...any) {
	w.mu.Lock()
	w.failed = true
	w.mu.Unlock()
	w.T.Errorf(format, args...)
}

// runSteps runs steps on fresh pools and reports whether all was well.
func runSteps(t T, h History, steps []step) bool {
	n := &named{t: t, name: fmt.Sprintf("history %d", h.Seed)}
	n.do(func() {
		w := &world{T: n}
		for _, name := range slices.Sorted(maps.Keys(h.Pools)) {
			sub := &named{t: n, name: name}
			b := &bench{site: newSite(sub, h.Pools[name].New(sub)), h: h.Pools[name]}
			w.benches = append(w.benches, b)
		}
		for i, s := range steps {
			t.Logf("history %d: step %d: %v", h.Seed, i, s)
			if w.do(s); n.failed.Load() {
				return
			}
		}
		for _, b := range w.benches {
			b.finish()
		}
	})
	return !n.failed.Load()
}

// The operations of a history.
const (
	opFull        = iota // back a VM up, as a full set of new disks
	opIncremental        // back a VM up after changes to what one of its sets has
	opDelete
	opCollect
	opVerify
	opReopen
	opCrash // in the middle of a backup
	opAbort // a backup
	opRestore
	opPartial // restore some extents
	opCount
)

var opNames = [opCount]string{"full", "incremental", "delete", "collect", "verify", "reopen", "crash", "abort", "restore", "restore extents"}

// opChances are the weights of the operations.
var opChances = [opCount]int{6, 30, 16, 8, 4, 4, 4, 3, 8, 8}

// A step is one operation. Its numbers choose targets by remainder, so that a step keeps its meaning, more or less, when
// others before it are left out.
type step struct {
	op   int
	a    uint64 // what it is about
	seed uint64 // of the bytes
}

func (s step) String() string { return fmt.Sprintf("%s %d/%d", opNames[s.op], s.a%1000, s.seed) }

// makeSteps makes the steps of a seed. The first is a full backup.
func makeSteps(seed uint64, n int) []step {
	rng := rand.New(rand.NewPCG(seed, 0x686973746f7279))
	sum := 0
	for _, c := range opChances {
		sum += c
	}
	out := make([]step, 0, n)
	for range n {
		k, op := rng.IntN(sum), 0
		for k >= opChances[op] {
			k -= opChances[op]
			op++
		}
		out = append(out, step{op, rng.Uint64(), rng.Uint64()})
	}
	if n > 0 {
		out[0].op = opFull
	}
	return out
}

// A world is what a history is about: pools that have gone through the same, with the same points in the same order.
type world struct {
	T
	benches []*bench
	small   bool // smaller disks and fewer sets, for histories that are run a thousand times
}

// maxPoints bounds the sets alive at a time, so that a long history does not become slower and slower.
const maxPoints = 24

// do takes one step on every pool.
func (w *world) do(s step) {
	rng := rand.New(rand.NewPCG(s.seed, s.a))
	live := len(w.benches[0].points)
	most := maxPoints
	if w.small {
		most = 6
	}
	op := s.op
	if (op == opFull || op == opIncremental) && live >= most {
		op = opDelete
	}
	if live == 0 && (op == opIncremental || op == opAbort) {
		op = opFull
	}
	var plans []spec
	switch op {
	case opFull:
		plans = w.planFull(s, rng)
	case opIncremental, opAbort, opCrash:
		if live > 0 {
			plans = w.planNext(int(s.a%uint64(live)), rng)
		}
	}
	for i, b := range w.benches {
		rng := rand.New(rand.NewPCG(s.seed, s.a+1))
		switch op {
		case opFull, opIncremental:
			plans[i].rng = rng
			b.backup(plans[i])
		case opDelete:
			if live > 0 {
				b.delete(b.points[s.a%uint64(live)])
			}
		case opCollect:
			b.collect()
		case opVerify:
			b.checkClean("in the middle")
		case opReopen:
			b.reopen()
		case opAbort, opCrash:
			w.lose(b, op, plans, i, rng)
		case opRestore:
			if live > 0 {
				b.checkPoint(b.points[s.a%uint64(live)], "in the middle")
			}
		case opPartial:
			if live > 0 {
				b.restorePart(b.points[s.a%uint64(live)], rng)
			}
		}
	}
}

// lose begins a backup and aborts it, or lets the pool crash in it.
func (w *world) lose(b *bench, op int, plans []spec, i int, rng *rand.Rand) {
	if op == opCrash && b.h.Crash == nil {
		b.reopen()
		return
	}
	if plans != nil {
		plans[i].rng = rng
		m := b.manifest(plans[i])
		ses, err := b.pool.Begin(background, m)
		must(b, err, "begin")
		if rng.IntN(3) > 0 {
			must(b, b.write(background, ses, m, plans[i]), "write")
		}
		if op == opAbort {
			must(b, ses.Abort(background), "abort")
			return
		}
	}
	b.crash()
	if rng.IntN(2) == 0 {
		b.checkAll("after a crash")
	}
}

// planFull makes a VM with new disks, or one that shares data with a set there is.
func (w *world) planFull(s step, rng *rand.Rand) []spec {
	images := map[holdfast.DiskID]*image{}
	for i := range 1 + rng.IntN(2) {
		size := int64(1+rng.IntN(256)) * 1024 // often no multiple of 4 KiB
		if w.small {
			size = int64(1+rng.IntN(48)) * 1024
		}
		img := newImage(size)
		for range rng.IntN(6) {
			off := rng.Int64N(size)
			img.write(off, fill(rng, int(min(size-off, 1+rng.Int64N(size/2+1)))))
		}
		images[diskID(i)] = img
	}
	if live := w.benches[0].points; len(live) > 0 && rng.IntN(2) == 0 {
		old := live[s.a%uint64(len(live))] // a clone of another VM, as far as it fits
		for id, img := range old.images {
			if mine := images[id]; mine != nil && mine.size >= img.size {
				mine.write(0, img.read(holdfast.Extent{Off: 0, Len: img.size}))
			}
		}
	}
	out := make([]spec, len(w.benches))
	for i := range out {
		out[i] = spec{images: images, vm: fmt.Sprintf("vm-%d", s.a%5)}
	}
	return out
}

// A move is data that lies somewhere else than in the parent: placed as parts of the parent's chunks.
type move struct {
	from holdfast.Extent
	to   int64
}

// planNext makes changes to the disks of point number k.
func (w *world) planNext(k int, rng *rand.Rand) []spec {
	parent := w.benches[0].points[k]
	images, changed := map[holdfast.DiskID]*image{}, map[holdfast.DiskID]holdfast.Extents{}
	moves := map[holdfast.DiskID][]move{}
	for _, d := range parent.m.Disks { // in the manifest's order: a map has none, and rng is drawn from
		old := parent.images[d.ID]
		img := old.clone()
		var exts holdfast.Extents
		extent := func() holdfast.Extent {
			off := rng.Int64N(img.size)
			if rng.IntN(2) == 0 {
				off = off / 512 * 512
			}
			e := holdfast.Extent{Off: off, Len: 1 + rng.Int64N(min(img.size-off, 12<<10))}
			exts = append(exts, e)
			return e
		}
		for range rng.IntN(7) {
			switch e := extent(); rng.IntN(6) {
			case 0:
				img.zero(e)
			case 1: // reported as changed, and is not: trackers round up
			default:
				img.write(e.Off, fill(rng, int(e.Len)))
			}
		}
		end := int64(0)
		for range rng.IntN(3) {
			from := holdfast.Extent{Off: rng.Int64N(img.size)}
			from.Len = 1 + rng.Int64N(min(img.size-from.Off, 9<<10))
			to := end + rng.Int64N(8<<10)
			if end = to + from.Len; end > img.size {
				break
			}
			img.write(to, old.read(from))
			exts = append(exts, holdfast.Extent{Off: to, Len: from.Len})
			moves[d.ID] = append(moves[d.ID], move{from, to})
		}
		images[d.ID] = img
		if rng.IntN(12) > 0 { // else the disk does not inherit: tracking was lost
			changed[d.ID] = exts.Normal(img.size)
		} else {
			delete(moves, d.ID)
		}
	}
	out := make([]spec, len(w.benches))
	for i, b := range w.benches {
		out[i] = spec{parent: b.points[k], images: images, changed: changed, vm: parent.m.VM.Name, reuse: b.reuse(b.points[k], moves)}
	}
	return out
}

// reuse looks up in the parent's map what the moves take.
func (b *bench) reuse(parent *point, moves map[holdfast.DiskID][]move) map[holdfast.DiskID][]holdfast.Ref {
	b.Helper()
	out := map[holdfast.DiskID][]holdfast.Ref{}
	set, err := b.pool.Open(background, parent.m.ID)
	must(b, err, "open the parent")
	for id, list := range moves {
		for _, mv := range list {
			for r, err := range set.Map(background, id) {
				must(b, err, "map of the parent")
				off, end := max(r.Off, mv.from.Off), min(r.End(), mv.from.End())
				if off >= end || r.Digest.IsZero() {
					continue
				}
				c := pools.CutRef(r, off, end)
				c.Off += mv.to - mv.from.Off
				out[id] = append(out[id], c)
			}
		}
	}
	must(b, set.Close(), "close the parent")
	return out
}

// restorePart restores some extents of a set.
func (b *bench) restorePart(p *point, rng *rand.Rand) {
	b.Helper()
	set, err := b.pool.Open(background, p.m.ID)
	must(b, err, "open")
	for _, d := range p.m.Disks {
		img := p.images[d.ID]
		data := b.checkMap(set, d, img, "in the middle")
		var want holdfast.Extents
		for range rng.IntN(5) {
			off := rng.Int64N(d.Size)
			want = append(want, holdfast.Extent{Off: off, Len: 1 + rng.Int64N(min(d.Size-off, 20<<10))})
		}
		want = want.Normal(d.Size)
		got := b.read(set, d, want, data, "in the middle")
		for _, e := range want {
			if string(got.read(e)) != string(img.read(e)) {
				b.Errorf("restored bytes differ in the %d bytes at %d of disk %s", e.Len, e.Off, d.Name)
			}
		}
	}
	must(b, set.Close(), "close set")
}
