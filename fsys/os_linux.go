package fsys

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

var (
	errNotDir = error(unix.ENOTDIR)
	errLocked = error(unix.EWOULDBLOCK)
)

func isQuota(err error) bool { return errors.Is(err, unix.EDQUOT) }
func isStale(err error) bool { return errors.Is(err, unix.ESTALE) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		_ = d.Close()
		return err
	}
	return d.Close()
}

// lockFile opens and flocks the file. The lock belongs to the open file and dies with the process; a second open of the same
// file, also in this process, conflicts with it.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = withFd(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
		_ = f.Close()
		return nil, pathErr("lock", name, err)
	}
	return f, nil
}

func preallocate(f *os.File, size int64) error {
	if size <= 0 {
		return nil
	}
	err := withFd(f, func(fd int) error { return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, size) })
	switch err {
	case nil, unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL:
		return nil // where it cannot be done, writing finds out
	}
	return pathErr("preallocate", f.Name(), err)
}

func dropCache(f *os.File) {
	_ = withFd(f, func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) }) // only advice
}

// withFd calls do with the descriptor, again for as long as a signal interrupts it.
func withFd(f *os.File, do func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var derr error
	err = c.Control(func(fd uintptr) {
		for {
			if derr = do(int(fd)); derr != unix.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return derr
}

// diskUsage returns what may still be written, and that with what is written already. Blocks that the file system keeps for root are in
// neither: a disk with nothing left to write is full.
func diskUsage(name string) (free, size int64, err error) {
	var st unix.Statfs_t
	for {
		err = unix.Statfs(name, &st)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, 0, pathErr("statfs", name, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks-st.Bfree+st.Bavail) * st.Bsize, nil
}
