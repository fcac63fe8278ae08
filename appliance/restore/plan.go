package restore

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

const (
	stampForm    = "20060102-150405"
	maxVMName    = 100 // as Hyper-V has it
	adapterTitle = "Network Adapter"
)

func (p *Plan) add(l Level, code, advice, format string, args ...any) {
	p.Findings = append(p.Findings, Finding{Code: code, Level: l, Text: fmt.Sprintf(format, args...), Advice: advice})
}

// Plan decides what is made of a set, and whether that can be done. Folders are judged only if the host's are known.
func (n *Planner) Plan(src Source) Plan {
	if n.names == nil {
		n.names, n.vms, n.from = map[string]bool{}, map[holdfast.VMID]bool{}, map[holdfast.VMID]bool{}
		n.need, n.most = map[string]int64{}, map[string]int64{}
	}
	p := Plan{Source: src, Findings: slices.Clone(src.Remarks), Target: src.Manifest.VM.Name}
	p.Make.Start = n.Request.Start
	n.source(&p)
	n.host(&p)
	if n.Request.Disk != nil {
		n.disk(&p)
	} else {
		n.vm(&p)
	}
	if p.Verdict != Skipped {
		n.folders(&p)
	}
	p.settle()
	return p
}

// source judges the set.
func (n *Planner) source(p *Plan) {
	src := &p.Source
	switch {
	case src.Problem != "":
		p.refuse("pool-offline", "bring the pool back, or choose a copy in another one with --pool", "pool %s cannot be read: %s", src.PoolName, src.Problem)
	case src.Damaged:
		p.refuse("set-damaged", "choose another point in time; 'holdfast set list' shows them", "the set was found damaged when it was read back")
	}
	if n.from[src.Manifest.VM.ID] {
		p.refuse("vm-twice", "restore one point in time of a VM at a time", "the run restores this VM already")
	}
	n.from[src.Manifest.VM.ID] = true
	if src.Manifest.Consistency == holdfast.CrashConsistent {
		p.info("crash-consistent", "the disks are as after a power cut: the guest checks them when it starts")
	}
}

// host judges where it goes.
func (n *Planner) host(p *Plan) {
	h := &n.Host
	if h.Offline != "" {
		p.refuse("host-offline", "start holdfast-agent on the host; 'holdfast host list' shows who is online", "host %s is offline: %s", h.Name, h.Offline)
	}
	if h.Protected {
		p.refuse("host-protected", "an administrator takes the label off with 'holdfast host set "+h.Name+" --protected=false'",
			"host %s is protected: nothing is restored to it", h.Name)
	}
}

// vm plans a whole VM.
func (n *Planner) vm(p *Plan) {
	m, req := &p.Source.Manifest, &n.Request
	n.machine(p)
	name := req.Prefix + m.VM.Name + req.Suffix
	if req.Name != "" {
		name = req.Name
	}
	renamed := name != m.VM.Name
	p.Target = name
	was, ambiguous := n.existing(name, m.VM.ID, req.Original && !renamed)
	if ambiguous > 1 && req.Existing == Overwrite {
		p.refuse("name-ambiguous", "rename the others, or restore under another name", "%d VMs of host %s are called %q", ambiguous, n.Host.Name, name)
		return
	}
	switch {
	case was == nil:
		n.fresh(p, name, renamed)
	case req.Existing == Skip:
		p.Verdict = Skipped
		p.info("exists", "host %s has the VM %q already: it is left as it is", n.Host.Name, was.Name)
		return
	case req.Existing == Overwrite:
		n.over(p, was, name)
	default:
		stamped := name + "-" + n.Now.UTC().Format(stampForm)
		p.info("exists", "host %s has the VM %q already: the restored one is called %q", n.Host.Name, was.Name, stamped)
		n.fresh(p, stamped, true)
	}
	n.takeName(p)
	n.adapters(p)
	n.diskDirs(p)
}

