package wire

import (
	"encoding/binary"

	"github.com/holdfast-backup/holdfast"
)

// Lengths of the parts of binary messages, in bytes.
const (
	pieceLen   = 4 + 32         // length u32, digest
	placeLen   = 8 + 4 + 4      // off u64, at u32, len u32
	refLen     = 8 + 8 + 4 + 32 // off u64, len u64, skip u32, digest
	extentLen  = 8 + 8          // off u64, len u64
	groupHead  = 1 + 1 + 2      // codec u8, zero, pieces u16
	parcelHead = groupHead + 4  // …, places u32
)

var le = binary.LittleEndian

// encode makes the frames of a message, measured but not sealed. A message that would not parse is refused (Invalid).
func encode(m *Message) ([]*frame, error) {
	switch b := m.Body.(type) {
	case nil:
		if most, known := m.Type.limit(); !known || most != 0 || !m.Type.isMessage() {
			break
		}
		f := newFrame(0)
		f.measure()
		return []*frame{f}, nil
	case *holdfast.Group:
		if m.Type == TypePut {
			return encodeGroup(b)
		}
	case *holdfast.Parcel:
		if m.Type == TypeParcel {
			return encodeParcel(b)
		}
	case Ask:
		if m.Type == TypeAsk {
			return encodeAsk(b)
		}
	case Have:
		if m.Type == TypeHave {
			return encodeHave(b)
		}
	case Place:
		if m.Type == TypePlace {
			return encodePlace(b)
		}
	case Want:
		if m.Type == TypeWant {
			return encodeWant(b)
		}
	default:
		return encodeJSON(m)
	}
	return nil, holdfast.Errorf(holdfast.Invalid, "encode message", "a %v message with body %T", m.Type, m.Body)
}

func one(f *frame) []*frame {
	f.measure()
	return []*frame{f}
}

func encodeGroup(g *holdfast.Group) ([]*frame, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	f := newFrame(groupHead + len(g.Chunks)*pieceLen + len(g.Payload))
	p := f.payload()
	p[0], p[1] = byte(g.Codec), 0
	le.PutUint16(p[2:], uint16(len(g.Chunks)))
	copy(putPieces(p[groupHead:], g.Chunks), g.Payload)
	return one(f), nil
}

func putPieces(p []byte, cs []holdfast.Piece) []byte {
	for i := range cs {
		le.PutUint32(p, cs[i].Len)
		copy(p[4:], cs[i].Digest[:])
		p = p[pieceLen:]
	}
	return p
}

func encodeParcel(g *holdfast.Parcel) ([]*frame, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	if err := checkPlaces(g); err != nil {
		return nil, err
	}
	f := newFrame(parcelHead + len(g.Chunks)*pieceLen + len(g.Places)*placeLen + len(g.Payload))
	p := f.payload()
	p[0], p[1] = byte(g.Codec), 0
	le.PutUint16(p[2:], uint16(len(g.Chunks)))
	le.PutUint32(p[4:], uint32(len(g.Places)))
	p = putPieces(p[parcelHead:], g.Chunks)
	for _, x := range g.Places {
		le.PutUint64(p, uint64(x.Off))
		le.PutUint32(p[8:], x.At)
		le.PutUint32(p[12:], x.Len)
		p = p[placeLen:]
	}
	copy(p, g.Payload)
	return one(f), nil
}

func encodeAsk(a Ask) ([]*frame, error) {
	if len(a.Digests) == 0 || len(a.Digests) > MaxAsk {
		return nil, outOfBounds("digests asked for", len(a.Digests), MaxAsk)
	}
	f := newFrame(8 + 32*len(a.Digests))
	p := f.payload()
	le.PutUint32(p, a.Batch)
	le.PutUint32(p[4:], uint32(len(a.Digests)))
	for i := range a.Digests {
		copy(p[8+32*i:], a.Digests[i][:])
	}
	return one(f), nil
}

