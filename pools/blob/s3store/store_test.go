package s3store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"go.uber.org/goleak"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/blobtest"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
)

var background = context.Background()

// Connections that idle in a pool end after the test that made them.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// quick tries often and waits little, so that tests of failures do not take long.
var quick = blob.Policy{Attempts: 4, First: time.Millisecond, Max: 4 * time.Millisecond}

func config(s *s3test.Server, bucket string) Config {
	return Config{Endpoint: s.URL, Bucket: bucket, Region: "us-east-1", Style: PathStyle, AccessKey: Secret(s.AccessKey), SecretKey: Secret(s.SecretKey), CA: s.CA.PEM,
		Spill: fsys.NewMem(1), Retry: quick}
}

func open(t blobtest.T, c Config) *Store {
	s, err := Open(background, c)
	if err != nil {
		t.Fatalf("open: %v (%s)", err, holdfast.HintOf(err))
	}
	return s
}

func makeBucket(t blobtest.T, c Config, lock bool) {
	if err := MakeBucket(background, c, lock); err != nil {
		t.Fatalf("make bucket: %v", err)
	}
}

// A server serves all tests of the package that do not stop it.
func TestBucket(t *testing.T) {
	server := s3test.Start(t)
	for name, test := range map[string]func(*testing.T, *s3test.Server){
		"KeepsTheLaw":                              testLaw,
		"KeepsTheLawBehindAPrefixWithVersions":     testLawVersioned,
		"SaysWhatIsWrongWithTheTarget":             testWrongTarget,
		"SurvivesFaultsOfTheLine":                  testFaults,
		"FindsDamageOnTheWay":                      testDamage,
		"NeverTakesAMissingBucketForAMissingThing": testLostBucket,
		"LetsOneClaimALease":                       testLease,
		"KeepsWhatIsRetained":                      testRetention,
		"CountsRequests":                           testCount,
		"SpillsLargeObjects":                       testSpill,
	} {
		t.Run(name, func(t *testing.T) { test(t, server) })
	}
}

func testLaw(t *testing.T, server *s3test.Server) {
	c := config(server, "law")
	makeBucket(t, c, false)
	n := 0
	h := blobtest.Harness{
		New: func(bt blobtest.T) blob.Store {
			n++
			each := c
			each.Prefix = fmt.Sprintf("check-%d", n)
			return open(bt, each)
		},
		Reopen: func(bt blobtest.T, s blob.Store) blob.Store { return open(bt, s.(*Store).c) },
		Crash:  func(bt blobtest.T, s blob.Store) blob.Store { return open(bt, s.(*Store).c) },
		Many:   1100, // more than one page
	}
	for _, check := range blobtest.Checks() {
		t.Run(check.Name, func(t *testing.T) { check.Run(t, h) })
	}
}

func testLawVersioned(t *testing.T, server *s3test.Server) {
	c := config(server, "law-versioned")
	makeBucket(t, c, true)
	n := 0
	h := blobtest.Harness{New: func(bt blobtest.T) blob.Store {
		n++
		each := c
		each.Prefix = fmt.Sprintf("deep/pool-%d", n)
		s := open(bt, each)
		if !s.Versioned() || !s.Locks() {
			bt.Fatalf("versioned %v, locks %v", s.Versioned(), s.Locks())
		}
		return s
	}}
	for _, check := range blobtest.Checks() {
		t.Run(check.Name, func(t *testing.T) { check.Run(t, h) })
	}
}

