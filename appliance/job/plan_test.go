package job

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	m, err := time.Parse("2006-01-02 15:04", s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestPlan: what a daily job at 22:00 and a weekly full one on Sundays ask for, with the options that bend it. 2026-11-22 is a Sunday.
func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name      string
		mark, now string
		busy      bool
		options   []string
		start     string // type
		pending   bool
		missed    int
		caught    bool
		next      string
	}{
		{name: "before its moment", mark: "2026-11-23 12:00", now: "2026-11-23 21:59", next: "2026-11-23 22:00"},
		{name: "at its moment", mark: "2026-11-23 12:00", now: "2026-11-23 22:00", start: TypeIncremental, next: "2026-11-24 22:00"},
		{name: "two schedules at once: the thorough one", mark: "2026-11-22 12:00", now: "2026-11-22 22:01", start: TypeFull, next: "2026-11-23 22:00"},
		{name: "while it runs", mark: "2026-11-23 12:00", now: "2026-11-23 22:00", busy: true, pending: true, next: "2026-11-24 22:00"},
		{name: "the appliance was off for three days: once, as full as the fullest", mark: "2026-11-21 23:00", now: "2026-11-25 08:00", start: TypeFull, missed: 2, caught: true, next: "2026-11-25 22:00"},
		{name: "off, and not to be caught up", mark: "2026-11-23 12:00", now: "2026-11-24 08:00", options: []string{"missed=skip"}, missed: 1, next: "2026-11-24 22:00"},
		{name: "late, but within its window", mark: "2026-11-23 12:00", now: "2026-11-23 23:30", options: []string{"start-window=2h"}, start: TypeIncremental, missed: 1, caught: true, next: "2026-11-24 22:00"},
		{name: "later than its window", mark: "2026-11-23 12:00", now: "2026-11-24 00:01", options: []string{"start-window=2h"}, missed: 1, next: "2026-11-24 22:00"},
		{name: "in a blackout", mark: "2026-11-23 12:00", now: "2026-11-23 22:00", options: []string{"blackout=21:00-23:00 mon"}, pending: true, next: "2026-11-23 23:00"},
		{name: "in a blackout of another day", mark: "2026-11-23 12:00", now: "2026-11-23 22:00", options: []string{"blackout=21:00-23:00 tue"}, start: TypeIncremental, next: "2026-11-24 22:00"},
		{name: "a clock put back runs nothing twice", mark: "2026-11-23 22:00", now: "2026-11-23 21:00", next: "2026-11-24 22:00"},
	} {
		d := Definition{Enabled: true, Type: TypeIncremental, Schedules: []Timed{{Spec: "daily 22:00"}, {Type: TypeFull, Spec: "weekly 22:00 on sun"}}}
		for _, o := range c.options {
			if err := d.Options.Set(o); err != nil {
				t.Fatal(err)
			}
		}
		now := at(t, c.now)
		v, err := Plan(d, State{Mark: at(t, c.mark)}, now, c.busy)
		if err != nil {
			t.Fatal(err)
		}
		start := ""
		if v.Start != nil {
			start = v.Start.Type
		}
		caught := len(v.Missed) > 0 && v.Missed[len(v.Missed)-1].Caught
		next := v.Next
		if len(next.Format("15:04")) > 0 && c.pending && !c.busy { // a blackout's end, or an hour before it at which it is looked at again
			next = next.Truncate(time.Hour)
		}
		if start != c.start || (v.State.Pending != nil) != c.pending || len(v.Missed) != c.missed || caught != c.caught || !next.Equal(at(t, c.next)) {
			t.Errorf("%s: start %q, pending %v, missed %+v, next %v", c.name, start, v.State.Pending, v.Missed, v.Next)
		}
		if again, err := Plan(d, v.State, now, true); err != nil || again.Start != nil {
			t.Errorf("%s: it starts twice", c.name)
		}
	}
}

// TestAMomentThatWaitsStartsWhenItCan, and disabling a job forgets it; a retry waits for its time.
func TestAMomentThatWaitsStartsWhenItCan(t *testing.T) {
	d := Definition{Enabled: true, Type: TypeIncremental, Schedules: []Timed{{Spec: "daily 22:00"}}}
	v, err := Plan(d, State{Mark: at(t, "2026-11-23 12:00")}, at(t, "2026-11-23 22:00"), true)
	if err != nil || v.State.Pending == nil {
		t.Fatal(v, err)
	}
	off := d
	off.Enabled = false
	if w, err := Plan(off, v.State, at(t, "2026-11-23 22:05"), false); err != nil || w.Start != nil || w.State.Pending != nil {
		t.Errorf("disabled: %+v %v", w, err)
	}
	if w, err := Plan(d, v.State, at(t, "2026-11-23 22:30"), false); err != nil || w.Start == nil || len(w.Missed) != 1 || !w.Missed[0].Caught {
		t.Errorf("free again: %+v %v", w, err)
	}
	s := State{Mark: at(t, "2026-11-23 23:00"), Retry: &Retry{At: at(t, "2026-11-23 23:10"), Attempt: 1}}
	if w, err := Plan(d, s, at(t, "2026-11-23 23:09"), false); err != nil || w.Retry != nil || !w.Next.Equal(s.Retry.At) {
		t.Errorf("before its time: %+v %v", w, err)
	}
	if w, err := Plan(d, s, at(t, "2026-11-23 23:10"), false); err != nil || w.Retry == nil || w.State.Retry != nil {
		t.Errorf("at its time: %+v %v", w, err)
	}
}

