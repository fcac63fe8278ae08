package pool

import (
	"context"
	"crypto/sha256"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/media"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// small is cartridges of which a set of 4 MiB needs three.
var small = emu.Media{Capacity: 2 << 20, EarlyWarning: 400 << 10}

func fullTapes(p *Pool) (all []media.Cartridge) {
	for _, c := range p.Media() {
		if !c.Set.IsZero() {
			all = append(all, c)
		}
	}
	return all
}

// TestASetThatSpansTapesComesBackFromTheVault: labelled by bar code, three tapes, out through the one import/export slot; the set is Offline then and names them; what is
// brought back in any order is waited for, and the restore is identical, with each tape mounted once.
func TestASetThatSpansTapesComesBackFromTheVault(t *testing.T) {
	s := newSite(t, emu.Options{}, Config{Allocation: Continue, Admitted: true}, 6, small)
	p := s.create()
	_, err := s.tryBackup(p, backup{seed: 1, size: 1 << 20})
	wantKind(t, "a backup without admitted cartridges", err, holdfast.NoSpace)
	for _, code := range []string{"HF0001L8", "HF0003L8", "HF0004L8", "HF0006L8"} {
		s.must(p.Admit(ctx, code))
	}
	id := s.backup(p, backup{seed: 1, size: 4 << 20})
	legs, err := p.Plan(ctx, id)
	s.must(err)
	if len(legs) != 3 {
		t.Fatalf("the set lies on %d tapes: %+v", len(legs), legs)
	}
	door := s.conf.exportSlot()
	vault := map[string]*emu.Cartridge{}
	for i, l := range legs {
		if !strings.Contains("HF0001L8 HF0003L8 HF0004L8 HF0006L8", l.Cartridge.Barcode) {
			t.Errorf("%s was taken, and was not admitted", l.Cartridge.Barcode)
		}
		s.must(p.Export(ctx, l.Cartridge.Barcode, "safe 4"))
		if i == 0 {
			wantKind(t, "export with a full door", p.Export(ctx, legs[1].Cartridge.Barcode, "safe 4"), holdfast.NoSpace)
		}
		vault[l.Cartridge.Barcode] = s.emu.Remove(door)
	}
	s.must(p.Close())
	p = s.open()
	_, err = p.Open(ctx, id)
	wantKind(t, "open a set in the vault", err, holdfast.Offline)
	for _, l := range legs {
		if err == nil || !strings.Contains(err.Error(), l.Cartridge.Barcode) || !strings.Contains(err.Error(), "safe 4") {
			t.Errorf("the error does not name %s and its place: %v", l.Cartridge.Barcode, err)
		}
	}
	st, err := p.Stage(ctx, id)
	s.must(err)
	if n := st.Needs(); len(n) != 3 || n[0].Place != "safe 4" {
		t.Errorf("needs: %+v", n)
	}
	short, stop := context.WithCancel(ctx)
	waited := make(chan error)
	go func() { waited <- st.Wait(short) }()
	stop()
	wantKind(t, "wait for cartridges that do not come", <-waited, holdfast.Cancelled)
	for _, i := range []int{2, 0, 1} {
		s.emu.Insert(door, vault[legs[i].Cartridge.Barcode])
		if i != 1 {
			s.must(p.Import(ctx))
		}
	}
	s.must(st.Wait(ctx))
	if n := st.Needs(); len(n) != 0 {
		t.Errorf("needs when all are there: %+v", n)
	}
	st.Release()
	before := [2]emu.Count{s.emu.Count(0), s.emu.Count(1)}
	s.same("from the vault", s.restore(p, id), model(4<<20, 1))
	loads := 0
	for i := range before {
		loads += s.emu.Count(i).Loads - before[i].Loads
	}
	if loads != 3 {
		t.Errorf("three tapes were mounted %d times", loads)
	}
	s.must(p.Close())
}

func (c *Config) exportSlot() int { return 8 }

// print is what lies on a cartridge.
func print(c *emu.Cartridge) (sum [32]byte) {
	h := sha256.New()
	for i := range c.Objects(0) {
		b, mark := c.Block(0, i)
		h.Write(b)
		if mark {
			h.Write([]byte{1})
		}
	}
	return [32]byte(h.Sum(nil))
}

// TestTheWrongCartridgeIsNeverWritten: two with one bar code, one that was swapped for another, one whose label is a copy on another medium, and those of others.
func TestTheWrongCartridgeIsNeverWritten(t *testing.T) {
	s := newSite(t, emu.Options{Slots: 12}, Config{Allocation: Continue}, 1, emu.Media{Capacity: 64 << 20})
	other := newSite(t, emu.Options{Seed: 4}, Config{Allocation: Continue}, 1, emu.Media{Capacity: 64 << 20, Serial: "X"})
	q := other.create()
	other.backup(q, backup{seed: 9, size: 1 << 20})
	s.must(q.free(ctx, "HF0001L8"))
	foreign := other.emu.Remove(other.slot(q, "HF0001L8"))
	s.must(q.Close())
	p := s.create()
	first := s.backup(p, backup{seed: 1, size: 1 << 20})
	s.must(p.free(ctx, "HF0001L8"))
	mine := s.emu.Remove(s.slot(p, "HF0001L8"))
	untouched := map[string]*emu.Cartridge{"mine": mine, "foreign": foreign}
	check := func(what string) {
		t.Helper()
		was := map[string][32]byte{}
		for name, c := range untouched {
			was[name] = print(c)
		}
		_, err := s.tryBackup(p, backup{seed: 2, size: 1 << 20})
		wantKind(t, "backup with "+what, err, holdfast.NoSpace)
		for name, c := range untouched {
			if print(c) != was[name] {
				t.Errorf("with %s, cartridge %s was written to", what, name)
			}
		}
	}
	s.emu.SetBarcode(foreign, "HF0001L8") // swapped: the bar code of ours on another's tape
	s.emu.Insert(0, foreign)
	check("a swapped cartridge")
	if c := p.Media("HF0001L8"); len(c) != 1 || c[0].State != media.Suspect && c[0].State != media.Foreign {
		t.Errorf("the swapped one counts as %+v", c)
	}
	s.must(p.free(ctx, "HF0001L8"))
	s.must(p.Close())
	s.emu.Insert(1, mine) // both with one bar code
	p = s.open()
	check("two cartridges with one bar code")
	_, err := s.tryRestore(p, first)
	if err == nil {
		t.Error("a restore chose between two cartridges with one bar code")
	}
	s.emu.SetBarcode(foreign, "ZZ0001L8")
	check("a cartridge of another pool")
	if c := p.Media("ZZ0001L8"); len(c) != 1 || c[0].State != media.Foreign {
		t.Errorf("the foreign one is %+v", c)
	}
	s.same("from our own cartridge again", s.restore(p, first), model(1<<20, 1))
	s.must(p.Close())
}

// TestACopiedLabelIsFoundOut: a cartridge with our label, bar code and content on a medium with another serial number is not written.
func TestACopiedLabelIsFoundOut(t *testing.T) {
	s := newSite(t, emu.Options{}, Config{Allocation: Continue}, 1, emu.Media{Capacity: 64 << 20})
	p := s.create()
	s.backup(p, backup{seed: 1, size: 1 << 20})
	s.must(p.free(ctx, "HF0001L8"))
	mine := s.emu.Remove(s.slot(p, "HF0001L8"))
	fake := s.emu.Add(0, emu.Media{Barcode: "HF0001L8", Serial: "another", Capacity: 64 << 20})
	s.emu.Remove(0)
	fake.Take(mine)
	s.emu.Insert(0, fake)
	was := print(fake)
	_, err := s.tryBackup(p, backup{seed: 2, size: 1 << 20})
	wantKind(t, "backup to a copy", err, holdfast.NoSpace)
	if print(fake) != was || was != print(mine) {
		t.Error("the copy was written to")
	}
	if c := p.Media("HF0001L8"); c[0].State != media.Suspect {
		t.Errorf("it is %s", c[0].State)
	}
	s.must(p.Close())
}

// TestAFailingDriveIsReplaced: a drive that dies in a backup or a restore, with or without letting go of its cartridge, costs nothing that was committed, and the work
// goes on in the other one.
func TestAFailingDriveIsReplaced(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault emu.Fault
		dead  bool
	}{
		{"a write fails", emu.Fault{Op: scsi.OpWrite6, Skip: 9, Do: emu.Answer, Sense: scsi.Sense{Key: scsi.HardwareError, Code: scsi.CodeHardware}}, false},
		{"a write's answer is lost", emu.Fault{Op: scsi.OpWrite6, Skip: 9, Do: emu.LoseReply}, false},
		{"a deferred error", emu.Fault{Op: scsi.OpWrite6, Skip: 9, Do: emu.Defer, Sense: scsi.Sense{Key: scsi.MediumError, Code: 0x0c00}}, false},
		{"the commit fails", emu.Fault{Op: scsi.OpWriteFilemarks6, Skip: 3, Do: emu.Answer, Sense: scsi.Sense{Key: scsi.HardwareError, Code: scsi.CodeHardware}}, false},
		{"the drive dies", emu.Fault{}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, emu.Options{}, Config{Allocation: Continue}, 6, emu.Media{Capacity: 64 << 20})
			p := s.create()
			first := s.backup(p, backup{seed: 1, size: 1 << 20})
			drive := s.driveOf(p)
			if c.fault.Unit = emu.Drive(drive); !c.dead {
				s.emu.Inject(c.fault)
			} else {
				s.emu.Fail(drive)
			}
			second := s.backup(p, backup{seed: 2, size: 2 << 20, parent: holdfast.SetID{}})
			s.same("what came after", s.restore(p, second), model(2<<20, 2))
			if c.dead { // the first set's cartridge is stuck until the drive is repaired
				_, err := s.tryRestore(p, first)
				wantKind(t, "restore from a cartridge that is stuck", err, holdfast.Offline)
				if err != nil && !strings.Contains(err.Error(), "HF000") {
					t.Errorf("the error does not name the cartridge: %v", err)
				}
				s.must(p.Close())
				s.emu.PowerCut()
				p = s.open()
			}
			s.same("what was there before", s.restore(p, first), model(1<<20, 1))
			s.must(p.Close())
		})
	}
}

