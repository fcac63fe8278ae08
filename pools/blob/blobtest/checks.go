package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

var writeChecks = []Check{
	{"AnObjectIsSeenAtCommitAndNotBefore", func(b *bench) {
		o := b.create("sets/one")
		_, err := o.Write(Content("sets/one", 5000))
		must(b, err, "write")
		b.gone("sets/one")
		b.lists("sets")
		must(b, o.Commit(), "commit")
		b.whole("sets/one", 5000)
		b.lists("sets", "sets/one")
	}},
	{"SizesAroundEveryBlockSizeComeBack", func(b *bench) {
		for _, n := range []int{0, 1, 63, 64, 65, 511, 4095, 4096, 4097, 65535, 65536, 65537, 262143, 262144, 262145, 1<<20 - 1, 1<<20 + 1} {
			name := fmt.Sprintf("sizes/%d", n)
			b.put(name, n)
			b.whole(name, n)
		}
	}},
	{"ALargeObjectComesBack", func(b *bench) {
		b.put("containers/large", b.h.Big)
		b.whole("containers/large", b.h.Big)
	}},
	{"ManySmallWritesAreOneObject", func(b *bench) {
		data := Content("pieces", 300_000)
		o, rng := b.create("pieces"), rand.New(rand.NewPCG(1, 2))
		for rest := data; len(rest) > 0; {
			n := min(rng.IntN(4000), len(rest))
			piece := bytes.Clone(rest[:n])
			if got, err := o.Write(piece); got != n || err != nil {
				b.Fatalf("write of %d bytes: %d, %v", n, got, err)
			}
			clear(piece) // the buffer is the caller's again
			rest = rest[n:]
		}
		must(b, o.Commit(), "commit")
		b.whole("pieces", len(data))
	}},
	{"AbortLeavesNothing", func(b *bench) {
		for _, n := range []int{0, 100, 200_000} {
			o := b.create("aborted")
			_, err := o.Write(Content("aborted", n))
			must(b, err, "write")
			o.Abort()
			o.Abort() // harmless
			b.gone("aborted")
		}
		b.lists("")
		b.put("aborted", 77)
		b.whole("aborted", 77)
	}},
	{"AbortAfterCommitDoesNothing", func(b *bench) {
		o := b.create("kept")
		_, err := o.Write(Content("kept", 10))
		must(b, err, "write")
		must(b, o.Commit(), "commit")
		o.Abort()
		b.whole("kept", 10)
	}},
	{"AnEndedObjectTakesNoMore", func(b *bench) {
		o := b.create("ended")
		must(b, o.Commit(), "commit")
		if _, err := o.Write([]byte("more")); err == nil {
			b.Errorf("a write after Commit went well")
		}
		b.whole("ended", 0)
	}},
	{"TheSameObjectCanBeWrittenAgain", func(b *bench) {
		b.put("again", 70_000)
		b.put("again", 70_000)
		b.whole("again", 70_000)
		b.lists("", "again")
		b.remove("again")
		b.gone("again")
		b.put("again", 70_000)
		b.whole("again", 70_000)
	}},
	{"RemoveTakesAwayExactlyOne", func(b *bench) {
		for _, n := range []string{"a/b", "a/b.x", "a/bb", "a/b-/c", "b"} {
			b.put(n, 20)
		}
		b.remove("a/b")
		b.gone("a/b")
		b.lists("", "a/b.x", "a/bb", "a/b-/c", "b")
		b.remove("a/b") // not there: no error
		b.remove("never/was")
		b.lists("", "a/b.x", "a/bb", "a/b-/c", "b")
	}},
}

