package blobtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// A Medium is a Store's ground: the file systems that it stands on, opened as a Store. It is called with new file systems and
// with what a crash or failed operations left of them. The Store is closed by the campaign.
type Medium func(media []fsys.FS) (blob.Store, error)

// fate is what is known of an object.
type fate int

const (
	unsure fate = iota // an operation on it failed or was cut off: it is there, whole, or not
	there
	gone
)

// script is a random history of one writer that knows what it was promised.
type script struct {
	ctx   context.Context
	rng   *rand.Rand
	store blob.Store
	sizes map[string]int

	mu    sync.Mutex
	fates map[string]fate
}

func newScript(seed uint64, s blob.Store) *script {
	return &script{ctx: context.Background(), rng: rand.New(rand.NewPCG(seed, 0x626c6f62)), store: s, sizes: map[string]int{}, fates: map[string]fate{}}
}

func (s *script) set(name string, f fate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fates[name] = f
}

func (s *script) known() map[string]fate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.fates)
}

// step does one random operation and returns its error, after which the object's fate is unsure.
func (s *script) step(i int) error {
	names := slices.Sorted(maps.Keys(s.sizes))
	if len(names) > 0 && s.rng.IntN(3) == 0 {
		name := names[s.rng.IntN(len(names))]
		s.set(name, unsure)
		err := s.store.Remove(s.ctx, name)
		if err == nil {
			s.set(name, gone)
		}
		return err
	}
	name := fmt.Sprintf("d%d/o%03d", s.rng.IntN(3), i)
	if len(names) > 0 && s.rng.IntN(4) == 0 {
		name = names[s.rng.IntN(len(names))] // again, or for the first time after a removal
	} else {
		s.sizes[name] = []int{0, 10, 5000, 20_000, 70_000}[s.rng.IntN(5)]
	}
	abort := s.rng.IntN(6) == 0
	s.mu.Lock()
	before, known := s.fates[name]
	s.fates[name] = unsure
	s.mu.Unlock()
	if !known {
		before = gone
	}
	if before == there { // whatever becomes of a second writing, the object was promised
		s.set(name, there)
	}
	err := s.write(name, abort)
	switch {
	case err == nil && !abort:
		s.set(name, there)
	case before == there || abort || errors.Is(err, errBeforeCommit):
		s.set(name, before)
	}
	return err
}

// errBeforeCommit marks an error after which nothing can have changed.
var errBeforeCommit = errors.New("before commit")

func (s *script) write(name string, abort bool) error {
	o, err := s.store.Create(s.ctx, name)
	if err != nil {
		return errors.Join(errBeforeCommit, err)
	}
	data := Content(name, s.sizes[name])
	half := len(data) / 2
	for _, part := range [][]byte{data[:half], data[half:]} {
		if _, err := o.Write(part); err != nil {
			o.Abort()
			return errors.Join(errBeforeCommit, err)
		}
	}
	if abort {
		o.Abort()
		return nil
	}
	return o.Commit()
}

// verify checks a store against what is known.
func verify(ctx context.Context, s blob.Store, fates map[string]fate, sizes map[string]int) error {
	listed, err := s.List(ctx, "")
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	for _, n := range listed {
		if _, ok := fates[n]; !ok {
			return fmt.Errorf("%s is listed and was never written", n)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fates)) {
		is, err := s.Exists(ctx, name)
		if err != nil {
			return fmt.Errorf("exists: %w", err)
		}
		if is != slices.Contains(listed, name) {
			return fmt.Errorf("%s: Exists says %v and List the contrary", name, is)
		}
		if f := fates[name]; f == there && !is || f == gone && is {
			return fmt.Errorf("%s: there is %v; the last answer promised %v", name, is, f == there)
		}
		if !is {
			continue
		}
		if err := Whole(ctx, s, name, sizes[name]); err != nil {
			return err
		}
	}
	return nil
}

