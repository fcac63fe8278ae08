package notify

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// A Rule matches events. Everything that it gives must hold; the zero Rule matches all. Patterns are globs: * stands for any text, ? for one
// character; case does not count.
type Rule struct {
	Severity holdfast.Severity `json:"severity,omitzero"` // at least
	Types    []string          `json:"types,omitempty"`   // patterns, one of which matches the type
	Fields   map[string]string `json:"fields,omitempty"`  // patterns by field; the event has the field and it matches
	Windows  []Window          `json:"windows,omitempty"` // in one of which the event happened
	Not      bool              `json:"not,omitzero"`      // the rule takes away instead: what it matches is not sent
}

// matches tells whether the rule, without its Not, holds for e at local time.
func (r *Rule) matches(e *holdfast.Event, local time.Time) bool {
	if e.Severity < r.Severity {
		return false
	}
	if len(r.Types) > 0 && !slices.ContainsFunc(r.Types, func(p string) bool { return glob(p, string(e.Type)) }) {
		return false
	}
	for name, pattern := range r.Fields {
		if v, ok := e.Fields[name]; !ok || !glob(pattern, v) {
			return false
		}
	}
	return len(r.Windows) == 0 || slices.ContainsFunc(r.Windows, func(w Window) bool { return w.Contains(local) })
}

// wanted tells whether rules send e: if one matches and none that takes away does. Without rules that give, everything is given.
func wanted(rules []Rule, e *holdfast.Event, local time.Time) bool {
	give, given := false, false
	for i := range rules {
		r := &rules[i]
		give = give || !r.Not
		if r.matches(e, local) {
			if r.Not {
				return false
			}
			given = true
		}
	}
	return given || !give
}

// glob matches without regard to case, in time linear in len(s) for each star.
func glob(pattern, s string) bool {
	p, t := []rune(strings.ToLower(pattern)), []rune(strings.ToLower(s))
	i, j, star, mark := 0, 0, -1, 0
	for j < len(t) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == t[j]):
			i, j = i+1, j+1
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// A Window is a part of the week, as text "mon-fri 08:00-18:00", "sat,sun" (all day) or "22:00-06:00" (every day). A window across
// midnight belongs to the day on which it begins; its end is not in it. The zero Window is all the time.
type Window struct {
	days     [7]bool // by time.Weekday; none: every day
	from, to int     // minutes of the day; to is at most 24:00; both 0: all day
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

const dayMinutes = 24 * 60

// ParseWindow reads a window. Errors are Invalid.
func ParseWindow(text string) (Window, error) {
	bad := func(format string, args ...any) (Window, error) {
		return Window{}, holdfast.Errorf(holdfast.Invalid, "read window", format, args...).Advise(`write for example "mon-fri 08:00-18:00", "sat,sun" or "22:00-06:00"`)
	}
	words := strings.Fields(strings.ToLower(text))
	var w Window
	if len(text) > 200 || len(words) < 1 || len(words) > 2 {
		return bad("%.80q is not days, times, or days and times", text)
	}
	if !strings.Contains(words[0], ":") {
		for part := range strings.SplitSeq(words[0], ",") {
			first, last, span := strings.Cut(part, "-")
			if !span {
				last = first
			}
			a, b := slices.Index(weekdays, first), slices.Index(weekdays, last)
			if a < 0 || b < 0 {
				return bad("%q is not a weekday or a span of them", part)
			}
			for d := a; ; d = (d + 1) % 7 {
				w.days[d] = true
				if d == b {
					break
				}
			}
		}
		if w.days == [7]bool{true, true, true, true, true, true, true} {
			w.days = [7]bool{}
		}
		if words = words[1:]; len(words) == 0 {
			return w, nil
		}
	}
	from, to, ok := strings.Cut(words[0], "-")
	a, okA := minutes(from)
	b, okB := minutes(to)
	if len(words) != 1 || !ok || !okA || !okB || a == b || a == dayMinutes || b == 0 {
		return bad("%q is not a span of times", strings.Join(words, " "))
	}
	if a != 0 || b != dayMinutes {
		w.from, w.to = a, b
	}
	return w, nil
}

// minutes reads HH:MM up to 24:00.
func minutes(s string) (int, bool) {
	if len(s) != 5 || s[2] != ':' {
		return 0, false
	}
	h, err1 := strconv.ParseUint(s[:2], 10, 8)
	m, err2 := strconv.ParseUint(s[3:], 10, 8)
	n := int(h)*60 + int(m)
	return n, err1 == nil && err2 == nil && m < 60 && n <= dayMinutes
}

// Contains tells whether the clock that local shows is in the window.
func (w Window) Contains(local time.Time) bool {
	on := func(d time.Weekday) bool { return w.days == [7]bool{} || w.days[(d+7)%7] }
	day, now := local.Weekday(), local.Hour()*60+local.Minute()
	switch {
	case w.from == w.to:
		return on(day)
	case w.from < w.to:
		return on(day) && now >= w.from && now < w.to
	}
	return on(day) && now >= w.from || on(day-1) && now < w.to
}

// String returns the window's canonical text.
func (w Window) String() string {
	var days []string
	for d := range 7 { // Monday first
		if wd := (d + 1) % 7; w.days[wd] {
			days = append(days, weekdays[wd])
		}
	}
	times := fmt.Sprintf("%02d:%02d-%02d:%02d", w.from/60, w.from%60, w.to/60, w.to%60)
	switch {
	case w.from == w.to && len(days) == 0:
		return "00:00-24:00"
	case w.from == w.to:
		return strings.Join(days, ",")
	case len(days) == 0:
		return times
	}
	return strings.Join(days, ",") + " " + times
}

// MarshalText implements encoding.TextMarshaler.
func (w Window) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (w *Window) UnmarshalText(text []byte) (err error) {
	*w, err = ParseWindow(string(text))
	return err
}
