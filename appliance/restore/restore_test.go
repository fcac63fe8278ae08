package restore

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

var (
	original = holdfast.VMID{ID: holdfast.ID{1}}
	stranger = holdfast.VMID{ID: holdfast.ID{2}}
	boot     = holdfast.DiskID{ID: holdfast.ID{3}}
	data     = holdfast.DiskID{ID: holdfast.ID{4}}
	now      = time.Date(2026, 11, 22, 18, 43, 5, 0, time.UTC)
)

const gib = 1 << 30

// A scene is a set of a VM "db", a host, and what somebody wants.
type scene struct {
	src  Source
	host Host
	req  Request
}

func newScene() *scene {
	disks := []holdfast.Disk{
		{ID: boot, Name: "db.vhdx", Size: 40 * gib, Format: "vhdx", Subformat: "dynamic", LogicalSector: 512, Controller: "scsi"},
		{ID: data, Name: "data.vhdx", Size: 60 * gib, Format: "vhdx", Subformat: "fixed", LogicalSector: 512, Controller: "scsi", Slot: 1},
	}
	return &scene{
		src: Source{Set: holdfast.SetID{ID: holdfast.ID{9}}, PoolName: "main", Data: map[holdfast.DiskID]int64{boot: 10 * gib}, Manifest: holdfast.Manifest{
			ID: holdfast.SetID{ID: holdfast.ID{9}}, Created: now.Add(-time.Hour), Dir: "/vms/db", Consistency: holdfast.AppConsistent,
			VM: holdfast.VMInfo{ID: original, Name: "db", Generation: 2, Version: "9.0"}, Disks: disks,
			Adapters: []holdfast.Adapter{{Name: "lan", Switch: "LAN", MAC: "00155d010203"}},
		}},
		host: Host{Name: "hv1", VMVersion: "10.0", Switches: []string{"LAN", "DMZ"}, Folders: map[string]wire.Folder{
			"/new": {Dir: "/new", Free: 500 * gib, Volume: "a"}, "/vms/db": {Dir: "/vms/db", Free: 500 * gib, Volume: "a"},
			"/vms/db-20261122-184305": {Dir: "/vms/db-20261122-184305", Free: 500 * gib, Volume: "a"},
			"/fast":                   {Dir: "/fast", Free: 500 * gib, Volume: "b"},
		}},
		req: Request{Dir: "/new"},
	}
}

// there puts the VM "db" onto the host.
func (s *scene) there(id holdfast.VMID, change func(v *VM)) {
	v := VM{VM: wire.VM{VMInfo: holdfast.VMInfo{ID: id, Name: "db", Generation: 2}, State: "off", Dir: "/vms/db", Disks: slices.Clone(s.src.Manifest.Disks)}}
	if change != nil {
		change(&v)
	}
	s.host.VMs = append(s.host.VMs, v)
}

func (s *scene) overwrite() {
	s.req = Request{Original: true, Existing: Overwrite}
}

func (s *scene) disk(d int) *holdfast.Disk { return &s.src.Manifest.Disks[d] }

