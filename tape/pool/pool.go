package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/seal"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/media"
)

// maxStreams is how many disks are written at a time: each has a container open.
const maxStreams = 16

// A Pool is an open tape pool. It implements pools.Pool and pools.Stager.
type Pool struct {
	id     holdfast.PoolID
	name   string // of the pool, on labels
	config Config
	keep   time.Duration // retention of a closed media set
	head   superblock
	domain holdfast.Domain
	fs     fsys.FS
	lock   io.Closer
	clk    clock.Clock
	log    func(format string, args ...any)

	ring   *seal.Ring   // nil: tapes are not encrypted
	secret *seal.Secret // that opens keyrings in labels

	stations *stations
	endLib   func(context.Context) error
	writing  chan struct{} // one writer of tapes at a time

	mu      sync.Mutex // guards what follows
	book    *media.Book
	objects map[holdfast.ID][]hft.Entry // what is committed on a media set, in the order in which it was written
	keys    map[holdfast.ID]*hft.Key    // of media sets
	open    map[holdfast.SetID]bool     // being written
	pins    map[holdfast.ID]int         // media sets that sessions and readers need
	users   int                         // sessions and readers
	streams int                         // disks open for writing
	spools  int                         // number of the next spool file
	closed  bool
}

var (
	_ pools.Pool   = (*Pool)(nil)
	_ pools.Stager = (*Pool)(nil)
)

// enter takes mu for an operation. After an error it is not held.
func (p *Pool) enter(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return holdfast.Errorf(holdfast.KindOf(err), op, "%w", err)
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return holdfast.Errorf(holdfast.Offline, op, "the pool is closed")
	}
	return nil
}

// Traits implements pools.Pool.
func (p *Pool) Traits() pools.Traits {
	return pools.Traits{Kind: Kind, ID: p.id, Streams: maxStreams, Order: pools.ByMedium, Offline: true, Chunking: p.head.Chunking, Domain: p.domain}
}

// current returns the media set that a new backup set goes to, and begins one where the allocation says so. The caller holds mu.
func (p *Pool) current() *media.Set {
	now := p.clk.Now()
	var set *media.Set
	if n := len(p.book.Sets); n > 0 && p.book.Sets[n-1].Closed.IsZero() {
		set = p.book.Sets[n-1]
	}
	if set != nil && !p.config.due(set.Created, now) {
		return set
	}
	if set != nil {
		p.book.Close(set, now)
	}
	set = &media.Set{ID: holdfast.NewTimeID(now), Created: now.UTC()}
	p.book.Sets = append(p.book.Sets, set)
	return set
}

// Begin implements pools.Pool.
func (p *Pool) Begin(ctx context.Context, m holdfast.Manifest) (pools.Session, error) {
	const op = "begin set"
	if err := m.Check(); err != nil {
		return nil, err
	}
	if err := p.enter(ctx, op); err != nil {
		return nil, err
	}
	defer p.mu.Unlock()
	if p.open[m.ID] || p.book.Backup(m.ID) != nil {
		return nil, holdfast.Errorf(holdfast.Exist, op, "set %s is there already", m.ID)
	}
	s := newSession(p, m)
	if !m.Parent.IsZero() {
		b := p.book.Backup(m.Parent)
		if b == nil {
			return nil, holdfast.Errorf(holdfast.NotExist, op, "parent set %s is not in this pool", m.Parent)
		}
		r, err := p.record(b.Record)
		if err != nil {
			return nil, err
		}
		for _, d := range m.Disks {
			if _, ok := r.refs(d.ID); d.Inherit && !ok {
				return nil, holdfast.Errorf(holdfast.Invalid, op, "disk %s inherits, but parent set %s does not have it", d.ID, m.Parent)
			}
		}
		s.parent, s.parentMedia = r, b.Media
		p.pins[b.Media]++
	}
	s.media = p.current().ID
	s.learn()
	p.pins[s.media]++
	p.open[m.ID] = true
	p.users++
	return s, nil
}

