package emu_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/conform"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

var ctx = context.Background()

// TestTranscripts: the emulator answers every command transcript as the standards ask for.
func TestTranscripts(t *testing.T) {
	lib := emu.New(emu.Options{Drives: 2, Slots: 4, Exports: 1})
	lib.Add(0, emu.Media{Barcode: "HF0001L8"})
	lib.Add(1, emu.Media{Barcode: "HF0002L8"})
	conform.Run(ctx, t, conform.Rig{Tape: lib.Connect("a", emu.Drive(0)), Changer: lib.Connect("a", emu.Changer),
		Drive: emu.AddrDrive, Slot: emu.AddrSlot, Other: emu.AddrSlot + 1, Hole: 9}, nil)
}

// bed is a library with one loaded drive.
type bed struct {
	t    *testing.T
	lib  *emu.Library
	cart *emu.Cartridge
	tape scsi.Transport
}

func newBed(t *testing.T, o emu.Options, m emu.Media) *bed {
	o.Drives, o.Slots = 1, 2
	m.Barcode = "HF0001L8"
	b := &bed{t: t, lib: emu.New(o)}
	b.cart = b.lib.Add(0, m)
	robot := b.lib.Connect("a", emu.Changer)
	b.tape = b.lib.Connect("a", emu.Drive(0))
	run := func(u scsi.Transport, cdb []byte) {
		for range 4 {
			if r, err := u.Exec(ctx, scsi.Command{CDB: cdb}); err == nil && r.Status == scsi.Good {
				return
			}
		}
		t.Fatalf("%s fails", scsi.Name(cdb))
	}
	run(robot, scsi.MoveMedium(0, emu.AddrSlot, emu.AddrDrive))
	run(b.tape, scsi.TestUnitReady())
	return b
}

// do executes a command and compares its sense.
func (b *bed) do(c scsi.Command, want string) []byte {
	b.t.Helper()
	p, err := scsi.Do(ctx, b.tape, c)
	if got := fmt.Sprint(err); got != want && !(err == nil && want == "") {
		b.t.Errorf("%s: %v, want %q", scsi.Name(c.CDB), err, want)
	}
	return p
}

func (b *bed) write(p []byte, want string) {
	b.t.Helper()
	b.do(scsi.Command{CDB: scsi.Write(len(p)), Out: p}, want)
}

// TestPowerCutKeepsWhatWasFlushedAndNothingElseForSure. Method: many seeds; flushed blocks must always be there and be what they
// were, the others must have been seen to come, to go, and to leave a torn end.
func TestPowerCutKeepsWhatWasFlushedAndNothingElseForSure(t *testing.T) {
	left, torn := map[int]bool{}, map[bool]bool{}
	for seed := range uint64(60) {
		b := newBed(t, emu.Options{Seed: seed}, emu.Media{})
		for i := range 3 {
			b.write([]byte{byte(i), 1}, "")
		}
		b.do(scsi.Command{CDB: scsi.WriteFilemarks(1, false)}, "")
		for i := range 3 {
			b.write([]byte{byte(10 + i), 1}, "")
		}
		b.lib.PowerCut()
		b.do(scsi.Command{CDB: scsi.TestUnitReady()}, "TEST UNIT READY: unit attention 29/00 power on or reset")
		for i := range 3 {
			if p := b.do(scsi.Command{CDB: scsi.Read(2), In: make([]byte, 2)}, ""); !bytes.Equal(p, []byte{byte(i), 1}) {
				t.Fatalf("seed %d: block %d is %v", seed, i, p)
			}
		}
		left[b.cart.Objects(0)] = true
		r, err := b.tape.Exec(ctx, scsi.Command{CDB: scsi.Space6(scsi.SpaceEndOfData, 0)})
		if err != nil {
			t.Fatal(err)
		}
		torn[r.Status != scsi.Good] = true
		b.write([]byte{99}, "") // where the good ends, writing goes on and mends it
		b.do(scsi.Command{CDB: scsi.Space6(scsi.SpaceEndOfData, 0)}, "")
	}
	if len(left) != 4 || len(torn) != 2 {
		t.Errorf("60 power cuts left %v objects, torn ends %v", left, torn)
	}
}

