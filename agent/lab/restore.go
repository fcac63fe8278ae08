package lab

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

// A planned VM is a folder without vm.json: Realize writes that last.
type planned struct {
	host *Host
	dir  string
	made bool // we made the folder
	file *vmFile
	plan hv.RestorePlan

	mu    sync.Mutex
	disks map[holdfast.DiskID]*plannedDisk
	ended bool
}

type plannedDisk struct {
	name     string
	id       holdfast.DiskID // in the new VM
	w        *vhdx.Writer
	started  bool
	finished bool
}

// CreateVM begins a VM in p.Dir. If p.Dir is the lab folder itself, the VM gets a folder of its name in it.
func (h *Host) CreateVM(ctx context.Context, p hv.RestorePlan) (hv.PlannedVM, error) {
	const op = "create VM"
	m := &p.Manifest
	if err := m.Check(); err != nil {
		return nil, err
	}
	if p.Name == "" {
		p.Name = m.VM.Name
	}
	if !filepath.IsAbs(p.Dir) {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "%q is not an absolute path", p.Dir)
	}
	dir := filepath.Clean(p.Dir)
	if dir == h.dir {
		if !isFileName(p.Name) {
			return nil, holdfast.Errorf(holdfast.Invalid, op, "%q is no name for a folder", p.Name).Advise("give another name, or a folder")
		}
		dir = filepath.Join(dir, p.Name)
	}
	info := m.VM
	info.Name = p.Name
	if !p.KeepID {
		info.ID = holdfast.VMID{ID: holdfast.NewID()}
	}
	if err := h.checkNewID(info.ID); err != nil {
		return nil, err
	}
	pl := &planned{host: h, dir: dir, plan: p, disks: make(map[holdfast.DiskID]*plannedDisk),
		file: &vmFile{Format: vmFileFormat, VMInfo: info, State: stateOff}}
	names := make(map[string]bool)
	for _, d := range m.Disks {
		id := d.ID
		if !p.KeepID {
			id = holdfast.DiskID{ID: holdfast.NewID()}
		}
		pl.disks[d.ID] = &plannedDisk{id: id, name: diskFileName(d, names)}
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fileError(op, err)
	}
	err := os.Mkdir(dir, 0o700)
	pl.made = err == nil
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fileError(op, err)
	}
	for _, name := range append(pl.names(), vmFileName) {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			return nil, errors.Join(holdfast.Errorf(holdfast.Exist, op, "%s is already in %s", name, dir).Advise("restore to an empty folder"), pl.drop(ctx, nil))
		}
	}
	return pl, nil
}

// checkNewID refuses a second VM with an id.
func (h *Host) checkNewID(id holdfast.VMID) error {
	return h.each(func(_ string, f *vmFile) error {
		if f.ID != id {
			return nil
		}
		return holdfast.Errorf(holdfast.Exist, "create VM", "VM %q with id %s is in the lab already", f.Name, id).
			Advise("restore with a new id, or remove the old VM first")
	})
}

// diskFileName returns the name of a restored disk's file: the old one where that is a name at all and free.
func diskFileName(d holdfast.Disk, taken map[string]bool) string {
	stem := strings.TrimSuffix(d.Name, filepath.Ext(d.Name))
	if !isFileName(stem) || isOverlay(d.Name) {
		stem = "disk-" + d.ID.String()
	}
	name := stem + ".vhdx"
	for n := 2; taken[strings.ToLower(name)]; n++ {
		name = stem + "-" + strconv.Itoa(n) + ".vhdx"
	}
	taken[strings.ToLower(name)] = true
	return name
}

func (p *planned) names() []string {
	var out []string
	for _, d := range p.disks {
		out = append(out, d.name)
	}
	return out
}

