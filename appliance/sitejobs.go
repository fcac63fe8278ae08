package appliance

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/appliance/site"
	"github.com/holdfast-backup/holdfast/catalog"
)

// A siteJob is a job in a site file.
type siteJob struct {
	Pool         string            `json:"pool"`
	VMs          []string          `json:"vms,omitempty"`   // names, or ids where a name is not the only one
	Hosts        []string          `json:"hosts,omitempty"` // all VMs of these
	Match        []string          `json:"match,omitempty"`
	Exclude      []string          `json:"exclude,omitempty"`
	ExcludeDisks []string          `json:"exclude_disks,omitempty"`
	Type         string            `json:"type,omitempty"`
	Schedules    []string          `json:"schedules,omitempty"`
	Zone         string            `json:"zone,omitempty"`
	Options      map[string]string `json:"options,omitempty"` // that are not the default
	Disabled     bool              `json:"disabled,omitempty"`
}

type jobPart struct{ s *Service }

func (jobPart) Section() string { return "jobs" }
func (jobPart) Remark() string {
	return "Jobs for whole hosts, or for patterns of names (match), can be made before the hosts' agents are there; vms must be known already."
}

// usual are the options as they are where nobody said anything.
func usual() map[string]string { return job.Tuning{}.Shown() }

func (p jobPart) Current(ctx context.Context) (map[string]site.Item, error) {
	jobs, err := p.s.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]site.Item{}
	for _, j := range jobs {
		x := siteJob{Pool: j.Pool, Hosts: j.Hosts, Match: j.Match, Exclude: j.Exclude, ExcludeDisks: j.ExcludeDisks, Type: j.Type, Schedules: j.Schedules, Zone: j.Zone, Disabled: !j.Enabled, Options: map[string]string{}}
		for _, v := range j.VMs {
			x.VMs = append(x.VMs, v.ID)
		}
		for k, v := range j.Options {
			x.Options[k] = v
		}
		if out[j.Name], err = p.encode(x); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// encode brings a job into its one form: without defaults, lists sorted where order means nothing, VMs by name where that is enough.
func (p jobPart) encode(x siteJob) (site.Item, error) {
	vms, err := p.s.vmRecords()
	if err != nil {
		return nil, err
	}
	for i, text := range x.VMs {
		x.VMs[i] = vmName(vms, text)
	}
	for _, l := range []*[]string{&x.VMs, &x.Hosts, &x.Match, &x.Exclude, &x.ExcludeDisks} {
		*l = slices.Compact(slices.Sorted(slices.Values(*l)))
	}
	if x.Type == job.TypeIncremental {
		x.Type = ""
	}
	if x.Zone == "UTC" {
		x.Zone = ""
	}
	for k, v := range usual() {
		if x.Options[k] == v {
			delete(x.Options, k)
		}
	}
	return site.Encode(x)
}

// vmName names a VM, given by name or id, by its name where no other has it.
func vmName(vms []catalog.VM, text string) string {
	var is []catalog.VM
	for _, v := range vms {
		if v.ID.String() == strings.ToLower(text) {
			is = []catalog.VM{v}
			break
		}
		if v.Name == text {
			is = append(is, v)
		}
	}
	if len(is) != 1 {
		return text
	}
	for _, v := range vms {
		if v.Name == is[0].Name && v.ID != is[0].ID {
			return is[0].ID.String()
		}
	}
	return is[0].Name
}

func (p jobPart) read(it site.Item) (x siteJob, err error) {
	if o, ok := it["options"].(map[string]any); ok { // numbers and on or off may be written as YAML has them
		for k, v := range o {
			switch v := v.(type) {
			case bool:
				o[k] = map[bool]string{true: "on", false: "off"}[v]
			case float64:
				o[k] = strconv.FormatFloat(v, 'f', -1, 64)
			}
		}
	}
	return x, site.Decode(it, &x)
}

func (p jobPart) Normal(name string, it site.Item) (site.Item, error) {
	x, err := p.read(it)
	if err != nil {
		return nil, err
	}
	if x.Pool == "" || len(x.VMs)+len(x.Hosts)+len(x.Match) == 0 {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "a job needs a pool, and vms, hosts or match")
	}
	if strings.ContainsAny(name, "/\\\x00") || len(name) > 64 {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "a job's name has 1 to 64 characters, without slashes")
	}
	if x.Type != "" && !slices.Contains([]string{job.TypeFull, job.TypeIncremental, job.TypeDifferential}, x.Type) {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "%q is no type of backup", x.Type)
	}
	for i, text := range x.Schedules {
		t, err := job.ParseTimed(text)
		if err != nil {
			return nil, err
		}
		x.Schedules[i] = t.String()
	}
	if _, err := job.Zone(x.Zone); err != nil {
		return nil, err
	}
	var o job.Tuning
	for k, v := range x.Options {
		if err := setOptions(&o, k, v); err != nil {
			return nil, err
		}
	}
	x.Options = o.Shown()
	return p.encode(x)
}

