package pooltest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// Crashes is a history on a crashable file system, of which the power is cut at its sync points.
type Crashes struct {
	Seed   uint64
	Steps  int
	Points int // images to look at; they are spread over all sync points of the history
	// Open opens the pool that lies in fs, or makes one where there is none. Nothing but fs may outlast it.
	Open func(fs fsys.FS) (pools.Pool, error)
}

// crashFailures is the number of bad images after which no more are looked at: they tend to be the same fault.
const crashFailures = 5

// RunCrashes runs the history twice: once to count its sync points, and once more to take images of what a power cut at
// some of them would leave, with different luck for what was not synced. On each image the pool must open; every
// acknowledged set must be there and restore identically, none that was deleted may be, and the one that was being committed or
// deleted may be there or not, but not in part; verify must be clean; and a new backup, a collect and another crash or restart
// must work. It returns and logs the number of images.
func RunCrashes(t T, c Crashes) int {
	t.Helper()
	count := &crashRun{T: t, c: c}
	if !count.run() {
		return 0
	}
	r := &crashRun{T: t, c: c, choose: choosePoints(c, count.syncs)}
	r.run()
	t.Logf("crash: seed %d, %d steps, %d sync points, %d images looked at", c.Seed, c.Steps, r.syncs, r.images)
	return r.images
}

// choosePoints returns how many images to take at each sync point.
func choosePoints(c Crashes, syncs int) map[int]int {
	out := map[int]int{}
	if syncs == 0 {
		return out
	}
	order := rand.New(rand.NewPCG(c.Seed, 5)).Perm(syncs)
	for i := range c.Points {
		out[order[i%syncs]]++
	}
	return out
}

// A crashRun is one pass over the history.
type crashRun struct {
	T
	c      Crashes
	choose map[int]int

	mu       sync.Mutex // guards what follows; the file system may sync in several goroutines
	at       string     // the step being taken
	bench    *bench
	syncs    int
	images   int
	failures int
}

// run runs the history and reports whether it went well.
func (r *crashRun) run() bool {
	n := &named{t: r.T, name: fmt.Sprintf("crash seed %d", r.c.Seed)}
	n.do(func() {
		mem := fsys.NewMem(r.c.Seed)
		h := Harness{
			New: func(t T) pools.Pool { return r.open(t, mem) },
			Reopen: func(t T, p pools.Pool) pools.Pool {
				must(t, p.Close(), "close pool")
				return r.open(t, mem)
			},
		}
		b := newBench(n, h)
		r.bench = b
		mem.OnSync(func(op, name string) { r.synced(mem, op, name) })
		w := &world{T: n, benches: []*bench{b}, small: true}
		for i, s := range makeSteps(r.c.Seed, r.c.Steps) {
			r.mu.Lock()
			r.at = fmt.Sprintf("step %d (%v)", i, s)
			r.mu.Unlock()
			w.do(s)
		}
		r.mu.Lock()
		r.at = "the end"
		r.mu.Unlock()
		b.finish()
	})
	return !n.failed.Load()
}

func (r *crashRun) open(t T, fs fsys.FS) pools.Pool {
	p, err := r.c.Open(fs)
	must(t, err, "open pool")
	return p
}

// synced is called before every sync takes effect, in the goroutine that syncs: the pool under test stands still.
func (r *crashRun) synced(mem *fsys.Mem, op, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	index := r.syncs
	r.syncs++
	for k := range r.choose[index] {
		if r.failures >= crashFailures {
			return
		}
		rng := rand.New(rand.NewPCG(r.c.Seed, uint64(index)<<16|uint64(k)))
		keep := [...]int{0, 50, 100, rng.IntN(101)}[rng.IntN(4)]
		n := &named{t: r.T, name: fmt.Sprintf("crash seed %d at sync %d (%s of %s) in %s, keeping %d%% of what was not synced, image %d",
			r.c.Seed, index, op, name, r.at, keep, k)}
		img := mem.Crash(rng, keep)
		now := r.bench.snapshot()
		r.images++
		n.do(func() { r.look(n, img, now, rng) }) // in its own goroutine: a failed check must not take the pool's with it
		if n.failed.Load() {
			r.failures++
		}
	}
}

// A moment is what a pool should hold if it crashes now.
type moment struct {
	must    []*point
	coming  *point // may be there
	going   *point // may be there
	deleted []holdfast.SetID
	book    *book
	made    int
}

func (s *site) snapshot() moment {
	s.mu.Lock()
	defer s.mu.Unlock()
	going := s.going
	must := slices.DeleteFunc(slices.Clone(s.points), func(p *point) bool { return p == going })
	return moment{must: must, coming: s.coming, going: going, deleted: slices.Clone(s.deleted), book: s.book, made: s.made}
}

// look opens the pool on an image and checks it.
func (r *crashRun) look(t T, img *fsys.Mem, now moment, rng *rand.Rand) {
	s := &site{T: t, pool: r.open(t, img), book: now.book, points: now.must, made: now.made + 1}
	b := &bench{site: s, rng: rng}
	listed := s.listed()
	if p := now.going; p != nil {
		if _, ok := listed[p.m.ID]; ok {
			s.points = append(s.points, p)
		}
	}
	if p := now.coming; p != nil {
		if m, ok := listed[p.m.ID]; ok {
			s.checkReceipt(p.m, m)
			s.points = append(s.points, &point{m: m, images: p.images})
		}
	}
	s.checkAll("after the crash")
	s.checkClean("after the crash")
	for _, id := range now.deleted[max(0, len(now.deleted)-4):] {
		_, err := s.pool.Open(background, id)
		wantKind(s, err, "open a set that was deleted before the crash", holdfast.NotExist)
	}
	if n := len(s.points); n > 0 {
		b.next(s.points[rng.IntN(n)], 3)
	} else {
		b.backup(spec{images: one(b.disk(16<<10, 2))})
	}
	if rng.IntN(2) == 0 && len(s.points) > 1 {
		s.delete(s.points[rng.IntN(len(s.points))])
	}
	s.collect()
	if rng.IntN(2) == 0 {
		s.checkAll("after a backup and a collect")
	} else {
		img = img.Crash(rng, rng.IntN(101)) // again, right after the collect; closing changes only what was crashed
	}
	must(t, s.pool.Close(), "close pool")
	s.pool = r.open(t, img)
	s.checkAll("opened once more")
	must(t, s.pool.Close(), "close pool")
}
