package api

import (
	"context"
	"slices"
	"strings"
	"time"
)

// Monitors is the part of the service that says everything a monitoring system wants in one answer. The route is there if the service has it.
type Monitors interface {
	Monitor(ctx context.Context) (Monitor, error)
}

type (
	// Monitor is the appliance as monitoring sees it: states and times, no lists that grow with the number of sets.
	Monitor struct {
		Time    time.Time        `json:"time"`
		Version string           `json:"version"`
		Expires time.Time        `json:"certificate_expires"`
		Running int              `json:"running" doc:"runs that are not over"`
		Failed  string           `json:"failed,omitempty" doc:"why the catalog cannot be written"`
		Pools   []MonitorPool    `json:"pools"`
		Hosts   []MonitorHost    `json:"hosts"`
		VMs     []MonitorVM      `json:"vms"`
		Jobs    []MonitorJob     `json:"jobs"`
		Alarms  []MonitorAlarm   `json:"alarms"`
		Targets []NotifyDelivery `json:"targets" doc:"notification targets"`
	}

	// MonitorPool is a pool.
	MonitorPool struct {
		Name        string      `json:"name"`
		Kind        string      `json:"kind"`
		State       string      `json:"state" doc:"open or offline"`
		Error       string      `json:"error,omitempty"`
		Maintenance bool        `json:"maintenance"`
		Damaged     bool        `json:"damaged" doc:"reading found damage, and no later verify found none"`
		Size        int64       `json:"size"`
		Used        int64       `json:"used"`
		Free        int64       `json:"free"`
		Filled      float64     `json:"filled" doc:"from 0 to 1, by quota or medium"`
		Logical     int64       `json:"logical"`
		Ratio       float64     `json:"dedup_ratio"`
		Sets        int         `json:"sets"`
		Created     time.Time   `json:"created"`
		Verify      MonitorWork `json:"verify"`
		Collect     MonitorWork `json:"gc"`
		Freed       int64       `json:"gc_freed_total"`

		Verified      MonitorWork `json:"verified" doc:"the last verify that found no damage"`
		DamagedChunks int         `json:"damaged_chunks" doc:"that the last verify of the whole pool found"`
	}

	// MonitorWork is when something was last done to a pool.
	MonitorWork struct {
		Started time.Time `json:"started,omitzero"`
		Done    time.Time `json:"done,omitzero" doc:"the last one that ended well"`
	}

	// MonitorHost is a host.
	MonitorHost struct {
		Name  string    `json:"name"`
		State string    `json:"state" doc:"online or offline"`
		Seen  time.Time `json:"seen,omitzero"`
		Agent string    `json:"agent,omitempty"`
	}

	// MonitorVM is a virtual machine that a host has, or that sets are of.
	MonitorVM struct {
		ID        string         `json:"id"`
		Name      string         `json:"name"`
		Host      string         `json:"host"`
		Protected bool           `json:"protected" doc:"a job that is enabled backs it up"`
		Last      time.Time      `json:"last,omitzero" doc:"its newest point in time"`
		Points    map[string]int `json:"points" doc:"points in time by pool"`
		Full      time.Time      `json:"last_full,omitzero" doc:"its newest point in time for which everything was read"`
		Verified  time.Time      `json:"last_verified,omitzero" doc:"when a point in time of it was last read back and was right, by itself or with its whole pool"`
		Damaged   int            `json:"damaged_points" doc:"points in time in which damage was found"`
	}

	// MonitorJob is a job.
	MonitorJob struct {
		Name       string    `json:"name"`
		Enabled    bool      `json:"enabled"`
		State      string    `json:"state"`
		LastResult string    `json:"last_result,omitempty"`
		LastEnded  time.Time `json:"last_ended,omitzero"`
		LastGood   time.Time `json:"last_good,omitzero"`
		Next       time.Time `json:"next,omitzero"`
		LastBegan  time.Time `json:"last_began,omitzero"`
		Totals     JobTotals `json:"totals"`
	}

	// MonitorAlarm is an open alarm.
	MonitorAlarm struct {
		Key      string    `json:"key"`
		Type     string    `json:"type"`
		Severity string    `json:"severity"`
		Text     string    `json:"text"`
		Raised   time.Time `json:"raised"`
	}
)

func (a *API) registerMonitor() {
	s, ok := a.o.Service.(Monitors)
	if !ok {
		return
	}
	route(a, "GET", "/v1/monitor", "Everything that monitoring wants, in one answer", 200, func(ctx context.Context, _ *none) (Monitor, error) { return s.Monitor(ctx) })
}

// pointsOf counts sets by VM: how many in each pool, and the newest. VMs of sets whose host is gone are listed too.
func pointsOf(vms []MonitorVM, sets []Set) []MonitorVM {
	at := map[string]int{}
	for i, v := range vms {
		at[v.ID] = i
	}
	for _, s := range sets {
		i, ok := at[s.VMID]
		if !ok {
			i = len(vms)
			at[s.VMID] = i
			vms = append(vms, MonitorVM{ID: s.VMID, Name: s.VM, Host: s.Host, Points: map[string]int{}})
		}
		vms[i].Points[s.Pool]++
		vms[i].add(&s)
	}
	slices.SortFunc(vms, func(a, b MonitorVM) int {
		return strings.Compare(a.Host+"\x00"+a.Name+"\x00"+a.ID, b.Host+"\x00"+b.Name+"\x00"+b.ID)
	})
	return vms
}

func (v *MonitorVM) add(s *Set) {
	later := func(a *time.Time, b time.Time) {
		if b.After(*a) {
			*a = b
		}
	}
	later(&v.Last, s.Time)
	if s.Kind == "full" {
		later(&v.Full, s.Time)
	}
	if s.Damaged {
		v.Damaged++
	} else {
		later(&v.Verified, s.Verified)
	}
}

// CountPoints fills in what sets say of VMs.
func (m *Monitor) CountPoints(sets []Set) { m.VMs = pointsOf(m.VMs, sets) }
