package appliance

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// desk says what a task that an agent speaks of entitles it to. The job engine knows the tasks.
type desk struct{ d *Daemon }

// open finds the task and notes that a session of it has begun.
func (k desk) open(ctx context.Context, host holdfast.HostID, task holdfast.TaskID, kind string) (job.Assignment, int, error) {
	cancel, ok := ctx.Value(cancelKey{}).(context.CancelCauseFunc)
	if !ok {
		panic("a session without its cancel function") // serveLinks puts it there
	}
	a, no, err := k.d.jobs.Session(host, task, cancel)
	if err != nil {
		return a, no, err
	}
	if a.Kind != kind {
		k.d.jobs.SessionOver(task, no, nil)
		return a, no, holdfast.Errorf(holdfast.Permission, "open task", "task %s is a %s, not a %s", task, a.Kind, kind)
	}
	return a, no, nil
}

// Backup implements ingest.Desk.
func (k desk) Backup(ctx context.Context, host holdfast.HostID, task holdfast.TaskID) (ingest.BackupGrant, error) {
	a, no, err := k.open(ctx, host, task, wire.TaskBackup)
	if err != nil {
		return ingest.BackupGrant{}, err
	}
	over := func(m *holdfast.Manifest) { k.d.jobs.SessionOver(task, no, m) }
	if err := k.admit(ctx, a.Spec.Pool); err != nil {
		over(nil)
		return ingest.BackupGrant{}, err
	}
	pool, err := k.d.shelf.Pool(ctx, a.Spec.Pool)
	if err != nil {
		over(nil)
		return ingest.BackupGrant{}, err
	}
	rec, err := k.d.service.poolRecord(a.Spec.Pool.String())
	if err == nil {
		err = k.d.service.mayWrite(ctx, rec, pool)
	}
	if err != nil {
		over(nil)
		return ingest.BackupGrant{}, err
	}
	vm := holdfast.VMInfo{ID: a.VM, Name: a.VMName}
	err = k.d.cat.View(func(tx *catalog.Tx) error {
		rec, err := tx.VM(a.VM)
		if errors.Is(err, holdfast.NotExist) {
			return nil // gone from the host's list; the agent will say so
		}
		vm.Name, vm.Generation = rec.Name, rec.Generation
		return err
	})
	if err != nil {
		over(nil)
		return ingest.BackupGrant{}, err
	}
	return ingest.BackupGrant{
		Pool: pool, PoolID: a.Spec.Pool, VM: vm, Run: a.Run, HostName: a.HostName, Full: a.Spec.Full, Compression: a.Spec.Compress,
		Differential: a.Spec.Type == job.TypeDifferential,
		Spent:        func(agent, pool time.Duration) { k.d.jobs.Spent(task, agent, pool) },
		Ended: func(m holdfast.Manifest, err error) {
			if err != nil {
				over(nil)
				return
			}
			if text := k.d.costs.take(m.ID); text != "" {
				k.d.jobs.Note(task, text)
			}
			over(&m)
		},
	}, nil
}

// Restore implements ingest.Desk.
func (k desk) Restore(ctx context.Context, host holdfast.HostID, task holdfast.TaskID) (ingest.RestoreGrant, error) {
	a, no, err := k.open(ctx, host, task, wire.TaskRestore)
	if err != nil {
		return ingest.RestoreGrant{}, err
	}
	x := a.Spec.Restores[a.VM]
	if x == nil {
		k.d.jobs.SessionOver(task, no, nil)
		return ingest.RestoreGrant{}, holdfast.Errorf(holdfast.Internal, "open task", "task %s does not say what it restores", task)
	}
	pool, err := k.d.shelf.Pool(ctx, x.Pool)
	if err != nil {
		k.d.jobs.SessionOver(task, no, nil)
		return ingest.RestoreGrant{}, err
	}
	g := ingest.RestoreGrant{Pool: pool, Set: x.Set, Ended: func(error) { k.d.jobs.SessionOver(task, no, nil) }}
	if !x.Disk.IsZero() {
		g.Disks = []holdfast.DiskID{x.Disk}
	}
	return g, nil
}
