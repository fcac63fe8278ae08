package job

import (
	"context"
	"errors"
	"time"

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
	if e.closed { // what happens to tasks now is the shutdown's doing, and is told by Recover
		e.mu.Unlock()
		return errShutdown
	}
	ended := false
	kept := map[*Restore]*wire.Report{}
	for i := range rs {
		r := &rs[i]
		t := e.tasks[r.Task]
		if t == nil || t.rec.Host != id || t.rec.State.Ended() || t.concluded || len(r.Disks) > holdfast.MaxDisks {
			continue
		}
		t.heard = true
		t.phase, t.note = r.Phase, join(t.anew, r.Note[:min(len(r.Note), maxNote)])
		t.spent.agent = r.Waits
		if t.phase != t.logged && t.phase != "" {
			t.logged = t.phase
			t.run.log(e.o.Clock.Now(), t.rec.VMName, "%s", t.phase)
		}
		if !t.committed() { // then the manifest says it better
			t.rec.Disks = make([]catalog.DiskProgress, 0, len(r.Disks))
			for _, d := range r.Disks {
				t.rec.Disks = append(t.rec.Disks, catalog.DiskProgress{Disk: d.Disk, Name: d.Name, Reason: d.Reason, Sample: d.Sample})
			}
		}
		if r.Ended {
			ended = true
			var err error
			if r.Error != nil {
				err = r.Error.AsError()
			}
			if t.rec.Stage != "" {
				err = t.scriptEnded(e.o.Clock.Now(), r.Script, err)
			}
			if x := t.restore(); x != nil && x.Make.Reference && err == nil && r.VM != nil {
				kept[x] = r
			}
			if err == nil && t.run.rec.Kind == catalog.RunRestore && t.host.stream != nil {
				e.listRestored(t)
				continue
			}
			e.conclude(t, err, false)
		}
	}
	if ended {
		e.dispatch()
	}
	e.mu.Unlock()
	var err error
	for x, r := range kept {
		err = errors.Join(err, e.keepTokens(e.ctx, x, r.VM.ID, r.Tokens))
	}
	if ended {
		e.persist()
	}
	return err
}

// listWait is how long the end of a restore waits for its host to list the new VM.
const listWait = 2 * time.Second

// listRestored ends a restore when its host has said what VMs it has now, so that who sees the end finds the new one in the list. The caller has
// e.mu.
func (e *Engine) listRestored(t *task) {
	if t.listing {
		return
	}
	t.listing = true
	t.host.stream.push(wire.Notice{Inventory: true})
	before := t.host.inventories
	e.wg.Go(func() {
		late, stop := e.o.Clock.After(listWait)
		defer stop()
		for waiting := true; waiting; {
			e.mu.Lock()
			changed, now := e.changed, t.host.inventories
			e.mu.Unlock()
			if now != before {
				break
			}
			select {
			case <-changed:
			case <-late:
				waiting = false
			case <-e.ctx.Done():
				return
			}
		}
		e.mu.Lock()
		e.conclude(t, nil, false)
		e.dispatch()
		e.mu.Unlock()
		e.persist()
	})
}

// committed tells whether the task is a backup whose set is durable.
func (t *task) committed() bool { return t.run.rec.Kind == catalog.RunBackup && !t.rec.Set.IsZero() }

// conclude ends a task: at once, or where a data session of it is open, when that is over, so that nothing of the task is at work once it
// shows as ended. The caller has e.mu.
func (e *Engine) conclude(t *task, err error, abort bool) {
	if t.rec.State.Ended() || t.concluded {
		return
	}
	if t.session == nil {
		e.finish(t, err)
		return
	}
	t.concluded, t.verdict = true, err
	if abort {
		t.session(err)
	}
	if e.closed {
		return
	}
	no := t.sessionNo
	e.wg.Go(func() { e.after(sessionEnd, func() { e.SessionOver(t.rec.ID, no, nil) }) })
}

// sessionEnd is how long a task that is over waits for its data session: both ends of the link know already.
const sessionEnd = 15 * time.Second