func encodeHave(h Have) ([]*frame, error) {
	if len(h.Missing) == 0 || len(h.Missing) > MaxAsk {
		return nil, outOfBounds("answers", len(h.Missing), MaxAsk)
	}
	f := newFrame(8 + (len(h.Missing)+7)/8)
	p := f.payload()
	clear(p)
	le.PutUint32(p, h.Batch)
	le.PutUint32(p[4:], uint32(len(h.Missing)))
	for i, missing := range h.Missing {
		if missing {
			p[8+i/8] |= 1 << (i % 8)
		}
	}
	return one(f), nil
}

func encodePlace(pl Place) ([]*frame, error) {
	if err := checkRefs(pl.Refs); err != nil {
		return nil, err
	}
	f := newFrame(4 + refLen*len(pl.Refs))
	p := f.payload()
	le.PutUint32(p, uint32(len(pl.Refs)))
	p = p[4:]
	for i := range pl.Refs {
		r := &pl.Refs[i]
		le.PutUint64(p, uint64(r.Off))
		le.PutUint64(p[8:], uint64(r.Len))
		le.PutUint32(p[16:], r.Skip)
		copy(p[20:], r.Digest[:])
		p = p[refLen:]
	}
	return one(f), nil
}

func encodeWant(w Want) ([]*frame, error) {
	if err := checkWant(w.Extents); err != nil {
		return nil, err
	}
	f := newFrame(4 + extentLen*len(w.Extents))
	p := f.payload()
	le.PutUint32(p, uint32(len(w.Extents)))
	p = p[4:]
	for _, e := range w.Extents {
		le.PutUint64(p, uint64(e.Off))
		le.PutUint64(p[8:], uint64(e.Len))
		p = p[extentLen:]
	}
	return one(f), nil
}

// parse reads a message out of its payload. f, if not nil, is where p lies: bodies alias it and use its slices, and the message owns it.
// Errors are violations; then f is still the caller's.
func parse(t Type, channel uint16, p []byte, f *frame) (Message, error) {
	if f == nil {
		f = &frame{class: -1}
	}
	m := Message{Type: t, Channel: channel}
	var err error
	switch t {
	case TypeDiskDone, TypeTracked, TypeDelivered, TypeDone:
		if len(p) != 0 {
			err = malformed(t, "it should be empty")
		}
	case TypeAsk:
		m.Body, err = parseAsk(p, f)
	case TypeHave:
		m.Body, err = parseHave(p, f)
	case TypePut:
		m.Body, err = parseGroup(p, f)
	case TypePlace:
		m.Body, err = parsePlace(p, f)
	case TypeWant:
		m.Body, err = parseWant(p)
	case TypeParcel:
		m.Body, err = parseParcel(p, f)
	default:
		m.Body, err = parseJSON(t, p)
	}
	if err != nil {
		return Message{}, err
	}
	if t != TypeParcel && f.class >= 0 {
		m.f = f
	}
	return m, nil
}

func malformed(t Type, format string, args ...any) error {
	e := holdfast.Errorf(holdfast.Invalid, "", format, args...)
	return violation{holdfast.Errorf(holdfast.Invalid, "read "+t.String()+" message", "%w", e)}
}

func outOfBounds(what string, n, most int) error {
	return holdfast.Errorf(holdfast.Invalid, "encode message", "%d %s; 1 to %d are allowed", n, what, most)
}

// grow returns s with length n, in its old memory where that is enough.
func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

func parseAsk(p []byte, f *frame) (any, error) {
	if len(p) < 8 {
		return nil, malformed(TypeAsk, "%d bytes are too short", len(p))
	}
	n := int(le.Uint32(p[4:]))
	if n == 0 || n > MaxAsk || len(p) != 8+32*n {
		return nil, malformed(TypeAsk, "%d digests in %d bytes", n, len(p))
	}
	f.digests = grow(f.digests, n)
	for i := range f.digests {
		copy(f.digests[i][:], p[8+32*i:])
	}
	return Ask{le.Uint32(p), f.digests}, nil
}

