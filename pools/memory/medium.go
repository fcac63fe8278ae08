package memory

import (
	"crypto/rand"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

// Kind is the driver's name.
const Kind = "memory"

// mediumSize is what Usage claims a medium could hold: an arbitrary number that no test fills.
const mediumSize = 1 << 40

// A Medium is what a memory pool keeps. It outlives the Pools that have it open, one at a time.
type Medium struct {
	id       holdfast.PoolID
	domain   holdfast.Domain
	chunking holdfast.Chunking

	mu     sync.Mutex
	user   *Pool // who has it open; a pool that is not the user is closed or killed
	where  map[holdfast.Digest]spot
	groups map[*group]bool
	sets   map[holdfast.SetID]*record
}

// A group is a compression group at rest. Never changed, except by Flip.
type group struct{ holdfast.Group }

// A spot says where a chunk rests: piece number i of the group, from byte at of its plaintext on.
type spot struct {
	g  *group
	i  int
	at uint32
}

// A record is a committed set. Never changed. Maps are complete: nothing in them depends on another record.
type record struct {
	manifest []byte // canonical JSON
	maps     map[holdfast.DiskID][]holdfast.Ref
}

// NewMedium returns an empty medium. The error is Invalid for a zero id or an unknown chunking.
func NewMedium(id holdfast.PoolID, c holdfast.Chunking) (*Medium, error) {
	if id.IsZero() {
		return nil, holdfast.Errorf(holdfast.Invalid, "make memory pool", "no pool id")
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	m := &Medium{
		id: id, chunking: c,
		where:  map[holdfast.Digest]spot{},
		groups: map[*group]bool{},
		sets:   map[holdfast.SetID]*record{},
	}
	_, _ = rand.Read(m.domain.Key[:]) // never fails since Go 1.24
	return m, nil
}

// Open opens the medium, or fails with Busy while another Pool has it open.
func (m *Medium) Open() (*Pool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.user != nil {
		return nil, holdfast.Errorf(holdfast.Busy, "open memory pool", "pool %s is open already", m.id)
	}
	m.user = &Pool{medium: m, sessions: map[*session]bool{}, readers: map[*set]bool{}}
	return m.user, nil
}

// Kill takes the medium from the Pool that has it open, as a crash would: its sessions are lost, and whatever is done with
// it or its parts from now on is Offline.
func (m *Medium) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.user = nil
}

// Flip changes one stored byte of the group that holds a chunk, as a bad medium would, and reports whether there is one.
// It is for tests of what notices.
func (m *Medium) Flip(d holdfast.Digest) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.where[d]
	if !ok {
		return false
	}
	p := slices.Clone(s.g.Payload) // readers may still hold the old bytes
	at := int(s.at)
	if s.g.Codec != holdfast.Plain {
		at = len(p) / 2
	}
	p[at] ^= 0x40
	s.g.Payload = p
	return true
}

// Digests lists the chunks that the sets need, in no order.
func (m *Medium) Digests() []holdfast.Digest {
	m.mu.Lock()
	defer m.mu.Unlock()
	need := map[holdfast.Digest]bool{}
	for _, r := range m.sets {
		r.need(need)
	}
	out := make([]holdfast.Digest, 0, len(need))
	for d := range need {
		out = append(out, d)
	}
	return out
}

// need adds the digests that the record's maps name.
func (r *record) need(into map[holdfast.Digest]bool) {
	for _, refs := range r.maps {
		for _, ref := range refs {
			if !ref.Digest.IsZero() {
				into[ref.Digest] = true
			}
		}
	}
}

// decoded returns the record's manifest. What was encoded here decodes, so an error is a broken invariant.
func (r *record) decoded() holdfast.Manifest {
	m, err := holdfast.UnmarshalManifest(r.manifest)
	if err != nil {
		panic(err)
	}
	return m
}

// live returns the digests that must be kept: those of committed sets, of sets open for reading, of parents that
// sessions inherit from, and those pinned. The caller holds mu.
func (m *Medium) live() map[holdfast.Digest]bool {
	need := map[holdfast.Digest]bool{}
	for _, r := range m.sets {
		r.need(need)
	}
	if m.user == nil {
		return need
	}
	for s := range m.user.readers {
		s.rec.need(need)
	}
	for s := range m.user.sessions {
		if s.parent != nil {
			s.parent.need(need)
		}
		for d := range s.pins {
			need[d] = true
		}
	}
	return need
}

// dead returns the groups that hold no live chunk. A chunk counts only where it is found: a second copy of it in another
// group is dead weight. The caller holds mu.
func (m *Medium) dead(live map[holdfast.Digest]bool) []*group {
	used := make(map[*group]bool, len(m.groups))
	for d := range live {
		if s, ok := m.where[d]; ok {
			used[s.g] = true
		}
	}
	var out []*group
	for g := range m.groups {
		if !used[g] {
			out = append(out, g)
		}
	}
	return out
}

// put stores a group unless every chunk of it is there, and returns the bytes it took. The caller holds mu.
func (m *Medium) put(g *holdfast.Group) int64 {
	kept := &group{holdfast.Group{Codec: g.Codec, Chunks: slices.Clone(g.Chunks)}}
	at, fresh := uint32(0), false
	for i, c := range g.Chunks {
		if _, ok := m.where[c.Digest]; !ok {
			m.where[c.Digest] = spot{kept, i, at}
			fresh = true
		}
		at += c.Len
	}
	if !fresh {
		return 0
	}
	kept.Payload = slices.Clone(g.Payload)
	m.groups[kept] = true
	return int64(len(kept.Payload))
}

func (m *Medium) traits() pools.Traits {
	return pools.Traits{
		Kind: Kind, ID: m.id, Order: pools.ByOffset, Dedup: true, Chunking: m.chunking, Domain: m.domain,
	}
}
