package s3store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/minio/minio-go/v7"

	"github.com/holdfast-backup/holdfast"
)

// Small objects that change, with the server as the judge of who was first: what a lease is made of. Beside the law of
// blob.Store, whose objects never change.

// maxTagged bounds an object that changes.
const maxTagged = 1 << 20

// A Tag names one state of a small object; the server makes it (an ETag).
type Tag string

// PutNew stores a small object under a name that must not be taken; Exist if it is. The body must be unlike anybody else's (have a
// random id in it): it is how a write whose answer was lost is told from another's.
func (s *Store) PutNew(ctx context.Context, name string, body []byte) (Tag, error) {
	return s.putIf(ctx, "claim "+name, name, body, func(o *minio.PutObjectOptions) { o.SetMatchETagExcept("*") })
}

// PutOver replaces a small object that must still be in the state of the tag; Exist if it is in another, NotExist if it is gone.
func (s *Store) PutOver(ctx context.Context, name string, body []byte, tag Tag) (Tag, error) {
	now, err := s.putIf(ctx, "renew "+name, name, body, func(o *minio.PutObjectOptions) { o.SetMatchETag(string(tag)) })
	if err == nil && s.versioned {
		s.trim(ctx, name)
	}
	return now, err
}

// trim removes the versions behind the current one, which a lease that is renewed every minute would leave without end. What cannot be
// removed, as under a retention that the bucket gives to all, does no harm, and the next renewal tries again.
func (s *Store) trim(ctx context.Context, name string) {
	for o := range s.core.ListObjectsIter(ctx, s.c.Bucket, minio.ListObjectsOptions{Prefix: s.key(name), Recursive: true, WithVersions: true}) {
		if o.Err != nil || o.Key > s.key(name) {
			return
		}
		if o.Key == s.key(name) && !o.IsLatest {
			if err := s.removeVersion(ctx, "trim "+name, name, o.VersionID); err != nil {
				return
			}
		}
	}
}

func (s *Store) putIf(ctx context.Context, op, name string, body []byte, condition func(*minio.PutObjectOptions)) (tag Tag, err error) {
	if err := check(ctx, op, name); err != nil {
		return "", err
	}
	if len(body) > maxTagged {
		return "", holdfast.Errorf(holdfast.Invalid, op, "%d bytes; at most %d", len(body), maxTagged)
	}
	o := &object{s: s, ctx: ctx, name: name, size: int64(len(body)), sum: crc32.New(castagnoli)}
	_, _ = o.sum.Write(body) // never fails
	unsure := false
	err = s.c.Retry.Do(ctx, s.c.Clock, func() error {
		short, done := s.limit(ctx, int64(len(body)))
		defer done()
		opts := s.putOptions(o.crc())
		condition(&opts)
		info, err := s.core.PutObject(short, s.c.Bucket, s.key(name), bytes.NewReader(body), int64(len(body)), "", "", opts)
		if err == nil {
			tag = Tag(info.ETag)
			return nil
		}
		err = s.classify(op, err)
		if errors.Is(err, holdfast.Exist) && unsure { // perhaps by our own earlier attempt
			now, t, gerr := s.GetTagged(ctx, name)
			if gerr != nil {
				return gerr
			}
			if bytes.Equal(now, body) {
				tag = t
				return nil
			}
		}
		unsure = unsure || errors.Is(err, holdfast.Transient)
		return err
	})
	return tag, err
}

// GetTagged reads a small object with its tag, of one moment.
func (s *Store) GetTagged(ctx context.Context, name string) ([]byte, Tag, error) {
	op := "read " + name
	if err := check(ctx, op, name); err != nil {
		return nil, "", err
	}
	ctx, done := s.limit(ctx, maxTagged)
	defer done()
	body, info, _, err := s.core.GetObject(ctx, s.c.Bucket, s.key(name), minio.GetObjectOptions{})
	if err != nil {
		return nil, "", s.classify(op, err)
	}
	defer func() { _ = body.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(body, maxTagged+1))
	if err != nil {
		return nil, "", holdfast.Errorf(holdfast.Transient, op, "the answer was cut off: %w", err)
	}
	if len(b) > maxTagged {
		return nil, "", holdfast.Errorf(holdfast.Corrupt, op, "more than %d bytes", maxTagged)
	}
	return b, Tag(info.ETag), nil
}

// CheckConditions finds out whether the server obeys conditional PUTs, by claiming a scratch name twice; some ignore the condition,
// and two appliances would then both own the pool. It fails with kind Unsupported where they are ignored.
func (s *Store) CheckConditions(ctx context.Context) (err error) {
	name := fmt.Sprintf("scratch/claim-%s", holdfast.NewID())
	op := "check conditional writes"
	tag, err := s.PutNew(ctx, name, []byte("first"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove(ctx, name)) }()
	ignored := holdfast.Errorf(holdfast.Unsupported, op, "the server overwrites an object that it was told not to overwrite").
		Advise("use a server that obeys If-None-Match and If-Match, or make sure by other means that one appliance uses the bucket")
	if _, err := s.PutNew(ctx, name, []byte("second")); !errors.Is(err, holdfast.Exist) {
		return either(err, ignored)
	}
	if _, err = s.PutOver(ctx, name, []byte("third"), tag); err != nil {
		return err
	}
	if _, err := s.PutOver(ctx, name, []byte("fourth"), tag); !errors.Is(err, holdfast.Exist) {
		return either(err, ignored)
	}
	return nil
}

func either(err, ignored error) error {
	if err != nil {
		return err
	}
	return ignored
}
