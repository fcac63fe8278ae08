package appliance_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/transport"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/ingest/wire/netem"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// soaked multiplies a campaign by HOLDFAST_SOAK.
func soaked(n int) int {
	if k, err := strconv.Atoi(os.Getenv("HOLDFAST_SOAK")); err == nil && k > 0 {
		return n * k
	}
	return n
}

// serve runs an agent of an identity over a hypervisor, with a clock.
func (s *site) serve(id transport.Identity, h hv.Hypervisor, c clock.Clock) (stop func()) {
	s.t.Helper()
	client, err := transport.New(id, c)
	s.ok(err)
	ag, err := agent.New(agent.Options{Hypervisor: h, Control: client, Dir: s.path("agent-" + id.Name), Host: id.Host, HostName: id.Name, Version: "test", Clock: c})
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
		client.Close()
	})
	s.agents[id.Name] = stop
	s.state(id.Name, api.HostOnline)
	return stop
}

func (s *site) inventoried(n int) {
	s.t.Helper()
	s.wait(fmt.Sprintf("%d VMs are listed", n), func() bool { vms, err := s.svc().VMs(s.t.Context()); s.ok(err); return len(vms) == n })
}

// TestVMsAndJobsShareAHost: eight VMs of a job, and three jobs on one host, are at work at once, and one by one where the job says so. With 20 ms for
// each request to a disk the ratio of their times is told: below 0.6 on a machine that is free.
func TestVMsAndJobsShareAHost(t *testing.T) {
	s, meet := newSite(t), &meeting{}
	var names []string
	for i := range 8 {
		names = append(names, fmt.Sprintf("vm%d", i))
		s.vm("hv1", names[i], 24<<20)
	}
	s.serve(s.enroll("hv1"), latentHost{s.host("hv1"), 20 * time.Millisecond, meet}, clock.System)
	s.inventoried(8)
	_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "all", Pool: "main", VMs: names, Type: "full"})
	s.ok(err)
	for i := range 3 {
		_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: fmt.Sprint("job", i), Pool: "main", VMs: names[2*i : 2*i+2], Type: "full", Options: []string{"vms=1"}})
		s.ok(err)
	}
	timed := func(atOnce int, do func()) time.Duration {
		meet.expect(atOnce)
		began := time.Now()
		do()
		if n := meet.met(); n != atOnce {
			t.Errorf("%d at once, not %d", n, atOnce)
		}
		return time.Since(began)
	}
	run := func(name string) {
		if r := s.follow(s.svc().RunJob(t.Context(), name, api.JobRun{})); r.State != api.StateDone {
			t.Errorf("%s: %+v", name, r)
		}
	}
	meet.expect(1)
	run("all") // what is measured stores nothing new
	set := func(o string) {
		_, err := s.svc().SetJob(t.Context(), "all", api.JobChange{Options: []string{o}})
		s.ok(err)
	}
	set("vms=1")
	serial := timed(1, func() { run("all") })
	set("vms=8")
	together := timed(8, func() { run("all") })
	t.Logf("8 VMs: %v one by one, %v at once: %.2f", serial, together, together.Seconds()/serial.Seconds())
	serial = timed(1, func() {
		for i := range 3 {
			run(fmt.Sprint("job", i))
		}
	})
	together = timed(3, func() {
		var wg sync.WaitGroup
		for i := range 3 {
			r, err := s.svc().RunJob(t.Context(), fmt.Sprint("job", i), api.JobRun{})
			s.ok(err)
			wg.Go(func() {
				for !api.Final(r.State) {
					if r, err = s.svc().Run(t.Context(), r.ID, 5*time.Second); err != nil {
						t.Error(err)
						return
					}
				}
				if r.State != api.StateDone {
					t.Errorf("%+v", r)
				}
			})
		}
		wg.Wait()
	})
	t.Logf("3 jobs: %v one by one, %v at once: %.2f", serial, together, together.Seconds()/serial.Seconds())
}

