package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

const (
	granularity   = 32 << 10 // of change tracking; what Hyper-V's finer record is believed to use
	trackingDir   = "tracking"
	trackMagic    = "HFTRACK1"
	trackHeader   = 512  // bytes that are written at once: a sector, so never torn by a kill
	trackBitmapAt = 4096 // where the bitmap begins
	trackCRCAt    = 8
	trackBodyAt   = 12
)

// States of a tracking record.
const (
	trackClosed uint32 = 0 // nobody writes; the disk's identity is Before
	trackOpen   uint32 = 1 // a writer has, or had when it was killed, the disk; its identity is Before or After (zero: any)
	trackBroken uint32 = 2 // the disk was changed without us: the record is worth nothing
)

// A trackHead is the header of a tracking record: whose changes it records, and how the disk was when its writer left.
type trackHead struct {
	State  uint32
	Disk   holdfast.DiskID
	Before holdfast.ID // the disk's DataWriteGuid
	After  holdfast.ID
	Size   int64
	Epoch  uint64
}

func (h trackHead) encode() []byte {
	b := make([]byte, trackHeader)
	copy(b, trackMagic)
	binary.LittleEndian.PutUint32(b[12:], h.State)
	copy(b[16:], h.Disk.ID[:])
	copy(b[32:], h.Before[:])
	copy(b[48:], h.After[:])
	binary.LittleEndian.PutUint64(b[64:], uint64(h.Size))
	binary.LittleEndian.PutUint64(b[72:], h.Epoch)
	binary.LittleEndian.PutUint32(b[80:], granularity)
	binary.LittleEndian.PutUint32(b[trackCRCAt:], crc32.Checksum(b[trackBodyAt:], castagnoli))
	return b
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errTrackFormat = holdfast.Errorf(holdfast.Corrupt, "read change tracking record", "damaged header")

func decodeTrackHead(b []byte) (trackHead, error) {
	var h trackHead
	if len(b) != trackHeader || string(b[:8]) != trackMagic || binary.LittleEndian.Uint32(b[trackCRCAt:]) != crc32.Checksum(b[trackBodyAt:], castagnoli) ||
		binary.LittleEndian.Uint32(b[80:]) != granularity {
		return h, errTrackFormat
	}
	h.State = binary.LittleEndian.Uint32(b[12:])
	copy(h.Disk.ID[:], b[16:])
	copy(h.Before[:], b[32:])
	copy(h.After[:], b[48:])
	h.Size = int64(binary.LittleEndian.Uint64(b[64:]))
	h.Epoch = binary.LittleEndian.Uint64(b[72:])
	if h.State > trackBroken || h.Size < 0 || h.Size > holdfast.MaxDiskSize {
		return h, errTrackFormat
	}
	return h, nil
}

// matches reports whether the disk is as the record's writer left it.
func (h trackHead) matches(i vhdx.Info) bool {
	if h.State == trackBroken || h.Disk != i.DiskID || h.Size != i.Size {
		return false
	}
	killed := h.State == trackOpen && (h.After.IsZero() || h.After == i.DataWriteGUID)
	return killed || h.Before == i.DataWriteGUID
}

// A bitset has one bit per granule of a disk.
type bitset []byte

func newBitset(size int64) bitset { return make(bitset, ((size+granularity-1)/granularity+7)/8) }

// granules returns the first granule of a range and the one after the last.
func granules(off, n int64) (first, end int64) {
	return off / granularity, (off + n + granularity - 1) / granularity
}

// set sets the bits of a range; from and to say which bytes changed.
func (b bitset) set(off, n int64) (from, to int64) {
	first, end := granules(off, n)
	from = -1
	for g := first; g < end; g++ {
		if b[g/8]&(1<<(g%8)) == 0 {
			b[g/8] |= 1 << (g % 8)
			if from < 0 {
				from = g / 8
			}
			to = g/8 + 1
		}
	}
	return max(from, 0), to
}

// extents returns the parts of a range whose bits are set.
func (b bitset) extents(off, n int64) holdfast.Extents {
	var es holdfast.Extents
	first, end := granules(off, n)
	for g := first; g < end; {
		if g%8 == 0 && b[g/8] == 0 {
			g += 8
			continue
		}
		start := g
		for g < end && b[g/8]&(1<<(g%8)) != 0 {
			g++
		}
		if g > start {
			es = append(es, holdfast.Extent{Off: start * granularity, Len: (g - start) * granularity})
			continue
		}
		g++
	}
	return es.Intersect(holdfast.Extents{{Off: off, Len: n}})
}

func trackPath(dir string, disk holdfast.DiskID, epoch uint64) string {
	return filepath.Join(dir, trackingDir, fmt.Sprintf("%s-%d.track", disk, epoch))
}

// createTrack makes the empty record of an epoch, durable when it returns. A leftover of a killed try is replaced.
func createTrack(dir string, epoch uint64, i vhdx.Info) error {
	if err := os.MkdirAll(filepath.Join(dir, trackingDir), 0o700); err != nil {
		return fileError("create change tracking record", err)
	}
	f, err := os.OpenFile(trackPath(dir, i.DiskID, epoch), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fileError("create change tracking record", err)
	}
	h := trackHead{State: trackClosed, Disk: i.DiskID, Before: i.DataWriteGUID, Size: i.Size, Epoch: epoch}
	_, err = f.WriteAt(h.encode(), 0)
	if err == nil {
		err = f.Truncate(trackBitmapAt + int64(len(newBitset(i.Size))))
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = errors.Join(syncDir(filepath.Join(dir, trackingDir)), syncDir(dir))
	}
	if err != nil {
		return fileError("create change tracking record", err)
	}
	return nil
}

// readTrack reads a record whole. The error is hv.ErrTrackingLost where it is gone or damaged.
func readTrack(dir string, disk holdfast.DiskID, epoch uint64) (trackHead, bitset, error) {
	f, err := os.Open(trackPath(dir, disk, epoch))
	if errors.Is(err, fs.ErrNotExist) {
		return trackHead{}, nil, hv.ErrTrackingLost
	}
	if err != nil {
		return trackHead{}, nil, fileError("read change tracking record", err)
	}
	defer f.Close()
	return readTrackFile(f, disk, epoch)
}

func readTrackFile(f *os.File, disk holdfast.DiskID, epoch uint64) (trackHead, bitset, error) {
	b := make([]byte, trackHeader)
	if _, err := f.ReadAt(b, 0); err != nil {
		return trackHead{}, nil, fmt.Errorf("%w: %w", hv.ErrTrackingLost, err)
	}
	h, err := decodeTrackHead(b)
	if err != nil || h.Disk != disk || h.Epoch != epoch {
		return trackHead{}, nil, fmt.Errorf("%w: %w", hv.ErrTrackingLost, errTrackFormat)
	}
	fi, err := f.Stat()
	if err != nil {
		return trackHead{}, nil, fileError("read change tracking record", err)
	}
	if fi.Size() != trackBitmapAt+((h.Size+granularity-1)/granularity+7)/8 {
		return trackHead{}, nil, fmt.Errorf("%w: its length is wrong", hv.ErrTrackingLost)
	}
	bm := newBitset(h.Size)
	if _, err := f.ReadAt(bm, trackBitmapAt); len(bm) > 0 && err != nil {
		return trackHead{}, nil, fmt.Errorf("%w: %w", hv.ErrTrackingLost, err)
	}
	return h, bm, nil
}

// sealTrack checks the current record against the disk when an epoch ends, and marks it broken for good if the disk was
// changed by somebody who did not record it.
func sealTrack(dir string, epoch uint64, disk holdfast.DiskID, i vhdx.Info) error {
	f, err := os.OpenFile(trackPath(dir, disk, epoch), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // lost: whoever asks will be told
	}
	if err != nil {
		return fileError("seal change tracking record", err)
	}
	h, _, err := readTrackFile(f, disk, epoch)
	if err != nil {
		return errors.Join(ignoreLost(err), f.Close())
	}
	if h.matches(i) {
		h.State, h.Before, h.After = trackClosed, i.DataWriteGUID, holdfast.ID{}
	} else {
		h.State = trackBroken
	}
	_, err = f.WriteAt(h.encode(), 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fileError("seal change tracking record", err)
	}
	return nil
}

func ignoreLost(err error) error {
	if errors.Is(err, hv.ErrTrackingLost) {
		return nil
	}
	return err
}

// A tracker records the writes of one process to one disk in one epoch. A lost record stays lost: nothing is recorded then.
type tracker struct {
	f    *os.File // nil: lost
	mu   sync.Mutex
	head trackHead
	bits bitset
}

// openTracker opens the epoch's record for a writer of the disk.
func openTracker(dir string, epoch uint64, i vhdx.Info) (*tracker, error) {
	f, err := os.OpenFile(trackPath(dir, i.DiskID, epoch), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return &tracker{}, nil
	}
	if err != nil {
		return nil, fileError("open change tracking record", err)
	}
	t := &tracker{f: f}
	t.head, t.bits, err = readTrackFile(f, i.DiskID, epoch)
	if err != nil {
		if err = errors.Join(ignoreLost(err), f.Close()); err != nil {
			return nil, err
		}
		return &tracker{}, nil
	}
	if !t.head.matches(i) && t.head.State != trackBroken {
		t.head.State = trackBroken
		err = t.writeHead()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return t, nil
}

func (t *tracker) writeHead() error {
	if _, err := t.f.WriteAt(t.head.encode(), 0); err != nil {
		return fileError("write change tracking record", err)
	}
	return nil
}

// mark records that a range is about to change. before is the disk's DataWriteGuid now.
func (t *tracker) mark(off, n int64, before holdfast.ID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.f == nil || t.head.State == trackBroken {
		return nil
	}
	if t.head.State == trackClosed {
		t.head.State, t.head.Before, t.head.After = trackOpen, before, holdfast.ID{}
		if err := t.writeHead(); err != nil {
			t.head.State = trackClosed
			return err
		}
	}
	from, to := t.bits.set(off, n)
	if to == 0 {
		return nil
	}
	if _, err := t.f.WriteAt(t.bits[from:to], trackBitmapAt+from); err != nil {
		// What is in memory but not in the file must not be taken as recorded by a later write.
		t.head.State = trackBroken
		return errors.Join(fileError("write change tracking record", err), t.writeHead())
	}
	return nil
}

// wrote records the disk's DataWriteGuid after the first change.
func (t *tracker) wrote(after holdfast.ID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.f == nil || t.head.State != trackOpen || t.head.After == after {
		return nil
	}
	t.head.After = after
	return t.writeHead()
}

// flush makes the record durable.
func (t *tracker) flush() error {
	if t.f == nil {
		return nil
	}
	if err := t.f.Sync(); err != nil {
		return fileError("write change tracking record", err)
	}
	return nil
}

// close says how the writer left the disk.
func (t *tracker) close(i vhdx.Info) error {
	if t.f == nil {
		return nil
	}
	var err error
	if t.head.State == trackOpen {
		t.head.State, t.head.Before, t.head.After = trackClosed, i.DataWriteGUID, holdfast.ID{}
		err = t.writeHead()
	}
	if err = errors.Join(err, t.flush(), t.f.Close()); err != nil {
		return fileError("close change tracking record", err)
	}
	return nil
}
