package dedup

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// openParity opens a pool with side-cars.
func openParity(t *testing.T, fs fsys.FS, id holdfast.PoolID, l holdfast.Listener) *Pool {
	t.Helper()
	p, err := OpenParityOn(background, pools.Env{Listener: l}, fs, id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pars lists the side-cars.
func pars(t *testing.T, p *Pool) []string {
	t.Helper()
	names, err := p.cars.Store.Store.List(background, containersDir)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".par") })
}

// Goal: with side-cars a container that rots is repaired bit by bit, by a scrub or by the first restore that meets it; that is reported and told, and the
// container is written anew; containers from before get theirs from a scrub; no side-car outlives its container. Method: 100 spots
// (1,000 under HOLDFAST_SOAK=10): bits, runs of bytes and cut ends, in containers and side-cars of a pool that began without.
func TestRottenContainersAreRepaired(t *testing.T) {
	w := newFlipWorld(t)
	var told []string
	listen := func(e holdfast.Event) {
		if e.Fields["repaired"] == "true" {
			told = append(told, e.Text)
		}
	}
	p := openParity(t, w.mem, w.lab.id, listen)
	rep, err := p.Verify(background, pools.VerifyOptions{})
	if err != nil || len(rep.Damaged) != 0 {
		t.Fatal(rep, err)
	}
	var conts []string
	for _, f := range w.files {
		if strings.HasPrefix(f, containersDir) {
			conts = append(conts, f)
		}
	}
	made := pars(t, p)
	if len(made) != len(conts) {
		t.Fatalf("%d side-cars for %d containers", len(made), len(conts))
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 1))
	byRead, byScrub := 0, 0
	for i := range 100 * soak(t) {
		fs := w.mem.Snapshot()
		name := conts[rng.IntN(len(conts))]
		if i%5 == 0 {
			name += ".par"
		}
		rot(t, fs, name, rng)
		told = nil
		l := &lab{t: t, fs: fs, id: w.lab.id, vm: w.lab.vm, disk: w.lab.disk, p: openParity(t, fs, w.lab.id, listen)}
		if i%2 == 0 { // the restores come first
			for id, truth := range w.truth {
				l.same(id, truth)
			}
			byRead += len(told)
		}
		before := len(told)
		rep := l.verify()
		byScrub += len(told) - before
		if len(told) == 0 || len(rep.Damaged) != len(told) {
			t.Fatalf("spot %d in %s: told %q, reported %+v", i, name, told, rep.Damaged)
		}
		for id, truth := range w.truth {
			l.same(id, truth)
		}
		if rep := l.verify(); len(rep.Damaged) != 0 {
			t.Fatalf("spot %d in %s: after the repair: %+v", i, name, rep.Damaged)
		}
		if err := l.p.Close(); err != nil {
			t.Fatal(err)
		}
		l.p = open(t, fs, l.id) // without side-cars: the medium itself has the right bytes again
		for id, truth := range w.truth {
			l.same(id, truth)
		}
		if err := l.p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("repaired by a restore: %d, by a scrub: %d", byRead, byScrub)
	p = openParity(t, w.mem, w.lab.id, listen)
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, id := range w.sets {
		if err := p.Delete(background, id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Collect(background, pools.CollectOptions{}); err != nil {
		t.Fatal(err)
	}
	if left := pars(t, p); len(left) != 0 {
		t.Fatalf("side-cars are left: %v", left)
	}
}

// rot damages a file within what its side-car can bring back.
func rot(t *testing.T, fs *fsys.Mem, name string, rng *rand.Rand) {
	t.Helper()
	st, err := fs.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := fs.OpenWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	burst := max(1, min(st.Size()/64*2, 200))
	switch rng.IntN(3) {
	case 0:
		b := []byte{0}
		off := rng.Int64N(st.Size())
		if _, err = f.ReadAt(b, off); err == nil {
			b[0] ^= 1 << rng.IntN(8)
			_, err = f.WriteAt(b, off)
		}
	case 1:
		b := make([]byte, burst)
		off := rng.Int64N(st.Size() - burst + 1)
		if _, err = f.ReadAt(b, off); err == nil {
			for i := range b {
				b[i] = ^b[i]
			}
			_, err = f.WriteAt(b, off)
		}
	default:
		err = f.Truncate(st.Size() - 1 - rng.Int64N(burst))
	}
	if err != nil || f.Sync() != nil || f.Close() != nil {
		t.Fatal(err)
	}
}
