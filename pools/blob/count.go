package blob

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
)

// A Verb is a kind of request to a store.
type Verb uint8

// The verbs that are counted and that Fault can fail.
const (
	VerbCreate Verb = iota
	VerbWrite
	VerbCommit // the request that sends an object, where the store sends it at once
	VerbOpen
	VerbRead
	VerbList
	VerbExists
	VerbRemove
	VerbUsage
	VerbOther // what belongs to no object's bytes: settings, retention
	verbs
)

// String returns the verb as it is shown: "create".
func (v Verb) String() string {
	return [...]string{"create", "write", "commit", "open", "read", "list", "exists", "remove", "usage", "other", "?"}[min(v, verbs)]
}

// A Count says how often something was asked for, how often that failed, and how many bytes went.
type Count struct {
	Requests, Failed, Bytes int64
}

// Requests counts requests to a store by verb. The zero value counts from zero; the nil Requests counts nothing. Safe for
// concurrent use.
type Requests struct {
	n [verbs]struct{ requests, failed, bytes atomic.Int64 }
}

// Add counts one request that moved bytes and ended with err.
func (r *Requests) Add(v Verb, bytes int64, err error) {
	if r == nil || v >= verbs {
		return
	}
	c := &r.n[v]
	c.requests.Add(1)
	c.bytes.Add(bytes)
	if err != nil {
		c.failed.Add(1)
	}
}

// Of returns what was counted for a verb.
func (r *Requests) Of(v Verb) Count {
	if r == nil || v >= verbs {
		return Count{}
	}
	c := &r.n[v]
	return Count{Requests: c.requests.Load(), Failed: c.failed.Load(), Bytes: c.bytes.Load()}
}

// All returns what was counted, by verb; verbs without requests are left out.
func (r *Requests) All() map[Verb]Count {
	out := map[Verb]Count{}
	for v := range verbs {
		if c := r.Of(v); c.Requests > 0 {
			out[v] = c
		}
	}
	return out
}

// Total returns the sum over all verbs.
func (r *Requests) Total() Count {
	var sum Count
	for _, c := range r.All() {
		sum.Requests += c.Requests
		sum.Failed += c.Failed
		sum.Bytes += c.Bytes
	}
	return sum
}

// Meter returns a Store that counts into n what is asked of s: calls, not what s makes of them. What goes over a line to a bucket is
// counted by s3store itself.
func Meter(s Store, n *Requests) Store { return &metered{s, n} }

type metered struct {
	Store
	n *Requests
}

func (m *metered) Create(ctx context.Context, name string) (Object, error) {
	o, err := m.Store.Create(ctx, name)
	m.n.Add(VerbCreate, 0, err)
	if err != nil {
		return nil, err
	}
	return &meteredObject{o, m.n}, nil
}

func (m *metered) Open(ctx context.Context, name string) (Reader, error) {
	r, err := m.Store.Open(ctx, name)
	m.n.Add(VerbOpen, 0, err)
	if err != nil {
		return nil, err
	}
	return &meteredReader{r, m.n}, nil
}

func (m *metered) List(ctx context.Context, folder string) ([]string, error) {
	names, err := m.Store.List(ctx, folder)
	m.n.Add(VerbList, 0, err)
	return names, err
}

func (m *metered) Exists(ctx context.Context, name string) (bool, error) {
	is, err := m.Store.Exists(ctx, name)
	m.n.Add(VerbExists, 0, err)
	return is, err
}

func (m *metered) Remove(ctx context.Context, name string) error {
	err := m.Store.Remove(ctx, name)
	m.n.Add(VerbRemove, 0, err)
	return err
}

func (m *metered) Usage(ctx context.Context) (free, size int64, err error) {
	free, size, err = m.Store.Usage(ctx)
	m.n.Add(VerbUsage, 0, err)
	return free, size, err
}

type meteredObject struct {
	Object
	n *Requests
}

func (o *meteredObject) Write(p []byte) (int, error) {
	n, err := o.Object.Write(p)
	o.n.Add(VerbWrite, int64(n), err)
	return n, err
}

func (o *meteredObject) Commit() error {
	err := o.Object.Commit()
	o.n.Add(VerbCommit, 0, err)
	return err
}

type meteredReader struct {
	Reader
	n *Requests
}

func (r *meteredReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.Reader.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		r.n.Add(VerbRead, int64(n), nil)
	} else {
		r.n.Add(VerbRead, int64(n), err)
	}
	return n, err
}
