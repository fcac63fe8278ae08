package drive_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/iscsi/tgttest"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

var ctx = context.Background()

// bed is an emulated library whose drive 0 has a cartridge loaded.
type bed struct {
	*testing.T
	lib  *emu.Library
	cart *emu.Cartridge
	d    *drive.Drive
}

func newBed(t *testing.T, o emu.Options, m emu.Media) *bed {
	t.Helper()
	o.Drives, o.Slots = 2, 2
	m.Barcode = "HF0001L8"
	lib := emu.New(o)
	b := &bed{T: t, lib: lib, cart: lib.Add(0, m)}
	b.move(lib.Connect("a", emu.Changer), emu.AddrSlot, emu.AddrDrive)
	b.d = b.open("a", lib.Connect("a", emu.Drive(0)))
	return b
}

func (b *bed) move(robot scsi.Transport, from, to uint16) {
	b.Helper()
	for range 4 {
		if r, err := robot.Exec(ctx, scsi.Command{CDB: scsi.MoveMedium(0, from, to)}); err == nil && r.Status == scsi.Good {
			return
		}
	}
	b.Fatal("the robot does not move")
}

func (b *bed) open(_ string, t scsi.Transport) *drive.Drive {
	b.Helper()
	d, err := drive.Open(ctx, t, drive.Options{Log: b.Logf})
	b.must(err)
	b.must(d.Ready(ctx))
	return d
}

func (b *bed) must(err error) {
	if err != nil {
		b.Helper()
		b.Fatal(err)
	}
}

func (b *bed) want(err error, is error) {
	if !errors.Is(err, is) {
		b.Helper()
		b.Errorf("%v, want %v", err, is)
	}
}

func (b *bed) read(want string) {
	b.Helper()
	p := make([]byte, 100)
	n, err := b.d.Read(ctx, p)
	if err != nil || string(p[:n]) != want {
		b.Errorf("read %q, %v, want %q", p[:max(n, 0)], err, want)
	}
}

// roam writes and finds its way with whatever the drive can do: the same for all.
func roam(b *bed) {
	for i, s := range []string{"one", "two", "", "three", "", "four"} {
		if s == "" {
			b.must(b.d.Filemarks(ctx, 1))
		} else {
			b.must(b.d.Write(ctx, []byte(s)))
		}
		if _, at, known := b.d.Position(); at != uint64(i+1) || !known {
			b.Errorf("after object %d the position is %d", i, at)
		}
	}
	b.must(b.d.Flush(ctx, 1))
	for _, c := range []struct {
		at   uint64
		want string
	}{{3, "three"}, {0, "one"}, {5, "four"}, {1, "two"}} {
		b.must(b.d.Locate(ctx, 0, c.at))
		b.read(c.want)
	}
	_, err := b.d.Read(ctx, make([]byte, 10))
	b.want(err, drive.ErrFilemark)
	b.must(b.d.NextFile(ctx))
	b.read("four")
	b.must(b.d.Rewind(ctx))
	b.must(b.d.EndOfData(ctx))
	if _, at, known := b.d.Position(); at != 7 || !known {
		b.Errorf("the data ends at %d, %v", at, known)
	}
	_, err = b.d.Read(ctx, make([]byte, 10))
	b.want(err, drive.ErrEndOfData)
	b.want(b.d.NextFile(ctx), drive.ErrEndOfData)
	if err := b.d.Locate(ctx, 0, 100); err == nil {
		b.Error("it found a place behind the end")
	}
	b.must(b.d.Locate(ctx, 0, 1))
	b.must(b.d.Write(ctx, []byte("TWO")))
	b.must(b.d.Flush(ctx, 1))
	b.must(b.d.EndOfData(ctx))
	if _, at, _ := b.d.Position(); at != 3 {
		b.Errorf("after overwriting, the data ends at %d", at)
	}
}

