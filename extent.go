package holdfast

import (
	"cmp"
	"slices"
)

// An Extent is the half-open byte range [Off, Off+Len) of a virtual disk. Len is positive in every extent of a valid list.
type Extent struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// End returns the first byte after the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// Extents is a list of extents. A normal list is sorted by offset, has no empty extent and no two that touch or overlap.
type Extents []Extent

// Normal returns the list sorted, merged and clipped to [0, size): what a range tracker answered is never trusted blindly.
// Negative lengths and ranges outside the disk are dropped; arithmetic that would overflow is clipped. es is not changed.
func (es Extents) Normal(size int64) Extents {
	out := make(Extents, 0, len(es))
	for _, e := range es {
		if e.Len <= 0 || e.Off >= size {
			continue
		}
		end := e.Off + e.Len
		if end > size || end < e.Off {
			end = size
		}
		off := max(e.Off, 0)
		if end > off {
			out = append(out, Extent{off, end - off})
		}
	}
	slices.SortFunc(out, func(a, b Extent) int { return cmp.Compare(a.Off, b.Off) })
	return out.merge()
}

// merge joins touching and overlapping extents of a list sorted by offset, in place.
func (es Extents) merge() Extents {
	out := es[:0]
	for _, e := range es {
		if n := len(out); n > 0 && e.Off <= out[n-1].End() {
			out[n-1].Len = max(out[n-1].End(), e.End()) - out[n-1].Off
			continue
		}
		out = append(out, e)
	}
	return out
}

// Total returns the number of bytes in a normal list.
func (es Extents) Total() int64 {
	var n int64
	for _, e := range es {
		n += e.Len
	}
	return n
}

// Align widens every extent to multiples of align and merges; the result is clipped to size. align must be positive.
func (es Extents) Align(align, size int64) Extents {
	out := make(Extents, 0, len(es))
	for _, e := range es {
		off := e.Off / align * align
		end := (e.End() + align - 1) / align * align
		out = append(out, Extent{off, end - off})
	}
	return out.Normal(size)
}

// Intersect returns the bytes in both normal lists.
func (es Extents) Intersect(other Extents) Extents {
	var out Extents
	for i, j := 0, 0; i < len(es) && j < len(other); {
		a, b := es[i], other[j]
		off, end := max(a.Off, b.Off), min(a.End(), b.End())
		if off < end {
			out = append(out, Extent{off, end - off})
		}
		if a.End() < b.End() {
			i++
		} else {
			j++
		}
	}
	return out
}

// Subtract returns the bytes of es that are not in other; both lists are normal.
func (es Extents) Subtract(other Extents) Extents {
	var out Extents
	j := 0
	for _, e := range es {
		for j < len(other) && other[j].End() <= e.Off {
			j++
		}
		off := e.Off
		for k := j; k < len(other) && other[k].Off < e.End(); k++ {
			if other[k].Off > off {
				out = append(out, Extent{off, other[k].Off - off})
			}
			off = max(off, other[k].End())
		}
		if off < e.End() {
			out = append(out, Extent{off, e.End() - off})
		}
	}
	return out
}

// Union returns the bytes of either normal list.
func (es Extents) Union(other Extents) Extents {
	out := make(Extents, 0, len(es)+len(other))
	out = append(append(out, es...), other...)
	slices.SortFunc(out, func(a, b Extent) int { return cmp.Compare(a.Off, b.Off) })
	return out.merge()
}
