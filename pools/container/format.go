// Package container writes and reads the files in which a dedup pool keeps its chunks: append-only, made of self-describing
// records (one per compression group), sealed once by a footer and a trailer. docs/formats/container.md is the format.
//
// On a crash a container is either sealed, and then complete, or it is not, and then it is garbage: the reader tells
// them apart by the trailer alone. The package knows neither folders nor names nor an index; pools/dedup places the files.
// It imports the ground floor only.
package container

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

// Bounds and sizes of the format.
const (
	MaxChunks    = 1 << 16  // in one container: an ordinal fits 16 bits
	TargetStored = 64 << 20 // bytes after which a writer is Full: large enough for one sync to cost little, small enough to compact
	MaxFile      = 1 << 40  // bytes; sanity bound of a reader

	headerLen    = 128
	recordLen    = 64
	tableEntry   = 36
	footerHead   = 32
	groupEntry   = 32
	trailerLen   = 80
	alignment    = 8
	version      = 1
	maxFooter    = footerHead + MaxChunks*(groupEntry+tableEntry)
	maxRecord    = recordLen + holdfast.MaxGroupChunks*tableEntry + holdfast.MaxGroupPlain + seal.Overhead + alignment
	magicHeader  = "HFASTCNT"
	magicTrailer = "HFASTEND"
	magicRecord  = "HFRC"
	magicFooter  = "HFFT"
)

