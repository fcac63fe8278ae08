package dedup

import (
	"context"
	"maps"
	"slices"

	"github.com/holdfast-backup/holdfast"
)

// Objects returns the names of all objects in the store that a set needs: its record, the superblock and its copy, the keyring, and the containers of its
// recipes and chunks, shared ones included.
func (p *Pool) Objects(ctx context.Context, id holdfast.SetID) ([]string, error) {
	rec, l, err := p.leaseSet(ctx, id)
	if err != nil {
		return nil, err
	}
	defer p.endLease(l)
	names, err := p.containersOf(ctx, rec)
	if err != nil {
		return nil, err
	}
	return append(append(names, superblockName, superblockCopy, setName(id)), p.keyObjects()...), nil
}

// SetObject returns the name of a set's record in the store.
func SetObject(id holdfast.SetID) string { return setName(id) }

// containersOf returns the names of the containers that a set needs, sorted. The caller keeps them from being collected.
func (p *Pool) containersOf(ctx context.Context, rec *setRecord) ([]string, error) {
	w := needs{p: p, r: resolver{p: p}, conts: map[uint64]bool{}, seen: map[holdfast.Digest]bool{}}
	defer w.r.release()
	for i, d := range rec.disks {
		if d.root.IsZero() {
			continue
		}
		if err := w.node(ctx, d.root, rootSpan(rec.manifest.Disks[i].Size)); err != nil {
			return nil, err
		}
	}
	names := make([]string, 0, len(w.conts))
	for _, id := range slices.Sorted(maps.Keys(w.conts)) {
		names = append(names, contName(id))
	}
	return names, nil
}

// needs collects the containers of recipes.
type needs struct {
	p     *Pool
	r     resolver
	conts map[uint64]bool
	seen  map[holdfast.Digest]bool // nodes
}

func (w *needs) node(ctx context.Context, d holdfast.Digest, span uint8) error {
	if w.seen[d] {
		return nil
	}
	w.seen[d] = true
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.note(ctx, []holdfast.Digest{d}); err != nil {
		return err
	}
	n, err := w.p.loadNode(ctx, d, span)
	if err != nil {
		return err
	}
	for _, c := range n.children {
		if c.IsZero() {
			continue
		}
		if err := w.node(ctx, c, n.child); err != nil {
			return err
		}
	}
	return w.note(ctx, refDigests(n.refs))
}

func (w *needs) note(ctx context.Context, ds []holdfast.Digest) error {
	if err := w.r.resolve(ctx, ds, forReading); err != nil {
		return err
	}
	for i := range w.r.hits {
		c := w.r.hits[i].c
		if c == nil {
			return holdfast.Errorf(holdfast.Corrupt, "find a set's objects", "the pool does not hold chunk %s any more", ds[i])
		}
		w.conts[c.id] = true
	}
	return nil
}
