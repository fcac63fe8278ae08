package pooltest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/pools"
)

// A site is one pool being checked, with everything the suite knows that it should hold. Methods are safe for concurrent
// use unless they say otherwise.
type site struct {
	T
	pool pools.Pool

	*book

	mu      sync.Mutex
	points  []*point         // committed and not deleted
	coming  *point           // being committed: nobody knows yet
	going   *point           // being deleted: nobody knows yet
	deleted []holdfast.SetID // acknowledged
	made    int              // sets made: the next one's point in time
}

// A book holds the plaintext of every chunk ever made for a domain, and what makes groups.
type book struct {
	mu     sync.Mutex
	hash   *holdfast.Hasher
	known  map[holdfast.Digest][]byte
	codecs []*chunk.Encoder
}

func newBook(d holdfast.Domain) *book {
	b := &book{hash: d.Hasher(), known: map[holdfast.Digest][]byte{}}
	for _, l := range []chunk.Level{chunk.LevelOff, chunk.LevelFast, chunk.LevelDefault} {
		b.codecs = append(b.codecs, chunk.NewEncoder(l))
	}
	return b
}

// learn computes a chunk's digest and remembers its bytes.
func (b *book) learn(p []byte) holdfast.Digest {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.hash.Sum(p)
	if b.known[d] == nil {
		b.known[d] = bytes.Clone(p)
	}
	return d
}

// plain returns the bytes of a chunk, or nil if nobody made it.
func (b *book) plain(d holdfast.Digest) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.known[d]
}

