package fsys

import (
	"errors"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/holdfast-backup/holdfast"
)

// clean checks a name and brings it into its shortest form; "" and "." both mean the root.
func clean(op, name string) (string, error) {
	if strings.HasPrefix(name, "/") || strings.IndexByte(name, 0) >= 0 {
		return "", badName(op, name)
	}
	for rest := name; rest != ""; {
		var elem string
		elem, rest, _ = strings.Cut(rest, "/")
		if elem == ".." {
			return "", badName(op, name)
		}
	}
	return path.Clean(name), nil
}

func badName(op, name string) error {
	return holdfast.Errorf(holdfast.Invalid, op, "%q leads out of the file system's root", name).
		Advise("use a path relative to the root and without ..")
}

func pathErr(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// Classify returns err as a *holdfast.Error whose kind says what can be done about it: NotExist, Exist, NoSpace, Permission,
// Offline where the medium went away, else Internal. An error that is classified already, and nil, are returned as they are.
func Classify(op string, err error) error {
	var known *holdfast.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return holdfast.Errorf(holdfast.NotExist, op, "%w", err)
	case errors.Is(err, fs.ErrExist):
		return holdfast.Errorf(holdfast.Exist, op, "%w", err)
	case errors.Is(err, syscall.ENOSPC), isQuota(err):
		return holdfast.Errorf(holdfast.NoSpace, op, "%w", err).Advise("free space on the target or make it larger, then try again")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return holdfast.Errorf(holdfast.Permission, op, "%w", err).Advise("let the service's user write to the folder")
	case errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV), isStale(err):
		return holdfast.Errorf(holdfast.Offline, op, "%w", err).Advise("check that the medium is mounted and connected")
	case errors.Is(err, syscall.EIO):
		return holdfast.Errorf(holdfast.Internal, op, "%w", err).Advise("the medium reports errors: check its cabling and health")
	}
	return holdfast.Errorf(holdfast.Internal, op, "%w", err)
}
