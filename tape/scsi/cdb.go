package scsi

import "fmt"

// Operation codes. Some mean one thing to a tape drive and another to a changer.
const (
	OpTestUnitReady              = 0x00
	OpRewind                     = 0x01
	OpRequestSense               = 0x03
	OpFormatMedium               = 0x04
	OpReadBlockLimits            = 0x05
	OpInitElementStatus          = 0x07 // changer
	OpRead6                      = 0x08
	OpWrite6                     = 0x0a
	OpWriteFilemarks6            = 0x10
	OpSpace6                     = 0x11
	OpInquiry                    = 0x12
	OpModeSelect6                = 0x15
	OpErase6                     = 0x19
	OpModeSense6                 = 0x1a
	OpLoadUnload                 = 0x1b
	OpSendDiagnostic             = 0x1d
	OpPreventAllow               = 0x1e
	OpLocate10                   = 0x2b // tape; the changer's POSITION TO ELEMENT
	OpReadPosition               = 0x34
	OpInitElementRange           = 0x37 // changer
	OpReportDensity              = 0x44
	OpLogSense                   = 0x4d
	OpModeSelect10               = 0x55
	OpModeSense10                = 0x5a
	OpPersistentReserveIn        = 0x5e
	OpPersistentReserveOut       = 0x5f
	OpAllowOverwrite             = 0x82
	OpReadAttribute              = 0x8c
	OpWriteAttribute             = 0x8d
	OpSpace16                    = 0x91
	OpLocate16                   = 0x92
	OpReportLUNs                 = 0xa0
	OpSecurityProtocolIn         = 0xa2
	OpMaintenanceIn              = 0xa3
	OpMoveMedium                 = 0xa5
	OpExchangeMedium             = 0xa6 // changer
	OpSecurityProtocolOut        = 0xb5 // tape; the changer's REQUEST VOLUME ELEMENT ADDRESS
	OpReadElementStatus          = 0xb8 // changer
	ServiceReportOpcodes         = 0x0c // of MaintenanceIn
	maxTransfer24                = 1<<24 - 1
	maxFilemarks24         int64 = 1<<24 - 1
)

var opNames = map[byte]string{
	OpTestUnitReady: "TEST UNIT READY", OpRewind: "REWIND", OpRequestSense: "REQUEST SENSE", OpFormatMedium: "FORMAT MEDIUM",
	OpReadBlockLimits: "READ BLOCK LIMITS", OpInitElementStatus: "INITIALIZE ELEMENT STATUS", OpRead6: "READ(6)", OpWrite6: "WRITE(6)",
	OpWriteFilemarks6: "WRITE FILEMARKS(6)", OpSpace6: "SPACE(6)", OpInquiry: "INQUIRY", OpModeSelect6: "MODE SELECT(6)", OpErase6: "ERASE(6)",
	OpModeSense6: "MODE SENSE(6)", OpLoadUnload: "LOAD UNLOAD", OpSendDiagnostic: "SEND DIAGNOSTIC", OpPreventAllow: "PREVENT ALLOW MEDIUM REMOVAL",
	OpLocate10: "LOCATE(10)", OpReadPosition: "READ POSITION", OpInitElementRange: "INITIALIZE ELEMENT STATUS WITH RANGE",
	OpReportDensity: "REPORT DENSITY SUPPORT", OpLogSense: "LOG SENSE", OpModeSelect10: "MODE SELECT(10)", OpModeSense10: "MODE SENSE(10)",
	OpPersistentReserveIn: "PERSISTENT RESERVE IN", OpPersistentReserveOut: "PERSISTENT RESERVE OUT", OpAllowOverwrite: "ALLOW OVERWRITE",
	OpReadAttribute: "READ ATTRIBUTE", OpWriteAttribute: "WRITE ATTRIBUTE", OpSpace16: "SPACE(16)", OpLocate16: "LOCATE(16)", OpReportLUNs: "REPORT LUNS",
	OpSecurityProtocolIn: "SECURITY PROTOCOL IN", OpMaintenanceIn: "MAINTENANCE IN", OpMoveMedium: "MOVE MEDIUM", OpExchangeMedium: "EXCHANGE MEDIUM",
	OpSecurityProtocolOut: "SECURITY PROTOCOL OUT", OpReadElementStatus: "READ ELEMENT STATUS",
}

// Name returns the name of a command, for messages.
func Name(cdb []byte) string {
	if len(cdb) == 0 {
		return "empty command"
	}
	if n, ok := opNames[cdb[0]]; ok {
		return n
	}
	return fmt.Sprintf("command %02xh", cdb[0])
}

func put24(b []byte, v int) { b[0], b[1], b[2] = byte(v>>16), byte(v>>8), byte(v) }

func get24(b []byte) int { return int(b[0])<<16 | int(b[1])<<8 | int(b[2]) }

