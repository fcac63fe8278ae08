package lab

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// volume returns the bytes that are free where a folder is, and a name for the volume.
func volume(dir string) (int64, string) {
	var s unix.Statfs_t
	var st unix.Stat_t
	if unix.Statfs(dir, &s) != nil || unix.Stat(dir, &st) != nil {
		return -1, ""
	}
	return int64(min(s.Bavail, 1<<40)) * s.Bsize, fmt.Sprint(st.Dev)
}
