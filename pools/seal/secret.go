package seal

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"github.com/holdfast-backup/holdfast"
)

// A Kind says what sort of secret opens a keyring. Numbers are on disk: append only.
type Kind uint8

const (
	KeyFile    Kind = 1 // 32 random bytes in a file
	Passphrase Kind = 2 // something a person knows
	Recovery   Kind = 3 // 32 random bytes on the printed sheet
)

func (k Kind) String() string {
	switch k {
	case KeyFile:
		return "key file"
	case Passphrase:
		return "passphrase"
	case Recovery:
		return "recovery key"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Bounds of a passphrase.
const (
	minPassphrase = 12 // characters; argon2id slows guessing down, it does not make short ones long
	maxPassphrase = 1024
	maxKeyFile    = 64 << 10 // bytes of a file with a key or a passphrase
)

// A Secret opens keyrings. It never prints itself.
type Secret struct {
	passphrase bool
	b          []byte
}

// String hides the secret.
func (Secret) String() string { return "(secret)" }

// GoString hides the secret.
func (Secret) GoString() string { return "(secret)" }

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return len(s.b) == 0 }

// A Key is 32 random bytes that open a keyring: a key file's or a recovery sheet's.
type Key [keyBytes]byte

// String hides the key.
func (Key) String() string { return "(key)" }

// GoString hides the key.
func (Key) GoString() string { return "(key)" }

// NewKey returns a new random key.
func NewKey() Key {
	var k Key
	systemEntropy(k[:])
	return k
}

// Secret returns the key as a secret.
func (k Key) Secret() Secret { return Secret{b: bytes.Clone(k[:])} }

// A Fingerprint tells keys apart. It says nothing about the key.
type Fingerprint [5]byte

// String returns the fingerprint in the letters of the printed form.
func (f Fingerprint) String() string { return groups(f[:]) }

// Fingerprint returns the key's fingerprint.
func (k Key) Fingerprint() Fingerprint {
	sum := sha256.Sum256(append([]byte("holdfast key fingerprint v1"), k[:]...))
	return Fingerprint(sum[:5])
}

// ReadPassphrase takes a passphrase from a file's content: its first line. It refuses one that is too short to protect anything.
func ReadPassphrase(file []byte) (Secret, error) {
	const op = "read passphrase"
	if len(file) > maxKeyFile {
		return Secret{}, holdfast.Errorf(holdfast.Invalid, op, "the file has %d bytes; a passphrase is one line", len(file))
	}
	line, _, _ := bytes.Cut(file, []byte{'\n'})
	line = bytes.TrimSuffix(line, []byte{'\r'})
	if utf8.RuneCount(line) < minPassphrase || len(line) > maxPassphrase {
		return Secret{}, holdfast.Errorf(holdfast.Invalid, op, "a passphrase has %d to %d characters, in the first line of its file", minPassphrase, maxPassphrase).
			Advise("use six or more random words, or a key file")
	}
	return Secret{passphrase: true, b: bytes.Clone(line)}, nil
}

// Read reads the content of a secret's file: a key in its printed form, or a passphrase.
func Read(kind Kind, file []byte) (Secret, error) {
	if kind == Passphrase {
		return ReadPassphrase(file)
	}
	k, err := ParseKey(file)
	if err != nil {
		return Secret{}, err
	}
	return k.Secret(), nil
}

// Cost is how hard argon2id makes guessing a passphrase.
type Cost struct {
	Passes, KiB, Lanes uint32
}

// DefaultCost is RFC 9106's choice for memory-constrained places: 64 MiB, once per opening of a pool.
var DefaultCost = Cost{Passes: 3, KiB: 64 << 10, Lanes: 4}

// check bounds what a keyring may ask of the machine that opens it.
func (c Cost) check() bool {
	return c.Passes >= 1 && c.Passes <= 64 && c.Lanes >= 1 && c.Lanes <= 16 && c.KiB >= 8*c.Lanes && c.KiB <= 1<<20
}

// kek returns the key-encryption key of a secret for one wrap. It depends on the pool, so that one key file may serve several.
func (s Secret) kek(w *wrap, pool holdfast.PoolID) [keyBytes]byte {
	ikm := s.b
	if w.kind == Passphrase {
		ikm = argon2.IDKey(s.b, w.salt[:], w.cost.Passes, w.cost.KiB, uint8(w.cost.Lanes), keyBytes)
	}
	return derive(ikm, w.salt[:], useSecret, []byte{byte(w.kind)}, pool.ID[:])
}
