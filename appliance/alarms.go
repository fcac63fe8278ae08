package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/appliance/notify"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/parity"
)

// What follows decides which events are alarms, what clears them, and how they are called. Keys are made of ids, so that a rename does not
// leave an alarm behind that nothing clears.

// eventPoolOffline says that a pool cannot be opened, or, as a clearing, that it is there again.
const eventPoolOffline holdfast.EventType = "pool-offline"

// alarms returns what an event means for alarms; the last one stands for the event itself.
func (h *herald) alarms(e holdfast.Event) []holdfast.Event {
	f := e.Fields
	switch {
	case f[notify.FieldAlarm] != "":
	case e.Type == holdfast.EventPoolNearFull && f["folder"] != "":
		return []holdfast.Event{raiseOr(f["state"] == "cleared", e, roomAlarm+f["folder"])}
	case e.Type == holdfast.EventPoolNearFull && f["threshold"] != "":
		return []holdfast.Event{raiseOr(f["state"] == "cleared", e, h.poolKey(f["pool"], "full-"+f["threshold"]))}
	case e.Type == holdfast.EventChunkCorrupt && e.Severity == holdfast.Alarm && f["pool"] != "":
		return []holdfast.Event{notify.Raise(e, h.poolKey(f["pool"], "damage"))}
	case e.Type == eventPoolOffline:
		return []holdfast.Event{notify.Raise(h.named(e), h.poolKey(f["pool"], "offline"))}
	case e.Type == eventPoolDeleted:
		return append(h.cleared(poolAlarms+f["id"]+"/", "the pool was taken off the appliance"), e)
	case e.Type == eventJobMissed && f["job"] != "":
		return []holdfast.Event{notify.Raise(e, missedAlarm+f["job"])}
	case e.Type == eventJobDeleted:
		return append(append(h.cleared(jobAlarm+f["job"], "the job was deleted"), h.cleared(missedAlarm+f["job"], "the job was deleted")...), e)
	case e.Type == parity.EventMemberLost:
		return []holdfast.Event{notify.Raise(e, "member/"+f["store"])}
	case e.Type == parity.EventMemberBack:
		return []holdfast.Event{notify.Clear(e, "member/"+f["store"])}
	case e.Type == holdfast.EventRunFinished:
		return h.runAlarms(e)
	}
	return []holdfast.Event{e}
}

func raiseOr(clear bool, e holdfast.Event, key string) holdfast.Event {
	if clear {
		return notify.Clear(e, key)
	}
	return notify.Raise(e, key)
}

// poolAlarms begins the keys of alarms of pools.
const poolAlarms = "pool/"

// poolKey is the key of a pool's alarm. Events name pools by name or id.
func (h *herald) poolKey(pool, what string) string {
	if rec, err := h.d.service.poolRecord(pool); err == nil {
		pool = rec.ID.String()
	}
	return poolAlarms + pool + "/" + what
}

// named puts a pool's name before a text that only has an id in its fields.
func (h *herald) named(e holdfast.Event) holdfast.Event {
	if rec, err := h.d.service.poolRecord(e.Fields["pool"]); err == nil {
		e.Text = "pool " + rec.Name + " is offline: " + e.Text
		e.Fields = map[string]string{"pool": rec.Name, "id": rec.ID.String()}
	}
	return e
}

// cleared clears the open alarm of the key or, where it ends in a slash, those whose keys begin with it.
func (h *herald) cleared(prefix, why string) []holdfast.Event {
	var out []holdfast.Event
	for _, a := range h.n.Alarms() {
		if a.Key == prefix || strings.HasSuffix(prefix, "/") && strings.HasPrefix(a.Key, prefix) {
			out = append(out, notify.Clear(holdfast.Event{Type: a.Type, Text: why}, a.Key))
		}
	}
	return out
}

// Beginnings of keys of alarms of jobs; the job's name follows.
const (
	jobAlarm    = "job/"
	missedAlarm = notify.KindMissed + "/"
)

