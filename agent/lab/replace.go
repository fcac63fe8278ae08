package lab

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
)

// planChange decides where the files go that are to become disks of a VM that is there: into its folder, under names that are free.
func (p *planned) planChange(ctx context.Context) error {
	id := p.plan.Replace
	if p.into = id.IsZero(); p.into {
		id = p.plan.Into
		if n := len(p.plan.Manifest.Disks); n != 1 {
			return holdfast.Errorf(holdfast.Invalid, "replace disk", "%d disks for one", n)
		}
	}
	dir, err := p.host.findID(id)
	if err != nil {
		return err
	}
	if err := p.host.discardDead(ctx, dir); err != nil {
		return err
	}
	f, err := loadVM(dir)
	if err != nil {
		return err
	}
	p.dir, p.undo.VM = dir, id
	if err := p.mayChange(f); err != nil {
		return err
	}
	taken := map[string]bool{}
	for _, d := range p.plan.Manifest.Disks {
		to := holdfast.DiskID{ID: holdfast.NewID()}
		switch {
		case p.into && !p.plan.Overwrite.IsZero():
			to = p.plan.Overwrite
		case !p.into && p.plan.Manifest.VM.ID == id:
			to = d.ID
		}
		if err := p.place(d.ID, to, p.free(d, taken)); err != nil {
			return err
		}
	}
	return nil
}

// free returns a name for a disk's file that no file has, neither in the VM's folder nor where the disk goes.
func (p *planned) free(d holdfast.Disk, taken map[string]bool) string {
	for {
		name := diskFileName(d, taken)
		if freeName(p.dir, name) != name {
			continue
		}
		if dir := p.plan.DiskDirs[d.ID]; dir == "" || freeName(dir, name) == name {
			return name
		}
	}
}

// mayChange refuses what a hypervisor refuses: disks of a VM that runs, has checkpoints or is being backed up cannot be replaced. A VM
// that runs gets a further disk.
func (p *planned) mayChange(f *vmFile) error {
	const op = "replace disks"
	if err := f.busy(op); err != nil {
		return err
	}
	if len(f.Checkpoints) > 0 {
		return holdfast.Errorf(holdfast.Busy, op, "VM %q has %d checkpoints", f.Name, len(f.Checkpoints)).Advise("delete the VM's checkpoints first")
	}
	adds := p.into && p.plan.Overwrite.IsZero()
	switch {
	case p.into && !adds && f.disk(p.plan.Overwrite) == nil:
		return holdfast.Errorf(holdfast.NotExist, op, "VM %q has no disk %s", f.Name, p.plan.Overwrite).Advise("list its disks again")
	case adds && len(f.Disks) >= holdfast.MaxDisks:
		return holdfast.Errorf(holdfast.NoSpace, op, "VM %q has %d disks", f.Name, len(f.Disks))
	case adds:
		return nil
	case f.served(p.dir):
		return holdfast.Errorf(holdfast.Busy, op, "a program has a disk of VM %q open for writing", f.Name).Advise("end the program that serves the disk")
	case f.State != stateOff && !p.plan.Shutdown:
		return holdfast.Errorf(holdfast.Busy, op, "VM %q runs", f.Name).Advise("shut it down, or allow the restore to do that")
	}
	return nil
}

// realizeChange puts the disks into the VM, in one replacement of its vm.json.
func (p *planned) realizeChange(ctx context.Context) (hv.Realized, error) {
	var made hv.Realized
	if err := p.host.discardDead(ctx, p.dir); err != nil {
		return made, err
	}
	err := p.host.change(ctx, p.dir, func(f *vmFile) error {
		if err := p.mayChange(f); err != nil {
			return err
		}
		next := *f
		next.Disks = slices.Clone(f.Disks)
		next.Restored = p.undo.Tag
		was := f.Disks
		var err error
		if p.into {
			was, err = p.putDisk(&next)
		} else {
			made.Tokens = p.putAll(&next)
		}
		if err != nil {
			return err
		}
		p.undo.Old = p.superfluous(was, next.Disks)
		if err := p.undo.write(p.host); err != nil {
			return err
		}
		if err := next.rotate(p.dir); err != nil {
			return err
		}
		*f = next
		made.VM = describe(p.dir, f)
		return nil
	})
	return made, err
}

// putAll makes a VM what the set says. It stays the VM that it was by its id, and what followed its changes knows that it has to start anew.
func (p *planned) putAll(f *vmFile) map[holdfast.DiskID]string {
	m := &p.plan.Manifest
	f.Name, f.Generation, f.Version = p.plan.Name, m.VM.Generation, m.VM.Version
	f.Adapters = p.plan.Adapters
	f.State = stateOff
	if p.plan.Start {
		f.State = stateRunning
	}
	f.Disks = nil
	for _, d := range m.Disks {
		n := p.disks[d.ID]
		f.Disks = append(f.Disks, diskEntry{ID: n.id, Name: d.Name, Path: n.name, Controller: d.Controller, ControllerNo: d.ControllerNo, Slot: d.Slot})
	}
	for i := range f.Disks {
		if !isFileName(f.Disks[i].Name) {
			f.Disks[i].Name = f.Disks[i].Path
		}
	}
	return p.reference(f)
}

// putDisk puts the one disk in its place and returns the entry that it takes the place of, if any.
func (p *planned) putDisk(f *vmFile) ([]diskEntry, error) {
	d := &p.plan.Manifest.Disks[0]
	n := p.disks[d.ID]
	if p.plan.Overwrite.IsZero() {
		no, slot, err := f.freeSlot("add disk")
		if err != nil {
			return nil, err
		}
		f.Disks = append(f.Disks, diskEntry{ID: n.id, Name: n.name, Path: n.name, Controller: "scsi", ControllerNo: no, Slot: slot})
		if p.plan.Start {
			f.State = stateRunning
		}
		return nil, nil
	}
	e := f.disk(p.plan.Overwrite)
	was := *e
	e.Path, e.Parents = n.name, nil
	f.State = stateOff
	if p.plan.Start {
		f.State = stateRunning
	}
	f.forget(e.ID)
	return []diskEntry{was}, nil
}

// superfluous lists the files of disks that are not part of the VM any more.
func (p *planned) superfluous(was, now []diskEntry) []string {
	keep := map[string]bool{}
	for i := range now {
		for _, name := range now[i].chain() {
			keep[name] = true
		}
	}
	var out []string
	for i := range was {
		for _, name := range was[i].chain() {
			if !keep[name] {
				out = append(out, realFiles(filepath.Join(p.dir, name))...)
			}
		}
	}
	return out
}
