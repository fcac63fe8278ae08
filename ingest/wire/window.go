package wire

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// A Window is a part of the week by the wall clock: from From to before Until, in minutes since midnight, on Days. A window whose
// Until is not behind its From ends on the next day; equal ones are the whole day. Days has bit 0 for Sunday; 0 means every day.
type Window struct {
	From  int   `json:"from"`
	Until int   `json:"until"`
	Days  uint8 `json:"days,omitempty"`
}

const dayMinutes = 24 * 60

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// Open tells whether the window is open at a moment, which is taken in its own location.
func (w Window) Open(t time.Time) bool {
	m := t.Hour()*60 + t.Minute()
	yesterday := (t.Weekday() + 6) % 7
	switch {
	case w.From < w.Until:
		return m >= w.From && m < w.Until && w.on(t.Weekday())
	case w.From == w.Until && w.From == 0:
		return w.on(t.Weekday())
	}
	return m >= w.From && w.on(t.Weekday()) || m < w.Until && w.on(yesterday)
}

func (w Window) on(d time.Weekday) bool { return w.Days == 0 || w.Days&(1<<d) != 0 }

// Check refuses a window outside its bounds.
func (w Window) Check() error {
	if w.From < 0 || w.From >= dayMinutes || w.Until < 0 || w.Until >= dayMinutes || w.Days > 127 {
		return holdfast.Errorf(holdfast.Invalid, "check window", "a window from minute %d to %d on days %b", w.From, w.Until, w.Days)
	}
	return nil
}

// NextChange returns the first moment after t at which one of the windows may open or close, in t's location: windows have minutes,
// so it is the beginning of a minute. Without windows it is the zero time. Where clocks are changed it may be one at which nothing changes.
func NextChange(ws []Window, t time.Time) time.Time {
	var best time.Time
	for _, w := range ws {
		for _, m := range []int{w.From, w.Until, 0} {
			for day := range 2 {
				c := time.Date(t.Year(), t.Month(), t.Day()+day, m/60, m%60, 0, 0, t.Location())
				if c.After(t) && (best.IsZero() || c.Before(best)) {
					best = c
				}
			}
		}
	}
	if hour := t.Truncate(time.Hour).Add(time.Hour); len(ws) > 0 && hour.Before(best) {
		best = hour // so that a change of the clocks is noticed when it happens
	}
	return best
}

// String writes a window as ParseWindow reads it.
func (w Window) String() string {
	s := fmt.Sprintf("%02d:%02d-%02d:%02d", w.From/60, w.From%60, w.Until/60, w.Until%60)
	if w.Days == 0 || w.Days == 127 {
		return s
	}
	var days []string
	for i := 1; i <= 7; i++ { // Monday first
		if w.Days&(1<<(i%7)) != 0 {
			days = append(days, dayNames[i%7])
		}
	}
	return s + " " + strings.Join(days, ",")
}

func badWindow(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Invalid, "read window", format, args...).
		Advise(`write for example "08:00-18:00 mon-fri", "22:00-06:00" or "00:00-00:00 sat,sun"`)
}

// ParseWindow reads "08:00-18:00", or with days behind it: "08:00-18:00 mon-fri,sun".
func ParseWindow(text string) (Window, error) {
	var w Window
	words := strings.Fields(strings.ToLower(text))
	if len(words) < 1 || len(words) > 2 {
		return w, badWindow("%q is not a window of the week", text)
	}
	from, until, ok := strings.Cut(words[0], "-")
	var err1, err2 error
	w.From, err1 = minuteOfDay(from)
	w.Until, err2 = minuteOfDay(until)
	if !ok || err1 != nil || err2 != nil {
		return w, badWindow("%q is not a window like 08:00-18:00", words[0])
	}
	if len(words) == 2 {
		for part := range strings.SplitSeq(words[1], ",") {
			a, b, ranged := strings.Cut(part, "-")
			if !ranged {
				b = a
			}
			first, last := slices.Index(dayNames, a), slices.Index(dayNames, b)
			if first < 0 || last < 0 {
				return w, badWindow("%q is not a day or a range of days", part)
			}
			for d := first; ; d = (d + 1) % 7 {
				w.Days |= 1 << d
				if d == last {
					break
				}
			}
		}
	}
	return w, nil
}

func minuteOfDay(s string) (int, error) {
	h, m, ok := strings.Cut(s, ":")
	hour, err1 := strconv.ParseUint(h, 10, 8)
	minute, err2 := strconv.ParseUint(m, 10, 8)
	if !ok || len(m) != 2 || err1 != nil || err2 != nil || hour > 24 || minute > 59 || hour == 24 && minute != 0 {
		return 0, badWindow("%q is not a time of day", s)
	}
	return int(hour%24)*60 + int(minute), nil
}

// A Limit bounds the speed of a job on a host while its window is open: of what is sent, or (Reads) of what is read from disks.
type Limit struct {
	Rate   int64   `json:"rate"` // bytes per second
	Reads  bool    `json:"reads,omitempty"`
	Window *Window `json:"window,omitempty"` // nil: always
}

// MaxLimits bounds the limits of a task.
const MaxLimits = 64

// RateAt returns the lowest rate that the limits set at a moment, for sending or for reading; 0 is none.
func RateAt(ls []Limit, reads bool, t time.Time) int64 {
	var rate int64
	for _, l := range ls {
		if l.Reads == reads && l.Rate > 0 && (l.Window == nil || l.Window.Open(t)) && (rate == 0 || l.Rate < rate) {
			rate = l.Rate
		}
	}
	return rate
}
