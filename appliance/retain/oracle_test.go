package retain

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// This file holds an oracle that was written from docs/operate/retention.md and not from the code: every question is asked of all points
// anew, by counting. It shares the types only.

type verdict struct {
	keep, expired bool
	cause         Cause
}

// later tells whether a is newer than b.
func later(a, b Point) bool {
	if !a.Time.Equal(b.Time) {
		return a.Time.After(b.Time)
	}
	return a.Set.String() > b.Set.String()
}

func count(of []Point, ok func(Point) bool) (n int) {
	for _, p := range of {
		if ok(p) {
			n++
		}
	}
	return n
}

type bucketKey struct {
	kind, zone string
	at         int64
}

var bucketNames = map[bucketKey]string{} // formatting takes most of the oracle's time

func oracleBucket(kind string, t time.Time, z *time.Location) string {
	key := bucketKey{kind, z.String(), t.UnixNano()}
	name, ok := bucketNames[key]
	if !ok {
		name = bucketName(kind, t.In(z))
		bucketNames[key] = name
	}
	return name
}

func bucketName(kind string, l time.Time) string {
	switch kind {
	case "hourly":
		return l.Format("2006-01-02 15 -07:00:00")
	case "daily":
		return l.Format("2006-01-02")
	case "weekly": // its Monday, counted on a calendar without zones
		d := time.Date(l.Year(), l.Month(), l.Day(), 0, 0, 0, 0, time.UTC)
		for d.Weekday() != time.Monday {
			d = d.Add(-24 * time.Hour)
		}
		return d.Format("2006-01-02")
	case "monthly":
		return l.Format("2006-01")
	}
	return l.Format("2006")
}

func oracleSelected(p Point, mine []Point, kind string, n int, z *time.Location) bool {
	key := oracleBucket(kind, p.Time, z)
	usable := func(x Point) bool { return x.State != Damaged }
	same := func(x Point) bool { return oracleBucket(kind, x.Time, z) == key }
	if usable(p) {
		if count(mine, func(x Point) bool { return usable(x) && same(x) && later(x, p) }) > 0 {
			return false
		}
	} else if count(mine, func(x Point) bool { return same(x) && (usable(x) || later(x, p)) }) > 0 {
		return false
	}
	good, broken := map[string]bool{}, map[string]bool{}
	for _, x := range mine { // buckets whose standing point is newer than p
		if usable(x) {
			good[oracleBucket(kind, x.Time, z)] = true
		}
	}
	newerGood := map[string]bool{}
	for _, x := range mine {
		k := oracleBucket(kind, x.Time, z)
		switch {
		case !later(x, p) || k == key:
		case usable(x):
			newerGood[k] = true
		case !good[k]:
			broken[k] = true
		}
	}
	if len(newerGood) >= n {
		return false
	}
	return usable(p) || len(broken) < n
}

func oraclePoint(pol Policy, p Point, all []Point, now time.Time, z *time.Location) (Cause, bool) {
	var mine []Point
	for _, x := range all {
		if x.VM == p.VM && !x.Time.After(now) {
			mine = append(mine, x)
		}
	}
	if p.Time.After(now) {
		return Future, false
	}
	if p.Hold.After(now) {
		return Held, false
	}
	class := map[State]int{Good: 0, Unverified: 1, Damaged: 2}
	if count(mine, func(x Point) bool {
		return class[x.State] < class[p.State] || x.State == p.State && later(x, p)
	}) == 0 {
		return Newest, false
	}
	before := count(mine, func(x Point) bool {
		xd, pd := x.State == Damaged, p.State == Damaged
		return !xd && pd || xd == pd && later(x, p)
	})
	if before < max(pol.MinPoints, 1) {
		return Minimum, false
	}
	g := pol.GFS
	for kind, n := range map[string]int{"hourly": g.Hourly, "daily": g.Daily, "weekly": g.Weekly, "monthly": g.Monthly, "yearly": g.Yearly} {
		if n > 0 && oracleSelected(p, mine, kind, n, z) {
			return Selected, false
		}
	}
	if pol.Days > 0 {
		l := now.In(z)
		h, m, s := l.Clock()
		if p.Time.Before(time.Date(l.Year(), l.Month(), l.Day()-pol.Days, h, m, s, l.Nanosecond(), z)) {
			return TooOld, true
		}
	}
	if pol.Count > 0 && count(mine, func(x Point) bool { return x.State != Damaged && later(x, p) }) >= pol.Count {
		return TooMany, true
	}
	if pol.Days+pol.Count == 0 && pol.Quota == 0 && g != (GFS{}) {
		return NotSelected, true
	}
	return Within, false
}

