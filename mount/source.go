package mount

import (
	"context"
	"sort"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
)

// A Source is where the bytes of a set's disk come from. Methods are safe for concurrent use.
type Source interface {
	// Fetch passes the data of an extent of the disk as parcels to put, one after the other, and returns nil only when all data there is was
	// passed. put releases what it gets; its error ends the Fetch and is returned. dom is the domain of the parcels' digests.
	Fetch(ctx context.Context, disk int, e holdfast.Extent, put func(dom holdfast.Domain, p *holdfast.Parcel) error) error
	// Map tells where the disk may hold data. It may take long for a large disk; reads do not wait for it.
	Map(ctx context.Context, disk int) (Map, error)
}

// A Map says where a disk holds data: the rest reads as zeros.
type Map struct {
	Extents holdfast.Extents // normal
	Exact   bool             // every byte of Extents is data; else neighbours were joined to keep the list short
}

// data returns how many bytes of e the map lists.
func (m *Map) data(e holdfast.Extent) (n int64) {
	for i := sort.Search(len(m.Extents), func(i int) bool { return m.Extents[i].End() > e.Off }); i < len(m.Extents) && m.Extents[i].Off < e.End(); i++ {
		n += min(m.Extents[i].End(), e.End()) - max(m.Extents[i].Off, e.Off)
	}
	return n
}

// within returns the parts of e that the map lists.
func (m *Map) within(e holdfast.Extent) (out holdfast.Extents) {
	for i := sort.Search(len(m.Extents), func(i int) bool { return m.Extents[i].End() > e.Off }); i < len(m.Extents) && m.Extents[i].Off < e.End(); i++ {
		off := max(m.Extents[i].Off, e.Off)
		out = append(out, holdfast.Extent{Off: off, Len: min(m.Extents[i].End(), e.End()) - off})
	}
	return out
}

// An opener is one worker's tools for parcels.
type opener struct {
	dec    *chunk.Decoder
	buf    []byte
	starts []int
	used   []bool
}

var openers = sync.Pool{New: func() any { return &opener{dec: chunk.NewDecoder(), buf: make([]byte, holdfast.MaxGroupPlain)} }}

// open decodes a parcel, verifies every chunk that a place needs, and passes each place to write.
func (o *opener) open(dom holdfast.Domain, p *holdfast.Parcel, want holdfast.Extent, write func(off int64, b []byte)) error {
	const op = "read mounted disk"
	if err := p.Check(); err != nil {
		return holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	o.starts, o.used = o.starts[:0], o.used[:0]
	at := 0
	for _, c := range p.Chunks {
		o.starts, o.used = append(o.starts, at), append(o.used, false)
		at += int(c.Len)
	}
	for _, x := range p.Places {
		if x.Len == 0 || int64(x.At)+int64(x.Len) > int64(at) {
			return holdfast.Errorf(holdfast.Corrupt, op, "a place of %d bytes at %d of %d", x.Len, x.At, at)
		}
		if x.Off < want.Off || x.Off > want.End()-int64(x.Len) {
			return holdfast.Errorf(holdfast.Corrupt, op, "%d bytes at %d were delivered, which nobody wanted", x.Len, x.Off)
		}
		for i := sort.SearchInts(o.starts, int(x.At)+1) - 1; i < len(o.starts) && o.starts[i] < int(x.At+x.Len); i++ {
			o.used[i] = true
		}
	}
	plain, err := o.dec.Open(dom.Hasher(), &p.Group, o.buf, func(i int) bool { return o.used[i] })
	if err != nil {
		return err
	}
	for _, x := range p.Places {
		write(x.Off, plain[x.At:x.At+x.Len])
	}
	return nil
}
