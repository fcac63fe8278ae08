package standard

import (
	"container/list"
	"context"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// A file is a data file that a set or a session of this pool needs. Guarded by Pool.mu, except for key and id.
type file struct {
	key   fileKey
	id    atomic.Uint64 // of the container; 0: not known yet
	wrote fileFact      // what it was when it was written: ordinals in maps are bounded by it
	fact  fileFact      // what it is
	sized bool          // fact is known for gen
	refs  int           // sets that name it, and the session that writes it
	pins  int           // open sets and sessions that may read it now
	gen   int           // generation that is read
	stale []string      // generations that somebody may still read: to be removed once nothing is pinned
}

// A spot says where a chunk lies.
type spot struct {
	group uint32 // number of its record in the object
	piece holdfast.Piece
	at    uint32 // in the record's plaintext
}

// A dataFile is an open data file with its footer.
type dataFile struct {
	f      *file
	gen    int
	r      blob.Reader
	footer *container.Footer
	id     uint64
	pool   holdfast.PoolID
	moves  []move // of a rewritten file; empty where ordinals are as they were
	refs   int    // guarded by dataCache.mu
	elem   *list.Element
}

// A move says where chunks of a rewritten file went: ordinals in a row, from old on.
type move struct{ old, now, count uint32 }

// chunk returns where the chunk with an ordinal, as maps have it, lies.
func (d *dataFile) chunk(ord uint32) (spot, error) {
	if len(d.moves) > 0 {
		i := sort.Search(len(d.moves), func(i int) bool { return d.moves[i].old+d.moves[i].count > ord })
		if i == len(d.moves) || d.moves[i].old > ord {
			return spot{}, holdfast.Errorf(holdfast.Corrupt, "find chunk", "chunk %d is not in %s any more", ord, d.name()).Advise("verify the pool")
		}
		ord = d.moves[i].now + ord - d.moves[i].old
	}
	if int64(ord) >= int64(len(d.footer.Chunks)) {
		return spot{}, holdfast.Errorf(holdfast.Corrupt, "find chunk", "%s has %d chunks, and the map names number %d", d.name(), len(d.footer.Chunks), ord).
			Advise("verify the pool")
	}
	c := &d.footer.Chunks[ord]
	return spot{c.Group, c.Piece, c.At}, nil
}

func (d *dataFile) name() string { return d.f.key.dataName(d.gen) }

// measure returns what the file is; the list of what was moved does not count.
func (d *dataFile) measure() fileFact {
	fact := fileFact{d.r.Size(), d.footer.Plain, int64(len(d.footer.Chunks))}
	if n := len(d.footer.Groups) - 1; len(d.moves) > 0 {
		fact[1] -= int64(d.footer.Groups[n].Plain)
		fact[2]--
	}
	return fact
}

// each calls f for the chunks of a run: the part of each that the run holds, as a ref, and where the chunk lies.
func (d *dataFile) each(r *run, f func(ref holdfast.Ref, at spot, ord uint32) error) error {
	skip, off := r.skip, r.off
	for ord := r.first; ord < r.last(); ord++ {
		s, err := d.chunk(ord)
		if err != nil {
			return err
		}
		if skip >= s.piece.Len || off >= r.end() {
			return mapCorrupt("chunk %d of %s has %d bytes, which the run at %d does not fit", ord, d.name(), s.piece.Len, r.off)
		}
		n := min(int64(s.piece.Len-skip), r.end()-off)
		if err := f(holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: n}, Digest: s.piece.Digest, Skip: skip}, s, ord); err != nil {
			return err
		}
		off, skip = off+n, 0
	}
	if off != r.end() {
		return mapCorrupt("the chunks of the run at %d in %s end %d bytes early", r.off, d.name(), r.end()-off)
	}
	return nil
}

// cut returns the part of a run from byte off of the disk up to byte end.
func (d *dataFile) cut(r run, off, end int64) (run, error) {
	out := run{off: off, len: end - off, file: r.file}
	err := d.each(&r, func(ref holdfast.Ref, _ spot, ord uint32) error {
		if ref.End() <= off || ref.Off >= end {
			return nil
		}
		if out.count == 0 {
			out.first, out.skip = ord, ref.Skip+uint32(max(off-ref.Off, 0))
		}
		out.count++
		return nil
	})
	return out, err
}

// Bounds of the cache of open data files that nobody uses at the moment.
const (
	cacheFiles = 64
	cacheBytes = 32 << 20
)

// A dataCache keeps data files open.
type dataCache struct {
	mu    sync.Mutex
	open  map[*file]*dataFile
	idle  *list.List // of *dataFile with refs 0, the one used last in front
	bytes int64      // of the idle ones' footers
}

func (c *dataCache) init() { c.open, c.idle = map[*file]*dataFile{}, list.New() }

