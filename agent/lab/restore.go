package lab

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

// A planned VM is a folder without vm.json, which Realize writes last; or (Replace, Into) files beside those of a VM that is there, which
// Realize puts into its vm.json.
type planned struct {
	host *Host
	dir  string
	file *vmFile // the new VM; nil where one that is there is changed
	into bool    // a disk of it, not all of it
	plan hv.RestorePlan
	undo undo
	lock *fileLock // while it lives; leftovers of others do not have it

	mu    sync.Mutex
	disks map[holdfast.DiskID]*plannedDisk
	ended bool
}

type plannedDisk struct {
	name     string          // in the VM's folder
	path     string          // of the file itself, which may be elsewhere: then name is a link to it
	id       holdfast.DiskID // in the VM
	w        *vhdx.Writer
	started  bool
	finished bool
}

// CreateVM begins a VM in p.Dir. If p.Dir is the lab folder itself, the VM gets a folder of its name in it. With Replace or Into, the files go
// into the folder of the VM that is there.
func (h *Host) CreateVM(ctx context.Context, p hv.RestorePlan) (hv.PlannedVM, error) {
	m := &p.Manifest
	if err := m.Check(); err != nil {
		return nil, err
	}
	if p.Name == "" {
		p.Name = m.VM.Name
	}
	if p.Tag == "" {
		p.Tag = holdfast.NewID().String()
	}
	if !isFileName(p.Tag) {
		return nil, holdfast.Errorf(holdfast.Invalid, "create VM", "%q is no tag", p.Tag)
	}
	pl := &planned{host: h, plan: p, disks: make(map[holdfast.DiskID]*plannedDisk)}
	var err error
	if p.Replace.IsZero() && p.Into.IsZero() {
		err = pl.planNew()
	} else {
		err = pl.planChange(ctx)
	}
	if err != nil {
		return nil, err
	}
	if err := pl.begin(); err != nil {
		return nil, err
	}
	return pl, nil
}

// planNew decides where the files of a new VM go.
func (p *planned) planNew() error {
	const op = "create VM"
	if !filepath.IsAbs(p.plan.Dir) {
		return holdfast.Errorf(holdfast.Invalid, op, "%q is not an absolute path", p.plan.Dir)
	}
	p.dir = filepath.Clean(p.plan.Dir)
	if p.dir == p.host.dir {
		if !isFileName(p.plan.Name) {
			return holdfast.Errorf(holdfast.Invalid, op, "%q is no name for a folder", p.plan.Name).Advise("give another name, or a folder")
		}
		p.dir = filepath.Join(p.dir, p.plan.Name)
	}
	info := p.plan.Manifest.VM
	info.Name = p.plan.Name
	if !p.plan.KeepID {
		info.ID = holdfast.VMID{ID: holdfast.NewID()}
	}
	if err := p.host.checkNewID(info.ID); err != nil {
		return err
	}
	p.file = &vmFile{Format: vmFileFormat, VMInfo: info, State: stateOff, Adapters: p.plan.Adapters, Restored: p.plan.Tag}
	p.undo.VM = info.ID
	names := make(map[string]bool)
	for _, d := range p.plan.Manifest.Disks {
		id := d.ID
		if !p.plan.KeepID {
			id = holdfast.DiskID{ID: holdfast.NewID()}
		}
		if err := p.place(d.ID, id, diskFileName(d, names)); err != nil {
			return err
		}
	}
	for _, name := range append(p.names(), vmFileName) {
		if _, err := os.Lstat(filepath.Join(p.dir, name)); !errors.Is(err, os.ErrNotExist) {
			return holdfast.Errorf(holdfast.Exist, op, "%s is already in %s", name, p.dir).Advise("restore to an empty folder")
		}
	}
	return nil
}

// place decides where a disk's file is made.
func (p *planned) place(of, id holdfast.DiskID, name string) error {
	d := &plannedDisk{id: id, name: name, path: filepath.Join(p.dir, name)}
	if dir := p.plan.DiskDirs[of]; dir != "" {
		if !filepath.IsAbs(dir) {
			return holdfast.Errorf(holdfast.Invalid, "create disk", "%q is not an absolute path", dir)
		}
		d.path = filepath.Join(dir, name)
		if _, err := os.Lstat(d.path); !errors.Is(err, os.ErrNotExist) && filepath.Clean(dir) != p.dir {
			return holdfast.Errorf(holdfast.Exist, "create disk", "%s is there already", d.path).Advise("choose another folder for the disk")
		}
	}
	p.disks[of] = d
	return nil
}

