package scsi

import (
	"fmt"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// A SenseKey is the class of what a device reports.
type SenseKey uint8

const (
	NoSense        SenseKey = 0x0
	Recovered      SenseKey = 0x1
	NotReady       SenseKey = 0x2
	MediumError    SenseKey = 0x3
	HardwareError  SenseKey = 0x4
	IllegalRequest SenseKey = 0x5
	UnitAttention  SenseKey = 0x6
	DataProtect    SenseKey = 0x7
	BlankCheck     SenseKey = 0x8
	AbortedCommand SenseKey = 0xb
	VolumeOverflow SenseKey = 0xd
	Miscompare     SenseKey = 0xe
)

var keyNames = [16]string{"no sense", "recovered error", "not ready", "medium error", "hardware error", "illegal request", "unit attention",
	"data protect", "blank check", "vendor specific", "copy aborted", "aborted command", "reserved", "volume overflow", "miscompare", "completed"}

// String returns the key's name.
func (k SenseKey) String() string { return keyNames[k&15] }

// A Code is an additional sense code and its qualifier: ASC<<8 | ASCQ.
type Code uint16

// Codes that something depends on.
const (
	CodeNone              Code = 0x0000
	CodeFilemark          Code = 0x0001
	CodeEndOfMedium       Code = 0x0002
	CodeBeginning         Code = 0x0004
	CodeEndOfData         Code = 0x0005
	CodeBecomingReady     Code = 0x0401
	CodeOffline           Code = 0x0412
	CodeWriteError        Code = 0x0c00
	CodeReadError         Code = 0x1100
	CodePositionError     Code = 0x1400
	CodeEndOfDataMissing  Code = 0x1403
	CodeParameterLength   Code = 0x1a00
	CodeInvalidOpcode     Code = 0x2000
	CodeInvalidElement    Code = 0x2101
	CodeInvalidField      Code = 0x2400
	CodeBadLUN            Code = 0x2500
	CodeInvalidParameter  Code = 0x2600
	CodeWriteProtected    Code = 0x2700
	CodeMediumChanged     Code = 0x2800
	CodeExportAccessed    Code = 0x2801
	CodePowerOn           Code = 0x2900
	CodeModeChanged       Code = 0x2a01
	CodeReservPreempted   Code = 0x2a03
	CodeReservReleased    Code = 0x2a04
	CodeRegistrPreempted  Code = 0x2a05
	CodeKeyChanged        Code = 0x2a11 // data encryption parameters changed by another nexus
	CodeIncompatible      Code = 0x3000
	CodeCleaning          Code = 0x3003
	CodeCleaningFailed    Code = 0x3007
	CodeWORM              Code = 0x300c
	CodeNoMedium          Code = 0x3a00
	CodeDestinationFull   Code = 0x3b0d
	CodeSourceEmpty       Code = 0x3b0e
	CodeHardware          Code = 0x4400
	CodeLoadFailed        Code = 0x5300
	CodeRemovalPrevented  Code = 0x5302
	CodeUnableToDecrypt   Code = 0x7401
	CodeNotEncrypted      Code = 0x7402
	CodeWrongKey          Code = 0x7403
	codeWORMOverwrite     Code = 0x300d
	codeFormatInProgress  Code = 0x0404
	codeOperation         Code = 0x0407
	codeSelfTest          Code = 0x0409
	codeCartridgeFault    Code = 0x5200
	codeMediumCorrupt     Code = 0x3100
	codeRoundedParameter  Code = 0x3700
	codeTargetChanged     Code = 0x3f00
	codeMicrocode         Code = 0x3f01
	codeInquiryChanged    Code = 0x3f03
	codeAccessDenied      Code = 0x2002
	codeIncompatibleWrite Code = 0x3005
)

var codeNames = map[Code]string{
	CodeFilemark: "filemark", CodeEndOfMedium: "end of medium", CodeBeginning: "beginning of medium", CodeEndOfData: "end of data",
	CodeBecomingReady: "becoming ready", CodeOffline: "offline", CodeWriteError: "write error", CodeReadError: "unrecovered read error",
	CodePositionError: "cannot position", CodeEndOfDataMissing: "end of data not found", CodeParameterLength: "parameter list length",
	CodeInvalidOpcode: "command not supported", CodeInvalidElement: "invalid element address", CodeInvalidField: "invalid field in command",
	CodeBadLUN: "no such logical unit", CodeInvalidParameter: "invalid parameter", CodeWriteProtected: "write protected", CodeMediumChanged: "medium may have changed",
	CodeExportAccessed: "import/export element accessed", CodePowerOn: "power on or reset", CodeModeChanged: "mode parameters changed",
	CodeReservPreempted: "reservations preempted", CodeReservReleased: "reservations released", CodeRegistrPreempted: "registrations preempted",
	CodeKeyChanged: "encryption parameters changed by somebody else", CodeIncompatible: "incompatible medium", CodeCleaning: "cleaning cartridge installed",
	CodeCleaningFailed: "cleaning failure", CodeWORM: "cannot write: write-once medium", codeWORMOverwrite: "cannot overwrite: write-once medium",
	CodeNoMedium: "no medium", CodeDestinationFull: "destination element full", CodeSourceEmpty: "source element empty", CodeHardware: "internal failure of the device",
	CodeLoadFailed: "load or eject failed", CodeRemovalPrevented: "medium removal prevented", CodeUnableToDecrypt: "cannot decrypt: no key",
	CodeNotEncrypted: "data is not encrypted", CodeWrongKey: "wrong encryption key", codeFormatInProgress: "format in progress", codeOperation: "operation in progress",
	codeSelfTest: "self-test in progress", codeCartridgeFault: "cartridge fault", codeMediumCorrupt: "medium format corrupted", codeRoundedParameter: "rounded parameter",
	codeTargetChanged: "operating conditions changed", codeMicrocode: "firmware changed", codeInquiryChanged: "inquiry data changed", codeAccessDenied: "access denied",
	codeIncompatibleWrite: "cannot write: incompatible format",
}

// String returns the code as xx/xx, with words where there are some.
func (c Code) String() string {
	s := fmt.Sprintf("%02x/%02x", uint8(c>>8), uint8(c))
	if n := codeNames[c]; n != "" {
		s += " " + n
	}
	return s
}

// ASC returns the code without its qualifier.
func (c Code) ASC() uint8 { return uint8(c >> 8) }

// Sense is decoded sense data.
type Sense struct {
	Key      SenseKey
	Code     Code
	Deferred bool // of an earlier, buffered command: everything since the last flush is in doubt
	Filemark bool
	EOM      bool // end (or beginning) of medium; after a write early warning
	ILI      bool // the block's length is not the one asked for
	// Info is the INFORMATION field: of a read with ILI the length asked for less the block's, of a space what is left to do.
	Info    int64
	HasInfo bool
	// Progress of a long operation, of 65536. Only if HasProgress.
	Progress    uint16
	HasProgress bool
}

const (
	fixedCurrent       = 0x70
	fixedDeferred      = 0x71
	descriptorCurrent  = 0x72
	descriptorDeferred = 0x73
)

// ParseSense decodes sense data in fixed or descriptor form. It reports false for what is neither; a cut-off one gives what there is.
func ParseSense(b []byte) (Sense, bool) {
	if len(b) < 4 {
		return Sense{}, false
	}
	switch b[0] & 0x7f {
	case fixedCurrent, fixedDeferred:
		return parseFixed(b)
	case descriptorCurrent, descriptorDeferred:
		return parseDescriptors(b)
	}
	return Sense{}, false
}

func parseFixed(b []byte) (Sense, bool) {
	s := Sense{Key: SenseKey(b[2] & 15), Deferred: b[0]&0x7f == fixedDeferred, Filemark: b[2]&0x80 != 0, EOM: b[2]&0x40 != 0, ILI: b[2]&0x20 != 0}
	if len(b) < 8 {
		return s, true
	}
	if b[0]&0x80 != 0 {
		s.HasInfo, s.Info = true, int64(int32(be.Uint32(b[3:]))) // negative: the block was longer than asked for
	}
	b = b[:min(len(b), 8+int(b[7]))]
	if len(b) >= 14 {
		s.Code = Code(be.Uint16(b[12:]))
	}
	if len(b) >= 18 {
		s.progress(b[15:18])
	}
	return s, true
}

// progress reads a sense key specific field, which means progress with these keys only.
func (s *Sense) progress(b []byte) {
	if b[0]&0x80 != 0 && (s.Key == NoSense || s.Key == NotReady) {
		s.HasProgress, s.Progress = true, be.Uint16(b[1:])
	}
}

func parseDescriptors(b []byte) (Sense, bool) {
	s := Sense{Key: SenseKey(b[1] & 15), Code: Code(be.Uint16(b[2:])), Deferred: b[0]&0x7f == descriptorDeferred}
	if len(b) < 8 {
		return s, true
	}
	rest := b[8:min(len(b), 8+int(b[7]))]
	for len(rest) >= 2 {
		n := 2 + int(rest[1])
		if n > len(rest) {
			break
		}
		d := rest[:n]
		rest = rest[n:]
		switch {
		case d[0] == 0x00 && n >= 12: // information
			if d[2]&0x80 != 0 {
				s.HasInfo, s.Info = true, int64(be.Uint64(d[4:]))
			}
		case d[0] == 0x02 && n >= 8: // sense key specific
			s.progress(d[4:7])
		case d[0] == 0x04 && n >= 4: // stream commands
			s.Filemark, s.EOM, s.ILI = d[3]&0x80 != 0, d[3]&0x40 != 0, d[3]&0x20 != 0
		}
	}
	return s, true
}

// Fixed encodes sense data in fixed form, 18 bytes: for emulators and tests.
func (s Sense) Fixed() []byte {
	b := make([]byte, 18)
	b[0], b[7] = fixedCurrent, 10
	if s.Deferred {
		b[0] = fixedDeferred
	}
	if s.HasInfo {
		b[0] |= 0x80
		be.PutUint32(b[3:], uint32(int32(s.Info)))
	}
	b[2] = byte(s.Key) | s.bits()
	be.PutUint16(b[12:], uint16(s.Code))
	if s.HasProgress {
		b[15] = 0x80
		be.PutUint16(b[16:], s.Progress)
	}
	return b
}

func (s *Sense) bits() (v byte) {
	if s.Filemark {
		v |= 0x80
	}
	if s.EOM {
		v |= 0x40
	}
	if s.ILI {
		v |= 0x20
	}
	return v
}

// Descriptors encodes sense data in descriptor form.
func (s Sense) Descriptors() []byte {
	b := []byte{descriptorCurrent, byte(s.Key), byte(s.Code >> 8), byte(s.Code), 0, 0, 0, 0}
	if s.Deferred {
		b[0] = descriptorDeferred
	}
	if s.HasInfo {
		b = append(b, 0x00, 10, 0x80, 0)
		b = be.AppendUint64(b, uint64(s.Info))
	}
	if s.HasProgress {
		b = append(b, 0x02, 6, 0, 0, 0x80, byte(s.Progress>>8), byte(s.Progress), 0)
	}
	if v := s.bits(); v != 0 {
		b = append(b, 0x04, 2, 0, v)
	}
	b[7] = byte(len(b) - 8)
	return b
}

// String returns key and code in words, with what else was set.
func (s Sense) String() string {
	var b strings.Builder
	if s.Deferred {
		b.WriteString("deferred ")
	}
	fmt.Fprintf(&b, "%v %v", s.Key, s.Code)
	for _, f := range []struct {
		on   bool
		text string
	}{{s.Filemark, "filemark"}, {s.EOM, "end of medium"}, {s.ILI, "other length"}} {
		if f.on {
			b.WriteString(", " + f.text)
		}
	}
	if s.HasInfo {
		fmt.Fprintf(&b, ", information %d", s.Info)
	}
	return b.String()
}

// EarlyWarning reports that a write was done and the end of the medium is near.
func (s *Sense) EarlyWarning() bool { return s.Key == NoSense && s.EOM && !s.Deferred }

// AtEndOfData reports that there is nothing more. Some drives say so without the code.
func (s *Sense) AtEndOfData() bool { return s.Key == BlankCheck }

// Kind returns what a caller can do about it.
func (s *Sense) Kind() holdfast.Kind {
	if s.Deferred {
		return holdfast.Corrupt // earlier writes were acknowledged and are not what they were
	}
	switch s.Key {
	case NotReady:
		return holdfast.Offline
	case MediumError, Miscompare:
		return holdfast.Corrupt
	case HardwareError:
		return holdfast.Offline
	case IllegalRequest:
		switch s.Code {
		case CodeInvalidOpcode, CodeInvalidField, CodeInvalidParameter, CodeParameterLength:
			return holdfast.Unsupported
		case CodeRemovalPrevented, CodeDestinationFull:
			return holdfast.Busy
		case CodeSourceEmpty, CodeInvalidElement, CodeBadLUN:
			return holdfast.NotExist
		}
		return holdfast.Invalid
	case UnitAttention, AbortedCommand:
		return holdfast.Transient
	case DataProtect:
		if s.Code.ASC() == 0x74 {
			return holdfast.Permission
		}
		return holdfast.Immutable
	case BlankCheck:
		return holdfast.NotExist
	case VolumeOverflow:
		return holdfast.NoSpace
	}
	return holdfast.Internal
}
