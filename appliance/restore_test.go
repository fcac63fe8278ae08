package appliance_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/lab"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

// machine makes a VM with two disks, a dynamic and a fixed one, and a network adapter.
func (s *site) machine(host, name string, fill byte) hv.VM {
	s.t.Helper()
	var files []string
	for i, o := range []vhdx.CreateOptions{{Size: 4 * mib, Subformat: "dynamic", BlockSize: mib}, {Size: 2 * mib, Subformat: "fixed"}} {
		file := s.path(fmt.Sprintf("%s-%s-%d.vhdx", host, name, i))
		w, err := vhdx.Create(file, o)
		s.ok(err)
		_, err = w.WriteAt(bytes.Repeat([]byte{fill + byte(i)}, mib+4096), 8192)
		s.ok(err)
		s.ok(w.Finish())
		files = append(files, file)
	}
	h := s.host(host)
	s.ok(h.SetSettings(s.t.Context(), lab.Settings{Switches: []string{"LAN", "DMZ"}, VMVersion: "lab-1"}))
	vm, err := h.NewVM(s.t.Context(), lab.CreateOptions{Name: name, Disks: files, Take: lab.TakeMove,
		Adapters: []holdfast.Adapter{{Name: "lan", Switch: "LAN", MAC: "00155d010203"}}})
	s.ok(err)
	return vm
}

// vms lists what a host has.
func (s *site) vms(host string) []hv.VM {
	s.t.Helper()
	vms, err := s.host(host).VMs(s.t.Context())
	s.ok(err)
	return vms
}

// content reads the disks of a VM, frozen as a backup would.
func (s *site) content(host string, vm hv.VM) [][]byte {
	s.t.Helper()
	cp, err := s.host(host).Checkpoint(s.t.Context(), vm.ID, hv.CheckpointOptions{Level: hv.LevelCrash, Tag: "test"})
	s.ok(err)
	var out [][]byte
	for _, d := range cp.Disks() {
		r, err := d.Open(s.t.Context())
		s.ok(err)
		b := make([]byte, d.Meta().Size)
		if _, err := r.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
			s.t.Fatal(err)
		}
		s.ok(r.Close())
		out = append(out, b)
	}
	s.ok(cp.Discard(s.t.Context()))
	return out
}

// files reads the disks of a VM that nobody writes to.
func (s *site) files(_ string, vm hv.VM) [][]byte {
	s.t.Helper()
	var out [][]byte
	for _, m := range vm.Disks {
		d, err := vhdx.Open(filepath.Join(vm.Dir, m.Name))
		s.ok(err)
		b := make([]byte, m.Size)
		if _, err := d.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
			s.t.Fatal(err)
		}
		s.ok(d.Close())
		out = append(out, b)
	}
	return out
}

// write changes a disk of a VM through the lab, so that change tracking sees it.
func (s *site) write(host, vm string, disk int, off int64, p []byte) {
	s.t.Helper()
	d, err := s.host(host).OpenDisk(s.t.Context(), vm, disk)
	s.ok(err)
	_, err = d.WriteAt(p, off)
	s.ok(err)
	s.ok(d.Flush())
	s.ok(d.Close())
}

func (s *site) newest(vm string) api.Set {
	s.t.Helper()
	sets, err := s.svc().Sets(s.t.Context(), api.SetFilter{VM: vm})
	s.ok(err)
	return sets[len(sets)-1]
}

// A wanted restore, and what must come of it, said without the code under test.
type matrixCase struct {
	place, naming, existing, adapters string
	start                             bool
}

// TestRestoreMatrix goes through the combinations of place, naming, what becomes of a VM that is there, adapters and start, over a real daemon,
// agents and VHDX files, and compares VM, folder, identity, adapters, state and every byte. With HOLDFAST_SOAK it goes through all 216, else
// through a sixth, shuffled.
func TestRestoreMatrix(t *testing.T) {
	s := newSite(t)
	x := s.machine("hv1", "db", 1)
	stranger := s.machine("hv2", "db", 100)
	s.online("hv1")
	s.online("hv2")
	if r := s.backup(x.ID.String()); r.State != api.StateDone {
		t.Fatalf("%+v", r)
	}
	truth := s.content("hv1", x)
	set := s.newest(x.ID.String())
	var cases []matrixCase
	for _, place := range []string{"original", "folder", "other host"} {
		for _, naming := range []string{"same", "name", "prefix", "suffix"} {
			for _, existing := range []string{"suffix", "overwrite", "skip"} {
				for _, adapters := range []string{"keep", "map", "none"} {
					for _, start := range []bool{false, true} {
						cases = append(cases, matrixCase{place, naming, existing, adapters, start})
					}
				}
			}
		}
	}
	seed, n := uint64(20261122), len(cases)/6
	if os.Getenv("HOLDFAST_SOAK") != "" {
		n = len(cases)
	}
	t.Logf("seed %d, %d of %d combinations", seed, n, len(cases))
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(cases), func(i, j int) { cases[i], cases[j] = cases[j], cases[i] })
	for _, c := range cases[:n] {
		s.matrix(c, set.ID, map[string]hv.VM{"hv1": x, "hv2": stranger}, truth)
	}
}

