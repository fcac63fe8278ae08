package appliance_test

import (
	"context"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/transport"
	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

const mib = 1 << 20

// TestOneRunBacksUpSeveralVMsOfSeveralHosts also looks at what a run and its sets say of themselves.
func TestOneRunBacksUpSeveralVMsOfSeveralHosts(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 8*mib)
	s.vm("hv1", "web", 4*mib)
	s.vm("hv2", "mail", 4*mib)
	s.online("hv1")
	s.online("hv2")
	s.wait("three VMs are known", func() bool {
		vms, err := s.svc().VMs(t.Context())
		s.ok(err)
		return len(vms) == 3
	})
	r := s.backup("db", "mail", "web", "db")
	if r.State != api.StateDone || len(r.Tasks) != 3 || r.Pool != "main" {
		t.Fatalf("%+v", r)
	}
	hosts := map[string]string{}
	for _, task := range r.Tasks {
		hosts[task.VM] = task.Host
		if task.State != api.StateDone || task.Set == "" || len(task.Disks) != 1 || task.Disks[0].Reason != "first-backup" || task.Disks[0].Stored == 0 {
			t.Errorf("%+v", task)
		}
	}
	if !reflect.DeepEqual(hosts, map[string]string{"db": "hv1", "web": "hv1", "mail": "hv2"}) {
		t.Errorf("%v", hosts)
	}
	again := s.backup("db")
	set, err := s.svc().Set(t.Context(), again.Tasks[0].Set)
	s.ok(err)
	if set.Kind != "incremental" || set.Read != 0 || set.VM != "db" || set.Host != "hv1" || set.Pool != "main" || set.Run != again.ID {
		t.Errorf("%+v", set)
	}
	if short, err := s.svc().Set(t.Context(), set.ID[:13]+set.ID[13:24]); err != nil || short.ID != set.ID {
		t.Errorf("the id's beginning does not find it: %v", err)
	}
	s.recorded(holdfast.EventRunFinished, "db", "done")
	s.recorded(holdfast.EventSetCommitted, "db")
}

func TestMistakesAreExplained(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 2*mib)
	s.vm("hv2", "db", 2*mib)
	s.online("hv1")
	stop := s.online("hv2")
	s.wait("two VMs are known", func() bool {
		vms, err := s.svc().VMs(t.Context())
		s.ok(err)
		return len(vms) == 2
	})
	ctx := t.Context()
	_, err := s.svc().Backup(ctx, api.BackupSpec{VMs: []string{"db"}, Pool: "main"})
	refusedWith(t, err, holdfast.Invalid, "2 virtual machines are called", "on host hv1", "on host hv2")
	_, err = s.svc().Backup(ctx, api.BackupSpec{VMs: []string{"nothing"}, Pool: "main"})
	refusedWith(t, err, holdfast.NotExist, "nothing")
	_, err = s.svc().Backup(ctx, api.BackupSpec{VMs: []string{"db"}, Pool: "other"})
	refusedWith(t, err, holdfast.NotExist, "other")
	_, err = s.svc().CreatePool(ctx, api.PoolSpec{Name: "main", Kind: "dedup", Path: s.path("pool2")})
	refusedWith(t, err, holdfast.Exist, "main")
	_, err = s.svc().CreatePool(ctx, api.PoolSpec{Name: "second", Kind: "dedup", Path: s.path("pool")})
	refusedWith(t, err, holdfast.Exist, "not empty")
	_, err = s.svc().CreatePool(ctx, api.PoolSpec{Name: "second", Kind: "floppy", Path: s.path("pool2")})
	refusedWith(t, err, holdfast.NotExist, "floppy")
	_, err = s.svc().CreatePool(ctx, api.PoolSpec{Name: "second", Kind: "dedup", Path: "relative"})
	refusedWith(t, err, holdfast.Invalid, "absolute")
	_, err = s.svc().Set(ctx, holdfast.NewID().String())
	refusedWith(t, err, holdfast.NotExist)
	_, err = s.svc().Set(ctx, "0123")
	refusedWith(t, err, holdfast.Invalid)
	_, err = s.svc().Run(ctx, holdfast.NewID().String(), 0)
	refusedWith(t, err, holdfast.NotExist)
	_, err = s.svc().Sets(ctx, api.SetFilter{VM: "nothing"})
	refusedWith(t, err, holdfast.NotExist, "nothing")
	_, err = appliance.Start(ctx, appliance.Config{Data: s.path("data"), Listen: "127.0.0.1:0"})
	refusedWith(t, err, holdfast.Busy, "another holdfastd")

	vms, err := s.svc().VMs(ctx)
	s.ok(err)
	stop()
	s.state("hv2", api.HostOffline)
	for _, vm := range vms {
		r := s.backup(vm.ID)
		if (vm.Host == "hv1") != (r.State == api.StateDone) {
			t.Errorf("%s: %+v", vm.Host, r)
		}
		if vm.Host == "hv2" && (r.State != api.StateFailed || r.Error == nil || r.Error.Code != "offline" || r.Error.Hint == "") {
			t.Errorf("%+v", r)
		}
	}
	both := s.backup(vms[0].ID, vms[1].ID)
	if both.State != api.StatePartial {
		t.Errorf("one of two failed, and the run is %s", both.State)
	}
}

