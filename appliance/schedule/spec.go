// Package schedule says when a job runs next. It is pure: a Spec, a moment and a zone in, a moment out. It reads no clock and
// keeps no state; whoever runs jobs remembers when they last ran.
//
// A Spec is written as admins say it:
//
//	once 2026-12-01T02:00
//	hourly 08:00-20:00 every 30m
//	daily 22:00 every 2d
//	weekly 22:00 every 1w on sun,wed
//	monthly 03:00 on 1,15,last in jan,jul
//	monthly 03:00 on last sun
//
// "every …" may be left out and is then 1 (1h for hourly); "from DATE" at the end anchors the counting of days and weeks and is the first
// day on which anything runs. Times are wall-clock times of the zone that Next is given. A time that the zone skips (clocks
// go forward) runs at the first moment after the gap; a time that comes twice (clocks go back) runs at its first coming.
package schedule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// Kind is the kind of a schedule.
type Kind string

const (
	Once    Kind = "once"
	Hourly  Kind = "hourly"
	Daily   Kind = "daily"
	Weekly  Kind = "weekly"
	Monthly Kind = "monthly"
)

// A Spec is one parsed schedule. The zero Spec never runs.
type Spec struct {
	Kind     Kind
	At       Clock          // time of day; for Hourly the window's start
	Until    Clock          // Hourly: the window's end, included; before At it is on the next day
	Every    int            // Daily: days, Weekly: weeks
	Interval time.Duration  // Hourly
	Weekdays []time.Weekday // Weekly; sorted, Monday first
	Days     []Day          // Monthly
	Months   []time.Month   // Monthly; empty: all
	From     Date           // first day; the anchor of Every. For Once: the day
}

// A Clock is a time of day in minutes since midnight.
type Clock int

func (c Clock) String() string { return fmt.Sprintf("%02d:%02d", int(c)/60, int(c)%60) }

// A Date is a calendar day. The zero Date stands for "not given".
type Date struct {
	Year  int
	Month time.Month
	Day   int
}

func (d Date) String() string { return fmt.Sprintf("%04d-%02d-%02d", d.Year, d.Month, d.Day) }

// A Day is a day of a month: the Nth (1 to 31, or Last) day, or if OnWeekday is set the Nth (1 to 5, or Last) such weekday. A month
// that does not have the day is passed over.
type Day struct {
	N         int
	OnWeekday bool
	Weekday   time.Weekday
}

// Last is the N of the last day, or the last weekday, of a month.
const Last = -1

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}
var months = []string{"", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}
var ordinals = map[string]int{"1st": 1, "2nd": 2, "3rd": 3, "4th": 4, "5th": 5, "last": Last}

const advice = `write for example "once 2026-12-01T02:00", "hourly 08:00-20:00 every 30m", "daily 22:00 every 2d", ` +
	`"weekly 22:00 every 1w on sun,wed", "monthly 03:00 on 1,15,last in jan,jul" or "monthly 03:00 on last sun"`

func bad(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Invalid, "read schedule", format, args...).Advise(advice)
}

// Parse reads a schedule. Parse(s.String()) gives s back. Errors are Invalid and show examples.
func Parse(text string) (Spec, error) {
	words := strings.Fields(strings.ToLower(text))
	if len(words) < 2 {
		return Spec{}, bad("%q is too short", text)
	}
	s := Spec{Kind: Kind(words[0]), Every: 1}
	p := &parser{words: words[2:]}
	switch s.Kind {
	case Once:
		return parseOnce(words)
	case Hourly:
		s.Interval = time.Hour
		s.At, s.Until = p.window(words[1])
	case Daily, Weekly, Monthly:
		s.At = p.clock(words[1])
	default:
		return Spec{}, bad("unknown kind %q", words[0])
	}
	for len(p.words) > 0 && p.err == nil {
		p.clause(&s)
	}
	if p.err == nil {
		p.err = s.check()
	}
	if p.err != nil {
		return Spec{}, p.err
	}
	return s, nil
}

