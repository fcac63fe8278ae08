package appliance_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/lab"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

func vmNames(vms []api.JobVM) (out []string) {
	for _, v := range vms {
		out = append(out, v.Name)
	}
	return out
}

// task returns the part of a run that is about a VM or a script.
func task(t *testing.T, r api.Run, name string) api.Task {
	t.Helper()
	for _, x := range r.Tasks {
		if x.VM == name {
			return x
		}
	}
	t.Fatalf("run %s has nothing about %s: %+v", r.ID, name, r.Tasks)
	return api.Task{}
}

func (s *site) logOf(r api.Run) string {
	s.t.Helper()
	l, err := s.svc().RunLog(s.t.Context(), r.ID, 0, 0)
	s.ok(err)
	var b strings.Builder
	for _, x := range l.Lines {
		b.WriteString(x.Task + ": " + x.Text + "\n")
	}
	return b.String()
}

// TestAJobFollowsItsHost: a job of a whole host with exclusions takes a new VM in, reports a removed one, and knows VMs by their ids.
func TestAJobFollowsItsHost(t *testing.T) {
	s := newSite(t)
	for _, name := range []string{"app", "db", "test-1"} {
		s.vm("hv1", name, 4<<20)
	}
	s.online("hv1")
	s.wait("the VMs are listed", func() bool { vms, err := s.svc().VMs(t.Context()); s.ok(err); return len(vms) == 3 })
	c, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "nightly", Pool: "main", Hosts: []string{"hv1"}, Exclude: []string{"test-*"}, Schedules: []string{"daily 22:00"}})
	s.ok(err)
	if got := vmNames(c.Job.Selected); !slices.Equal(got, []string{"app", "db"}) || c.Job.Next.IsZero() || c.Job.State != "idle" {
		t.Fatalf("%+v", c.Job)
	}
	r := s.follow(s.svc().RunJob(t.Context(), "nightly", api.JobRun{}))
	if r.State != api.StateDone || r.Job != "nightly" || len(r.Tasks) != 2 || task(t, r, "db").Reason != "first-backup" {
		t.Fatalf("%+v", r)
	}
	s.wait("the run is noted with its job", func() bool {
		j, err := s.svc().Job(t.Context(), "nightly")
		s.ok(err)
		return j.LastRun == r.ID && j.LastResult == api.StateDone && !j.LastGood.IsZero()
	})
	s.vm("hv1", "new", 4<<20)
	s.wait("the new VM is chosen", func() bool {
		_, _ = s.svc().VMs(t.Context()) // asks the hosts
		j, err := s.svc().Job(t.Context(), "nightly")
		s.ok(err)
		return slices.Equal(vmNames(j.Selected), []string{"app", "db", "new"})
	})
	r = s.follow(s.svc().RunJob(t.Context(), "nightly", api.JobRun{}))
	if r.State != api.StateDone || len(r.Tasks) != 3 || !strings.Contains(s.logOf(r), "new in job nightly: new") {
		t.Fatalf("%+v\n%s", r, s.logOf(r))
	}
	s.recorded("job-vm-changed", "new in job nightly: new")
	if got := task(t, r, "db"); got.Reason != "" || got.Counts.Read >= task(t, r, "new").Counts.Read {
		t.Errorf("the second backup of db was no incremental: %+v", got)
	}
	j, err := s.svc().DeleteJob(t.Context(), "nightly")
	s.ok(err)
	if _, err := s.svc().Job(t.Context(), j.Name); !errors.Is(err, holdfast.NotExist) {
		t.Errorf("a deleted job: %v", err)
	}
	sets, err := s.svc().Sets(t.Context(), api.SetFilter{})
	s.ok(err)
	if len(sets) != 5 {
		t.Errorf("%d sets after the job was deleted", len(sets))
	}
}

// TestAVMThatIsGoneIsAFailureOfItsOwn: a VM that was named and that no host has any more fails with its code, beside the others' success.
func TestAVMThatIsGoneIsAFailureOfItsOwn(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "app", 4<<20)
	s.vm("hv1", "db", 4<<20)
	s.online("hv1")
	_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "two", Pool: "main", VMs: []string{"app", "db"}})
	s.ok(err)
	s.ok(os.RemoveAll(s.path("lab-hv1/db")))
	s.wait("the VM is gone", func() bool { vms, err := s.svc().VMs(t.Context()); s.ok(err); return len(vms) == 1 })
	r := s.follow(s.svc().RunJob(t.Context(), "two", api.JobRun{}))
	if r.State != api.StatePartial || task(t, r, "app").State != api.StateDone || task(t, r, "db").Error == nil || task(t, r, "db").Error.Code != holdfast.NotExist.Code() {
		t.Fatalf("%+v", r)
	}
}