// TestFindsItsWayWithWhateverTheDriveCanDo: with all commands, without one after another, and on tgt, which has none of them.
func TestFindsItsWayWithWhateverTheDriveCanDo(t *testing.T) {
	for _, c := range []struct {
		name    string
		without []byte
		locate  drive.Locating
		pos     int
	}{
		{"everything", nil, drive.Locate16, scsi.PositionLong},
		{"no locate16", []byte{scsi.OpLocate16}, drive.Locate10, scsi.PositionLong},
		{"no locate", []byte{scsi.OpLocate16, scsi.OpLocate10, scsi.OpReadAttribute, scsi.OpMaintenanceIn}, drive.Counting, scsi.PositionLong},
		{"no position", []byte{scsi.OpReadPosition, scsi.OpLogSense, scsi.OpSecurityProtocolIn}, drive.Locate16, -1},
		{"nothing", []byte{scsi.OpLocate16, scsi.OpLocate10, scsi.OpReadPosition, scsi.OpPersistentReserveIn, scsi.OpPersistentReserveOut}, drive.Counting, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, emu.Options{Without: c.without}, emu.Media{})
			if got := b.d.Capabilities(); got.Locate != c.locate || got.Position != c.pos || got.MaxBlock != drive.MaxBlock {
				t.Errorf("found %+v", got)
			}
			roam(b)
		})
	}
	t.Run("tgt", func(t *testing.T) {
		lib := tgttest.Start(t, tgttest.Options{Drives: 1, Slots: 2, Media: []string{"HF0001L8"}})
		s := lib.Dial()
		b := &bed{T: t}
		b.move(s.LUN(lib.ChangerLUN()), tgttest.AddrSlot, tgttest.AddrDrive)
		b.d = b.open("a", s.LUN(1))
		if got := b.d.Capabilities(); got.Locate != drive.Counting || got.Position != -1 || got.Memory || got.Reserve || got.Encryption != 0 {
			t.Errorf("found %+v", got)
		}
		roam(b)
	})
}

// TestNothingIsWrittenFromAnUnknownPlace: whatever makes the position doubtful, neither writes nor reads go on before it is found again, and the
// interrupted command was not repeated by itself.
func TestNothingIsWrittenFromAnUnknownPlace(t *testing.T) {
	bad := scsi.Sense{Key: scsi.MediumError, Code: scsi.CodeWriteError}
	for _, c := range []struct {
		name string
		hurt func(b *bed)
	}{
		{"lost answer", func(b *bed) {
			b.lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: scsi.OpWrite6, Do: emu.LoseReply})
		}},
		{"lost command", func(b *bed) {
			b.lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: scsi.OpWrite6, Do: emu.LoseCommand})
		}},
		{"power cut", func(b *bed) { b.lib.PowerCut() }},
		{"write error", func(b *bed) {
			b.lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: scsi.OpWrite6, Do: emu.Answer, Sense: bad})
		}},
		{"aborted", func(b *bed) {
			b.lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: scsi.OpWrite6, Do: emu.Answer, Sense: scsi.Sense{Key: scsi.AbortedCommand}})
		}},
		{"deferred", func(b *bed) {
			b.lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: scsi.OpWrite6, Do: emu.Defer, Sense: bad})
			b.must(b.d.Write(ctx, []byte("gone")))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, emu.Options{Seed: 3}, emu.Media{})
			b.must(b.d.Write(ctx, []byte("kept")))
			b.must(b.d.Flush(ctx, 1))
			c.hurt(b)
			if err := b.d.Write(ctx, []byte("doubtful")); err == nil {
				t.Fatal("the write went well")
			}
			objects := b.cart.Objects(0)
			b.want(b.d.Write(ctx, []byte("more")), drive.ErrLost)
			b.want(b.d.Flush(ctx, 1), drive.ErrLost)
			_, err := b.d.Read(ctx, make([]byte, 9))
			b.want(err, drive.ErrLost)
			if b.cart.Objects(0) != objects {
				t.Error("something was written from an unknown place")
			}
			b.must(b.d.Ready(ctx))
			b.must(b.d.Locate(ctx, 0, 2))
			b.must(b.d.Write(ctx, []byte("again")))
			b.must(b.d.Flush(ctx, 1))
			b.must(b.d.Locate(ctx, 0, 0))
			b.read("kept")
			b.must(b.d.NextFile(ctx))
			b.read("again")
		})
	}
}

// TestAPositionThatDiffersIsNoticedAtTheFlush: a block that the drive lost without a word does not pass.
func TestAPositionThatDiffersIsNoticedAtTheFlush(t *testing.T) {
	b := newBed(t, emu.Options{}, emu.Media{})
	b.must(b.d.Write(ctx, []byte("one")))
	other := b.lib.Connect("a", emu.Drive(0))
	if _, err := other.Exec(ctx, scsi.Command{CDB: scsi.Rewind()}); err != nil { // somebody moves the tape behind our back
		t.Fatal(err)
	}
	b.must(b.d.Write(ctx, []byte("two")))
	b.want(b.d.Flush(ctx, 1), drive.ErrLost)
}

