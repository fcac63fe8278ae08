package dedup

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/container"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// keysDir holds the keyring: one object for each generation and a copy of it. Objects do not change, so a new keyring gets a new name; the
// ones before are removed when the new one is durable.
const (
	keysDir    = "keys"
	copySuffix = ".copy"
)

// Sealing says how a pool is encrypted. The zero value: it is not.
type Sealing struct {
	Kind   seal.Kind                   // seal.KeyFile or seal.Passphrase; only making a pool looks at it
	Cost   seal.Cost                   // of a passphrase; zero: the default
	Secret func() (seal.Secret, error) // asked once when the pool is made or opened. Nil: the pool is not encrypted
}

// Encryption is the part of a driver's configuration that says how a pool is encrypted. Drivers on this engine embed it.
type Encryption struct {
	Encryption string `json:"encryption,omitempty"` // key-file, passphrase, or none
	KeyFile    string `json:"key_file,omitempty"`   // of the key or the passphrase: what Env.Secrets knows it by
}

// Words of Encryption.
const (
	EncryptNone       = "none"
	EncryptKeyFile    = "key-file"
	EncryptPassphrase = "passphrase"
)

// Sealing returns what the configuration says. The secret itself is read when it is needed. The error is Invalid.
func (e Encryption) Sealing(env pools.Env) (Sealing, error) {
	const op = "read pool config"
	s := Sealing{}
	switch e.Encryption {
	case "", EncryptNone:
		if e.KeyFile != "" {
			return s, holdfast.Errorf(holdfast.Invalid, op, "a key is named, but the pool is not to be encrypted")
		}
		return s, nil
	case EncryptKeyFile:
		s.Kind = seal.KeyFile
	case EncryptPassphrase:
		s.Kind = seal.Passphrase
	default:
		return s, holdfast.Errorf(holdfast.Invalid, op, "unknown encryption %q", e.Encryption).Advise("use key-file, passphrase or none")
	}
	if e.KeyFile == "" {
		return s, holdfast.Errorf(holdfast.Invalid, op, "encryption %q without a key", e.Encryption).Advise("name the file: \"key_file\"")
	}
	kind := s.Kind
	s.Secret = func() (seal.Secret, error) {
		if env.Secrets == nil {
			return seal.Secret{}, holdfast.Errorf(holdfast.Unsupported, "read key", "there is nobody to ask for %s", e.KeyFile)
		}
		b, err := env.Secrets(e.KeyFile)
		if err != nil {
			return seal.Secret{}, holdfast.Errorf(holdfast.KindOf(err), "read key", "%w", err).
				Advise("bring the %v %s back, or type the key of the pool's recovery sheet into it", kind, e.KeyFile)
		}
		sec, err := seal.Read(kind, b)
		if err != nil {
			return sec, holdfast.Errorf(holdfast.KindOf(err), "read key", "%s: %w", e.KeyFile, err)
		}
		return sec, nil
	}
	return s, nil
}

// keys is the open keyring of a pool.
type keys struct {
	ring atomic.Pointer[seal.Ring] // nil: the pool is not encrypted

	mu    sync.Mutex // held by the one change of keys that runs; guards tried
	tried uint64     // the highest generation that anybody tried to store
}

func (k *keys) start(r *seal.Ring) {
	if r != nil {
		k.ring.Store(r)
		k.tried = r.Generation()
	}
}

// isKeys reports whether an object is a keyring.
func isKeys(name string) bool { return blob.In(name, keysDir) }

func keysName(generation uint64) string { return path.Join(keysDir, hex16(generation)) }

// writePool makes a pool of a superblock: the keyring first, so that there is never a superblock without it. Keyrings that are there
// already are those of an attempt that was cut off: the pool is empty.
func writePool(ctx context.Context, env pools.Env, m blob.Store, s *superblock, o Sealing) error {
	if o.Secret == nil {
		return writeSuperblock(ctx, m, s)
	}
	if ok, err := m.Exists(ctx, superblockName); err != nil {
		return err
	} else if ok {
		return holdfast.Errorf(holdfast.Exist, "create pool", "there is a pool already").Advise("open it, or choose another place")
	}
	left, err := m.List(ctx, keysDir)
	if err != nil {
		return err
	}
	tried := uint64(0)
	for _, n := range left {
		g, _ := generationOf(n)
		tried = max(tried, g)
		if err := m.Remove(ctx, n); err != nil {
			return err
		}
	}
	secret, err := o.Secret()
	if err != nil {
		return err
	}
	ring, err := seal.New(seal.Options{Pool: s.Pool, Kind: o.Kind, Secret: secret, Cost: o.Cost, Domain: s.Domain(), Seed: s.Chunking.Seed, Now: clockOf(env).Now()})
	if err != nil {
		return err
	}
	b, ring := ring.Encode(tried)
	if err := writeKeys(ctx, m, ring.Generation(), b); err != nil {
		return err
	}
	s.Key, s.Chunking.Seed, s.Incompat = nil, 0, s.Incompat|incompatSealed
	return writeSuperblock(ctx, m, s)
}