// driveOf returns the number of the drive that has a cartridge.
func (s *site) driveOf(p *Pool) int {
	inv, err := p.stations.lib.Changer().Inventory(ctx)
	s.must(err)
	for i, e := range inv.Drives {
		if e.Full {
			return i
		}
	}
	s.t.Fatalf("no drive has a cartridge")
	return 0
}

// TestARequestForCleaningIsHeard: after the batch at hand the drive is cleaned, and the pool goes on.
func TestARequestForCleaningIsHeard(t *testing.T) {
	s := newSite(t, emu.Options{}, Config{Allocation: Continue}, 4, emu.Media{Capacity: 64 << 20})
	s.emu.Add(6, emu.Media{Barcode: "CLNU01L8", Cleaning: 1})
	p := s.create()
	first := s.backup(p, backup{seed: 1, size: 1 << 20})
	s.emu.RequestCleaning(s.driveOf(p))
	second := s.backup(p, backup{seed: 2, size: 1 << 20, parent: first})
	if !strings.Contains(strings.Join(s.emu.Trace(), "\n"), "cleaned") {
		t.Error("nothing was cleaned")
	}
	s.emu.RequestCleaning(0) // and nothing to clean with any more
	s.emu.RequestCleaning(1)
	third := s.backup(p, backup{seed: 3, size: 1 << 20, parent: second})
	s.same("after cleaning", s.restore(p, third), model(1<<20, 1, 2, 3))
	s.must(p.Close())
}

