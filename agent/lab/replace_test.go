package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

// begun begins a restore and finishes as many of its disks.
func begun(t *testing.T, h *Host, p hv.RestorePlan, finish int) *planned {
	t.Helper()
	vm, err := h.CreateVM(t.Context(), p)
	must(t, err)
	for i, d := range p.Manifest.Disks {
		w, err := vm.Disk(t.Context(), d.ID)
		must(t, err)
		if _, err := w.WriteAt(random(uint64(50+i), 8192), 4096); err != nil {
			t.Fatal(err)
		}
		if i < finish {
			must(t, w.Finish())
		}
	}
	return vm.(*planned)
}

// die ends a restore as a kill of its process would: its files are closed, its lock is free, and nothing is cleaned up.
func (p *planned) die() {
	for _, d := range p.disks {
		if d.started && !d.finished {
			link := d.path + ".kept" // Abort removes the file's name
			_ = os.Link(d.path, link)
			_ = d.w.Abort()
			_ = os.Rename(link, d.path)
		}
	}
	p.lock.unlock()
}

// leftover finds what a tag left, and discards it.
func discardTag(t *testing.T, h *Host, tag string) {
	t.Helper()
	left, err := h.Leftovers(t.Context())
	must(t, err)
	i := slices.IndexFunc(left, func(l hv.Leftover) bool { return l.Tag() == tag })
	if i < 0 {
		t.Fatalf("nothing is left of %s: %v", tag, left)
	}
	must(t, left[i].Discard(t.Context()))
	must(t, left[i].Discard(t.Context()))
	if left, err := h.Leftovers(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("after it was discarded: %v, %v", left, err)
	}
}

// TestAKilledRestoreIsRemovedByTheNextStart: a new VM with a disk elsewhere, an overwrite, and a disk; killed before anything is finished, before the
// commit, and after it. A restore whose owner lives is no leftover.
func TestAKilledRestoreIsRemovedByTheNextStart(t *testing.T) {
	h, vm := newLab(t, makeDisk(t, small, 1, vhdx.CreateOptions{}), makeDisk(t, small, 2, vhdx.CreateOptions{}))
	cp := h.mustCheckpoint(t, vm)
	m := manifestOf(t, vm, cp)
	must(t, cp.Discard(t.Context()))
	one := m
	one.Disks = m.Disks[1:]
	far := filepath.Join(t.TempDir(), "far", "away")
	files := func() []string {
		out, err := filepath.Glob(filepath.Join(h.dir, "*", "*.vhdx"))
		must(t, err)
		return out
	}
	before := files()
	for name, p := range map[string]hv.RestorePlan{
		"new":     {Manifest: m, Dir: filepath.Join(h.dir, "new"), DiskDirs: map[holdfast.DiskID]string{m.Disks[1].ID: far}},
		"replace": {Manifest: m, Replace: vm.ID, Shutdown: true},
		"disk":    {Manifest: one, Into: vm.ID, Overwrite: m.Disks[1].ID, Shutdown: true, DiskDirs: map[holdfast.DiskID]string{m.Disks[1].ID: far}},
	} {
		for _, finish := range []int{0, len(p.Manifest.Disks)} {
			p.Tag = name
			pl := begun(t, h, p, finish)
			if left, err := h.Leftovers(t.Context()); err != nil || len(left) != 0 {
				t.Fatalf("%s lives and is a leftover: %v, %v", name, left, err)
			}
			if _, err := h.CreateVM(t.Context(), p); holdfast.KindOf(err) != holdfast.Busy && holdfast.KindOf(err) != holdfast.Exist {
				t.Errorf("%s: the tag of a restore under way: %v", name, err)
			}
			pl.die()
			discardTag(t, h, name)
			if now := files(); !slices.Equal(now, before) {
				t.Errorf("%s with %d disks finished: %v", name, finish, now)
			}
			for _, dir := range []string{filepath.Join(h.dir, "new"), filepath.Dir(far)} {
				if _, err := os.Lstat(dir); !os.IsNotExist(err) {
					t.Errorf("%s: %s is left: %v", name, dir, err)
				}
			}
		}
	}
	// Killed between the commit and the removal of what was replaced.
	p := hv.RestorePlan{Manifest: m, Replace: vm.ID, Shutdown: true, Tag: "late", Reference: true}
	pl := begun(t, h, p, len(m.Disks))
	made, err := pl.realizeChange(t.Context())
	must(t, err)
	if len(files()) != 2*len(before) {
		t.Errorf("old and new: %v", files())
	}
	pl.die()
	discardTag(t, h, "late")
	if len(files()) != len(before) || made.ID != vm.ID || len(made.Tokens) != 2 {
		t.Errorf("%v; %+v", files(), made)
	}
	cp = h.mustCheckpoint(t, made.VM)
	for i, d := range cp.Disks() {
		want := make([]byte, d.Meta().Size)
		copy(want[4096:], random(uint64(50+i), 8192))
		if !bytes.Equal(frozen(t, d), want) || d.Meta().ID != m.Disks[i].ID {
			t.Errorf("disk %d is not what was restored", i)
		}
		if es, err := d.Changes(t.Context(), made.Tokens[d.Meta().ID]); err != nil || len(es) != 0 {
			t.Errorf("changed since the restore: %v, %v", es, err)
		}
	}
	must(t, cp.Discard(t.Context()))
}

// TestWhatAHypervisorRefusesToReplace: a VM that runs, has checkpoints, is being backed up; a disk that is not there. The VM stays as it is.
func TestWhatAHypervisorRefusesToReplace(t *testing.T) {
	h, vm := newLab(t, makeDisk(t, small, 1, vhdx.CreateOptions{}))
	cp := h.mustCheckpoint(t, vm)
	m := manifestOf(t, vm, cp)
	p := hv.RestorePlan{Manifest: m, Replace: vm.ID, Shutdown: true}
	refused := func(what string, p hv.RestorePlan, kind holdfast.Kind) {
		t.Helper()
		if _, err := h.CreateVM(t.Context(), p); holdfast.KindOf(err) != kind {
			t.Errorf("%s: %v, want %v", what, err, kind)
		}
	}
	refused("being backed up", p, holdfast.Busy)
	must(t, cp.Discard(t.Context()))
	refused("running", hv.RestorePlan{Manifest: m, Replace: vm.ID}, holdfast.Busy)
	refused("no such VM", hv.RestorePlan{Manifest: m, Replace: holdfast.VMID{ID: holdfast.NewID()}}, holdfast.NotExist)
	refused("no such disk", hv.RestorePlan{Manifest: m, Into: vm.ID, Overwrite: holdfast.DiskID{ID: holdfast.NewID()}, Shutdown: true}, holdfast.NotExist)
	pl := begun(t, h, p, 1)
	if _, err := h.UserCheckpoint(t.Context(), "vm"); err != nil {
		t.Fatal(err)
	}
	refused("checkpoints", p, holdfast.Busy)
	if _, err := pl.Realize(t.Context()); holdfast.KindOf(err) != holdfast.Busy {
		t.Errorf("a checkpoint that came meanwhile: %v", err)
	}
	must(t, pl.Discard(t.Context()))
	if vms, err := h.VMs(t.Context()); err != nil || len(vms) != 1 || vms[0].State != stateRunning || vms[0].Checkpoints != 1 || len(vms[0].Skipped) > 0 {
		t.Errorf("%+v, %v", vms, err)
	}
}
