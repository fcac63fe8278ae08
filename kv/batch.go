package kv

import (
	"context"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"github.com/holdfast-backup/holdfast"
)

// noCancel is handed to pebble where work is not to be cancelled half way.
var noCancel = context.Background()

// MaxBatchBytes bounds what one batch may hold.
const MaxBatchBytes = 256 << 20

// A Batch gathers changes that become visible and durable together. It is for one goroutine. It is done after Commit or
// Discard; one of them must be called.
type Batch struct {
	d    *DB
	b    *pebble.Batch
	grow bool // it holds something besides deletions
	err  error
}

// Batch returns an empty batch that is only written.
func (d *DB) Batch() *Batch { return &Batch{d: d, b: d.db.NewBatch()} }

// IndexedBatch returns an empty batch that can be read through Reader as if it were committed.
func (d *DB) IndexedBatch() *Batch { return &Batch{d: d, b: d.db.NewIndexedBatch()} }

// Set makes key hold value. Both are copied.
func (b *Batch) Set(key, value []byte) {
	b.grow = true
	b.note(b.b.Set(key, value, nil))
}

// Delete removes key; it need not be there.
func (b *Batch) Delete(key []byte) { b.note(b.b.Delete(key, nil)) }

// DeleteRange removes the keys from lo up to, and without, hi.
func (b *Batch) DeleteRange(lo, hi []byte) { b.note(b.b.DeleteRange(lo, hi, nil)) }

func (b *Batch) note(err error) {
	if b.err == nil && err != nil {
		b.err = classify("fill batch", err)
	}
	if b.err == nil && b.b.Len() > MaxBatchBytes {
		b.err = holdfast.Errorf(holdfast.Invalid, "fill batch", "more than %d bytes", MaxBatchBytes)
	}
}

// Empty reports whether the batch changes nothing.
func (b *Batch) Empty() bool { return b.b.Empty() }

// Len returns the bytes of the batch: 12 while it is empty.
func (b *Batch) Len() int { return b.b.Len() }

// Discard drops the batch. It does nothing after Commit, so that it can be deferred.
func (b *Batch) Discard() {
	if b.b != nil {
		_ = b.b.Close() // gives memory back; it cannot fail
		b.b = nil
	}
}

// Commit makes the batch visible, and durable if sync or the store is Precious. After an error it is unknown whether the
// batch is there unless the kind is NoSpace or Invalid, in which case it is not.
func (b *Batch) Commit(sync bool) error {
	if b.b == nil {
		return holdfast.Errorf(holdfast.Invalid, "commit", "the batch is done already")
	}
	if b.err != nil {
		b.Discard()
		return b.err
	}
	d, pb := b.d, b.b
	if err := d.room(b.grow); err != nil {
		b.Discard()
		return err
	}
	b.b = nil
	err := d.run("commit", func() error {
		sync = sync || d.o.Precious
		if !sync {
			return d.locked(func() error { return d.db.Apply(pb, pebble.NoSync) })
		}
		// The order is decided under the lock; waiting for the medium is not, so that batches of others share one sync.
		if err := d.locked(func() error { return d.db.ApplyNoSyncWait(pb, pebble.Sync) }); err != nil {
			return err
		}
		return pb.SyncWait()
	})
	if err != nil {
		return err
	}
	return classify("commit", pb.Close())
}

// locked calls do if the store has not failed, one at a time.
func (d *DB) locked(do func() error) error {
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	if err := d.Failed(); err != nil {
		return err
	}
	return do()
}

// room refuses a batch that grows the store while less than the reserve is free. Half of it is left to batches that only
// delete, so that a full medium can be emptied.
func (d *DB) room(grow bool) error {
	need := d.o.Reserve
	if !grow {
		need /= 2
	}
	if need <= 0 {
		return nil
	}
	free, _, err := d.disk.fs.Usage(d.dir)
	switch {
	case errors.Is(err, holdfast.Unsupported):
		return nil
	case err != nil:
		return classify("commit", err)
	case free < need:
		return holdfast.Errorf(holdfast.NoSpace, "commit", "%d bytes are free, %d must stay free", free, need).
			Advise("free space on the file system of the store")
	}
	return nil
}

// run does something that waits for the medium, but no longer than the store is well: where pebble would wait for ever after
// a failure, the caller gets the reason and the waiting ends with Close.
func (d *DB) run(op string, do func() error) error {
	if err := d.enter(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer d.leave()
		done <- do()
	}()
	select {
	case err := <-done:
		if failed := d.Failed(); failed != nil {
			return failed
		}
		return classify(op, err)
	case <-d.failed:
		return d.Failed()
	}
}
