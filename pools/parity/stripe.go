// Package parity makes one Store of k+m Stores: each object is cut into k data and m parity shards, one to a member, and any k of them
// give it back. It is the only home of Reed-Solomon coding.
//
// Shards describe and check themselves (docs/formats/stripe.md), so that a lost member, a lost shard and a flipped bit are found when they
// are met, named to the Listener, worked around, and healed by writing the shard again. Why it is built so: docs/design/0005-striping.md.
//
// Promises. An object is there if at least k members have a shard of it. Commit returns without error only when all but Allowed members
// have theirs durably; what was cut off before that is there whole or not at all. There are always more data than parity shards, so
// that the leftovers on m members that were away while an object was removed can never count as the object.
//
// A Stripe owns its members: nothing else may write to them, and Close closes them. One process at a time may have it open for
// writing. It must not know what objects hold.
package parity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/klauspost/reedsolomon"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// Events of a stripe. Fields: "store", "object" where there is one.
const (
	EventMemberLost    holdfast.EventType = "stripe-member-lost"    // a member does not answer; the stripe goes on without it
	EventMemberBack    holdfast.EventType = "stripe-member-back"    // it answers again
	EventShardBad      holdfast.EventType = "stripe-shard-bad"      // a shard is damaged or missing on a member that is there
	EventShardHealed   holdfast.EventType = "stripe-shard-healed"   // it was written again
	EventShardUnhealed holdfast.EventType = "stripe-shard-unhealed" // it could not be
	EventRebuilt       holdfast.EventType = "stripe-member-rebuilt"
)

const (
	ownFolder  = ".stripe" // of every member: what is the stripe's own
	rebuilding = ownFolder + "/rebuilding"
)

// memberLabels are two copies, so that one flipped bit does not lose a member.
var memberLabels = [...]string{ownFolder + "/member-a", ownFolder + "/member-b"}

// Options of a stripe. The zero value is good.
type Options struct {
	Names    []string // of the stores, for events and errors, in the same order; missing ones are "store 0", "store 1"...
	Block    int      // for Create; 0 means DefaultBlock
	Allowed  int      // members that may be missing at Commit; 0 means m-1, but at least 1; at most m
	ReadOnly bool     // heal nothing and refuse to write: for rescue
	Listener holdfast.Listener
}

// A Stripe is a Store over k+m Stores.
type Stripe struct {
	geometry
	opts  Options
	code  reedsolomon.Encoder
	slots []atomic.Pointer[member]

	mu     sync.Mutex
	names  map[string]*nameLock
	queue  []string
	queued map[string]bool
	idle   chan struct{} // non-nil while the healer runs; closed when it ends
	closed bool
	cancel context.CancelFunc
	ctx    context.Context // of the healer, which belongs to nobody's request
	flying map[string]int  // objects that are being created
}

// member is a store in its place. The store is nil where the member is lost.
type member struct {
	store   blob.Store
	name    string
	failing atomic.Bool
	empty   atomic.Bool // being rebuilt: that a shard is missing is no news
}

var _ blob.Store = (*Stripe)(nil)

// Create makes a stripe of k data and m parity shards over k+m empty stores and opens it. It fails with kind Exist if a store
// is a member of a stripe already. The stores are the Stripe's afterwards, unless it fails.
func Create(ctx context.Context, stores []blob.Store, k, m int, opts Options) (*Stripe, error) {
	g := geometry{id: holdfast.NewID(), k: k, m: m, block: opts.Block}
	if g.block == 0 {
		g.block = DefaultBlock
	}
	if err := g.check(); err != nil {
		return nil, err
	}
	if len(stores) != g.n() || slices.Contains(stores, nil) {
		return nil, holdfast.Errorf(holdfast.Invalid, "create stripe", "%d+%d needs %d stores; %d are given", k, m, g.n(), len(stores))
	}
	for i, s := range stores {
		for _, n := range memberLabels {
			is, err := s.Exists(ctx, n)
			if err != nil {
				return nil, err
			}
			if is {
				return nil, holdfast.Errorf(holdfast.Exist, "create stripe", "%s is a member of a stripe already", opts.name(i)).
					Advise("import that stripe, or empty the place")
			}
		}
	}
	for i, s := range stores {
		if err := writeMember(ctx, s, memberLabel{g, i}); err != nil {
			return nil, err
		}
	}
	return newStripe(g, stores, opts)
}

