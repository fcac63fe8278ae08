package dedup

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"path"
	"strconv"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// The superblock names the pool. It is written once, in two copies; nothing in it ever changes.
const (
	superblockName = "superblock" // folders call the three differently: layout.go
	superblockCopy = "superblock.copy"
	ownerName      = "owner"
	frameMagic     = "HFASTSB1"
	maxFrame       = 64 << 10
	formatVersion  = 1
	poolKind       = "dedup"

	incompatSealed = 1 << 0 // the pool is encrypted: domain_key and the chunking's seed are in the keyring
	knownIncompat  = incompatSealed
)

// superblock is the JSON inside the frame {magic, length, crc32c}.
type superblock struct {
	Format   int               `json:"format"`
	Kind     string            `json:"kind"`
	Compat   uint32            `json:"compat"`   // feature bits a reader may ignore
	ROCompat uint32            `json:"rocompat"` // one that does not know a bit may read only
	Incompat uint32            `json:"incompat"` // one that does not know a bit must refuse
	Pool     holdfast.PoolID   `json:"pool"`
	Chunking holdfast.Chunking `json:"chunking"`
	Key      []byte            `json:"domain_key"`
	Created  time.Time         `json:"created"`
}

func newSuperblock(kind string, id holdfast.PoolID, c holdfast.Chunking, now time.Time) (*superblock, error) {
	if id.IsZero() {
		return nil, holdfast.Errorf(holdfast.Invalid, "create pool", "no pool id")
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	var secret [40]byte
	_, _ = rand.Read(secret[:]) // never fails since Go 1.24
	if c.Mode != holdfast.ModeFixed && c.Seed == 0 {
		c.Seed = max(binary.LittleEndian.Uint64(secret[32:]), 1)
	}
	return &superblock{Format: formatVersion, Kind: kind, Pool: id, Chunking: c, Key: secret[:32], Created: now.UTC()}, nil
}

// sealed reports whether the pool is encrypted.
func (s *superblock) sealed() bool { return s.Incompat&incompatSealed != 0 }

// Domain returns the domain of the pool's digests. That of an encrypted pool is known once its keyring is open.
func (s *superblock) Domain() holdfast.Domain { return holdfast.Domain{Key: [32]byte(s.Key)} }

func (s *superblock) encode() ([]byte, error) {
	j, err := json.Marshal(s)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "encode superblock", "%w", err)
	}
	return appendFrame(nil, j), nil
}

func parseSuperblock(kind string, b []byte) (*superblock, error) {
	const op = "read superblock"
	j, err := parseFrame(b)
	if err != nil {
		return nil, err
	}
	var s superblock
	dec := json.NewDecoder(bytes.NewReader(j))
	if err := dec.Decode(&s); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	if s.Format != formatVersion || s.Incompat&^knownIncompat != 0 || s.ROCompat != 0 || s.Kind != kind {
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "a %q pool of format %d with features %#x/%#x", s.Kind, s.Format, s.ROCompat, s.Incompat).
			Advise("open the pool with a newer version of Holdfast")
	}
	if s.sealed() && (len(s.Key) != 0 || s.Chunking.Seed != 0) {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "the pool is encrypted, but its keys are not")
	}
	if !s.sealed() && len(s.Key) != 32 || s.Pool.IsZero() {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "no key or no id")
	}
	return &s, s.Chunking.Check()
}