// group encodes chunks with codec number level of codecs.
func (b *book) group(level int, chunks ...[]byte) *holdfast.Group {
	g := chunk.NewBuilder()
	for _, p := range chunks {
		g.Add(b.learn(p), p)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	out := g.Encode(b.codecs[level], nil)
	return &out
}

// A point is a committed set as it should be: a point in time.
type point struct {
	m      holdfast.Manifest // as the receipt had it
	images map[holdfast.DiskID]*image
}

func newSite(t T, p pools.Pool) *site {
	return &site{T: t, pool: p, book: newBook(p.Traits().Domain)}
}

// A spec is what a set is to be.
type spec struct {
	parent  *point                                 // nil: a full set
	images  map[holdfast.DiskID]*image             // what its disks are to hold
	changed map[holdfast.DiskID]holdfast.Extents   // what to write of a disk that inherits; a disk not named does not inherit
	reuse   map[holdfast.DiskID][]holdfast.Ref     // refs of the parent's chunks to place as they are; part of changed
	vm      string                                 // the VM's name
	edit    func(m *holdfast.Manifest)             // last changes to the manifest before Begin
	rng     *rand.Rand                             // chooses codecs and group sizes; nil: one made for the set
	before  func(pools.Session, holdfast.Manifest) // called before Commit
}

// startTime is the point in time of a site's first set. Any would do.
var startTime = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

// manifest makes the manifest for a spec.
func (s *site) manifest(o spec) holdfast.Manifest {
	s.mu.Lock()
	s.made++
	at := startTime.Add(time.Duration(s.made) * time.Minute)
	s.mu.Unlock()
	vm := o.vm
	if vm == "" {
		vm = "vm-1"
	}
	m := holdfast.Manifest{
		ID: holdfast.SetID{ID: holdfast.NewTimeID(at)}, Created: at, Kind: holdfast.Full, Consistency: holdfast.CrashConsistent,
		VM: holdfast.VMInfo{ID: holdfast.VMID{ID: namedID(vm)}, Name: vm, Generation: 2}, HostName: "host-1",
	}
	if o.parent != nil {
		m.Kind, m.Parent = holdfast.Incremental, o.parent.m.ID
	}
	for id, img := range o.images {
		_, inherits := o.changed[id]
		m.Disks = append(m.Disks, holdfast.Disk{
			ID: id, Name: fmt.Sprintf("disk-%s.vhdx", id.String()[:8]), Size: img.size, Format: "vhdx", Subformat: "dynamic",
			BlockSize: 32 << 20, LogicalSector: 512, PhysicalSector: 4096, Controller: "scsi", Inherit: inherits && o.parent != nil,
			Stats: holdfast.Stats{Logical: img.size, Read: 4711, Sent: 815, Stored: 123456789}, // Stored is the pool's to set
		})
	}
	slices.SortFunc(m.Disks, func(a, b holdfast.Disk) int { return bytes.Compare(a.ID.ID[:], b.ID.ID[:]) })
	for i := range m.Disks {
		m.Disks[i].Slot = i
	}
	if o.edit != nil {
		o.edit(&m)
	}
	return m
}

// namedID makes an id out of a short name, so that failing runs can be compared.
func namedID(name string) holdfast.ID {
	var id holdfast.ID
	copy(id[:], name)
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	id[15] |= 1
	return id
}

func diskID(n int) holdfast.DiskID { return holdfast.DiskID{ID: namedID(fmt.Sprintf("dk%03d", n))} }

// backup writes a set, commits it, adds it to the points that are to be there, and returns it. An error ends the check.
func (s *site) backup(o spec) *point {
	s.Helper()
	p, err := s.tryBackup(background, o)
	must(s, err, "backup")
	return p
}

// tryBackup is backup for those who want the error.
func (s *site) tryBackup(ctx context.Context, o spec) (*point, error) {
	m := s.manifest(o)
	ses, err := s.pool.Begin(ctx, m)
	if err != nil {
		return nil, err
	}
	if err := s.write(ctx, ses, m, o); err != nil {
		_ = ses.Abort(context.WithoutCancel(ctx)) // the first error is the one to tell
		return nil, err
	}
	if o.before != nil {
		o.before(ses, m)
	}
	return s.commit(ctx, ses, m, o)
}

// commit ends a session whose disks are written.
func (s *site) commit(ctx context.Context, ses pools.Session, m holdfast.Manifest, o spec) (*point, error) {
	p := &point{m: m, images: map[holdfast.DiskID]*image{}}
	for id, img := range o.images {
		p.images[id] = img.clone()
	}
	s.mu.Lock()
	s.coming = p
	s.mu.Unlock()
	r, err := ses.Commit(ctx, m)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.coming = nil
	if err != nil {
		return nil, err
	}
	p.m = r.Manifest
	s.points = append(s.points, p)
	s.checkReceipt(m, r.Manifest)
	return p, nil
}

// checkReceipt checks that a pool changed nothing of a manifest but the Stored counts, and those to something sensible.
func (s *site) checkReceipt(sent, got holdfast.Manifest) {
	s.Helper()
	var sum int64
	sent.Disks, got.Disks = slices.Clone(sent.Disks), slices.Clone(got.Disks)
	for i := range got.Disks {
		st := got.Disks[i].Stats.Stored
		if st < 0 || st == 123456789 {
			s.Errorf("receipt of set %s: disk %s has %d bytes stored; the pool sets that count", got.ID, got.Disks[i].Name, st)
		}
		sum += st
		got.Disks[i].Stats.Stored = 0
	}
	for i := range sent.Disks {
		sent.Disks[i].Stats.Stored = 0
	}
	if got.Stats.Stored < sum {
		s.Errorf("receipt of set %s: %d bytes stored by the disks, but %d by the set", got.ID, sum, got.Stats.Stored)
	}
	sent.Stats.Stored, got.Stats.Stored = 0, 0
	s.sameManifest(sent, got, "the receipt")
}

// sameManifest compares canonical forms.
func (s *site) sameManifest(want, got holdfast.Manifest, where string) {
	s.Helper()
	a, err := holdfast.MarshalManifest(&want)
	must(s, err, "encode manifest")
	b, err := holdfast.MarshalManifest(&got)
	must(s, err, "encode manifest")
	if !bytes.Equal(a, b) {
		i := 0
		for i < min(len(a), len(b)) && a[i] == b[i] {
			i++
		}
		from := max(0, i-40)
		s.Errorf("%s of set %s: manifest differs: want …%.200s, got …%.200s", where, want.ID, a[from:], b[from:])
	}
}

// write writes the disks of a set, one after the other.
func (s *site) write(ctx context.Context, ses pools.Session, m holdfast.Manifest, o spec) error {
	rng := o.rng
	if rng == nil {
		rng = rand.New(rand.NewPCG(uint64(len(m.Disks)), uint64(m.Created.Unix())))
	}
	for _, d := range m.Disks {
		img := o.images[d.ID]
		if img == nil {
			continue // a disk nobody opens
		}
		what := img.data()
		if d.Inherit {
			what = o.changed[d.ID]
		}
		w, err := s.open(ctx, ses, d.ID, rng)
		if err != nil {
			return err
		}
		if err := w.extents(ctx, img, what, o.reuse[d.ID]); err != nil {
			return err
		}
		if err := w.Close(ctx); err != nil {
			return err
		}
	}
	return nil
}

// listed returns the ids that the pool lists.
func (s *site) listed() map[holdfast.SetID]holdfast.Manifest {
	s.Helper()
	out := map[holdfast.SetID]holdfast.Manifest{}
	for m, err := range s.pool.Sets(background) {
		must(s, err, "list sets")
		if _, ok := out[m.ID]; ok {
			s.Errorf("set %s is listed twice", m.ID)
		}
		out[m.ID] = m
	}
	return out
}

// delete deletes a set of the site.
func (s *site) delete(p *point) {
	s.Helper()
	s.mu.Lock()
	s.going = p
	s.mu.Unlock()
	must(s, s.pool.Delete(background, p.m.ID), "delete set %s", p.m.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.going = nil
	s.points = slices.DeleteFunc(s.points, func(q *point) bool { return q == p })
	s.deleted = append(s.deleted, p.m.ID)
}

// collect collects, where the pool can.
func (s *site) collect() {
	s.Helper()
	if c, ok := s.pool.(pools.Collector); ok {
		_, err := c.Collect(background, pools.CollectOptions{})
		must(s, err, "collect")
	}
}

// checkAll checks that the pool holds exactly the points, each as it was written. Not while others change the site.
func (s *site) checkAll(when string) {
	s.Helper()
	listed := s.listed()
	if len(listed) != len(s.points) {
		s.Errorf("%s: %d sets are listed, want %d", when, len(listed), len(s.points))
	}
	for _, p := range s.points {
		m, ok := listed[p.m.ID]
		if !ok {
			s.Errorf("%s: set %s is not listed", when, p.m.ID)
			continue
		}
		s.sameManifest(p.m, m, when+": the list")
		s.checkPoint(p, when)
	}
}

// checkClean verifies the pool.
func (s *site) checkClean(when string) {
	s.Helper()
	r, err := pools.Verify(background, s.pool, pools.VerifyOptions{})
	must(s, err, "%s: verify", when)
	for _, d := range r.Damaged {
		s.Errorf("%s: verify found damage: %+v", when, d)
	}
	if r.Sets != len(s.points) {
		s.Errorf("%s: verify looked at %d sets, want %d", when, r.Sets, len(s.points))
	}
}
