package retain

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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

func policy(t *testing.T, text string) Policy {
	t.Helper()
	p, err := ParsePolicy(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var noon = time.Date(2026, 6, 17, 12, 0, 0, 0, time.UTC) // a Wednesday

// daily makes good points of one VM, the newest at noon, one a day, each of 10 bytes. names[i] changes the i-th newest: g(ood),
// u(nverified), d(amaged), h(eld).
func daily(states string) []Point {
	var out []Point
	for i, c := range states {
		p := Point{Set: holdfast.SetID{ID: holdfast.ID{1, byte(255 - i)}}, VM: holdfast.VMID{ID: holdfast.ID{1}}, VMName: "db",
			Time: noon.AddDate(0, 0, -i), State: Good, Unique: 10}
		switch c {
		case 'u':
			p.State = Unverified
		case 'd':
			p.State = Damaged
		case 'h':
			p.Hold = noon.Add(time.Hour)
		}
		out = append(out, p)
	}
	return out
}

// TestReasons gives small timelines with the whole answer: K keeps, R removes, W has expired and waits.
func TestReasons(t *testing.T) {
	for _, c := range []struct {
		name, policy, points, want string
		pool                       PoolFill
		reasons                    map[int]string
	}{
		{name: "forever", policy: "forever", points: "ggg", want: "KKK", reasons: map[int]string{0: "newest good point of db", 1: "kept forever"}},
		{name: "days", policy: "days=2", points: "ggggg", want: "KKKRR", reasons: map[int]string{2: "within days=2", 3: "older than 2 days"}},
		{name: "count", policy: "count=2", points: "gggg", want: "KKRR", reasons: map[int]string{2: "2 usable points newer than it"}},
		{name: "count passes over damaged", policy: "count=2", points: "gdgdg", want: "KKKRR"},
		{name: "whichever first", policy: "days=3,count=2", points: "ggggg", want: "KKRRR", reasons: map[int]string{3: "3 usable points newer than it", 4: "older than 3 days"}},
		{name: "quota", policy: "quota=25", points: "gggg", want: "KKRR", pool: PoolFill{Used: 40},
			reasons: map[int]string{1: "within quota=25", 3: "earliest of a pool above its quota of 25"}},
		{name: "quota knows what is deleted already", policy: "quota=25", points: "gggg", want: "KKKR", pool: PoolFill{Used: 40, Pending: 10}},
		{name: "quota never takes the newest", policy: "quota=1", points: "ggg", want: "KRR", pool: PoolFill{Used: 1000}},
		{name: "minimum", policy: "days=1,min=4", points: "gggggg", want: "KKKKRR", reasons: map[int]string{3: "one of the 4 points that db keeps at least"}},
		{name: "damaged count last in the minimum", policy: "days=1,min=2", points: "dddggg", want: "KKRKKR"},
		{name: "newest good behind unverified", policy: "count=1", points: "uug", want: "KRK", reasons: map[int]string{2: "newest good point of db"}},
		{name: "only unverified", policy: "count=1", points: "uu", want: "KR", reasons: map[int]string{0: "newest point of db, which has none that is verified"}},
		{name: "only damaged", policy: "days=1", points: "ddddd", want: "KKRRR", reasons: map[int]string{0: "newest point of db, of which all are damaged"}},
		{name: "holds win", policy: "days=1", points: "ggghg", want: "KKRKR", reasons: map[int]string{3: "held until 2026-06-17 13:00"}},
		{name: "GFS alone", policy: "daily=2,weekly=2", points: "ggggggggggggg", want: "KKRKRRRRRRRRR",
			reasons: map[int]string{0: "newest good point of db", 1: "daily 2 of 2", 3: "weekly 2 of 2", 4: "not selected by daily=2,weekly=2"}},
		{name: "GFS beside days", policy: "days=1,weekly=2", points: "ggggggg", want: "KKRKRRR", reasons: map[int]string{3: "weekly 2 of 2"}},
		{name: "a day of only damaged points takes no place", policy: "daily=2", points: "gdgg", want: "KKKR", reasons: map[int]string{1: "daily, damaged"}},
		{name: "delay waits", policy: "days=1,delay", points: "gggg", want: "KKWW", pool: PoolFill{Used: 89, Size: 100},
			reasons: map[int]string{3: "older than 1 day; stays until the pool is 90 % full"}},
		{name: "delay ends at the mark", policy: "days=1,delay=90", points: "gggg", want: "KKWR", pool: PoolFill{Used: 90, Size: 100}},
		{name: "delay takes as much as it must", policy: "days=1,delay=80", points: "gggg", want: "KKRR", pool: PoolFill{Used: 95, Size: 100}},
		{name: "delay needs a size", policy: "days=1,delay", points: "gggg", want: "KKRR", pool: PoolFill{Used: 10}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ds := Decide(policy(t, c.policy), daily(c.points), noon, nil, c.pool)
			var got strings.Builder
			for i, d := range ds {
				switch {
				case !d.Keep:
					got.WriteByte('R')
				case d.Expired:
					got.WriteByte('W')
				default:
					got.WriteByte('K')
				}
				if want, ok := c.reasons[i]; ok && d.Reason != want {
					t.Errorf("point %d: %q, want %q", i, d.Reason, want)
				}
			}
			if got.String() != c.want {
				t.Errorf("got %s, want %s: %+v", &got, c.want, ds)
			}
		})
	}
}

// TestBucketsFollowTheZonesCalendar puts points around clock changes and checks how many hours, days and weeks they make.
func TestBucketsFollowTheZonesCalendar(t *testing.T) {
	for _, c := range []struct {
		name, zone, policy string
		times              []string // newest first
		keep               string
	}{
		{"an hour that comes twice is two", "Europe/Berlin", "hourly=9", []string{"2026-10-25T01:30:00Z", "2026-10-25T00:30:00Z", "2026-10-25T00:10:00Z"}, "KKR"},
		{"half an hour that comes twice", "Australia/Lord_Howe", "hourly=9", []string{"2026-04-04T15:15:00Z", "2026-04-04T14:45:00Z", "2026-04-04T14:31:00Z"}, "KKR"},
		{"a day of 25 hours is one", "Europe/Berlin", "daily=9", []string{"2026-10-25T22:59:00Z", "2026-10-24T22:01:00Z", "2026-10-24T21:59:00Z"}, "KRK"},
		{"a day of 23 hours is one", "Europe/Berlin", "daily=9", []string{"2026-03-29T21:59:00Z", "2026-03-28T23:01:00Z", "2026-03-28T22:59:00Z"}, "KRK"},
		{"clocks back over midnight", "America/St_Johns", "daily=9", []string{"2006-10-29T03:40:00Z", "2006-10-29T02:45:00Z", "2006-10-29T02:30:30Z", "2006-10-29T02:20:00Z"}, "KKRR"},
		{"weeks begin on Monday", "Europe/Berlin", "weekly=9", []string{"2026-06-14T22:01:00Z", "2026-06-14T21:59:00Z", "2026-06-08T00:00:00Z"}, "KKR"},
		{"a week across the year", "UTC", "weekly=9", []string{"2027-01-03T12:00:00Z", "2026-12-28T12:00:00Z", "2026-12-27T12:00:00Z"}, "KRK"},
		{"leap day", "UTC", "monthly=1,daily=2", []string{"2028-02-29T12:00:00Z", "2028-02-28T12:00:00Z", "2028-02-27T12:00:00Z"}, "KKR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var points []Point
			for i, s := range c.times {
				at, err := time.Parse(time.RFC3339, s)
				if err != nil {
					t.Fatal(err)
				}
				points = append(points, Point{Set: holdfast.SetID{ID: holdfast.ID{byte(9 - i)}}, Time: at, State: Good})
			}
			var got strings.Builder
			for _, d := range Decide(policy(t, c.policy), points, points[0].Time.Add(time.Hour), zone(t, c.zone), PoolFill{}) {
				got.WriteByte(map[bool]byte{true: 'K', false: 'R'}[d.Keep])
			}
			if got.String() != c.keep {
				t.Errorf("got %s, want %s", &got, c.keep)
			}
		})
	}
}

