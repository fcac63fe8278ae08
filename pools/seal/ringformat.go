package seal

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// docs/formats/keys.md, section "Keyring", is the format of what this file encodes and decodes.
const (
	ringMagic   = "HFASTKEY"
	ringVersion = 1
	ringHead    = 96
	ringWrap    = 128
	ringSum     = 32
	bagHead     = 80
	bagEpoch    = 80

	// MaxRing bounds the bytes of a keyring.
	MaxRing = ringHead + MaxWraps*ringWrap + bagHead + MaxEpochs*bagEpoch + MaxWraps*keyBytes + Overhead + ringSum
)

// Encode returns the keyring's bytes as the next generation, also next to the one given (that of an attempt to store it), under a new root
// key, and the Ring that they are. Until they are stored, r is in force.
func (r *Ring) Encode(after uint64) ([]byte, *Ring) {
	n := r.clone()
	n.generation = max(r.generation, after) + 1
	le := binary.LittleEndian
	var root [keyBytes]byte
	n.rand(root[:])
	b := make([]byte, ringHead+len(n.wraps)*ringWrap, MaxRing)
	copy(b, ringMagic)
	le.PutUint16(b[8:], ringVersion)
	le.PutUint16(b[10:], uint16(len(n.wraps)))
	le.PutUint32(b[12:], uint32(bagHead+len(n.epochs)*bagEpoch+len(n.wraps)*keyBytes+Overhead))
	copy(b[16:], n.pool.ID[:])
	le.PutUint64(b[32:], n.generation)
	n.rand(b[40:72])
	head := b[:ringHead]
	for i := range n.wraps {
		w := b[ringHead+i*ringWrap:][:ringWrap]
		n.wraps[i].put(w)
		key := derive(n.keks[i][:], head[40:72], useWrap)
		newAEAD(key).Seal(w[64:64], once[:], root[:], wrapAAD(head, w))
	}
	at := len(b)
	b = newAEAD(derive(root[:], head[40:72], useBag)).Seal(b, once[:], n.bag(), b[:at])
	sum := holdfast.Domain{}.Hasher().Sum(b)
	return append(b, sum[:]...), n
}

// wrapAAD is what a wrapped root key is bound to: the keyring's head and the description of the wrap.
func wrapAAD(head, w []byte) []byte { return append(append([]byte(nil), head...), w[:64]...) }

func (w *wrap) put(b []byte) {
	le := binary.LittleEndian
	b[0] = byte(w.kind)
	le.PutUint32(b[4:], w.cost.Passes)
	le.PutUint32(b[8:], w.cost.KiB)
	le.PutUint32(b[12:], w.cost.Lanes)
	le.PutUint64(b[16:], uint64(w.created))
	copy(b[24:29], w.print[:])
	copy(b[32:64], w.salt[:])
}

func (w *wrap) get(b []byte) bool {
	le := binary.LittleEndian
	w.kind = Kind(b[0])
	w.cost = Cost{le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])}
	w.created = int64(le.Uint64(b[16:]))
	copy(w.print[:], b[24:29])
	copy(w.salt[:], b[32:64])
	if w.kind < KeyFile || w.kind > Recovery || !zeros(b[1:4]) || !zeros(b[29:32]) || !zeros(b[112:128]) {
		return false
	}
	if w.kind == Passphrase {
		return w.cost.check() && w.print == Fingerprint{}
	}
	return w.cost == Cost{}
}

// bag returns the plaintext of the keyring's inside.
func (r *Ring) bag() []byte {
	le := binary.LittleEndian
	b := make([]byte, bagHead, bagHead+len(r.epochs)*bagEpoch+len(r.wraps)*keyBytes)
	copy(b, r.domain[:])
	copy(b[32:], r.recovery[:])
	le.PutUint64(b[64:], r.seed)
	le.PutUint32(b[72:], uint32(len(r.epochs)))
	for _, e := range r.epochs {
		b = append(b, e.id[:]...)
		b = le.AppendUint64(b, uint64(e.created))
		b = le.AppendUint64(b, e.since)
		flags := uint64(0)
		if e.redo {
			flags = 1
		}
		b = le.AppendUint64(b, flags)
		b = append(b, e.key[:]...)
		b = le.AppendUint64(b, 0)
	}
	for _, k := range r.keks {
		b = append(b, k[:]...)
	}
	return b
}

func (r *Ring) parseBag(b []byte) error {
	le := binary.LittleEndian
	bad := func() error { return holdfast.Errorf(holdfast.Corrupt, "open keyring", "its inside is malformed") }
	if len(b) < bagHead {
		return bad()
	}
	n := le.Uint32(b[72:])
	if n < 1 || n > MaxEpochs || len(b) != bagHead+int(n)*bagEpoch+len(r.wraps)*keyBytes || le.Uint32(b[76:]) != 0 {
		return bad()
	}
	copy(r.domain[:], b)
	copy(r.recovery[:], b[32:])
	r.seed = le.Uint64(b[64:])
	b = b[bagHead:]
	for range n {
		e := epoch{id: KeyID(b[:16]), created: int64(le.Uint64(b[16:])), since: le.Uint64(b[24:]), redo: b[32] == 1}
		if e.id.IsZero() || le.Uint64(b[32:]) > 1 || le.Uint64(b[72:]) != 0 || r.find(e.id) != nil {
			return bad()
		}
		copy(e.key[:], b[40:72])
		r.epochs = append(r.epochs, e)
		b = b[bagEpoch:]
	}
	for range r.wraps {
		r.keks = append(r.keks, [keyBytes]byte(b[:keyBytes]))
		b = b[keyBytes:]
	}
	return nil
}