func oracle(pol Policy, all []Point, now time.Time, z *time.Location, pool PoolFill) map[holdfast.SetID]verdict {
	out := map[holdfast.SetID]verdict{}
	byAge := slices.Clone(all)
	slices.SortFunc(byAge, func(a, b Point) int {
		if later(a, b) {
			return 1
		}
		return -1
	})
	stored := pool.Used - pool.Pending
	left := stored
	for _, p := range byAge {
		c, expired := oraclePoint(pol, p, all, now, z)
		out[p.Set] = verdict{true, expired, c}
		if expired {
			left -= max(p.Unique, 0)
		}
	}
	for _, p := range byAge {
		if pol.Quota > 0 && left > pol.Quota && out[p.Set].cause == Within {
			out[p.Set] = verdict{true, true, OverQuota}
			left -= max(p.Unique, 0)
		}
	}
	for _, p := range byAge {
		v := out[p.Set]
		if !v.expired {
			continue
		}
		if pol.DelayUntilFull > 0 && pool.Size > 0 && float64(stored)*100 < float64(pool.Size)*float64(pol.DelayUntilFull) {
			continue
		}
		out[p.Set] = verdict{false, true, v.cause}
		stored -= max(p.Unique, 0)
	}
	return out
}

// timeline is one imagined site.
type timeline struct {
	policy Policy
	points []Point
	now    time.Time
	zone   *time.Location
	pool   PoolFill
}

func chance(r *rand.Rand, of int) bool { return r.IntN(of) == 0 }

