package object

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
	"github.com/holdfast-backup/holdfast/pools/memory/memorytest"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

// Goal: whatever happens, object and memory pools restore the same. Method: random histories with crashes and restarts, the last one
// through a line on which every kind of fault that passes comes up again and again.
func TestHistoriesRestoreAsTheReferenceDoes(t *testing.T) {
	t.Parallel()
	y := newYard(t, "histories", false)
	for seed := range uint64(soak()) {
		pooltest.RunHistory(t, pooltest.History{Seed: seed, Steps: 30, Pools: map[string]pooltest.Harness{"object": y.harness(), "memory": memorytest.Harness()}})
	}
}

// passing are the faults of a line or server that pass, each as it comes up at some request.
var passing = map[string]s3test.Rule{
	"unavailable":             {Fate: s3test.Answer, Status: 503, Code: "ServiceUnavailable"},
	"slow down":               {Fate: s3test.Answer, Status: 503, Code: "SlowDown"},
	"internal error":          {Fate: s3test.Answer, Status: 500, Code: "InternalError"},
	"connection cut":          {Fate: s3test.Cut},
	"answer lost":             {Fate: s3test.LoseAnswer},
	"answer cut":              {Fate: s3test.Truncate, Method: "GET"},
	"lost PUT that was there": {Fate: s3test.LoseAnswer, Method: "PUT"},
	"PUT sent twice":          {Fate: s3test.Twice, Method: "PUT"},
	"PUT damaged":             {Fate: s3test.FlipBody, Method: "PUT", Glob: "0*"},
	"listing without sets":    {Fate: s3test.Hide, Method: "GET", Query: "list-type", Hidden: "*.set"},
	"no answer":               {Fate: s3test.Hang},
	"listing without data":    {Fate: s3test.Hide, Method: "GET", Query: "list-type", Hidden: "0*"},
}

// Goal: a fault that passes is no failure: backup, restore, delete and collect finish, and no acknowledged set is lost.
// Method: each fault at the n-th matching request and then every 7th, for n up to HOLDFAST_SOAK, against the whole life of a pool.
func TestFaultsThatPassAreNoFailures(t *testing.T) {
	t.Parallel()
	y := newYard(t, "faults", false)
	for name, rule := range passing {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			proxy := s3test.NewProxy(t, y.server, 0)
			struck := 0
			often := 8
			if rule.Fate == s3test.Hang {
				often = 2 // each takes a request's time
			}
			for nth := 1; nth <= soak(); nth++ {
				s := y.spot(proxy.URL)
				if rule.Fate == s3test.Hang {
					s.c.Timeout = "1s"
				}
				s.env.Clock = newFast()
				s.create(t)
				var hits []func() int
				for k := range often {
					r := rule
					r.Nth = nth + 7*k
					hits = append(hits, proxy.Inject(r))
				}
				life(t, s)
				for _, h := range hits {
					struck += h()
				}
				proxy.Clear()
			}
			if struck == 0 {
				t.Error("the fault never came up")
			}
		})
	}
}

// life goes through all a pool does.
func life(t *testing.T, s spot) {
	t.Helper()
	l := newLab(t, s.open(t))
	const size = 1 << 20
	img := noise(1, size)
	first := l.must(l.backup(size, holdfast.SetID{}, 0, img))
	change := noise(2, 256<<10)
	second := l.must(l.backup(size, first, 512<<10, change))
	now := append([]byte(nil), img...)
	copy(now[512<<10:], change)
	l.same(first, img)
	l.same(second, now)
	l.close()
	l.p = s.open(t)
	if err := l.p.Delete(background, first); err != nil {
		t.Fatalf("delete: %v", err)
	}
	for range 3 {
		l.collect()
	}
	l.same(second, now)
	l.close()
	s.env.StateDir = t.TempDir() // the index is lost
	l.p = s.open(t)
	l.same(second, now)
	if rep, err := l.p.(pools.Verifier).Verify(background, pools.VerifyOptions{}); err != nil || len(rep.Damaged) != 0 {
		t.Fatalf("verify: %+v, %v", rep, err)
	}
	l.close()
}