// writeKeys stores a keyring twice.
func writeKeys(ctx context.Context, m blob.Store, generation uint64, b []byte) error {
	for _, name := range []string{keysName(generation) + copySuffix, keysName(generation)} {
		if err := blob.WriteAll(ctx, m, name, b); err != nil {
			return err
		}
	}
	return nil
}

func generationOf(name string) (uint64, bool) {
	g, err := strconv.ParseUint(strings.TrimSuffix(path.Base(name), copySuffix), 16, 64)
	return g, err == nil && strings.TrimSuffix(name, copySuffix) == keysName(g)
}

// readKeys returns the newest keyring that is whole, and its bytes. What is not whole is left where it is.
func readKeys(ctx context.Context, m blob.Store, pool holdfast.PoolID) (*seal.Locked, []byte, error) {
	names, err := m.List(ctx, keysDir)
	if err != nil {
		return nil, nil, err
	}
	slices.Reverse(names)
	first := error(holdfast.Errorf(holdfast.Corrupt, "open pool", "the pool is encrypted, and its keyring is not there"))
	for i, n := range names {
		g, ok := generationOf(n)
		if !ok {
			continue
		}
		b, err := blob.ReadAll(ctx, m, n, seal.MaxRing)
		var l *seal.Locked
		if err == nil {
			l, err = seal.Parse(b)
		}
		if err == nil && (l.Pool != pool || l.Generation != g) {
			err = holdfast.Errorf(holdfast.Corrupt, "read keyring", "it is generation %d of pool %s", l.Generation, l.Pool)
		}
		if err == nil {
			return l, b, nil
		}
		if k := holdfast.KindOf(err); k != holdfast.Corrupt && k != holdfast.NotExist {
			return nil, nil, err // the medium may answer later; an older keyring must not win meanwhile
		}
		if i == 0 {
			first = err
		}
	}
	return nil, nil, holdfast.Errorf(holdfast.Corrupt, "open pool", "no copy of the keyring is whole: %w", first).
		Advise("bring the pool's folder %q back from a copy: without a keyring no key opens the pool", keysDir)
}

// unlock opens the keyring of an encrypted pool and completes the superblock with what it hides. It returns nil for a pool that is not encrypted, if
// that is what was expected.
func unlock(ctx context.Context, m blob.Store, s *superblock, o Sealing) (*seal.Ring, error) {
	const op = "open pool"
	switch {
	case !s.sealed() && o.Secret == nil:
		return nil, nil
	case !s.sealed():
		return nil, holdfast.Errorf(holdfast.Permission, op, "the pool is configured as encrypted, but the pool here is not").
			Advise("find out who changed it; nothing was written to it")
	case o.Secret == nil:
		return nil, holdfast.Errorf(holdfast.Permission, op, "the pool is encrypted, and no key is configured").
			Advise("take the pool over with its key: holdfast pool import NAME --path DIR --encrypt --key-file FILE")
	}
	l, b, err := readKeys(ctx, m, s.Pool)
	if err != nil {
		return nil, err
	}
	secret, err := o.Secret()
	if err != nil {
		return nil, err
	}
	r, err := l.Unlock(secret)
	if err != nil {
		return nil, err
	}
	d := r.Domain()
	s.Key, s.Chunking.Seed = d.Key[:], r.Seed()
	tidyKeys(ctx, m, r.Generation(), b)
	return r, nil
}

// tidyKeys brings the keyring in force to two whole copies and removes older ones: a secret that was replaced opens those. What fails is
// tried again when the pool is opened the next time.
func tidyKeys(ctx context.Context, m blob.Store, generation uint64, b []byte) {
	for _, n := range []string{keysName(generation), keysName(generation) + copySuffix} {
		got, err := blob.ReadAll(ctx, m, n, seal.MaxRing)
		if err == nil && string(got) == string(b) {
			continue
		}
		if k := holdfast.KindOf(err); err != nil && k != holdfast.Corrupt && k != holdfast.NotExist {
			return
		}
		if m.Remove(ctx, n) != nil || blob.WriteAll(ctx, m, n, b) != nil {
			return
		}
	}
	_ = removeOldKeys(ctx, m, generation)
}

