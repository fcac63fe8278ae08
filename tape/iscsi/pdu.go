// Package iscsi is an iSCSI initiator in user space (RFC 7143, error recovery level 0): it finds the targets of a portal, logs in, with CHAP in one or both
// directions, with checksums over headers and data where both sides want them, and carries SCSI commands to a target's logical units.
//
// It owns one TCP connection per Session and nothing on a disk. When the connection breaks, the commands under way fail, because nobody
// knows what became of them; it never repeats one by itself. The next command logs in again under the same session identifier, which
// ends whatever the target still had of the old one.
//
// It imports scsi and the ground floor only. The transport is not encrypted: keep it in a storage network of its own.
package iscsi

import (
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/holdfast-backup/holdfast"
)

// Operation codes of protocol data units.
const (
	opNopOut    = 0x00
	opCommand   = 0x01
	opTask      = 0x02
	opLogin     = 0x03
	opText      = 0x04
	opDataOut   = 0x05
	opLogout    = 0x06
	opNopIn     = 0x20
	opResponse  = 0x21
	opTaskResp  = 0x22
	opLoginResp = 0x23
	opTextResp  = 0x24
	opDataIn    = 0x25
	opLogoutRsp = 0x26
	opR2T       = 0x31
	opAsync     = 0x32
	opReject    = 0x3f

	immediate = 0x40 // in byte 0: not counted by CmdSN
	final     = 0x80 // in byte 1

	headerLen = 48
	noTag     = 0xffffffff
	// maxSegment is what we let a target send in one unit; it is also what we allocate for one.
	maxSegment = 256 << 10
)

var (
	be         = binary.BigEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// A pdu is one unit: 48 bytes of header, and data.
type pdu struct {
	h    [headerLen]byte
	data []byte
}

func (p *pdu) op() byte         { return p.h[0] & 0x3f }
func (p *pdu) tag() uint32      { return be.Uint32(p.h[16:]) }
func (p *pdu) u32(i int) uint32 { return be.Uint32(p.h[i:]) }
func (p *pdu) put(i int, v uint32) {
	be.PutUint32(p.h[i:], v)
}

// digests says which checksums a connection uses.
type digests struct{ header, data bool }

// writePDU writes a unit. head and pad are scratch of the caller.
func writePDU(w io.Writer, p *pdu, d digests) error {
	p.h[5], p.h[6], p.h[7] = byte(len(p.data)>>16), byte(len(p.data)>>8), byte(len(p.data))
	out := make([]byte, 0, headerLen+4+len(p.data)+8)
	out = append(out, p.h[:]...)
	if d.header {
		out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(p.h[:], castagnoli))
	}
	at := len(out)
	out = append(out, p.data...)
	for (len(out)-at)%4 != 0 {
		out = append(out, 0)
	}
	if d.data && len(p.data) > 0 {
		out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(out[at:], castagnoli))
	}
	_, err := w.Write(out)
	return err
}

// readPDU reads a unit; its data lies in buf, which has room for maxSegment and padding. A wrong checksum or a length beyond what we
// declared is Corrupt: after it the stream cannot be trusted.
func readPDU(r io.Reader, d digests, buf []byte) (pdu, error) {
	const op = "read from the target"
	var p pdu
	if _, err := io.ReadFull(r, p.h[:]); err != nil {
		return p, err
	}
	extra := make([]byte, 4*int(p.h[4]), 4*int(p.h[4])+4) // additional header segments: none is of use to us
	if d.header {
		extra = extra[:len(extra)+4]
	}
	if _, err := io.ReadFull(r, extra); err != nil {
		return p, err
	}
	if d.header {
		n := len(extra) - 4
		sum := crc32.Update(crc32.Checksum(p.h[:], castagnoli), castagnoli, extra[:n])
		if binary.LittleEndian.Uint32(extra[n:]) != sum {
			return p, holdfast.Errorf(holdfast.Corrupt, op, "the checksum of a header differs")
		}
	}
	n := int(p.h[5])<<16 | int(p.h[6])<<8 | int(p.h[7])
	if n > maxSegment {
		return p, holdfast.Errorf(holdfast.Corrupt, op, "a unit with %d bytes of data; %d were allowed", n, maxSegment)
	}
	if n == 0 {
		return p, nil
	}
	padded := (n + 3) &^ 3
	more := padded
	if d.data {
		more += 4
	}
	if _, err := io.ReadFull(r, buf[:more]); err != nil {
		return p, err
	}
	if d.data && binary.LittleEndian.Uint32(buf[padded:]) != crc32.Checksum(buf[:padded], castagnoli) {
		return p, holdfast.Errorf(holdfast.Corrupt, op, "the checksum of data differs")
	}
	p.data = buf[:n]
	return p, nil
}

// flatLUN puts a logical unit number into its 8 bytes.
func flatLUN(b []byte, lun int) {
	clear(b[:8])
	be.PutUint16(b, uint16(lun))
	if lun > 255 {
		b[0] |= 0x40 // flat space addressing
	}
}

// before reports whether serial number a lies before b, around the wrap.
func before(a, b uint32) bool { return int32(a-b) < 0 }