// runAlarms returns what the end of a run means.
func (h *herald) runAlarms(e holdfast.Event) []holdfast.Event {
	id, err := holdfast.ParseID(e.Fields["run"])
	if err != nil {
		return []holdfast.Event{e}
	}
	v, err := h.d.jobs.Get(holdfast.RunID{ID: id})
	if err != nil || v.Spec.DryRun { // forgotten meanwhile, or a question that changes nothing
		return []holdfast.Event{e}
	}
	switch {
	case v.Job != "":
		out := h.vmsDone(v)
		if v.State == catalog.RunDone {
			out = append(out, notify.Clear(holdfast.Event{Time: e.Time, Type: eventJobMissed, Text: "the job " + v.Job + " has run", Fields: map[string]string{"job": v.Job}}, missedAlarm+v.Job))
		}
		return append(out, h.outcome(e, jobAlarm+v.Job, "job", v.Job, v.State))
	case v.Kind == catalog.RunBackup:
		return h.backupAlarms(e, v)
	case v.Kind == catalog.RunVerify && v.Spec.Set.IsZero():
		return h.verifyAlarms(e, v)
	case v.Spec.Pool.IsZero() || v.Kind == catalog.RunRestore || v.Kind == catalog.RunVerify:
		return []holdfast.Event{e} // nothing that comes later says that it is well again
	}
	return []holdfast.Event{h.outcome(e, poolAlarms+v.Spec.Pool.String()+"/"+string(v.Kind), "pool", v.Spec.PoolName, v.State)}
}

// outcome raises or clears the alarm of what runs again and again.
func (h *herald) outcome(e holdfast.Event, key, field, name string, s catalog.RunState) holdfast.Event {
	e.Fields = with(e.Fields, field, name)
	switch s {
	case catalog.RunDone:
		return notify.Clear(e, key)
	case catalog.RunFailed, catalog.RunPartial:
		return notify.Raise(e, key)
	}
	return e
}

func with(f map[string]string, name, value string) map[string]string {
	out := map[string]string{name: value}
	for k, v := range f {
		out[k] = v
	}
	return out
}

const backupAlarm = "backup/" // and a VM's id

// backupAlarms is about a backup that somebody asked for: each VM that failed is an alarm until it is backed up.
func (h *herald) backupAlarms(e holdfast.Event, v job.View) []holdfast.Event {
	out := h.vmsDone(v)
	for _, t := range v.Tasks {
		if t.State != catalog.RunFailed {
			continue
		}
		text := "VM " + t.VMName + " could not be backed up"
		if t.Error != nil {
			text += ": " + t.Error.Message
		}
		out = append(out, notify.Raise(holdfast.Event{Time: e.Time, Type: e.Type, Severity: holdfast.Alarm, Text: text,
			Fields: with(with(e.Fields, "vm", t.VMName), "vm_id", t.VM.String())}, backupAlarm+t.VM.String()))
	}
	if v.State == catalog.RunFailed || v.State == catalog.RunPartial { // told VM by VM
		if len(out) > 0 {
			return out
		}
	}
	return append(out, e)
}

// vmsDone clears the alarms of VMs that a run backed up.
func (h *herald) vmsDone(v job.View) []holdfast.Event {
	done := map[string]string{}
	for _, t := range v.Tasks {
		if v.Kind == catalog.RunBackup && t.State == catalog.RunDone {
			done[backupAlarm+t.VM.String()] = t.VMName
		}
	}
	var out []holdfast.Event
	for _, a := range h.n.Alarms() {
		if name, ok := done[a.Key]; ok {
			out = append(out, notify.Clear(holdfast.Event{Time: v.Ended, Type: a.Type, Text: "VM " + name + " is backed up"}, a.Key))
		}
	}
	return out
}

// verifyAlarms is about reading a pool back: damage is one alarm however it was found, and a pass without any clears it.
func (h *herald) verifyAlarms(e holdfast.Event, v job.View) []holdfast.Event {
	pool := poolAlarms + v.Spec.Pool.String() + "/"
	if v.State == catalog.RunFailed && v.Error != nil && v.Error.Kind == holdfast.Corrupt {
		return []holdfast.Event{notify.Raise(e, pool+"damage")}
	}
	out := []holdfast.Event{}
	if v.State == catalog.RunDone {
		out = append(out, notify.Clear(holdfast.Event{Time: e.Time, Type: holdfast.EventChunkCorrupt, Text: "pool " + v.Spec.PoolName + " was read back: everything is as it was written",
			Fields: map[string]string{"pool": v.Spec.PoolName}}, pool+"damage"))
	}
	return append(out, h.outcome(e, pool+string(v.Kind), "pool", v.Spec.PoolName, v.State))
}

