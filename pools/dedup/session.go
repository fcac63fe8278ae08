package dedup

import (
	"context"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// A session writes one set. Its data goes to containers of its own, its recipes' nodes to others, so that both lie together.
type session struct {
	p      *Pool
	life   context.Context // of its containers, which several calls fill; stop ends it
	stop   context.CancelFunc
	m      holdfast.Manifest
	parent *lease             // nil: none
	roots  map[int]parentDisk // by number of the disk, of those that inherit
	hasher *holdfast.Hasher   // guarded by mu
	enc    *chunk.Encoder     // guarded by mu; made when the first node comes
	dec    *chunk.Decoder     // guarded by mu

	dense bool    // its containers' groups are encoded as well as can be
	owned []*cont // that this session sealed; guarded by Pool.mu

	pinMu sync.Mutex
	pins  map[uint32]bitmap // by slot: chunks of others' containers that this set relies on

	mu         sync.Mutex // guards what follows
	ended      bool
	committing bool
	failure    error // the first one; fails everything after it
	disks      []diskState
	data       packer
	nodes      packer
	batch      nodeBatch
	badGen     uint64
}

// parentDisk is the disk of the parent set that a disk inherits from.
type parentDisk struct {
	diskTree
	has bool
}

type diskState struct {
	opened, closed bool
	root           diskRoot
	stored         int64
}

// Begin implements pools.Pool.
func (p *Pool) Begin(ctx context.Context, m holdfast.Manifest) (pools.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := m.Check(); err != nil {
		return nil, err
	}
	s := &session{p: p, m: m, roots: map[int]parentDisk{}, pins: map[uint32]bitmap{}, disks: make([]diskState, len(m.Disks)), hasher: p.domain.Hasher()}
	s.life, s.stop = context.WithCancel(p.life)
	s.data = packer{s: s, kind: container.Data}
	s.nodes = packer{s: s, kind: container.Node}
	if err := p.claim(ctx, m.ID); err != nil {
		s.stop()
		return nil, err
	}
	if err := s.inherit(ctx); err != nil {
		p.unclaim(m.ID)
		s.stop()
		return nil, err
	}
	p.mu.Lock()
	s.badGen = p.badGen
	p.sessions[s] = struct{}{}
	p.mu.Unlock()
	return s, nil
}

// claim takes a set's id for a session.
func (p *Pool) claim(ctx context.Context, id holdfast.SetID) error {
	there, err := p.med.Exists(ctx, setName(id))
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, begun := p.begun[id]
	_, known := p.sets[id]
	switch {
	case p.closed:
		return errClosed("begin set")
	case there || begun || known:
		return holdfast.Errorf(holdfast.Exist, "begin set", "the pool has set %s already", id)
	}
	p.begun[id] = struct{}{}
	return nil
}

func (p *Pool) unclaim(id holdfast.SetID) {
	p.mu.Lock()
	delete(p.begun, id)
	p.mu.Unlock()
}

// inherit leases the parent and finds the disks' roots in it.
func (s *session) inherit(ctx context.Context) error {
	if s.m.Parent.IsZero() {
		return nil
	}
	rec, l, err := s.p.leaseSet(ctx, s.m.Parent)
	if err != nil {
		return err
	}
	s.parent = l
	for i, d := range s.m.Disks {
		if !d.Inherit {
			continue
		}
		for j, pd := range rec.manifest.Disks {
			if pd.ID == d.ID {
				s.roots[i] = parentDisk{diskTree{rec.disks[j].root, pd.Size}, true}
			}
		}
		if !s.roots[i].has {
			s.p.endLease(l)
			return holdfast.Errorf(holdfast.Invalid, "begin set", "disk %s inherits, but the parent set %s does not have it", d.ID, s.m.Parent)
		}
	}
	return nil
}

// Disk implements pools.Session.
func (s *session) Disk(ctx context.Context, id holdfast.DiskID) (pools.DiskWriter, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable("open disk"); err != nil {
		return nil, err
	}
	for i := range s.m.Disks {
		if s.m.Disks[i].ID != id {
			continue
		}
		if s.disks[i].opened {
			return nil, holdfast.Errorf(holdfast.Exist, "open disk", "disk %s was opened already", id)
		}
		s.disks[i].opened = true
		return newDiskWriter(s, i), nil
	}
	return nil, holdfast.Errorf(holdfast.NotExist, "open disk", "the set has no disk %s", id)
}

// usable returns why the session takes no more, if so. s.mu is held.
func (s *session) usable(op string) error {
	if s.failure != nil {
		return s.failure
	}
	if s.ended {
		return holdfast.Errorf(holdfast.Invalid, op, "the session has ended")
	}
	return nil
}

// fail notes the first failure of storing and returns err. s.mu is held. Bad input is the caller's own affair and fails nothing.
func (s *session) fail(err error) error {
	if err != nil && s.failure == nil {
		s.failure = err
	}
	return err
}

// Commit implements pools.Session. The order is the promise: data containers, node containers, set record.
func (s *session) Commit(ctx context.Context, m holdfast.Manifest) (pools.Receipt, error) {
	rec, err := s.commit(ctx, m)
	s.end(rec, err)
	if err != nil {
		return pools.Receipt{}, err
	}
	return pools.Receipt{Manifest: rec.manifest}, nil
}

func (s *session) commit(ctx context.Context, m holdfast.Manifest) (*setRecord, error) {
	const op = "commit set"
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(op); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.committing {
		return nil, holdfast.Errorf(holdfast.Busy, op, "the session is being committed")
	}
	s.committing = true
	if err := pools.SameSet(s.m, m); err != nil {
		return nil, err
	}
	rec := &setRecord{pool: s.p.sb.Pool, manifest: m}
	rec.manifest.Disks = append([]holdfast.Disk(nil), m.Disks...)
	rec.manifest.Stats.Stored = 0
	for i := range s.disks {
		d := &s.disks[i]
		if d.opened && !d.closed {
			return nil, holdfast.Errorf(holdfast.Invalid, op, "disk %s is still being written", s.m.Disks[i].ID)
		}
		if !d.opened {
			if err := s.untouched(ctx, i); err != nil {
				return nil, err
			}
		}
		rec.disks = append(rec.disks, d.root)
		rec.manifest.Disks[i].Stats.Stored = d.stored
		rec.manifest.Stats.Stored += d.stored
	}
	if err := s.seal(); err != nil {
		return nil, err
	}
	if err := s.checkPins(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, err := appendSetRecord(nil, rec, s.hasher)
	if err == nil {
		b, err = s.p.sealRecord(setName(rec.manifest.ID), b)
	}
	if err != nil {
		return nil, err
	}
	rec.bytes = int64(len(b))
	if s.p.before != nil {
		names, err := s.p.containersOf(ctx, rec)
		if err != nil {
			return nil, err
		}
		names = append(append(names, superblockName, superblockCopy), s.p.keyObjects()...)
		if err := s.p.before(ctx, names); err != nil {
			return nil, err
		}
	}
	if err := blob.WriteAll(ctx, s.p.med, setName(rec.manifest.ID), b); err != nil {
		// Some stores cannot say whether an object that was sent is there. A set that was not acknowledged had better not be.
		_ = s.p.med.Remove(s.p.life, setName(rec.manifest.ID)) // else it is there, and whole
		return nil, err
	}
	s.p.st.putSet(rec.manifest.ID)
	return rec, nil
}

// seal makes everything the session stored durable: first the data, then the nodes that name it. s.mu is held.
func (s *session) seal() error {
	if err := s.flushNodes(); err != nil {
		return err
	}
	if err := s.data.finish(); err != nil {
		return err
	}
	return s.nodes.finish()
}

// checkPins fails the set if a chunk it relies on was found damaged since the session began. A chunk found damaged after this is
// damage of a committed set.
func (s *session) checkPins() error {
	p := s.p
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.badGen == s.badGen {
		return nil
	}
	s.pinMu.Lock()
	defer s.pinMu.Unlock()
	for slot, pins := range s.pins {
		c := p.slots[slot]
		if c == nil || c.bad == nil {
			continue
		}
		for i := range pins {
			if pins[i]&c.bad[i] != 0 {
				return holdfast.Errorf(holdfast.Transient, "commit set", "a chunk in container %s was found damaged while the set was written", hex16(c.id)).
					Advise("run the backup again: the chunk will be stored anew")
			}
		}
	}
	return nil
}

// end takes the session off the pool's books. rec is the committed set; nil or an error: aborted.
func (s *session) end(rec *setRecord, err error) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.ended = true
	s.stop()
	s.data.abandon()
	s.nodes.abandon()
	s.mu.Unlock()
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.sets[rec.manifest.ID] = sizeOf(rec)
	}
	if p.mark != nil {
		p.mark.ended(s, rec)
	}
	for _, c := range s.owned {
		c.owner = nil
	}
	delete(p.sessions, s)
	delete(p.begun, s.m.ID)
	if s.parent != nil {
		delete(p.leases, s.parent)
	}
}

// Abort implements pools.Session. Chunks that are in sealed containers stay until the next Collect.
func (s *session) Abort(context.Context) error {
	s.end(nil, holdfast.Cancelled)
	return nil
}

// pin remembers that the set relies on chunks of r's last batch. It reports in ok which were still there. What was found but is
// gone meanwhile is not there: storing it again is always right.
func (s *session) pin(r *resolver, ok func(i int, found bool)) {
	p := s.p
	p.mu.RLock()
	defer p.mu.RUnlock()
	s.pinMu.Lock()
	defer s.pinMu.Unlock()
	var last *cont
	var bits bitmap
	for i := range r.hits {
		h := &r.hits[i]
		if h.c == nil || p.slots[h.c.slot] != h.c || !h.c.usable(h.ordinal) {
			ok(i, false)
			continue
		}
		if h.c.owner != s {
			if h.c != last {
				last = h.c
				if bits = s.pins[last.slot]; bits == nil {
					bits = newBitmap(last.n)
					s.pins[last.slot] = bits
				}
			}
			bits.set(h.ordinal)
		}
		ok(i, true)
	}
}
