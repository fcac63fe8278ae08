// Package kv is the house's ordered key/value store and the only home of the pebble library: no exported signature mentions
// it. The catalog and the pools' indexes stand on it.
//
// A store lives in one folder of a fsys.FS and is open once at a time. Promises on a crash: a batch is there whole or not at
// all, in the order of the commits; a batch committed with sync (and every batch of a Precious store) survives from the
// moment Commit returned nil. Bytes are checksummed: what does not read back as written gives kind Corrupt.
//
// If the store cannot write its log or finds itself damaged, it has failed: every later call returns the reason, Failed tells
// it, nothing more is written, and only Close is left to do. Opening it again finds all that was acknowledged. A full medium is refused
// beforehand with kind NoSpace, as long as Options.Reserve is kept free, and is then no failure.
//
// It must not import anything of the house but the root and fsys.
package kv

import (
	"errors"
	"fmt"
	"io"
	"path"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

// Options says how a store is kept. The zero value is good for a small store.
type Options struct {
	CacheBytes     int64 // of blocks in memory; 0 means 16 MiB
	MemtableBytes  int64 // of writes in memory before they are sorted to a file; 0 means 8 MiB. At most four such tables exist
	Reserve        int64 // a Commit is refused with NoSpace while less is free; 0 means four memtables, negative means none
	Precious       bool  // sync every batch, whatever Commit is told
	Bloom          bool  // keep filters, so that a Get of a missing key reads nothing; 10 bits a key on the medium
	Incompressible bool  // do not try to compress: keys and values are digests and the like
	MustExist      bool  // fail with NotExist where there is no store yet, instead of making one
}

// maxOpenFiles bounds the file descriptors of one store.
const maxOpenFiles = 256

// A DB is an open store. Methods are safe for concurrent use, except for Close.
type DB struct {
	db   *pebble.DB
	disk *disk
	lock io.Closer
	o    Options
	dir  string

	failed   chan struct{} // closed when the store has failed
	commitMu sync.Mutex    // one batch enters pebble at a time, so that a failed one blocks no other

	mu     sync.Mutex
	reason error // why it failed
	open   int   // calls that are under way
	closed bool
	idle   *sync.Cond
}

// Open opens the store in a folder and makes it where there is none. Errors: Busy if somebody has it open, Corrupt if it is
// damaged, NotExist under MustExist.
func Open(f fsys.FS, dir string, o Options) (*DB, error) {
	const op = "open store"
	if o.CacheBytes == 0 {
		o.CacheBytes = 16 << 20
	}
	if o.MemtableBytes == 0 {
		o.MemtableBytes = 8 << 20
	}
	if o.Reserve == 0 {
		o.Reserve = 4 * o.MemtableBytes
	}
	if !o.MustExist {
		if err := f.MkdirAll(dir); err != nil {
			return nil, classify(op, err)
		}
	}
	lock, err := f.Lock(path.Join(dir, "LOCK"))
	if err != nil {
		return nil, classify(op, err)
	}
	d := &DB{lock: lock, o: o, dir: clean(dir), failed: make(chan struct{})}
	d.idle = sync.NewCond(&d.mu)
	d.disk = &disk{fs: f, fail: d.fail}
	if err = d.openPebble(); err == nil {
		if err = d.Failed(); err != nil {
			_ = d.db.Close() // the failure is the error
		}
	}
	if err != nil {
		if failed := d.Failed(); failed != nil {
			err = failed
		}
		return nil, errors.Join(classify(op, err), lock.Close())
	}
	return d, nil
}

// openPebble opens the store; pebble panics over some damage, which is an error here.
func (d *DB) openPebble() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = holdfast.Errorf(holdfast.Corrupt, "open store", "%v", r)
		}
	}()
	d.db, err = pebble.Open(d.dir, d.options())
	return err
}

