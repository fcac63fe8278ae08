package holdfast

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"
)

// Bounds of the data path. Every length that comes from a peer or a medium is checked against them before memory is taken.
const (
	MaxChunk       = 1 << 20  // bytes of plaintext in one chunk
	MaxGroupPlain  = 1 << 20  // bytes of plaintext in one compression group
	MaxGroupChunks = 2048     // chunks in one compression group
	MaxDiskSize    = 64 << 40 // bytes: the largest VHDX
)

// A Digest is the keyed BLAKE3-256 of a chunk's plaintext within one Domain. The zero digest stands for "no chunk".
type Digest [32]byte

// IsZero reports whether d names no chunk.
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler (hexadecimal).
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler (64 hexadecimal digits).
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != 64 {
		return Errorf(Invalid, "parse digest", "a digest has 64 hexadecimal digits, this has %d characters", len(text))
	}
	if _, err := hex.Decode(d[:], text); err != nil {
		return Errorf(Invalid, "parse digest", "%w", err)
	}
	return nil
}

// A Domain is the scope in which equal bytes have equal digests: a pool, or a tenant in it. Its key hides content equality
// from whoever holds only the digests.
type Domain struct{ Key [32]byte }

// A Hasher computes digests of one domain without allocating. It is not safe for concurrent use: give each worker its own.
type Hasher struct{ h *blake3.Hasher }

// Hasher returns a new Hasher of the domain.
func (d Domain) Hasher() *Hasher {
	h, err := blake3.NewKeyed(d.Key[:])
	if err != nil {
		panic(err) // only a key of another length can fail
	}
	return &Hasher{h}
}

// Sum returns the digest of p.
func (h *Hasher) Sum(p []byte) Digest {
	var d Digest
	h.h.Reset()
	_, _ = h.h.Write(p)
	h.h.Sum(d[:0])
	return d
}

// Reset begins the digest of bytes that come in pieces by Write; Digest ends it. Sum in between would begin another.
func (h *Hasher) Reset() { h.h.Reset() }

// Write adds bytes. It never fails.
func (h *Hasher) Write(p []byte) (int, error) { return h.h.Write(p) }

// Digest returns the digest of what was written since Reset.
func (h *Hasher) Digest() Digest {
	var d Digest
	h.h.Sum(d[:0])
	return d
}

// A Codec says how a compression group's payload is encoded. Numbers are on disk and on the wire: append only.
type Codec uint8

const (
	Plain Codec = 0 // as it is
	Zstd  Codec = 1 // one zstd frame
	S2    Codec = 2 // one s2 block
)