// spotless says what a run has left behind: on the host, with the agent, in the pool.
func (s *site) spotless(host string) {
	s.t.Helper()
	ls, err := s.host(host).Leftovers(s.t.Context())
	s.ok(err)
	if len(ls) > 0 {
		s.t.Errorf("%d checkpoints are left", len(ls))
	}
	for _, pattern := range []string{"lab-" + host + "/*/*.avhdx", "agent-" + host + "/journal/*", "pool/staging/*"} {
		left, err := filepath.Glob(s.path(pattern))
		s.ok(err)
		if len(left) > 0 {
			s.t.Errorf("left behind: %v", left)
		}
	}
}

// held waits until the host is held, or the run is over.
func (s *site) held(h *halt, r api.Run) bool {
	s.t.Helper()
	for {
		select {
		case <-h.hit:
			return true
		case <-time.After(20 * time.Millisecond):
		}
		r, err := s.svc().Run(s.t.Context(), r.ID, 0)
		s.ok(err)
		if api.Final(r.State) {
			return false
		}
	}
}

// TestStoppedAtAnyInstantNothingIsLeft stops a job of two VMs at random instants of the host's work, checkpoint creation, commit and merge among
// them: no checkpoint, session, file or partial set stays.
func TestStoppedAtAnyInstantNothingIsLeft(t *testing.T) {
	const seed = 5
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s, h := newSite(t), &halt{}
	s.vm("hv1", "app", 8<<20)
	s.vm("hv1", "db", 8<<20)
	s.serve(s.enroll("hv1"), haltedHost{s.host("hv1"), h}, clock.System)
	s.inventoried(2)
	_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "j", Pool: "main", Hosts: []string{"hv1"}, Type: "full"})
	s.ok(err)
	h.set("", 0)
	s.follow(s.svc().RunJob(t.Context(), "j", api.JobRun{}))
	usual := h.seen // nothing runs now
	instants := slices.Sorted(maps.Keys(usual))
	states, stopped, longest := map[string]int{}, map[string]int{}, time.Duration(0)
	for i := range soaked(50) {
		name := instants[i%len(instants)]
		h.set(name, 1+rng.IntN(usual[name]))
		r, err := s.svc().RunJob(t.Context(), "j", api.JobRun{})
		s.ok(err)
		if !s.held(h, r) { // it did less this time
			states["not held"]++
			continue
		}
		stopped[name]++
		began := time.Now()
		_, err = s.svc().StopJob(t.Context(), "j")
		s.ok(err)
		close(h.on)
		r = s.follow(r, nil)
		longest = max(longest, time.Since(began))
		states[r.State]++
		s.spotless("hv1")
	}
	t.Logf("they ended %v; they were stopped %v; the longest took %v", states, stopped, longest)
	if states[api.StateCancelled] < soaked(50)/2 {
		t.Error("too few were stopped in time to prove anything")
	}
	r := s.follow(s.svc().VerifyPool(t.Context(), "main"))
	if r.State != api.StateDone {
		t.Errorf("after all that the pool is not good: %+v", r)
	}
	var found api.Rebuilt
	s.result(&found, s.follow(s.svc().RebuildCatalog(t.Context())))
	if found.Added+found.Gone != 0 {
		t.Errorf("the pool has sets that are not listed, or lacks some that are: %+v", found)
	}
}

// A fast clock goes so many times as fast as the system's.
type fast struct {
	begin  time.Time
	factor int
}

func (f fast) Now() time.Time {
	return f.begin.Add(time.Since(f.begin) * time.Duration(f.factor))
}

func (f fast) After(d time.Duration) (<-chan time.Time, func()) {
	return clock.System.After(d / time.Duration(f.factor))
}

