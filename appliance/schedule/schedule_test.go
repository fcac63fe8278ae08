package schedule

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// oracle finds the next moment by looking at every minute that passes and asking whether the schedule means it; for hourly ones, by
// walking through every window. It shares only the parser with the code under test.
func oracle(s Spec, after time.Time, z *time.Location) (time.Time, bool) {
	if s.Kind == Hourly {
		return hourlyOracle(s, after, z)
	}
	t := after.Truncate(time.Minute).Add(time.Minute)
	_, before := t.Add(-time.Minute).In(z).Zone()
	for range 401 * 24 * 60 {
		_, now := t.In(z).Zone()
		if shown := mod(int((t.Unix()+int64(now))/60), 24*60) == int(s.At); (shown || now != before) && means(s, t, z) {
			return t, true
		}
		before = now
		t = t.Add(time.Minute)
	}
	return time.Time{}, false
}

// means tells whether moment t, a whole minute, belongs to s: the scheduled wall time is shown now for the first time, or was
// skipped by clocks going forward just now.
func means(s Spec, t time.Time, z *time.Location) bool {
	wall := wallMinutes(t.In(z))
	jump := wall - wallMinutes(t.Add(-time.Minute).In(z))
	for w := wall; w > wall-max(jump, 1); w-- {
		day := time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(w) * time.Minute)
		if day.Hour()*60+day.Minute() == int(s.At) && dayOK(s, day) && !shownBefore(w, t, z) {
			return true
		}
	}
	return false
}

func hourlyOracle(s Spec, after time.Time, z *time.Location) (best time.Time, found bool) {
	first := after.In(z)
	if s.From != (Date{}) {
		if from := time.Date(s.From.Year, s.From.Month, s.From.Day, 12, 0, 0, 0, z); from.After(first) {
			first = from
		}
	}
	for i := -3; i < 5; i++ {
		day := time.Date(first.Year(), first.Month(), first.Day()+i, 12, 0, 0, 0, z)
		last := day
		if s.Until < s.At {
			last = day.AddDate(0, 0, 1)
		}
		if s.From != (Date{}) && dateOf(day).before(s.From) {
			continue
		}
		end := firstShown(last, int(s.Until), z)
		for t := firstShown(day, int(s.At), z); !t.After(end); t = t.Add(s.Interval) {
			if t.After(after) && (!found || t.Before(best)) {
				best, found = t, true
			}
		}
	}
	return best, found
}

func wallMinutes(t time.Time) int {
	_, off := t.Zone()
	return int((t.Unix() + int64(off)) / 60)
}

// shownBefore tells whether the zone's clocks showed wall minute w within the three hours before t.
func shownBefore(w int, t time.Time, z *time.Location) bool {
	for m := 1; m <= 180; m++ {
		if wallMinutes(t.Add(-time.Duration(m)*time.Minute).In(z)) == w {
			return true
		}
	}
	return false
}

// firstShown walks through the minutes of a day until the clock shows c or has gone past it.
func firstShown(day time.Time, c int, z *time.Location) time.Time {
	want := int(time.Date(day.Year(), day.Month(), day.Day(), c/60, c%60, 0, 0, time.UTC).Unix() / 60)
	t := time.Date(day.Year(), day.Month(), day.Day(), 0, 0, 0, 0, z).Add(-4 * time.Hour)
	for wallMinutes(t.In(z)) < want {
		t = t.Add(time.Minute)
	}
	return t
}

