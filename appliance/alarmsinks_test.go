package appliance_test

import (
	"os"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/notify"
	"github.com/holdfast-backup/holdfast/appliance/notify/notifytest"
)

// TestAlarmsOfJobsAndPoolsAreToldOnce: a moment that passed without a run, a job that failed, and a pool that cannot be opened
// reach a mail server and a webhook once each, as do their clearings; a restart in between tells nothing again. (The other kinds:
// cmd/e2e.TestAlarmsAndClearingsAreToldOnce, and of full disks cmd/e2e.TestFullDisk.)
func TestAlarmsOfJobsAndPoolsAreToldOnce(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	wide := int64(1 << 40) // so that how full the disk below is does not matter
	s.set("main", api.PoolChange{Quota: &wide})
	const key = "not-for-everybodys-eyes"
	hooked, url := notifytest.Hook(t, key)
	mailed, port := notifytest.Mailbox(t)
	flood := &notify.Flood{Max: 1000, Minutes: 1}
	all := []notify.Rule{{Severity: holdfast.Warning}}
	for _, x := range []notify.Target{
		{Name: "hook", Rules: all, Flood: flood, Webhook: &notify.Webhook{URL: url, Key: key}},
		{Name: "ops", Rules: all, Flood: flood, Mail: &notify.Mail{Host: "127.0.0.1", Port: port, Security: "plain", From: "holdfast@example.org", To: []string{"ops@example.org"}}},
	} {
		_, err := s.svc().AddNotifyTarget(ctx, x)
		s.ok(err)
	}
	var want []string
	look := func() {
		stale := "2000h" // this test jumps through days; a change of a setting also lets the herald look around at once
		_, err := s.svc().SetNotify(ctx, api.NotifyChange{Stale: &stale})
		s.ok(err)
	}
	look()
	expect := func(alarm, state string) {
		t.Helper()
		look()
		s.wait(alarm+" is "+state, func() bool { return hooked.Has(alarm+" "+state) && mailed.Has(alarm+" "+state) })
		want = append(want, alarm+" "+state)
	}
	s.vm("hv1", "db", 4<<20)
	id := s.enroll("hv1")
	s.run(id)
	s.state("hv1", api.HostOnline)
	_, err := s.svc().CreateJob(ctx, api.JobSpec{Name: "nightly", Pool: "main", VMs: []string{"db"}, Schedules: []string{"daily 22:00"}, Options: []string{"missed=skip", "start-window=1h"}})
	s.ok(err)
	run := func(state string) {
		t.Helper()
		if r := s.follow(s.svc().RunJob(ctx, "nightly", api.JobRun{})); r.State != state {
			t.Fatalf("%+v", r)
		}
	}
	run(api.StateDone)

	option := func(text string) {
		t.Helper()
		_, err := s.svc().SetJob(ctx, "nightly", api.JobChange{Options: []string{text}})
		s.ok(err)
	}
	option("pre-script=not-there")
	run(api.StateFailed)
	expect("job/nightly", "raised")
	run(api.StateFailed) // the same alarm
	s.stop()
	s.start()
	s.state("hv1", api.HostOnline)
	option("pre-script=none")
	run(api.StateDone)
	expect("job/nightly", "cleared")

	pools, err := s.svc().Pools(ctx)
	s.ok(err)
	s.stop()
	s.ok(os.Rename(s.path("pool"), s.path("pool-elsewhere")))
	s.start()
	expect("pool/"+pools[0].ID+"/offline", "raised")
	s.stop()
	s.start()
	look()
	s.ok(os.Rename(s.path("pool-elsewhere"), s.path("pool")))
	s.clock.offset.Add(int64(time.Minute)) // it is not tried again at once
	expect("pool/"+pools[0].ID+"/offline", "cleared")

	s.state("hv1", api.HostOnline)
	j, err := s.svc().Job(ctx, "nightly")
	s.ok(err)
	s.clock.offset.Store(int64(j.Next.Add(3 * time.Hour).Sub(time.Now()))) // a night during which nothing could be started
	option("retries=1")                                                    // wakes the planner
	expect("missed/nightly", "raised")
	run(api.StateDone)
	expect("missed/nightly", "cleared")
	s.stop() // with what waits
	hooked.Check(t, "webhook", want)
	mailed.Check(t, "mail", want)
}