// appendFrame wraps small JSON: magic, length, JSON, crc32c of all before.
func appendFrame(b, j []byte) []byte {
	at := len(b)
	b = append(b, frameMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(j)))
	b = append(b, j...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

func parseFrame(b []byte) ([]byte, error) {
	if len(b) < 16 || len(b) > maxFrame || string(b[:8]) != frameMagic || int(binary.LittleEndian.Uint32(b[8:])) != len(b)-16 ||
		binary.LittleEndian.Uint32(b[len(b)-4:]) != crc32.Checksum(b[:len(b)-4], castagnoli) {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read frame", "the frame's length or checksum is wrong")
	}
	return b[12 : len(b)-4], nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// writeSuperblock makes a pool out of an empty medium.
func writeSuperblock(ctx context.Context, m blob.Store, s *superblock) error {
	for _, name := range []string{superblockName, superblockCopy} {
		ok, err := m.Exists(ctx, name)
		if err != nil {
			return err
		}
		if ok && name == superblockName {
			return holdfast.Errorf(holdfast.Exist, "create pool", "there is a pool already").Advise("open it, or choose another place")
		}
	}
	b, err := s.encode()
	if err != nil {
		return err
	}
	// The copy goes first: a crash in between leaves a place without HOLDFAST, which can be created again.
	for _, name := range []string{superblockCopy, superblockName} {
		if err := blob.WriteAll(ctx, m, name, b); err != nil {
			return err
		}
	}
	return nil
}

// readSuperblock reads the superblock or its copy.
func readSuperblock(ctx context.Context, m blob.Store, kind string) (*superblock, error) {
	var first error
	for _, name := range []string{superblockName, superblockCopy} {
		b, err := blob.ReadAll(ctx, m, name, maxFrame)
		if err == nil {
			var s *superblock
			if s, err = parseSuperblock(kind, b); err == nil {
				return s, nil
			}
		}
		if first == nil || holdfast.KindOf(first) == holdfast.NotExist && holdfast.KindOf(err) != holdfast.NotExist {
			first = err
		}
	}
	if holdfast.KindOf(first) == holdfast.NotExist {
		return nil, holdfast.Errorf(holdfast.NotExist, "open pool", "there is no pool here").Advise("look whether the pool's disk is mounted")
	}
	return nil, first
}

// owner counts who wrote to the pool: the upper half of container ids, so that none is ever used twice, whatever else is lost.
type owner struct {
	Generation uint32 `json:"generation"`
}

// nextGeneration returns a generation that nobody had, and makes that durable. p.idMu is held.
func (p *Pool) nextGeneration() (uint32, error) {
	switch {
	case p.given > p.highest:
		return p.given, nil
	case p.ownerFile:
		return nextOwner(p.life, p.med, p.highest)
	}
	return nextMark(p.life, p.med, p.highest)
}

// generationsDir has one empty object for the latest generation, which its name tells: objects do not change.
const generationsDir = "generations"

// nextMark makes a new generation durable. highest is the highest one seen in a container's id.
func nextMark(ctx context.Context, m blob.Store, highest uint32) (uint32, error) {
	names, err := m.List(ctx, generationsDir)
	if err != nil {
		return 0, err
	}
	for _, n := range names {
		if g, err := strconv.ParseUint(path.Base(n), 16, 32); err == nil {
			highest = max(highest, uint32(g))
		}
	}
	highest++
	if err := blob.WriteAll(ctx, m, fmt.Sprintf("%s/%08x", generationsDir, highest), nil); err != nil {
		return 0, err
	}
	for _, n := range names {
		_ = m.Remove(ctx, n) // a lower one does no harm
	}
	return highest, nil
}

// nextOwner makes a new generation durable. highest is the highest one seen in a container's id.
func nextOwner(ctx context.Context, m blob.Store, highest uint32) (uint32, error) {
	var o owner
	b, err := blob.ReadAll(ctx, m, ownerName, maxFrame)
	switch {
	case err == nil:
		j, err := parseFrame(b)
		if err == nil {
			err = json.Unmarshal(j, &o)
		}
		if err != nil {
			// Both the ids there are and a rewritten file come after this: skipping far ahead is as good as knowing.
			o.Generation = highest + 1<<16
		}
	case holdfast.KindOf(err) != holdfast.NotExist:
		return 0, err
	}
	o.Generation = max(o.Generation, highest) + 1
	j, err := json.Marshal(o)
	if err != nil {
		return 0, holdfast.Errorf(holdfast.Internal, "encode owner", "%w", err)
	}
	return o.Generation, blob.WriteAll(ctx, m, ownerName, appendFrame(nil, j))
}