func (s *site) matrix(c matrixCase, set string, there map[string]hv.VM, truth [][]byte) {
	s.t.Helper()
	host, name := "hv1", "db"
	spec := api.RestoreSpec{Set: set, Existing: c.existing, Start: c.start, Shutdown: true}
	switch c.place {
	case "original":
		spec.Original = true
	case "folder":
		spec.Dir = s.path("elsewhere/new")
	default:
		host, spec.Dir = "hv2", s.path("lab-hv2/new")
	}
	spec.Host = host
	switch c.naming {
	case "name":
		spec.Name, name = "web", "web"
	case "prefix":
		spec.Prefix, name = "r-", "r-db"
	case "suffix":
		spec.Suffix, name = "-r", "db-r"
	}
	want := []holdfast.Adapter{{Name: "lan", Switch: "LAN"}}
	switch c.adapters {
	case "map":
		spec.Switches, want[0].Switch = map[string]string{"LAN": "DMZ"}, "DMZ"
	case "none":
		spec.NoNetwork, want = true, nil
	}
	meets := name == "db"
	if meets && c.existing == "overwrite" && host == "hv1" && want != nil {
		want[0].MAC = "00155d010203"
	}
	before := s.vms(host)
	r := s.follow(s.svc().Restore(s.t.Context(), spec))
	after := s.vms(host)
	if meets && c.existing == "skip" {
		if r.State != api.StateFailed || r.Error == nil || r.Error.Code != holdfast.Exist.Code() || len(after) != len(before) {
			s.t.Errorf("%+v: all VMs are there, and the run is %s %+v", c, r.State, r.Error)
		}
		return
	}
	if r.State != api.StateDone {
		s.t.Errorf("%+v: %s %+v", c, r.State, r.Error)
		return
	}
	var got *hv.VM
	for i := range after {
		v := &after[i]
		old := slices.ContainsFunc(before, func(b hv.VM) bool { return b.ID == v.ID })
		if old != (meets && c.existing == "overwrite" && v.ID == there[host].ID) {
			continue
		}
		got = v
	}
	if got == nil {
		s.t.Errorf("%+v: nothing was made", c)
		return
	}
	if meets && c.existing == "suffix" {
		stamp, ok := strings.CutPrefix(got.Name, "db-")
		if _, err := time.Parse("20060102-150405", stamp); !ok || err != nil {
			s.t.Errorf("%+v: it is called %q", c, got.Name)
		}
		name = got.Name
	}
	dir := spec.Dir
	if c.place == "original" {
		dir = s.path("lab-hv1/" + name)
	}
	if meets && c.existing == "overwrite" {
		dir = there[host].Dir
	}
	state := map[bool]string{true: "running", false: "off"}[c.start]
	if got.Name != name || got.Dir != dir || got.State != state || !slices.Equal(got.Adapters, want) || len(got.Skipped) > 0 {
		s.t.Errorf("%+v:\n got %+v\nwant %s in %s, %s, %+v", c, *got, name, dir, state, want)
	}
	read := s.content
	if dir == spec.Dir || c.place == "original" && name != "db" { // files under the names they had: no checkpoint is needed to read them
		read = s.files
	}
	for i, b := range read(host, *got) {
		if !bytes.Equal(b, truth[i]) {
			s.t.Errorf("%+v: disk %d differs", c, i)
		}
	}
	if !(meets && c.existing == "overwrite") {
		s.ok(os.RemoveAll(got.Dir))
	}
	s.clean(host)
}

