package job

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/schedule"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// A State is what is remembered of a job between its runs. It is kept as the State of a catalog.Job.
type State struct {
	Mark    time.Time       `json:"mark,omitzero"`     // schedules were looked at up to here
	Pending *Moment         `json:"pending,omitempty"` // could not start yet
	Retry   *Retry          `json:"retry,omitempty"`
	Last    holdfast.RunID  `json:"last,omitzero"`
	Result  string          `json:"result,omitempty"` // of Last, once it was over
	Ended   time.Time       `json:"ended,omitzero"`
	Good    time.Time       `json:"good,omitzero"`   // when a run last ended well
	Known   []holdfast.VMID `json:"known,omitempty"` // that the last run was for
	Began   time.Time       `json:"began,omitzero"`  // Last, once it was over
	Totals  Totals          `json:"totals,omitzero"`
}

// Totals is what a job's runs have moved since it was created, and the last run that is counted.
type Totals struct {
	Run    holdfast.RunID `json:"run,omitzero"`
	Read   int64          `json:"read,omitempty"`
	Sent   int64          `json:"sent,omitempty"`
	Stored int64          `json:"stored,omitempty"`
}

// Count adds a run that is over. Runs of a job end one after the other; one that is noted again is not counted again.
func (t *Totals) Count(v View) {
	if !t.Run.IsZero() && v.ID.String() <= t.Run.String() {
		return
	}
	t.Run = v.ID
	for _, x := range v.Tasks {
		t.Read, t.Sent, t.Stored = t.Read+x.Stats.Read, t.Sent+x.Stats.Sent, t.Stored+x.Stats.Stored
	}
}

// A Moment is one that a schedule named.
type Moment struct {
	At   time.Time `json:"at"`
	Type string    `json:"type,omitempty"`
	Spec string    `json:"spec,omitempty"`
}

// A Retry is a run of those VMs that another run failed for.
type Retry struct {
	At      time.Time      `json:"at"`
	Run     holdfast.RunID `json:"run"`
	Attempt int            `json:"attempt"` // from 1
}

// ReadState reads the state of a job's record.
func ReadState(j catalog.Job) (s State, err error) {
	if len(j.State) == 0 {
		return s, nil
	}
	if err = json.Unmarshal(j.State, &s); err != nil {
		return s, holdfast.Errorf(holdfast.Corrupt, "read job", "state of %s: %w", j.Name, err)
	}
	return s, nil
}

// A Missed is a moment, or several, at which a job was not started.
type Missed struct {
	Moment Moment
	Count  int
	Why    string
	Caught bool // it is run now instead
}

// A Verdict is what is to be done about a job now.
type Verdict struct {
	State  State
	Start  *Moment // a run is to be started for this moment
	Retry  *Retry  // a run of what failed is to be started
	Missed []Missed
	Next   time.Time // when to look again at the latest; zero: only when something changes
}

const (
	// onTime is how late a start may be without being called missed: the looking at schedules itself takes time.
	onTime = 2 * time.Minute
	// maxMoments bounds how many moments of one schedule are counted after a long absence.
	maxMoments = 10000
)

// Plan decides what a job's schedules ask for at a moment. It is pure: job, state and moment in, decision out. busy says that a run of the job
// is under way, which a second one waits for. Moments that pass while one waits fall to it: the job runs once, with the most thorough of their types.
func Plan(d Definition, s State, now time.Time, busy bool) (Verdict, error) {
	zone, err := d.Location()
	if err != nil {
		return Verdict{State: s}, err
	}
	v := Verdict{State: s}
	if !d.Enabled {
		v.State.Mark, v.State.Pending, v.State.Retry = now, nil, nil
		return v, nil
	}
	if s.Mark.IsZero() || s.Mark.After(now) { // new, or the clock was put back: moments are not run twice
		v.State.Mark = now
		if s.Mark.After(now) {
			v.State.Mark = s.Mark
		}
	}
	passed, next, err := d.moments(v.State.Mark, now, zone)
	if err != nil {
		return v, err
	}
	if v.State.Mark.Before(now) {
		v.State.Mark = now
	}
	v.Next = next
	v.take(d, passed)
	v.start(d, now.In(zone), busy)
	if r := v.State.Retry; r != nil && v.Start == nil && v.State.Pending == nil {
		if !busy && !r.At.After(now) {
			v.Retry, v.State.Retry = r, nil
		} else {
			v.sooner(r.At)
		}
	}
	return v, nil
}

