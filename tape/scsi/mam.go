package scsi

// Attributes of the medium's auxiliary memory (MAM).
const (
	AttrRemaining        = 0x0000 // capacity left of the partition, MiB
	AttrMaximum          = 0x0001 // capacity of the partition, MiB
	AttrTapeAlert        = 0x0002
	AttrLoads            = 0x0003
	AttrChangeRef        = 0x0009 // volume change reference, kept by the drive
	AttrManufacturer     = 0x0400
	AttrSerial           = 0x0401
	AttrMediumType       = 0x0408 // 0 data, 1 cleaning, 80h write-once
	AttrAppVendor        = 0x0800
	AttrAppName          = 0x0801
	AttrAppVersion       = 0x0802
	AttrMediumText       = 0x0803
	AttrLocalization     = 0x0805
	AttrBarcode          = 0x0806
	AttrMediaPool        = 0x0808
	AttrAppFormat        = 0x080b
	AttrCoherency        = 0x080c // volume coherency information
	AttrLockState        = 0x1623
	AttributesLen        = 64 << 10
	MaxAttributes        = 1024
	MediumCleaning       = 0x01
	MediumWORM           = 0x80
	attributeHead        = 5
	maxAttribute     int = 1 << 14
)

// Formats of attributes.
const (
	FormatBinary = 0
	FormatASCII  = 1
	FormatText   = 2
)

// An Attribute is one item of the medium's memory.
type Attribute struct {
	ID       uint16
	Format   byte
	ReadOnly bool
	Value    []byte
}

// Text returns the value as text without padding.
func (a *Attribute) Text() string { return text(a.Value) }

// Uint returns the value of up to 8 bytes as a number.
func (a *Attribute) Uint() (uint64, bool) {
	if len(a.Value) == 0 || len(a.Value) > 8 {
		return 0, false
	}
	v := uint64(0)
	for _, x := range a.Value {
		v = v<<8 | uint64(x)
	}
	return v, true
}

// ParseAttributes reads the answer to READ ATTRIBUTE. A list that was cut off for want of room gives what is whole.
func ParseAttributes(b []byte) ([]Attribute, error) {
	const op = "read medium attributes"
	if len(b) < 4 {
		return nil, corrupt(op, "%d bytes", len(b))
	}
	n := int64(be.Uint32(b))
	b = b[4:]
	whole := n <= int64(len(b))
	b = b[:min(int64(len(b)), n)]
	var out []Attribute
	for len(b) >= attributeHead {
		n := attributeHead + int(be.Uint16(b[3:]))
		if n > len(b) {
			if whole {
				return out, corrupt(op, "attribute %04xh of %d bytes in %d", be.Uint16(b), n, len(b))
			}
			break
		}
		if len(out) == MaxAttributes {
			return out, corrupt(op, "more than %d attributes", MaxAttributes)
		}
		out = append(out, Attribute{ID: be.Uint16(b), Format: b[2] & 3, ReadOnly: b[2]&0x80 != 0, Value: b[attributeHead:n]})
		b = b[n:]
	}
	return out, nil
}

// AppendAttribute appends an item as it is in lists, and in files of the exchange layout.
func AppendAttribute(b []byte, a Attribute) []byte {
	if len(a.Value) > maxAttribute {
		panic("scsi: attribute too long")
	}
	f := a.Format
	if a.ReadOnly {
		f |= 0x80
	}
	b = be.AppendUint16(b, a.ID)
	b = append(b, f)
	b = be.AppendUint16(b, uint16(len(a.Value)))
	return append(b, a.Value...)
}

// EncodeAttributes returns a list as WRITE ATTRIBUTE sends and READ ATTRIBUTE returns it.
func EncodeAttributes(as []Attribute) []byte {
	b := make([]byte, 4)
	for _, a := range as {
		b = AppendAttribute(b, a)
	}
	be.PutUint32(b, uint32(len(b)-4))
	return b
}