func removeOldKeys(ctx context.Context, m blob.Store, generation uint64) error {
	names, err := m.List(ctx, keysDir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if g, ok := generationOf(n); ok && g < generation {
			if err := m.Remove(ctx, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// newContainer gives the id and the cipher of a new container; nil: the pool is not encrypted. Both are taken at once, so that no container
// from an epoch's first id on has an older key.
func (p *Pool) newContainer() (uint64, *seal.Cipher, error) {
	p.idMu.Lock()
	defer p.idMu.Unlock()
	id, err := p.newContainerID()
	if r := p.keys.ring.Load(); r != nil && err == nil {
		return id, r.NewCipher(id), nil
	}
	return id, nil, err
}

// unlockFooter gives a footer its cipher. A container in the clear has no place in an encrypted pool, nor the other way round.
func (p *Pool) unlockFooter(h *container.Header, f *container.Footer) (err error) {
	r := p.keys.ring.Load()
	if (r != nil) != h.Sealed() {
		return holdfast.Errorf(holdfast.Corrupt, "open container", "container %s and the pool differ in whether they are encrypted", hex16(h.ID))
	}
	if r != nil {
		f.Cipher, err = r.Cipher(h.KeyID, h.Salt, h.ID)
	}
	return err
}

// sealRecord encrypts a set record if the pool is encrypted.
func (p *Pool) sealRecord(name string, b []byte) ([]byte, error) {
	if r := p.keys.ring.Load(); r != nil {
		return r.SealObject(name, b)
	}
	return b, nil
}

// openRecord is the inverse of sealRecord.
func (p *Pool) openRecord(name string, b []byte) ([]byte, error) {
	if r := p.keys.ring.Load(); r != nil {
		return r.OpenObject(name, b)
	}
	return b, nil
}

// redoKeys returns the id below which containers are to be encrypted anew.
func (p *Pool) redoKeys() uint64 {
	if r := p.keys.ring.Load(); r != nil {
		return r.Redo()
	}
	return 0
}

// keyObjects names the keyring's objects.
func (p *Pool) keyObjects() []string {
	if r := p.keys.ring.Load(); r != nil {
		return []string{keysName(r.Generation()), keysName(r.Generation()) + copySuffix}
	}
	return nil
}

var errNotSealed = holdfast.Errorf(holdfast.Unsupported, "look at keys", "the pool is not encrypted").
	Advise("encryption is chosen when a pool is made: make a new one and copy the sets")

// Keys describes the pool's keys. Unsupported if the pool is not encrypted.
func (p *Pool) Keys() (seal.Info, error) {
	if r := p.keys.ring.Load(); r != nil {
		return r.Info(), nil
	}
	return seal.Info{}, errNotSealed
}

// Sheet returns the pool's recovery sheet as text, with a name for the pool. It contains the recovery key.
func (p *Pool) Sheet(name string, now time.Time) ([]byte, error) {
	if r := p.keys.ring.Load(); r != nil {
		return r.Sheet(name, now)
	}
	return nil, errNotSealed
}

// AddKey makes one more secret open the pool. Durable when it returns nil; after an error the keys are as they were, or the secret was added.
func (p *Pool) AddKey(ctx context.Context, kind seal.Kind, secret seal.Secret, now time.Time) (seal.Info, error) {
	return p.changeKeys(ctx, func(old *seal.Ring) (*seal.Ring, error) {
		return old.Add(kind, secret, seal.Cost{}, now)
	})
}

// RotateKeys begins a new data key, and changes secrets as o says; Since is the pool's to set. When it returns nil the new keyring is
// durable, twice, and the old one is gone. After an error the old keys are in force; where the medium failed half-way, the new ones may be
// after the next opening. To change the secret that a pool is opened with, add it, change the configuration, and then rotate.
func (p *Pool) RotateKeys(ctx context.Context, o seal.Rotation) (seal.Info, error) {
	i, err := p.changeKeys(ctx, func(old *seal.Ring) (*seal.Ring, error) {
		since, err := p.newContainerID()
		if err != nil {
			return nil, err
		}
		o.Since = since
		return old.Rotate(o)
	})
	if err == nil {
		p.listener.Emit(holdfast.Event{Type: "keys-rotated", Severity: holdfast.Info, Text: fmt.Sprintf("the pool has a new data key, number %d", len(i.Epochs)),
			Fields: map[string]string{"pool": p.sb.Pool.String()}})
	}
	return i, err
}

// changeKeys puts another keyring in force. No container gets its id and key meanwhile.
func (p *Pool) changeKeys(ctx context.Context, change func(*seal.Ring) (*seal.Ring, error)) (seal.Info, error) {
	if err := ctx.Err(); err != nil {
		return seal.Info{}, err
	}
	p.keys.mu.Lock()
	defer p.keys.mu.Unlock()
	p.idMu.Lock()
	defer p.idMu.Unlock()
	old := p.keys.ring.Load()
	if old == nil {
		return seal.Info{}, errNotSealed
	}
	next, err := change(old)
	if err != nil {
		return seal.Info{}, err
	}
	b, next := next.Encode(p.keys.tried)
	g := next.Generation()
	p.keys.tried = g
	if err := writeKeys(ctx, p.med, g, b); err != nil {
		// The old keyring had better stay the newest.
		_ = p.med.Remove(p.life, keysName(g))
		_ = p.med.Remove(p.life, keysName(g)+copySuffix)
		return seal.Info{}, err
	}
	p.keys.ring.Store(next)
	if err := removeOldKeys(ctx, p.med, g); err != nil {
		return next.Info(), holdfast.Errorf(holdfast.KindOf(err), "change keys", "the new keys are in force, but the old keyring is still there: %w", err).
			Advise("it goes when the pool is opened the next time")
	}
	return next.Info(), nil
}
