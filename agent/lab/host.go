package lab

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// Product is what HostInfo calls the lab.
const Product = "Holdfast lab host"

const (
	version          = "1"
	registeredName   = "registered.json" // folders of VMs that are not in the lab folder itself
	registerGate     = ".register"       // lock: held while registered.json or the set of VMs changes
	maxRegistered    = 10000
	maxRegisterBytes = 16 << 20
	stateRunning     = "running"
	stateOff         = "off"
)

// A Host is a lab folder. It implements hv.Hypervisor. Any number of Hosts, in any number of processes, may work on one folder.
type Host struct {
	// Quiesce, if set, plays the guest's applications: an application-consistent checkpoint of a running VM asks it first,
	// and fails if it does. Set it before use.
	Quiesce func(ctx context.Context, vm holdfast.VMInfo) error

	dir   string
	clock clock.Clock
}

var _ hv.Hypervisor = (*Host)(nil)

// Open opens a lab folder, which is made if it is not there.
func Open(dir string) (*Host, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fileError("open lab", err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fileError("open lab", err)
	}
	return &Host{dir: abs, clock: clock.System}, nil
}

// Info describes the host.
func (h *Host) Info(context.Context) (hv.HostInfo, error) {
	name, err := os.Hostname()
	if err != nil {
		name = "lab"
	}
	s, err := h.Settings()
	return hv.HostInfo{Name: name, Product: Product, Version: version + " on " + runtime.GOOS, Switches: s.Switches, VMVersion: s.VMVersion}, err
}

// VMs lists the VMs, by name.
func (h *Host) VMs(context.Context) ([]hv.VM, error) {
	var out []hv.VM
	err := h.each(func(dir string, f *vmFile) error {
		out = append(out, describe(dir, f))
		return nil
	})
	slices.SortFunc(out, func(a, b hv.VM) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.ID.String(), b.ID.String())
	})
	return out, err
}

// describe says what a VM is, looking into its disks.
func describe(dir string, f *vmFile) hv.VM {
	vm := hv.VM{VMInfo: f.VMInfo, State: f.state(dir), Adapters: f.Adapters, Dir: dir, Busy: f.recovery() != nil, Served: f.served(dir)}
	for _, c := range f.Checkpoints {
		if c.Kind == kindUser {
			vm.Checkpoints++
		}
	}
	for i := range f.Disks {
		e := &f.Disks[i]
		m, err := e.meta(dir, e.Path)
		if err != nil {
			vm.Skipped = append(vm.Skipped, hv.Skipped{Name: e.Name, Reason: err.Error()})
			continue
		}
		vm.Disks = append(vm.Disks, m)
	}
	return vm
}

// state returns "running" for a VM that is said to run or whose disk is being served.
func (f *vmFile) state(dir string) string {
	if f.served(dir) {
		return stateRunning
	}
	return f.State
}

// served reports whether a program serves a disk of the VM.
func (f *vmFile) served(dir string) bool {
	return slices.ContainsFunc(f.Disks, func(d diskEntry) bool { return isTaken(filepath.Join(dir, serverLock(d.ID))) })
}

func (f *vmFile) disk(id holdfast.DiskID) *diskEntry {
	for i := range f.Disks {
		if f.Disks[i].ID == id {
			return &f.Disks[i]
		}
	}
	return nil
}

// meta describes a disk as it is in one of its files.
func (e *diskEntry) meta(dir, file string) (holdfast.Disk, error) {
	i, err := diskInfo(filepath.Join(dir, file))
	if err != nil {
		return holdfast.Disk{}, err
	}
	return holdfast.Disk{ID: e.ID, Name: e.Name, Size: i.Size, Format: i.Format, Subformat: i.Subformat, BlockSize: i.BlockSize,
		LogicalSector: i.LogicalSector, PhysicalSector: i.PhysicalSector, Controller: e.Controller, ControllerNo: e.ControllerNo, Slot: e.Slot}, nil
}

// diskInfo opens a disk file with its chain and describes it.
func diskInfo(path string) (vhdx.Info, error) {
	d, err := vhdx.Open(path)
	if err != nil {
		return vhdx.Info{}, err
	}
	i := d.Info()
	return i, d.Close()
}

// each calls fn with every VM's folder. A folder without vm.json is no VM. A VM whose vm.json cannot be read is an error, for
// it must not be passed over in silence.
func (h *Host) each(fn func(dir string, f *vmFile) error) error {
	dirs, err := h.folders()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		f, err := loadVM(dir)
		if holdfast.KindOf(err) == holdfast.NotExist {
			continue
		}
		if err == nil {
			err = fn(dir, f)
		}
		if err != nil {
			return holdfast.Errorf(holdfast.KindOf(err), "VM in "+dir, "%w", err)
		}
	}
	return nil
}

