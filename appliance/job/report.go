package job

import (
	"context"
	"errors"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// Bounds of what an agent may say.
const (
	maxVMs     = 10000 // in an inventory
	maxReports = 2048  // in one call
	maxNote    = 4096
)

// Report takes what an agent says of its tasks. Tasks that are over, or were never the host's, are passed over: an agent tells
// the end of a task until it was heard.
func (e *Engine) Report(id holdfast.HostID, rs []wire.Report) error {
	if len(rs) > maxReports {
		return holdfast.Errorf(holdfast.Invalid, "take reports", "%d reports; at most %d are allowed", len(rs), maxReports)
	}
	e.mu.Lock()
	now := e.o.Clock.Now().UTC()
	ended := false
	for i := range rs {
		r := &rs[i]
		t := e.tasks[r.Task]
		if t == nil || t.rec.Host != id || t.rec.State.Ended() || len(r.Disks) > holdfast.MaxDisks {
			continue
		}
		t.heard = true
		t.phase, t.note = r.Phase, r.Note[:min(len(r.Note), maxNote)]
		t.rec.Disks = t.rec.Disks[:0:0]
		for _, d := range r.Disks {
			t.rec.Disks = append(t.rec.Disks, catalog.DiskProgress{Disk: d.Disk, Name: d.Name, Reason: d.Reason, Sample: d.Sample})
		}
		if !r.Ended {
			continue
		}
		var err error
		switch {
		case r.Error != nil && t.run.rec.Kind == catalog.RunBackup && !t.rec.Set.IsZero():
			t.note = join(t.note, r.Error.Message) // the set is safe; what came after it is a remark
		case r.Error != nil:
			err = r.Error.AsError()
		case t.run.rec.Kind == catalog.RunBackup && t.rec.Set.IsZero():
			err = holdfast.Errorf(holdfast.Internal, "", "the agent reports the end of the backup, but no set was committed")
		}
		ended = t.end(now, err) || ended
	}
	if ended {
		e.dispatch()
	}
	e.mu.Unlock()
	if ended {
		e.persist()
	}
	return nil
}

// Assigned returns what a task is about, if it is the host's and under way.
func (e *Engine) Assigned(id holdfast.HostID, taskID holdfast.TaskID) (Assignment, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tasks[taskID]
	if t == nil || t.rec.Host != id || t.rec.State.Ended() || !t.sent {
		return Assignment{}, holdfast.Errorf(holdfast.NotExist, "open task", "host %s has no task %s under way", id, taskID)
	}
	return Assignment{Task: taskID, Run: t.run.rec.ID, Kind: t.wireTask().Kind, VM: t.rec.VM, Spec: t.run.spec}, nil
}

// Committed notes that a task's set is durable in pool and catalog.
func (e *Engine) Committed(taskID holdfast.TaskID, m *holdfast.Manifest) {
	e.mu.Lock()
	t := e.tasks[taskID]
	if t != nil && !t.rec.State.Ended() {
		t.rec.Set, t.rec.Stats = m.ID, m.Stats
		for _, d := range m.Disks {
			if d.Reason != "" && t.rec.Reason == "" {
				t.rec.Reason = d.Reason
			}
			for i := range t.rec.Disks {
				if p := &t.rec.Disks[i]; p.Disk == d.ID {
					p.Sample.Stored = d.Stats.Stored
				}
			}
		}
		t.run.dirty = true
	}
	e.mu.Unlock()
	e.persist()
}

// Inventory records what a host has. VMs that it no longer has are forgotten; their sets stay.
func (e *Engine) Inventory(ctx context.Context, id holdfast.HostID, inv wire.Inventory) error {
	const op = "take inventory"
	if len(inv.VMs) > maxVMs {
		return holdfast.Errorf(holdfast.Invalid, op, "%d virtual machines; at most %d are allowed", len(inv.VMs), maxVMs)
	}
	now := e.o.Clock.Now().UTC()
	skipped := map[holdfast.VMID][]string{}
	err := e.o.Catalog.Update(ctx, func(tx *catalog.Tx) error {
		h, err := tx.Host(id)
		if err != nil {
			return err
		}
		h.LastSeen = now
		h.Info = catalog.HostInfo{Name: inv.Agent, Product: inv.Product, Version: inv.Version}
		if err := tx.PutHost(h); err != nil {
			return err
		}
		there := make(map[holdfast.VMID]bool, len(inv.VMs))
		for _, v := range inv.VMs {
			there[v.ID] = true
			if len(v.Skipped) > 0 {
				skipped[v.ID] = v.Skipped
			}
			rec := catalog.VM{ID: v.ID, Host: id, Name: v.Name, Generation: v.Generation, State: v.State, Disks: v.Disks, LastSeen: now}
			if err := tx.PutVM(rec); err != nil {
				return err
			}
		}
		return forgetVMs(tx, id, there)
	})
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.host(id).skipped = skipped
	e.mu.Unlock()
	return nil
}

// forgetVMs removes the host's VMs that are not there any more.
func forgetVMs(tx *catalog.Tx, id holdfast.HostID, there map[holdfast.VMID]bool) error {
	var gone []holdfast.VMID
	for page := (catalog.Page{Limit: catalog.MaxPage}); ; {
		vms, next, err := tx.VMs(id, page)
		if err != nil {
			return err
		}
		for _, v := range vms {
			if !there[v.ID] {
				gone = append(gone, v.ID)
			}
		}
		if next == "" {
			break
		}
		page.Cursor = next
	}
	var errs error
	for _, v := range gone {
		errs = errors.Join(errs, tx.DeleteVM(v))
	}
	return errs
}