// take returns the open file of a generation, and one more reference to it, or nil.
func (c *dataCache) take(f *file, gen int) *dataFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.open[f]
	if d == nil || d.gen != gen {
		return nil
	}
	if d.refs++; d.elem != nil {
		c.idle.Remove(d.elem)
		d.elem = nil
		c.bytes -= d.footer.MemBytes()
	}
	return d
}

// put enters a file that was opened, with one reference. Where another one was faster, or there is an older generation, the
// file is used once and not kept.
func (c *dataCache) put(d *dataFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d.refs = 1
	if c.open[d.f] == nil {
		c.open[d.f] = d
	}
}

// hold adds a reference to a file that the caller holds.
func (c *dataCache) hold(d *dataFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d.refs++
}

// release gives a reference back.
func (c *dataCache) release(d *dataFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.refs--; d.refs > 0 {
		return
	}
	if c.open[d.f] != d {
		_ = d.r.Close() // only read
		return
	}
	d.elem = c.idle.PushFront(d)
	c.bytes += d.footer.MemBytes()
	for c.idle.Len() > cacheFiles || c.bytes > cacheBytes && c.idle.Len() > 1 {
		c.drop(c.idle.Back().Value.(*dataFile))
	}
}

// drop closes an idle file. The caller holds mu.
func (c *dataCache) drop(d *dataFile) {
	c.idle.Remove(d.elem)
	c.bytes -= d.footer.MemBytes()
	delete(c.open, d.f)
	_ = d.r.Close() // only read
}

// forget closes a file that is going to be removed, at once or when its last user is done.
func (c *dataCache) forget(f *file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.open[f]
	if d == nil {
		return
	}
	if d.elem != nil {
		c.drop(d)
		return
	}
	delete(c.open, f) // release closes it
}

// closeAll closes what is idle.
func (c *dataCache) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.idle.Len() > 0 {
		c.drop(c.idle.Back().Value.(*dataFile))
	}
}

// openData opens a data file that the caller has pinned, or finds it open. The caller releases it to p.data.
func (p *Pool) openData(ctx context.Context, f *file) (*dataFile, error) {
	for {
		p.mu.Lock()
		gen := f.gen
		p.mu.Unlock()
		if d := p.data.take(f, gen); d != nil {
			return d, nil
		}
		s, err := p.store(f.key.path, f.key.dataName(gen))
		if err != nil {
			return nil, err
		}
		d, err := p.loadData(ctx, s, f, gen)
		if err == nil {
			p.data.put(d)
			return d, nil
		}
		p.mu.Lock()
		rewritten := f.gen != gen
		p.mu.Unlock()
		if !rewritten {
			return nil, err
		}
	}
}

// loadData opens a data file and reads its footer; where that is damaged, the records, which say the same.
func (p *Pool) loadData(ctx context.Context, s blob.Store, f *file, gen int) (*dataFile, error) {
	name := f.key.dataName(gen)
	r, err := s.Open(ctx, name)
	if err != nil {
		if holdfast.KindOf(err) == holdfast.NotExist {
			return nil, holdfast.Errorf(holdfast.Corrupt, "open data file", "%s is not there any more", name).Advise("restore another point in time, and verify the pool")
		}
		return nil, err
	}
	d := &dataFile{f: f, gen: gen, r: r}
	h, footer, err := container.Load(r, r.Size())
	if err != nil && holdfast.KindOf(err) == holdfast.Corrupt {
		if rh, rf, ok := rescue(r, f.wrote); ok && gen == 0 {
			h, footer, err = rh, rf, nil
		}
	}
	if want := f.id.Load(); err == nil && (h.Pool != p.sb.Pool || want != 0 && want != h.ID) {
		err = holdfast.Errorf(holdfast.Corrupt, "open data file", "it is container %016x of pool %s, which the map does not mean", h.ID, h.Pool)
	}
	if err == nil && h.Sealed() {
		err = holdfast.Errorf(holdfast.Unsupported, "open data file", "it is encrypted, which this version does not know of standard pools").
			Advise("open the pool with a newer version of Holdfast")
	}
	if d.footer, d.id, d.pool = footer, h.ID, h.Pool; err == nil && gen > 0 {
		d.moves, err = readMoves(r, footer)
	}
	if err != nil {
		_ = r.Close() // only read
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

// rescue reads a container without its footer, and reports whether no chunk of it is missing.
func rescue(r blob.Reader, fact fileFact) (container.Header, *container.Footer, bool) {
	h, footer, err := container.Scan(r, r.Size())
	return h, footer, err == nil && footer.Plain == fact[1] && int64(len(footer.Chunks)) == fact[2]
}

// readGroup reads a record's payload and checks it.
func (d *dataFile) readGroup(group uint32) (holdfast.Group, error) {
	g, err := container.ReadGroup(d.r, d.footer, group, nil)
	if err != nil {
		return g, fmt.Errorf("%s: %w", d.name(), err)
	}
	return g, nil
}
