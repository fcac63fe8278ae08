package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools"
)

const (
	poolsFile    = "pools.json" // in the data folder: where the pools are, for the day the catalog is lost
	maxPoolsFile = 16 << 20
	retryOpen    = 5 * time.Second // a pool that could not be opened is tried again, but not more often
)

// shelf holds the open pools. A pool that cannot be opened is offline and tried again when it is asked for.
type shelf struct {
	drivers pools.Registry
	env     pools.Env
	state   string // folder for what pools may lose
	files   fsys.FS
	opened  func(ctx context.Context, id holdfast.PoolID, p pools.Pool) error // called once for each pool before it is used

	noting sync.Mutex // held while pools.json is changed

	mu    sync.Mutex
	slots map[holdfast.PoolID]*slot
}

// slot is one pool's place. Its turn is held while the pool is being opened.
type slot struct {
	rec   catalog.Pool
	turn  sync.Mutex
	pool  pools.Pool // nil while it is not open
	err   error      // why it is not
	tried time.Time
	gone  bool // it was removed; whoever still has the slot must not open it
}

func newShelf(drivers pools.Registry, files fsys.FS, data string, l holdfast.Listener, c clock.Clock) *shelf {
	return &shelf{drivers: drivers, files: files, state: filepath.Join(data, "state"), slots: map[holdfast.PoolID]*slot{},
		env: pools.Env{Clock: c, Listener: l}}
}

// add puts a pool on the shelf without opening it.
func (s *shelf) add(rec catalog.Pool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slots[rec.ID] == nil {
		s.slots[rec.ID] = &slot{rec: rec}
	}
}

// remove closes a pool and takes it off the shelf. If it cannot be closed it stays, as it was.
func (s *shelf) remove(id holdfast.PoolID) error {
	s.mu.Lock()
	sl := s.slots[id]
	s.mu.Unlock()
	if sl == nil {
		return nil
	}
	sl.turn.Lock()
	defer sl.turn.Unlock()
	if sl.pool != nil {
		if err := sl.pool.Close(); err != nil {
			return err
		}
	}
	sl.pool, sl.err, sl.gone = nil, holdfast.Errorf(holdfast.NotExist, "open pool", "pool %s was removed", sl.rec.Name), true
	s.mu.Lock()
	delete(s.slots, id)
	s.mu.Unlock()
	return nil
}

// change gives a pool another record. Where the config is another one too and the pool is not to be kept open, it is closed, and opened
// with the new config by whoever asks for it next.
func (s *shelf) change(rec catalog.Pool, reopen bool) error {
	s.mu.Lock()
	sl := s.slots[rec.ID]
	s.mu.Unlock()
	if sl == nil {
		return holdfast.Errorf(holdfast.NotExist, "change pool", "there is no pool %s", rec.ID)
	}
	sl.turn.Lock()
	defer sl.turn.Unlock()
	if reopen {
		if sl.pool != nil {
			if err := sl.pool.Close(); err != nil {
				return err
			}
		}
		sl.pool, sl.err, sl.tried = nil, nil, time.Time{}
	}
	sl.rec = rec
	return nil
}

// Pool returns the open pool. Offline if it cannot be opened.
func (s *shelf) Pool(ctx context.Context, id holdfast.PoolID) (pools.Pool, error) {
	s.mu.Lock()
	sl := s.slots[id]
	s.mu.Unlock()
	if sl == nil {
		return nil, holdfast.Errorf(holdfast.NotExist, "open pool", "there is no pool %s", id)
	}
	sl.turn.Lock()
	defer sl.turn.Unlock()
	now := s.env.Clock.Now()
	if sl.gone {
		return nil, sl.err
	}
	if sl.pool == nil && (sl.tried.IsZero() || now.Sub(sl.tried) >= retryOpen) {
		sl.tried = now
		sl.pool, sl.err = s.open(ctx, sl.rec)
	}
	if sl.err != nil {
		return nil, &holdfast.Error{Op: "open pool " + sl.rec.Name, Kind: holdfast.Offline, Hint: holdfast.HintOf(sl.err), Err: sl.err}
	}
	return sl.pool, nil
}

