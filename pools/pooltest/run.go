package pooltest

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// T is what the checks report to. *testing.T is one. Methods may be called from several goroutines, one of them at a time
// Fatalf; a check that calls Fatalf ends there.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	// Fatalf reports like Errorf and does not return (as runtime.Goexit and panic do).
	Fatalf(format string, args ...any)
}

// A Harness makes the pools that are checked. A hook that fails calls t.Fatalf.
type Harness struct {
	// New makes a new empty pool with a domain of its own. Called for each check; what it takes is the harness's to clean up.
	// Close of the pool has been called by the end of the check, if the check did not fail.
	New func(t T) pools.Pool
	// Reopen closes the pool and opens it again.
	Reopen func(t T, p pools.Pool) pools.Pool
	// Crash opens what is left of the pool if its process dies now: p is not closed, and its sessions and sets are lost. Nil where
	// that cannot be done; then the checks that need it say so in the log.
	Crash func(t T, p pools.Pool) pools.Pool
	// Corrupt changes stored bytes of at least one chunk that a committed set needs, and returns the pool, opened again if
	// need be. Nil where that cannot be done.
	Corrupt func(t T, p pools.Pool) pools.Pool
}

// A Check is one named promise of the Pool interface.
type Check struct {
	Name string
	run  func(b *bench)
}

// Checks returns all checks in the order in which Run runs them.
func Checks() []Check {
	var all []Check
	for _, table := range [][]Check{traitChecks, writeChecks, placeChecks, readChecks, inheritChecks, deleteChecks, damageChecks, sizeChecks, copyChecks} {
		all = append(all, table...)
	}
	return all
}

// Run runs every check on pools of the harness. One failed check does not stop the others.
func Run(t T, h Harness) {
	t.Helper()
	for _, c := range Checks() {
		c.Run(t, h)
	}
}

// Run runs one check and reports whether it passed. Its messages begin with the check's name. When the check has passed, the
// pool is verified, closed and, where that is possible, opened again.
func (c Check) Run(t T, h Harness) bool {
	t.Helper()
	n := &named{t: t, name: c.Name}
	n.do(func() {
		b := newBench(n, h)
		c.run(b)
		b.finish()
	})
	return !n.failed.Load()
}

// named is a T that puts a name before every message, counts failures, and ends only its own goroutine on Fatalf, so that a
// failed check is not the end of a run.
type named struct {
	t      T
	name   string
	failed atomic.Bool
}

func (n *named) Helper() { n.t.Helper() }

func (n *named) Logf(format string, args ...any) { n.t.Logf("%s: "+format, prepend(n.name, args)...) }

func (n *named) Errorf(format string, args ...any) {
	n.failed.Store(true)
	n.t.Errorf("%s: "+format, prepend(n.name, args)...)
}

func (n *named) Fatalf(format string, args ...any) {
	n.Errorf(format, args...)
	runtime.Goexit()
}

func prepend(name string, args []any) []any { return append([]any{name}, args...) }

// do runs f in a goroutine that Fatalf may end, and waits for it. A panic in f is a failure with its stack.
func (n *named) do(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				buf := make([]byte, 64<<10)
				n.Errorf("panic: %v\n%s", r, buf[:runtime.Stack(buf, false)])
			}
		}()
		f()
	}()
	<-done
}

// must ends the check on an error.
func must(t T, err error, doing string, args ...any) {
	if err != nil {
		t.Helper()
		t.Fatalf("%s: %v", fmt.Sprintf(doing, args...), err)
	}
}

// wantKind reports an error that is nil or of none of the kinds.
func wantKind(t T, err error, doing string, kinds ...holdfast.Kind) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: succeeded, want an error of kind %v", doing, kinds)
		return
	}
	for _, k := range kinds {
		if holdfast.KindOf(err) == k {
			return
		}
	}
	t.Errorf("%s: kind %v (%v), want %v", doing, holdfast.KindOf(err), err, kinds)
}

// background is the context of everything that is not about cancelling: a check has no deadline of its own.
var background = context.Background()
