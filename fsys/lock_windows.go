package fsys

import (
	"errors"
	"os"
	"syscall"
)

// errSharing is ERROR_SHARING_VIOLATION: the file is open elsewhere without sharing.
const errSharing = syscall.Errno(32)

// lockFile opens the file so that nobody else can; the system closes it with the process.
func lockFile(name string) (*os.File, error) {
	p, err := syscall.UTF16PtrFromString(name)
	if err != nil {
		return nil, err
	}
	h, err := syscall.CreateFile(p, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil, syscall.OPEN_ALWAYS,
		syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, errSharing) {
		return nil, pathErr("lock", name, errLocked)
	}
	if err != nil {
		return nil, pathErr("lock", name, err)
	}
	return os.NewFile(uintptr(h), name), nil
}