// existing finds the VM that a restore under a name meets: the one of that name, or, to the original place, the original itself.
func (n *Planner) existing(name string, id holdfast.VMID, original bool) (*VM, int) {
	var found *VM
	count := 0
	for i := range n.Host.VMs {
		v := &n.Host.VMs[i]
		if v.ID == id && (original || v.Name == name) {
			return v, 1
		}
		if v.Name == name {
			found = v
			count++
		}
	}
	return found, count
}

// fresh plans a VM that is new on the host.
func (n *Planner) fresh(p *Plan, name string, renamed bool) {
	m, req := &p.Source.Manifest, &n.Request
	p.Target, p.Make.Name = name, name
	here := slices.ContainsFunc(n.Host.VMs, func(v VM) bool { return v.ID == m.VM.ID })
	if !req.Original {
		p.Make.Dir = req.Dir
		if req.Many && req.Dir != "" {
			p.Make.Dir = join(req.Dir, name)
		}
		if !absolute(req.Dir) {
			p.refuse("folder-relative", "say where on the host the files go, with the full path", "the folder %q is not absolute", req.Dir)
		}
		return
	}
	p.Make.Dir = m.Dir
	for _, v := range n.Host.VMs {
		if v.ID == m.VM.ID && v.Dir != "" {
			p.Make.Dir = v.Dir
		}
	}
	switch {
	case p.Make.Dir == "":
		p.refuse("original-unknown", "say with --to where the files go", "the set does not tell where the VM was")
	case renamed:
		p.Make.Dir = join(parent(p.Make.Dir), name)
	case !here && p.Source.Elsewhere == "":
		p.Make.KeepID, p.Make.Reference = true, true
		p.info("identity", "the VM keeps its id, and its backups go on from here")
	}
	if !p.Make.KeepID && p.Source.Elsewhere != "" {
		p.info("new-identity", "host %s has the original: the restored VM gets a new id", p.Source.Elsewhere)
	}
}

// over plans a VM that takes the place of one.
func (n *Planner) over(p *Plan, was *VM, name string) {
	m := &p.Source.Manifest
	p.Make.Name, p.Make.Dir, p.Make.Replace, p.Make.Shutdown = name, was.Dir, was.ID, n.Request.Shutdown
	p.Replaces = was.Name
	p.Make.Reference = was.ID == m.VM.ID
	var size int64
	for _, d := range was.Disks {
		size += d.Size
	}
	p.Lost = append(p.Lost, fmt.Sprintf("VM %q on host %s as it is now, with %d disks of %d bytes: everything that was written to it since %s", was.Name,
		n.Host.Name, len(was.Disks), size, m.Created.UTC().Format("2006-01-02 15:04:05 MST")))
	n.target(p, was, true)
	if p.Make.Reference {
		p.info("identity", "the VM keeps its id, and its backups go on from here")
	} else {
		p.warn("other-vm", "", "the VM %q that is there is another one than the set's: it keeps its id, and its next backup reads whole disks", was.Name)
	}
}

// target judges a VM that is going to be changed; off says that it must be off for that.
func (n *Planner) target(p *Plan, v *VM, off bool) {
	if v.Protected {
		p.refuse("vm-protected", "an administrator takes the label off with 'holdfast vm set "+v.ID.String()+" --protected=false'", "VM %q is protected: it is not overwritten", v.Name)
	}
	if v.Checkpoints > 0 {
		p.refuse("vm-checkpoints", "delete its checkpoints on the host first", "VM %q has %d checkpoints", v.Name, v.Checkpoints)
	}
	if v.Busy {
		p.refuse("vm-busy", "wait for its backup, or stop that", "VM %q is being backed up", v.Name)
	}
	if n.vms[v.ID] || n.Host.UnderWay.VMs[v.ID] {
		p.refuse("under-way", "wait for that restore; 'holdfast run list' shows it", "another restore is changing VM %q", v.Name)
	}
	n.vms[v.ID] = true
	switch {
	case !off || v.State == "off":
	case v.Served:
		p.refuse("vm-served", "end the program that has it open", "another program has a disk of VM %q open for writing", v.Name)
	case !n.Request.Shutdown:
		p.refuse("vm-running", "shut it down, or allow that with --shutdown", "VM %q is %s", v.Name, v.State)
	default:
		p.warn("vm-running", "", "VM %q is %s: it is shut down when the restored disks are complete", v.Name, v.State)
	}
}