// Feature bits this version knows.
const (
	// CompatDense says that the groups were encoded as well as can be: writing the container anew would gain nothing.
	CompatDense = 1 << 0

	knownReadCompat = 0
	incompatSealed  = 1 << 0 // the payloads are encrypted
	knownIncompat   = incompatSealed

	flagSealed = 1 << 0 // of a record: its payload is encrypted
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// A Type says what the chunks of a record are.
type Type uint8

const (
	Data Type = 1 // bytes of disks
	Node Type = 2 // nodes of recipes
)

// A Header identifies a container.
type Header struct {
	ID     uint64 // never used twice in a pool
	Pool   holdfast.PoolID
	Compat uint32 // feature bits a reader may ignore
	Reads  uint32 // read-compatible feature bits
	Incomp uint32 // incompatible feature bits

	// Of an encrypted container: what its cipher is made from. Zero: it is not encrypted.
	KeyID seal.KeyID
	Salt  [32]byte
}

// Sealed reports whether the container's payloads are encrypted.
func (h *Header) Sealed() bool { return h.Incomp&incompatSealed != 0 }

// A Group describes one record of a container.
type Group struct {
	Off    int64 // of the record in the file
	Stored uint32
	Plain  uint32
	CRC    uint32 // of the stored payload
	First  uint32 // ordinal of its first chunk
	Count  uint32 // chunks
	Type   Type
	Codec  holdfast.Codec
	Sealed bool // the stored payload is encrypted, seal.Overhead bytes longer than what was encoded
}

// End returns the offset of the first byte after the record.
func (g *Group) End() int64 { return align(g.payload() + int64(g.Stored)) }

// PayloadOff returns the offset of the stored payload in the file.
func (g *Group) PayloadOff() int64 { return g.payload() }

func (g *Group) payload() int64 { return g.Off + recordLen + tableEntry*int64(g.Count) }

// A Chunk says where a chunk lies inside its container.
type Chunk struct {
	holdfast.Piece
	Group uint32 // number of its record
	At    uint32 // offset in the record's plaintext
}

// A Footer lists what a container holds. Chunks are in order of ordinals.
type Footer struct {
	Groups []Group
	Chunks []Chunk
	Plain  int64 // sum of the plaintexts' lengths

	// Cipher opens the payloads of an encrypted container; nil: nothing is encrypted, or the key is not there. Whoever loads a footer sets it.
	Cipher *seal.Cipher
}

// Pieces returns the chunks of group i as holdfast.Group wants them, appended to dst.
func (f *Footer) Pieces(dst []holdfast.Piece, i uint32) []holdfast.Piece {
	g := &f.Groups[i]
	for _, c := range f.Chunks[g.First : g.First+g.Count] {
		dst = append(dst, c.Piece)
	}
	return dst
}

// MemBytes returns about how much memory the footer takes.
func (f *Footer) MemBytes() int64 { return int64(len(f.Groups))*48 + int64(len(f.Chunks))*44 + 64 }

func align(n int64) int64 { return (n + alignment - 1) &^ (alignment - 1) }

func corrupt(op, format string, args ...any) error {
	return holdfast.Errorf(holdfast.Corrupt, op, format, args...)
}

func appendHeader(b []byte, h Header) []byte {
	at := len(b)
	b = append(b, magicHeader...)
	b = le.AppendUint16(b, version)
	b = le.AppendUint16(b, headerLen)
	b = le.AppendUint32(b, h.Compat)
	b = le.AppendUint32(b, h.Reads)
	b = le.AppendUint32(b, h.Incomp)
	b = le.AppendUint64(b, h.ID)
	b = append(b, h.Pool.ID[:]...)
	b = append(b, h.KeyID[:]...)
	b = append(b, h.Salt[:]...)
	b = append(b, make([]byte, 28)...)
	return le.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

func parseHeader(b []byte) (Header, error) {
	const op = "read container header"
	var h Header
	if len(b) < headerLen || string(b[:8]) != magicHeader {
		return h, corrupt(op, "not a container")
	}
	if le.Uint32(b[124:]) != crc32.Checksum(b[:124], castagnoli) {
		return h, corrupt(op, "checksum differs")
	}
	h = Header{ID: le.Uint64(b[24:]), Compat: le.Uint32(b[12:]), Reads: le.Uint32(b[16:]), Incomp: le.Uint32(b[20:])}
	copy(h.Pool.ID[:], b[32:48])
	if v := le.Uint16(b[8:]); v != version || h.Incomp&^knownIncompat != 0 {
		return h, holdfast.Errorf(holdfast.Unsupported, op, "version %d with features %#x", v, h.Incomp).
			Advise("open the pool with a newer version of Holdfast")
	}
	h.KeyID, h.Salt = seal.KeyID(b[48:64]), [32]byte(b[64:96])
	if le.Uint16(b[10:]) != headerLen || !zeros(b[96:124]) || !h.Sealed() && !zeros(b[48:96]) {
		return h, corrupt(op, "reserved bytes are not zero")
	}
	if h.Sealed() == h.KeyID.IsZero() {
		return h, corrupt(op, "an encrypted container without a key id")
	}
	return h, nil
}

func zeros(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// putRecordHead fills the head of a record whose chunk table already follows it in b.
func putRecordHead(b []byte, g *Group, number uint32) {
	clear(b[:recordLen])
	copy(b, magicRecord)
	b[4], b[5] = byte(g.Type), byte(g.Codec)
	le.PutUint16(b[6:], g.flags())
	le.PutUint32(b[8:], g.Count)
	le.PutUint32(b[12:], g.Plain)
	le.PutUint32(b[16:], g.Stored)
	le.PutUint32(b[20:], g.CRC)
	le.PutUint32(b[24:], number)
	le.PutUint32(b[28:], g.First)
	le.PutUint32(b[60:], recordCRC(b, g.Count))
}

func (g *Group) flags() uint16 {
	if g.Sealed {
		return flagSealed
	}
	return 0
}

func recordCRC(b []byte, count uint32) uint32 {
	c := crc32.Update(0, castagnoli, b[:60])
	return crc32.Update(c, castagnoli, b[recordLen:recordLen+tableEntry*int(count)])
}

// parseRecordHead reads the fixed part of a record's head; the chunk table may not be there yet.
func parseRecordHead(b []byte) (g Group, number uint32, err error) {
	const op = "read container record"
	if len(b) < recordLen || string(b[:4]) != magicRecord {
		return g, 0, corrupt(op, "not a record")
	}
	g = Group{Type: Type(b[4]), Codec: holdfast.Codec(b[5]), Count: le.Uint32(b[8:]), Plain: le.Uint32(b[12:]),
		Stored: le.Uint32(b[16:]), CRC: le.Uint32(b[20:]), First: le.Uint32(b[28:])}
	g.Sealed = le.Uint16(b[6:]) == flagSealed
	if le.Uint16(b[6:]) != g.flags() || !zeros(b[32:60]) {
		return g, 0, corrupt(op, "reserved bytes are not zero")
	}
	return g, le.Uint32(b[24:]), g.check(op)
}

// check refuses a group outside the format's bounds.
func (g *Group) check(op string) error {
	encoded := int64(g.Stored)
	if g.Sealed {
		encoded -= seal.Overhead
	}
	switch {
	case g.Type != Data && g.Type != Node:
		return corrupt(op, "unknown type %d", g.Type)
	case g.Codec > holdfast.S2:
		return corrupt(op, "unknown %v", g.Codec)
	case g.Count == 0 || g.Count > holdfast.MaxGroupChunks || uint64(g.First)+uint64(g.Count) > MaxChunks:
		return corrupt(op, "%d chunks from ordinal %d", g.Count, g.First)
	case g.Plain == 0 || g.Plain > holdfast.MaxGroupPlain:
		return corrupt(op, "%d bytes of plaintext", g.Plain)
	case encoded <= 0 || encoded > int64(g.Plain) || (g.Codec == holdfast.Plain && encoded != int64(g.Plain)):
		return corrupt(op, "a %v payload of %d bytes for %d bytes of plaintext", g.Codec, g.Stored, g.Plain)
	}
	return nil
}

// parseTable reads a chunk table of g.Count entries, appends the chunks to dst and checks their lengths against the group.
func parseTable(dst []Chunk, b []byte, g *Group, number uint32) ([]Chunk, error) {
	at := uint32(0)
	for i := range int(g.Count) {
		e := b[i*tableEntry : (i+1)*tableEntry]
		c := Chunk{Group: number, At: at}
		copy(c.Digest[:], e)
		c.Len = le.Uint32(e[32:])
		if c.Len == 0 || c.Len > holdfast.MaxChunk || c.Len > g.Plain-at {
			return dst, corrupt("read chunk table", "chunk %d has %d bytes", i, c.Len)
		}
		at += c.Len
		dst = append(dst, c)
	}
	if at != g.Plain {
		return dst, corrupt("read chunk table", "the chunks have %d bytes, the group %d", at, g.Plain)
	}
	return dst, nil
}

// AppendFooter encodes f. It is the inverse of ParseFooter.
func AppendFooter(b []byte, f *Footer) []byte {
	b = append(b, magicFooter...)
	b = le.AppendUint32(b, uint32(len(f.Groups)))
	b = le.AppendUint32(b, uint32(len(f.Chunks)))
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, uint64(f.Plain))
	b = le.AppendUint64(b, 0)
	for i := range f.Groups {
		g := &f.Groups[i]
		b = le.AppendUint64(b, uint64(g.Off))
		b = le.AppendUint32(b, g.Stored)
		b = le.AppendUint32(b, g.Plain)
		b = le.AppendUint32(b, g.CRC)
		b = le.AppendUint32(b, g.Count)
		b = append(b, byte(g.Type), byte(g.Codec), byte(g.flags()), 0, 0, 0, 0, 0)
	}
	for i := range f.Chunks {
		b = append(b, f.Chunks[i].Digest[:]...)
		b = le.AppendUint32(b, f.Chunks[i].Len)
	}
	return b
}

// ParseFooter decodes a footer that must fill b and checks that records lie without gaps and agree with the chunks.
func ParseFooter(b []byte) (*Footer, error) {
	const op = "read container footer"
	if len(b) < footerHead || len(b) > maxFooter || string(b[:4]) != magicFooter {
		return nil, corrupt(op, "not a footer")
	}
	ng, nc := le.Uint32(b[4:]), le.Uint32(b[8:])
	if ng > nc || nc > MaxChunks || len(b) != footerHead+groupEntry*int(ng)+tableEntry*int(nc) {
		return nil, corrupt(op, "%d bytes for %d records and %d chunks", len(b), ng, nc)
	}
	if le.Uint32(b[12:]) != 0 || le.Uint64(b[24:]) != 0 {
		return nil, corrupt(op, "reserved bytes are not zero")
	}
	f := &Footer{Groups: make([]Group, ng), Chunks: make([]Chunk, 0, nc)}
	table := b[footerHead+groupEntry*int(ng):]
	next, first := int64(headerLen), uint32(0)
	for i := range f.Groups {
		e := b[footerHead+groupEntry*i:]
		g := &f.Groups[i]
		*g = Group{Off: int64(le.Uint64(e)), Stored: le.Uint32(e[8:]), Plain: le.Uint32(e[12:]), CRC: le.Uint32(e[16:]), Count: le.Uint32(e[20:]),
			Type: Type(e[24]), Codec: holdfast.Codec(e[25]), First: first, Sealed: le.Uint16(e[26:]) == flagSealed}
		if le.Uint16(e[26:]) != g.flags() || le.Uint32(e[28:]) != 0 {
			return nil, corrupt(op, "reserved bytes of record %d are not zero", i)
		}
		if err := g.check(op); err != nil {
			return nil, err
		}
		if g.Off != next || g.Count > nc-first {
			return nil, corrupt(op, "record %d at %d with %d chunks, expected at %d", i, g.Off, g.Count, next)
		}
		var err error
		if f.Chunks, err = parseTable(f.Chunks, table[tableEntry*int(first):], g, uint32(i)); err != nil {
			return nil, err
		}
		next, first = g.End(), first+g.Count
		f.Plain += int64(g.Plain)
	}
	if first != nc || uint64(f.Plain) != le.Uint64(b[16:]) {
		return nil, corrupt(op, "the records hold %d chunks and %d bytes, not %d and %d", first, f.Plain, nc, le.Uint64(b[16:]))
	}
	return f, nil
}

// end returns the offset at which the footer lies.
func (f *Footer) end() int64 {
	if len(f.Groups) == 0 {
		return headerLen
	}
	return f.Groups[len(f.Groups)-1].End()
}

// footerSum is BLAKE3 under the zero key: it finds accidents, not forgery.
func footerSum(footer []byte) holdfast.Digest { return holdfast.Domain{}.Hasher().Sum(footer) }

func appendTrailer(b []byte, id uint64, f *Footer, footer []byte) []byte {
	at := len(b)
	b = append(b, magicTrailer...)
	b = le.AppendUint64(b, uint64(f.end()))
	b = le.AppendUint32(b, uint32(len(footer)))
	b = le.AppendUint32(b, uint32(len(f.Groups)))
	b = le.AppendUint32(b, uint32(len(f.Chunks)))
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, id)
	sum := footerSum(footer)
	b = append(b, sum[:]...)
	b = le.AppendUint32(b, 0)
	return le.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

// trailer is what the last bytes of a sealed container say.
type trailer struct {
	footerOff int64
	footerLen uint32
	groups    uint32
	chunks    uint32
	id        uint64
	sum       holdfast.Digest
}

func parseTrailer(b []byte, size int64) (trailer, error) {
	const op = "read container trailer"
	var t trailer
	if len(b) != trailerLen || string(b[:8]) != magicTrailer || le.Uint32(b[76:]) != crc32.Checksum(b[:76], castagnoli) {
		return t, corrupt(op, "the container is not sealed")
	}
	t = trailer{footerOff: int64(le.Uint64(b[8:])), footerLen: le.Uint32(b[16:]), groups: le.Uint32(b[20:]), chunks: le.Uint32(b[24:]), id: le.Uint64(b[32:])}
	copy(t.sum[:], b[40:72])
	if le.Uint32(b[28:]) != 0 || le.Uint32(b[72:]) != 0 || t.footerOff < headerLen || t.footerLen > maxFooter ||
		t.footerOff > size || t.footerOff+int64(t.footerLen)+trailerLen != size {
		return t, corrupt(op, "a footer of %d bytes at %d in a file of %d", t.footerLen, t.footerOff, size)
	}
	return t, nil
}
