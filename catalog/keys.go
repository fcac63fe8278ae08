package catalog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// The key layout. The first byte names the table; capital letters are records, small letters are indexes whose value is empty
// and which repeat what records say. Ids are 16 raw bytes, times 8 bytes (see timeKey), names are UTF-8 without NUL.
//
//	M                           meta: what the catalog is
//	P pool                      pool
//	p name NUL pool             pools by name
//	H host                      host
//	h name NUL host             hosts by name
//	K hash(32)                  enrolment key, by the SHA-256 of its secret
//	V vm                        VM
//	v host vm                   VMs by host
//	S set                       set
//	t time set                  sets by time
//	o pool time set             sets by pool and time
//	w vm time set               sets by VM and time
//	x vm pool time set          sets by VM, pool and time: the last one is the newest
//	T vm pool                   tracking
//	R run                       run
//	a run                       runs that have not ended
//	J name                      job
//	I set                       intent
//	D set                       tombstone
//	E number(8, big-endian)     event
//	C name                      setting
const (
	tPool, tPoolName           = 'P', 'p'
	tHost, tHostName           = 'H', 'h'
	tEnrolKey                  = 'K'
	tVM, tVMHost               = 'V', 'v'
	tSet, tSetTime             = 'S', 't'
	tSetPool, tSetVM, tSetBoth = 'o', 'w', 'x'
	tTracking                  = 'T'
	tRun, tRunActive           = 'R', 'a'
	tJob                       = 'J'
	tIntent, tTombstone        = 'I', 'D'
	tEvent                     = 'E'
	tSetting                   = 'C'
)

var metaKey = []byte{'M'}

const idLen = len(holdfast.ID{})

// MaxName bounds the names of pools, hosts, jobs and settings, in bytes.
const MaxName = 255

// key puts a key together from its table and its parts.
func key(table byte, parts ...[]byte) []byte {
	k := make([]byte, 1, 64)
	k[0] = table
	for _, p := range parts {
		k = append(k, p...)
	}
	return k
}

func idKey(table byte, id holdfast.ID) []byte { return key(table, id[:]) }

// timeKey is t as 8 bytes that sort by time: nanoseconds since 1970, big-endian, with the sign bit flipped. Times beyond what
// that can hold (1678 to 2262) are the nearest it can.
func timeKey(t time.Time) []byte {
	lo, hi := time.Unix(0, -1<<63), time.Unix(0, 1<<63-1)
	if t.Before(lo) {
		t = lo
	}
	if t.After(hi) {
		t = hi
	}
	return binary.BigEndian.AppendUint64(nil, uint64(t.UnixNano())^1<<63)
}

// nameKey is a name index's key up to the id.
func nameKey(table byte, name string) []byte { return key(table, []byte(name), []byte{0}) }

// after returns the first key behind all that begin with prefix.
func after(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// lastID returns the id that ends an index key.
func lastID(k []byte) (id holdfast.ID) {
	if len(k) > idLen {
		copy(id[:], k[len(k)-idLen:])
	}
	return id
}

func checkName(op, name string) error {
	switch {
	case name == "":
		return holdfast.Errorf(holdfast.Invalid, op, "the name is empty")
	case len(name) > MaxName:
		return holdfast.Errorf(holdfast.Invalid, op, "the name has %d bytes; at most %d are allowed", len(name), MaxName)
	case !validName(name):
		return holdfast.Errorf(holdfast.Invalid, op, "the name %q has control characters or is not UTF-8", name)
	}
	return nil
}

func makeCursor(k []byte) Cursor { return Cursor(hex.EncodeToString(k)) }

// bounds returns the range of keys of a listing below prefix that goes on behind the cursor.
func bounds(prefix []byte, c Cursor, back bool) (lo, hi []byte, err error) {
	lo, hi = prefix, after(prefix)
	if c == "" {
		return lo, hi, nil
	}
	k, err := hex.DecodeString(string(c))
	if err != nil || !bytes.HasPrefix(k, prefix) {
		return nil, nil, holdfast.Errorf(holdfast.Invalid, "list", "%.80q is not a cursor of this listing", string(c)).
			Advise("begin the listing again")
	}
	if back {
		return lo, k, nil
	}
	return append(k, 0), hi, nil
}
