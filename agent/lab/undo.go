package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
)

const (
	restoresDir  = ".restores" // in the lab folder: TAG.json and TAG.lock of each restore under way
	undoSuffix   = ".json"
	ownerSuffix  = ".lock"
	maxUndoBytes = 4 << 20
)

// An undo says what a restore makes and what it makes superfluous. It is durable before the first of it is made, and goes when the restore
// is over. Whether it is over well is in vm.json: Restored is the tag.
type undo struct {
	Tag  string        `json:"tag"`
	Dir  string        `json:"dir"` // of the VM
	VM   holdfast.VMID `json:"vm"`
	Made []string      `json:"made,omitempty"` // folders that were not there, outermost first
	New  []string      `json:"new"`            // files, absolute
	Old  []string      `json:"old,omitempty"`  // files that are nothing any more once the restore is over
}

func (h *Host) undoPath(tag, suffix string) string {
	return filepath.Join(h.dir, restoresDir, tag+suffix)
}

// write makes the undo durable.
func (u *undo) write(h *Host) error {
	b, err := json.Marshal(u)
	if err != nil || len(b) > maxUndoBytes {
		return holdfast.Errorf(holdfast.Invalid, "note restore", "%d bytes, %v", len(b), err)
	}
	return replaceFile(h.undoPath(u.Tag, undoSuffix), b)
}

// begin takes the lock of the restore, which says that it lives, and writes the undo.
func (u *undo) begin(h *Host) (*fileLock, error) {
	if err := os.MkdirAll(filepath.Join(h.dir, restoresDir), 0o700); err != nil {
		return nil, fileError("note restore", err)
	}
	l, err := tryLock(h.undoPath(u.Tag, ownerSuffix), exclusive)
	if errors.Is(err, errLocked) {
		return nil, holdfast.Errorf(holdfast.Busy, "note restore", "a restore with the tag %s is under way", u.Tag)
	}
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(h.undoPath(u.Tag, undoSuffix)); err == nil {
		l.unlock()
		return nil, holdfast.Errorf(holdfast.Exist, "note restore", "a restore with the tag %s was left by a killed process", u.Tag).
			Advise("start the agent once: it removes what a killed one left")
	}
	if err := u.write(h); err != nil {
		l.end(h.undoPath(u.Tag, ownerSuffix))
		return nil, err
	}
	return l, nil
}

// finish removes what is not needed: what was made, or, where vm.json says that the restore is over, what it replaced. It can be repeated.
func (u *undo) finish(h *Host) error {
	f, err := loadVM(u.Dir)
	if err != nil && holdfast.KindOf(err) != holdfast.NotExist {
		return err // not known what is needed
	}
	gone := u.New
	named := map[string]bool{}
	if f != nil {
		for i := range f.Disks {
			for _, name := range f.Disks[i].chain() {
				for _, p := range realFiles(filepath.Join(u.Dir, name)) {
					named[p] = true
				}
			}
		}
		if f.Restored == u.Tag {
			gone = u.Old
		}
	}
	var errs []error
	for _, p := range gone {
		if !named[p] {
			errs = append(errs, remove(p))
		}
	}
	if f == nil && slices.Contains(u.Made, u.Dir) {
		errs = append(errs, os.RemoveAll(filepath.Join(u.Dir, trackingDir)), remove(filepath.Join(u.Dir, vmFileName+".tmp")))
	}
	if f == nil || f.Restored != u.Tag {
		for _, dir := range slices.Backward(u.Made) {
			// A folder that somebody else has put something into meanwhile stays.
			if entries, err := os.ReadDir(dir); err == nil && len(entries) == 0 {
				errs = append(errs, remove(dir))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return remove(h.undoPath(u.Tag, undoSuffix))
}

// realFiles returns a path and, where that is a link to a file elsewhere, the file.
func realFiles(path string) []string {
	if to, err := os.Readlink(path); err == nil {
		return []string{path, to}
	}
	return []string{path}
}

// missing returns the folders of a path that are not there, outermost first.
func missing(dir string) []string {
	var out []string
	for {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			break
		}
		out = append(out, dir)
		dir = filepath.Dir(dir)
	}
	slices.Reverse(out)
	return out
}

// deadRestores lists restores whose process is gone.
func (h *Host) deadRestores() ([]hv.Leftover, error) {
	entries, err := os.ReadDir(filepath.Join(h.dir, restoresDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fileError("list restores", err)
	}
	var out []hv.Leftover
	for _, e := range entries {
		tag, ok := strings.CutSuffix(e.Name(), undoSuffix)
		if !ok || isTaken(h.undoPath(tag, ownerSuffix)) {
			continue
		}
		u, err := h.readUndo(tag)
		if holdfast.KindOf(err) == holdfast.NotExist {
			continue // it has ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, &deadRestore{h, u})
	}
	return out, nil
}

func (h *Host) readUndo(tag string) (*undo, error) {
	b, err := readBounded(h.undoPath(tag, undoSuffix), maxUndoBytes)
	if err != nil {
		return nil, err
	}
	var u undo
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&u); err != nil || u.Tag != tag || !filepath.IsAbs(u.Dir) {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read restore", "%s: %v", tag, err)
	}
	return &u, nil
}

// A deadRestore is what a killed restore left.
type deadRestore struct {
	host *Host
	u    *undo
}

func (l *deadRestore) VM() holdfast.VMID { return l.u.VM }
func (l *deadRestore) Tag() string       { return l.u.Tag }

// Discard removes it, unless its owner has turned up.
func (l *deadRestore) Discard(context.Context) error {
	path := l.host.undoPath(l.u.Tag, ownerSuffix)
	lock, err := tryLock(path, exclusive)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.end(path)
	u, err := l.host.readUndo(l.u.Tag) // it may name more files by now
	if holdfast.KindOf(err) == holdfast.NotExist {
		return nil
	}
	if err != nil {
		return err
	}
	return u.finish(l.host)
}
