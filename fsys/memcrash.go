package fsys

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// A cloner copies a tree, keeping hard links and the ties between the halves of a rename.
type cloner struct {
	seen map[*memNode]*memNode
	ops  map[*memOp]*memOp
}

func (c *cloner) node(n *memNode) *memNode {
	if n == nil {
		return nil
	}
	if have := c.seen[n]; have != nil {
		return have
	}
	out := &memNode{mtime: n.mtime}
	c.seen[n] = out
	if n.dir == nil {
		n.data.shared = true
		out.data = n.data
		return out
	}
	out.dir = &memDir{now: make(map[string]*memNode, len(n.dir.now))}
	for name, child := range n.dir.now {
		out.dir.now[name] = c.node(child)
	}
	if len(n.dir.pending) > 0 {
		out.dir.pending = make(map[string]*memPending, len(n.dir.pending))
		for name, p := range n.dir.pending {
			q := &memPending{synced: c.node(p.synced), ops: make([]*memOp, len(p.ops))}
			for i, op := range p.ops {
				q.ops[i] = c.op(op)
			}
			out.dir.pending[name] = q
		}
	}
	return out
}

func (c *cloner) op(op *memOp) *memOp {
	if op == nil {
		return nil
	}
	if have := c.ops[op]; have != nil {
		return have
	}
	out := &memOp{as: op.as, kept: op.kept}
	c.ops[op] = out
	out.node, out.with, out.in = c.node(op.node), c.op(op.with), c.node(op.in)
	return out
}

// A crasher turns a snapshot into what a power cut leaves of it. It walks names in order, so that one seed gives one result.
type crasher struct {
	rng  *rand.Rand
	keep int
	seen map[*memNode]bool
}

func (k *crasher) coin() bool { return k.rng.IntN(100) < k.keep }

// dir decides on the folder's names and then on what the survivors hold. Names are decided in the whole tree first, because
// a rename ties two folders together.
func (k *crasher) dir(root *memNode) {
	k.names(root, map[*memNode]bool{})
	k.settle(root, map[*memNode]bool{})
	k.contents(root)
}

// names decides which changes of names survive, without removing anything yet.
func (k *crasher) names(n *memNode, seen map[*memNode]bool) {
	if n == nil || n.dir == nil || seen[n] {
		return
	}
	seen[n] = true
	for _, name := range slices.Sorted(maps.Keys(n.dir.pending)) {
		for _, op := range n.dir.pending[name].ops {
			if !op.kept && !k.coin() {
				break
			}
			op.kept = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(n.dir.pending)) {
		p := n.dir.pending[name]
		k.names(p.synced, seen)
		for _, op := range p.ops {
			k.names(op.node, seen)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(n.dir.now)) {
		k.names(n.dir.now[name], seen)
	}
}

// settle gives every name what the surviving changes made of it.
func (k *crasher) settle(n *memNode, seen map[*memNode]bool) {
	if n == nil || n.dir == nil || seen[n] {
		return
	}
	seen[n] = true
	for name, p := range n.dir.pending {
		is := p.synced
		for _, op := range p.ops {
			if !op.kept || (op.with != nil && !op.with.kept) {
				break
			}
			is = op.node
		}
		if is == nil {
			delete(n.dir.now, name)
		} else {
			n.dir.now[name] = is
		}
	}
	n.dir.pending = nil
	for _, child := range n.dir.now {
		k.settle(child, seen)
	}
}

// contents decides on the bytes of the files that still have a name.
func (k *crasher) contents(n *memNode) {
	if k.seen[n] {
		return
	}
	k.seen[n] = true
	if n.dir != nil {
		for _, name := range slices.Sorted(maps.Keys(n.dir.now)) {
			k.contents(n.dir.now[name])
		}
		return
	}
	if len(n.data.dirty) == 0 && n.data.size == n.data.syncedSize {
		return
	}
	d := n.own()
	size := d.size
	if !k.coin() {
		size = d.syncedSize
		if grown := d.size - d.syncedSize; grown > 0 && k.coin() {
			size += k.rng.Int64N(grown)
		}
	}
	uncut := size > d.size // a truncation is lost as a whole: what it took away is back
	for _, i := range slices.Sorted(maps.Keys(d.dirty)) {
		if k.coin() && !(uncut && int64(i) >= d.size/memPage) {
			continue
		}
		for len(d.pages) <= i {
			d.pages = append(d.pages, nil)
		}
		d.pages[i] = d.dirty[i]
	}
	d.dirty = nil
	d.cut(size)
	d.sync()
}

// cut sets the length after a crash: pages may hold more than it, or less.
func (d *memData) cut(size int64) {
	d.size = max(size, int64(len(d.pages))*memPage)
	d.truncate(size)
}