func (d *DB) options() *pebble.Options {
	p := &pebble.Options{
		FS:                          d.disk,
		Logger:                      quiet{d},
		CacheSize:                   d.o.CacheBytes,
		MemTableSize:                uint64(d.o.MemtableBytes),
		MemTableStopWritesThreshold: 4,
		// A stall on too many tables would wait for compactions, which stop in a failed store, and Close would wait for the stall.
		L0StopWritesThreshold: 1000,
		MaxOpenFiles:          maxOpenFiles,
		// Written down here and not taken from the library's newest, so that a format changes only when we decide it.
		FormatMajorVersion:         pebble.FormatTableFormatV6,
		ErrorIfNotExists:           d.o.MustExist,
		CompactionConcurrencyRange: func() (int, int) { return 1, 1 },
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) {
				if !errors.Is(err, pebble.ErrCancelledCompaction) {
					d.fail(err)
				}
			},
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				d.fail(holdfast.Errorf(holdfast.Corrupt, "read store", "%s: %w", i.Path, i.Details).Advise(adviseCorrupt))
			},
		},
	}
	p.Experimental.CompactionScheduler = newScheduler(d)
	switch {
	case d.o.Incompressible:
		p.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	default:
		p.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	}
	if d.o.Bloom {
		for i := range p.Levels {
			p.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		}
	}
	return p
}

// quiet is pebble's logger: nothing is logged, and what would end the process fails the store.
type quiet struct{ d *DB }

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}

func (q quiet) Fatalf(format string, args ...any) {
	err := holdfast.Errorf(holdfast.Internal, "store", format, args...)
	for _, a := range args {
		if cause, ok := a.(error); ok {
			err.Kind, err.Err = holdfast.KindOf(classify("", cause)), fmt.Errorf("%v: %w", err.Err, cause)
		}
	}
	q.d.fail(err)
}

// fail marks the store as failed; the first reason stays. It does no I/O and may be called from inside pebble.
func (d *DB) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.reason != nil {
		return
	}
	var known *holdfast.Error
	d.reason = classify("store", err)
	if errors.As(d.reason, &known) && known.Hint == "" {
		known.Hint = "open it again; if that does not help, check the medium"
	}
	d.disk.trip()
	close(d.failed)
}

// Failed returns why the store has failed, or nil.
func (d *DB) Failed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reason
}

// enter begins a call; leave ends it. Close waits for the calls that are under way.
func (d *DB) enter() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.reason != nil:
		return d.reason
	case d.closed:
		return holdfast.Errorf(holdfast.Invalid, "store", "it is closed")
	}
	d.open++
	return nil
}

func (d *DB) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open--; d.open == 0 {
		d.idle.Broadcast()
	}
}

// Close waits for the calls under way, closes the store and gives back its memory, files and lock. Closing a failed store
// returns nil: its reason was told. Calling it again does nothing.
func (d *DB) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	for d.open > 0 {
		d.idle.Wait()
	}
	d.mu.Unlock()
	err := d.db.Close()
	if d.Failed() != nil {
		err = nil
	}
	return errors.Join(classify("close store", err), classify("close store", d.lock.Close()))
}

const adviseCorrupt = "the store is damaged: rebuild it from what it describes"

// classify gives an error its kind.
func classify(op string, err error) error {
	var known *holdfast.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case pebble.IsCorruptionError(err):
		return holdfast.Errorf(holdfast.Corrupt, op, "%w", err).Advise(adviseCorrupt)
	case errors.Is(err, pebble.ErrDBDoesNotExist):
		return holdfast.Errorf(holdfast.NotExist, op, "%w", err)
	}
	return fsys.Classify(op, err)
}

// DiskUsage returns the bytes that the store takes on the medium.
func (d *DB) DiskUsage() (int64, error) {
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.leave()
	return int64(d.db.Metrics().DiskSpaceUsage()), nil
}

// Compact sorts everything into as few files as possible and drops what was deleted. It can take long and needs as much free
// space as the store has bytes.
func (d *DB) Compact() error {
	return d.run("compact store", func() error {
		last := make([]byte, 64) // sorts after every key in use: no package has keys of 64 bytes of 0xff
		for i := range last {
			last[i] = 0xff
		}
		return d.db.Compact(noCancel, []byte{0}, last, false)
	})
}

// Flush writes what is in memory to sorted files, so that the next Open has no log to replay.
func (d *DB) Flush() error { return d.run("flush store", func() error { return d.db.Flush() }) }

// Checkpoint makes a durable copy of the store, as it is now, in the folder dir of the same file system, which must not be
// there yet. Files that never change are shared by a second name.
func (d *DB) Checkpoint(dir string) error {
	return d.run("checkpoint store", func() error { return d.db.Checkpoint(dir, pebble.WithFlushedWAL()) })
}