// mustFit panics where our own code asks for what a CDB cannot express: a broken invariant, not an input.
func mustFit(v, limit int64, what string) {
	if v < 0 || v > limit {
		panic(fmt.Sprintf("scsi: %s %d is not within 0 to %d", what, v, limit))
	}
}

// TestUnitReady asks whether there is a medium that can be used.
func TestUnitReady() []byte { return make([]byte, 6) }

// Rewind goes to the beginning of partition 0.
func Rewind() []byte { return []byte{OpRewind, 0, 0, 0, 0, 0} }

// RequestSense asks for pending sense data of up to 252 bytes.
func RequestSense() []byte { return []byte{OpRequestSense, 0, 0, 0, 252, 0} }

// Inquiry asks for n bytes of the standard inquiry data.
func Inquiry(n int) []byte { return []byte{OpInquiry, 0, 0, byte(n >> 8), byte(n), 0} }

// InquiryVPD asks for n bytes of a page of vital product data.
func InquiryVPD(page byte, n int) []byte { return []byte{OpInquiry, 1, page, byte(n >> 8), byte(n), 0} }

// ReadBlockLimits asks for the lengths that blocks may have.
func ReadBlockLimits() []byte { return []byte{OpReadBlockLimits, 0, 0, 0, 0, 0} }

// Read reads one block of at most n bytes. A block of another length ends with CheckCondition and ILI.
func Read(n int) []byte {
	mustFit(int64(n), maxTransfer24, "transfer length")
	c := make([]byte, 6)
	c[0] = OpRead6
	put24(c[2:], n)
	return c
}

// Write writes one block of n bytes.
func Write(n int) []byte {
	mustFit(int64(n), maxTransfer24, "transfer length")
	c := make([]byte, 6)
	c[0] = OpWrite6
	put24(c[2:], n)
	return c
}

// WriteFilemarks writes n filemarks. Not immediate, it returns once everything before is on the medium; with n = 0 it only flushes.
func WriteFilemarks(n int, immediate bool) []byte {
	mustFit(int64(n), maxFilemarks24, "number of filemarks")
	c := make([]byte, 6)
	c[0] = OpWriteFilemarks6
	if immediate {
		c[1] = 1
	}
	put24(c[2:], n)
	return c
}

// What Space counts.
const (
	SpaceBlocks    = 0
	SpaceFilemarks = 1
	SpaceEndOfData = 3
)

// Space6 moves by n blocks or filemarks, backwards where n is negative.
func Space6(code byte, n int) []byte {
	if n < -1<<23 || n >= 1<<23 {
		panic("scsi: SPACE(6) count does not fit 24 bits")
	}
	c := make([]byte, 6)
	c[0], c[1] = OpSpace6, code
	put24(c[2:], n)
	return c
}

// Space16 is Space6 with a count of 64 bits.
func Space16(code byte, n int64) []byte {
	c := make([]byte, 16)
	c[0], c[1] = OpSpace16, code
	be.PutUint64(c[4:], uint64(n))
	return c
}

// Locate16 goes to a logical object of a partition.
func Locate16(partition uint8, object uint64) []byte {
	c := make([]byte, 16)
	c[0], c[1], c[3] = OpLocate16, 1<<1, partition // CP: change partition
	be.PutUint64(c[4:], object)
	return c
}

// Locate10 is Locate16 for objects below 2^32.
func Locate10(partition uint8, object uint32) []byte {
	c := make([]byte, 10)
	c[0], c[1], c[8] = OpLocate10, 1<<1, partition
	be.PutUint32(c[3:], object)
	return c
}

// Forms of READ POSITION.
const (
	PositionShort    = 0
	PositionLong     = 6
	PositionExtended = 8
)

// ReadPosition asks for the position. The lengths of the answers are 20 and 32 bytes.
func ReadPosition(form byte) []byte {
	c := make([]byte, 10)
	c[0], c[1] = OpReadPosition, form
	if form == PositionExtended {
		be.PutUint16(c[7:], 32)
	}
	return c
}

// LoadUnload loads the medium or, after rewinding, unloads it.
func LoadUnload(load bool) []byte {
	c := []byte{OpLoadUnload, 0, 0, 0, 0, 0}
	if load {
		c[4] = 1
	}
	return c
}

// PreventRemoval forbids, or allows again, that the medium is taken out.
func PreventRemoval(prevent bool) []byte {
	c := []byte{OpPreventAllow, 0, 0, 0, 0, 0}
	if prevent {
		c[4] = 1
	}
	return c
}

// Erase erases from the position to the end of the partition: short writes an end of data only, long overwrites.
func Erase(long bool) []byte {
	c := []byte{OpErase6, 0, 0, 0, 0, 0}
	if long {
		c[1] = 1
	}
	return c
}

