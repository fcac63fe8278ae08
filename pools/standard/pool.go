package standard

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"iter"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// Kind is the driver's name.
const Kind = "standard"

// fileTarget is the size at which a data file is finished: large enough for few names and syncs, small enough to go back to
// the medium soon after what is in it was deleted.
const fileTarget = 256 << 20

// A Pool is an open standard pool. It implements pools.Pool, pools.Collector and pools.Verifier. docs/locking.md has the table of its
// locks.
type Pool struct {
	sb       *superblock
	listener holdfast.Listener
	domain   holdfast.Domain
	paths    []*poolPath // by number; nil where a number is not known here
	closers  []io.Closer
	data     dataCache
	hashers  sync.Pool // *holdfast.Hasher
	decoders sync.Pool // *chunk.Decoder
	buffers  sync.Pool // *[]byte of container writers
	spares   sync.Pool // *[]byte of reads
	target   int64     // fileTarget; smaller in tests
	window   int       // windowChunks; smaller in tests
	stretch  int64     // stretchLeast; smaller in tests

	working sync.Mutex // held by the one Collect or Verify that runs
	loading sync.Mutex // held while all records are being read

	mu       sync.Mutex // guards everything below and the fields of files and setStates; never held over I/O
	closed   bool
	sets     map[holdfast.SetID]*setState
	unread   int                    // sets whose record was not read yet
	gone     map[*setState]struct{} // deleted, and still open or parent of a session
	files    map[fileKey]*file      // that a set whose record was read, or a session, needs
	gens     map[fileKey]int        // generations of rewritten files as found on the medium
	sessions map[*session]struct{}
	limbo    map[holdfast.SetID]*session // of failed commits whose record may be there all the same
	leases   int                         // open sets
}

// A setState is what the pool remembers of a committed set. Guarded by Pool.mu, except for id, folder and path.
type setState struct {
	id      holdfast.SetID
	folder  string
	path    uint16
	marker  bool // the session's marker may still be there
	deleted bool
	leases  int
	read    bool // what follows is known
	disks   int
	logical int64
	facts   []mapFact
	bytes   int64 // of record and maps
	files   []*file
}

// Traits implements pools.Pool.
func (p *Pool) Traits() pools.Traits {
	return pools.Traits{Kind: Kind, ID: p.sb.Pool, Order: pools.ByOffset, Chunking: p.sb.Chunking, Domain: p.domain}
}

func newPool(env pools.Env, sb *superblock) *Pool {
	p := &Pool{
		sb: sb, listener: env.Listener, domain: sb.domain(), target: fileTarget, window: windowChunks, stretch: stretchLeast,
		sets: map[holdfast.SetID]*setState{}, gone: map[*setState]struct{}{}, files: map[fileKey]*file{}, gens: map[fileKey]int{}, sessions: map[*session]struct{}{},
		limbo: map[holdfast.SetID]*session{},
	}
	p.data.init()
	p.hashers.New = func() any { return p.domain.Hasher() }
	p.decoders.New = func() any { return chunk.NewDecoder() }
	return p
}

// lock takes mu for an operation. After an error it is not held: Cancelled, or Offline if the pool is closed.
func (p *Pool) lock(ctx context.Context, op string) error {
	if err := alive(ctx, op); err != nil {
		return err
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return holdfast.Errorf(holdfast.Offline, op, "the pool is closed")
	}
	return nil
}

// store returns the store of a path, for an object on it.
func (p *Pool) store(number uint16, name string) (blob.Store, error) {
	if int(number) < len(p.paths) {
		if pa := p.paths[number]; pa != nil && pa.lost == nil {
			return pa.Store, nil
		}
	}
	return nil, holdfast.Errorf(holdfast.Offline, "open object", "%s lies on path %d of the pool (%s), which is not there", name, number, p.label(number)).
		Advise("bring the path back; until then sets that need it cannot be restored, and all others can")
}

