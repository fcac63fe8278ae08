package transport

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

const (
	maxNoticeBytes = 256 << 10 // one line of the task stream
	firstRetry     = 200 * time.Millisecond
	lastRetry      = 4 * time.Second // an agent shows Online within 5 s of its appliance
	silence        = 3 * wire.HeartbeatEvery
)

// A Handler is told what comes on the task stream. Its functions are called by one goroutine and return quickly.
type Handler struct {
	Online  func()            // the stream is open: the host counts as Online
	Notice  func(wire.Notice) // not for heartbeats
	Offline func(error)       // the stream broke or could not be opened; it is tried again
}

// Run keeps the task stream open until ctx ends, which is the error it returns: the agent's life is this call. It
// connects again with growing pauses, whatever the error was: an appliance may come back, a host be let in again.
func (c *Client) Run(ctx context.Context, h Handler) error {
	pause := &backoff.ExponentialBackOff{
		InitialInterval: firstRetry, RandomizationFactor: 0.3, Multiplier: 2, MaxInterval: lastRetry,
	}
	pause.Reset()
	for {
		err := c.stream(ctx, h, pause.Reset)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h.Offline(err)
		wait, stop := c.clock.After(pause.NextBackOff())
		select {
		case <-wait:
		case <-ctx.Done():
			stop()
			return context.Cause(ctx)
		}
	}
}

// stream opens the task stream and reads it until it breaks. It never returns nil.
func (c *Client) stream(ctx context.Context, h Handler, opened func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	beat := make(chan struct{})
	over := make(chan struct{})
	go func() {
		defer close(over)
		c.watch(ctx, beat, cancel)
	}()
	defer func() {
		cancel(nil)
		<-over
	}()
	resp, err := c.do(ctx, http.MethodGet, wire.PathTasks, nil)
	if err != nil {
		return cause(ctx, err)
	}
	defer resp.Body.Close()
	opened()
	h.Online()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 4<<10), maxNoticeBytes)
	for lines.Scan() {
		select {
		case beat <- struct{}{}:
		case <-ctx.Done():
		}
		var n wire.Notice
		if err := json.Unmarshal(lines.Bytes(), &n); err != nil {
			return holdfast.Errorf(holdfast.Invalid, "read task stream", "%w", err)
		}
		if n != (wire.Notice{}) {
			h.Notice(n)
		}
	}
	err = lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return cause(ctx, c.classify("read task stream", err))
}

// watch ends the stream when it has been silent for too long.
func (c *Client) watch(ctx context.Context, beat <-chan struct{}, cancel context.CancelCauseFunc) {
	for {
		late, stop := c.clock.After(silence)
		select {
		case <-beat:
			stop()
		case <-ctx.Done():
			stop()
			return
		case <-late:
			cancel(holdfast.Errorf(holdfast.Offline, "read task stream", "nothing heard from the appliance for %v", silence))
			return
		}
	}
}

// cause prefers the reason for which the context was ended to the error that came of it.
func cause(ctx context.Context, err error) error {
	if e := context.Cause(ctx); e != nil {
		return e
	}
	return err
}
