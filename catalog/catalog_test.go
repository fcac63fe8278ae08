package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

var day0 = time.Date(2026, 1, 2, 3, 4, 5, 678900000, time.UTC)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// id returns the same id for the same number.
func id(n int) holdfast.ID {
	return holdfast.ID{0x01, 0x90, 2: byte(n >> 24), 3: byte(n >> 16), 6: 0x70, 8: 0x80, 14: byte(n >> 8), 15: byte(n)}
}

func pool(n int) holdfast.PoolID { return holdfast.PoolID{ID: id(1000 + n)} }
func vm(n int) holdfast.VMID     { return holdfast.VMID{ID: id(2000 + n)} }
func host(n int) holdfast.HostID { return holdfast.HostID{ID: id(3000 + n)} }
func disk(n int) holdfast.DiskID { return holdfast.DiskID{ID: id(4000 + n)} }
func set(n int) holdfast.SetID   { return holdfast.SetID{ID: id(5000 + n)} }
func run(n int) holdfast.RunID   { return holdfast.RunID{ID: id(6000 + n)} }
func task(n int) holdfast.TaskID { return holdfast.TaskID{ID: id(7000 + n)} }

// open opens a catalog in memory; when the test ends the checker looks at it.
func open(t testing.TB, f fsys.FS) *Catalog {
	t.Helper()
	c, err := Open(f, "catalog")
	must(t, err)
	t.Cleanup(func() {
		if err := c.Check(); err != nil && c.Failed() == nil && holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("the checker found: %v", err)
		}
		must(t, c.Close())
	})
	return c
}

func update(t testing.TB, c *Catalog, do func(*Tx) error) {
	t.Helper()
	must(t, c.Update(t.Context(), do))
}

func view(t testing.TB, c *Catalog, do func(*Tx) error) {
	t.Helper()
	must(t, c.View(do))
}

func manifest(n, vmNo int, at time.Time) holdfast.Manifest {
	return holdfast.Manifest{
		ID: set(n), Created: at, VM: holdfast.VMInfo{ID: vm(vmNo), Name: fmt.Sprintf("vm%d", vmNo), Generation: 2},
		Host: host(1), HostName: "host1", Kind: holdfast.Full, Consistency: holdfast.AppConsistent,
		Disks:       []holdfast.Disk{{ID: disk(vmNo), Name: "disk.vhdx", Size: 1 << 30, Format: "vhdx", Subformat: "dynamic", BlockSize: 1 << 20, LogicalSector: 512, PhysicalSector: 4096, Controller: "scsi"}},
		Attachments: []holdfast.Attachment{{Name: "vm.vmcx", Data: []byte("configuration")}},
		Stats:       holdfast.Stats{Logical: 1 << 30, Read: 5, Sent: 4, Stored: 3},
	}
}

