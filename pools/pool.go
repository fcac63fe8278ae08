// Package pools says what a storage pool is: the one interface behind which dedup, standard, object, tape and LAN-free
// storage live, what a driver is, and what can be done with any of them (Copy, Verify).
//
// A pool stores backup sets; its currency is the compression group of chunks. Bytes (Put) and meaning (Place) travel
// apart: Put gives the pool chunks, Place says which extents of a disk they fill. On a read the pool chooses the order and the
// receiver places the bytes, so that one Read serves disk, object storage and tape.
//
// Pool and its parts have optional interfaces (below) and are never wrapped in decorators: metering is done at ingest, throttling
// at the agent and ingest, faults are injected below, in fsys or blob stores.
package pools

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// A Pool keeps backup sets on one kind of storage. Methods are safe for concurrent use. A set becomes visible only by
// Session.Commit, whole or not at all, and survives a crash from then on. Errors carry a holdfast.Kind.
type Pool interface {
	// Traits says what the pool is; constant while it is open, no I/O.
	Traits() Traits
	// Begin starts writing a set. m.ID must be new (else Exist); m.Disks must be complete; m.Parent, if any, must be a
	// committed set (else NotExist) and is kept readable until the session ends. May wait for a drive.
	Begin(ctx context.Context, m holdfast.Manifest) (Session, error)
	// Open opens a committed set for reading. Its bytes stay readable until Set.Close, even if it is deleted meanwhile.
	// It never waits for media: Offline, and Stager helps.
	Open(ctx context.Context, id holdfast.SetID) (Set, error)
	// Delete makes a set invisible. Durable when it returns; idempotent. No other set changes, in whatever order sets go.
	Delete(ctx context.Context, id holdfast.SetID) error
	// Sets lists what the pool itself knows, read from the medium: what the catalog is rebuilt from. A set that cannot be read
	// is yielded as an error, and the listing goes on.
	Sets(ctx context.Context) iter.Seq2[holdfast.Manifest, error]
	Usage(ctx context.Context) (Usage, error)
	// Close ends the pool's use. Sessions and sets must be closed before.
	io.Closer
}

// A Session writes one set. Methods are safe for concurrent use.
type Session interface {
	// Disk opens one of the manifest's disks for writing, once (else Exist). At most Traits.Streams are open at a time (else Busy).
	Disk(ctx context.Context, id holdfast.DiskID) (DiskWriter, error)
	// Commit makes the set durable and visible: the only promise of durability a session gives. All disk writers must be
	// closed. m is the final manifest: ID, Parent and the disks' ID, Size and Inherit as at Begin; the rest may have been filled in.
	// The pool sets the Stored counts. After an error the set is not there and the session is aborted.
	Commit(ctx context.Context, m holdfast.Manifest) (Receipt, error)
	// Abort drops everything. Idempotent, a no-op after Commit. A session whose process dies is aborted by the next Open of the pool.
	Abort(ctx context.Context) error
}

// A DiskWriter receives one disk. Not safe for concurrent use; different writers of a session are.
// Ranges never placed are inherited from the parent set's disk where holdfast.Disk.Inherit is set, else zeros.
type DiskWriter interface {
	// Missing sets missing[i] where the pool does not hold the chunk ds[i]. Chunks it holds are pinned until Commit or Abort, and
	// may be placed without a Put. len(missing) must be len(ds).
	Missing(ctx context.Context, ds []holdfast.Digest, missing []bool) error
	// Put stores chunks. The caller has checked the bounds, decoded the group and verified every digest in the pool's domain.
	// A chunk that is already there is not stored again where that saves bytes. g.Payload is the caller's again on return.
	Put(ctx context.Context, g *holdfast.Group) error
	// Place says what the disk holds: refs in ascending order, non-overlapping, inside the disk, also across calls (else
	// Invalid). Every chunk named was Put in this session or answered as present by Missing (else NotExist, here or at Commit).
	Place(ctx context.Context, refs []holdfast.Ref) error
	// Close ends the disk. A writer that is not closed fails the Commit.
	Close(ctx context.Context) error
}

// A Set reads one committed set as full images, whatever it was written as. Methods are safe for concurrent use.
type Set interface {
	Manifest() holdfast.Manifest
	// Map lists what a disk holds by offset: data and explicit zeros; gaps are zeros too.
	Map(ctx context.Context, d holdfast.DiskID) iter.Seq2[holdfast.Ref, error]
	// Read delivers every data byte of the wanted extents (normal list) exactly once, in the pool's order, reading ahead.
	// Zeros are not delivered. The receiver decodes and verifies (chunk.Open) and releases each parcel, in any
	// order and from any goroutine; the pool may wait for releases once a bounded number of parcels is out. Stop after an error.
	Read(ctx context.Context, d holdfast.DiskID, want holdfast.Extents) iter.Seq2[*holdfast.Parcel, error]
	io.Closer
}

