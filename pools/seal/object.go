package seal

import (
	"encoding/binary"

	"github.com/holdfast-backup/holdfast"
)

// A sealed object is a small object encrypted as a whole: docs/formats/keys.md, section "Sealed object".
const (
	objectMagic   = "HFASTBOX"
	objectVersion = 1
	objectHead    = 80
	objectSum     = 32
	objectPad     = 1 << 10 // the plaintext is filled up to a multiple: its length tells little
)

// ObjectOverhead is at most how many bytes longer a sealed object is than its content.
const ObjectOverhead = objectHead + 4 + objectPad + Overhead + objectSum

// MaxObject bounds the content of a sealed object.
const MaxObject = 64 << 20

// SealObject encrypts a small object under the newest data key. name is where it will lie in the pool: it opens only there.
func (r *Ring) SealObject(name string, plain []byte) ([]byte, error) {
	if len(plain) > MaxObject {
		return nil, holdfast.Errorf(holdfast.Invalid, "encrypt object", "%d bytes; at most %d can be sealed", len(plain), MaxObject)
	}
	le := binary.LittleEndian
	e := r.newest()
	padded := (4 + len(plain) + objectPad - 1) / objectPad * objectPad
	b := make([]byte, objectHead, objectHead+padded+Overhead+objectSum)
	copy(b, objectMagic)
	le.PutUint16(b[8:], objectVersion)
	le.PutUint32(b[12:], uint32(padded))
	copy(b[16:], e.id[:])
	copy(b[32:], r.pool.ID[:])
	r.rand(b[48:80])
	in := le.AppendUint32(make([]byte, 0, padded), uint32(len(plain)))
	in = append(in, plain...)[:padded]
	b = newAEAD(r.objectKey(e, b[48:80], name)).Seal(b, once[:], in, b[:objectHead])
	sum := holdfast.Domain{}.Hasher().Sum(b)
	return append(b, sum[:]...), nil
}

func (r *Ring) objectKey(e *epoch, salt []byte, name string) [keyBytes]byte {
	return derive(e.key[:], salt, useObject, r.pool.ID[:], []byte(name))
}

// CheckObject tells, without any key, whether a sealed object is what was written. The error is Corrupt.
func CheckObject(b []byte) error {
	const op = "check object"
	bad := func(format string, args ...any) error { return holdfast.Errorf(holdfast.Corrupt, op, format, args...) }
	le := binary.LittleEndian
	if len(b) < objectHead+Overhead+objectSum || string(b[:8]) != objectMagic {
		return bad("not a sealed object")
	}
	if holdfast.Digest(b[len(b)-objectSum:]) != (holdfast.Domain{}).Hasher().Sum(b[:len(b)-objectSum]) {
		return bad("checksum differs")
	}
	if v := le.Uint16(b[8:]); v != objectVersion {
		return holdfast.Errorf(holdfast.Unsupported, op, "version %d", v).Advise("open the pool with a newer version of Holdfast")
	}
	n := le.Uint32(b[12:])
	if le.Uint16(b[10:]) != 0 || n == 0 || n%objectPad != 0 || n > MaxObject+objectPad || len(b) != objectHead+int(n)+Overhead+objectSum {
		return bad("%d bytes for a content of %d", len(b), n)
	}
	return nil
}

// OpenObject decrypts what SealObject made for the same pool and name.
func (r *Ring) OpenObject(name string, b []byte) ([]byte, error) {
	const op = "decrypt object"
	if err := CheckObject(b); err != nil {
		return nil, err
	}
	id := KeyID(b[16:32])
	e := r.find(id)
	if e == nil {
		return nil, errNoKey(op, id)
	}
	in, err := newAEAD(r.objectKey(e, b[48:80], name)).Open(nil, once[:], b[objectHead:len(b)-objectSum], b[:objectHead])
	if err != nil || r.pool.ID != holdfast.ID(b[32:48]) {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%s is not what was encrypted under this name", name)
	}
	n := binary.LittleEndian.Uint32(in)
	if int(n) > len(in)-4 || len(in)-4-int(n) >= objectPad {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%d bytes of content in %d", n, len(in))
	}
	for _, x := range in[4+n:] {
		if x != 0 {
			return nil, holdfast.Errorf(holdfast.Corrupt, op, "padding is not zero")
		}
	}
	return in[4 : 4+n], nil
}

func errNoKey(op string, id KeyID) error {
	return holdfast.Errorf(holdfast.Corrupt, op, "it is encrypted with key %s, which the pool's keyring does not hold", id).
		Advise("the keyring is older than the data: bring the folder keys of the pool back from a copy")
}