// TestLostCatalogIsRebuilt deletes the catalog's folder: listing and restores are as before, and the enrolled agent is let in again.
func TestLostCatalogIsRebuilt(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 4*mib)
	s.online("hv1")
	s.backup("db")
	s.backup("db")
	want, err := s.svc().Sets(t.Context(), api.SetFilter{})
	s.ok(err)
	s.stop()
	s.ok(os.RemoveAll(s.path("data/catalog")))
	s.start()
	var r api.Rebuilt
	s.result(&r, s.follow(s.svc().RebuildCatalog(t.Context())))
	if r.Sets != 2 || r.Added != 2 || len(r.Errors) != 0 {
		t.Errorf("%+v", r)
	}
	got, err := s.svc().Sets(t.Context(), api.SetFilter{})
	s.ok(err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the listing is\n%+v\nwant\n%+v", got, want)
	}
	again, err := s.svc().ImportPool(t.Context(), api.PoolSpec{Name: "main", Kind: "dedup", Path: s.path("pool")})
	s.ok(err) // importing what is known already lists it anew
	if s.result(&r, s.follow(again.Run, nil)); r.Sets != 2 || r.Added != 0 {
		t.Errorf("%+v", r)
	}
	s.state("hv1", api.HostOnline)
	run := s.follow(s.svc().Restore(t.Context(), api.RestoreSpec{Set: want[0].ID, Host: "hv1", Dir: s.path("lab-hv1/back"), Name: "back"}))
	if run.State != api.StateDone {
		t.Errorf("%+v", run)
	}
	if run := s.backup("db"); run.State != api.StateDone {
		t.Errorf("%+v", run)
	}
}

// TestRunsCutOffByARestartAreExplained stops the daemon while a run is under way.
func TestRunsCutOffByARestartAreExplained(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 64*mib)
	s.online("hv1")
	s.wait("the VM is known", func() bool {
		vms, err := s.svc().VMs(t.Context())
		s.ok(err)
		return len(vms) == 1
	})
	r, err := s.svc().Backup(t.Context(), api.BackupSpec{VMs: []string{"db"}, Pool: "main"})
	s.ok(err)
	s.stop()
	s.start()
	r, err = s.svc().Run(t.Context(), r.ID, 0)
	s.ok(err)
	if r.State == api.StateDone {
		return // it was faster than the stop; package job tests the rest step by step
	}
	if r.State != api.StateFailed || r.Error == nil || !strings.Contains(r.Error.Message, "restarted") || r.Error.Hint == "" {
		t.Errorf("%+v %+v", r, r.Error)
	}
	s.state("hv1", api.HostOnline)
	if r := s.backup("db"); r.State != api.StateDone {
		t.Errorf("%+v", r)
	}
}