// sooner asks to be looked at again at a moment.
func (v *Verdict) sooner(t time.Time) {
	if v.Next.IsZero() || t.Before(v.Next) {
		v.Next = t
	}
}

// moments returns those that the schedules name after mark and not after now, and the first one after now.
func (d Definition) moments(mark, now time.Time, zone *time.Location) (passed []Moment, next time.Time, err error) {
	for _, t := range d.Schedules {
		spec, err := schedule.Parse(t.Spec)
		if err != nil {
			return nil, next, err
		}
		at := mark
		for range maxMoments {
			m, ok := schedule.Next(spec, at, zone)
			if !ok {
				break
			}
			if m.After(now) {
				if next.IsZero() || m.Before(next) {
					next = m
				}
				break
			}
			passed = append(passed, Moment{At: m, Type: or(t.Type, d.Type), Spec: t.String()})
			at = m
		}
	}
	slices.SortStableFunc(passed, func(a, b Moment) int { return a.At.Compare(b.At) })
	return passed, next, nil
}

// thorough orders types by how much they read.
func thorough(t string) int {
	return slices.Index([]string{TypeIncremental, TypeDifferential, TypeFull}, t)
}

// take makes the newest of the moments that have passed the pending one. Earlier ones are missed, unless they are of the same instant.
func (v *Verdict) take(d Definition, passed []Moment) {
	if v.State.Pending != nil {
		passed = append([]Moment{*v.State.Pending}, passed...)
	}
	if len(passed) == 0 {
		return
	}
	last := passed[len(passed)-1]
	missed := Missed{Why: "the next moment came before it could start"}
	for _, m := range passed {
		if thorough(m.Type) > thorough(last.Type) && (m.At.Equal(last.At) || d.Options.Missed != MissedSkip) {
			last.Type = m.Type
		}
		if !m.At.Equal(last.At) {
			missed.Count++
			if missed.Moment.At.IsZero() {
				missed.Moment = m
			}
		}
	}
	if missed.Count > 0 {
		v.Missed = append(v.Missed, missed)
	}
	v.State.Pending = &last
}

// start decides about the pending moment. now is in the job's zone.
func (v *Verdict) start(d Definition, now time.Time, busy bool) {
	p, o := v.State.Pending, d.Options
	if p == nil {
		return
	}
	late := now.Sub(p.At)
	black := slices.ContainsFunc(o.Blackout, func(w wire.Window) bool { return w.Open(now) })
	miss := func(why string, caught bool) {
		v.Missed = append(v.Missed, Missed{Moment: *p, Count: 1, Why: why, Caught: caught})
	}
	switch {
	case o.StartWindow > 0 && late > o.StartWindow:
		miss("it could not start within "+short(o.StartWindow), false)
		v.State.Pending = nil
	case o.Missed == MissedSkip && late > onTime && o.StartWindow == 0:
		miss("it could not start in time", false)
		v.State.Pending = nil
	case black:
		v.sooner(wire.NextChange(o.Blackout, now))
	case busy: // looked at again when the run is over
	default:
		if late > onTime {
			miss("it could not start in time", true)
		}
		v.Start, v.State.Pending, v.State.Retry = p, nil, nil
	}
	if v.State.Pending != nil && o.StartWindow > 0 {
		v.sooner(p.At.Add(o.StartWindow + time.Second))
	}
}
