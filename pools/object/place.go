package object

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/dedup"
	"github.com/holdfast-backup/holdfast/pools/parity"
)

// A place is where a pool lives: one bucket, or several that are striped.
type place struct {
	env     pools.Env
	c       Config
	k, m    int // of the stripe; 0: there is none
	rule    lockRule
	count   *blob.Requests
	spill   fsys.FS // nil: in memory
	closers []io.Closer

	mu      sync.Mutex
	members []*member
	stripe  *parity.Stripe // nil: one bucket
}

// A member is one bucket.
type member struct {
	name string
	s    *s3store.Store // nil: not within reach
	err  error          // why not
	keep *keeper
	l    *lease // nil: none yet
}

// memberPolicy is how patiently a bucket of a stripe is asked: the others can stand in for it.
var memberPolicy = blob.Policy{Attempts: 4, First: 300 * time.Millisecond, Max: 2 * time.Second}

// reach opens the buckets. With own, nobody else on this appliance may have the pool open.
func reach(ctx context.Context, env pools.Env, c Config, own bool) (*place, error) {
	if env.Clock == nil {
		env.Clock = clock.System
	}
	p := &place{env: env, c: c, count: &blob.Requests{}}
	if err := p.reach(ctx, own); err != nil {
		_ = p.close() // the first error is the one that counts
		return nil, err
	}
	return p, nil
}

func (p *place) reach(ctx context.Context, own bool) (err error) {
	if p.rule, err = parseLock(p.c.ObjectLock); err != nil {
		return err
	}
	if p.k, p.m, err = dedup.ParseStripe(p.c.Stripe); err != nil {
		return err
	}
	names, err := p.c.targets()
	if err != nil {
		return err
	}
	if own && p.env.StateDir != "" {
		if p.spill, err = fsys.CreateOS(p.env.StateDir); err != nil {
			return fsys.Classify("open state folder", err)
		}
		// One process of this appliance at a time: the lease knows appliances only, and the spilled objects are one's own.
		lock, err := p.spill.Lock("object.lock")
		if err != nil {
			return fsys.Classify("open pool", err)
		}
		p.closers = append(p.closers, lock)
	}
	lost := 0
	for i, name := range names {
		m, err := p.bucket(ctx, name, i)
		if err != nil {
			if lost++; lost > p.m || ctx.Err() != nil {
				return err
			}
			m = &member{name: name, err: err}
		}
		p.members = append(p.members, m)
	}
	return nil
}

// bucket opens one bucket; number keeps the spilled objects of several apart.
func (p *place) bucket(ctx context.Context, name string, number int) (*member, error) {
	t, err := p.c.target(name)
	if err != nil {
		return nil, err
	}
	t.Clock, t.Count, t.Retry = p.env.Clock, p.count, p.policy()
	if p.spill != nil {
		if t.Spill, err = fsys.CreateOS(filepath.Join(p.env.StateDir, "spill", string(rune('a'+number%26))+strings.Repeat("x", number/26))); err != nil {
			return nil, fsys.Classify("open state folder", err)
		}
	}
	m := &member{name: name}
	err = openPolicy.Do(ctx, p.env.Clock, func() (err error) {
		m.s, err = s3store.Open(ctx, t)
		return err
	})
	if err != nil {
		return nil, err
	}
	if p.rule.mode != "" && !m.s.Locks() {
		return nil, errors.Join(holdfast.Errorf(holdfast.Unsupported, "open pool", "the bucket %s has no Object Lock", name).
			Advise("make a bucket with Object Lock enabled, or leave object_lock out"), m.s.Close())
	}
	m.keep = &keeper{s: m.s, clock: p.env.Clock, rule: p.rule, until: map[string]s3store.Lock{}}
	return m, nil
}

func (p *place) policy() blob.Policy {
	if p.k > 0 {
		return memberPolicy
	}
	return blob.DefaultPolicy
}

// live returns the buckets within reach.
func (p *place) live() []*member {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*member
	for _, m := range p.members {
		if m.s != nil {
			out = append(out, m)
		}
	}
	return out
}

// retry is a bucket, patiently.
func (p *place) retry(m *member) blob.Store { return blob.Retry(m.s, p.policy(), p.env.Clock) }

// claim takes the leases of all buckets within reach. Two who claim most of the buckets meet in one at least.
func (p *place) claim(ctx context.Context, id holdfast.PoolID, takeOver string) error {
	a, err := p.asker(id, takeOver)
	if err != nil {
		return err
	}
	// In the order of the configuration, and one after the other: two who start at the same time then do not refuse each other.
	had := 0
	for _, m := range p.live() {
		m.l, err = acquire(ctx, m.s, p.env.Clock, p.env.Listener, a)
		if err != nil {
			if p.k == 0 || errors.Is(err, holdfast.Busy) || ctx.Err() != nil {
				return err
			}
			m.err = errors.Join(err, m.s.Close())
			m.s = nil
			continue
		}
		had++
	}
	if n := len(p.members); had*2 <= n {
		return holdfast.Errorf(holdfast.Offline, "open pool", "only %d of %d buckets are within reach", had, n).Advise("at least %d are needed to be sure that no other appliance has the pool", n/2+1)
	}
	return nil
}

// asker is who this appliance is.
func (p *place) asker(id holdfast.PoolID, takeOver string) (asker, error) {
	name, err := applianceName(p.env.StateDir)
	if err != nil {
		return asker{}, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = name
	}
	return asker{pool: id, appliance: name, host: host, takeOver: takeOver}, nil
}

