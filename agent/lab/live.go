package lab

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

const (
	watchEvery = 10 * time.Millisecond  // how often an open disk looks whether somebody waits at the gate
	idleAfter  = 250 * time.Millisecond // an unused disk is closed, so that other programs can look at it
)

// A LiveDisk is a VM's live disk, open for a foreign writer, usually behind NBD: it is an nbd.Backend. Every write is
// recorded in the change tracking record before it is done. One LiveDisk per disk exists at a time. Its methods are safe for
// concurrent use.
//
// The disk's files are open only while it is in use; they are closed when the agent wants to change the chain, and requests
// wait until it has. So a LiveDisk outlives any number of checkpoints.
type LiveDisk struct {
	host   *Host
	dir    string
	disk   holdfast.DiskID
	size   int64
	server *fileLock       // shows that the disk is served
	ctx    context.Context // of the disk's whole life: an nbd.Backend's methods have none
	cancel context.CancelFunc

	mu      sync.Mutex
	changed sync.Cond
	cur     *liveSession
	opening bool
	busy    int  // requests under way on cur
	used    bool // since the watcher looked last
	yield   bool // cur is to be closed when busy reaches 0; no new request begins
	closing bool
	failed  error // a close failed: writes may be lost, so nothing more is answered
	watcher sync.WaitGroup
}

// A liveSession is one opening of the disk's files, under the use lock.
type liveSession struct {
	use   *fileLock
	live  *vhdx.Live
	track *tracker

	mu    sync.Mutex
	data  bitset // what may hold data, once known; before, what was written in this session
	known bool

	first   sync.Mutex
	started atomic.Bool // the first write of the session is done
}

// OpenDisk opens disk number no of a VM (found by folder, name or id) in its list of disks. The caller must Close it. It fails
// with Busy while the disk is served already.
func (h *Host) OpenDisk(ctx context.Context, vm string, no int) (*LiveDisk, error) {
	dir, f, err := h.find(vm)
	if err != nil {
		return nil, err
	}
	e, err := f.numbered("open disk", no)
	if err != nil {
		return nil, err
	}
	id := e.ID
	server, err := waitLockFor(ctx, h.clock, dir, serverLock(id), exclusive, lockLook)
	if holdfast.KindOf(err) == holdfast.Busy {
		return nil, holdfast.Errorf(holdfast.Busy, "open disk", "disk %d of VM %q is served already", no, f.Name).
			Advise("use the server that is running, or stop it")
	}
	if err != nil {
		return nil, err
	}
	d := &LiveDisk{host: h, dir: dir, disk: id, server: server}
	d.changed.L = &d.mu
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s, err := d.begin()
	if err != nil {
		server.end(filepath.Join(dir, serverLock(id)))
		return nil, err
	}
	d.size = s.live.Info().Size
	d.end()
	d.watcher.Go(d.watch)
	return d, nil
}

func serverLock(id holdfast.DiskID) string { return ".served-" + id.String() }

// Size returns the disk's size when it was opened. A disk that grew later shows its new size when it is opened again.
func (d *LiveDisk) Size() int64 { return d.size }

// begin waits until the disk may be used and counts a request in; end counts it out.
func (d *LiveDisk) begin() (*liveSession, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.failed == nil && (d.yield || d.opening) {
		d.changed.Wait()
	}
	if d.failed != nil {
		return nil, d.failed
	}
	if d.closing {
		return nil, holdfast.Errorf(holdfast.Offline, "use live disk", "the disk is closed")
	}
	if d.cur == nil {
		d.opening = true
		d.mu.Unlock()
		s, err := d.open()
		d.mu.Lock()
		d.opening = false
		d.changed.Broadcast()
		if err != nil {
			return nil, err
		}
		d.cur = s
	}
	d.busy++
	d.used = true
	return d.cur, nil
}

func (d *LiveDisk) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy--
	d.closeIfAsked()
	if d.closing {
		d.changed.Broadcast()
	}
}

// closeIfAsked closes the files when nobody uses them. Called with mu.
func (d *LiveDisk) closeIfAsked() {
	if !d.yield || d.busy > 0 {
		return
	}
	if d.cur != nil {
		if err := d.cur.close(); err != nil && d.failed == nil {
			d.failed = holdfast.Errorf(holdfast.KindOf(err), "close live disk", "%w", err)
		}
		d.cur = nil
	}
	d.yield = false
	d.changed.Broadcast()
}

// open opens the files as vm.json names them now. A merge that a killed process left is finished first.
func (d *LiveDisk) open() (*liveSession, error) {
	for {
		gate, err := waitLock(d.ctx, d.host.clock, d.dir, gateName, shared)
		if holdfast.KindOf(err) == holdfast.Busy {
			continue // a guest waits for its disk as long as a merge takes
		}
		if err != nil {
			return nil, err
		}
		use, err := waitLock(d.ctx, d.host.clock, d.dir, useName, shared)
		gate.unlock()
		if err != nil {
			return nil, err
		}
		f, err := loadVM(d.dir)
		if err == nil && f.Merging != nil {
			use.unlock()
			if err := d.host.change(d.ctx, d.dir, func(*vmFile) error { return nil }); err != nil && holdfast.KindOf(err) != holdfast.Busy {
				return nil, err
			}
			continue
		}
		var s *liveSession
		if err == nil {
			s, err = d.openFiles(f, use)
		}
		if err != nil {
			use.unlock()
			return nil, err
		}
		return s, nil
	}
}

