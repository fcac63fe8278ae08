package pool

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/media"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// lose returns the site after the appliance was lost: an empty state, and the cartridges in other slots.
func (s *site) lose() *site {
	n := *s
	n.mem = fsys.NewMem(9)
	return &n
}

func (s *site) rebuild() (Rebuilt, error) {
	l := s.lib()
	r, err := rebuildOn(ctx, s.env, s.mem, s.id, s.conf, s.keep, l)
	if cerr := l.Close(ctx); err == nil {
		err = cerr
	}
	return r, err
}

// shuffle puts the cartridges into other slots.
func (s *site) shuffle(p *Pool, slots int) {
	for _, x := range p.stations.list {
		x, err := p.stations.take(ctx, func(y *station) int {
			if x == y {
				return 1
			}
			return -1
		})
		s.must(err)
		s.must(p.stations.clear(ctx, x))
		p.stations.give(x)
	}
	s.must(p.stations.rest(ctx))
	var all []*emu.Cartridge
	for i := range slots {
		all = append(all, s.emu.Remove(i))
	}
	s.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for i, c := range all {
		if c != nil {
			s.emu.Insert(i, c)
		}
	}
	robot := s.emu.Connect("a", emu.Changer)
	for range 2 * slots { // hear that each of them was moved
		_, err := robot.Exec(ctx, scsi.Command{CDB: scsi.TestUnitReady()})
		s.must(err)
	}
}

// known is what a pool knows, as far as it must come back: backup sets, where they lie, and cartridges by what they are.
func known(p *Pool) map[string]any {
	out := map[string]any{}
	for _, b := range p.book.Backups {
		r, err := p.record(b.Record)
		if err != nil {
			out[b.ID.String()] = err.Error()
			continue
		}
		at, err := p.where(r, b.Media, func(uint32) bool { return true })
		out[b.ID.String()] = []any{*b, r, at, fmt.Sprint(err)}
	}
	for _, c := range p.book.Cartridges {
		if !c.Set.IsZero() && c.State != media.Recycled {
			out["tape "+c.ID.String()] = []any{c.Barcode, c.Serial, c.Set, c.Seq, c.WORM, c.Size}
		}
	}
	return out
}

// TestTheCatalogComesBackFromTheCartridges: after backups, deletions, spanning and a new media set, with the cartridges in any order, the catalog is the one that was lost, and a missing
// cartridge is named.
func TestTheCatalogComesBackFromTheCartridges(t *testing.T) {
	for seed := range uint64(2 * soak()) {
		s := newSite(t, emu.Options{Seed: seed, Slots: 16}, Config{Allocation: Continue}, 14, small)
		p := s.create()
		rng := rand.New(rand.NewPCG(seed, 5))
		sets := map[holdfast.SetID][]uint64{}
		var ids []holdfast.SetID
		for i := range 8 {
			b := backup{seed: uint64(i), size: 1 << 20}
			var seeds []uint64
			if len(ids) > 0 && rng.IntN(3) > 0 {
				b.parent = ids[rng.IntN(len(ids))]
				seeds = sets[b.parent]
			}
			id := s.backup(p, b)
			ids = append(ids, id)
			sets[id] = append(slices.Clone(seeds), b.seed)
			switch rng.IntN(4) {
			case 0:
				s.must(p.CloseMediaSet(ctx))
			case 1:
				k := rng.IntN(len(ids))
				s.must(p.Delete(ctx, ids[k]))
				delete(sets, ids[k])
				ids = slices.Delete(ids, k, k+1)
			}
		}
		s.must(p.WriteDeletions(ctx))
		want := known(p)
		s.shuffle(p, 16)
		s.must(p.Close())
		n := s.lose()
		report, err := n.rebuild()
		s.must(err)
		q := n.open()
		if got := known(q); !reflect.DeepEqual(got, want) || report.Sets != len(ids) || len(report.Lacking) > 0 {
			t.Errorf("seed %d: %d things came back, %d were lost; %+v", seed, len(got), len(want), report)
			for k := range want {
				if !reflect.DeepEqual(got[k], want[k]) {
					t.Errorf("%s:\n%+v\n%+v", k, got[k], want[k])
				}
			}
		}
		for _, id := range ids {
			s.same(fmt.Sprintf("seed %d: %s", seed, id), s.restore(q, id), model(1<<20, sets[id]...))
		}
		more := s.backup(q, backup{seed: 99, size: 1 << 20, parent: ids[0]})
		s.same("appended", s.restore(q, more), model(1<<20, append(slices.Clone(sets[ids[0]]), 99)...))
		s.must(q.Close())
	}
}

