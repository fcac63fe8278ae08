package agent

import (
	"context"
	"sync"
	"time"
	_ "time/tzdata" // limits mean the clocks of the job's zone, which a host need not know

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// burst is how much of a limit may be used at once after a pause: a tenth of a second's worth, so that no second holds much more than its share.
const burst = 100 * time.Millisecond

// A bucket keeps a speed limit that depends on the time of the week. What somebody takes is a debt that the rate in force pays off; whoever
// takes waits until the debt before was paid. So one message or read passes whole whatever its size, and the rate changes in
// the middle of a wait if a window opens or closes then. Safe for concurrent use; nil limits nothing.
type bucket struct {
	clock  clock.Clock
	limits []wire.Limit
	reads  bool
	zone   *time.Location

	mu   sync.Mutex
	debt float64   // bytes that are not paid off yet, at the moment at; negative: savings
	at   time.Time // zero before the first use
}

// newBucket returns the bucket of the limits on reading or on sending; nil if there are none.
func newBucket(c clock.Clock, limits []wire.Limit, reads bool, zone *time.Location) *bucket {
	for _, l := range limits {
		if l.Reads == reads && l.Rate > 0 {
			return &bucket{clock: c, limits: limits, reads: reads, zone: zone}
		}
	}
	return nil
}

func (b *bucket) windows() []wire.Window {
	var ws []wire.Window
	for _, l := range b.limits {
		if l.Window != nil && l.Reads == b.reads {
			ws = append(ws, *l.Window)
		}
	}
	return ws
}

// settle pays the debt off with the time that has passed, window by window. It returns the rate in force now, and when it may change.
// The caller has b.mu.
func (b *bucket) settle() (rate float64, until time.Time) {
	now := b.clock.Now()
	if b.at.IsZero() || now.Before(b.at) {
		b.at = now
	}
	ws := b.windows()
	for {
		rate = float64(wire.RateAt(b.limits, b.reads, b.at.In(b.zone)))
		until = wire.NextChange(ws, b.at.In(b.zone))
		end := now
		if !until.IsZero() && until.Before(now) {
			end = until
		}
		if rate == 0 {
			b.debt = 0
		} else {
			b.debt = max(b.debt-rate*end.Sub(b.at).Seconds(), -rate*burst.Seconds())
		}
		b.at = end
		if end.Equal(now) {
			return rate, until
		}
	}
}

// take waits until n bytes may pass.
func (b *bucket) take(ctx context.Context, n int) error {
	if b == nil {
		return nil
	}
	for {
		b.mu.Lock()
		rate, until := b.settle()
		if rate == 0 || b.debt <= 0 {
			b.debt += float64(n)
			b.mu.Unlock()
			return nil
		}
		pause := time.Duration(b.debt/rate*float64(time.Second)) + time.Microsecond
		if !until.IsZero() {
			pause = min(pause, until.Sub(b.at))
		}
		b.mu.Unlock()
		later, stop := b.clock.After(pause)
		select {
		case <-later:
		case <-ctx.Done():
			stop()
			return context.Cause(ctx)
		}
	}
}

// checkLimits refuses limits outside their bounds, and returns their zone.
func checkLimits(t *wire.Task) (*time.Location, error) {
	const op = "keep the speed limit"
	if len(t.Limits) > wire.MaxLimits {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "%d limits; at most %d are allowed", len(t.Limits), wire.MaxLimits)
	}
	for _, l := range t.Limits {
		if l.Window != nil {
			if err := l.Window.Check(); err != nil {
				return nil, err
			}
		}
	}
	z, err := time.LoadLocation(t.Zone)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "there is no time zone %q", t.Zone)
	}
	return z, nil
}