// far enrols a host behind a line that the test can cut.
func (s *site) far(name string) (transport.Identity, *netem.Proxy) {
	s.t.Helper()
	p, err := netem.Listen(s.addr, netem.Line{})
	s.ok(err)
	s.t.Cleanup(func() { _ = p.Close() })
	near := s.addr
	s.addr = p.Addr() // the identity remembers it
	id := s.enroll(name)
	s.addr = near
	return id, p
}

// noise fills a VM's disk with bytes that do not compress and that nobody has.
func (s *site) noise(host, vm string, n int64) {
	s.t.Helper()
	d, err := s.host(host).OpenDisk(s.t.Context(), vm, 0)
	s.ok(err)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(len(vm))}).Read(b)
	_, err = d.WriteAt(b, 0)
	s.ok(err)
	s.ok(d.Close())
}

// TestCutsWithinTheReconnectionTimeCostAtMostTheBuffer: the line is cut 20 times during a backup; it succeeds, and what was sent again is at most
// one buffer a cut.
func TestCutsWithinTheReconnectionTimeCostAtMostTheBuffer(t *testing.T) {
	const size, cuts, buffer = 40 << 20, 20, 1 << 20
	s := newSite(t)
	id, line := s.far("hv1")
	s.vm("hv1", "db", size)
	s.noise("hv1", "db", size)
	s.serve(id, s.host("hv1"), clock.System)
	s.inventoried(1)
	_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "j", Pool: "main", VMs: []string{"db"}, Options: []string{"buffer=1MiB", "reconnect=1m", "limit=8MiB/s"}})
	s.ok(err)
	before := line.Carried()
	r, err := s.svc().RunJob(t.Context(), "j", api.JobRun{})
	s.ok(err)
	done := 0
	for done < cuts && !api.Final(r.State) {
		<-time.After(100 * time.Millisecond)
		r, err = s.svc().Run(t.Context(), r.ID, 0)
		s.ok(err)
		if line.Carried()-before > 1<<20 {
			line.Cut()
			done++
		}
	}
	r = s.follow(r, nil)
	if r.State != api.StateDone {
		t.Fatalf("%+v\n%s", r, s.logOf(r))
	}
	x := r.Tasks[0].Counts
	extra := line.Carried() - before - x.Sent
	const talk = 6 << 20 // connections begun anew, control, questions and answers
	t.Logf("%d cuts; %d KiB sent, %d KiB carried beside them", done, x.Sent>>10, extra>>10)
	if done < cuts {
		t.Errorf("only %d cuts fell into the backup", done)
	}
	if extra > int64(done)*buffer+talk {
		t.Errorf("%d bytes more than the payload were carried by %d cuts", extra, done)
	}
	s.spotless("hv1")
}

// TestACutBeyondTheReconnectionTimeFails: with its code, and no checkpoint is left when the line is back.
func TestACutBeyondTheReconnectionTimeFails(t *testing.T) {
	s := &site{t: t, dir: t.TempDir(), clock: &shifted{}, log: &logBuffer{}, addr: "127.0.0.1:0", agents: map[string]func(){}}
	s.quick = &fast{begin: time.Now(), factor: 20}
	s.open()
	id, line := s.far("hv1")
	s.vm("hv1", "db", 32<<20)
	s.noise("hv1", "db", 32<<20)
	s.serve(id, s.host("hv1"), *s.quick)
	s.inventoried(1)
	_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "j", Pool: "main", VMs: []string{"db"}, Options: []string{"reconnect=1m", "limit=512KiB/s"}})
	s.ok(err)
	r, err := s.svc().RunJob(t.Context(), "j", api.JobRun{})
	s.ok(err)
	s.wait("the backup reads", func() bool {
		r, err = s.svc().Run(t.Context(), r.ID, 0)
		s.ok(err)
		return r.Tasks[0].Phase == "reading"
	})
	line.Refuse(true)
	line.Cut()
	r = s.follow(r, nil)
	if r.State != api.StateFailed || r.Tasks[0].Error == nil || r.Tasks[0].Error.Code != holdfast.Offline.Code() {
		t.Fatalf("%+v", r)
	}
	line.Refuse(false)
	s.wait("nothing of it is left", func() bool {
		ls, err := s.host("hv1").Leftovers(t.Context())
		s.ok(err)
		journal, err := filepath.Glob(s.path("agent-hv1/journal/*"))
		s.ok(err)
		return len(ls)+len(journal) == 0
	})
	s.spotless("hv1")
}

