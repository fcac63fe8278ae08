// Package catalog is what the appliance remembers: pools, hosts, VMs, sets, runs, jobs, settings and events, and the intents
// and tombstones of work that is under way.
//
// It is an index over pools, not the truth about them: what pools know can be rebuilt from them. All of it is one kv store;
// docs/formats/catalog.md is its format.
//
// Promise on a crash: an Update is there whole or not at all, and is there for good once Update returned nil.
//
// It must not import anything of the house but the root, fsys and kv. It reads no clock: times are handed in.
package catalog

import (
	"context"
	"errors"
	"iter"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/kv"
)

// Format is the version of the key layout. A catalog of a newer one is refused.
const Format = 1

// adviseRebuild is what to do about a damaged catalog.
const adviseRebuild = "stop the daemon, move the catalog folder away and run: holdfast catalog rebuild"

// A Catalog is an open catalog. Methods are safe for concurrent use, except for Close.
type Catalog struct {
	db     *kv.DB
	writer chan struct{} // holds one token: who has it may write
}

// Open opens the catalog in a folder and makes an empty one where there is none. Errors: Busy if it is open elsewhere,
// Corrupt if it is damaged, Unsupported if a newer version wrote it.
func Open(f fsys.FS, dir string) (*Catalog, error) {
	db, err := kv.Open(f, dir, kv.Options{Precious: true, CacheBytes: 8 << 20, MemtableBytes: 4 << 20})
	if err != nil {
		return nil, err
	}
	c := &Catalog{db: db, writer: make(chan struct{}, 1)}
	c.writer <- struct{}{}
	if err := c.Update(context.Background(), (*Tx).checkFormat); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return c, nil
}

// meta is the record that says what the catalog is.
type meta struct {
	Format int `json:"format"`
}

func (tx *Tx) checkFormat() error {
	m, err := get[meta](tx, metaKind, metaKey)
	switch {
	case errors.Is(err, holdfast.NotExist):
		for _, err := range tx.r.Scan(nil, nil) {
			if err == nil {
				err = holdfast.Errorf(holdfast.Corrupt, "open catalog", "it has records but does not say its format").Advise(adviseRebuild)
			}
			return err
		}
		return put(tx, metaKind, metaKey, &meta{Format})
	case err != nil:
		return err
	case m.Format > Format:
		return holdfast.Errorf(holdfast.Unsupported, "open catalog", "its format is %d, this program knows up to %d", m.Format, Format).
			Advise("use the program that wrote it, or a newer one")
	}
	return nil
}

// Close waits for the transactions under way and closes the catalog.
func (c *Catalog) Close() error { return c.db.Close() }

// Failed returns why the catalog has failed, or nil; see kv.DB.
func (c *Catalog) Failed() error { return c.db.Failed() }

// DiskUsage returns the bytes that the catalog takes on the medium.
func (c *Catalog) DiskUsage() (int64, error) { return c.db.DiskUsage() }

// Checkpoint makes a durable copy of the catalog in the folder dir of its file system, which must not be there yet.
func (c *Catalog) Checkpoint(dir string) error { return c.db.Checkpoint(dir) }

// A Tx is a transaction. It is for one goroutine and ends with the function it was handed to. What a Tx reads it may keep.
type Tx struct {
	r kv.Reader
	b *kv.Batch // nil in a View
}

// View calls do with the catalog as it is at this moment, whatever is written meanwhile. Writing in it fails with Invalid.
func (c *Catalog) View(do func(*Tx) error) error {
	return c.db.View(func(r kv.Reader) error { return do(&Tx{r: r}) })
}

// Update calls do with a transaction that reads its own writes, and makes them durable together if do returns nil; if do
// fails or panics, nothing is changed. Updates happen one after the other: an Update in an Update would wait for itself.
// The context only ends waiting for the turn.
func (c *Catalog) Update(ctx context.Context, do func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-c.writer:
		defer func() { c.writer <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := c.db.Failed(); err != nil {
		return err
	}
	b := c.db.IndexedBatch()
	defer b.Discard()
	if err := do(&Tx{r: b.Reader(), b: b}); err != nil {
		return err
	}
	if b.Empty() {
		return nil
	}
	return b.Commit(true)
}

func (tx *Tx) writable() error {
	if tx.b == nil {
		return holdfast.Errorf(holdfast.Invalid, "write catalog", "a view cannot be written")
	}
	return nil
}

// Limits of one page of a listing.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// A Cursor is the place where a listing goes on; "" is its beginning, and as an answer its end. It stays good while records
// come and go: those that were there all the time are listed once.
type Cursor string

// A Page asks for part of a listing.
type Page struct {
	Cursor Cursor
	Limit  int // 0 means DefaultPage; more than MaxPage is MaxPage
}

// collect takes one page of a sequence that starts at the page's cursor. The sequence yields each record with its cursor.
func collect[T any](p Page, seq iter.Seq2[entry[T], error]) ([]T, Cursor, error) {
	limit := min(p.Limit, MaxPage)
	if limit <= 0 {
		limit = DefaultPage
	}
	out := make([]T, 0, min(limit, DefaultPage))
	last := Cursor("")
	for e, err := range seq {
		if err != nil {
			return nil, "", err
		}
		if len(out) == limit {
			return out, last, nil
		}
		out, last = append(out, e.rec), e.at
	}
	return out, "", nil
}

type entry[T any] struct {
	rec T
	at  Cursor
}

// records drops the cursors of a sequence.
func records[T any](seq iter.Seq2[entry[T], error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for e, err := range seq {
			if !yield(e.rec, err) {
				return
			}
		}
	}
}