func (o Options) name(i int) string {
	if i < len(o.Names) {
		return o.Names[i]
	}
	return fmt.Sprintf("store %d", i)
}

func writeMember(ctx context.Context, s blob.Store, l memberLabel) error {
	for _, n := range memberLabels {
		if err := blob.WriteAll(ctx, s, n, l.encode()); err != nil {
			return err
		}
	}
	return nil
}

// readMember reads a store's label from either copy, and writes the other again if need be.
func readMember(ctx context.Context, s blob.Store, heal bool) (memberLabel, error) {
	var first error
	var bad []string
	var good *memberLabel
	for _, n := range memberLabels {
		b, err := blob.ReadAll(ctx, s, n, 1<<10)
		var l memberLabel
		if err == nil {
			l, err = decodeMember(b)
		}
		if err != nil {
			bad = append(bad, n)
			if first == nil {
				first = err
			}
			continue
		}
		good = &l
	}
	if good == nil {
		return memberLabel{}, first
	}
	for _, n := range bad {
		if heal {
			if err := blob.WriteAll(ctx, s, n, good.encode()); err != nil {
				return *good, nil //nolint:nilerr // the other copy is enough; the next Open tries again
			}
		}
	}
	return *good, nil
}

// Open opens the stripe that the stores are members of, in any order. A store may be nil, blank or out of order: such a member is
// lost, and up to m may be. It fails with kind NotExist if no store is a member, Invalid if they belong to different stripes
// or one place is taken twice, and Offline if fewer than k are there.
func Open(ctx context.Context, stores []blob.Store, opts Options) (*Stripe, error) {
	var g geometry
	var placed []blob.Store
	var names []string
	var why []error
	found := 0
	for i, s := range stores {
		if s == nil {
			continue
		}
		l, err := readMember(ctx, s, !opts.ReadOnly)
		if err != nil {
			if ctx.Err() != nil {
				return nil, blob.Cancelled(ctx, "open stripe")
			}
			why = append(why, fmt.Errorf("%s: %w", opts.name(i), err))
			continue
		}
		if found == 0 {
			g = l.geometry
			placed, names = make([]blob.Store, g.n()), make([]string, g.n())
		}
		if l.geometry != g || placed[l.position] != nil {
			return nil, holdfast.Errorf(holdfast.Invalid, "open stripe", "%s does not fit: it is place %d of stripe %s (%d+%d), the others are of %s (%d+%d)", opts.name(i),
				l.position, l.id, l.k, l.m, g.id, g.k, g.m).Advise("give the paths of one stripe, each once")
		}
		placed[l.position], names[l.position] = s, opts.name(i)
		found++
	}
	if found == 0 {
		if err := errors.Join(why...); err != nil {
			return nil, fmt.Errorf("open stripe: %w", err)
		}
		return nil, holdfast.Errorf(holdfast.NotExist, "open stripe", "no store is a member of a stripe")
	}
	if found < g.k {
		return nil, holdfast.Errorf(holdfast.Offline, "open stripe", "%d of %d members are there; %d are needed: %w", found, g.n(), g.k, errors.Join(why...)).
			Advise("connect or mount the missing paths")
	}
	nameLost(names, opts, stores, placed)
	opts.Names = names
	s, err := newStripe(g, placed, opts)
	if err != nil {
		return nil, err
	}
	if err := s.look(ctx, why); err != nil {
		return nil, err
	}
	return s, nil
}

// nameLost gives the places that nobody took the names of the stores that did not fit, in order.
func nameLost(names []string, opts Options, stores, placed []blob.Store) {
	var spare []string
	for i := range max(len(stores), len(opts.Names)) {
		if n := opts.name(i); !slices.Contains(names, n) {
			spare = append(spare, n)
		}
	}
	for pos, s := range placed {
		if s == nil {
			names[pos] = fmt.Sprintf("place %d", pos)
			if len(spare) > 0 {
				names[pos], spare = spare[0], spare[1:]
			}
		}
	}
}