// script places a file in a host's scripts folder.
func (s *site) script(host, name, text string) {
	s.t.Helper()
	dir := s.path("agent-" + host + "/" + agent.ScriptsFolder)
	s.ok(os.MkdirAll(dir, 0o700))
	s.ok(os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o700))
}

// TestScriptsFrameAJob: precondition, pre-script, VMs, post-script, in this order and with the run's facts; what becomes of a run whose scripts fail.
func TestScriptsFrameAJob(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 4<<20)
	s.online("hv1")
	trace := s.path("trace")
	note := "echo \"$HOLDFAST_STAGE $HOLDFAST_JOB $HOLDFAST_TYPE $HOLDFAST_POOL $HOLDFAST_HOST $HOLDFAST_VMS $HOLDFAST_RESULT $(ls " + s.path("lab-hv1") + "/db/*.avhdx 2>/dev/null | wc -l)\" >> " + trace + "\n"
	s.script("hv1", "ok", note+"echo hello from $HOLDFAST_STAGE\n")
	s.script("hv1", "bad", note+"echo it is too warm >&2\nexit 3\n")
	_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "j", Pool: "main", VMs: []string{"db"}, Options: []string{"precondition=ok", "pre-script=ok", "post-script=ok"}})
	s.ok(err)
	stage := func(r api.Run, stage string) api.Task {
		for _, x := range r.Tasks {
			if x.Stage == stage {
				return x
			}
		}
		t.Fatalf("run %s has no %s", r.ID, stage)
		return api.Task{}
	}
	for _, c := range []struct {
		name    string
		options []string
		run     string            // its state
		states  map[string]string // by stage
		trace   string
	}{
		{"all well", nil, api.StateDone, map[string]string{"": api.StateDone, "post-script": api.StateDone},
			"precondition j incremental main hv1 db  0\npre-script j incremental main hv1 db  0\npost-script j incremental main hv1 db done 0\n"},
		{"the precondition is not met", []string{"precondition=bad"}, api.StateAborted, map[string]string{"": api.StateAborted, "pre-script": api.StateAborted, "post-script": api.StateAborted},
			"precondition j incremental main hv1 db  0\n"},
		{"the pre-script fails", []string{"precondition=none", "pre-script=bad"}, api.StateFailed, map[string]string{"": api.StateFailed, "post-script": api.StateDone},
			"pre-script j incremental main hv1 db  0\npost-script j incremental main hv1 db failed 0\n"},
		{"the post-script fails", []string{"pre-script=none", "post-script=bad"}, api.StatePartial, map[string]string{"": api.StateDone, "post-script": api.StateFailed},
			"post-script j incremental main hv1 db done 0\n"},
		{"nobody placed the pre-script", []string{"pre-script=missing", "post-script=none"}, api.StateFailed, map[string]string{"": api.StateFailed, "pre-script": api.StateFailed}, ""},
		{"nobody placed the precondition", []string{"precondition=missing", "pre-script=none"}, api.StateFailed, map[string]string{"": api.StateFailed}, ""},
	} {
		_, err := s.svc().SetJob(t.Context(), "j", api.JobChange{Options: c.options})
		s.ok(err)
		_ = os.Remove(trace) // it may not be there
		r := s.follow(s.svc().RunJob(t.Context(), "j", api.JobRun{}))
		if r.State != c.run {
			t.Errorf("%s: the run is %s, want %s\n%s", c.name, r.State, c.run, s.logOf(r))
		}
		for st, want := range c.states {
			if got := stage(r, st); got.State != want {
				t.Errorf("%s: %q is %s, want %s: %+v", c.name, st, got.State, want, got.Error)
			}
		}
		got, _ := os.ReadFile(trace) // nothing ran where there is none
		if string(got) != c.trace {
			t.Errorf("%s: the scripts noted\n%swant\n%s", c.name, got, c.trace)
		}
		s.wait("the job is idle", func() bool {
			j, err := s.svc().Job(t.Context(), "j")
			s.ok(err)
			return j.State == "idle" && j.LastResult == c.run
		})
		switch c.name {
		case "all well":
			if !strings.Contains(s.logOf(r), "hello from pre-script") {
				t.Errorf("the log has no output:\n%s", s.logOf(r))
			}
		case "the precondition is not met":
			if !strings.Contains(s.logOf(r), "it is too warm") || r.Error == nil || !strings.Contains(r.Error.Message, "code 3") {
				t.Errorf("%+v\n%s", r.Error, s.logOf(r))
			}
		}
	}
}