func dayOK(s Spec, day time.Time) bool {
	epoch := time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)
	from := epoch
	if s.From != (Date{}) {
		from = time.Date(s.From.Year, s.From.Month, s.From.Day, 0, 0, 0, 0, time.UTC)
	}
	midnight := day.Truncate(24 * time.Hour)
	if s.From != (Date{}) && midnight.Before(from) {
		return false
	}
	days := int(midnight.Sub(from) / (24 * time.Hour))
	switch s.Kind {
	case Daily:
		return days%s.Every == 0
	case Weekly:
		monday := from
		for monday.Weekday() != time.Monday {
			monday = monday.AddDate(0, 0, -1)
		}
		weeks := int(midnight.Sub(monday) / (7 * 24 * time.Hour))
		for _, w := range s.Weekdays {
			if w == day.Weekday() && weeks%s.Every == 0 {
				return true
			}
		}
	case Monthly:
		ok := len(s.Months) == 0
		for _, m := range s.Months {
			ok = ok || m == day.Month()
		}
		for _, d := range s.Days {
			if !ok {
				return false
			}
			nextWeek, tomorrow, lastWeek := day.AddDate(0, 0, 7), day.AddDate(0, 0, 1), day.AddDate(0, 0, -7*(d.N-1))
			switch {
			case d.OnWeekday && d.Weekday != day.Weekday():
			case d.OnWeekday && d.N == Last && nextWeek.Month() != day.Month(),
				d.OnWeekday && d.N > 0 && lastWeek.Month() == day.Month() && lastWeek.AddDate(0, 0, -7).Month() != day.Month(),
				!d.OnWeekday && d.N == Last && tomorrow.Month() != day.Month(),
				!d.OnWeekday && d.N == day.Day():
				return true
			}
		}
	}
	return false
}

func randomSpec(rng *rand.Rand) string {
	clock := func() string { return fmt.Sprintf("%02d:%02d", rng.IntN(24), rng.IntN(60)) }
	from := ""
	if rng.IntN(2) == 0 {
		from = fmt.Sprintf(" from 2026-%02d-%02d", 1+rng.IntN(12), 1+rng.IntN(28))
	}
	pick := func(words string) string { w := strings.Fields(words); return w[rng.IntN(len(w))] }
	switch rng.IntN(4) {
	case 0:
		return fmt.Sprintf("hourly %s-%s every %s", clock(), clock(), pick("7m 30m 45m 1h 2h 5h")) + from
	case 1:
		return fmt.Sprintf("daily %s every %dd", clock(), 1+rng.IntN(5)) + from
	case 2:
		return fmt.Sprintf("weekly %s every %dw on %s,%s", clock(), 1+rng.IntN(3), pick("mon tue wed"), pick("thu fri sat sun")) + from
	}
	if rng.IntN(2) == 0 {
		return fmt.Sprintf("monthly %s on %s %s", clock(), pick("1st 2nd 3rd 4th 5th last"), pick("mon sun fri,sat")) + from
	}
	return fmt.Sprintf("monthly %s on %d,%s%s", clock(), 1+rng.IntN(31), pick("last 29 30 31 15"), pick("|:in:jan,mar,nov |:in:feb,mar,dec | |")[1:]) + from
}

// TestNextAgreesWithTheOracle compares random schedules at random moments, many of them near changes of the clock, in several zones.
func TestNextAgreesWithTheOracle(t *testing.T) {
	const seed = 7
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	zones := []*time.Location{time.UTC, zone(t, "Europe/Berlin"), zone(t, "America/New_York"), zone(t, "Australia/Lord_Howe"), zone(t, "Asia/Kathmandu")}
	changes := []time.Time{time.Date(2026, 3, 29, 0, 0, 0, 0, time.UTC), time.Date(2026, 10, 25, 0, 0, 0, 0, time.UTC), time.Date(2026, 3, 8, 6, 0, 0, 0, time.UTC),
		time.Date(2026, 11, 1, 5, 0, 0, 0, time.UTC), time.Date(2026, 4, 4, 15, 0, 0, 0, time.UTC), time.Date(2028, 2, 28, 12, 0, 0, 0, time.UTC)}
	n := 3000 // with the moments that follow each other about 8,000 cases; HOLDFAST_SOAK=7 makes 50,000
	if k, err := strconv.Atoi(os.Getenv("HOLDFAST_SOAK")); err == nil && k > 0 {
		n *= k
	}
	cases := 0
	defer func() { t.Logf("%d cases", cases) }()
	for i := range n {
		text := strings.ReplaceAll(randomSpec(rng), ":in:", " in ")
		s, err := Parse(text)
		if err != nil {
			if strings.Contains(err.Error(), "none of the months") {
				continue
			}
			t.Fatalf("%q: %v", text, err)
		}
		z := zones[rng.IntN(len(zones))]
		after := changes[rng.IntN(len(changes))].Add(time.Duration(rng.IntN(48*60)-24*60) * time.Minute)
		for range 3 {
			got, ok := Next(s, after, z)
			if ok && got.Sub(after) > 400*24*time.Hour {
				break // farther than the oracle looks
			}
			want, found := oracle(s, after, z)
			cases++
			if ok != found || !got.Equal(want) {
				t.Fatalf("case %d: %q after %v in %v: got %v %v, the oracle says %v %v", i, text, after.In(z), z, got, ok, want.In(z), found)
			}
			if after = got; !ok {
				break
			}
		}
	}
}