// TestPreflightTellsVerdictAndReason is the table of what can stand in the way of a restore. Each line has one thing changed from a restore that
// is ready, and says the verdict, the finding's code and words of its text.
func TestPreflightTellsVerdictAndReason(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *scene)
		want   Verdict
		code   string
		text   string
	}{
		"a new folder":                       {func(s *scene) {}, Ready, "", ""},
		"original place, VM gone":            {func(s *scene) { s.req = Request{Original: true} }, Ready, "identity", "keeps its id"},
		"original place, VM on another host": {func(s *scene) { s.req = Request{Original: true}; s.src.Elsewhere = "hv2" }, Ready, "new-identity", "hv2 has the original"},
		"original place not recorded":        {func(s *scene) { s.req = Request{Original: true}; s.src.Manifest.Dir = "" }, Refused, "original-unknown", "does not tell where"},
		"host offline":                       {func(s *scene) { s.host.Offline = "no stream" }, Refused, "host-offline", "hv1 is offline"},
		"host protected":                     {func(s *scene) { s.host.Protected = true }, Refused, "host-protected", "hv1 is protected"},
		"pool offline":                       {func(s *scene) { s.src.Problem = "disk is away" }, Refused, "pool-offline", "main cannot be read"},
		"set damaged":                        {func(s *scene) { s.src.Damaged = true }, Refused, "set-damaged", "damaged"},
		"crash-consistent set":               {func(s *scene) { s.src.Manifest.Consistency = holdfast.CrashConsistent }, Ready, "crash-consistent", "power cut"},
		"newer VM, older host":               {func(s *scene) { s.src.Manifest.VM.Version = "10.1" }, Refused, "version", "runs VMs up to 10.0"},
		"much newer VM":                      {func(s *scene) { s.src.Manifest.VM.Version = "12.0" }, Refused, "version", "12.0"},
		"same version, written otherwise":    {func(s *scene) { s.src.Manifest.VM.Version = "10" }, Ready, "", ""},
		"older VM, newer host":               {func(s *scene) { s.src.Manifest.VM.Version = "5.0" }, Ready, "", ""},
		"host that does not tell versions":   {func(s *scene) { s.host.VMVersion = "" }, Ready, "", ""},
		"generation 3":                       {func(s *scene) { s.src.Manifest.VM.Generation = 3 }, Refused, "generation", "no generation 3"},
		"generation 1 without IDE disk":      {func(s *scene) { s.src.Manifest.VM.Generation = 1 }, Refused, "boot-ide", "generation 1 boots from an IDE"},
		"generation 1 with IDE disk":         {func(s *scene) { s.src.Manifest.VM.Generation = 1; s.disk(0).Controller = "ide" }, Ready, "", ""},
		"generation 2 with IDE disk":         {func(s *scene) { s.disk(1).Controller = "ide" }, Refused, "ide-gen2", "data.vhdx"},
		"generation 2 without SCSI disk":     {func(s *scene) { s.disk(0).Controller, s.disk(1).Controller = "ide", "ide" }, Refused, "boot-scsi", "generation 2 boots from a SCSI"},
		"4096-byte sectors on IDE": {func(s *scene) {
			s.src.Manifest.VM.Generation = 1
			s.disk(0).Controller = "ide"
			s.disk(0).LogicalSector = 4096
		}, Refused, "ide-4k", "4096"},
		"IDE place that is not there": {func(s *scene) { s.src.Manifest.VM.Generation = 1; s.disk(0).Controller = "ide"; s.disk(0).Slot = 2 }, Refused, "ide-slot", "ide 0:2"},
		"two disks at one place":      {func(s *scene) { s.disk(1).Slot = 0 }, Refused, "ide-slot", "two disks are at scsi 0:0"},
		"no disks":                    {func(s *scene) { s.src.Manifest.Disks = nil }, Warned, "no-disks", "no disks"},
		"folder not absolute":         {func(s *scene) { s.req.Dir = "new" }, Refused, "folder-relative", "not absolute"},
		"folder not writable":         {func(s *scene) { s.host.Folders["/new"] = wire.Folder{Problem: "read-only"} }, Refused, "folder", "read-only"},
		"disk folder not writable": {func(s *scene) {
			s.host.Folders["/fast"] = wire.Folder{Problem: "denied"}
			s.req.DiskDirs = map[string]string{"1": "/fast"}
		}, Refused, "folder", "denied"},
		"disk folder not absolute":           {func(s *scene) { s.req.DiskDirs = map[string]string{"1": "fast"} }, Refused, "folder-relative", "disk 1"},
		"folder of a disk that is not there": {func(s *scene) { s.req.DiskDirs = map[string]string{"2": "/fast"} }, Refused, "disk-missing", `no disk "2"`},
		"a file of that name is there":       {func(s *scene) { s.host.Folders["/new"] = wire.Folder{Free: -1, Files: []string{"DB.vhdx"}} }, Refused, "files-present", "db.vhdx"},
		"no room":                            {func(s *scene) { s.host.Folders["/new"] = wire.Folder{Free: 69 * gib, Volume: "a"} }, Refused, "space", "are free"},
		"room for now":                       {func(s *scene) { s.host.Folders["/new"] = wire.Folder{Free: 71 * gib, Volume: "a"} }, Warned, "space-tight", "may grow"},
		"room not known":                     {func(s *scene) { s.host.Folders["/new"] = wire.Folder{Free: -1} }, Ready, "space-unknown", "not known"},
		"room because a disk goes elsewhere": {func(s *scene) {
			s.host.Folders["/new"] = wire.Folder{Free: 41 * gib, Volume: "a"}
			s.req.DiskDirs = map[string]string{"data.vhdx": "/fast"}
		}, Ready, "", ""},
		"switch missing":                       {func(s *scene) { s.host.Switches = []string{"DMZ"} }, Refused, "switch-missing", `no virtual switch "LAN"`},
		"switch mapped":                        {func(s *scene) { s.host.Switches = []string{"DMZ"}; s.req.Switches = map[string]string{"LAN": "DMZ"} }, Ready, "", ""},
		"switch mapped to one that is missing": {func(s *scene) { s.req.Switches = map[string]string{"LAN": "WAN"} }, Refused, "switch-missing", `"WAN"`},
		"switch mapped that no adapter has":    {func(s *scene) { s.req.Switches = map[string]string{"WAN": "DMZ"} }, Warned, "switch-unused", "WAN"},
		"network left out":                     {func(s *scene) { s.host.Switches = nil; s.req.NoNetwork = true }, Ready, "adapter-dropped", "left out"},
		"adapter added to a missing switch":    {func(s *scene) { s.req.AddSwitches = []string{"WAN"} }, Refused, "switch-missing", `"WAN"`},
		"bad name":                             {func(s *scene) { s.req.Name = "a/b" }, Refused, "name", "no name for a VM"},
		"name too long":                        {func(s *scene) { s.req.Prefix = strings.Repeat("x", 100) }, Refused, "name", "no name for a VM"},
		"name in use, suffix":                  {func(s *scene) { s.there(stranger, nil) }, Ready, "exists", "db-20261122-184305"},
		"name in use, skip":                    {func(s *scene) { s.there(stranger, nil); s.req.Existing = Skip }, Skipped, "exists", "left as it is"},
		"name in use, overwrite":               {func(s *scene) { s.there(stranger, nil); s.req.Existing = Overwrite }, Warned, "other-vm", "reads whole disks"},
		"name in use twice, overwrite": {func(s *scene) {
			s.there(stranger, nil)
			s.there(holdfast.VMID{ID: holdfast.ID{8}}, nil)
			s.req.Existing = Overwrite
		}, Refused, "name-ambiguous", "2 VMs"},
		"overwrite, off":                 {func(s *scene) { s.overwrite(); s.there(original, nil) }, Ready, "identity", "go on from here"},
		"overwrite, renamed on the host": {func(s *scene) { s.overwrite(); s.there(original, func(v *VM) { v.Name = "other" }) }, Ready, "identity", ""},
		"overwrite, runs":                {func(s *scene) { s.overwrite(); s.there(original, func(v *VM) { v.State = "running" }) }, Refused, "vm-running", "is running"},
		"overwrite, runs, may be shut down": {func(s *scene) {
			s.overwrite()
			s.req.Shutdown = true
			s.there(original, func(v *VM) { v.State = "running" })
		}, Warned, "vm-running", "is shut down"},
		"overwrite, disk in another program": {func(s *scene) {
			s.overwrite()
			s.req.Shutdown = true
			s.there(original, func(v *VM) { v.State, v.Served = "running", true })
		}, Refused, "vm-served", "open for writing"},
		"overwrite, checkpoints":     {func(s *scene) { s.overwrite(); s.there(original, func(v *VM) { v.Checkpoints = 2 }) }, Refused, "vm-checkpoints", "2 checkpoints"},
		"overwrite, being backed up": {func(s *scene) { s.overwrite(); s.there(original, func(v *VM) { v.Busy = true }) }, Refused, "vm-busy", "being backed up"},
		"overwrite, protected":       {func(s *scene) { s.overwrite(); s.there(original, func(v *VM) { v.Protected = true }) }, Refused, "vm-protected", "is protected"},
		"overwrite, another restore changes it": {func(s *scene) {
			s.overwrite()
			s.there(original, nil)
			s.host.UnderWay.VMs = map[holdfast.VMID]bool{original: true}
		}, Refused, "under-way", "another restore"},
		"another restore makes the name":   {func(s *scene) { s.host.UnderWay.Names = map[string]bool{"db": true} }, Refused, "under-way", "another restore"},
		"another restore fills the folder": {func(s *scene) { s.host.UnderWay.Dirs = map[string]bool{"/new": true} }, Refused, "under-way", "/new"},
		"disk, no such disk in the set":    {func(s *scene) { s.there(stranger, nil); s.req.Disk = &Disk{No: 2, VM: "db", Overwrite: -1} }, Refused, "disk-missing", "no disk 2"},
		"disk, no such VM":                 {func(s *scene) { s.req.Disk = &Disk{VM: "db", Overwrite: -1} }, Refused, "vm-missing", "0 VMs"},
		"disk, no such disk in the VM":     {func(s *scene) { s.there(stranger, nil); s.req.Disk = &Disk{VM: "db", Overwrite: 5} }, Refused, "disk-missing", "no disk 5"},
		"disk overwritten":                 {func(s *scene) { s.there(stranger, nil); s.req.Disk = &Disk{No: 1, VM: "db", Overwrite: 1} }, Ready, "reads-whole", "reads this disk whole"},
		"disk overwritten, VM runs": {func(s *scene) {
			s.there(stranger, func(v *VM) { v.State = "running" })
			s.req.Disk = &Disk{No: 1, VM: "db", Overwrite: 1}
		}, Refused, "vm-running", "is running"},
		"disk added, VM runs": {func(s *scene) {
			s.there(stranger, func(v *VM) { v.State = "running" })
			s.req.Disk = &Disk{No: 1, VM: "db", Overwrite: -1, Dir: "/new"}
		}, Ready, "", ""},
		"disk of another size": {func(s *scene) { s.there(stranger, nil); s.req.Disk = &Disk{No: 1, VM: "db", Overwrite: 0} }, Warned, "size", "bytes"},
		"boot disk of the other generation": {func(s *scene) {
			s.there(stranger, func(v *VM) { v.Generation = 1; v.Disks[0].Controller = "ide" })
			s.req.Disk = &Disk{VM: "db", Overwrite: 0}
		}, Warned, "boot", "may not boot"},
		"4096-byte sectors onto IDE": {func(s *scene) {
			s.there(stranger, func(v *VM) { v.Disks[0].Controller = "ide" })
			s.disk(0).LogicalSector = 4096
			s.req.Disk = &Disk{VM: "db", Overwrite: 0}
		}, Refused, "ide-4k", "4096"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			c.change(s)
			n := &Planner{Request: s.req, Host: s.host, Now: now}
			p := n.Plan(s.src)
			var found *Finding
			for i := range p.Findings {
				f := &p.Findings[i]
				if f.Code == c.code {
					found = f
				}
				if f.Level == Refuse && (f.Advice == "" || kindOf(f.Code) == holdfast.Internal) {
					t.Errorf("%s is refused without advice or kind", f.Code)
				}
			}
			if p.Verdict != c.want || c.code != "" && (found == nil || !strings.Contains(found.Text, c.text)) {
				t.Errorf("verdict %q, want %q with %s %q; found %+v", p.Verdict, c.want, c.code, c.text, p.Findings)
			}
			if (p.First() != nil) != (c.want == Refused) {
				t.Errorf("%s, but the error is %v", p.Verdict, p.First())
			}
			if (len(p.Lost) > 0) != (!p.Make.Replace.IsZero() || !p.Make.Overwrite.IsZero()) {
				t.Errorf("what will be lost is %q", p.Lost)
			}
		})
	}
}