func parseHave(p []byte, f *frame) (any, error) {
	if len(p) < 8 {
		return nil, malformed(TypeHave, "%d bytes are too short", len(p))
	}
	n := int(le.Uint32(p[4:]))
	if n == 0 || n > MaxAsk || len(p) != 8+(n+7)/8 || (n%8 != 0 && p[len(p)-1]>>(n%8) != 0) {
		return nil, malformed(TypeHave, "%d answers in %d bytes", n, len(p))
	}
	f.missing = grow(f.missing, n)
	for i := range f.missing {
		f.missing[i] = p[8+i/8]>>(i%8)&1 != 0
	}
	return Have{le.Uint32(p), f.missing}, nil
}

func parseGroup(p []byte, f *frame) (any, error) {
	if len(p) < groupHead || p[1] != 0 {
		return nil, malformed(TypePut, "it has no proper head")
	}
	n := int(le.Uint16(p[2:]))
	if n == 0 || n > holdfast.MaxGroupChunks || len(p) < groupHead+n*pieceLen {
		return nil, malformed(TypePut, "%d chunks in %d bytes", n, len(p))
	}
	f.pieces = parsePieces(grow(f.pieces, n), p[groupHead:])
	f.group = holdfast.Group{Codec: holdfast.Codec(p[0]), Chunks: f.pieces, Payload: p[groupHead+n*pieceLen:]}
	if err := f.group.Check(); err != nil {
		return nil, malformed(TypePut, "%w", err)
	}
	return &f.group, nil
}

func parsePieces(into []holdfast.Piece, p []byte) []holdfast.Piece {
	for i := range into {
		into[i].Len = le.Uint32(p)
		copy(into[i].Digest[:], p[4:])
		p = p[pieceLen:]
	}
	return into
}

func parseParcel(p []byte, f *frame) (any, error) {
	if len(p) < parcelHead || p[1] != 0 {
		return nil, malformed(TypeParcel, "it has no proper head")
	}
	n, k := int(le.Uint16(p[2:])), int(le.Uint32(p[4:]))
	if n == 0 || n > holdfast.MaxGroupChunks || k == 0 || k > MaxPlaces || len(p) < parcelHead+n*pieceLen+k*placeLen {
		return nil, malformed(TypeParcel, "%d chunks and %d places in %d bytes", n, k, len(p))
	}
	f.pieces = parsePieces(grow(f.pieces, n), p[parcelHead:])
	f.places = grow(f.places, k)
	q := p[parcelHead+n*pieceLen:]
	for i := range f.places {
		f.places[i] = holdfast.Place{Off: int64(le.Uint64(q)), At: le.Uint32(q[8:]), Len: le.Uint32(q[12:])}
		q = q[placeLen:]
	}
	// Not pooled with the frame: Parcel.Release still writes to the parcel after it gave the frame away.
	g := &holdfast.Parcel{Group: holdfast.Group{Codec: holdfast.Codec(p[0]), Chunks: f.pieces, Payload: q}, Places: f.places}
	if err := g.Check(); err != nil {
		return nil, malformed(TypeParcel, "%w", err)
	}
	if err := checkPlaces(g); err != nil {
		return nil, malformed(TypeParcel, "%w", err)
	}
	if f.class >= 0 {
		g.Free = f.free
	}
	return g, nil
}

