package chunk

import (
	"context"
	"errors"
	"io"

	"github.com/holdfast-backup/holdfast"
)

// What a dedup pool takes for a chunk and a group besides the payload: entries in the container's table and footer, and the chunk's place in
// recipes (docs/formats/container.md, recipe.md).
const (
	chunkOverhead = 36 + 36 + 40
	groupOverhead = 64 + 32 + 4
)

// estimateSlab is how much of a disk is looked at in one piece.
const estimateSlab = 16 << 20

// An Estimate is what disks would take in a dedup pool.
type Estimate struct {
	Size    int64 `json:"size"`    // of the disks
	Looked  int64 `json:"looked"`  // bytes that were looked at
	Zero    int64 `json:"zero"`    // of Size: zeros and holes
	Data    int64 `json:"data"`    // of Size: the rest
	Unique  int64 `json:"unique"`  // of Data: without repetitions, within and between the disks
	Stored  int64 `json:"stored"`  // what Unique takes, compressed, with what a pool needs besides
	Chunks  int64 `json:"chunks"`  // distinct ones
	Sampled int64 `json:"sampled"` // plaintext bytes that were compressed to know
}

// An Estimator looks at disks as a backup into a dedup pool would, without storing anything. It cuts and names every byte of the parts it looks
// at, and compresses one group in so many. Not safe for concurrent use.
type Estimator struct {
	chunking holdfast.Chunking
	enc      *Encoder
	build    *Builder
	hash     *holdfast.Hasher
	every    int // one group in so many is compressed
	part     int // one slab in so many is looked at
	known    map[uint64]struct{}
	groups   int
	out      []byte
	encoded  int64
	e        Estimate
}

// NewEstimator returns an estimator for a chunking and a level. It compresses one group in everyGroup, and looks at one slab of 16 MiB in
// everySlab: what is left out is taken to be like the rest, but repetitions far apart are missed then. Both count from 1.
func NewEstimator(c holdfast.Chunking, level Level, everyGroup, everySlab int) (*Estimator, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	var d holdfast.Domain
	return &Estimator{chunking: c, enc: NewEncoder(level), build: NewBuilder(), hash: d.Hasher(), every: max(everyGroup, 1), part: max(everySlab, 1),
		known: map[uint64]struct{}{}, out: make([]byte, 0, MaxEncoded)}, nil
}

// Add looks at one disk. data lists what may hold anything but zeros, as a normal list; progress, which may be nil, hears how far it is.
func (x *Estimator) Add(ctx context.Context, r io.ReaderAt, size int64, data holdfast.Extents, progress func(done, all int64)) error {
	split, err := NewSplitter(x.chunking, PartitionStarts(r, size, 512)...)
	if err != nil {
		return err
	}
	x.e.Size += size
	holes := size
	buf := make([]byte, estimateSlab)
	for _, ext := range data.Normal(size) {
		holes -= ext.Len
		for off := ext.Off; off < ext.End(); off += estimateSlab {
			n := min(estimateSlab, ext.End()-off)
			if int(off/estimateSlab)%x.part != 0 && ext.Len > estimateSlab {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if k, err := r.ReadAt(buf[:n], off); int64(k) < n && err != nil && !errors.Is(err, io.EOF) {
				return holdfast.Errorf(holdfast.KindOf(err), "estimate", "read at %d: %w", off, err)
			} else if int64(k) < n {
				clear(buf[k:n])
			}
			x.slab(split, buf[:n], off)
			if progress != nil {
				progress(off+n, size)
			}
		}
	}
	x.e.Zero += holes
	return nil
}

// slab cuts one slab. Its last chunk ends with it, which makes one chunk in some hundred too many.
func (x *Estimator) slab(split *Splitter, p []byte, off int64) {
	x.e.Looked += int64(len(p))
	at := 0
	for _, s := range split.Split(p, off, true, nil) {
		c := p[at:s.End]
		at = s.End
		if s.Zero || IsZero(c) {
			x.e.Zero += int64(len(c))
			continue
		}
		x.e.Data += int64(len(c))
		d := x.hash.Sum(c)
		fp := uint64(0)
		for _, b := range d[:8] {
			fp = fp<<8 | uint64(b)
		}
		if _, there := x.known[fp]; there {
			continue
		}
		x.known[fp] = struct{}{}
		x.e.Chunks++
		x.e.Unique += int64(len(c))
		if !x.build.Fits(len(c)) {
			x.flush()
		}
		x.build.Add(d, c)
	}
}

// flush ends a group and compresses it if it is its turn.
func (x *Estimator) flush() {
	if _, n := x.build.Len(); n > 0 {
		if x.groups%x.every == 0 {
			g := x.build.Encode(x.enc, x.out)
			x.e.Sampled += int64(n)
			x.encoded += int64(len(g.Payload))
		}
		x.groups++
		x.build.Reset()
	}
}

// Result returns the estimate for everything added so far. Nothing may be added afterwards.
func (x *Estimator) Result() Estimate {
	x.flush()
	e := x.e
	if e.Sampled > 0 {
		e.Stored = int64(float64(e.Unique) * float64(x.encoded) / float64(e.Sampled))
	}
	e.Stored += e.Chunks*chunkOverhead + int64(x.groups)*groupOverhead
	if looked := e.Zero + e.Data; looked > 0 && looked < e.Size { // the rest is taken to be like what was looked at
		holes := e.Zero - (e.Looked - e.Data)
		scale := float64(e.Size-holes) / float64(max(e.Looked, 1))
		grow := func(n int64) int64 { return int64(float64(n) * scale) }
		e.Zero = holes + grow(e.Looked-e.Data)
		e.Data, e.Unique, e.Stored, e.Chunks = grow(e.Data), grow(e.Unique), grow(e.Stored), grow(e.Chunks)
	}
	return e
}
