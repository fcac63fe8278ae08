package dedup

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
)

// A marking is the first half of a Collect: which chunks of which containers are needed. docs/design/0003-gc.md argues why it is right.
//
// Everything that begins to need something while it runs says so: leases add their roots to queue, sessions that end leave their
// pins and their set's roots. Condemning happens under the pool's lock, and only when queue is empty.
type marking struct {
	p     *Pool
	conts []*cont // candidates by slot; nil: not a candidate, its chunks stay whatever is marked

	live []bitmap       // by slot; written by the markers, atomically
	ripe map[*cont]bool // no chunk of theirs was live in an earlier Collect already
	lost atomic.Int64   // chunks that sets need and the pool does not hold

	walkedMu sync.Mutex
	walked   []bitmap // by slot: nodes whose subtrees are marked, or being marked: whoever condemns waits for the markers. Guarded by walkedMu

	queue []diskTree          // recipes to be walked. Guarded by Pool.mu
	pins  []map[uint32]bitmap // of sessions that ended since. Guarded by Pool.mu
}

// startMarking begins an epoch: from here on new leases and ended sessions are noted.
func (p *Pool) startMarking() *marking {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &marking{p: p, conts: make([]*cont, len(p.slots)), live: make([]bitmap, len(p.slots)), walked: make([]bitmap, len(p.slots)), ripe: map[*cont]bool{}}
	for _, c := range p.byID {
		if c.owner == nil {
			m.conts[c.slot] = c
			m.live[c.slot] = newBitmap(c.n)
			m.ripe[c] = c.lifeless()
		}
	}
	for l := range p.leases {
		m.queue = append(m.queue, l.roots...)
	}
	p.mark = m
	return m
}

func (p *Pool) stopMarking() {
	p.mu.Lock()
	p.mark = nil
	p.mu.Unlock()
}

// add notes recipes that somebody began to need. Pool.mu is held for writing.
func (m *marking) add(roots []diskTree) { m.queue = append(m.queue, roots...) }

// ended notes what a session relied on; rec is its set, or nil. Pool.mu is held for writing.
func (m *marking) ended(s *session, rec *setRecord) {
	s.pinMu.Lock()
	m.pins = append(m.pins, s.pins)
	s.pinMu.Unlock()
	if rec == nil {
		return
	}
	for i, d := range rec.disks {
		m.queue = append(m.queue, diskTree{d.root, rec.manifest.Disks[i].Size})
	}
}

// sets marks what every set on the medium needs, the newest first. A record that cannot be read, or a set that was committed and
// is not listed, ends the Collect: it fails closed.
func (m *marking) sets(ctx context.Context, step func()) error {
	p := m.p
	before := p.knownSets()
	names, err := p.med.List(ctx, setsDir)
	if err != nil {
		return err
	}
	listed := make(map[holdfast.SetID]bool, len(names))
	for _, n := range names {
		id, ok := setOfName(n)
		if !ok {
			return holdfast.Errorf(holdfast.Corrupt, "collect", "%q is no name of a set record", n).Advise("move it away; nothing was removed")
		}
		listed[id] = true
	}
	after := p.knownSets()
	for id := range before {
		if !after[id] || listed[id] {
			continue
		}
		there, err := p.med.Exists(ctx, setName(id)) // one listing proves nothing
		if err != nil {
			return err
		}
		if there {
			names = append(names, setName(id))
			continue
		}
		if p.knownSets()[id] {
			return holdfast.Errorf(holdfast.Corrupt, "collect", "set %s was committed, but its record is not listed", id).
				Advise("look at the pool's disk; nothing was removed")
		}
	}
	for _, n := range slices.Backward(names) {
		id, _ := setOfName(n)
		r, err := p.loadSet(ctx, id)
		if holdfast.KindOf(err) == holdfast.NotExist && err != nil {
			continue // deleted meanwhile
		}
		if err != nil {
			return failClosed(err)
		}
		trees := make([]diskTree, len(r.disks))
		for i, d := range r.disks {
			trees[i] = diskTree{d.root, r.manifest.Disks[i].Size}
		}
		if i, err := m.trees(ctx, trees); err != nil {
			return holdfast.Errorf(holdfast.KindOf(err), "collect", "set %s, disk %s: %w", id, r.manifest.Disks[i].Name, failClosed(err))
		}
		step()
	}
	return nil
}

func failClosed(err error) error {
	return holdfast.Errorf(holdfast.KindOf(err), "collect", "%w", err).
		Advise("nothing was removed; verify the pool, and delete the damaged sets if they cannot be repaired")
}

func (p *Pool) knownSets() map[holdfast.SetID]bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	known := make(map[holdfast.SetID]bool, len(p.sets))
	for id := range p.sets {
		known[id] = true
	}
	return known
}

