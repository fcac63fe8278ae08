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

		Addresses []HostAddress `json:"addresses,omitempty"` // of the host's networks, without loopback and link-local ones
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
	// A Task is one VM's part of a run, or one of a run's scripts, for this agent.
	Task struct {
		ID        holdfast.TaskID `json:"id"`
		Run       holdfast.RunID  `json:"run"`
		Kind      string          `json:"kind"` // TaskBackup, TaskRestore, TaskScript
		VM        holdfast.VMID   `json:"vm"`
		Level     string          `json:"level,omitempty"`     // consistency asked for (agent/hv.Level)
		Disks     int             `json:"disks,omitempty"`     // at once; 0: 2
		Reconnect time.Duration   `json:"reconnect,omitempty"` // how long a cut link may take to come back; 0: 10 minutes
		Buffer    int             `json:"buffer,omitempty"`    // resumption buffer in bytes; 0: 8 MiB
		Restore   *Restore        `json:"restore,omitempty"`   // of a restore: what to make
		Route     *Route          `json:"route,omitempty"`     // which way its data goes; nil: as the host's routing has it

		Channels int      `json:"channels,omitempty"` // disks of the run read at once on this host; 0: no bound of its own
		Limits   []Limit  `json:"limits,omitempty"`   // of the run on this host, by time of the week
		Zone     string   `json:"zone,omitempty"`     // whose clocks the limits mean; "": UTC
		Skip     []string `json:"skip,omitempty"`     // backup: disks that are left out, by id or by pattern of the file name
		Group    int      `json:"group,omitempty"`    // backup: how many tasks of the run freeze their VMs before any reads; 0: it goes alone

		Script  string            `json:"script,omitempty"` // script: the name of a file in the agent's scripts folder
		Timeout time.Duration     `json:"timeout,omitempty"`
		Env     map[string]string `json:"env,omitempty"` // facts of the run, for the script
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

		Script *ScriptResult `json:"script,omitempty"`
		Waits  Waits         `json:"waits,omitzero"`
	}
	// A ScriptResult is how a script ended. It is there only if the script ran.
	ScriptResult struct {
		Exit   int    `json:"exit"` // -1: it was ended, for its time was over or the task was cancelled
		Output string `json:"output,omitempty"`
	}
	// Waits is the time that a backup has spent waiting: for the source's disks, for messages to be taken, and for answers. Disks wait
	// at the same time, so it may be more than the time that has passed.
	Waits struct {
		Source time.Duration `json:"source,omitempty"`
		Send   time.Duration `json:"send,omitempty"`
		Answer time.Duration `json:"answer,omitempty"`
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
	TaskScript  = "script"
)
