package chunk

import (
	"math/bits"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/holdfast-backup/holdfast"
)

// A Level says how much work compression may take.
type Level uint8

const (
	LevelOff     Level = iota // everything is stored plain
	LevelFast                 // s2
	LevelDefault              // zstd, fastest
	LevelBetter               // zstd, default: fewer bytes for slow lines
	LevelBest                 // zstd, best: 15 times the work of LevelDefault for an eighth fewer bytes; for what is at rest
)

// ParseLevel reads off, fast, default (or nothing), better and best.
func ParseLevel(s string) (Level, error) {
	switch s {
	case "off":
		return LevelOff, nil
	case "fast":
		return LevelFast, nil
	case "", "default":
		return LevelDefault, nil
	case "better":
		return LevelBetter, nil
	case "best":
		return LevelBest, nil
	}
	return 0, holdfast.Errorf(holdfast.Invalid, "parse compression", "unknown compression %q", s).
		Advise("use off, fast, default, better or best")
}

// String returns the word that ParseLevel reads.
func (l Level) String() string {
	return [...]string{"off", "fast", "default", "better", "best"}[min(l, LevelBest)]
}

// minSaving is the part of the plaintext (one in so many) an encoding must save to be worth its decoding.
const minSaving = 16

// MaxEncoded is the capacity that makes Encode's dst big enough for any group.
var MaxEncoded = s2.MaxEncodedLen(holdfast.MaxGroupPlain)

// An Encoder compresses groups. It is not safe for concurrent use: give each worker its own. After its first calls it does
// not allocate.
type Encoder struct {
	level  Level
	zstd   *zstd.Encoder
	sample []byte
	trial  []byte
}

// NewEncoder returns an encoder for a level.
func NewEncoder(level Level) *Encoder {
	e := &Encoder{level: level, sample: make([]byte, 0, sampleBytes), trial: make([]byte, 0, s2.MaxEncodedLen(sampleBytes))}
	if level >= LevelDefault {
		speed := zstd.SpeedFastest
		switch level {
		case LevelBetter:
			speed = zstd.SpeedDefault
		case LevelBest:
			speed = zstd.SpeedBestCompression
		}
		var err error
		e.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(speed), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithWindowSize(holdfast.MaxGroupPlain), zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // only options out of their bounds can fail
		}
	}
	return e
}

// Encode encodes a group's plaintext, 1 to holdfast.MaxGroupPlain bytes. The payload is in dst's memory, which is overwritten
// (give it a capacity of MaxEncoded), or is plain itself where the codec is Plain: incompressible data, or an encoding that
// does not save one part in 16.
func (e *Encoder) Encode(dst, plain []byte) (holdfast.Codec, []byte) {
	if e.level == LevelOff || e.incompressible(plain) {
		return holdfast.Plain, plain
	}
	codec := holdfast.Zstd
	if e.level == LevelFast {
		codec = holdfast.S2
		dst = s2.Encode(dst[:cap(dst)], plain)
	} else {
		dst = e.zstd.EncodeAll(plain, dst[:0])
	}
	if len(dst) > len(plain)-len(plain)/minSaving || len(dst) >= len(plain) {
		return holdfast.Plain, plain
	}
	return codec, dst
}

// A group of at least sampleFrom bytes is judged by sampleParts parts of it first.
const (
	sampleParts = 8
	samplePart  = 4 << 10
	sampleBytes = sampleParts * samplePart
	sampleFrom  = 4 * sampleBytes
)

// incompressible judges by a sample: its bytes are spread evenly (so entropy coding would not help) and it repeats nothing (so
// matching would not). Small groups are always tried.
func (e *Encoder) incompressible(plain []byte) bool {
	if len(plain) < sampleFrom {
		return false
	}
	step := (len(plain) - samplePart) / (sampleParts - 1)
	e.sample = e.sample[:0]
	for i := range sampleParts {
		e.sample = append(e.sample, plain[i*step:i*step+samplePart]...)
	}
	if !evenBytes(e.sample) {
		return false
	}
	e.trial = s2.Encode(e.trial[:cap(e.trial)], e.sample)
	return len(e.trial) > len(e.sample)-len(e.sample)/(2*minSaving)
}

// evenBytes reports whether the collision entropy of p's bytes is so high that no order-0 coding can save one part in 16. For
// n random bytes the sum of squared counts is about n²/256 + n; text and code have several times that.
func evenBytes(p []byte) bool {
	var count [4][256]uint32 // four tables, because counting into one waits for the previous store
	for i := 0; i+4 <= len(p); i += 4 {
		count[0][p[i]]++
		count[1][p[i+1]]++
		count[2][p[i+2]]++
		count[3][p[i+3]]++
	}
	var sum uint64
	for i := range 256 {
		c := uint64(count[0][i] + count[1][i] + count[2][i] + count[3][i])
		sum += c * c
	}
	// log2(n²/sum) is the collision entropy in bits; 2^7.5 = 181.
	hi, lo := bits.Mul64(uint64(len(p)), uint64(len(p)))
	return hi == 0 && lo > sum*181
}
