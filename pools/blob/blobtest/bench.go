package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// Content returns the size bytes that the checks store under a name: they depend on the name and look random.
func Content(name string, size int) []byte {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	rng := rand.New(rand.NewPCG(h.Sum64(), uint64(size)))
	b := make([]byte, size+8)
	for i := 0; i < size; i += 8 {
		v := rng.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b[:size]
}

// bench is what a check works with.
type bench struct {
	T
	h   Harness
	ctx context.Context
	s   blob.Store
}

func (b *bench) create(name string) blob.Object {
	b.Helper()
	o, err := b.s.Create(b.ctx, name)
	must(b, err, "create %s", name)
	return o
}

// put stores Content(name, size).
func (b *bench) put(name string, size int) {
	b.Helper()
	must(b, blob.WriteAll(b.ctx, b.s, name, Content(name, size)), "write %s", name)
}

func (b *bench) open(name string) blob.Reader {
	b.Helper()
	r, err := b.s.Open(b.ctx, name)
	must(b, err, "open %s", name)
	return r
}

// whole checks that the object is there with Content(name, size).
func (b *bench) whole(name string, size int) {
	b.Helper()
	if err := Whole(b.ctx, b.s, name, size); err != nil {
		b.Errorf("%v", err)
	}
	b.exists(name, true)
}

// Whole returns nil if the object is there and is Content(name, size).
func Whole(ctx context.Context, s blob.Store, name string, size int) error {
	r, err := s.Open(ctx, name)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // only read
	if r.Size() != int64(size) {
		return holdfast.Errorf(holdfast.Corrupt, "read "+name, "Size says %d; %d were written", r.Size(), size)
	}
	got := make([]byte, size)
	if n, err := r.ReadAt(got, 0); n != size || err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s: %d of %d bytes: %w", name, n, size, errors.Join(err, holdfast.Corrupt))
	}
	if !bytes.Equal(got, Content(name, size)) {
		return holdfast.Errorf(holdfast.Corrupt, "read "+name, "other bytes than were written")
	}
	return nil
}

// gone checks that there is no object of the name, however one asks.
func (b *bench) gone(name string) {
	b.Helper()
	b.exists(name, false)
	r, err := b.s.Open(b.ctx, name)
	if err == nil {
		_ = r.Close()
	}
	if !errors.Is(err, holdfast.NotExist) {
		b.Errorf("open %s, which is not there: %v; want kind NotExist", name, err)
	}
	names, err := b.s.List(b.ctx, "")
	must(b, err, "list")
	if slices.Contains(names, name) {
		b.Errorf("%s is listed and not there", name)
	}
}

func (b *bench) exists(name string, want bool) {
	b.Helper()
	got, err := b.s.Exists(b.ctx, name)
	must(b, err, "exists %s", name)
	if got != want {
		b.Errorf("exists %s: %v, want %v", name, got, want)
	}
}

func (b *bench) remove(name string) {
	b.Helper()
	must(b, b.s.Remove(b.ctx, name), "remove %s", name)
}

// lists checks what List says of a folder.
func (b *bench) lists(folder string, want ...string) {
	b.Helper()
	got, err := b.s.List(b.ctx, folder)
	must(b, err, "list %q", folder)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		b.Errorf("list %q: %q, want %q", folder, got, want)
	}
}

// kind checks an error's kind.
func (b *bench) kind(err error, want holdfast.Kind, doing string, args ...any) {
	b.Helper()
	var e *holdfast.Error
	if !errors.As(err, &e) || e.Kind != want {
		b.Errorf("%s: %v (kind %v); want kind %v", fmt.Sprintf(doing, args...), err, holdfast.KindOf(err), want)
	}
}
