package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// TestBusyHostIsWaitedFor: a merge that takes a while delays a backup and does not fail it; one that never ends does.
func TestBusyHostIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := holdfast.Errorf(holdfast.Busy, "open disk", "the disk is being merged")
		start := time.Now()
		ask := func(until time.Duration) (int, error) {
			return untilFree(t.Context(), clock.System, func(context.Context) (int, error) {
				if time.Since(start) < until {
					return 0, busy
				}
				return 7, nil
			})
		}
		if v, err := ask(30 * time.Second); v != 7 || err != nil {
			t.Fatal(v, err)
		}
		if took := time.Since(start); took < 30*time.Second || took > 33*time.Second {
			t.Errorf("it took %v", took)
		}
		if _, err := ask(time.Hour); !errors.Is(err, holdfast.Busy) {
			t.Fatalf("a merge without end: %v", err)
		}
	})
}
