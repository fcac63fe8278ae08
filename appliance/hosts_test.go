package appliance_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
)

// A latentHost answers each request to its disks, and each of its operations, after a delay.
type latentHost struct {
	hv.Hypervisor
	delay time.Duration
	meet  *meeting // of checkpoints
}

// A meeting lets those who come wait until as many are there as are needed. It proves that they are at work at once, however long each takes.
type meeting struct {
	mu         sync.Mutex
	need, here int
	most       int // at once
	all        chan struct{}
}

// expect begins anew, for so many.
func (m *meeting) expect(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.need, m.here, m.most, m.all = n, 0, 0, make(chan struct{})
}

func (m *meeting) come(ctx context.Context) error {
	m.mu.Lock()
	m.here++
	m.most = max(m.most, m.here)
	all := m.all
	if m.here == m.need {
		m.need = 0
		close(all)
	}
	m.mu.Unlock()
	select {
	case <-all:
		return nil
	case <-time.After(time.Minute):
		return fmt.Errorf("only %d came", m.most)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *meeting) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.here--
}

// met returns how many were at work at once.
func (m *meeting) met() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.most
}

func (h latentHost) Checkpoint(ctx context.Context, vm holdfast.VMID, o hv.CheckpointOptions) (hv.Checkpoint, error) {
	<-time.After(h.delay)
	if err := h.meet.come(ctx); err != nil {
		return nil, err
	}
	left := sync.OnceFunc(h.meet.leave)
	cp, err := h.Hypervisor.Checkpoint(ctx, vm, o)
	if err != nil {
		left()
		return nil, err
	}
	return latentCheckpoint{cp, h.delay, left}, nil
}

type latentCheckpoint struct {
	hv.Checkpoint
	delay time.Duration
	left  func()
}

func (c latentCheckpoint) Commit(ctx context.Context) (map[holdfast.DiskID]string, error) {
	defer c.left()
	return c.Checkpoint.Commit(ctx)
}

func (c latentCheckpoint) Discard(ctx context.Context) error {
	defer c.left()
	return c.Checkpoint.Discard(ctx)
}

func (c latentCheckpoint) Disks() (out []hv.FrozenDisk) {
	for _, d := range c.Checkpoint.Disks() {
		out = append(out, latentDisk{d, c.delay})
	}
	return out
}

type latentDisk struct {
	hv.FrozenDisk
	delay time.Duration
}

func (d latentDisk) Open(ctx context.Context) (hv.Reader, error) {
	r, err := d.FrozenDisk.Open(ctx)
	if err != nil {
		return nil, err
	}
	return latentReader{r, d.delay}, nil
}

type latentReader struct {
	hv.Reader
	delay time.Duration
}

func (r latentReader) ReadAt(b []byte, off int64) (int, error) {
	<-time.After(r.delay)
	return r.Reader.ReadAt(b, off)
}

// A halt holds a host at one instant of its work until the test lets it go on.
type halt struct {
	mu   sync.Mutex
	seen map[string]int // how often an operation was begun or ended since the last set
	name string
	nth  int
	hit  chan struct{}
	on   chan struct{}
}

// set begins to count anew; the nth time that name comes, the host is held.
func (h *halt) set(name string, nth int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen, h.name, h.nth, h.hit, h.on = map[string]int{}, name, nth, make(chan struct{}), make(chan struct{})
}

func (h *halt) at(name string) {
	h.mu.Lock()
	h.seen[name]++
	mine, hit, on := h.name == name && h.nth == h.seen[name], h.hit, h.on
	h.mu.Unlock()
	if mine {
		close(hit)
		<-on
	}
}

// A haltedHost can be held whenever it is asked for something, and when it is done with it.
type haltedHost struct {
	hv.Hypervisor
	h *halt
}

func (x haltedHost) Checkpoint(ctx context.Context, vm holdfast.VMID, o hv.CheckpointOptions) (hv.Checkpoint, error) {
	x.h.at("before the checkpoint")
	cp, err := x.Hypervisor.Checkpoint(ctx, vm, o)
	x.h.at("after the checkpoint")
	if err != nil {
		return nil, err
	}
	return haltedCheckpoint{cp, x.h}, nil
}

type haltedCheckpoint struct {
	hv.Checkpoint
	h *halt
}

func (c haltedCheckpoint) Commit(ctx context.Context) (map[holdfast.DiskID]string, error) {
	c.h.at("before the merge")
	m, err := c.Checkpoint.Commit(ctx)
	c.h.at("after the merge")
	return m, err
}

func (c haltedCheckpoint) Disks() (out []hv.FrozenDisk) {
	for _, d := range c.Checkpoint.Disks() {
		out = append(out, haltedDisk{d, c.h})
	}
	return out
}

type haltedDisk struct {
	hv.FrozenDisk
	h *halt
}

func (d haltedDisk) Open(ctx context.Context) (hv.Reader, error) {
	d.h.at("opening a disk")
	r, err := d.FrozenDisk.Open(ctx)
	if err != nil {
		return nil, err
	}
	return haltedReader{r, d.h}, nil
}

type haltedReader struct {
	hv.Reader
	h *halt
}

func (r haltedReader) ReadAt(b []byte, off int64) (int, error) {
	r.h.at("reading")
	return r.Reader.ReadAt(b, off)
}