func TestOptionsHaveTheirDefaultsAndBounds(t *testing.T) {
	for name, want := range map[string]string{"compression": "fast", "vms": "8", "disks": "2", "reconnect": "10m", "buffer": "10MiB", "consistency": "automatic",
		"limit": "none", "precondition": "none", "pre-script": "none", "retries": "0", "missed": "run", "blackout": "none", "group": "off"} {
		if got := (Tuning{}).Shown()[name]; got != want {
			t.Errorf("%s is %q unless said otherwise, want %q", name, got, want)
		}
	}
	for text, want := range map[string]string{
		"reconnect=1m": "1m", "reconnect=60m": "1h", "buffer=64MiB": "64MiB", "vms=64": "64", "limit=20MiB/s 08:00-18:00 mon-fri": "20MiB/s 08:00-18:00 mon,tue,wed,thu,fri",
		"limit=512KiB/s": "512KiB/s", "limit=1GiB/s reads": "1GiB/s reads", "pre-script=freeze.sh": "freeze.sh", "blackout=22:00-06:00": "22:00-06:00", "Compression=off": "off",
		"consistency=application-required": "application-required",
	} {
		var o Tuning
		name, _, _ := strings.Cut(strings.ToLower(text), "=")
		if err := o.Set(text); err != nil || o.Shown()[name] != want {
			t.Errorf("%s: %v, shown as %q", text, err, o.Shown()[name])
		}
	}
	var two Tuning
	for _, text := range []string{"limit=1MiB/s 08:00-12:00", "limit=2MiB/s 12:00-18:00"} {
		if err := two.Set(text); err != nil {
			t.Fatal(err)
		}
	}
	if len(two.Limits) != 2 || two.Set("limit=none") != nil || len(two.Limits) != 0 {
		t.Errorf("several limits: %+v", two.Limits)
	}
	for _, text := range []string{"reconnect=59s", "reconnect=61m", "buffer=1KiB", "buffer=2GiB", "vms=0", "vms=65", "compression=best", "limit=20MiB", "limit=0/s", "limit=1MiB/s 25:00-26:00",
		"pre-script=../x", "colour=red", "vms", "priority=10", "consistency=none", "missed=maybe", "group=perhaps"} {
		var o Tuning
		if err := o.Set(text); !errors.Is(err, holdfast.Invalid) || holdfast.HintOf(err) == "" {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestSourcesChooseByIDAndPattern(t *testing.T) {
	h1, h2 := newHost(), newHost()
	vm := func(name string, h holdfast.HostID) catalog.VM {
		return catalog.VM{ID: holdfast.VMID{ID: holdfast.NewID()}, Name: name, Host: h}
	}
	all := []catalog.VM{vm("web", h1), vm("SQL-1", h1), vm("sql-test", h2), vm("mail", h2), vm("web", h2)}
	gone := VMRef{ID: holdfast.VMID{ID: holdfast.NewID()}, Name: "old"}
	names := func(s Source) (out []string) {
		for _, v := range s.Select(all).VMs {
			out = append(out, v.Name)
		}
		return out
	}
	for _, c := range []struct {
		name string
		s    Source
		want []string
	}{
		{"a host", Source{Hosts: []holdfast.HostID{h1}}, []string{"SQL-1", "web"}},
		{"patterns in any case, on any host", Source{Match: []string{"sql-*"}}, []string{"SQL-1", "sql-test"}},
		{"exclusion wins", Source{Match: []string{"*"}, Exclude: []string{"*-test", all[0].ID.String()}}, []string{"SQL-1", "mail", "web"}},
		{"one of two of a name, by id, under its new name", Source{VMs: []VMRef{{all[4].ID, "was called so"}, gone}}, []string{"web"}},
		{"twice is once", Source{VMs: []VMRef{{all[3].ID, "mail"}}, Hosts: []holdfast.HostID{h2}, Match: []string{"mail"}}, []string{"mail", "sql-test", "web"}},
	} {
		if got := names(c.s); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if sel := (Source{VMs: []VMRef{{all[4].ID, "x"}, gone}}).Select(all); sel.VMs[0].Host != h2 || len(sel.Gone) != 1 || sel.Gone[0] != gone {
		t.Errorf("%+v", sel)
	}
	s := Source{ExcludeDisks: []string{"*-swap.vhdx", "mail:data*", all[1].ID.String() + ":x"}}
	if got := s.SkippedDisks(all[3]); !slices.Equal(got, []string{"*-swap.vhdx", "data*"}) {
		t.Errorf("disks of mail: %v", got)
	}
}

func TestTypedSchedules(t *testing.T) {
	for text, want := range map[string]string{"full: Weekly 22:00 on sun": "full: weekly 22:00 every 1w on sun", "daily 22:00": "daily 22:00 every 1d",
		"hourly 08:00-20:00 every 30m": "hourly 08:00-20:00 every 30m", "differential:daily 01:00": "differential: daily 01:00 every 1d"} {
		if got, err := ParseTimed(text); err != nil || got.String() != want {
			t.Errorf("%q: %q %v", text, got, err)
		}
	}
	for _, text := range []string{"complete: daily 22:00", "full:", "now"} {
		if _, err := ParseTimed(text); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
