package pool

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/seal"
	"github.com/holdfast-backup/holdfast/tape/hft"
)

const maxObjects = 4 << 30

// list is the file of a media set's objects: the sum finds accidents.
type list struct {
	Sum     holdfast.Digest `json:"sum"`
	Objects json.RawMessage `json:"objects"`
}

func writeObjects(f fsys.FS, set holdfast.ID, entries []hft.Entry) error {
	const op = "write list of objects on tape"
	b, err := json.Marshal(entries)
	if err == nil {
		b, err = json.Marshal(list{sumOf(b), b})
	}
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	return fsys.Classify(op, fsys.Replace(f, objectName(set), b))
}

// saveObjects writes the list of a media set. The caller holds mu.
func (p *Pool) saveObjects(set holdfast.ID) error { return writeObjects(p.fs, set, p.objects[set]) }

func (p *Pool) loadObjects(set holdfast.ID) error {
	const op = "read list of objects on tape"
	b, err := fsys.ReadFile(p.fs, objectName(set), maxObjects)
	if err != nil {
		if err = fsys.Classify(op, err); holdfast.KindOf(err) == holdfast.NotExist {
			return nil // nothing was committed on it
		}
		return err
	}
	var l list
	var entries []hft.Entry
	err = json.Unmarshal(b, &l)
	if err == nil {
		err = json.Unmarshal(l.Objects, &entries)
	}
	if err != nil || sumOf(l.Objects) != l.Sum {
		return holdfast.Errorf(holdfast.Corrupt, op, "it is not whole: %v", err).Advise("read the catalog from the cartridges again")
	}
	p.objects[set] = entries
	return nil
}

// sweep removes what sessions of a process that died have left, and records that nobody needs.
func (p *Pool) sweep() error {
	const op = "tidy the state of a tape pool"
	need := map[string]bool{}
	for _, b := range p.book.Backups {
		need[b.Record.String()] = true
	}
	for _, dir := range []string{spoolDir, recordDir} {
		names, err := p.fs.List(dir)
		if err != nil {
			return fsys.Classify(op, err)
		}
		for _, n := range names {
			if dir == recordDir && need[n] {
				continue
			}
			if err := p.fs.Remove(dir + "/" + n); err != nil {
				return fsys.Classify(op, err)
			}
		}
	}
	return nil
}

// newSuper makes a pool's description, with its keyring where tapes are to be encrypted.
func newSuper(env pools.Env, id holdfast.PoolID, c Config, chunking holdfast.Chunking, now time.Time) (superblock, error) {
	h := superblock{Format: 1, ID: id, Created: now.UTC(), Chunking: chunking}
	var domain holdfast.Domain
	_, _ = rand.Read(domain.Key[:]) // never fails since Go 1.24
	if chunking.Mode != holdfast.ModeFixed {
		var seed [8]byte
		_, _ = rand.Read(seed[:])
		h.Chunking.Seed = max(le.Uint64(seed[:]), 1)
	}
	sealing, err := c.Sealing(env)
	if err != nil {
		return h, err
	}
	if sealing.Secret == nil {
		h.Domain = domain.Key[:]
		return h, nil
	}
	s, err := sealing.Secret()
	if err != nil {
		return h, err
	}
	ring, err := seal.New(seal.Options{Pool: id, Kind: sealing.Kind, Secret: s, Cost: sealing.Cost, Domain: domain, Seed: h.Chunking.Seed, Now: now})
	if err != nil {
		return h, err
	}
	h.Chunking.Seed = 0
	h.Keyring, _ = ring.Encode(0)
	return h, nil
}

