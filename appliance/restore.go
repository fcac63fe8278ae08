package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/appliance/restore"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/pools"
)

// maxCounted bounds the refs of a disk that preflight reads to learn how much data it has: a glance, not a scan.
const maxCounted = 1 << 20

// Restore implements api.Service. Nothing is written unless every plan is ready: a run that would do half of what was asked for is not begun.
func (s *Service) Restore(ctx context.Context, spec api.RestoreSpec) (api.Run, error) {
	return s.restore(ctx, spec, "")
}

func (s *Service) restore(ctx context.Context, spec api.RestoreSpec, later string) (api.Run, error) {
	host, plans, err := s.planRestore(ctx, spec)
	if err != nil {
		return api.Run{}, err
	}
	js := job.Spec{Restores: map[holdfast.VMID]*job.Restore{}, Later: later}
	if js.Options, err = restoreTuning(&spec); err != nil {
		return api.Run{}, err
	}
	if err := s.checkNetwork(js.Options.Network); err != nil {
		return api.Run{}, err
	}
	var vms []catalog.VM
	for i := range plans {
		p := &plans[i]
		if err := p.First(); err != nil {
			return api.Run{}, err
		}
		if p.Verdict == restore.Skipped {
			continue
		}
		m := &p.Source.Manifest
		js.Restores[m.VM.ID] = &job.Restore{Pool: p.Source.Pool, Set: p.Source.Set, Disk: p.Disk, Make: p.Make}
		js.Pool, js.PoolName = p.Source.Pool, p.Source.PoolName
		vms = append(vms, catalog.VM{ID: m.VM.ID, Name: m.VM.Name, Host: host.ID})
	}
	if len(vms) == 0 {
		return s.failedRestore(ctx, js, plans[0].Source.Manifest.VM.Name, holdfast.Errorf(holdfast.Exist, "restore",
			"every VM is there already, and those are to be left as they are: nothing was restored").Advise("restore with --existing suffix or --existing overwrite"))
	}
	s.d.room.make()
	v, err := s.d.jobs.Start(ctx, catalog.RunRestore, js, vms)
	return s.showRun(v, err)
}

// restoreTuning reads the options of a restore: those of a job that mean something for one.
func restoreTuning(spec *api.RestoreSpec) (job.Tuning, error) {
	o := job.Tuning{VMs: spec.ParallelVMs, Disks: spec.ParallelDisks}
	for _, text := range spec.Options {
		name, _, _ := strings.Cut(text, "=")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "vms", "disks", "reconnect", "buffer", "limit", "precondition", "pre-script", "post-script", "script-timeout", "priority", "network":
		default:
			return o, holdfast.Errorf(holdfast.Invalid, "restore", "%q is no option of a restore", name).
				Advise("options are vms, disks, reconnect, buffer, limit, precondition, pre-script, post-script, script-timeout, priority, network")
		}
		if err := o.Set(text); err != nil {
			return o, err
		}
	}
	return o, nil
}

// failedRestore records a restore that could not be begun, so that it is found among the runs and told as an event.
func (s *Service) failedRestore(ctx context.Context, js job.Spec, name string, why error) (api.Run, error) {
	v, err := s.d.jobs.Work(ctx, catalog.RunRestore, job.Spec{Later: js.Later}, name, func(context.Context, *job.Work) (any, error) { return nil, why })
	if err != nil {
		return api.Run{}, errors.Join(why, err)
	}
	s.d.jobs.Wait(ctx, v.ID, time.Minute)
	v, err = s.d.jobs.Get(v.ID)
	return s.showRun(v, err)
}

// Preflight implements api.Service.
func (s *Service) Preflight(ctx context.Context, spec api.RestoreSpec) (api.Preflight, error) {
	host, plans, err := s.planRestore(ctx, spec)
	if err != nil {
		return api.Preflight{}, err
	}
	out := api.Preflight{Verdict: string(restore.Skipped)}
	worst := []restore.Verdict{restore.Skipped, restore.Ready, restore.Warned, restore.Refused}
	for i := range plans {
		p := &plans[i]
		if slices.Index(worst, p.Verdict) > slices.Index(worst, restore.Verdict(out.Verdict)) {
			out.Verdict = string(p.Verdict)
		}
		out.Plans = append(out.Plans, showPlan(p, host.Name))
	}
	return out, nil
}

