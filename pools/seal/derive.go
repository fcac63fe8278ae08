package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"

	"github.com/holdfast-backup/holdfast"
)

// Overhead is how many bytes longer a ciphertext is than its plaintext: the tag.
const Overhead = 16

const (
	keyBytes  = 32
	saltBytes = 32
)

// Each use of a key has a name of its own, so that no two uses ever share a key.
const (
	useContainer = "holdfast container v1"
	useObject    = "holdfast object v1"
	useBag       = "holdfast bag v1"
	useWrap      = "holdfast wrap v1"
	useSecret    = "holdfast secret v1"
)

// derive returns HKDF-SHA-256(secret, salt, use ‖ context).
func derive(secret, salt []byte, use string, context ...[]byte) (k [keyBytes]byte) {
	info := []byte(use)
	for _, c := range context {
		info = append(info, c...)
	}
	b, err := hkdf.Key(sha256.New, secret, salt, string(info), keyBytes)
	if err != nil {
		panic(err) // only a length that is too large can fail
	}
	copy(k[:], b)
	return k
}

// newAEAD returns AES-256-GCM with 96-bit nonces and 128-bit tags.
func newAEAD(key [keyBytes]byte) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // only a key of another length can fail
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only a block of another size can fail
	}
	return a
}

// once is the nonce of keys that encrypt a single message: their salts are random and never used again.
var once [12]byte

// entropy fills b with random bytes. Tests have one of their own, for vectors.
type entropy func(b []byte)

func systemEntropy(b []byte) { _, _ = rand.Read(b) } // never fails since Go 1.24

// A KeyID names a data key. It is random and says nothing about the key.
type KeyID holdfast.ID

// IsZero reports whether the id names no key, which means: not encrypted.
func (id KeyID) IsZero() bool { return id == KeyID{} }

// String returns the id as the key command shows it.
func (id KeyID) String() string { return holdfast.ID(id).String() }

// A Cipher encrypts and decrypts the records of one container. Its key belongs to that container alone, and the number of a record
// is its nonce. Safe for concurrent use.
type Cipher struct {
	// KeyID and Salt go into the container's header: with them and the keyring the cipher is made again.
	KeyID KeyID
	Salt  [saltBytes]byte

	aead cipher.AEAD
}

func newCipher(e *epoch, salt [saltBytes]byte, pool holdfast.PoolID, container uint64) *Cipher {
	key := derive(e.key[:], salt[:], useContainer, pool.ID[:], binary.LittleEndian.AppendUint64(nil, container))
	return &Cipher{KeyID: e.id, Salt: salt, aead: newAEAD(key)}
}

func recordNonce(number uint32) (n [12]byte) {
	binary.LittleEndian.PutUint32(n[:], number)
	return n
}

// Seal appends the ciphertext of a record's payload, Overhead bytes longer than plain, to dst. A number is used once. plain must not
// overlap what is appended.
func (c *Cipher) Seal(dst, plain, associated []byte, number uint32) []byte {
	n := recordNonce(number)
	return c.aead.Seal(dst, n[:], plain, associated)
}

// Open appends the payload to dst, which may be sealed[:0]. What was not sealed so, with this key, number and associated data, is Corrupt.
func (c *Cipher) Open(dst, sealed, associated []byte, number uint32) ([]byte, error) {
	n := recordNonce(number)
	out, err := c.aead.Open(dst, n[:], sealed, associated)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, "decrypt record", "record %d is not what was encrypted", number)
	}
	return out, nil
}