// takeName judges the name of a VM that is made.
func (n *Planner) takeName(p *Plan) {
	name := p.Make.Name
	switch {
	case name == "" || len(name) > maxVMName || strings.TrimSpace(name) != name || name[0] == '.' || strings.ContainsAny(name, "/\\:*?\"<>|") || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' }):
		p.refuse("name", "choose a name of 1 to 100 characters without / \\ : * ? \" < > |", "%q is no name for a VM", name)
	case n.names[name]:
		p.refuse("name-twice", "use --prefix or --suffix, or restore one of them by itself", "two VMs of the run would be called %q", name)
	case n.Host.UnderWay.Names[name] && p.Make.Replace.IsZero():
		p.refuse("under-way", "wait for that restore; 'holdfast run list' shows it", "another restore is making a VM %q on host %s", name, n.Host.Name)
	}
	n.names[name] = true
}

// adapters decides what network adapters the VM gets.
func (n *Planner) adapters(p *Plan) {
	req, m := &n.Request, &p.Source.Manifest
	used := map[string]bool{}
	keep := p.Make.KeepID || p.Make.Reference
	var out []holdfast.Adapter
	for _, a := range m.Adapters {
		if req.NoNetwork {
			p.info("adapter-dropped", "network adapter %q is left out", a.Name)
			continue
		}
		to, mapped := req.Switches[a.Switch]
		if mapped {
			used[a.Switch] = true
			a.Switch = to
		}
		n.needSwitch(p, a.Switch, mapped)
		if !keep {
			a.MAC = "" // two VMs with one address would disturb each other
		}
		out = append(out, a)
	}
	for old := range req.Switches {
		if !used[old] && !req.Many && !req.NoNetwork {
			p.warn("switch-unused", "", "no adapter of the VM was connected to the switch %q", old)
		}
	}
	for _, s := range req.AddSwitches {
		n.needSwitch(p, s, true)
		out = append(out, holdfast.Adapter{Name: adapterTitle + " " + strconv.Itoa(len(out)+1), Switch: s})
	}
	if len(out) > holdfast.MaxAdapters {
		p.refuse("adapters", "add fewer", "%d network adapters; at most %d are allowed", len(out), holdfast.MaxAdapters)
	}
	p.Make.Adapters = out
}

func (n *Planner) needSwitch(p *Plan, name string, wanted bool) {
	if name == "" || slices.Contains(n.Host.Switches, name) || n.Host.Offline != "" {
		return
	}
	advice := fmt.Sprintf("name one of the host's with --switch %q=NEW (it has: %s), or leave the network out with --no-network", name, strings.Join(n.Host.Switches, ", "))
	if wanted {
		advice = "the host has: " + strings.Join(n.Host.Switches, ", ")
	}
	p.refuse("switch-missing", advice, "host %s has no virtual switch %q", n.Host.Name, name)
}

// diskDirs decides which disks get folders of their own.
func (n *Planner) diskDirs(p *Plan) {
	dirs := n.Request.DiskDirs
	used := map[string]bool{}
	for i, d := range p.Source.Manifest.Disks {
		for _, key := range []string{strconv.Itoa(i), d.Name, "*"} {
			dir, ok := dirs[key]
			if !ok {
				continue
			}
			used[key] = true
			if !absolute(dir) {
				p.refuse("folder-relative", "give the full path of a folder on the host", "the folder %q for disk %d is not absolute", dir, i)
			}
			if p.Make.DiskDirs == nil {
				p.Make.DiskDirs = map[holdfast.DiskID]string{}
			}
			p.Make.DiskDirs[d.ID] = dir
			break
		}
	}
	for key := range dirs {
		if !used[key] && key != "*" && !n.Request.Many {
			p.refuse("disk-missing", "'holdfast set show' lists the disks", "the set has no disk %q", key)
		}
	}
}

