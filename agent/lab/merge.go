package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

// endCheckpoint merges the recovery checkpoint with the id; it is no error if there is none any more. First vm.json says
// that the merge has begun, so that whoever comes after a kill finishes it in the same way.
func (h *Host) endCheckpoint(ctx context.Context, dir string, id holdfast.ID, m merging) error {
	return h.change(ctx, dir, func(f *vmFile) error {
		cp := f.recovery()
		if cp == nil || cp.ID != id {
			return nil
		}
		m.Checkpoint = id
		slow, err := f.takeSlowMerge()
		if err != nil {
			return err
		}
		m.Slow = slow
		f.Merging = &m
		if err := f.save(dir); err != nil {
			return err
		}
		return h.finishMerge(dir, f)
	})
}

// finishMerge does what Merging says. It can be stopped and begun again at any point: merging twice changes nothing, and
// vm.json is switched in one step. Called with the VM's locks.
func (h *Host) finishMerge(dir string, f *vmFile) error {
	m := f.Merging
	if m == nil {
		return nil
	}
	next := *f
	next.Disks = append([]diskEntry(nil), f.Disks...)
	for i := range next.Disks {
		d := &next.Disks[i]
		if err := settle(dir, f.Epoch, d); err != nil {
			return err
		}
		if err := vhdx.Merge(filepath.Join(dir, d.Path)); err != nil {
			return holdfast.Errorf(holdfast.KindOf(err), "merge disk "+d.Name, "%w", err)
		}
		d.setChain(append([]string(nil), d.Parents...))
	}
	next.Checkpoints = nil
	for _, c := range f.Checkpoints {
		if c.ID != m.Checkpoint {
			next.Checkpoints = append(next.Checkpoints, c)
		}
	}
	if m.Commit {
		next.Older = f.references()
		next.Older = slices.Clone(next.Older[:min(len(next.Older), maxOlder)])
		next.Reference = m.Reference
	}
	if m.Slow > 0 {
		next.BusyUntil = h.clock.Now().UTC().Add(m.Slow)
	}
	next.Merging = nil
	if err := next.save(dir); err != nil {
		return err
	}
	*f = next
	return sweep(dir, f)
}

// overlayMark is in the names of the differencing disks that we make, and of no other files.
const overlayMark = ".hf-"

func overlayName(disk string, checkpoint holdfast.ID) string {
	ext := filepath.Ext(disk)
	return strings.TrimSuffix(disk, ext) + overlayMark + checkpoint.String() + ".avhdx"
}

func isOverlay(name string) bool {
	rest, ok := strings.CutSuffix(name, ".avhdx")
	i := strings.LastIndex(rest, overlayMark)
	if !ok || i < 0 {
		return false
	}
	_, err := holdfast.ParseID(rest[i+len(overlayMark):])
	return err == nil
}

// sweep removes the files of ours that vm.json does not name: overlays, change tracking records and locks that a killed
// process left before or after it switched vm.json. Called with the VM's locks.
func sweep(dir string, f *vmFile) error {
	live := make(map[string]bool)
	for i := range f.Disks {
		for _, name := range f.Disks[i].chain() {
			live[name] = true
		}
		live[serverLock(f.Disks[i].ID)] = true
	}
	for _, c := range f.Checkpoints {
		live[ownerLock(c.ID)] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fileError("sweep", err)
	}
	var errs []error
	for _, e := range entries {
		name := e.Name()
		lock := strings.HasPrefix(name, ".checkpoint-") || strings.HasPrefix(name, ".served-")
		switch {
		case live[name] || e.IsDir():
		case lock:
			errs = append(errs, removeFreeLock(filepath.Join(dir, name)))
		case isOverlay(name):
			errs = append(errs, remove(filepath.Join(dir, name)))
		}
	}
	return errors.Join(append(errs, sweepTracking(dir, f))...)
}