func (s *shelf) open(ctx context.Context, rec catalog.Pool) (pools.Pool, error) {
	d, err := s.drivers.Find(rec.Kind)
	if err != nil {
		return nil, err
	}
	p, err := d.Open(ctx, s.envOf(rec.ID), rec.ID, rec.Config)
	if err != nil {
		return nil, err
	}
	if s.opened != nil {
		if err := s.opened(ctx, rec.ID, p); err != nil {
			return nil, errors.Join(err, p.Close())
		}
	}
	return p, nil
}

func (s *shelf) envOf(id holdfast.PoolID) pools.Env {
	env := s.env
	env.StateDir = filepath.Join(s.state, id.String())
	return env
}

// dropState removes what a pool kept on the appliance's own disk.
func (s *shelf) dropState(id holdfast.PoolID) error {
	if err := os.RemoveAll(s.envOf(id).StateDir); err != nil {
		return holdfast.Errorf(holdfast.Internal, "remove state", "%w", err)
	}
	return nil
}

// openAll opens every pool, all at once, and waits for them until late.
func (s *shelf) openAll(ctx context.Context, wg *sync.WaitGroup, late <-chan time.Time) {
	s.mu.Lock()
	var ids []holdfast.PoolID
	for id := range s.slots {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	done := make(chan struct{}, len(ids))
	for _, id := range ids {
		wg.Go(func() {
			_, err := s.Pool(ctx, id)
			if err != nil {
				s.env.Listener.Emit(holdfast.Event{Type: "pool-offline", Severity: holdfast.Alarm, Text: err.Error(), Fields: map[string]string{"pool": id.String()}})
			}
			done <- struct{}{}
		})
	}
	for range ids {
		select {
		case <-done:
		case <-late:
			return
		}
	}
}

// closeAll closes every open pool.
func (s *shelf) closeAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, sl := range s.slots {
		sl.turn.Lock()
		if sl.pool != nil {
			errs = append(errs, sl.pool.Close())
			sl.pool, sl.err = nil, errShutdown
		}
		sl.turn.Unlock()
	}
	return errors.Join(errs...)
}

var errShutdown = holdfast.Errorf(holdfast.Offline, "", "the appliance shuts down").Advise("try again when it is up")

// noted is one pool as pools.json has it.
type noted struct {
	ID      holdfast.PoolID `json:"id"`
	Name    string          `json:"name"`
	Kind    string          `json:"kind"`
	Config  json.RawMessage `json:"config"`
	Created time.Time       `json:"created"`
}

// noteds reads pools.json.
func (s *shelf) noteds() ([]noted, error) {
	b, err := fsys.ReadFile(s.files, poolsFile, maxPoolsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ns []noted
	if err := json.Unmarshal(b, &ns); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, "read "+poolsFile, "%w", err).Advise("remove the file; 'holdfast pool import' takes pools over by their folder")
	}
	return ns, nil
}

// note writes a pool into pools.json, in place of one of the same id.
func (s *shelf) note(rec catalog.Pool) error {
	return s.renote(rec.ID, noted{rec.ID, rec.Name, rec.Kind, rec.Config, rec.Created})
}

// renote replaces what pools.json says of a pool, with nothing if nothing is given.
func (s *shelf) renote(id holdfast.PoolID, with ...noted) error {
	s.noting.Lock()
	defer s.noting.Unlock()
	ns, err := s.noteds()
	if err != nil {
		return err
	}
	ns = slices.DeleteFunc(ns, func(n noted) bool { return n.ID == id })
	ns = append(ns, with...)
	b, err := json.MarshalIndent(ns, "", "  ")
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, "write "+poolsFile, "%w", err)
	}
	return fsys.Replace(s.files, poolsFile, append(b, '\n'))
}