func checkPlaces(g *holdfast.Parcel) error {
	const op = "check parcel"
	if len(g.Places) == 0 || len(g.Places) > MaxPlaces {
		return outOfBounds("places", len(g.Places), MaxPlaces)
	}
	plain := int64(g.PlainLen())
	for _, x := range g.Places {
		if x.Len == 0 || int64(x.At)+int64(x.Len) > plain {
			return holdfast.Errorf(holdfast.Invalid, op, "a place of %d bytes at %d of a group of %d bytes", x.Len, x.At, plain)
		}
		if x.Off < 0 || x.Off > holdfast.MaxDiskSize-int64(x.Len) {
			return holdfast.Errorf(holdfast.Invalid, op, "a place at %d is outside any disk", x.Off)
		}
	}
	return nil
}

func parsePlace(p []byte, f *frame) (any, error) {
	if len(p) < 4 {
		return nil, malformed(TypePlace, "%d bytes are too short", len(p))
	}
	n := int(le.Uint32(p))
	if n == 0 || n > MaxRefs || len(p) != 4+refLen*n {
		return nil, malformed(TypePlace, "%d entries in %d bytes", n, len(p))
	}
	f.refs = grow(f.refs, n)
	p = p[4:]
	for i := range f.refs {
		r := &f.refs[i]
		r.Off, r.Len, r.Skip = int64(le.Uint64(p)), int64(le.Uint64(p[8:])), le.Uint32(p[16:])
		copy(r.Digest[:], p[20:])
		p = p[refLen:]
	}
	if err := checkRefs(f.refs); err != nil {
		return nil, malformed(TypePlace, "%w", err)
	}
	return Place{f.refs}, nil
}

// checkRefs refuses entries that no disk could have: out of order, overlapping, empty, outside their chunk.
func checkRefs(refs []holdfast.Ref) error {
	const op = "check map entries"
	if len(refs) == 0 || len(refs) > MaxRefs {
		return outOfBounds("map entries", len(refs), MaxRefs)
	}
	var end int64
	for i := range refs {
		r := &refs[i]
		if r.Off < end || r.Len <= 0 || r.Off > holdfast.MaxDiskSize || r.Len > holdfast.MaxDiskSize-r.Off {
			return holdfast.Errorf(holdfast.Invalid, op, "entry %d (offset %d, %d bytes) overlaps, is out of order or outside any disk", i, r.Off, r.Len)
		}
		if r.Digest.IsZero() {
			if r.Skip != 0 {
				return holdfast.Errorf(holdfast.Invalid, op, "entry %d skips bytes of zeros", i)
			}
		} else if int64(r.Skip)+r.Len > holdfast.MaxChunk {
			return holdfast.Errorf(holdfast.Invalid, op, "entry %d reaches byte %d of a chunk", i, int64(r.Skip)+r.Len)
		}
		end = r.End()
	}
	return nil
}

func parseWant(p []byte) (any, error) {
	if len(p) < 4 {
		return nil, malformed(TypeWant, "%d bytes are too short", len(p))
	}
	n := int(le.Uint32(p))
	if n == 0 || n > MaxWant || len(p) != 4+extentLen*n {
		return nil, malformed(TypeWant, "%d extents in %d bytes", n, len(p))
	}
	es := make(holdfast.Extents, n)
	p = p[4:]
	for i := range es {
		es[i] = holdfast.Extent{Off: int64(le.Uint64(p)), Len: int64(le.Uint64(p[8:]))}
		p = p[extentLen:]
	}
	if err := checkWant(es); err != nil {
		return nil, malformed(TypeWant, "%w", err)
	}
	return Want{es}, nil
}

func checkWant(es holdfast.Extents) error {
	if len(es) == 0 || len(es) > MaxWant {
		return outOfBounds("extents", len(es), MaxWant)
	}
	end := int64(-1)
	for i, e := range es {
		if e.Off <= end || e.Off < 0 || e.Len <= 0 || e.Off > holdfast.MaxDiskSize || e.Len > holdfast.MaxDiskSize-e.Off {
			return holdfast.Errorf(holdfast.Invalid, "check wanted extents", "extent %d (offset %d, %d bytes) is not part of a normal list", i, e.Off, e.Len)
		}
		end = e.End()
	}
	return nil
}
