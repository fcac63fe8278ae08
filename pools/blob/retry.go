package blob

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// A Policy says how often and how patiently a thing that failed with kind Transient is tried again.
type Policy struct {
	Attempts int           // in all, the first one included; less than 1 means 1
	First    time.Duration // the pause before the second attempt; it doubles from one to the next
	Max      time.Duration // the longest pause
}

// DefaultPolicy waits for about a minute and a half in all: long enough for a server's restart or a bout of throttling, short
// against the time a job may wait.
var DefaultPolicy = Policy{Attempts: 8, First: 500 * time.Millisecond, Max: 30 * time.Second}

// pause returns the time to wait before attempt n (2, 3, ...): between half and all of the doubled time, so that many who failed
// together do not come back together.
func (p Policy) pause(n int) time.Duration {
	d := p.First
	for i := 2; i < n && d < p.Max; i++ {
		d *= 2
	}
	if d = min(d, p.Max); d <= 0 {
		return 0
	}
	return d/2 + rand.N(d/2+1)
}

// Do calls f until it succeeds, fails with another kind than Transient, the attempts are used up or ctx ends. It returns f's last
// error.
func (p Policy) Do(ctx context.Context, c clock.Clock, f func() error) error {
	for n := 1; ; n++ {
		err := f()
		if err == nil || holdfast.KindOf(err) != holdfast.Transient || n >= p.Attempts || ctx.Err() != nil {
			return err
		}
		passed, stop := c.After(p.pause(n + 1))
		select {
		case <-passed:
		case <-ctx.Done():
			stop()
			return errors.Join(Cancelled(ctx, "wait to try again"), err)
		}
		stop()
	}
}

// Retry returns a Store that tries again what failed with kind Transient. Everything is tried again but the writing of an object:
// its bytes are gone once they were handed over, so Write and Commit pass their errors on; a Store that can send the bytes twice
// (s3store) does so itself.
func Retry(s Store, p Policy, c clock.Clock) Store { return &retrying{s, p, c} }

type retrying struct {
	Store
	p Policy
	c clock.Clock
}

// again is Policy.Do for a function with a result.
func again[R any](r *retrying, ctx context.Context, f func() (R, error)) (R, error) {
	var out R
	err := r.p.Do(ctx, r.c, func() (err error) {
		out, err = f()
		return err
	})
	return out, err
}

func (r *retrying) Create(ctx context.Context, name string) (Object, error) {
	return again(r, ctx, func() (Object, error) { return r.Store.Create(ctx, name) })
}

func (r *retrying) Open(ctx context.Context, name string) (Reader, error) {
	in, err := again(r, ctx, func() (Reader, error) { return r.Store.Open(ctx, name) })
	if err != nil {
		return nil, err
	}
	return &retryingReader{in, r, ctx}, nil
}

func (r *retrying) List(ctx context.Context, folder string) ([]string, error) {
	return again(r, ctx, func() ([]string, error) { return r.Store.List(ctx, folder) })
}

func (r *retrying) Exists(ctx context.Context, name string) (bool, error) {
	return again(r, ctx, func() (bool, error) { return r.Store.Exists(ctx, name) })
}

func (r *retrying) Remove(ctx context.Context, name string) error {
	return r.p.Do(ctx, r.c, func() error { return r.Store.Remove(ctx, name) })
}

func (r *retrying) Usage(ctx context.Context) (free, size int64, err error) {
	err = r.p.Do(ctx, r.c, func() (err error) {
		free, size, err = r.Store.Usage(ctx)
		return err
	})
	return free, size, err
}

// retryingReader keeps the context it was opened with: reading belongs to the same piece of work, and io.ReaderAt has none.
type retryingReader struct {
	Reader
	r   *retrying
	ctx context.Context
}

func (r *retryingReader) ReadAt(p []byte, off int64) (int, error) {
	return again(r.r, r.ctx, func() (int, error) { return r.Reader.ReadAt(p, off) })
}
