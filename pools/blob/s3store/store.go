package s3store

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/minio/minio-go/v7"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// A Store is a folder of a bucket. Make one with Open.
type Store struct {
	c         Config
	core      *minio.Core
	t         *transport
	prefix    string // ends in '/', or is empty
	versioned bool
	locks     bool
	spilled   atomic.Uint64 // numbers spill files
	md5       atomic.Bool   // the server does not confirm CRC-32C: send MD5 as well
}

var _ blob.Store = (*Store)(nil)

// Versioned reports whether the bucket keeps versions.
func (s *Store) Versioned() bool { return s.versioned }

// Locks reports whether the bucket was made with Object Lock, so that Retain can work.
func (s *Store) Locks() bool { return s.locks }

// maxListed bounds a listing: memory, against a server that never ends one.
const maxListed = 50_000_000

func (s *Store) key(name string) string { return s.prefix + name }

// limit bounds the time of a request that moves so many bytes.
func (s *Store) limit(ctx context.Context, bytes int64) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, timeLimit(s.c.Timeout, bytes))
}

func check(ctx context.Context, op, name string) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	return blob.Cancelled(ctx, op+" "+name)
}

// probe makes the smallest request whose refusal carries a reason. (The answer to a HEAD has no body, so that a wrong key, a
// wrong clock and a missing bucket cannot be told apart by it.)
func (s *Store) probe(ctx context.Context, op string) error {
	ctx, done := s.limit(ctx, 0)
	defer done()
	for o := range s.core.ListObjectsIter(ctx, s.c.Bucket, minio.ListObjectsOptions{Prefix: s.prefix, Recursive: true, MaxKeys: 1}) {
		return s.classify(op, o.Err)
	}
	return s.classify(op, ctx.Err())
}

// head asks for an object's properties; NotExist if there is none.
func (s *Store) head(ctx context.Context, op, name string) (minio.ObjectInfo, error) {
	short, done := s.limit(ctx, 0)
	defer done()
	info, err := s.core.StatObject(short, s.c.Bucket, s.key(name), minio.StatObjectOptions{Checksum: true})
	if err == nil {
		return info, nil
	}
	if code := minio.ToErrorResponse(err).StatusCode; code >= 400 && code < 500 {
		if reason := s.probe(ctx, op); reason != nil {
			return info, reason // the bucket, the key or the clock, not the object
		}
	}
	return info, s.classify(op, err)
}

// Open implements blob.Store.
func (s *Store) Open(ctx context.Context, name string) (blob.Reader, error) {
	if err := check(ctx, "open", name); err != nil {
		return nil, err
	}
	info, err := s.head(ctx, "open "+name, name)
	if err != nil {
		return nil, err
	}
	return &reader{s: s, ctx: ctx, name: name, size: info.Size}, nil
}

// Exists implements blob.Store.
func (s *Store) Exists(ctx context.Context, name string) (bool, error) {
	if err := check(ctx, "look for", name); err != nil {
		return false, err
	}
	_, err := s.head(ctx, "look for "+name, name)
	if errors.Is(err, holdfast.NotExist) {
		return false, nil
	}
	return err == nil, err
}