func testWrongTarget(t *testing.T, server *s3test.Server) {
	good := config(server, "target")
	good.Retry = blob.Policy{Attempts: 1}
	makeBucket(t, good, false)
	proxy, expired := s3test.NewProxy(t, server, 0), s3test.NewProxy(t, server, -time.Hour)
	answers := func(status int, code string) func(*Config) {
		return func(c *Config) {
			c.Endpoint = proxy.URL
			proxy.Inject(s3test.Rule{Fate: s3test.Answer, Times: -1, Status: status, Code: code, Date: time.Now().Add(-2 * time.Hour)})
		}
	}
	for name, test := range map[string]struct {
		change func(*Config)
		kind   holdfast.Kind
		hint   string
	}{
		"the right target":     {func(*Config) {}, 0, ""},
		"unknown access key":   {func(c *Config) { c.AccessKey = "nobody" }, holdfast.Permission, "access key"},
		"wrong secret key":     {func(c *Config) { c.SecretKey = "wrong" }, holdfast.Permission, "secret key"},
		"no such bucket":       {func(c *Config) { c.Bucket = "no-such-bucket" }, holdfast.Invalid, "bucket"},
		"bad bucket name":      {func(c *Config) { c.Bucket = "A" }, holdfast.Invalid, "bucket"},
		"unknown CA":           {func(c *Config) { c.CA = nil }, holdfast.Offline, "--ca"},
		"a CA file of rubbish": {func(c *Config) { c.CA = []byte("rubbish") }, holdfast.Invalid, ""},
		"expired certificate":  {func(c *Config) { c.Endpoint = expired.URL }, holdfast.Offline, "renew"},
		"clock skew":           {answers(403, "RequestTimeTooSkewed"), holdfast.Offline, "ahead of"},
		"throttled":            {answers(503, "SlowDown"), holdfast.Transient, "busy"},
		"unavailable":          {answers(503, "ServiceUnavailable"), holdfast.Transient, "busy"},
		"no code at all":       {answers(502, ""), holdfast.Transient, "busy"},
		"no right":             {answers(403, "AccessDenied"), holdfast.Permission, "rights"},
		"another region":       {answers(400, "AuthorizationHeaderMalformed"), holdfast.Invalid, "region"},
		"quota":                {answers(403, "QuotaExceeded"), holdfast.NoSpace, "quota"},
		"nobody listens":       {func(c *Config) { c.Endpoint = "https://127.0.0.1:1" }, holdfast.Transient, "runs"},
		"no such host":         {func(c *Config) { c.Endpoint = "https://no-such-host.invalid" }, holdfast.Offline, "DNS"},
		"not TLS":              {func(c *Config) { c.Endpoint = strings.Replace(c.Endpoint, "https", "http", 1) }, 255, ""},
		"no URL":               {func(c *Config) { c.Endpoint = "s3.example.com" }, holdfast.Invalid, ""},
		"no keys":              {func(c *Config) { c.SecretKey = "" }, holdfast.Invalid, ""},
		"silence": {func(c *Config) {
			c.Endpoint, c.Timeout = proxy.URL, 50*time.Millisecond
			proxy.Inject(s3test.Rule{Fate: s3test.Hang, Times: -1})
		}, holdfast.Transient, "line"},
	} {
		t.Run(name, func(t *testing.T) {
			defer proxy.Clear()
			c := good
			test.change(&c)
			s, err := Open(background, c)
			if err == nil {
				_ = s.Close()
			}
			switch {
			case test.kind == 255:
				if err == nil {
					t.Error("the open went well")
				}
			case test.kind == 0 && err == nil:
			case holdfast.KindOf(err) != test.kind || !strings.Contains(holdfast.HintOf(err), test.hint):
				t.Errorf("%v\nkind %v, want %v\nadvice %q, want %q in it", err, holdfast.KindOf(err), test.kind, holdfast.HintOf(err), test.hint)
			}
			for _, shown := range []string{fmt.Sprint(err), holdfast.HintOf(err), fmt.Sprintf("%v %+v %#v %s %q %x", c, c, c, c.SecretKey, c.SecretKey, c.SecretKey)} {
				if strings.Contains(shown, server.SecretKey) || strings.Contains(shown, fmt.Sprintf("%x", server.SecretKey)) {
					t.Error("the secret shows")
				}
			}
			if b, err := json.Marshal(struct{ A, B Secret }{c.AccessKey, c.SecretKey}); err != nil || string(b) != `{"A":"***","B":"***"}` {
				t.Errorf("as JSON: %s, %v", b, err)
			}
		})
	}
}

