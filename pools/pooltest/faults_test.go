package pooltest_test

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

// This file shows that the suite catches what it is there for: the reference driver with one fault each.

// A recorder is a T that remembers.
type recorder struct {
	mu   sync.Mutex
	errs []string
}

func (r *recorder) Helper()             {}
func (r *recorder) Logf(string, ...any) {}
func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, fmt.Sprintf(format, args...))
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// faulty is a memory pool with the faults that are set.
type faulty struct {
	*memory.Pool
	medium *memory.Medium
	f      fault
	seen   *sync.Map // digests ever put
	gone   *sync.Map // manifests of deleted sets
}

// A fault changes what a pool does in one place.
type fault struct {
	traits   func(t *pools.Traits)
	begin    func(m *holdfast.Manifest)
	commit   func(s *session, m *holdfast.Manifest)
	missing  func(p *faulty, ds []holdfast.Digest, missing []bool) bool // true: that is the answer
	put      func(w *diskWriter, g *holdfast.Group) bool                // true: it is done
	place    func(refs []holdfast.Ref) []holdfast.Ref
	parcel   func(p *holdfast.Parcel)
	mapped   func(r *holdfast.Ref) bool // false: left out
	set      func(m *holdfast.Manifest)
	list     func(p *faulty, yield func(holdfast.Manifest, error) bool)
	verify   func(r *pools.VerifyReport)
	ctx      func(ctx context.Context) context.Context
	delete   func(p *faulty, id holdfast.SetID) error
	noUnpin  bool // sessions never end
	noCommit bool // commit does nothing
}

func (p *faulty) Traits() pools.Traits {
	t := p.Pool.Traits()
	if p.f.traits != nil {
		p.f.traits(&t)
	}
	return t
}

func (p *faulty) Begin(ctx context.Context, m holdfast.Manifest) (pools.Session, error) {
	if p.f.begin != nil {
		m.Disks = slices.Clone(m.Disks)
		p.f.begin(&m)
	}
	s, err := p.Pool.Begin(ctx, m)
	if err != nil {
		return nil, err
	}
	return &session{Session: s, p: p}, nil
}

func (p *faulty) Open(ctx context.Context, id holdfast.SetID) (pools.Set, error) {
	if p.f.ctx != nil {
		ctx = p.f.ctx(ctx)
	}
	s, err := p.Pool.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	return &set{s, p}, nil
}

func (p *faulty) Delete(ctx context.Context, id holdfast.SetID) error {
	if p.f.delete != nil {
		if err := p.f.delete(p, id); err != nil {
			return err
		}
	}
	return p.Pool.Delete(ctx, id)
}

func (p *faulty) Sets(ctx context.Context) iter.Seq2[holdfast.Manifest, error] {
	return func(yield func(holdfast.Manifest, error) bool) {
		for m, err := range p.Pool.Sets(ctx) {
			if !yield(m, err) {
				return
			}
		}
		if p.f.list != nil {
			p.f.list(p, yield)
		}
	}
}

func (p *faulty) Verify(ctx context.Context, o pools.VerifyOptions) (pools.VerifyReport, error) {
	r, err := p.Pool.Verify(ctx, o)
	if p.f.verify != nil {
		p.f.verify(&r)
	}
	return r, err
}

type session struct {
	pools.Session
	p    *faulty
	mu   sync.Mutex
	open []pools.DiskWriter
}

