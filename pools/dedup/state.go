package dedup

import (
	"encoding/binary"
	"fmt"
	"path"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/kv"
)

// A state is the pool's rebuildable memory in the kv folder (in the pool's folder, or on the appliance's own disk): what each container holds, and which chunks are condemned or damaged.
// It may be lost, old, or fail while it is used, and the pool goes on without it:
//   - a container it does not know is read from its footer; one it knows and the medium does not have is forgotten;
//   - a condemned mark that is lost makes a dead chunk live again until the next Collect: its bytes are still there, or its container
//     is gone and the chunk with it;
//   - a damage mark that is lost is found again by the next read or Verify.
//
// Safe for concurrent use.
type state struct {
	mu sync.Mutex
	db *kv.DB // nil: works without
}

const (
	indexDir     = "index"
	stateVersion = 1
	keyContainer = 'c' // + id: size, plain, fingerprints
	keyMarks     = 'm' // + id: condemned and damaged chunks
	keySet       = 's' // + set's id: the set was there
)

// openState opens the kv folder. A store that does not open is removed and begun anew; where that fails too, the pool works without.
func openState(f fsys.FS, dir string, l holdfast.Listener) *state {
	if f == nil {
		return &state{}
	}
	o := kv.Options{MemtableBytes: 4 << 20, CacheBytes: 4 << 20, Incompressible: true}
	db, err := kv.Open(f, dir, o)
	if k := holdfast.KindOf(err); err != nil && k != holdfast.Busy && k != holdfast.NoSpace {
		l.Emit(holdfast.Event{Type: "index-rebuilt", Severity: holdfast.Warning, Text: fmt.Sprintf("the pool's index could not be opened and is rebuilt from the containers: %v", err)})
		if err = clearFolder(f, dir); err == nil {
			db, err = kv.Open(f, dir, o)
		}
	}
	if err != nil {
		return &state{}
	}
	return &state{db: db}
}

// clearFolder removes the files of a folder and its folders.
func clearFolder(f fsys.FS, dir string) error {
	names, err := f.List(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		full := path.Join(dir, n)
		st, err := f.Stat(full)
		if err == nil && st.IsDir() {
			err = clearFolder(f, full)
		}
		if err == nil {
			err = f.Remove(full)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *state) store() *kv.DB {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db
}

func stateKey(kind byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{kind}, id)
}

// load yields every container known, in order of ids. What does not decode is skipped: its footer will be read.
func (s *state) load(yield func(*contRecord)) {
	db := s.store()
	if db == nil {
		return
	}
	marks := map[uint64][]byte{}
	for it, err := range db.Scan([]byte{keyMarks}, []byte{keyMarks + 1}) {
		if err == nil && len(it.Key) == 9 {
			marks[binary.BigEndian.Uint64(it.Key[1:])] = append([]byte(nil), it.Value...)
		}
	}
	for it, err := range db.Scan([]byte{keyContainer}, []byte{keyContainer + 1}) {
		if err != nil || len(it.Key) != 9 {
			continue
		}
		r := &contRecord{id: binary.BigEndian.Uint64(it.Key[1:])}
		if r.decode(it.Value) {
			r.decodeMarks(marks[r.id])
			yield(r)
		}
	}
}

func (r *contRecord) encode() []byte {
	b := make([]byte, 0, 17+8*len(r.prints))
	b = append(b, stateVersion)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.size))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.plain))
	for _, fp := range r.prints {
		b = binary.LittleEndian.AppendUint64(b, fp)
	}
	return b
}

func (r *contRecord) decode(b []byte) bool {
	if len(b) < 17 || b[0] != stateVersion || (len(b)-17)%8 != 0 || len(b) > 17+8<<16 {
		return false
	}
	r.size, r.plain = int64(binary.LittleEndian.Uint64(b[1:])), int64(binary.LittleEndian.Uint64(b[9:]))
	r.prints = make([]uint64, (len(b)-17)/8)
	for i := range r.prints {
		r.prints[i] = max(binary.LittleEndian.Uint64(b[17+8*i:]), 1)
	}
	return true
}