// Method: each fault once, and each all the time. Once, the work must go well; all the time it must fail cleanly, and in both cases
// an object that was acknowledged is there, whole.
func testFaults(t *testing.T, server *s3test.Server) {
	c := config(server, "faults")
	makeBucket(t, c, true) // with versions, so that an object sent twice shows
	proxy := s3test.NewProxy(t, server, 0)
	c.Endpoint = proxy.URL
	c.Timeout = 300 * time.Millisecond
	c.Retry = blob.Policy{Attempts: 2, First: time.Millisecond, Max: time.Millisecond} // minio-go pauses by itself at each failure
	raw := open(t, c)
	defer raw.Close()
	s := blob.Retry(raw, c.Retry, raw.c.Clock)
	const size = 200_000
	for name, rule := range map[string]s3test.Rule{
		"503":          {Fate: s3test.Answer, Status: 503, Code: "ServiceUnavailable"},
		"slow down":    {Fate: s3test.Answer, Status: 503, Code: "SlowDown"},
		"500":          {Fate: s3test.Answer, Status: 500, Code: "InternalError"},
		"cut":          {Fate: s3test.Cut},
		"lost answer":  {Fate: s3test.LoseAnswer},
		"cut answer":   {Fate: s3test.Truncate},
		"silence":      {Fate: s3test.Hang},
		"sent twice":   {Fate: s3test.Twice},
		"flipped body": {Fate: s3test.FlipBody},
	} {
		t.Run(name, func(t *testing.T) {
			key := "x/" + strings.ReplaceAll(name, " ", "-")
			step := func(method string, once bool, do func() error) {
				t.Helper()
				rule.Method, rule.Times = method, -1
				if once {
					rule.Times = 1
				}
				proxy.Inject(rule)
				err := do()
				proxy.Clear()
				var known *holdfast.Error
				if once && err != nil || err != nil && !errors.As(err, &known) {
					t.Errorf("%s, once %v: %v", method, once, err)
				}
			}
			for i, once := range []bool{true, false} {
				n := fmt.Sprintf("%s-%d", key, i)
				var done bool
				step("PUT", once, func() error {
					err := blob.WriteAll(background, s, n, blobtest.Content(n, size))
					done = err == nil
					return err
				})
				if err := blobtest.Whole(background, s, n, size); err != nil && (done || !errors.Is(err, holdfast.NotExist)) {
					t.Errorf("acknowledged %v: %v", done, err)
				}
				if err := blob.WriteAll(background, s, n, blobtest.Content(n, size)); err != nil {
					t.Error(err)
				}
				step("GET", once, func() error { return blobtest.Whole(background, s, n, size) })
				step("HEAD", once, func() error { _, err := s.Exists(background, n); return err })
				step("GET", once, func() error { _, err := s.List(background, "x"); return err })
				step("DELETE", once, func() error { return s.Remove(background, n) })
				if err := s.Remove(background, n); err != nil {
					t.Error(err)
				}
				if is, err := s.Exists(background, n); is || err != nil {
					t.Errorf("after Remove: %v, %v", is, err)
				}
			}
		})
	}
	t.Run("a listing that is behind", func(t *testing.T) {
		if err := blob.WriteAll(background, s, "y/late", nil); err != nil {
			t.Fatal(err)
		}
		proxy.Inject(s3test.Rule{Fate: s3test.Hide, Method: "GET", Hidden: "late", Times: -1})
		if names, err := s.List(background, "y"); len(names) != 0 || err != nil {
			t.Errorf("list: %q, %v", names, err)
		}
		if is, err := s.Exists(background, "y/late"); !is || err != nil {
			t.Errorf("exists: %v, %v", is, err)
		}
		if err := s.Remove(background, "y/late"); err != nil {
			t.Error(err)
		}
		proxy.Clear()
		if is, err := s.Exists(background, "y/late"); is || err != nil {
			t.Errorf("removed although unlisted: %v, %v", is, err)
		}
	})
}

