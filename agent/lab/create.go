package lab

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

// Limits of a VM's disks, as the virtual hardware has them.
const (
	ideSlots        = 4 // two controllers of two
	slotsOfIDE      = 2
	slotsOfSCSI     = 64
	scsiControllers = 4
)

// Take says what happens to a disk file that becomes part of a VM.
type Take int

const (
	TakeCopy Take = iota // the file is copied, holes stay holes
	TakeMove             // the file is moved, or copied and removed
)

// CreateOptions describes a new VM.
type CreateOptions struct {
	Name       string   // of the VM and its folder
	Disks      []string // VHDX files; a differencing disk brings its parents along
	Generation int      // 1 or 2; 0 means 2
	Off        bool     // the VM is off: its checkpoints are neither application- nor crash-consistent
	Take       Take
	Adapters   []holdfast.Adapter
	Version    string // of the VM's configuration; "": the lab's own
}

// NewVM makes a VM in the lab folder. Each disk keeps its bytes; it keeps its id, too, unless another disk of the lab has
// it. When NewVM fails it leaves nothing behind.
func (h *Host) NewVM(ctx context.Context, o CreateOptions) (hv.VM, error) {
	const op = "create VM"
	if o.Generation == 0 {
		o.Generation = 2
	}
	switch {
	case !isFileName(o.Name):
		return hv.VM{}, holdfast.Errorf(holdfast.Invalid, op, "%q is no name for a folder", o.Name)
	case o.Generation != 1 && o.Generation != 2:
		return hv.VM{}, holdfast.Errorf(holdfast.Invalid, op, "there is no generation %d", o.Generation).Advise("generations are 1 and 2")
	case len(o.Disks) > slotsOfSCSI*scsiControllers:
		return hv.VM{}, holdfast.Errorf(holdfast.Invalid, op, "%d disks; at most %d fit", len(o.Disks), slotsOfSCSI*scsiControllers)
	}
	dir := filepath.Join(h.dir, o.Name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return hv.VM{}, fileError(op, err)
	}
	f := &vmFile{Format: vmFileFormat, State: stateRunning, VMInfo: holdfast.VMInfo{ID: holdfast.VMID{ID: holdfast.NewID()}, Name: o.Name,
		Generation: o.Generation, Version: o.Version}, Adapters: o.Adapters}
	if f.Version == "" {
		f.Version = "lab-" + version
	}
	if o.Off {
		f.State = stateOff
	}
	err := h.fillVM(ctx, dir, f, o)
	if err != nil {
		return hv.VM{}, errors.Join(err, os.RemoveAll(dir))
	}
	return describe(dir, f), nil
}

func (h *Host) fillVM(ctx context.Context, dir string, f *vmFile, o CreateOptions) error {
	reg, err := waitLock(ctx, h.clock, h.dir, registerGate, exclusive)
	if err != nil {
		return err
	}
	defer reg.unlock()
	known, err := h.diskIDs()
	if err != nil {
		return err
	}
	for n, file := range o.Disks {
		e, err := importDisk(ctx, dir, file, o.Take)
		if err != nil {
			return err
		}
		if known[e.ID] || e.ID.IsZero() {
			e.ID = holdfast.DiskID{ID: holdfast.NewID()}
			if err := vhdx.SetDiskID(filepath.Join(dir, e.Path), e.ID); err != nil {
				return err
			}
		}
		known[e.ID] = true
		e.Controller, e.ControllerNo, e.Slot = place(o.Generation, n)
		f.Disks = append(f.Disks, e)
	}
	return f.rotate(dir)
}

// place returns where the n-th disk of a VM is connected. Generation 1 boots from IDE.
func place(generation, n int) (controller string, no, slot int) {
	if generation == 1 {
		if n < ideSlots {
			return "ide", n / slotsOfIDE, n % slotsOfIDE
		}
		n -= ideSlots
	}
	return "scsi", n / slotsOfSCSI, n % slotsOfSCSI
}

// diskIDs returns the ids of all disks in the lab.
func (h *Host) diskIDs() (map[holdfast.DiskID]bool, error) {
	ids := make(map[holdfast.DiskID]bool)
	err := h.each(func(_ string, f *vmFile) error {
		for _, d := range f.Disks {
			ids[d.ID] = true
		}
		return nil
	})
	return ids, err
}

