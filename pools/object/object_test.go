package object

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
	"github.com/holdfast-backup/holdfast/pools/container"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

var background = context.Background()

// Connections that idle in a pool end after the test that made them.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// soak returns by how much HOLDFAST_SOAK multiplies a campaign.
func soak() int {
	n, err := strconv.Atoi(os.Getenv("HOLDFAST_SOAK"))
	if err != nil {
		return 1
	}
	return max(1, min(n, 1000))
}

// A yard is a server with a bucket, in which every pool has a prefix of its own.
type yard struct {
	t      *testing.T
	server *s3test.Server
	bucket string
	files  string // with keys and certificates
	pools  atomic.Int32
}

func newYard(t *testing.T, bucket string, lock bool) *yard {
	t.Helper()
	y := &yard{t: t, server: s3test.Start(t), bucket: bucket, files: t.TempDir()}
	for name, b := range map[string][]byte{"ca": y.server.CA.PEM, "access": []byte(y.server.AccessKey + "\n"), "secret": []byte(y.server.SecretKey + "\n")} {
		if err := os.WriteFile(filepath.Join(y.files, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	y.makeBucket(bucket, lock)
	return y
}

func (y *yard) makeBucket(name string, lock bool) {
	y.t.Helper()
	err := s3store.MakeBucket(background, s3store.Config{Endpoint: y.server.URL, Bucket: name, Region: "us-east-1", Style: s3store.PathStyle,
		AccessKey: s3store.Secret(y.server.AccessKey), SecretKey: s3store.Secret(y.server.SecretKey), CA: y.server.CA.PEM}, lock)
	if err != nil {
		y.t.Fatalf("make bucket: %v", err)
	}
}

// config returns the configuration of a pool with a prefix of its own.
func (y *yard) config(endpoint string) Config {
	yes := true
	return Config{Endpoint: endpoint, Bucket: y.bucket, Prefix: fmt.Sprintf("pool-%d", y.pools.Add(1)), Region: "us-east-1", PathStyle: &yes,
		CAFile: filepath.Join(y.files, "ca"), AccessKeyFile: filepath.Join(y.files, "access"), SecretKeyFile: filepath.Join(y.files, "secret")}
}

func raw(c Config) json.RawMessage {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return b
}

// A spot is a pool's place and the appliance that uses it.
type spot struct {
	env pools.Env
	id  holdfast.PoolID
	c   Config
}

func (y *yard) spot(endpoint string) spot {
	return spot{env: pools.Env{StateDir: y.t.TempDir()}, id: holdfast.PoolID{ID: holdfast.NewID()}, c: y.config(endpoint)}
}

func (s spot) create(t pooltest.T) {
	if err := create(background, s.env, s.id, raw(s.c)); err != nil {
		t.Fatalf("create: %v (%s)", err, holdfast.HintOf(err))
	}
}

func (s spot) open(t pooltest.T) *Pool {
	p, err := open(background, s.env, s.id, raw(s.c))
	if err != nil {
		t.Fatalf("open: %v (%s)", err, holdfast.HintOf(err))
	}
	return p
}

// first returns the lease of a pool's first bucket.
func first(p *Pool) *lease { return p.pl.members[0].l }

// kill leaves a pool as a dead process does: nothing is given back but what the system takes back.
func kill(p *Pool) {
	if p.pl.stripe != nil {
		_ = p.pl.stripe.Close()
		p.pl.stripe = nil
	}
	for _, m := range p.pl.members {
		if m.l == nil {
			continue
		}
		m.l.stop()
		<-m.l.ended
		m.l.mu.Lock()
		m.l.lost = holdfast.Errorf(holdfast.Busy, "write to pool", "the process is dead")
		m.l.lapse()
		m.l.mu.Unlock()
	}
	p.Abandon() // closes the place; the leases are as good as lost
}

// spots says where open pools lie; several checks may use it at a time.
type spots struct{ m sync.Map }

func newSpots() *spots { return &spots{} }

func (x *spots) open(t pooltest.T, s spot) pools.Pool {
	p := s.open(t)
	x.m.Store(p, s)
	return p
}

func (x *spots) of(p pools.Pool) spot {
	s, _ := x.m.Load(p)
	return s.(spot)
}

func (y *yard) harness() pooltest.Harness {
	spots := newSpots()
	reopen := spots.open
	return pooltest.Harness{
		New: func(t pooltest.T) pools.Pool {
			s := y.spot(y.server.URL)
			s.create(t)
			return reopen(t, s)
		},
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return reopen(t, spots.of(p))
		},
		Crash: func(t pooltest.T, p pools.Pool) pools.Pool {
			kill(p.(*Pool))
			return reopen(t, spots.of(p))
		},
		Corrupt: func(t pooltest.T, p pools.Pool) pools.Pool {
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			y.corrupt(t, spots.of(p))
			return reopen(t, spots.of(p))
		},
	}
}

// corrupt changes a stored byte of a data chunk in the first container, on the server's disk.
func (y *yard) corrupt(t pooltest.T, s spot) {
	names, err := filepath.Glob(filepath.Join(y.server.Root, s.c.Bucket, s.c.Prefix, "containers", "*", "*"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%d containers: %v", len(names), err)
	}
	f, err := os.OpenFile(names[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("corrupt: %v", err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatalf("corrupt: %v", err)
	}
	_, footer, err := container.Load(f, st.Size())
	if err != nil {
		t.Fatalf("corrupt: %v", err)
	}
	b := make([]byte, 1)
	at := footer.Groups[0].PayloadOff()
	_, err = f.ReadAt(b, at)
	b[0] ^= 0x10
	_, werr := f.WriteAt(b, at)
	if err := errors.Join(err, werr, f.Close()); err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("corrupt: %v", err)
	}
}

// TestConformance runs every named check of the Pool interface against a real server.
func TestConformance(t *testing.T) {
	t.Parallel()
	h := newYard(t, "conformance", false).harness()
	for _, c := range pooltest.Checks() {
		t.Run(strings.ReplaceAll(c.Name, "/", "-"), func(t *testing.T) {
			t.Parallel() // most of the time is the server's
			began := time.Now()
			c.Run(t, h)
			t.Logf("%v", time.Since(began))
		})
	}
}