func parseOnce(words []string) (Spec, error) {
	day, clock, ok := strings.Cut(words[1], "t")
	if !ok || len(words) != 2 {
		return Spec{}, bad("%q is not a date and a time", strings.Join(words[1:], " "))
	}
	p := &parser{}
	s := Spec{Kind: Once, Every: 1, From: p.date(day), At: p.clock(clock)}
	return s, p.err
}

// parser takes clauses off a list of words; the first error stays.
type parser struct {
	words []string
	err   error
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = bad(format, args...)
	}
}

// next takes the word after a keyword.
func (p *parser) next(keyword string) string {
	if len(p.words) == 0 {
		p.fail("nothing follows %q", keyword)
		return ""
	}
	w := p.words[0]
	p.words = p.words[1:]
	return w
}

func (p *parser) clause(s *Spec) {
	switch kw := p.next(""); kw {
	case "every":
		p.every(s, p.next(kw))
	case "on":
		p.on(s, p.next(kw))
	case "in":
		if s.Kind != Monthly {
			p.fail("%q goes with monthly", kw)
			return
		}
		s.Months = list(p, p.next(kw), func(w string) time.Month {
			if m := slices.Index(months[1:], w); m >= 0 {
				return time.Month(m + 1)
			}
			p.fail("%q is not a month: jan to dec", w)
			return 0
		})
		slices.Sort(s.Months)
		s.Months = slices.Compact(s.Months)
	case "from":
		s.From = p.date(p.next(kw))
	default:
		p.fail("%q is not understood", kw)
	}
}

func list[T any](p *parser, words string, read func(string) T) []T {
	var out []T
	for w := range strings.SplitSeq(words, ",") {
		out = append(out, read(w))
	}
	return out
}

func (p *parser) every(s *Spec, w string) {
	if w == "" {
		return
	}
	n, err := strconv.Atoi(w[:len(w)-1])
	if err != nil || n < 1 || n > 1000 {
		p.fail("%q is not a number of days, weeks, hours or minutes from 1 to 1000", w)
		return
	}
	switch unit := w[len(w)-1]; {
	case s.Kind == Hourly && unit == 'm':
		s.Interval = time.Duration(n) * time.Minute
	case s.Kind == Hourly && unit == 'h':
		s.Interval = time.Duration(n) * time.Hour
	case s.Kind == Daily && unit == 'd', s.Kind == Weekly && unit == 'w':
		s.Every = n
	default:
		p.fail("%q does not fit %s: hourly counts m or h, daily d, weekly w", w, s.Kind)
	}
}

func (p *parser) on(s *Spec, w string) {
	switch n, ordinal := ordinals[w]; {
	case s.Kind == Weekly:
		s.Weekdays = list(p, w, p.weekday)
		slices.SortFunc(s.Weekdays, func(a, b time.Weekday) int { return mondayFirst(a) - mondayFirst(b) })
		s.Weekdays = slices.Compact(s.Weekdays)
	case s.Kind == Monthly && ordinal && len(p.words) > 0 && isWeekdays(p.words[0]):
		s.Days = list(p, p.next(w), func(w string) Day { return Day{N: n, OnWeekday: true, Weekday: p.weekday(w)} })
	case s.Kind == Monthly:
		s.Days = list(p, w, func(w string) Day {
			if w == "last" {
				return Day{N: Last}
			}
			n, err := strconv.Atoi(w)
			if err != nil || n < 1 || n > 31 {
				p.fail("%q is not a day of a month: 1 to 31, or last", w)
			}
			return Day{N: n}
		})
	default:
		p.fail(`"on" goes with weekly and monthly`)
	}
}

func isWeekdays(w string) bool {
	first, _, _ := strings.Cut(w, ",")
	return slices.Contains(weekdays, first)
}

