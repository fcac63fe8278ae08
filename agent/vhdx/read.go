package vhdx

import (
	"encoding/binary"
	"math/bits"
)

// segKind says where the bytes of a segment are.
type segKind uint8

const (
	segZero   segKind = iota // nowhere: they read as zero, whatever a parent holds
	segHere                  // in this file
	segParent                // in the parent
)

// seg is a run of a disk's bytes: [off, off+n) of the disk, at file in the file for segHere.
type seg struct {
	kind         segKind
	off, n, file int64
}

// joiner merges neighbouring segments, so that a contiguous run of a file is read in one go.
type joiner struct {
	cur  seg
	emit func(seg) error
}

func (j *joiner) add(s seg) error {
	c := &j.cur
	if c.n > 0 && c.kind == s.kind && (s.kind != segHere || c.file+c.n == s.file) {
		c.n += s.n
		return nil
	}
	if err := j.flush(); err != nil {
		return err
	}
	*c = s
	return nil
}

func (j *joiner) flush() error {
	if j.cur.n == 0 {
		return nil
	}
	s := j.cur
	j.cur.n = 0
	return j.emit(s)
}

// walk hands out the segments of [off, off+n), which lies inside the disk, in order and joined.
func (m *image) walk(off, n int64, emit func(seg) error) error {
	j := joiner{emit: emit}
	r := batReader{m: m, last: m.p.payloadIndex((off + n - 1) / m.p.blockSize)}
	for n > 0 {
		block := off / m.p.blockSize
		in := off - block*m.p.blockSize
		c := min(n, m.p.blockSize-in)
		e, err := r.get(m.p.payloadIndex(block))
		if err != nil {
			return err
		}
		if err := m.walkBlock(e, block, in, c, &j); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return j.flush()
}

// walkBlock adds the segments of c bytes at in of one block.
func (m *image) walkBlock(e uint64, block, in, c int64, j *joiner) error {
	off := block*m.p.blockSize + in
	switch entryState(e) {
	case stateAbsent:
		if m.p.hasParent {
			return j.add(seg{kind: segParent, off: off, n: c})
		}
		return j.add(seg{kind: segZero, off: off, n: c})
	case stateUndefined, stateZero, stateUnmapped:
		return j.add(seg{kind: segZero, off: off, n: c})
	case stateFull:
		at, err := m.place(e, m.p.blockSize)
		if err != nil {
			return err
		}
		return j.add(seg{segHere, off, c, at + in})
	case statePartial:
		if !m.p.hasParent {
			return corrupt("%s: block %d is partly present but the disk has no parent", m.path, block)
		}
		at, err := m.place(e, m.p.blockSize)
		if err != nil {
			return err
		}
		bm, err := m.bitmapAt(block)
		if err != nil {
			return err
		}
		return walkBits(bitWalk{sector: int64(m.p.logical), base: block * m.p.blockSize, file: at}, in, c, j,
			func(p []byte, from int64) error { return m.cache.read(p, bm+from, m.fileSize) })
	}
	return corrupt("%s: block %d has the unknown state %d", m.path, block, entryState(e))
}

// bitmapAt returns where the bits of a block are in the file.
func (m *image) bitmapAt(block int64) (int64, error) {
	e, err := m.entry(m.p.bitmapIndex(block))
	if err != nil {
		return 0, err
	}
	if entryState(e) != stateFull {
		return 0, corrupt("%s: block %d is partly present but its sector bitmap is not there", m.path, block)
	}
	at, err := m.place(e, mib)
	return at + m.p.bitmapOffset(block), err
}

// bitWalk says what a sector bitmap describes.
type bitWalk struct {
	sector, base, file int64 // sector size, disk offset and file offset of the block
	msb                bool  // bits count from the top of each byte (VHD)
}

// walkBits adds the segments of a partly present block; read fetches bytes of its bitmap.
func walkBits(w bitWalk, in, c int64, j *joiner, read func(p []byte, from int64) error) error {
	var buf [512]byte
	for end := in + c; in < end; {
		byteAt := in / w.sector / 8
		last := (end-1)/w.sector/8 + 1
		n := min(last-byteAt, int64(len(buf)))
		if err := read(buf[:n], byteAt); err != nil {
			return err
		}
		if w.msb {
			for i := range buf[:n] {
				buf[i] = bits.Reverse8(buf[i])
			}
		}
		stop := min(end, (byteAt+n)*8*w.sector)
		for in < stop {
			first := in/w.sector - byteAt*8
			set, run := bitRun(buf[:n], int(first))
			next := min(stop, (byteAt*8+first+int64(run))*w.sector)
			s := seg{segParent, w.base + in, next - in, 0}
			if set {
				s.kind, s.file = segHere, w.file+in
			}
			if err := j.add(s); err != nil {
				return err
			}
			in = next
		}
	}
	return nil
}

// bitRun returns the value of bit i, counted from the lowest of the first byte, and how many bits from it on are alike.
func bitRun(b []byte, i int) (set bool, n int) {
	total := len(b) * 8
	set = b[i/8]>>(i%8)&1 != 0
	flip := byte(0)
	if set {
		flip = 0xff
	}
	at := i
	for at < total {
		if at%64 == 0 && total-at >= 64 {
			w := binary.LittleEndian.Uint64(b[at/8:])
			if set {
				w = ^w
			}
			if w == 0 {
				at += 64
				continue
			}
			return set, at + bits.TrailingZeros64(w) - i
		}
		x := (b[at/8] ^ flip) >> (at % 8)
		if x != 0 {
			return set, at + bits.TrailingZeros8(x) - i
		}
		at += 8 - at%8
	}
	return set, total - i
}
