package chunk

import "github.com/holdfast-backup/holdfast"

// A Builder collects chunks, in order, into one group at a time. Its memory is one group's plaintext.
type Builder struct {
	plain  []byte
	chunks []holdfast.Piece
}

// NewBuilder returns an empty builder.
func NewBuilder() *Builder {
	return &Builder{plain: make([]byte, 0, holdfast.MaxGroupPlain), chunks: make([]holdfast.Piece, 0, 64)}
}

// Fits reports whether a chunk of n bytes has room in the group; any chunk has in an empty one.
func (b *Builder) Fits(n int) bool {
	return len(b.plain)+n <= holdfast.MaxGroupPlain && len(b.chunks) < holdfast.MaxGroupChunks
}

// Add copies a chunk into the group. It must fit.
func (b *Builder) Add(d holdfast.Digest, p []byte) {
	if !b.Fits(len(p)) {
		panic("chunk: a chunk was added to a full group")
	}
	b.plain = append(b.plain, p...)
	b.chunks = append(b.chunks, holdfast.Piece{Digest: d, Len: uint32(len(p))})
}

// Len returns the number of chunks and of plaintext bytes collected.
func (b *Builder) Len() (chunks, plain int) { return len(b.chunks), len(b.plain) }

// Encode returns the group, encoded. Its Chunks are the builder's and its Payload dst's or the builder's memory, valid until
// Reset. The group is empty if nothing was added.
func (b *Builder) Encode(e *Encoder, dst []byte) holdfast.Group {
	if len(b.chunks) == 0 {
		return holdfast.Group{}
	}
	codec, payload := e.Encode(dst, b.plain)
	return holdfast.Group{Codec: codec, Chunks: b.chunks, Payload: payload}
}

// Reset empties the builder for the next group.
func (b *Builder) Reset() { b.plain, b.chunks = b.plain[:0], b.chunks[:0] }
