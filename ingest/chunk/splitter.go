package chunk

import "github.com/holdfast-backup/holdfast"

// A Span is a piece of a run: it ends at End and begins where the one before it ends.
type Span struct {
	End  int
	Zero bool // all bytes are zero; otherwise it is a chunk
}

// A Splitter divides runs of disk bytes into zero runs and chunks. It keeps nothing between calls, but is not safe for
// concurrent use.
type Splitter struct {
	cutter Cutter
	bases  bases
	ends   []int
}

// NewSplitter returns a splitter for a pool's chunking and a disk's partition starts (see NewCutter). The error is Invalid.
func NewSplitter(c holdfast.Chunking, starts ...int64) (*Splitter, error) {
	cut, err := NewCutter(c, starts...)
	if err != nil {
		return nil, err
	}
	return &Splitter{cutter: cut, bases: newBases(starts)}, nil
}

// MaxCarry is the most bytes that Split leaves undecided for a chunking.
func MaxCarry(c holdfast.Chunking) int { return int(c.Max) + MinZeroRun + Block }

// Split appends the spans of p, which lies at disk offset off: runs of zero blocks of at least MinZeroRun bytes, and between
// them chunks. last and the undecided rest are as with Cutter.Cut, except that the rest can be MaxCarry bytes long and that a
// long zero run may be reported as several spans. What is a zero run and where chunks end does not depend on how a run of
// bytes is divided into calls.
func (s *Splitter) Split(p []byte, off int64, last bool, spans []Span) []Span {
	for start := 0; start < len(p); {
		base, n, closed := s.bases.segment(p[start:], off+int64(start))
		spans = s.segment(p[start:start+n], off+int64(start), base, closed || last, start, spans)
		if !closed {
			break
		}
		start += n
	}
	return spans
}

// segment splits bytes of one partition.
func (s *Splitter) segment(p []byte, off, base int64, closed bool, add int, spans []Span) []Span {
	phase := int((off - base) % Block)
	for data := 0; data < len(p); {
		zs, ze := ZeroRuns(p, data, phase)
		for ze-zs < MinZeroRun && ze < len(p) {
			zs, ze = ZeroRuns(p, ze, phase)
		}
		// A run that touches the end of an open p may go on, and its last block may be there only in part.
		open := !closed && ze == len(p)
		full := ze
		if open {
			full -= (ze + phase) % Block
		}
		long := full-zs >= MinZeroRun
		if !long && !open {
			zs = len(p)
		}
		// What comes before a run that might still become long enough is cut without looking into the run.
		s.ends = s.cutter.Cut(p[data:zs], off+int64(data), long || !open, s.ends[:0])
		for _, e := range s.ends {
			spans = append(spans, Span{End: add + data + e})
		}
		if !long {
			return spans
		}
		if open {
			ze = full - MinZeroRun // so that the next call recognises the rest of the run
		}
		if ze > zs {
			spans = append(spans, Span{End: add + ze, Zero: true})
		}
		if open {
			return spans
		}
		data = ze
	}
	return spans
}