func newStripe(g geometry, stores []blob.Store, opts Options) (*Stripe, error) {
	code, err := reedsolomon.New(g.k, g.m)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "stripe", "%w", err)
	}
	if opts.Allowed <= 0 {
		opts.Allowed = max(1, g.m-1)
	}
	opts.Allowed = min(opts.Allowed, g.m)
	s := &Stripe{geometry: g, opts: opts, code: code, slots: make([]atomic.Pointer[member], g.n()), names: map[string]*nameLock{}, queued: map[string]bool{}, flying: map[string]int{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for i, st := range stores {
		s.slots[i].Store(&member{store: st, name: opts.name(i)})
	}
	return s, nil
}

// look finds out what Open has to tell about the members.
func (s *Stripe) look(ctx context.Context, why []error) error {
	for i := range s.slots {
		m := s.slots[i].Load()
		if m.store == nil {
			m.failing.Store(true)
			s.opts.Listener.Emit(holdfast.Event{Type: EventMemberLost, Severity: holdfast.Alarm, Fields: map[string]string{"store": m.name},
				Text: fmt.Sprintf("%s is missing from its stripe: %v. Everything is still readable; replace it before others fail.", m.name, errors.Join(why...))})
			continue
		}
		is, err := m.store.Exists(ctx, rebuilding)
		if err != nil && ctx.Err() != nil {
			s.cancel()
			return blob.Cancelled(ctx, "open stripe")
		}
		m.empty.Store(is)
	}
	return nil
}

// Members returns the members' names by place, and whether each is there and whole: one that is lost or was not rebuilt to the end is not.
func (s *Stripe) Members() (names []string, whole []bool) {
	for i := range s.slots {
		m := s.slots[i].Load()
		names = append(names, m.name)
		whole = append(whole, m.store != nil && !m.empty.Load() && !m.failing.Load())
	}
	return names, whole
}

// Shape returns the numbers of data and parity shards.
func (s *Stripe) Shape() (k, m int) { return s.k, s.m }

var errLost = holdfast.Errorf(holdfast.Offline, "", "the member is lost").Advise("replace the path (pool set --replace-path)")

// each asks all members at once and returns their answers by place.
func each[R any](s *Stripe, ask func(place int, m *member) (R, error)) (answers []R, errs []error) {
	answers, errs = make([]R, len(s.slots)), make([]error, len(s.slots))
	var wg sync.WaitGroup
	for i := range s.slots {
		m := s.slots[i].Load()
		if m.store == nil {
			errs[i] = errLost
			continue
		}
		wg.Go(func() {
			answers[i], errs[i] = ask(i, m)
			s.note(m, errs[i])
		})
	}
	wg.Wait()
	return answers, errs
}

// note keeps track of whether a member works, and says so when that changes.
func (s *Stripe) note(m *member, err error) {
	if err == nil || errors.Is(err, holdfast.NotExist) || errors.Is(err, holdfast.Corrupt) {
		if m.failing.CompareAndSwap(true, false) {
			s.opts.Listener.Emit(holdfast.Event{Type: EventMemberBack, Fields: map[string]string{"store": m.name}, Text: m.name + " answers again."})
		}
		return
	}
	if gone(err) && m.failing.CompareAndSwap(false, true) {
		s.opts.Listener.Emit(holdfast.Event{Type: EventMemberLost, Severity: holdfast.Alarm, Fields: map[string]string{"store": m.name},
			Text: fmt.Sprintf("%s fails: %v. The stripe goes on without it.", m.name, err)})
	}
}

// gone reports whether an error is a member's own trouble, that the others can stand in for. A full member is not: objects that it
// lacks would be without protection for good, and quietly.
func gone(err error) bool {
	switch holdfast.KindOf(err) {
	case holdfast.Offline, holdfast.Transient, holdfast.Internal, holdfast.NotExist, holdfast.Corrupt, holdfast.Unsupported:
		return true
	}
	return false
}

// check is the beginning of every method.
func (s *Stripe) check(ctx context.Context, op, name string) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	if name == ownFolder || blob.In(name, ownFolder) {
		return holdfast.Errorf(holdfast.Invalid, op+" "+name, "the folder %s is the stripe's own", ownFolder)
	}
	return blob.Cancelled(ctx, op+" "+name)
}

func (s *Stripe) writable(op string) error {
	if s.opts.ReadOnly {
		return holdfast.Errorf(holdfast.Permission, op, "the stripe is open for reading only")
	}
	return nil
}

