package chunk

import (
	"bytes"
	"encoding/binary"
)

// zeros is what blocks are compared with; one page stays in the first-level cache.
var zeros [Block]byte

// IsZero reports whether every byte of p is zero. The empty p is.
func IsZero(p []byte) bool {
	if len(p) >= 8 && binary.LittleEndian.Uint64(p) != 0 {
		return false // nearly all data ends here, having touched one cache line
	}
	for len(p) > Block {
		if !bytes.Equal(p[:Block], zeros[:]) {
			return false
		}
		p = p[Block:]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// MinZeroRun is how long a run of zero blocks must be to be described as zeros instead of being part of a chunk: shorter
// ones compress to nothing and would only make the map longer.
const MinZeroRun = 64 << 10

// ZeroRuns finds the next run of zero blocks in p at or after from: p[start:end], grown as far as it goes. phase is where
// in a block p begins (0 to Block-1): a run starts on a block boundary of the disk, and ends on one or at the end of p. start
// is len(p) if there is none.
func ZeroRuns(p []byte, from, phase int) (start, end int) {
	next := func(i int) int { return min(i+Block-(i+phase)%Block, len(p)) }
	if (from+phase)%Block != 0 {
		from = next(from)
	}
	for start = from; start < len(p); start = next(start) {
		if IsZero(p[start:next(start)]) {
			break
		}
	}
	for end = start; end < len(p); {
		n := next(end)
		if !IsZero(p[end:n]) {
			break
		}
		end = n
	}
	return start, end
}