var readChecks = []Check{
	{"ReadAtGivesAnyRange", func(b *bench) {
		const size = 700_000
		b.put("ranges", size)
		data, r, rng := Content("ranges", size), b.open("ranges"), rand.New(rand.NewPCG(3, 4))
		defer func() { _ = r.Close() }()
		for range 200 {
			off := rng.IntN(size)
			n := min(1+rng.IntN(1<<(1+rng.IntN(19))), size-off)
			p := make([]byte, n)
			if got, err := r.ReadAt(p, int64(off)); got != n || err != nil && !errors.Is(err, io.EOF) {
				b.Fatalf("read of %d at %d: %d, %v", n, off, got, err)
			}
			if !bytes.Equal(p, data[off:off+n]) {
				b.Fatalf("read of %d at %d: other bytes than were written", n, off)
			}
			if rng.IntN(10) == 0 {
				r.DropCache()
			}
		}
	}},
	{"ReadAtStopsAtTheEnd", func(b *bench) {
		const size = 70_000
		b.put("end", size)
		r := b.open("end")
		defer func() { _ = r.Close() }()
		for _, c := range []struct{ off, len, want int }{{size - 10, 20, 10}, {size, 1, 0}, {size + 100_000, 5, 0}, {0, size + 1, size}} {
			p := make([]byte, c.len)
			n, err := r.ReadAt(p, int64(c.off))
			if n != c.want || !errors.Is(err, io.EOF) {
				b.Errorf("read of %d at %d of %d: %d, %v; want %d and io.EOF", c.len, c.off, size, n, err, c.want)
			}
			if !bytes.Equal(p[:n], Content("end", size)[min(c.off, size):][:n]) {
				b.Errorf("read of %d at %d: other bytes than were written", c.len, c.off)
			}
		}
		if n, err := r.ReadAt(nil, 5); n != 0 || err != nil {
			b.Errorf("read of nothing: %d, %v", n, err)
		}
		if _, err := r.ReadAt(make([]byte, 1), -1); err == nil || errors.Is(err, io.EOF) {
			b.Errorf("read at -1: %v; want an error", err)
		}
	}},
	{"AnEmptyObjectEndsAtOnce", func(b *bench) {
		b.put("empty", 0)
		b.whole("empty", 0)
		r := b.open("empty")
		if n, err := r.ReadAt(make([]byte, 10), 0); n != 0 || !errors.Is(err, io.EOF) {
			b.Errorf("read: %d, %v; want 0 and io.EOF", n, err)
		}
		must(b, r.Close(), "close")
	}},
	{"ReadAtIsSafeFromManyGoroutines", func(b *bench) {
		const size = 900_000
		b.put("shared", size)
		data, r := Content("shared", size), b.open("shared")
		defer func() { _ = r.Close() }()
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(5, uint64(g)))
				for range 20 {
					off := rng.IntN(size - 50_000)
					p := make([]byte, 50_000)
					if n, err := r.ReadAt(p, int64(off)); n != len(p) || err != nil || !bytes.Equal(p, data[off:off+n]) {
						b.Errorf("read at %d: %d, %v, or other bytes than were written", off, n, err)
					}
				}
			})
		}
		wg.Wait()
	}},
	{"AReaderOfARemovedObjectNeverLies", func(b *bench) {
		const size = 300_000
		b.put("going", size)
		r := b.open("going")
		defer func() { _ = r.Close() }()
		b.remove("going")
		p := make([]byte, size)
		if n, err := r.ReadAt(p, 0); (err == nil || n == size) && !bytes.Equal(p, Content("going", size)) {
			b.Errorf("read: %d, %v and other bytes than were written", n, err)
		}
	}},
}

