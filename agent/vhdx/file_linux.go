package vhdx

import (
	"os"
	"syscall"
)

// Values of lseek(2) and fallocate(2); package syscall does not name them.
const (
	seekData      = 3
	seekHole      = 4
	keepSize      = 1
	punchHoleFlag = 2
)

// punchOS gives a range back to the file system; false means the caller must write zeros.
func punchOS(f *os.File, off, n int64) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var perr error
	if err := conn.Control(func(fd uintptr) { perr = syscall.Fallocate(int(fd), keepSize|punchHoleFlag, off, n) }); err != nil {
		return false
	}
	return perr == nil
}

// nextDataOS asks SEEK_DATA and SEEK_HOLE. Positions are of no use to us otherwise: all reads carry their offset.
func nextDataOS(f *os.File, off, end int64) (start, stop int64) {
	conn, err := f.SyscallConn()
	if err != nil {
		return off, end
	}
	start, stop = off, end
	cerr := conn.Control(func(fd uintptr) {
		s, err := syscall.Seek(int(fd), off, seekData)
		switch {
		case err == syscall.ENXIO: // no data up to the end of the file
			start = end
			return
		case err != nil || s < off:
			return
		case s >= end:
			start = end
			return
		}
		h, err := syscall.Seek(int(fd), s, seekHole)
		if err != nil || h <= s {
			return
		}
		start, stop = s, min(h, end)
	})
	if cerr != nil {
		return off, end
	}
	return start, stop
}
