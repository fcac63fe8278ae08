package blob

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// MaxName is the longest name of an object in bytes. With what a medium puts around it (a staging suffix, a bucket's prefix)
// it stays below the 255 bytes of a file's name and the 1,024 of a key.
const MaxName = 200

// CheckName returns an error of kind Invalid if name is not one that a Store may be given.
func CheckName(name string) error {
	if len(name) > MaxName {
		return badName(name[:32]+"…", "it is longer than 200 bytes")
	}
	if name == "" {
		return badName(name, "it is empty")
	}
	for rest, more := name, true; more; {
		var part string
		part, rest, more = strings.Cut(rest, "/")
		if strings.Trim(part, ".") == "" {
			return badName(name, "a part of it is empty or only dots")
		}
		for i := range len(part) {
			if c := part[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
				return badName(name, "it has characters other than a-z, 0-9, '-', '_' and '.'")
			}
		}
	}
	return nil
}

// CheckFolder is CheckName for what List is given: "" stands for all.
func CheckFolder(folder string) error {
	if folder == "" {
		return nil
	}
	return CheckName(folder)
}

func badName(name, why string) error {
	return holdfast.Errorf(holdfast.Invalid, "name an object", "%q cannot be an object's name: %s", name, why)
}

// In reports whether the object called name lies below the folder, as List means it.
func In(name, folder string) bool {
	return folder == "" || len(name) > len(folder) && name[len(folder)] == '/' && name[:len(folder)] == folder
}

// Cancelled returns the error of kind Cancelled or Transient that a Store returns for a context that has ended, else nil.
func Cancelled(ctx context.Context, op string) error {
	err := ctx.Err()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return holdfast.Errorf(holdfast.Cancelled, op, "%w", err)
	}
	return holdfast.Errorf(holdfast.Transient, op, "%w", err)
}

// ReadAll reads a whole object of at most limit bytes; a longer one is Corrupt, before memory is taken for it.
func ReadAll(ctx context.Context, s Store, name string, limit int64) ([]byte, error) {
	r, err := s.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }() // only read
	if r.Size() > limit {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read "+name, "%d bytes; at most %d are expected", r.Size(), limit)
	}
	b := make([]byte, r.Size())
	if err := ReadFull(r, b, 0, name); err != nil {
		return nil, err
	}
	return b, nil
}

// ReadFull fills p from the offset on; an object that ends before is Corrupt.
func ReadFull(r io.ReaderAt, p []byte, off int64, name string) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return holdfast.Errorf(holdfast.Corrupt, "read "+name, "%d bytes at %d; %d are expected", n, off, len(p))
	}
	return err
}

// WriteAll creates a small object and commits it.
func WriteAll(ctx context.Context, s Store, name string, b []byte) error {
	o, err := s.Create(ctx, name)
	if err != nil {
		return err
	}
	if _, err := o.Write(b); err != nil {
		o.Abort()
		return err
	}
	return o.Commit()
}