var nameChecks = []Check{
	{"EveryLawfulNameWorks", func(b *bench) {
		names := []string{"a", "0", "-", "_", ".a", "a.", "..a", "a..b", "abcdefghijklmnopqrstuvwxyz0123456789-_.", "q/b/c/d/e/f/g/h",
			strings.Repeat("n", 200), strings.Repeat("d/", 99) + "ef", "x.tmp", "staging/x", "sets/0f1e2d3c-0000-7000-8000-000000000001"}
		for i, n := range names {
			b.put(n, 10+i)
		}
		for i, n := range names {
			b.whole(n, 10+i)
		}
		b.lists("", names...)
		for _, n := range names {
			b.remove(n)
			b.gone(n)
		}
		b.lists("")
	}},
	{"OtherNamesAreRefused", func(b *bench) {
		for _, n := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "...", "a/..", "../a", "a/./b", "A", "ä", "a b", "a\x00", "a\nb", "a\\b", "a:b", "~staging/x",
			"a%2fb", strings.Repeat("n", 201)} {
			if o, err := b.s.Create(b.ctx, n); err == nil {
				o.Abort()
				b.Errorf("create %q went well", n)
			} else {
				b.kind(err, holdfast.Invalid, "create %q", n)
			}
			if r, err := b.s.Open(b.ctx, n); err == nil {
				_ = r.Close()
				b.Errorf("open %q went well", n)
			} else {
				b.kind(err, holdfast.Invalid, "open %q", n)
			}
			_, err := b.s.Exists(b.ctx, n)
			b.kind(err, holdfast.Invalid, "exists %q", n)
			b.kind(b.s.Remove(b.ctx, n), holdfast.Invalid, "remove %q", n)
			if n != "" {
				_, err = b.s.List(b.ctx, n)
				b.kind(err, holdfast.Invalid, "list %q", n)
			}
		}
		b.lists("")
	}},
	{"WhatIsNotThereIsNotExist", func(b *bench) {
		b.put("there/thing", 5)
		for _, n := range []string{"thing", "there", "there/thin", "there/thing2", "there/thing/below", "elsewhere/thing"} {
			b.gone(n)
			b.remove(n)
		}
		b.whole("there/thing", 5)
	}},
}

var listChecks = []Check{
	{"ListIsSortedAndByFolder", func(b *bench) {
		names := []string{"a", "b/c", "b/c.d", "b/e/f", "b/e-/g", "b-/h", "bb/i", "z"}
		for _, n := range names {
			b.put(n, 3)
		}
		b.lists("", names...)
		b.lists("b", "b/c", "b/c.d", "b/e/f", "b/e-/g")
		b.lists("b/e", "b/e/f")
		b.lists("b/c")
		b.lists("a")
		b.lists("none")
		b.lists("none/below")
	}},
	{"ALongListIsWhole", func(b *bench) {
		names := make([]string, b.h.Many)
		for i := range names {
			names[i] = fmt.Sprintf("many/%d/%06d", i%3, i)
		}
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := g; i < len(names); i += 8 {
					if err := blob.WriteAll(b.ctx, b.s, names[i], nil); err != nil {
						b.Errorf("write %s: %v", names[i], err)
					}
				}
			})
		}
		wg.Wait()
		b.lists("many", names...)
		b.lists("", names...)
	}},
}

