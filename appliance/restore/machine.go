package restore

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// Places of an IDE machine.
const (
	ideControllers = 2
	ideSlots       = 2
	scsiPlaces     = 4
	scsiSlots      = 64
)

// machine judges whether the host can run the VM: versions, generations and controllers.
func (n *Planner) machine(p *Plan) {
	m := &p.Source.Manifest
	if newer(m.VM.Version, n.Host.VMVersion) {
		p.refuse("version", "restore to a host of the same version or a later one", "the VM has configuration version %s; host %s runs VMs up to %s",
			m.VM.Version, n.Host.Name, n.Host.VMVersion)
	}
	if m.VM.Generation != 1 && m.VM.Generation != 2 {
		p.refuse("generation", "export its disks with 'holdfast restore export'", "there is no generation %d of VMs", m.VM.Generation)
		return
	}
	if len(m.Disks) == 0 {
		p.warn("no-disks", "", "the set has no disks")
		return
	}
	controller := map[int]string{1: "ide", 2: "scsi"}[m.VM.Generation]
	if !slices.ContainsFunc(m.Disks, func(d holdfast.Disk) bool { return d.Controller == controller }) {
		code, text := "boot-ide", "a VM of generation 1 boots from an IDE controller only, and the set has no disk on one"
		if m.VM.Generation == 2 {
			code, text = "boot-scsi", "a VM of generation 2 boots from a SCSI controller only, and the set has no disk on one"
		}
		p.refuse(code, "restore its disks to a VM of the right kind with 'holdfast restore disk'", "%s", text)
	}
	places := map[string]bool{}
	for _, d := range m.Disks {
		at := d.Controller + " " + strconv.Itoa(d.ControllerNo) + ":" + strconv.Itoa(d.Slot)
		switch {
		case d.Controller == "ide" && m.VM.Generation == 2:
			p.refuse("ide-gen2", "restore its disks with 'holdfast restore disk'", "disk %q is on an IDE controller, which a VM of generation 2 does not have", d.Name)
		case d.Controller == "ide" && d.LogicalSector == 4096:
			p.refuse("ide-4k", "restore the disk with 'holdfast restore disk --new'", "disk %q has sectors of 4096 bytes and cannot be connected to an IDE controller", d.Name)
		case d.Controller == "ide" && (d.ControllerNo >= ideControllers || d.Slot >= ideSlots), d.ControllerNo >= scsiPlaces || d.Slot >= scsiSlots || d.ControllerNo < 0 || d.Slot < 0:
			p.refuse("ide-slot", "restore the disk with 'holdfast restore disk --new'", "there is no place %s for disk %q", at, d.Name)
		case places[at]:
			p.refuse("ide-slot", "restore one of them with 'holdfast restore disk --new'", "two disks are at %s", at)
		}
		places[at] = true
	}
}

// newer compares versions like "9.0", "10.0" and "lab-1" by their numbers. What has none is not newer.
func newer(a, b string) bool {
	x, y := numbers(a), numbers(b)
	if len(x) == 0 || len(y) == 0 {
		return false
	}
	return slices.Compare(x, y) > 0
}

func numbers(v string) []int {
	var out []int
	for part := range strings.FieldsFuncSeq(v, func(r rune) bool { return r < '0' || r > '9' }) {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil
		}
		out = append(out, n)
	}
	for len(out) > 0 && out[len(out)-1] == 0 { // 9 is 9.0
		out = out[:len(out)-1]
	}
	return out
}

// folders judges where the files go: whether they can be made there, and whether there is room for those of the whole run.
func (n *Planner) folders(p *Plan) {
	if n.Host.Folders == nil {
		return
	}
	if len(p.Make.Dir) > 0 && p.Make.Replace.IsZero() && p.Make.Into.IsZero() && n.Host.UnderWay.Dirs[p.Make.Dir] {
		p.refuse("under-way", "choose another folder, or wait for that restore", "another restore puts files into %s", p.Make.Dir)
	}
	for _, dir := range p.Dirs() {
		f, asked := n.Host.Folders[dir]
		switch {
		case !asked || !absolute(dir): // said already
		case f.Problem != "":
			p.refuse("folder", "choose another folder, or let the agent write there", "no files can be made in %s: %s", dir, f.Problem)
		case p.Make.Replace.IsZero() && p.Make.Into.IsZero():
			n.present(p, dir, f.Files)
		}
	}
	short := map[string]bool{}
	for i := range p.Source.Manifest.Disks {
		d := &p.Source.Manifest.Disks[i]
		if !p.Disk.IsZero() && d.ID != p.Disk {
			continue
		}
		dir := p.Make.Dir
		if own := p.Make.DiskDirs[d.ID]; own != "" {
			dir = own
		}
		f, asked := n.Host.Folders[dir]
		if !asked || f.Problem != "" {
			continue
		}
		if f.Free < 0 {
			p.info("space-unknown", "how much is free in %s is not known", dir)
			continue
		}
		sure := p.Source.Data[d.ID]
		if d.Subformat == "fixed" {
			sure = d.Size
		}
		n.need[f.Volume] += sure
		n.most[f.Volume] += d.Size
		if short[f.Volume] {
			continue
		}
		switch {
		case n.need[f.Volume] > f.Free:
			short[f.Volume] = true
			p.refuse("space", "make room, or put disks elsewhere with --to or --disk-dir", "%d bytes are needed in %s, and %d are free", n.need[f.Volume], dir, f.Free)
		case n.most[f.Volume] > f.Free:
			short[f.Volume] = true
			p.warn("space-tight", "", "the disks may grow to %d bytes in %s, and %d are free", n.most[f.Volume], dir, f.Free)
		}
	}
}

// present refuses to put disks where files of their names are.
func (n *Planner) present(p *Plan, dir string, files []string) {
	for i := range p.Source.Manifest.Disks {
		d := &p.Source.Manifest.Disks[i]
		if own := p.Make.DiskDirs[d.ID]; own != "" && own != dir || own == "" && dir != p.Make.Dir {
			continue
		}
		name := strings.TrimSuffix(d.Name, path.Ext(d.Name)) + ".vhdx"
		if slices.ContainsFunc(files, func(f string) bool { return strings.EqualFold(f, name) }) {
			p.refuse("files-present", "choose an empty folder", "%s is in %s already", name, dir)
		}
	}
}
