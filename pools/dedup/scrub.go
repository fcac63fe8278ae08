package dedup

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
	"github.com/holdfast-backup/holdfast/pools/container"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// Scrub checks the stored bytes of a pool against their checksums, without its keys: of an encrypted pool too. It neither decrypts nor decodes, so
// it cannot say which VMs are hit; Pool.Verify does. The pool may be open or not; objects that are removed meanwhile do not count. Nothing is
// changed. The error is the medium's; damage is in the report.
func Scrub(ctx context.Context, store blob.Store, progress func(done, all int64)) (pools.VerifyReport, error) {
	s := scrubber{ctx: ctx, store: store, progress: progress, rep: pools.VerifyReport{Damaged: []pools.Damage{}}}
	err := s.run()
	return s.rep, err
}

// ScrubFolder is Scrub of the pool in a folder, by its driver's configuration. It needs no key.
func ScrubFolder(ctx context.Context, config json.RawMessage, progress func(done, all int64)) (pools.VerifyReport, error) {
	c, err := readConfig(config)
	if err != nil {
		return pools.VerifyReport{}, err
	}
	fs, err := fsys.NewOS(c.Path)
	if err != nil {
		return pools.VerifyReport{}, classify("scrub pool", err)
	}
	return ScrubOn(ctx, fs, progress)
}

// ScrubOn is Scrub of the pool in a file system.
func ScrubOn(ctx context.Context, fs fsys.FS, progress func(done, all int64)) (pools.VerifyReport, error) {
	store, err := dirstore.Open(layout{fs}, dirstore.Options{ReadOnly: true})
	if err != nil {
		return pools.VerifyReport{}, err
	}
	return Scrub(ctx, store, progress)
}

// A scrubber is one Scrub under way.
type scrubber struct {
	ctx      context.Context // of this one Scrub
	store    blob.Store
	progress func(done, all int64)
	sb       *superblock
	names    []string // of containers
	rep      pools.VerifyReport
	buf      []byte
}

func (s *scrubber) run() error {
	if err := s.superblocks(); err != nil {
		return err
	}
	if s.sb == nil {
		return nil // both damaged: nothing says what the rest should be
	}
	names, err := s.store.List(s.ctx, "")
	if err != nil {
		return err
	}
	for _, n := range append(names, ownerName) { // in folders its name is not listed
		if err := s.small(n); err != nil {
			return err
		}
	}
	s.buf = make([]byte, verifyBlock)
	for i, n := range s.names {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if err := s.note(n, s.container(n)); err != nil {
			return err
		}
		if s.progress != nil {
			s.progress(int64(i+1), int64(len(s.names)))
		}
	}
	return nil
}

// note turns damage into a part of the report and passes on what the medium says.
func (s *scrubber) note(name string, err error) error {
	switch k := holdfast.KindOf(err); {
	case err == nil:
		return nil
	case k == holdfast.NotExist:
		there, err := s.store.Exists(s.ctx, name)
		if err != nil || !there {
			return err // removed meanwhile
		}
	case k != holdfast.Corrupt && k != holdfast.Unsupported && k != holdfast.Invalid:
		return err
	}
	if len(s.rep.Damaged) < maxDamage {
		d := pools.Damage{Where: name, Text: err.Error()}
		if id, ok := setOfName(name); ok {
			d.Set = id
		}
		s.rep.Damaged = append(s.rep.Damaged, d)
	}
	return nil
}

func (s *scrubber) superblocks() error {
	missing := 0
	for _, n := range []string{superblockName, superblockCopy} {
		b, err := s.read(n, maxFrame)
		var sb *superblock
		if err == nil {
			sb, err = parseAnySuperblock(b)
		}
		if holdfast.KindOf(err) == holdfast.NotExist && err != nil {
			err = holdfast.Errorf(holdfast.Corrupt, "scrub pool", "it is not there")
			missing++
		}
		if err := s.note(n, err); err != nil {
			return err
		}
		if s.sb == nil {
			s.sb = sb
		}
	}
	if missing == 2 {
		return holdfast.Errorf(holdfast.NotExist, "scrub pool", "there is no pool here").Advise("look whether the pool's disk is mounted")
	}
	return nil
}