func (p *parser) weekday(w string) time.Weekday {
	d := slices.Index(weekdays, w)
	if d < 0 {
		p.fail("%q is not a weekday: mon to sun", w)
	}
	return time.Weekday(d)
}

func mondayFirst(d time.Weekday) int { return (int(d) + 6) % 7 }

func (p *parser) clock(w string) Clock {
	t, err := time.Parse("15:04", w)
	if err != nil {
		p.fail("%q is not a time of day like 22:00", w)
		return 0
	}
	return Clock(t.Hour()*60 + t.Minute())
}

func (p *parser) window(w string) (from, until Clock) {
	a, b, ok := strings.Cut(w, "-")
	if !ok {
		p.fail("%q is not a window like 08:00-20:00", w)
		return 0, 0
	}
	return p.clock(a), p.clock(b)
}

func (p *parser) date(w string) Date {
	t, err := time.Parse(time.DateOnly, w)
	if err != nil {
		p.fail("%q is not a date like 2026-12-01", w)
		return Date{}
	}
	return Date{t.Year(), t.Month(), t.Day()}
}

func (s Spec) check() error {
	switch {
	case s.Kind == Weekly && len(s.Weekdays) == 0:
		return bad("weekly needs weekdays: on sun,wed")
	case s.Kind == Monthly && len(s.Days) == 0:
		return bad("monthly needs days: on 1,15,last or on last sun")
	case s.Kind == Monthly && !s.possible():
		return bad("none of the months has the day")
	}
	return nil
}

// possible tells whether the days of a monthly schedule ever come in its months: the 31st never does in April alone.
func (s Spec) possible() bool {
	longest := [...]int{0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}
	for _, m := range s.monthsOrAll() {
		for _, d := range s.Days {
			if d.OnWeekday || d.N <= longest[m] {
				return true
			}
		}
	}
	return false
}

func (s Spec) monthsOrAll() []time.Month {
	if len(s.Months) > 0 {
		return s.Months
	}
	all := make([]time.Month, 12)
	for i := range all {
		all[i] = time.Month(i + 1)
	}
	return all
}

// String returns the schedule in its canonical form.
func (s Spec) String() string {
	var b strings.Builder
	switch s.Kind {
	case Once:
		return fmt.Sprintf("once %vT%v", s.From, s.At)
	case Hourly:
		every := fmt.Sprintf("%dm", int(s.Interval.Minutes()))
		if s.Interval%time.Hour == 0 {
			every = fmt.Sprintf("%dh", int(s.Interval.Hours()))
		}
		fmt.Fprintf(&b, "hourly %v-%v every %s", s.At, s.Until, every)
	case Daily:
		fmt.Fprintf(&b, "daily %v every %dd", s.At, s.Every)
	case Weekly:
		names := make([]string, len(s.Weekdays))
		for i, d := range s.Weekdays {
			names[i] = weekdays[d]
		}
		fmt.Fprintf(&b, "weekly %v every %dw on %s", s.At, s.Every, strings.Join(names, ","))
	case Monthly:
		fmt.Fprintf(&b, "monthly %v on %s", s.At, s.days())
		if len(s.Months) > 0 {
			names := make([]string, len(s.Months))
			for i, m := range s.Months {
				names[i] = months[m]
			}
			fmt.Fprintf(&b, " in %s", strings.Join(names, ","))
		}
	default:
		return "never"
	}
	if s.From != (Date{}) {
		fmt.Fprintf(&b, " from %v", s.From)
	}
	return b.String()
}

func (s Spec) days() string {
	var names []string
	prefix := ""
	for _, d := range s.Days {
		switch {
		case d.OnWeekday:
			for o, n := range ordinals {
				if n == d.N {
					prefix = o + " "
				}
			}
			names = append(names, weekdays[d.Weekday])
		case d.N == Last:
			names = append(names, "last")
		default:
			names = append(names, strconv.Itoa(d.N))
		}
	}
	return prefix + strings.Join(names, ",")
}