// sweepTracking removes records of epochs that no reference point needs.
func sweepTracking(dir string, f *vmFile) error {
	first := f.Epoch
	for _, r := range f.references() {
		first = min(first, r.Epoch)
	}
	if cp := f.recovery(); cp != nil {
		first = min(first, cp.Epoch) // its Commit makes this the reference
	}
	entries, err := os.ReadDir(filepath.Join(dir, trackingDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fileError("sweep", err)
	}
	var errs []error
	for _, e := range entries {
		rest, ok := strings.CutSuffix(e.Name(), ".track")
		if !ok || len(rest) < 38 {
			continue
		}
		var id holdfast.DiskID
		epoch, err := strconv.ParseUint(rest[37:], 10, 64)
		if err != nil || id.UnmarshalText([]byte(rest[:36])) != nil {
			continue
		}
		if f.disk(id) == nil || epoch < first || epoch > f.Epoch {
			errs = append(errs, remove(filepath.Join(dir, trackingDir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// removeFreeLock removes a lock file that nobody holds.
func removeFreeLock(path string) error {
	l, err := tryLock(path, exclusive)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	l.unlock()
	return remove(path)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fileError("remove", err)
	}
	return nil
}

// discardDead discards a recovery checkpoint whose owner is dead. One with a living owner is left alone.
func (h *Host) discardDead(ctx context.Context, dir string) error {
	f, err := loadVM(dir)
	if err != nil {
		return err
	}
	cp := f.recovery()
	if cp == nil {
		return nil
	}
	l, err := tryLock(filepath.Join(dir, ownerLock(cp.ID)), exclusive)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.unlock()
	return h.endCheckpoint(ctx, dir, cp.ID, merging{})
}

// Leftovers lists recovery checkpoints and restores whose owner is dead, and VMs with files of checkpoints that vm.json does not name: their
// owner was killed right before or after it switched vm.json.
func (h *Host) Leftovers(context.Context) ([]hv.Leftover, error) {
	var out []hv.Leftover
	err := h.each(func(dir string, f *vmFile) error {
		cp := f.recovery()
		if cp == nil {
			if stray, err := f.strays(dir); err != nil || !stray {
				return err
			}
			out = append(out, &strayFiles{host: h, dir: dir, vm: f.ID})
			return nil
		}
		if isTaken(filepath.Join(dir, ownerLock(cp.ID))) {
			return nil
		}
		out = append(out, &leftover{host: h, dir: dir, vm: f.ID, tag: cp.Tag})
		return nil
	})
	if err != nil {
		return nil, err
	}
	restores, err := h.deadRestores()
	return append(out, restores...), err
}

type leftover struct {
	host *Host
	dir  string
	vm   holdfast.VMID
	tag  string
}

func (l *leftover) VM() holdfast.VMID { return l.vm }
func (l *leftover) Tag() string       { return l.tag }

// Discard merges what the dead owner left, or finishes the merge that it had begun.
func (l *leftover) Discard(ctx context.Context) error { return l.host.discardDead(ctx, l.dir) }

// strays tells whether the folder has overlays that vm.json does not name.
func (f *vmFile) strays(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, fileError("look for leftovers", err)
	}
	live := make(map[string]bool)
	for i := range f.Disks {
		for _, name := range f.Disks[i].chain() {
			live[name] = true
		}
	}
	for _, e := range entries {
		if isOverlay(e.Name()) && !live[e.Name()] {
			return true, nil
		}
	}
	return false, nil
}

// strayFiles are files of a checkpoint that vm.json does not name.
type strayFiles struct {
	host *Host
	dir  string
	vm   holdfast.VMID
}

func (l *strayFiles) VM() holdfast.VMID { return l.vm }
func (l *strayFiles) Tag() string       { return "" }

// Discard removes them. Every change of a VM does so; under its locks, what a living owner is making is named by vm.json or not there yet.
func (l *strayFiles) Discard(ctx context.Context) error {
	return l.host.change(ctx, l.dir, func(*vmFile) error { return nil })
}
