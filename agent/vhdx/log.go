package vhdx

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/holdfast-backup/holdfast"
)

const (
	logSector = 4 * kib
	// maxLog bounds the memory of a replay. Writers use 1 MiB; a larger log is replayed by the host that wrote it.
	maxLog = 64 * mib
)

var (
	magicEntry = []byte("loge")
	magicData  = []byte("data")
	magicDesc  = []byte("desc")
	magicZero  = []byte("zero")
)

// overlay is what a dirty log changes: it lies over the file. A sector in the map is newer than any range in zeros.
type overlay struct {
	sectors map[int64][]byte // by file offset, 4096 bytes each
	zeros   holdfast.Extents // normal
	size    int64            // what the file's size becomes, at least
	entries int
}

// patch lays the overlay over bytes read from off.
func (o *overlay) patch(p []byte, off int64) {
	end := off + int64(len(p))
	i, _ := slices.BinarySearchFunc(o.zeros, off, func(e holdfast.Extent, off int64) int {
		if e.End() <= off {
			return -1
		}
		return 1
	})
	for ; i < len(o.zeros) && o.zeros[i].Off < end; i++ {
		z := o.zeros[i]
		clear(p[max(z.Off, off)-off : min(z.End(), end)-off])
	}
	if len(o.sectors) == 0 {
		return
	}
	for at := off / logSector * logSector; at < end; at += logSector {
		if s := o.sectors[at]; s != nil {
			from, to := max(at, off), min(at+logSector, end)
			copy(p[from-off:to-off], s[from-at:to-at])
		}
	}
}

// add applies one descriptor. data is nil for zeros.
func (o *overlay) add(off, n int64, data []byte) {
	if data != nil {
		o.sectors[off] = data
		return
	}
	for at := range o.sectors {
		if at >= off && at < off+n {
			delete(o.sectors, at)
		}
	}
	o.zeros = append(o.zeros, holdfast.Extent{Off: off, Len: n})
}

// logEntry is a valid entry of the log.
//
//	0 "loge"  4 crc  8 length u32  12 tail u32  16 sequence u64  24 descriptors u32  32 log guid  48 flushed size u64  56 last size u64
//	64 descriptors of 32 bytes, the sector filled up; then data sectors of 4096 bytes
type logEntry struct {
	slot, slots int64 // in 4 KiB units from the start of the log
	tail        int64 // offset of the oldest entry needed
	seq         uint64
	count       uint32
	flushed     uint64
	last        uint64
}

// logReader reads the ring.
type logReader struct {
	read func(p []byte, off int64) error
	off  int64
	size int64
	guid holdfast.ID
}