// TestClockJumpsNeverTakeTheNewestGoodPoint decides as if the clock were far off, under policies that keep as little as they can.
func TestClockJumpsNeverTakeTheNewestGoodPoint(t *testing.T) {
	for seed := range uint64(300) {
		s := randomTimeline(t, rand.New(rand.NewPCG(7, seed)))
		for _, now := range []time.Time{{}, time.Unix(0, 0), s.now.AddDate(-30, 0, 0), s.now, s.now.AddDate(30, 0, 0), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)} {
			for _, p := range []Policy{s.policy, {Days: 1}, {Count: 1}, {Quota: 1}, {GFS: GFS{Hourly: 1}}, {Days: -5, Count: -1, MinPoints: -1}} {
				newest := map[holdfast.VMID]Point{}
				for _, x := range s.points {
					if x.State == Good && (newest[x.VM].Set.IsZero() || later(x, newest[x.VM])) {
						newest[x.VM] = x
					}
				}
				for _, d := range Decide(p, s.points, now, s.zone, PoolFill{Used: 1 << 62, Size: 1}) {
					if !d.Keep && (d.Set == newest[d.VM].Set || d.Time.After(now) || d.Hold.After(now)) {
						t.Fatalf("seed %d, now %v, %v: removes %+v", seed, now, p, d)
					}
				}
			}
		}
	}
}

