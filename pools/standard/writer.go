package standard

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// stretchLeast is the length of what was placed without a gap from which on the parent's disk is asked for the chunks that come
// next: whoever writes only what a tracker reported as changed has little to find there. From the disk's beginning on, and for
// a disk that is read whole, it is asked at once.
const stretchLeast = 8 << 20

// recordOverhead bounds what a record and its share of the footer take besides its payload.
func recordOverhead(chunks int) int64 { return 64 + 8 + 32 + 72*int64(chunks) }

// A diskWriter writes one disk: data files as chunks come, and the map, merged with the parent's, as they are placed.
type diskWriter struct {
	s    *session
	no   uint16 // of the disk in its set
	disk holdfast.Disk

	mu      sync.Mutex // held during every method
	ended   bool       // dropped
	closed  bool
	end     int64 // of what was placed
	stretch int64 // where what was placed without a gap begins

	cur    *file // data file being written
	pa     *poolPath
	obj    blob.Object
	cw     *container.Writer
	number uint32
	stored int64 // bytes of finished data files

	mw      *mapWriter
	old     *mapReader // the parent's map, from which ranges are inherited; nil if none are
	olds    []*file    // its table
	oldRun  run        // the rest of its run at hand
	oldDone bool
	merged  int64 // the map is complete up to here
	near    *nearby
	nearBad bool // the parent's map cannot be looked into
	files   []*file
	fact    mapFact
}

// ready is the beginning of every method. The caller holds mu.
func (w *diskWriter) ready(ctx context.Context, op string) error {
	if err := w.s.ready(ctx, op); err != nil {
		return err
	}
	if w.closed || w.ended {
		return holdfast.Errorf(holdfast.Invalid, op, "disk %s is closed", w.disk.ID)
	}
	return nil
}