// folders lists where VMs can be.
func (h *Host) folders() ([]string, error) {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return nil, fileError("list VMs", err)
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(h.dir, e.Name()))
		}
	}
	reg, err := h.registered()
	if err != nil {
		return nil, err
	}
	for _, dir := range reg {
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// registered returns the folders of VMs outside the lab folder.
func (h *Host) registered() ([]string, error) {
	b, err := readBounded(filepath.Join(h.dir, registeredName), maxRegisterBytes)
	if holdfast.KindOf(err) == holdfast.NotExist {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var dirs []string
	if err := json.Unmarshal(b, &dirs); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read "+registeredName, "%w", err)
	}
	return dirs, nil
}

// register makes a VM's folder known if it is not one of the lab's own. The caller holds the registerGate.
func (h *Host) register(dir string) error {
	if filepath.Dir(dir) == h.dir {
		return nil
	}
	dirs, err := h.registered()
	if err != nil || slices.Contains(dirs, dir) {
		return err
	}
	// Folders that are gone make room.
	dirs = slices.DeleteFunc(dirs, func(d string) bool { _, err := os.Stat(d); return errors.Is(err, os.ErrNotExist) })
	if len(dirs) >= maxRegistered {
		return holdfast.Errorf(holdfast.NoSpace, "register VM", "%d VMs outside the lab folder; at most %d are kept", len(dirs), maxRegistered)
	}
	b, err := json.MarshalIndent(append(dirs, dir), "", "  ")
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, "register VM", "%w", err)
	}
	return replaceFile(filepath.Join(h.dir, registeredName), append(b, '\n'))
}

// find finds a VM by its id, the name of its folder, or its name if only one has it.
func (h *Host) find(vm string) (string, *vmFile, error) {
	var dirs []string
	var files []*vmFile
	id, idErr := holdfast.ParseID(vm)
	err := h.each(func(dir string, f *vmFile) error {
		if (idErr == nil && f.ID.ID == id) || filepath.Base(dir) == vm || f.Name == vm {
			dirs, files = append(dirs, dir), append(files, f)
		}
		return nil
	})
	if err != nil {
		return "", nil, err
	}
	switch len(dirs) {
	case 0:
		return "", nil, holdfast.Errorf(holdfast.NotExist, "find VM", "there is no VM %q in the lab", vm).Advise("holdfast-agent lab list shows the VMs")
	case 1:
		return dirs[0], files[0], nil
	}
	return "", nil, holdfast.Errorf(holdfast.Invalid, "find VM", "%d VMs are called %q", len(dirs), vm).Advise("name it by its id")
}

func (h *Host) findID(id holdfast.VMID) (string, error) {
	dir, _, err := h.find(id.String())
	return dir, err
}

// change runs fn with a VM's vm.json while nobody uses its disks, then saves what fn changed. A merge that was begun is
// finished first, and files that vm.json does not name are removed before and after.
func (h *Host) change(ctx context.Context, dir string, fn func(*vmFile) error) error {
	gate, err := waitLock(ctx, h.clock, dir, gateName, exclusive)
	if err != nil {
		return err
	}
	defer gate.unlock()
	use, err := waitLock(ctx, h.clock, dir, useName, exclusive)
	if err != nil {
		return err
	}
	defer use.unlock()
	f, err := loadVM(dir)
	if err != nil {
		return err
	}
	if err := h.finishMerge(dir, f); err != nil {
		return err
	}
	if err := sweep(dir, f); err != nil {
		return err
	}
	if err := fn(f); err != nil {
		// What the failed change had made so far is not named by vm.json.
		if f, lerr := loadVM(dir); lerr == nil {
			err = errors.Join(err, sweep(dir, f))
		}
		return err
	}
	return sweep(dir, f)
}

// edit runs fn with a VM's vm.json and saves it. Disks may be in use.
func (h *Host) edit(ctx context.Context, dir string, fn func(*vmFile) error) error {
	gate, err := waitLock(ctx, h.clock, dir, gateName, exclusive)
	if err != nil {
		return err
	}
	defer gate.unlock()
	f, err := loadVM(dir)
	if err != nil {
		return err
	}
	if err := fn(f); err != nil {
		return err
	}
	return f.save(dir)
}
