package lab

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast"
)

const (
	vmFileName     = "vm.json"
	vmFileFormat   = 1
	maxVMFileBytes = 1 << 20 // far above what a VM with all its disks and checkpoints takes
)

// A vmFile is vm.json: all there is to know of a VM. docs/formats/lab.md explains the fields.
type vmFile struct {
	Format int `json:"format"`
	holdfast.VMInfo
	State       string             `json:"state"`
	Revision    uint64             `json:"revision"` // counts the versions of this file
	Epoch       uint64             `json:"epoch"`    // the change tracking epoch that writes go to now
	Disks       []diskEntry        `json:"disks"`
	Adapters    []holdfast.Adapter `json:"adapters,omitempty"`
	Restored    string             `json:"restored,omitempty"` // tag of the restore that last changed the VM
	Checkpoints []checkpointEntry  `json:"checkpoints,omitempty"`
	Reference   *reference         `json:"reference,omitempty"` // the newest
	Older       []*reference       `json:"older,omitempty"`     // that are still good to ask for, newest first; at most maxOlder
	Merging     *merging           `json:"merging,omitempty"`
	BusyUntil   time.Time          `json:"busy_until,omitzero"` // a slow merge: disks cannot be opened for reading until then
	Faults      map[string]string  `json:"faults,omitempty"`
}

// A diskEntry is a disk of the VM. Path and Parents are names of files in the VM's folder: the live file, then its ancestors.
type diskEntry struct {
	ID           holdfast.DiskID `json:"id"`
	Name         string          `json:"name"` // what the disk is called, whatever its live file is
	Path         string          `json:"path"`
	Parents      []string        `json:"parents,omitempty"`
	Controller   string          `json:"controller"`
	ControllerNo int             `json:"controller_no"`
	Slot         int             `json:"slot"`
}

// Kinds of checkpoints.
const (
	kindRecovery = "recovery" // a backup's; at most one, and its file is always right below the live one
	kindUser     = "user"
)

// A checkpointEntry is a checkpoint that exists.
type checkpointEntry struct {
	ID      holdfast.ID                `json:"id"`
	Kind    string                     `json:"kind"`
	Tag     string                     `json:"tag,omitempty"`
	Created time.Time                  `json:"created"`
	Epoch   uint64                     `json:"epoch"` // the first epoch after it
	Frozen  map[holdfast.DiskID]string `json:"frozen"`
}

// maxOlder bounds the older reference points that are kept: a differential backup asks what changed since the last full one, with a month of
// daily incrementals between. Each costs a change tracking record of every disk: 4 MiB for a TiB.
const maxOlder = 31

// references returns all reference points, newest first.
func (f *vmFile) references() []*reference {
	if f.Reference == nil {
		return f.Older
	}
	return append([]*reference{f.Reference}, f.Older...)
}

// forget takes a disk out of all reference points. They are copied: vmFiles share them.
func (f *vmFile) forget(ids ...holdfast.DiskID) {
	without := func(r *reference) *reference {
		next := &reference{Epoch: r.Epoch, Disks: make(map[holdfast.DiskID]*referencePoint)}
		for id, point := range r.Disks {
			if !slices.Contains(ids, id) {
				next.Disks[id] = point
			}
		}
		return next
	}
	if f.Reference != nil {
		f.Reference = without(f.Reference)
	}
	older := make([]*reference, 0, len(f.Older))
	for _, r := range f.Older {
		older = append(older, without(r))
	}
	f.Older = older
}

// A reference is our reference point: tokens that name the moment at which Epoch began.
type reference struct {
	Epoch uint64                              `json:"epoch"`
	Disks map[holdfast.DiskID]*referencePoint `json:"disks"`
}

// A referencePoint is the reference point of one disk. Lost, if set, is why the changes since are not known.
type referencePoint struct {
	Token string `json:"token"`
	Lost  string `json:"lost,omitempty"` // "reverted" or "resized"
}

// merging says that the recovery checkpoint is being merged and what holds afterwards.
type merging struct {
	Checkpoint holdfast.ID   `json:"checkpoint"`
	Commit     bool          `json:"commit,omitempty"`
	Reference  *reference    `json:"reference,omitempty"` // of a Commit
	Slow       time.Duration `json:"slow,omitempty"`      // how long disks stay busy afterwards
}

// chain returns the disk's files, the live one first.
func (d *diskEntry) chain() []string { return append([]string{d.Path}, d.Parents...) }

// setChain replaces the disk's files.
func (d *diskEntry) setChain(files []string) { d.Path, d.Parents = files[0], files[1:] }