// load fills the pool from listings of its paths: which sets there are, and what a dead process left.
func (p *Pool) load(ctx context.Context) error {
	var folders []string
	for n, pa := range p.paths {
		if pa == nil || pa.lost != nil {
			continue
		}
		names, err := pa.Store.List(ctx, vmsFolder)
		if err != nil {
			if err := alive(ctx, "open pool"); err != nil {
				return err
			}
			pa.lost = err
			continue
		}
		p.enter(uint16(n), names)
		for _, name := range names {
			if folder, _ := split(name); len(folders) == 0 || folders[len(folders)-1] != folder {
				folders = append(folders, folder)
			}
		}
	}
	if err := p.needOne(); err != nil {
		return err
	}
	p.tellLost()
	_, err := p.askFor(ctx, folders)
	return err
}

// askFor asks for records of folders that no known set and no session has: a listing may leave names out, and what the
// set needs would be taken for garbage. It enters those it finds and returns how many there are.
func (p *Pool) askFor(ctx context.Context, folders []string) (found int, err error) {
	known := p.folders()
	for _, folder := range folders {
		id, ok := setOfFolder(folder)
		if _, k := known[folder]; k || !ok {
			continue
		}
		known[folder] = nil // ask once
		for n, pa := range p.paths {
			if pa == nil || pa.lost != nil {
				continue
			}
			there, err := pa.Store.Exists(ctx, folder+"/"+recordName)
			if err != nil {
				return found, err
			}
			if !there {
				continue
			}
			p.mu.Lock()
			if p.sets[id] == nil {
				p.sets[id] = &setState{id: id, folder: folder, path: uint16(n)}
				p.unread++
				found++
			}
			p.mu.Unlock()
		}
	}
	return found, nil
}

// enter enters what a listing of a path has.
func (p *Pool) enter(number uint16, names []string) {
	for _, name := range names {
		folder, base := split(name)
		id, ok := setOfFolder(folder)
		if !ok {
			continue
		}
		switch base {
		case recordName:
			if p.sets[id] == nil { // one id has one record, except after an error that made a promise hard to keep
				p.sets[id] = &setState{id: id, folder: folder, path: number}
				p.unread++
			}
		case markerName:
			p.paths[number].markers = append(p.paths[number].markers, folder)
		default:
			if k, gen, ok := parseData(name); ok && gen > 0 {
				k.path = number
				p.gens[k] = max(p.gens[k], gen)
			}
		}
	}
}

func split(name string) (folder, base string) {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[:i], name[i+1:]
		}
	}
	return "", name
}

// sweep removes what sessions of a dead process left: folders with a marker and without a record. Errors do not matter: the
// marker goes last, so the next Open or Collect tries again.
func (p *Pool) sweep(ctx context.Context) {
	records := map[string]*setState{}
	for _, st := range p.sets {
		records[st.folder] = st
	}
	for n, pa := range p.paths {
		if pa == nil || pa.lost != nil {
			continue
		}
		for _, folder := range pa.markers {
			if st := records[folder]; st != nil {
				st.marker = pa.Store.Remove(ctx, folder+"/"+markerName) != nil
				continue
			}
			p.sweepFolder(ctx, uint16(n), folder)
		}
		pa.markers = nil
	}
}

// sweepFolder removes the folder of a dead session from all paths, its marker, on one of them, last.
func (p *Pool) sweepFolder(ctx context.Context, home uint16, folder string) {
	for n, pa := range p.paths {
		if pa == nil {
			continue
		}
		if pa.lost != nil {
			return // what lies there would have no marker any more
		}
		if ok, err := pa.Store.Exists(ctx, folder+"/"+recordName); ok || err != nil {
			return // a listing that lied: it is a set after all
		}
		names, err := pa.Store.List(ctx, folder)
		if err != nil {
			return
		}
		for _, name := range names {
			if name == folder+"/"+markerName && n == int(home) {
				continue
			}
			if pa.Store.Remove(ctx, name) != nil {
				return
			}
		}
	}
	_ = p.paths[home].Store.Remove(ctx, folder+"/"+markerName) // the next Open tries again
}

// readRecord reads a set's record from the medium.
func (p *Pool) readRecord(ctx context.Context, st *setState) (*setRecord, int64, error) {
	s, err := p.store(st.path, st.folder)
	if err != nil {
		return nil, 0, err
	}
	b, err := blob.ReadAll(ctx, s, st.folder+"/"+recordName, maxSetRecord)
	if err != nil {
		return nil, 0, err
	}
	r, err := parseSetRecord(b)
	if err == nil && (r.files.Pool != p.sb.Pool || r.files.Folder != st.folder) {
		err = holdfast.Errorf(holdfast.Corrupt, "read set record", "it is of folder %s in pool %s", r.files.Folder, r.files.Pool)
	}
	return r, int64(len(b)), err
}

