//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package vhdx

import (
	"errors"
	"os"
	"syscall"
)

// openOS opens a file; a writer takes the advisory lock, which dies with the process.
func openOS(path string, mode openMode) (*os.File, error) {
	flag := os.O_RDONLY
	switch mode {
	case modeWrite:
		flag = os.O_RDWR
	case modeCreate:
		flag = os.O_RDWR | os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil || mode == modeRead {
		return f, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if cerr := f.Close(); cerr != nil {
			return nil, cerr
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errBusy(path)
		}
		return nil, err
	}
	return f, nil
}

// unlockOS gives back the lock that openOS took.
func unlockOS(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