// manyOptions are options that are given again for each value; they show joined.
var manyOptions = map[string]string{"limit": "; ", "blackout": "; "}

// setOptions sets an option as it shows.
func setOptions(o *job.Tuning, name, value string) error {
	values := []string{value}
	if sep, ok := manyOptions[name]; ok {
		values = strings.Split(value, sep)
	}
	for _, v := range values {
		if err := o.Set(name + "=" + v); err != nil {
			return err
		}
	}
	return nil
}

func (jobPart) Refuse(string, site.Item, site.Item) error { return nil }

func (jobPart) Loss(_ context.Context, _ string, _, now site.Item) (string, error) {
	if now != nil {
		return "", nil
	}
	return "the job is deleted: nothing is backed up by it any more. Its backup sets and runs stay", nil
}

func (p jobPart) Create(ctx context.Context, name string, it site.Item) (site.Made, error) {
	x, err := p.read(it)
	if err != nil {
		return site.Made{}, err
	}
	_, err = p.s.CreateJob(ctx, api.JobSpec{Name: name, Pool: x.Pool, VMs: x.VMs, Hosts: x.Hosts, Match: x.Match, Exclude: x.Exclude, ExcludeDisks: x.ExcludeDisks, Type: x.Type,
		Schedules: x.Schedules, Zone: x.Zone, Options: optionChanges(nil, x.Options), Disabled: x.Disabled})
	return site.Made{}, err
}

// optionChanges writes what leads from some options to others, as the API takes it. What is left out goes back to its default.
func optionChanges(was, now map[string]string) []string {
	var out []string
	for k, usual := range usual() {
		v, ok := now[k]
		if !ok {
			v = usual
		}
		before, ok := was[k]
		if !ok {
			before = usual
		}
		sep, many := manyOptions[k]
		switch {
		case v == before:
		case many:
			out = append(out, k+"=none")
			for part := range strings.SplitSeq(v, sep) {
				if part != "none" {
					out = append(out, k+"="+part)
				}
			}
		default:
			out = append(out, k+"="+v)
		}
	}
	return out
}

func (p jobPart) Change(ctx context.Context, name string, was, now site.Item) error {
	a, err := p.read(was)
	if err != nil {
		return err
	}
	b, err := p.read(now)
	if err != nil {
		return err
	}
	typ, enabled := b.Type, !b.Disabled
	if typ == "" {
		typ = job.TypeIncremental
	}
	c := api.JobChange{Pool: &b.Pool, Hosts: listOf(b.Hosts), Match: listOf(b.Match), Exclude: listOf(b.Exclude), ExcludeDisks: listOf(b.ExcludeDisks), Type: &typ, Options: optionChanges(a.Options, b.Options)}
	if !slices.Equal(a.Schedules, b.Schedules) || a.Zone != b.Zone { // given again, schedules would begin anew
		c.Schedules, c.Zone = listOf(b.Schedules), &b.Zone
	}
	if a.Disabled != b.Disabled {
		c.Enabled = &enabled
	}
	for _, v := range b.VMs {
		if !slices.Contains(a.VMs, v) {
			c.AddVMs = append(c.AddVMs, v)
		}
	}
	for _, v := range a.VMs {
		if !slices.Contains(b.VMs, v) {
			c.RemoveVMs = append(c.RemoveVMs, v)
		}
	}
	_, err = p.s.SetJob(ctx, name, c)
	return err
}

func listOf(l []string) *[]string {
	if l == nil {
		l = []string{}
	}
	return &l
}

func (p jobPart) Delete(ctx context.Context, name string) error {
	_, err := p.s.DeleteJob(ctx, name)
	return err
}