func TestDeletedSetsAreGoneAndOthersStay(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 4*mib)
	s.online("hv1")
	first, second := s.backup("db").Tasks[0].Set, s.backup("db").Tasks[0].Set
	_, err := s.svc().DeleteSet(t.Context(), first)
	s.ok(err)
	_, err = s.svc().DeleteSet(t.Context(), first)
	refusedWith(t, err, holdfast.NotExist)
	sets, err := s.svc().Sets(t.Context(), api.SetFilter{VM: "db", Pool: "main"})
	s.ok(err)
	if len(sets) != 1 || sets[0].ID != second {
		t.Fatalf("%+v", sets)
	}
	var c api.CollectReport
	s.result(&c, s.follow(s.svc().CollectPool(t.Context(), "main", false)))
	var rep api.VerifyReport
	s.result(&rep, s.follow(s.svc().VerifySet(t.Context(), second)))
	if rep.Sets != 1 || len(rep.Damaged) != 0 {
		t.Errorf("%+v", rep)
	}
	s.recorded(holdfast.EventSetDeleted, "db")
}

func TestPoolsThatAreNotThereAreOfflineNotFatal(t *testing.T) {
	s := newSite(t)
	s.stop()
	s.ok(os.Rename(s.path("pool"), s.path("away")))
	s.start()
	p, err := s.svc().Pool(t.Context(), "main")
	s.ok(err)
	if p.State != api.PoolOffline || p.Error == "" {
		t.Fatalf("%+v", p)
	}
	st, err := s.svc().Status(t.Context())
	s.ok(err)
	if len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "main") {
		t.Errorf("%v", st.Warnings)
	}
	_, err = s.svc().Backup(t.Context(), api.BackupSpec{VMs: []string{"db"}, Pool: "main"})
	if holdfast.KindOf(err) != holdfast.Offline {
		t.Errorf("%v", err)
	}
	s.ok(os.Rename(s.path("away"), s.path("pool")))
	s.clock.offset.Store(int64(10e9)) // it is tried again after some seconds
	if p, err := s.svc().Pool(t.Context(), "main"); err != nil || p.State != api.PoolOpen {
		t.Errorf("%+v %v", p, err)
	}
}

func TestEventsAreReplayedAndFollowed(t *testing.T) {
	s := newSite(t)
	before, err := s.svc().LastEvent(t.Context())
	s.ok(err)
	s.enroll("hv1")
	s.enroll("hv2")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen []string
	enrolled := make(chan struct{})
	for e, err := range s.svc().Events(ctx, before) {
		s.ok(err)
		if e.Type != holdfast.EventHostEnrolled {
			continue
		}
		seen = append(seen, e.Fields["host"])
		if len(seen) == 2 { // both were there already; the third comes while they are followed
			go func() {
				defer close(enrolled)
				k, err := s.svc().EnrollHost(context.Background(), "hv3")
				if err == nil {
					_, err = transport.Enroll(context.Background(), transport.EnrollOptions{Server: s.addr, Key: k.Key, Name: "hv3", Version: "test"})
				}
				if err != nil {
					t.Error(err)
					cancel()
				}
			}()
		}
		if len(seen) == 3 {
			break
		}
	}
	<-enrolled // before the daemon stops: the event is told before the host has its answer
	if !slices.Equal(seen, []string{"hv1", "hv2", "hv3"}) {
		t.Errorf("%v", seen)
	}
}

func TestBootFileIsStrict(t *testing.T) {
	for text, want := range map[string]string{
		"listen = '127.0.0.1:0'": "",
		"lisen = '127.0.0.1:0'":  "lisen",
		"listen = 'nonsense'":    "nonsense",
		"listen = ":              "holdfastd.toml",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/holdfastd.toml", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := appliance.Start(t.Context(), appliance.Config{Data: dir})
		if want == "" {
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		if holdfast.KindOf(err) != holdfast.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
