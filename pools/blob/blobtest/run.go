// Package blobtest is the law of blob.Store as a table of checks that every Store runs, and two campaigns for the Stores that
// stand on file systems in memory: power cuts at every sync point, and a failure of every operation.
//
// It does not import testing, so that a running appliance can check a real target's folder or bucket with it.
// Content is made from the object's name, so that a check needs no memory of what it wrote: see Content.
package blobtest

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast/pools/blob"
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

// A Harness makes the stores that are checked. A hook that fails calls t.Fatalf.
type Harness struct {
	// New makes a new empty store. Called for each check; the check closes it.
	New func(t T) blob.Store
	// Reopen closes the store and opens it again. Nil where a store does not outlive its process.
	Reopen func(t T, s blob.Store) blob.Store
	// Crash opens what is left of the store if its machine dies now. Nil where that cannot be done.
	Crash func(t T, s blob.Store) blob.Store
	// Big is the size of the largest object written; 0 means 9 MiB.
	Big int
	// Many is how many objects the longest listing has; 0 means 120.
	Many int
}

// A Check is one named promise of the Store interface.
type Check struct {
	Name string
	run  func(b *bench)
}

// Checks returns all checks in the order in which Run runs them.
func Checks() []Check {
	var all []Check
	for _, table := range [][]Check{writeChecks, readChecks, nameChecks, listChecks, togetherChecks, lastingChecks} {
		all = append(all, table...)
	}
	return all
}

// Run runs every check, each on a new store. One failed check does not stop the others.
func Run(t T, h Harness) {
	t.Helper()
	for _, c := range Checks() {
		c.Run(t, h)
	}
}

// Run runs one check and reports whether it passed. Its messages begin with the check's name.
func (c Check) Run(t T, h Harness) bool {
	t.Helper()
	if h.Big == 0 {
		h.Big = 9 << 20
	}
	if h.Many == 0 {
		h.Many = 120
	}
	n := &named{t: t, name: c.Name}
	n.do(func() {
		b := &bench{T: n, h: h, ctx: context.Background(), s: h.New(n)}
		defer func() {
			if err := b.s.Close(); err != nil {
				b.Errorf("close: %v", err)
			}
		}()
		c.run(b)
	})
	return !n.failed.Load()
}

// named is a T that puts a name before every message, counts failures, and ends only its own goroutine on Fatalf.
type named struct {
	t      T
	name   string
	failed atomic.Bool
}

func (n *named) Helper() { n.t.Helper() }

func (n *named) Logf(format string, args ...any) {
	n.t.Logf("%s: "+format, append([]any{n.name}, args...)...)
}

func (n *named) Errorf(format string, args ...any) {
	n.failed.Store(true)
	n.t.Errorf("%s: "+format, append([]any{n.name}, args...)...)
}

func (n *named) Fatalf(format string, args ...any) {
	n.Errorf(format, args...)
	runtime.Goexit()
}

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