// record reads the record of a set and enters what it says. NotExist if the set was deleted meanwhile.
func (p *Pool) record(ctx context.Context, st *setState) (*setRecord, error) {
	r, size, err := p.readRecord(ctx, st)
	p.mu.Lock()
	defer p.mu.Unlock()
	if st.deleted && (err != nil || !st.read) {
		return nil, holdfast.Errorf(holdfast.NotExist, "read set record", "set %s is not in this pool", st.id)
	}
	if err != nil {
		if holdfast.KindOf(err) == holdfast.NotExist {
			err = holdfast.Errorf(holdfast.Corrupt, "read set record", "the record of set %s is not there any more", st.id)
		}
		return nil, err
	}
	p.register(st, r, size)
	return r, nil
}

// register enters what a record says, once. The caller holds mu.
func (p *Pool) register(st *setState, r *setRecord, size int64) {
	if st.read {
		return
	}
	st.read, st.disks, st.bytes, st.facts = true, len(r.manifest.Disks), size, r.files.Maps
	p.unread--
	for i := range r.manifest.Disks {
		st.logical += r.manifest.Disks[i].Size
	}
	for _, m := range r.files.Maps {
		st.bytes += m.Bytes
	}
	p.used(st.path, st.bytes)
	r.files.each(func(k fileKey, fact fileFact) {
		f := p.files[k]
		if f == nil {
			f = &file{key: k, wrote: fact, fact: fact, gen: p.gens[k], sized: p.gens[k] == 0}
			p.files[k] = f
			p.used(k.path, fact[0])
		}
		f.refs++
		st.files = append(st.files, f)
	})
	if st.leases > 0 {
		for _, f := range st.files {
			f.pins++
		}
	}
}

// lease keeps all that a set needs. The caller holds mu.
func (p *Pool) lease(st *setState) {
	if st.leases++; st.leases == 1 {
		for _, f := range st.files {
			f.pins++
		}
	}
}

// unlease gives a lease back, and then what only it kept.
func (p *Pool) unlease(ctx context.Context, st *setState) {
	p.mu.Lock()
	var out trash
	if st.leases--; st.leases == 0 {
		for _, f := range st.files {
			if f.pins--; f.pins == 0 {
				out.stale(f)
			}
		}
		if st.deleted {
			p.drop(st, &out)
		}
	}
	p.mu.Unlock()
	p.empty(ctx, &out)
}

// readRecords reads the records that were not read yet. After nil the pool knows all its files. Eight are read at a time, for
// disks that like that.
func (p *Pool) readRecords(ctx context.Context) error {
	p.loading.Lock()
	defer p.loading.Unlock()
	p.mu.Lock()
	var todo []*setState
	for _, st := range p.sets {
		if !st.read {
			todo = append(todo, st)
		}
	}
	p.mu.Unlock()
	slices.SortFunc(todo, func(a, b *setState) int { return cmp.Compare(a.folder, b.folder) })
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	next := make(chan *setState)
	for range min(8, len(todo)) {
		wg.Go(func() {
			for st := range next {
				if _, err := p.record(ctx, st); err != nil && holdfast.KindOf(err) != holdfast.NotExist {
					mu.Lock()
					if first == nil {
						first = holdfast.Errorf(holdfast.KindOf(err), "read set records", "set %s in %s: %w", st.id, st.folder, err)
					}
					mu.Unlock()
				}
			}
		})
	}
	for _, st := range todo {
		if ctx.Err() != nil {
			break
		}
		next <- st
	}
	close(next)
	wg.Wait()
	if err := alive(ctx, "read set records"); err != nil {
		return err
	}
	if first == nil {
		first = p.measure(ctx)
	}
	return first
}