// unlock opens the keyring of an encrypted pool.
func (p *Pool) unlock(env pools.Env) error {
	const op = "open tape pool"
	sealing, err := p.config.Sealing(env)
	if err != nil {
		return err
	}
	if (sealing.Secret != nil) != (len(p.head.Keyring) > 0) {
		return holdfast.Errorf(holdfast.Invalid, op, "the configuration and the pool do not agree whether tapes are encrypted").Advise("give the pool the key that it was made with")
	}
	if sealing.Secret == nil {
		p.domain = holdfast.Domain{Key: [32]byte(p.head.Domain)}
		return nil
	}
	s, err := sealing.Secret()
	if err != nil {
		return err
	}
	locked, err := seal.Parse(p.head.Keyring)
	if err != nil {
		return err
	}
	if p.ring, err = locked.Unlock(s); err != nil {
		return err
	}
	p.secret, p.domain = &s, p.ring.Domain()
	p.head.Chunking.Seed = p.ring.Seed()
	return p.head.Chunking.Check()
}

// newKey puts the key of the label's media set into the label, wrapped by the pool's keyring, and returns it. Nil: tapes are not encrypted.
func (p *Pool) newKey(l *hft.Label) (*hft.Key, error) {
	if p.ring == nil {
		return nil, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.keys[l.Set]
	if k == nil {
		k = &hft.Key{Bytes: make([]byte, 32), Descriptor: l.Set[:]}
		_, _ = rand.Read(k.Bytes)
	}
	if err := l.SealKey(p.ring, k.Bytes); err != nil {
		return nil, err
	}
	p.keys[l.Set] = k
	return k, nil
}

// keyOf returns the key of a tape. Nil: it is not encrypted.
func (p *Pool) keyOf(l hft.Label) (*hft.Key, error) {
	if !l.Encrypted() {
		return nil, nil
	}
	p.mu.Lock()
	k := p.keys[l.Set]
	p.mu.Unlock()
	if k != nil {
		return k, nil
	}
	if p.secret == nil {
		return nil, holdfast.Errorf(holdfast.Permission, "read tape", "tape %s is encrypted, and the pool has no key", l.Barcode).Advise("configure the pool with its passphrase or key file")
	}
	b, err := l.OpenKey(*p.secret)
	if err != nil {
		return nil, err
	}
	k = &hft.Key{Bytes: b, Descriptor: l.Set[:]}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys[l.Set] = k
	return k, nil
}

// A preface is the first object of each media set: the pool's description and what was deleted.
type preface struct {
	superblock
	Name    string        `json:"name"`
	Media   holdfast.ID   `json:"media"`
	Begun   time.Time     `json:"begun"`
	Deleted []holdfast.ID `json:"deleted"`
}

// deletions is an object that says which records count no more.
type deletions struct {
	Deleted []holdfast.ID `json:"deleted"`
}

// Names of records on tape. A backup set's is set/ and its id.
const (
	prefaceName  = "pool"
	deletedName  = "deleted"
	setPrefix    = "set/"
	maxDeletions = 256 << 20
)

// preface returns what is to be written before other things: the pool's description where the media set is new, else deletions that no tape was told of. struck
// are the deletions in it.
func (p *Pool) preface(set holdfast.ID) (objs []*object, struck []holdfast.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := len(p.objects[set]) == 0
	for _, d := range p.book.Deleted {
		if fresh || !d.Written {
			struck = append(struck, d.Record)
		}
	}
	switch s := p.book.Set(set); {
	case fresh && s != nil:
		h := p.head
		if len(h.Keyring) > 0 {
			h.Chunking.Seed = 0
		}
		return []*object{jsonObject(prefaceName, preface{superblock: h, Name: p.name, Media: set, Begun: s.Created, Deleted: struck})}, struck
	case len(struck) > 0:
		return []*object{jsonObject(deletedName, deletions{struck})}, struck
	}
	return nil, nil
}

// WriteDeletions has a tape say what was deleted. It is done with everything else that is written; by itself it is for those who want it before a vault.
func (p *Pool) WriteDeletions(ctx context.Context) error {
	if err := p.enter(ctx, "write deletions to tape"); err != nil {
		return err
	}
	open, pending := holdfast.ID{}, false
	for _, d := range p.book.Deleted {
		pending = pending || !d.Written
	}
	if pending {
		open = p.current().ID
		p.pins[open]++
		p.users++
	}
	p.mu.Unlock()
	if !pending {
		return nil
	}
	defer p.leave(open)
	return p.put(ctx, open, nil)
}