// Missing implements pools.DiskWriter. Present are chunks of this session, and those that the parent's disk holds near to what was
// placed last.
func (w *diskWriter) Missing(ctx context.Context, ds []holdfast.Digest, missing []bool) error {
	const op = "ask for missing chunks"
	if len(ds) != len(missing) {
		return holdfast.Errorf(holdfast.Invalid, op, "%d digests, but room for %d answers", len(ds), len(missing))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ready(ctx, op); err != nil {
		return err
	}
	near := w.lookAround(ctx)
	if err := alive(ctx, op); err != nil {
		return err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for i, d := range ds {
		_, ok := w.s.recent.get(d)
		if !ok && near != nil {
			var l loc
			if l, ok = near.get(d); ok {
				w.s.recent.put(d, l)
			}
		}
		missing[i] = !ok
	}
	return nil
}

// lookAround returns the window of the parent's disk, or nil where it is of no use. A parent that cannot be read is no
// failure here: its data is stored again.
func (w *diskWriter) lookAround(ctx context.Context) *nearby {
	if w.s.parent == nil || w.nearBad || w.disk.Inherit && w.stretch > 0 && w.end-w.stretch < w.s.p.stretch {
		return nil
	}
	if w.near == nil {
		m, files, err := w.s.openParent(ctx, w.disk.ID)
		if m == nil || err != nil {
			w.nearBad = ctx.Err() == nil
			return nil
		}
		w.near = &nearby{p: w.s.p, m: m, files: files}
	}
	if err := w.near.move(ctx, w.end); err != nil {
		w.near.close()
		w.near, w.nearBad = nil, ctx.Err() == nil
		return nil
	}
	return w.near
}

// openParent opens the parent's map of a disk; nil if it has none.
func (s *session) openParent(ctx context.Context, id holdfast.DiskID) (*mapReader, []*file, error) {
	for i := range s.inherit.manifest.Disks {
		if s.inherit.manifest.Disks[i].ID == id {
			return s.p.openMap(ctx, s.parent, s.inherit, i)
		}
	}
	return nil, nil, nil
}

// Put implements pools.DiskWriter. A group of which any chunk is new is stored as it is.
func (w *diskWriter) Put(ctx context.Context, g *holdfast.Group) error {
	const op = "put chunks"
	if err := g.Check(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ready(ctx, op); err != nil {
		return err
	}
	if w.s.knows(g.Chunks) {
		return nil
	}
	if err := w.room(ctx, g); err != nil {
		if ctx.Err() == nil {
			err = w.s.fail(err)
		}
		return err
	}
	first, err := w.cw.Append(container.Data, g)
	if err != nil {
		return w.s.fail(err)
	}
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tails[w.cur] = append(s.tails[w.cur], g.Chunks...)
	for i, c := range g.Chunks {
		s.recent.put(c.Digest, loc{w.cur, first + uint32(i), c.Len})
	}
	return nil
}

// knows reports whether all chunks were put or answered as present not long ago.
func (s *session) knows(chunks []holdfast.Piece) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range chunks {
		if _, ok := s.recent.get(c.Digest); !ok {
			return false
		}
	}
	return true
}

// room makes cw a container that the group fits in, and counts the bytes.
func (w *diskWriter) room(ctx context.Context, g *holdfast.Group) error {
	need := int64(len(g.Payload)) + recordOverhead(len(g.Chunks))
	if w.cw != nil && (w.cw.Size() >= w.s.p.target || !w.cw.Fits(len(g.Chunks)) || w.pa.take(need) != nil) {
		if err := w.seal(); err != nil {
			return err
		}
	} else if w.cw != nil {
		w.cur.fact[0] += need
		return nil
	}
	if err := w.s.mark(ctx); err != nil {
		return err
	}
	pa, err := w.s.p.choose(ctx, w.s.home)
	if err != nil {
		return err
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails since Go 1.24
	f := &file{key: fileKey{path: pa.number, disk: w.no, number: w.number + 1, folder: w.s.folder}}
	f.id.Store(max(binary.LittleEndian.Uint64(id[:]), 1))
	name := f.key.dataName(0)
	w.s.writing(pa.number, name)
	if err := pa.take(need); err != nil {
		return err
	}
	o, err := pa.Store.Create(ctx, name)
	if err != nil {
		pa.taken.Add(-need)
		return err
	}
	w.number++
	f.fact[0] = need
	buf, _ := w.s.p.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	w.cur, w.pa, w.obj, w.cw = f, pa, o, container.NewWriter(o, container.Header{ID: f.id.Load(), Pool: w.s.p.sb.Pool}, *buf)
	w.s.mu.Lock()
	w.s.files = append(w.s.files, f)
	w.s.mu.Unlock()
	return nil
}

// seal finishes the data file being written and makes it durable.
func (w *diskWriter) seal() error {
	if w.cw == nil {
		return nil
	}
	footer := w.cw.Footer()
	fact := fileFact{0, footer.Plain, int64(len(footer.Chunks))}
	size, err := w.cw.Finish()
	buf := w.cw.Buffer()
	w.s.p.buffers.Put(&buf)
	w.cw = nil
	if err != nil {
		w.obj.Abort()
		return err
	}
	if err := w.obj.Commit(); err != nil {
		return err
	}
	fact[0] = size
	w.pa.taken.Add(size - w.cur.fact[0])
	w.s.mu.Lock()
	w.cur.fact, w.cur.wrote, w.cur.sized = fact, fact, true
	delete(w.s.tails, w.cur)
	w.s.mu.Unlock()
	w.stored += size
	return nil
}

// Place implements pools.DiskWriter.
func (w *diskWriter) Place(ctx context.Context, refs []holdfast.Ref) error {
	const op = "place chunks"
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ready(ctx, op); err != nil {
		return err
	}
	if err := pools.CheckRefs(refs, w.end, w.disk.Size); err != nil {
		return err
	}
	locs, err := w.s.find(ctx, refs)
	if err != nil {
		return err
	}
	for i := range refs {
		r := &refs[i]
		if r.Digest.IsZero() {
			continue
		}
		if locs[i].f == nil {
			return holdfast.Errorf(holdfast.NotExist, op, "chunk %s was neither put nor answered as present in this session", r.Digest)
		}
		if int64(r.Skip)+r.Len > int64(locs[i].len) {
			return holdfast.Errorf(holdfast.Invalid, op, "bytes %d to %d of a chunk of %d bytes", r.Skip, int64(r.Skip)+r.Len, locs[i].len)
		}
	}
	if err := w.openMaps(ctx); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // what follows is done whole or the set is lost
	for i := range refs {
		r := &refs[i]
		if r.Off != w.end {
			w.stretch = r.Off
		}
		err := w.fill(ctx, r.Off)
		if err == nil {
			err = w.mw.ref(r, locs[i])
		}
		if err != nil {
			return w.s.fail(err) // the map is not what it should be
		}
		w.end, w.merged = r.End(), r.End()
	}
	return nil
}

// openMaps begins the disk's map, and opens the parent's where ranges are inherited.
func (w *diskWriter) openMaps(ctx context.Context) error {
	if w.mw != nil {
		return nil
	}
	if err := w.s.mark(ctx); err != nil {
		return err
	}
	if w.disk.Inherit && w.old == nil {
		var err error
		if w.old, w.olds, err = w.s.openParent(ctx, w.disk.ID); err != nil {
			return err
		}
	}
	name := mapName(w.s.folder, int(w.no))
	w.s.writing(w.s.home.number, name)
	o, err := w.s.home.Store.Create(ctx, name)
	if err != nil {
		return err
	}
	if w.mw, err = newMapWriter(o, w.s.p.sb.Pool, w.disk.Size); err != nil {
		return w.s.fail(err)
	}
	return nil
}

// fill takes over from the parent's map what lies before the byte to and was not placed.
func (w *diskWriter) fill(ctx context.Context, to int64) error {
	at := w.merged
	w.merged = max(to, at)
	for w.old != nil && !w.oldDone && at < to {
		if w.oldRun.len == 0 {
			r, ok, err := w.old.read()
			if err != nil {
				return err
			}
			if !ok {
				w.oldDone = true
				break
			}
			w.oldRun = r
		}
		r := w.oldRun
		if r.end() <= at {
			w.oldRun = run{}
			continue
		}
		if r.off >= to {
			break
		}
		if err := w.take(ctx, r, max(r.off, at), min(r.end(), to)); err != nil {
			return err
		}
		if r.end() > to {
			break // the rest of it may come after what lies over it
		}
		w.oldRun = run{}
	}
	return nil
}

// take adds a part of a run of the parent's map.
func (w *diskWriter) take(ctx context.Context, r run, off, end int64) error {
	if r.zeros() {
		return w.mw.ref(&holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: end - off}}, loc{})
	}
	f := w.olds[r.file]
	if off != r.off || end != r.end() {
		d, err := w.s.p.openData(ctx, f)
		if err != nil {
			return err
		}
		r, err = d.cut(r, off, end)
		w.s.p.data.release(d)
		if err != nil {
			return err
		}
	}
	i, err := w.mw.fileIndex(f)
	if err != nil {
		return err
	}
	r.file = i
	return w.mw.add(r)
}

// Close implements pools.DiskWriter.
func (w *diskWriter) Close(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return w.s.ready(ctx, "close disk")
	}
	if err := w.ready(ctx, "close disk"); err != nil {
		return err
	}
	return w.finish(ctx)
}

