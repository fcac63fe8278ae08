package emu

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A Cartridge is a tape with its memory chip. It belongs to the library it is in; its methods are for when it is in none, or idle.
type Cartridge struct {
	m     Media
	parts []*part
	loads int
	ref   uint32 // volume change reference
	dirty bool   // changed since the last flush
	uses  int    // of a cleaning cartridge
}

// A part is one partition. Object n of it is objs[n].
type part struct {
	objs    []object
	flushed int      // so many objects are on the medium
	old     []object // what was there before it was overwritten, until the overwriting has reached the medium
	oldLen  int      // objects of old that were on the medium
	torn    bool     // the end-of-data mark is missing
	size    int64
	memory  map[uint16]scsi.Attribute
}

// An object is a block or a filemark.
type object struct {
	mark bool
	data []byte // as on the medium: encrypted if sealed
	end  int64  // bytes of the partition up to and with this object
	key  *sealing
}

const markCost = 1024 // bytes that a filemark takes

func newCartridge(m Media) *Cartridge {
	if m.Capacity == 0 {
		m.Capacity = 1 << 30
	}
	if m.EarlyWarning == 0 {
		m.EarlyWarning = m.Capacity / 20
	}
	if m.Serial == "" {
		m.Serial = "SN-" + m.Barcode
	}
	c := &Cartridge{m: m, uses: m.Cleaning, ref: 1}
	c.format(1, 0)
	return c
}

// format makes the cartridge blank with n partitions, of which partition 0 gets the share first in MiB if there are two.
func (c *Cartridge) format(n int, first int64) {
	c.parts = []*part{{size: c.m.Capacity, memory: map[uint16]scsi.Attribute{}}}
	if n == 2 {
		head := first << 20
		if head <= 0 || head >= c.m.Capacity {
			head = c.m.Capacity / 20
		}
		c.parts[0].size = head
		c.parts = append(c.parts, &part{size: c.m.Capacity - head, memory: map[uint16]scsi.Attribute{}})
	}
	c.dirty = true
}

func (p *part) used(n int) int64 {
	if n == 0 {
		return 0
	}
	return p.objs[n-1].end
}

// cut makes position n the end, before something is written there.
func (p *part) cut(n int) {
	if n < len(p.objs) {
		if p.old == nil {
			p.old, p.oldLen = p.objs, p.flushed
		}
		p.objs = slices.Clone(p.objs[:n])
		p.flushed = min(p.flushed, n)
	}
	p.torn = false
}

// flush says that everything is on the medium.
func (c *Cartridge) flush() {
	for _, p := range c.parts {
		p.flushed, p.old = len(p.objs), nil
	}
	if c.dirty {
		c.ref, c.dirty = c.ref+1, false
	}
}

// powerCut leaves what a drive that lost its buffer may leave.
func (c *Cartridge) powerCut(rng *rand.Rand) {
	for _, p := range c.parts {
		lost := len(p.objs) - p.flushed
		if lost == 0 && p.old == nil {
			continue
		}
		keep := rng.IntN(lost + 1)
		if keep == 0 && p.old != nil && rng.IntN(2) == 0 {
			p.objs, p.flushed, p.old = p.old[:p.oldLen], p.oldLen, nil // the tape had not moved yet
			continue
		}
		p.objs, p.old = p.objs[:p.flushed+keep], nil
		p.flushed = len(p.objs)
		p.torn = rng.IntN(2) == 0
	}
	c.dirty = false
}

// Objects returns how many objects a partition has.
func (c *Cartridge) Objects(partition int) int { return len(c.parts[partition].objs) }

// Block returns what lies on the medium as object n of a partition, and whether it is a filemark. The bytes must not be changed.
func (c *Cartridge) Block(partition, n int) (data []byte, filemark bool) {
	o := c.parts[partition].objs[n]
	return o.data, o.mark
}

// Flip changes one bit of a block, as a bad medium that its drive did not notice would.
func (c *Cartridge) Flip(partition, n, at int) {
	o := &c.parts[partition].objs[n]
	o.data = slices.Clone(o.data)
	o.data[at%len(o.data)] ^= 1
}

// Clone returns a copy of a cartridge in its present state: for looking at what a power cut leaves while the original goes on.
func (c *Cartridge) Clone() *Cartridge {
	n := *c
	n.parts = nil
	for _, p := range c.parts {
		q := *p
		q.objs, q.old, q.memory = slices.Clone(p.objs), slices.Clone(p.old), map[uint16]scsi.Attribute{}
		for k, v := range p.memory {
			q.memory[k] = v
		}
		n.parts = append(n.parts, &q)
	}
	return &n
}

// Cut is a power cut to a cartridge that Clone has made.
func (c *Cartridge) Cut(seed uint64) { c.powerCut(rand.New(rand.NewPCG(seed, 9))) }

// attributes returns the memory of a partition from an id on, in order.
func (c *Cartridge) attributes(partition int, first uint16) []scsi.Attribute {
	p := c.parts[partition]
	all := map[uint16]scsi.Attribute{}
	for k, v := range p.memory {
		all[k] = v
	}
	put := func(id uint16, format byte, v []byte) {
		all[id] = scsi.Attribute{ID: id, Format: format, ReadOnly: true, Value: v}
	}
	num := func(v int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(v)) }
	put(scsi.AttrRemaining, scsi.FormatBinary, num((p.size-p.used(len(p.objs)))>>20))
	put(scsi.AttrMaximum, scsi.FormatBinary, num(p.size>>20))
	put(scsi.AttrLoads, scsi.FormatBinary, num(int64(c.loads)))
	put(scsi.AttrChangeRef, scsi.FormatBinary, binary.BigEndian.AppendUint32(nil, c.ref))
	put(scsi.AttrManufacturer, scsi.FormatASCII, []byte("HOLDFAST"))
	put(scsi.AttrSerial, scsi.FormatASCII, fmt.Appendf(nil, "%-32s", c.m.Serial))
	kind := byte(0)
	switch {
	case c.m.Cleaning > 0:
		kind = scsi.MediumCleaning
	case c.m.WORM:
		kind = scsi.MediumWORM
	}
	put(scsi.AttrMediumType, scsi.FormatBinary, []byte{kind})
	var out []scsi.Attribute
	for id, a := range all {
		if id >= first {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, func(a, b scsi.Attribute) int { return int(a.ID) - int(b.ID) })
	return out
}

// Take makes the content of a cartridge that of another one, as a machine that copies tapes does: the medium stays its own.
func (c *Cartridge) Take(from *Cartridge) { c.parts = from.Clone().parts }
