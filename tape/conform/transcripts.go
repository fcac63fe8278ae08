package conform

import (
	"bytes"

	"github.com/holdfast-backup/holdfast/tape/scsi"
)

func step(want string, cdb []byte) Step { return Step{CDB: cdb, Want: want} }

func write(kind byte, n int) Step {
	return Step{CDB: scsi.Write(n), Out: bytes.Repeat([]byte{kind}, n), Want: "good"}
}

func read(n int, want string) Step { return Step{CDB: scsi.Read(n), In: n, Want: want} }

// readSILI reads with the bit that says that short blocks are no reason for a check condition.
func readSILI(n int, want string) Step {
	s := read(n, want)
	s.CDB[1] = 2
	return s
}

func position(form byte, want string) Step {
	return Step{CDB: scsi.ReadPosition(form), In: scsi.PositionLen, Want: want}
}

func robot(want string, cdb []byte) Step { return Step{CDB: cdb, Want: want, To: true} }

func marks(n int) Step { return step("good", scsi.WriteFilemarks(n, false)) }

func rewind() Step { return step("good", scsi.Rewind()) }

// Transcripts returns the list. The first and the last are the changer's: they bring the cartridge into the drive and back.
func Transcripts(r Rig) []Transcript {
	all := []Transcript{{"load", []Step{
		step("not ready 3a/00", scsi.TestUnitReady()),
		step("not ready 3a/00", scsi.Rewind()),
		robot("illegal request 3b/0e", scsi.MoveMedium(0, r.Drive, r.Slot)),
		robot("illegal request 21/01", scsi.MoveMedium(0, r.Hole, r.Drive)),
		robot("illegal request 3b/0d", scsi.MoveMedium(0, r.Slot, r.Other)),
		robot("good", scsi.MoveMedium(0, r.Slot, r.Drive)),
		step("unit attention 28/00", scsi.TestUnitReady()),
		step("good", scsi.TestUnitReady()),
	}}}
	all = append(all, stream()...)
	all = append(all, motion()...)
	all = append(all, extras()...)
	return append(all, Transcript{"unload", []Step{
		rewind(),
		step("good", scsi.PreventRemoval(true)),
		step("illegal request 53/02", scsi.LoadUnload(false)),
		step("good", scsi.PreventRemoval(false)),
		robot("illegal request 53/02", scsi.MoveMedium(0, r.Drive, r.Slot)),
		step("good", scsi.LoadUnload(false)),
		step("not ready 04/02", scsi.TestUnitReady()),
		robot("good", scsi.MoveMedium(0, r.Drive, r.Slot)),
		step("not ready 3a/00", scsi.TestUnitReady()),
	}})
}

// stream is blocks and filemarks one after another.
func stream() []Transcript {
	return []Transcript{
		{"blocks", []Step{
			rewind(), write('A', 100), write('B', 65536), marks(1), write('C', 10), marks(0), rewind(),
			read(100, "good 100A"), read(65536, "good 65536B"), read(100, "no sense 00/01 FM 100"), read(10, "good 10C"), read(10, "blank check 00/05 10"),
			read(10, "blank check 00/05 10"),
		}},
		{"lengths", []Step{
			rewind(), write('A', 100), write('B', 100), write('C', 100), marks(1), rewind(),
			read(1000, "no sense 00/00 ILI 900 100A"), readSILI(1000, "good 100B"), read(60, "no sense 00/00 ILI -40 60C"),
			read(1000, "no sense 00/01 FM 1000"),
		}},
		{"zero length", []Step{rewind(), write('A', 5), marks(1), rewind(), read(0, "good"), read(5, "good 5A")}},
		{"fixed blocks", []Step{rewind(), {CDB: []byte{scsi.OpRead6, 1, 0, 0, 1, 0}, In: 512, Want: "illegal request 24/00"}}},
		{"overwriting ends", []Step{
			rewind(), write('A', 10), write('B', 10), write('C', 10), marks(1), rewind(), read(10, "good 10A"), write('D', 20), marks(0), rewind(),
			read(10, "good 10A"), read(20, "good 20D"), read(10, "blank check 00/05 10"),
		}},
	}
}