func (d *LiveDisk) openFiles(f *vmFile, use *fileLock) (*liveSession, error) {
	e := f.disk(d.disk)
	if e == nil {
		return nil, holdfast.Errorf(holdfast.Offline, "open live disk", "the disk was taken out of the VM").Advise("serve the new disk")
	}
	live, err := vhdx.OpenLive(filepath.Join(d.dir, e.Path))
	if err != nil {
		return nil, err
	}
	i := live.Info()
	if i.DiskID != d.disk || (d.size != 0 && i.Size < d.size) {
		err = holdfast.Errorf(holdfast.Offline, "open live disk", "another disk was put in the place of this one").Advise("serve the new disk")
		return nil, errors.Join(err, live.Close())
	}
	track, err := openTracker(d.dir, f.Epoch, i)
	if err != nil {
		return nil, errors.Join(err, live.Close())
	}
	return &liveSession{use: use, live: live, track: track, data: newBitset(i.Size)}, nil
}

func (s *liveSession) close() error {
	i := s.live.Info()
	err := s.track.flush()
	err = errors.Join(err, s.live.Close())
	if err == nil {
		err = s.track.close(i)
	}
	s.use.unlock()
	return err
}

// watch gives the files back when somebody waits for them, or nobody needs them.
func (d *LiveDisk) watch() {
	idle := time.Duration(0)
	for {
		tick, stop := d.host.clock.After(watchEvery)
		select {
		case <-d.ctx.Done():
			stop()
			return
		case <-tick:
		}
		d.mu.Lock()
		open := d.cur != nil && !d.yield
		if idle += watchEvery; d.used || d.busy > 0 {
			idle, d.used = 0, false
		}
		d.mu.Unlock()
		if open && (idle >= idleAfter || d.wanted()) {
			d.mu.Lock()
			d.yield = true
			d.closeIfAsked()
			d.mu.Unlock()
		}
	}
}

// wanted reports whether somebody stands in the gate.
func (d *LiveDisk) wanted() bool {
	l, err := tryLock(filepath.Join(d.dir, gateName), shared)
	if err != nil {
		return true // also where the lock cannot be asked for: the next opening reports why
	}
	l.unlock()
	return false
}

// Close waits for requests under way, makes everything durable and gives the disk back. Requests afterwards fail.
func (d *LiveDisk) Close() error {
	d.cancel()
	d.watcher.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return nil
	}
	d.closing = true
	for d.opening || d.busy > 0 {
		d.changed.Wait()
	}
	d.yield = true
	d.closeIfAsked()
	d.server.end(filepath.Join(d.dir, serverLock(d.disk)))
	return d.failed
}

// ReadAt reads the live disk.
func (d *LiveDisk) ReadAt(p []byte, off int64) (int, error) {
	s, err := d.begin()
	if err != nil {
		return 0, err
	}
	defer d.end()
	return s.live.ReadAt(p, off)
}

// WriteAt writes the live disk, recording the change first.
func (d *LiveDisk) WriteAt(p []byte, off int64) (int, error) {
	n := 0
	err := d.write(off, int64(len(p)), func(s *liveSession) (err error) {
		n, err = s.live.WriteAt(p, off)
		return err
	})
	return n, err
}

// Zero makes a range read as zeros, recording the change first.
func (d *LiveDisk) Zero(off, n int64) error {
	return d.write(off, n, func(s *liveSession) error { return s.live.Zero(off, n) })
}

func (d *LiveDisk) write(off, n int64, do func(*liveSession) error) error {
	if n == 0 {
		return nil
	}
	if off < 0 || n < 0 || off > d.size-n {
		return holdfast.Errorf(holdfast.Invalid, "write live disk", "%d bytes at %d of a disk of %d", n, off, d.size)
	}
	s, err := d.begin()
	if err != nil {
		return err
	}
	defer d.end()
	// The first write of a session changes the disk's DataWriteGuid; no other may come between it and its record.
	if !s.started.Load() {
		s.first.Lock()
		defer s.first.Unlock()
	}
	if s.started.Load() {
		if err := s.track.mark(off, n, holdfast.ID{}); err != nil {
			return err
		}
		s.note(off, n)
		return do(s)
	}
	if err := s.track.mark(off, n, s.live.Info().DataWriteGUID); err != nil {
		return err
	}
	s.note(off, n)
	err = errors.Join(do(s), s.track.wrote(s.live.Info().DataWriteGUID))
	s.started.Store(err == nil)
	return err
}

// Flush makes all finished writes and their records durable, the records first.
func (d *LiveDisk) Flush() error {
	s, err := d.begin()
	if err != nil {
		return err
	}
	defer d.end()
	if err := s.track.flush(); err != nil {
		return err
	}
	return s.live.Flush()
}

// Allocated returns what may hold data in a range; a little more than that, for zeroed ranges count until the files are
// opened anew.
func (d *LiveDisk) Allocated(off, n int64) (holdfast.Extents, error) {
	s, err := d.begin()
	if err != nil {
		return nil, err
	}
	defer d.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.known {
		// A write that is under way is in s.data already, whatever the map says of it.
		es, err := s.live.Allocated()
		if err != nil {
			return nil, err
		}
		s.known = true
		for _, e := range es {
			s.data.set(e.Off, e.Len)
		}
	}
	return s.data.extents(off, n), nil
}

// note keeps the allocation that was handed out a superset.
func (s *liveSession) note(off, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data.set(off, n)
}
