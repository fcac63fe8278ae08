// Package blob says what pools keep their bytes in: named objects that are written once, whole, and never changed, as object storage
// has them. A folder tree (pools/blob/dirstore), a bucket (pools/blob/s3store) and a stripe over several of either
// (pools/parity) are Stores; a pool driver does not know which one it has.
//
// A Store may be decorated (Retry, Fault) and has no optional interfaces; pools, a floor above, have them and are never decorated.
package blob

import (
	"context"
	"io"
)

// A Store keeps objects by name. Methods are safe for concurrent use. Errors are *holdfast.Errors: NotExist, NoSpace, Permission,
// Offline or Transient (worth trying again), Corrupt, Busy. Names are slash-separated, relative, lower-case ASCII letters, digits, '-', '_' and
// '.', at most 200 bytes; each part has at least one character that is not '.'.
type Store interface {
	// Create starts a new object. Nothing is seen under its name before Commit, and an object that is there already is replaced
	// only by one of the same content's name: callers never give a name twice to different bytes.
	Create(ctx context.Context, name string) (Object, error)
	// Open opens an object for reading; NotExist if there is none. Safe for concurrent ReadAt.
	Open(ctx context.Context, name string) (Reader, error)
	// List returns the names of the objects below a folder ("" for all), sorted. Absence from one listing proves nothing on some
	// media: ask Exists before acting on it.
	List(ctx context.Context, folder string) ([]string, error)
	// Exists tells whether there is an object of the name.
	Exists(ctx context.Context, name string) (bool, error)
	// Remove takes an object away, durably when it returns. One that is not there is no error. It needs no free space.
	Remove(ctx context.Context, name string) error
	// Usage returns free space and size in bytes; both -1 where the medium has no bound or does not say.
	Usage(ctx context.Context) (free, size int64, err error)
	io.Closer
}

// An Object is one that is being created. Exactly one of Commit and Abort ends it. Not safe for concurrent use.
type Object interface {
	io.Writer
	// Commit makes the object durable, whole, under its name. After an error there is no object of that name, or the whole one.
	Commit() error
	// Abort leaves nothing. A no-op after Commit.
	Abort()
}

// A Reader reads one object.
type Reader interface {
	io.ReaderAt
	io.Closer
	Size() int64
	// DropCache asks for the next reads to come from the medium. May be a no-op.
	DropCache()
}