// measure learns the sizes of rewritten data files, which records know as they were before.
func (p *Pool) measure(ctx context.Context) error {
	var todo []*file
	p.mu.Lock()
	for _, f := range p.files {
		if !f.sized {
			f.pins++
			todo = append(todo, f)
		}
	}
	p.mu.Unlock()
	for _, f := range todo {
		d, err := p.openData(ctx, f)
		p.mu.Lock()
		f.pins--
		if f.sized = true; err == nil && f.gen == d.gen {
			fact := d.measure()
			p.used(f.key.path, fact[0]-f.fact[0])
			f.fact = fact
		}
		p.mu.Unlock()
		if err == nil {
			p.data.release(d)
		}
	}
	return alive(ctx, "read set records")
}

// Sets implements pools.Pool. The order is by id. For each path that is not there it yields an error of kind Offline.
func (p *Pool) Sets(ctx context.Context) iter.Seq2[holdfast.Manifest, error] {
	const op = "list sets"
	return func(yield func(holdfast.Manifest, error) bool) {
		all, err := p.snapshot(ctx, op)
		if err != nil {
			yield(holdfast.Manifest{}, err)
			return
		}
		for _, pa := range p.paths {
			if pa != nil && pa.lost != nil && !yield(holdfast.Manifest{}, pa.lostError(op)) {
				return
			}
		}
		for _, st := range all {
			if err := alive(ctx, op); err != nil {
				yield(holdfast.Manifest{}, err)
				return
			}
			r, err := p.record(ctx, st)
			if err != nil {
				if holdfast.KindOf(err) == holdfast.NotExist {
					continue // deleted since it was listed
				}
				if !yield(holdfast.Manifest{ID: st.id}, err) {
					return
				}
				continue
			}
			if !yield(r.manifest, nil) {
				return
			}
		}
	}
}

// snapshot returns the sets there are, by id.
func (p *Pool) snapshot(ctx context.Context, op string) ([]*setState, error) {
	if err := p.lock(ctx, op); err != nil {
		return nil, err
	}
	all := make([]*setState, 0, len(p.sets))
	for _, st := range p.sets {
		all = append(all, st)
	}
	p.mu.Unlock()
	slices.SortFunc(all, func(a, b *setState) int { return bytes.Compare(a.id.ID[:], b.id.ID[:]) })
	return all, nil
}

// Usage implements pools.Pool. Sets whose record cannot be read count with nothing; Sets and Verify tell about them.
// Reclaimable is what unfinished removals left; what a Collect would gain by rewriting is not known without reading the maps.
func (p *Pool) Usage(ctx context.Context) (pools.Usage, error) {
	const op = "ask for usage"
	if err := p.lock(ctx, op); err != nil {
		return pools.Usage{}, err
	}
	p.mu.Unlock()
	if err := p.readRecords(ctx); err != nil && alive(ctx, op) != nil {
		return pools.Usage{}, err
	}
	c, err := p.space(ctx)
	if err != nil {
		return pools.Usage{}, err
	}
	u := pools.Usage{Free: c.free}
	p.mu.Lock()
	defer p.mu.Unlock()
	u.Sets = len(p.sets)
	for _, st := range p.sets {
		u.Logical += st.logical
		u.Stored += st.bytes
	}
	for _, f := range p.files {
		u.Stored += f.fact[0]
		u.Data += f.fact[1]
		u.Chunks += f.fact[2]
		if f.refs == 0 {
			u.Reclaimable += f.fact[0]
		}
	}
	u.Size = max(c.size, u.Stored+u.Free)
	return u, nil
}

// Close implements pools.Pool. It refuses with Busy while sessions or sets are open.
func (p *Pool) Close() error {
	p.working.Lock() // waits for a Collect or Verify to end
	defer p.working.Unlock()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	if n, m := len(p.sessions), p.leases; n+m > 0 {
		p.mu.Unlock()
		return holdfast.Errorf(holdfast.Busy, "close pool", "%d sessions and %d sets are open", n, m)
	}
	p.closed = true
	p.mu.Unlock()
	return p.release()
}

// release gives back what the open pool holds.
func (p *Pool) release() error {
	p.data.closeAll()
	var first error
	for _, c := range slices.Backward(p.closers) {
		if err := c.Close(); err != nil && first == nil {
			first = holdfast.Errorf(holdfast.KindOf(err), "close pool", "%w", err)
		}
	}
	p.closers = nil
	return first
}