// FormatMedium re-creates partitions: 0 one partition, 1 as the mode page of partitions says. Everything on the medium is lost.
func FormatMedium(format byte) []byte { return []byte{OpFormatMedium, 0, format, 0, 0, 0} }

// ModeSense10 asks for n bytes of a mode page.
func ModeSense10(page, subpage byte, n int) []byte {
	c := make([]byte, 10)
	c[0], c[2], c[3] = OpModeSense10, page, subpage
	be.PutUint16(c[7:], uint16(n))
	return c
}

// ModeSense6 asks for n bytes of a mode page.
func ModeSense6(page, subpage byte, n int) []byte {
	return []byte{OpModeSense6, 0, page, subpage, byte(n), 0}
}

// ModeSelect6 sends n bytes of mode parameters, pages in the standard's form.
func ModeSelect6(n int) []byte { return []byte{OpModeSelect6, 0x10, 0, 0, byte(n), 0} }

// ModeSelect10 sends n bytes of mode parameters, pages in the standard's form.
func ModeSelect10(n int) []byte {
	c := make([]byte, 10)
	c[0], c[1] = OpModeSelect10, 0x10
	be.PutUint16(c[7:], uint16(n))
	return c
}

// LogSense asks for n bytes of the current values of a log page.
func LogSense(page, subpage byte, n int) []byte {
	c := make([]byte, 10)
	c[0], c[2], c[3] = OpLogSense, 0x40|page, subpage
	be.PutUint16(c[7:], uint16(n))
	return c
}

// ReadAttribute asks for n bytes of the values of MAM attributes of a partition, from one id on.
func ReadAttribute(partition uint8, first uint16, n int) []byte {
	c := make([]byte, 16)
	c[0], c[7] = OpReadAttribute, partition
	be.PutUint16(c[8:], first)
	be.PutUint32(c[10:], uint32(n))
	return c
}

// WriteAttribute sends a list of n bytes of MAM attributes for a partition and has it written through.
func WriteAttribute(partition uint8, n int) []byte {
	c := make([]byte, 16)
	c[0], c[1], c[7] = OpWriteAttribute, 1, partition
	be.PutUint32(c[10:], uint32(n))
	return c
}

// AllowOverwrite permits one write at a position that is not the end of data, where a drive guards against that.
func AllowOverwrite(partition uint8, object uint64) []byte {
	c := make([]byte, 16)
	c[0], c[2], c[3] = OpAllowOverwrite, 1, partition
	be.PutUint64(c[4:], object)
	return c
}

// ReportLUNs asks for n bytes of the list of logical units.
func ReportLUNs(n int) []byte {
	c := make([]byte, 12)
	c[0] = OpReportLUNs
	be.PutUint32(c[6:], uint32(n))
	return c
}

// ReportOpcodes asks for n bytes of the list of supported commands.
func ReportOpcodes(n int) []byte {
	c := make([]byte, 12)
	c[0], c[1] = OpMaintenanceIn, ServiceReportOpcodes
	be.PutUint32(c[6:], uint32(n))
	return c
}

// InitElementStatus has the changer look at all of its elements: minutes, with a bar code reader.
func InitElementStatus() []byte { return []byte{OpInitElementStatus, 0, 0, 0, 0, 0} }

// ReadElementStatus asks for n bytes of the status of up to count elements of a type from an address on, with volume tags and, if
// devices is set, with the identities of drives.
func ReadElementStatus(t ElementType, first, count uint16, devices bool, n int) []byte {
	mustFit(int64(n), maxTransfer24, "allocation length")
	c := make([]byte, 12)
	c[0], c[1] = OpReadElementStatus, 0x10|byte(t)
	be.PutUint16(c[2:], first)
	be.PutUint16(c[4:], count)
	if devices {
		c[6] = 1
	}
	put24(c[7:], n)
	return c
}

// MoveMedium moves a medium from one element to another; the transport element 0 stands for the default.
func MoveMedium(robot, from, to uint16) []byte {
	c := make([]byte, 12)
	c[0] = OpMoveMedium
	be.PutUint16(c[2:], robot)
	be.PutUint16(c[4:], from)
	be.PutUint16(c[6:], to)
	return c
}

// SecurityProtocolIn asks for n bytes of a page of a security protocol.
func SecurityProtocolIn(protocol byte, page uint16, n int) []byte {
	c := make([]byte, 12)
	c[0], c[1] = OpSecurityProtocolIn, protocol
	be.PutUint16(c[2:], page)
	be.PutUint32(c[6:], uint32(n))
	return c
}

// SecurityProtocolOut sends n bytes of a page of a security protocol.
func SecurityProtocolOut(protocol byte, page uint16, n int) []byte {
	c := SecurityProtocolIn(protocol, page, n)
	c[0] = OpSecurityProtocolOut
	return c
}
