package catalog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-backup/holdfast"
)

// MaxRecordBytes bounds one record: a manifest without attachments is far below it.
const MaxRecordBytes = 16 << 20

// A kind is one type of record. Numbers are on the medium: append only.
type kind struct {
	typ     byte
	version byte   // of the body, as written now; from 1
	name    string // for error messages
	// migrate[n] turns a body of version n into one of version n+1. It must be there for every earlier version.
	migrate map[byte]func(json.RawMessage) (json.RawMessage, error)
}

var (
	metaKind      = &kind{typ: 1, version: 1, name: "format record"}
	poolKind      = &kind{typ: 2, version: 1, name: "pool"}
	hostKind      = &kind{typ: 3, version: 1, name: "host"}
	enrolKind     = &kind{typ: 4, version: 1, name: "enrolment key"}
	vmKind        = &kind{typ: 5, version: 1, name: "VM"}
	setKind       = &kind{typ: 6, version: 1, name: "set"}
	trackingKind  = &kind{typ: 7, version: 2, name: "tracking record", migrate: unchanged(1)}
	runKind       = &kind{typ: 8, version: 2, name: "run", migrate: unchanged(1)}
	jobKind       = &kind{typ: 9, version: 2, name: "job", migrate: unchanged(1)}
	intentKind    = &kind{typ: 10, version: 1, name: "intent"}
	tombstoneKind = &kind{typ: 11, version: 1, name: "tombstone"}
	eventKind     = &kind{typ: 12, version: 1, name: "event"}
	settingKind   = &kind{typ: 13, version: 1, name: "setting"}
)

// unchanged is for versions to which fields were only added: what was written without them reads as their zero values.
func unchanged(versions ...byte) map[byte]func(json.RawMessage) (json.RawMessage, error) {
	m := map[byte]func(json.RawMessage) (json.RawMessage, error){}
	for _, v := range versions {
		m[v] = func(body json.RawMessage) (json.RawMessage, error) { return body, nil }
	}
	return m
}

// A record is [type][version][JSON body][CRC-32C of all before it, little-endian].
const (
	recordHead = 2
	recordTail = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode makes the record of v.
func encode(k *kind, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, "encode "+k.name, "%w", err)
	}
	if len(body) > MaxRecordBytes {
		return nil, holdfast.Errorf(holdfast.Invalid, "encode "+k.name, "%d bytes; at most %d are allowed", len(body), MaxRecordBytes)
	}
	return frame(k.typ, k.version, body), nil
}

// frame puts a record together.
func frame(typ, version byte, body []byte) []byte {
	rec := make([]byte, 0, recordHead+len(body)+recordTail)
	rec = append(rec, typ, version)
	rec = append(rec, body...)
	return binary.LittleEndian.AppendUint32(rec, crc32.Checksum(rec, castagnoli))
}

