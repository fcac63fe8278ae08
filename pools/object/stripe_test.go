package object

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory/memorytest"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

// stripe returns a place over three buckets of the yard.
func (y *yard) stripe(endpoint string) spot {
	s := y.spot(endpoint)
	s.c.Bucket, s.c.Stripe = "", "2+1"
	s.c.Buckets = []string{y.bucket, y.bucket + "-b", y.bucket + "-c"}
	return s
}

func newStripeYard(t *testing.T, bucket string, lock bool) *yard {
	y := newYard(t, bucket, lock)
	for _, more := range []string{"-b", "-c", "-d"} {
		y.makeBucket(bucket+more, lock)
	}
	return y
}

// Goal: a pool over three buckets keeps every promise, histories included.
func TestStripedConformance(t *testing.T) {
	t.Parallel()
	y := newStripeYard(t, "striped", false)
	spots := newSpots()
	open := spots.open
	h := pooltest.Harness{
		New: func(t pooltest.T) pools.Pool {
			s := y.stripe(y.server.URL)
			s.create(t)
			return open(t, s)
		},
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return open(t, spots.of(p))
		},
		Crash: func(t pooltest.T, p pools.Pool) pools.Pool {
			kill(p.(*Pool))
			return open(t, spots.of(p))
		},
	}
	for i, c := range pooltest.Checks() {
		if i%6 != 0 && soak() == 1 { // the whole table is run over stripes of folders, and here on demand
			continue
		}
		t.Run(strings.ReplaceAll(c.Name, "/", "-"), func(t *testing.T) {
			t.Parallel()
			c.Run(t, h)
		})
	}
	pooltest.RunHistory(t, pooltest.History{Seed: 5, Steps: 20 * soak(), Pools: map[string]pooltest.Harness{"striped": h, "memory": memorytest.Harness()}})
}

// Goal: any one of three buckets can be lost, a new one is rebuilt while backups run, and then another can be lost.
func TestLostBucketIsReplaced(t *testing.T) {
	t.Parallel()
	y := newStripeYard(t, "lost", false)
	var mu sync.Mutex
	events := map[holdfast.EventType]int{}
	s := y.stripe(y.server.URL)
	s.env.Clock = newFast()
	s.env.Listener = func(e holdfast.Event) {
		mu.Lock()
		defer mu.Unlock()
		events[e.Type]++
	}
	s.create(t)
	l := newLab(t, s.open(t))
	img := noise(1, 512<<10)
	ids := []holdfast.SetID{l.must(l.backup(512<<10, holdfast.SetID{}, 0, img))}
	l.close()
	good := s.c.Buckets
	for i := range good {
		s.c.Buckets = slices.Clone(good)
		s.c.Buckets[i] = fmt.Sprintf("gone-%d", i)
		l.p = s.open(t)
		l.same(ids[0], img)
		ids = append(ids, l.must(l.backup(512<<10, ids[0], 0, img[:16<<10])))
		l.close()
		// It is back, without what was written meanwhile.
		s.c.Buckets = good
		l.p = s.open(t)
		if rep, err := l.p.(pools.Verifier).Verify(background, pools.VerifyOptions{}); err != nil || len(rep.Damaged) != 0 {
			t.Fatalf("verify: %+v, %v", rep.Damaged, err)
		}
		l.close()
	}
	mu.Lock()
	if events["stripe-member-lost"] < 3 {
		t.Errorf("events: %v", events)
	}
	mu.Unlock()
	// The second bucket is lost for good, and a new one takes its place.
	s.c.Buckets = slices.Clone(good)
	s.c.Buckets[1] = "gone-for-good"
	l.p = s.open(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 4 {
			id, err := l.backup(512<<10, ids[0], int64(i)<<14, img[i<<14:][:16<<10])
			if err != nil {
				t.Errorf("backup beside the rebuild: %v", err)
			}
			mu.Lock()
			ids = append(ids, id)
			mu.Unlock()
		}
	})
	if err := l.p.(*Pool).RebuildPath(background, "gone-for-good", "lost-d", nil); err != nil {
		t.Fatalf("rebuild: %v", err)
	}
	wg.Wait()
	l.close()
	raw2, err := replacePath(raw(s.c), "gone-for-good", "lost-d")
	if err != nil || !bytes.Contains(raw2, []byte("lost-d")) {
		t.Fatalf("replace path: %s, %v", raw2, err)
	}
	s.c.Buckets = []string{"gone-again", "lost-d", good[2]}
	l.p = s.open(t)
	for _, id := range ids {
		l.same(id, img)
	}
	l.close()
}

// Goal: retention holds on every bucket of a stripe.
func TestObjectLockOnAStripe(t *testing.T) {
	t.Parallel()
	y := newStripeYard(t, "stripelock", true)
	s := y.stripe(y.server.URL)
	s.c.ObjectLock = "compliance:10h"
	s.create(t)
	l := newLab(t, s.open(t))
	id := l.must(l.backup(64<<10, holdfast.SetID{}, 0, noise(1, 64<<10)))
	p := l.p.(*Pool)
	names, err := p.Objects(background, id)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		for _, m := range p.pl.live() {
			if err := m.s.Remove(background, n); holdfast.KindOf(err) != holdfast.Immutable {
				t.Errorf("remove %s from %s: %v", n, m.name, err)
			}
		}
	}
	if err := p.Delete(background, id); holdfast.KindOf(err) != holdfast.Immutable {
		t.Errorf("delete: %v", err)
	}
	l.close()
}

// Goal: a destroyed pool leaves nothing, and its place can be used again; identify takes no lease.
func TestDestroyAndIdentify(t *testing.T) {
	t.Parallel()
	y := newStripeYard(t, "destroy", false)
	for _, s := range []spot{y.spot(y.server.URL), y.stripe(y.server.URL)} {
		s.create(t)
		l := newLab(t, s.open(t))
		l.must(l.backup(64<<10, holdfast.SetID{}, 0, noise(1, 64<<10)))
		if id, err := identify(background, pools.Env{}, raw(s.c)); id != s.id || err != nil {
			t.Errorf("identify: %v, %v", id, err)
		}
		if err := destroy(background, s.env, s.id, raw(s.c)); holdfast.KindOf(err) != holdfast.Busy {
			t.Errorf("destroy an open pool: %v", err)
		}
		l.close()
		if err := destroy(background, s.env, s.id, raw(s.c)); err != nil {
			t.Fatalf("destroy: %v", err)
		}
		if _, err := identify(background, pools.Env{}, raw(s.c)); holdfast.KindOf(err) != holdfast.NotExist {
			t.Errorf("identify after destroy: %v", err)
		}
		s.create(t)
	}
}