// TestARebuildWithoutOneCartridgeNamesIt: sets on the others are there; one that needs the missing one is Offline, and whole when it comes.
func TestARebuildWithoutOneCartridgeNamesIt(t *testing.T) {
	s := newSite(t, emu.Options{}, Config{Allocation: Continue}, 6, small)
	p := s.create()
	id := s.backup(p, backup{seed: 1, size: 4 << 20})
	legs, err := p.Plan(ctx, id)
	s.must(err)
	s.shuffle(p, 8)
	slot := s.slot(p, legs[1].Cartridge.Barcode)
	s.must(p.Close())
	middle := s.emu.Remove(slot)
	n := s.lose()
	report, err := n.rebuild()
	s.must(err)
	if report.Sets != 1 {
		t.Fatalf("%+v", report)
	}
	q := n.open()
	_, err = q.Open(ctx, id)
	wantKind(t, "open without the middle tape", err, holdfast.Offline)
	s.must(q.Close())
	s.emu.Insert(slot, middle)
	_, err = n.rebuild()
	s.must(err)
	q = n.open()
	s.same("with all", s.restore(q, id), model(4<<20, 1))
	s.must(q.Close())
}

// TestPowerCutsLoseNothingReported: the power of library and appliance goes at a random command of a random history; whatever Commit has returned can be restored afterwards,
// from the state that is left and from a catalog that was read from the cartridges, and nothing that was deleted and written down comes back in part.
func TestPowerCutsLoseNothingReported(t *testing.T) {
	points := 100 * soak()
	if points > 1000 {
		points = 1000
	}
	kept, rebuilt := 0, 0
	for seed := range uint64(points) {
		rng := rand.New(rand.NewPCG(seed, 11))
		m := small
		if rng.IntN(3) == 0 {
			m.Capacity, m.EarlyWarning = 1<<20, 400<<10
		}
		s := newSite(t, emu.Options{Seed: seed}, Config{Allocation: []string{Continue, Always}[rng.IntN(2)], Block: 32 << 10}, 8, m)
		p := s.create()
		s.emu.Inject(emu.Fault{Unit: emu.Unit(rng.IntN(3) - 1), Op: emu.AnyOp, Skip: rng.IntN(150), Do: []emu.Action{emu.CutBefore, emu.CutAfter}[rng.IntN(2)]})
		sets := map[holdfast.SetID][]uint64{}
		deleted := map[holdfast.SetID]bool{}
		var ids []holdfast.SetID
		size := int64(1+rng.IntN(6)) * 2 * piece
		for i := range 4 {
			b := backup{seed: uint64(i), size: size}
			if len(ids) > 0 && rng.IntN(2) == 0 {
				b.parent = ids[rng.IntN(len(ids))]
			}
			id, err := s.tryBackup(p, b)
			if err != nil {
				continue
			}
			ids = append(ids, id)
			sets[id] = append(slices.Clone(sets[b.parent]), b.seed)
			if len(ids) > 1 && rng.IntN(4) == 0 {
				if p.Delete(ctx, ids[0]) == nil {
					deleted[ids[0]] = true
					ids = ids[1:]
				}
			}
		}
		s.emu.Peace()
		p = s.crash()
		for _, id := range ids {
			s.same(fmt.Sprintf("seed %d, after the crash", seed), s.restore(p, id), model(size, sets[id]...))
		}
		if seed%4 == 0 {
			if _, err := s.tryBackup(p, backup{seed: 50, size: size}); err != nil && holdfast.KindOf(err) != holdfast.NoSpace {
				t.Errorf("seed %d: backup after the crash: %v", seed, err)
			}
		}
		want := known(p)
		s.shuffle(p, 8)
		s.must(p.Close())
		n := s.lose()
		if len(ids) == 0 {
			continue
		}
		_, err := n.rebuild()
		s.must(err)
		q := n.open()
		got := known(q)
		for k, v := range want {
			if !reflect.DeepEqual(got[k], v) && k[:4] != "tape" {
				t.Errorf("seed %d: %s is not what was lost:\n%+v\n%+v", seed, k, got[k], v)
			}
		}
		for _, id := range ids {
			s.same(fmt.Sprintf("seed %d, rebuilt", seed), s.restore(q, id), model(size, sets[id]...))
		}
		s.must(q.Close())
		kept, rebuilt = kept+len(ids), rebuilt+1
	}
	t.Logf("%d power cuts; %d catalogs built again from cartridges in any order, %d sets compared twice", points, rebuilt, kept)
}