// Disk creates a disk's file: fixed where the old one was, else dynamic, with the old block and sector sizes.
func (p *planned) Disk(_ context.Context, id holdfast.DiskID) (hv.DiskWriter, error) {
	const op = "create disk"
	p.mu.Lock()
	defer p.mu.Unlock()
	m, d := p.plan.Manifest.Disk(id), p.disks[id]
	switch {
	case p.ended:
		return nil, holdfast.Errorf(holdfast.Invalid, op, "the VM is finished or discarded")
	case m == nil || d == nil:
		return nil, holdfast.Errorf(holdfast.NotExist, op, "the set has no disk %s", id)
	case d.started:
		return nil, holdfast.Errorf(holdfast.Exist, op, "disk %s is there already", d.name)
	}
	o := vhdx.CreateOptions{Size: m.Size, Subformat: "dynamic", DiskID: d.id}
	if m.Subformat == "fixed" {
		o.Subformat = "fixed"
	}
	if m.Format == "vhdx" { // a VHD's numbers need not be valid ones of a VHDX
		o.BlockSize, o.LogicalSector, o.PhysicalSector = m.BlockSize, m.LogicalSector, m.PhysicalSector
	}
	w, err := vhdx.Create(filepath.Join(p.dir, d.name), o)
	if err != nil {
		return nil, err
	}
	d.w, d.started = w, true
	return &plannedWriter{p, d}, nil
}

// A plannedWriter is one disk under construction.
type plannedWriter struct {
	p *planned
	d *plannedDisk
}

func (w *plannedWriter) WriteAt(b []byte, off int64) (int, error) { return w.d.w.WriteAt(b, off) }

func (w *plannedWriter) Finish() error {
	if err := w.d.w.Finish(); err != nil {
		return err
	}
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	w.d.finished = true
	return nil
}

func (w *plannedWriter) Abort() error {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if w.d.finished {
		return nil
	}
	w.d.started = false
	return w.d.w.Abort()
}

// Realize writes vm.json.
func (p *planned) Realize(ctx context.Context) (hv.VM, error) {
	const op = "create VM"
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return hv.VM{}, holdfast.Errorf(holdfast.Invalid, op, "the VM is finished or discarded")
	}
	f := *p.file
	for _, m := range p.plan.Manifest.Disks {
		d := p.disks[m.ID]
		if !d.finished {
			return hv.VM{}, holdfast.Errorf(holdfast.Invalid, op, "disk %s is not finished", d.name)
		}
		f.Disks = append(f.Disks, diskEntry{ID: d.id, Name: d.name, Path: d.name, Controller: m.Controller, ControllerNo: m.ControllerNo, Slot: m.Slot})
	}
	reg, err := waitLock(ctx, p.host.clock, p.host.dir, registerGate, exclusive)
	if err != nil {
		return hv.VM{}, err
	}
	defer reg.unlock()
	if err := p.host.checkNewID(f.ID); err != nil {
		return hv.VM{}, err
	}
	// A folder that is registered before it is a VM is passed over; one that is a VM and not registered would be lost.
	if err := p.host.register(p.dir); err != nil {
		return hv.VM{}, err
	}
	if err := f.rotate(p.dir); err != nil {
		return hv.VM{}, err
	}
	p.ended = true
	return describe(p.dir, &f), nil
}

// Discard removes every file of the VM, and its folder if CreateVM made it.
func (p *planned) Discard(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	p.ended = true
	var errs []error
	var files []string
	for _, d := range p.disks {
		if !d.started {
			continue
		}
		if !d.finished {
			errs = append(errs, d.w.Abort())
		}
		files = append(files, d.name)
	}
	return errors.Join(append(errs, p.drop(ctx, files))...)
}

// drop removes files, and the folder if it is ours.
func (p *planned) drop(_ context.Context, files []string) error {
	var errs []error
	for _, name := range files {
		errs = append(errs, remove(filepath.Join(p.dir, name)))
	}
	if p.made {
		errs = append(errs, os.RemoveAll(filepath.Join(p.dir, trackingDir)), remove(p.dir))
	}
	return errors.Join(errs...)
}

var zeroPiece [copyPiece]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeroPiece[:len(p)]) }
