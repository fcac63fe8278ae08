package object

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
)

// Times of a lease. Only durations measured by one machine's clock count, never a time that another machine wrote: who waits to take over
// watches the object stand still for all of leaseTime; who owns it stops at leaseTime less leaseMargin after its last renewal began.
const (
	leaseName   = "lease"
	leaseTime   = 60 * time.Second
	leaseMargin = 15 * time.Second // for requests that are under way when time runs out
	leaseRenew  = 15 * time.Second
	leaseFormat = 1
	leaseTries  = 4 // of a claim that others get in between of
)

// openPolicy is how patiently a lease is asked for: somebody waits for the answer.
var openPolicy = blob.Policy{Attempts: 5, First: 300 * time.Millisecond, Max: 4 * time.Second}

// A claim is what the lease object says.
type claim struct {
	Format     int             `json:"format"`
	Pool       holdfast.PoolID `json:"pool"`
	Appliance  string          `json:"appliance"`  // a name that stays
	Host       string          `json:"host"`       // for people
	Instance   holdfast.ID     `json:"instance"`   // of this opening of the pool
	Generation uint32          `json:"generation"` // counts openings
	Sequence   uint64          `json:"sequence"`   // counts renewals
	Released   bool            `json:"released"`   // the owner has closed the pool
	Written    time.Time       `json:"written"`    // for people
	Seconds    int             `json:"seconds"`    // how long it counts without renewal
}

// A lease is the right to write to one bucket, as long as it lasts. Safe for concurrent use.
type lease struct {
	s     *s3store.Store
	clock clock.Clock
	emit  holdfast.Listener
	stop  context.CancelFunc
	ended chan struct{}

	mu     sync.Mutex
	me     claim
	tag    s3store.Tag
	until  time.Time          // of our own clock
	valid  context.Context    // ends when the lease lapses; of the span since the last lapse
	lapse  context.CancelFunc // ends valid
	lost   error              // another appliance has the lease: for good
	lapsed bool
}

// Who asks for a lease.
type asker struct {
	pool      holdfast.PoolID
	appliance string
	host      string
	takeOver  string
}

// acquire takes the lease, or fails with Busy naming who has it.
func acquire(ctx context.Context, s *s3store.Store, c clock.Clock, emit holdfast.Listener, a asker) (*lease, error) {
	l := &lease{s: s, clock: c, emit: emit, ended: make(chan struct{})}
	l.me = claim{Format: leaseFormat, Pool: a.pool, Appliance: a.appliance, Host: a.host, Instance: holdfast.NewID(), Seconds: int(leaseTime / time.Second)}
	if err := l.claim(ctx, a); err != nil {
		return nil, err
	}
	keep, stop := context.WithCancel(context.WithoutCancel(ctx)) // outlives the opening of the pool; release ends it
	l.stop = stop
	go l.renewals(keep)
	return l, nil
}

func (l *lease) claim(ctx context.Context, a asker) error {
	var err error
	for range leaseTries {
		err = openPolicy.Do(ctx, l.clock, func() error { return l.try(ctx, a) })
		if !errors.Is(err, holdfast.Exist) && !errors.Is(err, holdfast.NotExist) {
			return err
		}
	}
	return holdfast.Errorf(holdfast.Busy, "open pool", "others claim the pool at the same time: %w", err)
}

// try makes one claim. Exist or NotExist: somebody got in between.
func (l *lease) try(ctx context.Context, a asker) error {
	other, tag, err := readClaim(ctx, l.s)
	switch {
	case errors.Is(err, holdfast.NotExist):
		l.me.Generation = 1
		return l.write(func(b []byte) (s3store.Tag, error) { return l.s.PutNew(ctx, leaseName, b) })
	case err != nil:
		return err
	case other.Pool != a.pool && !other.Released:
		return holdfast.Errorf(holdfast.Busy, "open pool", "appliance %s has another pool, %s, at this place", other.owner(), other.Pool)
	case !other.Released && other.Appliance != a.appliance:
		if err := l.wait(ctx, a, other, tag); err != nil {
			return err
		}
	}
	l.me.Generation = other.Generation + 1
	return l.write(func(b []byte) (s3store.Tag, error) { return l.s.PutOver(ctx, leaseName, b, tag) })
}

