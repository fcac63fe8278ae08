package lab

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"

	"github.com/holdfast-backup/holdfast"
)

// A fileLock is a lock on a file. It goes with the process, however that dies.
type fileLock struct{ f *os.File }

// tryLock takes the lock or returns errLocked at once.
func tryLock(path string, mode lockMode) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fileError("lock", err)
	}
	flags := uint32(windows.LOCKFILE_FAIL_IMMEDIATELY)
	if mode == exclusive {
		flags |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	err = windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, new(windows.Overlapped))
	if err == nil {
		return &fileLock{f}, nil
	}
	f.Close()
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) || errors.Is(err, windows.ERROR_IO_PENDING) {
		return nil, errLocked
	}
	return nil, holdfast.Errorf(holdfast.Internal, "lock "+filepath.Base(path), "%w", err)
}

// unlock gives the lock back.
func (l *fileLock) unlock() { l.f.Close() }

// syncDir has nothing to do: NTFS journals names.
func syncDir(string) error { return nil }
