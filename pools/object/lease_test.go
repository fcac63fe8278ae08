package object

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
)

// Goal: one appliance at a time. Method: a second one with a state folder of its own tries while the first is open, after it was closed, and
// after it died, with and without saying that it wants to take over.
func TestSecondApplianceIsRefused(t *testing.T) {
	t.Parallel()
	y := newYard(t, "lease", false)
	one := y.spot(y.server.URL)
	one.env.Clock = newFast()
	two := one
	two.env.StateDir = t.TempDir()
	one.create(t)
	p := one.open(t)
	_, err := open(background, two.env, two.id, raw(two.c))
	if !errors.Is(err, holdfast.Busy) || !strings.Contains(err.Error(), first(p).me.Host) || !strings.Contains(holdfast.HintOf(err), "take_over") {
		t.Fatalf("second appliance: %v (%s)", err, holdfast.HintOf(err))
	}
	if _, err := open(background, one.env, one.id, raw(one.c)); !errors.Is(err, holdfast.Busy) {
		t.Errorf("the same appliance twice: %v", err)
	}
	// The first one is alive: it cannot be robbed.
	two.c.TakeOver = first(p).me.Appliance
	if _, err := open(background, two.env, two.id, raw(two.c)); !errors.Is(err, holdfast.Busy) || !strings.Contains(err.Error(), "alive") {
		t.Errorf("taking over from the living: %v", err)
	}
	l := newLab(t, p)
	img := noise(1, 64<<10)
	id := l.must(l.backup(64<<10, holdfast.SetID{}, 0, img))
	// Closed, it is free for all.
	l.close()
	two.c.TakeOver = ""
	l.p = two.open(t)
	l.same(id, img)
	// Dead, it is not free before its time is over, and then only for who says so.
	name := first(l.p.(*Pool)).me.Appliance
	kill(l.p.(*Pool))
	if _, err := open(background, one.env, one.id, raw(one.c)); !errors.Is(err, holdfast.Busy) {
		t.Fatalf("after the other died: %v", err)
	}
	one.c.TakeOver = name
	began := time.Now()
	l.p = one.open(t)
	if d := time.Since(began) * speed; d < leaseTime {
		t.Errorf("taken over after %v of %v", d, leaseTime)
	}
	l.same(id, img)
	l.must(l.backup(64<<10, id, 0, noise(2, 16<<10)))
	l.close()
}

// Goal: an appliance that was cut off and taken over from writes nothing any more, and says who has the pool.
func TestFormerOwnerIsFenced(t *testing.T) {
	t.Parallel()
	y := newYard(t, "fence", false)
	proxy := s3test.NewProxy(t, y.server, 0)
	var mu sync.Mutex
	events := map[holdfast.EventType]int{}
	one := y.spot(proxy.URL)
	one.env.Clock = newFast()
	one.env.Listener = func(e holdfast.Event) {
		mu.Lock()
		defer mu.Unlock()
		events[e.Type]++
	}
	two := one
	two.env.StateDir, two.c.Endpoint = t.TempDir(), y.server.URL
	one.create(t)
	old := newLab(t, one.open(t))
	img := noise(1, 256<<10)
	id := old.must(old.backup(256<<10, holdfast.SetID{}, 0, img))
	two.c.TakeOver = first(old.p.(*Pool)).me.Appliance

	proxy.Inject(s3test.Rule{Fate: s3test.Cut, Glob: "lease", Times: -1}) // everything but its lease reaches the bucket
	now := newLab(t, two.open(t))
	if _, err := old.backup(256<<10, id, 0, noise(2, 64<<10)); err == nil {
		t.Error("the former owner wrote a set")
	}
	if err := old.p.Delete(background, id); err == nil {
		t.Error("the former owner deleted a set")
	}
	old.same(id, img) // reading harms nobody
	proxy.Clear()
	for !first(old.p.(*Pool)).gone() { // the next renewal tells it
		passed, _ := one.env.Clock.After(time.Second)
		<-passed
	}
	_, err := old.backup(256<<10, id, 0, noise(2, 64<<10))
	if !errors.Is(err, holdfast.Busy) || !strings.Contains(err.Error(), "taken the pool over") {
		t.Errorf("the former owner writes: %v", err)
	}
	old.close()
	now.disk = old.disk
	now.same(id, img)
	now.must(now.backup(256<<10, id, 0, noise(3, 64<<10)))
	now.close()
	mu.Lock()
	defer mu.Unlock()
	if events["pool-lease-lost"] != 1 || events["pool-lease-lapsed"] == 0 || events["pool-taken-over"] != 1 {
		t.Errorf("events: %v", events)
	}
}

