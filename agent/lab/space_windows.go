package lab

import (
	"path/filepath"

	"golang.org/x/sys/windows"
)

// volume returns the bytes that are free where a folder is, and a name for the volume.
func volume(dir string) (int64, string) {
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return -1, ""
	}
	var free uint64
	if windows.GetDiskFreeSpaceEx(p, &free, nil, nil) != nil {
		return -1, ""
	}
	return int64(min(free, 1<<62)), filepath.VolumeName(dir)
}
