package lab

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

const small = 4 << 20

// changesAfter takes a checkpoint and asks for the changes since a token.
func changesAfter(t *testing.T, h *Host, vm hv.VM, tokens map[holdfast.DiskID]string) (holdfast.Extents, error) {
	t.Helper()
	cp := h.mustCheckpoint(t, vm)
	d := cp.Disks()[0]
	es, err := d.Changes(t.Context(), tokens[d.Meta().ID])
	if derr := cp.Discard(t.Context()); derr != nil {
		t.Fatal(derr)
	}
	return es, err
}

// TestFaultsOfChanges sets each fault of change tracking: it is met once, by all disks, and then gone.
func TestFaultsOfChanges(t *testing.T) {
	h, vm := newLab(t, makeDisk(t, small, 1, vhdx.CreateOptions{}), makeDisk(t, small, 2, vhdx.CreateOptions{}))
	tokens := tokensOf(t, h, vm)
	write(t, h, vm, 0, 1<<20, random(3, 4096))
	for fault, want := range map[string]error{FaultTrackingLost: hv.ErrTrackingLost, FaultIDUnknown: hv.ErrTokenUnknown,
		FaultResized: hv.ErrResized, FaultSwapped: hv.ErrTokenUnknown, FaultReverted: hv.ErrReverted} {
		if err := h.SetFault(t.Context(), "vm", fault, ""); err != nil {
			t.Fatal(err)
		}
		cp := h.mustCheckpoint(t, vm)
		for _, d := range cp.Disks() {
			if _, err := d.Changes(t.Context(), tokens[d.Meta().ID]); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", fault, err, want)
			}
		}
		if err := cp.Discard(t.Context()); err != nil {
			t.Fatal(err)
		}
		es, err := changesAfter(t, h, vm, tokens)
		if err != nil || es.Total() != granularity || es[0].Off != 1<<20 {
			t.Errorf("after %s: %v, %v", fault, es, err)
		}
	}
	if err := h.SetFault(t.Context(), "vm", FaultWideRanges, "always"); err != nil {
		t.Fatal(err)
	}
	wide, err := changesAfter(t, h, vm, tokens)
	if n := wide.Normal(small); err != nil || n.Total() <= granularity || len(n.Intersect(holdfast.Extents{{Off: 1 << 20, Len: 4096}})) != 1 {
		t.Errorf("wide ranges: %v, %v", wide, err)
	}
}

func TestFaultOfCheckpointLeavesNothing(t *testing.T) {
	h, vm := newLab(t, makeDisk(t, small, 1, vhdx.CreateOptions{}))
	if err := h.SetFault(t.Context(), "vm", FaultCheckpoint, "2"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := h.Checkpoint(t.Context(), vm.ID, hv.CheckpointOptions{}); holdfast.KindOf(err) != holdfast.Transient {
			t.Errorf("%v, want transient", err)
		}
		onlyOurFiles(t, h, 0)
	}
	cp := h.mustCheckpoint(t, vm)
	if _, err := h.Checkpoint(t.Context(), vm.ID, hv.CheckpointOptions{}); holdfast.KindOf(err) != holdfast.Busy {
		t.Errorf("a second backup: %v, want busy", err)
	}
	if err := cp.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
	onlyOurFiles(t, h, 0)
	locks, _ := filepath.Glob(filepath.Join(h.dir, "vm", ".checkpoint-*"))
	if len(locks) != 0 {
		t.Errorf("left: %v", locks)
	}
}

