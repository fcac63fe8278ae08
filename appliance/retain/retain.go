// Package retain decides which points in time stay and which go. It is pure: a policy, the points, a moment, a zone and how full the
// pool is go in; a decision with its reason for every point comes out. It reads no clock, keeps no state and deletes nothing, so that
// what a simulation prints is what applying does: both print the same decisions.
//
// In this order, and the first that applies gives the reason:
//
//   - a point from the future stays, and counts for nothing else: the clock is wrong, now or when it was made;
//   - a point on hold stays;
//   - a VM's newest good point stays; where none is good the newest unverified one, else the newest damaged one;
//   - a VM's newest MinPoints points stay, damaged ones counted last;
//   - what GFS selects stays;
//   - what is past Days, Count or Quota, or with GFS alone is not selected, has expired;
//   - everything else stays.
//
// What has expired goes at once, or with DelayUntilFull the earliest first while the pool is too full.
//
// It must not import anything of the house but the ground floor.
package retain

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// State is what is known of a point's bytes.
type State uint8

const (
	Unverified State = iota // committed, not yet read back
	Good                    // read back, or trusted by the pool's own checks
	Damaged                 // some of it cannot be restored
)

var stateNames = [...]string{"unverified", "good", "damaged"}

func (s State) String() string { return stateNames[min(s, Damaged)] }

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *State) UnmarshalText(text []byte) error {
	i := slices.Index(stateNames[:], string(text))
	if i < 0 {
		return holdfast.Errorf(holdfast.Invalid, "parse state", "%q is none of %v", text[:min(len(text), 64)], stateNames)
	}
	*s = State(i)
	return nil
}

// A Point is one point in time of one VM in one pool.
type Point struct {
	Set    holdfast.SetID `json:"set"`
	VM     holdfast.VMID  `json:"vm"`
	VMName string         `json:"vm_name"`
	Time   time.Time      `json:"time"` // the moment that it restores to
	State  State          `json:"state"`
	Hold   time.Time      `json:"hold,omitzero"` // it stays until then, whatever the policy
	// Unique is how many bytes deleting the set gives back. Where sets share data this is an estimate; one that is too low lets
	// Quota and DelayUntilFull remove more than they need, so who applies those takes them a few at a time, earliest first, and
	// decides anew when the pool has been collected.
	Unique int64 `json:"unique"`
}

// PoolFill is how full the pool is, in bytes. A pool that has no size of its own, an object store, has Size 0 and does not delay.
type PoolFill struct {
	Used    int64 `json:"used"`
	Size    int64 `json:"size"`
	Pending int64 `json:"pending,omitzero"` // part of Used that the next collection gives back: its sets are deleted already
}

// Cause is the class of a decision's reason, for programs.
type Cause string

const (
	Future      Cause = "future"       // kept: newer than now
	Held        Cause = "held"         // kept: on hold
	Newest      Cause = "newest"       // kept: the newest point of the best state
	Minimum     Cause = "minimum"      // kept: among the newest MinPoints
	Selected    Cause = "selected"     // kept: GFS selects it
	Within      Cause = "within"       // kept: no limit is passed, or there is none
	TooOld      Cause = "too-old"      // expired: Days
	TooMany     Cause = "too-many"     // expired: Count
	OverQuota   Cause = "over-quota"   // expired: Quota
	NotSelected Cause = "not-selected" // expired: GFS alone
)

// A Decision says what becomes of a point.
type Decision struct {
	Point
	Keep    bool   `json:"keep"`
	Expired bool   `json:"expired"` // the policy no longer needs it; with Keep it only waits for the pool to become full
	Cause   Cause  `json:"cause"`
	Reason  string `json:"reason"` // for a person: "weekly 3 of 8", "older than 30 days"
	Frees   int64  `json:"frees"`  // bytes that removing it gives back, kept or not
}

// Decide returns one Decision per point, VM by VM in order of their names, each VM's newest point first. The same points in
// another order give the same answer. A nil zone is UTC. Removing what is decided and deciding again removes nothing more.
func Decide(p Policy, sets []Point, now time.Time, zone *time.Location, pool PoolFill) []Decision {
	if zone == nil {
		zone = time.UTC
	}
	p = p.normal()
	j := &judge{p: p, now: now, zone: zone}
	j.cutoff = now.In(zone).AddDate(0, 0, -p.Days)
	groups := byVM(sets)
	out := make([]Decision, 0, len(sets))
	for _, g := range groups {
		out = append(out, j.vm(g)...)
	}
	j.quota(out, pool)
	j.remove(out, pool)
	return out
}

// Removed returns what is to be removed, earliest first: the order to apply it in, so that an interrupted round has removed what
// was least missed.
func Removed(ds []Decision) []Decision {
	var out []Decision
	for _, d := range ds {
		if !d.Keep {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b Decision) int { return newestFirst(b.Point, a.Point) })
	return out
}

// byVM groups points by VM, ordered by the name of each VM's newest point, newest points first.
func byVM(sets []Point) [][]Point {
	vms := map[holdfast.VMID][]Point{}
	for _, s := range sets {
		vms[s.VM] = append(vms[s.VM], s)
	}
	var out [][]Point
	for _, g := range vms {
		slices.SortFunc(g, newestFirst)
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b []Point) int {
		return cmp.Or(cmp.Compare(a[0].VMName, b[0].VMName), bytes.Compare(a[0].VM.ID[:], b[0].VM.ID[:]))
	})
	return out
}

