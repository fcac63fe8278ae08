package standard

import (
	"math/rand/v2"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// Goal: Explain says of every stored byte whose it is, what pins it and when it comes back, and what it says will come back does.
func TestExplainSaysWhoseBytesAreWhoseAndWhenTheyGo(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	l := newLab(t, shape{paths: 2, target: 64 << 10})
	explain := func() pools.Space {
		t.Helper()
		s, err := l.p.Explain(background)
		if err != nil {
			t.Fatal(err)
		}
		if s.Stored != s.Live+s.Pinned+s.Reclaimable+s.Records {
			t.Errorf("the parts do not sum up: %+v", s)
		}
		waits := int64(0)
		for _, w := range s.Waits {
			waits += w.Bytes
		}
		if waits != s.Reclaimable {
			t.Errorf("%d bytes wait, %d are reclaimable", waits, s.Reclaimable)
		}
		return s
	}
	const size = 512 << 10
	img := noise(rng, size)
	first := l.must(l.backup(size, holdfast.SetID{}, write{0, img}))
	next := over(img, 0, noise(rng, size*3/4))
	second := l.must(l.backup(size, first, write{0, next[:size*3/4]}))
	mine := l.vm
	l.vm = holdfast.VMID{ID: holdfast.NewID()}
	l.must(l.backup(size, holdfast.SetID{}, write{0, noise(rng, 100<<10)}))
	l.vm = mine

	s := explain()
	if u := l.usage(); s.Stored != u.Stored || s.Reclaimable != 0 || s.Pinned != 0 || len(s.PinnedBy) != 0 || len(s.VMs) != 2 || s.Live < size*7/4 {
		t.Errorf("%+v, stored %d", s, u.Stored)
	}
	reader, err := l.p.Open(background, first)
	if err != nil {
		t.Fatal(err)
	}
	l.delete(first)
	if s = explain(); s.Pinned < size*3/4 || len(s.PinnedBy) != 1 || s.PinnedBy[0] != (pools.Pin{Set: first, Use: pools.PinReading}) {
		t.Errorf("with a reader: %+v", s)
	}
	m := l.manifest(size, second)
	ses, w := l.begin(m)
	if _, err := l.put(w, write{0, noise(rng, 128<<10)}, 16); err != nil {
		t.Fatal(err)
	}
	before := s.Pinned
	if s = explain(); s.Pinned < before+64<<10 || len(s.PinnedBy) != 2 || s.PinnedBy[1] != (pools.Pin{Set: m.ID, VM: m.VM.Name, Use: pools.PinWriting}) {
		t.Errorf("with a session: %+v", s)
	}
	if err := ses.Abort(background); err != nil {
		t.Fatal(err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	s = explain()
	if s.Pinned != 0 || len(s.PinnedBy) != 0 {
		t.Errorf("afterwards: %+v", s)
	}
	soon := int64(0)
	for _, w := range s.Waits {
		if w.When == pools.WaitCollect {
			soon = w.Bytes
		}
	}
	stored := l.usage().Stored
	l.collect()
	if freed := stored - l.usage().Stored; freed < soon*8/10 || freed > soon*12/10 {
		t.Errorf("a collect gave back %d bytes, %d were to come", freed, soon)
	}
	l.same(second, next)
}