// clean checks that no restore has left a note, and no VHDX a VM does not have.
func (s *site) clean(host string) {
	s.t.Helper()
	left, err := filepath.Glob(s.path("lab-" + host + "/.restores/*"))
	s.ok(err)
	if len(left) > 0 {
		s.t.Errorf("left behind: %v", left)
	}
	files, err := filepath.Glob(s.path("lab-" + host + "/*/*.vhdx"))
	s.ok(err)
	want := 0
	for _, v := range s.vms(host) {
		if strings.HasPrefix(v.Dir, s.path("lab-"+host)) {
			want += len(v.Disks)
		}
	}
	if len(files) != want {
		s.t.Errorf("%d VHDX files for %d disks on %s: %v", len(files), want, host, files)
	}
}

// TestTheLineGoesOnAfterAnOverwrite: the VM keeps its identity, and the next backup reads what changed since the restored point, also where
// that is not the newest one.
func TestTheLineGoesOnAfterAnOverwrite(t *testing.T) {
	s := newSite(t)
	x := s.machine("hv1", "db", 1)
	s.online("hv1")
	s.backup("db")
	old := s.newest("db")
	truth := s.content("hv1", x)
	s.write("hv1", "db", 0, 64<<10, bytes.Repeat([]byte{77}, 32<<10))
	s.backup("db")
	newer := s.newest("db")
	for _, set := range []api.Set{newer, old, old} {
		spec := api.RestoreSpec{Set: set.ID, Host: "hv1", Original: true, Existing: "overwrite"}
		if _, err := s.svc().Restore(t.Context(), spec); holdfast.KindOf(err) != holdfast.Busy || !strings.Contains(err.Error(), "running") {
			t.Fatalf("overwriting a VM that runs: %v", err)
		}
		pre, err := s.svc().Preflight(t.Context(), spec)
		if err != nil || pre.Verdict != "refused" || len(pre.Plans[0].Lost) != 1 {
			t.Errorf("%+v, %v", pre, err)
		}
		spec.Shutdown, spec.Start = true, true
		if r := s.follow(s.svc().Restore(t.Context(), spec)); r.State != api.StateDone {
			t.Fatalf("%+v", r.Error)
		}
		got := s.vms("hv1")
		if len(got) != 1 || got[0].ID != x.ID || got[0].Disks[0].ID != x.Disks[0].ID {
			t.Fatalf("the VM is now %+v", got)
		}
		if set.ID == old.ID && !bytes.Equal(s.content("hv1", got[0])[0], truth[0]) {
			t.Error("the disk differs")
		}
		s.write("hv1", "db", 0, 128<<10, bytes.Repeat([]byte{78}, 32<<10))
		if r := s.backup("db"); r.State != api.StateDone {
			t.Fatalf("%+v", r.Error)
		}
		next := s.newest("db")
		if next.Kind != "incremental" || next.Parent != set.ID || next.Disks[0].Reason != "" || next.Read > 64<<10 {
			t.Errorf("after the restore of %s the next backup is %s on %s, %d bytes read, reason %q", set.ID, next.Kind, next.Parent, next.Read, next.Disks[0].Reason)
		}
		if next.ID == set.ID {
			t.Fatal("no new set")
		}
		s.follow(s.svc().VerifySet(t.Context(), next.ID))
	}
}

