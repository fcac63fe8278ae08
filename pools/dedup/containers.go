package dedup

import (
	"context"
	"path"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// chunkEntry is where a chunk lies in a container.
type chunkEntry = container.Chunk

// A cont is a sealed container as the open pool knows it.
type cont struct {
	id   uint64
	slot uint32
	n    uint32 // chunks
	// bytes of the file and of the plaintexts
	size, plain int64

	owner *session // that sealed it and still runs: a Collect leaves it alone. Guarded by Pool.mu
	dead  bitmap   // condemned chunks. Guarded by Pool.mu
	bad   bitmap   // damaged chunks. Guarded by Pool.mu

	age   uint8       // Collects of this process it has lived through, up to idleAge. Guarded by Pool.mu
	dense atomic.Bool // it is known that Recompress would gain nothing

	refs atomic.Int32 // one is the pool's; at zero the object is removed
}

// reclaimable estimates what collecting would give back, by the share of condemned chunks.
func (c *cont) reclaimable() int64 {
	if c.dead == nil || c.n == 0 {
		return 0
	}
	return c.size * int64(c.dead.count()) / int64(c.n)
}

// lifeless reports that all chunks are condemned. Pool.mu is held.
func (c *cont) lifeless() bool { return c.dead != nil && c.dead.count() == int(c.n) }

// usable reports that a chunk may be answered as present. Pool.mu is held.
func (c *cont) usable(ordinal uint32) bool { return !c.dead.get(ordinal) && !c.bad.get(ordinal) }

// contName returns the object's name: 256 containers share a folder.
func contName(id uint64) string {
	h := hex16(id)
	return path.Join(containersDir, h[12:14], h)
}

// containerOfName is the inverse of contName.
func containerOfName(name string) (uint64, bool) {
	id, err := parseHex(path.Base(name))
	return id, err == nil && contName(id) == name
}

// A contRecord is what the index needs of a container: kv keeps it.
type contRecord struct {
	id          uint64
	size, plain int64
	prints      []uint64 // fingerprints in order of ordinals
	dead, bad   bitmap   // nil: none
}

func newContRecord(id uint64, size int64, f *container.Footer) *contRecord {
	r := &contRecord{id: id, size: size, plain: f.Plain, prints: make([]uint64, len(f.Chunks))}
	for i := range f.Chunks {
		r.prints[i] = fingerprint(&f.Chunks[i].Digest)
	}
	return r
}

// addRecord enters a sealed container into the index.
func (p *Pool) addRecord(r *contRecord, own *session) *cont {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &cont{id: r.id, slot: uint32(len(p.slots)), n: uint32(len(r.prints)), size: r.size, plain: r.plain, owner: own, dead: r.dead, bad: r.bad}
	c.refs.Store(1)
	p.slots = append(p.slots, c)
	p.byID[c.id] = c
	if own != nil {
		own.owned = append(own.owned, c)
	}
	for i, fp := range r.prints {
		p.index.insert(fp, makeLoc(c.slot, uint32(i)))
	}
	return c
}

// unindex takes containers out of the index. Their objects stay until the last user is gone. Pool.mu is held for writing; the
// entries themselves go by sweepIndex.
func (p *Pool) unindex(c *cont) {
	p.slots[c.slot] = nil
	delete(p.byID, c.id)
	p.retired[c.id] = struct{}{}
}

// sweepIndex removes the entries of containers that are out of the index, one shard at a time so that look-ups never wait long.
func (p *Pool) sweepIndex() {
	for i := range p.index.shards {
		p.mu.Lock()
		p.index.shards[i].filter(func(l loc) bool { return p.slots[l.slot()] != nil })
		p.mu.Unlock()
	}
}

// drop gives up one use of a container and removes its object when it was the last. It reports whether the object is gone.
func (p *Pool) drop(c *cont) bool {
	if c.refs.Add(-1) > 0 {
		return false
	}
	return p.removeObject(c)
}

// removeObject removes the object of a container that nobody uses. One that cannot be removed is tried again by the next Collect.
func (p *Pool) removeObject(c *cont) bool {
	if err := p.med.Remove(p.life, contName(c.id)); err != nil {
		p.mu.Lock()
		p.leftover = append(p.leftover, c)
		p.mu.Unlock()
		return false
	}
	p.st.drop(c.id)
	p.footers.evict(c.slot)
	p.groups.evict(c.slot)
	return true
}

// loadFooter returns the footer of a container that the caller holds or that cannot go. It is shared: read only.
func (p *Pool) loadFooter(ctx context.Context, c *cont) (*container.Footer, error) {
	if f := p.footers.get(c.slot); f != nil {
		return f, nil
	}
	r, err := p.med.Open(ctx, contName(c.id))
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }() // only read
	return p.footerFrom(c, r)
}