func showPlan(p *restore.Plan, host string) api.RestorePlan {
	m := &p.Source.Manifest
	x := api.RestorePlan{Set: p.Source.Set.String(), VM: m.VM.Name, Time: m.Created, Pool: p.Source.PoolName, Host: host, Target: p.Target, Dir: p.Make.Dir,
		Adapters: p.Make.Adapters, KeepsID: p.Make.KeepID || !p.Make.Replace.IsZero(), Replaces: p.Replaces, Lost: p.Lost, Verdict: string(p.Verdict), Findings: []api.Finding{}}
	for id, dir := range p.Make.DiskDirs {
		if x.DiskDirs == nil {
			x.DiskDirs = map[string]string{}
		}
		x.DiskDirs[m.Disk(id).Name] = dir
	}
	for _, f := range p.Findings {
		x.Findings = append(x.Findings, api.Finding{Code: f.Code, Level: string(f.Level), Text: f.Text, Advice: f.Advice})
	}
	return x
}

// planRestore asks the host what it has, and plans; then it asks what the folders of the plans are like, and plans with that.
func (s *Service) planRestore(ctx context.Context, spec api.RestoreSpec) (catalog.Host, []restore.Plan, error) {
	req, err := requestOf(&spec)
	if err != nil {
		return catalog.Host{}, nil, err
	}
	host, err := s.hostRecord(spec.Host)
	if err != nil {
		return host, nil, err
	}
	sources, err := s.sources(ctx, &spec, host.ID)
	if err != nil {
		return host, nil, err
	}
	req.Many = len(sources) > 1
	if req.Many && (req.Name != "" || req.Disk != nil) {
		return host, nil, holdfast.Errorf(holdfast.Invalid, "restore", "%d VMs cannot have one name, nor become one disk", len(sources)).
			Advise("use --prefix or --suffix for several VMs")
	}
	facts, err := s.hostFacts(ctx, host, nil)
	if err != nil {
		return host, nil, err
	}
	plans := planAll(req, facts, s.now(), sources)
	var dirs []string
	for i := range plans {
		for _, dir := range plans[i].Dirs() {
			if !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	if facts.Offline != "" || len(dirs) == 0 {
		return host, plans, nil
	}
	if facts, err = s.hostFacts(ctx, host, dirs); err != nil {
		return host, nil, err
	}
	return host, planAll(req, facts, s.now(), sources), nil
}

func planAll(req restore.Request, host restore.Host, now time.Time, sources []restore.Source) []restore.Plan {
	n := &restore.Planner{Request: req, Host: host, Now: now}
	plans := make([]restore.Plan, 0, len(sources))
	for _, src := range sources {
		plans = append(plans, n.Plan(src))
	}
	return plans
}

// requestOf reads what somebody wants, and refuses what contradicts itself.
func requestOf(spec *api.RestoreSpec) (restore.Request, error) {
	const op = "restore"
	req := restore.Request{Original: spec.Original, Dir: spec.Dir, Name: spec.Name, Prefix: spec.Prefix, Suffix: spec.Suffix, DiskDirs: spec.DiskDirs,
		Switches: spec.Switches, AddSwitches: spec.AddSwitches, NoNetwork: spec.NoNetwork, Existing: restore.Existing(spec.Existing),
		Shutdown: spec.Shutdown, Start: spec.Start}
	switch {
	case spec.Disk == nil && spec.Original == (spec.Dir != ""):
		return req, holdfast.Errorf(holdfast.Invalid, op, "a VM is restored either to its original place or to a folder").Advise("give one of --original and --to DIR")
	case spec.Disk != nil && (spec.Original || spec.Dir != "" || spec.Name+spec.Prefix+spec.Suffix != ""):
		return req, holdfast.Errorf(holdfast.Invalid, op, "a disk goes to a VM that is there, and makes none").Advise("leave out place and name")
	case spec.Name != "" && spec.Prefix+spec.Suffix != "":
		return req, holdfast.Errorf(holdfast.Invalid, op, "a name, and a prefix or suffix as well").Advise("give either --name or --prefix and --suffix")
	case !slices.Contains([]string{"", "suffix", "overwrite", "skip"}, spec.Existing):
		return req, holdfast.Errorf(holdfast.Invalid, op, "%q is nothing to do with a VM that is there", spec.Existing).Advise("use suffix, overwrite or skip")
	}
	if d := spec.Disk; d != nil {
		req.Disk = &restore.Disk{No: d.No, VM: d.VM, Overwrite: -1, Dir: d.Dir}
		if d.Overwrite != nil {
			req.Disk.Overwrite = *d.Overwrite
		}
	}
	return req, nil
}

// hostFacts is the host as it is now. That it is offline is one of the facts.
func (s *Service) hostFacts(ctx context.Context, rec catalog.Host, dirs []string) (restore.Host, error) {
	h := restore.Host{ID: rec.ID, Name: rec.Name}
	lab, err := s.labels()
	if err != nil {
		return h, err
	}
	h.Protected = lab.host(rec.ID)
	h.UnderWay.Names, h.UnderWay.VMs, h.UnderWay.Dirs = s.d.jobs.Restoring(rec.ID)
	inv, err := s.d.survey(ctx, rec.ID, dirs)
	switch {
	case errors.Is(err, holdfast.Offline):
		h.Offline = err.Error()
		return h, nil
	case err != nil:
		return h, err
	}
	h.VMVersion, h.Switches = inv.VMVersion, inv.Switches
	for _, v := range inv.VMs {
		h.VMs = append(h.VMs, restore.VM{VM: v, Protected: lab.vm(v.ID)})
	}
	if dirs != nil {
		h.Folders = folderMap(inv.Survey.Folders)
	}
	return h, nil
}

// sources finds the sets that are to be restored, and the best copy of each.
func (s *Service) sources(ctx context.Context, spec *api.RestoreSpec, target holdfast.HostID) ([]restore.Source, error) {
	const op = "choose sets"
	ids := slices.Clone(spec.Sets)
	if spec.Set != "" {
		ids = append([]string{spec.Set}, ids...)
	}
	if (len(ids) == 0) == (len(spec.VMs) == 0) {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "name either sets or virtual machines").Advise("'holdfast set list' shows the sets there are")
	}
	if len(ids) > 0 && !spec.Before.IsZero() {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "a set has its point in time").Advise("name the VM with --vm to choose by time")
	}
	var groups [][]catalog.Set // copies to choose from, of each VM
	for _, id := range ids {
		set, err := s.findSet(id)
		if err != nil {
			return nil, err
		}
		all, err := s.setsOf(set.Manifest.VM.ID.String())
		if err != nil {
			return nil, err
		}
		same := slices.DeleteFunc(all, func(x catalog.Set) bool {
			return !x.Manifest.Created.Equal(set.Manifest.Created) || x.Manifest.VM.ID != set.Manifest.VM.ID
		})
		groups = append(groups, same)
	}
	for _, name := range spec.VMs {
		all, err := s.setsOf(name)
		if err != nil {
			return nil, err
		}
		groups = append(groups, slices.DeleteFunc(all, func(x catalog.Set) bool { return !spec.Before.IsZero() && x.Manifest.Created.After(spec.Before) }))
	}
	var out []restore.Source
	for i, sets := range groups {
		src, err := s.choose(ctx, spec, sets, target)
		if err != nil {
			name := append(slices.Clone(ids), spec.VMs...)[i]
			return nil, holdfast.Errorf(holdfast.KindOf(err), op, "%s: %w", name, err)
		}
		out = append(out, src)
	}
	return out, nil
}

