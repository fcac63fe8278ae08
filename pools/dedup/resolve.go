package dedup

import (
	"cmp"
	"context"
	"slices"

	"github.com/holdfast-backup/holdfast"
)

// A hit is where a chunk was found.
type hit struct {
	c       *cont // nil: not found
	ordinal uint32
	chunk   chunkEntry
	second  bool // found only among condemned chunks
}

// purpose says what a chunk is looked up for.
type purpose uint8

const (
	forReuse   purpose = iota // only chunks that may be answered as present
	forReading                // condemned ones too, if there is no other copy: their bytes are there
	forPlacing                // only chunks that the resolver's session put or pinned
)

// A resolver looks up chunks in batches without allocating, once its buffers have grown. It holds the containers of its last batch,
// so that they are not removed, until release. Not safe for concurrent use.
type resolver struct {
	p     *Pool
	s     *session // for forPlacing
	hits  []hit    // by position in the batch
	cands []candidate
	locs  []loc
	held  []*cont

	relisted bool   // the store was asked for containers that an earlier listing left out
	touched  uint64 // keeps touches of the index from being optimised away
}

type candidate struct {
	loc    loc
	i      uint32 // position in the batch
	second bool
	c      *cont
}

// resolve finds a batch of digests. Fingerprints choose the candidates, the full digests in the containers' footers decide.
// Candidates are visited container by container. A container whose footer cannot be read fails the call only when reading is its purpose: for
// reuse its chunks are simply not there. What is to be read and not there may lie in a container that the listing left out when the pool
// was opened: patient pools list once more before they give up.
func (r *resolver) resolve(ctx context.Context, ds []holdfast.Digest, why purpose) error {
	err := r.look(ctx, ds, why)
	if why != forReading || !r.p.patient || r.relisted || !r.lacks(ds) {
		return err
	}
	r.relisted = true
	if n, lerr := r.p.relist(ctx); n == 0 || lerr != nil {
		return err
	}
	return r.look(ctx, ds, why)
}

// lacks reports whether a chunk of the last batch was not found.
func (r *resolver) lacks(ds []holdfast.Digest) bool {
	for i := range ds {
		if r.hits[i].c == nil && !ds[i].IsZero() {
			return true
		}
	}
	return false
}

// look is resolve with what is known.
func (r *resolver) look(ctx context.Context, ds []holdfast.Digest, why purpose) error {
	r.release()
	r.hits = slices.Grow(r.hits[:0], len(ds))[:len(ds)]
	clear(r.hits)
	r.gather(ds, why)
	var failed error
	for at := 0; at < len(r.cands); {
		c := r.cands[at].c
		end := at + 1
		for end < len(r.cands) && r.cands[end].c == c {
			end++
		}
		f, err := r.p.loadFooter(ctx, c)
		if err != nil && failed == nil {
			failed = err
		}
		for _, k := range r.cands[at:end] {
			h := &r.hits[k.i]
			if err != nil || h.c != nil && (!h.second || k.second) {
				continue
			}
			if e := &f.Chunks[k.loc.ordinal()]; e.Digest == ds[k.i] {
				*h = hit{c: c, ordinal: k.loc.ordinal(), chunk: *e, second: k.second}
			}
		}
		at = end
	}
	if failed == nil || why == forReuse {
		return nil
	}
	for i := range ds {
		if r.hits[i].c == nil && !ds[i].IsZero() {
			return failed
		}
	}
	return nil
}

// gather collects the candidates of a batch and holds their containers.
func (r *resolver) gather(ds []holdfast.Digest, why purpose) {
	r.cands = r.cands[:0]
	p := r.p
	p.mu.RLock()
	defer p.mu.RUnlock()
	if why == forPlacing {
		r.s.pinMu.Lock()
		defer r.s.pinMu.Unlock()
	}
	for i := range ds {
		if i%ahead == 0 {
			for k := range ds[i:min(i+ahead, len(ds))] {
				r.touched ^= p.index.touch(fingerprint(&ds[i+k]))
			}
		}
		r.locs = p.index.appendLocs(r.locs[:0], fingerprint(&ds[i]))
		for _, l := range r.locs {
			c := p.slots[l.slot()]
			if c == nil {
				continue // being removed
			}
			dead := c.dead.get(l.ordinal())
			if why == forPlacing {
				if c.owner != r.s && !r.s.pins[l.slot()].get(l.ordinal()) {
					continue
				}
			} else if c.bad.get(l.ordinal()) || dead && why == forReuse {
				continue
			}
			r.cands = append(r.cands, candidate{loc: l, i: uint32(i), second: dead, c: c})
		}
	}
	slices.SortFunc(r.cands, func(a, b candidate) int { return cmp.Compare(a.loc, b.loc) })
	for i, k := range r.cands {
		if i == 0 || k.c != r.cands[i-1].c {
			k.c.refs.Add(1)
			r.held = append(r.held, k.c)
		}
	}
}

// release gives up the containers that are held.
func (r *resolver) release() {
	for _, c := range r.held {
		r.p.drop(c)
	}
	clear(r.held)
	r.held = r.held[:0]
}
