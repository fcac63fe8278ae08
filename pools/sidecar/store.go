// Package sidecar puts Reed-Solomon parity beside objects, so that rotten or unreadable blocks are repaired on the spot.
//
// A Store decorates a blob.Store: beside every object of the chosen folder lies NAME.par with checks and parity of its blocks
// (docs/formats/parity.md). Up to 4 of 68 blocks of a stripe, and any burst of up to 4 MiB in an object of 64 MiB, are repaired bit by bit. It knows
// nothing of what objects hold, and needs no key of an encrypted pool.
//
// On a crash: the side-car is durable before its object is, so an object written through the Store never lacks one; a side-car without an object is
// garbage that Complete removes. A repair writes the object anew and whole under its name, by the store's own atomic Create; the old bytes are
// there until then. Objects from before have no side-car until Complete makes one: they are read as they are.
//
// It must not import pools or drivers.
package sidecar

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// suffix is what a side-car's name has more than its object's.
const suffix = ".par"

// A Repair says what was brought back.
type Repair struct {
	Name   string // of the object
	Blocks int    // of data that were damaged
	Parity int    // blocks of the side-car that were damaged
	Stored bool   // the object is written anew; else the next one who reads it tries again
}

// Text says it in one sentence.
func (r Repair) Text() string {
	s := fmt.Sprintf("%s was damaged in %d blocks and its side-car in %d; it was repaired bit by bit", r.Name, r.Blocks, r.Parity)
	if r.Stored {
		return s + " and is written anew"
	}
	return s + ", but could not be written anew"
}

// Options say what is kept and who hears of repairs.
type Options struct {
	Folder   string       // objects below it get side-cars; others are passed through
	Repaired func(Repair) // may be nil; called from whatever goroutine reads
}

// A Store is a blob.Store with side-cars. It is safe for concurrent use.
type Store struct {
	blob.Store
	o    Options
	heal sync.Mutex // one repair at a time: it reads a whole object
}

// New returns a Store over another.
func New(s blob.Store, o Options) *Store { return &Store{Store: s, o: o} }

var _ blob.Store = (*Store)(nil)

func (s *Store) covers(name string) bool {
	return blob.In(name, s.o.Folder) && !strings.HasSuffix(name, suffix) && len(name)+len(suffix) <= maxName
}

// maxName is what a name may have in bytes; an object whose side-car's name would be longer has none.
const maxName = 200

// Create implements blob.Store. The object is kept in memory until Commit, for its parity: objects are containers of about 64 MiB.
func (s *Store) Create(ctx context.Context, name string) (blob.Object, error) {
	o, err := s.Store.Create(ctx, name)
	if err != nil || !s.covers(name) {
		return o, err
	}
	return &object{Object: o, s: s, ctx: context.WithoutCancel(ctx), name: name}, nil
}

// An object is one that gets a side-car.
type object struct {
	blob.Object
	s    *Store
	ctx  context.Context // for the side-car's writing, in Commit
	name string
	b    []byte
	done bool
}

func (o *object) Write(p []byte) (int, error) {
	n, err := o.Object.Write(p)
	o.b = append(o.b, p[:n]...)
	return n, err
}

func (o *object) Commit() error {
	if o.done {
		return o.Object.Commit() // says what is wrong with that
	}
	o.done = true
	par, err := encode(bytes.NewReader(o.b), int64(len(o.b)))
	o.b = nil
	if err == nil {
		err = blob.WriteAll(o.ctx, o.s.Store, o.name+suffix, par)
	}
	if err != nil {
		o.Object.Abort()
		return err
	}
	return o.Object.Commit()
}

func (o *object) Abort() {
	o.b = nil
	o.Object.Abort()
}

// List implements blob.Store. Side-cars are not listed.
func (s *Store) List(ctx context.Context, folder string) ([]string, error) {
	names, err := s.Store.List(ctx, folder)
	out := names[:0]
	for _, n := range names {
		if !s.isPar(n) {
			out = append(out, n)
		}
	}
	return out, err
}

func (s *Store) isPar(name string) bool {
	return strings.HasSuffix(name, suffix) && s.covers(strings.TrimSuffix(name, suffix))
}

// Remove implements blob.Store: the object first, so that a crash leaves a side-car without an object and not the other way round.
func (s *Store) Remove(ctx context.Context, name string) error {
	if err := s.Store.Remove(ctx, name); err != nil || !s.covers(name) {
		return err
	}
	return s.Store.Remove(ctx, name+suffix)
}

