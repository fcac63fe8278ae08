package appliance_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

// pool makes another pool of the site.
func (s *site) pool(name, kind string, config map[string]any) api.Pool {
	s.t.Helper()
	p, err := s.svc().CreatePool(s.t.Context(), api.PoolSpec{Name: name, Kind: kind, Config: config})
	s.ok(err)
	return p
}

func (s *site) set(name string, c api.PoolChange) api.PoolChanged {
	s.t.Helper()
	x, err := s.svc().SetPool(s.t.Context(), name, c)
	s.ok(err)
	return x
}

// TestPoolIsTakenOverByAnotherAppliance forgets a pool with sets and imports it elsewhere: same id, same sets.
func TestPoolIsTakenOverByAnotherAppliance(t *testing.T) {
	s, other := newSite(t), newSite(t)
	s.vm("hv1", "db", 4*mib)
	s.online("hv1")
	for _, spec := range []api.PoolSpec{
		{Name: "plain", Kind: "standard", Config: map[string]any{"paths": []map[string]any{{"path": s.path("a")}, {"path": s.path("b")}}}},
		{Name: "deep", Kind: "dedup", Config: map[string]any{"path": s.path("deep")}},
		{Name: "striped", Kind: "dedup", Config: map[string]any{"paths": []string{s.path("s1"), s.path("s2"), s.path("s3")}, "stripe": "2+1"}},
	} {
		t.Run(spec.Name, func(t *testing.T) {
			p, err := s.svc().CreatePool(t.Context(), spec)
			s.ok(err)
			for range 2 {
				if r := s.follow(s.svc().Backup(t.Context(), api.BackupSpec{VMs: []string{"db"}, Pool: spec.Name})); r.State != api.StateDone {
					t.Fatalf("%+v", r)
				}
			}
			_, err = other.svc().ImportPool(t.Context(), spec)
			refusedWith(t, err, holdfast.Offline)
			if ps, err := other.svc().Pools(t.Context()); err != nil || len(ps) != 1 && spec.Name == "plain" {
				t.Errorf("an import that failed left %+v, %v", ps, err)
			}
			_, err = s.svc().DeletePool(t.Context(), spec.Name, false)
			refusedWith(t, err, holdfast.Busy, "2 backup sets", "db")
			_, err = s.svc().DeletePool(t.Context(), spec.Name, true)
			s.ok(err)
			if _, err := s.svc().Pool(t.Context(), spec.Name); holdfast.KindOf(err) != holdfast.NotExist {
				t.Errorf("it is still there: %v", err)
			}
			x, err := other.svc().ImportPool(t.Context(), spec)
			other.ok(err)
			var r api.Rebuilt
			other.result(&r, other.follow(x.Run, nil))
			if x.Pool.ID != p.ID || r.Added != 2 || r.Gone != 0 {
				t.Errorf("pool %s, want %s; %+v", x.Pool.ID, p.ID, r)
			}
			var v api.VerifyReport
			run, err := other.svc().VerifyPool(t.Context(), spec.Name)
			other.result(&v, other.follow(run, err))
			if v.Sets != 2 || len(v.Damaged) > 0 {
				t.Errorf("%+v", v)
			}
			twice := spec
			twice.Name = "again"
			_, err = other.svc().ImportPool(t.Context(), twice)
			refusedWith(t, err, holdfast.Exist, spec.Name)
		})
	}
}

// TestPoolIsChanged renames, bounds and stops a pool, and follows it to another path.
func TestPoolIsChanged(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 8*mib)
	s.online("hv1")
	s.backup("db")
	wide := int64(1 << 40) // so that how full the disk below is does not matter
	if p := s.set("main", api.PoolChange{Rename: "first", Quota: &wide}).Pool; p.Name != "first" {
		t.Errorf("%+v", p)
	}
	_, err := s.svc().SetPool(t.Context(), "first", api.PoolChange{})
	refusedWith(t, err, holdfast.Invalid)
	back := func() error {
		r, err := s.svc().Backup(t.Context(), api.BackupSpec{VMs: []string{"db"}, Pool: "first"})
		if err == nil {
			s.follow(r, nil)
		}
		return err
	}
	on, off := true, false
	s.set("first", api.PoolChange{Maintenance: &on})
	refusedWith(t, back(), holdfast.Busy, "maintenance")
	sets, err := s.svc().Sets(t.Context(), api.SetFilter{})
	s.ok(err)
	if r := s.follow(s.svc().Restore(t.Context(), api.RestoreSpec{Set: sets[0].ID, Host: "hv1", Dir: s.path("lab-hv1/x"), Name: "x"})); r.State != api.StateDone {
		t.Errorf("a restore from a pool in maintenance: %+v", r)
	}
	vms, err := s.svc().VMs(t.Context())
	s.ok(err)
	if len(vms) != 2 {
		t.Errorf("the restored VM is not listed at once: %+v", vms)
	}
	s.set("first", api.PoolChange{Maintenance: &off})
	s.ok(back())
	p, err := s.svc().Pool(t.Context(), "first")
	s.ok(err)
	if p.Referenced == 0 || p.DataRatio == 0 || p.DataRatio >= p.Ratio {
		t.Errorf("referenced %d, ratios %.2f and %.2f", p.Referenced, p.DataRatio, p.Ratio)
	}
	tight := p.Usage.Stored * 100 / 85
	s.set("first", api.PoolChange{Quota: &tight})
	s.recorded(holdfast.EventPoolNearFull, "85 % full")
	tight = p.Usage.Stored
	if q := s.set("first", api.PoolChange{Quota: &tight}).Pool; q.Filled != 1 || q.Usage.Free != 0 {
		t.Errorf("%+v", q)
	}
	refusedWith(t, back(), holdfast.NoSpace, "quota")
	s.recorded(holdfast.EventPoolNearFull, "100 % full")
	s.set("first", api.PoolChange{Quota: &wide})
	s.recorded(holdfast.EventPoolNearFull, "below 90 % again")
	s.ok(back())

	_, err = s.svc().SetPool(t.Context(), "first", api.PoolChange{ReplacePath: &api.PathChange{From: s.path("pool"), To: s.path("moved")}})
	refusedWith(t, err, holdfast.Invalid, "moved")
	s.stop()
	s.ok(os.Rename(s.path("pool"), s.path("moved")))
	s.start()
	s.set("first", api.PoolChange{ReplacePath: &api.PathChange{From: s.path("pool"), To: s.path("moved")}})
	if p, err := s.svc().Pool(t.Context(), "first"); err != nil || p.State != api.PoolOpen || !strings.Contains(string(p.Config), "moved") {
		t.Errorf("%+v %v", p, err)
	}
}