func (c claim) owner() string { return fmt.Sprintf("%q (%s)", c.Host, c.Appliance) }

// wait refuses, or, where the pool is to be taken over from this owner, makes sure that the owner is silent.
func (l *lease) wait(ctx context.Context, a asker, other claim, tag s3store.Tag) error {
	const op = "open pool"
	if a.takeOver != other.Appliance && a.takeOver != other.Host {
		return holdfast.Errorf(holdfast.Busy, op, "the pool belongs to appliance %s, which renewed its lease last at %s", other.owner(), other.Written.UTC().Format(time.RFC3339)).
			Advise("close the pool there; if that appliance is gone for good, take the pool over from it: --take-over %s (take_over in the configuration)", other.Appliance)
	}
	passed, stop := l.clock.After(leaseTime)
	defer stop()
	select {
	case <-passed:
	case <-ctx.Done():
		return holdfast.Errorf(holdfast.Cancelled, op, "%w", ctx.Err())
	}
	_, now, err := readClaim(ctx, l.s)
	if err != nil {
		return err
	}
	if now != tag {
		return holdfast.Errorf(holdfast.Busy, op, "appliance %s is alive: it renewed its lease while we waited", other.owner()).Advise("close the pool there")
	}
	l.emit.Emit(holdfast.Event{Type: "pool-taken-over", Severity: holdfast.Warning, Text: "the pool was taken over from appliance " + other.owner(),
		Fields: map[string]string{"pool": a.pool.String(), "from": other.Appliance}})
	return nil
}

// write claims by put and notes the result.
func (l *lease) write(put func([]byte) (s3store.Tag, error)) error {
	began := l.clock.Now()
	l.me.Written = began.UTC()
	b, err := json.Marshal(l.me)
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, "write lease", "%w", err)
	}
	tag, err := put(b)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tag, l.until = tag, began.Add(leaseTime-leaseMargin)
	if l.valid == nil || l.valid.Err() != nil {
		l.valid, l.lapse = context.WithCancel(context.Background())
	}
	return nil
}

func readClaim(ctx context.Context, s *s3store.Store) (claim, s3store.Tag, error) {
	var c claim
	b, tag, err := s.GetTagged(ctx, leaseName)
	if err != nil {
		return c, "", err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, "", holdfast.Errorf(holdfast.Corrupt, "read lease", "%w", err).Advise("if no appliance uses the pool, remove the object %q", leaseName)
	}
	if c.Format != leaseFormat {
		return c, "", holdfast.Errorf(holdfast.Unsupported, "read lease", "format %d", c.Format).Advise("open the pool with a newer version of Holdfast")
	}
	return c, tag, nil
}

// renewals keeps the lease until release. Where it cannot in time, the lease lapses; it comes back if nobody took it.
func (l *lease) renewals(ctx context.Context) {
	defer close(l.ended)
	next := leaseRenew
	for {
		l.mu.Lock()
		left := l.until.Sub(l.clock.Now())
		lapsed := l.lapsed
		l.mu.Unlock()
		pause := next
		if !lapsed {
			pause = max(min(next, left), 0)
		}
		passed, stop := l.clock.After(pause)
		select {
		case <-ctx.Done():
			stop()
			return
		case <-passed:
		}
		if l.gone() {
			return
		}
		if l.expire() {
			l.emit.Emit(holdfast.Event{Type: "pool-lease-lapsed", Severity: holdfast.Alarm, Text: "the lease of the pool could not be renewed in time: nothing is written until it is",
				Fields: map[string]string{"pool": l.me.Pool.String()}})
		}
		next = leaseRenew
		if err := l.renew(ctx); err != nil {
			if l.gone() {
				return
			}
			next = leaseRenew / 5
		}
	}
}

// expire lets the lease lapse if its time is over, and reports whether that is new.
func (l *lease) expire() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lapsed || l.clock.Now().Before(l.until) {
		return false
	}
	l.lapsed = true
	l.lapse()
	return true
}

func (l *lease) gone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost != nil
}