// TestRecyclingTakesWholeMediaSets: not while a set is on it, nor before its time; by force all sets of it go at once; then its cartridges serve again.
func TestRecyclingTakesWholeMediaSets(t *testing.T) {
	s := newSite(t, emu.Options{}, Config{Allocation: Daily, Retain: "2d"}, 3, small)
	p := s.create()
	var ids []holdfast.SetID
	for i := range 2 {
		ids = append(ids, s.backup(p, backup{seed: uint64(i), size: 2 << 20}))
	}
	_, err := s.tryBackup(p, backup{seed: 7, size: 2 << 20})
	wantKind(t, "backup without room", err, holdfast.NoSpace)
	sets := p.MediaSets()
	wantKind(t, "recycle a media set with sets", p.Recycle(ctx, sets[0].ID, false), holdfast.Immutable)
	open, err := p.Open(ctx, ids[0])
	s.must(err)
	wantKind(t, "recycle what is read", p.Recycle(ctx, sets[0].ID, true), holdfast.Busy)
	s.must(open.Close())
	_, err = p.Stage(ctx, ids[0], holdfast.SetID{ID: holdfast.NewID()})
	wantKind(t, "stage a set that is not there", err, holdfast.NotExist)
	st, err := p.Stage(ctx, ids...)
	s.must(err)
	wantKind(t, "recycle what is staged", p.Recycle(ctx, sets[0].ID, true), holdfast.Busy)
	wantKind(t, "export what is staged", p.Export(ctx, fullTapes(p)[0].Barcode, ""), holdfast.Busy)
	st.Release()
	st.Release()
	s.must(p.Recycle(ctx, sets[0].ID, true))
	s.must(p.Close())
	p = s.open()
	for m, err := range p.Sets(ctx) {
		t.Errorf("left after recycling by force: %v, %v", m.ID, err)
	}
	s.clk.pass(24 * time.Hour)
	id := s.backup(p, backup{seed: 8, size: 2 << 20})
	s.same("on recycled cartridges", s.restore(p, id), model(2<<20, 8))
	// Retention: what is deleted goes when the time since the media set was closed is up, not before.
	s.must(p.Delete(ctx, id))
	s.clk.pass(24 * time.Hour)
	_, err = s.tryBackup(p, backup{seed: 9, size: 4 << 20})
	wantKind(t, "backup before the time is up", err, holdfast.NoSpace)
	s.clk.pass(72 * time.Hour)
	id = s.backup(p, backup{seed: 10, size: 2 << 20})
	s.same("on expired cartridges", s.restore(p, id), model(2<<20, 10))
	s.must(p.Close())
}

