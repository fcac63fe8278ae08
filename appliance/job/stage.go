package job

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// The stages of a job's run that are scripts, in their order: precondition on every host, then on each host pre-script, its VMs, post-script.
const (
	StagePrecondition = "precondition"
	StagePre          = "pre-script"
	StagePost         = "post-script"
)

// stoppedTimeout bounds a post-script that cleans up after a run that was stopped: the one who stopped it waits for it.
const stoppedTimeout = 30 * time.Second

const (
	maxOutput = 64 << 10 // of a script, kept with its task
	maxLog    = 2000     // lines of a run
)

// scripts returns the tasks of a run's scripts, for each host that has VMs of it.
func (r *run) scripts(now time.Time) []catalog.Task {
	var hosts []holdfast.HostID
	for _, t := range r.rec.Tasks {
		if !slices.Contains(hosts, t.Host) {
			hosts = append(hosts, t.Host)
		}
	}
	o := &r.spec.Options
	var out []catalog.Task
	for _, s := range []struct{ stage, name string }{{StagePrecondition, o.Precondition}, {StagePre, o.PreScript}, {StagePost, o.PostScript}} {
		if s.name == "" {
			continue
		}
		for _, h := range hosts {
			out = append(out, catalog.Task{ID: holdfast.TaskID{ID: holdfast.NewTimeID(now)}, Host: h, State: catalog.RunQueued, Stage: s.stage, VMName: s.name})
		}
	}
	return out
}

// scriptTask fills in what the agent needs to run a script. Nothing of it comes from anywhere but the job and the appliance; the file
// is the host's administrator's.
func (t *task) scriptTask(w *wire.Task) {
	spec := &t.run.spec
	w.Kind, w.VM, w.Script = wire.TaskScript, holdfast.VMID{}, t.rec.VMName
	w.Timeout = or(spec.Options.ScriptTimeout, defaultTimeout)
	var names, ids []string
	result := "done"
	for _, x := range t.run.tasks {
		if x.rec.Stage != "" || x.host != t.host {
			continue
		}
		names, ids = append(names, x.rec.VMName), append(ids, x.rec.VM.String())
		if s := x.rec.State; s != catalog.RunDone && result != string(catalog.RunCancelled) {
			result = string(s)
		}
	}
	w.Env = map[string]string{
		"HOLDFAST_STAGE": t.rec.Stage, "HOLDFAST_JOB": spec.Job, "HOLDFAST_RUN": t.run.rec.ID.String(), "HOLDFAST_TYPE": or(spec.Type, TypeIncremental),
		"HOLDFAST_POOL": spec.PoolName, "HOLDFAST_HOST": t.host.name, "HOLDFAST_VMS": list(names), "HOLDFAST_VM_IDS": list(ids),
		"HOLDFAST_ATTEMPT": fmt.Sprint(spec.Attempt),
	}
	if t.rec.Stage == StagePost {
		w.Env["HOLDFAST_RESULT"] = result
		if t.run.cancelled {
			w.Timeout = min(w.Timeout, stoppedTimeout)
		}
	}
}

// list joins words with newlines, bounded: an environment has bounds too.
func list(words []string) string {
	out := ""
	for _, s := range words {
		if len(out)+len(s) > 16<<10 {
			return out
		}
		if out != "" {
			out += "\n"
		}
		out += s
	}
	return out
}

// scriptEnded takes what an agent says of how a script ended. The caller has e.mu.
func (t *task) scriptEnded(now time.Time, s *wire.ScriptResult, err error) error {
	if s != nil {
		t.rec.Output = s.Output[max(0, len(s.Output)-maxOutput):]
		if t.rec.Output != "" {
			t.run.log(now, t.rec.VMName, "it printed:\n%s", t.rec.Output)
		}
	}
	if err != nil || s == nil || s.Exit == 0 {
		return err
	}
	if t.rec.Stage == StagePrecondition && !t.run.cancelled {
		t.run.aborted = true
	}
	return holdfast.Errorf(holdfast.Invalid, "", "the %s %s ended with code %d", t.rec.Stage, t.rec.VMName, s.Exit).
		Advise("'holdfast run log %s' has what it printed", t.run.rec.ID)
}

