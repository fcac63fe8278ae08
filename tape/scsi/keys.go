package scsi

import "encoding/binary"

// Tape data encryption, security protocol 20h.
const (
	ProtocolTapeEncryption = 0x20
	PageInSupport          = 0x0000
	PageEncryptionCaps     = 0x0010 // in: capabilities; out: set data encryption
	PageEncryptionStatus   = 0x0020
	PageNextBlock          = 0x0021
	AlgorithmAES256GCM     = 0x00010014
	KeyLen                 = 32
	MaxKeyDescriptor       = 32
	EncryptionLen          = 4096

	encryptOff, encryptOn  = 0, 2
	decryptOff, decryptOn  = 0, 2
	decryptMixed           = 3
	scopeAll               = 2 << 5
	flagClearOnDemount     = 1 << 2 // CKOD: the key leaves the drive with the medium
	descriptorUnauthKeyed  = 0x00
	setEncryptionHead      = 20
	statusHead             = 24
	maxEncryptionAlgorithm = 64
)

// An Algorithm is one that a drive can encrypt with.
type Algorithm struct {
	Index   byte
	Code    uint32
	Encrypt bool // in hardware
	Decrypt bool
	KeyLen  int
}

// ParseAlgorithms reads the page of encryption capabilities.
func ParseAlgorithms(b []byte) ([]Algorithm, error) {
	const op = "read encryption capabilities"
	body, err := securityPage(op, b, PageEncryptionCaps)
	if err != nil || len(body) < 16 {
		return nil, err
	}
	var out []Algorithm
	for body = body[16:]; len(body) >= 20; {
		n := 4 + int(be.Uint16(body[2:]))
		if n < 20 || n > len(body) || len(out) == maxEncryptionAlgorithm {
			return out, corrupt(op, "a descriptor of %d bytes in %d", n, len(body))
		}
		out = append(out, Algorithm{Index: body[0], Code: be.Uint32(body[16:]), Decrypt: body[4]>>2&3 == 2, Encrypt: body[4]&3 == 2,
			KeyLen: int(be.Uint16(body[10:]))})
		body = body[n:]
	}
	return out, nil
}

func securityPage(op string, b []byte, page uint16) ([]byte, error) {
	if len(b) < 4 || be.Uint16(b) != page {
		return nil, corrupt(op, "not page %04xh", page)
	}
	return b[4:min(len(b), 4+int(be.Uint16(b[2:])))], nil
}

// EncodeAlgorithms is the inverse of ParseAlgorithms, for emulators.
func EncodeAlgorithms(as []Algorithm) []byte {
	b := make([]byte, 20)
	be.PutUint16(b, PageEncryptionCaps)
	for _, a := range as {
		d := make([]byte, 24)
		d[0] = a.Index
		be.PutUint16(d[2:], 20)
		if a.Decrypt {
			d[4] |= 2 << 2
		}
		if a.Encrypt {
			d[4] |= 2
		}
		be.PutUint16(d[6:], MaxKeyDescriptor)
		be.PutUint16(d[10:], uint16(a.KeyLen))
		be.PutUint32(d[16:], a.Code)
		b = append(b, d...)
	}
	be.PutUint16(b[2:], uint16(len(b)-4))
	return b
}

// An Encryption is what a drive is told to do with blocks. The key goes out and never comes back.
type Encryption struct {
	On         bool // encrypt what is written, decrypt what is read; off: neither
	Mixed      bool // reading, take blocks that are not encrypted too
	Algorithm  byte // index, from the capabilities
	Key        []byte
	Descriptor []byte // names the key; it is written with every block, in the clear
}