// setsOf returns the sets of the one VM that somebody named.
func (s *Service) setsOf(name string) ([]catalog.Set, error) {
	var out []catalog.Set
	err := s.d.cat.View(func(tx *catalog.Tx) error {
		match, err := s.vmMatcher(tx, name)
		if err != nil {
			return err
		}
		vms := map[holdfast.VMID]string{}
		for set, err := range tx.Sets(catalog.SetFilter{NewestFirst: true}) {
			if err != nil {
				return err
			}
			if set.State != catalog.SetDeleting && match(&set.Manifest) {
				out = append(out, set)
				vms[set.Manifest.VM.ID] = set.Manifest.HostName
			}
		}
		switch len(vms) {
		case 0:
			return holdfast.Errorf(holdfast.NotExist, "find sets", "there is no set of a virtual machine %q", name).Advise("'holdfast set list' shows the sets there are")
		case 1:
			return nil
		}
		list := ""
		for id, host := range vms {
			list += fmt.Sprintf(" %s of host %s", id, host)
		}
		return holdfast.Errorf(holdfast.Invalid, "find sets", "there are sets of %d virtual machines called %q:%s", len(vms), name, list).Advise("name the one you mean by its id")
	})
	return out, err
}

// choose takes the best of the copies, and tells what the appliance knows about it.
func (s *Service) choose(ctx context.Context, spec *api.RestoreSpec, sets []catalog.Set, target holdfast.HostID) (restore.Source, error) {
	var copies []restore.Copy
	recs, err := s.poolRecords()
	if err != nil {
		return restore.Source{}, err
	}
	names := map[holdfast.PoolID]string{}
	for _, p := range recs {
		names[p.ID] = p.Name
	}
	open := map[holdfast.PoolID]pools.Pool{}
	for _, x := range sets {
		if spec.Pool != "" && spec.Pool != names[x.Pool] && spec.Pool != x.Pool.String() {
			continue
		}
		c := restore.Copy{Created: x.Manifest.Created, Pool: names[x.Pool], Damaged: x.State == catalog.SetDamaged, Verified: x.State == catalog.SetVerified,
			Source: restore.Source{Set: x.Manifest.ID, Pool: x.Pool, PoolName: names[x.Pool], Manifest: x.Manifest, Damaged: x.State == catalog.SetDamaged}}
		p, err := s.d.shelf.Pool(ctx, x.Pool)
		if err != nil {
			c.Source.Problem = err.Error()
		}
		open[x.Pool] = p
		copies = append(copies, c)
	}
	src, ok := restore.Best(copies)
	if !ok {
		return src, holdfast.Errorf(holdfast.NotExist, "", "there is no such point in time").Advise("'holdfast set list' shows the points there are, and their pools")
	}
	err = s.d.cat.View(func(tx *catalog.Tx) error {
		vm, err := tx.VM(src.Manifest.VM.ID)
		if errors.Is(err, holdfast.NotExist) || err == nil && vm.Host == target {
			return nil
		}
		if err != nil {
			return err
		}
		h, err := tx.Host(vm.Host)
		src.Elsewhere = h.Name
		return err
	})
	if src.Problem == "" {
		src.Data = s.dataOf(ctx, open[src.Pool], &src.Manifest)
	}
	return src, err
}

// dataOf counts the bytes of data of a set's disks, where that is quickly done.
func (s *Service) dataOf(ctx context.Context, p pools.Pool, m *holdfast.Manifest) map[holdfast.DiskID]int64 {
	set, err := p.Open(ctx, m.ID)
	if err != nil {
		return nil // the restore itself will tell
	}
	defer set.Close()
	out := map[holdfast.DiskID]int64{}
	left := maxCounted
	for _, d := range m.Disks {
		var n int64
		for r, err := range set.Map(ctx, d.ID) {
			if left--; err != nil || left < 0 {
				n = 0
				break
			}
			if !r.Digest.IsZero() {
				n += r.Len
			}
		}
		out[d.ID] = n
	}
	return out
}