// TestAJobNamesScriptsAndNothingElse: what a job may not name is refused when it is set.
func TestAJobNamesScriptsAndNothingElse(t *testing.T) {
	s := newSite(t)
	for _, name := range []string{"../x", "/bin/sh", "a b", "a;b", "-x", ".x", "a\\b", "$(id)", strings.Repeat("a", 65)} {
		_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "j", Pool: "main", Match: []string{"*"}, Options: []string{"pre-script=" + name}})
		if holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestDifferentialAndGroup: a differential reads what changed since the newest full set, or says why it cannot; VMs of a group are frozen together.
func TestDifferentialAndGroup(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "app", 16<<20)
	s.vm("hv1", "db", 16<<20)
	s.online("hv1")
	s.inventoried(2)
	_, err := s.svc().CreateJob(t.Context(), api.JobSpec{Name: "j", Pool: "main", Hosts: []string{"hv1"}, ExcludeDisks: []string{"app:nothing-*"}, Options: []string{"group=on", "vms=1"}})
	s.ok(err)
	write := func(at int64) {
		d, err := s.host("hv1").OpenDisk(t.Context(), "db", 0)
		s.ok(err)
		_, err = d.WriteAt([]byte(strings.Repeat(fmt.Sprint(at), 4096)), at)
		s.ok(err)
		s.ok(d.Close())
	}
	run := func(typ string) (api.Task, api.Set) {
		r := s.follow(s.svc().RunJob(t.Context(), "j", api.JobRun{Type: typ}))
		if r.State != api.StateDone || r.Type != typ {
			t.Fatalf("%+v\n%s", r, s.logOf(r))
		}
		x := task(t, r, "db")
		if !strings.Contains(x.Note, "frozen together with 1 others within") {
			t.Errorf("no group: %q", x.Note)
		}
		set, err := s.svc().Set(t.Context(), x.Set)
		s.ok(err)
		return x, set
	}
	_, full := run("full")
	write(2 << 20)
	diff, one := run("differential")
	if one.Parent != full.ID || diff.Counts.Changed == 0 || diff.Counts.Read > 4*diff.Counts.Changed {
		t.Errorf("the first differential: parent %s, %+v", one.Parent, diff.Counts)
	}
	write(6 << 20)
	if inc, two := run("incremental"); two.Parent != one.ID || inc.Reason != "" {
		t.Errorf("an incremental after it: parent %s, %q", two.Parent, inc.Reason)
	}
	// Between incrementals too, what is read is what changed since the full: all three writes, and nothing else.
	write(10 << 20)
	if diff, three := run("differential"); three.Parent != full.ID || diff.Reason != "" || diff.Counts.Changed < 3*32<<10 || diff.Counts.Changed > 9*32<<10 || diff.Counts.Read > 4*diff.Counts.Changed {
		t.Errorf("a differential after an incremental: parent %s, %q, %+v", three.Parent, diff.Reason, diff.Counts)
	}
}
