package dedup

import (
	"context"
	"encoding/binary"
	"path"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// docs/formats/recipe.md, section "Set record", is the format of what this file encodes and decodes.
const (
	setMagic    = "HFASTSET"
	setVersion  = 1
	setHead     = 64
	setDisk     = 64
	maxSetBytes = setHead + holdfast.MaxDisks*setDisk + holdfast.MaxManifestBytes + 32
	setSuffix   = ".set"
)

// A setRecord is a committed set: its manifest and where its disks' recipes begin. Writing it is the commit.
type setRecord struct {
	pool     holdfast.PoolID
	manifest holdfast.Manifest
	disks    []diskRoot // as in the manifest
	bytes    int64      // of the record as it was read
}

// A diskRoot is the root of a disk's recipe.
type diskRoot struct {
	root   holdfast.Digest // zero: the disk is all zeros
	placed int64           // data bytes that this set placed itself; the rest is its parent's
}

func setName(id holdfast.SetID) string { return path.Join(setsDir, id.String()+setSuffix) }

// setOfName is the inverse of setName.
func setOfName(name string) (holdfast.SetID, bool) {
	base, ok := strings.CutSuffix(path.Base(name), setSuffix)
	id, err := holdfast.ParseID(base)
	return holdfast.SetID{ID: id}, ok && err == nil && setName(holdfast.SetID{ID: id}) == name
}

func appendSetRecord(b []byte, r *setRecord, h *holdfast.Hasher) ([]byte, error) {
	m, err := holdfast.MarshalManifest(&r.manifest)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	at := len(b)
	b = append(b, setMagic...)
	b = le.AppendUint16(b, setVersion)
	b = le.AppendUint16(b, setHead)
	b = le.AppendUint32(b, uint32(len(r.disks)))
	b = le.AppendUint32(b, uint32(len(m)))
	b = le.AppendUint32(b, 0) // incompatible features
	b = append(b, r.pool.ID[:]...)
	b = append(b, r.manifest.ID.ID[:]...)
	b = append(b, make([]byte, 8)...)
	for i, d := range r.disks {
		id := r.manifest.Disks[i].ID.ID
		b = append(b, id[:]...)
		b = append(b, d.root[:]...)
		b = le.AppendUint64(b, uint64(d.placed))
		b = append(b, make([]byte, 8)...)
	}
	b = append(b, m...)
	sum := h.Sum(b[at:])
	return append(b, sum[:]...), nil
}

// parseSetRecord decodes a record that fills b. What it accepts encodes to the same bytes.
func parseSetRecord(b []byte, h *holdfast.Hasher) (*setRecord, error) {
	const op = "read set record"
	bad := func(format string, args ...any) error { return holdfast.Errorf(holdfast.Corrupt, op, format, args...) }
	le := binary.LittleEndian
	if len(b) < setHead+32 || len(b) > maxSetBytes || string(b[:8]) != setMagic {
		return nil, bad("not a set record")
	}
	if h.Sum(b[:len(b)-32]) != holdfast.Digest(b[len(b)-32:]) {
		return nil, bad("checksum differs")
	}
	if v := le.Uint16(b[8:]); v != setVersion || le.Uint32(b[20:]) != 0 {
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "version %d", v).Advise("open the pool with a newer version of Holdfast")
	}
	nd, nm := le.Uint32(b[12:]), le.Uint32(b[16:])
	if nd > holdfast.MaxDisks || nm > holdfast.MaxManifestBytes || len(b) != setHead+int(nd)*setDisk+int(nm)+32 ||
		le.Uint16(b[10:]) != setHead || le.Uint64(b[56:]) != 0 {
		return nil, bad("%d bytes for %d disks and a manifest of %d", len(b), nd, nm)
	}
	r := &setRecord{pool: holdfast.PoolID{ID: holdfast.ID(b[24:40])}, disks: make([]diskRoot, nd)}
	m, err := holdfast.UnmarshalManifest(b[setHead+int(nd)*setDisk : len(b)-32])
	if err != nil {
		return nil, bad("manifest: %w", err)
	}
	if m.ID.ID != holdfast.ID(b[40:56]) || len(m.Disks) != int(nd) {
		return nil, bad("the manifest is of another set")
	}
	r.manifest = m
	for i := range r.disks {
		e := b[setHead+i*setDisk:]
		r.disks[i] = diskRoot{root: holdfast.Digest(e[16:48]), placed: int64(le.Uint64(e[48:]))}
		if m.Disks[i].ID.ID != holdfast.ID(e[:16]) || r.disks[i].placed < 0 || le.Uint64(e[56:]) != 0 {
			return nil, bad("disk %d", i)
		}
	}
	return r, nil
}

// loadSet reads a set record from the medium.
func (p *Pool) loadSet(ctx context.Context, id holdfast.SetID) (*setRecord, error) {
	b, err := blob.ReadAll(ctx, p.med, setName(id), maxSetBytes+seal.ObjectOverhead)
	if err != nil {
		if holdfast.KindOf(err) == holdfast.NotExist {
			return nil, holdfast.Errorf(holdfast.NotExist, "open set", "the pool has no set %s", id)
		}
		return nil, err
	}
	plain, err := p.openRecord(setName(id), b)
	if err != nil {
		return nil, setErr(id, err)
	}
	r, err := parseSetRecord(plain, p.sb.Domain().Hasher())
	if err != nil {
		return nil, setErr(id, err)
	}
	r.bytes = int64(len(b))
	if r.pool != p.sb.Pool || r.manifest.ID != id {
		return nil, holdfast.Errorf(holdfast.Corrupt, "open set", "the record of set %s belongs to another set or pool", id)
	}
	return r, nil
}

func setErr(id holdfast.SetID, err error) error {
	return holdfast.Errorf(holdfast.KindOf(err), "set "+id.String(), "%w", err)
}