// footerFrom is loadFooter where the container is open already.
func (p *Pool) footerFrom(c *cont, r blob.Reader) (*container.Footer, error) {
	if f := p.footers.get(c.slot); f != nil {
		return f, nil
	}
	h, f, err := container.Load(r, r.Size())
	if err != nil {
		return nil, holdfast.Errorf(holdfast.KindOf(err), "container "+hex16(c.id), "%w", err)
	}
	if h.ID != c.id || h.Pool != p.sb.Pool || len(f.Chunks) != int(c.n) {
		return nil, holdfast.Errorf(holdfast.Corrupt, "container "+hex16(c.id), "it holds another container")
	}
	if err := p.unlockFooter(&h, f); err != nil {
		return nil, err
	}
	p.footers.put(c.slot, f, f.MemBytes())
	return f, nil
}

// footerCacheBytes bounds the footers in memory: those of about 20 GiB of chunks at 64 KiB each.
const footerCacheBytes = 16 << 20

// groupCacheBytes bounds the decoded groups of recipe nodes in memory.
const groupCacheBytes = 8 << 20

// footerCache keeps footers by slot.
type footerCache struct{ lru[uint32, *container.Footer] }

func (c *footerCache) evict(slot uint32) { c.remove(slot) }

// groupKey names a decoded group.
type groupKey struct{ slot, group uint32 }

// groupCache keeps the plaintexts of node groups.
type groupCache struct{ lru[groupKey, []byte] }

func (c *groupCache) evict(slot uint32) {
	c.removeIf(func(k groupKey) bool { return k.slot == slot })
}

// An lru keeps values up to a number of bytes and forgets the longest unused first. Safe for concurrent use.
type lru[K comparable, V any] struct {
	mu    sync.Mutex
	limit int64
	bytes int64
	items map[K]*lruItem[K, V]
	root  lruItem[K, V] // ring: root.next is the newest
}

type lruItem[K comparable, V any] struct {
	key        K
	value      V
	bytes      int64
	prev, next *lruItem[K, V]
}

func (l *lru[K, V]) init(limit int64) {
	l.limit, l.items = limit, map[K]*lruItem[K, V]{}
	l.root.prev, l.root.next = &l.root, &l.root
}

func (l *lru[K, V]) get(k K) (v V) {
	l.mu.Lock()
	defer l.mu.Unlock()
	it := l.items[k]
	if it == nil {
		return v
	}
	l.unlink(it)
	l.link(it)
	return it.value
}

func (l *lru[K, V]) put(k K, v V, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.items[k]; old != nil {
		l.forget(old)
	}
	it := &lruItem[K, V]{key: k, value: v, bytes: bytes}
	l.items[k] = it
	l.link(it)
	l.bytes += bytes
	for l.bytes > l.limit && len(l.items) > 1 {
		l.forget(l.root.prev)
	}
}

func (l *lru[K, V]) remove(k K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if it := l.items[k]; it != nil {
		l.forget(it)
	}
}

func (l *lru[K, V]) removeIf(f func(K) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, it := range l.items {
		if f(k) {
			l.forget(it)
		}
	}
}

func (l *lru[K, V]) forget(it *lruItem[K, V]) {
	l.unlink(it)
	delete(l.items, it.key)
	l.bytes -= it.bytes
}

func (l *lru[K, V]) link(it *lruItem[K, V]) {
	it.prev, it.next = &l.root, l.root.next
	it.prev.next, it.next.prev = it, it
}

func (l *lru[K, V]) unlink(it *lruItem[K, V]) {
	it.prev.next, it.next.prev = it.next, it.prev
}
