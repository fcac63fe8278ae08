package nbd

import "github.com/holdfast-backup/holdfast"

// A Backend is a disk of constant size. Methods are safe for concurrent use, and a request that returned is seen by every
// request that starts later. Offsets and lengths are inside the disk and of any alignment. Errors of kind NoSpace, Permission,
// Immutable, Invalid and Unsupported reach the client as such; all others as an I/O error.
type Backend interface {
	// Size returns the disk's length in bytes.
	Size() int64
	// ReadAt fills p with the bytes at off. It keeps nothing of p.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt stores p at off. It keeps nothing of p. What it stored is durable after the next Flush.
	WriteAt(p []byte, off int64) (int, error)
	// Zero makes n bytes at off read as zeros; it may give space back.
	Zero(off, n int64) error
	// Flush makes everything durable that was written by calls that returned before it began.
	Flush() error
	// Allocated returns the parts of n bytes at off that may hold data, as a normal list inside that range. The rest reads
	// as zeros.
	Allocated(off, n int64) (holdfast.Extents, error)
}

// An Export is a Backend under a name.
type Export struct {
	Name        string // at most 255 bytes; a client that asks for "" gets the first export
	Description string // shown to people by clients that list exports
	Backend     Backend
	ReadOnly    bool // writes are refused with EPERM and Backend's writing methods are never called
	MultiConn   bool // what one connection flushed, all others read: several connections may be used as one
}

// maxNameBytes bounds the name of an export and of a meta context; the protocol allows 4096, nobody needs it.
const maxNameBytes = 255

func checkExports(exports []Export) error {
	const op = "serve nbd"
	if len(exports) == 0 {
		return holdfast.Errorf(holdfast.Invalid, op, "there is no export")
	}
	seen := make(map[string]bool, len(exports))
	for _, e := range exports {
		switch {
		case e.Backend == nil:
			return holdfast.Errorf(holdfast.Invalid, op, "export %q has no backend", e.Name)
		case len(e.Name) > maxNameBytes || len(e.Description) > maxNameBytes:
			return holdfast.Errorf(holdfast.Invalid, op, "the name or description of an export is longer than %d bytes", maxNameBytes)
		case seen[e.Name]:
			return holdfast.Errorf(holdfast.Invalid, op, "export %q is there twice", e.Name)
		}
		seen[e.Name] = true
	}
	return nil
}