// renew writes the next state over ours. If the object is not in the state we left it in, either our own answer was lost, or the pool was
// taken over.
func (l *lease) renew(ctx context.Context) error {
	l.mu.Lock()
	tag := l.tag
	l.me.Sequence++
	l.mu.Unlock()
	ctx, done := context.WithCancel(ctx)
	defer done()
	passed, stop := l.clock.After(leaseRenew)
	defer stop()
	ended := make(chan struct{})
	defer func() { <-ended }()
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		defer close(ended)
		select {
		case <-passed:
			done()
		case <-finished:
		}
	}()
	err := l.write(func(b []byte) (s3store.Tag, error) { return l.s.PutOver(ctx, leaseName, b, tag) })
	if errors.Is(err, holdfast.Exist) || errors.Is(err, holdfast.NotExist) {
		return l.compare(ctx, err)
	}
	if err == nil {
		l.mu.Lock()
		l.lapsed = false
		l.mu.Unlock()
	}
	return err
}

// compare finds out who wrote what is there instead of what we wrote.
func (l *lease) compare(ctx context.Context, cause error) error {
	now, tag, err := readClaim(ctx, l.s)
	switch {
	case err == nil && now.Instance == l.me.Instance:
		l.mu.Lock()
		l.tag = tag // ours: the answer to an earlier renewal was lost
		l.mu.Unlock()
		return cause
	case err == nil:
		l.lose(holdfast.Errorf(holdfast.Busy, "write to pool", "appliance %s has taken the pool over", now.owner()).Advise("use the pool there, or close it there and open it here again"))
	case errors.Is(err, holdfast.NotExist):
		l.lose(holdfast.Errorf(holdfast.Busy, "write to pool", "the pool's lease was removed from the bucket").Advise("find out who else writes to the bucket, then open the pool again"))
	}
	return cause
}

// lose ends the lease for good.
func (l *lease) lose(why *holdfast.Error) {
	l.mu.Lock()
	l.lost, l.lapsed = why, true
	l.lapse()
	l.mu.Unlock()
	if why.Kind != holdfast.Busy {
		return
	}
	l.emit.Emit(holdfast.Event{Type: "pool-lease-lost", Severity: holdfast.Alarm, Text: why.Error(), Fields: map[string]string{"pool": l.me.Pool.String()}})
}

// guard returns a context for a change of the pool, which ends when the lease does, or why there must be no change now.
func (l *lease) guard(ctx context.Context) (context.Context, context.CancelFunc, error) {
	valid, err := l.holds()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(valid, cancel)
	return ctx, func() { unhook(); cancel() }, nil
}

// holds returns the context of the lease's current span, or why it does not hold.
func (l *lease) holds() (context.Context, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.lost != nil:
		return nil, l.lost
	case l.lapsed || !l.clock.Now().Before(l.until):
		return nil, holdfast.Errorf(holdfast.Transient, "write to pool", "the pool's lease could not be renewed in time").Advise("look at the line to the bucket; the pool goes on by itself")
	}
	return l.valid, nil
}

// generation is the number of this opening.
func (l *lease) generation() uint32 { return l.me.Generation }

// release stops renewing and says in the bucket that the pool is free. It fails only in telling: then the next owner has to wait.
func (l *lease) release(ctx context.Context) error {
	l.stop()
	<-l.ended
	l.mu.Lock()
	lost, tag := l.lost, l.tag
	l.me.Released = true
	l.me.Sequence++
	if l.lapse != nil {
		l.lapse()
	}
	l.lapsed = true
	l.mu.Unlock()
	if lost != nil {
		return nil
	}
	b, err := json.Marshal(l.me)
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, "write lease", "%w", err)
	}
	ctx, done := context.WithTimeout(ctx, leaseMargin)
	defer done()
	_, err = l.s.PutOver(ctx, leaseName, b, tag)
	if errors.Is(err, holdfast.Exist) || errors.Is(err, holdfast.NotExist) {
		return nil // somebody else's now
	}
	return err
}

// abandon removes the lease with the pool.
func (l *lease) abandon(ctx context.Context) error {
	l.lose(holdfast.Errorf(holdfast.Invalid, "write to pool", "the pool is destroyed"))
	return l.s.Remove(ctx, leaseName)
}
