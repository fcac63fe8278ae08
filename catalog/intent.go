package catalog

import (
	"iter"

	"github.com/holdfast-backup/holdfast"
)

// An Intent says that a set is about to be committed to a pool. It is written before Pool's commit and goes in the transaction
// that adds the set. One that is left after a crash is a question to the pool: if it has the set, the set is added, else the
// intent is dropped.
type Intent struct {
	Set         holdfast.SetID             `json:"set"`
	Pool        holdfast.PoolID            `json:"pool"`
	Manifest    holdfast.Manifest          `json:"manifest"` // without attachments
	Attachments []AttachmentInfo           `json:"attachments,omitempty"`
	Tokens      map[holdfast.DiskID]string `json:"tokens,omitempty"` // change tracking ids that become good with the set
}

// PutIntent writes an intent. The attachments of its manifest are left out. Exist if the set is there already.
func (tx *Tx) PutIntent(i Intent) error {
	const op = "put intent"
	if i.Set.IsZero() || i.Pool.IsZero() || i.Manifest.ID != i.Set {
		return holdfast.Errorf(holdfast.Invalid, op, "set %q, pool %q and manifest %q do not belong together", i.Set, i.Pool, i.Manifest.ID)
	}
	old, err := find[Set](tx, setKind, idKey(tSet, i.Set.ID))
	if err != nil {
		return err
	}
	if old != nil {
		return holdfast.Errorf(holdfast.Exist, op, "set %s is there already", i.Set)
	}
	if len(i.Manifest.Attachments) > 0 {
		i.Manifest, i.Attachments = strip(i.Manifest)
	}
	return put(tx, intentKind, idKey(tIntent, i.Set.ID), &i)
}

// Intents yields the intents by set.
func (tx *Tx) Intents() iter.Seq2[Intent, error] {
	return records(all[Intent](tx, intentKind, key(tIntent), "", false))
}

// DeleteIntent removes an intent. Removing what is not there is no error.
func (tx *Tx) DeleteIntent(id holdfast.SetID) error {
	if err := tx.writable(); err != nil {
		return err
	}
	tx.b.Delete(idKey(tIntent, id.ID))
	return nil
}

// A Tombstone says that a set is about to be deleted from a pool. It is written before Pool.Delete and goes together with the
// set's record. For one that is left after a crash, Pool.Delete is called again.
type Tombstone struct {
	Set  holdfast.SetID  `json:"set"`
	Pool holdfast.PoolID `json:"pool"`
}

// PutTombstone writes a set's tombstone, marks the set as being deleted, and forgets the change tracking ids that stand on it:
// from here on it is no parent of anything. Doing it again is no error. NotExist if there is no such set.
func (tx *Tx) PutTombstone(id holdfast.SetID) error {
	s, err := tx.Set(id)
	if err != nil {
		return err
	}
	if s.State != SetDeleting {
		s.State = SetDeleting
		if err := tx.PutSet(s); err != nil {
			return err
		}
	}
	t, err := find[Tracking](tx, trackingKind, trackingKey(s.Manifest.VM.ID, s.Pool))
	if err != nil {
		return err
	}
	if t != nil && t.Set == id {
		if err := tx.DeleteTracking(t.VM, t.Pool); err != nil {
			return err
		}
	}
	return put(tx, tombstoneKind, idKey(tTombstone, id.ID), &Tombstone{Set: id, Pool: s.Pool})
}

// LiftTombstone takes back a tombstone whose deletion the pool refused for good reason: the set is what it was. t is the tracking that the tombstone made
// the catalog forget, if any; it is put back unless there is newer. Lifting what is not there is no error, but for a set that is not there (NotExist).
func (tx *Tx) LiftTombstone(id holdfast.SetID, was SetState, t *Tracking) error {
	s, err := tx.Set(id)
	if err != nil {
		return err
	}
	if s.State == SetDeleting {
		s.State = was
		if err := tx.PutSet(s); err != nil {
			return err
		}
	}
	if t != nil {
		now, err := find[Tracking](tx, trackingKind, trackingKey(t.VM, t.Pool))
		if err != nil {
			return err
		}
		if now == nil {
			if err := tx.PutTracking(*t); err != nil {
				return err
			}
		}
	}
	tx.b.Delete(idKey(tTombstone, id.ID))
	return nil
}

// Tombstones yields the tombstones by set.
func (tx *Tx) Tombstones() iter.Seq2[Tombstone, error] {
	return records(all[Tombstone](tx, tombstoneKind, key(tTombstone), "", false))
}
