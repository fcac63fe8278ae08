package kv

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// A scheduler lets one compaction of a store run at a time, and none once the store has failed: one that meets the same damage
// again and again would burn a processor.
type scheduler struct {
	d  *DB
	db pebble.DBForCompaction // set by Register, before anything else is called

	mu       sync.Mutex // never held while pebble is called, which has its own locks held when it calls in
	busy     bool       // a compaction runs, or granting is under way
	granting bool
	missed   bool // permission was refused since the last time pebble was asked for a waiting compaction
	gone     bool
	idle     *sync.Cond // granting ended
}

func newScheduler(d *DB) *scheduler {
	s := &scheduler{d: d}
	s.idle = sync.NewCond(&s.mu)
	return s
}

// Register implements pebble.CompactionScheduler.
func (s *scheduler) Register(_ int, db pebble.DBForCompaction) { s.db = db }

// Unregister implements pebble.CompactionScheduler.
func (s *scheduler) Unregister() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	for s.granting {
		s.idle.Wait()
	}
}

// TrySchedule implements pebble.CompactionScheduler.
func (s *scheduler) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy || s.gone || s.d.Failed() != nil {
		s.missed = true
		return false, nil
	}
	s.busy = true
	return true, s
}

// UpdateGetAllowedWithoutPermission implements pebble.CompactionScheduler.
func (s *scheduler) UpdateGetAllowedWithoutPermission() {}

// Started implements pebble.CompactionGrantHandle.
func (s *scheduler) Started() {}

// MeasureCPU implements pebble.CompactionGrantHandle.
func (s *scheduler) MeasureCPU(pebble.CompactionGoroutineKind) {}

// CumulativeStats implements pebble.CompactionGrantHandle.
func (s *scheduler) CumulativeStats(pebble.CompactionGrantHandleStats) {}

// Done implements pebble.CompactionGrantHandle: it hands the permission on to a compaction that waits.
func (s *scheduler) Done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.granting = true
	for !s.gone && s.d.Failed() == nil {
		s.missed = false
		s.mu.Unlock()
		waiting, _ := s.db.GetWaitingCompaction()
		granted := waiting && s.db.Schedule(s)
		s.mu.Lock()
		if granted {
			s.granting = false
			s.idle.Broadcast()
			return
		}
		if !s.missed {
			break
		}
	}
	s.busy, s.granting = false, false
	s.idle.Broadcast()
}