// recovery returns the recovery checkpoint, or nil.
func (f *vmFile) recovery() *checkpointEntry {
	for i := range f.Checkpoints {
		if f.Checkpoints[i].Kind == kindRecovery {
			return &f.Checkpoints[i]
		}
	}
	return nil
}

// busy refuses what a hypervisor refuses while a VM is being backed up.
func (f *vmFile) busy(op string) error {
	if f.recovery() == nil {
		return nil
	}
	return holdfast.Errorf(holdfast.Busy, op, "VM %q is being backed up", f.Name).
		Advise("wait for the backup; if there is none, start the agent once: it removes what a killed one left")
}

// loadVM reads a VM's folder.
func loadVM(dir string) (*vmFile, error) {
	b, err := readBounded(filepath.Join(dir, vmFileName), maxVMFileBytes)
	if err != nil {
		return nil, err
	}
	return decodeVM(b)
}

// decodeVM reads vm.json and refuses one that could lead outside its folder or in circles.
func decodeVM(b []byte) (*vmFile, error) {
	const op = "read vm.json"
	var f vmFile
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	switch {
	case f.Format != vmFileFormat:
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "format %d; this program knows %d", f.Format, vmFileFormat)
	case f.ID.IsZero() || len(f.Disks) > holdfast.MaxDisks || len(f.Adapters) > holdfast.MaxAdapters:
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "no id, or %d disks, or %d adapters", len(f.Disks), len(f.Adapters))
	}
	ids, files := make(map[holdfast.DiskID]bool), make(map[string]bool)
	for i := range f.Disks {
		d := &f.Disks[i]
		if d.ID.IsZero() || ids[d.ID] {
			return nil, holdfast.Errorf(holdfast.Corrupt, op, "disk id %q is missing or there twice", d.ID)
		}
		ids[d.ID] = true
		for _, name := range d.chain() {
			if !isFileName(name) || files[strings.ToLower(name)] {
				return nil, holdfast.Errorf(holdfast.Corrupt, op, "%q is no name of a file, or there twice", name)
			}
			files[strings.ToLower(name)] = true
		}
	}
	for i := range f.Checkpoints {
		for _, name := range f.Checkpoints[i].Frozen {
			if !files[strings.ToLower(name)] {
				return nil, holdfast.Errorf(holdfast.Corrupt, op, "a checkpoint has file %q, which no disk has", name)
			}
		}
	}
	if f.Merging != nil && (f.recovery() == nil || f.recovery().ID != f.Merging.Checkpoint) {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "a merge of a checkpoint that is not there")
	}
	return &f, nil
}

// encode returns vm.json's bytes.
func (f *vmFile) encode() ([]byte, error) {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "write vm.json", "%w", err)
	}
	if len(b) >= maxVMFileBytes {
		return nil, holdfast.Errorf(holdfast.Invalid, "write vm.json", "%d bytes; at most %d are allowed", len(b), maxVMFileBytes)
	}
	return append(b, '\n'), nil
}

// save replaces vm.json atomically. The caller holds the gate.
func (f *vmFile) save(dir string) error {
	f.Revision++
	b, err := f.encode()
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, vmFileName), b)
}

// replaceFile makes a file hold b, whole or not at all, durable when it returns.
func replaceFile(path string, b []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fileError("write", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		if err = os.Rename(tmp, path); err == nil {
			err = syncDir(filepath.Dir(path))
		}
	}
	if err != nil {
		return fileError("write", err)
	}
	return nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError("read", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fileError("read", err)
	}
	if int64(len(b)) > limit {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read "+path, "more than %d bytes", limit)
	}
	return b, nil
}

// fileError classifies an error of the file system.
func fileError(op string, err error) error {
	kind := holdfast.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = holdfast.NotExist
	case errors.Is(err, fs.ErrExist):
		kind = holdfast.Exist
	case errors.Is(err, fs.ErrPermission):
		kind = holdfast.Permission
	case errors.Is(err, syscall.ENOSPC):
		kind = holdfast.NoSpace
	}
	return holdfast.Errorf(kind, op, "%w", err)
}

// isFileName accepts what names a file in a folder on every system, and nothing that could lead out of it.
func isFileName(s string) bool {
	return s != "" && len(s) <= 200 && s[0] != '.' && !strings.ContainsAny(s, "/\\:*?\"<>|\x00") && strings.TrimSpace(s) == s
}

// newToken returns a change tracking id.
func newToken() string { return "lab-" + rand.Text() }
