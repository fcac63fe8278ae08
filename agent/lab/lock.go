package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

const (
	gateName = ".gate" // held exclusively while vm.json changes; passed through by those who want to use a disk
	useName  = ".use"  // shared: live disks are open; exclusive: chains change

	lockPoll = 4 * time.Millisecond // between tries for a lock: locks of files cannot be waited for with a context
	lockLook = time.Second          // for a lock that others take only to see whether it is free
	lockWait = time.Minute          // after which a lock that does not come is reported as Busy
)

// errLocked says that another holder has the lock now.
var errLocked = errors.New("locked")

// A lockMode says who else may hold the lock.
type lockMode bool

const (
	shared    lockMode = false
	exclusive lockMode = true
)

// waitLock takes the lock of a file in a VM's folder, waiting for at most lockWait.
func waitLock(ctx context.Context, c clock.Clock, dir, name string, mode lockMode) (*fileLock, error) {
	return waitLockFor(ctx, c, dir, name, mode, lockWait)
}

func waitLockFor(ctx context.Context, c clock.Clock, dir, name string, mode lockMode, limit time.Duration) (*fileLock, error) {
	deadline, giveBack := c.After(limit)
	defer giveBack()
	for {
		l, err := tryLock(filepath.Join(dir, name), mode)
		if !errors.Is(err, errLocked) {
			return l, err
		}
		tick, stop := c.After(lockPoll)
		select {
		case <-tick:
		case <-ctx.Done():
			stop()
			return nil, holdfast.Errorf(holdfast.KindOf(ctx.Err()), "lock "+dir, "%w", ctx.Err())
		case <-deadline:
			stop()
			return nil, holdfast.Errorf(holdfast.Busy, "lock "+dir, "another process has kept the VM for %s", limit).
				Advise("stop programs that serve or change this VM's disks")
		}
	}
}

// isTaken reports whether somebody holds a lock of which others want to know just that. It leaves no file behind.
func isTaken(path string) bool {
	if _, err := os.Lstat(path); err != nil {
		return false
	}
	l, err := tryLock(path, shared)
	if err == nil {
		l.unlock()
	}
	return errors.Is(err, errLocked)
}

// end gives a lock back and removes its file; where the file cannot be removed while it is open, the next sweep does it.
func (l *fileLock) end(path string) {
	_ = os.Remove(path)
	l.unlock()
}
