package dedup

import (
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// A Pool is an open dedup pool. See the package comment; docs/locking.md has the table of its locks.
type Pool struct {
	med      blob.Store
	st       *state
	sb       *superblock
	listener holdfast.Listener
	domain   holdfast.Domain
	closers  []io.Closer // closed in reverse order
	keys     keys
	// life is the context of what outlives the call that began it, such as a container that several calls fill; end ends it.
	life      context.Context
	end       context.CancelFunc
	patient   bool
	shape     Shape
	before    func(ctx context.Context, containers []string) error      // nil: nothing
	heldUntil func(ctx context.Context, name string) (time.Time, error) // nil: nothing is held
	ownerFile bool
	cars      *sidecars // nil: the pool keeps none
	given     uint32    // the driver's generation; 0: none
	footers   footerCache
	groups    groupCache
	hashers   sync.Pool // *holdfast.Hasher
	decoders  sync.Pool // *chunk.Decoder
	encoders  sync.Pool // *chunk.Encoder

	denseEncoders sync.Pool // *chunk.Encoder of Recompress

	spares spares // buffers of reads

	collecting sync.Mutex // held by the one Collect or Verify that runs

	mu       sync.RWMutex // guards everything below; never held over I/O
	closed   bool
	index    table
	slots    []*cont             // by slot; nil once the container is removed
	byID     map[uint64]*cont    // of those that are not removed
	retired  map[uint64]struct{} // containers taken out since the pool was opened; their objects may still be there
	sessions map[*session]struct{}
	leases   map[*lease]struct{} // of open sets and of sessions' parents
	sets     map[holdfast.SetID]setSize
	begun    map[holdfast.SetID]struct{} // ids of running sessions
	deleted  map[holdfast.SetID]struct{} // since the pool was opened: their ids never come back
	mark     *marking                    // of the Collect that runs
	badGen   uint64                      // counts up whenever a chunk is found damaged
	leftover []*cont                     // removed from the index, their objects could not be removed

	relisting sync.Mutex // held by the one relist that runs

	idMu       sync.Mutex // guards the giving of container ids
	generation uint32     // 0: none yet
	highest    uint32     // generation seen in a container's id
	counter    atomic.Uint32
}

// setSize is what Usage needs of a set; logical is -1 until its record was read.
type setSize struct{ logical, bytes int64 }

// A lease keeps what a set needs from being collected.
type lease struct {
	set   holdfast.SetID
	roots []diskTree
}

// A diskTree is one disk's recipe.
type diskTree struct {
	root holdfast.Digest
	size int64
}

func newPool(env pools.Env, m blob.Store, s *superblock) *Pool {
	p := &Pool{
		med: m, sb: s, listener: env.Listener, domain: s.Domain(),
		byID: map[uint64]*cont{}, retired: map[uint64]struct{}{}, sessions: map[*session]struct{}{}, leases: map[*lease]struct{}{},
		sets: map[holdfast.SetID]setSize{}, begun: map[holdfast.SetID]struct{}{}, deleted: map[holdfast.SetID]struct{}{},
	}
	p.life, p.end = context.WithCancel(context.Background())
	p.footers.init(footerCacheBytes)
	p.groups.init(groupCacheBytes)
	p.hashers.New = func() any { return p.domain.Hasher() }
	p.encoders.New = func() any { return chunk.NewEncoder(chunk.LevelDefault) }
	p.denseEncoders.New = func() any { return chunk.NewEncoder(chunk.LevelBest) }
	p.decoders.New = func() any { return chunk.NewDecoder() }
	return p
}

// load fills the index: from kv for containers it knows, from footers for the rest.
func (p *Pool) load(ctx context.Context) error {
	names, err := p.med.List(ctx, containersDir)
	if err != nil {
		return err
	}
	present := make(map[uint64]bool, len(names))
	for _, n := range names {
		if id, ok := containerOfName(n); ok {
			present[id] = true
			p.highest = max(p.highest, uint32(id>>32))
		}
	}
	var unlisted []*contRecord
	p.st.load(func(r *contRecord) {
		p.highest = max(p.highest, uint32(r.id>>32))
		if present[r.id] {
			p.addRecord(r, nil)
			delete(present, r.id)
			return
		}
		unlisted = append(unlisted, r)
	})
	for _, r := range unlisted {
		if err := p.unlisted(ctx, r); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(present)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.adopt(ctx, id); err != nil {
			return err
		}
	}
	return p.loadSets(ctx)
}

// unlisted asks for a container that kv knows and the listing does not have: absence from one listing proves nothing.
func (p *Pool) unlisted(ctx context.Context, r *contRecord) error {
	there, err := p.med.Exists(ctx, contName(r.id))
	if ctx.Err() != nil {
		return err
	}
	if there || err != nil { // where nobody can say it, it counts as there: reading will tell
		p.addRecord(r, nil)
		return nil
	}
	if r.dead == nil || r.dead.count() < len(r.prints) { // otherwise a Collect removed it
		p.listener.Emit(holdfast.Event{Type: holdfast.EventChunkCorrupt, Severity: holdfast.Alarm,
			Text:   fmt.Sprintf("container %s of the pool is not there any more; verify the pool to learn which sets need it", contName(r.id)),
			Fields: map[string]string{"pool": p.sb.Pool.String(), "container": contName(r.id)}})
	}
	p.st.drop(r.id)
	return nil
}

// adopt enters a container that kv does not know, from its footer. One that is not readable is left alone: its chunks are missing, which
// Verify reports, and it is never removed, so that a repair can still find it.
func (p *Pool) adopt(ctx context.Context, id uint64) error {
	r, err := p.med.Open(ctx, contName(id))
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // only read
	h, f, err := container.Load(r, r.Size())
	if err == nil && (h.ID != id || h.Pool != p.sb.Pool) {
		err = holdfast.Errorf(holdfast.Corrupt, "open container", "it is container %x of pool %s", h.ID, h.Pool)
	}
	if k := holdfast.KindOf(err); err != nil && k != holdfast.Corrupt {
		return err
	} else if err != nil {
		p.listener.Emit(holdfast.Event{Type: holdfast.EventChunkCorrupt, Severity: holdfast.Alarm,
			Text:   fmt.Sprintf("container %s is damaged: %v", contName(id), err),
			Fields: map[string]string{"pool": p.sb.Pool.String(), "container": contName(id)}})
		return nil
	}
	rec := newContRecord(id, r.Size(), f)
	p.addRecord(rec, nil)
	p.st.put(rec)
	return nil
}

// relist takes in containers that the listing left out when the pool was opened, and returns how many. Those that this process sealed
// it knows, or is about to.
func (p *Pool) relist(ctx context.Context) (int, error) {
	p.relisting.Lock()
	defer p.relisting.Unlock()
	names, err := p.med.List(ctx, containersDir)
	if err != nil {
		return 0, err
	}
	p.idMu.Lock()
	own := p.generation
	p.idMu.Unlock()
	var fresh []uint64
	p.mu.RLock()
	for _, n := range names {
		id, ok := containerOfName(n)
		_, gone := p.retired[id]
		if ok && !gone && p.byID[id] == nil && (own == 0 || uint32(id>>32) < own) {
			fresh = append(fresh, id)
		}
	}
	p.mu.RUnlock()
	for i, id := range fresh {
		if err := p.adopt(ctx, id); err != nil {
			return i, err
		}
	}
	return len(fresh), nil
}

func (p *Pool) loadSets(ctx context.Context) error {
	names, err := p.med.List(ctx, setsDir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if id, ok := setOfName(n); ok {
			p.sets[id] = setSize{logical: -1}
		}
	}
	for id := range p.st.sets() { // absence from one listing proves nothing
		if _, listed := p.sets[id]; listed {
			continue
		}
		there, err := p.med.Exists(ctx, setName(id))
		if ctx.Err() != nil {
			return err
		}
		if there || err != nil { // where nobody can say it, it counts as there: a Collect then fails closed
			p.sets[id] = setSize{logical: -1}
		} else {
			p.st.dropSet(id)
		}
	}
	return nil
}

// Traits implements pools.Pool.
func (p *Pool) Traits() pools.Traits {
	return pools.Traits{Kind: p.sb.Kind, ID: p.sb.Pool, Order: pools.ByMedium, Dedup: true, Chunking: p.sb.Chunking, Domain: p.domain}
}

// Open implements pools.Pool.
func (p *Pool) Open(ctx context.Context, id holdfast.SetID) (pools.Set, error) {
	s, err := p.openSet(ctx, id)
	if err != nil {
		return nil, err // not s: a nil *set is not a nil pools.Set
	}
	return s, nil
}

func (p *Pool) openSet(ctx context.Context, id holdfast.SetID) (*set, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, l, err := p.leaseSet(ctx, id)
	if err != nil {
		return nil, err
	}
	return &set{p: p, rec: r, lease: l}, nil
}

// leaseSet reads a set's record and takes a lease on it. The lease is taken first by name, so that a Collect which begins in
// between knows of it.
func (p *Pool) leaseSet(ctx context.Context, id holdfast.SetID) (*setRecord, *lease, error) {
	l := &lease{set: id}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, nil, errClosed("open set")
	}
	p.leases[l] = struct{}{}
	p.mu.Unlock()
	r, err := p.loadSet(ctx, id)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil && !p.knows(id, r) {
		err = holdfast.Errorf(holdfast.NotExist, "open set", "the pool has no set %s", id)
	}
	if err != nil {
		delete(p.leases, l)
		return nil, nil, err
	}
	for i, d := range r.disks {
		l.roots = append(l.roots, diskTree{d.root, r.manifest.Disks[i].Size})
	}
	if p.mark != nil {
		p.mark.add(l.roots)
	}
	return r, l, nil
}