// TestADiskIsRestoredAndTheOthersStay: over a disk, and as a new one in another folder.
func TestADiskIsRestoredAndTheOthersStay(t *testing.T) {
	s := newSite(t)
	x := s.machine("hv1", "db", 1)
	s.online("hv1")
	s.backup("db")
	set, truth := s.newest("db"), s.content("hv1", x)
	s.write("hv1", "db", 0, 0, bytes.Repeat([]byte{9}, 4096))
	s.write("hv1", "db", 1, 0, bytes.Repeat([]byte{9}, 4096))
	s.ok(s.host("hv1").Stop(t.Context(), "db"))
	now, one := s.content("hv1", x), 1
	do := func(d api.DiskRestore) []hv.VM {
		t.Helper()
		d.VM = "db"
		if r := s.follow(s.svc().Restore(t.Context(), api.RestoreSpec{Set: set.ID, Host: "hv1", Disk: &d})); r.State != api.StateDone {
			t.Fatalf("%+v", r.Error)
		}
		s.clean("hv1")
		return s.vms("hv1")
	}
	got := s.content("hv1", do(api.DiskRestore{No: 1, Overwrite: &one})[0])
	if !bytes.Equal(got[0], now[0]) || !bytes.Equal(got[1], truth[1]) {
		t.Error("the wrong disk was touched, or the right one not")
	}
	vm := do(api.DiskRestore{No: 0, Dir: s.path("fast")})[0]
	got = s.content("hv1", vm)
	if len(got) != 3 || !bytes.Equal(got[0], now[0]) || !bytes.Equal(got[1], truth[1]) || !bytes.Equal(got[2], truth[0]) || vm.Disks[2].Controller != "scsi" {
		t.Errorf("%d disks: %+v", len(got), vm.Disks)
	}
	if files, err := filepath.Glob(s.path("fast/*.vhdx")); err != nil || len(files) != 1 {
		t.Errorf("in the folder for the new disk: %v, %v", files, err)
	}
	if r := s.backup("db"); r.State != api.StateDone {
		t.Fatalf("%+v", r.Error)
	}
	next := s.newest("db")
	if next.Disks[0].Reason != "" || next.Disks[1].Reason != string(holdfast.ReasonTokenUnknown) || next.Disks[2].Reason != string(holdfast.ReasonNewDisk) {
		t.Errorf("the next backup's reasons are %q, %q, %q", next.Disks[0].Reason, next.Disks[1].Reason, next.Disks[2].Reason)
	}
}

// TestProtectedIsNoTarget until an administrator takes the label off; it outlives a restart.
func TestProtectedIsNoTarget(t *testing.T) {
	s := newSite(t)
	s.machine("hv1", "db", 1)
	id := s.enroll("hv1")
	stop := s.run(id)
	s.state("hv1", api.HostOnline)
	s.backup("db")
	set := s.newest("db")
	over := api.RestoreSpec{Set: set.ID, Host: "hv1", Original: true, Existing: "overwrite", Shutdown: true}
	zero := 0
	disk := api.RestoreSpec{Set: set.ID, Host: "hv1", Shutdown: true, Disk: &api.DiskRestore{VM: "db", Overwrite: &zero}}
	beside := api.RestoreSpec{Set: set.ID, Host: "hv1", Dir: s.path("beside"), Name: "beside"}
	refused := func(want bool, specs ...api.RestoreSpec) {
		t.Helper()
		for _, spec := range specs {
			pre, err := s.svc().Preflight(t.Context(), spec)
			s.ok(err)
			_, err = s.svc().Restore(t.Context(), spec)
			if want && (holdfast.KindOf(err) != holdfast.Immutable || pre.Verdict != "refused" || holdfast.HintOf(err) == "") {
				t.Errorf("a protected target: %v, %+v", err, pre)
			}
		}
	}
	_, err := s.svc().ProtectVM(t.Context(), "db", api.Label{Protected: true})
	s.ok(err)
	refused(true, over, disk)
	stop()
	s.stop()
	s.start()
	_ = s.run(id)
	s.state("hv1", api.HostOnline)
	refused(true, over, disk)
	if vms, err := s.svc().VMs(t.Context()); err != nil || !vms[0].Protected {
		t.Errorf("%+v, %v", vms, err)
	}
	_, err = s.svc().SetHost(t.Context(), "hv1", api.HostChange{Protected: new(true)})
	s.ok(err)
	refused(true, over, disk, beside)
	if hs, err := s.svc().Hosts(t.Context()); err != nil || !hs[0].Protected {
		t.Errorf("%+v, %v", hs, err)
	}
	_, err = s.svc().SetHost(t.Context(), "hv1", api.HostChange{Protected: new(false)})
	s.ok(err)
	if r := s.follow(s.svc().Restore(t.Context(), beside)); r.State != api.StateDone {
		t.Errorf("%+v", r.Error)
	}
	_, err = s.svc().ProtectVM(t.Context(), "db", api.Label{})
	s.ok(err)
	if r := s.follow(s.svc().Restore(t.Context(), over)); r.State != api.StateDone {
		t.Errorf("%+v", r.Error)
	}
	s.recorded(holdfast.EventLabelChanged, "not protected any more")
}

