package holdfast

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"time"
)

// An ID is an RFC 9562 UUID. The zero ID means "none" and is never given to anything.
type ID [16]byte

// The named identifiers keep two ids of different things from being mixed up. All print and parse as lower-case UUIDs.
type (
	SetID  struct{ ID } // a backup set; version 7, so that ids sort by creation
	PoolID struct{ ID } // a storage pool, written in its superblock
	HostID struct{ ID } // an enrolled host, written in its agent's certificate
	VMID   struct{ ID } // the hypervisor's id of a virtual machine
	DiskID struct{ ID } // a virtual disk's own id, stable while its file chain changes
	RunID  struct{ ID } // one execution of a job; version 7
	TaskID struct{ ID } // one VM's part of a run; version 7
)

// NewID returns a random (version 4) id.
func NewID() ID {
	var id ID
	_, _ = rand.Read(id[:]) // crypto/rand.Read never fails since Go 1.24
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// NewTimeID returns a version 7 id: its first 48 bits are t in milliseconds, so that ids sort by creation.
func NewTimeID(t time.Time) ID {
	id := NewID()
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(t.UnixMilli()))
	copy(id[:6], ms[2:])
	id[6] = id[6]&0x0f | 0x70
	return id
}

// IsZero reports whether the id is the zero id, "none".
func (id ID) IsZero() bool { return id == ID{} }

// String returns the id in the 8-4-4-4-12 form.
func (id ID) String() string {
	b, _ := id.MarshalText()
	return string(b)
}

// MarshalText implements encoding.TextMarshaler. The zero id becomes the empty text.
func (id ID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return []byte{}, nil
	}
	b := make([]byte, 36)
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return b, nil
}

// UnmarshalText implements encoding.TextUnmarshaler. It accepts the 36-character form in either case, with or without
// braces (as Windows prints GUIDs), and the empty text for the zero id.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*id = ID{}
		return nil
	}
	b := text
	if len(b) == 38 && b[0] == '{' && b[37] == '}' {
		b = b[1:37]
	}
	if len(b) != 36 || b[8] != '-' || b[13] != '-' || b[18] != '-' || b[23] != '-' {
		return Errorf(Invalid, "parse id", "%q is not of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", clip(text))
	}
	var h [32]byte
	n := copy(h[:], b[0:8])
	n += copy(h[n:], b[9:13])
	n += copy(h[n:], b[14:18])
	n += copy(h[n:], b[19:23])
	copy(h[n:], b[24:36])
	if _, err := hex.Decode(id[:], h[:]); err != nil {
		return Errorf(Invalid, "parse id", "%q has a character that is not hexadecimal", clip(text))
	}
	return nil
}

// ParseID reads an id as UnmarshalText does, but refuses the empty text.
func ParseID(s string) (ID, error) {
	var id ID
	if s == "" {
		return id, Errorf(Invalid, "parse id", "the id is empty")
	}
	err := id.UnmarshalText([]byte(s))
	return id, err
}

func clip(b []byte) []byte { return b[:min(len(b), 64)] }
