package retain

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// bucket names an hour, day, week, month or year of a zone. Two moments are in the same one if the zone's calendar puts them there; an
// hour that comes twice, when clocks go back, is two buckets, told apart by the offset.
type bucket struct {
	year, unit, hour, offset int
}

// rule is one line of a GFS policy.
type rule struct {
	name   string
	n      int
	bucket func(local time.Time) bucket
}

func (g GFS) rules() []rule {
	return []rule{
		{"hourly", g.Hourly, func(t time.Time) bucket {
			_, offset := t.Zone()
			return bucket{t.Year(), t.YearDay(), t.Hour(), offset}
		}},
		{"daily", g.Daily, func(t time.Time) bucket { return bucket{year: t.Year(), unit: t.YearDay()} }},
		{"weekly", g.Weekly, func(t time.Time) bucket {
			year, week := t.ISOWeek()
			return bucket{year: year, unit: week}
		}},
		{"monthly", g.Monthly, func(t time.Time) bucket { return bucket{year: t.Year(), unit: int(t.Month())} }},
		{"yearly", g.Yearly, func(t time.Time) bucket { return bucket{year: t.Year()} }},
	}
}

// gfs returns the reasons of the points, newest first, that GFS selects: of each rule's latest buckets with a usable point the newest
// usable one. A bucket whose points are all damaged takes no usable one's place: its newest is selected beside them.
func (j *judge) gfs(points []*Decision) map[*Decision]string {
	why := map[*Decision]string{}
	for _, r := range j.p.GFS.rules() {
		for d, reason := range j.selectBy(r, points) {
			if why[d] != "" {
				reason = why[d] + ", " + reason
			}
			why[d] = reason
		}
	}
	return why
}

func (j *judge) selectBy(r rule, points []*Decision) map[*Decision]string {
	if r.n == 0 {
		return nil
	}
	newest := map[bucket]*Decision{}
	for _, d := range points {
		b := r.bucket(d.Time.In(j.zone))
		if seen := newest[b]; seen == nil || seen.State == Damaged && d.State != Damaged {
			newest[b] = d
		}
	}
	// The buckets are ranked by the points that stand for them and not by where they are first met: where clocks go back over
	// midnight a day's points do not lie in one row, and removing a damaged one must not change the order.
	ranked := slices.SortedFunc(maps.Values(newest), func(a, b *Decision) int { return newestFirst(a.Point, b.Point) })
	out := map[*Decision]string{}
	usable, damaged := 0, 0
	for _, d := range ranked {
		switch {
		case usable == r.n:
			return out
		case d.State != Damaged:
			usable++
			out[d] = fmt.Sprintf("%s %d of %d", r.name, usable, r.n)
		case damaged < r.n:
			damaged++
			out[d] = fmt.Sprintf("%s, damaged", r.name)
		}
	}
	return out
}