var errAborted = holdfast.Errorf(holdfast.Cancelled, "", "the run's precondition is not met")

// advance ends the tasks that the scripts' ends have made pointless. The caller has e.mu.
func (e *Engine) advance(r *run) {
	for _, s := range r.tasks {
		if s.rec.Stage == "" || s.rec.Stage == StagePost || !s.rec.State.Ended() || s.rec.State == catalog.RunDone || r.cancelled {
			continue
		}
		for _, t := range r.tasks {
			if t.rec.State.Ended() || t.sent {
				continue
			}
			switch {
			case s.rec.Stage == StagePrecondition && r.aborted:
				e.conclude(t, errAborted, true)
			case s.rec.Stage == StagePrecondition || t.host == s.host && t.rec.Stage == "":
				e.conclude(t, holdfast.Errorf(s.rec.Error.Kind, "", "the %s failed: %s", s.rec.Stage, s.rec.Error.Message).Advise("%s", s.rec.Error.Hint), true)
			}
		}
	}
}

// ready tells whether a task's turn in its run has come: the stages before it are over. The caller has e.mu.
func (t *task) ready() bool {
	begun := false
	for _, x := range t.run.tasks {
		open := !x.rec.State.Ended()
		switch x.rec.Stage {
		case StagePrecondition:
			if open && t.rec.Stage != StagePrecondition {
				return false
			}
		case StagePre:
			if x.host != t.host {
				continue
			}
			begun = begun || x.sent
			if open && t.rec.Stage != StagePrecondition && t != x {
				return false
			}
		case "":
			begun = begun || x.sent && x.host == t.host
			if open && x.host == t.host && t.rec.Stage == StagePost {
				return false
			}
		}
	}
	return t.rec.Stage != StagePost || begun
}

// pointless tells whether a post-script has nothing to clean up after: nothing before it was begun. The caller has e.mu.
func (t *task) pointless() bool {
	if t.rec.Stage != StagePost {
		return false
	}
	for _, x := range t.run.tasks {
		if x == t || x.rec.Stage == StagePrecondition && x.rec.State.Ended() {
			continue
		}
		if x.rec.Stage == StagePrecondition || x.host == t.host && (x.sent || !x.rec.State.Ended()) {
			return false
		}
	}
	return true
}

// log adds a line to the run's log. A log that is full keeps its beginning and its end. The caller has e.mu.
func (r *run) log(now time.Time, task, format string, args ...any) {
	if len(r.rec.Log) >= maxLog {
		r.dropped++
		r.rec.Log = slices.Delete(r.rec.Log, maxLog/2, maxLog/2+1)
	}
	r.rec.Log = append(r.rec.Log, catalog.LogLine{Time: now.UTC(), Task: task, Text: fmt.Sprintf(format, args...)})
	r.dirty = true
	if r.lines != nil {
		close(r.lines)
		r.lines = nil
	}
}

func (t *task) logEnd(now time.Time) {
	text := string(t.rec.State)
	if t.rec.Error != nil {
		text += ": " + t.rec.Error.Message
	}
	if t.rec.Bottleneck != "" {
		text += "; it waited mostly for the " + t.rec.Bottleneck
	}
	t.run.log(now, t.rec.VMName, "%s", text)
}

// spent is where a backup's time went.
type spent struct {
	agent wire.Waits
	idle  time.Duration // the appliance waited for the agent
	pool  time.Duration // the appliance waited for the pool
	all   time.Duration
}

// bottleneck names what a backup waited for most: its source, the network, the appliance or the pool. Waits that are a small part of the whole
// name nothing. The agent waits either for its disks or for the appliance to take and answer; of the latter the appliance knows whether it was busy.
func (s spent) bottleneck() string {
	out := s.agent.Send + s.agent.Answer
	switch busy := s.all - s.idle; {
	case s.all <= 0 || s.agent.Source+out < s.all/20:
		return ""
	case s.agent.Source >= out:
		return "source"
	case s.pool*2 > s.all:
		return "pool"
	case busy*2 > s.all:
		return "appliance"
	}
	return "network"
}
