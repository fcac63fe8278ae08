package appliance_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/retain"
)

// TestApplyDoesWhatSimulateSays: the same decisions, reasons and bytes; what is held stays, by hand and by policy; the job's policy is for the
// job's sets and the pool's for the others.
func TestApplyDoesWhatSimulateSays(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 4<<20)
	s.vm("hv1", "app", 4<<20)
	s.online("hv1")
	_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "j", Pool: "main", VMs: []string{"db"}})
	s.ok(err)
	for range 3 {
		s.follow(s.svc().RunJob(t.Context(), "j", api.JobRun{}))
		s.backup("app")
	}
	sets, err := s.svc().Sets(t.Context(), api.SetFilter{VM: "app"})
	s.ok(err)
	held, err := s.svc().HoldSet(t.Context(), sets[0].ID, s.clock.Now().Add(time.Hour))
	s.ok(err)
	if held.Hold.IsZero() {
		t.Error("a held set does not show it")
	}
	if _, err := s.svc().HoldSet(t.Context(), sets[0].ID, s.clock.Now().Add(time.Minute)); !errors.Is(err, holdfast.Immutable) {
		t.Errorf("a hold was shortened: %v", err)
	}
	if _, err := s.svc().DeleteSet(t.Context(), sets[0].ID); !errors.Is(err, holdfast.Immutable) {
		t.Errorf("a held set was deleted: %v", err)
	}
	_, err = s.svc().SetPolicy(t.Context(), api.PolicyChange{Pool: "main", Policy: "count=1"})
	s.ok(err)
	_, err = s.svc().SetPolicy(t.Context(), api.PolicyChange{Job: "j", Policy: "count=2"})
	s.ok(err)
	want, err := s.svc().SimulateRetention(t.Context(), api.RetentionAsk{Pool: "main"})
	s.ok(err)
	if want.Kept != 4 || want.Removed != 2 || !want.Estimate {
		t.Fatalf("%+v", want)
	}
	var got api.RetentionReport
	s.result(&got, s.follow(s.svc().ApplyRetention(t.Context(), "main")))
	a, err := json.Marshal(want)
	s.ok(err)
	b, err := json.Marshal(got)
	s.ok(err)
	if string(a) != string(b) {
		t.Errorf("simulate said\n%s\napply did\n%s", a, b)
	}
	for _, d := range want.Decisions {
		_, err := s.svc().Set(t.Context(), d.Set.String())
		if d.Keep != (err == nil) {
			t.Errorf("%s of %s, keep %v: %v", d.Set, d.VMName, d.Keep, err)
		}
		if d.Set.String() == sets[0].ID && d.Cause != retain.Held {
			t.Errorf("the held set: %+v", d)
		}
		if want := map[string]string{"db": "job j", "app": "pool main"}[d.VMName]; d.Of != want {
			t.Errorf("%s is under the policy of %s", d.VMName, d.Of)
		}
	}
	s.recorded(holdfast.EventSetDeleted, "has expired", "newer than it")
	again, err := s.svc().SimulateRetention(t.Context(), api.RetentionAsk{Pool: "main"})
	s.ok(err)
	if again.Removed != 0 {
		t.Errorf("a second round would remove more: %+v", again)
	}
}

// TestRetentionRunsAfterEachJob and once a day, without being asked.
func TestRetentionRunsAfterEachJobAndDaily(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 4<<20)
	s.online("hv1")
	count := func() int {
		sets, err := s.svc().Sets(t.Context(), api.SetFilter{})
		s.ok(err)
		return len(sets)
	}
	_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "j", Pool: "main", VMs: []string{"db"}})
	s.ok(err)
	_, err = s.svc().SetPolicy(t.Context(), api.PolicyChange{Job: "j", Policy: "count=1"})
	s.ok(err)
	for range 2 {
		s.follow(s.svc().RunJob(t.Context(), "j", api.JobRun{}))
	}
	s.wait("the older set is gone", func() bool { return count() == 1 })
	s.backup("db")
	s.backup("db")
	_, err = s.svc().SetPolicy(t.Context(), api.PolicyChange{Pool: "main", Policy: "count=1"})
	s.ok(err)
	if n := count(); n != 3 {
		t.Fatalf("%d sets", n)
	}
	s.clock.offset.Store(int64(25 * time.Hour))
	_, err = s.svc().SetJob(t.Context(), "j", api.JobChange{}) // wakes the planner
	s.ok(err)
	s.wait("the daily round is done", func() bool { return count() == 2 })
}

// TestImaginedTimelines: points that nobody made are decided about as real ones are.
func TestImaginedTimelines(t *testing.T) {
	s := newSite(t)
	day := time.Date(2026, 6, 1, 22, 0, 0, 0, time.UTC)
	vm := holdfast.VMID{ID: holdfast.NewID()}
	var points []retain.Point
	for i := range 40 {
		points = append(points, retain.Point{Set: holdfast.SetID{ID: holdfast.NewID()}, VM: vm, VMName: "db", Time: day.AddDate(0, 0, -i), State: retain.Good, Unique: 1 << 20})
	}
	ask := api.RetentionAsk{Points: points, Policy: "days=30", Now: day}
	r, err := s.svc().SimulateRetention(t.Context(), ask)
	s.ok(err)
	if r.Kept != 31 || r.Removed != 9 || r.Frees != 9<<20 || r.Estimate || !strings.Contains(r.Decisions[39].Reason, "older than 30 days") {
		t.Errorf("kept %d, removed %d, frees %d: %+v", r.Kept, r.Removed, r.Frees, r.Decisions[39])
	}
	ask.Policy = ""
	if _, err := s.svc().SimulateRetention(t.Context(), ask); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("imagined points without a policy: %v", err)
	}
}

// TestAPoolThatIsGoneHasNoPolicy: what was said about a pool goes with it, and does not come back with it.
func TestAPoolThatIsGoneHasNoPolicy(t *testing.T) {
	s := newSite(t)
	_, err := s.svc().SetPolicy(t.Context(), api.PolicyChange{Pool: "main", Policy: "count=1"})
	s.ok(err)
	_, err = s.svc().DeletePool(t.Context(), "main", true)
	s.ok(err)
	ps, err := s.svc().Policies(t.Context())
	s.ok(err)
	if len(ps.Pools) != 0 {
		t.Errorf("left: %+v", ps.Pools)
	}
	_, err = s.svc().ImportPool(t.Context(), api.PoolSpec{Name: "main", Kind: "dedup", Path: s.path("pool")})
	s.ok(err)
	if ps, err = s.svc().Policies(t.Context()); err != nil || len(ps.Pools) != 0 {
		t.Errorf("back again: %+v, %v", ps.Pools, err)
	}
}