func testDamage(t *testing.T, server *s3test.Server) {
	c := config(server, "damage")
	c.Retry = blob.Policy{Attempts: 1}
	makeBucket(t, c, false)
	proxy := s3test.NewProxy(t, server, 0)
	c.Endpoint = proxy.URL
	s := open(t, c)
	defer s.Close()
	struck := proxy.Inject(s3test.Rule{Fate: s3test.FlipBody, Method: "PUT"})
	if err := blob.WriteAll(background, s, "flipped", make([]byte, 1000)); !errors.Is(err, holdfast.Transient) || struck() != 1 {
		t.Errorf("a flipped bit on the way to the server: %v", err)
	}
	if is, err := s.Exists(background, "flipped"); is || err != nil {
		t.Errorf("exists: %v, %v", is, err)
	}
	if s.md5.Load() {
		t.Error("the server is thought not to confirm CRC-32C")
	}
	s.md5.Store(true) // as for a server that does not
	if err := blob.WriteAll(background, s, "with-md5", make([]byte, 1000)); err != nil {
		t.Error(err)
	}
}

func testLostBucket(t *testing.T, server *s3test.Server) {
	c := config(server, "lost")
	makeBucket(t, c, false)
	s := open(t, c)
	defer s.Close()
	if err := s.core.RemoveBucket(background, "lost"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Exists(background, "x"); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("exists: %v", err)
	}
	if _, err := s.Open(background, "x"); !errors.Is(err, holdfast.Invalid) || errors.Is(err, holdfast.NotExist) {
		t.Errorf("open: %v", err)
	}
	if _, err := s.List(background, ""); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("list: %v", err)
	}
	if err := s.Remove(background, "x"); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("remove: %v", err)
	}
}

