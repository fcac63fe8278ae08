//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly || windows)

package lab

import "github.com/holdfast-backup/holdfast"

// A fileLock cannot be had on this system.
type fileLock struct{}

func tryLock(string, lockMode) (*fileLock, error) {
	return nil, holdfast.Errorf(holdfast.Unsupported, "lock", "this system has no locks on files")
}

func (l *fileLock) unlock() {}

func syncDir(string) error { return nil }
