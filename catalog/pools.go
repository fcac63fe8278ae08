package catalog

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// PoolState is what the appliance knows of a pool's fitness.
type PoolState string

// The states of a pool.
const (
	PoolReady    PoolState = "ready"
	PoolOffline  PoolState = "offline"
	PoolDeleting PoolState = "deleting"
)

// A Pool is a configured storage target. Config is the driver's own, with secrets as the driver wants them kept.
type Pool struct {
	ID      holdfast.PoolID `json:"id"`
	Name    string          `json:"name"`
	Kind    string          `json:"kind"`
	Config  json.RawMessage `json:"config,omitempty"`
	Created time.Time       `json:"created"`
	State   PoolState       `json:"state"`
}

func poolIndex(p *Pool) [][]byte {
	return [][]byte{key(tPoolName, []byte(p.Name), []byte{0}, p.ID.ID[:])}
}

// PutPool adds a pool or changes it. Exist if another pool has the name.
func (tx *Tx) PutPool(p Pool) error {
	const op = "put pool"
	if p.ID.IsZero() {
		return holdfast.Errorf(holdfast.Invalid, op, "no id")
	}
	if err := checkName(op, p.Name); err != nil {
		return err
	}
	switch other, err := tx.PoolByName(p.Name); {
	case err == nil && other.ID != p.ID:
		return holdfast.Errorf(holdfast.Exist, op, "there is a pool %q already", p.Name).Advise("choose another name")
	case err != nil && !errors.Is(err, holdfast.NotExist):
		return err
	}
	return putIndexed(tx, poolKind, idKey(tPool, p.ID.ID), &p, poolIndex)
}

// Pool returns the pool; NotExist if there is none.
func (tx *Tx) Pool(id holdfast.PoolID) (Pool, error) {
	return get[Pool](tx, poolKind, idKey(tPool, id.ID))
}

// PoolByName returns the pool with the name; NotExist if there is none.
func (tx *Tx) PoolByName(name string) (Pool, error) {
	return oneByName[Pool](tx, poolKind, tPool, tPoolName, name)
}

// FindPool returns the pool that has the name, or else the id, that somebody typed.
func (tx *Tx) FindPool(nameOrID string) (Pool, error) {
	return findByNameOrID[Pool](tx, poolKind, tPool, tPoolName, nameOrID)
}

// Pools lists the pools by name.
func (tx *Tx) Pools(p Page) ([]Pool, Cursor, error) {
	return collect(p, byIndex[Pool](tx, poolKind, tPool, key(tPoolName), p.Cursor, false))
}

// DeletePool removes a pool that has no sets, intents or tombstones left, else it fails with Busy. Removing what is not there
// is no error.
func (tx *Tx) DeletePool(id holdfast.PoolID) error {
	const op = "delete pool"
	for _, err := range tx.Sets(SetFilter{Pool: id}) {
		if err != nil {
			return err
		}
		return holdfast.Errorf(holdfast.Busy, op, "it still has sets").Advise("delete its sets first")
	}
	for i, err := range tx.Intents() {
		switch {
		case err != nil:
			return err
		case i.Pool == id:
			return holdfast.Errorf(holdfast.Busy, op, "a set is being written to it").Advise("wait until the run has ended")
		}
	}
	for t, err := range tx.Tombstones() {
		switch {
		case err != nil:
			return err
		case t.Pool == id:
			return holdfast.Errorf(holdfast.Busy, op, "a set is being deleted from it").Advise("wait until it is gone")
		}
	}
	_, err := removeIndexed(tx, poolKind, idKey(tPool, id.ID), poolIndex)
	return err
}

// oneByName returns the record of a table that has the name, by its name index.
func oneByName[T any](tx *Tx, k *kind, table, index byte, name string) (T, error) {
	var none T
	if checkName("", name) != nil { // no record has such a name, and a NUL in it would find another's
		return none, noName(k, name)
	}
	for e, err := range byIndex[T](tx, k, table, nameKey(index, name), "", false) {
		return e.rec, err
	}
	return none, noName(k, name)
}

func noName(k *kind, name string) error {
	return holdfast.Errorf(holdfast.NotExist, "read catalog", "there is no %s %q", k.name, name)
}

func findByNameOrID[T any](tx *Tx, k *kind, table, index byte, s string) (T, error) {
	v, err := oneByName[T](tx, k, table, index, s)
	if err == nil || !errors.Is(err, holdfast.NotExist) {
		return v, err
	}
	id, perr := holdfast.ParseID(s)
	if perr != nil {
		return v, err
	}
	return get[T](tx, k, idKey(table, id))
}