func (s *session) Disk(ctx context.Context, id holdfast.DiskID) (pools.DiskWriter, error) {
	w, err := s.Session.Disk(ctx, id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = append(s.open, w)
	return &diskWriter{w, s}, nil
}

func (s *session) Commit(ctx context.Context, m holdfast.Manifest) (pools.Receipt, error) {
	if s.p.f.commit != nil {
		s.p.f.commit(s, &m)
	}
	if s.p.f.noCommit {
		return pools.Receipt{Manifest: m}, s.Session.Abort(ctx)
	}
	return s.Session.Commit(ctx, m)
}

func (s *session) Abort(ctx context.Context) error {
	if s.p.f.noUnpin {
		return nil
	}
	return s.Session.Abort(ctx)
}

type diskWriter struct {
	pools.DiskWriter
	s *session
}

func (w *diskWriter) Missing(ctx context.Context, ds []holdfast.Digest, missing []bool) error {
	if f := w.s.p.f.missing; f != nil && len(ds) == len(missing) && f(w.s.p, ds, missing) {
		return ctx.Err()
	}
	return w.DiskWriter.Missing(ctx, ds, missing)
}

func (w *diskWriter) Put(ctx context.Context, g *holdfast.Group) error {
	for _, c := range g.Chunks {
		w.s.p.seen.Store(c.Digest, true)
	}
	if w.s.p.f.put != nil && w.s.p.f.put(w, g) {
		return ctx.Err()
	}
	return w.DiskWriter.Put(ctx, g)
}

func (w *diskWriter) Place(ctx context.Context, refs []holdfast.Ref) error {
	if w.s.p.f.place != nil {
		refs = w.s.p.f.place(slices.Clone(refs))
	}
	return w.DiskWriter.Place(ctx, refs)
}

type set struct {
	pools.Set
	p *faulty
}

func (s *set) Manifest() holdfast.Manifest {
	m := s.Set.Manifest()
	if s.p.f.set != nil {
		s.p.f.set(&m)
	}
	return m
}

func (s *set) Map(ctx context.Context, d holdfast.DiskID) iter.Seq2[holdfast.Ref, error] {
	return func(yield func(holdfast.Ref, error) bool) {
		for r, err := range s.Set.Map(ctx, d) {
			if err == nil && s.p.f.mapped != nil && !s.p.f.mapped(&r) {
				continue
			}
			if !yield(r, err) {
				return
			}
		}
	}
}

func (s *set) Read(ctx context.Context, d holdfast.DiskID, want holdfast.Extents) iter.Seq2[*holdfast.Parcel, error] {
	return func(yield func(*holdfast.Parcel, error) bool) {
		for p, err := range s.Set.Read(ctx, d, want) {
			if err == nil && s.p.f.parcel != nil {
				s.p.f.parcel(p)
			}
			if !yield(p, err) {
				return
			}
		}
	}
}

// faultyHarness makes memory pools with a fault.
func faultyHarness(f fault) pooltest.Harness {
	wrap := func(t pooltest.T, m *memory.Medium) pools.Pool {
		p, err := m.Open()
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		return &faulty{Pool: p, medium: m, f: f, seen: &sync.Map{}, gone: &sync.Map{}}
	}
	return pooltest.Harness{
		New: func(t pooltest.T) pools.Pool {
			c, _ := holdfast.ParseChunking("")
			m, err := memory.NewMedium(holdfast.PoolID{ID: holdfast.NewID()}, c)
			if err != nil {
				t.Fatalf("new: %v", err)
			}
			return wrap(t, m)
		},
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return wrap(t, p.(*faulty).medium)
		},
		Crash: func(t pooltest.T, p pools.Pool) pools.Pool {
			p.(*faulty).medium.Kill()
			return wrap(t, p.(*faulty).medium)
		},
		Corrupt: func(t pooltest.T, p pools.Pool) pools.Pool {
			m := p.(*faulty).medium
			m.Flip(m.Digests()[0])
			return p
		},
	}
}

