package vhdx

import (
	"bytes"
	"encoding/binary"
	"sync"

	"github.com/holdfast-backup/holdfast"
)

// guard bounds the memory of one partial write.
const guard = mib

// mutable changes an image in place. The order within a change is: payload, sector bitmap, block table entry; each is one write
// that a kill either lets happen or not, and what is not yet pointed to is not part of the disk.
type mutable struct {
	*image
	parent *Disk
	mu     sync.RWMutex // held for reading by what leaves the block table alone
	space  allocator
	bare   bool // made by Create: no headers yet, so order does not matter
	begun  bool // the session's header update is done
	keep   bool // leave the data id alone (Merge)
}

// begin does what must precede the first change of a session: both region tables alike, a file that ends with its last block,
// and headers with a new file id and, as guest-visible data changes, a new data id.
func (m *mutable) begin() error {
	if m.begun || m.bare {
		return nil
	}
	if err := m.repairRegions(); err != nil {
		return err
	}
	if end := m.space.end * mib; m.fileSize > end {
		// What a killed process allocated but did not link: it may hold stale bytes.
		if err := m.truncate(end); err != nil {
			return err
		}
	}
	err := m.updateHeader(func(h *header) {
		h.fileWrite = holdfast.NewID()
		if !m.keep {
			h.dataWrite = holdfast.NewID()
		}
	})
	m.begun = err == nil
	return err
}

// repairRegions makes both copies of the region table the one in force.
func (m *mutable) repairRegions() error {
	if bytes.Equal(m.raw.regions[0], m.raw.regions[1]) {
		return nil
	}
	to := 1 - m.regSlot
	if err := m.put(m.raw.regions[m.regSlot], regionAt[to]); err != nil {
		return err
	}
	m.raw.regions[to] = bytes.Clone(m.raw.regions[m.regSlot])
	return m.sync()
}

// updateHeader writes a changed header into the other slot, then again so that both are good.
func (m *mutable) updateHeader(change func(*header)) error {
	h := m.hdr
	change(&h)
	for range 2 {
		h.seq++
		if err := m.put(h.encode(), headerAt[1-m.slot]); err != nil {
			return err
		}
		if err := m.sync(); err != nil {
			return err
		}
		m.hdr, m.slot = h, 1-m.slot
	}
	return nil
}

// put writes to the file. It does not grow it.
func (m *mutable) put(p []byte, off int64) error {
	if _, err := m.f.WriteAt(p, off); err != nil {
		return ioError("write virtual disk", m.path, err)
	}
	return nil
}

// putTable writes block table entries or sector bitmap bytes and keeps the cache true.
func (m *mutable) putTable(p []byte, off int64) error {
	if err := m.put(p, off); err != nil {
		return err
	}
	m.cache.update(p, off)
	return nil
}

func (m *mutable) sync() error {
	if err := m.f.Sync(); err != nil {
		return ioError("flush virtual disk", m.path, err)
	}
	return nil
}

func (m *mutable) truncate(size int64) error {
	if err := m.f.Truncate(size); err != nil {
		return ioError("resize virtual disk file", m.path, err)
	}
	m.realSize, m.fileSize = size, size
	return nil
}

// punch makes a range of the file zero.
func (m *mutable) punch(off, n int64) error {
	if err := m.f.Punch(off, n); err != nil {
		return ioError("write virtual disk", m.path, err)
	}
	return nil
}

// allocate returns n zero bytes of the file that nothing points to.
func (m *mutable) allocate(n int64) (int64, error) {
	off, fresh := m.space.take(n)
	var err error
	if !fresh {
		err = m.punch(off, min(n, max(m.fileSize-off, 0)))
		m.cache.drop(off, n)
	}
	if err == nil && off+n > m.fileSize {
		err = m.truncate(off + n)
	}
	if err != nil {
		m.space.release(off, n)
	}
	return off, err
}

// setEntry writes one block table entry: eight bytes that never cross a sector.
func (m *mutable) setEntry(i int64, off int64, state int) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(off)|uint64(state))
	return m.putTable(b[:], m.bat.off+8*i)
}

// checkRange verifies a write.
func (m *mutable) checkRange(off, n int64) error {
	if off < 0 || n < 0 || off > m.p.size || n > m.p.size-off {
		return holdfast.Errorf(holdfast.Invalid, "write virtual disk", "%d bytes at %d do not fit a disk of %d", n, off, m.p.size)
	}
	return nil
}

