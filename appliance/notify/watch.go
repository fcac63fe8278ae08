package notify

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// Kinds of alarms that this file's checks raise: what comes before the slash in their keys, and what Sweep is called with.
const (
	KindMissed = "missed"
	KindStale  = "stale"
)

// A Job is what Missed needs to know of one.
type Job struct {
	Name    string
	Enabled bool
	// Due holds the latest moments, up to now, at which the job's schedules wanted it to start, since it was made, changed or enabled.
	// One is enough; with more the text says how many were missed.
	Due   []time.Time
	Grace time.Duration // how much later is not late; 0: 15 minutes
}

// A Run is one start of a job.
type Run struct {
	Job     string
	Started time.Time
}

const defaultGrace = 15 * time.Minute

// Missed returns one event for each job: it raises the alarm missed/NAME where the job should have started, Grace has passed and no run has
// started since, and clears it where not. It is pure. Feed it to Sweep with KindMissed.
func Missed(jobs []Job, runs []Run, now time.Time) []holdfast.Event {
	last := map[string]time.Time{}
	for _, r := range runs {
		if !r.Started.After(now) && r.Started.After(last[r.Job]) { // one from the future says nothing: the clock was wrong
			last[r.Job] = r.Started
		}
	}
	out := make([]holdfast.Event, 0, len(jobs))
	for _, j := range jobs {
		grace := j.Grace
		if grace <= 0 {
			grace = defaultGrace
		}
		var missed []time.Time
		for _, d := range j.Due {
			if !d.Add(grace).After(now) && last[j.Name].Before(d) {
				missed = append(missed, d)
			}
		}
		key := KindMissed + "/" + j.Name
		e := holdfast.Event{Time: now, Type: EventMissedRun, Fields: map[string]string{"job": j.Name}}
		if !j.Enabled || len(missed) == 0 {
			e.Text = "job " + j.Name + " runs as planned"
			if !j.Enabled {
				e.Text = "job " + j.Name + " is disabled"
			}
			out = append(out, Clear(e, key))
			continue
		}
		due := slices.MaxFunc(missed, time.Time.Compare)
		e.Severity = holdfast.Alarm
		e.Text = fmt.Sprintf("job %s should have started at %s and has not", j.Name, due.Format("2006-01-02 15:04 MST"))
		if len(missed) > 1 {
			e.Text += fmt.Sprintf("; it missed %d starts", len(missed))
		}
		e.Fields["due"] = due.Format(time.RFC3339)
		out = append(out, Raise(e, key))
	}
	return out
}

// A VM is what Stale needs to know of one.
type VM struct {
	ID     holdfast.VMID
	Name   string
	Host   string
	Since  time.Time     // protected since: a job covers it, or the rule was made
	Good   time.Time     // its newest good point; zero if there is none
	Within time.Duration // there must be a good point so recent; 0: it is not watched
}

// clockSlack is how far a point may seem to be from the future: machines differ.
const clockSlack = time.Hour

// Stale returns one event for each VM: it raises the alarm stale/ID where nothing good was backed up for longer than Within, and clears it
// where not. A newest point from the future is an alarm too: it would hide that nothing follows. It is pure. Feed it to Sweep with KindStale.
func Stale(vms []VM, now time.Time) []holdfast.Event {
	out := make([]holdfast.Event, 0, len(vms))
	for _, v := range vms {
		key := KindStale + "/" + v.ID.String()
		e := holdfast.Event{Time: now, Type: EventStale, Fields: map[string]string{"vm": v.Name, "vm_id": v.ID.String(), "host": v.Host}}
		from := v.Since
		if v.Good.After(from) {
			from = v.Good
		}
		switch {
		case v.Within <= 0:
			e.Text = "VM " + v.Name + " is not watched"
			out = append(out, Clear(e, key))
			continue
		case v.Good.After(now.Add(clockSlack)):
			e.Text = fmt.Sprintf("the newest point of VM %s is from the future, %s: check the clock", v.Name, v.Good.Format("2006-01-02 15:04 MST"))
		case now.Sub(from) <= v.Within:
			e.Text = "VM " + v.Name + " is backed up in time"
			out = append(out, Clear(e, key))
			continue
		case v.Good.IsZero():
			e.Text = fmt.Sprintf("VM %s was never backed up, and has been protected since %s", v.Name, v.Since.Format("2006-01-02 15:04 MST"))
		default:
			e.Text = fmt.Sprintf("VM %s was last backed up at %s, more than %s ago", v.Name, v.Good.Format("2006-01-02 15:04 MST"), hours(v.Within))
		}
		e.Severity = holdfast.Alarm
		out = append(out, Raise(e, key))
	}
	return out
}

func hours(d time.Duration) string {
	switch {
	case d%(24*time.Hour) == 0 && d > 24*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d%time.Hour == 0 && d > time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return d.String()
}
