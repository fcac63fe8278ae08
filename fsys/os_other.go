//go:build !linux

package fsys

import (
	"errors"
	"os"
	"syscall"

	"github.com/holdfast-backup/holdfast"
)

var (
	errNotDir = error(syscall.ENOTDIR)
	errLocked = errors.New("the file is in use")
)

func isQuota(error) bool { return false }
func isStale(error) bool { return false }

// syncDir has nothing to do: names are journalled there and a folder cannot be synced.
func syncDir(string) error { return nil }

func preallocate(*os.File, int64) error { return nil }

func dropCache(*os.File) {}

func diskUsage(string) (free, size int64, err error) {
	return 0, 0, holdfast.Errorf(holdfast.Unsupported, "usage", "this build cannot tell how much space is free")
}