// Traits is what a pool is, as data. The conformance suite checks that traits and behaviour agree.
type Traits struct {
	Kind     string            `json:"kind"`     // the driver's
	ID       holdfast.PoolID   `json:"id"`       // of this pool, from its superblock
	Streams  int               `json:"streams"`  // disk writers open at a time, over all sessions; 0: no bound
	Order    Order             `json:"order"`    // of Read
	Dedup    bool              `json:"dedup"`    // chunks are shared between sets
	Direct   bool              `json:"direct"`   // agents can reach the medium themselves (Lessor, Locator)
	Offline  bool              `json:"offline"`  // sets can be on media that are not loaded (Stager)
	Chunking holdfast.Chunking `json:"chunking"` // how disks are to be cut
	Domain   holdfast.Domain   `json:"-"`        // of the digests; secret
}

// Order is the order in which Read delivers.
type Order string

const (
	ByOffset Order = "offset" // ascending disk offset, roughly
	ByMedium Order = "medium" // as the bytes lie
)

// Usage is a pool's space, in bytes.
type Usage struct {
	Sets        int   `json:"sets"`
	Logical     int64 `json:"logical"`     // sum of the sets' virtual sizes
	Data        int64 `json:"data"`        // plaintext bytes of unique chunks held
	Stored      int64 `json:"stored"`      // what they take, with all overhead
	Reclaimable int64 `json:"reclaimable"` // of Stored: what a Collect would give back, as known now; may lag
	Free        int64 `json:"free"`        // left on the medium
	Size        int64 `json:"size"`        // of the medium
	Chunks      int64 `json:"chunks"`
}

// Receipt is what a committed set cost.
type Receipt struct {
	Manifest holdfast.Manifest // as committed, with the Stored counts
}

// The optional interfaces. They are found by type assertion on the pool (or set, or session).
type (
	// A Collector gives the space of deleted sets back.
	Collector interface {
		// Collect frees what no set needs. It may run beside sessions and reads, can be interrupted by ctx or a crash at any
		// point, fails closed on anything it cannot read, and needs no free space to free whole containers.
		Collect(ctx context.Context, o CollectOptions) (CollectReport, error)
	}
	// A Verifier checks what it stores faster than by reading every set (Verify is the generic way).
	Verifier interface {
		// Verify reads stored bytes back from the medium and checks them. Damage is not an error of the call: it is in the report.
		Verify(ctx context.Context, o VerifyOptions) (VerifyReport, error)
	}
	// A Stager brings sets on offline media to where they can be read.
	Stager interface {
		Stage(ctx context.Context, ids ...holdfast.SetID) (Staging, error)
	}
	// A Staging is a request for media.
	Staging interface {
		Needs() []Medium                // not there yet
		Wait(ctx context.Context) error // until all are there
		Release()
	}
	// A Holder makes sets immutable until a date, which can only be extended.
	Holder interface {
		Hold(ctx context.Context, id holdfast.SetID, until time.Time, mode HoldMode) error
	}
)

// Medium names a piece of removable storage.
type Medium struct{ Label, Place string }

// HoldMode says who may lift a hold.
type HoldMode string

const (
	Governance HoldMode = "governance" // a security officer
	Compliance HoldMode = "compliance" // nobody
)

// CollectOptions steers a Collect.
type CollectOptions struct {
	DryRun   bool                  // say what would be freed
	Progress func(done, all int64) // steps; may be nil
}

// CollectReport is what a Collect did, or would do.
type CollectReport struct {
	ChunksLive int64 `json:"chunks_live"`
	ChunksDead int64 `json:"chunks_dead"`
	Removed    int   `json:"containers_removed"`
	Rewritten  int   `json:"containers_rewritten"`
	Freed      int64 `json:"freed"`   // bytes
	Copied     int64 `json:"copied"`  // bytes
	Pending    int64 `json:"pending"` // bytes that wait for readers or a later Collect
}

// VerifyOptions steers a Verify.
type VerifyOptions struct {
	Sets     []holdfast.SetID      // only these; all when empty
	Progress func(done, all int64) // bytes; may be nil
}

// Damage is a stored thing that is not what it was.
type Damage struct {
	Where   string            `json:"where"`             // container, object, tape block
	Digest  holdfast.Digest   `json:"digest,omitzero"`   // the chunk, if one
	Set     holdfast.SetID    `json:"set,omitzero"`      // a set that needs it
	VM      string            `json:"vm,omitempty"`      // its VM's name
	Disk    string            `json:"disk,omitempty"`    // the disk's name
	Extents []holdfast.Extent `json:"extents,omitempty"` // of that disk
	Text    string            `json:"text"`
}

// VerifyReport is what a Verify found.
type VerifyReport struct {
	Sets    int      `json:"sets"`
	Chunks  int64    `json:"chunks"`
	Bytes   int64    `json:"bytes"` // stored bytes read
	Damaged []Damage `json:"damaged"`
}
