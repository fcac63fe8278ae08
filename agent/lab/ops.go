package lab

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

// Reasons in vm.json why changes since the reference point are not known.
const (
	lostReverted = "reverted"
	lostResized  = "resized"
)

// UserCheckpoint takes a checkpoint as a person would, of a VM found by folder, name or id. It stays until Revert goes back
// past it. It returns the checkpoint's id.
func (h *Host) UserCheckpoint(ctx context.Context, vm string) (holdfast.ID, error) {
	id := holdfast.NewID()
	return id, h.changeIdle(ctx, "take checkpoint", vm, func(dir string, f *vmFile) error {
		return f.freeze(dir, checkpointEntry{ID: id, Kind: kindUser, Created: h.clock.Now().UTC()}, nil)
	})
}

// Revert applies a user checkpoint, the last one if id is zero: the disks are as they were then, what was written since and
// later checkpoints are gone, and nobody knows what changed since the reference point.
func (h *Host) Revert(ctx context.Context, vm string, id holdfast.ID) error {
	const op = "apply checkpoint"
	return h.changeIdle(ctx, op, vm, func(dir string, f *vmFile) error {
		at := len(f.Checkpoints) - 1
		for i, c := range f.Checkpoints {
			if c.ID == id {
				at = i
			}
		}
		if at < 0 || (!id.IsZero() && f.Checkpoints[at].ID != id) {
			return holdfast.Errorf(holdfast.NotExist, op, "VM %q has no such checkpoint", f.Name).Advise("take one with 'holdfast-agent lab checkpoint'")
		}
		roots := make(map[holdfast.DiskID][]string)
		for i := range f.Disks {
			d := &f.Disks[i]
			chain := d.chain()
			for len(chain) > 0 && chain[0] != f.Checkpoints[at].Frozen[d.ID] {
				chain = chain[1:]
			}
			if len(chain) == 0 {
				return holdfast.Errorf(holdfast.Invalid, op, "disk %s is not part of the checkpoint", d.Name)
			}
			roots[d.ID] = chain
			f.lose(d.ID, lostReverted)
		}
		f.Checkpoints = f.Checkpoints[:at+1]
		return f.freeze(dir, checkpointEntry{ID: holdfast.NewID()}, roots)
	})
}

// Resize makes a disk larger. Servers of the disk show the new size when they are started again.
func (h *Host) Resize(ctx context.Context, vm string, no int, size int64) error {
	const op = "resize disk"
	return h.changeIdle(ctx, op, vm, func(dir string, f *vmFile) error {
		d, err := f.numbered(op, no)
		if err != nil {
			return err
		}
		if len(f.Checkpoints) > 0 {
			return holdfast.Errorf(holdfast.Busy, op, "VM %q has checkpoints", f.Name).Advise("a disk with checkpoints cannot be resized")
		}
		// Lost first: a kill in between costs a full read, never a wrong delta.
		f.lose(d.ID, lostResized)
		if err := f.save(dir); err != nil {
			return err
		}
		l, err := vhdx.OpenLive(filepath.Join(dir, d.Path))
		if err != nil {
			return err
		}
		if err := errors.Join(l.Resize(size), l.Close()); err != nil {
			return err
		}
		return f.rotate(dir)
	})
}

// Swap puts a copy of another VHDX in the place of a disk. The old disk's own file stays in the folder and is no part of the VM
// any more; what user checkpoints had put on top of it is removed, and they cannot be applied any more.
func (h *Host) Swap(ctx context.Context, vm string, no int, file string) error {
	const op = "swap disk"
	return h.changeIdle(ctx, op, vm, func(dir string, f *vmFile) error {
		d, err := f.numbered(op, no)
		if err != nil {
			return err
		}
		e, err := importDisk(ctx, dir, file, TakeCopy)
		if err != nil {
			return err
		}
		if o := f.disk(e.ID); o != nil && o != d {
			return holdfast.Errorf(holdfast.Exist, op, "the VM has disk %s already", e.ID)
		}
		for _, c := range f.Checkpoints {
			delete(c.Frozen, d.ID)
		}
		f.forget(e.ID, d.ID)
		e.Controller, e.ControllerNo, e.Slot = d.Controller, d.ControllerNo, d.Slot
		*d = e
		return f.rotate(dir)
	})
}

// changeIdle runs fn under change, unless the VM is being backed up.
func (h *Host) changeIdle(ctx context.Context, op, vm string, fn func(dir string, f *vmFile) error) error {
	dir, _, err := h.find(vm)
	if err != nil {
		return err
	}
	if err := h.discardDead(ctx, dir); err != nil {
		return err
	}
	return h.change(ctx, dir, func(f *vmFile) error {
		if err := f.busy(op); err != nil {
			return err
		}
		return fn(dir, f)
	})
}

// numbered returns disk no.
func (f *vmFile) numbered(op string, no int) (*diskEntry, error) {
	if no < 0 || no >= len(f.Disks) {
		return nil, holdfast.Errorf(holdfast.NotExist, op, "VM %q has %d disks; there is no disk %d", f.Name, len(f.Disks), no).Advise("disks are counted from 0")
	}
	return &f.Disks[no], nil
}

// lose notes why the changes since the reference points are not known.
func (f *vmFile) lose(id holdfast.DiskID, why string) {
	for _, r := range f.references() {
		if r.Disks[id] != nil {
			r.Disks[id].Lost = why
		}
	}
}

// rotate begins a new epoch for the disks as they are now and saves.
func (f *vmFile) rotate(dir string) error {
	f.Epoch++
	for i := range f.Disks {
		d := &f.Disks[i]
		if err := settle(dir, f.Epoch-1, d); err != nil {
			return err
		}
		info, err := diskInfo(filepath.Join(dir, d.Path))
		if err != nil {
			return err
		}
		if err := createTrack(dir, f.Epoch, info); err != nil {
			return err
		}
	}
	return f.save(dir)
}
