package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

// manifestOf describes a checkpoint as a backup would.
func manifestOf(t *testing.T, vm hv.VM, cp hv.Checkpoint) holdfast.Manifest {
	t.Helper()
	m := holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewID()}, VM: vm.VMInfo, Kind: holdfast.Full}
	for _, d := range cp.Disks() {
		m.Disks = append(m.Disks, d.Meta())
	}
	var err error
	if m.Attachments, err = cp.Config(t.Context()); err != nil || len(m.Attachments) != 1 {
		t.Fatalf("config: %v, %v", m.Attachments, err)
	}
	return m
}

// restore writes every disk of a plan with the bytes of a checkpoint and realizes it.
func restore(t *testing.T, h *Host, p hv.RestorePlan, data map[holdfast.DiskID][]byte) (hv.Realized, error) {
	t.Helper()
	pl, err := h.CreateVM(t.Context(), p)
	if err != nil {
		return hv.Realized{}, err
	}
	for _, d := range p.Manifest.Disks {
		w, err := pl.Disk(t.Context(), d.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pl.Realize(t.Context()); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("Realize before Finish: %v", err)
		}
		if _, err := w.WriteAt(data[d.ID], 0); err != nil {
			t.Fatal(err)
		}
		must(t, w.Finish())
		must(t, w.Abort())
	}
	vm, err := pl.Realize(t.Context())
	if err == nil {
		must(t, pl.Discard(t.Context()))
	}
	return vm, err
}

// TestRestoredVMIsTheSame restores a VM of every kind of disk inside the lab, next to it and outside, with new and old ids.
func TestRestoredVMIsTheSame(t *testing.T) {
	h, vm := newLab(t, makeDisk(t, small, 1, vhdx.CreateOptions{}), makeDisk(t, small, 2, vhdx.CreateOptions{Subformat: "fixed", BlockSize: 2 << 20}),
		makeDisk(t, small, 3, vhdx.CreateOptions{LogicalSector: 4096}))
	if _, err := h.UserCheckpoint(t.Context(), "vm"); err != nil {
		t.Fatal(err)
	}
	write(t, h, vm, 0, 4096, random(8, 8192))
	cp := h.mustCheckpoint(t, vm)
	m := manifestOf(t, vm, cp)
	data := make(map[holdfast.DiskID][]byte)
	for _, d := range cp.Disks() {
		data[d.Meta().ID] = frozen(t, d)
	}
	must(t, cp.Discard(t.Context()))
	if m.Disks[0].Subformat != "differencing" || m.Disks[0].Name != "disk1.vhdx" {
		t.Errorf("a disk on a user checkpoint is %+v", m.Disks[0])
	}
	if _, err := restore(t, h, hv.RestorePlan{Manifest: m, Dir: h.dir, Name: "same", KeepID: true}, data); holdfast.KindOf(err) != holdfast.Exist {
		t.Errorf("the id of a VM that is there: %v, want exists", err)
	}
	if _, err := restore(t, h, hv.RestorePlan{Manifest: m, Dir: filepath.Join(h.dir, "vm")}, data); holdfast.KindOf(err) != holdfast.Exist {
		t.Errorf("the folder of another VM: %v, want exists", err)
	}
	outside := filepath.Join(t.TempDir(), "a", "b")
	for _, p := range []hv.RestorePlan{{Dir: h.dir, Name: "in"}, {Dir: filepath.Join(h.dir, "folder"), Name: "named"}, {Dir: outside, Name: "outside"}} {
		p.Manifest = m
		got, err := restore(t, h, p, data)
		must(t, err)
		if got.Name != p.Name || got.ID == vm.ID || got.State != stateOff || len(got.Disks) != 3 || len(got.Skipped) != 0 {
			t.Fatalf("restored %+v", got)
		}
		cp := h.mustCheckpoint(t, got.VM)
		if cp.Level() != holdfast.OffConsistent {
			t.Errorf("level %q", cp.Level())
		}
		for i, d := range cp.Disks() {
			was, is := m.Disks[i], d.Meta()
			if !bytes.Equal(frozen(t, d), data[was.ID]) {
				t.Errorf("%s: disk %d differs", p.Name, i)
			}
			if is.LogicalSector != was.LogicalSector || is.BlockSize != was.BlockSize || is.ID == was.ID || is.Slot != was.Slot || is.Controller != was.Controller {
				t.Errorf("disk %+v became %+v", was, is)
			}
		}
		must(t, cp.Discard(t.Context()))
	}
	vms, err := h.VMs(t.Context())
	if err != nil || len(vms) != 4 {
		t.Errorf("%d VMs, %v", len(vms), err)
	}
	must(t, os.RemoveAll(filepath.Join(h.dir, "vm")))
	must(t, os.RemoveAll(outside))
	got, err := restore(t, h, hv.RestorePlan{Manifest: m, Dir: h.dir, KeepID: true}, data)
	if err != nil || got.ID != vm.ID || got.Name != "vm" || got.Disks[0].ID != m.Disks[0].ID {
		t.Errorf("with its old id: %+v, %v", got, err)
	}
}

