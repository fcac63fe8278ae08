// Package hv says what the agent needs of a hypervisor. agent/lab implements it over folders of VHDX files on any system; the
// Windows implementation speaks to Hyper-V. The agent core sees only this.
package hv

import (
	"context"
	"io"

	"github.com/holdfast-backup/holdfast"
)

// A Hypervisor is one host. Methods are safe for concurrent use. VMs are found by id, never by name.
type Hypervisor interface {
	Info(ctx context.Context) (HostInfo, error)
	VMs(ctx context.Context) ([]VM, error)
	// Checkpoint freezes a VM's disks. It leaves nothing behind when it fails. With LevelAuto a failed application-consistent
	// checkpoint falls back to a crash-consistent one, and Checkpoint.Note says why.
	Checkpoint(ctx context.Context, vm holdfast.VMID, o CheckpointOptions) (Checkpoint, error)
	// Leftovers lists checkpoints with our tag prefix that no running task of this process owns: what a killed agent left.
	Leftovers(ctx context.Context) ([]Leftover, error)
	// CreateVM starts building a VM from a model; nothing shows as a VM until Realize.
	CreateVM(ctx context.Context, p RestorePlan) (PlannedVM, error)
}

// HostInfo describes the host.
type HostInfo struct {
	Name    string `json:"name"`
	Product string `json:"product"` // "Holdfast lab host", "Hyper-V 2022"
	Version string `json:"version"`
}

// VM describes a virtual machine and its disks.
type VM struct {
	holdfast.VMInfo
	State   string          `json:"state"` // "running" or "off"
	Disks   []holdfast.Disk `json:"disks"`
	Skipped []Skipped       `json:"skipped,omitempty"` // disks that cannot be backed up
}

// Skipped is a disk that cannot be backed up, never passed over in silence.
type Skipped struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Level is the consistency asked for.
type Level string

const (
	LevelAuto    Level = "automatic"            // application, and crash if that fails
	LevelApp     Level = "application-required" // application or fail
	LevelCrash   Level = "crash"
	LevelDefault       = LevelAuto
)

// CheckpointOptions steers Checkpoint.
type CheckpointOptions struct {
	Level Level
	Tag   string // names the task; how leftovers are found
}

// A Checkpoint is a VM's frozen disks. Exactly one of Commit and Discard ends it; Discard after either is a no-op.
type Checkpoint interface {
	Level() holdfast.Consistency
	Note() string
	// Config returns the VM's configuration files as they were at the checkpoint.
	Config(ctx context.Context) ([]holdfast.Attachment, error)
	Disks() []FrozenDisk
	// Commit turns the checkpoint into a reference point: the disks merge, and the tokens name this moment for a later
	// Changes. The caller has the set safe on the appliance. Disks that cannot be tracked have no token.
	Commit(ctx context.Context) (map[holdfast.DiskID]string, error)
	// Discard merges the disks and forgets the moment; older reference points stay. Idempotent.
	Discard(ctx context.Context) error
}

// A FrozenDisk is one disk of a checkpoint.
type FrozenDisk interface {
	Meta() holdfast.Disk
	// Changes returns what may have changed since token's moment: a superset, in no order, of unknown granularity.
	// An error that Is one of the Err… below names why there is no answer; then the whole disk must be read.
	Changes(ctx context.Context, token string) (holdfast.Extents, error)
	// Allocated returns what may hold data; the rest reads as zeros. ErrUnknown: everything may.
	Allocated(ctx context.Context) (holdfast.Extents, error)
	// Open opens the frozen content. The reader is safe for concurrent use.
	Open(ctx context.Context) (Reader, error)
}

// Reader reads a frozen disk.
type Reader interface {
	io.ReaderAt
	io.Closer
}

// A Leftover is a checkpoint that a killed agent left behind.
type Leftover interface {
	VM() holdfast.VMID
	Tag() string
	Discard(ctx context.Context) error
}

// RestorePlan describes a VM to be built.
type RestorePlan struct {
	Manifest holdfast.Manifest // of the set, attachments included
	Dir      string            // absolute folder on the host for the VM's files
	Name     string            // of the new VM; "" keeps the old one
	KeepID   bool              // keep the VM's and the disks' ids (the original is gone) instead of new ones
}

// A PlannedVM is a VM under construction. Exactly one of Realize and Discard ends it; Discard after Realize is a no-op.
type PlannedVM interface {
	// Disk creates the file of one of the manifest's disks, reading as zeros, for writing.
	Disk(ctx context.Context, id holdfast.DiskID) (DiskWriter, error)
	// Realize makes the VM show on the host. Every disk must be finished.
	Realize(ctx context.Context) (VM, error)
	// Discard removes every file of it.
	Discard(ctx context.Context) error
}

// A DiskWriter writes a disk under construction. WriteAt is safe for concurrent use and order is free; offsets and lengths
// are multiples of 512.
type DiskWriter interface {
	io.WriterAt
	// Finish makes the disk whole and durable. Until then the file is not a valid disk.
	Finish() error
	// Abort removes the file. A no-op after Finish.
	Abort() error
}

// The reasons for which Changes has no answer. All are holdfast.Errors of kind Unsupported or NotExist.
var (
	ErrTrackingLost = holdfast.Errorf(holdfast.NotExist, "", "change tracking is off or its record is gone")
	ErrTokenUnknown = holdfast.Errorf(holdfast.NotExist, "", "the change tracking id is not known")
	ErrReverted     = holdfast.Errorf(holdfast.NotExist, "", "a checkpoint was applied since")
	ErrResized      = holdfast.Errorf(holdfast.NotExist, "", "the disk was resized since")
	ErrNoTracking   = holdfast.Errorf(holdfast.Unsupported, "", "this disk cannot be tracked")
	ErrUnknown      = holdfast.Errorf(holdfast.Unsupported, "", "the allocation of this disk is not known")
)
