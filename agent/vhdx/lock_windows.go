package vhdx

import (
	"errors"
	"os"
	"syscall"
)

// Windows error numbers that package syscall does not name.
const (
	errSharingViolation = syscall.Errno(32)
	errHandleDiskFull   = syscall.Errno(39)
	errDiskFull         = syscall.Errno(112)
)

// openOS opens a file; a writer shares it with readers only.
func openOS(path string, mode openMode) (*os.File, error) {
	access, share, disp := uint32(syscall.GENERIC_READ), uint32(syscall.FILE_SHARE_READ|syscall.FILE_SHARE_WRITE), uint32(syscall.OPEN_EXISTING)
	if mode != modeRead {
		access, share = access|syscall.GENERIC_WRITE, syscall.FILE_SHARE_READ
	}
	if mode == modeCreate {
		disp = syscall.CREATE_NEW
	}
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	h, err := syscall.CreateFile(name, access, share, nil, disp, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, errSharingViolation) {
		return nil, errBusy(path)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), nil
}

// unlockOS has nothing to do: there is no lock apart from the open file.
func unlockOS(*os.File) error { return nil }

// syncDir has nothing to do: NTFS journals names.
func syncDir(string) error { return nil }

func isNoSpace(err error) bool {
	return errors.Is(err, errDiskFull) || errors.Is(err, errHandleDiskFull)
}