// knows reports whether a set whose record was read is there. One that a listing left out when the pool was opened is taken in; one that
// is being deleted, or committed, is not there. Pool.mu is held.
func (p *Pool) knows(id holdfast.SetID, r *setRecord) bool {
	if _, known := p.sets[id]; known {
		return true
	}
	_, begun := p.begun[id]
	_, deleted := p.deleted[id]
	if begun || deleted {
		return false
	}
	p.sets[id] = sizeOf(r)
	return true
}

func (p *Pool) endLease(l *lease) {
	p.mu.Lock()
	delete(p.leases, l)
	p.mu.Unlock()
}

func errClosed(op string) error {
	return holdfast.Errorf(holdfast.Invalid, op, "the pool is closed")
}

// Delete implements pools.Pool. It takes no space.
func (p *Pool) Delete(ctx context.Context, id holdfast.SetID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	size, known := p.sets[id]
	_, begun := p.begun[id]
	if p.closed || begun {
		p.mu.Unlock()
		if begun {
			return holdfast.Errorf(holdfast.Busy, "delete set", "set %s is being written", id)
		}
		return errClosed("delete set")
	}
	p.deleted[id] = struct{}{}
	delete(p.sets, id) // before the record goes, so that a Collect does not take it for lost
	p.mu.Unlock()
	err := p.med.Remove(ctx, setName(id))
	if err != nil {
		p.mu.Lock()
		if known {
			p.sets[id] = size
		}
		delete(p.deleted, id)
		p.mu.Unlock()
	}
	if err == nil {
		p.st.dropSet(id)
	}
	return err
}

