// Package clock is the only place of the house that reads the wall clock. Everything else is handed a Clock.
package clock

import "time"

// A Clock tells the time and waits. Under testing/synctest the System clock is already a fake one.
type Clock interface {
	Now() time.Time
	// After returns a channel that receives once d has passed, and a function that gives the timer back early.
	After(d time.Duration) (<-chan time.Time, func())
}

// System is the machine's clock.
var System Clock = system{}

type system struct{}

func (system) Now() time.Time { return time.Now() }

func (system) After(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}