// decode reads a record into v, bringing an earlier version up to date. Errors name the record by its key.
func decode(k *kind, key, rec []byte, v any) error {
	bad := func(format string, args ...any) error {
		return holdfast.Errorf(holdfast.Corrupt, "read catalog", "%s: %w", describe(k, key), fmt.Errorf(format, args...)).Advise(adviseRebuild)
	}
	n := len(rec) - recordTail
	switch {
	case n < recordHead || n-recordHead > MaxRecordBytes:
		return bad("a record of %d bytes", len(rec))
	case binary.LittleEndian.Uint32(rec[n:]) != crc32.Checksum(rec[:n], castagnoli):
		return bad("the checksum is wrong")
	case rec[0] != k.typ:
		return bad("the record is of type %d, not %d", rec[0], k.typ)
	case rec[1] == 0:
		return bad("the record has no version")
	case rec[1] > k.version:
		return holdfast.Errorf(holdfast.Unsupported, "read catalog", "%s: its version is %d, this program knows up to %d",
			describe(k, key), rec[1], k.version).Advise("use the program that wrote it, or a newer one")
	}
	body := json.RawMessage(rec[recordHead:n])
	for ver := rec[1]; ver < k.version; ver++ {
		step := k.migrate[ver]
		if step == nil {
			return bad("nothing knows how to read version %d", ver)
		}
		var err error
		if body, err = step(body); err != nil {
			return bad("bring version %d up to date: %w", ver, err)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return bad("%w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return bad("there is more behind the body")
	}
	return nil
}

// describe names a record for a person.
func describe(k *kind, key []byte) string {
	if len(key) == 0 {
		return k.name
	}
	rest := key[1:]
	switch {
	case len(rest) == 0:
		return k.name
	case len(rest)%idLen == 0 && k != jobKind && k != settingKind && k != enrolKind:
		s := k.name
		for len(rest) > 0 {
			s += " " + holdfast.ID(rest[:idLen]).String()
			rest = rest[idLen:]
		}
		return s
	case k == eventKind && len(rest) == 8:
		return fmt.Sprintf("%s %d", k.name, binary.BigEndian.Uint64(rest))
	case validName(string(rest)):
		return fmt.Sprintf("%s %q", k.name, rest)
	}
	return fmt.Sprintf("%s %x", k.name, rest)
}

func validName(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}

// get reads the record at key; NotExist if there is none.
func get[T any](tx *Tx, k *kind, key []byte) (T, error) {
	var v, none T
	rec, ok, err := tx.r.Get(key)
	if err != nil {
		return none, err
	}
	if !ok {
		return none, holdfast.Errorf(holdfast.NotExist, "read catalog", "there is no %s", describe(k, key))
	}
	if err := decode(k, key, rec, &v); err != nil {
		return none, err
	}
	return v, nil
}

// find is get, with nil where there is none.
func find[T any](tx *Tx, k *kind, key []byte) (*T, error) {
	rec, ok, err := tx.r.Get(key)
	if err != nil || !ok {
		return nil, err
	}
	v := new(T)
	if err := decode(k, key, rec, v); err != nil {
		return nil, err
	}
	return v, nil
}

// put writes the record at key.
func put[T any](tx *Tx, k *kind, key []byte, v *T) error {
	if err := tx.writable(); err != nil {
		return err
	}
	rec, err := encode(k, v)
	if err != nil {
		return err
	}
	tx.b.Set(key, rec)
	return nil
}

// putIndexed writes a record together with its index entries: those that the old record had go, those of the new one come.
func putIndexed[T any](tx *Tx, k *kind, key []byte, v *T, index func(*T) [][]byte) error {
	if err := tx.writable(); err != nil {
		return err
	}
	old, err := find[T](tx, k, key)
	if err != nil {
		return err
	}
	if err := put(tx, k, key, v); err != nil {
		return err
	}
	if old != nil {
		for _, e := range index(old) {
			tx.b.Delete(e)
		}
	}
	for _, e := range index(v) {
		tx.b.Set(e, nil)
	}
	return nil
}

// removeIndexed removes a record and its index entries and returns what it was; nil if it was not there.
func removeIndexed[T any](tx *Tx, k *kind, key []byte, index func(*T) [][]byte) (*T, error) {
	if err := tx.writable(); err != nil {
		return nil, err
	}
	old, err := find[T](tx, k, key)
	if err != nil || old == nil {
		return nil, err
	}
	tx.b.Delete(key)
	if index != nil {
		for _, e := range index(old) {
			tx.b.Delete(e)
		}
	}
	return old, nil
}

// all yields the records below prefix in the order of their keys, behind the cursor.
func all[T any](tx *Tx, k *kind, prefix []byte, c Cursor, back bool) iter.Seq2[entry[T], error] {
	return func(yield func(entry[T], error) bool) {
		lo, hi, err := bounds(prefix, c, back)
		if err != nil {
			yield(entry[T]{}, err)
			return
		}
		scan := tx.r.Scan
		if back {
			scan = tx.r.ScanBack
		}
		for it, err := range scan(lo, hi) {
			var e entry[T]
			if err == nil {
				err = decode(k, it.Key, it.Value, &e.rec)
				e.at = makeCursor(it.Key)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// byIndex yields the records that the index entries below prefix point at, in the order of the index, behind the cursor.
func byIndex[T any](tx *Tx, k *kind, table byte, prefix []byte, c Cursor, back bool) iter.Seq2[entry[T], error] {
	return func(yield func(entry[T], error) bool) {
		lo, hi, err := bounds(prefix, c, back)
		if err != nil {
			yield(entry[T]{}, err)
			return
		}
		scan := tx.r.Scan
		if back {
			scan = tx.r.ScanBack
		}
		for it, err := range scan(lo, hi) {
			var e entry[T]
			if err == nil {
				e.at = makeCursor(it.Key)
				e.rec, err = get[T](tx, k, idKey(table, lastID(it.Key)))
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}
