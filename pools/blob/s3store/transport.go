package s3store

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast/pools/blob"
)

// transport counts requests, bounds their time and remembers the server's clock.
type transport struct {
	inner   *http.Transport
	count   *blob.Requests
	timeout time.Duration
	date    atomic.Int64 // the last answer's Date in unix seconds, 0: none yet
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	verb := verbOf(req)
	sent := max(req.ContentLength, 0)
	limit := timeLimit(t.timeout, sent)
	if verb == blob.VerbRead {
		limit = readLimit // a reader knows how much it asked for and has set its own limit
	}
	// A listing is many requests, and this is the only place that sees each.
	ctx, done := context.WithTimeout(req.Context(), limit)
	req = req.WithContext(ctx)
	resp, err := t.inner.RoundTrip(req)
	if err != nil {
		done()
		t.count.Add(verb, sent, err)
		return nil, err
	}
	if d, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		t.date.Store(d.Unix())
	}
	if resp.StatusCode >= 400 && !(verb == blob.VerbExists && resp.StatusCode == http.StatusNotFound) {
		err = http.ErrNotSupported // any error: this one only counts
	}
	if verb == blob.VerbRead {
		resp.Body = &countedBody{ReadCloser: resp.Body, t: t, err: err}
	} else {
		t.count.Add(verb, sent, err)
	}
	resp.Body = &limitedBody{resp.Body, done}
	return resp, nil
}

// readLimit is far above every limit that readers set.
const readLimit = 24 * time.Hour

// timeLimit is the time that a request may take that moves so many bytes.
func timeLimit(timeout time.Duration, bytes int64) time.Duration {
	return timeout + time.Duration(bytes/slowestLine)*time.Second
}

// limitedBody gives a request's timer back when its answer was read.
type limitedBody struct {
	io.ReadCloser
	done context.CancelFunc
}

func (b *limitedBody) Close() error {
	defer b.done()
	return b.ReadCloser.Close()
}

// verbOf tells which of a store's requests this is.
func verbOf(req *http.Request) blob.Verb {
	q := req.URL.Query()
	for _, sub := range []string{"retention", "location", "versioning", "object-lock"} {
		if q.Has(sub) {
			return blob.VerbOther
		}
	}
	switch req.Method {
	case http.MethodPut:
		return blob.VerbCommit
	case http.MethodHead:
		return blob.VerbExists
	case http.MethodDelete:
		return blob.VerbRemove
	}
	if q.Has("list-type") || q.Has("versions") {
		return blob.VerbList
	}
	return blob.VerbRead
}

// countedBody counts a GET when its body is closed.
type countedBody struct {
	io.ReadCloser
	t    *transport
	n    int64
	err  error
	done bool
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

func (b *countedBody) Close() error {
	if !b.done {
		b.done = true
		b.t.count.Add(blob.VerbRead, b.n, b.err)
	}
	return b.ReadCloser.Close()
}

// serverTime returns the server's clock as of its last answer.
func (t *transport) serverTime() (time.Time, bool) {
	d := t.date.Load()
	return time.Unix(d, 0).UTC(), d != 0
}