// writeAt writes p, block by block.
func (m *mutable) writeAt(p []byte, off int64) (int, error) {
	if err := m.checkRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		c := int(min(int64(len(p)-done), m.p.blockSize-at%m.p.blockSize))
		if err := m.writeBlock(p[done:done+c], at); err != nil {
			return done, err
		}
		done += c
	}
	return done, nil
}

// writeBlock writes inside one block.
func (m *mutable) writeBlock(p []byte, off int64) error {
	if ok, err := m.overwrite(p, off); ok || err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	block := off / m.p.blockSize
	in, n := off%m.p.blockSize, int64(len(p))
	e, err := m.entry(m.p.payloadIndex(block))
	if err != nil {
		return err
	}
	switch entryState(e) {
	case stateFull: // by another writer, meanwhile
		if err := m.begin(); err != nil {
			return err
		}
		at, err := m.place(e, m.p.blockSize)
		if err != nil {
			return err
		}
		return m.put(p, at+in)
	case statePartial:
		if err := m.begin(); err != nil {
			return err
		}
		return m.writePartial(e, block, p, off)
	}
	inParent := entryState(e) == stateAbsent && m.p.hasParent
	if isZero(p) {
		if same, err := m.readsZero(inParent, off, n); same || err != nil {
			return err
		}
		if n == m.blockLen(block) {
			return m.zeroBlock(e, block)
		}
	}
	if err := m.begin(); err != nil {
		return err
	}
	if inParent && n < m.blockLen(block) {
		return m.newPartial(block, p, off)
	}
	at, err := m.allocate(m.p.blockSize)
	if err != nil {
		return err
	}
	if err := m.put(p, at+in); err != nil {
		return err
	}
	return m.setEntry(m.p.payloadIndex(block), at, stateFull)
}

// overwrite writes to a block that is fully present, beside other readers and writers.
func (m *mutable) overwrite(p []byte, off int64) (bool, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !m.begun && !m.bare {
		return false, nil
	}
	e, err := m.entry(m.p.payloadIndex(off / m.p.blockSize))
	if err != nil || entryState(e) != stateFull {
		return false, err
	}
	at, err := m.place(e, m.p.blockSize)
	if err != nil {
		return false, err
	}
	return true, m.put(p, at+off%m.p.blockSize)
}

// blockLen is the part of a block that is inside the disk.
func (m *mutable) blockLen(block int64) int64 {
	return min(m.p.blockSize, m.p.size-block*m.p.blockSize)
}

func isZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// readsZero reports whether a range of a block that is not in this file already reads as zero.
func (m *mutable) readsZero(inParent bool, off, n int64) (bool, error) {
	if !inParent {
		return true, nil
	}
	buf := make([]byte, min(n, guard))
	for n > 0 {
		c := min(n, int64(len(buf)))
		if err := m.parent.readBelow(buf[:c], off); err != nil {
			return false, err
		}
		if !isZero(buf[:c]) {
			return false, nil
		}
		off, n = off+c, n-c
	}
	return true, nil
}

// aligned widens a write to whole sectors, filling up with what the disk holds.
func (m *mutable) aligned(p []byte, off int64) ([]byte, int64, error) {
	s := int64(m.p.logical)
	from, to := off/s*s, (off+int64(len(p))+s-1)/s*s
	if from == off && to == off+int64(len(p)) {
		return p, off, nil
	}
	q := make([]byte, to-from)
	for _, at := range []int64{from, to - s} { // only the edges can be incomplete
		if err := readLayer(m.image, m.parent, q[at-from:][:s], at); err != nil {
			return nil, 0, err
		}
	}
	copy(q[off-from:], p)
	return q, from, nil
}

// writePartial writes into a block that is partly present: the sectors, then their bits.
func (m *mutable) writePartial(e uint64, block int64, p []byte, off int64) error {
	p, off, err := m.aligned(p, off)
	if err != nil {
		return err
	}
	at, err := m.place(e, m.p.blockSize)
	if err != nil {
		return err
	}
	bm, err := m.bitmapAt(block)
	if err != nil {
		return err
	}
	in := off % m.p.blockSize
	if err := m.put(p, at+in); err != nil {
		return err
	}
	from, to := in/int64(m.p.logical), (in+int64(len(p)))/int64(m.p.logical)
	b := make([]byte, (to+7)/8-from/8)
	if err := m.cache.read(b, bm+from/8, m.fileSize); err != nil {
		return err
	}
	if setBits(b, from%8, to-from/8*8) {
		if err := m.putTable(b, bm+from/8); err != nil {
			return err
		}
	}
	if to*int64(m.p.logical) < m.blockLen(block) {
		return nil
	}
	// A write to the block's end is the moment to see whether all of it is here by now.
	all := make([]byte, m.p.bitmapLen())
	if err := m.cache.read(all, bm, m.fileSize); err != nil {
		return err
	}
	if set, run := bitRun(all, 0); set && int64(run)*int64(m.p.logical) >= m.blockLen(block) {
		return m.setEntry(m.p.payloadIndex(block), at, stateFull)
	}
	return nil
}

