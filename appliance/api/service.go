package api

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// Service is what the appliance can do; the assembly implements it. Errors carry a holdfast.Kind. Things are named by name or id;
// an ambiguous name is Invalid and the error lists the candidates.
type Service interface {
	Health(ctx context.Context) Health
	Status(ctx context.Context) (Status, error)

	Pools(ctx context.Context) ([]Pool, error)
	Pool(ctx context.Context, name string) (Pool, error)
	CreatePool(ctx context.Context, s PoolSpec) (Pool, error)
	// ImportPool takes over a pool that is already there, with its own id, and begins to list its sets.
	ImportPool(ctx context.Context, s PoolSpec) (Imported, error)
	SetPool(ctx context.Context, name string, c PoolChange) (PoolChanged, error)
	// DeletePool removes a pool without sets from its place; forget takes it off the appliance and leaves it, and its sets, where they are.
	DeletePool(ctx context.Context, name string, forget bool) (Pool, error)
	// VerifyPool, CollectPool, RecompressPool, CheckPool, VerifySet and RebuildCatalog start runs; Run.Result has the report at the end: a
	// VerifyReport, CollectReport, RecompressReport, CheckReport or Rebuilt.
	VerifyPool(ctx context.Context, name string) (Run, error)
	CollectPool(ctx context.Context, name string, dryRun bool) (Run, error)
	RecompressPool(ctx context.Context, name string, limit int64) (Run, error)
	// PoolSpace says where a pool's bytes are. It reads every set's map. Unsupported for kinds of pools that share nothing.
	PoolSpace(ctx context.Context, name string) (PoolSpace, error)
	CheckPool(ctx context.Context, name string) (Run, error)

	Hosts(ctx context.Context) ([]Host, error)
	EnrollHost(ctx context.Context, name string) (EnrolKey, error)
	RemoveHost(ctx context.Context, name string) (Host, error)
	VMs(ctx context.Context) ([]VM, error)

	Backup(ctx context.Context, s BackupSpec) (Run, error)
	Restorer
	Mounter
	Runs(ctx context.Context, limit int) ([]Run, error)
	// Run returns a run; it waits for its end, but not longer than wait.
	Run(ctx context.Context, id string, wait time.Duration) (Run, error)
	CancelRun(ctx context.Context, id string) (Run, error)

	Sets(ctx context.Context, f SetFilter) ([]Set, error)
	Set(ctx context.Context, id string) (Set, error)
	VerifySet(ctx context.Context, id string) (Run, error)
	DeleteSet(ctx context.Context, id string) (Set, error)
	// ExportDisk opens a disk for streaming; the stream's form is ingest/wire's parcel stream.
	ExportDisk(ctx context.Context, id string, disk int) (Export, error)

	Jobs
	Networks
	Retention

	RebuildCatalog(ctx context.Context) (Run, error)
	// Events yields the events after a sequence number and then new ones as they come, until ctx ends.
	Events(ctx context.Context, after uint64) iter.Seq2[Event, error]
	// LastEvent returns the newest event's sequence number.
	LastEvent(ctx context.Context) (uint64, error)
}

// SetFilter narrows a list of sets. Empty fields match everything.
type SetFilter struct{ VM, Pool string }

// An Export writes a disk to w. It is called once. What goes wrong is in the stream, too.
type Export func(ctx context.Context, w io.Writer) error

// Agents is what agents may ask for; the principal's host is passed by the door.
type Agents interface {
	// Enroll exchanges an access key for a certificate. It is the one call that needs no certificate.
	Enroll(ctx context.Context, remote string, r wire.EnrollRequest) (wire.EnrollResponse, error)
	Inventory(ctx context.Context, h AgentHost, inv wire.Inventory) error
	// Tasks sends notices until ctx ends or send fails. The host is Online for as long as it runs.
	Tasks(ctx context.Context, h AgentHost, send func(wire.Notice) error) error
	Report(ctx context.Context, h AgentHost, rs []wire.Report) error
}

// AgentHost is the host whose agent speaks, as its certificate says.
type AgentHost struct {
	ID   holdfast.HostID
	Name string
}
