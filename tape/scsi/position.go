package scsi

// A Position is where a tape stands, as the drive says.
type Position struct {
	Partition uint8
	Object    uint64 // the next object: blocks and filemarks count one each
	Files     uint64 // filemarks before it; long form only
	Beginning bool
	End       bool // between early warning and the end of the partition
	Unknown   bool // the drive does not know, or says something that cannot be: nothing else is to be believed
	Buffered  uint64
}

// PositionLen is room for the answer to READ POSITION in any form.
const PositionLen = 32

// ParsePosition reads the answer to READ POSITION in a form.
func ParsePosition(form byte, b []byte) (Position, error) {
	const op = "read position"
	switch form {
	case PositionShort:
		if len(b) < 20 {
			return Position{}, corrupt(op, "%d bytes", len(b))
		}
		return Position{Partition: b[1], Object: uint64(be.Uint32(b[4:])), Beginning: b[0]&0x80 != 0, End: b[0]&0x40 != 0,
			Unknown: b[0]&0x04 != 0, Buffered: uint64(get24(b[13:]))}, nil
	case PositionLong:
		if len(b) < 32 {
			return Position{}, corrupt(op, "%d bytes", len(b))
		}
		p := Position{Beginning: b[0]&0x80 != 0, End: b[0]&0x40 != 0, Object: be.Uint64(b[8:]), Files: be.Uint64(b[16:]),
			Unknown: b[0]&0x0c != 0} // MPU or LONU
		if n := be.Uint32(b[4:]); n <= 255 {
			p.Partition = uint8(n)
		} else {
			p.Unknown = true
		}
		return p, nil
	case PositionExtended:
		if len(b) < 32 {
			return Position{}, corrupt(op, "%d bytes", len(b))
		}
		return Position{Partition: b[1], Object: be.Uint64(b[8:]), Beginning: b[0]&0x80 != 0, End: b[0]&0x40 != 0,
			Unknown: b[0]&0x04 != 0, Buffered: uint64(get24(b[5:]))}, nil
	}
	return Position{}, corrupt(op, "unknown form %d", form)
}

// Encode is the inverse of ParsePosition, for emulators.
func (p Position) Encode(form byte) []byte {
	b := make([]byte, 32)
	if p.Beginning {
		b[0] |= 0x80
	}
	if p.End {
		b[0] |= 0x40
	}
	switch form {
	case PositionShort:
		if p.Unknown || p.Object > 1<<32-1 {
			b[0] |= 0x04
			return b[:20]
		}
		b[1] = p.Partition
		be.PutUint32(b[4:], uint32(p.Object))
		be.PutUint32(b[8:], uint32(p.Object-min(p.Object, p.Buffered)))
		put24(b[13:], int(p.Buffered))
		return b[:20]
	case PositionLong:
		if p.Unknown {
			b[0] |= 0x0c
		}
		be.PutUint32(b[4:], uint32(p.Partition))
		be.PutUint64(b[8:], p.Object)
		be.PutUint64(b[16:], p.Files)
	case PositionExtended:
		if p.Unknown {
			b[0] |= 0x04
		}
		b[1] = p.Partition
		be.PutUint16(b[2:], 0x1c)
		put24(b[5:], int(p.Buffered))
		be.PutUint64(b[8:], p.Object)
		be.PutUint64(b[16:], p.Object-min(p.Object, p.Buffered))
	}
	return b
}