// parseAnySuperblock is parseSuperblock for a pool of whatever kind.
func parseAnySuperblock(b []byte) (*superblock, error) {
	j, err := parseFrame(b)
	if err != nil {
		return nil, err
	}
	var kind struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(j, &kind); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read superblock", "%w", err)
	}
	return parseSuperblock(kind.Kind, b)
}

func (s *scrubber) read(name string, limit int64) ([]byte, error) {
	b, err := blob.ReadAll(s.ctx, s.store, name, limit)
	s.rep.Bytes += int64(len(b))
	return b, err
}

// small checks one object that is read whole, and collects the others.
func (s *scrubber) small(name string) error {
	if _, ok := containerOfName(name); ok {
		s.names = append(s.names, name)
		return nil
	}
	var check func([]byte) error
	limit := int64(maxFrame)
	switch {
	case name == ownerName:
		check = func(b []byte) error { _, err := parseFrame(b); return err }
	case isKeys(name):
		limit, check = seal.MaxRing, s.keyring
	case blob.In(name, setsDir):
		limit = maxSetBytes + seal.ObjectOverhead
		check = func(b []byte) error { return s.record(name, b) }
	case blob.In(name, containersDir):
		return s.note(name, holdfast.Errorf(holdfast.Corrupt, "scrub pool", "%q is no name of a container", name))
	default:
		return nil // a driver's own, or a side-car's
	}
	b, err := s.read(name, limit)
	if err == nil {
		err = check(b)
	}
	return s.note(name, err)
}

func (s *scrubber) keyring(b []byte) error {
	l, err := seal.Parse(b)
	if err == nil && l.Pool != s.sb.Pool {
		err = holdfast.Errorf(holdfast.Corrupt, "scrub pool", "it is of pool %s", l.Pool)
	}
	return err
}

func (s *scrubber) record(name string, b []byte) error {
	id, ok := setOfName(name)
	if !ok {
		return holdfast.Errorf(holdfast.Corrupt, "scrub pool", "%q is no name of a set record", name)
	}
	s.rep.Sets++
	if s.sb.sealed() {
		return seal.CheckObject(b)
	}
	r, err := parseSetRecord(b, s.sb.Domain().Hasher())
	if err == nil && (r.manifest.ID != id || r.pool != s.sb.Pool) {
		err = holdfast.Errorf(holdfast.Corrupt, "scrub pool", "it is set %s of pool %s", r.manifest.ID, r.pool)
	}
	return err
}

// container checks every record of a container.
func (s *scrubber) container(name string) error {
	r, err := s.store.Open(s.ctx, name)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // only read
	r.DropCache()
	h, f, err := container.Load(r, r.Size())
	if err != nil {
		return err
	}
	if id, _ := containerOfName(name); h.ID != id || h.Pool != s.sb.Pool || h.Sealed() != s.sb.sealed() {
		return holdfast.Errorf(holdfast.Corrupt, "scrub pool", "it holds another container")
	}
	s.rep.Bytes += r.Size()
	for i := 0; i < len(f.Groups); {
		from, end := f.Groups[i].Off, i
		for end < len(f.Groups) && f.Groups[end].End() <= from+int64(len(s.buf)) {
			end++
		}
		block := s.buf[:f.Groups[end-1].End()-from]
		if n, err := r.ReadAt(block, from); n < len(block) && err != nil && !errors.Is(err, io.EOF) {
			return err
		} else if n < len(block) {
			clear(block[n:])
		}
		for ; i < end; i++ {
			if err := f.CheckRecord(uint32(i), block[f.Groups[i].Off-from:f.Groups[i].End()-from]); err != nil {
				return err
			}
			s.rep.Chunks += int64(f.Groups[i].Count)
		}
	}
	return nil
}
