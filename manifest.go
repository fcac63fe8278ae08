package holdfast

import (
	"bytes"
	"encoding/json"
	"time"
)

// Bounds of a manifest.
const (
	MaxDisks           = 256     // of one VM: 4 SCSI controllers of 64
	MaxAdapters        = 64      // network adapters of one VM
	MaxAttachments     = 64      // configuration files of one VM
	MaxAttachmentBytes = 4 << 20 // of one attachment
	MaxManifestBytes   = 16 << 20
)

// SetKind says how the source was read. It says nothing about restoring: every set is complete.
type SetKind string

const (
	Full        SetKind = "full"        // no parent
	Incremental SetKind = "incremental" // ranges not written are the parent's
)

// Consistency is the level a checkpoint reached.
type Consistency string

const (
	AppConsistent   Consistency = "application" // the guest's applications were quiesced
	CrashConsistent Consistency = "crash"       // as after a power cut
	OffConsistent   Consistency = "off"         // the VM was off
)

// A Manifest describes one backup set: what the VM was and what its disks are. It is immutable once committed.
// Its canonical form is the JSON that MarshalManifest returns.
type Manifest struct {
	ID          SetID        `json:"id"`
	Created     time.Time    `json:"created"` // the point in time: when the checkpoint was taken, by the appliance's clock, UTC
	VM          VMInfo       `json:"vm"`
	Host        HostID       `json:"host"` // whose agent wrote it
	HostName    string       `json:"host_name"`
	Run         RunID        `json:"run,omitzero"`
	Kind        SetKind      `json:"kind"`
	Parent      SetID        `json:"parent,omitzero"` // the set that unwritten ranges were taken from, if Kind is Incremental
	Consistency Consistency  `json:"consistency"`
	Note        string       `json:"note,omitempty"` // why the consistency is lower than asked for, and the like
	Disks       []Disk       `json:"disks"`
	Adapters    []Adapter    `json:"adapters,omitempty"` // network adapters, as they were
	Dir         string       `json:"dir,omitempty"`      // folder on the host that the VM was in: where "original" is
	Attachments []Attachment `json:"attachments,omitempty"`
	Stats       Stats        `json:"stats"`
}

// VMInfo names a virtual machine.
type VMInfo struct {
	ID         VMID   `json:"id"`
	Name       string `json:"name"`
	Generation int    `json:"generation"` // 1 or 2
	Version    string `json:"version,omitempty"`
}

// An Adapter is a virtual network adapter.
type Adapter struct {
	Name   string `json:"name"`
	Switch string `json:"switch,omitempty"` // the virtual switch it is connected to; "": none
	MAC    string `json:"mac,omitempty"`    // its fixed address; "": given by the host
}

// A Disk describes one virtual disk of a set.
type Disk struct {
	ID             DiskID `json:"id"`
	Name           string `json:"name"` // file name without folder
	Size           int64  `json:"size"` // bytes, the guest's view
	Format         string `json:"format"`
	Subformat      string `json:"subformat"`
	BlockSize      uint32 `json:"block_size"`
	LogicalSector  uint32 `json:"logical_sector"`
	PhysicalSector uint32 `json:"physical_sector"`
	Controller     string `json:"controller"` // "ide" or "scsi"
	ControllerNo   int    `json:"controller_no"`
	Slot           int    `json:"slot"`
	Inherit        bool   `json:"inherit,omitempty"` // ranges not written are those of the disk of this ID in the parent set
	Reason         Reason `json:"reason,omitempty"`  // why the whole disk was read, if it was and could have been a delta
	Stats          Stats  `json:"stats"`
}

// Reason says why a whole disk was read instead of its changes. Part of the wire and the catalog: append only.
type Reason string

const (
	ReasonFirst         Reason = "first-backup"        // no earlier set of this VM in this pool
	ReasonRequested     Reason = "requested"           // a full was asked for
	ReasonNewDisk       Reason = "new-disk"            // the parent set does not have this disk (swapped or added)
	ReasonNoToken       Reason = "no-tracking-id"      // the appliance holds no change tracking id for the parent set
	ReasonTrackingLost  Reason = "tracking-lost"       // the host says tracking is off or its record is gone
	ReasonTokenUnknown  Reason = "tracking-id-unknown" // the host does not know the id (reverted, replaced, invalidated)
	ReasonResized       Reason = "disk-resized"        // size differs from the parent set's
	ReasonFormatChanged Reason = "format-changed"      // sector size or format differs
	ReasonReverted      Reason = "checkpoint-reverted" // a user checkpoint was applied since
	ReasonUnsupported   Reason = "no-change-tracking"  // this disk or host cannot track
)

