// Package hft is Holdfast's own format on tape: labels, objects as tape files, catalogs and commits. docs/formats/hft.md is the format.
//
// It owns what lies on one tape. On a crash everything that Commit has returned is on the tape and is found by reading the tape alone; of what was
// written later nothing counts, and the next Append cuts it off. It knows neither libraries nor pools: who mounts tapes and keeps the catalog of many is above.
// It imports drive, the key formats, and the ground floor.
package hft

import (
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// Bounds and sizes of the format.
const (
	DefaultBlock = 512 << 10 // bytes of a block with its header
	MaxBlock     = 1 << 20
	MinBlock     = 4096
	MaxCatalog   = 256 << 20
	MaxName      = 1024
	maxKind      = 32
	maxLabel     = 256 << 10

	headerLen = 64
	version   = 1
	magic     = "HFTB"
)

type blockType uint16

const (
	typeLabel   blockType = 1
	typeHead    blockType = 2
	typeData    blockType = 3
	typeTrailer blockType = 4
)

// Kinds of objects that Holdfast writes.
const (
	Container = "container"
	Record    = "record"
	catalog   = "catalog"
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// A Label says which tape it is.
type Label struct {
	ID       holdfast.ID     `json:"id"`
	Pool     holdfast.PoolID `json:"pool"`
	PoolName string          `json:"pool_name"`
	Set      holdfast.ID     `json:"set"`
	Seq      int             `json:"seq"`
	Barcode  string          `json:"barcode"`
	Serial   string          `json:"serial"`
	Created  time.Time       `json:"created"`
	Block    int             `json:"block"`
	Keyring  []byte          `json:"keyring,omitempty"`
	Key      []byte          `json:"key,omitempty"`
}

func corrupt(op, format string, args ...any) error {
	return holdfast.Errorf(holdfast.Corrupt, op, format, args...)
}

func (l *Label) check(op string) error {
	switch {
	case l.ID.IsZero() || l.Set.IsZero() || l.Seq < 1:
		return corrupt(op, "a label without tape, set or number")
	case l.Block < MinBlock || l.Block > MaxBlock:
		return corrupt(op, "blocks of %d bytes", l.Block)
	case (len(l.Key) == 0) != (len(l.Keyring) == 0):
		return corrupt(op, "a key without its keyring")
	}
	return nil
}

func keyName(set holdfast.ID) string { return "tape/" + set.String() }

// SealKey puts the drive's key into the label, wrapped by a keyring: who has one of the keyring's secrets can read the tape with nothing but the tape.
func (l *Label) SealKey(ring *seal.Ring, key []byte) error {
	sealed, err := ring.SealObject(keyName(l.Set), key)
	if err != nil {
		return err
	}
	l.Keyring, _ = ring.Encode(0)
	l.Key = sealed
	return nil
}

// Encrypted reports whether the tape's drive encrypts it.
func (l *Label) Encrypted() bool { return len(l.Key) > 0 }

// OpenKey returns the drive's key by one of the keyring's secrets. Permission if it opens with another one only.
func (l *Label) OpenKey(s seal.Secret) ([]byte, error) {
	locked, err := seal.Parse(l.Keyring)
	if err != nil {
		return nil, err
	}
	ring, err := locked.Unlock(s)
	if err != nil {
		return nil, err
	}
	return ring.OpenObject(keyName(l.Set), l.Key)
}

// A block is a block's header.
type block struct {
	kind   blockType
	tape   holdfast.ID
	file   uint64 // address of the tape file's first block
	number uint32
	off    int64
}

// seal fills in the header of b, whose payload is there already.
func (k block) seal(b []byte) {
	clear(b[:headerLen])
	copy(b, magic)
	le.PutUint16(b[4:], version)
	le.PutUint16(b[6:], uint16(k.kind))
	copy(b[8:], k.tape[:])
	le.PutUint64(b[24:], k.file)
	le.PutUint32(b[32:], k.number)
	le.PutUint32(b[36:], uint32(len(b)-headerLen))
	le.PutUint64(b[40:], uint64(k.off))
	le.PutUint32(b[60:], sum(b))
}

func sum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:60], castagnoli), castagnoli, b[headerLen:])
}

// parseBlock reads a block and returns its payload, which aliases b.
func parseBlock(b []byte) (block, []byte, error) {
	const op = "read tape block"
	if len(b) < headerLen || string(b[:4]) != magic {
		return block{}, nil, corrupt(op, "not a block of ours")
	}
	if v := le.Uint16(b[4:]); v != version {
		return block{}, nil, holdfast.Errorf(holdfast.Unsupported, op, "version %d", v).Advise("read the tape with a newer version of Holdfast")
	}
	if le.Uint32(b[60:]) != sum(b) {
		return block{}, nil, corrupt(op, "checksum differs")
	}
	k := block{kind: blockType(le.Uint16(b[6:])), tape: holdfast.ID(b[8:24]), file: le.Uint64(b[24:]), number: le.Uint32(b[32:]), off: int64(le.Uint64(b[40:]))}
	for _, x := range b[48:60] {
		if x != 0 {
			return k, nil, corrupt(op, "reserved bytes are not zero")
		}
	}
	if int64(le.Uint32(b[36:])) != int64(len(b)-headerLen) || k.off < 0 || k.kind < typeLabel || k.kind > typeTrailer {
		return k, nil, corrupt(op, "a header of type %d for %d bytes", k.kind, le.Uint32(b[36:]))
	}
	return k, b[headerLen:], nil
}

// head is the payload of an object's first block.
type head struct {
	ID     holdfast.ID `json:"id"`
	Kind   string      `json:"kind"`
	Name   string      `json:"name"`
	Part   int         `json:"part"`
	Offset int64       `json:"offset"`
}

// trailer is the payload of an object's last block.
type trailer struct {
	ID      holdfast.ID     `json:"id"`
	Part    int             `json:"part"`
	Length  int64           `json:"length"`
	Blocks  int64           `json:"blocks"`
	PartSum holdfast.Digest `json:"part_sum"`
	More    bool            `json:"more"`
	Sum     holdfast.Digest `json:"sum,omitzero"`
}

// An Entry is one object, or one part of it, on a tape.
type Entry struct {
	Tape    holdfast.ID     `json:"tape"`
	Seq     int             `json:"seq"`
	At      uint64          `json:"at"`
	ID      holdfast.ID     `json:"id"`
	Kind    string          `json:"kind"`
	Name    string          `json:"name"`
	Part    int             `json:"part"`
	Offset  int64           `json:"offset"`
	Length  int64           `json:"length"`
	PartSum holdfast.Digest `json:"part_sum"`
	More    bool            `json:"more"`
	Sum     holdfast.Digest `json:"sum,omitzero"`
}

// catalogue is the content of a catalog.
type catalogue struct {
	Tape    holdfast.ID `json:"tape"`
	Set     holdfast.ID `json:"set"`
	Seq     int         `json:"seq"`
	Objects []Entry     `json:"objects"`
	Prior   []Entry     `json:"prior,omitempty"`
}

// decode reads a JSON payload.
func decode(op string, payload []byte, into any) error {
	if err := json.Unmarshal(payload, into); err != nil {
		return corrupt(op, "%w", err)
	}
	return nil
}

// encode writes one; our own types always encode.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
