package container

import (
	"errors"
	"hash/crc32"
	"io"

	"github.com/holdfast-backup/holdfast"
)

// tailRead is how much of a container's end is read at once: nearly always the whole footer.
const tailRead = 256 << 10

// Load reads the header, the trailer and the footer of a sealed container of size bytes. It takes memory in proportion to the footer only,
// which is bounded. A container that is not sealed or not what it was is Corrupt; a medium's error is passed on.
func Load(r io.ReaderAt, size int64) (Header, *Footer, error) {
	const op = "open container"
	var h Header
	if size < headerLen+footerHead+trailerLen || size > MaxFile {
		return h, nil, corrupt(op, "a file of %d bytes is not a sealed container", size)
	}
	var head [headerLen]byte
	if err := readFull(r, head[:], 0); err != nil {
		return h, nil, err
	}
	h, err := parseHeader(head[:])
	if err != nil {
		return h, nil, err
	}
	tail := make([]byte, min(size, tailRead))
	if err := readFull(r, tail, size-int64(len(tail))); err != nil {
		return h, nil, err
	}
	t, err := parseTrailer(tail[len(tail)-trailerLen:], size)
	if err != nil {
		return h, nil, err
	}
	need := int(t.footerLen) + trailerLen
	footer := tail[max(0, len(tail)-need) : len(tail)-trailerLen]
	if need > len(tail) {
		footer = make([]byte, t.footerLen)
		if err := readFull(r, footer, t.footerOff); err != nil {
			return h, nil, err
		}
	}
	if footerSum(footer) != t.sum {
		return h, nil, corrupt(op, "the footer's checksum differs")
	}
	f, err := ParseFooter(footer)
	if err != nil {
		return h, nil, err
	}
	if !f.agrees(&h) {
		return h, nil, corrupt(op, "some records are encrypted and some are not")
	}
	if f.end() != t.footerOff || uint32(len(f.Groups)) != t.groups || uint32(len(f.Chunks)) != t.chunks || t.id != h.ID {
		return h, nil, corrupt(op, "header, footer and trailer disagree")
	}
	return h, f, nil
}

// agrees reports whether all records are encrypted, or none, as the header says.
func (f *Footer) agrees(h *Header) bool {
	for i := range f.Groups {
		if f.Groups[i].Sealed != h.Sealed() {
			return false
		}
	}
	return true
}

// readFull fills p from off; a file that is too short is Corrupt.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return corrupt("read container", "%d bytes at %d, expected %d", n, off, len(p))
	}
	return err
}

// Check tells whether p is the stored payload of g, by its checksum. The error is Corrupt.
func (g *Group) Check(p []byte) error {
	if len(p) != int(g.Stored) || crc32.Checksum(p, castagnoli) != g.CRC {
		return corrupt("read group", "checksum of the record at %d differs", g.Off)
	}
	return nil
}

// CheckRecord tells whether b, the bytes of the whole record [g.Off, g.End()), is record number of a container with footer f, head, table, payload and padding.
func (f *Footer) CheckRecord(number uint32, b []byte) error {
	const op = "check record"
	g := &f.Groups[number]
	if int64(len(b)) != g.End()-g.Off {
		return corrupt(op, "%d bytes instead of %d", len(b), g.End()-g.Off)
	}
	got, n, err := parseRecordHead(b)
	if err != nil {
		return err
	}
	got.Off = g.Off
	if got != *g || n != number || le.Uint32(b[60:]) != recordCRC(b, g.Count) {
		return corrupt(op, "the head of the record at %d differs", g.Off)
	}
	for i, c := range f.Chunks[g.First : g.First+g.Count] {
		e := b[recordLen+i*tableEntry:]
		if c.Digest != holdfast.Digest(e[:32]) || c.Len != le.Uint32(e[32:]) {
			return corrupt(op, "the chunk table of the record at %d differs", g.Off)
		}
	}
	p := b[g.payload()-g.Off:]
	if !zeros(p[g.Stored:]) {
		return corrupt(op, "padding of the record at %d is not zero", g.Off)
	}
	return g.Check(p[:g.Stored])
}

// OpenPayload returns the encoded payload of group i out of the stored one, which was checked. An encrypted one is decrypted in its own place.
// Without f.Cipher that is Permission.
func (f *Footer) OpenPayload(i uint32, stored []byte) ([]byte, error) {
	g := &f.Groups[i]
	if !g.Sealed {
		return stored, nil
	}
	if f.Cipher == nil {
		return nil, holdfast.Errorf(holdfast.Permission, "decrypt record", "the pool is encrypted, and its key is not there").Advise("give the pool its key")
	}
	aad := make([]byte, recordLen, recordLen+tableEntry*int(g.Count))
	bare := *g
	bare.CRC = 0
	for _, c := range f.Chunks[g.First : g.First+g.Count] {
		aad = append(aad, c.Digest[:]...)
		aad = le.AppendUint32(aad, c.Len)
	}
	putRecordHead(aad, &bare, i)
	clear(aad[60:recordLen])
	return f.Cipher.Open(stored[:0], stored, aad, i)
}

// ReadGroup reads group i, checks the stored payload and decrypts it. buf is used if it is large enough.
func ReadGroup(r io.ReaderAt, f *Footer, i uint32, buf []byte) (holdfast.Group, error) {
	g := &f.Groups[i]
	if cap(buf) < int(g.Stored) {
		buf = make([]byte, g.Stored)
	}
	buf = buf[:g.Stored]
	if err := readFull(r, buf, g.payload()); err != nil {
		return holdfast.Group{}, err
	}
	if err := g.Check(buf); err != nil {
		return holdfast.Group{}, err
	}
	payload, err := f.OpenPayload(i, buf)
	if err != nil {
		return holdfast.Group{}, err
	}
	return holdfast.Group{Codec: g.Codec, Chunks: f.Pieces(nil, i), Payload: payload}, nil
}

// Scan walks the records of a container from the front without its footer and returns what is whole, up to the first thing that is not a
// whole record. It serves rescue: a sealed container is read by Load.
func Scan(r io.ReaderAt, size int64) (Header, *Footer, error) {
	var head [headerLen]byte
	if err := readFull(r, head[:], 0); err != nil {
		return Header{}, nil, err
	}
	h, err := parseHeader(head[:])
	if err != nil {
		return h, nil, err
	}
	f := &Footer{}
	buf := make([]byte, maxRecord)
	for off := int64(headerLen); off+recordLen <= size; {
		n, err := r.ReadAt(buf[:min(maxRecord, size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return h, f, err
		}
		g, ok := f.scanRecord(buf[:n], off)
		if !ok {
			break
		}
		off = g.End()
	}
	return h, f, nil
}

// scanRecord adds the record at the front of b if it is whole and the next in order.
func (f *Footer) scanRecord(b []byte, off int64) (Group, bool) {
	g, number, err := parseRecordHead(b)
	if err != nil || int(number) != len(f.Groups) || int(g.First) != len(f.Chunks) {
		return g, false
	}
	g.Off = off
	if g.End()-off > int64(len(b)) || le.Uint32(b[60:]) != recordCRC(b, g.Count) {
		return g, false
	}
	p := b[g.payload()-off:]
	if g.Check(p[:g.Stored]) != nil || !zeros(p[g.Stored:g.End()-g.payload()]) {
		return g, false
	}
	chunks, err := parseTable(f.Chunks, b[recordLen:], &g, number)
	if err != nil {
		return g, false
	}
	f.Chunks, f.Groups, f.Plain = chunks, append(f.Groups, g), f.Plain+int64(g.Plain)
	return g, true
}