// Exists implements blob.Store. Where too few members answer to tell, it fails with kind Offline.
func (s *Stripe) Exists(ctx context.Context, name string) (bool, error) {
	if err := s.check(ctx, "look for", name); err != nil {
		return false, err
	}
	is, errs := each(s, func(_ int, m *member) (bool, error) { return m.store.Exists(ctx, name) })
	if err := blob.Cancelled(ctx, "look for "+name); err != nil {
		return false, err
	}
	yes, unknown := 0, 0
	for i := range is {
		switch {
		case errs[i] != nil:
			unknown++
		case is[i]:
			yes++
		}
	}
	if yes < s.k && yes+unknown >= s.k {
		return false, tooFew("look for "+name, errs)
	}
	return yes >= s.k, nil
}

func tooFew(op string, errs []error) error {
	return holdfast.Errorf(holdfast.Offline, op, "too few members answer: %w", errors.Join(errs...)).Advise("connect or replace the members that are away")
}

// List implements blob.Store. A name is listed if k members have it. One that may be there on members that do not answer is left out,
// as the law of List allows; Exists does not say no to it.
func (s *Stripe) List(ctx context.Context, folder string) ([]string, error) {
	if err := blob.CheckFolder(folder); err != nil {
		return nil, err
	}
	count, _, err := s.census(ctx, folder)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(count)) {
		is := count[name] >= s.k
		if !is { // a listing may be behind: ask
			if is, err = s.Exists(ctx, name); err != nil && !errors.Is(err, holdfast.Offline) {
				return nil, err
			}
		}
		if is {
			out = append(out, name)
		}
	}
	return out, nil
}

// census counts on how many members each name is, and how many members could be asked.
func (s *Stripe) census(ctx context.Context, folder string) (count map[string]int, asked int, err error) {
	op := "list " + folder
	lists, errs := each(s, func(_ int, m *member) ([]string, error) { return m.store.List(ctx, folder) })
	if err := blob.Cancelled(ctx, op); err != nil {
		return nil, 0, err
	}
	count = map[string]int{}
	for i, names := range lists {
		if errs[i] != nil {
			continue
		}
		asked++
		for _, n := range names {
			if !blob.In(n, ownFolder) {
				count[n]++
			}
		}
	}
	if asked < s.k {
		return nil, asked, tooFew(op, errs)
	}
	return count, asked, nil
}

// Remove implements blob.Store. Members that do not answer keep a leftover, which never counts as the object again.
func (s *Stripe) Remove(ctx context.Context, name string) error {
	op := "remove " + name
	if err := s.check(ctx, "remove", name); err != nil {
		return err
	}
	if err := s.writable(op); err != nil {
		return err
	}
	defer s.lock(name)()
	return s.remove(ctx, op, name)
}

// remove is Remove under the lock of the name.
func (s *Stripe) remove(ctx context.Context, op, name string) error {
	_, errs := each(s, func(_ int, m *member) (struct{}, error) { return struct{}{}, m.store.Remove(ctx, name) })
	left := 0
	for _, err := range errs {
		if err != nil {
			left++
			if !gone(err) {
				return err
			}
		}
	}
	if left > s.m {
		return tooFew(op, errs)
	}
	return nil
}

// Usage implements blob.Store: bytes of objects, not of shards. The fullest member decides, because each object takes room on all.
func (s *Stripe) Usage(ctx context.Context) (free, size int64, err error) {
	type usage struct{ free, size int64 }
	all, errs := each(s, func(_ int, m *member) (u usage, err error) {
		u.free, u.size, err = m.store.Usage(ctx)
		return u, err
	})
	if err := blob.Cancelled(ctx, "ask for free space"); err != nil {
		return 0, 0, err
	}
	free, size = -1, -1
	asked := 0
	for i, u := range all {
		if errs[i] != nil {
			continue
		}
		asked++
		if u.free < 0 || u.size < 0 {
			return -1, -1, nil
		}
		if free < 0 || u.free < free {
			free = u.free
		}
		if size < 0 || u.size < size {
			size = u.size
		}
	}
	if asked < s.k {
		return 0, 0, tooFew("ask for free space", errs)
	}
	return free * int64(s.k), size * int64(s.k), nil
}

// Close implements blob.Store: it stops healing and closes the members.
func (s *Stripe) Close() error {
	s.mu.Lock()
	s.closed = true
	idle := s.idle
	s.mu.Unlock()
	s.cancel()
	if idle != nil {
		<-idle
	}
	var errs []error
	for i := range s.slots {
		if m := s.slots[i].Load(); m.store != nil {
			errs = append(errs, m.store.Close())
		}
	}
	return errors.Join(errs...)
}
