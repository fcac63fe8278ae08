package container

import (
	"hash/crc32"
	"io"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/seal"
)

const (
	flushAt   = 1 << 20 // a full buffer is written from here on
	writeUnit = 1 << 20 // every write but the last starts at and has a multiple of it, so that direct I/O is possible
	bufferCap = flushAt + maxRecord
)

// A Writer appends groups to one container. It buffers at most about 2 MiB. Not safe for concurrent use. After an error the
// container is lost: drop the file and write its content anew.
type Writer struct {
	w      io.Writer
	id     uint64
	buf    []byte
	off    int64 // in the file, of the end of buf
	footer Footer
	err    error
}

// NewWriter starts a container on w, which must be empty and is owned by the caller. buf, of any length, is used as the buffer if it is
// large enough; Buffer gives it back for the next container.
func NewWriter(w io.Writer, h Header, buf []byte) *Writer {
	if cap(buf) < bufferCap {
		buf = make([]byte, 0, bufferCap)
	}
	return &Writer{w: w, id: h.ID, buf: appendHeader(buf[:0], h), off: headerLen}
}

// NewSealedWriter is NewWriter for an encrypted container. The cipher must be new and of this container; nil makes it a plain one.
func NewSealedWriter(w io.Writer, h Header, buf []byte, c *seal.Cipher) *Writer {
	if c != nil {
		h.Incomp |= incompatSealed
		h.KeyID, h.Salt = c.KeyID, c.Salt
	}
	wr := NewWriter(w, h, buf)
	wr.footer.Cipher = c
	return wr
}

// Append adds a group, which must keep its bounds (Group.Check), and returns the ordinal of its first chunk. The payload is the
// caller's again on return. The error is the medium's, or Invalid for a group that does not fit: ask Fits before.
func (w *Writer) Append(t Type, g *holdfast.Group) (first uint32, err error) {
	if w.err != nil {
		return 0, w.err
	}
	if err := g.Check(); err != nil {
		return 0, err
	}
	if !w.Fits(len(g.Chunks)) {
		return 0, holdfast.Errorf(holdfast.Invalid, "append group", "the container has %d chunks already", len(w.footer.Chunks))
	}
	first, number := uint32(len(w.footer.Chunks)), uint32(len(w.footer.Groups))
	rec := Group{Off: w.off, Stored: uint32(len(g.Payload)), First: first, Count: uint32(len(g.Chunks)), Type: t, Codec: g.Codec}
	start := len(w.buf)
	b := append(w.buf, make([]byte, recordLen)...)
	for i := range g.Chunks {
		c := &g.Chunks[i]
		w.footer.Chunks = append(w.footer.Chunks, Chunk{Piece: *c, Group: number, At: rec.Plain})
		b = append(b, c.Digest[:]...)
		b = le.AppendUint32(b, c.Len)
		rec.Plain += c.Len
	}
	at := len(b)
	if c := w.footer.Cipher; c != nil {
		rec.Sealed = true
		rec.Stored += seal.Overhead
		putRecordHead(b[start:], &rec, number)
		clear(b[start+60 : start+recordLen])
		b = c.Seal(b, g.Payload, b[start:at], number)
	} else {
		b = append(b, g.Payload...)
	}
	rec.CRC = crc32.Checksum(b[at:], castagnoli) // over the copy that is going to be written
	for len(b)%alignment != start%alignment {
		b = append(b, 0)
	}
	putRecordHead(b[start:], &rec, number)
	w.buf = b
	w.off += int64(len(b) - start)
	w.footer.Groups = append(w.footer.Groups, rec)
	w.footer.Plain += int64(rec.Plain)
	if len(w.buf) >= flushAt {
		w.err = w.flush(len(w.buf) / writeUnit * writeUnit)
	}
	return first, w.err
}

// flush writes the first n bytes of the buffer.
func (w *Writer) flush(n int) error {
	if _, err := w.w.Write(w.buf[:n]); err != nil {
		return err
	}
	w.buf = w.buf[:copy(w.buf, w.buf[n:])]
	return nil
}

// Fits tells whether a group of n chunks can still be appended.
func (w *Writer) Fits(n int) bool { return len(w.footer.Chunks)+n <= MaxChunks }

// Full tells that the container has reached its size and should be finished.
func (w *Writer) Full() bool {
	return w.off >= TargetStored || len(w.footer.Chunks) > MaxChunks-holdfast.MaxGroupChunks
}

// Empty tells that nothing was appended.
func (w *Writer) Empty() bool { return len(w.footer.Groups) == 0 }

// Size returns the bytes of the file so far, buffered ones included, without the footer.
func (w *Writer) Size() int64 { return w.off }

// Footer returns what was appended so far; it changes with the next Append.
func (w *Writer) Footer() *Footer { return &w.footer }

// Finish writes footer and trailer and returns the size of the file. The file is sealed once the caller has synced it and
// moved it into its place. The writer takes no more groups.
func (w *Writer) Finish() (size int64, err error) {
	if w.err != nil {
		return 0, w.err
	}
	w.err = holdfast.Errorf(holdfast.Internal, "append group", "the container is finished")
	at := len(w.buf)
	w.buf = AppendFooter(w.buf, &w.footer)
	w.buf = appendTrailer(w.buf, w.id, &w.footer, w.buf[at:])
	size = w.off + int64(len(w.buf)-at)
	if err := w.flush(len(w.buf)); err != nil {
		w.err = err
		return 0, err
	}
	return size, nil
}

// Buffer gives the writer's buffer back, for NewWriter. The writer must not be used afterwards.
func (w *Writer) Buffer() []byte {
	b := w.buf
	w.buf, w.err = nil, holdfast.Errorf(holdfast.Internal, "append group", "the container's buffer was given back")
	return b[:0]
}
