package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/holdfast-backup/holdfast"
)

// Bounds of frames and messages. A length is compared with them before memory is taken.
const (
	headerLen = 16

	// MaxFrame bounds the payload of one frame: a full group (1 MiB), its 2048 pieces and its 8192 places.
	MaxFrame = 1<<20 + 256<<10
	// maxEarly bounds frames before both ends have agreed on a version: a stranger gets no memory.
	maxEarly = 4 << 10
	// MaxMessage bounds a message that spans several frames: a manifest with its attachments and what is around it.
	MaxMessage = holdfast.MaxManifestBytes + 512<<10
)

// flagMore marks a frame whose message goes on in the next one (same type and channel). Only long JSON messages are cut.
const flagMore = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A header is the 16 bytes before each payload, little-endian:
//
//	0  type u8 · 1 flags u8 · 2 channel u16 · 4 payload length u32 · 8 seq u32 · 12 crc32c u32
//
// The checksum covers the payload and then bytes 0 to 11, so that it can be prepared before the sequence number is known.
type header struct {
	typ     Type
	flags   uint8
	channel uint16
	length  uint32
	seq     uint32
}

// A frame is a header and a payload in one pooled buffer. It also keeps the slices that parsed bodies use, so that a stream of
// messages takes no memory once it runs. Exactly one goroutine owns a frame at a time.
type frame struct {
	b     []byte // header and payload
	sum   uint32 // crc32c of the payload
	class int    // index in frameSizes

	orphan bool // acknowledged while it was being written (Link.mu)

	group   holdfast.Group
	pieces  []holdfast.Piece
	places  []holdfast.Place
	refs    []holdfast.Ref
	digests []holdfast.Digest
	missing []bool
}

// frameSizes are the capacities kept in pools: at most twice what a frame needs, so that counted bytes bound real memory.
var frameSizes = [...]int{512, 4 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 192 << 10, 256 << 10, 320 << 10, 384 << 10, 448 << 10, 512 << 10,
	768 << 10, 1 << 20, headerLen + MaxFrame}

// spareFrames keeps frames for reuse: few, because what lies here is memory that nobody has a use for. A sync.Pool keeps everything for
// two rounds of a collector that has little else to collect.
var spareFrames struct {
	mu    sync.Mutex
	lists [len(frameSizes)][]*frame
	bytes int
}

const maxSpareFrames = 2 << 20 // bytes

// newFrame returns a frame for a payload of n bytes, 0 ≤ n ≤ MaxFrame. Its content is undefined.
func newFrame(n int) *frame {
	need := headerLen + n
	class := 0
	for frameSizes[class] < need {
		class++
	}
	f := spareFrame(class)
	if f == nil {
		f = &frame{b: make([]byte, frameSizes[class]), class: class}
	}
	f.b = f.b[:need]
	f.orphan = false
	return f
}

// spareFrame takes a frame that was freed, or nil.
func spareFrame(class int) *frame {
	s := &spareFrames
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.lists[class])
	if n == 0 {
		return nil
	}
	f := s.lists[class][n-1]
	s.lists[class][n-1] = nil
	s.lists[class] = s.lists[class][:n-1]
	s.bytes -= cap(f.b)
	return f
}

// free gives the frame back, to be used again.
func (f *frame) free() {
	f.group = holdfast.Group{}
	s := &spareFrames
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes+cap(f.b) > maxSpareFrames {
		return
	}
	s.lists[f.class] = append(s.lists[f.class], f)
	s.bytes += cap(f.b)
}

func (f *frame) payload() []byte { return f.b[headerLen:] }

// measure computes the payload's checksum; seal needs it.
func (f *frame) measure() { f.sum = crc32.Update(0, castagnoli, f.payload()) }

// seal writes the header.
func (f *frame) seal(h header) {
	b := f.b
	b[0], b[1] = byte(h.typ), h.flags
	binary.LittleEndian.PutUint16(b[2:], h.channel)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)-headerLen))
	binary.LittleEndian.PutUint32(b[8:], h.seq)
	binary.LittleEndian.PutUint32(b[12:], crc32.Update(f.sum, castagnoli, b[:12]))
}

// head reads the header back.
func (f *frame) head() header { return parseHeader(f.b) }

func (f *frame) seq() uint32 { return binary.LittleEndian.Uint32(f.b[8:]) }

func parseHeader(b []byte) header {
	return header{
		typ: Type(b[0]), flags: b[1],
		channel: binary.LittleEndian.Uint16(b[2:]),
		length:  binary.LittleEndian.Uint32(b[4:]),
		seq:     binary.LittleEndian.Uint32(b[8:]),
	}
}