// Goal: a fault that stays fails the backup with a clear error; what was acknowledged is there when it is over, and the pool goes on.
func TestFaultsThatStayFailCleanly(t *testing.T) {
	t.Parallel()
	y := newYard(t, "failures", false)
	proxy := s3test.NewProxy(t, y.server, 0)
	for name, test := range map[string]struct {
		rule s3test.Rule
		kind holdfast.Kind
	}{
		"no space":   {s3test.Rule{Fate: s3test.Answer, Method: "PUT", Glob: "0*", Status: 507, Code: "XMinioStorageFull"}, holdfast.NoSpace},
		"no right":   {s3test.Rule{Fate: s3test.Answer, Method: "PUT", Glob: "0*", Status: 403, Code: "AccessDenied"}, holdfast.Permission},
		"no record":  {s3test.Rule{Fate: s3test.Answer, Method: "PUT", Glob: "*.set", Status: 403, Code: "AccessDenied"}, holdfast.Permission},
		"wrong key":  {s3test.Rule{Fate: s3test.Answer, Status: 403, Code: "SignatureDoesNotMatch"}, holdfast.Permission},
		"no bucket":  {s3test.Rule{Fate: s3test.Answer, Status: 404, Code: "NoSuchBucket"}, holdfast.Invalid},
		"silence":    {s3test.Rule{Fate: s3test.Hang, Method: "PUT", Glob: "0*"}, holdfast.Transient},
		"always cut": {s3test.Rule{Fate: s3test.Cut, Method: "PUT", Glob: "0*"}, holdfast.Transient},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			s := y.spot(proxy.URL)
			s.c.Timeout = "500ms"
			s.env.Clock = newFast()
			s.create(t)
			l := newLab(t, s.open(t))
			img := noise(1, 256<<10)
			id := l.must(l.backup(256<<10, holdfast.SetID{}, 0, img))
			test.rule.Times = -1
			proxy.Inject(test.rule)
			_, err := l.backup(256<<10, id, 0, noise(2, 64<<10))
			if holdfast.KindOf(err) != test.kind || err == nil || holdfast.HintOf(err) == "" {
				t.Errorf("backup: %v, kind %v, hint %q; want %v", err, holdfast.KindOf(err), holdfast.HintOf(err), test.kind)
			}
			proxy.Clear()
			l.same(id, img)
			next := l.must(l.backup(256<<10, id, 0, noise(2, 64<<10)))
			l.collect()
			l.collect()
			l.same(id, img)
			n := 0
			for m, err := range l.p.Sets(background) {
				if err != nil || m.ID != id && m.ID != next {
					t.Errorf("listed: %v, %v", m.ID, err)
				}
				n++
			}
			if n != 2 {
				t.Errorf("%d sets", n)
			}
			l.close()
		})
	}
}

// Goal: killed at any moment, an appliance finds its pool again at once, with all it acknowledged.
func TestKilledInTheMiddle(t *testing.T) {
	t.Parallel()
	y := newYard(t, "killed", false)
	proxy := s3test.NewProxy(t, y.server, 0)
	s := y.spot(proxy.URL)
	s.create(t)
	l := newLab(t, s.open(t))
	const size = 256 << 10
	var sets []holdfast.SetID
	var images [][]byte
	for round := range 6 * soak() {
		img := noise(uint64(round), size)
		sets, images = append(sets, l.must(l.backup(size, holdfast.SetID{}, 0, img))), append(images, img)
		// From here on the process is cut off in the middle of the next backup, at the n-th PUT, whose answer is lost too.
		proxy.Inject(s3test.Rule{Fate: s3test.LoseAnswer, Method: "PUT", Nth: 1 + round%4})
		proxy.Inject(s3test.Rule{Fate: s3test.Hang, Nth: 1 + 3*(round%4), Times: -1})
		var wg sync.WaitGroup
		var die context.CancelFunc
		l.ctx, die = context.WithCancel(background)
		wg.Go(func() { _, _ = l.backup(size, sets[round], 0, noise(uint64(100+round), 64<<10)) })
		dead := l.p.(*Pool)
		passed, _ := newFast().After(2e9)
		<-passed
		die()
		kill(dead)
		proxy.Clear()
		wg.Wait()
		l.ctx, l.p = background, s.open(t)
		l.collect()
		l.collect()
		for i, id := range sets {
			l.same(id, images[i])
		}
	}
	l.close()
}
