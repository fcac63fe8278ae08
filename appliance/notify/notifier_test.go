package notify

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

func titles(ms []Message) string {
	var out []string
	for _, m := range ms {
		out = append(out, m.Title)
	}
	return strings.Join(out, " | ")
}

func wantTitles(t *testing.T, h *hook, want string) {
	t.Helper()
	if got := titles(h.taken()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestAnAlarmIsToldOnceAndItsClearingOnce raises, repeats, clears and repeats the clearing, with a restart between any two steps.
func TestAnAlarmIsToldOnceAndItsClearingOnce(t *testing.T) {
	h := newHook(t, "k")
	w := newWorld(t, h.target("hook"))
	for range 2 {
		for _, e := range []holdfast.Event{raised(1), raised(1), cleared(2), cleared(1), cleared(1)} {
			w.accept(e)
			w.restart()
			w.settle()
			w.restart()
		}
	}
	wantTitles(t, h, strings.TrimSuffix(strings.Repeat("Alarm: trouble 1 | Cleared: well again 1 | ", 2), " | "))
	if m := h.taken()[1]; m.State != Cleared || m.Alarm != "trouble/1" || !strings.Contains(m.Text, "trouble 1, since 2026-06-17 12:00:00 UTC") || m.Fields["vm"] != "db" || m.Fields[FieldAlarm] != "" {
		t.Errorf("%+v", m)
	}
	if a := w.n.Alarms(); len(a) != 0 {
		t.Errorf("still open: %+v", a)
	}
}

// TestOnlyThoseWhoWereToldHearOfTheClearing: rules decide over the alarm, and the clearing, though it is mild, follows it.
func TestOnlyThoseWhoWereToldHearOfTheClearing(t *testing.T) {
	alarms, infos := newHook(t, ""), newHook(t, "")
	a, i := alarms.target("alarms"), infos.target("infos")
	a.Rules = []Rule{{Severity: holdfast.Alarm}}
	i.Rules = []Rule{{Severity: holdfast.Warning, Not: true}}
	w := newWorld(t, a, i)
	w.accept(raised(1), cleared(1), event(holdfast.Info, "fine"))
	w.settle()
	wantTitles(t, alarms, "Alarm: trouble 1 | Cleared: well again 1")
	wantTitles(t, infos, "Info: fine")
}

// TestAnOpenAlarmReachesWhoWantsItLater: a target that is new, or whose window opens, is told when the alarm is raised again.
func TestAnOpenAlarmReachesWhoWantsItLater(t *testing.T) {
	h := newHook(t, "")
	tg := h.target("hook")
	evening, err := ParseWindow("18:00-20:00")
	if err != nil {
		t.Fatal(err)
	}
	tg.Rules = []Rule{{Windows: []Window{evening}}}
	w := newWorld(t, tg)
	for range 10 { // 12:00 to 21:00
		w.accept(raised(1))
		w.drain()
		w.clock.move(time.Hour)
	}
	wantTitles(t, h, "Alarm: trouble 1")
	w.accept(cleared(1)) // also outside the window
	w.settle()
	wantTitles(t, h, "Alarm: trouble 1 | Cleared: well again 1")
}

func TestAnAlarmThatGetsWorseOrStaysIsToldAgain(t *testing.T) {
	h := newHook(t, "")
	w := newWorld(t, h.target("hook"))
	w.o.Remind = 24 * time.Hour
	w.restart()
	mild := Raise(event(holdfast.Warning, "80 % full"), "fill")
	grave := Raise(event(holdfast.Alarm, "90 % full"), "fill")
	w.accept(mild, mild, grave, mild, grave)
	w.clock.move(23 * time.Hour)
	w.accept(grave)
	w.clock.move(time.Hour)
	w.accept(grave, grave)
	w.settle()
	wantTitles(t, h, "Warning: 80 % full | Alarm: 90 % full | Alarm: 90 % full")
	// A newcomer that is told of it while it is mild does not make it new to the others.
	late := newHook(t, "")
	if err := w.n.SetTargets([]Target{h.target("hook"), late.target("late")}); err != nil {
		t.Fatal(err)
	}
	w.accept(mild, grave)
	w.settle()
	wantTitles(t, late, "Warning: 80 % full")
	wantTitles(t, h, "Warning: 80 % full | Alarm: 90 % full | Alarm: 90 % full")
}

// TestHostsClearTheirOwnAlarm: events of hosts carry no key; their types say it.
func TestHostsClearTheirOwnAlarm(t *testing.T) {
	h := newHook(t, "")
	w := newWorld(t, h.target("hook"))
	f := map[string]string{"id": "1", "host": "hv1"}
	off := holdfast.Event{Type: holdfast.EventHostOffline, Severity: holdfast.Warning, Text: "host hv1 is offline", Fields: f}
	on := holdfast.Event{Type: holdfast.EventHostOnline, Text: "host hv1 is online", Fields: f}
	w.accept(on, off, off, on, on)
	w.settle()
	wantTitles(t, h, "Warning: host hv1 is offline | Cleared: host hv1 is online")
}

// TestSweepClearsWhatIsGone: an alarm of a job that was deleted does not stay open for ever.
func TestSweepClearsWhatIsGone(t *testing.T) {
	h := newHook(t, "")
	w := newWorld(t, h.target("hook"))
	now := w.clock.Now()
	job := func(name string) Job { return Job{Name: name, Enabled: true, Due: []time.Time{now.Add(-time.Hour)}} }
	for _, jobs := range [][]Job{{job("a"), job("b")}, {job("a"), job("b")}, {job("b")}} {
		if err := w.n.Sweep(KindMissed, Missed(jobs, nil, now)); err != nil {
			t.Fatal(err)
		}
	}
	w.settle()
	wantTitles(t, h, "Alarm: job a should have started at 2026-06-17 11:00 UTC and has not | Alarm: job b should have started at 2026-06-17 11:00 UTC and has not | Cleared: no longer watched")
	if a := w.n.Alarms(); len(a) != 1 || a[0].Key != "missed/b" {
		t.Errorf("%+v", a)
	}
}

// TestFloodBecomesOneSummary sends 100 events to a target that takes 5 an hour, over a restart.
func TestFloodBecomesOneSummary(t *testing.T) {
	h := newHook(t, "")
	tg := h.target("hook")
	tg.Flood = &Flood{Max: 5, Minutes: 60}
	w := newWorld(t, tg)
	for i := range 100 {
		s := holdfast.Info
		if i == 60 {
			s = holdfast.Alarm
		}
		w.accept(event(s, fmt.Sprint("event ", i)))
		w.clock.move(10 * time.Second)
		if i == 50 {
			w.restart()
		}
	}
	w.drain()
	if got := len(h.taken()); got != 5 {
		t.Fatalf("%d came at once", got)
	}
	w.settle()
	got := h.taken()
	if len(got) != 6 || got[5].Title != "95 more held back: 1 alarm, 94 info" || got[5].Severity != holdfast.Alarm || got[5].Type != EventSummary {
		t.Fatalf("%s", titles(got))
	}
	if !strings.Contains(got[5].Text, "Alarm: event 60\n") || !strings.Contains(got[5].Text, "Info: event 5\n") || !strings.HasSuffix(got[5].Text, "and 75 more\n") {
		t.Error(got[5].Text)
	}
	if since := w.clock.Now().Sub(got[0].Time); since < time.Hour || since > time.Hour+time.Minute {
		t.Errorf("the summary came after %v", since)
	}
	w.accept(event(holdfast.Info, "later"))
	w.settle()
	if got := h.taken(); len(got) != 7 {
		t.Errorf("%s", titles(got))
	}
}

// TestAClockThatGoesBackHoldsNothingBack: what was sent in a future that did not come does not count, and what waits for it comes.
func TestAClockThatGoesBackHoldsNothingBack(t *testing.T) {
	h := newHook(t, "")
	tg := h.target("hook")
	tg.Flood = &Flood{Max: 1, Minutes: 60}
	w := newWorld(t, tg)
	w.accept(event(holdfast.Info, "1"), event(holdfast.Info, "2"))
	w.drain()
	w.clock.move(-1000 * time.Hour)
	w.drain()
	w.accept(event(holdfast.Info, "3"))
	w.settle()
	wantTitles(t, h, "Info: 1 | 1 more held back: 1 info | 1 more held back: 1 info")
	h.say(503)
	w.clock.move(2 * time.Hour)
	w.accept(event(holdfast.Info, "4"))
	w.drain()
	w.clock.move(-1000 * time.Hour)
	if next := w.drain(); next.Sub(w.clock.Now()) > lastRetry {
		t.Errorf("the next attempt is %v away", next.Sub(w.clock.Now()))
	}
}

// TestDigestComesOnceADay collects what is no alarm and sends it in the morning, over a restart; alarms come at once.
func TestDigestComesOnceADay(t *testing.T) {
	h := newHook(t, "")
	tg := h.target("hook")
	tg.Digest = &Digest{At: "07:00"}
	w := newWorld(t, tg)
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	w.o.Zone = berlin
	w.restart()
	w.accept(event(holdfast.Info, "one"), raised(1), event(holdfast.Warning, "two"), cleared(1))
	w.drain()
	wantTitles(t, h, "Alarm: trouble 1 | Cleared: well again 1")
	w.restart()
	w.accept(event(holdfast.Info, "three"))
	w.settle()
	wantTitles(t, h, "Alarm: trouble 1 | Cleared: well again 1 | Digest of 3: 1 warning, 2 info")
	if at := w.clock.Now(); !at.Equal(time.Date(2026, 6, 18, 5, 0, 0, 0, time.UTC)) {
		t.Errorf("it came at %v", at)
	}
	if m := h.taken()[2]; !strings.Contains(m.Text, "2026-06-17 14:00:00 CEST  Info: one\n") {
		t.Error(m.Text)
	}
	w.clock.move(48 * time.Hour)
	if next := w.drain(); !next.IsZero() || len(h.taken()) != 3 {
		t.Errorf("an empty digest: %v, %d", next, len(h.taken()))
	}
}

// TestQueueTriesAgainWithLongerPauses keeps order over failures and restarts, and tells the listener once each way.
func TestQueueTriesAgainWithLongerPauses(t *testing.T) {
	h := newHook(t, "k")
	w := newWorld(t, h.target("hook"))
	h.say(503)
	w.accept(raised(1), raised(2))
	var pauses []string
	for range 9 {
		next := w.drain()
		pauses = append(pauses, next.Sub(w.clock.Now()).String())
		w.clock.move(next.Sub(w.clock.Now()))
		w.restart()
	}
	if got := strings.Join(pauses, " "); got != "30s 1m0s 2m0s 4m0s 8m0s 16m0s 32m0s 1h0m0s 1h0m0s" {
		t.Error(got)
	}
	if s := w.n.Status()[0]; s.Queued != 2 || !strings.Contains(s.Error, "503 Service Unavailable: no thanks") || s.GivenUp != 0 {
		t.Errorf("%+v", s)
	}
	h.say(0)
	w.accept(cleared(1))
	w.settle()
	wantTitles(t, h, "Alarm: trouble 1 | Alarm: trouble 2 | Cleared: well again 1")
	if len(w.events) != 2 || w.events[0].Fields[FieldState] != string(Raised) || w.events[1].Fields[FieldState] != string(Cleared) || w.events[1].Type != EventFailed {
		t.Errorf("%+v", w.events)
	}
	if s := w.n.Status()[0]; s.Queued != 0 || s.Error != "" || s.Success.IsZero() {
		t.Errorf("%+v", s)
	}
}

// TestRetryAfterIsHeeded waits as long as the server asks, but not for ever.
func TestRetryAfterIsHeeded(t *testing.T) {
	h := newHook(t, "")
	w := newWorld(t, h.target("hook"))
	h.say(429)
	for _, c := range []struct {
		say  string
		want time.Duration
	}{{"300", 5 * time.Minute}, {"1", time.Minute}, {"999999", time.Hour}, {"soon", 4 * time.Minute}} {
		h.answer.Set("Retry-After", c.say)
		if len(w.n.Status()) > 0 && w.n.Status()[0].Queued == 0 {
			w.accept(event(holdfast.Info, "x"))
		}
		next := w.drain()
		if got := next.Sub(w.clock.Now()); got != c.want {
			t.Errorf("Retry-After %s: waits %v, want %v", c.say, got, c.want)
		}
		w.clock.move(next.Sub(w.clock.Now()))
	}
}

// TestWhatIsRefusedDoesNotBlockTheRest gives up a message that the target says no to, tells so, and goes on with the next one.
func TestWhatIsRefusedDoesNotBlockTheRest(t *testing.T) {
	h := newHook(t, "")
	w := newWorld(t, h.target("hook"))
	h.say(400)
	w.accept(event(holdfast.Alarm, "bad"))
	w.settle()
	if s := w.n.Status()[0]; s.GivenUp != 1 || s.Queued != 0 {
		t.Errorf("%+v", s)
	}
	h.say(0)
	w.accept(event(holdfast.Info, "good"))
	w.settle()
	wantTitles(t, h, "Info: good")
	var types []string
	for _, e := range w.events {
		types = append(types, string(e.Type)+e.Fields[FieldState])
	}
	if got := strings.Join(types, " "); got != "notification-failedraised notification-given-up notification-failedcleared" {
		t.Error(got)
	}
}

// TestATargetIsNotToldOfItsOwnFailure: others are.
func TestATargetIsNotToldOfItsOwnFailure(t *testing.T) {
	broken, fine := newHook(t, ""), newHook(t, "")
	broken.say(500)
	w := newWorld(t, broken.target("broken"), fine.target("fine"))
	w.accept(event(holdfast.Info, "x"))
	for range 6 {
		next := w.drain()
		w.clock.move(max(0, next.Sub(w.clock.Now())))
	}
	w.accept(w.events...)
	broken.say(0)
	w.settle()
	w.accept(w.events[len(w.events)-1])
	w.settle()
	wantTitles(t, broken, "Info: x")
	if got := titles(fine.taken()); !strings.HasPrefix(got, "Info: x | Warning: notifications do not reach target broken: ") || !strings.HasSuffix(got, " | Cleared: notifications reach target broken again") {
		t.Error(got)
	}
}

// TestAnUnreachableTargetIsGivenUpAfterDays, and nothing is left of it in the store.
func TestAnUnreachableTargetIsGivenUpAfterDays(t *testing.T) {
	h := newHook(t, "")
	w := newWorld(t, h.target("hook"))
	h.Close()
	start := w.clock.Now()
	w.accept(event(holdfast.Alarm, "x"))
	w.settle()
	if age := w.clock.Now().Sub(start); age < maxAge || age > maxAge+lastRetry || w.n.Status()[0].GivenUp != 1 {
		t.Errorf("after %v: %+v", age, w.n.Status())
	}
	for k := range w.store.values {
		if strings.HasPrefix(k, queueKey) {
			t.Errorf("%s is left", k)
		}
	}
}

// TestAFullQueueKeepsTheGraveAndCountsTheRest: nothing vanishes without being counted.
func TestAFullQueueKeepsTheGraveAndCountsTheRest(t *testing.T) {
	h := newHook(t, "")
	w := newWorld(t, h.target("hook"))
	w.n.maxQueue = 5
	h.say(503)
	for i := range 8 {
		w.accept(event(holdfast.Info, fmt.Sprint("info ", i)))
	}
	for i := range 6 {
		w.accept(event(holdfast.Alarm, fmt.Sprint("alarm ", i)))
	}
	if s := w.n.Status()[0]; s.Queued != 5 || s.Held != 9 {
		t.Errorf("%+v", s)
	}
	w.drain()
	w.restart()
	h.say(0)
	w.settle()
	wantTitles(t, h, "Info: info 0 | Alarm: alarm 0 | Alarm: alarm 1 | Alarm: alarm 2 | Alarm: alarm 3 | 9 more held back: 2 alarm, 7 info")
}

// TestAStoreThatFailsLosesNothing: Accept says so and the event can be handed in again; a message that was sent is not sent again.
func TestAStoreThatFailsLosesNothing(t *testing.T) {
	h := newHook(t, "")
	w := newWorld(t, h.target("hook"))
	w.store.down = true
	wantKind(t, w.n.Accept(7, raised(1)), holdfast.NoSpace)
	if w.n.Cursor() != 0 || len(w.n.Alarms()) != 0 || w.n.Status()[0].Queued != 0 {
		t.Error("something of the event stayed")
	}
	w.store.down = false
	for range 2 { // the second is known
		if err := w.n.Accept(7, raised(1)); err != nil {
			t.Fatal(err)
		}
	}
	w.store.down = true // while it is sent
	w.drain()
	w.drain()
	w.store.down = false
	w.accept(raised(2)) // the store catches up
	w.restart()
	w.settle()
	wantTitles(t, h, "Alarm: trouble 1 | Alarm: trouble 2")
	if w.n.Cursor() != 7 {
		t.Errorf("the cursor is %d", w.n.Cursor())
	}
}

// TestTargetsCanBeChanged: what waits for a target that is gone goes with it; a changed one gets what waited.
func TestTargetsCanBeChanged(t *testing.T) {
	a, b, moved := newHook(t, ""), newHook(t, ""), newHook(t, "")
	w := newWorld(t, a.target("a"), b.target("b"))
	w.accept(raised(1))
	if err := w.n.SetTargets([]Target{moved.target("a")}); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.accept(cleared(1))
	w.settle()
	wantTitles(t, moved, "Alarm: trouble 1 | Cleared: well again 1")
	wantTitles(t, a, "")
	wantTitles(t, b, "")
	for k := range w.store.values {
		if strings.HasSuffix(k, "/b") || strings.HasPrefix(k, queueKey) {
			t.Errorf("%s is left", k)
		}
	}
	wantKind(t, w.n.SetTargets([]Target{moved.target("x"), moved.target("x")}), holdfast.Invalid)
	wantKind(t, w.n.SetTargets([]Target{{Name: "x"}}), holdfast.Invalid)
	if s := w.n.Status(); len(s) != 1 || s[0].Name != "a" {
		t.Errorf("%+v", s)
	}
}

// TestRunSendsAndStops runs the loop with its goroutines: events go out while a slow target hangs, retries come when the clock says so, and Run
// returns with nothing left behind.
func TestRunSendsAndStops(t *testing.T) {
	h := newHook(t, "k")
	stuck := newSilent(t)
	w := newWorld(t, h.target("hook"), Target{Name: "stuck", Webhook: &Webhook{URL: "http://" + stuck}})
	w.o.Listener = nil
	w.restart()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.n.Run(ctx) }()
	w.accept(raised(1))
	<-h.arrived
	h.say(503)
	w.accept(raised(2))
	<-w.clock.asked // the loop waits for the next attempt
	h.say(0)
	w.clock.move(firstRetry)
	if m := <-h.arrived; m.Alarm != "trouble/2" {
		t.Errorf("%+v", m)
	}
	cancel()
	<-done
	if s := w.n.Status(); s[1].Queued != 2 || s[1].Error != "" {
		t.Errorf("%+v", s)
	}
}