// control makes a frame of the link itself: no channel, no sequence number.
func control(t Type, payload []byte) *frame {
	f := newFrame(len(payload))
	copy(f.payload(), payload)
	f.measure()
	f.seal(header{typ: t})
	return f
}

// A violation is an error of the peer against the protocol, as opposed to a broken connection: trying again does not help.
type violation struct{ err *holdfast.Error }

func (v violation) Error() string { return v.err.Error() }
func (v violation) Unwrap() error { return v.err }

func violated(k holdfast.Kind, format string, args ...any) error {
	return violation{holdfast.Errorf(k, "read frame", format, args...)}
}

func isViolation(err error) bool {
	var v violation
	return errors.As(err, &v)
}

// readFrame reads one frame whose payload is not longer than limit. Errors are violations, or what the reader returned:
// io.EOF between two frames, io.ErrUnexpectedEOF inside one.
func readFrame(r *bufio.Reader, limit int) (*frame, header, error) {
	b, err := r.Peek(headerLen)
	if err != nil {
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, header{}, err
	}
	h := parseHeader(b)
	if err := h.check(limit); err != nil {
		return nil, h, err
	}
	f := newFrame(int(h.length))
	if _, err := io.ReadFull(r, f.b); err != nil {
		f.free()
		return nil, h, err
	}
	f.measure()
	if want := binary.LittleEndian.Uint32(f.b[12:]); crc32.Update(f.sum, castagnoli, f.b[:12]) != want {
		f.free()
		return nil, h, violated(holdfast.Corrupt, "checksum of a %v frame of %d bytes does not fit", h.typ, h.length)
	}
	return f, h, nil
}

// check refuses a header before anything of its payload is read.
func (h header) check(limit int) error {
	most, known := h.typ.limit()
	switch {
	case !known:
		return violated(holdfast.Unsupported, "unknown frame type %d", uint8(h.typ))
	case int64(h.length) > int64(min(most, limit, MaxFrame)):
		return violated(holdfast.Invalid, "a %v frame of %d bytes; at most %d are allowed here", h.typ, h.length, min(most, limit, MaxFrame))
	case h.flags&^flagMore != 0 || (h.flags == flagMore && most <= MaxFrame):
		return violated(holdfast.Invalid, "a %v frame with flags %#x", h.typ, h.flags)
	case !h.typ.isMessage() && (h.seq != 0 || h.channel != 0):
		return violated(holdfast.Invalid, "a %v frame with a sequence number or channel", h.typ)
	}
	return nil
}

func (t Type) isMessage() bool { return t >= TypeBegin }

// limit returns the largest payload of a message of the type, and whether the type is known. Above MaxFrame it may be cut.
func (t Type) limit() (int, bool) {
	switch t {
	case TypeHello, TypeWelcome, TypeBegin, TypeOpenSet:
		return maxEarly, true
	case TypeAck:
		return 4, true
	case TypePing, TypeClose, TypeDiskDone, TypeTracked, TypeDelivered, TypeDone:
		return 0, true
	case TypeRefuse, TypeFail:
		return maxEarly, true
	case TypeBegan, TypeStart, TypeCommit, TypeCommitted, TypeSetOpened:
		return MaxMessage, true
	case TypeTracking:
		return 1 << 20, true
	case TypeAsk:
		return 8 + MaxAsk*32, true
	case TypeHave:
		return 8 + MaxAsk/8, true
	case TypePut:
		return groupHead + holdfast.MaxGroupChunks*pieceLen + holdfast.MaxGroupPlain, true
	case TypePlace:
		return 4 + MaxRefs*refLen, true
	case TypeWant:
		return 4 + MaxWant*extentLen, true
	case TypeParcel:
		return parcelHead + holdfast.MaxGroupChunks*pieceLen + MaxPlaces*placeLen + holdfast.MaxGroupPlain, true
	}
	return 0, false
}

var typeNames = map[Type]string{
	TypeHello: "Hello", TypeWelcome: "Welcome", TypeAck: "Ack", TypePing: "Ping", TypeRefuse: "Refuse", TypeClose: "Close",
	TypeBegin: "Begin", TypeBegan: "Began", TypeStart: "Start", TypeAsk: "Ask", TypeHave: "Have", TypePut: "Put", TypePlace: "Place",
	TypeDiskDone: "DiskDone", TypeCommit: "Commit", TypeCommitted: "Committed", TypeTracking: "Tracking", TypeTracked: "Tracked",
	TypeOpenSet: "OpenSet", TypeSetOpened: "SetOpened", TypeWant: "Want", TypeParcel: "Parcel", TypeDelivered: "Delivered",
	TypeFail: "Fail", TypeDone: "Done",
}

// String returns the type's name in the specification.
func (t Type) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	return fmt.Sprintf("type %d", uint8(t))
}
