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
	// Survey looks at folders in which a restore is to put files. It leaves nothing in them.
	Survey(ctx context.Context, dirs []string) ([]Folder, error)
	// CreateVM starts building a VM from a model, or replacing a VM or a disk; nothing of it shows until Realize. What is left of it when
	// its process is killed is among the Leftovers, with the plan's Tag.
	CreateVM(ctx context.Context, p RestorePlan) (PlannedVM, error)
}

// A Folder is what Survey found. The folder itself need not be there yet: then the rest is about where it would be made.
type Folder struct {
	Dir     string   `json:"dir"`
	Exists  bool     `json:"exists,omitempty"`
	Problem string   `json:"problem,omitempty"` // why no file can be made in it; "": one can
	Free    int64    `json:"free"`              // bytes; -1: not known
	Volume  string   `json:"volume,omitempty"`  // folders of one volume share its free bytes
	Files   []string `json:"files,omitempty"`   // what is in it, at most MaxFolderFiles names
}

// MaxFolderFiles bounds the names of a Folder.
const MaxFolderFiles = 1000

// HostInfo describes the host.
type HostInfo struct {
	Name    string `json:"name"`
	Product string `json:"product"` // "Holdfast lab host", "Hyper-V 2022"
	Version string `json:"version"`

	Switches  []string `json:"switches,omitempty"`   // virtual switches
	VMVersion string   `json:"vm_version,omitempty"` // the highest configuration version of a VM that it runs; "": not known
}

// VM describes a virtual machine and its disks.
type VM struct {
	holdfast.VMInfo
	State   string          `json:"state"` // "running" or "off"
	Disks   []holdfast.Disk `json:"disks"`
	Skipped []Skipped       `json:"skipped,omitempty"` // disks that cannot be backed up

	Adapters    []holdfast.Adapter `json:"adapters,omitempty"`
	Checkpoints int                `json:"checkpoints,omitempty"` // that people took; not a backup's own
	Busy        bool               `json:"busy,omitempty"`        // a backup's checkpoint is there
	Served      bool               `json:"served,omitempty"`      // another program has a disk open for writing
	Dir         string             `json:"dir,omitempty"`         // folder of its files
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

// RestorePlan describes a VM to be built. With Replace, it takes the place of a VM that is there, under that one's id; with Into, its one disk
// becomes a disk of a VM that is there, and nothing else of that VM changes.
type RestorePlan struct {
	Manifest holdfast.Manifest // of the set, attachments included
	Dir      string            // absolute folder on the host for the VM's files
	Name     string            // of the new VM; "" keeps the old one
	KeepID   bool              // keep the VM's and the disks' ids (the original is gone) instead of new ones

	Tag       string                     // names the task; how leftovers are found
	DiskDirs  map[holdfast.DiskID]string // absolute folders for single disks
	Adapters  []holdfast.Adapter         // of the new VM
	Replace   holdfast.VMID              // the VM to be replaced
	Into      holdfast.VMID              // the VM that gets the disk
	Overwrite holdfast.DiskID            // with Into: the disk that is replaced; zero: the disk is added
	Shutdown  bool                       // the VM of Replace or Into may be shut down; else it must be off
	Reference bool                       // the restored moment shall become a reference point, if the host can
	Start     bool                       // start the VM
}

// Realized is a VM that a restore has made or changed.
type Realized struct {
	VM
	Tokens map[holdfast.DiskID]string // of the reference point, if one was asked for and could be made
	Note   string                     // what could not be done although the VM is there
}

// A PlannedVM is a VM under construction. Exactly one of Realize and Discard ends it; Discard after Realize is a no-op.
type PlannedVM interface {
	// Disk creates the file of one of the manifest's disks, reading as zeros, for writing.
	Disk(ctx context.Context, id holdfast.DiskID) (DiskWriter, error)
	// Realize makes the VM show on the host. Every disk must be finished. A VM that is replaced is shut down here and not before; until then
	// it is untouched, and so it stays if Realize fails.
	Realize(ctx context.Context) (Realized, error)
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
