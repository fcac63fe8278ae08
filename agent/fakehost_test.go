package agent

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
)

// A memHost is a hypervisor whose disks are byte slices: real checkpoints (copies) and real tracking (a comparison with the bytes at the
// token's moment), and a knob for each thing that can go wrong.
type memHost struct {
	mu      sync.Mutex
	vms     map[holdfast.VMID]*memVM
	left    []*memCheckpoint // made by an earlier agent
	open    int              // checkpoints not ended
	planned int              // VMs not ended
	made    []hv.RestorePlan
	images  map[string][]byte // finished restored disks by VM name and disk name
	next    int
	still   bool // nobody writes to the disks: a checkpoint copies nothing, for benchmarks

	checkpointErr, changesErr, allocErr, readErr, commitErr, configErr, realizeErr, writeErr error
	readErrAt                                                                                int64         // readErr applies from this offset on
	wide                                                                                     int64         // ranges are widened to multiples of it
	onCheckpoint, onRead                                                                     func()        // called at each
	block                                                                                    chan struct{} // reads wait until it is closed
}

type memVM struct {
	info  holdfast.VMInfo
	disks []*memDisk
}

type memDisk struct {
	meta   holdfast.Disk
	data   []byte
	points map[string][]byte // token → bytes at its moment

	allocated holdfast.Extents // where the disk is still
}

func newMemHost() *memHost {
	return &memHost{vms: map[holdfast.VMID]*memVM{}, images: map[string][]byte{}}
}

