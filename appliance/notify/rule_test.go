package notify

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "any/thing", true}, {"sql-*", "SQL-1", true}, {"sql-*", "nosql-1", false}, {"*sql*", "my-sql-1", true},
		{"a?c", "aäc", true}, {"a?c", "ac", false}, {"*a*b*c*", "xxaxxbxxcxx", true}, {"*a*b*c", "abcb", false}, {"a**b", "ab", true}, {"[a]", "[a]", true}, {"[a]", "a", false},
		{strings.Repeat("*a", 50), strings.Repeat("a", 2000) + "b", false},
	} {
		if got := glob(c.pattern, c.s); got != c.want {
			t.Errorf("%q on %.20q: %v", c.pattern, c.s, got)
		}
	}
}

func TestRules(t *testing.T) {
	e := holdfast.Event{Type: "run-finished", Severity: holdfast.Warning, Fields: map[string]string{"vm": "sql-1", "host": "hv1"}}
	noon := time.Date(2026, 6, 17, 12, 0, 0, 0, time.UTC) // a Wednesday
	for rules, want := range map[string]bool{
		`[]`:                                      true,
		`[{}]`:                                    true,
		`[{"severity":"warning"}]`:                true,
		`[{"severity":"alarm"}]`:                  false,
		`[{"types":["host-*","run-*"]}]`:          true,
		`[{"types":["host-*"]}]`:                  false,
		`[{"fields":{"vm":"sql*"}}]`:              true,
		`[{"fields":{"vm":"sql*","host":"hv2"}}]`: false,
		`[{"fields":{"pool":"*"}}]`:               false,
		`[{"severity":"alarm"},{"fields":{"vm":"sql*"}}]`:       true,
		`[{"windows":["mon-fri 08:00-18:00"]}]`:                 true,
		`[{"windows":["sat,sun","22:00-06:00"]}]`:               false,
		`[{"not":true,"fields":{"vm":"sql*"}}]`:                 false,
		`[{"not":true,"fields":{"vm":"web*"}}]`:                 true,
		`[{"severity":"info"},{"not":true,"windows":["wed"]}]`:  false,
		`[{"severity":"alarm"},{"not":true,"windows":["sun"]}]`: false,
	} {
		var rs []Rule
		if err := json.Unmarshal([]byte(rules), &rs); err != nil {
			t.Fatal(err)
		}
		if got := wanted(rs, &e, noon); got != want {
			t.Errorf("%s: %v", rules, got)
		}
	}
}

func TestWindows(t *testing.T) {
	for _, c := range []struct{ window, canonical, in, out string }{
		{"mon-fri 08:00-18:00", "mon,tue,wed,thu,fri 08:00-18:00", "wed 08:00, fri 17:59", "wed 07:59, wed 18:00, sat 12:00"},
		{"SAT,sun", "sat,sun", "sat 00:00, sun 23:59", "fri 23:59, mon 00:00"},
		{"22:00-06:00", "22:00-06:00", "wed 22:00, wed 05:59", "wed 06:00, wed 21:59"},
		{"fri 22:00-06:00", "fri 22:00-06:00", "fri 22:00, sat 05:59", "fri 05:59, sat 22:00, sat 06:00"},
		{"sun-mon 23:00-01:00", "mon,sun 23:00-01:00", "sun 23:30, mon 00:30, mon 23:30, tue 00:30", "sun 00:30, tue 23:30"},
		{"fri-mon", "mon,fri,sat,sun", "fri 12:00, sun 12:00, mon 12:00", "tue 12:00, thu 12:00"},
		{"18:00-24:00", "18:00-24:00", "wed 23:59", "wed 17:59"},
		{"mon-sun", "00:00-24:00", "wed 12:00, sun 00:00", ""},
		{"00:00-24:00", "00:00-24:00", "wed 12:00", ""},
	} {
		w, err := ParseWindow(c.window)
		if err != nil || w.String() != c.canonical {
			t.Errorf("%s: %v, %v", c.window, w, err)
		}
		for list, want := range map[string]bool{c.in: true, c.out: false} {
			for at := range strings.SplitSeq(list, ", ") {
				if at == "" {
					continue
				}
				day := 14 // a Sunday
				for time.Date(2026, 6, day, 0, 0, 0, 0, time.UTC).Format("Mon") != strings.ToUpper(at[:1])+at[1:3] {
					day++
				}
				clock, err := time.Parse("15:04", at[4:])
				if err != nil {
					t.Fatal(err)
				}
				if got := w.Contains(time.Date(2026, 6, day, clock.Hour(), clock.Minute(), 30, 0, time.UTC)); got != want {
					t.Errorf("%s at %s: %v", c.window, at, got)
				}
			}
		}
	}
	for _, bad := range []string{"", "x", "mon-", "mon 8:00-18:00", "08:00", "08:00-08:00", "24:00-01:00", "08:00-00:00", "08:00-25:00", "08:60-09:00", "mon 08:00-09:00 x", "08:00-09:00 mon"} {
		if w, err := ParseWindow(bad); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%q: %v, %v", bad, w, err)
		}
	}
}

func FuzzWindow(f *testing.F) {
	for _, s := range []string{"mon-fri 08:00-18:00", "sat,sun", "22:00-06:00", "sun-mon 23:00-24:00", "mon-sun"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		w, err := ParseWindow(text)
		if err != nil {
			return
		}
		if again, err := ParseWindow(w.String()); err != nil || again != w {
			t.Fatalf("%q reads as %v, which reads as %v, %v", text, w, again, err)
		}
	})
}

// FuzzTarget reads targets as an admin or the store may give them; what reads must seal and read back the same.
func FuzzTarget(f *testing.F) {
	f.Add([]byte(`{"name":"x","mail":{"host":"h","from":"a@b.c","to":["a@b.c"],"password":"p"},"rules":[{"severity":"alarm","windows":["sat"]}]}`))
	f.Add([]byte(`{"name":"x","webhook":{"url":"http://h","key":"***","token":"***"},"secrets":["a","b"],"digest":{"at":"07:00"},"flood":{"max":1,"minutes":1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		tg, err := Unseal(data)
		if err != nil {
			return
		}
		_ = tg.Check()
		sealed, err := tg.Seal()
		if err != nil {
			t.Fatal(err)
		}
		back, err := Unseal(sealed)
		if err != nil {
			t.Fatalf("%s: %v", sealed, err)
		}
		if again, err := back.Seal(); err != nil || string(again) != string(sealed) {
			t.Fatalf("%s\n%s\n%v", sealed, again, err)
		}
	})
}
