package chunk

import (
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/holdfast-backup/holdfast"
)

// A Decoder turns groups back into plaintext. It is not safe for concurrent use: give each worker its own.
type Decoder struct{ zstd *zstd.Decoder }

// NewDecoder returns a decoder. Its memory is bounded by a window of holdfast.MaxGroupPlain whatever it is fed.
func NewDecoder() *Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // only options out of their bounds can fail
	}
	return &Decoder{d}
}

// maxWindow admits every frame that an encoder of whole groups writes.
const maxWindow = holdfast.MaxGroupPlain

// Decode returns the plaintext of a group, PlainLen bytes long, in buf's memory where that is big enough. A plain payload is
// returned as it is. The error is Invalid for a group that is out of bounds, and Corrupt for a payload that does not decode to
// exactly PlainLen bytes; no payload makes Decode take more memory than holdfast.MaxGroupPlain and the decoder's window.
func (d *Decoder) Decode(g *holdfast.Group, buf []byte) ([]byte, error) {
	const op = "decode group"
	if err := g.Check(); err != nil {
		return nil, err
	}
	n := g.PlainLen()
	if g.Codec == holdfast.Plain {
		return g.Payload, nil
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	var err error
	switch g.Codec {
	case holdfast.Zstd:
		buf, err = d.zstd.DecodeAll(g.Payload, buf[:0:n])
	case holdfast.S2:
		var m int
		if m, err = s2.DecodedLen(g.Payload); err == nil && m != n {
			return nil, holdfast.Errorf(holdfast.Corrupt, op, "a payload of %d bytes of plaintext where %d were declared", m, n)
		}
		if err == nil {
			buf, err = s2.Decode(buf[:n:n], g.Payload)
		}
	}
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%v payload: %w", g.Codec, err)
	}
	if len(buf) != n {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%d bytes of plaintext where %d were declared", len(buf), n)
	}
	return buf, nil
}

// Open decodes a group and checks the digests of the chunks that used names (all, if it is nil). No byte of a chunk that was
// not checked may be used. The error is Corrupt and names the digest where one does not agree; otherwise as for Decode.
func (d *Decoder) Open(dom *holdfast.Hasher, g *holdfast.Group, buf []byte, used func(i int) bool) ([]byte, error) {
	plain, err := d.Decode(g, buf)
	if err != nil {
		return nil, err
	}
	at := 0
	for i := range g.Chunks {
		c := &g.Chunks[i]
		p := plain[at : at+int(c.Len)]
		at += int(c.Len)
		if used != nil && !used(i) {
			continue
		}
		if dom.Sum(p) != c.Digest {
			return nil, holdfast.Errorf(holdfast.Corrupt, "check chunk", "the bytes of chunk %s (%d bytes) are not what they were", c.Digest, c.Len)
		}
	}
	return plain, nil
}
