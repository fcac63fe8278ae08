package memory

import (
	"slices"

	"github.com/holdfast-backup/holdfast"
)

// A State is all that a Medium keeps, as plain data: for tests that put a memory pool's medium into files.
type State struct {
	ID       holdfast.PoolID
	Domain   holdfast.Domain
	Chunking holdfast.Chunking
	Groups   []holdfast.Group
	Sets     []SetState
}

// A SetState is a committed set: its canonical manifest and its complete maps.
type SetState struct {
	Manifest []byte
	Maps     map[holdfast.DiskID][]holdfast.Ref
}

// State returns the medium's state at this instant. The payloads and maps in it are shared and must not be changed.
func (m *Medium) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := State{ID: m.id, Domain: m.domain, Chunking: m.chunking}
	for g := range m.groups {
		s.Groups = append(s.Groups, g.Group)
	}
	for _, id := range sorted(m.sets) {
		s.Sets = append(s.Sets, SetState{m.sets[id].manifest, m.sets[id].maps})
	}
	return s
}

// FromState returns a medium with a state. The error is Invalid for one that cannot have been a medium's.
func FromState(s State) (*Medium, error) {
	m, err := NewMedium(s.ID, s.Chunking)
	if err != nil {
		return nil, err
	}
	m.domain = s.Domain
	for i := range s.Groups {
		if err := s.Groups[i].Check(); err != nil {
			return nil, err
		}
		m.put(&s.Groups[i])
	}
	for _, set := range s.Sets {
		d, err := holdfast.UnmarshalManifest(set.Manifest)
		if err != nil {
			return nil, err
		}
		r := &record{manifest: slices.Clone(set.Manifest), maps: map[holdfast.DiskID][]holdfast.Ref{}}
		for _, disk := range d.Disks {
			r.maps[disk.ID] = set.Maps[disk.ID]
		}
		need := map[holdfast.Digest]bool{}
		r.need(need)
		for k := range need {
			if _, ok := m.where[k]; !ok {
				return nil, holdfast.Errorf(holdfast.Invalid, "make memory pool", "set %s needs chunk %s, which is not there", d.ID, k)
			}
		}
		m.sets[d.ID] = r
	}
	return m, nil
}