// Sets implements pools.Pool.
func (p *Pool) Sets(ctx context.Context) iter.Seq2[holdfast.Manifest, error] {
	return func(yield func(holdfast.Manifest, error) bool) {
		names, err := p.med.List(ctx, setsDir)
		if err != nil {
			yield(holdfast.Manifest{}, err)
			return
		}
		for _, n := range names {
			if err := ctx.Err(); err != nil {
				yield(holdfast.Manifest{}, err)
				return
			}
			id, ok := setOfName(n)
			if !ok {
				if !yield(holdfast.Manifest{}, holdfast.Errorf(holdfast.Corrupt, "list sets", "%q is no name of a set record", n)) {
					return
				}
				continue
			}
			r, err := p.loadSet(ctx, id)
			if holdfast.KindOf(err) == holdfast.NotExist && err != nil {
				continue // deleted meanwhile
			}
			var m holdfast.Manifest
			if err == nil {
				m = r.manifest
			}
			if !yield(m, err) {
				return
			}
		}
	}
}

// Usage implements pools.Pool. Sets whose records cannot be read count with nothing.
func (p *Pool) Usage(ctx context.Context) (pools.Usage, error) {
	free, size, err := p.med.Usage(ctx)
	if err != nil {
		return pools.Usage{}, err
	}
	if err := p.measureSets(ctx); err != nil {
		return pools.Usage{}, err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	u := pools.Usage{Sets: len(p.sets), Free: free, Size: size}
	for _, s := range p.sets {
		u.Logical += max(s.logical, 0)
		u.Stored += s.bytes
	}
	for _, c := range p.byID {
		u.Data += c.plain
		u.Stored += c.size
		u.Chunks += int64(c.n)
		u.Reclaimable += c.reclaimable()
	}
	for _, c := range p.leftover { // the server keeps them, or a removal failed: they are still paid for
		u.Stored += c.size
		u.Reclaimable += c.size
	}
	return u, nil
}

// measureSets reads the records whose sizes are not known yet.
func (p *Pool) measureSets(ctx context.Context) error {
	var ask []holdfast.SetID
	p.mu.RLock()
	for id, s := range p.sets {
		if s.logical < 0 {
			ask = append(ask, id)
		}
	}
	p.mu.RUnlock()
	for _, id := range ask {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := p.loadSet(ctx, id)
		if err != nil {
			continue // counts with nothing; Sets and Verify report it
		}
		p.mu.Lock()
		if _, ok := p.sets[id]; ok {
			p.sets[id] = sizeOf(r)
		}
		p.mu.Unlock()
	}
	return nil
}

func sizeOf(r *setRecord) setSize {
	s := setSize{bytes: r.bytes}
	for _, d := range r.manifest.Disks {
		s.logical += d.Size
	}
	return s
}

// Close implements pools.Pool. It refuses with Busy while sessions or sets are open.
func (p *Pool) Close() error {
	p.collecting.Lock() // waits for a Collect to end
	defer p.collecting.Unlock()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	if n, m := len(p.sessions), len(p.leases); n+m > 0 {
		p.mu.Unlock()
		return holdfast.Errorf(holdfast.Busy, "close pool", "%d sessions and %d sets are open", n, m)
	}
	p.closed = true
	p.mu.Unlock()
	return p.release()
}

// release gives back what the open pool holds.
func (p *Pool) release() error {
	var first error
	if p.end != nil {
		p.end()
	}
	for _, c := range slices.Backward(p.closers) {
		if err := c.Close(); err != nil && first == nil {
			first = classify("close pool", err)
		}
	}
	p.closers = nil
	return first
}

// Abandon gives back what the pool holds of this process without ending anything else, as if the process had died. For tests of drivers.
func (p *Pool) Abandon() { _ = p.release() }

// newContainerID gives the next container id. The first one of a process makes a new generation durable. p.idMu is held.
func (p *Pool) newContainerID() (uint64, error) {
	if p.generation == 0 {
		g, err := p.nextGeneration()
		if err != nil {
			return 0, err
		}
		p.generation = g
	}
	n := p.counter.Add(1)
	return uint64(p.generation)<<32 | uint64(n), nil
}

func (p *Pool) hasher() *holdfast.Hasher { return p.hashers.Get().(*holdfast.Hasher) }
func (p *Pool) encoder() *chunk.Encoder  { return p.encoders.Get().(*chunk.Encoder) }
func (p *Pool) decoder() *chunk.Decoder  { return p.decoders.Get().(*chunk.Decoder) }
func hex16(id uint64) string             { return fmt.Sprintf("%016x", id) }
func parseHex(s string) (uint64, error)  { return strconv.ParseUint(s, 16, 64) }
