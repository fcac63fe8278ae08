package changer_test

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/changer"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/iscsi/tgttest"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

var ctx = context.Background()

func open(t *testing.T, u scsi.Transport) *changer.Changer {
	t.Helper()
	c, err := changer.Open(ctx, u, changer.Options{Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func library(t *testing.T, codes ...string) (*emu.Library, *changer.Changer) {
	t.Helper()
	lib := emu.New(emu.Options{Drives: 2, Slots: 8, Exports: 1})
	for i, b := range codes {
		lib.Add(i, emu.Media{Barcode: b})
	}
	return lib, open(t, lib.Connect("a", emu.Changer))
}

func wantKind(t *testing.T, err error, k holdfast.Kind) {
	t.Helper()
	if err == nil || holdfast.KindOf(err) != k {
		t.Errorf("%v, want %v", err, k)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// places returns where cartridges are: bar code by address.
func places(t *testing.T, c *changer.Changer) map[uint16]string {
	t.Helper()
	v, err := c.Inventory(ctx)
	must(t, err)
	out := map[uint16]string{}
	for _, e := range v.All() {
		if e.Full {
			out[e.Address] = e.Barcode
		}
	}
	return out
}

// roundTrip loads, and unloads to where the cartridge came from.
func roundTrip(t *testing.T, c *changer.Changer, drive, slot uint16, let func()) {
	t.Helper()
	must(t, c.Load(ctx, "HF0002L8", drive))
	if got := places(t, c); got[drive] != "HF0002L8" {
		t.Errorf("after loading: %v", got)
	}
	let()
	at, err := c.Unload(ctx, drive)
	must(t, err)
	if got := places(t, c); got[at] != "HF0002L8" || got[drive] != "" {
		t.Errorf("after unloading: %v", got)
	}
	if at != slot {
		t.Errorf("it went to %d, not back to %d", at, slot)
	}
}

// TestCartridgesGoWhereTheyAreToGo, on the emulator and on tgt.
func TestCartridgesGoWhereTheyAreToGo(t *testing.T) {
	lib, c := library(t, "HF0001L8", "HF0002L8")
	roundTrip(t, c, emu.AddrDrive+1, emu.AddrSlot+1, func() {
		wantKind(t, c.Move(ctx, emu.AddrDrive+1, emu.AddrSlot+1, ""), holdfast.Busy)
		d := lib.Connect("a", emu.Drive(1))
		for range 3 {
			_, _ = d.Exec(ctx, scsi.Command{CDB: scsi.LoadUnload(false)}) // the first bring attentions
		}
	})
	v, err := c.Inventory(ctx)
	must(t, err)
	if len(v.Drives) != 2 || !strings.HasSuffix(v.Drives[1].Device, "D1") {
		t.Errorf("drives: %+v", v.Drives)
	}
	wantKind(t, c.Move(ctx, emu.AddrSlot, emu.AddrSlot+1, ""), holdfast.Busy)
	wantKind(t, c.Move(ctx, emu.AddrSlot+5, emu.AddrSlot+6, ""), holdfast.NotExist)
	wantKind(t, c.Move(ctx, 9, emu.AddrSlot, ""), holdfast.NotExist)
	wantKind(t, c.Load(ctx, "HF0009L8", emu.AddrDrive), holdfast.NotExist)

	tgt := tgttest.Start(t, tgttest.Options{Drives: 2, Slots: 4, Media: []string{"HF0001L8", "HF0002L8"}})
	c = open(t, tgt.Dial().LUN(tgt.ChangerLUN()))
	if ok, err := c.Reserve(ctx, 1); ok || err != nil {
		t.Errorf("tgt's changer knows reservations: %v, %v", ok, err)
	}
	at, err := c.Inventory(ctx)
	must(t, err)
	must(t, c.Load(ctx, "HF0002L8", at.Drives[1].Address))
	_, err = c.Unload(ctx, at.Drives[1].Address)
	must(t, err)
	if got := places(t, c); len(got) != 2 || got[tgttest.AddrSlot] != "HF0001L8" {
		t.Errorf("tgt: %v", got)
	}
}

// TestADuplicateBarcodeIsNotChosen: neither of the two is moved by its bar code, and both can be by their place.
func TestADuplicateBarcodeIsNotChosen(t *testing.T) {
	lib, c := library(t, "HF0001L8", "HF0002L8", "HF0001L8")
	v, err := c.Inventory(ctx)
	must(t, err)
	if !reflect.DeepEqual(v.Twice, []string{"HF0001L8"}) {
		t.Errorf("twice: %v", v.Twice)
	}
	wantKind(t, c.Load(ctx, "HF0001L8", emu.AddrDrive), holdfast.Invalid)
	_, err = c.Export(ctx, "HF0001L8")
	wantKind(t, err, holdfast.Invalid)
	must(t, c.Move(ctx, emu.AddrSlot+2, emu.AddrSlot+5, "HF0001L8"))
	_ = lib.Remove(5)
	must(t, c.Load(ctx, "HF0001L8", emu.AddrDrive))
}

// TestASwappedCartridgeIsNotMoved: what a person changed since the inventory is seen before the move.
func TestASwappedCartridgeIsNotMoved(t *testing.T) {
	lib, c := library(t, "HF0001L8")
	places(t, c)
	old := lib.Remove(0)
	lib.Add(0, emu.Media{Barcode: "HF0077L8"})
	wantKind(t, c.Move(ctx, emu.AddrSlot, emu.AddrDrive, "HF0001L8"), holdfast.Invalid)
	lib.SetBarcode(old, "HF0001L8")
	lib.Insert(3, old)
	must(t, c.Load(ctx, "HF0001L8", emu.AddrDrive))
}

// TestCartridgesLeaveAndComeBackThroughTheDoor: export, a full door, import, a full library.
func TestCartridgesLeaveAndComeBackThroughTheDoor(t *testing.T) {
	lib, c := library(t, "A1", "A2", "A3", "A4", "A5", "A6", "A7", "A8")
	at, err := c.Export(ctx, "A3")
	must(t, err)
	if again, err := c.Export(ctx, "A3"); err != nil || again != at || at != emu.AddrExport {
		t.Errorf("exported to %d, then %d, %v", at, again, err)
	}
	_, err = c.Export(ctx, "A4")
	wantKind(t, err, holdfast.NoSpace)
	out := lib.Remove(8)
	lib.Add(2, emu.Media{Barcode: "B1"})
	lib.Insert(8, out)
	_, err = c.Import(ctx)
	wantKind(t, err, holdfast.NoSpace)
	_ = lib.Remove(2)
	got, err := c.Import(ctx)
	if err != nil || !reflect.DeepEqual(got, []string{"A3"}) || places(t, c)[emu.AddrSlot+2] != "A3" {
		t.Errorf("imported %v, %v", got, err)
	}
}

// TestALostAnswerToAMoveIsFoundOutByLooking: done or not done, the changer knows which.
func TestALostAnswerToAMoveIsFoundOutByLooking(t *testing.T) {
	lib, c := library(t, "HF0001L8")
	lib.Inject(emu.Fault{Unit: emu.Changer, Op: scsi.OpMoveMedium, Do: emu.LoseReply})
	must(t, c.Move(ctx, emu.AddrSlot, emu.AddrSlot+3, "HF0001L8"))
	lib.Inject(emu.Fault{Unit: emu.Changer, Op: scsi.OpMoveMedium, Do: emu.LoseCommand})
	wantKind(t, c.Move(ctx, emu.AddrSlot+3, emu.AddrSlot, "HF0001L8"), holdfast.Offline)
	lib.Inject(emu.Fault{Unit: emu.Changer, Op: scsi.OpMoveMedium, Sense: scsi.Sense{Key: scsi.HardwareError, Code: 0x1501}})
	wantKind(t, c.Move(ctx, emu.AddrSlot+3, emu.AddrSlot, "HF0001L8"), holdfast.Offline)
	must(t, c.Move(ctx, emu.AddrSlot+3, emu.AddrSlot, "HF0001L8"))
}

// TestOneHostHasTheRobot: another host is told so before it moves anything.
func TestOneHostHasTheRobot(t *testing.T) {
	lib, c := library(t, "HF0001L8")
	other := open(t, lib.Connect("b", emu.Changer))
	if ok, err := c.Reserve(ctx, 1); !ok || err != nil {
		t.Fatal(ok, err)
	}
	_, err := other.Reserve(ctx, 2)
	wantKind(t, err, holdfast.Busy)
	wantKind(t, other.Move(ctx, emu.AddrSlot, emu.AddrDrive, ""), holdfast.Busy)
	must(t, c.Release(ctx))
	must(t, other.Move(ctx, emu.AddrSlot, emu.AddrDrive, ""))
}

// TestCleaningCartridgesAreKnownAndDoTheirWork.
func TestCleaningCartridgesAreKnownAndDoTheirWork(t *testing.T) {
	lib, c := library(t, "HF0001L8")
	lib.Add(1, emu.Media{Barcode: "CLN001L1", Cleaning: 1})
	if c.Cleaning("HF0001L8") || !c.Cleaning("CLN001L1") {
		t.Error("cleaning cartridges are not told from others")
	}
	lib.RequestCleaning(0)
	for i, want := range []int{0, 1} { // cleaned, then used up
		must(t, c.Load(ctx, "CLN001L1", emu.AddrDrive))
		_, err := c.Unload(ctx, emu.AddrDrive)
		must(t, err)
		b, err := scsi.Do(ctx, lib.Connect("a", emu.Drive(0)), scsi.Command{CDB: scsi.LogSense(scsi.LogTapeAlertResponse, 0, 4096), In: make([]byte, 4096)})
		if err != nil { // the attention of a new connection
			b, err = scsi.Do(ctx, lib.Connect("a", emu.Drive(0)), scsi.Command{CDB: scsi.LogSense(scsi.LogTapeAlertResponse, 0, 4096), In: make([]byte, 4096)})
		}
		must(t, err)
		as, err := scsi.ParseAlerts(scsi.LogTapeAlertResponse, b)
		if err != nil || len(as) != want || want == 1 && as[0] != scsi.AlertCleanExpired {
			t.Errorf("time %d: %v, %v", i, as, err)
		}
	}
}
