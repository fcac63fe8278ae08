package direct

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// reopen opens the same file a second time for direct I/O, whatever its name is by now; nil where that cannot be.
func reopen(f *os.File, flags int) *os.File {
	c, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	var d *os.File
	err = c.Control(func(fd uintptr) {
		d, err = os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(fd)), flags|unix.O_DIRECT, 0)
	})
	if err != nil {
		return nil
	}
	return d
}

// cached reports that the page cache has the whole piece. It is asked rather than read without waiting (RWF_NOWAIT), because that starts
// to read ahead. A system that cannot tell is taken to have nothing.
func cached(f *os.File, p []byte, off int64) bool {
	c, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var st unix.Cachestat_t
	cerr := c.Control(func(fd uintptr) {
		err = unix.Cachestat(uint(fd), &unix.CachestatRange{Off: uint64(off), Len: uint64(len(p))}, &st, 0)
	})
	return cerr == nil && err == nil && st.Cache >= uint64(len(p))/uint64(os.Getpagesize())
}

func readDirect(d *os.File, p []byte, off int64) (int, error) {
	return again(d, func(fd int) (int, error) { return unix.Pread(fd, p, off) })
}

func writeDirect(d *os.File, p []byte, off int64) (int, error) {
	return again(d, func(fd int) (int, error) { return unix.Pwrite(fd, p, off) })
}

// again calls do with the descriptor, and again for as long as a signal interrupts it.
func again(d *os.File, do func(fd int) (int, error)) (n int, err error) {
	c, err := d.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := c.Control(func(fd uintptr) {
		for {
			if n, err = do(int(fd)); err != unix.EINTR {
				return
			}
		}
	})
	if cerr != nil {
		return 0, cerr
	}
	return n, err
}

// unable reports that the file system has refused direct I/O as such.
func unable(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}
