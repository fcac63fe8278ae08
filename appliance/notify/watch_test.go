package notify

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

func line(es []holdfast.Event) string {
	var out []string
	for _, e := range es {
		key, s := alarmOf(e)
		out = append(out, fmt.Sprintf("%s %s: %s", key, s, e.Text))
	}
	return strings.Join(out, "\n")
}

func TestMissed(t *testing.T) {
	now := newClock().now // 12:00
	at := func(h, m int) time.Time { return time.Date(2026, 6, 17, h, m, 0, 0, time.UTC) }
	for _, c := range []struct {
		name string
		job  Job
		runs []Run
		want string
	}{
		{"not due yet", Job{Enabled: true}, nil, "cleared: job j runs as planned"},
		{"within the grace", Job{Enabled: true, Due: []time.Time{at(11, 50)}}, nil, "cleared: job j runs as planned"},
		{"grace over", Job{Enabled: true, Due: []time.Time{at(11, 45)}}, nil, "raised: job j should have started at 2026-06-17 11:45 UTC and has not"},
		{"its own grace", Job{Enabled: true, Due: []time.Time{at(11, 0)}, Grace: 2 * time.Hour}, nil, "cleared: job j runs as planned"},
		{"started", Job{Enabled: true, Due: []time.Time{at(11, 0)}}, []Run{{"j", at(11, 0)}}, "cleared: job j runs as planned"},
		{"started late", Job{Enabled: true, Due: []time.Time{at(10, 0)}}, []Run{{"j", at(11, 59)}}, "cleared: job j runs as planned"},
		{"started before it was due", Job{Enabled: true, Due: []time.Time{at(11, 0)}}, []Run{{"j", at(10, 59)}}, "raised: job j should have started at 2026-06-17 11:00 UTC and has not"},
		{"another job started", Job{Enabled: true, Due: []time.Time{at(11, 0)}}, []Run{{"k", at(11, 0)}}, "raised: job j should have started at 2026-06-17 11:00 UTC and has not"},
		{"several missed", Job{Enabled: true, Due: []time.Time{at(11, 0), at(9, 0), at(10, 0)}}, []Run{{"j", at(9, 0)}}, "raised: job j should have started at 2026-06-17 11:00 UTC and has not; it missed 2 starts"},
		{"disabled", Job{Due: []time.Time{at(11, 0)}}, nil, "cleared: job j is disabled"},
		{"due in the future", Job{Enabled: true, Due: []time.Time{at(13, 0)}}, nil, "cleared: job j runs as planned"},
		{"a run from the future", Job{Enabled: true, Due: []time.Time{at(11, 0)}}, []Run{{"j", at(13, 0)}}, "raised: job j should have started at 2026-06-17 11:00 UTC and has not"},
	} {
		c.job.Name = "j"
		if got := line(Missed([]Job{c.job}, c.runs, now)); got != "missed/j "+c.want {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

func TestStale(t *testing.T) {
	now := newClock().now
	ago := func(h int) time.Time { return now.Add(-time.Duration(h) * time.Hour) }
	id := holdfast.VMID{ID: holdfast.ID{1}}
	for _, c := range []struct {
		name string
		vm   VM
		want string
	}{
		{"recent", VM{Good: ago(20), Within: 24 * time.Hour}, "cleared: VM db is backed up in time"},
		{"old", VM{Good: ago(25), Within: 24 * time.Hour}, "raised: VM db was last backed up at 2026-06-16 11:00 UTC, more than 24 hours ago"},
		{"old by days", VM{Good: ago(73), Within: 72 * time.Hour}, "raised: VM db was last backed up at 2026-06-14 11:00 UTC, more than 3 days ago"},
		{"new", VM{Since: ago(20), Within: 24 * time.Hour}, "cleared: VM db is backed up in time"},
		{"never", VM{Since: ago(25), Within: 24 * time.Hour}, "raised: VM db was never backed up, and has been protected since 2026-06-16 11:00 UTC"},
		{"protected anew", VM{Since: ago(1), Good: ago(500), Within: 24 * time.Hour}, "cleared: VM db is backed up in time"},
		{"not watched", VM{Good: ago(5000)}, "cleared: VM db is not watched"},
		{"from the future", VM{Good: ago(-48), Within: 24 * time.Hour}, "raised: the newest point of VM db is from the future, 2026-06-19 12:00 UTC: check the clock"},
	} {
		c.vm.ID, c.vm.Name = id, "db"
		if got := line(Stale([]VM{c.vm}, now)); got != "stale/"+id.String()+" "+c.want {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

// TestWatchingEveryMinuteTellsOnce runs both checks each minute of two days in which nothing is backed up for one and a half, as the appliance would.
func TestWatchingEveryMinuteTellsOnce(t *testing.T) {
	h := newHook(t, "")
	w := newWorld(t, h.target("hook"))
	good := w.clock.Now()
	due := good.Add(12 * time.Hour)
	var runs []Run
	for minute := range 48 * 60 {
		now := w.clock.Now()
		if minute == 36*60 {
			good = now
			runs = append(runs, Run{"nightly", now})
		}
		job := Job{Name: "nightly", Enabled: true}
		for d := due; !d.After(now); d = d.Add(24 * time.Hour) {
			job.Due = append(job.Due, d)
		}
		if err := w.n.Sweep(KindMissed, Missed([]Job{job}, runs, now)); err != nil {
			t.Fatal(err)
		}
		if err := w.n.Sweep(KindStale, Stale([]VM{{ID: holdfast.VMID{ID: holdfast.ID{1}}, Name: "db", Good: good, Within: 26 * time.Hour}}, now)); err != nil {
			t.Fatal(err)
		}
		if minute%600 == 0 {
			w.restart()
		}
		w.drain()
		w.clock.move(time.Minute)
	}
	wantTitles(t, h, "Alarm: job nightly should have started at 2026-06-18 00:00 UTC and has not | Alarm: VM db was last backed up at 2026-06-17 12:00 UTC, more than 26 hours ago | "+
		"Cleared: job nightly runs as planned | Cleared: VM db is backed up in time")
}