// TestPlansMakeWhatWasAskedFor goes through place, naming, existing VMs, adapters and start.
func TestPlansMakeWhatWasAskedFor(t *testing.T) {
	lan := holdfast.Adapter{Name: "lan", Switch: "LAN", MAC: "00155d010203"}
	free := holdfast.Adapter{Name: "lan", Switch: "LAN"}
	for name, c := range map[string]struct {
		change func(s *scene)
		want   wire.Restore
	}{
		"original, gone":   {func(s *scene) { s.req = Request{Original: true, Start: true} }, wire.Restore{Dir: "/vms/db", Name: "db", KeepID: true, Reference: true, Start: true, Adapters: []holdfast.Adapter{lan}}},
		"original, there":  {func(s *scene) { s.req = Request{Original: true}; s.there(original, nil) }, wire.Restore{Dir: "/vms/db-20261122-184305", Name: "db-20261122-184305", Adapters: []holdfast.Adapter{free}}},
		"original, over":   {func(s *scene) { s.overwrite(); s.there(original, nil) }, wire.Restore{Dir: "/vms/db", Name: "db", Replace: original, Reference: true, Adapters: []holdfast.Adapter{lan}}},
		"original, rename": {func(s *scene) { s.req = Request{Original: true, Suffix: "-old"} }, wire.Restore{Dir: "/vms/db-old", Name: "db-old", Adapters: []holdfast.Adapter{free}}},
		"Windows, rename":  {func(s *scene) { s.req = Request{Original: true, Name: "x"}; s.src.Manifest.Dir = `C:\VMs\db\` }, wire.Restore{Dir: `C:\VMs\x`, Name: "x", Adapters: []holdfast.Adapter{free}}},
		"folder":           {func(s *scene) { s.req.Prefix = "r-" }, wire.Restore{Dir: "/new", Name: "r-db", Adapters: []holdfast.Adapter{free}}},
		"folder, many":     {func(s *scene) { s.req.Many = true }, wire.Restore{Dir: "/new/db", Name: "db", Adapters: []holdfast.Adapter{free}}},
		"folder, over":     {func(s *scene) { s.there(stranger, nil); s.req.Existing = Overwrite }, wire.Restore{Dir: "/vms/db", Name: "db", Replace: stranger, Adapters: []holdfast.Adapter{free}}},
		"disk folders":     {func(s *scene) { s.req.DiskDirs = map[string]string{"0": "/fast", "*": "/new"} }, wire.Restore{Dir: "/new", Name: "db", DiskDirs: map[holdfast.DiskID]string{boot: "/fast", data: "/new"}, Adapters: []holdfast.Adapter{free}}},
		"mapped and added": {func(s *scene) { s.req.Switches, s.req.AddSwitches = map[string]string{"LAN": ""}, []string{"DMZ"} }, wire.Restore{Dir: "/new", Name: "db", Adapters: []holdfast.Adapter{{Name: "lan"}, {Name: "Network Adapter 2", Switch: "DMZ"}}}},
		"dropped":          {func(s *scene) { s.req.NoNetwork = true }, wire.Restore{Dir: "/new", Name: "db"}},
		"disk over": {func(s *scene) {
			s.there(stranger, nil)
			s.req = Request{Disk: &Disk{No: 0, VM: "db", Overwrite: 1}, Shutdown: true}
		}, wire.Restore{Dir: "/vms/db", Into: stranger, Overwrite: data, Shutdown: true}},
		"disk new": {func(s *scene) {
			s.there(stranger, nil)
			s.req = Request{Disk: &Disk{No: 0, VM: stranger.String(), Overwrite: -1, Dir: "/fast"}}
		}, wire.Restore{Dir: "/vms/db", Into: stranger, DiskDirs: map[holdfast.DiskID]string{boot: "/fast"}}},
	} {
		s := newScene()
		c.change(s)
		p := (&Planner{Request: s.req, Host: s.host, Now: now}).Plan(s.src)
		if p.Verdict == Refused || !reflect.DeepEqual(p.Make, c.want) {
			t.Errorf("%s: %s\n got %+v\nwant %+v\n%+v", name, p.Verdict, p.Make, c.want, p.Findings)
		}
	}
}

// TestARunsPlansKnowOfEachOther: names, VMs and room are counted over a whole run.
func TestARunsPlansKnowOfEachOther(t *testing.T) {
	s := newScene()
	s.host.Folders["/new/db"] = wire.Folder{Free: 200 * gib, Volume: "a"}
	s.host.Folders["/new/db2"] = wire.Folder{Free: 200 * gib, Volume: "a"}
	s.host.Folders["/new/db3"] = wire.Folder{Free: 200 * gib, Volume: "a"}
	s.req.Many = true
	n := &Planner{Request: s.req, Host: s.host, Now: now}
	var got []Verdict
	for i, name := range []string{"db", "db2", "db2", "db3"} {
		src := s.src
		src.Manifest.VM = holdfast.VMInfo{ID: holdfast.VMID{ID: holdfast.ID{byte(20 + i)}}, Name: name, Generation: 2}
		got = append(got, n.Plan(src).Verdict)
	}
	if want := []Verdict{Ready, Ready, Refused, Refused}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v: the third has the second's name, the fourth has no room left", got, want)
	}
	if p := n.Plan(func() Source { x := s.src; x.Manifest.VM.ID.ID = holdfast.ID{20}; return x }()); p.Verdict != Refused {
		t.Errorf("one VM twice in a run: %s", p.Verdict)
	}
}