// TestEncryptedTapesOpenWithThePassphraseAlone: the emulator refuses their blocks without the key, and a new appliance with nothing but cartridges and passphrase has everything.
func TestEncryptedTapesOpenWithThePassphraseAlone(t *testing.T) {
	conf := Config{Allocation: Continue}
	conf.Encryption.Encryption, conf.KeyFile = "passphrase", "the-file"
	s := newSite(t, emu.Options{}, conf, 4, small)
	secret := []byte("six random words would be better\n")
	s.env.Secrets = func(name string) ([]byte, error) { return secret, nil }
	p := s.create()
	first := s.backup(p, backup{seed: 1, size: 3 << 20})
	second := s.backup(p, backup{seed: 2, size: 3 << 20, parent: first})
	want := p.Traits()
	tape := fullTapes(p)[0]
	x, err := p.mount(ctx, tape)
	s.must(err)
	r, err := hft.Open(ctx, x.hold.Drive) // takes the key out of the drive
	s.must(err)
	l := r.Label()
	if !l.Encrypted() {
		t.Error("the label has no key")
	}
	if _, err := x.hold.Drive.Read(ctx, make([]byte, 1<<20)); err == nil {
		_, err = x.hold.Drive.Read(ctx, make([]byte, 1<<20))
		wantKind(t, "read a block without the key", err, holdfast.Permission)
	} else if _, err = x.hold.Drive.Read(ctx, make([]byte, 1<<20)); holdfast.KindOf(err) != holdfast.Permission {
		t.Errorf("read a block without the key: %v", err)
	}
	x.tape = nil
	p.stations.give(x)
	s.must(p.stations.rest(ctx))
	s.must(p.Close())
	lost := s.lose()
	good := secret
	secret = []byte("some other words altogether\n")
	_, err = lost.rebuild()
	wantKind(t, "rebuild with another passphrase", err, holdfast.Permission)
	secret = good
	report, err := lost.rebuild()
	s.must(err)
	if report.Sets != 2 || len(report.Lacking) > 0 {
		t.Errorf("rebuilt: %+v", report)
	}
	q := lost.open()
	if got := q.Traits(); !reflect.DeepEqual(got, want) {
		t.Errorf("traits %+v, want %+v", got, want)
	}
	s.same("the first", s.restore(q, first), model(3<<20, 1))
	s.same("the second", s.restore(q, second), model(3<<20, 1, 2))
	third := s.backup(q, backup{seed: 3, size: 3 << 20, parent: second})
	s.same("appended", s.restore(q, third), model(3<<20, 1, 2, 3))
	s.must(q.Close())
}

var _ pools.Pool = (*Pool)(nil)
