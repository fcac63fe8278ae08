package notify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// How a message is tried again. A target's messages go in order: the next one waits while the first is tried again.
const (
	attemptTimeout = 30 * time.Second
	firstRetry     = 30 * time.Second // doubled after each attempt
	lastRetry      = time.Hour        // and at most this
	maxAge         = 72 * time.Hour   // then it is given up: whoever was not reached for so long has Status and the console
	maxRefusals    = 6                // attempts at what the target refuses for good: enough for an admin to mend a password the same hour
	failingAfter   = 3                // attempts in a row before the listener is told
)

// Status is how a target does.
type Status struct {
	Name    string    `json:"name"`
	Queued  int       `json:"queued"`            // messages that wait to be sent
	Held    int       `json:"held"`              // messages that wait for a summary
	Digest  int       `json:"digest"`            // messages that wait for the digest
	Success time.Time `json:"success,omitzero"`  // the last one since the start
	Failure time.Time `json:"failure,omitzero"`  // the last one since the start
	Error   string    `json:"error,omitempty"`   // of the last attempt, if it failed
	Next    time.Time `json:"next,omitzero"`     // attempt
	GivenUp int       `json:"given_up,omitzero"` // messages since the start
}

// Status lists the targets by name.
func (n *Notifier) Status() []Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []Status
	for _, t := range n.targets {
		s := t.status
		s.Name, s.Queued, s.Held, s.Digest = t.Name, len(t.queue), t.state.Held.Count, t.state.Digest.Count
		if len(t.queue) > 0 {
			s.Next = t.queue[0].Next
			s.Error = cmp.Or(s.Error, t.queue[0].Error)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Status) int { return compareNames(a.Name, b.Name) })
	return out
}

// Test sends a message to the target, past its rules and queue, and returns what came of it.
func (n *Notifier) Test(ctx context.Context, t Target) error {
	if err := t.Check(); err != nil {
		return err
	}
	e := holdfast.Event{Time: n.o.Clock.Now().UTC(), Type: EventTest, Text: "this is a test of the notification target " + t.Name, Fields: map[string]string{"target": t.Name}}
	n.mu.Lock()
	m, v := n.newMessage(&e, "", Plain, nil), n.env
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	s, err := t.ready()
	if err == nil {
		_, err = s.send(ctx, v, &m, nil)
	}
	return err
}

// Run sends until ctx ends and returns when everything it started has. It is called once. What was not sent stays in the store.
func (n *Notifier) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for ctx.Err() == nil {
		ready, next := n.look()
		for _, t := range ready {
			wg.Go(func() { n.deliver(ctx, t) })
		}
		var due <-chan time.Time
		stop := func() {}
		if !next.IsZero() {
			due, stop = n.o.Clock.After(next.Sub(n.o.Clock.Now()))
		}
		select {
		case <-due:
		case <-n.kick:
		case <-ctx.Done():
		}
		stop()
	}
}

// Drain makes every attempt that is due now, one after the other, and returns when something is due next; the zero time if nothing
// waits. It is for programs that do not Run.
func (n *Notifier) Drain(ctx context.Context) time.Time {
	for {
		ready, next := n.look()
		if len(ready) == 0 || ctx.Err() != nil {
			return next
		}
		for _, t := range ready {
			n.deliver(ctx, t)
		}
	}
}

// retryStore is how soon a store that failed is tried again.
const retryStore = 10 * time.Second

// look queues summaries and digests that are due, marks the targets that have something to send now as busy and returns them, and when
// to look again.
func (n *Notifier) look() (ready []*target, next time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	tx := n.begin()
	next = tx.tick()
	if err := tx.commit(); err != nil {
		next = earlier(next, tx.now.Add(retryStore))
	}
	for _, t := range n.targets {
		switch {
		case t.busy || t.Disabled || len(t.queue) == 0:
		case waits(t.queue[0].Next.Sub(tx.now)):
			next = earlier(next, t.queue[0].Next)
		default:
			t.busy = true
			ready = append(ready, t)
		}
	}
	slices.SortFunc(ready, func(a, b *target) int { return compareNames(a.Name, b.Name) })
	return ready, next
}