// lose notes that a set needs a chunk which is not there. The set is damaged already; no other chunk is in danger.
func (m *marking) lose(d *holdfast.Digest) {
	if m.lost.Add(1) == 1 {
		m.p.listener.Emit(holdfast.Event{Type: holdfast.EventChunkCorrupt, Severity: holdfast.Alarm,
			Text:   fmt.Sprintf("chunk %s, which a set needs, is not in the pool; verify the pool to learn which sets are damaged", d),
			Fields: map[string]string{"pool": m.p.sb.Pool.String(), "chunk": d.String()}})
	}
}

// set marks a chunk, if its container is a candidate.
func (m *marking) set(l loc) {
	if int(l.slot()) < len(m.live) && m.live[l.slot()] != nil {
		m.live[l.slot()].setAtomic(l.ordinal())
	}
}

func (m *marking) candidate(l loc) bool {
	return int(l.slot()) < len(m.live) && m.live[l.slot()] != nil
}

// choose marks one of several possible copies of a chunk: one that is marked already, else the newest good one, else any. Where a
// container is damaged, its candidate is marked as well; one that does not answer now may hold the chunk, so that is an error.
func (m *marking) choose(ctx context.Context, d *holdfast.Digest) (loc, bool, error) {
	type option struct {
		l     loc
		c     *cont
		worth int
	}
	var options []option
	p := m.p
	p.mu.RLock()
	for _, l := range p.index.appendLocs(nil, fingerprint(d)) {
		c := p.slots[l.slot()]
		if c == nil {
			continue
		}
		o := option{l: l, c: c}
		switch {
		case c.bad.get(l.ordinal()):
		case !m.candidate(l) || m.live[l.slot()].getAtomic(l.ordinal()):
			o.worth = 3
		case !c.dead.get(l.ordinal()):
			o.worth = 2
		default:
			o.worth = 1
		}
		options = append(options, o)
		c.refs.Add(1)
	}
	p.mu.RUnlock()
	defer func() {
		for _, o := range options {
			p.drop(o.c)
		}
	}()
	slices.SortFunc(options, func(a, b option) int {
		if a.worth != b.worth {
			return b.worth - a.worth
		}
		return int(int64(b.l>>16) - int64(a.l>>16))
	})
	for _, o := range options {
		f, err := p.loadFooter(ctx, o.c)
		if k := holdfast.KindOf(err); err != nil && k != holdfast.Corrupt && k != holdfast.NotExist {
			return 0, false, err
		}
		if err != nil {
			m.set(o.l)
			continue
		}
		if f.Chunks[o.l.ordinal()].Digest == *d {
			m.set(o.l)
			return o.l, true, nil
		}
	}
	return 0, false, nil
}

// nodeLoc marks a node's chunk and returns where it is. A node is always compared by its full digest: a missing one must be noticed.
func (m *marking) nodeLoc(ctx context.Context, d *holdfast.Digest) (loc, bool, error) {
	l, ok, err := m.choose(ctx, d)
	if err != nil {
		return 0, false, err
	}
	if !ok {
		return 0, false, holdfast.Errorf(holdfast.Corrupt, "collect", "recipe node %s is not in the pool", d)
	}
	return l, m.candidate(l), nil
}

// condemn walks what was added meanwhile and then, with everybody held up for a moment, condemns every chunk of the candidates
// that is neither marked nor pinned. It returns the changes of marks, to be made durable before anything is removed.
func (m *marking) condemn(ctx context.Context, dry bool) ([]markUpdate, tally, error) {
	p := m.p
	for {
		p.mu.Lock()
		more := m.queue
		m.queue = nil
		if len(more) == 0 {
			updates, t := m.condemnLocked(dry)
			p.mu.Unlock()
			return updates, t, nil
		}
		p.mu.Unlock()
		if _, err := m.trees(ctx, more); err != nil {
			return nil, tally{}, failClosed(err)
		}
	}
}

// A tally counts what a marking found.
type tally struct {
	live, dead int64
	freeable   int64 // bytes of containers without any live chunk
}

func (m *marking) condemnLocked(dry bool) ([]markUpdate, tally) {
	p := m.p
	pins := m.pins
	for s := range p.sessions {
		s.pinMu.Lock()
		defer s.pinMu.Unlock()
		pins = append(pins, s.pins)
	}
	var updates []markUpdate
	var t tally
	for slot, c := range m.conts {
		if c == nil || p.slots[slot] != c {
			continue
		}
		live := m.live[slot]
		for _, ps := range pins {
			live.or(ps[uint32(slot)])
		}
		n := live.count()
		t.live += int64(n)
		t.dead += int64(c.n) - int64(n)
		if n == 0 {
			t.freeable += c.size
		}
		dead := live.complement(c.n)
		if dry || slices.Equal(dead, c.dead) || c.dead == nil && int(c.n) == n {
			continue
		}
		c.dead = dead
		updates = append(updates, markUpdate{id: c.id, n: c.n, dead: slices.Clone(dead), bad: slices.Clone(c.bad)})
	}
	return updates, t
}