// PowerCuts runs a random history on a store and cuts the power at every sync point of every medium: what is left is opened,
// compared with what the store had promised by then, written to and removed from. It returns the number of images looked at.
func PowerCuts(t T, seed uint64, steps int, media []*fsys.Mem, open Medium) (images int) {
	t.Helper()
	s, err := open(asFS(media))
	must(t, err, "open")
	sc := newScript(seed, s)
	type image struct {
		at    string
		media []fsys.FS
		fates map[string]fate
	}
	var mu sync.Mutex
	var taken []image
	rng := rand.New(rand.NewPCG(seed, 7))
	hook := func(op, name string) {
		mu.Lock()
		defer mu.Unlock()
		for _, keep := range []int{0, 50, 100} {
			im := image{at: fmt.Sprintf("%s %s, %d %% kept", op, name, keep), fates: sc.known()}
			for _, m := range media {
				im.media = append(im.media, m.Crash(rng, keep))
			}
			taken = append(taken, im)
		}
	}
	for _, m := range media {
		m.OnSync(hook)
	}
	for i := range steps {
		if err := sc.step(i); err != nil {
			t.Fatalf("seed %d, step %d: %v", seed, i, err)
		}
		for _, im := range taken {
			images++
			if err := revive(sc, im.media, open, im.fates); err != nil {
				t.Fatalf("seed %d, step %d, power cut at %s: %v", seed, i, im.at, err)
			}
		}
		taken = nil
	}
	for _, m := range media {
		m.OnSync(nil)
	}
	if err := verify(sc.ctx, s, sc.known(), sc.sizes); err != nil {
		t.Errorf("seed %d, at the end: %v", seed, err)
	}
	must(t, s.Close(), "close")
	return images
}

// revive opens what a crash left and uses it.
func revive(sc *script, media []fsys.FS, open Medium, fates map[string]fate) error {
	s, err := open(media)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	err = verify(sc.ctx, s, fates, sc.sizes)
	if err == nil {
		err = reuse(sc, s, fates)
	}
	return errors.Join(err, s.Close())
}

// reuse writes the unsure ones again and removes the others.
func reuse(sc *script, s blob.Store, fates map[string]fate) error {
	after := maps.Clone(fates)
	for _, name := range slices.Sorted(maps.Keys(fates)) {
		if fates[name] == unsure {
			if err := blob.WriteAll(sc.ctx, s, name, Content(name, sc.sizes[name])); err != nil {
				return fmt.Errorf("write again: %w", err)
			}
			after[name] = there
			continue
		}
		if err := s.Remove(sc.ctx, name); err != nil {
			return fmt.Errorf("remove: %w", err)
		}
		after[name] = gone
	}
	return verify(sc.ctx, s, after, sc.sizes)
}

func asFS(media []*fsys.Mem) []fsys.FS {
	out := make([]fsys.FS, len(media))
	for i, m := range media {
		out[i] = m
	}
	return out
}

// Failures runs a random history once for each operation of the media that it leads to, and fails that one, or that one and
// all later ones of its medium (forever). Errors must be classified, and what the store had promised must hold, at once and after
// it was opened again. It returns the number of runs.
func Failures(t T, seed uint64, steps, media int, forever bool, open Medium) (runs int) {
	t.Helper()
	for bad := range media {
		for nth := 1; ; nth++ {
			hit, err := failOne(seed, steps, media, bad, nth, forever, open)
			if err != nil {
				t.Fatalf("seed %d, operation %d of medium %d failing: %v", seed, nth, bad, err)
			}
			if !hit {
				break
			}
			runs++
		}
	}
	return runs
}

func failOne(seed uint64, steps, media, bad, nth int, forever bool, open Medium) (hit bool, err error) {
	mems, faulty := make([]fsys.FS, media), make([]fsys.FS, media)
	for i := range mems {
		mems[i] = fsys.NewMem(uint64(i))
		faulty[i] = mems[i]
	}
	f := fsys.NewFault(mems[bad])
	faulty[bad] = f
	s, err := open(faulty)
	if err != nil {
		return false, fmt.Errorf("open: %w", err)
	}
	rule := fsys.Rule{Nth: nth, Err: []error{syscall.EIO, syscall.ENOSPC}[nth%2]}
	if forever {
		rule.Times = fsys.Forever
	}
	watch := f.Inject(rule)
	sc := newScript(seed, s)
	for i := range steps {
		var classified *holdfast.Error
		if err := sc.step(i); err != nil && !errors.As(err, &classified) {
			return true, fmt.Errorf("step %d: an error without kind: %w", i, err)
		}
	}
	hit = watch.Failed() > 0
	f.Clear()
	if !forever {
		if err := verify(sc.ctx, s, sc.known(), sc.sizes); err != nil {
			return hit, err
		}
	}
	if err := s.Close(); err != nil {
		return hit, fmt.Errorf("close: %w", err)
	}
	return hit, revive(sc, mems, open, sc.known())
}
