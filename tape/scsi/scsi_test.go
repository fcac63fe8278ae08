package scsi_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// TestSenseIsReadInBothForms: what a device reports means the same in fixed and in descriptor form, deferred or not.
func TestSenseIsReadInBothForms(t *testing.T) {
	for _, s := range []scsi.Sense{
		{Key: scsi.NoSense, Code: scsi.CodeFilemark, Filemark: true},
		{Key: scsi.NoSense, Code: scsi.CodeEndOfMedium, EOM: true},
		{Key: scsi.NoSense, ILI: true, HasInfo: true, Info: 1048476},
		{Key: scsi.NoSense, ILI: true, HasInfo: true, Info: -4096},
		{Key: scsi.MediumError, Code: scsi.CodeWriteError, Deferred: true},
		{Key: scsi.NotReady, Code: scsi.CodeBecomingReady, HasProgress: true, Progress: 0x8000},
		{Key: scsi.BlankCheck, Code: scsi.CodeEndOfData},
		{Key: scsi.VolumeOverflow, Code: scsi.CodeEndOfMedium, EOM: true},
	} {
		for form, b := range map[string][]byte{"fixed": s.Fixed(), "descriptor": s.Descriptors()} {
			got, ok := scsi.ParseSense(b)
			if !ok || got != s {
				t.Errorf("%s: %v became %v", form, s, got)
			}
		}
	}
}