func TestLevelsOfConsistency(t *testing.T) {
	h, vm := newLab(t, makeDisk(t, small, 1, vhdx.CreateOptions{}))
	off, err := h.NewVM(t.Context(), CreateOptions{Name: "off", Off: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		vm    hv.VM
		level hv.Level
		fault bool
		want  holdfast.Consistency
	}{
		{"running", vm, hv.LevelAuto, false, holdfast.AppConsistent},
		{"applications required", vm, hv.LevelApp, false, holdfast.AppConsistent},
		{"crash wanted", vm, hv.LevelCrash, true, holdfast.CrashConsistent},
		{"fallback", vm, hv.LevelAuto, true, holdfast.CrashConsistent},
		{"required and failed", vm, hv.LevelApp, true, ""},
		{"off", off, hv.LevelAuto, true, holdfast.OffConsistent},
	} {
		value := faultOff
		if tc.fault {
			value = faultAlways
		}
		if err := h.SetFault(t.Context(), tc.vm.ID.String(), FaultApp, value); err != nil {
			t.Fatal(err)
		}
		cp, err := h.Checkpoint(t.Context(), tc.vm.ID, hv.CheckpointOptions{Level: tc.level})
		if tc.want == "" {
			if err == nil {
				t.Errorf("%s: no error", tc.name)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if cp.Level() != tc.want || (cp.Note() != "") != (tc.name == "fallback") {
			t.Errorf("%s: level %q, note %q", tc.name, cp.Level(), cp.Note())
		}
		if err := cp.Discard(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestQuiesceHookPlaysTheGuest(t *testing.T) {
	h, vm := newLab(t)
	h.Quiesce = func(_ context.Context, i holdfast.VMInfo) error { return errors.New("no answer from " + i.Name) }
	cp := h.mustCheckpoint(t, vm)
	if cp.Level() != holdfast.CrashConsistent || !strings.Contains(cp.Note(), "no answer from vm") {
		t.Errorf("level %q, note %q", cp.Level(), cp.Note())
	}
	if err := cp.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestSlowMergeMakesReadersWait runs on a fake clock.
func TestSlowMergeMakesReadersWait(t *testing.T) {
	disk := makeDisk(t, small, 1, vhdx.CreateOptions{})
	h, vm := newLab(t, disk)
	synctest.Test(t, func(t *testing.T) {
		if err := h.SetFault(t.Context(), "vm", FaultSlowMerge, "3s"); err != nil {
			t.Fatal(err)
		}
		tokensOf(t, h, vm)
		cp := h.mustCheckpoint(t, vm)
		if _, err := cp.Disks()[0].Open(t.Context()); holdfast.KindOf(err) != holdfast.Busy {
			t.Errorf("during the merge: %v, want busy", err)
		}
		tick, _ := h.clock.After(3 * time.Second)
		<-tick
		frozen(t, cp.Disks()[0])
		if err := cp.Discard(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSetFaultRefusesNonsense(t *testing.T) {
	h, _ := newLab(t)
	for _, tc := range [][2]string{{"nonsense", ""}, {FaultTrackingLost, "0"}, {FaultTrackingLost, "often"}, {FaultSlowMerge, ""}, {FaultSlowMerge, "1000h"}} {
		if err := h.SetFault(t.Context(), "vm", tc[0], tc[1]); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%v: %v, want invalid", tc, err)
		}
	}
	if err := h.SetFault(t.Context(), "other", FaultApp, ""); holdfast.KindOf(err) != holdfast.NotExist {
		t.Errorf("an unknown VM: %v", err)
	}
}

// TestRealOperationsEndTracking does what the faults only play, and damage that nobody announced.
func TestRealOperationsEndTracking(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, h *Host, vm hv.VM)
		want error
	}{
		{"resize", func(t *testing.T, h *Host, vm hv.VM) { must(t, h.Resize(t.Context(), "vm", 0, 2*small)) }, hv.ErrResized},
		{"revert", func(t *testing.T, h *Host, vm hv.VM) {
			if _, err := h.UserCheckpoint(t.Context(), "vm"); err != nil {
				t.Fatal(err)
			}
			must(t, h.Revert(t.Context(), "vm", holdfast.ID{}))
		}, hv.ErrReverted},
		{"swap", func(t *testing.T, h *Host, vm hv.VM) {
			must(t, h.Swap(t.Context(), "vm", 0, makeDisk(t, small, 9, vhdx.CreateOptions{})))
		}, hv.ErrTokenUnknown},
		{"a write around the record", func(t *testing.T, h *Host, vm hv.VM) {
			out, err := exec.Command("qemu-io", "-f", "vhdx", "-c", "write -P 5 2M 64k", filepath.Join(h.dir, "vm", "disk1.vhdx")).CombinedOutput()
			if err != nil {
				t.Fatalf("qemu-io (of qemu-utils): %v\n%s", err, out)
			}
		}, hv.ErrTokenUnknown},
		{"an older copy of the file put back", func(t *testing.T, h *Host, vm hv.VM) {
			path := filepath.Join(h.dir, "vm", "disk1.vhdx")
			old, err := os.ReadFile(path)
			must(t, err)
			write(t, h, vm, 0, 0, random(1, 512))
			must(t, os.WriteFile(path, old, 0o600))
		}, hv.ErrTokenUnknown},
		{"the record removed", func(t *testing.T, h *Host, vm hv.VM) { must(t, os.RemoveAll(filepath.Join(h.dir, "vm", trackingDir))) }, hv.ErrTrackingLost},
		{"the record damaged", func(t *testing.T, h *Host, vm hv.VM) {
			names, _ := filepath.Glob(filepath.Join(h.dir, "vm", trackingDir, "*"))
			for _, n := range names {
				must(t, os.WriteFile(n, []byte("damaged"), 0o600))
			}
		}, hv.ErrTrackingLost},
		{"nothing", func(*testing.T, *Host, hv.VM) {}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, vm := newLab(t, makeDisk(t, small, 1, vhdx.CreateOptions{}))
			tokens := tokensOf(t, h, vm)
			write(t, h, vm, 0, 1<<20, random(3, 4096))
			tc.do(t, h, vm)
			if _, err := changesAfter(t, h, vm, tokens); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			// And tracking works again from the next reference point on.
			again := tokensOf(t, h, vm)
			write(t, h, vm, 0, 0, random(4, 512))
			if es, err := changesAfter(t, h, vm, again); err != nil || es.Total() != granularity {
				t.Errorf("afterwards: %v, %v", es, err)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRevertBringsTheBytesBack applies checkpoints in a random walk of writes, with a backup in between.
func TestRevertBringsTheBytesBack(t *testing.T) {
	h, vm := newLab(t, makeDisk(t, small, 1, vhdx.CreateOptions{}))
	read := func() []byte {
		cp := h.mustCheckpoint(t, vm)
		b := frozen(t, cp.Disks()[0])
		must(t, cp.Discard(t.Context()))
		return b
	}
	first := read()
	a, err := h.UserCheckpoint(t.Context(), "vm")
	must(t, err)
	write(t, h, vm, 0, 0, random(5, 100000))
	second := read()
	if _, err := h.UserCheckpoint(t.Context(), "vm"); err != nil {
		t.Fatal(err)
	}
	write(t, h, vm, 0, 1<<20, random(6, 100000))
	tokensOf(t, h, vm)
	must(t, h.Revert(t.Context(), "vm", holdfast.ID{}))
	if !bytes.Equal(read(), second) {
		t.Error("the last checkpoint did not come back")
	}
	cp := h.mustCheckpoint(t, vm)
	for name, err := range map[string]error{"revert": h.Revert(t.Context(), "vm", a), "resize": h.Resize(t.Context(), "vm", 0, 2*small),
		"swap": h.Swap(t.Context(), "vm", 0, "x")} {
		if holdfast.KindOf(err) != holdfast.Busy {
			t.Errorf("%s during a backup: %v, want busy", name, err)
		}
	}
	must(t, cp.Discard(t.Context()))
	must(t, h.Revert(t.Context(), "vm", a))
	if !bytes.Equal(read(), first) {
		t.Error("the first checkpoint did not come back")
	}
	onlyOurFiles(t, h, 1)
	if err := h.Resize(t.Context(), "vm", 0, 2*small); holdfast.KindOf(err) != holdfast.Busy {
		t.Errorf("resize with checkpoints: %v, want busy", err)
	}
	if err := h.Revert(t.Context(), "vm", holdfast.NewID()); holdfast.KindOf(err) != holdfast.NotExist {
		t.Errorf("an unknown checkpoint: %v", err)
	}
}