// waits tells whether an attempt so far ahead has to wait. None is ever set further ahead than lastRetry: then the clock went back.
func waits(ahead time.Duration) bool { return ahead > 0 && ahead <= lastRetry }

// deliver attempts the head of a target's queue, which look has marked busy.
func (n *Notifier) deliver(ctx context.Context, t *target) {
	n.mu.Lock()
	if len(t.queue) == 0 {
		t.busy = false
		n.mu.Unlock()
		return
	}
	d, config, v := t.queue[0], t.Target, n.env
	n.mu.Unlock()

	attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
	done := d.Done
	s, err := config.ready()
	if err == nil {
		done, err = s.send(attempt, v, &d.Message, d.Done)
	}
	cancel()

	n.mu.Lock()
	events := n.outcome(t, d, done, err, ctx.Err() != nil)
	t.busy = false
	n.wake()
	n.mu.Unlock()
	for _, e := range events {
		n.o.Listener.Emit(e)
	}
}

// outcome records an attempt. The caller has the lock; it emits the events after giving it back.
func (n *Notifier) outcome(t *target, d *delivery, done []string, err error, stopped bool) (events []holdfast.Event) {
	if n.targets[t.Name] != t || len(t.queue) == 0 || t.queue[0] != d {
		return nil // the target was removed meanwhile
	}
	tx := n.begin()
	p := tx.part(t)
	after := *d
	after.Done = done
	switch {
	case err == nil:
		t.status.Success, t.status.Error = tx.now, ""
		p.pop(tx)
		if p.state.Failing {
			p.state.Failing = false
			events = append(events, Clear(t.event(EventFailed, holdfast.Info, "notifications reach target %s again", t.Name), "notify/"+t.Name))
		}
	case stopped && len(done) == len(d.Done):
		return nil // no fault of the target's
	default:
		after.Attempts++
		after.Error = clipText(err.Error(), maxField)
		after.Next = tx.now.Add(backoff(after.Attempts, err))
		t.status.Failure, t.status.Error = tx.now, after.Error
		if after.Attempts >= failingAfter && !p.state.Failing {
			p.state.Failing = true
			events = append(events, Raise(t.event(EventFailed, holdfast.Warning, "notifications do not reach target %s: %s", t.Name, after.Error), "notify/"+t.Name))
		}
		if refused(err) && after.Attempts >= maxRefusals || tx.now.Sub(d.Queued) >= maxAge {
			t.status.GivenUp++
			p.pop(tx)
			events = append(events, t.event(EventDropped, holdfast.Warning, "a message to target %s was given up after %d attempts: %s (%s)", t.Name, after.Attempts, d.Message.Title, after.Error))
			break
		}
		p.queue[0] = &after
		tx.add = append(tx.add, &after)
	}
	if cerr := tx.commit(); cerr != nil {
		// Memory goes on as if it had been stored, or it would send twice; the store catches up with the next change.
		t.queue, t.state, n.owed = p.queue, p.state, tx.drop
		t.status.Error = cerr.Error()
	}
	return events
}

func (p *part) pop(tx *tx) {
	tx.drop = append(tx.drop, p.queue[0])
	p.queue = p.queue[1:]
}

func (t *target) event(typ holdfast.EventType, s holdfast.Severity, format string, args ...any) holdfast.Event {
	return holdfast.Event{Type: typ, Severity: s, Text: fmt.Sprintf(format, args...), Fields: map[string]string{"target": t.Name}}
}

// refused tells whether the target said no, so that asking again is likely to change nothing.
func refused(err error) bool {
	switch holdfast.KindOf(err) {
	case holdfast.Transient, holdfast.Offline, holdfast.Cancelled:
		return false
	}
	return true
}

// backoff returns how long to wait after so many attempts: longer each time, or what the target asked for.
func backoff(attempts int, err error) time.Duration {
	wait := lastRetry
	if attempts < 8 {
		wait = min(firstRetry<<(attempts-1), lastRetry)
	}
	var later *laterError
	if errors.As(err, &later) {
		wait = min(max(wait, later.after), lastRetry)
	}
	return wait
}