// bytes reads n slots from slot on, wrapping at the end of the ring.
func (l *logReader) bytes(slot, n int64) ([]byte, error) {
	b := make([]byte, n*logSector)
	first := min(n*logSector, l.size-slot*logSector)
	if err := l.read(b[:first], l.off+slot*logSector); err != nil {
		return nil, err
	}
	if int64(len(b)) > first {
		if err := l.read(b[first:], l.off); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// entry returns the valid entry that begins at a slot, or nil.
func (l *logReader) entry(slot int64, head []byte) (*logEntry, error) {
	if !bytes.Equal(head[:4], magicEntry) || getGUID(head[32:]) != l.guid {
		return nil, nil
	}
	length, tail := int64(binary.LittleEndian.Uint32(head[8:])), int64(binary.LittleEndian.Uint32(head[12:]))
	e := &logEntry{slot: slot, slots: length / logSector, tail: tail, seq: binary.LittleEndian.Uint64(head[16:]),
		count: binary.LittleEndian.Uint32(head[24:]), flushed: binary.LittleEndian.Uint64(head[48:]), last: binary.LittleEndian.Uint64(head[56:])}
	if length == 0 || length%logSector != 0 || length > l.size || tail%logSector != 0 || tail >= l.size || e.seq == 0 ||
		64+32*int64(e.count) > length {
		return nil, nil
	}
	b, err := l.bytes(slot, e.slots)
	if err != nil {
		return nil, err
	}
	// An entry holds no other entry's beginning. Looking first keeps the work linear: what is summed never overlaps.
	for at := int64(logSector); at < length; at += logSector {
		if bytes.Equal(b[at:at+4], magicEntry) {
			return nil, nil
		}
	}
	if binary.LittleEndian.Uint32(b[4:]) != checksum(b) || l.decode(e, b, nil) != nil {
		return nil, nil
	}
	return e, nil
}

// decode walks the descriptors of an entry and hands them to o where o is not nil.
func (l *logReader) decode(e *logEntry, b []byte, o *overlay) error {
	at := (64 + 32*int64(e.count) + logSector - 1) / logSector * logSector // the first data sector
	for i := range int64(e.count) {
		d := b[64+32*i:]
		off, seq := binary.LittleEndian.Uint64(d[16:]), binary.LittleEndian.Uint64(d[24:])
		if seq != e.seq || off%logSector != 0 || off > maxFileSize {
			return corrupt("log descriptor %d of entry %d is wrong", i, e.seq)
		}
		switch {
		case bytes.Equal(d[:4], magicZero):
			n := binary.LittleEndian.Uint64(d[8:])
			if n%logSector != 0 || n > maxFileSize {
				return corrupt("zero descriptor %d of log entry %d is wrong", i, e.seq)
			}
			if o != nil && n > 0 {
				o.add(int64(off), int64(n), nil)
			}
		case bytes.Equal(d[:4], magicDesc):
			if at+logSector > int64(len(b)) {
				return corrupt("log entry %d lacks data sectors", e.seq)
			}
			s := b[at : at+logSector]
			at += logSector
			if !bytes.Equal(s[:4], magicData) || uint64(binary.LittleEndian.Uint32(s[4:]))<<32|uint64(binary.LittleEndian.Uint32(s[4092:])) != e.seq {
				return corrupt("data sector of log entry %d is torn", e.seq)
			}
			if o != nil {
				data := make([]byte, logSector)
				copy(data, d[8:16])
				copy(data[8:], s[8:4092])
				copy(data[4092:], d[4:8])
				o.add(int64(off), logSector, data)
			}
		default:
			return corrupt("unknown descriptor in log entry %d", e.seq)
		}
	}
	return nil
}

// entries returns all valid entries by their slot.
func (l *logReader) entries() (map[int64]*logEntry, error) {
	found := make(map[int64]*logEntry)
	chunk := make([]byte, mib)
	for base := int64(0); base < l.size; base += int64(len(chunk)) {
		if err := l.read(chunk, l.off+base); err != nil {
			return nil, err
		}
		for at := int64(0); at < int64(len(chunk)); at += logSector {
			e, err := l.entry((base+at)/logSector, chunk[at:at+logSector])
			if err != nil {
				return nil, err
			}
			if e != nil {
				found[e.slot] = e
			}
		}
	}
	return found, nil
}

// active returns the run of entries to replay, oldest first, or nil: of the runs whose head's tail lies in them, the one with
// the highest head.
func (l *logReader) active(found map[int64]*logEntry) []*logEntry {
	slots := l.size / logSector
	next := func(e *logEntry) *logEntry {
		if n := found[(e.slot+e.slots)%slots]; n != nil && n.seq == e.seq+1 {
			return n
		}
		return nil
	}
	follows := make(map[int64]bool, len(found))
	for _, e := range found {
		if n := next(e); n != nil {
			follows[n.slot] = true
		}
	}
	var best []*logEntry
	for _, e := range found {
		if follows[e.slot] {
			continue
		}
		run := []*logEntry{e}
		for n := next(e); n != nil; n = next(n) { // sequence numbers rise, so this ends
			run = append(run, n)
		}
		head := run[len(run)-1]
		from := slices.IndexFunc(run, func(e *logEntry) bool { return e.slot*logSector == head.tail })
		if from >= 0 && (best == nil || head.seq > best[len(best)-1].seq) {
			best = run[from:]
		}
	}
	return best
}

// replay builds the overlay of a dirty log.
func (l *logReader) replay(fileSize int64) (*overlay, error) {
	found, err := l.entries()
	if err != nil {
		return nil, err
	}
	run := l.active(found)
	if run == nil {
		return nil, corrupt("the log is marked as in use but has no valid entries")
	}
	head := run[len(run)-1]
	if head.flushed > uint64(fileSize) {
		return nil, corrupt("the file was cut: it has %d bytes, its log needs %d", fileSize, head.flushed)
	}
	if head.last > maxFileSize {
		return nil, corrupt("the log wants a file of %d bytes", head.last)
	}
	o := &overlay{sectors: make(map[int64][]byte), size: max(int64(head.last), fileSize), entries: len(run)}
	for _, e := range run {
		b, err := l.bytes(e.slot, e.slots)
		if err != nil {
			return nil, err
		}
		if err := l.decode(e, b, o); err != nil {
			return nil, err
		}
	}
	for off := range o.sectors {
		if off+logSector > o.size {
			return nil, corrupt("the log writes at %d, past the end of the file at %d", off, o.size)
		}
	}
	o.zeros = o.zeros.Normal(o.size)
	return o, nil
}