func wantKind(t testing.TB, what string, err error, kind holdfast.Kind) {
	t.Helper()
	if err == nil || holdfast.KindOf(err) != kind {
		t.Errorf("%s: %v, want %v", what, err, kind)
	}
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	c := open(t, fsys.NewMem(1))
	p := Pool{ID: pool(1), Name: "one", Kind: "dedup", Config: json.RawMessage(`{"path":"x"}`), Created: day0, State: PoolReady}
	stop := errors.New("stop")
	err := c.Update(t.Context(), func(tx *Tx) error {
		must(t, tx.PutPool(p))
		if got, err := tx.PoolByName("one"); err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("own write: %+v %v", got, err)
		}
		return stop
	})
	if err != stop {
		t.Error(err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = c.Update(t.Context(), func(tx *Tx) error {
			must(t, tx.PutPool(p))
			panic("stop")
		})
	}()
	view(t, c, func(tx *Tx) error {
		_, err := tx.Pool(pool(1))
		wantKind(t, "pool of a stopped update", err, holdfast.NotExist)
		wantKind(t, "write in a view", tx.PutPool(p), holdfast.Invalid)
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Update(ctx, func(*Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestNamesOfPoolsAndHostsAreUnique(t *testing.T) {
	c := open(t, fsys.NewMem(1))
	update(t, c, func(tx *Tx) error {
		must(t, tx.PutPool(Pool{ID: pool(1), Name: "one"}))
		must(t, tx.PutPool(Pool{ID: pool(2), Name: "one two"}))
		wantKind(t, "same name", tx.PutPool(Pool{ID: pool(3), Name: "one"}), holdfast.Exist)
		wantKind(t, "no name", tx.PutPool(Pool{ID: pool(3)}), holdfast.Invalid)
		wantKind(t, "NUL in name", tx.PutPool(Pool{ID: pool(3), Name: "a\x00b"}), holdfast.Invalid)
		must(t, tx.PutPool(Pool{ID: pool(1), Name: "renamed"}))
		must(t, tx.PutPool(Pool{ID: pool(3), Name: "one"}))
		must(t, tx.PutHost(Host{ID: host(1), Name: "h"}))
		wantKind(t, "same host name", tx.PutHost(Host{ID: host(2), Name: "h"}), holdfast.Exist)
		return nil
	})
	view(t, c, func(tx *Tx) error {
		for typed, want := range map[string]holdfast.PoolID{"one": pool(3), "renamed": pool(1), pool(2).String(): pool(2)} {
			if got, err := tx.FindPool(typed); err != nil || got.ID != want {
				t.Errorf("%s: %v %v", typed, got.ID, err)
			}
		}
		_, err := tx.FindPool("none")
		wantKind(t, "no such pool", err, holdfast.NotExist)
		var names []string
		for cur, first := Cursor(""), true; first || cur != ""; first = false {
			var ps []Pool
			ps, cur, err = tx.Pools(Page{Cursor: cur, Limit: 2})
			must(t, err)
			for _, p := range ps {
				names = append(names, p.Name)
			}
		}
		if !slices.Equal(names, []string{"one", "one two", "renamed"}) {
			t.Errorf("list: %q", names)
		}
		_, _, err = tx.Hosts(Page{Cursor: "50"})
		wantKind(t, "cursor of another listing", err, holdfast.Invalid)
		return nil
	})
}

func TestEnrolKeyIsUsedOnce(t *testing.T) {
	c := open(t, fsys.NewMem(1))
	h, late := HashKey([]byte("secret")), HashKey([]byte("late"))
	update(t, c, func(tx *Tx) error {
		must(t, tx.AddEnrolKey(EnrolKey{Hash: h, HostName: "h", Created: day0, Expires: day0.Add(time.Hour)}))
		wantKind(t, "known key", tx.AddEnrolKey(EnrolKey{Hash: h, HostName: "h"}), holdfast.Exist)
		return tx.AddEnrolKey(EnrolKey{Hash: late, HostName: "h", Created: day0, Expires: day0})
	})
	results := make(chan error, 8)
	for range cap(results) {
		go func() {
			results <- c.Update(context.Background(), func(tx *Tx) error {
				k, err := tx.UseEnrolKey(h, day0.Add(time.Minute))
				if err == nil && k.HostName != "h" {
					t.Errorf("%+v", k)
				}
				return err
			})
		}()
	}
	good := 0
	for range cap(results) {
		if err := <-results; err == nil {
			good++
		} else {
			wantKind(t, "used key", err, holdfast.Permission)
		}
	}
	if good != 1 {
		t.Errorf("used %d times", good)
	}
	for _, k := range []KeyHash{late, HashKey([]byte("unknown"))} {
		wantKind(t, "bad key", c.Update(t.Context(), func(tx *Tx) error { _, err := tx.UseEnrolKey(k, day0); return err }), holdfast.Permission)
	}
	update(t, c, func(tx *Tx) error { return tx.DeleteEnrolKey(late) })
}

func TestSetsAreFoundByPoolVMAndTime(t *testing.T) {
	c := open(t, fsys.NewMem(1))
	update(t, c, func(tx *Tx) error {
		for n := range 30 {
			must(t, tx.AddSet(NewSet(pool(n%2), manifest(n, n%3, day0.Add(-time.Duration(n)*time.Hour))), map[holdfast.DiskID]string{disk(n % 3): fmt.Sprint(n)}))
		}
		return nil
	})
	view(t, c, func(tx *Tx) error {
		for _, test := range []struct {
			f     SetFilter
			match func(n int) bool
		}{
			{SetFilter{}, func(int) bool { return true }},
			{SetFilter{Pool: pool(1)}, func(n int) bool { return n%2 == 1 }},
			{SetFilter{VM: vm(2), NewestFirst: true}, func(n int) bool { return n%3 == 2 }},
			{SetFilter{VM: vm(1), Pool: pool(0)}, func(n int) bool { return n%6 == 4 }},
			{SetFilter{VM: vm(9)}, func(int) bool { return false }},
		} {
			var want, got []holdfast.SetID
			for n := range 30 {
				if test.match(n) {
					want = append(want, set(n))
				}
			}
			if !test.f.NewestFirst {
				slices.Reverse(want)
			}
			for cur, first := Cursor(""), true; first || cur != ""; first = false {
				page, next, err := tx.ListSets(test.f, Page{Cursor: cur, Limit: 4})
				must(t, err)
				for _, s := range page {
					got = append(got, s.Manifest.ID)
				}
				cur = next
			}
			if !slices.Equal(got, want) {
				t.Errorf("%+v: %v, want %v", test.f, got, want)
			}
		}
		s, err := tx.NewestSet(vm(1), pool(1))
		if err != nil || s.Manifest.ID != set(1) || len(s.Manifest.Attachments) != 0 || !slices.Equal(s.Attachments, []AttachmentInfo{{"vm.vmcx", 13}}) {
			t.Errorf("newest: %+v %v", s, err)
		}
		return nil
	})
	update(t, c, func(tx *Tx) error {
		must(t, tx.PutTracking(Tracking{VM: vm(1), Pool: pool(1), Set: set(1), Tokens: map[holdfast.DiskID]string{disk(1): "t"}}))
		wantKind(t, "tracking of another pool", tx.PutTracking(Tracking{VM: vm(1), Pool: pool(0), Set: set(1)}), holdfast.Invalid)
		wantKind(t, "pool with sets", tx.DeletePool(pool(1)), holdfast.Busy)
		must(t, tx.PutTombstone(set(1)))
		_, err := tx.Tracking(vm(1), pool(1))
		wantKind(t, "tracking of a set being deleted", err, holdfast.NotExist)
		s, err := tx.NewestSet(vm(1), pool(1))
		if err != nil || s.Manifest.ID != set(7) {
			t.Errorf("newest beside a tombstone: %v %v", s.Manifest.ID, err)
		}
		must(t, tx.DeleteSet(set(1)))
		for tomb := range tx.Tombstones() {
			t.Errorf("left: %+v", tomb)
		}
		must(t, tx.DeleteSet(set(1)))
		_, err = tx.Set(set(1))
		wantKind(t, "deleted set", err, holdfast.NotExist)
		return nil
	})
	sets, err := ListSets(c)
	if err != nil || len(sets) != 29 {
		t.Errorf("%d sets, %v", len(sets), err)
	}
}

func TestRunStatesFollowTheTable(t *testing.T) {
	c := open(t, fsys.NewMem(1))
	all := []RunState{RunQueued, RunRunning, RunWaitingMedia, RunDone, RunPartial, RunFailed, RunCancelled}
	allowed := map[string]bool{}
	for _, p := range []string{"queued running", "queued waiting-media", "queued failed", "queued cancelled", "running queued", "running waiting-media",
		"running done", "running partial", "running failed", "running cancelled", "waiting-media queued", "waiting-media running", "waiting-media failed", "waiting-media cancelled"} {
		allowed[p] = true
	}
	for _, a := range all {
		for _, b := range all {
			if got := a.May(b); got != (a == b || allowed[string(a)+" "+string(b)]) {
				t.Errorf("%s to %s: %v", a, b, got)
			}
		}
		if a.May("nonsense") || a.May("") {
			t.Error(a)
		}
	}
	update(t, c, func(tx *Tx) error {
		for n := range 5 {
			must(t, tx.PutRun(Run{ID: run(n), Kind: RunBackup, Created: day0, State: RunQueued, Tasks: []Task{{ID: task(n), State: RunQueued}}}))
		}
		r, err := tx.Run(run(3))
		must(t, err)
		r.State = RunDone
		wantKind(t, "queued to done", tx.PutRun(r), holdfast.Invalid)
		r.State, r.Tasks[0].State = RunRunning, RunDone
		wantKind(t, "task queued to done", tx.PutRun(r), holdfast.Invalid)
		r.Tasks[0].State = RunRunning
		must(t, tx.PutRun(r))
		wantKind(t, "delete a running run", tx.DeleteRun(r.ID), holdfast.Busy)
		r.State, r.Tasks[0].State = RunFailed, RunFailed
		r.Tasks[0].Error = NewTaskError(holdfast.Errorf(holdfast.Offline, "op", "gone").Advise("come back"))
		must(t, tx.PutRun(r))
		wantKind(t, "failed to running", tx.PutRun(Run{ID: run(3), State: RunRunning}), holdfast.Invalid)
		must(t, tx.DeleteRun(run(9)))
		return nil
	})
	view(t, c, func(tx *Tx) error {
		var ids []holdfast.RunID
		for r, err := range tx.ActiveRuns() {
			must(t, err)
			ids = append(ids, r.ID)
		}
		if !slices.Equal(ids, []holdfast.RunID{run(0), run(1), run(2), run(4)}) {
			t.Errorf("active: %v", ids)
		}
		rs, cur, err := tx.Runs(Page{Limit: 2})
		if err != nil || len(rs) != 2 || rs[0].ID != run(4) {
			t.Errorf("%v %v", rs, err)
		}
		rs, _, err = tx.Runs(Page{Cursor: cur, Limit: 2})
		if err != nil || len(rs) != 2 || rs[0].ID != run(2) {
			t.Errorf("second page: %v %v", rs, err)
		}
		return nil
	})
}

func TestEventRingKeepsTheNewest(t *testing.T) {
	c := open(t, fsys.NewMem(1))
	const n = EventRing + 50
	for done := 0; done < n; {
		update(t, c, func(tx *Tx) error {
			for range 1000 {
				if done++; done > n {
					break
				}
				seq, err := tx.AddEvent(holdfast.Event{Time: day0, Type: holdfast.EventRefused, Severity: holdfast.Info, Text: "x"})
				if err != nil || seq != uint64(done) {
					t.Fatalf("%d %v", seq, err)
				}
			}
			return nil
		})
	}
	view(t, c, func(tx *Tx) error {
		es, _, err := tx.Events(0, Page{Limit: 1})
		if err != nil || len(es) != 1 || es[0].Seq != 51 {
			t.Errorf("oldest: %+v %v", es, err)
		}
		es, cur, err := tx.Events(n-3, Page{})
		if err != nil || len(es) != 3 || cur != "" {
			t.Errorf("since: %d %v", len(es), err)
		}
		es, _, err = tx.NewestEvents(Page{Limit: 2})
		if err != nil || es[0].Seq != n || es[1].Seq != n-1 {
			t.Errorf("newest: %+v %v", es, err)
		}
		return nil
	})
}

func TestHostsVMsJobsAndSettings(t *testing.T) {
	c := open(t, fsys.NewMem(1))
	update(t, c, func(tx *Tx) error {
		for n := range 2 {
			must(t, tx.PutHost(Host{ID: host(n), Name: fmt.Sprint("h", n), State: HostEnrolled, LastSeen: day0}))
		}
		for n := range 6 {
			must(t, tx.PutVM(VM{ID: vm(n), Host: host(n % 2), Name: fmt.Sprint("vm", n/2), Generation: 2}))
		}
		must(t, tx.PutVM(VM{ID: vm(1), Host: host(0), Name: "moved"}))
		must(t, tx.PutJob(Job{Name: "nightly", Kind: RunBackup, Spec: json.RawMessage(`{"vms":["*"]}`)}))
		must(t, tx.PutSetting("a", json.RawMessage(`1`)))
		return tx.PutSetting("b", json.RawMessage(`"x"`))
	})
	update(t, c, func(tx *Tx) error {
		vs, err := tx.FindVMs("vm1")
		if err != nil || len(vs) != 2 {
			t.Errorf("%v %v", vs, err)
		}
		if vs, err = tx.FindVMs(vm(5).String()); err != nil || len(vs) != 1 {
			t.Errorf("%v %v", vs, err)
		}
		_, err = tx.FindVMs("none")
		wantKind(t, "no VM", err, holdfast.NotExist)
		for h, want := range map[holdfast.HostID]int{host(0): 4, host(1): 2, {}: 6} {
			if vs, _, err := tx.VMs(h, Page{}); err != nil || len(vs) != want {
				t.Errorf("VMs of %v: %d %v", h, len(vs), err)
			}
		}
		must(t, tx.DeleteHost(host(1)))
		if vs, _, err := tx.VMs(holdfast.HostID{}, Page{}); err != nil || len(vs) != 4 {
			t.Errorf("VMs left: %d %v", len(vs), err)
		}
		if js, _, err := tx.Jobs(Page{}); err != nil || len(js) != 1 || string(js[0].Spec) != `{"vms":["*"]}` {
			t.Errorf("%v %v", js, err)
		}
		all, err := tx.Settings()
		if err != nil || len(all) != 2 || string(all["b"]) != `"x"` {
			t.Errorf("%v %v", all, err)
		}
		must(t, tx.DeleteSetting("a"))
		_, err = tx.Setting("a")
		wantKind(t, "deleted setting", err, holdfast.NotExist)
		return tx.DeleteJob("nightly")
	})
}