var togetherChecks = []Check{
	{"ManyWritersDoNotMeet", func(b *bench) {
		var wg sync.WaitGroup
		var left []string
		for g := range 6 {
			for i := range 8 {
				if i%2 == 1 {
					left = append(left, fmt.Sprintf("w/%d/%d", g, i))
				}
			}
			wg.Go(func() { writer(b, g) })
		}
		wg.Wait()
		b.lists("w", left...)
		for _, n := range left {
			b.whole(n, 30_000)
		}
	}},
	{"OneNameWrittenTwiceAtOnceIsWhole", func(b *bench) {
		const size = 150_000
		var objects []blob.Object
		for range 3 {
			objects = append(objects, b.create("twice"))
		}
		var wg sync.WaitGroup
		for _, o := range objects {
			wg.Go(func() {
				if _, err := o.Write(Content("twice", size)); err != nil {
					b.Errorf("write: %v", err)
				}
				if err := o.Commit(); err != nil {
					b.Errorf("commit: %v", err)
				}
			})
		}
		wg.Wait()
		b.whole("twice", size)
		b.lists("", "twice")
		b.remove("twice")
		b.gone("twice")
	}},
	{"FoldersComeAndGoUnderWriters", func(b *bench) { // a tree of folders may tidy up; nobody may fall over that
		var wg sync.WaitGroup
		// A server whose own tree of folders changes under a list may say "internal error": that is Transient, and asked again by all who use it.
		s := blob.Retry(b.s, blob.Policy{Attempts: 8}, clock.System)
		for g := range 4 {
			wg.Go(func() {
				for i := range 10 {
					n := fmt.Sprintf("tidy/deep/%d-%d", g, i)
					if err := blob.WriteAll(b.ctx, s, n, Content(n, 10)); err != nil {
						b.Errorf("write %s: %v", n, err)
					}
					if err := s.Remove(b.ctx, n); err != nil {
						b.Errorf("remove %s: %v", n, err)
					}
					if _, err := s.List(b.ctx, "tidy"); err != nil {
						b.Errorf("list: %v", err)
					}
				}
			})
		}
		wg.Wait()
		b.lists("")
	}},
	{"AnEndedContextStopsWork", func(b *bench) {
		b.put("before", 10)
		ctx, cancel := context.WithCancel(b.ctx)
		cancel()
		if o, err := b.s.Create(ctx, "late"); err == nil { // it may also come out at Commit
			err = o.Commit()
			b.kind(err, holdfast.Cancelled, "create and commit")
		} else {
			b.kind(err, holdfast.Cancelled, "create")
		}
		if r, err := b.s.Open(ctx, "before"); err == nil {
			_ = r.Close()
			b.Errorf("open with an ended context went well")
		} else {
			b.kind(err, holdfast.Cancelled, "open")
		}
		_, err := b.s.List(ctx, "")
		b.kind(err, holdfast.Cancelled, "list")
		_, err = b.s.Exists(ctx, "before")
		b.kind(err, holdfast.Cancelled, "exists")
		b.kind(b.s.Remove(ctx, "before"), holdfast.Cancelled, "remove")
		b.whole("before", 10)
		b.gone("late")
	}},
}

// writer writes eight objects, reads them back and removes every second.
func writer(b *bench, g int) {
	for i := range 8 {
		n := fmt.Sprintf("w/%d/%d", g, i)
		if err := blob.WriteAll(b.ctx, b.s, n, Content(n, 30_000)); err != nil {
			b.Errorf("write %s: %v", n, err)
			continue
		}
		if err := Whole(b.ctx, b.s, n, 30_000); err != nil {
			b.Errorf("%v", err)
		}
		if names, err := b.s.List(b.ctx, fmt.Sprintf("w/%d", g)); err != nil || !slices.Contains(names, n) {
			b.Errorf("list: %q, %v; want %s in it", names, err, n)
		}
		if i%2 == 0 {
			if err := b.s.Remove(b.ctx, n); err != nil {
				b.Errorf("remove %s: %v", n, err)
			}
		}
	}
}

var lastingChecks = []Check{
	{"ObjectsOutliveTheStore", func(b *bench) {
		if b.h.Reopen == nil {
			b.Logf("not checked: the harness cannot reopen")
			return
		}
		b.put("x/lasting", 100_000)
		b.put("x/removed", 10)
		b.remove("x/removed")
		b.s = b.h.Reopen(b, b.s)
		b.whole("x/lasting", 100_000)
		b.gone("x/removed")
		b.remove("x/lasting")
		b.s = b.h.Reopen(b, b.s)
		b.lists("")
	}},
	{"ACrashTakesOnlyWhatWasNotCommitted", func(b *bench) {
		if b.h.Crash == nil {
			b.Logf("not checked: the harness cannot crash")
			return
		}
		b.put("x/lasting", 100_000)
		b.put("y/removed", 10)
		b.remove("y/removed")
		o := b.create("x/open")
		_, err := o.Write(Content("x/open", 50_000))
		must(b, err, "write")
		b.s = b.h.Crash(b, b.s)
		b.whole("x/lasting", 100_000)
		b.gone("x/open")
		b.gone("y/removed")
		b.lists("", "x/lasting")
		b.put("x/open", 50_000)
		b.whole("x/open", 50_000)
	}},
	{"UsageIsPlausible", func(b *bench) {
		b.put("used", 1000)
		free, size, err := b.s.Usage(b.ctx)
		must(b, err, "usage")
		if !(free == -1 && size == -1) && !(free >= 0 && free <= size && size > 0) {
			b.Errorf("usage: %d of %d free", free, size)
		}
	}},
}
