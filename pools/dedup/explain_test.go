package dedup

import (
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// Goal: Explain says of every stored byte whose it is: what deleting all of a VM's sets gives back is what it calls the VM's own, what a
// deleted set that is still open keeps is pinned, and the parts sum up to what is stored.
func TestExplainSaysWhoseBytesAreWhose(t *testing.T) {
	l := newLab(t, fsys.NewMem(1))
	rng := rand.New(rand.NewPCG(1, 5))
	shared := noise(rng, 400<<10)
	a, b := l.vm, holdfast.VMID{ID: holdfast.NewID()}
	a1 := l.must(l.backup(2<<20, holdfast.SetID{}, write{bytes: shared}, write{off: 1 << 20, bytes: noise(rng, 200<<10)}))
	a2 := l.must(l.backup(2<<20, a1, write{off: 1 << 20, bytes: noise(rng, 100<<10)}))
	l.vm = b
	b1 := l.must(l.backup(2<<20, holdfast.SetID{}, write{bytes: shared}, write{off: 1 << 20, bytes: noise(rng, 50<<10)}))

	s, err := l.p.Explain(background)
	if err != nil {
		t.Fatal(err)
	}
	u, err := l.p.Usage(background)
	if err != nil {
		t.Fatal(err)
	}
	near := func(what string, got, want int64) {
		t.Helper()
		if d := got - want; d < -4096 || d > 4096 {
			t.Errorf("%s: %d, want about %d", what, got, want)
		}
	}
	near("stored", s.Stored, u.Stored)
	if s.Reclaimable != 0 || s.Pinned != 0 || len(s.VMs) != 2 || s.Containers != 6 || s.Liveness[9] != 6 {
		t.Errorf("%+v", s)
	}
	own := map[holdfast.VMID]int64{}
	for _, v := range s.VMs {
		own[v.ID] = v.Unique
	}
	if own[a] < 300<<10 || own[a] > 330<<10 || own[b] < 50<<10 || own[b] > 70<<10 {
		t.Errorf("own bytes: %d and %d", own[a], own[b])
	}

	reader, err := l.p.Open(background, a1)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []holdfast.SetID{a1, a2} {
		if err := l.p.Delete(background, id); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = l.p.Explain(background); err != nil {
		t.Fatal(err)
	}
	if len(s.PinnedBy) != 1 || s.PinnedBy[0] != (pools.Pin{Set: a1, Use: pools.PinReading}) {
		t.Errorf("pinned by %+v", s.PinnedBy)
	}
	waited := int64(0)
	for _, w := range s.Waits {
		waited += w.Bytes
	}
	near("what waits for something", waited, s.Reclaimable)
	if s.Pinned < 200<<10 || s.Pinned > 220<<10 || s.Reclaimable < 100<<10 || s.Reclaimable > 120<<10 || len(s.VMs) != 1 {
		t.Errorf("with an open reader: %+v", s)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = l.p.Explain(background); err != nil || s.Pinned != 0 {
		t.Fatalf("%+v %v", s, err)
	}
	near("reclaimable after deleting a VM's sets", s.Reclaimable, own[a])
	before := u.Stored
	l.collect()
	l.collect()
	if u, err = l.p.Usage(background); err != nil {
		t.Fatal(err)
	}
	near("given back, and what waits in well filled containers", before-u.Stored+u.Reclaimable, own[a])
	if _, err := l.restore(b1); err != nil {
		t.Fatal(err)
	}
}