// applianceName returns the name under which this appliance takes leases. It is kept, so that after a crash the lease is still our own.
func applianceName(stateDir string) (string, error) {
	if stateDir == "" {
		return holdfast.NewID().String(), nil
	}
	file := filepath.Join(stateDir, "lease-name")
	b, err := os.ReadFile(file)
	if name := strings.TrimSpace(string(b)); err == nil && name != "" && len(name) <= 64 {
		return name, nil
	}
	f, err := fsys.CreateOS(stateDir)
	if err != nil {
		return "", fsys.Classify("open state folder", err)
	}
	name := strings.ToLower(rand.Text())
	if err := fsys.Replace(f, "lease-name", []byte(name+"\n")); err != nil {
		return "", fsys.Classify("keep the appliance's name", err)
	}
	return name, nil
}

// stores returns the buckets as the engine or a stripe may use them: fenced where there is a lease. Those out of reach are nil.
func (p *place) stores() (stores []blob.Store, names []string) {
	for _, m := range p.members {
		var s blob.Store
		if m.s != nil {
			s = p.store(m)
		}
		stores, names = append(stores, s), append(names, m.name)
	}
	return stores, names
}

func (p *place) store(m *member) blob.Store {
	if m.l == nil {
		return veiled{p.retry(m)}
	}
	return &fenced{Store: veiled{p.retry(m)}, l: m.l, k: m.keep}
}

// open returns what the engine runs on. A stripe that is new is made.
func (p *place) open(ctx context.Context, fresh, readOnly bool) (blob.Store, error) {
	stores, names := p.stores()
	if p.k == 0 {
		return stores[0], nil
	}
	o := parity.Options{Names: names, Listener: p.env.Listener, ReadOnly: readOnly}
	var err error
	if fresh {
		for _, m := range p.members {
			if m.err != nil {
				return nil, m.err
			}
		}
		p.stripe, err = parity.Create(ctx, stores, p.k, p.m, o)
	} else {
		p.stripe, err = parity.Open(ctx, stores, o)
	}
	if err != nil {
		return nil, err
	}
	return p.stripe, nil
}

// holds returns why there must be no change now, or nil: too many leases do not hold.
func (p *place) holds() error {
	var first error
	without := 0
	for _, m := range p.live() {
		if _, err := m.l.holds(); err != nil {
			without++
			if first == nil || holdfast.KindOf(err) == holdfast.Busy {
				first = err
			}
		}
	}
	if without > p.m/2 || errors.Is(first, holdfast.Busy) {
		return first
	}
	return nil
}

// generation is the highest of the leases'.
func (p *place) generation() uint32 {
	g := uint32(0)
	for _, m := range p.live() {
		g = max(g, m.l.generation())
	}
	return g
}

// locks reports whether all buckets can keep objects.
func (p *place) locks() bool {
	for _, m := range p.live() {
		if !m.s.Locks() {
			return false
		}
	}
	return true
}

// heldUntil returns until when the server keeps an object, the zero time if it may go.
func (p *place) heldUntil(ctx context.Context, name string) (time.Time, error) {
	held, err := p.retention(ctx, name)
	if err != nil || !held.Until.After(p.env.Clock.Now()) {
		return time.Time{}, err
	}
	return held.Until, nil
}

// retention asks the servers until when an object is kept: the longest of what the buckets say. NotExist if none has it.
func (p *place) retention(ctx context.Context, name string) (s3store.Lock, error) {
	var longest s3store.Lock
	var missing, failed error
	found := false
	for _, m := range p.live() {
		var held s3store.Lock
		err := p.policy().Do(ctx, p.env.Clock, func() (err error) {
			held, err = m.s.Retention(ctx, name)
			return err
		})
		switch {
		case errors.Is(err, holdfast.NotExist):
			missing = err
		case err != nil:
			failed = err
		default:
			found = true
			if held.Until.After(longest.Until) {
				longest = held
			}
		}
	}
	switch {
	case failed != nil && (!found || p.k == 0):
		return longest, failed
	case !found:
		return longest, missing
	}
	return longest, nil
}

// everywhere does something to the retention of an object in all buckets. A shard that is not there has nothing to keep.
func (p *place) everywhere(ctx context.Context, f func(k *keeper) error) error {
	var missing error
	for _, m := range p.live() {
		err := f(m.keep)
		if errors.Is(err, holdfast.NotExist) && missing == nil && p.k > 0 {
			missing = err
			continue
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// has reports whether a bucket is a member within reach.
func (p *place) has(name string) bool {
	for _, m := range p.live() {
		if m.name == name {
			return true
		}
	}
	return false
}

// join takes a new bucket in, with its lease. The one that it replaces stays ours until the pool is closed.
func (p *place) join(ctx context.Context, id holdfast.PoolID, name string) (*member, error) {
	p.mu.Lock()
	number := len(p.members)
	p.mu.Unlock()
	m, err := p.bucket(ctx, name, number)
	if err != nil {
		return nil, err
	}
	a, err := p.asker(id, "")
	if err == nil {
		m.l, err = acquire(ctx, m.s, p.env.Clock, p.env.Listener, a)
	}
	if err != nil {
		return nil, errors.Join(err, m.s.Close())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members = append(p.members, m)
	return m, nil
}

// close gives everything back: the stripe first, then the leases.
func (p *place) close() error {
	var errs []error
	if p.stripe != nil {
		errs = append(errs, p.stripe.Close())
		p.stripe = nil
	}
	for _, m := range p.members {
		if m.l != nil {
			errs = append(errs, m.l.release(context.Background()))
			m.l = nil
		}
		if m.s != nil {
			errs = append(errs, m.s.Close())
		}
	}
	p.members = nil
	for i := len(p.closers) - 1; i >= 0; i-- {
		errs = append(errs, p.closers[i].Close())
	}
	p.closers = nil
	return errors.Join(errs...)
}

// Close implements io.Closer.
func (p *place) Close() error { return p.close() }
