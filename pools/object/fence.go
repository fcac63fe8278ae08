package object

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
)

// A veiled store does not list what is the driver's own: the engine and a stripe need not know it.
type veiled struct{ blob.Store }

// List implements blob.Store.
func (v veiled) List(ctx context.Context, folder string) ([]string, error) {
	names, err := v.Store.List(ctx, folder)
	return slices.DeleteFunc(names, func(n string) bool { return n == leaseName || blob.In(n, "scratch") }), err
}

// A fenced store changes nothing unless the lease holds, and lets new objects be retained where the pool says so.
type fenced struct {
	blob.Store
	l *lease
	k *keeper
}

// Create implements blob.Store.
func (f *fenced) Create(ctx context.Context, name string) (blob.Object, error) {
	ctx, done, err := f.l.guard(ctx)
	if err != nil {
		return nil, err
	}
	o, err := f.Store.Create(ctx, name)
	if err != nil {
		done()
		return nil, err
	}
	return &fencedObject{Object: o, f: f, ctx: ctx, done: done, name: name}, nil
}

// Remove implements blob.Store.
func (f *fenced) Remove(ctx context.Context, name string) error {
	ctx, done, err := f.l.guard(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := f.Store.Remove(ctx, name); err != nil {
		return f.because(err)
	}
	f.k.forget(name)
	return nil
}

// because gives the lease's reason for an error where the lease is the reason.
func (f *fenced) because(err error) error {
	if _, why := f.l.holds(); why != nil && holdfast.KindOf(err) == holdfast.Cancelled {
		return why
	}
	return err
}

type fencedObject struct {
	blob.Object
	f    *fenced
	ctx  context.Context // of this one object
	done context.CancelFunc
	name string
}

func (o *fencedObject) Commit() error {
	defer o.done()
	if _, err := o.f.l.holds(); err != nil {
		o.Object.Abort()
		return err
	}
	if err := o.Object.Commit(); err != nil {
		return o.f.because(err)
	}
	if err := o.f.k.fresh(o.ctx, o.name); err != nil {
		return err
	}
	// A machine that was stopped in the middle may have sent this after its time: then others may not know of it.
	_, err := o.f.l.holds()
	return err
}

func (o *fencedObject) Abort() {
	o.Object.Abort()
	o.done()
}

// A keeper retains objects by Object Lock, and remembers until when, to ask for no retention twice.
type keeper struct {
	s     *s3store.Store
	clock clock.Clock
	rule  lockRule

	mu    sync.Mutex
	until map[string]s3store.Lock
}

// slack is by how much more than needed objects are retained, so that sets which come one after the other need not
// extend the containers they share every time.
func (r lockRule) slack() time.Duration { return min(24*time.Hour, r.keep/10) }

// locked reports whether an object is one of those that retention is for. The lease and the like change.
func locked(name string) bool {
	return strings.HasPrefix(name, "containers/") || strings.HasPrefix(name, "sets/") || strings.HasPrefix(name, "superblock")
}

// fresh retains an object that was just stored, if the pool's rule says so.
func (k *keeper) fresh(ctx context.Context, name string) error {
	if k.rule.mode == "" || !locked(name) {
		return nil
	}
	return k.retain(ctx, name, k.want(k.rule.slack()))
}

// want returns the retention of a set that is stored now.
func (k *keeper) want(more time.Duration) s3store.Lock {
	return s3store.Lock{Mode: k.rule.mode, Until: k.clock.Now().Add(k.rule.keep + more)}
}

// extend retains an object that a new set shares with others.
func (k *keeper) extend(ctx context.Context, name string) error {
	if have, ok := k.known(name); ok && !have.Until.Before(k.clock.Now().Add(k.rule.keep)) {
		return nil
	}
	return k.retain(ctx, name, k.want(k.rule.slack()))
}

func (k *keeper) known(name string) (s3store.Lock, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l, ok := k.until[name]
	return l, ok
}

func (k *keeper) retain(ctx context.Context, name string, want s3store.Lock) error {
	have, ok := k.known(name)
	if ok && (have.Mode == want.Mode || have.Mode == s3store.Compliance) && !have.Until.Before(want.Until) {
		return nil
	}
	if err := blob.DefaultPolicy.Do(ctx, k.clock, func() error { return k.s.Retain(ctx, name, want) }); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if have.Until.Before(want.Until) {
		k.until[name] = want
	}
	return nil
}

func (k *keeper) forget(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.until, name)
}
