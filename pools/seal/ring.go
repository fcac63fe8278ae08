package seal

import (
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// Bounds of a keyring.
const (
	MaxWraps  = 16
	MaxEpochs = 1024
)

// A Ring is an open keyring. It never changes: what changes keys returns a new one, which is in force once its bytes are stored. Safe for
// concurrent use.
type Ring struct {
	pool       holdfast.PoolID
	generation uint64
	domain     [32]byte
	seed       uint64
	recovery   Key // zero: there is no recovery wrap
	epochs     []epoch
	wraps      []wrap
	keks       [][keyBytes]byte // of wraps, in their order: so that a new root reaches all of them
	rand       entropy
}

// An epoch is one data key and since when it is used.
type epoch struct {
	id      KeyID
	created int64  // Unix seconds
	since   uint64 // no container below this id is encrypted with it
	redo    bool   // containers below since are to be encrypted anew
	key     [keyBytes]byte
}

// A wrap is what one secret needs to open the keyring.
type wrap struct {
	kind    Kind
	cost    Cost // of a passphrase
	created int64
	print   Fingerprint // of a key; zero for a passphrase
	salt    [saltBytes]byte
}

// Options are what a new keyring is made of.
type Options struct {
	Pool   holdfast.PoolID
	Kind   Kind // of Secret: KeyFile or Passphrase
	Secret Secret
	Cost   Cost // zero: DefaultCost
	Domain holdfast.Domain
	Seed   uint64 // of the chunking: it hides where content is cut
	Now    time.Time

	rand entropy
}

// New makes a keyring with one data key and two wraps: the secret's and a new recovery key's.
func New(o Options) (*Ring, error) {
	if o.rand == nil {
		o.rand = systemEntropy
	}
	r := &Ring{pool: o.Pool, domain: o.Domain.Key, seed: o.Seed, rand: o.rand}
	r.addEpoch(o.Now, 0, false)
	if err := r.addWrap(o.Kind, o.Secret, o.Cost, o.Now); err != nil {
		return nil, err
	}
	return r, r.addRecovery(o.Now)
}

func (r *Ring) addEpoch(now time.Time, since uint64, redo bool) {
	e := epoch{created: now.Unix(), since: since, redo: redo}
	r.rand(e.id[:])
	e.id[6], e.id[8] = e.id[6]&0x0f|0x40, e.id[8]&0x3f|0x80
	r.rand(e.key[:])
	r.epochs = append(r.epochs, e)
}

func (r *Ring) addWrap(kind Kind, s Secret, cost Cost, now time.Time) error {
	const op = "add key"
	if len(r.wraps) == MaxWraps {
		return holdfast.Errorf(holdfast.Invalid, op, "the keyring has %d keys already", MaxWraps).Advise("take one away first")
	}
	if s.IsZero() || s.passphrase != (kind == Passphrase) {
		return holdfast.Errorf(holdfast.Invalid, op, "the secret is no %v", kind)
	}
	w := wrap{kind: kind, created: now.Unix()}
	if kind == Passphrase {
		if cost == (Cost{}) {
			cost = DefaultCost
		}
		if !cost.check() {
			return holdfast.Errorf(holdfast.Invalid, op, "argon2id with %+v is out of bounds", cost)
		}
		w.cost = cost
	} else {
		w.print = Key(s.b).Fingerprint()
	}
	r.rand(w.salt[:])
	r.wraps = append(r.wraps, w)
	r.keks = append(r.keks, s.kek(&w, r.pool))
	return nil
}

func (r *Ring) addRecovery(now time.Time) error {
	r.rand(r.recovery[:])
	return r.addWrap(Recovery, r.recovery.Secret(), Cost{}, now)
}

func (r *Ring) clone() *Ring {
	c := *r
	c.epochs, c.wraps, c.keks = slices.Clone(r.epochs), slices.Clone(r.wraps), slices.Clone(r.keks)
	return &c
}

func (r *Ring) newest() *epoch { return &r.epochs[len(r.epochs)-1] }

func (r *Ring) find(id KeyID) *epoch {
	for i := range r.epochs {
		if r.epochs[i].id == id {
			return &r.epochs[i]
		}
	}
	return nil
}

// Pool returns the id of the pool that the keyring belongs to.
func (r *Ring) Pool() holdfast.PoolID { return r.pool }

// Generation counts the times that the keyring was stored; of two copies the higher one counts.
func (r *Ring) Generation() uint64 { return r.generation }

// Domain returns the domain of the pool's chunk names.
func (r *Ring) Domain() holdfast.Domain { return holdfast.Domain{Key: r.domain} }

// Seed returns the secret of the pool's chunking.
func (r *Ring) Seed() uint64 { return r.seed }

// Recovery returns the key that the recovery sheet shows, or false if there is none.
func (r *Ring) Recovery() (Key, bool) { return r.recovery, r.recovery != Key{} }

// NewCipher returns the cipher of a new container, under the newest data key.
func (r *Ring) NewCipher(container uint64) *Cipher {
	var salt [saltBytes]byte
	r.rand(salt[:])
	return newCipher(r.newest(), salt, r.pool, container)
}

// Cipher returns the cipher of a container by what its header says. A key that the ring does not hold is Corrupt.
func (r *Ring) Cipher(id KeyID, salt [saltBytes]byte, container uint64) (*Cipher, error) {
	e := r.find(id)
	if e == nil {
		return nil, errNoKey("decrypt container", id)
	}
	return newCipher(e, salt, r.pool, container), nil
}

// Redo returns the container id below which containers are to be encrypted anew when there is occasion; 0: none.
func (r *Ring) Redo() uint64 {
	for _, e := range slices.Backward(r.epochs) {
		if e.redo {
			return e.since
		}
	}
	return 0
}

// Rotation says what a rotation does besides beginning a new data key.
type Rotation struct {
	Since    uint64 // container ids from here on use the new key
	Redo     bool   // encrypt what is older anew, in time
	Kind     Kind   // with Secret: takes the place of every key file and passphrase there was
	Secret   Secret
	Cost     Cost
	Recovery bool // a new recovery key; sheets printed before are worthless then
	Now      time.Time
}

// Rotate returns a keyring with a new data key for what is written from now on. Every secret that is not replaced opens it as before.
func (r *Ring) Rotate(o Rotation) (*Ring, error) {
	if len(r.epochs) == MaxEpochs {
		return nil, holdfast.Errorf(holdfast.Unsupported, "rotate key", "the keyring has %d data keys already", MaxEpochs).Advise("make a new pool and copy the sets")
	}
	n := r.clone()
	n.addEpoch(o.Now, o.Since, o.Redo)
	if !o.Secret.IsZero() {
		n.drop(func(w *wrap) bool { return w.kind != Recovery })
		if err := n.addWrap(o.Kind, o.Secret, o.Cost, o.Now); err != nil {
			return nil, err
		}
	}
	if o.Recovery {
		n.drop(func(w *wrap) bool { return w.kind == Recovery })
		if err := n.addRecovery(o.Now); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// drop takes wraps away.
func (r *Ring) drop(which func(*wrap) bool) {
	wraps, keks := r.wraps, r.keks
	r.wraps, r.keks = nil, nil
	for i := range wraps {
		if !which(&wraps[i]) {
			r.wraps, r.keks = append(r.wraps, wraps[i]), append(r.keks, keks[i])
		}
	}
}

// Add returns a keyring that one more secret opens. The data key stays.
func (r *Ring) Add(kind Kind, s Secret, cost Cost, now time.Time) (*Ring, error) {
	n := r.clone()
	return n, n.addWrap(kind, s, cost, now)
}

// Info describes a keyring without its secrets.
type Info struct {
	Pool       holdfast.PoolID `json:"pool"`
	Generation uint64          `json:"generation" doc:"times the keyring was stored"`
	Wraps      []WrapInfo      `json:"keys" doc:"each of them opens the pool"`
	Epochs     []EpochInfo     `json:"data_keys" doc:"oldest first; the last one encrypts what is written now"`
}

// WrapInfo describes one secret that opens the keyring.
type WrapInfo struct {
	Kind    string    `json:"kind" doc:"key file, passphrase or recovery key"`
	Print   string    `json:"fingerprint,omitempty" doc:"the line 'key' of its printed form"`
	Cost    string    `json:"cost,omitempty" doc:"of a passphrase: argon2id's parameters"`
	Created time.Time `json:"created"`
}

// EpochInfo describes one data key.
type EpochInfo struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Since   uint64    `json:"since" doc:"id of the first container that may use it"`
	Redo    bool      `json:"reencrypt,omitempty" doc:"older containers are encrypted anew by collecting"`
}

// Info describes the keyring.
func (r *Ring) Info() Info {
	i := Info{Pool: r.pool, Generation: r.generation, Wraps: infoOf(r.wraps)}
	for _, e := range r.epochs {
		i.Epochs = append(i.Epochs, EpochInfo{e.id.String(), time.Unix(e.created, 0).UTC(), e.since, e.redo})
	}
	return i
}