// finish gives the task its last state. A backup whose set is durable is done, whatever happened after.
func (e *Engine) finish(t *task, err error) {
	switch {
	case t.committed() && err != nil:
		t.note, err = join(t.note, "after the set was committed: "+err.Error()), nil
	case err == nil && t.run.rec.Kind == catalog.RunBackup && t.rec.Stage == "" && !t.committed():
		err = holdfast.Errorf(holdfast.Internal, "", "the agent reports the end of the backup, but no set was committed")
	}
	t.session = nil
	now := e.o.Clock.Now().UTC()
	t.rec.Note = t.note
	if t.rec.Stage == "" && t.committed() {
		t.spent.all = now.Sub(t.rec.Started)
		t.rec.Bottleneck = t.spent.bottleneck()
	}
	t.end(now, err)
}

// Spent notes how long a task's data session waited for the agent, and for the pool.
func (e *Engine) Spent(taskID holdfast.TaskID, agent, pool time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.tasks[taskID]; t != nil {
		t.spent.idle, t.spent.pool = agent, pool
	}
}

// Note adds a line about a task to its run's log, durable with the run's next record.
func (e *Engine) Note(taskID holdfast.TaskID, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.tasks[taskID]; t != nil {
		t.run.log(e.o.Clock.Now(), t.rec.VMName, "%s", text)
	}
}

// Session notes that a data session was opened for a task of the host; end ends it. It returns what the task is about and the session's
// number for SessionOver. A session that was open before is ended: the agent has given it up.
func (e *Engine) Session(id holdfast.HostID, taskID holdfast.TaskID, end func(error)) (Assignment, int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tasks[taskID]
	if t == nil || t.rec.Host != id || t.rec.State.Ended() || t.concluded || !t.sent || t.rec.Stage != "" {
		return Assignment{}, 0, holdfast.Errorf(holdfast.Permission, "open task", "host %s has no task %s under way", id, taskID).
			Advise("the run was cancelled or the appliance restarted; start it again")
	}
	if t.session != nil {
		t.session(holdfast.Errorf(holdfast.Busy, "", "the agent began the task anew"))
		if t.restore() != nil {
			t.anew = join(t.anew, "begun anew: the host's agent was restarted")
		}
	}
	t.sessionNo++
	t.session = end
	return Assignment{Task: taskID, Run: t.run.rec.ID, Kind: t.wireTask().Kind, VM: t.rec.VM, VMName: t.rec.VMName, HostName: t.host.name, Spec: t.run.spec}, t.sessionNo, nil
}

// SessionOver notes that a data session has ended; m is the manifest that it committed, nil if it did not.
func (e *Engine) SessionOver(taskID holdfast.TaskID, no int, m *holdfast.Manifest) {
	e.mu.Lock()
	t := e.tasks[taskID]
	if t == nil || t.rec.State.Ended() {
		e.mu.Unlock()
		return
	}
	if m != nil {
		t.commit(m)
	}
	if t.sessionNo == no {
		t.session = nil
		if t.concluded {
			e.finish(t, t.verdict)
			e.dispatch()
		}
	}
	e.mu.Unlock()
	e.persist()
}

// commit takes over what the task's committed manifest says.
func (t *task) commit(m *holdfast.Manifest) {
	t.rec.Set, t.rec.Stats = m.ID, m.Stats
	t.rec.Disks = make([]catalog.DiskProgress, 0, len(m.Disks))
	for _, d := range m.Disks {
		if d.Reason != "" && t.rec.Reason == "" {
			t.rec.Reason = d.Reason
		}
		t.rec.Disks = append(t.rec.Disks, catalog.DiskProgress{Disk: d.ID, Name: d.Name, Reason: d.Reason,
			Sample: holdfast.Sample{Total: d.Size, Done: d.Size, Read: d.Stats.Read, Sent: d.Stats.Sent, Stored: d.Stats.Stored}})
	}
	t.run.dirty = true
}

// Inventory records what a host has. VMs that it no longer has are forgotten; their sets stay.
func (e *Engine) Inventory(ctx context.Context, id holdfast.HostID, inv wire.Inventory) error {
	const op = "take inventory"
	if len(inv.VMs) > maxVMs {
		return holdfast.Errorf(holdfast.Invalid, op, "%d virtual machines; at most %d are allowed", len(inv.VMs), maxVMs)
	}
	if len(inv.Addresses) > wire.MaxAddresses {
		return holdfast.Errorf(holdfast.Invalid, op, "%d addresses; at most %d are allowed", len(inv.Addresses), wire.MaxAddresses)
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
	e.host(id).addrs = inv.Addresses
	e.host(id).inventories++
	close(e.changed)
	e.changed = make(chan struct{})
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
