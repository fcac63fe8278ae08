package dedup

import (
	"context"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
)

// markers is how many goroutines walk a set's recipes while marking. They wait for memory more than for anything else, and two of them fill two
// processors; more would only take them from backups.
const markers = 2

// A walkItem is a subtree to be marked.
type walkItem struct {
	d    holdfast.Digest
	span uint8
	tree int // which of the walk's
}

// A walk marks recipes with several goroutines, and is over when all of it is marked.
type walk struct {
	m    *marking
	mu   sync.Mutex // leaf
	cond *sync.Cond // todo, busy or err changed
	todo []walkItem // the last is taken first, so that it stays short
	busy int        // markers at an item
	err  error      // the first one; it ends the walk
	at   int        // tree of err
}

// trees marks recipes. With an error comes the number of the recipe where it happened.
func (m *marking) trees(ctx context.Context, ts []diskTree) (int, error) {
	w := &walk{m: m}
	w.cond = sync.NewCond(&w.mu)
	for i, t := range slices.Backward(ts) {
		if !t.root.IsZero() {
			w.todo = append(w.todo, walkItem{d: t.root, span: rootSpan(t.size), tree: i})
		}
	}
	if len(w.todo) == 0 {
		return 0, nil
	}
	var others sync.WaitGroup
	for range markers - 1 {
		others.Go(func() { w.run(ctx) })
	}
	w.run(ctx)
	others.Wait()
	return w.at, w.err
}

// take returns the next item; false when there will be none.
func (w *walk) take() (it walkItem, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.err == nil && len(w.todo) == 0 && w.busy > 0 {
		w.cond.Wait()
	}
	if w.err != nil || len(w.todo) == 0 {
		return it, false
	}
	it = w.todo[len(w.todo)-1]
	w.todo = w.todo[:len(w.todo)-1]
	w.busy++
	return it, true
}

// end notes that an item is marked but for its children.
func (w *walk) end(it walkItem, children []walkItem, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy--
	w.todo = append(w.todo, children...)
	if err != nil && w.err == nil {
		w.err, w.at = err, it.tree
	}
	w.cond.Broadcast()
}

func (w *walk) run(ctx context.Context) {
	mk := marker{m: w.m}
	var children []walkItem
	for {
		it, ok := w.take()
		if !ok {
			return
		}
		children = children[:0]
		err := ctx.Err()
		if err == nil {
			children, err = mk.node(ctx, it, children)
		}
		w.end(it, children, err)
	}
}

// A marker marks nodes and what they name, one after the other.
type marker struct {
	m       *marking
	locs    []loc
	touched uint64 // keeps touches of the index from being optimised away
}

// node marks a node and its chunks, and appends its children.
func (mk *marker) node(ctx context.Context, it walkItem, children []walkItem) ([]walkItem, error) {
	m := mk.m
	at, candidate, err := m.nodeLoc(ctx, &it.d)
	if err != nil || candidate && !m.first(at) {
		return children, err
	}
	n, err := m.p.loadNode(ctx, it.d, it.span)
	if err != nil {
		return children, err
	}
	for _, c := range slices.Backward(n.children) { // the last is taken first
		if !c.IsZero() {
			children = append(children, walkItem{d: c, span: n.child, tree: it.tree})
		}
	}
	return children, mk.chunks(ctx, n.refs)
}

// first reports whether nobody has walked a node before, and notes that somebody does.
func (m *marking) first(at loc) bool {
	m.walkedMu.Lock()
	defer m.walkedMu.Unlock()
	b := m.walked[at.slot()]
	if b == nil {
		b = newBitmap(m.conts[at.slot()].n)
		m.walked[at.slot()] = b
	}
	if b.get(at.ordinal()) {
		return false
	}
	b.set(at.ordinal())
	return true
}

// chunks marks the chunks that refs name. A fingerprint that is there once is marked without looking at the full digest: marking one too
// many is harmless, and it saves reading every footer.
func (mk *marker) chunks(ctx context.Context, refs []holdfast.Ref) error {
	m, p := mk.m, mk.m.p
	var several []holdfast.Digest
	var last holdfast.Digest
	p.mu.RLock()
	for i := range refs {
		if i%ahead == 0 {
			for k := range refs[i:min(i+ahead, len(refs))] {
				mk.touched ^= p.index.touch(fingerprint(&refs[i+k].Digest))
			}
		}
		d := &refs[i].Digest
		if *d == last {
			continue
		}
		last = *d
		mk.locs = p.index.appendLocs(mk.locs[:0], fingerprint(d))
		mk.locs = slices.DeleteFunc(mk.locs, func(l loc) bool { return p.slots[l.slot()] == nil })
		switch {
		case len(mk.locs) == 0:
			m.lose(d)
		case len(mk.locs) > 1:
			several = append(several, *d)
		default:
			m.set(mk.locs[0])
		}
	}
	p.mu.RUnlock()
	for i := range several {
		_, ok, err := m.choose(ctx, &several[i])
		if err != nil {
			return err
		}
		if !ok {
			m.lose(&several[i])
		}
	}
	return nil
}
