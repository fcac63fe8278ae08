package dedup

import (
	"context"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// A diskWriter writes one disk of a session.
type diskWriter struct {
	s     *session
	no    int
	build *treeBuilder
	r     resolver
	ds    []holdfast.Digest
	at    []uint32
	ask   []holdfast.Digest
	found []bool
	end   int64 // placed up to here
	done  bool
}

func newDiskWriter(s *session, no int) *diskWriter {
	w := &diskWriter{s: s, no: no, r: resolver{p: s.p, s: s}}
	w.build = newTreeBuilder(s, s.m.Disks[no].Size, s.roots[no])
	return w
}

// untouched gives a disk that was never opened its recipe: the parent's, or nothing. s.mu is held.
func (s *session) untouched(ctx context.Context, no int) error {
	w := newDiskWriter(s, no)
	s.mu.Unlock() // finish stores nodes, for which it takes the lock
	root, err := w.build.finish(ctx)
	s.mu.Lock()
	if err != nil {
		return err
	}
	s.disks[no] = diskState{opened: true, closed: true, root: root}
	return nil
}

// check returns why a call cannot go on.
func (w *diskWriter) check(ctx context.Context, op string) error {
	if w.done {
		return holdfast.Errorf(holdfast.Invalid, op, "the disk is closed")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return w.s.usable(op)
}

// Missing implements pools.DiskWriter.
func (w *diskWriter) Missing(ctx context.Context, ds []holdfast.Digest, missing []bool) error {
	const op = "ask for missing chunks"
	if err := w.check(ctx, op); err != nil {
		return err
	}
	if len(ds) != len(missing) {
		return holdfast.Errorf(holdfast.Invalid, op, "%d answers for %d questions", len(missing), len(ds))
	}
	return w.lookUp(ctx, ds, func(i int, found bool) { missing[i] = !found })
}

// lookUp tells for each digest whether the set can rely on it from now on, and pins what is others'.
func (w *diskWriter) lookUp(ctx context.Context, ds []holdfast.Digest, answer func(i int, found bool)) error {
	w.ds, w.at = w.ds[:0], w.at[:0]
	w.s.mu.Lock()
	for i := range ds {
		if _, ok := w.s.own(&ds[i]); ok {
			answer(i, true)
			continue
		}
		w.ds = append(w.ds, ds[i])
		w.at = append(w.at, uint32(i))
	}
	w.s.mu.Unlock()
	if len(w.ds) == 0 {
		return nil
	}
	if err := w.r.resolve(ctx, w.ds, forReuse); err != nil {
		return err
	}
	w.s.pin(&w.r, func(i int, found bool) { answer(int(w.at[i]), found) })
	w.r.release()
	return nil
}

// Put implements pools.DiskWriter.
func (w *diskWriter) Put(ctx context.Context, g *holdfast.Group) error {
	if err := w.check(ctx, "put group"); err != nil {
		return err
	}
	if err := g.Check(); err != nil {
		return err
	}
	n := len(g.Chunks)
	w.found = slices.Grow(w.found[:0], n)[:n]
	w.ask = w.ask[:0]
	for i := range g.Chunks {
		w.ask = append(w.ask, g.Chunks[i].Digest)
	}
	if err := w.lookUp(ctx, w.ask, func(i int, found bool) { w.found[i] = found }); err != nil {
		return err
	}
	there := 0
	for i, f := range w.found {
		if f {
			there += int(g.Chunks[i].Len)
		}
	}
	plain := g.PlainLen()
	if there == plain {
		return nil
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if err := w.s.usable("put group"); err != nil {
		return err
	}
	if there*2 >= plain { // decoding and encoding again is worth half a group, not less
		var err error
		if g, err = w.s.shrink(g, w.found); err != nil {
			return err
		}
	}
	stored, err := w.s.data.put(g)
	w.s.disks[w.no].stored += stored
	return w.s.fail(err)
}

// shrink returns a group of the chunks that are not there yet. s.mu is held.
func (s *session) shrink(g *holdfast.Group, there []bool) (*holdfast.Group, error) {
	return s.p.repack(g, func(i int) bool { return !there[i] })
}

// Place implements pools.DiskWriter.
func (w *diskWriter) Place(ctx context.Context, refs []holdfast.Ref) error {
	const op = "place"
	if err := w.check(ctx, op); err != nil {
		return err
	}
	if err := pools.CheckRefs(refs, w.end, w.s.m.Disks[w.no].Size); err != nil {
		return err
	}
	if err := w.checkChunks(ctx, refs); err != nil {
		return err
	}
	for _, r := range refs {
		if err := w.build.place(ctx, r); err != nil {
			w.s.mu.Lock()
			defer w.s.mu.Unlock()
			return w.s.fail(err)
		}
		w.end = r.End()
	}
	return nil
}

// checkChunks refuses refs to chunks that the set may not rely on or that are shorter than the refs say.
func (w *diskWriter) checkChunks(ctx context.Context, refs []holdfast.Ref) error {
	const op = "place"
	w.ds, w.at = w.ds[:0], w.at[:0]
	w.s.mu.Lock()
	var short *holdfast.Ref
	for i := range refs {
		d := &refs[i].Digest
		if d.IsZero() {
			continue
		}
		if e, ok := w.s.own(d); ok {
			if int64(refs[i].Skip)+refs[i].Len > int64(e.Len) {
				short = &refs[i]
			}
			continue
		}
		w.ds = append(w.ds, *d)
		w.at = append(w.at, uint32(i))
	}
	w.s.mu.Unlock()
	var stranger *holdfast.Ref
	if len(w.ds) > 0 {
		if err := w.r.resolve(ctx, w.ds, forPlacing); err != nil {
			return err
		}
		for i := range w.r.hits {
			ref, h := &refs[w.at[i]], &w.r.hits[i]
			if h.c == nil {
				stranger = ref
			} else if int64(ref.Skip)+ref.Len > int64(h.chunk.Len) {
				short = ref
			}
		}
		w.r.release()
	}
	switch {
	case stranger != nil:
		return holdfast.Errorf(holdfast.NotExist, op, "chunk %s at %d was neither put nor answered as present", stranger.Digest, stranger.Off)
	case short != nil:
		return holdfast.Errorf(holdfast.Invalid, op, "the ref at %d names bytes beyond the end of chunk %s", short.Off, short.Digest)
	}
	return nil
}

// Close implements pools.DiskWriter.
func (w *diskWriter) Close(ctx context.Context) error {
	if w.done {
		return nil
	}
	if err := w.check(ctx, "close disk"); err != nil {
		return err
	}
	root, err := w.build.finish(ctx)
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if err != nil {
		return w.s.fail(err)
	}
	w.done = true
	w.s.disks[w.no].root, w.s.disks[w.no].closed = root, true
	return nil
}
