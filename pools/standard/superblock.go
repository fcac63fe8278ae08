package standard

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

const (
	formatVersion = 1
	poolTitle     = "holdfast standard pool, version 1. Folders of sets are below vms/. Format: docs/formats/standard.md"
	maxPoolRecord = 64 << 10
)

// A superblock says what pool a path belongs to. Each path has one, in two copies; nothing in it ever changes. All paths of a
// pool have the same, but for their numbers.
type superblock struct {
	Format   int               `json:"format"`
	Kind     string            `json:"kind"`
	Incompat uint32            `json:"incompat"` // feature bits: one that does not know a bit must refuse
	Pool     holdfast.PoolID   `json:"pool"`
	Path     int               `json:"path"`  // number of this path, from 1
	Paths    int               `json:"paths"` // how many there were when this path was added, itself included
	Chunking holdfast.Chunking `json:"chunking"`
	Key      []byte            `json:"domain_key"`
	Created  time.Time         `json:"created"`
}

func newSuperblock(id holdfast.PoolID, c holdfast.Chunking, now time.Time) (*superblock, error) {
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
	return &superblock{Format: formatVersion, Kind: Kind, Pool: id, Chunking: c, Key: secret[:32], Created: now.UTC()}, nil
}

// domain returns the domain of the pool's digests.
func (s *superblock) domain() holdfast.Domain { return holdfast.Domain{Key: [32]byte(s.Key)} }

// same reports whether two paths belong together.
func (s *superblock) same(o *superblock) bool {
	return s.Pool == o.Pool && bytes.Equal(s.Key, o.Key) && s.Chunking == o.Chunking
}

func (s *superblock) encode() ([]byte, error) {
	j, err := json.Marshal(s)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "encode pool record", "%w", err)
	}
	f := frame{title: poolTitle, parts: []part{{"pool", j}}}
	return f.encode(), nil
}

func parseSuperblock(b []byte) (*superblock, error) {
	const op = "read pool record"
	f, err := parseFrame(op, b, "pool")
	if err != nil {
		return nil, err
	}
	var s superblock
	if err := json.Unmarshal(f.parts[0].body, &s); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	if s.Format != formatVersion || s.Incompat != 0 || s.Kind != Kind {
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "a %q pool of format %d with features %#x", s.Kind, s.Format, s.Incompat).
			Advise("open the pool with a newer version of Holdfast")
	}
	if len(s.Key) != 32 || s.Pool.IsZero() || s.Path < 1 || s.Path > maxPaths || s.Paths < s.Path || s.Paths > maxPaths {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "no key, no id or no path number")
	}
	if err := s.Chunking.Check(); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	return &s, nil
}

// readSuperblock reads a path's superblock or its copy. NotExist if the path belongs to no pool.
func readSuperblock(ctx context.Context, s blob.Store) (*superblock, error) {
	var first error
	for _, name := range []string{poolName, poolCopy} {
		b, err := blob.ReadAll(ctx, s, name, maxPoolRecord)
		if err == nil {
			var sb *superblock
			if sb, err = parseSuperblock(b); err == nil {
				return sb, nil
			}
		}
		if first == nil || holdfast.KindOf(first) == holdfast.NotExist {
			first = err
		}
	}
	return nil, first
}

// writeSuperblock writes both copies; the main one last, so that a path with it has both.
func writeSuperblock(ctx context.Context, s blob.Store, sb *superblock) error {
	b, err := sb.encode()
	if err != nil {
		return err
	}
	for _, name := range []string{poolCopy, poolName} {
		if err := blob.WriteAll(ctx, s, name, b); err != nil {
			return err
		}
	}
	return nil
}
