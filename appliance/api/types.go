package api

import (
	"encoding/json"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// The JSON types of the API. Ids are strings here; names stand beside them. Sizes are bytes; times are RFC 3339 in UTC.
type (
	// Health answers "are you there".
	Health struct {
		Status  string `json:"status" doc:"ok"`
		Version string `json:"version"`
	}

	// Status is the appliance on one screen.
	Status struct {
		Version  string    `json:"version"`
		Started  time.Time `json:"started"`
		Listen   string    `json:"listen" doc:"address of the port for agents"`
		Data     string    `json:"data" doc:"the appliance's own folder"`
		Expires  time.Time `json:"certificate_expires"`
		Pools    []Pool    `json:"pools"`
		Hosts    []Host    `json:"hosts"`
		Running  []Run     `json:"running"`
		VMs      int       `json:"vms"`
		Sets     int       `json:"sets"`
		Warnings []string  `json:"warnings"`
	}

	// PoolSpec says what pool to make, or to take over.
	PoolSpec struct {
		Name     string         `json:"name" minLength:"1" maxLength:"64"`
		Kind     string         `json:"kind" doc:"dedup, standard or object"`
		Config   map[string]any `json:"config,omitempty" doc:"the kind's own configuration; an unknown key is refused"`
		Path     string         `json:"path,omitempty" doc:"short for path in config: absolute folder on the appliance"`
		Chunking string         `json:"chunking,omitempty" doc:"short for chunking in config: adaptive (default), variable, fixed-64K to fixed-512K"`
	}

	// Pool is a storage pool.
	Pool struct {
		ID          string          `json:"id"`
		Name        string          `json:"name"`
		Kind        string          `json:"kind"`
		State       string          `json:"state" doc:"open or offline"`
		Error       string          `json:"error,omitempty" doc:"why it is offline"`
		Maintenance bool            `json:"maintenance,omitempty" doc:"it takes no new backups"`
		Chunking    string          `json:"chunking,omitempty"`
		Config      json.RawMessage `json:"config,omitempty" doc:"the driver's configuration, without secrets"`
		Created     time.Time       `json:"created"`
		Quota       int64           `json:"quota,omitempty" doc:"bytes that it may take"`
		Usage       *pools.Usage    `json:"usage,omitempty"`
		Filled      float64         `json:"filled,omitempty" doc:"how full it is, from 0 to 1, by its quota or its medium"`
		Referenced  int64           `json:"referenced,omitempty" doc:"bytes of data that the sets refer to; missing while they are counted"`
		Ratio       float64         `json:"dedup_ratio,omitempty" doc:"virtual bytes of the sets' disks per stored byte"`
		DataRatio   float64         `json:"data_ratio,omitempty" doc:"bytes of data that the sets refer to per stored byte"`
	}

	// PoolChange says what to change of a pool; what is not there stays.
	PoolChange struct {
		Rename      string           `json:"rename,omitempty" maxLength:"64"`
		Quota       *int64           `json:"quota,omitempty" doc:"bytes that it may take; 0: no quota"`
		PathQuotas  map[string]int64 `json:"path_quotas,omitempty" doc:"bytes that it may take on single paths, by path; 0: no quota"`
		Maintenance *bool            `json:"maintenance,omitempty" doc:"true: no new backups; restores go on"`
		ReplacePath *PathChange      `json:"replace_path,omitempty"`
		AddPath     string           `json:"add_path,omitempty" doc:"one more folder"`
	}

	// PathChange gives one of a pool's paths another place.
	PathChange struct {
		From string `json:"from"`
		To   string `json:"to"`
	}

	// PoolChanged is a pool after a change.
	PoolChanged struct {
		Pool Pool `json:"pool"`
		Run  *Run `json:"run,omitempty" doc:"that fills the new path"`
	}

	// Imported is a pool that was taken over.
	Imported struct {
		Pool Pool `json:"pool"`
		Run  Run  `json:"run" doc:"that lists its sets"`
	}

	// CheckReport is how the target of a pool stood up to the conformance suite.
	CheckReport struct {
		Checks int            `json:"checks"`
		Passed int            `json:"passed"`
		Failed []CheckFailure `json:"failed"`
		Left   []string       `json:"left" doc:"what could not be cleaned up"`
	}

	// CheckFailure is one check that failed.
	CheckFailure struct {
		Name string `json:"name"`
		Text string `json:"text"`
	}

	// HostSpec names a host that is to be enrolled.
	HostSpec struct {
		Name string `json:"name" minLength:"1" maxLength:"64"`
	}

	// EnrolKey is shown once.
	EnrolKey struct {
		Name    string    `json:"name"`
		Key     string    `json:"key" doc:"one-time access key"`
		Server  string    `json:"server" doc:"the port agents dial"`
		Expires time.Time `json:"expires"`
	}

	// Host is a host with an agent.
	Host struct {
		ID       string    `json:"id"`
		Name     string    `json:"name"`
		State    string    `json:"state" doc:"online or offline"`
		Seen     time.Time `json:"seen,omitzero" doc:"last heard of"`
		Enrolled time.Time `json:"enrolled,omitzero"`
		Product  string    `json:"product,omitempty"`
		Version  string    `json:"version,omitempty" doc:"of the hypervisor"`
		Agent    string    `json:"agent,omitempty" doc:"version of the agent"`
		VMs      int       `json:"vms"`

		Protected bool `json:"protected,omitempty" doc:"nothing is restored to it"`

		DataNetwork string       `json:"data_network,omitempty" doc:"name or CIDR of the network that its backups and restores go through"`
		Egress      string       `json:"egress,omitempty" doc:"its address that they leave from"`
		DataPath    *DataPath    `json:"data_path,omitempty" doc:"the last data connection since the appliance was started"`
		Addresses   []NetAddress `json:"addresses,omitempty" doc:"that its agent reports"`
		Problem     string       `json:"problem,omitempty" doc:"why its data will not get through as it is set up"`
	}

	// VM is a virtual machine that a host has, or that there are sets of.
	VM struct {
		ID         string   `json:"id"`
		Name       string   `json:"name"`
		Host       string   `json:"host"`
		HostID     string   `json:"host_id"`
		Generation int      `json:"generation"`
		State      string   `json:"state" doc:"running, off, or gone where the host no longer has it"`
		Size       int64    `json:"size"`
		Disks      []VMDisk `json:"disks"`
		Skipped    []string `json:"skipped,omitempty" doc:"disks that cannot be backed up, and why"`
		Protected  bool     `json:"protected,omitempty" doc:"it is not overwritten by a restore"`
	}

	// VMDisk is one disk of a VM.
	VMDisk struct {
		ID   string `json:"id"`
		Name string `json:"name"`
		Size int64  `json:"size"`
	}

	// Set is a backup set: one VM at one point in time.
	Set struct {
		ID          string    `json:"id"`
		VM          string    `json:"vm"`
		VMID        string    `json:"vm_id"`
		Host        string    `json:"host"`
		Pool        string    `json:"pool"`
		Time        time.Time `json:"time"`
		Kind        string    `json:"kind" doc:"full or incremental; either restores the whole VM"`
		Parent      string    `json:"parent,omitempty"`
		Run         string    `json:"run,omitempty"`
		Consistency string    `json:"consistency"`
		Note        string    `json:"note,omitempty"`
		Hold        time.Time `json:"hold,omitzero" doc:"it cannot be deleted until then"`
		Verified    time.Time `json:"verified,omitzero" doc:"when it was last read back by itself"`
		Damaged     bool      `json:"damaged,omitempty" doc:"that found damage"`
		Counts
		Disks []SetDisk `json:"disks"`
	}

	// SetDisk is one disk of a set; its place in the list is the number that an export takes.
	SetDisk struct {
		ID     string `json:"id"`
		Name   string `json:"name"`
		Size   int64  `json:"size"`
		Reason string `json:"reason,omitempty" doc:"why the whole disk was read"`
		Counts
	}

	// Counts are bytes of a set or a disk.
	Counts struct {
		Logical int64 `json:"logical" doc:"virtual size"`
		Read    int64 `json:"read" doc:"read by the agent"`
		Sent    int64 `json:"sent" doc:"on the wire"`
		Stored  int64 `json:"stored" doc:"new in the pool"`
		Changed int64 `json:"changed" doc:"what change tracking answered; 0 for a full read"`
	}

	// BackupSpec asks for a backup now.
	BackupSpec struct {
		VMs  []string `json:"vms" minItems:"1" maxItems:"1000" doc:"names or ids"`
		Pool string   `json:"pool"`
		Full bool     `json:"full,omitempty" doc:"read everything"`
		// Compression is how new bytes are encoded.
		Compression string `json:"compression,omitempty" enum:"off,fast,default,better,best" doc:"work that new bytes are worth: fast for little, best for slow lines; a pool can recompress later"`
	}

	// Run is one execution of a job, or of a single request.
	Run struct {
		Job     string `json:"job,omitempty"`
		Type    string `json:"type,omitempty" doc:"of a job's backup: full, incremental, differential"`
		Cause   string `json:"cause,omitempty" doc:"the schedule that started it, by hand, or a retry"`
		RetryOf string `json:"retry_of,omitempty" doc:"the run whose failed VMs it tries again"`

		ID      string    `json:"id"`
		Kind    string    `json:"kind" doc:"backup, restore, verify, collect, check, rebuild, replace-path"`
		DryRun  bool      `json:"dry_run,omitempty"`
		State   string    `json:"state" doc:"queued, running, done, partial, failed, cancelled, aborted"`
		Pool    string    `json:"pool,omitempty"`
		Created time.Time `json:"created"`
		Ended   time.Time `json:"ended,omitzero"`
		Error   *Failure  `json:"error,omitempty"`
		Tasks   []Task    `json:"tasks"`

		Result json.RawMessage `json:"result,omitempty" doc:"what was found: a verify, gc, check or rebuild report"`
	}

	// Task is one VM's part of a run.
	Task struct {
		ID     string     `json:"id"`
		VM     string     `json:"vm"`
		VMID   string     `json:"vm_id"`
		Host   string     `json:"host"`
		State  string     `json:"state"`
		Phase  string     `json:"phase,omitempty"`
		Set    string     `json:"set,omitempty" doc:"written or restored"`
		Target string     `json:"target,omitempty" doc:"of a restore: name of the VM that is made or changed"`
		Note   string     `json:"note,omitempty"`
		Error  *Failure   `json:"error,omitempty"`
		Disks  []Progress `json:"disks,omitempty"`

		Started    time.Time `json:"started,omitzero"`
		Ended      time.Time `json:"ended,omitzero"`
		Stage      string    `json:"stage,omitempty" doc:"of a script: precondition, pre-script, post-script; VM is its name then"`
		Reason     string    `json:"reason,omitempty" doc:"why whole disks were read"`
		Bottleneck string    `json:"bottleneck,omitempty" doc:"what the backup waited for most: source, network, appliance, pool"`
		Counts     Counts    `json:"counts" doc:"of the set, once it is committed"`
	}

	// Progress is one disk of a task.
	Progress struct {
		Name   string `json:"name"`
		Reason string `json:"reason,omitempty" doc:"why the whole disk is read"`
		Unit   string `json:"unit,omitempty" doc:"what total and done count, where it is not bytes"`
		holdfast.Sample
	}

	// Rebuilt is what a rebuild of the catalog found.
	Rebuilt struct {
		Sets   int      `json:"sets"`
		Added  int      `json:"added"`
		Gone   int      `json:"gone"`
		Errors []string `json:"errors"`
		Held   int      `json:"held" doc:"holds that were taken over from the pools or the data folder"`
		Notes  []string `json:"notes,omitempty" doc:"what nobody can know any more"`
	}

	// Event is a noteworthy fact with its place in the order of events.
	Event struct {
		Seq uint64 `json:"seq"`
		holdfast.Event
	}
)

// Reports of pools, under the names that clients of the API use.
type (
	VerifyReport     = pools.VerifyReport
	CollectReport    = pools.CollectReport
	RecompressReport = pools.RecompressReport
	PoolSpace        = pools.Space
)

// States of a Run, and of its Tasks.
const (
	StateQueued    = "queued"
	StateRunning   = "running"
	StateDone      = "done"
	StatePartial   = "partial"
	StateFailed    = "failed"
	StateCancelled = "cancelled"
	StateAborted   = "aborted" // a precondition was not met
)

// Final tells whether a state is never left again.
func Final(state string) bool { return state != StateQueued && state != StateRunning }