// begin writes down what is going to be made, then makes the folders.
func (p *planned) begin() (err error) {
	u := &p.undo
	u.Tag, u.Dir = p.plan.Tag, p.dir
	dirs := []string{p.dir}
	for _, d := range p.disks {
		u.New = append(u.New, d.path)
		if link := filepath.Join(p.dir, d.name); link != d.path {
			u.New = append(u.New, link)
			dirs = append(dirs, filepath.Dir(d.path))
		}
	}
	for _, dir := range dirs {
		for _, m := range missing(dir) {
			if !slices.Contains(u.Made, m) {
				u.Made = append(u.Made, m)
			}
		}
	}
	if p.lock, err = u.begin(p.host); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return errors.Join(fileError("create VM", err), p.over())
		}
	}
	return nil
}

// over removes what is not needed any more and gives up the lock.
func (p *planned) over() error {
	p.ended = true
	err := p.undo.finish(p.host)
	p.lock.end(p.host.undoPath(p.undo.Tag, ownerSuffix))
	return err
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
	w, err := vhdx.Create(d.path, o)
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
func (p *planned) Realize(ctx context.Context) (hv.Realized, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return hv.Realized{}, holdfast.Errorf(holdfast.Invalid, "create VM", "the VM is finished or discarded")
	}
	for _, d := range p.disks {
		if !d.finished {
			return hv.Realized{}, holdfast.Errorf(holdfast.Invalid, "create VM", "disk %s is not finished", d.name)
		}
		if err := p.link(d); err != nil {
			return hv.Realized{}, err
		}
	}
	var made hv.Realized
	var err error
	if p.file != nil {
		made, err = p.realizeNew(ctx)
	} else {
		made, err = p.realizeChange(ctx)
	}
	if err != nil {
		return hv.Realized{}, err
	}
	if err := p.over(); err != nil { // the VM is there; the next start removes what is superfluous
		made.Note = "what the restore made superfluous could not be removed: " + err.Error()
	}
	return made, nil
}

// link connects the VM's folder to a disk that is elsewhere. A link of an earlier try to Realize stays.
func (p *planned) link(d *plannedDisk) error {
	link := filepath.Join(p.dir, d.name)
	if link == d.path {
		return nil
	}
	if to, err := os.Readlink(link); err == nil && to == d.path {
		return nil
	}
	if err := os.Symlink(d.path, link); err != nil {
		return fileError("create disk", err)
	}
	return nil
}

func (p *planned) realizeNew(ctx context.Context) (hv.Realized, error) {
	f := *p.file
	for _, m := range p.plan.Manifest.Disks {
		d := p.disks[m.ID]
		f.Disks = append(f.Disks, diskEntry{ID: d.id, Name: d.name, Path: d.name, Controller: m.Controller, ControllerNo: m.ControllerNo, Slot: m.Slot})
	}
	reg, err := waitLock(ctx, p.host.clock, p.host.dir, registerGate, exclusive)
	if err != nil {
		return hv.Realized{}, err
	}
	defer reg.unlock()
	if err := p.host.checkNewID(f.ID); err != nil {
		return hv.Realized{}, err
	}
	// A folder that is registered before it is a VM is passed over; one that is a VM and not registered would be lost.
	if err := p.host.register(p.dir); err != nil {
		return hv.Realized{}, err
	}
	tokens := p.reference(&f)
	if p.plan.Start {
		f.State = stateRunning
	}
	if err := f.rotate(p.dir); err != nil {
		return hv.Realized{}, err
	}
	return hv.Realized{VM: describe(p.dir, &f), Tokens: tokens}, nil
}

// reference makes the epoch that begins with the next rotate our reference point, if the plan wants one.
func (p *planned) reference(f *vmFile) map[holdfast.DiskID]string {
	f.Reference, f.Older = nil, nil
	if !p.plan.Reference {
		return nil
	}
	tokens := make(map[holdfast.DiskID]string)
	f.Reference = &reference{Epoch: f.Epoch + 1, Disks: make(map[holdfast.DiskID]*referencePoint)}
	for _, d := range f.Disks {
		tokens[d.ID] = newToken()
		f.Reference.Disks[d.ID] = &referencePoint{Token: tokens[d.ID]}
	}
	return tokens
}

// Discard removes every file of the VM, and its folder if CreateVM made it.
func (p *planned) Discard(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	var errs []error
	for _, d := range p.disks {
		if d.started && !d.finished {
			errs = append(errs, d.w.Abort())
		}
	}
	return errors.Join(append(errs, p.over())...)
}

var zeroPiece [copyPiece]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeroPiece[:len(p)]) }
