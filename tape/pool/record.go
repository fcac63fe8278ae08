package pool

import (
	"encoding/binary"
	"math"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// Bounds of a set's record: docs/formats/tape-pool.md.
const (
	recordMagic = "HFTSET01"
	chunkEntry  = 32 + 4 + 4 + 4 + 4
	refEntry    = 8 + 8 + 4 + 4
	maxRecord   = 64 << 30
	noChunk     = math.MaxUint32
)

var le = binary.LittleEndian

// A chunk says what a chunk is and where it rests.
type chunk struct {
	holdfast.Piece
	box   uint32 // number of its container in the record
	group uint32 // of the container
	at    uint32 // in the group's plaintext
}

// A ref is an entry of a disk's map: chunk noChunk stands for zeros.
type ref struct {
	holdfast.Extent
	chunk, skip uint32
}

// A record is what a backup set is. It never changes.
type record struct {
	manifest holdfast.Manifest
	boxes    []holdfast.ID // objects of the media set
	chunks   []chunk
	disks    [][]ref // as the manifest's
}

func (r *record) refs(id holdfast.DiskID) ([]ref, bool) {
	for i := range r.manifest.Disks {
		if r.manifest.Disks[i].ID == id {
			return r.disks[i], true
		}
	}
	return nil, false
}

// export returns a ref as the interface has it.
func (r *record) export(f ref) holdfast.Ref {
	out := holdfast.Ref{Extent: f.Extent}
	if f.chunk != noChunk {
		out.Digest, out.Skip = r.chunks[f.chunk].Digest, f.skip
	}
	return out
}

// encode returns the record's bytes, with a sum at their end.
func (r *record) encode() ([]byte, error) {
	m, err := holdfast.MarshalManifest(&r.manifest)
	if err != nil {
		return nil, err
	}
	n := len(m) + 16*len(r.boxes) + chunkEntry*len(r.chunks) + 64
	for _, d := range r.disks {
		n += 8 + refEntry*len(d)
	}
	b := append(make([]byte, 0, n), recordMagic...)
	b = append(le.AppendUint32(b, uint32(len(m))), m...)
	b = le.AppendUint32(b, uint32(len(r.boxes)))
	for _, id := range r.boxes {
		b = append(b, id[:]...)
	}
	b = le.AppendUint32(b, uint32(len(r.chunks)))
	for i := range r.chunks {
		c := &r.chunks[i]
		b = append(b, c.Digest[:]...)
		for _, v := range []uint32{c.Len, c.box, c.group, c.at} {
			b = le.AppendUint32(b, v)
		}
	}
	for _, d := range r.disks {
		b = le.AppendUint64(b, uint64(len(d)))
		for _, f := range d {
			b = le.AppendUint64(le.AppendUint64(b, uint64(f.Off)), uint64(f.Len))
			b = le.AppendUint32(le.AppendUint32(b, f.chunk), f.skip)
		}
	}
	s := sumOf(b)
	return append(b, s[:]...), nil
}

func sumOf(b []byte) holdfast.Digest { return holdfast.Domain{}.Hasher().Sum(b) }

// A cursor takes fields off the front of bytes. After a short read everything is zero and bad is set.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n uint64) []byte {
	if c.bad || n > uint64(len(c.b)) {
		c.bad = true
		return make([]byte, min(n, 64))
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) u32() uint32 { return le.Uint32(c.take(4)) }
func (c *cursor) u64() uint64 { return le.Uint64(c.take(8)) }

// count reads the length of a list whose entries have a size: no more than can be there.
func (c *cursor) count(n uint64, size int) int {
	if n > uint64(len(c.b))/uint64(size) {
		c.bad = true
		return 0
	}
	return int(n)
}

func badRecord(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Corrupt, "read set record", format, args...).Advise("read the catalog from the cartridges again")
}

// decodeRecord reads a record and checks that it names nothing that is not in it.
func decodeRecord(b []byte) (*record, error) {
	if len(b) < len(recordMagic)+32 || string(b[:len(recordMagic)]) != recordMagic {
		return nil, badRecord("not a record of a backup set")
	}
	body := b[:len(b)-32]
	if sumOf(body) != holdfast.Digest(b[len(b)-32:]) {
		return nil, badRecord("checksum differs")
	}
	c := &cursor{b: body[len(recordMagic):]}
	m, err := holdfast.UnmarshalManifest(c.take(uint64(c.u32())))
	if err != nil {
		return nil, badRecord("%w", err)
	}
	r := &record{manifest: m}
	r.boxes = make([]holdfast.ID, c.count(uint64(c.u32()), 16))
	for i := range r.boxes {
		r.boxes[i] = holdfast.ID(c.take(16))
	}
	r.chunks = make([]chunk, c.count(uint64(c.u32()), chunkEntry))
	for i := range r.chunks {
		k := &r.chunks[i]
		k.Digest = holdfast.Digest(c.take(32))
		k.Len, k.box, k.group, k.at = c.u32(), c.u32(), c.u32(), c.u32()
		if int(k.box) >= len(r.boxes) || k.Len == 0 || k.Len > holdfast.MaxChunk || k.Digest.IsZero() {
			return nil, badRecord("chunk %d is out of bounds", i)
		}
	}
	for i := range m.Disks {
		refs := make([]ref, c.count(c.u64(), refEntry))
		end := int64(0)
		for k := range refs {
			f := &refs[k]
			f.Off, f.Len = int64(c.u64()), int64(c.u64())
			f.chunk, f.skip = c.u32(), c.u32()
			bad := f.Off < end || f.Len <= 0 || f.Len > m.Disks[i].Size-f.Off
			if f.chunk != noChunk {
				bad = bad || int(f.chunk) >= len(r.chunks) || int64(f.skip)+f.Len > int64(r.chunks[min(int(f.chunk), len(r.chunks)-1)].Len)
			}
			if bad {
				return nil, badRecord("entry %d of the map of disk %s is out of bounds", k, m.Disks[i].Name)
			}
			end = f.End()
		}
		r.disks = append(r.disks, refs)
	}
	if c.bad || len(c.b) > 0 {
		return nil, badRecord("its lengths do not add up")
	}
	return r, nil
}

// readManifest reads a record's manifest alone: maps may be large.
func readManifest(f fsys.FS, name string) (m holdfast.Manifest, err error) {
	r, err := f.Open(name)
	if err != nil {
		return m, fsys.Classify("read set record", err)
	}
	defer r.Close() // only read
	head := make([]byte, len(recordMagic)+4)
	if _, err := r.ReadAt(head, 0); err != nil || string(head[:len(recordMagic)]) != recordMagic {
		return m, badRecord("%s is no record: %v", name, err)
	}
	n := le.Uint32(head[len(recordMagic):])
	if n > holdfast.MaxManifestBytes {
		return m, badRecord("a manifest of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := r.ReadAt(b, int64(len(head))); err != nil {
		return m, badRecord("%w", err)
	}
	if m, err = holdfast.UnmarshalManifest(b); err != nil {
		return m, badRecord("%w", err)
	}
	return m, nil
}

// cut returns the part of a ref between two offsets in it.
func cut(r ref, off, end int64) ref {
	c := ref{Extent: holdfast.Extent{Off: off, Len: end - off}, chunk: r.chunk}
	if r.chunk != noChunk {
		c.skip = r.skip + uint32(off-r.Off)
	}
	return c
}
