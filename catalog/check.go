package catalog

import (
	"bytes"
	"errors"

	"github.com/holdfast-backup/holdfast"
)

// maxFindings bounds what Check tells: who has more damage than that rebuilds anyway.
const maxFindings = 50

// Check reads the whole catalog and returns everything that is wrong with it, joined: records that do not read, indexes that
// do not say what records say, records under another's key, and references to pools and sets that are not there.
func (c *Catalog) Check() error {
	var found []error
	err := c.View(func(tx *Tx) error {
		k := &checker{tx: tx, want: map[string]bool{}}
		for it, err := range tx.r.Scan(nil, nil) {
			if err != nil {
				return err
			}
			k.item(it.Key, it.Value)
		}
		for e := range k.want {
			k.bad("the index entry %x is missing", e)
		}
		found = k.found
		return nil
	})
	return errors.Join(append(found[:len(found):len(found)], err)...)
}

type checker struct {
	tx    *Tx
	want  map[string]bool // index entries that records ask for and that were not seen yet; capital letters sort before small ones
	found []error
}

func (k *checker) bad(format string, args ...any) {
	if len(k.found) < maxFindings {
		k.found = append(k.found, holdfast.Errorf(holdfast.Corrupt, "check catalog", format, args...).Advise(adviseRebuild))
	}
}

// record reads one record and compares the key it should have and the entries it should have with what is there.
func record[T any](k *checker, kd *kind, at, rec []byte, keyOf func(*T) []byte, index func(*T) [][]byte) *T {
	v := new(T)
	if err := decode(kd, at, rec, v); err != nil {
		if len(k.found) < maxFindings {
			k.found = append(k.found, err)
		}
		return nil
	}
	if keyOf != nil && !bytes.Equal(keyOf(v), at) {
		k.bad("%s has the content of another", describe(kd, at))
	}
	if index != nil {
		for _, e := range index(v) {
			k.want[string(e)] = true
		}
	}
	return v
}

func (k *checker) item(at, rec []byte) {
	switch at[0] {
	case 'M':
		record[meta](k, metaKind, at, rec, nil, nil)
	case tPool:
		record(k, poolKind, at, rec, func(p *Pool) []byte { return idKey(tPool, p.ID.ID) }, poolIndex)
	case tHost:
		record(k, hostKind, at, rec, func(h *Host) []byte { return idKey(tHost, h.ID.ID) }, hostIndex)
	case tEnrolKey:
		record(k, enrolKind, at, rec, func(e *EnrolKey) []byte { return enrolKeyOf(e.Hash) }, nil)
	case tVM:
		record(k, vmKind, at, rec, func(v *VM) []byte { return idKey(tVM, v.ID.ID) }, vmIndex)
	case tSet:
		record(k, setKind, at, rec, func(s *Set) []byte { return idKey(tSet, s.Manifest.ID.ID) }, setIndex)
	case tTracking:
		if t := record(k, trackingKind, at, rec, func(t *Tracking) []byte { return trackingKey(t.VM, t.Pool) }, nil); t != nil {
			k.needSet("tracking", t.Set)
			if !t.Full.IsZero() {
				k.needSet("tracking", t.Full)
			}
		}
	case tRun:
		record(k, runKind, at, rec, func(r *Run) []byte { return idKey(tRun, r.ID.ID) }, runIndex)
	case tJob:
		record(k, jobKind, at, rec, func(j *Job) []byte { return key(tJob, []byte(j.Name)) }, nil)
	case tIntent:
		record(k, intentKind, at, rec, func(i *Intent) []byte { return idKey(tIntent, i.Set.ID) }, nil)
	case tTombstone:
		if t := record(k, tombstoneKind, at, rec, func(t *Tombstone) []byte { return idKey(tTombstone, t.Set.ID) }, nil); t != nil {
			k.needSet("tombstone", t.Set)
		}
	case tEvent:
		record(k, eventKind, at, rec, func(e *eventRecord) []byte { return eventKey(e.Seq) }, nil)
	case tSetting:
		record[setting](k, settingKind, at, rec, nil, nil)
	case tPoolName, tHostName, tVMHost, tSetTime, tSetPool, tSetVM, tSetBoth, tRunActive:
		if !k.want[string(at)] {
			k.bad("the index entry %x stands for nothing", at)
		}
		delete(k.want, string(at))
	default:
		k.bad("the key %x is of no table", at)
	}
}

func (k *checker) needSet(what string, id holdfast.SetID) {
	_, ok, err := k.tx.r.Get(idKey(tSet, id.ID))
	if err == nil && !ok {
		k.bad("a %s names set %s, which is not there", what, id)
	}
}
