package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// Backup implements api.Service.
func (s *Service) Backup(ctx context.Context, spec api.BackupSpec) (api.Run, error) {
	rec, p, err := s.findPool(ctx, spec.Pool)
	if err == nil {
		err = s.mayWrite(ctx, rec, p)
	}
	if err != nil {
		return api.Run{}, err
	}
	vms, err := s.namedVMs(spec.VMs)
	if errors.Is(err, holdfast.NotExist) { // it may be new
		s.refresh(ctx)
		vms, err = s.namedVMs(spec.VMs)
	}
	if err != nil {
		return api.Run{}, err
	}
	v, err := s.d.jobs.Start(ctx, catalog.RunBackup, job.Spec{Pool: rec.ID, PoolName: rec.Name, Full: spec.Full, Compress: spec.Compression}, vms)
	return s.showRun(v, err)
}

// refreshWait is how long a backup of a VM that nobody knows waits for the hosts to say what they have.
const refreshWait = 2 * time.Second

// refresh asks the hosts what they have and waits for the first answer, not for long.
func (s *Service) refresh(ctx context.Context) {
	changed := s.d.jobs.Changed()
	s.d.jobs.Refresh()
	late, stop := s.d.c.Clock.After(refreshWait)
	defer stop()
	select {
	case <-changed:
	case <-late:
	case <-ctx.Done():
	}
}

// namedVMs returns the VMs that have the names or ids, each once.
func (s *Service) namedVMs(names []string) ([]catalog.VM, error) {
	var vms []catalog.VM
	seen := map[holdfast.VMID]bool{}
	err := s.d.cat.View(func(tx *catalog.Tx) error {
		for _, name := range names {
			vm, err := s.oneVM(tx, name)
			if err != nil {
				return err
			}
			if !seen[vm.ID] {
				seen[vm.ID] = true
				vms = append(vms, vm)
			}
		}
		return nil
	})
	return vms, err
}

// oneVM returns the one VM that has the name or id.
func (s *Service) oneVM(tx *catalog.Tx, name string) (catalog.VM, error) {
	found, err := tx.FindVMs(name)
	if err != nil {
		return catalog.VM{}, advise(err, "'holdfast vm list' shows the virtual machines of every host")
	}
	if len(found) == 1 {
		return found[0], nil
	}
	names, err := s.hostNames(tx)
	if err != nil {
		return catalog.VM{}, err
	}
	list := make([]string, len(found))
	for i, v := range found {
		list[i] = fmt.Sprintf("%s on host %s", v.ID, names[v.Host])
	}
	return catalog.VM{}, holdfast.Errorf(holdfast.Invalid, "find VM", "%d virtual machines are called %q: %s", len(found), name, strings.Join(list, ", ")).
		Advise("name the one you mean by its id")
}