// An Attachment is a small file that belongs to the VM's configuration.
type Attachment struct {
	Name string `json:"name"` // file name without folder
	Data []byte `json:"data"`
}

// Stats counts bytes of a set or a disk.
type Stats struct {
	Logical int64 `json:"logical"` // virtual size
	Read    int64 `json:"read"`    // read by the agent
	Sent    int64 `json:"sent"`    // chunk payloads on the wire
	Stored  int64 `json:"stored"`  // new in the pool, as stored
	Changed int64 `json:"changed"` // the tracker's answer, before alignment; 0 for a full read
}

// Add adds o to s.
func (s *Stats) Add(o Stats) {
	s.Logical += o.Logical
	s.Read += o.Read
	s.Sent += o.Sent
	s.Stored += o.Stored
	s.Changed += o.Changed
}

// Check refuses a manifest outside its bounds. The error is Invalid.
func (m *Manifest) Check() error {
	const op = "check manifest"
	switch {
	case m.ID.IsZero():
		return Errorf(Invalid, op, "no set id")
	case m.VM.ID.IsZero():
		return Errorf(Invalid, op, "no VM id")
	case len(m.Disks) > MaxDisks:
		return Errorf(Invalid, op, "%d disks; at most %d are allowed", len(m.Disks), MaxDisks)
	case len(m.Adapters) > MaxAdapters:
		return Errorf(Invalid, op, "%d network adapters; at most %d are allowed", len(m.Adapters), MaxAdapters)
	case len(m.Attachments) > MaxAttachments:
		return Errorf(Invalid, op, "%d attachments; at most %d are allowed", len(m.Attachments), MaxAttachments)
	case (m.Kind == Incremental) == m.Parent.IsZero() || (m.Kind != Full && m.Kind != Incremental):
		return Errorf(Invalid, op, "a set of kind %q with parent %q", m.Kind, m.Parent)
	}
	seen := make(map[DiskID]bool, len(m.Disks))
	for _, d := range m.Disks {
		switch {
		case d.ID.IsZero() || seen[d.ID]:
			return Errorf(Invalid, op, "disk id %q is missing or there twice", d.ID)
		case d.Size <= 0 || d.Size > MaxDiskSize || d.Size%512 != 0:
			return Errorf(Invalid, op, "disk %s has size %d", d.ID, d.Size)
		case d.Inherit && m.Parent.IsZero():
			return Errorf(Invalid, op, "disk %s inherits, but the set has no parent", d.ID)
		}
		seen[d.ID] = true
	}
	for _, a := range m.Attachments {
		if len(a.Data) > MaxAttachmentBytes {
			return Errorf(Invalid, op, "attachment %q has %d bytes; at most %d are allowed", a.Name, len(a.Data), MaxAttachmentBytes)
		}
	}
	return nil
}

// Disk returns the disk with the id, or nil.
func (m *Manifest) Disk(id DiskID) *Disk {
	for i := range m.Disks {
		if m.Disks[i].ID == id {
			return &m.Disks[i]
		}
	}
	return nil
}

// MarshalManifest returns the canonical JSON of m. Bytes of names that are not UTF-8 become U+FFFD.
func MarshalManifest(m *Manifest) ([]byte, error) {
	b, err := json.Marshal(m)
	if err == nil && bytes.Contains(b, []byte(`\ufffd`)) {
		// encoding/json escapes the replacement of a bad byte, but not a U+FFFD that is there: only the second is canonical.
		var valid Manifest
		if err = json.Unmarshal(b, &valid); err == nil {
			b, err = json.Marshal(&valid)
		}
	}
	if err != nil {
		return nil, Errorf(Internal, "encode manifest", "%w", err)
	}
	if len(b) > MaxManifestBytes {
		return nil, Errorf(Invalid, "encode manifest", "%d bytes; at most %d are allowed", len(b), MaxManifestBytes)
	}
	return b, nil
}

// UnmarshalManifest reads a manifest and refuses one that is out of bounds, has unknown fields or is not in canonical form
// (so that what was read can be written again, byte for byte). The error is Invalid.
func UnmarshalManifest(b []byte) (Manifest, error) {
	const op = "decode manifest"
	var m Manifest
	if len(b) > MaxManifestBytes {
		return m, Errorf(Invalid, op, "%d bytes; at most %d are allowed", len(b), MaxManifestBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return Manifest{}, Errorf(Invalid, op, "%w", err)
	}
	if err := m.Check(); err != nil {
		return Manifest{}, err
	}
	again, err := MarshalManifest(&m)
	if err != nil {
		return Manifest{}, err
	}
	if !bytes.Equal(again, b) {
		return Manifest{}, Errorf(Invalid, op, "not in canonical form")
	}
	return m, nil
}
