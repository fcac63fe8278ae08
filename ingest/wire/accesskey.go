package wire

import (
	"encoding/base32"
	"encoding/binary"
	"hash/crc32"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// ServerName is a name that every appliance's server certificate carries, whatever it is called on the network: agents trust
// the appliance's own CA, not a name service.
const ServerName = "holdfast-appliance"

// HostURIPrefix precedes a host's id in the URI name of its agent's client certificate.
const HostURIPrefix = "holdfast:host:"

// An AccessSecret is the 160 random bits of a one-time access key. The appliance keeps only a hash of it.
type AccessSecret [20]byte

// A Fingerprint is the SHA-256 of a certificate in DER: how an agent knows its appliance's CA before it has talked to it.
type Fingerprint [32]byte

const (
	accessKeyPrefix = "HF1-"
	accessKeyBytes  = len(AccessSecret{}) + len(Fingerprint{}) + 4 // and a CRC-32C of what precedes it
	maxAccessKey    = 256                                          // characters, with whatever separators a mail program added
)

// accessKeyText is Crockford's alphabet: no I, L, O, U, so that a key survives being read aloud.
var accessKeyText = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

var accessKeyCRC = crc32.MakeTable(crc32.Castagnoli)

// FormatAccessKey returns the printable form of a one-time access key: the secret that proves the right to enrol and the
// fingerprint of the CA that the agent is to trust.
func FormatAccessKey(secret AccessSecret, ca Fingerprint) string {
	b := make([]byte, 0, accessKeyBytes)
	b = append(append(b, secret[:]...), ca[:]...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, accessKeyCRC))
	return accessKeyPrefix + accessKeyText.EncodeToString(b)
}

// ParseAccessKey reads what FormatAccessKey wrote, in either case and with spaces or dashes anywhere. The error is Invalid;
// it never repeats the key.
func ParseAccessKey(s string) (AccessSecret, Fingerprint, error) {
	const op = "read access key"
	const hint = "copy the whole key that 'holdfast host enroll NAME' printed; it begins with HF1-"
	var secret AccessSecret
	var ca Fingerprint
	if len(s) > maxAccessKey {
		return secret, ca, holdfast.Errorf(holdfast.Invalid, op, "%d characters are too many for an access key", len(s)).Advise(hint)
	}
	text := strings.Map(func(r rune) rune {
		switch r {
		case ' ', '-', '\t', '\r', '\n':
			return -1
		}
		return r
	}, strings.ToUpper(s))
	body, ok := strings.CutPrefix(text, strings.TrimSuffix(accessKeyPrefix, "-"))
	if !ok {
		return secret, ca, holdfast.Errorf(holdfast.Invalid, op, "this is not an access key").Advise(hint)
	}
	b, err := accessKeyText.DecodeString(body)
	// The re-encoding catches set bits past the last byte, which the decoder ignores.
	if err != nil || len(b) != accessKeyBytes || accessKeyText.EncodeToString(b) != body {
		return secret, ca, holdfast.Errorf(holdfast.Invalid, op, "the access key is incomplete or has a wrong character").Advise(hint)
	}
	n := len(b) - 4
	if crc32.Checksum(b[:n], accessKeyCRC) != binary.LittleEndian.Uint32(b[n:]) {
		return secret, ca, holdfast.Errorf(holdfast.Invalid, op, "the access key has a typing error").Advise(hint)
	}
	copy(secret[:], b)
	copy(ca[:], b[len(secret):n])
	return secret, ca, nil
}