func TestDiscardedRestoreLeavesNothing(t *testing.T) {
	h, vm := newLab(t, makeDisk(t, small, 1, vhdx.CreateOptions{}), makeDisk(t, small, 2, vhdx.CreateOptions{}))
	cp := h.mustCheckpoint(t, vm)
	m := manifestOf(t, vm, cp)
	must(t, cp.Discard(t.Context()))
	m.Disks[0].Name, m.Disks[1].Name = "../../evil.vhdx", "checkpoint_ABC.avhdx"
	made, kept := filepath.Join(t.TempDir(), "new"), t.TempDir()
	must(t, os.WriteFile(filepath.Join(kept, "mine.txt"), nil, 0o600))
	for _, dir := range []string{made, kept} {
		pl, err := h.CreateVM(t.Context(), hv.RestorePlan{Manifest: m, Dir: dir})
		must(t, err)
		for i, d := range m.Disks {
			w, err := pl.Disk(t.Context(), d.ID)
			must(t, err)
			if i == 0 {
				must(t, w.Finish())
			}
		}
		if _, err := pl.Disk(t.Context(), m.Disks[0].ID); holdfast.KindOf(err) != holdfast.Exist {
			t.Errorf("a disk twice: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, "checkpoint_ABC.vhdx")); err != nil {
			t.Error(err)
		}
		must(t, pl.Discard(t.Context()))
		must(t, pl.Discard(t.Context()))
	}
	if _, err := os.Stat(made); !os.IsNotExist(err) {
		t.Errorf("the folder is left: %v", err)
	}
	if e, err := os.ReadDir(kept); err != nil || len(e) != 1 {
		t.Errorf("in a folder that was there: %v, %v", e, err)
	}
	vms, err := h.VMs(t.Context())
	if err != nil || len(vms) != 1 {
		t.Errorf("%d VMs, %v", len(vms), err)
	}
}

func TestNewVMTakesChainsAndPlacesDisks(t *testing.T) {
	base := makeDisk(t, small, 1, vhdx.CreateOptions{})
	child := filepath.Join(filepath.Dir(base), "child.avhdx")
	w, err := vhdx.Create(child, vhdx.CreateOptions{Subformat: "differencing", Parent: base})
	must(t, err)
	if _, err := w.WriteAt(random(7, 4096), 512); err != nil {
		t.Fatal(err)
	}
	must(t, w.Finish())
	h, err := Open(t.TempDir())
	must(t, err)
	other := makeDisk(t, small, 2, vhdx.CreateOptions{})
	vm, err := h.NewVM(t.Context(), CreateOptions{Name: "one", Generation: 1, Disks: []string{child, other, other, other, other}, Take: TakeCopy})
	must(t, err)
	must(t, os.RemoveAll(filepath.Dir(base))) // the copy stands alone
	ids := make(map[holdfast.DiskID]bool)
	for i, d := range vm.Disks {
		ids[d.ID] = true
		c, no, slot := place(1, i)
		if d.Controller != c || d.ControllerNo != no || d.Slot != slot {
			t.Errorf("disk %d is at %s %d:%d", i, d.Controller, d.ControllerNo, d.Slot)
		}
	}
	if len(vm.Disks) != 5 || len(ids) != 5 || vm.Disks[4].Controller != "scsi" || vm.Disks[0].Subformat != "differencing" {
		t.Errorf("disks %+v, skipped %+v", vm.Disks, vm.Skipped)
	}
	cp := h.mustCheckpoint(t, vm)
	want := append(append(random(1, small/8)[:512], random(7, 4096)...), random(1, small/8)[4608:]...)
	if got := frozen(t, cp.Disks()[0]); !bytes.Equal(got[:small/8], want) {
		t.Error("the chain reads differently")
	}
	if _, err := h.Clone(t.Context(), "one", "two"); holdfast.KindOf(err) != holdfast.Busy {
		t.Errorf("a clone during a backup: %v", err)
	}
	must(t, cp.Discard(t.Context()))
	two, err := h.Clone(t.Context(), "one", "two")
	must(t, err)
	for _, d := range two.Disks {
		if ids[d.ID] {
			t.Errorf("the clone has disk id %s, too", d.ID)
		}
	}
	for _, o := range []CreateOptions{{Name: "../x"}, {Name: "three", Generation: 3}} {
		if _, err := h.NewVM(t.Context(), o); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%+v: %v, want invalid", o, err)
		}
	}
	if _, err := h.NewVM(t.Context(), CreateOptions{Name: "four", Disks: []string{"not there.vhdx"}}); holdfast.KindOf(err) != holdfast.NotExist {
		t.Errorf("a missing disk: %v", err)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "four")); !os.IsNotExist(err) {
		t.Errorf("a failed VM left its folder: %v", err)
	}
}

func TestSkippedDisksAreNamed(t *testing.T) {
	h, _ := newLab(t, makeDisk(t, small, 1, vhdx.CreateOptions{}), makeDisk(t, small, 2, vhdx.CreateOptions{}))
	must(t, os.WriteFile(filepath.Join(h.dir, "vm", "disk2.vhdx"), []byte("no disk"), 0o600))
	vms, err := h.VMs(t.Context())
	if err != nil || len(vms[0].Disks) != 1 || len(vms[0].Skipped) != 1 || vms[0].Skipped[0].Name != "disk2.vhdx" || vms[0].Skipped[0].Reason == "" {
		t.Errorf("%+v, %v", vms, err)
	}
}