// List implements blob.Store. It takes one request for each 1,000 objects.
func (s *Store) List(ctx context.Context, folder string) ([]string, error) {
	if err := blob.CheckFolder(folder); err != nil {
		return nil, err
	}
	op := "list " + folder
	if err := blob.Cancelled(ctx, op); err != nil {
		return nil, err
	}
	prefix := s.prefix
	if folder != "" {
		prefix += folder + "/"
	}
	var out []string
	for o := range s.core.ListObjectsIter(ctx, s.c.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, s.classify(op, o.Err)
		}
		name, ok := strings.CutPrefix(o.Key, s.prefix)
		if !ok || blob.CheckName(name) != nil {
			continue // not ours: the marker of a folder, somebody's file
		}
		if len(out) >= maxListed {
			return nil, holdfast.Errorf(holdfast.Corrupt, op, "the server lists more than %d objects", maxListed)
		}
		out = append(out, name)
	}
	if err := blob.Cancelled(ctx, op); err != nil {
		return nil, err // the iterator just ends
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Remove implements blob.Store. An object under retention fails with kind Immutable.
func (s *Store) Remove(ctx context.Context, name string) error {
	op := "remove " + name
	if err := check(ctx, "remove", name); err != nil {
		return err
	}
	if !s.versioned {
		return s.removeVersion(ctx, op, name, "")
	}
	// The newest version comes first: if it is under retention, nothing has changed when the server refuses.
	var versions []string
	for o := range s.core.ListObjectsIter(ctx, s.c.Bucket, minio.ListObjectsOptions{Prefix: s.key(name), Recursive: true, WithVersions: true}) {
		if o.Err != nil {
			return s.classify(op, o.Err)
		}
		if o.Key > s.key(name) {
			break // keys come in order
		}
		if o.Key == s.key(name) {
			versions = append(versions, o.VersionID)
		}
	}
	if err := blob.Cancelled(ctx, op); err != nil {
		return err
	}
	for _, v := range versions {
		if err := s.removeVersion(ctx, op, name, v); err != nil {
			return err
		}
	}
	if len(versions) > 0 {
		return nil
	}
	// The listing may be behind: what is there is removed by its own version.
	info, err := s.head(ctx, op, name)
	if errors.Is(err, holdfast.NotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.removeVersion(ctx, op, name, info.VersionID)
}

func (s *Store) removeVersion(ctx context.Context, op, name, version string) error {
	short, done := s.limit(ctx, 0)
	defer done()
	err := s.classify(op, s.core.RemoveObject(short, s.c.Bucket, s.key(name), minio.RemoveObjectOptions{VersionID: version}))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, holdfast.NotExist) && minio.ToErrorResponse(cause(err)).Code != minio.NoSuchBucket:
		return nil
	case errors.Is(err, holdfast.Permission):
		if held, lerr := s.Retention(ctx, name); lerr == nil && held.Until.After(s.c.Clock.Now()) {
			return immutable(op, held, err)
		}
	}
	return err
}

// Usage implements blob.Store. Buckets do not say.
func (s *Store) Usage(ctx context.Context) (free, size int64, err error) {
	return -1, -1, blob.Cancelled(ctx, "ask for free space")
}

// Close implements blob.Store.
func (s *Store) Close() error {
	s.t.inner.CloseIdleConnections()
	return nil
}

// reader reads ranges. It keeps the context of Open: io.ReaderAt has none, and reading belongs to the same piece of work.
type reader struct {
	s    *Store
	ctx  context.Context
	name string
	size int64
}

func (r *reader) Size() int64  { return r.size }
func (r *reader) Close() error { return nil }
func (r *reader) DropCache()   {}

// ReadAt gets the range in one request. A body that ends early is Transient: blob.Retry asks again.
func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	op := "read " + r.name
	if off < 0 {
		return 0, holdfast.Errorf(holdfast.Invalid, op, "at the negative offset %d", off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= r.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), r.size-off)]
	if err := r.get(op, want, off); err != nil {
		return 0, err
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

func (r *reader) get(op string, p []byte, off int64) error {
	ctx, done := r.s.limit(r.ctx, int64(len(p)))
	defer done()
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+int64(len(p))-1); err != nil {
		return holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	body, _, header, err := r.s.core.GetObject(ctx, r.s.c.Bucket, r.s.key(r.name), opts)
	if err != nil {
		return r.s.classify(op, err)
	}
	defer func() { _ = body.Close() }() // only read
	if !answersRange(header, off, int64(len(p)), r.size) {
		return holdfast.Errorf(holdfast.Corrupt, op, "the server answered the range %d+%d of %d with %q", off, len(p), r.size, header.Get("Content-Range")).
			Advise("check that nothing else writes to the bucket, and what stands between the appliance and the server")
	}
	if n, err := io.ReadFull(body, p); err != nil {
		if r.ctx.Err() != nil {
			return r.s.classify(op, r.ctx.Err())
		}
		return holdfast.Errorf(holdfast.Transient, op, "the answer ended after %d of %d bytes: %w", n, len(p), err)
	}
	return nil
}

// answersRange checks that the answer is the range that was asked for, of an object of the size that is known.
func answersRange(h http.Header, off, n, size int64) bool {
	got := h.Get("Content-Range")
	if got == "" { // the whole object: fine if that was asked for
		return off == 0 && n == size
	}
	return got == contentRange(off, n, size)
}
