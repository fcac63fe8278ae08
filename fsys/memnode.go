package fsys

import (
	"io/fs"
	"path"
	"slices"
	"sync/atomic"
)

// memPage is the unit in which unsynced bytes survive.
const memPage = 4096

// A memNode is a file (data) or a folder (dir).
type memNode struct {
	data  *memData
	dir   *memDir
	mtime int64
}

func newMemDir() *memNode { return &memNode{dir: &memDir{now: map[string]*memNode{}}} }

func (n *memNode) info(name string) fs.FileInfo {
	i := memInfo{name: path.Base(name), mtime: n.mtime, mode: 0o600}
	if n.dir != nil {
		i.mode = fs.ModeDir | 0o700
	} else {
		i.size = n.data.size
	}
	return i
}

// holds tells whether o is n or lies below it.
func (n *memNode) holds(o *memNode) bool {
	if n == o {
		return true
	}
	if n.dir != nil {
		for _, c := range n.dir.now {
			if c.holds(o) {
				return true
			}
		}
	}
	return false
}

// bytes sums the lengths of the files below n, each once.
func (n *memNode) bytes(seen map[*memNode]bool) int64 {
	if seen[n] {
		return 0
	}
	seen[n] = true
	if n.dir == nil {
		return n.data.size
	}
	var sum int64
	for _, c := range n.dir.now {
		sum += c.bytes(seen)
	}
	return sum
}

// A memDir is a folder: its names now, and for each name changed since its last sync what it was and the changes since.
type memDir struct {
	now     map[string]*memNode
	pending map[string]*memPending
}

type memPending struct {
	synced *memNode // nil: the name was not there
	ops    []*memOp
}

// A memOp is one change of a name: node is what the name stands for after it, nil if nothing. The removal that is part of a
// rename points at the change that made the new name: it counts only where that one does.
type memOp struct {
	node *memNode
	with *memOp
	in   *memNode // the folder of with
	as   string   // the name that with made
	kept bool     // set once durable, or when a crash decided to keep it
}

func (d *memDir) change(name string, op *memOp) {
	p := d.pending[name]
	if p == nil {
		p = &memPending{synced: d.now[name]}
		if d.pending == nil {
			d.pending = map[string]*memPending{}
		}
		d.pending[name] = p
	}
	p.ops = append(p.ops, op)
	if op.node == nil {
		delete(d.now, name)
	} else {
		d.now[name] = op.node
	}
}

// settle makes the folder's names durable.
func (d *memDir) settle() {
	for name := range d.pending {
		d.settleName(name)
	}
}

// settleName makes one name durable. If a removal in it was half of a rename, the other half becomes durable with it: the two
// are one entry of a real file system's journal.
func (d *memDir) settleName(name string) {
	p := d.pending[name]
	if p == nil {
		return
	}
	delete(d.pending, name)
	for _, op := range p.ops {
		op.kept = true
		if op.with != nil && !op.with.kept {
			op.in.dir.settleUpTo(op.as, op.with)
		}
	}
}

// settleUpTo makes the changes of a name durable up to and including last.
func (d *memDir) settleUpTo(name string, last *memOp) {
	p := d.pending[name]
	if p == nil {
		return
	}
	i := slices.Index(p.ops, last)
	if i < 0 {
		return
	}
	done := p.ops[:i+1]
	p.synced, p.ops = last.node, slices.Clone(p.ops[i+1:])
	if len(p.ops) == 0 {
		delete(d.pending, name)
	}
	for _, op := range done {
		op.kept = true
		if op.with != nil && !op.with.kept {
			op.in.dir.settleUpTo(op.as, op.with)
		}
	}
}

// A page holds at most memPage bytes; what is missing at its end reads as zeros. It may be changed in place only by the
// memData whose id is its owner.
type page struct {
	owner uint64
	b     []byte
}

var memIDs atomic.Uint64

// A memData is a file's content. dirty holds, for each page changed since the last sync, the page as it was synced (nil: it
// was a hole or beyond the end). Once shared, it is frozen: whoever wants to change it makes a copy first.
type memData struct {
	id         uint64
	shared     bool
	pages      []*page
	size       int64
	syncedSize int64
	dirty      map[int]*page
}

func newMemData() *memData { return &memData{id: memIDs.Add(1)} }

// own returns the node's data for changing: a copy if it is shared.
func (n *memNode) own() *memData {
	d := n.data
	if !d.shared {
		return d
	}
	c := &memData{id: memIDs.Add(1), pages: slices.Clone(d.pages), size: d.size, syncedSize: d.syncedSize}
	if len(d.dirty) > 0 {
		c.dirty = make(map[int]*page, len(d.dirty))
		for i, p := range d.dirty {
			c.dirty[i] = p
		}
	}
	n.data = c
	return c
}

func (d *memData) readAt(p []byte, off int64) int {
	n := 0
	for n < len(p) && off < d.size {
		i, at := int(off/memPage), int(off%memPage)
		k := min(len(p)-n, memPage-at)
		k = int(min(int64(k), d.size-off))
		dst := p[n : n+k]
		got := 0
		if i < len(d.pages) && d.pages[i] != nil && at < len(d.pages[i].b) {
			got = copy(dst, d.pages[i].b[at:])
		}
		clear(dst[got:])
		n += k
		off += int64(k)
	}
	return n
}

// touch returns page i for changing, at least want bytes long, and notes what it was at the last sync.
func (d *memData) touch(i, want int) *page {
	for len(d.pages) <= i {
		d.pages = append(d.pages, nil)
	}
	old := d.pages[i]
	_, isDirty := d.dirty[i]
	if !isDirty {
		if d.dirty == nil {
			d.dirty = map[int]*page{}
		}
		d.dirty[i] = old
	}
	if old == nil || !isDirty || old.owner != d.id {
		fresh := &page{owner: d.id}
		if old != nil {
			fresh.b = append(make([]byte, 0, max(want, len(old.b))), old.b...)
		}
		d.pages[i], old = fresh, fresh
	}
	if len(old.b) < want {
		grown := slices.Grow(old.b, want-len(old.b))[:want]
		clear(grown[len(old.b):])
		old.b = grown
	}
	return old
}

func (d *memData) writeAt(p []byte, off int64) {
	for len(p) > 0 {
		i, at := int(off/memPage), int(off%memPage)
		k := min(len(p), memPage-at)
		copy(d.touch(i, at+k).b[at:], p[:k])
		p = p[k:]
		off += int64(k)
		d.size = max(d.size, off)
	}
}

func (d *memData) truncate(size int64) {
	if size < d.size {
		keep := int((size + memPage - 1) / memPage)
		for i := keep; i < len(d.pages); i++ {
			if d.pages[i] != nil {
				d.touch(i, 0)
				d.pages[i] = nil
			}
		}
		d.pages = d.pages[:min(keep, len(d.pages))]
		if at := int(size % memPage); at > 0 && len(d.pages) == keep && d.pages[keep-1] != nil && len(d.pages[keep-1].b) > at {
			p := d.touch(keep-1, 0)
			p.b = p.b[:at]
		}
	}
	d.size = size
}

func (d *memData) sync() {
	d.dirty = nil
	d.syncedSize = d.size
}