// disk plans one disk that goes to a VM that is there.
func (n *Planner) disk(p *Plan) {
	req, m := n.Request.Disk, &p.Source.Manifest
	if req.No < 0 || req.No >= len(m.Disks) {
		p.refuse("disk-missing", "'holdfast set show' lists the disks", "the set has %d disks, numbered from 0; there is no disk %d", len(m.Disks), req.No)
		return
	}
	d := m.Disks[req.No]
	p.Disk, p.Target = d.ID, req.VM
	var found []*VM
	for i := range n.Host.VMs {
		if v := &n.Host.VMs[i]; v.ID.String() == req.VM || v.Name == req.VM {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		if n.Host.Offline == "" {
			p.refuse("vm-missing", "'holdfast vm list' shows the VMs of each host; name the VM by its id", "host %s has %d VMs called %q", n.Host.Name, len(found), req.VM)
		}
		return
	}
	v := found[0]
	p.Target = v.Name
	p.Make.Into, p.Make.Dir, p.Make.Shutdown = v.ID, v.Dir, n.Request.Shutdown
	if req.Dir != "" {
		if !absolute(req.Dir) {
			p.refuse("folder-relative", "give the full path of a folder on the host", "the folder %q is not absolute", req.Dir)
		}
		p.Make.DiskDirs = map[holdfast.DiskID]string{d.ID: req.Dir}
	}
	n.target(p, v, req.Overwrite >= 0)
	if req.Overwrite < 0 {
		return
	}
	if req.Overwrite >= len(v.Disks) {
		p.refuse("disk-missing", "'holdfast vm list --json' lists the disks", "VM %q has %d disks, numbered from 0; there is no disk %d", v.Name, len(v.Disks), req.Overwrite)
		return
	}
	n.overDisk(p, v, &d, req.Overwrite)
}

// overDisk judges a disk that takes the place of another.
func (n *Planner) overDisk(p *Plan, v *VM, d *holdfast.Disk, no int) {
	old := v.Disks[no]
	p.Make.Overwrite, p.Replaces = old.ID, old.Name
	p.Lost = append(p.Lost, fmt.Sprintf("disk %d (%s, %d bytes) of VM %q on host %s as it is now; its other disks stay", no, old.Name, old.Size, v.Name, n.Host.Name))
	if old.Controller == "ide" && d.LogicalSector == 4096 {
		p.refuse("ide-4k", "add it as a new disk with --new", "a disk with sectors of 4096 bytes cannot be connected to an IDE controller")
	}
	if old.Size != d.Size {
		p.warn("size", "", "the disk that is replaced has %d bytes, the restored one %d", old.Size, d.Size)
	}
	if boots(v.Generation, &old) && p.Source.Manifest.VM.Generation != v.Generation {
		p.warn("boot", "", "the set's VM is of generation %d, VM %q of generation %d: it may not boot from this disk", p.Source.Manifest.VM.Generation, v.Name, v.Generation)
	}
	p.info("reads-whole", "the next backup of the VM reads this disk whole and sends what differs")
}

// boots tells whether a disk is where a VM of the generation boots from.
func boots(generation int, d *holdfast.Disk) bool {
	return d.ControllerNo == 0 && d.Slot == 0 && d.Controller == map[int]string{1: "ide", 2: "scsi"}[generation]
}

// join appends a name to a folder of the host, whatever its system.
func join(dir, name string) string {
	sep := "/"
	if windows(dir) {
		sep = `\`
	}
	return strings.TrimRight(dir, sep) + sep + name
}

func parent(dir string) string {
	sep := "/"
	if windows(dir) {
		sep = `\`
	}
	dir = strings.TrimRight(dir, sep)
	i := strings.LastIndex(dir, sep)
	if i < 0 {
		return dir
	}
	return dir[:max(i, 1)]
}

func windows(dir string) bool {
	return len(dir) > 2 && dir[1] == ':' || strings.HasPrefix(dir, `\\`)
}

func absolute(dir string) bool {
	drive := len(dir) > 2 && dir[1] == ':' && (dir[2] == '\\' || dir[2] == '/')
	return strings.HasPrefix(dir, "/") || drive || strings.HasPrefix(dir, `\\`)
}