// Open implements pools.Pool.
func (p *Pool) Open(ctx context.Context, id holdfast.SetID) (pools.Set, error) {
	const op = "open set"
	if err := p.enter(ctx, op); err != nil {
		return nil, err
	}
	b := p.book.Backup(id)
	if b == nil {
		p.mu.Unlock()
		return nil, holdfast.Errorf(holdfast.NotExist, op, "set %s is not in this pool", id)
	}
	r, err := p.record(b.Record)
	if err != nil {
		p.mu.Unlock()
		return nil, err
	}
	s := &set{p: p, rec: r, media: b.Media}
	p.pins[b.Media]++
	p.users++
	p.mu.Unlock()
	away, err := p.away(ctx, r, b.Media)
	if err == nil && len(away) > 0 {
		err = holdfast.Errorf(holdfast.Offline, op, "set %s of VM %s needs cartridges that are not in the library: %s", id, r.manifest.VM.Name, names(away)).
			Advise("bring them, put them into the library's door and import them")
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Delete implements pools.Pool. A tape says so with the next thing that is written.
func (p *Pool) Delete(ctx context.Context, id holdfast.SetID) error {
	if err := p.enter(ctx, "delete set"); err != nil {
		return err
	}
	defer p.mu.Unlock()
	b := p.book.Backup(id)
	if b == nil {
		return nil
	}
	rec := b.Record
	p.book.Delete(id)
	if err := p.save(); err != nil {
		return err
	}
	if err := p.fs.Remove(recordName(rec)); err != nil {
		p.log("remove the record of a deleted set: %v", err) // nobody looks for it any more
	}
	return nil
}

// Sets implements pools.Pool. The order is by id.
func (p *Pool) Sets(ctx context.Context) iter.Seq2[holdfast.Manifest, error] {
	const op = "list sets"
	return func(yield func(holdfast.Manifest, error) bool) {
		if err := p.enter(ctx, op); err != nil {
			yield(holdfast.Manifest{}, err)
			return
		}
		all := make([]media.Backup, 0, len(p.book.Backups))
		for _, b := range p.book.Backups {
			all = append(all, *b)
		}
		p.mu.Unlock()
		slices.SortFunc(all, func(a, b media.Backup) int { return slices.Compare(a.ID.ID[:], b.ID.ID[:]) })
		for _, b := range all {
			if err := ctx.Err(); err != nil {
				yield(holdfast.Manifest{}, holdfast.Errorf(holdfast.KindOf(err), op, "%w", err))
				return
			}
			m, err := readManifest(p.fs, recordName(b.Record))
			if err != nil && !p.has(b.ID) {
				continue // deleted since
			}
			if err != nil {
				m = holdfast.Manifest{ID: b.ID}
			}
			if !yield(m, err) {
				return
			}
		}
	}
}

func (p *Pool) has(id holdfast.SetID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.book.Backup(id) != nil
}

// Usage implements pools.Pool. Size is what the pool's cartridges take, as their memories say.
func (p *Pool) Usage(ctx context.Context) (pools.Usage, error) {
	if err := p.enter(ctx, "measure pool"); err != nil {
		return pools.Usage{}, err
	}
	defer p.mu.Unlock()
	u := pools.Usage{Sets: len(p.book.Backups)}
	for _, b := range p.book.Backups {
		u.Data, u.Chunks = u.Data+b.Data, u.Chunks+b.Chunks
		m, err := readManifest(p.fs, recordName(b.Record))
		if err != nil {
			return u, err
		}
		for _, d := range m.Disks {
			u.Logical += d.Size
		}
	}
	for _, s := range p.book.Sets {
		if s.Given {
			continue
		}
		n := int64(0)
		for _, e := range p.objects[s.ID] {
			n += e.Length
		}
		if u.Stored += n; len(p.book.Live(s.ID)) == 0 {
			u.Reclaimable += n
		}
	}
	for _, c := range p.book.Cartridges {
		u.Size += c.Size
		if c.State == media.Labelled || c.State == media.Writable || c.Takeable() {
			u.Free += max(0, c.Size-c.Used)
		}
	}
	u.Size = max(u.Size, u.Stored)
	u.Free = min(u.Free, u.Size-u.Stored)
	return u, nil
}

// Close implements pools.Pool. Closing twice is a no-op.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	if p.users > 0 {
		p.mu.Unlock()
		return holdfast.Errorf(holdfast.Busy, "close pool", "%d sessions and sets are still open", p.users)
	}
	p.closed = true
	err := p.save()
	p.mu.Unlock()
	ctx := context.Background()
	return errors.Join(err, p.stations.rest(ctx), p.endLib(ctx), p.lock.Close())
}

// leave ends a session's or a reader's use. When nobody is left the drives are given back to the process.
func (p *Pool) leave(sets ...holdfast.ID) {
	p.mu.Lock()
	for _, id := range sets {
		if p.pins[id]--; p.pins[id] <= 0 {
			delete(p.pins, id)
		}
	}
	p.users--
	idle := p.users == 0
	p.mu.Unlock()
	if idle {
		if err := p.stations.rest(context.Background()); err != nil {
			p.log("give the drives back: %v", err)
		}
	}
}

// Names of files in the pool's state folder.
const (
	recordDir = "sets"
	objectDir = "objects"
	spoolDir  = "spool"
)

func recordName(id holdfast.ID) string { return recordDir + "/" + id.String() }
func objectName(id holdfast.ID) string { return objectDir + "/" + id.String() }

// record reads a set's record.
func (p *Pool) record(id holdfast.ID) (*record, error) {
	b, err := fsys.ReadFile(p.fs, recordName(id), maxRecord)
	if err != nil {
		return nil, fsys.Classify("read set record", err)
	}
	return decodeRecord(b)
}

// objectsOf returns what is committed on one tape. The caller holds mu.
func (p *Pool) objectsOf(set, tape holdfast.ID) []hft.Entry {
	var out []hft.Entry
	for _, e := range p.objects[set] {
		if e.Tape == tape {
			out = append(out, e)
		}
	}
	return out
}

// save writes the book. The caller holds mu.
func (p *Pool) save() error { return p.book.Save(p.fs) }

// saveLater writes the book, and leaves it to the next save where that fails: nothing but knowledge about the state of a cartridge is in it. The caller holds mu.
func (p *Pool) saveLater() {
	if err := p.save(); err != nil {
		p.log("%v", err)
	}
}

// committed notes what a commit has made durable on a tape.
func (p *Pool) committed(set, tape holdfast.ID, fresh []hft.Entry, full bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.objects[set] = append(p.objects[set], fresh...)
	if err := p.saveObjects(set); err != nil {
		return err
	}
	c := p.book.Tape(tape)
	if c == nil {
		return holdfast.Errorf(holdfast.Internal, "commit to tape", "tape %s is not in the book", tape)
	}
	for _, e := range fresh {
		c.Used += e.Length
	}
	if c.State == media.Labelled || c.State == media.Writable {
		if c.State = media.Writable; full {
			c.State = media.Full
		}
	}
	return p.save()
}

// names lists cartridges for people.
func names(list []media.Cartridge) string {
	out := ""
	for i, c := range list {
		if i > 0 {
			out += ", "
		}
		out += fmt.Sprintf("%s (number %d of media set %s)", c.Name(), c.Seq, c.Set)
		if c.Vaulted != "" {
			out += " from " + c.Vaulted
		}
	}
	return out
}
