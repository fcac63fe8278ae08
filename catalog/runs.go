package catalog

import (
	"encoding/json"
	"iter"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// RunKind is what a run does.
type RunKind string

// The kinds of runs.
const (
	RunBackup  RunKind = "backup"
	RunRestore RunKind = "restore"
	RunVerify  RunKind = "verify"
	RunCollect RunKind = "collect"
	RunDelete  RunKind = "delete"
)

// RunState is how far a run, or a task of it, has come.
type RunState string

// The states of runs and tasks.
const (
	RunQueued       RunState = "queued"
	RunRunning      RunState = "running"
	RunWaitingMedia RunState = "waiting-media"
	RunDone         RunState = "done"
	RunPartial      RunState = "partial" // some tasks are done, some are not
	RunFailed       RunState = "failed"
	RunCancelled    RunState = "cancelled"
	RunAborted      RunState = "aborted" // its precondition was not met: nothing was tried, and that is no failure
)

// transitions is the one table of what may follow a state; "" stands for a run that is not there yet. Staying is always
// allowed. A run goes back to queued when the daemon that ran it is gone.
var transitions = map[RunState][]RunState{
	"":              {RunQueued, RunRunning},
	RunQueued:       {RunRunning, RunWaitingMedia, RunFailed, RunCancelled, RunAborted},
	RunRunning:      {RunQueued, RunWaitingMedia, RunDone, RunPartial, RunFailed, RunCancelled, RunAborted},
	RunWaitingMedia: {RunQueued, RunRunning, RunFailed, RunCancelled},
	RunDone:         {},
	RunPartial:      {},
	RunFailed:       {},
	RunCancelled:    {},
	RunAborted:      {},
}

// Known reports whether s is one of the states.
func (s RunState) Known() bool { _, ok := transitions[s]; return ok && s != "" }

// Ended reports whether nothing can follow s.
func (s RunState) Ended() bool { return s.Known() && len(transitions[s]) == 0 }

// May reports whether next may follow s, or is s.
func (s RunState) May(next RunState) bool {
	return next.Known() && (s == next || slices.Contains(transitions[s], next))
}

// TaskError is why a task, or a run, did not come to a good end.
type TaskError struct {
	Kind    holdfast.Kind `json:"kind"`
	Message string        `json:"message"`
	Hint    string        `json:"hint,omitempty"`
}

// maxMessage bounds what is kept of an error's message.
const maxMessage = 4096

// NewTaskError keeps what is to be told of err; nil for nil.
func NewTaskError(err error) *TaskError {
	if err == nil {
		return nil
	}
	msg := err.Error()
	return &TaskError{Kind: holdfast.KindOf(err), Message: msg[:min(len(msg), maxMessage)], Hint: holdfast.HintOf(err)}
}

// DiskProgress is how far one disk of a task has come.
type DiskProgress struct {
	Disk   holdfast.DiskID `json:"disk"`
	Name   string          `json:"name,omitempty"`
	Reason holdfast.Reason `json:"reason,omitempty"` // why the whole disk is read
	Sample holdfast.Sample `json:"sample"`
}

// A Task is one VM's, or one set's, part of a run.
type Task struct {
	ID      holdfast.TaskID `json:"id"`
	VM      holdfast.VMID   `json:"vm,omitzero"`
	VMName  string          `json:"vm_name,omitempty"`
	Host    holdfast.HostID `json:"host,omitzero"`
	State   RunState        `json:"state"`
	Started time.Time       `json:"started,omitzero"`
	Ended   time.Time       `json:"ended,omitzero"`
	Error   *TaskError      `json:"error,omitempty"`
	Set     holdfast.SetID  `json:"set,omitzero"`
	Reason  holdfast.Reason `json:"reason,omitempty"` // why it became a full
	Stats   holdfast.Stats  `json:"stats"`
	Disks   []DiskProgress  `json:"disks,omitempty"`

	Stage      string `json:"stage,omitempty"`      // of a script; empty for a VM
	Output     string `json:"output,omitempty"`     // of a script, its end
	Note       string `json:"note,omitempty"`       // what is remarkable of how it went
	Bottleneck string `json:"bottleneck,omitempty"` // source, network, appliance or pool
}

// A LogLine is one line of a run's log.
type LogLine struct {
	Time time.Time `json:"time"`
	Task string    `json:"task,omitempty"` // the VM, or the script
	Text string    `json:"text"`
}

// A Run is one execution of a job or of a single request. Its id is of version 7, so that runs sort by creation.
type Run struct {
	ID      holdfast.RunID  `json:"id"`
	Kind    RunKind         `json:"kind"`
	Job     string          `json:"job,omitempty"` // name of the job; empty for a single request
	Created time.Time       `json:"created"`
	Started time.Time       `json:"started,omitzero"`
	Ended   time.Time       `json:"ended,omitzero"`
	State   RunState        `json:"state"`
	Error   *TaskError      `json:"error,omitempty"`
	Spec    json.RawMessage `json:"spec,omitempty"` // what was asked for
	Tasks   []Task          `json:"tasks,omitempty"`
	Log     []LogLine       `json:"log,omitempty"`
}

// MaxTasks bounds the tasks of one run.
const MaxTasks = 10000

func runIndex(r *Run) [][]byte {
	if r.State.Ended() {
		return nil
	}
	return [][]byte{idKey(tRunActive, r.ID.ID)}
}

// PutRun adds a run or changes it. A state that may not follow the one that is kept, of the run or of a task, is refused with
// Invalid and nothing is changed.
func (tx *Tx) PutRun(r Run) error {
	const op = "put run"
	if r.ID.IsZero() || len(r.Tasks) > MaxTasks {
		return holdfast.Errorf(holdfast.Invalid, op, "run %q with %d tasks; at most %d are allowed", r.ID, len(r.Tasks), MaxTasks)
	}
	var was Run
	old, err := find[Run](tx, runKind, idKey(tRun, r.ID.ID))
	if err != nil {
		return err
	}
	if old != nil {
		was = *old
	}
	if !was.State.May(r.State) {
		return holdfast.Errorf(holdfast.Invalid, op, "run %s cannot go from %q to %q", r.ID, was.State, r.State)
	}
	states := make(map[holdfast.TaskID]RunState, len(was.Tasks))
	for _, t := range was.Tasks {
		states[t.ID] = t.State
	}
	for _, t := range r.Tasks {
		if t.ID.IsZero() {
			return holdfast.Errorf(holdfast.Invalid, op, "run %s has a task without id", r.ID)
		}
		if before := states[t.ID]; !before.May(t.State) {
			return holdfast.Errorf(holdfast.Invalid, op, "task %s cannot go from %q to %q", t.ID, before, t.State)
		}
	}
	return putIndexed(tx, runKind, idKey(tRun, r.ID.ID), &r, runIndex)
}

// Run returns the run; NotExist if there is none.
func (tx *Tx) Run(id holdfast.RunID) (Run, error) { return get[Run](tx, runKind, idKey(tRun, id.ID)) }

// Runs lists the runs, newest first.
func (tx *Tx) Runs(p Page) ([]Run, Cursor, error) {
	return collect(p, all[Run](tx, runKind, key(tRun), p.Cursor, true))
}

// ActiveRuns yields the runs that have not ended, oldest first.
func (tx *Tx) ActiveRuns() iter.Seq2[Run, error] {
	return records(byIndex[Run](tx, runKind, tRun, key(tRunActive), "", false))
}

// DeleteRun forgets a run that has ended, else it fails with Busy. Removing what is not there is no error.
func (tx *Tx) DeleteRun(id holdfast.RunID) error {
	old, err := find[Run](tx, runKind, idKey(tRun, id.ID))
	switch {
	case err != nil:
		return err
	case old != nil && !old.State.Ended():
		return holdfast.Errorf(holdfast.Busy, "delete run", "run %s is %s", id, old.State).Advise("cancel it first")
	}
	_, err = removeIndexed(tx, runKind, idKey(tRun, id.ID), runIndex)
	return err
}

// A Job is a named request that can be run again and again.
type Job struct {
	Name    string          `json:"name"`
	Kind    RunKind         `json:"kind"`
	Created time.Time       `json:"created,omitzero"`
	Spec    json.RawMessage `json:"spec,omitempty"`
	State   json.RawMessage `json:"state,omitempty"` // what the appliance remembers of its runs and schedules
}

// PutJob adds a job or changes it.
func (tx *Tx) PutJob(j Job) error {
	if err := checkName("put job", j.Name); err != nil {
		return err
	}
	return put(tx, jobKind, key(tJob, []byte(j.Name)), &j)
}

// Job returns the job; NotExist if there is none.
func (tx *Tx) Job(name string) (Job, error) { return get[Job](tx, jobKind, key(tJob, []byte(name))) }

// Jobs lists the jobs by name.
func (tx *Tx) Jobs(p Page) ([]Job, Cursor, error) {
	return collect(p, all[Job](tx, jobKind, key(tJob), p.Cursor, false))
}

// DeleteJob removes a job; its runs stay. Removing what is not there is no error.
func (tx *Tx) DeleteJob(name string) error {
	_, err := removeIndexed[Job](tx, jobKind, key(tJob, []byte(name)), nil)
	return err
}