func (c Codec) String() string {
	switch c {
	case Plain:
		return "plain"
	case Zstd:
		return "zstd"
	case S2:
		return "s2"
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// A Piece is one chunk inside a compression group: its digest and the length of its plaintext in bytes.
type Piece struct {
	Digest Digest
	Len    uint32
}

// A Group is a compression group: chunks whose plaintexts, one after the other, were encoded together. It is how new chunks
// travel and rest. At most MaxGroupPlain bytes and MaxGroupChunks chunks, at least one chunk.
type Group struct {
	Codec   Codec
	Chunks  []Piece
	Payload []byte // encoded; never longer than the plaintext
}

// PlainLen returns the length of the plaintext in bytes.
func (g *Group) PlainLen() int {
	n := 0
	for _, c := range g.Chunks {
		n += int(c.Len)
	}
	return n
}

// Check tells whether the group keeps its bounds; it does not decode. The error is Invalid.
func (g *Group) Check() error {
	const op = "check group"
	if len(g.Chunks) == 0 || len(g.Chunks) > MaxGroupChunks {
		return Errorf(Invalid, op, "%d chunks; 1 to %d are allowed", len(g.Chunks), MaxGroupChunks)
	}
	total := 0
	for _, c := range g.Chunks {
		if c.Len == 0 || c.Len > MaxChunk {
			return Errorf(Invalid, op, "a chunk of %d bytes; 1 to %d are allowed", c.Len, MaxChunk)
		}
		total += int(c.Len)
	}
	switch {
	case total > MaxGroupPlain:
		return Errorf(Invalid, op, "%d bytes of plaintext; at most %d are allowed", total, MaxGroupPlain)
	case g.Codec > S2:
		return Errorf(Invalid, op, "unknown %v", g.Codec)
	case len(g.Payload) > total || (g.Codec == Plain && len(g.Payload) != total) || len(g.Payload) == 0:
		return Errorf(Invalid, op, "a %v payload of %d bytes for %d bytes of plaintext", g.Codec, len(g.Payload), total)
	}
	return nil
}

// A Ref is one entry of a disk's map: the extent holds Len bytes of the chunk Digest, from its byte Skip on.
// A zero Digest means that the extent is zeros, and then Skip is 0 and Len has no bound.
type Ref struct {
	Extent
	Digest Digest
	Skip   uint32
}

// A Place says where bytes of a decoded group belong: Len bytes from offset At of the group's plaintext go to offset Off of the disk.
type Place struct {
	Off int64
	At  uint32
	Len uint32
}

// A Parcel is what a pool delivers on a read: a group as it rests and the places its bytes fill. The receiver decodes it,
// checks the digests of the chunks it uses, and writes each place. It owns Payload until it calls Free.
type Parcel struct {
	Group
	Places []Place
	Free   func() // gives the buffers back; nil when there is nothing to give back. Called once, from any goroutine.
}

// Release calls Free if there is one.
func (p *Parcel) Release() {
	if p.Free != nil {
		p.Free()
		p.Free = nil
	}
}

// Chunking is how a pool wants disks to be cut. It is declared by the pool and obeyed by the agent.
type Chunking struct {
	Mode string `json:"mode"` // ModeAdaptive, ModeVariable, or ModeFixed
	Min  uint32 `json:"min"`  // bytes; for ModeFixed Min = Avg = Max
	Avg  uint32 `json:"avg"`
	Max  uint32 `json:"max"`
	Seed uint64 `json:"seed,omitempty"` // ModeVariable: the polynomial; ModeAdaptive: secret of the cut mask
}

// The modes of Chunking.
const (
	ModeAdaptive = "adaptive" // content cuts on 4 KiB boundaries: the default
	ModeVariable = "variable" // byte-level content cuts (restic/chunker)
	ModeFixed    = "fixed"    // blocks of Avg bytes at multiples of Avg
)

// ParseChunking reads a chunking's name as admins write it: adaptive, variable, or fixed-64K … fixed-512K.
func ParseChunking(s string) (Chunking, error) {
	switch s {
	case "", ModeAdaptive:
		return Chunking{Mode: ModeAdaptive, Min: 16 << 10, Avg: 64 << 10, Max: 256 << 10}, nil
	case ModeVariable:
		return Chunking{Mode: ModeVariable, Min: 64 << 10, Avg: 128 << 10, Max: 512 << 10}, nil
	}
	if k, ok := strings.CutPrefix(s, ModeFixed+"-"); ok {
		n, err := strconv.ParseUint(strings.TrimSuffix(k, "K"), 10, 32)
		if err == nil && strings.HasSuffix(k, "K") && n >= 64 && n <= 512 && n&(n-1) == 0 {
			b := uint32(n) << 10
			return Chunking{Mode: ModeFixed, Min: b, Avg: b, Max: b}, nil
		}
	}
	return Chunking{}, Errorf(Invalid, "parse chunking", "unknown chunking %q", s).
		Advise("use adaptive, variable, fixed-64K, fixed-128K, fixed-256K or fixed-512K")
}

// String returns the name that ParseChunking reads.
func (c Chunking) String() string {
	if c.Mode == ModeFixed {
		return fmt.Sprintf("fixed-%dK", c.Avg>>10)
	}
	return c.Mode
}

// Check refuses a chunking outside the bounds of the data path. The error is Invalid.
func (c Chunking) Check() error {
	ok := c.Min >= 4096 && c.Min <= c.Avg && c.Avg <= c.Max && c.Max <= MaxChunk && c.Min%4096 == 0 && c.Max%4096 == 0
	switch c.Mode {
	case ModeAdaptive, ModeVariable:
	case ModeFixed:
		ok = ok && c.Min == c.Avg && c.Avg == c.Max && c.Avg&(c.Avg-1) == 0
	default:
		ok = false
	}
	if !ok {
		return Errorf(Invalid, "check chunking", "%+v is not a chunking this version knows", c)
	}
	return nil
}
