package object

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
)

// retention returns the earliest retention of the objects that a set needs.
func retention(t *testing.T, p *Pool, id holdfast.SetID) s3store.Lock {
	t.Helper()
	names, err := p.Objects(background, id)
	if err != nil {
		t.Fatal(err)
	}
	var least s3store.Lock
	for i, n := range names {
		l, err := p.pl.members[0].s.Retention(background, n)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 || l.Until.Before(least.Until) {
			least = l
		}
	}
	return least
}

// Goal: what is held cannot be deleted or shortened, by us or at the server, and a container that a newer set shares is held as long
// as that set.
func TestObjectLock(t *testing.T) {
	t.Parallel()
	y := newYard(t, "locked", true)
	s := y.spot(y.server.URL)
	s.c.ObjectLock = "compliance:10h"
	s.create(t)
	l := newLab(t, s.open(t))
	p := l.p.(*Pool)
	const size = 256 << 10
	img := noise(1, size)
	began := time.Now()
	first := l.must(l.backup(size, holdfast.SetID{}, 0, img))
	if have := retention(t, p, first); have.Mode != s3store.Compliance || have.Until.Before(began.Add(10*time.Hour-time.Second)) {
		t.Errorf("a new set is kept until %v (%s)", have.Until, have.Mode)
	}
	if err := p.Delete(background, first); !errors.Is(err, holdfast.Immutable) || holdfast.HintOf(err) == "" {
		t.Errorf("delete: %v", err)
	}
	names, err := p.Objects(background, first)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names { // the server refuses too
		if err := p.pl.members[0].s.Remove(background, n); !errors.Is(err, holdfast.Immutable) {
			t.Errorf("remove %s at the server: %v", n, err)
		}
	}
	if err := p.Hold(background, first, began.Add(time.Hour), pools.Compliance); !errors.Is(err, holdfast.Immutable) {
		t.Errorf("shorten: %v", err)
	}
	if err := p.Hold(background, first, began.Add(100*time.Hour), pools.Governance); !errors.Is(err, holdfast.Immutable) {
		t.Errorf("loosen: %v", err)
	}
	// A newer set that is held longer takes along what it shares.
	second := l.must(l.backup(size, first, 0, noise(2, 16<<10)))
	until := began.Add(500 * time.Hour)
	if err := p.Hold(background, second, until, pools.Compliance); err != nil {
		t.Fatalf("hold: %v", err)
	}
	if have := retention(t, p, second); have.Until.Before(until.Add(-time.Second)) {
		t.Errorf("an object of the held set is kept until %v, not %v", have.Until, until)
	}
	shared, err := p.pl.members[0].s.Retention(background, names[0])
	if err != nil || shared.Until.Before(until.Add(-time.Second)) {
		t.Errorf("the shared container is kept until %v, not %v: %v", shared.Until, until, err)
	}
	l.collect()
	l.collect()
	l.same(first, img)
	l.close()
	// The same with nothing known of before.
	s.env.StateDir = t.TempDir()
	l.p = s.open(t)
	if err := l.p.Delete(background, second); !errors.Is(err, holdfast.Immutable) {
		t.Errorf("delete after a restart: %v", err)
	}
	l.same(first, img)
	l.close()
}

// Goal: a set whose retention is over can be deleted, and its space comes back, versions too.
func TestRetentionEnds(t *testing.T) {
	t.Parallel()
	y := newYard(t, "ends", true)
	s := y.spot(y.server.URL)
	s.create(t)
	l := newLab(t, s.open(t))
	p := l.p.(*Pool)
	id := l.must(l.backup(64<<10, holdfast.SetID{}, 0, noise(1, 64<<10)))
	until := time.Now().Add(3 * time.Second)
	if err := p.Hold(background, id, until, pools.Governance); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(background, id); !errors.Is(err, holdfast.Immutable) {
		t.Errorf("delete: %v", err)
	}
	wait, done := context.WithDeadline(background, until.Add(1500*time.Millisecond))
	<-wait.Done()
	done()
	if err := p.Delete(background, id); err != nil {
		t.Fatalf("delete after the date: %v", err)
	}
	l.collect()
	l.collect()
	if names, err := p.pl.members[0].s.List(background, "containers"); err != nil || len(names) != 0 {
		t.Errorf("containers left: %q, %v", names, err)
	}
	l.close()
}

