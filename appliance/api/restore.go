package api

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast"
)

type (
	// RestoreSpec says what to restore, where to, and under what name. The sets are named by Set or Sets, or by the VMs they are of.
	RestoreSpec struct {
		Set    string    `json:"set,omitempty" doc:"a set's id"`
		Sets   []string  `json:"sets,omitempty" maxItems:"1000" doc:"ids of more sets, each of another VM"`
		VMs    []string  `json:"vms,omitempty" maxItems:"1000" doc:"or names or ids of VMs: of each its newest point in time"`
		Before time.Time `json:"at_or_before,omitzero" doc:"of VMs: the newest point in time that is not later"`
		Pool   string    `json:"pool,omitempty" doc:"only from this pool; empty: the best copy of all pools"`

		Host     string            `json:"host,omitempty" doc:"name or id of the host that gets the VM"`
		Original bool              `json:"original,omitempty" doc:"to the place and name that the VM had"`
		Dir      string            `json:"dir,omitempty" doc:"or to this absolute folder on the host; of several VMs each gets a folder in it"`
		Name     string            `json:"name,omitempty" doc:"of the new VM; empty keeps the old one"`
		Prefix   string            `json:"prefix,omitempty" doc:"before each name"`
		Suffix   string            `json:"suffix,omitempty" doc:"behind each name"`
		DiskDirs map[string]string `json:"disk_dirs,omitempty" doc:"folder of a disk, by its number in the set, its name, or * for all others"`

		Switches    map[string]string `json:"switches,omitempty" doc:"virtual switch by the one that an adapter had; empty: unconnected"`
		AddSwitches []string          `json:"add_switches,omitempty" maxItems:"64" doc:"one adapter more on each of these switches"`
		NoNetwork   bool              `json:"no_network,omitempty" doc:"none of the VM's adapters"`

		Existing string `json:"existing,omitempty" enum:"suffix,overwrite,skip" doc:"what becomes of a VM that is there: the restored one gets a time behind its name (default), or takes its place, or is not restored"`
		Shutdown bool   `json:"shutdown,omitempty" doc:"a VM that is overwritten may be shut down"`
		Start    bool   `json:"start,omitempty" doc:"start the VM"`

		ParallelVMs   int `json:"parallel_vms,omitempty" minimum:"0" maximum:"64" doc:"VMs of a host at once; default 8"`
		ParallelDisks int `json:"parallel_disks,omitempty" minimum:"0" maximum:"64" doc:"disks of a VM at once; default 2"`

		Options []string `json:"options,omitempty" maxItems:"64" doc:"option=value, as of jobs: reconnect, buffer, limit, precondition, pre-script, post-script, script-timeout, priority"`

		Disk *DiskRestore `json:"disk,omitempty" doc:"one disk goes to a VM that is there"`
	}

	// DiskRestore says what becomes of one disk of the set.
	DiskRestore struct {
		No        int    `json:"no" minimum:"0" doc:"in the set"`
		VM        string `json:"vm" doc:"name or id of the VM that gets it"`
		Overwrite *int   `json:"overwrite,omitempty" minimum:"0" doc:"number of the VM's disk that it takes the place of; missing: it is added"`
		Dir       string `json:"dir,omitempty" doc:"absolute folder for it; empty: the VM's"`
	}

	// Preflight is the verdict on a restore, before anything is written.
	Preflight struct {
		Verdict string        `json:"verdict" doc:"ready, ready-with-warnings, skipped (all VMs are there), refused"`
		Plans   []RestorePlan `json:"plans"`
	}

	// RestorePlan is what would be made of one set.
	RestorePlan struct {
		Set      string             `json:"set"`
		VM       string             `json:"vm"`
		Time     time.Time          `json:"time"`
		Pool     string             `json:"pool"`
		Host     string             `json:"host"`
		Target   string             `json:"target" doc:"name of the VM that is made or changed"`
		Dir      string             `json:"dir,omitempty"`
		DiskDirs map[string]string  `json:"disk_dirs,omitempty" doc:"by the disk's name"`
		Adapters []holdfast.Adapter `json:"adapters,omitempty"`
		KeepsID  bool               `json:"keeps_id,omitempty"`
		Replaces string             `json:"replaces,omitempty" doc:"VM or disk that is lost"`
		Lost     []string           `json:"lost,omitempty" doc:"what will be lost"`
		Verdict  string             `json:"verdict"`
		Findings []Finding          `json:"findings"`
	}

	// Finding is one thing that preflight found.
	Finding struct {
		Code   string `json:"code"`
		Level  string `json:"level" doc:"refuse, warning or info"`
		Text   string `json:"text"`
		Advice string `json:"advice,omitempty"`
	}

	// RestoreAt is a restore that begins later, once.
	RestoreAt struct {
		ID      string      `json:"id,omitempty"`
		At      time.Time   `json:"at"`
		Created time.Time   `json:"created,omitzero"`
		Spec    RestoreSpec `json:"spec"`
	}

	// Label changes the label of a VM.
	Label struct {
		Protected bool `json:"protected" doc:"true: never the target of a restore until an administrator takes it off"`
	}
)

type labelIn struct {
	Name string `path:"name" doc:"name or id"`
	Body Label
}

// Restorer is what the appliance can do about restores and the labels that keep them off.
type Restorer interface {
	// Restore begins a restore. What preflight refuses is an error, and nothing was written; VMs that are all there already are a run that failed.
	Restore(ctx context.Context, s RestoreSpec) (Run, error)
	// Preflight tells what Restore would do.
	Preflight(ctx context.Context, s RestoreSpec) (Preflight, error)
	// RestoreLater keeps a restore until its time, across restarts; one whose time passes while the appliance is down begins when it is up.
	RestoreLater(ctx context.Context, r RestoreAt) (RestoreAt, error)
	RestoresLater(ctx context.Context) ([]RestoreAt, error)
	// CancelRestoreLater forgets it.
	CancelRestoreLater(ctx context.Context, id string) (RestoreAt, error)

	ProtectVM(ctx context.Context, name string, l Label) (VM, error)
}

func (a *API) registerRestores() {
	s := a.o.Service
	route(a, "POST", "/v1/restores", "Restore virtual machines, or a disk, now", 202, func(ctx context.Context, in *bodyOfType[RestoreSpec]) (Run, error) {
		return s.Restore(ctx, in.Body)
	})
	route(a, "POST", "/v1/restores/preflight", "Say what a restore would do, and what stands in its way", 200, func(ctx context.Context, in *bodyOfType[RestoreSpec]) (Preflight, error) {
		return s.Preflight(ctx, in.Body)
	})
	route(a, "POST", "/v1/restores/later", "Restore at a time", 201, func(ctx context.Context, in *bodyOfType[RestoreAt]) (RestoreAt, error) {
		return s.RestoreLater(ctx, in.Body)
	})
	route(a, "GET", "/v1/restores/later", "List restores that have not begun", 200, func(ctx context.Context, _ *none) ([]RestoreAt, error) {
		return list(s.RestoresLater(ctx))
	})
	route(a, "DELETE", "/v1/restores/later/{id}", "Forget a restore that has not begun", 200, func(ctx context.Context, in *byID) (RestoreAt, error) {
		return s.CancelRestoreLater(ctx, in.ID)
	})
	route(a, "PATCH", "/v1/vms/{name}", "Change a virtual machine's label", 200, func(ctx context.Context, in *labelIn) (VM, error) {
		return s.ProtectVM(ctx, in.Name, in.Body)
	})
}
