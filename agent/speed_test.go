package agent

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

const mib = 1 << 20

func mustWindow(t *testing.T, s string) *wire.Window {
	t.Helper()
	w, err := wire.ParseWindow(s)
	if err != nil {
		t.Fatal(err)
	}
	return &w
}

// TestSpeedLimitsHoldInEachWindow: several disks at once take from one bucket; the bytes of each window are within ten percent of its rate, and
// the rate changes at the boundary, whatever was waited for then.
func TestSpeedLimitsHoldInEachWindow(t *testing.T) {
	for _, reads := range []bool{false, true} {
		for _, chunk := range []int{64 << 10, 300_000, 2 * mib} {
			synctest.Test(t, func(t *testing.T) {
				// The bubble's clock begins at midnight UTC of 2000-01-01, a Saturday.
				limits := []wire.Limit{
					{Rate: 20 * mib, Reads: reads, Window: mustWindow(t, "00:00-00:02")},
					{Rate: 5 * mib, Reads: reads, Window: mustWindow(t, "00:02-00:04 sat")},
					{Rate: 1 * mib, Reads: reads, Window: mustWindow(t, "00:02-00:04 sun")}, // of another day
					{Rate: 50 * mib, Reads: reads, Window: mustWindow(t, "00:04-00:06")},
					{Rate: 3 * mib, Reads: !reads}, // of the other kind
				}
				b := newBucket(clock.System, limits, reads, time.UTC)
				ctx, cancel := context.WithCancel(t.Context())
				start := clock.System.Now()
				var mu sync.Mutex
				got := map[int]float64{}
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						for b.take(ctx, chunk) == nil {
							mu.Lock()
							got[int(clock.System.Now().Sub(start)/time.Minute)] += float64(chunk)
							mu.Unlock()
							if clock.System.Now().Sub(start) >= 6*time.Minute {
								return
							}
						}
					})
				}
				wg.Wait()
				cancel()
				for minute := range 6 {
					want := []float64{20, 5, 50}[minute/2] * 60 * mib
					if dev := got[minute]/want - 1; math.Abs(dev) > 0.1 {
						t.Errorf("reads %v, %d bytes at a time: minute %d has %.1f %% of its rate", reads, chunk, minute, 100+100*dev)
					}
				}
			})
		}
	}
}

// TestALimitEndsInTheMiddleOfAWait: who waits at a slow rate goes on when its window closes, and one who is cancelled at once.
func TestALimitEndsInTheMiddleOfAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(clock.System, []wire.Limit{{Rate: 1024, Window: mustWindow(t, "00:00-00:01")}}, false, time.UTC)
		start := clock.System.Now()
		for range 2 {
			if err := b.take(t.Context(), 100*mib); err != nil {
				t.Fatal(err)
			}
		}
		if d := clock.System.Now().Sub(start); d < time.Minute || d > time.Minute+time.Second {
			t.Errorf("it went on after %v, the window closes after a minute", d)
		}
		slow := newBucket(clock.System, []wire.Limit{{Rate: 1024}}, false, time.UTC)
		ctx, cancel := context.WithCancel(t.Context())
		if err := slow.take(ctx, mib); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, cancel)
		start = clock.System.Now()
		if err := slow.take(ctx, mib); !errors.Is(err, context.Canceled) || clock.System.Now().Sub(start) != time.Second {
			t.Errorf("cancelled: %v after %v", err, clock.System.Now().Sub(start))
		}
	})
}

// TestWindowsMeanTheJobsZone: a limit of the working hours of Berlin holds there, in winter and in summer.
func TestWindowsMeanTheJobsZone(t *testing.T) {
	z, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	ls := []wire.Limit{{Rate: 7, Window: mustWindow(t, "08:00-18:00 mon-fri")}}
	for at, want := range map[string]int64{"2026-01-15T07:30:00Z": 7, "2026-01-15T06:59:59Z": 0, "2026-07-15T06:00:00Z": 7, "2026-07-15T16:00:00Z": 0, "2026-07-18T10:00:00Z": 0} {
		m, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := wire.RateAt(ls, false, m.In(z)); got != want {
			t.Errorf("%s: %d, want %d", at, got, want)
		}
	}
}

// TestAGroupFreezesBeforeAnyReads: no member passes the second gate before all have come, lost ones included; a lone member goes on after its patience.
func TestAGroupFreezesBeforeAnyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shared{ready: newGate(4), frozen: newGate(4)}
		task := &wire.Task{Group: 4}
		var mu sync.Mutex
		frozen, early := 0, 0
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				m := newMember(s, task, clock.System)
				defer m.leave()
				<-time.After(time.Duration(i) * time.Second)
				if _, err := m.come(t.Context()); err != nil {
					t.Error(err)
				}
				if i == 3 {
					return // its checkpoint fails
				}
				<-time.After(time.Duration(i) * 100 * time.Millisecond)
				mu.Lock()
				frozen++
				mu.Unlock()
				note, err := m.come(t.Context())
				mu.Lock()
				if frozen < 3 {
					early++
				}
				mu.Unlock()
				if err != nil || note != "frozen together with 2 others within 200ms; 1 of the group are missing" {
					t.Errorf("%q %v", note, err)
				}
			})
		}
		wg.Wait()
		if early > 0 {
			t.Errorf("%d went on before all were frozen", early)
		}
		lone := newMember(&shared{ready: newGate(2), frozen: newGate(2)}, &wire.Task{Group: 2}, clock.System)
		start := clock.System.Now()
		if _, err := lone.come(t.Context()); err != nil || clock.System.Now().Sub(start) != groupPatience {
			t.Errorf("a lone member waited %v: %v", clock.System.Now().Sub(start), err)
		}
	})
}