// TestTheEndOfTheMediumIsSeenComing: written with a warning, then not written at all, and the place stays known.
func TestTheEndOfTheMediumIsSeenComing(t *testing.T) {
	b := newBed(t, emu.Options{}, emu.Media{Capacity: 20000, EarlyWarning: 5000})
	n, p := 0, make([]byte, 1000)
	for {
		err := b.d.Write(ctx, p)
		if errors.Is(err, drive.ErrFull) {
			break
		}
		b.must(err)
		if n++; b.d.Warned() != (n > 15) {
			t.Errorf("block %d: warned %v", n, b.d.Warned())
		}
	}
	if n != 20 || b.cart.Objects(0) != 20 {
		t.Errorf("%d blocks were taken, %d are there", n, b.cart.Objects(0))
	}
	if _, at, known := b.d.Position(); at != 20 || !known {
		t.Errorf("at %d, %v", at, known)
	}
}

// TestKeysLeaveWithTheMedium: blocks are read with the key only, never with another, and not at all after the medium was out.
func TestKeysLeaveWithTheMedium(t *testing.T) {
	b := newBed(t, emu.Options{}, emu.Media{})
	key := bytes.Repeat([]byte{1}, 32)
	b.must(b.d.SetKey(ctx, key, []byte("key-1")))
	b.must(b.d.Write(ctx, []byte("secret")))
	b.must(b.d.Flush(ctx, 1))
	b.must(b.d.Rewind(ctx))
	b.read("secret")
	b.must(b.d.Unload(ctx))
	b.must(b.d.Ready(ctx))
	refused := func(why string) {
		t.Helper()
		if _, err := b.d.Read(ctx, make([]byte, 100)); holdfast.KindOf(err) != holdfast.Permission {
			t.Errorf("%s: %v", why, err)
		}
	}
	refused("without a key")
	b.must(b.d.SetKey(ctx, bytes.Repeat([]byte{2}, 32), []byte("key-2")))
	refused("with another key")
	b.must(b.d.SetKey(ctx, key, []byte("key-1")))
	b.read("secret")
}

// TestAlertsAreReadWithoutClearingThemWhereThatCanBeDone.
func TestAlertsAreReadWithoutClearingThemWhereThatCanBeDone(t *testing.T) {
	for _, poor := range []bool{false, true} {
		b := newBed(t, emu.Options{NoResponsePage: poor}, emu.Media{})
		b.lib.RequestCleaning(0)
		for i := range 2 {
			as, cleared, err := b.d.Alerts(ctx)
			b.must(err)
			if want := i == 0 || !poor; (len(as) == 1 && as[0] == scsi.AlertCleanNow) != want || cleared != poor {
				t.Errorf("without the page %v, time %d: %v, cleared %v", poor, i, as, cleared)
			}
		}
	}
}

// TestOneHostHasADrive: another host's reservation is respected, and ours is given back.
func TestOneHostHasADrive(t *testing.T) {
	b := newBed(t, emu.Options{}, emu.Media{})
	other, err := drive.Open(ctx, b.lib.Connect("b", emu.Drive(0)), drive.Options{})
	b.must(err)
	if ok, err := b.d.Reserve(ctx, 1); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := other.Reserve(ctx, 2); holdfast.KindOf(err) != holdfast.Busy || holdfast.HintOf(err) == "" {
		t.Errorf("two hosts: %v", err)
	}
	b.must(b.d.Release(ctx))
	if ok, err := other.Reserve(ctx, 2); !ok || err != nil {
		t.Errorf("after it was given back: %v, %v", ok, err)
	}
}

// TestDriveTestFindsWhatComesBackOtherwise: a good drive passes, one that changes bits does not, a failing one says so.
func TestDriveTestFindsWhatComesBackOtherwise(t *testing.T) {
	b := newBed(t, emu.Options{}, emu.Media{})
	r, err := b.d.Test(ctx, 10, 4096, 1)
	if err != nil || r.Blocks != 10 || r.Bytes != 40960 || r.Differs != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	b.lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: scsi.OpRead6, Skip: 2, Times: 3, Do: emu.Rot})
	if r, err := b.d.Test(ctx, 10, 4096, 1); err != nil || r.Differs != 3 {
		t.Errorf("with three changed bits: %+v, %v", r, err)
	}
	b.lib.Fail(0)
	if _, err := b.d.Test(ctx, 1, 512, 1); holdfast.KindOf(err) != holdfast.Offline {
		t.Errorf("a broken drive: %v", err)
	}
	if a, err := b.d.MediumSerial(ctx); a != "" && err == nil {
		t.Errorf("a broken drive knows the serial number %q", a)
	}
}
