package memory

import (
	"context"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// A session is one set being written. Guarded by the medium's mutex.
type session struct {
	pool   *Pool
	begun  holdfast.Manifest
	parent *record                    // what is inherited from; nil for a full set
	pins   map[holdfast.Digest]uint32 // chunks that may be placed, with their length
	disks  map[holdfast.DiskID]*diskWriter
	over   bool // committed or aborted
}

// A diskWriter collects one disk's refs. Guarded by the medium's mutex.
type diskWriter struct {
	s      *session
	disk   holdfast.Disk
	refs   []holdfast.Ref
	stored int64
	closed bool
}

// lock takes the mutex for an operation of a session that is not over.
func (s *session) lock(ctx context.Context, op string) error {
	if err := s.pool.lock(ctx, op); err != nil {
		return err
	}
	if s.over {
		s.pool.unlock()
		return holdfast.Errorf(holdfast.Invalid, op, "the session of set %s is over", s.begun.ID)
	}
	return nil
}

// end forgets the session; the caller holds the mutex.
func (s *session) end() {
	s.over = true
	delete(s.pool.sessions, s)
}

func (s *session) Disk(ctx context.Context, id holdfast.DiskID) (pools.DiskWriter, error) {
	const op = "open disk for writing"
	if err := s.lock(ctx, op); err != nil {
		return nil, err
	}
	defer s.pool.unlock()
	d := s.begun.Disk(id)
	switch {
	case d == nil:
		return nil, holdfast.Errorf(holdfast.NotExist, op, "set %s has no disk %s", s.begun.ID, id)
	case s.disks[id] != nil:
		return nil, holdfast.Errorf(holdfast.Exist, op, "disk %s was opened before", id)
	}
	w := &diskWriter{s: s, disk: *d}
	s.disks[id] = w
	return w, nil
}

func (s *session) Commit(ctx context.Context, m holdfast.Manifest) (pools.Receipt, error) {
	const op = "commit set"
	if err := s.pool.lock(ctx, op); err != nil {
		_ = s.Abort(context.WithoutCancel(ctx)) // the first error is the one to tell
		return pools.Receipt{}, err
	}
	defer s.pool.unlock()
	if s.over {
		return pools.Receipt{}, holdfast.Errorf(holdfast.Invalid, op, "the session of set %s is over", s.begun.ID)
	}
	s.end() // whatever comes now: after an error the session is aborted
	if err := pools.SameSet(s.begun, m); err != nil {
		return pools.Receipt{}, err
	}
	r := &record{maps: map[holdfast.DiskID][]holdfast.Ref{}}
	m.Disks = slices.Clone(m.Disks)
	m.Stats.Stored = 0
	for i := range m.Disks {
		d, w := &m.Disks[i], s.disks[m.Disks[i].ID]
		var refs, old []holdfast.Ref
		d.Stats.Stored = 0
		if w != nil {
			if !w.closed {
				return pools.Receipt{}, holdfast.Errorf(holdfast.Invalid, op, "disk %s is still open for writing", d.ID)
			}
			refs, d.Stats.Stored = w.refs, w.stored
		}
		if d.Inherit {
			old = s.parent.maps[d.ID]
		}
		r.maps[d.ID] = pools.Overlay(old, refs, d.Size, func(r holdfast.Ref) holdfast.Extent { return r.Extent }, pools.CutRef)
		m.Stats.Stored += d.Stats.Stored
	}
	var err error
	if r.manifest, err = holdfast.MarshalManifest(&m); err != nil {
		return pools.Receipt{}, err
	}
	if m, err = holdfast.UnmarshalManifest(r.manifest); err != nil {
		return pools.Receipt{}, err
	}
	s.pool.medium.sets[m.ID] = r
	return pools.Receipt{Manifest: m}, nil
}

func (s *session) Abort(context.Context) error {
	s.pool.medium.mu.Lock()
	defer s.pool.medium.mu.Unlock()
	s.end()
	return nil
}

// lock takes the mutex for an operation of a writer that is not closed.
func (w *diskWriter) lock(ctx context.Context, op string) error {
	if err := w.s.lock(ctx, op); err != nil {
		return err
	}
	if w.closed {
		w.s.pool.unlock()
		return holdfast.Errorf(holdfast.Invalid, op, "disk %s is closed", w.disk.ID)
	}
	return nil
}

func (w *diskWriter) Missing(ctx context.Context, ds []holdfast.Digest, missing []bool) error {
	const op = "ask for missing chunks"
	if len(ds) != len(missing) {
		return holdfast.Errorf(holdfast.Invalid, op, "%d digests, but room for %d answers", len(ds), len(missing))
	}
	if err := w.lock(ctx, op); err != nil {
		return err
	}
	defer w.s.pool.unlock()
	for i, d := range ds {
		s, ok := w.s.pool.medium.where[d]
		missing[i] = !ok
		if ok {
			w.s.pins[d] = s.g.Chunks[s.i].Len
		}
	}
	return nil
}

func (w *diskWriter) Put(ctx context.Context, g *holdfast.Group) error {
	if err := g.Check(); err != nil {
		return err
	}
	if err := w.lock(ctx, "put chunks"); err != nil {
		return err
	}
	defer w.s.pool.unlock()
	w.stored += w.s.pool.medium.put(g)
	for _, c := range g.Chunks {
		w.s.pins[c.Digest] = c.Len
	}
	return nil
}

func (w *diskWriter) Place(ctx context.Context, refs []holdfast.Ref) error {
	const op = "place chunks"
	if err := w.lock(ctx, op); err != nil {
		return err
	}
	defer w.s.pool.unlock()
	end := int64(0)
	if n := len(w.refs); n > 0 {
		end = w.refs[n-1].End()
	}
	if err := pools.CheckRefs(refs, end, w.disk.Size); err != nil {
		return err
	}
	for _, r := range refs {
		if r.Digest.IsZero() {
			continue
		}
		n, ok := w.s.pins[r.Digest]
		if !ok {
			return holdfast.Errorf(holdfast.NotExist, op, "chunk %s was neither put nor answered as present in this session", r.Digest)
		}
		if int64(r.Skip)+r.Len > int64(n) {
			return holdfast.Errorf(holdfast.Invalid, op, "bytes %d to %d of a chunk of %d bytes", r.Skip, int64(r.Skip)+r.Len, n)
		}
	}
	w.refs = append(w.refs, refs...)
	return nil
}

func (w *diskWriter) Close(ctx context.Context) error {
	const op = "close disk"
	if err := w.s.lock(ctx, op); err != nil {
		return err
	}
	defer w.s.pool.unlock()
	w.closed = true
	return nil
}
