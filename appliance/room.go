package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// A full disk must not be a trap: what is needed to get out of it (delete, collect, list, restore) needs a little room, and that room is kept back.
// Each file system that the appliance writes to has a ballast, and new sessions are refused before the end is near.
const (
	// ballastDir is the folder of a ballast. No object of a pool can be called so.
	ballastDir = "~reserve"
	// dataBallast is room for the catalog to take deletions: it refuses to write below four of its memtables of 4 MiB.
	dataBallast, dataLow = 128 << 20, 48 << 20
	// poolBallast is room for a collect to copy what lives in half-dead containers: two containers of 64 MiB and the index store.
	poolBallast, poolLow = 256 << 20, 192 << 20
	// ballastShare bounds a ballast on small media: an eighth.
	ballastShare = 8
	// comfort is so much free space that nothing is kept back: a look every roomEvery sees it shrink in time.
	comfort   = 16 << 30
	roomEvery = 5 * time.Second
	// A new session needs a share of the medium free, or sessionRoom where that is less.
	sessionShare, sessionRoom = 20, 1 << 30
)

// room watches the free space of the appliance's file systems.
type room struct {
	listener holdfast.Listener
	mu       sync.Mutex
	places   map[string]*place // by folder
}

// A place is a folder on a file system with a ballast.
type place struct {
	fs      fsys.FS
	what    string // for people
	ballast *fsys.Ballast
	low     int64 // below it the ballast is given up
	given   bool  // up, and not made again yet
}

func newRoom(l holdfast.Listener) *room { return &room{listener: l, places: map[string]*place{}} }

// watch begins to look after a folder. Again for the same folder it does nothing.
func (r *room) watch(dir, what string, size, low int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if dir == "" || r.places[dir] != nil {
		return
	}
	f, err := fsys.NewOS(dir)
	if err != nil {
		return // it is not there yet, or not a folder; a pool says so itself when it is opened
	}
	_, total, err := f.Usage(".")
	if err != nil || total <= 0 {
		return
	}
	size = min(size, total/ballastShare)
	size -= size % 4096 // it is held in equal pieces
	r.places[dir] = &place{fs: f, what: what, ballast: fsys.NewBallast(f, ballastDir, size), low: min(low, size)}
}

// make gives ballast up wherever the room has become scarce. It is called before what must work on a full disk.
func (r *room) make() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for dir, p := range r.places {
		free, _, err := p.fs.Usage(".")
		if err != nil || free >= p.low {
			continue
		}
		n, err := p.ballast.Release()
		if n == 0 && err == nil {
			continue
		}
		p.given = true
		text := fmt.Sprintf("the disk of %s is full: %d MiB that were kept back for this are given up, so that points in time can be deleted and space be given back", p.what, n>>20)
		if err != nil {
			text = fmt.Sprintf("the disk of %s is full, and what was kept back for this cannot be given up: %v", p.what, err)
		}
		r.listener.Emit(holdfast.Event{Type: holdfast.EventPoolNearFull, Severity: holdfast.Alarm, Text: text, Fields: map[string]string{"folder": dir, "state": "crossed"}})
	}
}

// keep makes ballast where it is missing and there is room for it, and only where free space is not plenty anyway.
func (r *room) keep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for dir, p := range r.places {
		free, _, err := p.fs.Usage(".")
		if err != nil || free >= comfort || free < 2*p.ballast.Size() {
			continue
		}
		held, err := p.ballast.Keep()
		if err == nil && p.given && held == p.ballast.Size() {
			p.given = false
			r.listener.Emit(holdfast.Event{Type: holdfast.EventPoolNearFull, Severity: holdfast.Info,
				Text: fmt.Sprintf("%d MiB on the disk of %s are kept back again", held>>20, p.what), Fields: map[string]string{"folder": dir, "state": "cleared"}})
		}
	}
}

// well tells whether nothing is wrong any more with a folder whose ballast was given up: by this daemon or one before it.
func (r *room) well(dir string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.places[dir]
	if p == nil {
		return true // its pool has left
	}
	free, _, err := p.fs.Usage(".")
	if err != nil || free < comfort && p.ballast.Held() < p.ballast.Size() {
		return false
	}
	p.given = false
	return true
}

// admit refuses a new session where a disk is nearly full.
func (r *room) admit(dirs ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, dir := range dirs {
		p := r.places[dir]
		if p == nil {
			continue
		}
		free, total, err := p.fs.Usage(".")
		if need := min(sessionRoom, total/sessionShare); err == nil && free < need {
			return holdfast.Errorf(holdfast.NoSpace, "begin backup", "only %d MiB are free on the disk of %s; a backup is begun with at least %d", free>>20, p.what, need>>20).
				Advise("delete points in time and run 'holdfast pool gc', or add space")
		}
	}
	return nil
}

// keepRoom looks after the room until the daemon stops.
func (d *Daemon) keepRoom() {
	for {
		d.room.keep()
		tick, stop := d.c.Clock.After(roomEvery)
		select {
		case <-tick:
		case <-d.ctx.Done():
			stop()
			return
		}
	}
}

// watchPool begins to look after the disks of a pool in folders.
func (d *Daemon) watchPool(rec catalog.Pool) []string {
	dirs := pathsOf(rec.Config)
	for _, dir := range dirs {
		d.room.watch(dir, "pool "+rec.Name, poolBallast, poolLow)
	}
	return dirs
}

// drop stops looking after folders and takes their ballast away: the pool in them leaves the appliance.
func (r *room) drop(dirs ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, dir := range dirs {
		p := r.places[dir]
		delete(r.places, dir)
		if p == nil {
			continue
		}
		_, err := p.ballast.Release()
		if err == nil {
			err = pools.RemoveTree(p.fs, ballastDir)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// admit refuses a backup into a pool without room.
func (k desk) admit(_ context.Context, id holdfast.PoolID) error {
	var rec catalog.Pool
	err := k.d.cat.View(func(tx *catalog.Tx) (err error) { rec, err = tx.Pool(id); return err })
	if err != nil {
		return err
	}
	return k.d.room.admit(append([]string{k.d.c.Data}, k.d.watchPool(rec)...)...)
}