// setBits sets bits [from, to) and reports whether any was clear.
func setBits(b []byte, from, to int64) bool {
	changed := false
	for i := from; i < to; {
		if i%8 == 0 && to-i >= 8 {
			changed = changed || b[i/8] != 0xff
			b[i/8] = 0xff
			i += 8
			continue
		}
		changed = changed || b[i/8]>>(i%8)&1 == 0
		b[i/8] |= 1 << (i % 8)
		i++
	}
	return changed
}

// newPartial gives a block its first sectors: payload, all of the block's bits, the bitmap's entry if it is new, the block's
// entry. Bits left over from an earlier life of the block are overwritten before anything looks at them.
func (m *mutable) newPartial(block int64, p []byte, off int64) error {
	p, off, err := m.aligned(p, off)
	if err != nil {
		return err
	}
	in := off % m.p.blockSize
	at, err := m.allocate(m.p.blockSize)
	if err != nil {
		return err
	}
	if err := m.put(p, at+in); err != nil {
		return err
	}
	slice := make([]byte, m.p.bitmapLen())
	setBits(slice, in/int64(m.p.logical), (in+int64(len(p)))/int64(m.p.logical))
	bi := m.p.bitmapIndex(block)
	e, err := m.entry(bi)
	if err != nil {
		return err
	}
	fresh := entryState(e) != stateFull
	var bm int64
	if fresh {
		bm, err = m.allocate(mib)
	} else {
		bm, err = m.place(e, mib)
	}
	if err != nil {
		return err
	}
	if err := m.putTable(slice, bm+m.p.bitmapOffset(block)); err != nil {
		return err
	}
	if fresh {
		if err := m.setEntry(bi, bm, stateFull); err != nil {
			return err
		}
	}
	return m.setEntry(m.p.payloadIndex(block), at, statePartial)
}

// zero makes a range read as zero, giving whole blocks back.
func (m *mutable) zero(off, n int64) error {
	if err := m.checkRange(off, n); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for n > 0 {
		c := min(n, m.p.blockSize-off%m.p.blockSize)
		if err := m.zeroPart(off, c); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return nil
}

// zeroPart zeroes inside one block.
func (m *mutable) zeroPart(off, n int64) error {
	block := off / m.p.blockSize
	e, err := m.entry(m.p.payloadIndex(block))
	if err != nil {
		return err
	}
	state := entryState(e)
	inParent := state == stateAbsent && m.p.hasParent
	if state != stateFull && state != statePartial {
		if same, err := m.readsZero(inParent, off, n); same || err != nil {
			return err
		}
	}
	if n == m.blockLen(block) && !m.p.fixed {
		return m.zeroBlock(e, block)
	}
	if err := m.begin(); err != nil {
		return err
	}
	if state == stateFull {
		at, err := m.place(e, m.p.blockSize)
		if err != nil {
			return err
		}
		return m.punch(at+off%m.p.blockSize, n)
	}
	// Zeros over a parent's data are data.
	buf := make([]byte, min(n, guard))
	for n > 0 {
		c := min(n, int64(len(buf)))
		if e, err = m.entry(m.p.payloadIndex(block)); err != nil {
			return err
		}
		if entryState(e) == stateAbsent {
			err = m.newPartial(block, buf[:c], off)
		} else {
			err = m.writePartial(e, block, buf[:c], off)
		}
		if err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return nil
}

// zeroBlock unlinks a whole block, so that it reads as zero, and gives its space back.
func (m *mutable) zeroBlock(e uint64, block int64) error {
	if err := m.begin(); err != nil {
		return err
	}
	if err := m.setEntry(m.p.payloadIndex(block), 0, stateZero); err != nil {
		return err
	}
	if s := entryState(e); s != stateFull && s != statePartial {
		return nil
	}
	off := int64(entryOff(e))
	m.space.release(off, m.p.blockSize)
	return m.punch(off, m.p.blockSize)
}
