package appliance

import (
	"context"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

const (
	maxPending = 4096 // events that wait for the catalog; more are logged only
	// refusedPerMinute bounds how many turned-away connections are recorded: a scanner must not push everything else out of the ring.
	refusedPerMinute = 30
)

// eventLog records events in the catalog and wakes those who follow them. Emit is the appliance's one Listener.
type eventLog struct {
	cat   *catalog.Catalog
	clock clock.Clock
	log   *slog.Logger

	mu      sync.Mutex
	pending []holdfast.Event
	changed chan struct{} // closed and replaced when new events are recorded
	kick    chan struct{}
	minute  time.Time // in which refused counts
	refused int
	stop    chan struct{}
	done    chan struct{}
}

func newEventLog(cat *catalog.Catalog, c clock.Clock, log *slog.Logger) *eventLog {
	l := &eventLog{cat: cat, clock: c, log: log, changed: make(chan struct{}), kick: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	go l.write()
	return l
}

// Emit takes an event; it never waits for the catalog.
func (l *eventLog) Emit(e holdfast.Event) {
	if e.Time.IsZero() {
		e.Time = l.clock.Now().UTC()
	}
	if e.Type != holdfast.EventContainerSealed {
		level := map[holdfast.Severity]slog.Level{holdfast.Info: slog.LevelInfo, holdfast.Warning: slog.LevelWarn, holdfast.Alarm: slog.LevelError}[e.Severity]
		l.log.Log(context.Background(), level, e.Text, "event", string(e.Type))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Type == holdfast.EventRefused {
		if m := e.Time.Truncate(time.Minute); !m.Equal(l.minute) {
			l.minute, l.refused = m, 0
		}
		if l.refused++; l.refused > refusedPerMinute {
			return
		}
	}
	if e.Type == holdfast.EventContainerSealed || len(l.pending) >= maxPending {
		return // sealed containers are for metrics; nobody follows them one by one
	}
	l.pending = append(l.pending, e)
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// write moves pending events to the catalog until the log is closed.
func (l *eventLog) write() {
	defer close(l.done)
	for {
		last := false
		select {
		case <-l.kick:
		case <-l.stop:
			last = true
		}
		l.mu.Lock()
		batch := l.pending
		l.pending = nil
		l.mu.Unlock()
		if len(batch) > 0 {
			err := l.cat.Update(context.Background(), func(tx *catalog.Tx) error {
				for _, e := range batch {
					if _, err := tx.AddEvent(e); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				l.log.Error("events could not be recorded", "error", err, "count", len(batch))
			}
			l.mu.Lock()
			close(l.changed)
			l.changed = make(chan struct{})
			l.mu.Unlock()
		}
		if last {
			return
		}
	}
}

// Close records what is pending.
func (l *eventLog) Close() {
	close(l.stop)
	<-l.done
}

// follow yields the events after a number, then new ones, until ctx ends.
func (l *eventLog) follow(ctx context.Context, after uint64) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		for {
			l.mu.Lock()
			changed := l.changed
			l.mu.Unlock()
			var page []catalog.LoggedEvent
			err := l.cat.View(func(tx *catalog.Tx) (err error) {
				page, _, err = tx.Events(after, catalog.Page{})
				return err
			})
			if err != nil {
				yield(api.Event{}, err)
				return
			}
			for _, e := range page {
				after = e.Seq
				if !yield(api.Event{Seq: e.Seq, Event: e.Event}, nil) {
					return
				}
			}
			if len(page) > 0 {
				continue
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			case <-l.stop:
				return
			}
		}
	}
}