// finish makes the disk's data files and its map durable. The caller holds mu.
func (w *diskWriter) finish(ctx context.Context) error {
	if err := w.openMaps(ctx); err != nil {
		return err
	}
	if err := alive(ctx, "close disk"); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // what follows is done whole or the set is lost
	err := w.seal()
	if err == nil {
		err = w.fill(ctx, w.disk.Size)
	}
	if err == nil {
		w.fact, err = w.mw.finish()
	}
	if err == nil {
		err = w.s.home.take(w.fact.Bytes)
		if err != nil {
			w.fact.Bytes = 0
		}
	}
	if err != nil {
		return w.s.fail(err)
	}
	w.closed, w.files = true, w.mw.files
	w.shut()
	w.mw = nil
	return nil
}

// shut closes what is open for reading.
func (w *diskWriter) shut() {
	if w.old != nil {
		w.old.close()
	}
	w.near.close()
	w.old, w.near = nil, nil
}

// drop gives up what is open.
func (w *diskWriter) drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	if w.cw != nil {
		buf := w.cw.Buffer()
		w.s.p.buffers.Put(&buf)
		w.obj.Abort()
		w.cw = nil
	}
	if w.mw != nil {
		w.mw.o.Abort()
		w.mw = nil
	}
	w.shut()
}
