package job

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// A Spec is what a run was asked to do; it is kept with the run.
type Spec struct {
	Pool     holdfast.PoolID `json:"pool,omitzero"`
	PoolName string          `json:"pool_name,omitempty"`
	Full     bool            `json:"full,omitempty"` // backup: read everything
	Compress string          `json:"compression,omitempty"`
	Set      holdfast.SetID  `json:"set,omitzero"` // what is worked on, where it is one set
	// Restores says, for the VM of each task of a restore, what to make of which set.
	Restores map[holdfast.VMID]*Restore `json:"restores,omitempty"`
	Later    string                     `json:"later,omitempty"` // restore: what waited for its time and became this run
	DryRun   bool                       `json:"dry_run,omitempty"`
	Result   json.RawMessage            `json:"result,omitempty"` // of a Work that is over: what it found

	// Of a job's run.
	Job      string              `json:"job,omitempty"`
	Type     string              `json:"type,omitempty"`  // TypeFull, TypeIncremental, TypeDifferential; "": incremental
	Cause    string              `json:"cause,omitempty"` // the schedule, "by hand", or "retry"
	Options  Tuning              `json:"options,omitzero"`
	Zone     string              `json:"zone,omitempty"`
	Skip     map[string][]string `json:"skip,omitempty"` // disks that are left out, by the VM's id
	RetryOf  holdfast.RunID      `json:"retry_of,omitzero"`
	Attempt  int                 `json:"attempt,omitempty"`
	Warnings []string            `json:"warnings,omitempty"` // what was remarkable about the choice of VMs
	Gone     []VMRef             `json:"gone,omitempty"`     // VMs that the job names and no host has
}

// A View is a run as it stands, with what only memory knows of it.
type View struct {
	catalog.Run
	Spec Spec
	Live map[holdfast.TaskID]Live // of tasks that have not ended, and notes of those that have
}

// Live is how a task goes.
type Live struct {
	Phase string
	Note  string
	Unit  string // of a Work's progress
}

// An Assignment is what the data door needs to know of a task that an agent speaks of.
type Assignment struct {
	Task     holdfast.TaskID
	Run      holdfast.RunID
	Kind     string // wire.TaskBackup or wire.TaskRestore
	VM       holdfast.VMID
	VMName   string
	HostName string
	Spec     Spec
}

// run is a run under way (Engine.mu).
type run struct {
	rec       catalog.Run
	spec      Spec
	tasks     []*task
	cancelled bool
	done      chan struct{} // closed when it is over and recorded
	over      bool
	dirty     bool          // the record has changes that are not in the catalog yet
	aborted   bool          // a precondition was not met
	dropped   int           // lines that the log had no room for
	lines     chan struct{} // closed at the next line, if somebody waits for it
}

// task is one VM's part of a run (Engine.mu).
type task struct {
	run   *run
	host  *host
	rec   *catalog.Task
	phase string
	note  string
	sent  bool // a notice went to the agent
	heard bool // the agent on the current stream spoke of it

	session   func(error) // ends the data session that is open for the task; nil if there is none
	sessionNo int         // counts the task's sessions, so that one that was replaced is not taken for the one that is open
	listing   bool        // a restore that is over waits for its host's list of VMs
	concluded bool        // how it ends is decided; it waits for the session to be over
	verdict   error       // with what, if concluded

	tries   int             // of a restore: how often it was begun anew
	earlier holdfast.TaskID // the id of the try before
	anew    string          // why it was begun anew, for the note
	spent   spent
	logged  string // the phase that the log has last

	work *Work                   // of a run that the appliance works on itself; then there is no host
	stop context.CancelCauseFunc // ends the work
}

func (r *run) view() View {
	v := View{Run: r.rec, Spec: r.spec, Live: make(map[holdfast.TaskID]Live, len(r.tasks))}
	v.Tasks, v.Log = slices.Clone(r.rec.Tasks), slices.Clone(r.rec.Log)
	for i := range v.Tasks {
		v.Tasks[i].Disks = slices.Clone(v.Tasks[i].Disks)
	}
	for _, t := range r.tasks {
		live := Live{Phase: t.phase, Note: t.note}
		if t.work != nil && !t.rec.State.Ended() {
			var s holdfast.Sample
			live.Unit, s = t.work.live()
			v.Tasks[0].Disks = []catalog.DiskProgress{{Name: t.rec.VMName, Sample: s}}
		}
		v.Live[t.rec.ID] = live
	}
	return v
}

