package catalog

import (
	"errors"
	"iter"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// SetState is what is known of a set's fitness.
type SetState string

// The states of a set.
const (
	SetCommitted SetState = "committed" // it is whole; nobody has read it back since
	SetVerified  SetState = "verified"  // it was read back and was right, at VerifiedAt
	SetDamaged   SetState = "damaged"   // it was read back and was not right
	SetDeleting  SetState = "deleting"  // it has a tombstone
)

// AttachmentInfo is what the catalog keeps of an attachment; the pool has its bytes.
type AttachmentInfo struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// A Set is a backup set of a pool. Its manifest has no attachments: their names and sizes are in Attachments.
type Set struct {
	Manifest    holdfast.Manifest `json:"manifest"`
	Attachments []AttachmentInfo  `json:"attachments,omitempty"`
	Pool        holdfast.PoolID   `json:"pool"`
	State       SetState          `json:"state"`
	VerifiedAt  time.Time         `json:"verified_at,omitzero"`
}

// NewSet returns the record of a set that a pool has committed.
func NewSet(pool holdfast.PoolID, m holdfast.Manifest) Set {
	s := Set{Pool: pool, State: SetCommitted}
	s.Manifest, s.Attachments = strip(m)
	return s
}

// strip takes the attachments out of a manifest.
func strip(m holdfast.Manifest) (holdfast.Manifest, []AttachmentInfo) {
	var infos []AttachmentInfo
	for _, a := range m.Attachments {
		infos = append(infos, AttachmentInfo{a.Name, int64(len(a.Data))})
	}
	m.Attachments = nil
	return m, infos
}

func setIndex(s *Set) [][]byte {
	id, vm, at := s.Manifest.ID.ID[:], s.Manifest.VM.ID.ID[:], timeKey(s.Manifest.Created)
	return [][]byte{
		key(tSetTime, at, id),
		key(tSetPool, s.Pool.ID[:], at, id),
		key(tSetVM, vm, at, id),
		key(tSetBoth, vm, s.Pool.ID[:], at, id),
	}
}

// PutSet adds a set or changes what is known of it.
func (tx *Tx) PutSet(s Set) error {
	const op = "put set"
	if s.Pool.IsZero() {
		return holdfast.Errorf(holdfast.Invalid, op, "no pool")
	}
	if len(s.Manifest.Attachments) > 0 {
		return holdfast.Errorf(holdfast.Invalid, op, "the manifest has attachments").Advise("make the record with NewSet")
	}
	if err := s.Manifest.Check(); err != nil {
		return err
	}
	return putIndexed(tx, setKind, idKey(tSet, s.Manifest.ID.ID), &s, setIndex)
}

// AddSet adds a set that its pool has committed, removes its intent, and keeps the change tracking ids that came with it, if
// any: the whole of what an acknowledgement stands on, in one transaction.
func (tx *Tx) AddSet(s Set, tokens map[holdfast.DiskID]string) error {
	if err := tx.PutSet(s); err != nil {
		return err
	}
	if err := tx.DeleteIntent(s.Manifest.ID); err != nil {
		return err
	}
	if len(tokens) == 0 {
		return nil
	}
	return tx.PutTracking(Tracking{VM: s.Manifest.VM.ID, Pool: s.Pool, Set: s.Manifest.ID, Tokens: tokens})
}

// Set returns the set; NotExist if there is none.
func (tx *Tx) Set(id holdfast.SetID) (Set, error) { return get[Set](tx, setKind, idKey(tSet, id.ID)) }

// A SetFilter chooses sets; what is zero does not choose. NewestFirst turns the order round.
type SetFilter struct {
	Pool        holdfast.PoolID
	VM          holdfast.VMID
	NewestFirst bool
}

func (f SetFilter) prefix() []byte {
	switch {
	case !f.Pool.IsZero() && !f.VM.IsZero():
		return key(tSetBoth, f.VM.ID[:], f.Pool.ID[:])
	case !f.VM.IsZero():
		return key(tSetVM, f.VM.ID[:])
	case !f.Pool.IsZero():
		return key(tSetPool, f.Pool.ID[:])
	}
	return key(tSetTime)
}

// Sets yields the chosen sets by point in time, and where that is equal by id.
func (tx *Tx) Sets(f SetFilter) iter.Seq2[Set, error] {
	return records(byIndex[Set](tx, setKind, tSet, f.prefix(), "", f.NewestFirst))
}

// ListSets is one page of Sets.
func (tx *Tx) ListSets(f SetFilter, p Page) ([]Set, Cursor, error) {
	return collect(p, byIndex[Set](tx, setKind, tSet, f.prefix(), p.Cursor, f.NewestFirst))
}

// NewestSet returns the VM's newest set in the pool that is fit to be a parent: neither damaged nor being deleted. NotExist
// if there is none.
func (tx *Tx) NewestSet(vm holdfast.VMID, pool holdfast.PoolID) (Set, error) {
	for s, err := range tx.Sets(SetFilter{Pool: pool, VM: vm, NewestFirst: true}) {
		if err != nil || s.State == SetCommitted || s.State == SetVerified {
			return s, err
		}
	}
	return Set{}, holdfast.Errorf(holdfast.NotExist, "read catalog", "VM %s has no set in pool %s", vm, pool)
}

// DeleteSet removes the set's record, its tombstone, and the change tracking ids that stand on it. Removing what is not there
// is no error.
func (tx *Tx) DeleteSet(id holdfast.SetID) error {
	old, err := removeIndexed(tx, setKind, idKey(tSet, id.ID), setIndex)
	if err != nil {
		return err
	}
	tx.b.Delete(idKey(tTombstone, id.ID))
	if old == nil {
		return nil
	}
	t, err := tx.Tracking(old.Manifest.VM.ID, old.Pool)
	switch {
	case errors.Is(err, holdfast.NotExist):
		return nil
	case err != nil:
		return err
	case t.Set == id && (t.Full.IsZero() || t.Full == id):
		return tx.DeleteTracking(t.VM, t.Pool)
	case t.Set == id: // the full's ids are still good
		return tx.PutTracking(Tracking{VM: t.VM, Pool: t.Pool, Set: t.Full, Tokens: t.FullTokens})
	case t.Full == id:
		t.Full, t.FullTokens = holdfast.SetID{}, nil
		return tx.PutTracking(t)
	}
	return nil
}

// ListSets returns all sets in an order that depends only on the sets: by point in time, then by id. A rebuilt catalog gives
// the same list as the one it replaces, but for states that only the old one knew.
func ListSets(c *Catalog) ([]Set, error) {
	var out []Set
	err := c.View(func(tx *Tx) error {
		for s, err := range tx.Sets(SetFilter{}) {
			if err != nil {
				return err
			}
			out = append(out, s)
		}
		return nil
	})
	return out, err
}

// Tracking is the change tracking ids of a VM's newest set in a pool: what the next incremental of the VM starts from. The ids of its
// newest full set are kept beside them: what the next differential starts from.
type Tracking struct {
	VM     holdfast.VMID              `json:"vm"`
	Pool   holdfast.PoolID            `json:"pool"`
	Set    holdfast.SetID             `json:"set"` // what the ids belong to
	Tokens map[holdfast.DiskID]string `json:"tokens"`

	Full       holdfast.SetID             `json:"full,omitzero"` // the newest full set, where it is another one
	FullTokens map[holdfast.DiskID]string `json:"full_tokens,omitempty"`
}

// MaxTokenBytes bounds one change tracking id.
const MaxTokenBytes = 64 << 10

func trackingKey(vm holdfast.VMID, pool holdfast.PoolID) []byte {
	return key(tTracking, vm.ID[:], pool.ID[:])
}

// PutTracking keeps the ids, in place of those that were kept before. The set must be there.
func (tx *Tx) PutTracking(t Tracking) error {
	const op = "put tracking"
	for _, tokens := range []map[holdfast.DiskID]string{t.Tokens, t.FullTokens} {
		if len(tokens) > holdfast.MaxDisks {
			return holdfast.Errorf(holdfast.Invalid, op, "%d disks; at most %d are allowed", len(tokens), holdfast.MaxDisks)
		}
		for d, token := range tokens {
			if len(token) > MaxTokenBytes || d.IsZero() {
				return holdfast.Errorf(holdfast.Invalid, op, "disk %q has an id of %d bytes; at most %d are allowed", d, len(token), MaxTokenBytes)
			}
		}
	}
	for _, id := range []holdfast.SetID{t.Set, t.Full} {
		if id.IsZero() && id == t.Full && id != t.Set {
			continue // the newest set is the full, or there is none
		}
		s, err := tx.Set(id)
		if err != nil {
			return err
		}
		if s.Pool != t.Pool || s.Manifest.VM.ID != t.VM {
			return holdfast.Errorf(holdfast.Invalid, op, "set %s is of another VM or pool", id)
		}
	}
	return put(tx, trackingKind, trackingKey(t.VM, t.Pool), &t)
}

// Tracking returns the ids of the VM's newest set in the pool; NotExist if there are none.
func (tx *Tx) Tracking(vm holdfast.VMID, pool holdfast.PoolID) (Tracking, error) {
	return get[Tracking](tx, trackingKind, trackingKey(vm, pool))
}

// DeleteTracking forgets the ids: the next backup reads the whole disks. Removing what is not there is no error.
func (tx *Tx) DeleteTracking(vm holdfast.VMID, pool holdfast.PoolID) error {
	if err := tx.writable(); err != nil {
		return err
	}
	tx.b.Delete(trackingKey(vm, pool))
	return nil
}
