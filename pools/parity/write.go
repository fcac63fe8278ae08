package parity

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// nameLock keeps two that change the shards of one object apart: Commit, Remove, healing.
type nameLock struct {
	sync.Mutex
	users int
}

// lock takes the lock of a name and returns what gives it back.
func (s *Stripe) lock(name string) (unlock func()) {
	s.mu.Lock()
	l := s.names[name]
	if l == nil {
		l = &nameLock{}
		s.names[name] = l
	}
	l.users++
	s.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(s.names, name)
		}
	}
}

// fly counts the objects of a name that are being created.
func (s *Stripe) fly(name string, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flying[name] += by; s.flying[name] == 0 {
		delete(s.flying, name)
	}
}

// writer writes the shards of one object: all of them, or those that are healed.
type writer struct {
	g       geometry
	name    string
	sums    []sums
	members []*member     // by index
	out     []blob.Object // by index; nil: this shard is not written
	errs    []error       // by index: why it is not
	scratch []byte
}

func (s *Stripe) newWriter(name string) *writer {
	n := s.n()
	w := &writer{g: s.geometry, name: name, sums: make([]sums, n), members: make([]*member, n), out: make([]blob.Object, n), errs: make([]error, n)}
	for i := range n {
		w.sums[i] = newSums(s.geometry, name, i)
		w.members[i] = s.slots[s.position(name, i)].Load()
	}
	return w
}

// drop gives a shard up.
func (w *writer) drop(i int, err error) {
	if w.out[i] != nil {
		w.out[i].Abort()
		w.out[i] = nil
	}
	w.errs[i] = err
}

func (w *writer) abort() {
	for i := range w.out {
		if w.out[i] != nil {
			w.out[i].Abort()
			w.out[i] = nil
		}
	}
}

// record writes one block and its sum to a shard, in one piece.
func (w *writer) record(i int, stripe int64, block []byte) error {
	w.scratch = append(w.scratch[:0], block...)
	w.scratch = binary.LittleEndian.AppendUint32(w.scratch, w.sums[i].of(stripe, block))
	_, err := w.out[i].Write(w.scratch)
	return err
}

// object is one that is being created.
type object struct {
	s      *Stripe
	ctx    context.Context // of Create; Commit belongs to the same piece of work
	w      *writer
	buf    []byte // the blocks of a stripe, data and parity, each of the full size
	fill   int
	stripe int64
	length int64
	sum    uint32
	err    error
	done   bool
}

// Create implements blob.Store.
func (s *Stripe) Create(ctx context.Context, name string) (blob.Object, error) {
	op := "create " + name
	if err := s.check(ctx, "create", name); err != nil {
		return nil, err
	}
	if err := s.writable(op); err != nil {
		return nil, err
	}
	o := &object{s: s, ctx: ctx, w: s.newWriter(name), buf: make([]byte, s.n()*s.block)}
	var wg sync.WaitGroup
	for i, m := range o.w.members {
		if m.store == nil {
			o.w.errs[i] = errLost
			continue
		}
		wg.Go(func() {
			o.w.out[i], o.w.errs[i] = m.store.Create(ctx, name)
			s.note(m, o.w.errs[i])
		})
	}
	wg.Wait()
	if err := o.enough(op); err != nil {
		o.w.abort()
		return nil, err
	}
	s.fly(name, 1)
	return o, nil
}

// enough checks that no more shards are given up than may be.
func (o *object) enough(op string) error {
	missing := 0
	for _, err := range o.w.errs {
		if err != nil {
			missing++
			if !gone(err) {
				return err
			}
		}
	}
	if missing > o.s.opts.Allowed {
		return holdfast.Errorf(holdfast.Offline, op, "%d members are away; objects are written with at most %d missing: %w", missing, o.s.opts.Allowed, errors.Join(o.w.errs...)).
			Advise("connect the members that are away, or replace them: writing goes on as soon as the replacement has begun")
	}
	return nil
}

func (o *object) Write(p []byte) (int, error) {
	op := "write " + o.w.name
	if o.done {
		return 0, holdfast.Errorf(holdfast.Invalid, op, "the object is committed or aborted")
	}
	if o.err != nil {
		return 0, o.err
	}
	o.sum = crc32.Update(o.sum, castagnoli, p)
	data := o.buf[:o.s.k*o.s.block]
	for rest := p; len(rest) > 0; {
		n := copy(data[o.fill:], rest)
		rest = rest[n:]
		o.fill += n
		if o.fill == len(data) {
			if o.err = o.flush(op, o.s.block); o.err != nil {
				return len(p) - len(rest), o.err
			}
		}
	}
	o.length += int64(len(p))
	return len(p), nil
}

// flush encodes and writes the stripe in the buffer, in blocks of so many bytes.
func (o *object) flush(op string, block int) error {
	shards := make([][]byte, o.s.n())
	for i := range shards {
		shards[i] = o.buf[i*block : (i+1)*block]
	}
	clear(o.buf[o.fill : o.s.k*block])
	if err := o.s.code.Encode(shards); err != nil {
		return holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	for i, b := range shards {
		if o.w.out[i] == nil {
			continue
		}
		if err := o.w.record(i, o.stripe, b); err != nil {
			o.w.drop(i, err)
			o.s.note(o.w.members[i], err)
			if err := o.enough(op); err != nil {
				return err
			}
		}
	}
	o.stripe++
	o.fill = 0
	return nil
}

func (o *object) Abort() {
	if o.done {
		return
	}
	o.done = true
	o.w.abort()
	o.s.fly(o.w.name, -1)
}

// Commit writes the labels and commits all shards at once.
func (o *object) Commit() error {
	op := "seal " + o.w.name
	if o.done {
		return holdfast.Errorf(holdfast.Invalid, op, "the object is committed or aborted")
	}
	o.done = true
	defer o.s.fly(o.w.name, -1)
	l := o.s.layout(o.length)
	if o.err == nil && l.last > 0 {
		o.err = o.flush(op, l.last)
	}
	if o.err == nil {
		o.err = blob.Cancelled(o.ctx, op)
	}
	if o.err != nil {
		o.w.abort()
		return o.err
	}
	if err := o.seal(op); err != nil {
		return err
	}
	for i, was := range o.w.members {
		place := o.s.position(o.w.name, i)
		if o.s.slots[place].Load() != was { // replaced while this was being written
			if err := o.s.restore(o.ctx, o.w.name, place); err != nil {
				return err
			}
		} else if o.w.errs[i] != nil && was.store != nil {
			o.s.enqueue(o.w.name)
		}
	}
	return nil
}

func (o *object) seal(op string) error {
	defer o.s.lock(o.w.name)()
	label := label{geometry: o.s.geometry, length: o.length, sum: o.sum, name: o.w.name}
	o.w.commit(o.s, label)
	return o.enough(op)
}

// commit ends every shard that is still being written.
func (w *writer) commit(s *Stripe, l label) {
	var wg sync.WaitGroup
	for i, out := range w.out {
		if out == nil {
			continue
		}
		mine := l
		mine.index = i
		wg.Go(func() {
			_, err := out.Write(mine.encode())
			if err != nil {
				out.Abort()
			} else {
				err = out.Commit()
			}
			w.errs[i] = err
			w.out[i] = nil
			s.note(w.members[i], err)
		})
	}
	wg.Wait()
}