// TestPoolsGrowAndGo adds a path to a standard pool, gives it a quota, and removes pools that are empty: nothing but foreign files is left.
func TestPoolsGrowAndGo(t *testing.T) {
	s := newSite(t)
	s.pool("plain", "standard", map[string]any{"paths": []map[string]any{{"path": s.path("a")}}})
	p := s.set("plain", api.PoolChange{AddPath: s.path("b"), PathQuotas: map[string]int64{s.path("a"): 1 << 30}}).Pool
	if p.State != api.PoolOpen || !strings.Contains(string(p.Config), s.path("b")) || !strings.Contains(string(p.Config), "1073741824") {
		t.Errorf("%+v %s", p, p.Config)
	}
	_, err := s.svc().SetPool(t.Context(), "plain", api.PoolChange{PathQuotas: map[string]int64{s.path("c"): 1}})
	refusedWith(t, err, holdfast.NotExist, "/c")
	s.pool("striped", "dedup", map[string]any{"paths": []string{s.path("s1"), s.path("s2"), s.path("s3")}, "stripe": "2+1"})
	s.ok(os.WriteFile(s.path("pool/mine.txt"), []byte("x"), 0o600))
	for _, name := range []string{"plain", "striped", "main"} {
		_, err := s.svc().DeletePool(t.Context(), name, false)
		s.ok(err)
	}
	left, err := filepath.Glob(s.path("*/*"))
	s.ok(err)
	for _, f := range left {
		if !strings.HasPrefix(f, s.path("data")) && f != s.path("pool/mine.txt") {
			t.Errorf("left behind: %s", f)
		}
	}
	s.recorded("pool-deleted", "striped")
	s.stop()
	s.start()
	if ps, err := s.svc().Pools(t.Context()); err != nil || len(ps) != 0 {
		t.Errorf("%+v %v", ps, err)
	}
}

// TestConfigsAreStrictAndSecretsHidden refuses what a driver does not know, and shows no key.
func TestConfigsAreStrictAndSecretsHidden(t *testing.T) {
	s := newSite(t)
	for name, config := range map[string]map[string]any{
		"unknown key": {"path": s.path("x"), "pathh": "y"},
		"relative":    {"path": "x"},
		"stripe":      {"paths": []string{s.path("x"), s.path("y")}, "stripe": "4+2"},
	} {
		if _, err := s.svc().CreatePool(t.Context(), api.PoolSpec{Name: "bad", Kind: "dedup", Config: config}); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := s.svc().CreatePool(t.Context(), api.PoolSpec{Name: "cloud", Kind: "object", Config: map[string]any{"endpoint": "https://127.0.0.1:1", "bucket": "b",
		"access_key": "the-access-key", "secret_key": "the-secret-key"}})
	if err == nil || strings.Contains(err.Error(), "the-secret-key") {
		t.Errorf("%v", err)
	}
	if strings.Contains(s.log.String(), "the-secret-key") {
		t.Error("the key is in the log")
	}
}

// TestPoolCheckTriesTheTarget runs the conformance suite beside a pool and cancels it after some checks; the pool's folder is as before. With
// HOLDFAST_SOAK set it also runs all of it, which takes as long as the disk wants.
func TestPoolCheckTriesTheTarget(t *testing.T) {
	s := newSite(t)
	before, err := os.ReadDir(s.path("pool"))
	s.ok(err)
	var c api.CheckReport
	if os.Getenv("HOLDFAST_SOAK") != "" {
		s.result(&c, s.follow(s.svc().CheckPool(t.Context(), "main")))
		if c.Checks < 20 || c.Passed != c.Checks || len(c.Left) > 0 {
			t.Errorf("%+v", c)
		}
	}
	r, err := s.svc().CheckPool(t.Context(), "main")
	s.ok(err)
	_, err = s.svc().CheckPool(t.Context(), "main")
	refusedWith(t, err, holdfast.Busy, r.ID)
	s.wait("some checks are done", func() bool {
		now, err := s.svc().Run(t.Context(), r.ID, 0)
		s.ok(err)
		return now.Tasks[0].Disks[0].Done >= 4 && now.Tasks[0].Disks[0].Unit == "checks" && now.Tasks[0].Disks[0].Total > 20
	})
	_, err = s.svc().CancelRun(t.Context(), r.ID)
	s.ok(err)
	if r = s.follow(r, nil); r.State != api.StateCancelled {
		t.Errorf("%+v", r)
	}
	s.ok(json.Unmarshal(r.Result, &c))
	if c.Passed < 4 || len(c.Failed) > 0 || len(c.Left) > 0 {
		t.Errorf("%+v", c)
	}
	after, err := os.ReadDir(s.path("pool"))
	s.ok(err)
	if len(after) != len(before) {
		t.Errorf("the pool's folder had %v and has %v", before, after)
	}
	s.recorded("pool-checked", "main")
}