// viewOf makes a view of a run that only the catalog knows.
func viewOf(rec catalog.Run) (View, error) {
	v := View{Run: rec}
	if len(rec.Spec) > 0 {
		if err := json.Unmarshal(rec.Spec, &v.Spec); err != nil {
			return v, holdfast.Errorf(holdfast.Corrupt, "read run", "%s: %w", rec.ID, err)
		}
	}
	return v, nil
}

// end gives a task its last state. err decides between done, failed and cancelled. It reports whether the task was still open.
func (t *task) end(now time.Time, err error) bool {
	if t.rec.State.Ended() {
		return false
	}
	t.rec.Ended = now
	switch {
	case err == nil:
		if t.rec.State == catalog.RunQueued { // it ended before it was seen to begin
			t.rec.Started = now
			t.rec.State = catalog.RunRunning
		}
		t.rec.State = catalog.RunDone
	case t.run.aborted && t.rec.Stage != StagePrecondition:
		t.rec.State, t.rec.Error = catalog.RunAborted, catalog.NewTaskError(err)
	case holdfast.KindOf(err) == holdfast.Cancelled || t.run.cancelled:
		t.rec.State, t.rec.Error = catalog.RunCancelled, catalog.NewTaskError(err)
	default:
		t.rec.State, t.rec.Error = catalog.RunFailed, catalog.NewTaskError(err)
	}
	t.run.dirty = true
	t.logEnd(now)
	return true
}

// outcome is the state of a run whose tasks have all ended.
func (r *run) outcome() catalog.RunState {
	count := map[catalog.RunState]int{}
	for _, t := range r.tasks {
		count[t.rec.State]++
	}
	switch n := len(r.tasks); {
	case r.aborted && !r.cancelled:
		return catalog.RunAborted
	case count[catalog.RunDone] == n && len(r.spec.Gone) > 0:
		return catalog.RunPartial
	case count[catalog.RunDone] == n:
		return catalog.RunDone
	case r.cancelled || count[catalog.RunCancelled] == n && n > 0:
		return catalog.RunCancelled
	case r.someVMDone():
		return catalog.RunPartial
	}
	return catalog.RunFailed
}

func (r *run) someVMDone() bool {
	return slices.ContainsFunc(r.tasks, func(t *task) bool { return t.rec.Stage == "" && t.rec.State == catalog.RunDone })
}

// wireTask is the task as its agent gets it.
func (t *task) wireTask() *wire.Task {
	spec := &t.run.spec
	w := &wire.Task{ID: t.rec.ID, Run: t.run.rec.ID, Kind: wire.TaskBackup, VM: t.rec.VM}
	switch {
	case t.rec.Stage != "":
		t.scriptTask(w)
		return w
	case t.run.rec.Kind == catalog.RunRestore:
		t.restoreTask(w)
	}
	if spec.Job == "" && t.run.rec.Kind != catalog.RunRestore {
		return w
	}
	o := &spec.Options
	w.Level, w.Disks, w.Channels = o.Consistency, o.Disks, o.Channels
	if w.Level == "application" { // as the seed has it: application, with what that falls back to
		w.Level = "automatic"
	}
	w.Reconnect, w.Buffer = o.reconnect(0), int(or(o.Buffer, defaultBuffer))
	w.Limits, w.Zone, w.Skip = o.Limits, spec.Zone, spec.Skip[t.rec.VM.String()]
	if o.Group {
		for _, x := range t.run.tasks {
			if x.rec.Stage == "" && x.host == t.host {
				w.Group++
			}
		}
	}
	return w
}

// reconnect is how long a task waits for its agent, where nothing else is said usual.
func (o *Tuning) reconnect(usual time.Duration) time.Duration { return or(o.Reconnect, usual) }