// TestOverwritingIsNotDoneBeforeItIsFlushed: after a power cut the old content may still be there, or be gone.
func TestOverwritingIsNotDoneBeforeItIsFlushed(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(40) {
		b := newBed(t, emu.Options{Seed: seed}, emu.Media{})
		b.write([]byte("old"), "")
		b.write([]byte("old2"), "")
		b.do(scsi.Command{CDB: scsi.Rewind()}, "")
		b.write([]byte("new"), "")
		b.lib.PowerCut()
		if b.cart.Objects(0) == 0 {
			seen["nothing"] = true
			continue
		}
		p, _ := b.cart.Block(0, 0)
		seen[fmt.Sprintf("%s of %d", p, b.cart.Objects(0))] = true
	}
	if !seen["old of 2"] || !seen["new of 1"] || !seen["nothing"] {
		t.Errorf("seen: %v", seen)
	}
}

// TestEndOfMediumWarnsBeforeItRefuses: early warning means written, overflow means not written.
func TestEndOfMediumWarnsBeforeItRefuses(t *testing.T) {
	b := newBed(t, emu.Options{}, emu.Media{Capacity: 10000, EarlyWarning: 3000})
	p := make([]byte, 1000)
	for i := range 10 {
		want := ""
		if i >= 7 {
			want = "WRITE(6): no sense 00/02 end of medium, end of medium"
		}
		b.write(p, want)
	}
	b.write(p, "WRITE(6): volume overflow 00/02 end of medium, end of medium, information 1000")
	b.do(scsi.Command{CDB: scsi.WriteFilemarks(1, false)}, "WRITE FILEMARKS(6): volume overflow 00/02 end of medium, end of medium, information 1")
	if n := b.cart.Objects(0); n != 10 {
		t.Errorf("%d blocks", n)
	}
}

// TestWriteOnceMediaAreAppendedToOnly, and the write protection tab forbids that too.
func TestWriteOnceMediaAreAppendedToOnly(t *testing.T) {
	b := newBed(t, emu.Options{}, emu.Media{WORM: true})
	b.write([]byte("one"), "")
	b.do(scsi.Command{CDB: scsi.Rewind()}, "")
	b.write([]byte("two"), "WRITE(6): data protect 30/0c cannot write: write-once medium")
	b.do(scsi.Command{CDB: scsi.FormatMedium(0)}, "FORMAT MEDIUM: data protect 27/00 write protected")
	b.do(scsi.Command{CDB: scsi.Space6(scsi.SpaceEndOfData, 0)}, "")
	b.write([]byte("two"), "")
	b = newBed(t, emu.Options{}, emu.Media{Protected: true})
	b.write([]byte("one"), "WRITE(6): data protect 27/00 write protected")
}

// TestPartitionsHaveContentAndMemoryOfTheirOwn, and the change reference grows with what is written.
func TestPartitionsHaveContentAndMemoryOfTheirOwn(t *testing.T) {
	b := newBed(t, emu.Options{}, emu.Media{Capacity: 40 << 20})
	p := scsi.SetPartitions(1, 9)
	b.do(scsi.Command{CDB: scsi.ModeSelect6(len(p)), Out: p}, "")
	b.do(scsi.Command{CDB: scsi.FormatMedium(1)}, "")
	ref := func() uint64 {
		as, err := scsi.ParseAttributes(b.do(scsi.Command{CDB: scsi.ReadAttribute(1, scsi.AttrChangeRef, 64), In: make([]byte, 64)}, ""))
		if err != nil || len(as) == 0 {
			t.Fatal(as, err)
		}
		v, _ := as[0].Uint()
		return v
	}
	before := ref()
	b.do(scsi.Command{CDB: scsi.Locate16(1, 0)}, "")
	b.write([]byte("data"), "")
	b.do(scsi.Command{CDB: scsi.WriteFilemarks(1, false)}, "")
	if ref() <= before {
		t.Errorf("the change reference stays at %d", before)
	}
	b.do(scsi.Command{CDB: scsi.Locate16(0, 0)}, "")
	b.write([]byte("index"), "")
	if b.cart.Objects(0) != 1 || b.cart.Objects(1) != 2 {
		t.Errorf("objects: %d and %d", b.cart.Objects(0), b.cart.Objects(1))
	}
}