// sweep looks for what makes no event by itself.
func (h *herald) sweep() error {
	ctx, cancel := context.WithTimeout(h.d.ctx, sweepEvery)
	defer cancel()
	now := h.d.c.Clock.Now()
	early := now.Sub(h.start) < sweepGrace
	return errors.Join(h.sweepHosts(ctx, early), h.sweepPools(ctx, early), h.sweepVMs(now), h.sweepRoom())
}

const roomAlarm = "room/" // and the folder

// sweepRoom clears what was told of full disks where there is room again. A daemon that starts anew does not know what the one before it gave up.
func (h *herald) sweepRoom() error {
	for _, a := range h.n.Alarms() {
		dir, ok := strings.CutPrefix(a.Key, roomAlarm)
		if !ok || !h.d.room.well(dir) {
			continue
		}
		if err := h.n.Accept(0, notify.Clear(holdfast.Event{Type: a.Type, Text: "there is room again on the disk of " + dir, Fields: map[string]string{"folder": dir}}, a.Key)); err != nil {
			return err
		}
	}
	return nil
}

// sweepHosts raises hosts that have not come since the start, and clears those that were removed.
func (h *herald) sweepHosts(ctx context.Context, early bool) error {
	hosts, err := h.d.service.Hosts(ctx)
	if err != nil {
		return err
	}
	var out []holdfast.Event
	for _, x := range hosts {
		e := holdfast.Event{Type: holdfast.EventHostOnline, Text: "host " + x.Name + " is online", Fields: map[string]string{"host": x.Name, "id": x.ID}}
		if x.State != api.HostOnline && !x.Seen.IsZero() { // one that never came is waited for
			e.Type, e.Severity, e.Text = holdfast.EventHostOffline, holdfast.Warning, "host "+x.Name+" is offline"
			if early { // it may be on its way: what is open stays, and nothing new is raised
				e = notify.Raise(e, "host/"+x.ID)
				if !h.open("host/" + x.ID) {
					e = notify.Clear(e, "host/"+x.ID)
				}
			}
		}
		out = append(out, e)
	}
	return h.n.Sweep("host", out)
}

// open tells whether an alarm is raised.
func (h *herald) open(key string) bool {
	for _, a := range h.n.Alarms() {
		if a.Key == key {
			return true
		}
	}
	return false
}

func (h *herald) sweepPools(ctx context.Context, early bool) error {
	recs, err := h.d.service.poolRecords()
	if err != nil {
		return err
	}
	for _, rec := range recs {
		e := holdfast.Event{Type: eventPoolOffline, Text: "pool " + rec.Name + " is there again", Fields: map[string]string{"pool": rec.Name, "id": rec.ID.String()}}
		key := poolAlarms + rec.ID.String() + "/offline"
		_, perr := h.d.shelf.Pool(ctx, rec.ID)
		switch {
		case perr == nil:
			e = notify.Clear(e, key)
		case early || h.d.ctx.Err() != nil:
			continue
		default:
			e.Severity, e.Text = holdfast.Alarm, "pool "+rec.Name+" is offline: "+perr.Error()
			e = notify.Raise(e, key)
		}
		if err := h.n.Accept(0, e); err != nil {
			return err
		}
	}
	return nil
}

// sweepVMs raises VMs that were backed up before, or that an enabled job is for, and have no recent good point.
func (h *herald) sweepVMs(now time.Time) error {
	h.mu.Lock()
	within := h.stale
	h.mu.Unlock()
	vms, err := h.d.service.vmRecords()
	if err != nil {
		return err
	}
	sets, err := catalog.ListSets(h.d.cat)
	if err != nil {
		return err
	}
	protected, err := h.d.service.protectedVMs(vms)
	if err != nil {
		return err
	}
	good := map[holdfast.VMID]time.Time{}
	for _, x := range sets {
		m := x.Manifest
		if x.State != catalog.SetDamaged && x.State != catalog.SetDeleting && m.Created.After(good[m.VM.ID]) {
			good[m.VM.ID] = m.Created
		}
	}
	var hosts map[holdfast.HostID]string
	err = h.d.cat.View(func(tx *catalog.Tx) (err error) {
		hosts, err = h.d.service.hostNames(tx)
		return err
	})
	if err != nil {
		return err
	}
	var watched []notify.VM
	for _, v := range vms {
		since, ok := good[v.ID]
		if j, of := protected[v.ID.String()]; of && !ok { // a VM that is new has the same time as a job that is
			if h.first[v.ID].IsZero() {
				h.first[v.ID] = now
			}
			since, ok = h.first[v.ID], true
			if j.Created.After(since) {
				since = j.Created
			}
		}
		if ok {
			watched = append(watched, notify.VM{ID: v.ID, Name: v.Name, Host: hosts[v.Host], Since: since, Good: good[v.ID], Within: within})
		}
	}
	return h.n.Sweep(notify.KindStale, notify.Stale(watched, now.In(h.zone())))
}