// faults are broken drivers and the check that has to fail for each (others may, too).
var faults = map[string]struct {
	f     fault
	check string
}{
	"drops zero refs": {fault{place: func(refs []holdfast.Ref) []holdfast.Ref {
		return slices.DeleteFunc(refs, func(r holdfast.Ref) bool { return r.Digest.IsZero() })
	}}, "explicit zeros are zeros"},
	"answers from a cache that a collect does not clear": {fault{missing: func(p *faulty, ds []holdfast.Digest, missing []bool) bool {
		for i, d := range ds {
			_, seen := p.seen.Load(d)
			missing[i] = !seen
		}
		return true
	}}, "chunks come back after they were collected"},
	"pins nothing": {fault{missing: func(p *faulty, ds []holdfast.Digest, missing []bool) bool {
		have := map[holdfast.Digest]bool{}
		for _, d := range p.medium.Digests() {
			have[d] = true
		}
		for i, d := range ds {
			missing[i] = !have[d]
		}
		return true
	}}, "a chunk answered as present survives a collect"},
	"loses the last place of a parcel": {fault{parcel: func(p *holdfast.Parcel) {
		p.Places = p.Places[:max(1, len(p.Places)-1)]
	}}, "read delivers exactly what is wanted, once"},
	"delivers a place twice": {fault{parcel: func(p *holdfast.Parcel) {
		p.Places = append(p.Places, p.Places[0])
	}}, "read delivers exactly what is wanted, once"},
	"delivers other bytes": {fault{parcel: func(p *holdfast.Parcel) { p.Payload[len(p.Payload)/2] ^= 1 }}, "pools.ReadDisk restores"},
	"ignores skip": {fault{place: func(refs []holdfast.Ref) []holdfast.Ref {
		for i := range refs {
			refs[i].Skip = 0
		}
		return refs
	}}, "parts of chunks can be placed"},
	"sorts refs": {fault{place: func(refs []holdfast.Ref) []holdfast.Ref {
		slices.SortFunc(refs, func(a, b holdfast.Ref) int { return int(a.Off - b.Off) })
		return refs
	}}, "place refuses what is out of order or bounds"},
	"leaves the last ref out of the map": {fault{mapped: func(r *holdfast.Ref) bool { return r.Off < 200<<10 }}, "ranges not written are the parent's"},
	"drops a group":                      {fault{put: func(_ *diskWriter, g *holdfast.Group) bool { return g.Codec == holdfast.S2 }}, "groups of all codecs are kept"},
	"loses the note":                     {fault{commit: func(_ *session, m *holdfast.Manifest) { m.Note = "" }}, "a manifest comes back as committed"},
	"forgets inheritance":                {fault{begin: noInherit, commit: func(_ *session, m *holdfast.Manifest) { m.Disks = slices.Clone(m.Disks); noInherit(m) }}, "ranges not written are the parent's"},
	"closes writers by itself":           {fault{commit: closeAll}, "commit refuses an open writer"},
	"ignores the context":                {fault{ctx: context.WithoutCancel}, "a cancelled context ends every call"},
	"sees no damage":                     {fault{verify: func(r *pools.VerifyReport) { r.Damaged = nil }}, "verify finds flipped bytes and names VM and disk"},
	"does not name the disk": {fault{verify: func(r *pools.VerifyReport) {
		for i := range r.Damaged {
			r.Damaged[i].Disk = ""
		}
	}}, "verify finds flipped bytes and names VM and disk"},
	"aborts without an end": {fault{noUnpin: true}, "abort leaves nothing"},
	"commits nothing":       {fault{noCommit: true}, "a committed set survives a crash"},
	"delete refuses what is not there": {fault{delete: func(p *faulty, id holdfast.SetID) error {
		if _, dup := p.gone.LoadOrStore(id, true); dup {
			return holdfast.Errorf(holdfast.NotExist, "delete set", "no such set")
		}
		return nil
	}}, "delete is idempotent and survives a crash"},
	"lists deleted sets": {fault{delete: func(p *faulty, id holdfast.SetID) error {
		for m := range p.Pool.Sets(context.Background()) {
			if m.ID == id {
				p.gone.Store(id, m)
			}
		}
		return nil
	}, list: func(p *faulty, yield func(holdfast.Manifest, error) bool) {
		p.gone.Range(func(_, m any) bool { return yield(m.(holdfast.Manifest), nil) })
	}}, "the listing is exactly the committed sets"},
	"claims streams it does not keep": {fault{traits: func(t *pools.Traits) { t.Streams = 2 }}, "streams are bounded as declared"},
	"claims to be offline":            {fault{traits: func(t *pools.Traits) { t.Offline = true }}, "optional interfaces agree with traits"},
	"has no domain":                   {fault{traits: func(t *pools.Traits) { t.Domain = holdfast.Domain{} }}, "traits are complete"},
}

func noInherit(m *holdfast.Manifest) {
	for i := range m.Disks {
		m.Disks[i].Inherit = false
	}
}

func closeAll(s *session, _ *holdfast.Manifest) {
	for _, w := range s.open {
		_ = w.Close(context.Background()) // the fault
	}
}

// TestSuiteCatchesFaults runs the check that is meant for each fault on a driver that has it.
func TestSuiteCatchesFaults(t *testing.T) {
	checks := map[string]pooltest.Check{}
	for _, c := range pooltest.Checks() {
		checks[c.Name] = c
	}
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			c, ok := checks[f.check]
			if !ok {
				t.Fatalf("there is no check %q", f.check)
			}
			r := &recorder{}
			if c.Run(r, faultyHarness(f.f)) || len(r.errs) == 0 {
				t.Fatalf("the check %q passed", f.check)
			}
			for _, e := range r.errs {
				if !strings.HasPrefix(e, f.check) {
					t.Errorf("a message without the check's name: %s", e)
				}
			}
			t.Logf("%s", r.errs[0])
		})
	}
}

// TestSuitePassesTheWrapper: without a fault the wrapper above passes, so what the test above sees is the fault.
func TestSuitePassesTheWrapper(t *testing.T) { pooltest.Run(t, faultyHarness(fault{})) }
