package appliance_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/lab"
	"github.com/holdfast-backup/holdfast/agent/transport"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// shifted is the system's clock, moved by an offset that a test sets.
type shifted struct{ offset atomic.Int64 }

func (c *shifted) Now() time.Time {
	return clock.System.Now().Add(time.Duration(c.offset.Load()))
}
func (c *shifted) After(d time.Duration) (<-chan time.Time, func()) { return clock.System.After(d) }

// A site is a real daemon on loopback, and agents over lab hosts, in one process.
type site struct {
	t      *testing.T
	dir    string
	clock  *shifted
	log    *logBuffer
	addr   string
	d      *appliance.Daemon
	agents map[string]func()
	wrap   func(hv.Hypervisor) hv.Hypervisor // of agents that are started; nil: as they are
	quick  *fast                             // the daemon's clock, if it is to be another than clock
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newSite starts a daemon with the pool "main".
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), clock: &shifted{}, log: &logBuffer{}, addr: "127.0.0.1:0", agents: map[string]func(){}}
	s.open()
	return s
}

// open starts the daemon, and ends it with the test.
func (s *site) open() {
	t := s.t
	t.Helper()
	s.start()
	t.Cleanup(func() {
		for _, stop := range s.agents {
			stop()
		}
		s.stop()
		if t.Failed() {
			t.Log(s.log.String())
		}
	})
	_, err := s.svc().CreatePool(t.Context(), api.PoolSpec{Name: "main", Kind: "dedup", Path: s.path("pool")})
	s.ok(err)
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) start() {
	s.t.Helper()
	var c clock.Clock = s.clock
	if s.quick != nil {
		c = s.quick
	}
	d, err := appliance.Start(context.Background(), appliance.Config{Data: s.path("data"), Listen: s.addr, Clock: c, Version: "test",
		Log: slog.New(slog.NewTextHandler(s.log, nil))})
	s.ok(err)
	s.d, s.addr = d, d.Addr()
}

func (s *site) stop() {
	s.t.Helper()
	if s.d != nil {
		s.ok(s.d.Close())
		s.d = nil
	}
}

func (s *site) svc() *appliance.Service { return s.d.Service() }

func (s *site) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%v (%v; %s)", err, holdfast.KindOf(err), holdfast.HintOf(err))
	}
}

// enroll makes the identity of a host, as holdfast-agent enroll does.
func (s *site) enroll(name string) transport.Identity {
	s.t.Helper()
	k, err := s.svc().EnrollHost(s.t.Context(), name)
	s.ok(err)
	id, err := transport.Enroll(s.t.Context(), transport.EnrollOptions{Server: s.addr, Key: k.Key, Name: name, Version: "test"})
	s.ok(err)
	return id
}

// host opens the lab host of a name.
func (s *site) host(name string) *lab.Host {
	s.t.Helper()
	dir := s.path("lab-" + name)
	s.ok(os.MkdirAll(dir, 0o700))
	h, err := lab.Open(dir)
	s.ok(err)
	return h
}

// run runs an agent; stop waits for its end.
func (s *site) run(id transport.Identity) (stop func()) {
	s.t.Helper()
	c, err := transport.New(id, nil)
	s.ok(err)
	var host hv.Hypervisor = s.host(id.Name)
	if s.wrap != nil {
		host = s.wrap(host)
	}
	ag, err := agent.New(agent.Options{Hypervisor: host, Control: c, Dir: s.path("agent-" + id.Name), Host: id.Host, HostName: id.Name, Version: "test"})
	s.ok(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = ag.Run(ctx) // says that it was asked to stop
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
		c.Close()
	})
	s.agents[id.Name] = stop
	return stop
}

// online starts an enrolled agent and waits until it shows as online.
func (s *site) online(name string) (stop func()) {
	s.t.Helper()
	stop = s.run(s.enroll(name))
	s.state(name, api.HostOnline)
	return stop
}

// state waits until a host is in a state; events wake it.
func (s *site) state(name, want string) {
	s.t.Helper()
	s.wait("host "+name+" is "+want, func() bool {
		hs, err := s.svc().Hosts(s.t.Context())
		s.ok(err)
		for _, h := range hs {
			if h.Name == name && h.State == want {
				return true
			}
		}
		return false
	})
}

// wait waits until f holds, looking again at every event and every tenth of a second.
func (s *site) wait(what string, f func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// vm makes a VM with a disk of size bytes on a host.
func (s *site) vm(host, name string, size int64) {
	s.t.Helper()
	file := s.path(host + "-" + name + ".vhdx")
	w, err := vhdx.Create(file, vhdx.CreateOptions{Size: size, Subformat: "dynamic", BlockSize: 1 << 20})
	s.ok(err)
	rng := rand.New(rand.NewPCG(1, uint64(len(name))))
	b := make([]byte, 64<<10)
	for off := int64(0); off < size; off += 1 << 20 {
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		_, err := w.WriteAt(b, off)
		s.ok(err)
	}
	s.ok(w.Finish())
	_, err = s.host(host).NewVM(s.t.Context(), lab.CreateOptions{Name: name, Disks: []string{file}})
	s.ok(err)
}

// follow waits for a run's end.
func (s *site) follow(r api.Run, err error) api.Run {
	s.t.Helper()
	s.ok(err)
	for i := 0; !api.Final(r.State); i++ {
		if i == 20 {
			s.t.Fatalf("run %s is still %s", r.ID, r.State)
		}
		r, err = s.svc().Run(s.t.Context(), r.ID, 5*time.Second)
		s.ok(err)
	}
	return r
}

// result reads what a run that ended well has found.
func (s *site) result(into any, r api.Run) {
	s.t.Helper()
	if r.State != api.StateDone {
		s.t.Fatalf("%+v", r)
	}
	s.ok(json.Unmarshal(r.Result, into))
}

func (s *site) backup(vms ...string) api.Run {
	s.t.Helper()
	return s.follow(s.svc().Backup(s.t.Context(), api.BackupSpec{VMs: vms, Pool: "main"}))
}

// recorded waits for an event of the type whose text holds all the words.
func (s *site) recorded(typ holdfast.EventType, words ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	var seen []string
next:
	for e, err := range s.svc().Events(ctx, 0) {
		s.ok(err)
		if e.Type != typ {
			continue
		}
		seen = append(seen, e.Text)
		for _, w := range words {
			if !strings.Contains(e.Text, w) {
				continue next
			}
		}
		return
	}
	s.t.Errorf("no event %s with %q was recorded; there are:\n%s", typ, words, strings.Join(seen, "\n"))
}
