package appliance_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// A slowHost is a hypervisor whose disks take a while for each write.
type slowHost struct {
	hv.Hypervisor
	latency time.Duration
	begun   chan struct{}
	most    *atomic.Int32 // VMs being restored at once
	now     *atomic.Int32
	disks   *atomic.Int32 // being written now
	widest  *atomic.Int32 // most at once
}

func (h slowHost) CreateVM(ctx context.Context, p hv.RestorePlan) (hv.PlannedVM, error) {
	vm, err := h.Hypervisor.CreateVM(ctx, p)
	if err != nil {
		return nil, err
	}
	if n := h.now.Add(1); n > h.most.Load() {
		h.most.Store(n)
	}
	select {
	case h.begun <- struct{}{}:
	default:
	}
	return slowVM{vm, h}, nil
}

type slowVM struct {
	hv.PlannedVM
	h slowHost
}

func (v slowVM) Disk(ctx context.Context, id holdfast.DiskID) (hv.DiskWriter, error) {
	w, err := v.PlannedVM.Disk(ctx, id)
	if n := v.h.disks.Add(1); n > v.h.widest.Load() {
		v.h.widest.Store(n)
	}
	return slowDisk{w, v.h}, err
}

func (v slowVM) Realize(ctx context.Context) (hv.Realized, error) {
	v.h.now.Add(-1)
	return v.PlannedVM.Realize(ctx)
}

type slowDisk struct {
	hv.DiskWriter
	h slowHost
}

func (d slowDisk) Finish() error {
	d.h.disks.Add(-1)
	return d.DiskWriter.Finish()
}

func (d slowDisk) WriteAt(p []byte, off int64) (int, error) {
	wait, stop := clock.System.After(d.h.latency)
	defer stop()
	<-wait
	return d.DiskWriter.WriteAt(p, off)
}

func (s *site) slow(latency time.Duration) slowHost {
	h := slowHost{latency: latency, begun: make(chan struct{}, 1), most: &atomic.Int32{}, now: &atomic.Int32{}, disks: &atomic.Int32{}, widest: &atomic.Int32{}}
	s.wrap = func(in hv.Hypervisor) hv.Hypervisor {
		h.Hypervisor = in
		return h
	}
	return h
}

// TestFourVMsAreRestoredInParallel: four are under way at once, or one, as asked for. With 20 ms for each write the ratio of their times is told:
// below 0.6 on a machine that is free.
func TestFourVMsAreRestoredInParallel(t *testing.T) {
	s := newSite(t)
	h := s.slow(20 * time.Millisecond)
	var names []string
	for i := range 4 {
		names = append(names, fmt.Sprint("vm", i))
		s.vm("hv1", names[i], 48<<20)
	}
	s.online("hv1")
	s.backup(names...)
	took := func(vms int) time.Duration {
		h.most.Store(0)
		began := clock.System.Now()
		r := s.follow(s.svc().Restore(t.Context(), api.RestoreSpec{VMs: names, Host: "hv1", Dir: s.path(fmt.Sprint("at-once-", vms)), Suffix: fmt.Sprint("-", vms), ParallelVMs: vms}))
		if r.State != api.StateDone || int(h.most.Load()) != vms {
			t.Fatalf("%s, %d at once: %+v", r.State, h.most.Load(), r.Error)
		}
		return clock.System.Now().Sub(began)
	}
	serial, parallel := took(1), took(4)
	t.Logf("one after the other %v, four at once %v: %.2f", serial, parallel, parallel.Seconds()/serial.Seconds())
}

// TestAStoppedRestoreLeavesNothing: stopped at random instants, new VMs and overwrites; the host is as before, without a file more.
func TestAStoppedRestoreLeavesNothing(t *testing.T) {
	seed := uint64(20261122)
	rounds := 12
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_SOAK")); err == nil && n > 0 {
		rounds *= n
	}
	t.Logf("seed %d, %d rounds", seed, rounds)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t)
	s.slow(5 * time.Millisecond)
	s.vm("hv1", "db", 64<<20)
	s.online("hv1")
	s.backup("db")
	set := s.newest("db")
	was := s.vms("hv1")
	ended := map[string]int{}
	for i := range rounds {
		spec := api.RestoreSpec{Set: set.ID, Host: "hv1", Dir: s.path("lab-hv1/new"), Name: "new"}
		if i%2 == 1 {
			spec = api.RestoreSpec{Set: set.ID, Host: "hv1", Original: true, Existing: "overwrite", Shutdown: true, Start: true}
		}
		r, err := s.svc().Restore(t.Context(), spec)
		s.ok(err)
		wait, stop := clock.System.After(time.Duration(rng.IntN(250)) * time.Millisecond)
		<-wait
		stop()
		_, err = s.svc().CancelRun(t.Context(), r.ID) // it may be over
		if err != nil && holdfast.KindOf(err) != holdfast.Invalid {
			t.Fatal(err)
		}
		r = s.follow(s.svc().Run(t.Context(), r.ID, time.Second))
		ended[r.State]++
		s.clean("hv1")
		for _, v := range s.vms("hv1") {
			if v.Name == "new" {
				s.ok(os.RemoveAll(v.Dir))
			}
		}
		if now := s.vms("hv1"); len(now) != 1 || now[0].ID != was[0].ID || now[0].State != "running" || len(now[0].Skipped) > 0 {
			t.Fatalf("round %d (%s): the host has %+v", i, r.State, now)
		}
		if left, _ := filepath.Glob(s.path("lab-hv1/new")); len(left) > 0 {
			t.Fatalf("round %d (%s): %v is left", i, r.State, left)
		}
	}
	t.Logf("%v", ended)
	if ended[api.StateCancelled] == 0 {
		t.Error("no restore was stopped on its way")
	}
}

