package kv

import (
	"bytes"
	"errors"
	"iter"

	"github.com/cockroachdb/pebble/v2"
)

// An Item is one key and its value. Both are valid only until the next step of the scan that yielded them, and must not be
// changed.
type Item struct{ Key, Value []byte }

// A Reader reads a store as it is at one moment (in View), as it will be with a batch (from Batch.Reader), or as it is at
// each call (from DB.Reader). It is safe for concurrent use, except for that of a batch.
type Reader struct {
	d *DB
	r pebble.Reader
}

// Reader returns a Reader of the store as it is at each call.
func (d *DB) Reader() Reader { return Reader{d, d.db} }

// Reader returns a Reader of the store with the batch, which must be an IndexedBatch. It ends with the batch.
func (b *Batch) Reader() Reader { return Reader{b.d, b.b} }

// View calls do with a Reader of the store as it is now, whatever is committed meanwhile. It holds back compaction: do not
// stay long.
func (d *DB) View(do func(Reader) error) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	s := d.db.NewSnapshot()
	err := do(Reader{d, s})
	return errors.Join(err, classify("close view", s.Close()))
}

// Get returns a copy of what key holds and whether it is there.
func (d *DB) Get(key []byte) ([]byte, bool, error) { return d.Reader().Get(key) }

// Scan is Reader.Scan on the store as it is when the scan begins.
func (d *DB) Scan(lo, hi []byte) iter.Seq2[Item, error] { return d.Reader().Scan(lo, hi) }

// Get returns a copy of what key holds and whether it is there.
func (r Reader) Get(key []byte) ([]byte, bool, error) {
	if err := r.d.enter(); err != nil {
		return nil, false, err
	}
	defer r.d.leave()
	v, c, err := r.r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, r.d.Failed()
	}
	if err != nil {
		return nil, false, r.readErr(err)
	}
	v = bytes.Clone(v)
	if v == nil {
		v = []byte{}
	}
	return v, true, classify("read store", c.Close())
}

// readErr is the error of a failed read: the store's reason where it has failed.
func (r Reader) readErr(err error) error {
	if err == nil {
		return nil
	}
	if failed := r.d.Failed(); failed != nil {
		return failed
	}
	return classify("read store", err)
}

// Scan yields the keys from lo up to, and without, hi, in order. Nil bounds stand for the first and beyond the last key. An
// error is yielded last, with an empty Item. The sequence can be ranged over once at a time.
func (r Reader) Scan(lo, hi []byte) iter.Seq2[Item, error] { return r.scan(lo, hi, false) }

// ScanBack is Scan in descending order.
func (r Reader) ScanBack(lo, hi []byte) iter.Seq2[Item, error] { return r.scan(lo, hi, true) }

func (r Reader) scan(lo, hi []byte, back bool) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if err := r.d.enter(); err != nil {
			yield(Item{}, err)
			return
		}
		defer r.d.leave()
		it, err := r.r.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi, KeyTypes: pebble.IterKeyTypePointsOnly})
		if err != nil {
			yield(Item{}, r.readErr(err))
			return
		}
		step, ok := it.Next, false
		if back {
			step = it.Prev
			ok = it.Last()
		} else {
			ok = it.First()
		}
		stopped := false
		for ; ok; ok = step() {
			v, err := it.ValueAndErr()
			if err != nil {
				break // Close tells it
			}
			if !yield(Item{it.Key(), v}, nil) {
				stopped = true
				break
			}
		}
		err = it.Close()
		if !stopped && err != nil {
			yield(Item{}, r.readErr(err))
		}
	}
}