// Open implements blob.Store. What the reader delivers was checked block by block, and repaired where it had to be. What cannot be repaired is
// delivered as it rests: the caller has checks of its own.
func (s *Store) Open(ctx context.Context, name string) (blob.Reader, error) {
	r, err := s.Store.Open(ctx, name)
	if err != nil || !s.covers(name) {
		return r, err
	}
	t := s.table(ctx, name)
	if t == nil || t.size != r.Size() && t.blocks == 0 {
		return r, nil
	}
	return &reader{s: s, ctx: context.WithoutCancel(ctx), name: name, in: r, t: t}, nil
}

// table reads the table of an object's side-car; nil if there is none to rely on.
func (s *Store) table(ctx context.Context, name string) *table {
	par, err := s.Store.Open(ctx, name+suffix)
	if err != nil {
		return nil
	}
	defer func() { _ = par.Close() }() // only read
	t, err := readTable(par, par.Size())
	if err != nil {
		return nil
	}
	return t
}

// A reader reads an object block by block.
type reader struct {
	s    *Store
	ctx  context.Context // of repairs
	name string
	in   blob.Reader
	t    *table

	mu    sync.Mutex
	fixed map[int][]byte // blocks as they were, where the object open here has others
	tried bool
}

// Size returns the length that the object had: one that was cut short is repaired like any other.
func (r *reader) Size() int64  { return r.t.size }
func (r *reader) DropCache()   { r.in.DropCache() }
func (r *reader) Close() error { return r.in.Close() }

// ReadAt implements io.ReaderAt.
func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= r.t.size {
		return r.in.ReadAt(p, off)
	}
	end := min(off+int64(len(p)), r.t.size)
	first, last := int(off/int64(r.t.block)), int((end-1)/int64(r.t.block))
	from := int64(first) * int64(r.t.block)
	to := min(int64(last+1)*int64(r.t.block), r.t.size)
	buf := p[:end-off]
	if from != off || to != end {
		buf = make([]byte, to-from)
	}
	n, err := r.in.ReadAt(buf, from)
	if n < len(buf) && err != nil && err != io.EOF && tolerate(err) != nil {
		return 0, err
	}
	clear(buf[n:])
	for i := first; i <= last; i++ {
		b := buf[int64(i)*int64(r.t.block)-from:][:r.t.len(i)]
		if crcOf(b) == r.t.data[i].crc {
			continue
		}
		if good := r.repaired(i); good != nil {
			copy(b, good)
		} else if n < len(buf) && err != nil && err != io.EOF {
			return 0, err
		}
	}
	if from != off || to != end {
		copy(p, buf[off-from:])
	}
	if end-off < int64(len(p)) {
		return int(end - off), io.EOF
	}
	return len(p), nil
}

// repaired returns block i as it was, or nil.
func (r *reader) repaired(i int) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.tried {
		r.tried = true
		r.fixed = r.s.repair(r.ctx, r.name, r.in, r.t)
	}
	return r.fixed[i]
}

// repair brings back what is damaged of an object and its side-car, and writes anew what was. It returns the blocks that were damaged in obj.
func (s *Store) repair(ctx context.Context, name string, obj blob.Reader, t *table) map[int][]byte {
	s.heal.Lock()
	defer s.heal.Unlock()
	par, err := s.Store.Open(ctx, name+suffix)
	if err != nil {
		return nil
	}
	defer func() { _ = par.Close() }() // only read
	f, err := t.survey(obj, par)
	if err != nil || len(f.data) == 0 && len(f.parity) == 0 && t.whole {
		return nil
	}
	fixed, err := t.rebuild(obj, par, f)
	if err != nil {
		return nil
	}
	done := Repair{Name: name, Blocks: len(f.data), Parity: len(f.parity)}
	done.Stored = s.write(ctx, name, &patched{obj, t, fixed}, len(f.data) > 0, len(f.parity) > 0 || !t.whole) == nil
	if s.o.Repaired != nil {
		s.o.Repaired(done)
	}
	return fixed
}

