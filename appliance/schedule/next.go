package schedule

import "time"

// horizon bounds the search: the rarest schedule is the 29th of February on a 5th weekday, which comes back within 28 years,
// or 40 across a century that is no leap year.
const horizonDays = 41 * 366

// Next returns the first moment after `after` at which s runs in the zone, or false if it never does again.
func Next(s Spec, after time.Time, zone *time.Location) (time.Time, bool) {
	if s.Kind == Once {
		t := resolve(s.From, s.At, zone)
		return t, t.After(after)
	}
	local := after.In(zone)
	// Start two days early: a window across midnight began yesterday, and a gap may have pushed a moment over midnight.
	day := dateOf(local).add(-2)
	if s.From != (Date{}) && day.before(s.From) {
		day = s.From
	}
	for range horizonDays {
		if s.runsOn(day) {
			if t, ok := s.firstOn(day, after, zone); ok {
				return t, true
			}
		}
		day = day.add(1)
	}
	return time.Time{}, false
}

// Preview returns the next n moments.
func Preview(s Spec, after time.Time, zone *time.Location, n int) []time.Time {
	var out []time.Time
	for range n {
		t, ok := Next(s, after, zone)
		if !ok {
			break
		}
		out = append(out, t)
		after = t
	}
	return out
}

// firstOn returns the first moment after `after` of those that belong to the day.
func (s Spec) firstOn(day Date, after time.Time, zone *time.Location) (time.Time, bool) {
	start := resolve(day, s.At, zone)
	if s.Kind != Hourly {
		return start, start.After(after)
	}
	last := day
	if s.Until < s.At {
		last = day.add(1)
	}
	end := resolve(last, s.Until, zone)
	t := start
	if gone := after.Sub(start); gone >= 0 {
		t = start.Add((gone/s.Interval + 1) * s.Interval)
	}
	return t, !t.After(end)
}

// runsOn tells whether the schedule has moments that belong to the day.
func (s Spec) runsOn(d Date) bool {
	switch s.Kind {
	case Hourly:
		return true
	case Daily:
		return mod(d.number()-s.From.number(), s.Every) == 0
	case Weekly:
		for _, w := range s.Weekdays {
			if w == d.weekday() {
				return mod(week(d)-week(s.From), s.Every) == 0
			}
		}
	case Monthly:
		if !s.inMonth(d.Month) {
			return false
		}
		for _, day := range s.Days {
			if day.is(d) {
				return true
			}
		}
	}
	return false
}

func (s Spec) inMonth(m time.Month) bool {
	for _, x := range s.Months {
		if x == m {
			return true
		}
	}
	return len(s.Months) == 0
}

// is tells whether d is the day.
func (day Day) is(d Date) bool {
	length := d.monthDays()
	switch {
	case !day.OnWeekday && day.N == Last:
		return d.Day == length
	case !day.OnWeekday:
		return d.Day == day.N
	case d.weekday() != day.Weekday:
		return false
	case day.N == Last:
		return d.Day > length-7
	}
	return (d.Day+6)/7 == day.N
}

// resolve returns the moment at which the zone's clocks show c on d: the first one if there are two, the end of the gap if there
// is none.
func resolve(d Date, c Clock, zone *time.Location) time.Time {
	want := time.Date(d.Year, d.Month, d.Day, int(c)/60, int(c)%60, 0, 0, time.UTC)
	// A zone's offset changes at most once within a day; the moments under both offsets are the candidates.
	guess := time.Date(d.Year, d.Month, d.Day, int(c)/60, int(c)%60, 0, 0, zone)
	_, before := guess.Add(-24 * time.Hour).Zone()
	_, afterwards := guess.Add(24 * time.Hour).Zone()
	early, late := want.Add(-time.Duration(max(before, afterwards))*time.Second), want.Add(-time.Duration(min(before, afterwards))*time.Second)
	for _, t := range []time.Time{early, late} {
		l := t.In(zone)
		if dateOf(l) == d && Clock(l.Hour()*60+l.Minute()) == c {
			return l
		}
	}
	// In a gap: early is before it, late behind it. The gap's end is where the offset changes.
	lo, hi := early, late
	_, offset := lo.In(zone).Zone()
	for hi.Sub(lo) > time.Second {
		mid := lo.Add(hi.Sub(lo) / 2).Truncate(time.Second)
		if _, o := mid.In(zone).Zone(); o == offset {
			lo = mid
		} else {
			hi = mid
		}
	}
	return hi.In(zone)
}

func dateOf(t time.Time) Date {
	y, m, d := t.Date()
	return Date{y, m, d}
}

func (d Date) utc() time.Time { return time.Date(d.Year, d.Month, d.Day, 0, 0, 0, 0, time.UTC) }

func (d Date) add(days int) Date { return dateOf(d.utc().AddDate(0, 0, days)) }

func (d Date) before(o Date) bool { return d.utc().Before(o.utc()) }

func (d Date) weekday() time.Weekday { return d.utc().Weekday() }

func (d Date) monthDays() int { return time.Date(d.Year, d.Month+1, 0, 0, 0, 0, 0, time.UTC).Day() }

// number counts days since 1970-01-01; the zero Date, "not given", counts as that day.
func (d Date) number() int {
	if d == (Date{}) {
		return 0
	}
	return int(d.utc().Unix() / 86400)
}

// week counts weeks that start on Mondays.
func week(d Date) int { return (d.number() + 3 - mod(d.number()+3, 7)) / 7 }

func mod(a, n int) int { return (a%n + n) % n }