// Runs implements api.Service.
func (s *Service) Runs(_ context.Context, limit int) ([]api.Run, error) {
	vs, err := s.d.jobs.List(limit)
	if err != nil {
		return nil, err
	}
	out := make([]api.Run, 0, len(vs))
	for _, v := range vs {
		r, err := s.showRun(v, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func runID(id string) (holdfast.RunID, error) {
	x, err := holdfast.ParseID(id)
	return holdfast.RunID{ID: x}, advise(err, "'holdfast run list' shows the runs")
}

// Run implements api.Service.
func (s *Service) Run(ctx context.Context, id string, wait time.Duration) (api.Run, error) {
	x, err := runID(id)
	if err != nil {
		return api.Run{}, err
	}
	s.d.jobs.Wait(ctx, x, wait)
	v, err := s.d.jobs.Get(x)
	return s.showRun(v, advise(err, "'holdfast run list' shows the runs"))
}

// CancelRun implements api.Service.
func (s *Service) CancelRun(ctx context.Context, id string) (api.Run, error) {
	x, err := runID(id)
	if err != nil {
		return api.Run{}, err
	}
	if err := s.d.jobs.Cancel(x); err != nil {
		return api.Run{}, err
	}
	return s.Run(ctx, id, 0)
}

// showRun shows a run with names.
func (s *Service) showRun(v job.View, err error) (api.Run, error) {
	if err != nil {
		return api.Run{}, err
	}
	var names map[holdfast.HostID]string
	err = s.d.cat.View(func(tx *catalog.Tx) (err error) {
		names, err = s.hostNames(tx)
		return err
	})
	if err != nil {
		return api.Run{}, err
	}
	r := api.Run{ID: v.ID.String(), Kind: string(v.Kind), State: string(v.State), Pool: v.Spec.PoolName, Created: v.Created, Ended: v.Ended,
		DryRun: v.Spec.DryRun, Result: v.Spec.Result, Error: failure(v.Error), Tasks: make([]api.Task, 0, len(v.Tasks))}
	r.Job, r.Type, r.Cause, r.RetryOf = v.Job, v.Spec.Type, v.Spec.Cause, v.Spec.RetryOf.String()
	for i := range v.Tasks {
		t := &v.Tasks[i]
		x := api.Task{ID: t.ID.String(), VM: t.VMName, VMID: t.VM.String(), Host: names[t.Host], State: string(t.State), Set: t.Set.String(),
			Error: failure(t.Error), Phase: v.Live[t.ID].Phase, Note: v.Live[t.ID].Note}
		x.Started, x.Ended, x.Stage, x.Reason, x.Bottleneck, x.Counts = t.Started, t.Ended, t.Stage, string(t.Reason), t.Bottleneck, counts(t.Stats)
		if x.Note == "" {
			x.Note = t.Note
		}
		if made := v.Spec.Restores[t.VM]; made != nil {
			x.Target = made.Make.Name
		}
		if x.Host == "" && !t.Host.IsZero() {
			x.Host = t.Host.String()
		}
		for _, d := range t.Disks {
			x.Disks = append(x.Disks, api.Progress{Name: d.Name, Reason: string(d.Reason), Unit: v.Live[t.ID].Unit, Sample: d.Sample})
		}
		r.Tasks = append(r.Tasks, x)
	}
	return r, nil
}

func failure(e *catalog.TaskError) *api.Failure {
	if e == nil {
		return nil
	}
	return &api.Failure{Code: e.Kind.Code(), Message: e.Message, Hint: e.Hint}
}

// Sets implements api.Service. A name chooses the virtual machine that has it, or had it when its sets were made; if several do, the error lists them.
func (s *Service) Sets(_ context.Context, f api.SetFilter) ([]api.Set, error) {
	var out []api.Set
	err := s.d.cat.View(func(tx *catalog.Tx) error {
		show, err := s.setShower(tx)
		if err != nil {
			return err
		}
		var cf catalog.SetFilter
		if f.Pool != "" {
			p, err := tx.FindPool(f.Pool)
			if err != nil {
				return advise(err, "'holdfast pool list' shows the pools there are")
			}
			cf.Pool = p.ID
		}
		match, err := s.vmMatcher(tx, f.VM)
		if err != nil {
			return err
		}
		found := f.VM == ""
		for set, err := range tx.Sets(cf) {
			if err != nil {
				return err
			}
			if set.State != catalog.SetDeleting && match(&set.Manifest) {
				found = true
				out = append(out, show(set))
			}
		}
		if err := oneVMOf(f.VM, out); err != nil {
			return err
		}
		if !found {
			if _, err := tx.FindVMs(f.VM); err != nil {
				return advise(err, "'holdfast vm list' shows the virtual machines of every host")
			}
		}
		return nil
	})
	return out, err
}

// oneVMOf refuses sets of several virtual machines that somebody meant with one name.
func oneVMOf(name string, sets []api.Set) error {
	seen := map[string]bool{}
	var list []string
	for _, x := range sets {
		if !seen[x.VMID] {
			seen[x.VMID] = true
			list = append(list, fmt.Sprintf("%s of host %s", x.VMID, x.Host))
		}
	}
	if name == "" || len(list) < 2 {
		return nil
	}
	return holdfast.Errorf(holdfast.Invalid, "list sets", "there are sets of %d virtual machines called %q: %s", len(list), name, strings.Join(list, ", ")).
		Advise("name the one you mean by its id")
}

// vmMatcher returns whether a set is of the VM that somebody named.
func (s *Service) vmMatcher(tx *catalog.Tx, name string) (func(*holdfast.Manifest) bool, error) {
	if name == "" {
		return func(*holdfast.Manifest) bool { return true }, nil
	}
	ids := map[holdfast.VMID]bool{}
	if id, err := holdfast.ParseID(name); err == nil {
		ids[holdfast.VMID{ID: id}] = true
	}
	now, err := tx.FindVMs(name)
	if err != nil && !errors.Is(err, holdfast.NotExist) {
		return nil, err
	}
	for _, v := range now {
		ids[v.ID] = true
	}
	return func(m *holdfast.Manifest) bool { return ids[m.VM.ID] || m.VM.Name == name }, nil
}

// setShower returns what shows sets with names of pools.
func (s *Service) setShower(tx *catalog.Tx) (func(catalog.Set) api.Set, error) {
	names := map[holdfast.PoolID]string{}
	for p := (catalog.Page{Limit: catalog.MaxPage}); ; {
		ps, next, err := tx.Pools(p)
		if err != nil {
			return nil, err
		}
		for _, x := range ps {
			names[x.ID] = x.Name
		}
		if next == "" {
			break
		}
		p.Cursor = next
	}
	holds, err := holdsOf(tx)
	if err != nil {
		return nil, err
	}
	return func(x catalog.Set) api.Set {
		m := &x.Manifest
		out := api.Set{ID: m.ID.String(), VM: m.VM.Name, VMID: m.VM.ID.String(), Host: m.HostName, Pool: names[x.Pool], Time: m.Created, Kind: string(m.Kind),
			Hold: holds[m.ID.String()], Verified: x.VerifiedAt, Damaged: x.State == catalog.SetDamaged, Parent: m.Parent.String(), Run: m.Run.String(), Consistency: string(m.Consistency), Note: m.Note, Counts: counts(m.Stats), Disks: []api.SetDisk{}}
		for _, d := range m.Disks {
			out.Disks = append(out.Disks, api.SetDisk{ID: d.ID.String(), Name: d.Name, Size: d.Size, Reason: string(d.Reason), Counts: counts(d.Stats)})
		}
		return out
	}, nil
}

func counts(s holdfast.Stats) api.Counts {
	return api.Counts{Logical: s.Logical, Read: s.Read, Sent: s.Sent, Stored: s.Stored, Changed: s.Changed}
}

// findSet returns the set with the id, or with the one id that begins so.
func (s *Service) findSet(id string) (catalog.Set, error) {
	const op = "find set"
	const hint = "'holdfast set list' shows the sets there are"
	var found []catalog.Set
	err := s.d.cat.View(func(tx *catalog.Tx) error {
		if x, err := holdfast.ParseID(id); err == nil {
			set, err := tx.Set(holdfast.SetID{ID: x})
			found = append(found, set)
			return advise(err, hint)
		}
		if len(id) < 8 {
			return holdfast.Errorf(holdfast.Invalid, op, "%q is no set's id, nor the first 8 or more characters of one", id).Advise(hint)
		}
		for set, err := range tx.Sets(catalog.SetFilter{}) {
			if err != nil {
				return err
			}
			if strings.HasPrefix(set.Manifest.ID.String(), strings.ToLower(id)) {
				found = append(found, set)
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return catalog.Set{}, err
	case len(found) == 0:
		return catalog.Set{}, holdfast.Errorf(holdfast.NotExist, op, "there is no set %s", id).Advise(hint)
	case len(found) > 1:
		return catalog.Set{}, holdfast.Errorf(holdfast.Invalid, op, "%d sets begin with %s: %s, %s, …", len(found), id, found[0].Manifest.ID, found[1].Manifest.ID).
			Advise("write more of the id")
	case found[0].State == catalog.SetDeleting:
		return catalog.Set{}, holdfast.Errorf(holdfast.NotExist, op, "set %s is being deleted", id).Advise(hint)
	}
	return found[0], nil
}

// Set implements api.Service.
func (s *Service) Set(_ context.Context, id string) (api.Set, error) {
	set, err := s.findSet(id)
	if err != nil {
		return api.Set{}, err
	}
	return s.showSet(set)
}

func (s *Service) showSet(set catalog.Set) (out api.Set, err error) {
	err = s.d.cat.View(func(tx *catalog.Tx) error {
		show, err := s.setShower(tx)
		if err == nil {
			out = show(set)
		}
		return err
	})
	return out, err
}

// DeleteSet implements api.Service.
func (s *Service) DeleteSet(ctx context.Context, id string) (api.Set, error) {
	set, err := s.findSet(id)
	if err != nil {
		return api.Set{}, err
	}
	out, err := s.showSet(set)
	if err == nil {
		err = s.mayDelete(set.Manifest.ID)
	}
	if err != nil {
		return out, err
	}
	p, err := s.d.shelf.Pool(ctx, set.Pool)
	if err != nil {
		return out, err
	}
	s.d.room.make()
	// Not stopped half-way because the one who asked has gone.
	if err := ingest.DeleteSet(context.WithoutCancel(ctx), s.d.cat, set.Pool, p, set.Manifest.ID); err != nil {
		return out, err
	}
	s.d.events.Emit(holdfast.Event{Type: holdfast.EventSetDeleted, Text: "the point in time " + out.Time.Format(time.RFC3339) + " of " + out.VM + " was deleted",
		Fields: map[string]string{"set": out.ID, "vm": out.VM, "pool": out.Pool}})
	return out, nil
}

// ExportDisk implements api.Service.
func (s *Service) ExportDisk(ctx context.Context, id string, disk int) (api.Export, error) {
	set, err := s.findSet(id)
	if err != nil {
		return nil, err
	}
	if disk < 0 || disk >= len(set.Manifest.Disks) {
		return nil, holdfast.Errorf(holdfast.NotExist, "export", "set %s has %d disks, numbered from 0; there is no disk %d", set.Manifest.ID, len(set.Manifest.Disks), disk).
			Advise("'holdfast set show %s' lists its disks", set.Manifest.ID)
	}
	p, err := s.d.shelf.Pool(ctx, set.Pool)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, w io.Writer) error {
		n := &counter{w: w}
		err := ingest.ExportDisk(ctx, n, p, set.Manifest.ID, set.Manifest.Disks[disk].ID, nil)
		if err != nil && n.n == 0 { // it failed before the stream began
			err = errors.Join(err, wire.NewStreamWriter(w).Fail(err))
		}
		return err
	}, nil
}

// counter counts what passes.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