// TestEncryptedBlocksAreNotPlainOnTheMedium.
func TestEncryptedBlocksAreNotPlainOnTheMedium(t *testing.T) {
	b := newBed(t, emu.Options{}, emu.Media{})
	k := scsi.EncodeSetEncryption(scsi.Encryption{On: true, Algorithm: 1, Key: make([]byte, 32), Descriptor: []byte("id")})
	b.do(scsi.Command{CDB: scsi.SecurityProtocolOut(scsi.ProtocolTapeEncryption, scsi.PageEncryptionCaps, len(k)), Out: k}, "")
	secret := bytes.Repeat([]byte("secret"), 100)
	b.write(secret, "")
	if p, _ := b.cart.Block(0, 0); bytes.Contains(p, []byte("secret")) {
		t.Error("the block is there in the clear")
	}
}

// TestReservationsKeepOthersOut: a second initiator is refused until it preempts, and then the first one is.
func TestReservationsKeepOthersOut(t *testing.T) {
	b := newBed(t, emu.Options{}, emu.Media{})
	other := b.lib.Connect("b", emu.Drive(0))
	out := func(u scsi.Transport, action, kind byte, key, arg uint64) error {
		_, err := scsi.Do(ctx, u, scsi.Command{CDB: scsi.ReserveOut(action, kind), Out: scsi.ReserveParams(key, arg)})
		return err
	}
	wrote := func(u scsi.Transport) holdfast.Kind {
		_, err := scsi.Do(ctx, u, scsi.Command{CDB: scsi.Write(1), Out: []byte{1}})
		if err == nil {
			return 0
		}
		return holdfast.KindOf(err)
	}
	_ = wrote(other) // takes its unit attention
	for _, err := range []error{out(b.tape, scsi.ReserveRegister, 0, 0, 1), out(b.tape, scsi.ReserveReserve, scsi.ReserveExclusive, 1, 0)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if k := wrote(other); k != holdfast.Busy {
		t.Errorf("a stranger's write: %v", k)
	}
	for _, err := range []error{out(other, scsi.ReserveRegister, 0, 0, 2), out(other, scsi.ReservePreempt, scsi.ReserveExclusive, 2, 1)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if k := wrote(other); k != 0 {
		t.Errorf("the new owner's write: %v", k)
	}
	b.write([]byte{1}, "WRITE(6): unit attention 2a/05 registrations preempted")
	b.write([]byte{1}, "WRITE(6): reservation conflict")
}

// TestFaultsComeAsScripted: by count, with a lost answer the command is done, and a deferred error takes what was buffered.
func TestFaultsComeAsScripted(t *testing.T) {
	b := newBed(t, emu.Options{}, emu.Media{})
	b.lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: scsi.OpWrite6, Skip: 1, Sense: scsi.Sense{Key: scsi.MediumError, Code: scsi.CodeWriteError}})
	b.write([]byte("a"), "")
	b.write([]byte("b"), "WRITE(6): medium error 0c/00 write error")
	b.lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: scsi.OpWrite6, Do: emu.LoseReply})
	b.write([]byte("b"), "talk to the library: the connection failed")
	b.do(scsi.Command{CDB: scsi.WriteFilemarks(1, false)}, "")
	b.lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: scsi.OpWrite6, Do: emu.Defer, Sense: scsi.Sense{Key: scsi.MediumError, Code: scsi.CodeWriteError}})
	b.write([]byte("c"), "")
	b.write([]byte("d"), "WRITE(6): deferred medium error 0c/00 write error")
	if n := b.cart.Objects(0); n != 3 {
		t.Errorf("%d objects, want two blocks and a filemark", n)
	}
}
