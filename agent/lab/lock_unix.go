//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package lab

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"github.com/holdfast-backup/holdfast"
)

// A fileLock is an advisory lock on a file. It goes with the process, however that dies.
type fileLock struct{ f *os.File }

// tryLock takes the lock or returns errLocked at once.
func tryLock(path string, mode lockMode) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fileError("lock", err)
	}
	how := syscall.LOCK_SH
	if mode == exclusive {
		how = syscall.LOCK_EX
	}
	for {
		err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err == nil {
		// Somebody may have removed the file between open and lock; then the lock is one that nobody else sees.
		a, aerr := f.Stat()
		b, berr := os.Stat(path)
		if aerr == nil && berr == nil && os.SameFile(a, b) {
			return &fileLock{f}, nil
		}
		err = syscall.EWOULDBLOCK
	}
	f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, errLocked
	}
	return nil, holdfast.Errorf(holdfast.Internal, "lock "+filepath.Base(path), "%w", err)
}

// unlock gives the lock back.
func (l *fileLock) unlock() { l.f.Close() }

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