// TestSchedulesStartJobs: the planner starts a job at its moment, with the more thorough type where two schedules name it, catches a missed
// moment up with an event of its own, and leaves a disabled job alone.
func TestSchedulesStartJobs(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 4<<20)
	s.online("hv1")
	_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "two", Pool: "main", VMs: []string{"db"}, Zone: "Europe/Berlin",
		Schedules: []string{"daily 22:00", "full: weekly 22:00 on mon,tue,wed,thu,fri,sat,sun"}})
	s.ok(err)
	_, err = s.svc().CreateJob(t.Context(), api.JobSpec{Name: "off", Pool: "main", VMs: []string{"db"}, Schedules: []string{"hourly 00:00-23:59 every 1h"}, Disabled: true})
	s.ok(err)
	j, err := s.svc().Job(t.Context(), "two")
	s.ok(err)
	jump := func(to time.Time) {
		s.clock.offset.Store(int64(to.Sub(time.Now())))
		_, err := s.svc().SetJob(t.Context(), "off", api.JobChange{}) // wakes the planner
		s.ok(err)
	}
	jump(j.Next.Add(time.Second))
	ran := func(n int) (r api.Run) {
		s.wait("the schedule has started the job", func() bool {
			rs, err := s.svc().Runs(t.Context(), 10)
			s.ok(err)
			if len(rs) == n {
				r = rs[0]
			}
			return len(rs) >= n
		})
		return s.follow(r, nil)
	}
	r := ran(1)
	if r.State != api.StateDone || r.Job != "two" || r.Type != "full" || !strings.HasPrefix(r.Cause, "full: weekly 22:00") {
		t.Fatalf("%+v", r)
	}
	// Three days without the appliance looking: one run, and what was missed is told.
	jump(j.Next.Add(80 * time.Hour))
	if r = ran(2); r.Job != "two" {
		t.Fatalf("%+v", r)
	}
	s.recorded("job-missed", "two", "it is run now")
	s.recorded("job-missed", "two", "did not run 4 times")
}

// TestImmediateJobsStartWhenTheyAreCreated, and need no schedule that is kept.
func TestImmediateJobsStartWhenTheyAreCreated(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 4<<20)
	s.online("hv1")
	c, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "now", Pool: "main", VMs: []string{"db"}, Schedules: []string{"now"}})
	s.ok(err)
	if c.Run == nil || len(c.Job.Schedules) != 0 {
		t.Fatalf("%+v", c)
	}
	if r := s.follow(*c.Run, nil); r.State != api.StateDone || r.Job != "now" {
		t.Errorf("%+v", r)
	}
}

// TestAgentsComeByIPv6: enrolment, control and data over IPv6.
func TestAgentsComeByIPv6(t *testing.T) {
	s := &site{t: t, dir: t.TempDir(), clock: &shifted{}, log: &logBuffer{}, addr: "[::1]:0", agents: map[string]func(){}}
	s.open()
	s.vm("hv1", "db", 4<<20)
	s.online("hv1")
	if r := s.backup("db"); r.State != api.StateDone {
		t.Errorf("%+v", r)
	}
}

// TestFailedVMsAreTriedAgain: only what failed, after the pause, and no more often than the job says.
func TestFailedVMsAreTriedAgain(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "app", 4<<20)
	s.vm("hv1", "db", 4<<20)
	s.online("hv1")
	_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "j", Pool: "main", VMs: []string{"app", "db"}, Options: []string{"retries=1", "retry-wait=1s", "consistency=application-required"}})
	s.ok(err)
	s.ok(s.host("hv1").SetFault(t.Context(), "db", lab.FaultApp, "2"))
	r := s.follow(s.svc().RunJob(t.Context(), "j", api.JobRun{}))
	if r.State != api.StatePartial || task(t, r, "db").State != api.StateFailed {
		t.Fatalf("%+v", r)
	}
	var again api.Run
	s.wait("what failed is tried again", func() bool {
		rs, err := s.svc().Runs(t.Context(), 10)
		s.ok(err)
		again = rs[0]
		return again.RetryOf == r.ID
	})
	if again = s.follow(again, nil); len(again.Tasks) != 1 || again.Tasks[0].VM != "db" {
		t.Errorf("%+v", again)
	}
}
