package scsi

import "fmt"

// An ElementType is what an element of a changer is.
type ElementType uint8

const (
	ElementRobot  ElementType = 1
	ElementSlot   ElementType = 2
	ElementExport ElementType = 3 // import/export: the door's
	ElementDrive  ElementType = 4
)

// String returns the type's word.
func (t ElementType) String() string {
	switch t {
	case ElementRobot:
		return "robot"
	case ElementSlot:
		return "slot"
	case ElementExport:
		return "export slot"
	case ElementDrive:
		return "drive"
	}
	return fmt.Sprintf("element type %d", uint8(t))
}

// An Element is one place of a changer.
type Element struct {
	Type      ElementType
	Address   uint16
	Full      bool
	Exception Code   // not zero: something is wrong with it
	Access    bool   // the robot can reach what is in it
	Operator  bool   // an export slot: what is in it was put there by a person
	Source    uint16 // where its medium came from
	HasSource bool
	Barcode   string // empty: none, or it could not be read
	Device    string // of a drive: vendor, product and serial, as the changer tells it
}

// MaxElements bounds the elements of a changer: far above the largest libraries.
const MaxElements = 1 << 14

// ParseElements reads the answer to READ ELEMENT STATUS. Ask for one type at a time: some changers mix pages up.
func ParseElements(b []byte) ([]Element, error) {
	const op = "read element status"
	if len(b) < 8 {
		return nil, corrupt(op, "%d bytes", len(b))
	}
	b = b[8:min(len(b), 8+get24(b[5:]))]
	var out []Element
	for len(b) >= 8 {
		t, flags, size, n := ElementType(b[0]&15), b[1], int(be.Uint16(b[2:])), get24(b[5:])
		page := b[8:min(len(b), 8+n)]
		b = b[8+len(page):]
		if size < 12 || size > 1024 {
			return out, corrupt(op, "descriptors of %d bytes", size)
		}
		if cut := n - len(page); cut > 0 && cut <= 8 && len(page)%size >= 12+32 && n%size == 0 {
			page = append(page[:len(page):len(page)], make([]byte, cut)...) // tgt leaves off the reserved end of the last descriptor
		}
		for ; len(page) >= size; page = page[size:] {
			if len(out) >= MaxElements {
				return out, corrupt(op, "more than %d elements", MaxElements)
			}
			out = append(out, parseElement(t, flags, page[:size]))
		}
	}
	return out, nil
}

func parseElement(t ElementType, flags byte, d []byte) Element {
	e := Element{Type: t, Address: be.Uint16(d), Full: d[2]&1 != 0, Access: d[2]&8 != 0, Operator: t == ElementExport && d[2]&2 != 0}
	if d[2]&4 != 0 {
		e.Exception = Code(be.Uint16(d[4:]))
		if e.Exception == 0 {
			e.Exception = CodeHardware
		}
	}
	if d[9]&0x80 != 0 {
		e.HasSource, e.Source = true, be.Uint16(d[10:])
	}
	d = d[12:]
	for _, tag := range []byte{0x80, 0x40} { // primary and alternate volume tags
		if flags&tag == 0 || len(d) < 36 {
			continue
		}
		if tag == 0x80 && e.Full {
			e.Barcode = text(d[:32])
		}
		d = d[36:]
	}
	if len(d) > 4 && d[3] > 0 && 4+int(d[3]) <= len(d) {
		e.Device = text(d[4 : 4+int(d[3])])
	}
	return e
}

// EncodeElements is the inverse of ParseElements for elements of one type, for emulators. Drives get their identity with devices.
func EncodeElements(t ElementType, es []Element, devices bool) []byte {
	const device = 34
	size := 12 + 36
	if devices {
		size += 4 + device
	}
	out := make([]byte, 16, 16+size*len(es))
	for _, e := range es {
		d := make([]byte, size)
		be.PutUint16(d, e.Address)
		for _, f := range []struct {
			on  bool
			bit byte
		}{{e.Full, 1}, {e.Operator, 2}, {e.Exception != 0, 4}, {e.Access, 8}} {
			if f.on {
				d[2] |= f.bit
			}
		}
		be.PutUint16(d[4:], uint16(e.Exception))
		if e.HasSource {
			d[9] = 0x80
			be.PutUint16(d[10:], e.Source)
		}
		for i := range 32 {
			d[12+i] = ' '
		}
		copy(d[12:44], e.Barcode)
		if devices && e.Device != "" {
			d[48], d[49], d[51] = 2, 1, device
			copy(d[52:], fmt.Sprintf("%-34s", e.Device))
		}
		out = append(out, d...)
	}
	if len(es) > 0 {
		be.PutUint16(out, es[0].Address)
	}
	be.PutUint16(out[2:], uint16(len(es)))
	put24(out[5:], len(out)-8)
	out[8], out[9] = byte(t), 0x80
	be.PutUint16(out[10:], uint16(size))
	put24(out[13:], len(out)-16)
	return out
}

// A Layout is where a changer's elements are: first address and number of each type.
type Layout struct {
	Robot, Slot, Export, Drive struct{ First, Count uint16 }
}

// ParseLayout reads the body of the element address assignment page.
func ParseLayout(body []byte) (Layout, error) {
	var l Layout
	if len(body) < 16 {
		return l, corrupt("read element addresses", "%d bytes", len(body))
	}
	for i, p := range []*struct{ First, Count uint16 }{&l.Robot, &l.Slot, &l.Export, &l.Drive} {
		p.First, p.Count = be.Uint16(body[4*i:]), be.Uint16(body[4*i+2:])
	}
	if n := int(l.Robot.Count) + int(l.Slot.Count) + int(l.Export.Count) + int(l.Drive.Count); n > MaxElements {
		return l, corrupt("read element addresses", "%d elements", n)
	}
	return l, nil
}