// zone is the zone of times in texts.
func (h *herald) zone() *time.Location {
	h.mu.Lock()
	defer h.mu.Unlock()
	if z, err := time.LoadLocation(h.settings.Zone); err == nil && h.settings.Zone != "" {
		return z
	}
	return time.Local
}

// lastWork is when something was last done to a pool; a setting of the catalog.
type lastWork struct {
	Started time.Time      `json:"started,omitzero"`
	Done    time.Time      `json:"done,omitzero"` // the last one that ended well
	Run     holdfast.RunID `json:"run,omitzero"`  // the last one that is counted
	Freed   int64          `json:"freed,omitempty"`
	Good    time.Time      `json:"good,omitzero"`     // when the one that Done tells of began
	Damaged int            `json:"damaged,omitempty"` // chunks and objects that the last verify found damaged
}

const workSetting = "pool-work:" // and a pool's id

// workOf reads what was last done to a pool, by the kind of run.
func workOf(tx *catalog.Tx, id holdfast.PoolID) (map[string]lastWork, error) {
	out := map[string]lastWork{}
	raw, err := tx.Setting(workSetting + id.String())
	if errors.Is(err, holdfast.NotExist) {
		return out, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	return out, err
}

// places counts what is damaged: a chunk that several sets need is one.
func places(list []pools.Damage) int {
	type place struct {
		where string
		chunk holdfast.Digest
	}
	all := map[place]bool{}
	for _, x := range list {
		all[place{x.Where, x.Digest}] = true
	}
	return len(all)
}

// note keeps when a pool was last verified or collected. An event that comes again changes nothing.
func (h *herald) note(e holdfast.Event) error {
	kind := e.Fields["kind"]
	if e.Type != holdfast.EventRunFinished || kind != string(catalog.RunVerify) && kind != string(catalog.RunCollect) {
		return nil
	}
	id, err := holdfast.ParseID(e.Fields["run"])
	if err != nil {
		return nil
	}
	v, err := h.d.jobs.Get(holdfast.RunID{ID: id})
	if err != nil || v.Spec.DryRun || v.Spec.Pool.IsZero() || !v.Spec.Set.IsZero() {
		return nil // it is not there any more, or not about a whole pool
	}
	return h.d.cat.Update(h.d.ctx, func(tx *catalog.Tx) error {
		if _, err := tx.Pool(v.Spec.Pool); errors.Is(err, holdfast.NotExist) {
			return nil
		}
		all, err := workOf(tx, v.Spec.Pool)
		if err != nil {
			return err
		}
		w := all[kind]
		if v.ID.String() <= w.Run.String() && !w.Run.IsZero() {
			return nil
		}
		w.Run, w.Started = v.ID, v.Created
		if kind == string(catalog.RunVerify) {
			var r api.VerifyReport
			if json.Unmarshal(v.Spec.Result, &r) == nil && (v.State == catalog.RunDone || len(r.Damaged) > 0) { // one that was cut short says nothing of the rest
				w.Damaged = places(r.Damaged)
			}
		}
		if v.State == catalog.RunDone {
			w.Done, w.Good = v.Ended, v.Created
			var r api.CollectReport
			if kind == string(catalog.RunCollect) && json.Unmarshal(v.Spec.Result, &r) == nil {
				w.Freed += r.Freed
			}
		}
		all[kind] = w
		raw, err := json.Marshal(all)
		if err != nil {
			return holdfast.Errorf(holdfast.Internal, "note work", "%w", err)
		}
		return tx.PutSetting(workSetting+v.Spec.Pool.String(), raw)
	})
}