// EncodeSetEncryption returns the page Set Data Encryption, for all who use the drive, with the key leaving with the medium.
func EncodeSetEncryption(e Encryption) []byte {
	if len(e.Descriptor) > MaxKeyDescriptor {
		panic("scsi: key descriptor too long")
	}
	b := make([]byte, setEncryptionHead)
	be.PutUint16(b, PageEncryptionCaps)
	b[4] = scopeAll
	if e.On {
		b[5], b[6], b[7], b[8] = flagClearOnDemount, encryptOn, decryptOn, e.Algorithm
		if e.Mixed {
			b[7] = decryptMixed
		}
		be.PutUint16(b[18:], uint16(len(e.Key)))
		b = append(b, e.Key...)
		if len(e.Descriptor) > 0 {
			b = append(b, descriptorUnauthKeyed, 0)
			b = be.AppendUint16(b, uint16(len(e.Descriptor)))
			b = append(b, e.Descriptor...)
		}
	}
	be.PutUint16(b[2:], uint16(len(b)-4))
	return b
}

// ParseSetEncryption is the inverse of EncodeSetEncryption, for emulators.
func ParseSetEncryption(b []byte) (Encryption, error) {
	const op = "read set encryption page"
	body, err := securityPage(op, b, PageEncryptionCaps)
	if err != nil {
		return Encryption{}, err
	}
	if len(body) < setEncryptionHead-4 {
		return Encryption{}, corrupt(op, "%d bytes", len(body))
	}
	e := Encryption{On: body[2] == encryptOn, Mixed: body[3] == decryptMixed, Algorithm: body[4]}
	n := int(be.Uint16(body[14:]))
	rest := body[16:]
	if n > len(rest) || e.On && n != KeyLen || body[2] != encryptOff && body[2] != encryptOn {
		return Encryption{}, corrupt(op, "a key of %d bytes", n)
	}
	e.Key, rest = rest[:n], rest[n:]
	for len(rest) >= 4 {
		k := 4 + int(binary.BigEndian.Uint16(rest[2:]))
		if k > len(rest) {
			return Encryption{}, corrupt(op, "a key descriptor of %d bytes in %d", k, len(rest))
		}
		if rest[0] == descriptorUnauthKeyed {
			e.Descriptor = rest[4:k]
		}
		rest = rest[k:]
	}
	return e, nil
}

// A KeyStatus is what a drive says about its key.
type KeyStatus struct {
	Encrypting, Decrypting bool
	Algorithm              byte
	Descriptor             []byte
}

// ParseKeyStatus reads the page Data Encryption Status.
func ParseKeyStatus(b []byte) (KeyStatus, error) {
	const op = "read encryption status"
	body, err := securityPage(op, b, PageEncryptionStatus)
	if err != nil {
		return KeyStatus{}, err
	}
	if len(body) < statusHead-4 {
		return KeyStatus{}, corrupt(op, "%d bytes", len(body))
	}
	s := KeyStatus{Encrypting: body[1] == encryptOn, Decrypting: body[2] == decryptOn || body[2] == decryptMixed, Algorithm: body[3]}
	for rest := body[statusHead-4:]; len(rest) >= 4; {
		n := 4 + int(be.Uint16(rest[2:]))
		if n > len(rest) {
			return s, corrupt(op, "a key descriptor of %d bytes in %d", n, len(rest))
		}
		if rest[0] == descriptorUnauthKeyed {
			s.Descriptor = rest[4:n]
		}
		rest = rest[n:]
	}
	return s, nil
}

// EncodeKeyStatus is the inverse of ParseKeyStatus, for emulators.
func EncodeKeyStatus(s KeyStatus) []byte {
	b := make([]byte, statusHead)
	be.PutUint16(b, PageEncryptionStatus)
	b[4] = scopeAll
	if s.Encrypting {
		b[5] = encryptOn
	}
	if s.Decrypting {
		b[6] = decryptOn
	}
	b[7] = s.Algorithm
	if len(s.Descriptor) > 0 {
		b = append(b, descriptorUnauthKeyed, 0)
		b = be.AppendUint16(b, uint16(len(s.Descriptor)))
		b = append(b, s.Descriptor...)
	}
	be.PutUint16(b[2:], uint16(len(b)-4))
	return b
}
