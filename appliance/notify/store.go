package notify

import (
	"maps"
	"sync"
)

// A Store keeps a Notifier's state: small values under short keys. Only one Notifier uses it at a time.
type Store interface {
	// Load calls yield with everything that is kept, in any order, and stops at its first error.
	Load(yield func(key string, value []byte) error) error
	// Apply makes all changes or none. They are durable when it returns nil.
	Apply(changes []Change) error
}

// A Change sets a key's value, or deletes the key where Value is nil.
type Change struct {
	Key   string
	Value []byte
}

// Memory is a Store that keeps its values for as long as the process lives.
type Memory struct {
	mu     sync.Mutex
	values map[string][]byte
}

// NewMemory returns an empty Memory.
func NewMemory() *Memory { return &Memory{values: map[string][]byte{}} }

// Load implements Store.
func (m *Memory) Load(yield func(key string, value []byte) error) error {
	m.mu.Lock()
	values := maps.Clone(m.values)
	m.mu.Unlock()
	for k, v := range values {
		if err := yield(k, v); err != nil {
			return err
		}
	}
	return nil
}

// Apply implements Store.
func (m *Memory) Apply(changes []Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range changes {
		if c.Value == nil {
			delete(m.values, c.Key)
		} else {
			m.values[c.Key] = append([]byte{}, c.Value...)
		}
	}
	return nil
}
