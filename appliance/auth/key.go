package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// KeyLifetime is how long a one-time access key may be used: a working day and the night after it.
const KeyLifetime = 24 * time.Hour

// A KeyHash is all that the appliance keeps of an access key. The secret has 160 random bits, so a plain hash resists guessing.
type KeyHash [32]byte

// NewAccessKey returns a new key in its printable form, which is shown once, and the hash to store.
func (a *Authority) NewAccessKey() (printable string, hash KeyHash) {
	var s wire.AccessSecret
	_, _ = rand.Read(s[:]) // never fails
	return wire.FormatAccessKey(s, a.Fingerprint()), hashSecret(s)
}

// CheckAccessKey reads a printable key and returns the hash under which it would be stored. The error is Invalid for
// something that is no key and Permission for a key of another appliance.
func (a *Authority) CheckAccessKey(printable string) (KeyHash, error) {
	s, ca, err := wire.ParseAccessKey(printable)
	if err != nil {
		return KeyHash{}, err
	}
	own := a.Fingerprint()
	if subtle.ConstantTimeCompare(ca[:], own[:]) != 1 {
		return KeyHash{}, holdfast.Errorf(holdfast.Permission, "check access key", "the access key is of another appliance").
			Advise("run 'holdfast host enroll NAME' on this appliance and use the key it prints")
	}
	return hashSecret(s), nil
}

func hashSecret(s wire.AccessSecret) KeyHash {
	return sha256.Sum256(append([]byte("holdfast access key 1\x00"), s[:]...))
}
