package job

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // an appliance has every zone, whatever its system has

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/schedule"
	"github.com/holdfast-backup/holdfast/catalog"
)

// A Definition is a job as it was created: what is backed up, where to, when and how. It is kept as the Spec of a catalog.Job.
type Definition struct {
	Enabled   bool            `json:"enabled"`
	Pool      holdfast.PoolID `json:"pool"`
	PoolName  string          `json:"pool_name"` // when it was named
	Type      string          `json:"type"`      // of a run that no schedule gives a type
	Source    Source          `json:"source"`
	Schedules []Timed         `json:"schedules,omitempty"`
	Zone      string          `json:"zone,omitempty"` // "": UTC
	Options   Tuning          `json:"options"`
}

// A Timed is one schedule of a job.
type Timed struct {
	Type string `json:"type,omitempty"` // "": the job's
	Spec string `json:"spec"`           // as schedule.Parse reads it
}

// A Source chooses VMs. What several of its fields choose is chosen once; Exclude wins over all of them.
type Source struct {
	VMs          []VMRef           `json:"vms,omitempty"`
	Hosts        []holdfast.HostID `json:"hosts,omitempty"` // all VMs of these
	Match        []string          `json:"match,omitempty"` // patterns of names, of any host's VMs
	Exclude      []string          `json:"exclude,omitempty"`
	ExcludeDisks []string          `json:"exclude_disks,omitempty"` // ids or patterns of file names, of any VM or as VM:PATTERN
}

// A VMRef is a VM that was named. The id counts; the name is what it was called then.
type VMRef struct {
	ID   holdfast.VMID `json:"id"`
	Name string        `json:"name"`
}

// Bounds of a definition.
const (
	maxSources   = 10000
	maxSchedules = 64
	maxPatterns  = 1000
)

// Types lists the types of backups.
var types = []string{TypeFull, TypeIncremental, TypeDifferential}

// ParseTimed reads a schedule with an optional type before it: "full: weekly 22:00 on sun". Errors are Invalid.
func ParseTimed(text string) (Timed, error) {
	var t Timed
	if head, rest, ok := strings.Cut(text, ":"); ok && slices.Contains(types, strings.ToLower(strings.TrimSpace(head))) {
		t.Type, text = strings.ToLower(strings.TrimSpace(head)), rest
	}
	s, err := schedule.Parse(text)
	if err != nil {
		return t, err
	}
	t.Spec = s.String()
	return t, nil
}

// Preview returns the next n times at which a schedule, as ParseTimed reads it, starts a job, and the zone that it means.
func Preview(text, zone string, now time.Time, n int) (Timed, *time.Location, []time.Time, error) {
	t, err := ParseTimed(text)
	if err != nil {
		return t, nil, nil, err
	}
	spec, err := schedule.Parse(t.Spec)
	if err != nil {
		return t, nil, nil, err
	}
	z, err := Zone(zone)
	if err != nil {
		return t, nil, nil, err
	}
	times := schedule.Preview(spec, now, z, n)
	if times == nil {
		times = []time.Time{}
	}
	return t, z, times, nil
}

// String writes a schedule as ParseTimed reads it.
func (t Timed) String() string {
	if t.Type == "" {
		return t.Spec
	}
	return t.Type + ": " + t.Spec
}

// Location returns the zone of the job's schedules and windows.
func (d Definition) Location() (*time.Location, error) { return Zone(d.Zone) }

// Zone returns the time zone of a name; UTC for none. The zone of the machine ("Local") is not one that a job can keep.
func Zone(name string) (*time.Location, error) {
	if name == "Local" {
		name = "-"
	}
	z, err := time.LoadLocation(name)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, "find time zone", "there is no time zone %q", name).Advise("write it like Europe/Berlin or UTC")
	}
	return z, nil
}

// Check refuses a definition that cannot be kept. The error is Invalid.
func (d Definition) Check() error {
	const op = "check job"
	s := d.Source
	switch {
	case d.Pool.IsZero():
		return holdfast.Errorf(holdfast.Invalid, op, "no pool").Advise("say where the sets go with --pool")
	case len(s.VMs)+len(s.Hosts)+len(s.Match) == 0:
		return holdfast.Errorf(holdfast.Invalid, op, "nothing to back up").Advise("name virtual machines with --vm or --match, or a host with --host H --all")
	case len(s.VMs)+len(s.Hosts) > maxSources || len(s.Match)+len(s.Exclude)+len(s.ExcludeDisks) > maxPatterns:
		return holdfast.Errorf(holdfast.Invalid, op, "the job has too many sources; at most %d, and %d patterns, are allowed", maxSources, maxPatterns)
	case len(d.Schedules) > maxSchedules:
		return holdfast.Errorf(holdfast.Invalid, op, "%d schedules; at most %d are allowed", len(d.Schedules), maxSchedules)
	case !slices.Contains(types, d.Type):
		return holdfast.Errorf(holdfast.Invalid, op, "%q is no type of backup", d.Type).Advise("types are full, incremental and differential")
	}
	for _, p := range slices.Concat(s.Match, s.Exclude, s.ExcludeDisks) {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			return holdfast.Errorf(holdfast.Invalid, op, "%q is no pattern", p).Advise("* stands for any characters, ? for one, [a-z] for one of a range")
		}
	}
	for _, t := range d.Schedules {
		if _, err := schedule.Parse(t.Spec); err != nil {
			return err
		}
	}
	_, err := d.Location()
	return err
}

// ReadDefinition reads the definition of a job's record.
func ReadDefinition(j catalog.Job) (d Definition, err error) {
	if err = json.Unmarshal(j.Spec, &d); err != nil {
		return d, holdfast.Errorf(holdfast.Corrupt, "read job", "%s: %w", j.Name, err)
	}
	return d, nil
}

// A Selection is what a source chooses at a moment.
type Selection struct {
	VMs  []catalog.VM
	Gone []VMRef // named, but no host has them
}

// Select chooses among the VMs that hosts have. Names match as they are written, patterns in any case; a VM is known by its id, so that one
// that was renamed or moved stays chosen.
func (s Source) Select(vms []catalog.VM) Selection {
	var out Selection
	named := map[holdfast.VMID]bool{}
	for _, v := range s.VMs {
		named[v.ID] = true
	}
	there := map[holdfast.VMID]bool{}
	for _, v := range vms {
		there[v.ID] = true
		chosen := named[v.ID] || slices.Contains(s.Hosts, v.Host) || matches(s.Match, v.Name)
		if chosen && !matches(s.Exclude, v.Name) && !slices.Contains(s.Exclude, v.ID.String()) {
			out.VMs = append(out.VMs, v)
		}
	}
	slices.SortFunc(out.VMs, func(a, b catalog.VM) int {
		return strings.Compare(a.Name+"\x00"+a.ID.String(), b.Name+"\x00"+b.ID.String())
	})
	for _, v := range s.VMs {
		if !there[v.ID] {
			out.Gone = append(out.Gone, v)
		}
	}
	return out
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(strings.ToLower(p), strings.ToLower(name))
		return err == nil && ok
	})
}

// SkippedDisks returns the disk ids and patterns that apply to a VM.
func (s Source) SkippedDisks(vm catalog.VM) []string {
	var out []string
	for _, p := range s.ExcludeDisks {
		if of, pattern, ok := strings.Cut(p, ":"); ok {
			if !matches([]string{of}, vm.Name) && of != vm.ID.String() {
				continue
			}
			p = pattern
		}
		out = append(out, p)
	}
	return out
}
