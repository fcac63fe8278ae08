package scsi

// Mode pages.
const (
	ModeCompression   = 0x0f
	ModeConfiguration = 0x10
	ModePartitions    = 0x11
	ModeMedium        = 0x1d // medium configuration: write-once or not
	ModeElements      = 0x1d // of a changer: element address assignment
	ModeLen           = 252
)

// A Mode is the header, the block descriptor and the pages of MODE SENSE.
type Mode struct {
	MediumType     byte
	WriteProtected bool
	Buffered       byte // 0: every write waits for the medium; 1: the drive buffers
	Density        byte // with a block descriptor
	BlockLen       int  // 0: blocks have any length
	HasBlock       bool
	Pages          []byte
}

// ParseMode10 reads the answer to MODE SENSE(10).
func ParseMode10(b []byte) (Mode, error) {
	const op = "read mode page"
	if len(b) < 8 {
		return Mode{}, corrupt(op, "%d bytes", len(b))
	}
	end := min(len(b), 2+int(be.Uint16(b)))
	return parseMode(b[:max(end, 8)], 8, Mode{MediumType: b[2], WriteProtected: b[3]&0x80 != 0, Buffered: b[3] >> 4 & 7}, int(be.Uint16(b[6:])))
}

// ParseMode6 reads the answer to MODE SENSE(6).
func ParseMode6(b []byte) (Mode, error) {
	if len(b) < 4 {
		return Mode{}, corrupt("read mode page", "%d bytes", len(b))
	}
	end := min(len(b), 1+int(b[0]))
	return parseMode(b[:max(end, 4)], 4, Mode{MediumType: b[1], WriteProtected: b[2]&0x80 != 0, Buffered: b[2] >> 4 & 7}, int(b[3]))
}

func parseMode(b []byte, head int, m Mode, descriptors int) (Mode, error) {
	b = b[head:]
	if descriptors > len(b) {
		return m, corrupt("read mode page", "block descriptors of %d bytes in %d", descriptors, len(b))
	}
	if descriptors >= 8 {
		m.HasBlock, m.Density, m.BlockLen = true, b[0], get24(b[5:])
	}
	m.Pages = b[descriptors:]
	return m, nil
}

// Page returns the body of a page without its head of two or four bytes, or nil if it is not there.
func (m *Mode) Page(page, subpage byte) []byte {
	for b := m.Pages; len(b) >= 2; {
		head, n := 2, 2+int(b[1])
		sub := byte(0)
		if b[0]&0x40 != 0 {
			if len(b) < 4 {
				return nil
			}
			head, n, sub = 4, 4+int(be.Uint16(b[2:])), b[1]
		}
		if n > len(b) {
			return nil
		}
		if b[0]&0x3f == page && sub == subpage {
			return b[head:n]
		}
		b = b[n:]
	}
	return nil
}

// SetVariable returns the parameters of a MODE SELECT(6) that sets blocks of any length and buffering, and keeps the density.
func SetVariable(density byte) []byte {
	return []byte{0, 0, 0x10, 8, density, 0, 0, 0, 0, 0, 0, 0}
}

// SetCompression returns the parameters of a MODE SELECT(6) that switch compression with the page as the drive gave it (its body), or nil if the page has other lengths.
func SetCompression(body []byte, on bool) []byte {
	if len(body) != 14 {
		return nil
	}
	out := append([]byte{0, 0, 0x10, 0, ModeCompression, 14}, body...)
	out[6] &^= 0x80
	if on {
		out[6] |= 0x80
	}
	return out
}

// Compression says whether a compression page's body has compression switched on, and whether the drive can compress.
func Compression(body []byte) (on, capable bool) {
	if len(body) < 1 {
		return false, false
	}
	return body[0]&0x80 != 0, body[0]&0x40 != 0
}

// SetPartitions returns the parameters of a MODE SELECT(6) for FORMAT MEDIUM with two partitions of which partition 0 has size units of 10^units bytes.
func SetPartitions(size uint16, units byte) []byte {
	b := []byte{0, 0, 0x10, 0, ModePartitions, 10, 1, 1, 0x20 | 0x18, 3, units & 15, 0}
	b = be.AppendUint16(b, size)
	return be.AppendUint16(b, 0xffff) // the rest
}

// Partitions reads a medium partition page's body: how many additional partitions there are, and can be.
func Partitions(body []byte) (have, maximum int, ok bool) {
	if len(body) < 2 {
		return 0, 0, false
	}
	return int(body[1]), int(body[0]), true
}

// WORM says whether a medium configuration page's body is of a write-once medium.
func WORM(body []byte) bool { return len(body) > 0 && body[0]&1 != 0 }