// TestRestoresGoOnAfterRestarts: the daemon is restarted in the middle of two restores, of a new VM and an overwrite; both end well in the run
// that they were begun in, and leave nothing.
func TestRestoresGoOnAfterRestarts(t *testing.T) {
	s := newSite(t)
	h := s.slow(10 * time.Millisecond)
	for _, name := range []string{"a", "b"} {
		s.vm("hv1", name, 64<<20)
	}
	s.online("hv1")
	s.backup("a", "b")
	setA, setB := s.newest("a"), s.newest("b")
	var runs []string
	for _, spec := range []api.RestoreSpec{
		{Set: setA.ID, Host: "hv1", Dir: s.path("lab-hv1/new"), Name: "new"},
		{Set: setB.ID, Host: "hv1", Original: true, Existing: "overwrite", Shutdown: true},
	} {
		r, err := s.svc().Restore(t.Context(), spec)
		s.ok(err)
		runs = append(runs, r.ID)
		<-h.begun
	}
	s.stop()
	s.start()
	s.wait("both restores are over", func() bool {
		return !slices.ContainsFunc(runs, func(id string) bool {
			r, err := s.svc().Run(t.Context(), id, 0)
			s.ok(err)
			return !api.Final(r.State)
		})
	})
	for _, id := range runs {
		if r, err := s.svc().Run(t.Context(), id, 0); err != nil || r.State != api.StateDone {
			t.Errorf("%+v, %v", r, err)
		}
	}
	s.clean("hv1")
	if vms := s.vms("hv1"); len(vms) != 3 {
		t.Errorf("%+v", vms)
	}
	if r := s.backup("b"); r.State != api.StateDone || s.newest("b").Kind != "incremental" {
		t.Errorf("%+v", s.newest("b"))
	}
}

// TestOptionsOfARestore: disks of a VM at once, and options of jobs; what means nothing for a restore is refused.
func TestOptionsOfARestore(t *testing.T) {
	s := newSite(t)
	h := s.slow(30 * time.Millisecond)
	s.machine("hv1", "db", 1)
	s.online("hv1")
	s.backup("db")
	for n := 1; n <= 2; n++ {
		h.widest.Store(0)
		spec := api.RestoreSpec{VMs: []string{"db"}, Host: "hv1", Dir: s.path(fmt.Sprint("disks-", n)), Name: fmt.Sprint("db-", n), ParallelDisks: n,
			Options: []string{"reconnect=2m", "buffer=1MiB", "limit=100MiB/s"}}
		if r := s.follow(s.svc().Restore(t.Context(), spec)); r.State != api.StateDone || int(h.widest.Load()) != n {
			t.Errorf("%d disks at once, want %d: %s %+v", h.widest.Load(), n, r.State, r.Error)
		}
	}
	for _, bad := range []string{"consistency=crash", "reconnect=2h", "nonsense"} {
		spec := api.RestoreSpec{VMs: []string{"db"}, Host: "hv1", Dir: s.path("bad"), Name: "bad", Options: []string{bad}}
		if _, err := s.svc().Restore(t.Context(), spec); holdfast.KindOf(err) != holdfast.Invalid || holdfast.HintOf(err) == "" {
			t.Errorf("%s: %v", bad, err)
		}
	}
	spec := api.RestoreSpec{VMs: []string{"db"}, Host: "hv1", Dir: s.path("scripted"), Name: "scripted", Options: []string{"precondition=not-there.sh"}}
	if r := s.follow(s.svc().Restore(t.Context(), spec)); r.State == api.StateDone || len(s.vms("hv1")) != 3 {
		t.Errorf("a precondition that no administrator placed: %s", r.State)
	}
}