func testLease(t *testing.T, server *s3test.Server) {
	c := config(server, "lease")
	makeBucket(t, c, false)
	proxy := s3test.NewProxy(t, server, 0)
	c.Endpoint = proxy.URL
	s := open(t, c)
	defer s.Close()
	if err := s.CheckConditions(background); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var winners []Tag
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			tag, err := s.PutNew(background, "owner", fmt.Appendf(nil, "appliance %d", i))
			if err != nil && !errors.Is(err, holdfast.Exist) {
				t.Error(err)
			}
			if err == nil {
				mu.Lock()
				winners = append(winners, tag)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(winners) != 1 {
		t.Fatalf("%d claimed the lease; want 1", len(winners))
	}
	body, tag, err := s.GetTagged(background, "owner")
	if err != nil || tag != winners[0] || !strings.HasPrefix(string(body), "appliance ") {
		t.Fatalf("%q, %v, %v", body, tag, err)
	}
	proxy.Inject(s3test.Rule{Fate: s3test.LoseAnswer, Method: "PUT"})
	renewed, err := s.PutOver(background, "owner", []byte("renewed"), tag)
	if err != nil {
		t.Fatalf("renew with a lost answer: %v", err)
	}
	if _, err := s.PutOver(background, "owner", []byte("late"), tag); !errors.Is(err, holdfast.Exist) {
		t.Errorf("renew with an old tag: %v", err)
	}
	if body, tag, err := s.GetTagged(background, "owner"); err != nil || string(body) != "renewed" || tag != renewed {
		t.Errorf("%q, %v, %v", body, tag, err)
	}
	proxy.Inject(s3test.Rule{Fate: s3test.LoseAnswer, Method: "PUT"})
	if _, err := s.PutNew(background, "second", []byte("mine")); err != nil {
		t.Errorf("claim with a lost answer: %v", err)
	}
	versioned := config(server, "lease-versions")
	makeBucket(t, versioned, true)
	v := open(t, versioned)
	defer v.Close()
	last, err := v.PutNew(background, "owner", []byte("0"))
	for i := 1; i < 5 && err == nil; i++ {
		last, err = v.PutOver(background, "owner", fmt.Append(nil, i), last)
	}
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for range v.core.ListObjectsIter(background, v.c.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		kept++
	}
	if body, _, err := v.GetTagged(background, "owner"); err != nil || string(body) != "4" || kept != 1 {
		t.Errorf("after four renewals: %q, %v, %d versions; want 1", body, err, kept)
	}
	if _, _, err := s.GetTagged(background, "none"); !errors.Is(err, holdfast.NotExist) {
		t.Error(err)
	}
}

func testRetention(t *testing.T, server *s3test.Server) {
	c := config(server, "locked")
	makeBucket(t, c, true)
	s := open(t, c)
	defer s.Close()
	now := time.Now()
	for _, n := range []string{"c", "g", "free"} {
		if err := blob.WriteAll(background, s, n, blobtest.Content(n, 500)); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v (%s)", err, holdfast.HintOf(err))
		}
	}
	must(s.Retain(background, "c", Lock{Compliance, now.Add(time.Hour)}))
	must(s.Retain(background, "g", Lock{Governance, now.Add(time.Hour)}))
	for _, n := range []string{"c", "g"} {
		if err := s.Remove(background, n); !errors.Is(err, holdfast.Immutable) || holdfast.HintOf(err) == "" {
			t.Errorf("remove %s: %v", n, err)
		}
		if err := blobtest.Whole(background, s, n, 500); err != nil {
			t.Error(err)
		}
	}
	must(s.Retain(background, "c", Lock{Compliance, now.Add(3 * time.Hour)}))
	must(s.Retain(background, "c", Lock{Compliance, now.Add(2 * time.Hour)})) // shorter: no change
	must(s.Retain(background, "c", Lock{Governance, now.Add(time.Minute)}))   // laxer: no change
	held, err := s.Retention(background, "c")
	if err != nil || held.Mode != Compliance || held.Until.Before(now.Add(3*time.Hour).Truncate(time.Second)) {
		t.Errorf("%v, %v", held, err)
	}
	// The server itself refuses to shorten, whoever asks.
	if err := s.setRetention(background, "shorten", "c", "", Lock{Compliance, now.Add(time.Hour)}, true); !errors.Is(err, holdfast.Immutable) {
		t.Errorf("shorten: %v, kind %v", err, holdfast.KindOf(err))
	}
	testForced(t, s, now)
	must(s.Retain(background, "g", Lock{Governance, now.Add(2 * time.Hour)}))
	must(s.Retain(background, "g", Lock{Compliance, now.Add(time.Hour)}))
	if held, err := s.Retention(background, "g"); err != nil || held.Mode != Compliance || held.Until.Before(now.Add(2*time.Hour).Truncate(time.Second)) {
		t.Errorf("stricter: %v, %v", held, err)
	}
	if held, err := s.Retention(background, "free"); err != nil || held != (Lock{}) {
		t.Errorf("free: %v, %v", held, err)
	}
	must(s.Remove(background, "free"))
	if err := s.Retain(background, "c", Lock{Compliance, now.Add(-time.Hour)}); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("a date that has passed: %v", err)
	}
	if err := s.Retain(background, "none", Lock{Compliance, now.Add(time.Hour)}); !errors.Is(err, holdfast.NotExist) {
		t.Errorf("nothing there: %v", err)
	}
	plain := config(server, "unlocked")
	makeBucket(t, plain, false)
	u := open(t, plain)
	defer u.Close()
	must(blob.WriteAll(background, u, "x", nil))
	if err := u.Retain(background, "x", Lock{Compliance, now.Add(time.Hour)}); !errors.Is(err, holdfast.Unsupported) {
		t.Errorf("a bucket without Object Lock: %v, kind %v", err, holdfast.KindOf(err))
	}
}