// Goal: a line that is down for longer than the lease lasts costs the work under way, not the pool.
func TestLapsedLeaseComesBack(t *testing.T) {
	t.Parallel()
	y := newYard(t, "lapse", false)
	proxy := s3test.NewProxy(t, y.server, 0)
	s := y.spot(proxy.URL)
	s.env.Clock = newFast()
	s.create(t)
	l := newLab(t, s.open(t))
	img := noise(1, 64<<10)
	id := l.must(l.backup(64<<10, holdfast.SetID{}, 0, img))
	proxy.Inject(s3test.Rule{Fate: s3test.LoseAnswer, Glob: "lease", Times: -1}) // renewals arrive, and nobody knows
	for {
		if _, err := first(l.p.(*Pool)).holds(); err != nil {
			break
		}
		passed, _ := s.env.Clock.After(time.Second)
		<-passed
	}
	if _, err := l.backup(64<<10, id, 0, noise(2, 16<<10)); !errors.Is(err, holdfast.Transient) {
		t.Errorf("backup without a lease: %v", err)
	}
	proxy.Clear()
	for {
		if _, err := first(l.p.(*Pool)).holds(); err == nil {
			break
		}
		passed, _ := s.env.Clock.After(time.Second)
		<-passed
	}
	l.must(l.backup(64<<10, id, 0, noise(2, 16<<10)))
	l.same(id, img)
	l.close()
}

// Goal: whatever shows a configuration shows no key, and whatever is wrong with one is said.
func TestConfig(t *testing.T) {
	t.Parallel()
	c := Config{Endpoint: "https://s3.example.com", Bucket: "b", AccessKey: "the-access-key", SecretKey: "the-secret-key"}
	for how, s := range map[string]string{"%v": fmt.Sprintf("%v", c), "%+v": fmt.Sprintf("%+v", c), "%#v": fmt.Sprintf("%#v", c), "json": string(raw(c)),
		"redacted": string(Redact(json.RawMessage(`{"endpoint":"https://s3.example.com","bucket":"b","access_key":"the-access-key","secret_key":"the-secret-key"}`)))} {
		if strings.Contains(s, "the-") || !strings.Contains(s, "***") {
			t.Errorf("%s: %s", how, s)
		}
	}
	for _, bad := range []string{`{"endpint":"x"}`, `{"object_lock":"forever"}`, `{"object_lock":"compliance:0d"}`, `{"object_lock":"compliance:99999999d"}`, `{"quota":-1}`,
		`{"access_key":"a","access_key_file":"/x"}`, `{"ca_file":"/nowhere"}`, `{"endpoint":"s3.example.com","bucket":"b","access_key":"a","secret_key":"b"}`} {
		if _, err := open(background, pools.Env{}, holdfast.PoolID{}, json.RawMessage(bad)); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// Goal: a place that holds something is refused, and so is a pool that is another one.
func TestPlacesAreNotMixedUp(t *testing.T) {
	t.Parallel()
	y := newYard(t, "places", false)
	s := y.spot(y.server.URL)
	if _, err := open(background, s.env, s.id, raw(s.c)); !errors.Is(err, holdfast.NotExist) {
		t.Errorf("open where there is no pool: %v", err)
	}
	s.create(t)
	if err := create(background, s.env, s.id, raw(s.c)); !errors.Is(err, holdfast.Exist) {
		t.Errorf("create again: %v", err)
	}
	if _, err := open(background, s.env, holdfast.PoolID{ID: holdfast.NewID()}, raw(s.c)); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("open as another pool: %v", err)
	}
	p, err := open(background, s.env, holdfast.PoolID{}, raw(s.c)) // whatever pool there is
	if err != nil || p.Traits().ID != s.id {
		t.Fatalf("open without an id: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}
