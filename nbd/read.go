package nbd

import (
	"encoding/binary"

	"github.com/holdfast-backup/holdfast"
)

// read answers a read: with one reply for clients that want that, else with data and hole chunks, a piece at a time, so that
// a large read holds little memory.
func (c *conn) read(r request) error {
	if r.length == 0 {
		return c.ok(r)
	}
	if !c.structured || r.flags&cmdFlagDF != 0 {
		return c.readWhole(r)
	}
	buf := buffer(pieceBytes)
	defer release(buf)
	off, end := int64(r.off), int64(r.off)+int64(r.length)
	for off < end {
		n := min(end-off, pieceBytes)
		data, err := c.exp.Backend.Allocated(off, n)
		if err != nil {
			return c.fail(r, err)
		}
		for off < end && n > 0 {
			seg := holdfast.Extent{Off: off, Len: n}
			hole := len(data) == 0 || data[0].Off > off
			switch {
			case hole && len(data) > 0:
				seg.Len = data[0].Off - off
			case !hole:
				seg.Len = min(data[0].End()-off, n)
				data = data[1:]
			}
			flags := uint16(0)
			if seg.End() == end {
				flags = chunkDone
			}
			head := binary.BigEndian.AppendUint64(nil, uint64(seg.Off))
			if hole {
				err = c.chunk(r, flags, chunkOffsetHole, binary.BigEndian.AppendUint32(head, uint32(seg.Len)), nil)
			} else {
				if _, err := c.exp.Backend.ReadAt(buf[:seg.Len], seg.Off); err != nil {
					return c.fail(r, err)
				}
				err = c.chunk(r, flags, chunkOffsetData, head, buf[:seg.Len])
			}
			if err != nil {
				return err
			}
			off += seg.Len
			n -= seg.Len
		}
	}
	return nil
}

// readWhole answers with all bytes at once: a simple reply cannot report an error after its first byte.
func (c *conn) readWhole(r request) error {
	buf := buffer(int(r.length))
	defer release(buf)
	if _, err := c.exp.Backend.ReadAt(buf, int64(r.off)); err != nil {
		return c.fail(r, err)
	}
	if !c.structured {
		return c.simple(r, 0, buf)
	}
	return c.chunk(r, chunkDone, chunkOffsetData, binary.BigEndian.AppendUint64(nil, r.off), buf)
}

// blockStatus answers which part of the range is a hole. A reply may describe less than was asked for.
func (c *conn) blockStatus(r request) error {
	off := int64(r.off)
	n := min(int64(r.length), maxStatusRange)
	data, err := c.exp.Backend.Allocated(off, n)
	if err != nil {
		return c.fail(r, err)
	}
	limit := maxStatusExtents
	if r.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	b := binary.BigEndian.AppendUint32(nil, metaID)
	add := func(n int64, state uint32) {
		b = binary.BigEndian.AppendUint32(b, uint32(n))
		b = binary.BigEndian.AppendUint32(b, state)
		off += n
		limit--
	}
	for _, e := range data {
		if e.Off > off && limit > 0 {
			add(e.Off-off, stateHole|stateZero)
		}
		if limit > 0 {
			add(e.End()-off, 0)
		}
	}
	if end := int64(r.off) + n; off < end && limit > 0 {
		add(end-off, stateHole|stateZero)
	}
	return c.chunk(r, chunkDone, chunkBlockStatus, b, nil)
}