func TestParseAndPrint(t *testing.T) {
	for text, want := range map[string]string{
		"once 2026-12-01T02:00":                 "once 2026-12-01T02:00",
		"hourly 08:00-20:00 every 30m":          "hourly 08:00-20:00 every 30m",
		"hourly 22:00-04:00":                    "hourly 22:00-04:00 every 1h",
		"hourly 00:00-23:59 every 120m":         "hourly 00:00-23:59 every 2h",
		"Daily 22:00":                           "daily 22:00 every 1d",
		"daily 22:00 every 2d from 2026-01-31":  "daily 22:00 every 2d from 2026-01-31",
		"weekly 22:00 every 1w on sun,wed,sun":  "weekly 22:00 every 1w on wed,sun",
		"monthly 03:00 on 1,15,last in jul,jan": "monthly 03:00 on 1,15,last in jan,jul",
		"monthly 03:00 on last sun":             "monthly 03:00 on last sun",
		"monthly 03:00 on 2nd tue in feb":       "monthly 03:00 on 2nd tue in feb",
	} {
		s, err := Parse(text)
		if err != nil || s.String() != want {
			t.Errorf("%q: %q, %v", text, s, err)
			continue
		}
		if again, err := Parse(s.String()); err != nil || again.String() != want {
			t.Errorf("%q: read again as %q, %v", text, again, err)
		}
	}
	for _, text := range []string{"", "daily", "daily 25:00", "daily 22:00 every 2w", "daily 22:00 every 0d", "hourly 08:00", "weekly 22:00", "weekly 22:00 on noday",
		"monthly 03:00", "monthly 03:00 on 32", "monthly 03:00 on 31 in feb,apr", "monthly 03:00 on 6th sun", "once tomorrow", "yearly 03:00", "daily 22:00 from 2026-02-30", "daily 22:00 in jan"} {
		if _, err := Parse(text); !errors.Is(err, holdfast.Invalid) || holdfast.HintOf(err) == "" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestOnceRunsOnce(t *testing.T) {
	s, _ := Parse("once 2026-03-29T02:30") // does not exist in Berlin
	z := zone(t, "Europe/Berlin")
	got := Preview(s, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), z, 5)
	if len(got) != 1 || !got[0].Equal(time.Date(2026, 3, 29, 1, 0, 0, 0, time.UTC)) {
		t.Fatal(got)
	}
}

func TestRareDaysAreFound(t *testing.T) {
	s, _ := Parse("monthly 00:00 on 5th sun in feb")
	got, ok := Next(s, time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC), time.UTC)
	if !ok || got.Format(time.DateOnly) != "2032-02-29" {
		t.Fatal(got, ok)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("weekly 22:00 every 1w on sun,wed")
	f.Add("monthly 03:00 on last sun in jan from 2026-01-01")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		if again, err := Parse(s.String()); err != nil || again.String() != s.String() {
			t.Fatalf("%q prints as %q, which reads as %q, %v", text, s, again, err)
		}
		Preview(s, time.Unix(1790000000, 0), time.UTC, 2)
	})
}
