package wire

import (
	"time"

	"github.com/holdfast-backup/holdfast"
)

// The control plane between an agent and its appliance: JSON over HTTP/2 on the same port (ALPN "h2"), the agent dialling.
// Enrolment is the only call without a client certificate.
const (
	ALPNData    = "holdfast-data/1" // bulk: framed, resumable (link.go)
	ALPNControl = "h2"

	DefaultPort = 60305

	PathEnroll    = "/agent/v1/enroll"    // POST EnrollRequest → EnrollResponse
	PathInventory = "/agent/v1/inventory" // POST Inventory → 204
	PathTasks     = "/agent/v1/tasks"     // GET → a stream of Notice, one JSON object a line; open for as long as the agent is Online
	PathReport    = "/agent/v1/reports"   // POST []Report → 204
)

// HeartbeatEvery is how often an idle task stream carries an empty Notice; a stream silent for three times that is dead.
const HeartbeatEvery = 2 * time.Second

type (
	// EnrollRequest exchanges a one-time access key for a client certificate.
	EnrollRequest struct {
		Key     string `json:"key"`
		CSR     []byte `json:"csr"` // DER, its key made by the agent and never leaving it
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	// EnrollResponse carries the agent's certificate and the CA it pins from then on.
	EnrollResponse struct {
		Host        holdfast.HostID `json:"host"`
		Name        string          `json:"name"`
		Certificate []byte          `json:"certificate"` // DER
		CA          []byte          `json:"ca"`          // DER
	}
	// Inventory says what a host has. Sent after connecting, on change, and when asked for by a Notice.
	Inventory struct {
		Product string `json:"product"`
		Version string `json:"version"` // of the host's hypervisor
		Agent   string `json:"agent"`   // version of the agent
		VMs     []VM   `json:"vms"`

		Switches  []string `json:"switches,omitempty"`   // virtual switches
		VMVersion string   `json:"vm_version,omitempty"` // the highest configuration version of a VM that the host runs
		Survey    *Survey  `json:"survey,omitempty"`     // the answer to a SurveyRequest
	}
	// VM is one virtual machine of an Inventory.
	VM struct {
		holdfast.VMInfo
		State   string          `json:"state"`
		Disks   []holdfast.Disk `json:"disks"`
		Skipped []string        `json:"skipped,omitempty"`

		Adapters    []holdfast.Adapter `json:"adapters,omitempty"`
		Checkpoints int                `json:"checkpoints,omitempty"` // that people took
		Busy        bool               `json:"busy,omitempty"`        // it is being backed up
		Served      bool               `json:"served,omitempty"`      // another program has a disk open for writing
		Dir         string             `json:"dir,omitempty"`         // folder of its files
	}
	// A Notice is one line of the task stream. Exactly one field is set; none in a heartbeat.
	Notice struct {
		Task      *Task           `json:"task,omitempty"`
		Cancel    holdfast.TaskID `json:"cancel,omitzero"`
		Inventory bool            `json:"inventory,omitempty"` // send one
		Survey    *SurveyRequest  `json:"survey,omitempty"`    // send one with a Survey
	}
	// A Task is one VM's part of a run, for this agent.
	Task struct {
		ID        holdfast.TaskID `json:"id"`
		Run       holdfast.RunID  `json:"run"`
		Kind      string          `json:"kind"` // TaskBackup, TaskRestore
		VM        holdfast.VMID   `json:"vm"`
		Level     string          `json:"level,omitempty"`      // consistency asked for (agent/hv.Level)
		Disks     int             `json:"disks,omitempty"`      // at once; 0: 2
		Reconnect time.Duration   `json:"reconnect,omitempty"`  // how long a cut link may take to come back; 0: 10 minutes
		Buffer    int             `json:"buffer,omitempty"`     // resumption buffer in bytes; 0: 8 MiB
		SendLimit int64           `json:"send_limit,omitempty"` // bytes per second; 0: none
		ReadLimit int64           `json:"read_limit,omitempty"`
		Restore   *Restore        `json:"restore,omitempty"` // of a restore: what to make
	}
	// A Report says how a task goes. Progress is sent about once a second; the last one has Ended set.
	Report struct {
		Task  holdfast.TaskID `json:"task"`
		Phase string          `json:"phase"` // checkpoint, reading, committing, merging, writing, registering
		Disks []DiskProgress  `json:"disks,omitempty"`
		Ended bool            `json:"ended,omitempty"`
		Error *Failure        `json:"error,omitempty"` // why it failed, if it did
		Note  string          `json:"note,omitempty"`
		VM    *VM             `json:"vm,omitempty"` // restore: what was made
		// Tokens name the restored moment as the host's reference point, if the task asked for one and the host could.
		Tokens map[holdfast.DiskID]string `json:"tokens,omitempty"`
	}
	// DiskProgress is one disk's meter.
	DiskProgress struct {
		Disk   holdfast.DiskID `json:"disk"`
		Name   string          `json:"name"`
		Reason holdfast.Reason `json:"reason,omitempty"`
		holdfast.Sample
	}
)

// The kinds of Task.
const (
	TaskBackup  = "backup"
	TaskRestore = "restore"
)