// testForced goes past the store: every version of what is kept is deleted and shortened by bare requests, COMPLIANCE also with the right to bypass
// GOVERNANCE. The server must refuse each, and the bytes must be there.
func testForced(t *testing.T, s *Store, now time.Time) {
	t.Helper()
	tried := 0
	for o := range s.core.ListObjectsIter(background, s.c.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		bypasses := map[string][]bool{"c": {false, true}, "g": {false}}[o.Key]
		for _, bypass := range bypasses {
			tried++
			if err := s.core.RemoveObject(background, s.c.Bucket, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID, GovernanceBypass: bypass}); err == nil {
				t.Errorf("the server deleted %s, bypass %v", o.Key, bypass)
			}
			mode, until := minio.Governance, now.Add(time.Minute)
			err := s.core.PutObjectRetention(background, s.c.Bucket, o.Key, minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until, VersionID: o.VersionID, GovernanceBypass: bypass})
			if err == nil {
				t.Errorf("the server shortened %s, bypass %v", o.Key, bypass)
			}
		}
	}
	if tried != 3 {
		t.Errorf("%d versions were attacked, want 3", tried)
	}
	if err := s.core.RemoveBucket(background, s.c.Bucket); err == nil {
		t.Error("the server removed the bucket")
	}
	for _, n := range []string{"c", "g"} {
		if err := blobtest.Whole(background, s, n, 500); err != nil {
			t.Error(err)
		}
		if held, err := s.Retention(background, n); err != nil || held.Until.Before(now.Add(time.Hour).Truncate(time.Second)) {
			t.Errorf("%s is kept until %v: %v", n, held.Until, err)
		}
	}
}

func testCount(t *testing.T, server *s3test.Server) {
	c := config(server, "count")
	makeBucket(t, c, false)
	c.Count = &blob.Requests{}
	s := open(t, c)
	defer s.Close()
	before := c.Count.Total().Requests
	if err := blob.WriteAll(background, s, "a", make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if b, err := blob.ReadAll(background, s, "a", 1000); err != nil || len(b) != 1000 {
		t.Fatal(err)
	}
	for v, want := range map[blob.Verb]blob.Count{blob.VerbCommit: {Requests: 1, Bytes: 1000}, blob.VerbRead: {Requests: 1, Bytes: 1000}, blob.VerbExists: {Requests: 1}} {
		if got := c.Count.Of(v); got != want {
			t.Errorf("%v: %+v, want %+v", v, got, want)
		}
	}
	if n := c.Count.Total().Requests - before; n != 3 {
		t.Errorf("%d requests for writing and reading one object; want 3", n)
	}
}

func testSpill(t *testing.T, server *s3test.Server) {
	c := config(server, "spill")
	makeBucket(t, c, false)
	mem := fsys.NewMem(1)
	full := fsys.NewFault(mem)
	c.Spill, c.MaxObject = full, 20<<20
	s := open(t, c)
	defer s.Close()
	files := func() int {
		names, err := mem.List(spillDir)
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	o, err := s.Create(background, "large")
	if err != nil {
		t.Fatal(err)
	}
	data := blobtest.Content("large", 12<<20)
	for i := 0; i < len(data); i += 1 << 20 {
		if _, err := o.Write(data[i : i+1<<20]); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{true: 1}[i+1<<20 > spillAbove]; files() != want {
			t.Fatalf("%d spill files after %d bytes; want %d", files(), i+1<<20, want)
		}
	}
	if err := o.Commit(); err != nil || files() != 0 {
		t.Fatalf("%v, %d spill files left", err, files())
	}
	if err := blobtest.Whole(background, s, "large", len(data)); err != nil {
		t.Error(err)
	}
	if err := blob.WriteAll(background, s, "too-large", make([]byte, 20<<20+1)); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("more than MaxObject: %v", err)
	}
	full.SetFree(9 << 20)
	if err := blob.WriteAll(background, s, "no-room", make([]byte, 12<<20)); !errors.Is(err, holdfast.NoSpace) {
		t.Errorf("a full spill disk: %v", err)
	}
	if files() != 0 {
		t.Errorf("%d spill files left", files())
	}
	if _, err := mem.Create(spillDir + "/of-the-dead"); err != nil {
		t.Fatal(err)
	}
	if open(t, c); files() != 0 {
		t.Errorf("%d spill files after Open", files())
	}
}