// Goal: a bucket that cannot lock is refused where locking is asked for.
func TestObjectLockNeedsABucketThatLocks(t *testing.T) {
	t.Parallel()
	y := newYard(t, "unlocked", false)
	s := y.spot(y.server.URL)
	s.c.ObjectLock = "compliance:1d"
	if err := create(background, s.env, s.id, raw(s.c)); !errors.Is(err, holdfast.Unsupported) || holdfast.HintOf(err) == "" {
		t.Errorf("create: %v", err)
	}
	s.c.ObjectLock = ""
	s.create(t)
	l := newLab(t, s.open(t))
	id := l.must(l.backup(64<<10, holdfast.SetID{}, 0, noise(1, 64<<10)))
	if err := l.p.(*Pool).Hold(background, id, time.Now().Add(time.Hour), pools.Compliance); !errors.Is(err, holdfast.Unsupported) {
		t.Errorf("hold: %v", err)
	}
	l.close()
}

// Goal: requests are counted and few. Method: 48 MiB in and out, counted at the transport.
func TestRequestsPerGiB(t *testing.T) {
	t.Parallel()
	y := newYard(t, "requests", false)
	s := y.spot(y.server.URL)
	s.create(t)
	l := newLab(t, s.open(t))
	p := l.p.(*Pool)
	const size = 48 << 20
	img := noise(1, size)
	count := func(what string, bound int64, f func()) {
		before := p.pl.count.All()
		f()
		n := int64(0)
		for v, c := range p.Requests() {
			d := c.Requests - before[v].Requests
			n += d
			if d > 0 {
				t.Logf("%s: %s %d", what, v, d)
			}
		}
		t.Logf("%s: %d requests, %d a GiB", what, n, n*(1<<30)/size)
		if n > bound {
			t.Errorf("%s took %d requests, more than %d", what, n, bound)
		}
	}
	var id holdfast.SetID
	count("backup", 15, func() { id = l.must(l.backup(size, holdfast.SetID{}, 0, img)) })
	count("restore", 40, func() { l.same(id, img) })
	count("collect", 20, func() { l.collect() })
	l.close()
	s.env.StateDir = t.TempDir()
	l.p = s.open(t)
	p = l.p.(*Pool)
	opened := p.pl.count.Total().Requests
	t.Logf("open without an index: %d requests for 2 containers", opened)
	if opened > 40 {
		t.Errorf("opening took %d requests", opened)
	}
	count("restore again", 80, func() { l.same(id, img) })
	l.close()
}

// Goal: bytes that nobody needs and the server still keeps are reclaimable when their lock ends, and Explain says when that is; a collect leaves them.
func TestLockedBytesWaitForTheirLock(t *testing.T) {
	t.Parallel()
	y := newYard(t, "waits", true)
	s := y.spot(y.server.URL)
	s.create(t)
	l := newLab(t, s.open(t))
	p := l.p.(*Pool)
	const size = 256 << 10
	kept := l.must(l.backup(size, holdfast.SetID{}, 0, noise(1, size)))
	gone := l.must(l.backup(size, holdfast.SetID{}, 0, noise(2, size)))
	names, err := p.Objects(background, gone)
	if err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(5 * time.Hour)
	for _, n := range names {
		if strings.HasPrefix(n, "containers/") { // as a Hold leaves them that is cut off before the set's record
			if err := p.retain(background, n, s3store.Lock{Mode: s3store.Compliance, Until: until}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := p.Delete(background, gone); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		l.collect()
		sp, err := p.Explain(background)
		if err != nil || len(sp.Waits) != 1 || sp.Waits[0].When != pools.WaitLock || sp.Waits[0].Bytes < size || sp.Waits[0].Until.Before(until.Add(-time.Second)) {
			t.Fatalf("%+v, %v", sp, err)
		}
	}
	l.same(kept, noise(1, size))
	l.close()
}