func zeros(b []byte) bool {
	x := byte(0)
	for _, y := range b {
		x |= y
	}
	return x == 0
}

// A Locked is a keyring whose outside was read and checked; a secret opens it.
type Locked struct {
	Pool       holdfast.PoolID
	Generation uint64

	wraps []wrap
	b     []byte
}

// Parse reads a keyring and checks, without any secret, that it is what was stored.
func Parse(b []byte) (*Locked, error) {
	const op = "read keyring"
	bad := func(format string, args ...any) error { return holdfast.Errorf(holdfast.Corrupt, op, format, args...) }
	le := binary.LittleEndian
	if len(b) < ringHead+ringWrap+bagHead+Overhead+ringSum || len(b) > MaxRing || string(b[:8]) != ringMagic {
		return nil, bad("not a keyring")
	}
	if holdfast.Digest(b[len(b)-ringSum:]) != (holdfast.Domain{}).Hasher().Sum(b[:len(b)-ringSum]) {
		return nil, bad("checksum differs")
	}
	if v := le.Uint16(b[8:]); v != ringVersion {
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "version %d", v).Advise("open the pool with a newer version of Holdfast")
	}
	n, bag := int(le.Uint16(b[10:])), le.Uint32(b[12:])
	if n < 1 || n > MaxWraps || bag > MaxRing || len(b) != ringHead+n*ringWrap+int(bag)+ringSum || bag < bagHead+Overhead || !zeros(b[72:96]) {
		return nil, bad("%d bytes for %d keys", len(b), n)
	}
	l := &Locked{Pool: holdfast.PoolID{ID: holdfast.ID(b[16:32])}, Generation: le.Uint64(b[32:]), wraps: make([]wrap, n), b: b}
	for i := range l.wraps {
		if !l.wraps[i].get(b[ringHead+i*ringWrap:][:ringWrap]) {
			return nil, bad("key %d", i)
		}
	}
	return l, nil
}

// Wraps describes what opens the keyring.
func (l *Locked) Wraps() []WrapInfo { return infoOf(l.wraps) }

func infoOf(ws []wrap) []WrapInfo {
	out := make([]WrapInfo, 0, len(ws))
	for i := range ws {
		w := &ws[i]
		x := WrapInfo{Kind: w.kind.String(), Created: time.Unix(w.created, 0).UTC()}
		if w.kind == Passphrase {
			x.Cost = fmt.Sprintf("argon2id, %d passes over %d MiB, %d lanes", w.cost.Passes, w.cost.KiB>>10, w.cost.Lanes)
		} else {
			x.Print = w.print.String()
		}
		out = append(out, x)
	}
	return out
}

// Unlock opens the keyring. A secret that does not fit is Permission: nothing of the keyring is believed before a secret has opened it.
func (l *Locked) Unlock(s Secret) (*Ring, error) {
	head := l.b[:ringHead]
	for i := range l.wraps {
		w := &l.wraps[i]
		if s.IsZero() || s.passphrase != (w.kind == Passphrase) {
			continue
		}
		if fp := (Fingerprint{}); !s.passphrase {
			if fp = Key(s.b).Fingerprint(); subtle.ConstantTimeCompare(fp[:], w.print[:]) == 0 {
				continue
			}
		}
		kek := s.kek(w, l.Pool)
		raw := l.b[ringHead+i*ringWrap:][:ringWrap]
		root, err := newAEAD(derive(kek[:], head[40:72], useWrap)).Open(nil, once[:], raw[64:112], wrapAAD(head, raw))
		if err != nil {
			continue
		}
		return l.open([keyBytes]byte(root))
	}
	return nil, l.wrong(s)
}

func (l *Locked) open(root [keyBytes]byte) (*Ring, error) {
	at := ringHead + len(l.wraps)*ringWrap
	bag, err := newAEAD(derive(root[:], l.b[40:72], useBag)).Open(nil, once[:], l.b[at:len(l.b)-ringSum], l.b[:at])
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, "open keyring", "its inside is not what was encrypted")
	}
	r := &Ring{pool: l.Pool, generation: l.Generation, wraps: append([]wrap(nil), l.wraps...), rand: systemEntropy}
	if err := r.parseBag(bag); err != nil {
		return nil, err
	}
	return r, nil
}

// wrong says which secrets would have fitted.
func (l *Locked) wrong(s Secret) error {
	var want []string
	for _, w := range l.Wraps() {
		want = append(want, strings.TrimSpace(w.Kind+" "+w.Print))
	}
	what := "no secret was given"
	switch {
	case s.passphrase:
		what = "the passphrase is wrong"
	case !s.IsZero():
		what = "the key " + Key(s.b).Fingerprint().String() + " does not fit"
	}
	return holdfast.Errorf(holdfast.Permission, "open keyring", "%s; pool %s opens with %s", what, l.Pool, strings.Join(want, " or ")).
		Advise("give the right key, or type the key of the pool's printed recovery sheet into a file and use that as the key file")
}
