package agent

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// A host that still merges an earlier checkpoint answers Busy (on Windows: a sharing violation). That passes by itself.
const (
	busyPatience = 10 * time.Minute
	busyFirst    = 100 * time.Millisecond
	busyMost     = 2 * time.Second
)

// untilFree calls f until it answers something else than Busy, for at most busyPatience, and returns its last answer.
func untilFree[T any](ctx context.Context, c clock.Clock, f func(context.Context) (T, error)) (T, error) {
	deadline := c.Now().Add(busyPatience)
	for pause := busyFirst; ; pause = min(2*pause, busyMost) {
		v, err := f(ctx)
		if !errors.Is(err, holdfast.Busy) || c.Now().After(deadline) {
			return v, err
		}
		later, stop := c.After(pause)
		select {
		case <-later:
		case <-ctx.Done():
			stop()
			return v, context.Cause(ctx)
		}
	}
}
