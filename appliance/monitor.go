package appliance

import (
	"context"
	"strings"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
)

// Monitor implements api.Monitors.
func (s *Service) Monitor(ctx context.Context) (api.Monitor, error) {
	m := api.Monitor{Time: s.now(), Version: s.d.c.Version, Expires: s.d.auth.Expires(), Pools: []api.MonitorPool{}, Hosts: []api.MonitorHost{},
		VMs: []api.MonitorVM{}, Jobs: []api.MonitorJob{}, Alarms: []api.MonitorAlarm{}}
	st, err := s.Status(ctx)
	if err != nil {
		return m, err
	}
	m.Running = len(st.Running)
	if err := s.d.cat.Failed(); err != nil {
		m.Failed = err.Error()
	}
	n, err := s.NotifyStatus(ctx)
	if err != nil {
		return m, err
	}
	m.Targets = n.Targets
	damaged := map[string]bool{}
	for _, a := range n.Alarms {
		m.Alarms = append(m.Alarms, api.MonitorAlarm{Key: a.Key, Type: string(a.Type), Severity: a.Severity.String(), Text: a.Text, Raised: a.Raised})
		if id, ok := strings.CutPrefix(a.Key, poolAlarms); ok && strings.HasSuffix(id, "/damage") {
			damaged[strings.TrimSuffix(id, "/damage")] = true
		}
	}
	for _, h := range st.Hosts {
		m.Hosts = append(m.Hosts, api.MonitorHost{Name: h.Name, State: h.State, Seen: h.Seen, Agent: h.Agent})
	}
	if err := s.monitorPools(&m, st.Pools, damaged); err != nil {
		return m, err
	}
	if err := s.monitorVMs(ctx, &m); err != nil {
		return m, err
	}
	jobs, err := s.Jobs(ctx)
	for _, j := range jobs {
		m.Jobs = append(m.Jobs, api.MonitorJob{Name: j.Name, Enabled: j.Enabled, State: j.State, LastResult: j.LastResult, LastEnded: j.LastEnded, LastGood: j.LastGood, Next: j.Next, LastBegan: j.LastBegan, Totals: j.Totals})
	}
	return m, err
}

func (s *Service) monitorPools(m *api.Monitor, shown []api.Pool, damaged map[string]bool) error {
	recs, err := s.poolRecords()
	if err != nil {
		return err
	}
	work := map[string]map[string]lastWork{}
	err = s.d.cat.View(func(tx *catalog.Tx) error {
		for _, rec := range recs {
			w, err := workOf(tx, rec.ID)
			if err != nil {
				return err
			}
			work[rec.ID.String()] = w
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, p := range shown {
		v, c := work[p.ID][string(catalog.RunVerify)], work[p.ID][string(catalog.RunCollect)]
		x := api.MonitorPool{Name: p.Name, Kind: p.Kind, State: p.State, Error: p.Error, Maintenance: p.Maintenance, Damaged: damaged[p.ID], Filled: p.Filled, Ratio: p.Ratio,
			Created: p.Created, Verify: api.MonitorWork{Started: v.Started, Done: v.Done}, Verified: api.MonitorWork{Started: v.Good, Done: v.Done}, DamagedChunks: v.Damaged, Collect: api.MonitorWork{Started: c.Started, Done: c.Done}, Freed: c.Freed}
		if u := p.Usage; u != nil {
			x.Size, x.Used, x.Free, x.Logical, x.Sets = u.Size, u.Stored, u.Free, u.Logical, u.Sets
		}
		m.Pools = append(m.Pools, x)
	}
	return nil
}

// monitorVMs lists the VMs of hosts, and of sets.
func (s *Service) monitorVMs(ctx context.Context, m *api.Monitor) error {
	vms, err := s.vmRecords()
	if err != nil {
		return err
	}
	protected, err := s.protectedVMs(vms)
	if err != nil {
		return err
	}
	shown, err := s.VMs(ctx)
	if err != nil {
		return err
	}
	for _, v := range shown {
		_, ok := protected[v.ID]
		m.VMs = append(m.VMs, api.MonitorVM{ID: v.ID, Name: v.Name, Host: v.Host, Protected: ok, Points: map[string]int{}})
	}
	sets, err := s.Sets(ctx, api.SetFilter{})
	for i := range sets { // reading the whole pool back read those back that were there when it began
		for _, p := range m.Pools {
			if x := &sets[i]; x.Pool == p.Name && x.Time.Before(p.Verified.Started) && p.Verified.Done.After(x.Verified) {
				x.Verified = p.Verified.Done
			}
		}
	}
	m.CountPoints(sets)
	return err
}

// protectedVMs returns, by id, the VMs that enabled jobs back up, and the oldest of those jobs.
func (s *Service) protectedVMs(vms []catalog.VM) (map[string]catalog.Job, error) {
	recs, err := everyPage(s.d.cat, func(tx *catalog.Tx, p catalog.Page) ([]catalog.Job, catalog.Cursor, error) { return tx.Jobs(p) })
	if err != nil {
		return nil, err
	}
	out := map[string]catalog.Job{}
	for _, rec := range recs {
		d, err := job.ReadDefinition(rec)
		if err != nil {
			return nil, err
		}
		if !d.Enabled {
			continue
		}
		for _, v := range d.Source.Select(vms).VMs {
			if old, ok := out[v.ID.String()]; !ok || rec.Created.Before(old.Created) {
				out[v.ID.String()] = rec
			}
		}
	}
	return out, nil
}
