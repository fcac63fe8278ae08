package scsi

import (
	"encoding/hex"
	"strings"
	"unicode"
)

// A DeviceType is what a logical unit is.
type DeviceType uint8

const (
	TypeDisk    DeviceType = 0x00
	TypeTape    DeviceType = 0x01
	TypeChanger DeviceType = 0x08
	TypeNone    DeviceType = 0x1f // no logical unit under this number
)

// An Identity is what the standard inquiry data says.
type Identity struct {
	Type      DeviceType
	Removable bool
	Vendor    string // 8 characters
	Product   string // 16 characters
	Revision  string // 4 characters
}

// InquiryLen is how many bytes of inquiry data ParseInquiry wants.
const InquiryLen = 96

// ParseInquiry reads standard inquiry data.
func ParseInquiry(b []byte) (Identity, error) {
	if len(b) < 36 {
		return Identity{}, corrupt("read inquiry data", "%d bytes instead of at least 36", len(b))
	}
	id := Identity{Type: DeviceType(b[0] & 0x1f), Removable: b[1]&0x80 != 0, Vendor: text(b[8:16]), Product: text(b[16:32]), Revision: text(b[32:36])}
	if b[0]>>5 != 0 {
		id.Type = TypeNone // a peripheral qualifier: nothing is connected here
	}
	return id, nil
}

// text returns the printable characters of a field that is padded with blanks or zeros.
func text(b []byte) string {
	s := strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, string(b))
	return strings.TrimSpace(s)
}

// Pages of vital product data.
const (
	PageSupportedVPD   = 0x00
	PageSerial         = 0x80
	PageIdentification = 0x83
	VPDLen             = 1024 // how many bytes to ask for
)

// vpd returns the body of a VPD page.
func vpd(b []byte, page byte) ([]byte, error) {
	if len(b) < 4 || b[1] != page {
		return nil, corrupt("read vital product data", "not page %02xh", page)
	}
	return b[4:min(len(b), 4+int(be.Uint16(b[2:])))], nil
}

// ParseSerial reads the unit serial number page.
func ParseSerial(b []byte) (string, error) {
	body, err := vpd(b, PageSerial)
	return text(body), err
}

// ParsePages reads the list of supported VPD pages.
func ParsePages(b []byte) ([]byte, error) { return vpd(b, PageSupportedVPD) }

// A Name83 is one designator of the identification page.
type Name83 struct {
	Type   byte // 1 vendor's, 2 EUI-64, 3 NAA, 8 SCSI name
	Target bool // of the target device or port, not of the logical unit
	Value  string
}

// ParseIdentification reads the identification page: names by which a unit is known whatever path leads to it.
func ParseIdentification(b []byte) ([]Name83, error) {
	body, err := vpd(b, PageIdentification)
	if err != nil {
		return nil, err
	}
	var out []Name83
	for len(body) >= 4 {
		n := 4 + int(body[3])
		if n > len(body) {
			return out, corrupt("read identification page", "a designator of %d bytes in %d", n, len(body))
		}
		d := body[:n]
		name := Name83{Type: d[1] & 15, Target: d[1]>>4&3 != 0}
		if d[0]&15 == 1 { // binary
			name.Value = hex.EncodeToString(d[4:])
		} else {
			name.Value = text(d[4:])
		}
		out = append(out, name)
		body = body[n:]
	}
	return out, nil
}

// BestName returns the designator to know a unit by: NAA before EUI-64 before the vendor's; empty if there is none.
func BestName(names []Name83) string {
	for _, t := range []byte{3, 2, 8, 1} {
		for _, n := range names {
			if n.Type == t && !n.Target && n.Value != "" {
				return n.Value
			}
		}
	}
	return ""
}

// MaxLUNs bounds the list of logical units of a target.
const MaxLUNs = 256

// ParseLUNs reads the list of logical units, as 8-byte addresses.
func ParseLUNs(b []byte) ([]uint64, error) {
	const op = "read list of logical units"
	if len(b) < 8 {
		return nil, corrupt(op, "%d bytes", len(b))
	}
	n := int64(be.Uint32(b))
	b = b[8:]
	if n%8 != 0 || n > 8*MaxLUNs {
		return nil, corrupt(op, "a list of %d bytes", n)
	}
	b = b[:min(int64(len(b)), n)]
	var out []uint64
	for ; len(b) >= 8; b = b[8:] {
		out = append(out, be.Uint64(b))
	}
	return out, nil
}

// FlatLUN returns the number of a simple logical unit address, and false for addresses of other methods.
func FlatLUN(lun uint64) (int, bool) {
	if lun<<16 != 0 || lun>>62 > 1 {
		return 0, false
	}
	return int(lun >> 48 & 0x3fff), true
}

// ParseOpcodes reads the list of supported commands. What is in it need not work, and devices that have no such list may know commands all the same.
func ParseOpcodes(b []byte) (map[byte]bool, error) {
	const op = "read list of commands"
	if len(b) < 4 {
		return nil, corrupt(op, "%d bytes", len(b))
	}
	n := int64(be.Uint32(b))
	b = b[4:]
	b = b[:min(int64(len(b)), n)]
	out := map[byte]bool{}
	for len(b) >= 8 {
		out[b[0]] = true
		if b[5]&2 != 0 && len(b) >= 20 { // followed by a timeouts descriptor
			b = b[12:]
		}
		b = b[8:]
	}
	return out, nil
}

// Limits is what READ BLOCK LIMITS says.
type Limits struct {
	Min, Max    int
	Granularity uint8 // blocks are multiples of 2^Granularity; some devices fill it in wrongly
}

// LimitsLen is the length of the answer to READ BLOCK LIMITS.
const LimitsLen = 6

// ParseLimits reads the answer to READ BLOCK LIMITS.
func ParseLimits(b []byte) (Limits, error) {
	if len(b) < LimitsLen {
		return Limits{}, corrupt("read block limits", "%d bytes", len(b))
	}
	l := Limits{Min: int(be.Uint16(b[4:])), Max: get24(b[1:]), Granularity: b[0] & 0x1f}
	if l.Max == 0 { // no limit but the field's
		l.Max = maxTransfer24
	}
	if l.Min > l.Max {
		return l, corrupt("read block limits", "blocks of %d to %d bytes", l.Min, l.Max)
	}
	return l, nil
}