// Clone makes a copy of a VM that is off or at rest, with a new id and new disk ids, as a person would clone a VM.
func (h *Host) Clone(ctx context.Context, vm, name string) (hv.VM, error) {
	dir, _, err := h.find(vm)
	if err != nil {
		return hv.VM{}, err
	}
	var out hv.VM
	err = h.changeIdle(ctx, "clone VM", vm, func(_ string, f *vmFile) error {
		o := CreateOptions{Name: name, Generation: f.Generation, Off: f.State == stateOff, Version: f.Version, Adapters: slices.Clone(f.Adapters)}
		for i := range o.Adapters {
			o.Adapters[i].MAC = ""
		}
		for i := range f.Disks {
			o.Disks = append(o.Disks, filepath.Join(dir, f.Disks[i].Path))
			if len(f.Disks[i].Parents) > 0 && isOverlay(f.Disks[i].Path) {
				return holdfast.Errorf(holdfast.Busy, "clone VM", "VM %q has checkpoints", f.Name).Advise("clone a VM without checkpoints")
			}
		}
		out, err = h.NewVM(ctx, o)
		return err
	})
	return out, err
}

// importDisk takes a VHDX and its parents into a VM's folder.
func importDisk(ctx context.Context, dir, file string, take Take) (diskEntry, error) {
	const op = "add disk"
	info, err := diskInfo(file)
	if err != nil {
		return diskEntry{}, err
	}
	if info.Format != "vhdx" {
		return diskEntry{}, holdfast.Errorf(holdfast.Unsupported, op, "%s is a %s: the lab writes VHDX only", file, info.Format).
			Advise("convert it with 'holdfast-agent vhdx convert'")
	}
	names := make([]string, len(info.Chain))
	for i, from := range info.Chain {
		names[i] = filepath.Base(from)
		if !isFileName(names[i]) || isOverlay(names[i]) {
			return diskEntry{}, holdfast.Errorf(holdfast.Invalid, op, "%q is no name for a disk of the lab", names[i]).Advise("rename the file")
		}
		if len(info.Chain) == 1 {
			names[i] = freeName(dir, names[i]) // members of a chain find each other by name
		}
		// A parent may have other children: only the disk itself is ever moved.
		if take == TakeMove && i == 0 && os.Rename(from, filepath.Join(dir, names[i])) == nil {
			continue
		}
		if err := copyFile(ctx, from, filepath.Join(dir, names[i])); err != nil {
			return diskEntry{}, err
		}
		if take == TakeMove && i == 0 {
			if err := remove(from); err != nil {
				return diskEntry{}, err
			}
		}
	}
	// Relative to its new place, the first parent is a neighbour.
	for i := len(names) - 2; i >= 0; i-- {
		if err := vhdx.SetParent(filepath.Join(dir, names[i]), filepath.Join(dir, names[i+1])); err != nil {
			return diskEntry{}, err
		}
	}
	return diskEntry{ID: info.DiskID, Name: names[0], Path: names[0], Parents: names[1:]}, syncDir(dir)
}

// freeName returns name, or name with a number where that is taken.
func freeName(dir, name string) string {
	ext := filepath.Ext(name)
	stem := strings.TrimSuffix(name, ext)
	for n := 2; ; n++ {
		if _, err := os.Lstat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) {
			return name
		}
		name = stem + "-" + strconv.Itoa(n) + ext
	}
}

const copyPiece = 64 << 10 // zeros of this size become holes

// copyFile copies a file byte for byte, durably; runs of zeros become holes. The target must not exist.
func copyFile(ctx context.Context, from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return fileError("copy disk", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fileError("copy disk", err)
	}
	if err := errors.Join(copyHoles(ctx, in, out), out.Close()); err != nil {
		return errors.Join(fileError("copy disk", err), os.Remove(to))
	}
	return nil
}

func copyHoles(ctx context.Context, in, out *os.File) error {
	buf := make([]byte, 16*copyPiece)
	var off int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(in, buf)
		for i := 0; i < n; i += copyPiece {
			p := buf[i:min(i+copyPiece, n)]
			if isZero(p) {
				continue
			}
			if _, err := out.WriteAt(p, off+int64(i)); err != nil {
				return err
			}
		}
		off += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return errors.Join(out.Truncate(off), out.Sync())
		}
		if err != nil {
			return err
		}
	}
}
