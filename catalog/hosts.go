package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// HostState tells whether a host's agent has its certificate.
type HostState string

// The states of a host.
const (
	HostPending  HostState = "pending"  // a key was made, nobody came with it yet
	HostEnrolled HostState = "enrolled" // the agent has a certificate
)

// HostInfo is what an agent says about its host.
type HostInfo struct {
	Name    string `json:"name,omitempty"`
	Product string `json:"product,omitempty"`
	Version string `json:"version,omitempty"`
}

// A Host is a machine with an agent.
type Host struct {
	ID         holdfast.HostID `json:"id"`
	Name       string          `json:"name"`
	State      HostState       `json:"state"`
	CertSerial string          `json:"cert_serial,omitempty"` // of the one certificate that is good, hexadecimal
	LastSeen   time.Time       `json:"last_seen,omitzero"`
	Info       HostInfo        `json:"info"`
	Address    string          `json:"address,omitempty"` // where it last came from
}

func hostIndex(h *Host) [][]byte {
	return [][]byte{key(tHostName, []byte(h.Name), []byte{0}, h.ID.ID[:])}
}

// PutHost adds a host or changes it. Exist if another host has the name.
func (tx *Tx) PutHost(h Host) error {
	const op = "put host"
	if h.ID.IsZero() {
		return holdfast.Errorf(holdfast.Invalid, op, "no id")
	}
	if err := checkName(op, h.Name); err != nil {
		return err
	}
	switch other, err := tx.HostByName(h.Name); {
	case err == nil && other.ID != h.ID:
		return holdfast.Errorf(holdfast.Exist, op, "there is a host %q already", h.Name).Advise("choose another name")
	case err != nil && !errors.Is(err, holdfast.NotExist):
		return err
	}
	return putIndexed(tx, hostKind, idKey(tHost, h.ID.ID), &h, hostIndex)
}

// Host returns the host; NotExist if there is none.
func (tx *Tx) Host(id holdfast.HostID) (Host, error) {
	return get[Host](tx, hostKind, idKey(tHost, id.ID))
}

// HostByName returns the host with the name; NotExist if there is none.
func (tx *Tx) HostByName(name string) (Host, error) {
	return oneByName[Host](tx, hostKind, tHost, tHostName, name)
}

// FindHost returns the host that has the name, or else the id, that somebody typed.
func (tx *Tx) FindHost(nameOrID string) (Host, error) {
	return findByNameOrID[Host](tx, hostKind, tHost, tHostName, nameOrID)
}

// Hosts lists the hosts by name.
func (tx *Tx) Hosts(p Page) ([]Host, Cursor, error) {
	return collect(p, byIndex[Host](tx, hostKind, tHost, key(tHostName), p.Cursor, false))
}

// DeleteHost removes a host and what is known of its VMs; their sets stay. Removing what is not there is no error.
func (tx *Tx) DeleteHost(id holdfast.HostID) error {
	for vm, err := range records(byIndex[VM](tx, vmKind, tVM, key(tVMHost, id.ID[:]), "", false)) {
		if err != nil {
			return err
		}
		if err := tx.DeleteVM(vm.ID); err != nil {
			return err
		}
	}
	_, err := removeIndexed(tx, hostKind, idKey(tHost, id.ID), hostIndex)
	return err
}

// A KeyHash is the SHA-256 of an access key's secret: the secret itself is never kept.
type KeyHash [sha256.Size]byte

// HashKey returns the hash of a secret.
func HashKey(secret []byte) KeyHash { return sha256.Sum256(secret) }

// MarshalText implements encoding.TextMarshaler (hexadecimal).
func (h KeyHash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *KeyHash) UnmarshalText(b []byte) error {
	if len(b) != 2*len(h) {
		return holdfast.Errorf(holdfast.Invalid, "parse key hash", "%d characters; it has %d", len(b), 2*len(h))
	}
	if _, err := hex.Decode(h[:], b); err != nil {
		return holdfast.Errorf(holdfast.Invalid, "parse key hash", "%w", err)
	}
	return nil
}

// An EnrolKey is a one-time access key with which the agent of one host enrols.
type EnrolKey struct {
	Hash     KeyHash   `json:"hash"`
	HostName string    `json:"host_name"`
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires"`
	UsedAt   time.Time `json:"used_at,omitzero"` // zero: not used yet
}

func enrolKeyOf(h KeyHash) []byte { return key(tEnrolKey, h[:]) }

// AddEnrolKey adds a key that was not used yet. Exist if it is known.
func (tx *Tx) AddEnrolKey(k EnrolKey) error {
	const op = "add enrolment key"
	if err := checkName(op, k.HostName); err != nil {
		return err
	}
	if !k.UsedAt.IsZero() {
		return holdfast.Errorf(holdfast.Invalid, op, "it is used already")
	}
	old, err := find[EnrolKey](tx, enrolKind, enrolKeyOf(k.Hash))
	if err != nil {
		return err
	}
	if old != nil {
		return holdfast.Errorf(holdfast.Exist, op, "the key is known already")
	}
	return put(tx, enrolKind, enrolKeyOf(k.Hash), &k)
}

// UseEnrolKey marks the key as used at now and returns it. Unknown, used and expired keys fail with Permission. Since updates
// happen one after the other, a key is used once however many come with it.
func (tx *Tx) UseEnrolKey(h KeyHash, now time.Time) (EnrolKey, error) {
	const op = "use access key"
	advise := "make a new key with: holdfast host enroll NAME"
	k, err := find[EnrolKey](tx, enrolKind, enrolKeyOf(h))
	switch {
	case err != nil:
		return EnrolKey{}, err
	case k == nil:
		return EnrolKey{}, holdfast.Errorf(holdfast.Permission, op, "the key is not known").Advise("%s", advise)
	case !k.UsedAt.IsZero():
		return EnrolKey{}, holdfast.Errorf(holdfast.Permission, op, "the key was used already").Advise("%s", advise)
	case !now.Before(k.Expires):
		return EnrolKey{}, holdfast.Errorf(holdfast.Permission, op, "the key has expired").Advise("%s", advise)
	}
	k.UsedAt = now
	return *k, put(tx, enrolKind, enrolKeyOf(h), k)
}

// EnrolKeys lists the keys in no order that means anything.
func (tx *Tx) EnrolKeys(p Page) ([]EnrolKey, Cursor, error) {
	return collect(p, all[EnrolKey](tx, enrolKind, key(tEnrolKey), p.Cursor, false))
}

// DeleteEnrolKey removes a key. Removing what is not there is no error.
func (tx *Tx) DeleteEnrolKey(h KeyHash) error {
	_, err := removeIndexed[EnrolKey](tx, enrolKind, enrolKeyOf(h), nil)
	return err
}