// motion is positions.
func motion() []Transcript {
	lay := []Step{rewind(), write('A', 10), write('B', 10), marks(1), write('C', 10), marks(1), write('D', 10), marks(0), rewind()}
	with := func(more ...Step) []Step { return append(append([]Step(nil), lay...), more...) }
	return []Transcript{
		{"space blocks", with(
			step("good", scsi.Space6(scsi.SpaceBlocks, 1)), read(10, "good 10B"),
			rewind(), step("no sense 00/01 FM 3", scsi.Space6(scsi.SpaceBlocks, 5)), read(10, "good 10C"),
			step("good", scsi.Space6(scsi.SpaceBlocks, -1)), read(10, "good 10C"),
		)},
		{"space filemarks", with(
			step("good", scsi.Space6(scsi.SpaceFilemarks, 2)), read(10, "good 10D"),
			step("good", scsi.Space6(scsi.SpaceFilemarks, -1)), read(10, "no sense 00/01 FM 10"), read(10, "good 10D"),
		)},
		{"space over the ends", with(
			step("no sense 00/04 EOM 1", scsi.Space6(scsi.SpaceBlocks, -1)),
			step("good", scsi.Space6(scsi.SpaceEndOfData, 0)), read(10, "blank check 00/05 10"),
			step("blank check 00/05 1", scsi.Space6(scsi.SpaceFilemarks, 1)),
		)},
		{"positions", with(
			position(scsi.PositionShort, "good 0:0"), step("good", scsi.Space6(scsi.SpaceFilemarks, 1)),
			position(scsi.PositionShort, "good 0:3"), position(scsi.PositionLong, "good 0:3"), position(scsi.PositionExtended, "good 0:3"),
		)},
		{"locate", with(
			step("good", scsi.Locate16(0, 3)), read(10, "good 10C"),
			step("good", scsi.Locate10(0, 1)), read(10, "good 10B"),
			step("blank check 00/05", scsi.Locate16(0, 100)),
			step("good", scsi.Locate16(0, 0)), read(10, "good 10A"),
			step("illegal request 24/00", scsi.Locate16(9, 0)),
			step("good", scsi.Space16(scsi.SpaceEndOfData, 0)),
			step("good", scsi.Space16(scsi.SpaceBlocks, -1)), read(10, "good 10D"),
		)},
	}
}

// extras is what drives have beside blocks.
func extras() []Transcript {
	in := func(want string, cdb []byte, n int) Step { return Step{CDB: cdb, In: n, Want: want} }
	key := func(b byte) Step {
		p := scsi.EncodeSetEncryption(scsi.Encryption{On: true, Algorithm: 1, Key: bytes.Repeat([]byte{b}, scsi.KeyLen), Descriptor: []byte("k")})
		return Step{CDB: scsi.SecurityProtocolOut(scsi.ProtocolTapeEncryption, scsi.PageEncryptionCaps, len(p)), Out: p, Want: "good"}
	}
	off := scsi.EncodeSetEncryption(scsi.Encryption{})
	noKey := Step{CDB: scsi.SecurityProtocolOut(scsi.ProtocolTapeEncryption, scsi.PageEncryptionCaps, len(off)), Out: off, Want: "good"}
	attr := scsi.EncodeAttributes([]scsi.Attribute{{ID: scsi.AttrBarcode, Format: scsi.FormatASCII, Value: []byte("HF0001L8")}})
	reserve := func(action, kind byte, k, other uint64, want string) Step {
		return Step{CDB: scsi.ReserveOut(action, kind), Out: scsi.ReserveParams(k, other), Want: want}
	}
	return []Transcript{
		{"identity", []Step{
			in("good", scsi.Inquiry(scsi.InquiryLen), scsi.InquiryLen), in("good", scsi.InquiryVPD(scsi.PageSerial, 255), 255),
			in("good", scsi.ReadBlockLimits(), scsi.LimitsLen), in("good", scsi.ModeSense6(scsi.ModeCompression, 0, scsi.ModeLen), scsi.ModeLen),
			in("good", scsi.ReportOpcodes(4096), 4096), step("illegal request 20/00", []byte{0xd1, 0, 0, 0, 0, 0}),
		}},
		{"medium memory", []Step{
			in("good", scsi.ReadAttribute(0, 0, 4096), 4096),
			{CDB: scsi.WriteAttribute(0, len(attr)), Out: attr, Want: "good"},
		}},
		{"alerts", []Step{in("good", scsi.LogSense(scsi.LogTapeAlert, 0, 4096), 4096)}},
		{"encryption", []Step{
			rewind(), key(1), write('S', 100), marks(1), rewind(), read(100, "good 100S"), rewind(), noKey, read(100, "data protect 74/01"),
			key(2), read(100, "data protect 74/03"), key(1), read(100, "good 100S"), noKey,
		}},
		{"reservations", []Step{
			reserve(scsi.ReserveReserve, scsi.ReserveExclusive, 7, 0, "reservation conflict"),
			reserve(scsi.ReserveRegister, 0, 0, 7, "good"), reserve(scsi.ReserveReserve, scsi.ReserveExclusive, 7, 0, "good"),
			in("good", scsi.ReserveIn(scsi.ReserveReadKeys, scsi.ReserveLen), scsi.ReserveLen), reserve(scsi.ReserveClear, 0, 7, 0, "good"),
		}},
	}
}
