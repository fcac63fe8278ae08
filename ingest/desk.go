package ingest

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// A Desk knows the tasks that were given to agents. It is implemented by the appliance and is safe for concurrent use.
type Desk interface {
	// Backup returns what a host may do for a backup task. Permission if the task was not given to that very host.
	Backup(ctx context.Context, host holdfast.HostID, task holdfast.TaskID) (BackupGrant, error)
	// Restore returns what a host may read for a restore task. Permission as above.
	Restore(ctx context.Context, host holdfast.HostID, task holdfast.TaskID) (RestoreGrant, error)
}

// A BackupGrant lets a host write one set of one VM into one pool.
type BackupGrant struct {
	Pool         pools.Pool
	PoolID       holdfast.PoolID
	VM           holdfast.VMInfo
	Run          holdfast.RunID
	HostName     string
	Full         bool   // read everything, whatever there is to build on
	Differential bool   // build on the newest full set instead of the newest of all
	Compression  string // off, fast, default, better; "": default

	// Meter, if set, returns the meter of a disk: payload bytes are counted as Sent, placed bytes as Done. It may return nil.
	Meter func(holdfast.DiskID) *holdfast.Meter
	// Spent, if set, is called before Ended with how long the session waited for the agent, and how long its disks waited for the pool.
	Spent func(agent, pool time.Duration)
	// Ended, if set, is called once when the session is over: with the committed manifest (without attachments) or the error.
	Ended func(holdfast.Manifest, error)
}

// A RestoreGrant lets a host read one set.
type RestoreGrant struct {
	Pool  pools.Pool
	Set   holdfast.SetID
	Disks []holdfast.DiskID // only these; empty: all

	// Ended, if set, is called once when the session is over; nil means that the agent said it has everything.
	Ended func(error)
}