// TestSenseOfOthersIsRead: bytes as targets have sent them. Method: captured answers of a virtual library, and a cut-off one.
func TestSenseOfOthersIsRead(t *testing.T) {
	for _, c := range []struct {
		name, raw string
		want      scsi.Sense
		kind      holdfast.Kind
	}{
		{"power on", "70000600 0000000a 00000000 29000000 0000", scsi.Sense{Key: scsi.UnitAttention, Code: scsi.CodePowerOn}, holdfast.Transient},
		{"empty drive", "70000200 0000000a 00000000 3a000000 0000", scsi.Sense{Key: scsi.NotReady, Code: scsi.CodeNoMedium}, holdfast.Offline},
		{"short block", "f0002000 0ffffc0a 00000000 00000000 0000", scsi.Sense{ILI: true, HasInfo: true, Info: 0xffffc}, holdfast.Internal},
		{"no such command", "70000500 0000000a 00000000 20000000 0000", scsi.Sense{Key: scsi.IllegalRequest, Code: scsi.CodeInvalidOpcode}, holdfast.Unsupported},
		{"cut off", "70000300", scsi.Sense{Key: scsi.MediumError}, holdfast.Corrupt},
		{"no key", "70000700 0000000a 00000000 74010000 0000", scsi.Sense{Key: scsi.DataProtect, Code: scsi.CodeUnableToDecrypt}, holdfast.Permission},
		{"write-once", "70000700 0000000a 00000000 300c0000 0000", scsi.Sense{Key: scsi.DataProtect, Code: scsi.CodeWORM}, holdfast.Immutable},
	} {
		raw, err := hex.DecodeString(strings.ReplaceAll(c.raw, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		got, ok := scsi.ParseSense(raw)
		if !ok || got != c.want || got.Kind() != c.kind {
			t.Errorf("%s: got %+v of kind %v, want %+v of kind %v", c.name, got, got.Kind(), c.want, c.kind)
		}
	}
	for _, b := range [][]byte{nil, {0x70}, {0x42, 0, 0, 0, 0, 0, 0, 0}} {
		if s, ok := scsi.ParseSense(b); ok {
			t.Errorf("%x was taken for %v", b, s)
		}
	}
}

// TestCommandsHaveTheStandardsBytes compares commands with what the standards' tables say, byte by byte.
func TestCommandsHaveTheStandardsBytes(t *testing.T) {
	for _, c := range []struct {
		name string
		cdb  []byte
		want string
	}{
		{"read", scsi.Read(1 << 20), "080010000000"},
		{"write", scsi.Write(512 << 10), "0a0008000000"},
		{"filemark", scsi.WriteFilemarks(1, false), "100000000100"},
		{"filemark, immediate", scsi.WriteFilemarks(2, true), "100100000200"},
		{"space back", scsi.Space6(scsi.SpaceFilemarks, -1), "1101ffffff00"},
		{"space end", scsi.Space16(scsi.SpaceEndOfData, 0), "91030000000000000000000000000000"},
		{"space back far", scsi.Space16(scsi.SpaceBlocks, -2), "91000000fffffffffffffffe00000000"},
		{"locate", scsi.Locate16(1, 0x123456789a), "92020001000000123456789a00000000"},
		{"locate, short", scsi.Locate10(1, 0x12345678), "2b020012345678000100"},
		{"position", scsi.ReadPosition(scsi.PositionLong), "34060000000000000000"},
		{"position, extended", scsi.ReadPosition(scsi.PositionExtended), "34080000000000002000"},
		{"move", scsi.MoveMedium(1, 1024, 1), "a50000010400000100000000"},
		{"elements", scsi.ReadElementStatus(scsi.ElementDrive, 1, 2, true, 65536), "b81400010002010100000000"},
		{"attributes", scsi.ReadAttribute(1, scsi.AttrCoherency, 4096), "8c000000000000010 80c000010000000"},
		{"write attributes", scsi.WriteAttribute(0, 79), "8d0100000000000000000000004f0000"},
		{"log", scsi.LogSense(scsi.LogTapeAlert, 0, 4096), "4d006e00000000100000"},
		{"key", scsi.SecurityProtocolOut(0x20, 0x10, 52), "b52000100000000000340000"},
		{"vpd", scsi.InquiryVPD(scsi.PageSerial, 255), "12018000ff00"},
		{"commands", scsi.ReportOpcodes(4096), "a30c00000000000010000000"},
		{"reserve", scsi.ReserveOut(scsi.ReserveReserve, scsi.ReserveExclusive), "5f010300000000001800"},
		{"overwrite", scsi.AllowOverwrite(0, 5), "82000100000000000000000500000000"},
	} {
		if got := hex.EncodeToString(c.cdb); got != strings.ReplaceAll(c.want, " ", "") {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestPagesAreReadBack: each page that an emulator encodes is read as what it was made from.
func TestPagesAreReadBack(t *testing.T) {
	es := []scsi.Element{
		{Type: scsi.ElementDrive, Address: 1, Full: true, Access: true, HasSource: true, Source: 1024, Barcode: "HF0001L8", Device: "HOLDFAST VTAPE SER001"},
		{Type: scsi.ElementDrive, Address: 2, Exception: scsi.CodeHardware},
	}
	if got, err := scsi.ParseElements(scsi.EncodeElements(scsi.ElementDrive, es, true)); err != nil || !reflect.DeepEqual(got, es) {
		t.Errorf("elements: %+v, %v", got, err)
	}
	as := []scsi.Attribute{{ID: scsi.AttrSerial, Format: scsi.FormatASCII, ReadOnly: true, Value: []byte("SER1  ")}, {ID: scsi.AttrRemaining, Value: []byte{0, 0, 0, 0, 0, 0, 1, 2}}}
	if got, err := scsi.ParseAttributes(scsi.EncodeAttributes(as)); err != nil || !reflect.DeepEqual(got, as) {
		t.Errorf("attributes: %+v, %v", got, err)
	}
	if v, ok := as[1].Uint(); !ok || v != 258 || as[0].Text() != "SER1" {
		t.Errorf("values: %d, %q", v, as[0].Text())
	}
	for _, p := range []scsi.Position{{Beginning: true}, {Partition: 1, Object: 77, Buffered: 3, End: true}} {
		for _, form := range []byte{scsi.PositionShort, scsi.PositionExtended} {
			if got, err := scsi.ParsePosition(form, p.Encode(form)); err != nil || got != p {
				t.Errorf("position form %d: %+v, %v", form, got, err)
			}
		}
	}
	long := scsi.Position{Partition: 1, Object: 1 << 40, Files: 9}
	if got, err := scsi.ParsePosition(scsi.PositionLong, long.Encode(scsi.PositionLong)); err != nil || got != long {
		t.Errorf("long position: %+v, %v", got, err)
	}
	for page, b := range map[byte][]byte{
		scsi.LogTapeAlert:         scsi.EncodeLog(scsi.LogTapeAlert, []scsi.Param{{Code: 19, Value: []byte{0}}, {Code: 20, Value: []byte{1}}}),
		scsi.LogTapeAlertResponse: scsi.EncodeLog(scsi.LogTapeAlertResponse, []scsi.Param{{Code: 0, Value: []byte{0, 0, 0x10, 0, 0, 0, 0, 0}}}),
	} {
		if got, err := scsi.ParseAlerts(page, b); err != nil || !reflect.DeepEqual(got, []scsi.Alert{scsi.AlertCleanNow}) {
			t.Errorf("alerts of page %02x: %v, %v", page, got, err)
		}
	}
	al := []scsi.Algorithm{{Index: 1, Code: scsi.AlgorithmAES256GCM, Encrypt: true, Decrypt: true, KeyLen: 32}}
	if got, err := scsi.ParseAlgorithms(scsi.EncodeAlgorithms(al)); err != nil || !reflect.DeepEqual(got, al) {
		t.Errorf("algorithms: %+v, %v", got, err)
	}
	e := scsi.Encryption{On: true, Mixed: true, Algorithm: 1, Key: bytes.Repeat([]byte{7}, 32), Descriptor: []byte("key-1")}
	if got, err := scsi.ParseSetEncryption(scsi.EncodeSetEncryption(e)); err != nil || !reflect.DeepEqual(got, e) {
		t.Errorf("set encryption: %+v, %v", got, err)
	}
	st := scsi.KeyStatus{Encrypting: true, Decrypting: true, Algorithm: 1, Descriptor: []byte("key-1")}
	if got, err := scsi.ParseKeyStatus(scsi.EncodeKeyStatus(st)); err != nil || !reflect.DeepEqual(got, st) {
		t.Errorf("key status: %+v, %v", got, err)
	}
}

// TestInquiryIsRead: identity, serial and names, with blanks and control characters taken off.
func TestInquiryIsRead(t *testing.T) {
	std := make([]byte, 36)
	std[0], std[1] = 1, 0x80
	copy(std[8:], "IBM     ULTRIUM-TD8     HB81")
	id, err := scsi.ParseInquiry(std)
	if err != nil || id != (scsi.Identity{Type: scsi.TypeTape, Removable: true, Vendor: "IBM", Product: "ULTRIUM-TD8", Revision: "HB81"}) {
		t.Errorf("%+v, %v", id, err)
	}
	if s, err := scsi.ParseSerial([]byte{1, 0x80, 0, 6, 'A', 'B', 'C', 0, ' ', 1}); err != nil || s != "ABC" {
		t.Errorf("serial %q, %v", s, err)
	}
	names, err := scsi.ParseIdentification([]byte{1, 0x83, 0, 18, 2, 1, 0, 2, 'V', '1', 1, 3, 0, 8, 0x50, 1, 2, 3, 4, 5, 6, 7})
	if err != nil || scsi.BestName(names) != "5001020304050607" {
		t.Errorf("names %+v, %v", names, err)
	}
	luns, err := scsi.ParseLUNs([]byte{0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0})
	if n, ok := scsi.FlatLUN(luns[1]); err != nil || len(luns) != 2 || !ok || n != 2 {
		t.Errorf("luns %x, %v", luns, err)
	}
}

// TestTimeoutsFollowTheCommand: a first load may take two hours, a question may not.
func TestTimeoutsFollowTheCommand(t *testing.T) {
	for _, c := range []struct {
		cdb  []byte
		want time.Duration
	}{
		{scsi.TestUnitReady(), time.Minute}, {scsi.LoadUnload(true), 132 * time.Minute}, {scsi.ReadAttribute(0, 0, 1), 3 * time.Minute},
		{scsi.Locate16(0, 1), 20 * time.Minute}, {nil, time.Minute}, {[]byte{0xfe}, time.Minute},
	} {
		if got := scsi.Timeout(c.cdb); got != c.want {
			t.Errorf("%s: %v, want %v", scsi.Name(c.cdb), got, c.want)
		}
	}
	if c := (scsi.Command{CDB: scsi.TestUnitReady(), Timeout: time.Second}); c.Limit() != time.Second {
		t.Errorf("the caller's timeout is not used: %v", c.Limit())
	}
}

type answer scsi.Result

func (a answer) Exec(context.Context, scsi.Command) (scsi.Result, error) { return scsi.Result(a), nil }
func (a answer) Close() error                                            { return nil }

// TestErrorsHaveAKind: what a device says is classified once, here, and stays readable through wrapping.
func TestErrorsHaveAKind(t *testing.T) {
	for _, c := range []struct {
		r    scsi.Result
		kind holdfast.Kind
		text string
	}{
		{scsi.Result{Status: scsi.ReservationConflict}, holdfast.Busy, "WRITE(6): reservation conflict"},
		{scsi.Result{Status: scsi.CheckCondition, Sense: scsi.Sense{Key: scsi.VolumeOverflow, Code: scsi.CodeEndOfMedium, EOM: true}.Fixed()}, holdfast.NoSpace,
			"WRITE(6): volume overflow 00/02 end of medium, end of medium"},
		{scsi.Result{Status: scsi.CheckCondition}, holdfast.Internal, "WRITE(6): no sense 00/00"},
		{scsi.Result{Status: 0x77}, holdfast.Internal, "WRITE(6): status 77h"},
	} {
		_, err := scsi.Do(context.Background(), answer(c.r), scsi.Command{CDB: scsi.Write(1)})
		var e *scsi.Error
		if holdfast.KindOf(err) != c.kind || err.Error() != c.text || !errors.As(err, &e) {
			t.Errorf("%v of kind %v, want %q of kind %v", err, holdfast.KindOf(err), c.text, c.kind)
		}
	}
	b, err := scsi.Do(context.Background(), answer{In: 99}, scsi.Command{CDB: scsi.Read(4), In: make([]byte, 4)})
	if err != nil || len(b) != 4 {
		t.Errorf("a transport's count beyond the buffer: %d bytes, %v", len(b), err)
	}
}

// FuzzAnswers feeds all readers of device answers: none may panic or allocate without a bound, and sense that was read keeps its meaning.
func FuzzAnswers(f *testing.F) {
	f.Add(scsi.Sense{Key: scsi.MediumError, Code: scsi.CodeReadError, HasInfo: true, Info: -5}.Descriptors())
	f.Add(scsi.EncodeElements(scsi.ElementSlot, []scsi.Element{{Address: 5, Full: true, Barcode: "A"}}, false))
	f.Add(scsi.EncodeAttributes([]scsi.Attribute{{ID: 9, Value: []byte{1}}}))
	f.Add(scsi.EncodeLog(scsi.LogTapeAlert, []scsi.Param{{Code: 1, Value: []byte{1}}}))
	f.Add(scsi.EncodeSetEncryption(scsi.Encryption{On: true, Key: make([]byte, 32), Descriptor: []byte("x")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := scsi.ParseSense(b); ok {
			if again, ok := scsi.ParseSense(s.Descriptors()); !ok || again != s {
				t.Errorf("%+v became %+v", s, again)
			}
			_ = s.String()
		}
		if es, err := scsi.ParseElements(b); err == nil && len(es) > len(b) {
			t.Errorf("%d elements from %d bytes", len(es), len(b))
		}
		_, _ = scsi.ParseInquiry(b)
		_, _ = scsi.ParseSerial(b)
		_, _ = scsi.ParsePages(b)
		_, _ = scsi.ParseIdentification(b)
		_, _ = scsi.ParseLUNs(b)
		_, _ = scsi.ParseOpcodes(b)
		_, _ = scsi.ParseLimits(b)
		for _, form := range []byte{scsi.PositionShort, scsi.PositionLong, scsi.PositionExtended, 3} {
			_, _ = scsi.ParsePosition(form, b)
		}
		if m, err := scsi.ParseMode10(b); err == nil {
			_, _ = scsi.ParseLayout(m.Page(scsi.ModeElements, 0))
			_ = scsi.SetCompression(m.Page(scsi.ModeCompression, 0), true)
		}
		_, _ = scsi.ParseMode6(b)
		_, _ = scsi.ParseAlerts(scsi.LogTapeAlert, b)
		_, _ = scsi.ParseAlerts(scsi.LogTapeAlertResponse, b)
		_, _ = scsi.ParseAttributes(b)
		_, _ = scsi.ParseAlgorithms(b)
		_, _ = scsi.ParseSetEncryption(b)
		_, _ = scsi.ParseKeyStatus(b)
		_, _, _ = scsi.ParseKeys(b)
		_, _, _, _ = scsi.ParseReservation(b)
	})
}
