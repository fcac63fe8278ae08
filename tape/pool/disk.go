package pool

import (
	"context"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// A diskWriter collects one disk's refs. Guarded by the session's mutex.
type diskWriter struct {
	s      *session
	disk   holdfast.Disk
	refs   []ref
	stored int64
	closed bool
}

// enter takes the mutex for an operation of a writer that is not closed.
func (w *diskWriter) enter(ctx context.Context, op string) error {
	if err := w.s.enter(ctx, op); err != nil {
		return err
	}
	if w.closed {
		w.s.mu.Unlock()
		return holdfast.Errorf(holdfast.Invalid, op, "disk %s is closed", w.disk.ID)
	}
	return nil
}

// Missing implements pools.DiskWriter. Chunks of this session and, on the same media set, of the parent are known.
func (w *diskWriter) Missing(ctx context.Context, ds []holdfast.Digest, missing []bool) error {
	const op = "ask for missing chunks"
	if len(ds) != len(missing) {
		return holdfast.Errorf(holdfast.Invalid, op, "%d digests, but room for %d answers", len(ds), len(missing))
	}
	if err := w.enter(ctx, op); err != nil {
		return err
	}
	defer w.s.mu.Unlock()
	for i, d := range ds {
		_, ok := w.s.index[d]
		if k, theirs := w.s.theirs[d]; !ok && theirs {
			w.s.adopt(k)
			ok = true
		}
		missing[i] = !ok
	}
	return nil
}

// Put implements pools.DiskWriter.
func (w *diskWriter) Put(ctx context.Context, g *holdfast.Group) error {
	if err := g.Check(); err != nil {
		return err
	}
	if err := w.enter(ctx, "put chunks"); err != nil {
		return err
	}
	defer w.s.mu.Unlock()
	n, err := w.s.store(ctx, g)
	w.stored += n
	if err != nil {
		w.s.failed = err
	}
	return err
}

// Place implements pools.DiskWriter.
func (w *diskWriter) Place(ctx context.Context, refs []holdfast.Ref) error {
	const op = "place chunks"
	if err := w.enter(ctx, op); err != nil {
		return err
	}
	defer w.s.mu.Unlock()
	end := int64(0)
	if n := len(w.refs); n > 0 {
		end = w.refs[n-1].End()
	}
	if err := pools.CheckRefs(refs, end, w.disk.Size); err != nil {
		return err
	}
	add := make([]ref, len(refs))
	for i, r := range refs {
		add[i] = ref{Extent: r.Extent, chunk: noChunk}
		if r.Digest.IsZero() {
			continue
		}
		k, ok := w.s.index[r.Digest]
		if !ok {
			return holdfast.Errorf(holdfast.NotExist, op, "chunk %s was neither put nor answered as present in this session", r.Digest)
		}
		if int64(r.Skip)+r.Len > int64(w.s.chunks[k].Len) {
			return holdfast.Errorf(holdfast.Invalid, op, "bytes %d to %d of a chunk of %d bytes", r.Skip, int64(r.Skip)+r.Len, w.s.chunks[k].Len)
		}
		add[i].chunk, add[i].skip = k, r.Skip
	}
	w.refs = append(w.refs, add...)
	return nil
}

// Close implements pools.DiskWriter.
func (w *diskWriter) Close(ctx context.Context) error {
	if err := w.s.enter(ctx, "close disk"); err != nil {
		return err
	}
	defer w.s.mu.Unlock()
	if !w.closed {
		w.closed = true
		w.s.p.stream(-1)
	}
	return nil
}