func newestFirst(a, b Point) int {
	return cmp.Or(b.Time.Compare(a.Time), bytes.Compare(b.Set.ID[:], a.Set.ID[:]))
}

// judge carries what all of a round's decisions need.
type judge struct {
	p      Policy
	now    time.Time
	zone   *time.Location
	cutoff time.Time // points before it are older than Days
}

// vm decides on one VM's points, newest first, as far as they do not depend on other VMs and the pool.
func (j *judge) vm(points []Point) []Decision {
	name := points[0].VMName
	out := make([]Decision, len(points))
	var past []*Decision
	for i, p := range points {
		out[i] = Decision{Point: p, Keep: true, Frees: max(p.Unique, 0)}
		if p.Time.After(j.now) {
			out[i].Cause, out[i].Reason = Future, "from the future: newer than "+j.stamp(j.now)
			continue
		}
		past = append(past, &out[i])
	}
	selected := j.gfs(past)
	ranked := slices.Clone(past)
	slices.SortStableFunc(ranked, func(a, b *Decision) int { return damagedLast(a) - damagedLast(b) })
	rank := map[*Decision]int{}
	for i, d := range ranked {
		rank[d] = i
	}
	best := newestOfBest(past)
	newer := 0 // usable points that are newer than d
	for _, d := range past {
		switch {
		case d.Hold.After(j.now):
			d.Cause, d.Reason = Held, "held until "+j.stamp(d.Hold)
		case d == best:
			d.Cause, d.Reason = Newest, newestReason(d.State, name)
		case rank[d] < j.p.MinPoints:
			d.Cause, d.Reason = Minimum, fmt.Sprintf("one of the %d points that %s keeps at least", j.p.MinPoints, name)
		case selected[d] != "":
			d.Cause, d.Reason = Selected, selected[d]
		default:
			j.limits(d, newer)
		}
		if d.State != Damaged {
			newer++
		}
	}
	return out
}

// limits decides on a point that nothing protects.
func (j *judge) limits(d *Decision, newer int) {
	p := j.p
	switch {
	case p.Days > 0 && d.Time.Before(j.cutoff):
		d.Expired, d.Cause, d.Reason = true, TooOld, fmt.Sprintf("older than %s", plural(p.Days, "day"))
	case p.Count > 0 && newer >= p.Count:
		d.Expired, d.Cause, d.Reason = true, TooMany, fmt.Sprintf("%s newer than it", plural(newer, "usable point"))
	case !p.limited() && p.GFS != (GFS{}):
		d.Expired, d.Cause, d.Reason = true, NotSelected, "not selected by "+Policy{GFS: p.GFS}.String()
	case !p.limited():
		d.Cause, d.Reason = Within, "kept forever"
	default:
		d.Cause, d.Reason = Within, "within "+Policy{Days: p.Days, Count: p.Count, Quota: p.Quota}.String()
	}
}

// quota expires the earliest points that nothing protects until what would be left in the pool fits.
func (j *judge) quota(ds []Decision, pool PoolFill) {
	if j.p.Quota == 0 {
		return
	}
	left := pool.Used - pool.Pending
	var open []*Decision
	for i := range ds {
		if d := &ds[i]; d.Expired {
			left -= d.Frees
		} else if d.Cause == Within {
			open = append(open, d)
		}
	}
	earliestFirst(open)
	for _, d := range open {
		if left <= j.p.Quota {
			return
		}
		left -= d.Frees
		d.Expired, d.Cause, d.Reason = true, OverQuota, "earliest of a pool above its quota of "+formatBytes(j.p.Quota)
	}
}

// remove takes Keep from what has expired: from all of it, or with a delay from the earliest while the pool is too full.
func (j *judge) remove(ds []Decision, pool PoolFill) {
	var expired []*Decision
	for i := range ds {
		if ds[i].Expired {
			expired = append(expired, &ds[i])
		}
	}
	percent := int64(j.p.DelayUntilFull)
	delay := percent > 0 && pool.Size > 0
	full := pool.Size/100*percent + (pool.Size%100*percent+99)/100 // rounded up: the first whole byte that is enough
	left := pool.Used - pool.Pending
	earliestFirst(expired)
	for _, d := range expired {
		if delay && left < full {
			d.Reason = fmt.Sprintf("%s; stays until the pool is %d %% full", d.Reason, percent)
			continue
		}
		d.Keep = false
		left -= d.Frees
	}
}

func earliestFirst(ds []*Decision) {
	slices.SortFunc(ds, func(a, b *Decision) int { return newestFirst(b.Point, a.Point) })
}

func damagedLast(d *Decision) int {
	if d.State == Damaged {
		return 1
	}
	return 0
}

// newestOfBest returns the newest good point, else the newest unverified, else the newest damaged one; nil of none.
func newestOfBest(newestFirst []*Decision) *Decision {
	for _, s := range []State{Good, Unverified, Damaged} {
		for _, d := range newestFirst {
			if d.State == s {
				return d
			}
		}
	}
	return nil
}

func newestReason(s State, name string) string {
	switch s {
	case Good:
		return "newest good point of " + name
	case Unverified:
		return "newest point of " + name + ", which has none that is verified"
	}
	return "newest point of " + name + ", of which all are damaged"
}

func (j *judge) stamp(t time.Time) string { return t.In(j.zone).Format("2006-01-02 15:04") }

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
