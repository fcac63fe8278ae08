package catalog

import (
	"time"

	"github.com/holdfast-backup/holdfast"
)

// A VM is a virtual machine as its host's agent last described it.
type VM struct {
	ID         holdfast.VMID   `json:"id"`
	Host       holdfast.HostID `json:"host"`
	Name       string          `json:"name"`
	Generation int             `json:"generation"`
	State      string          `json:"state,omitempty"` // the hypervisor's word
	Disks      []holdfast.Disk `json:"disks,omitempty"`
	LastSeen   time.Time       `json:"last_seen,omitzero"`
}

func vmIndex(v *VM) [][]byte { return [][]byte{key(tVMHost, v.Host.ID[:], v.ID.ID[:])} }

// PutVM adds a VM or changes it, also its host.
func (tx *Tx) PutVM(v VM) error {
	const op = "put VM"
	switch {
	case v.ID.IsZero():
		return holdfast.Errorf(holdfast.Invalid, op, "no id")
	case v.Host.IsZero():
		return holdfast.Errorf(holdfast.Invalid, op, "no host")
	case len(v.Disks) > holdfast.MaxDisks:
		return holdfast.Errorf(holdfast.Invalid, op, "%d disks; at most %d are allowed", len(v.Disks), holdfast.MaxDisks)
	}
	return putIndexed(tx, vmKind, idKey(tVM, v.ID.ID), &v, vmIndex)
}

// VM returns the VM; NotExist if there is none.
func (tx *Tx) VM(id holdfast.VMID) (VM, error) { return get[VM](tx, vmKind, idKey(tVM, id.ID)) }

// VMs lists the VMs by id, those of one host or, for the zero id, all.
func (tx *Tx) VMs(host holdfast.HostID, p Page) ([]VM, Cursor, error) {
	if host.IsZero() {
		return collect(p, all[VM](tx, vmKind, key(tVM), p.Cursor, false))
	}
	return collect(p, byIndex[VM](tx, vmKind, tVM, key(tVMHost, host.ID[:]), p.Cursor, false))
}

// FindVMs returns the VMs that have the name, or else the one with the id, that somebody typed. Names of VMs are not unique:
// the caller decides about more than one. NotExist if there is none.
func (tx *Tx) FindVMs(nameOrID string) ([]VM, error) {
	var out []VM
	id, perr := holdfast.ParseID(nameOrID)
	for v, err := range records(all[VM](tx, vmKind, key(tVM), "", false)) {
		if err != nil {
			return nil, err
		}
		if v.Name == nameOrID || perr == nil && v.ID.ID == id {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		return nil, noName(vmKind, nameOrID)
	}
	return out, nil
}

// DeleteVM forgets a VM; its sets stay. Removing what is not there is no error.
func (tx *Tx) DeleteVM(id holdfast.VMID) error {
	_, err := removeIndexed(tx, vmKind, idKey(tVM, id.ID), vmIndex)
	return err
}