// write writes an object and its side-car anew from r, where they are damaged.
func (s *Store) write(ctx context.Context, name string, r *patched, data, parity bool) error {
	if parity {
		par, err := encode(r, r.t.size)
		if err != nil {
			return err
		}
		if err := blob.WriteAll(ctx, s.Store, name+suffix, par); err != nil {
			return err
		}
	}
	if !data {
		return nil
	}
	o, err := s.Store.Create(ctx, name)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < r.t.size; {
		p := buf[:min(int64(len(buf)), r.t.size-off)]
		if err = readFull(r, p, off); err == nil {
			_, err = o.Write(p)
		}
		if err != nil {
			o.Abort()
			return err
		}
		off += int64(len(p))
	}
	return o.Commit()
}

// patched reads an object with some blocks replaced.
type patched struct {
	r     io.ReaderAt
	t     *table
	fixed map[int][]byte
}

func (p *patched) ReadAt(b []byte, off int64) (int, error) {
	done := 0
	for done < len(b) && off < p.t.size {
		i := int(off / int64(p.t.block))
		at := int(off - int64(i)*int64(p.t.block))
		n := min(len(b)-done, p.t.len(i)-at)
		if good := p.fixed[i]; good != nil {
			copy(b[done:done+n], good[at:])
		} else if err := readFull(p.r, b[done:done+n], off); err != nil {
			return done, err
		}
		done, off = done+n, off+int64(n)
	}
	if done < len(b) {
		return done, io.EOF
	}
	return done, nil
}

// CheckSideCar reads an object's side-car and makes it anew where it is damaged. The object's own blocks are checked by whoever reads them. It reports
// whether there is one.
func (s *Store) CheckSideCar(ctx context.Context, name string) (bool, error) {
	par, err := s.Store.Open(ctx, name+suffix)
	if err != nil {
		return false, only(absent(err))
	}
	defer func() { _ = par.Close() }() // only read
	par.DropCache()
	t, err := readTable(par, par.Size())
	if err != nil {
		return false, only(err)
	}
	whole, hash, buf := t.whole, newHasher(), make([]byte, t.block)
	for i := range t.parity {
		ok, err := t.readParity(par, i/parityShards, i%parityShards, buf, hash)
		if err != nil {
			return false, err
		}
		whole = whole && ok
	}
	if whole {
		return true, nil
	}
	return s.Check(ctx, name, false)
}

// absent makes a side-car that is not there one that is damaged.
func absent(err error) error {
	if holdfast.KindOf(err) == holdfast.NotExist {
		return nil
	}
	return err
}

// Check reads an object and its side-car and repairs what it can. It reports whether everything is as it was at the end. An object without a
// side-car gets one if make is set: the caller has just found the object whole.
func (s *Store) Check(ctx context.Context, name string, make bool) (bool, error) {
	r, err := s.Store.Open(ctx, name)
	if err != nil {
		return false, err
	}
	defer func() { _ = r.Close() }() // only read
	t := s.table(ctx, name)
	if t == nil {
		if !make {
			return false, nil
		}
		par, err := encode(r, r.Size())
		if err != nil {
			return false, err
		}
		before, err := s.Store.Exists(ctx, name+suffix)
		if err == nil {
			err = blob.WriteAll(ctx, s.Store, name+suffix, par)
		}
		if before && err == nil && s.o.Repaired != nil {
			s.o.Repaired(Repair{Name: name, Parity: shapeOf(r.Size()).parities(), Stored: true})
		}
		return err == nil, err
	}
	par, err := s.Store.Open(ctx, name+suffix)
	if err != nil {
		return false, err
	}
	f, err := t.survey(r, par)
	if e := par.Close(); err == nil {
		err = e
	}
	if err != nil || len(f.data) == 0 && len(f.parity) == 0 && t.whole && r.Size() == t.size {
		return err == nil, err
	}
	return s.repair(ctx, name, r, t) != nil, nil
}

// Complete removes side-cars without an object and returns the names of objects without a side-car.
func (s *Store) Complete(ctx context.Context) (without []string, err error) {
	names, err := s.Store.List(ctx, s.o.Folder)
	if err != nil {
		return nil, err
	}
	there := map[string]bool{}
	for _, n := range names {
		there[n] = true
	}
	for _, n := range names {
		switch {
		case s.covers(n) && !there[n+suffix]:
			without = append(without, n)
		case s.isPar(n) && !there[strings.TrimSuffix(n, suffix)]:
			is, err := s.Store.Exists(ctx, strings.TrimSuffix(n, suffix)) // it may have come since
			if err == nil && !is {
				err = s.Store.Remove(ctx, n)
			}
			if err != nil {
				return without, err
			}
		}
	}
	return without, nil
}