// addVM makes a VM whose disks have the contents.
func (h *memHost) addVM(name string, contents ...[]byte) *memVM {
	vm := &memVM{info: holdfast.VMInfo{ID: holdfast.VMID{ID: holdfast.NewID()}, Name: name, Generation: 2}}
	for i, c := range contents {
		vm.disks = append(vm.disks, &memDisk{data: c, points: map[string][]byte{}, meta: holdfast.Disk{
			ID: holdfast.DiskID{ID: holdfast.NewID()}, Name: fmt.Sprintf("%s-%d.vhdx", name, i), Size: int64(len(c)), Format: "vhdx",
			Subformat: "dynamic", BlockSize: 1 << 20, LogicalSector: 512, PhysicalSector: 4096, Controller: "scsi", Slot: i,
		}})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.vms[vm.info.ID] = vm
	return vm
}

func (h *memHost) Info(context.Context) (hv.HostInfo, error) {
	return hv.HostInfo{Name: "mem", Product: "memory", Version: "1"}, nil
}

func (h *memHost) VMs(context.Context) ([]hv.VM, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []hv.VM
	for _, vm := range h.vms {
		v := hv.VM{VMInfo: vm.info, State: "running"}
		for _, d := range vm.disks {
			v.Disks = append(v.Disks, d.meta)
		}
		out = append(out, v)
	}
	return out, nil
}

type memCheckpoint struct {
	h     *memHost
	vm    *memVM
	tag   string
	disks []hv.FrozenDisk
	ended bool
	level holdfast.Consistency
}

func (h *memHost) Checkpoint(_ context.Context, id holdfast.VMID, o hv.CheckpointOptions) (hv.Checkpoint, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.onCheckpoint != nil {
		h.onCheckpoint()
	}
	if h.checkpointErr != nil {
		return nil, h.checkpointErr
	}
	c := &memCheckpoint{h: h, vm: h.vms[id], tag: o.Tag, level: holdfast.CrashConsistent}
	for _, d := range c.vm.disks {
		data := d.data
		if !h.still {
			data = bytes.Clone(data)
		}
		c.disks = append(c.disks, &frozenDisk{h, d, data, maps.Clone(d.points)})
	}
	h.open++
	return c, nil
}

func (h *memHost) Leftovers(context.Context) ([]hv.Leftover, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []hv.Leftover
	for _, c := range h.left {
		if !c.ended {
			out = append(out, leftover{c})
		}
	}
	return out, nil
}

type leftover struct{ c *memCheckpoint }

func (l leftover) VM() holdfast.VMID                 { return l.c.vm.info.ID }
func (l leftover) Tag() string                       { return l.c.tag }
func (l leftover) Discard(ctx context.Context) error { return l.c.Discard(ctx) }

func (c *memCheckpoint) Level() holdfast.Consistency { return c.level }
func (c *memCheckpoint) Note() string                { return "" }
func (c *memCheckpoint) Disks() []hv.FrozenDisk      { return c.disks }
func (c *memCheckpoint) Config(context.Context) ([]holdfast.Attachment, error) {
	return []holdfast.Attachment{{Name: "vm.json", Data: []byte(c.vm.info.Name)}}, c.h.configErr
}

func (c *memCheckpoint) Commit(context.Context) (map[holdfast.DiskID]string, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	if c.h.commitErr != nil {
		return nil, c.h.commitErr
	}
	c.end()
	tokens := map[holdfast.DiskID]string{}
	for i, d := range c.vm.disks {
		c.h.next++
		token := fmt.Sprintf("token-%d", c.h.next)
		d.points = map[string][]byte{token: c.disks[i].(*frozenDisk).data} // at most one, as a host keeps it
		tokens[d.meta.ID] = token
	}
	return tokens, nil
}

func (c *memCheckpoint) Discard(context.Context) error {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.end()
	return nil
}

func (c *memCheckpoint) end() {
	if !c.ended {
		c.ended = true
		c.h.open--
	}
}

type frozenDisk struct {
	h      *memHost
	d      *memDisk
	data   []byte
	points map[string][]byte
}

func (f *frozenDisk) Meta() holdfast.Disk { return f.d.meta }

func (f *frozenDisk) Changes(_ context.Context, token string) (holdfast.Extents, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	if f.h.changesErr != nil {
		return nil, f.h.changesErr
	}
	old, ok := f.points[token]
	if !ok {
		return nil, fmt.Errorf("query: %w", hv.ErrTokenUnknown)
	}
	var out holdfast.Extents
	for at := 0; at < len(f.data); at += 512 {
		if string(old[at:at+512]) != string(f.data[at:at+512]) {
			out = append(out, holdfast.Extent{Off: int64(at), Len: 512})
		}
	}
	if f.h.wide > 0 {
		out = out.Align(f.h.wide, int64(len(f.data))+f.h.wide) // may reach beyond the disk
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out, nil
}

func (f *frozenDisk) Allocated(context.Context) (holdfast.Extents, error) {
	if f.h.allocErr != nil {
		return nil, f.h.allocErr
	}
	if f.h.still && f.d.allocated != nil {
		return f.d.allocated, nil
	}
	var out holdfast.Extents
	const block = 1 << 20
	for at := 0; at < len(f.data); at += block {
		end := min(at+block, len(f.data))
		for _, b := range f.data[at:end] {
			if b != 0 {
				out = append(out, holdfast.Extent{Off: int64(at), Len: int64(end - at)})
				break
			}
		}
	}
	out = out.Normal(int64(len(f.data)))
	if f.h.still {
		f.d.allocated = out // a disk file has a table of its blocks; here it takes as long as reading the disk
	}
	return out, nil
}

func (f *frozenDisk) Open(context.Context) (hv.Reader, error) { return frozenReader{f}, nil }

type frozenReader struct{ f *frozenDisk }

func (r frozenReader) ReadAt(p []byte, off int64) (int, error) {
	h := r.f.h
	if h.block != nil {
		<-h.block
	}
	if h.onRead != nil {
		h.onRead()
	}
	if h.readErr != nil && off+int64(len(p)) > h.readErrAt {
		return 0, h.readErr
	}
	return copy(p, r.f.data[off:]), nil
}

func (r frozenReader) Close() error { return nil }

type plannedVM struct {
	h        *memHost
	plan     hv.RestorePlan
	mu       sync.Mutex
	finished map[string][]byte
	ended    bool
}

func (h *memHost) Survey(_ context.Context, dirs []string) ([]hv.Folder, error) {
	var out []hv.Folder
	for _, dir := range dirs {
		out = append(out, hv.Folder{Dir: dir, Free: -1})
	}
	return out, nil
}

func (h *memHost) CreateVM(_ context.Context, p hv.RestorePlan) (hv.PlannedVM, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.planned++
	return &plannedVM{h: h, plan: p, finished: map[string][]byte{}}, nil
}

func (p *plannedVM) Disk(_ context.Context, id holdfast.DiskID) (hv.DiskWriter, error) {
	d := p.plan.Manifest.Disk(id)
	return &memWriter{vm: p, name: d.Name, data: make([]byte, d.Size)}, nil
}

func (p *plannedVM) Realize(context.Context) (hv.Realized, error) {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	if p.h.realizeErr != nil {
		return hv.Realized{}, p.h.realizeErr
	}
	for name, data := range p.finished {
		p.h.images[p.plan.Name+"/"+name] = data
	}
	p.h.made = append(p.h.made, p.plan)
	p.ended = true
	p.h.planned--
	return hv.Realized{VM: hv.VM{VMInfo: holdfast.VMInfo{ID: holdfast.VMID{ID: holdfast.NewID()}, Name: p.plan.Name, Generation: 2}}}, nil
}

func (p *plannedVM) Discard(context.Context) error {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	if !p.ended {
		p.ended = true
		p.h.planned--
	}
	return nil
}

type memWriter struct {
	vm   *plannedVM
	name string
	data []byte
}

func (w *memWriter) WriteAt(p []byte, off int64) (int, error) {
	if err := w.vm.h.writeErr; err != nil {
		return 0, err
	}
	if off%512 != 0 || len(p)%512 != 0 {
		return 0, holdfast.Errorf(holdfast.Invalid, "", "%d bytes at %d are not whole sectors", len(p), off)
	}
	return copy(w.data[off:], p), nil // places do not overlap, so nor do calls
}

func (w *memWriter) Finish() error {
	w.vm.mu.Lock()
	defer w.vm.mu.Unlock()
	w.vm.finished[w.name] = w.data
	return nil
}

func (w *memWriter) Abort() error { return nil }