func (r *contRecord) decodeMarks(b []byte) {
	words := (len(r.prints) + 63) / 64
	if len(b) != 1+16*words || b[0] != stateVersion {
		return
	}
	r.dead, r.bad = newBitmap(uint32(len(r.prints))), newBitmap(uint32(len(r.prints)))
	for i := range words {
		r.dead[i] = binary.LittleEndian.Uint64(b[1+8*i:])
		r.bad[i] = binary.LittleEndian.Uint64(b[1+8*(words+i):])
	}
}

func encodeMarks(n uint32, dead, bad bitmap) []byte {
	words := int(n+63) / 64
	b := make([]byte, 1+16*words)
	b[0] = stateVersion
	for i := range dead {
		binary.LittleEndian.PutUint64(b[1+8*i:], dead[i])
	}
	for i := range bad {
		binary.LittleEndian.PutUint64(b[1+8*(words+i):], bad[i])
	}
	return b
}

// put remembers a sealed container, without sync: what is lost is read from footers again.
func (s *state) put(r *contRecord) {
	if db := s.store(); db != nil {
		b := db.Batch()
		b.Set(stateKey(keyContainer, r.id), r.encode())
		_ = b.Commit(false) // rebuildable
	}
}

// drop forgets a container.
func (s *state) drop(id uint64) {
	if db := s.store(); db != nil {
		b := db.Batch()
		b.Delete(stateKey(keyContainer, id))
		b.Delete(stateKey(keyMarks, id))
		_ = b.Commit(false) // rebuildable
	}
}

// putSet remembers that a set is committed, and dropSet that it is not there: a listing that is behind is noticed by it.
func (s *state) putSet(id holdfast.SetID) {
	if db := s.store(); db != nil {
		b := db.Batch()
		b.Set(append([]byte{keySet}, id.ID[:]...), []byte{stateVersion})
		_ = b.Commit(false) // rebuildable
	}
}

func (s *state) dropSet(id holdfast.SetID) {
	if db := s.store(); db != nil {
		b := db.Batch()
		b.Delete(append([]byte{keySet}, id.ID[:]...))
		_ = b.Commit(false) // rebuildable
	}
}

// sets returns the sets that are remembered.
func (s *state) sets() map[holdfast.SetID]bool {
	out := map[holdfast.SetID]bool{}
	db := s.store()
	if db == nil {
		return out
	}
	for it, err := range db.Scan([]byte{keySet}, []byte{keySet + 1}) {
		if err == nil && len(it.Key) == 17 {
			out[holdfast.SetID{ID: holdfast.ID(it.Key[1:])}] = true
		}
	}
	return out
}

// A markUpdate is what a container's marks become; both nil: none.
type markUpdate struct {
	id        uint64
	n         uint32
	dead, bad bitmap
}

// mark makes marks durable. A state that has failed is no error: the marks are a help, not the truth (see state).
func (s *state) mark(updates []markUpdate) error {
	db := s.store()
	if db == nil || len(updates) == 0 {
		return nil
	}
	for len(updates) > 0 {
		b := db.Batch()
		for len(updates) > 0 && b.Len() < 4<<20 {
			u := updates[0]
			updates = updates[1:]
			if u.dead == nil && u.bad == nil {
				b.Delete(stateKey(keyMarks, u.id))
				continue
			}
			b.Set(stateKey(keyMarks, u.id), encodeMarks(u.n, u.dead, u.bad))
		}
		if err := b.Commit(true); err != nil {
			return err
		}
	}
	return nil
}

// Close implements io.Closer.
func (s *state) Close() error {
	s.mu.Lock()
	db := s.db
	s.db = nil
	s.mu.Unlock()
	if db == nil {
		return nil
	}
	return db.Close()
}
