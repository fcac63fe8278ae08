package job

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// A Restore is what one task of a restore makes: of which set, and what of it.
type Restore struct {
	Pool holdfast.PoolID `json:"pool"`
	Set  holdfast.SetID  `json:"set"`
	Disk holdfast.DiskID `json:"disk,omitzero"` // only this one
	Make wire.Restore    `json:"make"`
}

// maxTries is how often a restore is begun anew because its agent was restarted.
const maxTries = 3

// restore returns what the task restores, nil if it is no restore.
func (t *task) restore() *Restore {
	if t.run.rec.Kind != catalog.RunRestore {
		return nil
	}
	return t.run.spec.Restores[t.rec.VM]
}

// restoreTask completes the task of a restore.
func (t *task) restoreTask(w *wire.Task) {
	w.Kind = wire.TaskRestore
	if x := t.restore(); x != nil {
		m := x.Make
		m.Earlier = t.earlier
		w.Restore = &m
	}
}

// setOf returns the set that a run works on for a VM.
func (s *Spec) setOf(vm holdfast.VMID) holdfast.SetID {
	if x := s.Restores[vm]; x != nil {
		return x.Set
	}
	return s.Set
}

// again begins a restore anew whose agent was restarted: the agent has removed what the first try left. The task gets a new id, so that nothing
// that is still said of the first try is taken for it. The caller has e.mu and tells the agent.
func (e *Engine) again(t *task) bool {
	if t.restore() == nil || t.tries >= maxTries || t.run.cancelled || t.concluded {
		return false
	}
	t.tries++
	if t.session != nil {
		t.session(holdfast.Errorf(holdfast.Busy, "", "the restore was begun anew"))
		t.session = nil
	}
	e.renew(t)
	t.heard, t.phase = true, ""
	t.anew = join(t.anew, "begun anew: the host's agent was restarted")
	t.note = t.anew
	return true
}

// renew gives a task a new id.
func (e *Engine) renew(t *task) {
	delete(e.tasks, t.rec.ID)
	t.earlier = t.rec.ID
	t.rec.ID = holdfast.TaskID{ID: holdfast.NewTimeID(e.o.Clock.Now().UTC())}
	t.rec.Disks = nil
	e.tasks[t.rec.ID] = t
	t.run.dirty = true
}

// adopt takes over a restore that a daemon before this one left under way: what of it has not ended waits for its host and is begun anew.
// It reports whether there is anything to be adopted; then rec is as it now stands.
func (e *Engine) adopt(rec *catalog.Run) bool {
	r := &run{rec: *rec, done: make(chan struct{})}
	if rec.Kind != catalog.RunRestore || json.Unmarshal(rec.Spec, &r.spec) != nil || len(r.spec.Restores) == 0 {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	open := false
	for i := range r.rec.Tasks {
		t := &task{run: r, rec: &r.rec.Tasks[i]}
		t.host = e.host(t.rec.Host)
		r.tasks = append(r.tasks, t)
		if t.rec.State.Ended() || t.restore() == nil {
			continue
		}
		open = true
	}
	if !open {
		return false
	}
	e.runs[r.rec.ID] = r
	for _, t := range r.tasks {
		e.tasks[t.rec.ID] = t
		if t.rec.State.Ended() {
			continue
		}
		if t.rec.State != catalog.RunQueued {
			t.anew = "begun anew: the appliance was restarted"
			t.note = t.anew
			t.rec.State = catalog.RunQueued
			e.renew(t)
		}
		t.host.queue = append(t.host.queue, t)
		h := t.host
		e.wg.Go(func() {
			e.after(e.o.Reconnect, func() {
				e.mu.Lock()
				if h.stream == nil && !t.rec.State.Ended() {
					e.conclude(t, offline(h), true)
				}
				e.mu.Unlock()
				e.persist()
			})
		})
	}
	*rec = r.view().Run
	return true
}

// keepTokens remembers the reference point that a restore has made: the next backup of the VM reads what changed since the restored set.
// Where that fails, the next backup reads whole disks and sends what differs.
func (e *Engine) keepTokens(ctx context.Context, x *Restore, vm holdfast.VMID, tokens map[holdfast.DiskID]string) error {
	err := e.o.Catalog.Update(ctx, func(tx *catalog.Tx) error {
		return tx.PutTracking(catalog.Tracking{VM: vm, Pool: x.Pool, Set: x.Set, Tokens: tokens})
	})
	if errors.Is(err, holdfast.NotExist) {
		return nil // the set was deleted meanwhile
	}
	return err
}

// Ask sends a notice to a host's agent. Offline if it is not connected.
func (e *Engine) Ask(id holdfast.HostID, n wire.Notice) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.host(id)
	if h.stream == nil {
		return offline(h)
	}
	h.stream.push(n)
	return nil
}

// Restoring returns the VMs that restores under way make, replace or put disks into, by the name on the host or the id there.
func (e *Engine) Restoring(id holdfast.HostID) (names map[string]bool, vms map[holdfast.VMID]bool, dirs map[string]bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	names, vms, dirs = map[string]bool{}, map[holdfast.VMID]bool{}, map[string]bool{}
	for _, t := range e.tasks {
		x := t.restore()
		if x == nil || t.rec.State.Ended() || t.rec.Host != id {
			continue
		}
		names[x.Make.Name], dirs[x.Make.Dir] = true, true
		for _, vm := range []holdfast.VMID{x.Make.Replace, x.Make.Into} {
			if !vm.IsZero() {
				vms[vm] = true
			}
		}
	}
	return names, vms, dirs
}