func randomTimeline(t *testing.T, r *rand.Rand) timeline {
	zones := []string{"UTC", "Europe/Berlin", "America/St_Johns", "America/Havana", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu"}
	s := timeline{zone: zone(t, zones[r.IntN(len(zones))])}
	s.now = time.Date(1985+r.IntN(50), time.Month(1+r.IntN(12)), 1+r.IntN(31), r.IntN(24), r.IntN(60), r.IntN(60), 0, time.UTC)
	if chance(r, 4) { // right where the clocks change in the north
		s.now = time.Date(2024+r.IntN(4), []time.Month{3, 10, 11, 2}[r.IntN(4)], 25+r.IntN(8), r.IntN(24), r.IntN(60), 0, 0, time.UTC)
	}
	some := func(n int) int {
		if chance(r, 2) {
			return 0
		}
		return 1 + r.IntN(n)
	}
	s.policy = Policy{Days: some(60), Count: some(20), Quota: int64(some(3000)), MinPoints: r.IntN(4), DelayUntilFull: some(100),
		GFS: GFS{Hourly: some(12), Daily: some(14), Weekly: some(8), Monthly: some(12), Yearly: some(4)}}
	if chance(r, 4) {
		s.policy.Days, s.policy.Count, s.policy.Quota = 0, 0, 0
	}
	step := []time.Duration{17 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour, 9 * 24 * time.Hour}[r.IntN(5)]
	for v := range 1 + r.IntN(4) {
		vm := holdfast.VMID{ID: holdfast.ID{byte(v + 1)}}
		at := s.now.Add(step * time.Duration(r.IntN(6)-2))
		for i := range r.IntN(60) {
			p := Point{Set: holdfast.SetID{ID: holdfast.ID{byte(v + 1), byte(i), byte(r.IntN(256))}}, VM: vm, VMName: fmt.Sprint("vm", v), Time: at,
				State: []State{Good, Good, Good, Unverified, Damaged}[r.IntN(5)], Unique: int64(r.IntN(100))}
			if chance(r, 12) {
				p.Hold = s.now.Add(time.Duration(r.IntN(200)-100) * time.Hour)
			}
			s.points = append(s.points, p)
			s.pool.Used += p.Unique
			if !chance(r, 10) { // else two at one moment
				at = at.Add(-time.Duration(float64(step) * (0.1 + 1.5*r.Float64())))
			}
		}
	}
	s.pool.Used += int64(r.IntN(500))
	s.pool.Pending = int64(some(100))
	if !chance(r, 5) {
		s.pool.Size = s.pool.Used + int64(r.IntN(1000))
	}
	r.Shuffle(len(s.points), func(i, j int) { s.points[i], s.points[j] = s.points[j], s.points[i] })
	return s
}

func (s timeline) decide() []Decision { return Decide(s.policy, s.points, s.now, s.zone, s.pool) }

// TestDecideAgreesWithTheOracle compares 1,000 random timelines with the oracle, and checks what must hold of any answer.
func TestDecideAgreesWithTheOracle(t *testing.T) {
	for seed := range uint64(1000) {
		s := randomTimeline(t, rand.New(rand.NewPCG(5, seed)))
		ds, want := s.decide(), oracle(s.policy, s.points, s.now, s.zone, s.pool)
		if len(ds) != len(s.points) || len(want) != len(ds) {
			t.Fatalf("seed %d: %d decisions, %d by the oracle, of %d points", seed, len(ds), len(want), len(s.points))
		}
		for _, d := range ds {
			if got := (verdict{d.Keep, d.Expired, d.Cause}); got != want[d.Set] {
				t.Fatalf("seed %d, %v, zone %v, now %v, pool %+v: point of %s at %v (%v): %+v (%s), the oracle says %+v",
					seed, s.policy, s.zone, s.now, s.pool, d.VMName, d.Time, d.State, got, d.Reason, want[d.Set])
			}
			if d.Reason == "" || d.Frees != max(d.Unique, 0) || !d.Keep && !d.Expired {
				t.Fatalf("seed %d: %+v", seed, d)
			}
		}
		if !slices.IsSortedFunc(ds, func(a, b Decision) int {
			return cmp.Or(cmp.Compare(a.VMName, b.VMName), b.Time.Compare(a.Time))
		}) {
			t.Fatalf("seed %d: not VM by VM, newest first", seed)
		}
	}
}

// TestApplyDoesWhatSimulateSaid removes what was decided, one at a time, and decides again: nothing more goes, what stayed stays for the same
// cause, and the order in which the points are given changes nothing.
func TestApplyDoesWhatSimulateSaid(t *testing.T) {
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(6, seed))
		s := randomTimeline(t, r)
		said := s.decide()
		r.Shuffle(len(s.points), func(i, j int) { s.points[i], s.points[j] = s.points[j], s.points[i] })
		if again := s.decide(); !slices.Equal(said, again) {
			t.Fatalf("seed %d: another order of the same points gives another answer", seed)
		}
		var kept []Decision
		for _, d := range said {
			if d.Keep {
				kept = append(kept, d)
			}
		}
		for _, d := range Removed(said) {
			s.points = slices.DeleteFunc(s.points, func(p Point) bool { return p.Set == d.Set })
			s.pool.Used -= d.Frees
		}
		after := s.decide()
		if len(after) != len(kept) {
			t.Fatalf("seed %d: %d left, %d were to be kept", seed, len(after), len(kept))
		}
		for i, d := range after {
			if !d.Keep || d.Set != kept[i].Set || d.Cause != kept[i].Cause {
				t.Fatalf("seed %d, %v: the second round says %+v, the first said %+v", seed, s.policy, d, kept[i])
			}
		}
	}
}
