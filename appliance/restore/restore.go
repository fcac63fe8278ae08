// Package restore decides, before a byte moves, what a restore makes and whether it can: the plan of each VM or disk and the verdict on it, with
// a sentence for everything that stands in the way, that will be lost, or that is worth knowing.
//
// It owns the rules: names, folders, identities, network adapters, existing VMs, generations and controllers, versions, space, labels. It is pure:
// facts come in (what sets say, what the host said when it was asked), plans go out; it reads no clock and writes nothing, so it has nothing to
// promise on a crash. It imports the root and ingest/wire only, and must not know catalog, pools or the job engine.
package restore

import (
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// Existing says what becomes of a VM that is there already.
type Existing string

// What becomes of a VM that is there: the restored one gets another name, or takes its place, or is not restored.
const (
	Suffix    Existing = "suffix"
	Overwrite Existing = "overwrite"
	Skip      Existing = "skip"
)

// A Request is what somebody wants of a whole run.
type Request struct {
	Original bool   // to the place, and under the name, that the VM had
	Dir      string // or to this folder on the host; with Many, each VM gets a folder of its name in it
	Many     bool   // the run restores more than one VM

	Name, Prefix, Suffix string            // of the new VM
	DiskDirs             map[string]string // folder of a disk, by its number, its name, or "*" for all others
	Switches             map[string]string // virtual switch by the one the adapter had; "": leave it unconnected
	AddSwitches          []string          // adapters to be added, by their switch
	NoNetwork            bool              // no adapters but the added ones
	Existing             Existing          // "": Suffix
	Shutdown             bool              // a VM that is overwritten may be shut down
	Start                bool

	Disk *Disk // one disk of the set goes to a VM that is there
}

// A Disk is what somebody wants of a restore of one disk.
type Disk struct {
	No        int    // in the set
	VM        string // on the host, by name or id
	Overwrite int    // the disk of the VM that is replaced; negative: the disk is added
	Dir       string // its folder; "": the VM's
}

// A Source is a set, and what the appliance knows about it.
type Source struct {
	Set       holdfast.SetID
	Pool      holdfast.PoolID
	PoolName  string
	Manifest  holdfast.Manifest
	Damaged   bool                      // a verify found it so
	Problem   string                    // why the pool cannot be read; "": it can
	Elsewhere string                    // the host, another one than the target, that has the VM now
	Data      map[holdfast.DiskID]int64 // bytes of data of disks, where they are known
	Remarks   []Finding                 // of how it was chosen
}

// A Host is where the restore goes, as it is now.
type Host struct {
	ID        holdfast.HostID
	Name      string
	Offline   string // why it cannot be asked; "": it was
	Protected bool
	VMVersion string
	Switches  []string
	VMs       []VM
	Folders   map[string]wire.Folder // nil: not asked yet
	UnderWay  UnderWay               // of other restores
}

// UnderWay is what restores that have not ended are making on a host.
type UnderWay struct {
	Names map[string]bool
	VMs   map[holdfast.VMID]bool
	Dirs  map[string]bool
}

// A VM is one that the host has.
type VM struct {
	wire.VM
	Protected bool
}

// Level says what a finding means for the restore.
type Level string

// The levels: it will not be done; somebody should know before; for the record.
const (
	Refuse Level = "refuse"
	Warn   Level = "warning"
	Info   Level = "info"
)

// A Finding is one thing that preflight found.
type Finding struct {
	Code   string `json:"code"`
	Level  Level  `json:"level"`
	Text   string `json:"text"`
	Advice string `json:"advice,omitempty"`
}

// Verdict is what comes of all findings.
type Verdict string

// The verdicts.
const (
	Ready    Verdict = "ready"
	Warned   Verdict = "ready-with-warnings"
	Skipped  Verdict = "skipped"
	Refused  Verdict = "refused"
	Original         = "original" // the place of a VM, as plans name it
)

// A Plan is what is going to be made of one set.
type Plan struct {
	Source   Source
	Make     wire.Restore
	Disk     holdfast.DiskID // of a restore of one disk
	Target   string          // name of the VM that is made or changed
	Replaces string          // name of the VM, or of the disk, that is going to be lost
	Lost     []string        // what will be lost, in sentences
	Verdict  Verdict
	Findings []Finding
}

// A Planner plans a run: Plan is called once for each of its sets. It is not safe for concurrent use.
type Planner struct {
	Request Request
	Host    Host
	Now     time.Time // for the suffix of names

	names map[string]bool        // that the run takes
	vms   map[holdfast.VMID]bool // that the run changes
	from  map[holdfast.VMID]bool // VMs that sets of the run are of
	need  map[string]int64       // sure, by volume
	most  map[string]int64       // at most, by volume
}

func (p *Plan) refuse(code, advice, format string, args ...any) {
	p.add(Refuse, code, advice, format, args...)
}
func (p *Plan) warn(code, advice, format string, args ...any) {
	p.add(Warn, code, advice, format, args...)
}
func (p *Plan) info(code, format string, args ...any) { p.add(Info, code, "", format, args...) }

// settle makes the verdict.
func (p *Plan) settle() {
	if p.Verdict == Skipped {
		return
	}
	p.Verdict = Ready
	for _, f := range p.Findings {
		switch {
		case f.Level == Refuse:
			p.Verdict = Refused
		case f.Level == Warn && p.Verdict == Ready:
			p.Verdict = Warned
		}
	}
}

// Dirs returns the folders that the plan puts files into.
func (p *Plan) Dirs() []string {
	if p.Verdict == Skipped {
		return nil
	}
	var out []string
	if p.Make.Dir != "" {
		out = append(out, p.Make.Dir)
	}
	for _, d := range p.Make.DiskDirs {
		out = append(out, d)
	}
	return out
}

// First returns the first finding that refuses the plan as an error; nil if there is none.
func (p *Plan) First() error {
	for _, f := range p.Findings {
		if f.Level == Refuse {
			return holdfast.Errorf(kindOf(f.Code), "", "%s: %s", p.Target, f.Text).Advise("%s", f.Advice)
		}
	}
	return nil
}

// kindOf is the kind of error that a finding that refuses stands for.
func kindOf(code string) holdfast.Kind {
	switch code {
	case "host-offline", "pool-offline":
		return holdfast.Offline
	case "host-protected", "vm-protected":
		return holdfast.Immutable
	case "space":
		return holdfast.NoSpace
	case "set-damaged":
		return holdfast.Corrupt
	case "vm-running", "vm-served", "vm-checkpoints", "vm-busy", "under-way":
		return holdfast.Busy
	case "files-present", "name-twice":
		return holdfast.Exist
	case "vm-missing", "disk-missing", "switch-missing", "original-unknown":
		return holdfast.NotExist
	case "version", "generation", "boot-ide", "boot-scsi", "ide-gen2", "ide-4k", "ide-slot":
		return holdfast.Unsupported
	case "folder":
		return holdfast.Permission
	}
	return holdfast.Invalid
}