// TestAFutureDoesNotReplaceThePast: a set that was made while the clock was wrong must not be what keeps the others from being kept.
func TestAFutureDoesNotReplaceThePast(t *testing.T) {
	points := daily("gggg")
	points[0].Time = noon.AddDate(5, 0, 0)
	ds := Decide(policy(t, "count=1"), points, noon, nil, PoolFill{})
	if !ds[0].Keep || ds[0].Cause != Future || !ds[1].Keep || ds[1].Cause != Newest || ds[2].Keep || ds[3].Keep {
		t.Errorf("%+v", ds)
	}
}

// TestRemovedIsEarliestFirst: whoever is interrupted has removed what was least missed.
func TestRemovedIsEarliestFirst(t *testing.T) {
	gone := Removed(Decide(policy(t, "count=1"), daily("gggg"), noon, nil, PoolFill{}))
	if len(gone) != 3 || !slices.IsSortedFunc(gone, func(a, b Decision) int { return a.Time.Compare(b.Time) }) {
		t.Errorf("%+v", gone)
	}
}

func TestParsePolicy(t *testing.T) {
	for text, want := range map[string]string{
		"days=30,daily=14,weekly=8,monthly=12,min=2": "days=30,daily=14,weekly=8,monthly=12,min=2",
		" Min=2 , WEEKLY=8, days=30":                 "days=30,weekly=8,min=2",
		"delay":                                      "delay=90",
		"delay=85,quota=10GiB":                       "quota=10GiB,delay=85",
		"quota=1024MiB":                              "quota=1GiB",
		"quota=1025":                                 "quota=1025",
		"quota=2048b":                                "quota=2KiB",
		"quota=1024pib":                              "quota=1024PiB",
		"days=0,min=1":                               "forever",
		"Forever":                                    "forever",
		"hourly=24,yearly=10,count=5":                "count=5,hourly=24,yearly=10",
	} {
		p, err := ParsePolicy(text)
		if err != nil || p.String() != want {
			t.Errorf("%q: %q, %v; want %q", text, p, err, want)
		}
	}
	for _, text := range []string{"", "days", "days=", "days=-1", "days=x", "days=36501", "days=1,days=2", "min=0", "delay=101", "quota=1GB", "quota=1.5GiB",
		"quota=1025PiB", "quota=99999999999999999999", "weeks=1", "days=30;count=1", "forever,days=1", strings.Repeat("x", 2000)} {
		if p, err := ParsePolicy(text); !errors.Is(err, holdfast.Invalid) || holdfast.HintOf(err) == "" {
			t.Errorf("%.40q: %+v, %v", text, p, err)
		}
	}
}

// TestPolicyStringRoundTrips prints and reads random policies.
func TestPolicyStringRoundTrips(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	for range 1000 {
		p := Policy{Quota: r.Int64N(maxQuota) >> r.IntN(60), MinPoints: 1 + r.IntN(3)}
		for _, o := range p.options() {
			if o.name != "min" && chance(r, 2) {
				*o.value = r.IntN(o.most + 1)
			}
		}
		q, err := ParsePolicy(p.String())
		if err != nil || q != p {
			t.Fatalf("%+v printed as %q reads as %+v, %v", p, p, q, err)
		}
	}
}

func FuzzPolicy(f *testing.F) {
	for _, s := range []string{"forever", "days=30,daily=14,weekly=8,monthly=12,min=2", "quota=10GiB,delay", "hourly=1,yearly=1,count=3", "quota=0x1", "days=+1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePolicy(text)
		if err != nil {
			return
		}
		printed := p.String()
		q, err := ParsePolicy(printed)
		if err != nil || q != p || q.String() != printed {
			t.Fatalf("%q reads as %+v, prints as %q, which reads as %+v, %v", text, p, printed, q, err)
		}
	})
}

func TestStateText(t *testing.T) {
	for _, s := range []State{Unverified, Good, Damaged} {
		text, _ := s.MarshalText()
		var back State
		if err := back.UnmarshalText(text); err != nil || back != s || fmt.Sprint(s) != string(text) {
			t.Errorf("%v: %v, %v", s, back, err)
		}
	}
	var s State
	if err := s.UnmarshalText([]byte("fine")); !errors.Is(err, holdfast.Invalid) {
		t.Error(err)
	}
}