// TestSeveralVMsAndPointsInTime: by name, by time, into a folder each, with one of them there already.
func TestSeveralVMsAndPointsInTime(t *testing.T) {
	s := newSite(t)
	for i, name := range []string{"a", "b", "c", "d"} {
		s.machine("hv1", name, byte(10*i+1))
	}
	s.online("hv1")
	s.backup("a", "b", "c", "d")
	first, mid := s.newest("a"), s.clock.Now()
	truth := s.content("hv1", s.vms("hv1")[0])
	s.write("hv1", "a", 0, 0, bytes.Repeat([]byte{200}, 4096))
	s.backup("a")
	spec := api.RestoreSpec{VMs: []string{"a", "b", "c", "d"}, Before: mid, Host: "hv1", Dir: s.path("many"), Suffix: "-2", ParallelVMs: 4, ParallelDisks: 1}
	r := s.follow(s.svc().Restore(t.Context(), spec))
	if r.State != api.StateDone || len(r.Tasks) != 4 || r.Tasks[0].Set != first.ID || r.Tasks[0].Target != "a-2" {
		t.Fatalf("%+v", r)
	}
	for _, v := range s.vms("hv1") {
		if v.Name == "a-2" {
			if v.Dir != s.path("many/a-2") || !bytes.Equal(s.content("hv1", v)[0], truth[0]) {
				t.Errorf("a-2 in %s is not the older point", v.Dir)
			}
		}
	}
	spec.Before, spec.Existing, spec.VMs = time.Time{}, "skip", []string{"a", "b"}
	if r := s.follow(s.svc().Restore(t.Context(), spec)); r.State != api.StateFailed || r.Kind != "restore" {
		t.Errorf("all skipped: %+v", r)
	}
	spec.Suffix, spec.VMs = "", []string{"a"}
	spec.Name = "a-3"
	spec.Dir = s.path("many/a-3")
	if r := s.follow(s.svc().Restore(t.Context(), spec)); r.State != api.StateDone || r.Tasks[0].Set == first.ID {
		t.Errorf("the newest point: %+v", r)
	}
	for name, bad := range map[string]api.RestoreSpec{
		"nothing named":  {Host: "hv1", Dir: "/x"},
		"two places":     {Set: first.ID, Host: "hv1", Dir: "/x", Original: true},
		"no place":       {Set: first.ID, Host: "hv1"},
		"one name":       {VMs: []string{"a", "b"}, Host: "hv1", Dir: "/x", Name: "c"},
		"no such policy": {Set: first.ID, Host: "hv1", Dir: "/x", Existing: "maybe"},
		"time of a set":  {Set: first.ID, Host: "hv1", Dir: "/x", Before: first.Time},
	} {
		if _, err := s.svc().Preflight(t.Context(), bad); holdfast.KindOf(err) != holdfast.Invalid || holdfast.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLaterRestoresSurviveRestarts: one that waits begins once, at its time; one whose time passed while the daemon was down begins after; a
// cancelled one never.
func TestLaterRestoresSurviveRestarts(t *testing.T) {
	s := newSite(t)
	s.machine("hv1", "db", 1)
	s.online("hv1")
	s.backup("db")
	set := s.newest("db")
	later := func(name string, d time.Duration) api.RestoreAt {
		r, err := s.svc().RestoreLater(t.Context(), api.RestoreAt{At: s.clock.Now().Add(d), Spec: api.RestoreSpec{Set: set.ID, Host: "hv1", Dir: s.path("later-" + name), Name: name}})
		s.ok(err)
		return r
	}
	later("one", time.Hour)
	gone := later("two", time.Hour)
	if _, err := s.svc().CancelRestoreLater(t.Context(), gone.ID); err != nil {
		t.Error(err)
	}
	if _, err := s.svc().CancelRestoreLater(t.Context(), gone.ID); holdfast.KindOf(err) != holdfast.NotExist {
		t.Errorf("cancelled twice: %v", err)
	}
	s.stop()
	s.start()
	if rs, err := s.svc().RestoresLater(t.Context()); err != nil || len(rs) != 1 {
		t.Fatalf("%+v, %v", rs, err)
	}
	s.stop()
	s.clock.offset.Store(int64(2 * time.Hour))
	s.start()
	done := func(name string) func() bool {
		return func() bool { return slices.ContainsFunc(s.vms("hv1"), func(v hv.VM) bool { return v.Name == name }) }
	}
	s.wait("the restore whose time has passed is done", done("one"))
	later("three", time.Millisecond)
	s.wait("the restore of now is done", done("three"))
	s.wait("none waits", func() bool { rs, err := s.svc().RestoresLater(t.Context()); return err == nil && len(rs) == 0 })
	if len(s.vms("hv1")) != 3 || done("two")() {
		t.Errorf("%+v", s.vms("hv1"))
	}
}
