package job

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// A bench is an engine over a real catalog; the test plays the agents. It runs under a fake clock.
type bench struct {
	t      *testing.T
	fs     fsys.FS
	cat    *catalog.Catalog
	e      *Engine
	mu     sync.Mutex
	events []holdfast.Event
}

func (b *bench) ok(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// onBench runs a test in a bubble of its own.
func onBench(t *testing.T, do func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, fs: fsys.NewMem(1)}
		b.open()
		do(b)
		b.e.Close()
		b.ok(b.cat.Close())
	})
}

func (b *bench) open() {
	b.t.Helper()
	var err error
	b.cat, err = catalog.Open(b.fs, "catalog")
	b.ok(err)
	b.e = New(Options{Catalog: b.cat, VMs: 2, Listener: func(e holdfast.Event) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.events = append(b.events, e)
	}})
	b.ok(b.e.Recover(context.Background()))
}

// An agent is a host's task stream in the hands of the test.
type agent struct {
	b       *bench
	id      holdfast.HostID
	cancel  context.CancelFunc
	over    chan error
	mu      sync.Mutex
	notices []wire.Notice
	beats   int
}

func (b *bench) connect(id holdfast.HostID) *agent {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a := &agent{b: b, id: id, cancel: cancel, over: make(chan error, 1)}
	go func() {
		a.over <- b.e.Tasks(ctx, id, "hv", func(n wire.Notice) error {
			a.mu.Lock()
			defer a.mu.Unlock()
			if n == (wire.Notice{}) {
				a.beats++
				return nil
			}
			a.notices = append(a.notices, n)
			return nil
		})
	}()
	synctest.Wait()
	return a
}

func (a *agent) disconnect() {
	a.cancel()
	<-a.over
	synctest.Wait()
}

// tasks returns the tasks the agent was given since it was asked last.
func (a *agent) tasks() []holdfast.TaskID {
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []holdfast.TaskID
	for _, n := range a.notices {
		if n.Task != nil {
			out = append(out, n.Task.ID)
		}
	}
	a.notices = nil
	return out
}

func (a *agent) report(r wire.Report) {
	a.b.t.Helper()
	a.b.ok(a.b.e.Report(a.id, []wire.Report{r}))
}

// finish plays a task to its good end: session, committed set, report.
func (a *agent) finish(id holdfast.TaskID) holdfast.SetID {
	a.b.t.Helper()
	_, no, err := a.b.e.Session(a.id, id, func(error) {})
	a.b.ok(err)
	m := holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewID()}}
	a.b.e.SessionOver(id, no, &m)
	a.report(wire.Report{Task: id, Phase: "merging", Ended: true})
	return m.ID
}

func (b *bench) start(host holdfast.HostID, n int) View {
	b.t.Helper()
	vms := make([]catalog.VM, n)
	for i := range vms {
		vms[i] = catalog.VM{ID: holdfast.VMID{ID: holdfast.NewID()}, Name: "vm", Host: host}
	}
	v, err := b.e.Start(context.Background(), catalog.RunBackup, Spec{PoolName: "main"}, vms)
	b.ok(err)
	return v
}

func (b *bench) state(v View, want catalog.RunState) View {
	b.t.Helper()
	got, err := b.e.Get(v.ID)
	b.ok(err)
	if got.State != want {
		b.t.Fatalf("the run is %s, want %s: %+v", got.State, want, got.Run)
	}
	return got
}

func newHost() holdfast.HostID { return holdfast.HostID{ID: holdfast.NewID()} }

func TestAHostGetsABoundedNumberOfTasksAtOnce(t *testing.T) {
	onBench(t, func(b *bench) {
		host := newHost()
		a := b.connect(host)
		v := b.start(host, 5)
		given := a.tasks()
		if len(given) != 2 {
			t.Fatalf("%d tasks at once", len(given))
		}
		for done := 0; done < 5; {
			for _, id := range given {
				a.finish(id)
				done++
			}
			given = a.tasks()
			if done < 5 && len(given) != min(2, 5-done) {
				t.Fatalf("after %d: %d tasks", done, len(given))
			}
		}
		got := b.state(v, catalog.RunDone)
		for _, task := range got.Tasks {
			if task.State != catalog.RunDone || task.Set.IsZero() {
				t.Errorf("%+v", task)
			}
		}
		a.disconnect()
	})
}

func TestOfflineHostFailsItsTasksAtOnceAndTheRestGoesOn(t *testing.T) {
	onBench(t, func(b *bench) {
		on, off := newHost(), newHost()
		a := b.connect(on)
		vms := []catalog.VM{{ID: holdfast.VMID{ID: holdfast.NewID()}, Host: on}, {ID: holdfast.VMID{ID: holdfast.NewID()}, Host: off}}
		v, err := b.e.Start(b.t.Context(), catalog.RunBackup, Spec{}, vms)
		b.ok(err)
		a.finish(a.tasks()[0])
		got := b.state(v, catalog.RunPartial)
		if e := got.Tasks[1].Error; e == nil || e.Kind != holdfast.Offline || e.Hint == "" {
			t.Errorf("%+v", e)
		}
		a.disconnect()
	})
}

func TestTaskWaitsForItsAgentAndThenGivesUp(t *testing.T) {
	onBench(t, func(b *bench) {
		host := newHost()
		a := b.connect(host)
		v := b.start(host, 1)
		id := a.tasks()[0]
		a.report(wire.Report{Task: id, Phase: "reading"})
		a.disconnect()
		pass(DefaultReconnect - time.Second)
		b.state(v, catalog.RunRunning)
		a = b.connect(host) // just in time
		a.report(wire.Report{Task: id, Phase: "reading"})
		pass(time.Minute)
		b.state(v, catalog.RunRunning)
		a.disconnect()
		pass(DefaultReconnect + time.Second)
		synctest.Wait()
		got := b.state(v, catalog.RunFailed)
		if got.Error == nil || got.Error.Kind != holdfast.Offline || !strings.Contains(got.Error.Message, "did not come back") {
			t.Errorf("%+v", got.Error)
		}
	})
}

// TestRestartedAgentLosesItsTasks: an agent that comes back without speaking of a task was restarted; its data session is ended before the
// run shows as over.
func TestRestartedAgentLosesItsTasks(t *testing.T) {
	onBench(t, func(b *bench) {
		host := newHost()
		a := b.connect(host)
		v := b.start(host, 1)
		id := a.tasks()[0]
		a.report(wire.Report{Task: id, Phase: "reading"})
		aborted := make(chan struct{})
		_, no, err := b.e.Session(host, id, func(error) { close(aborted) })
		b.ok(err)
		a.disconnect()
		a = b.connect(host)
		if again := a.tasks(); len(again) != 0 {
			t.Errorf("a task that was begun is given again: %v", again)
		}
		pass(forgotten + time.Second)
		synctest.Wait()
		<-aborted
		b.state(v, catalog.RunRunning)
		b.e.SessionOver(id, no, nil)
		got := b.state(v, catalog.RunFailed)
		if !strings.Contains(got.Error.Message, "restarted") {
			t.Errorf("%+v", got.Error)
		}
		a.disconnect()
	})
}

func TestNoticeThatWasLostIsGivenAgain(t *testing.T) {
	onBench(t, func(b *bench) {
		host := newHost()
		a := b.connect(host)
		v := b.start(host, 1)
		id := a.tasks()[0]
		a.disconnect()
		a = b.connect(host)
		if again := a.tasks(); len(again) != 1 || again[0] != id {
			t.Fatalf("%v", again)
		}
		a.finish(id)
		b.state(v, catalog.RunDone)
		a.disconnect()
	})
}

// TestCommittedSetMakesADoneTask: whatever goes wrong after the commit, and in whatever order both ends speak, the backup is done.
func TestCommittedSetMakesADoneTask(t *testing.T) {
	for name, play := range map[string]func(b *bench, a *agent, id holdfast.TaskID, no int, m *holdfast.Manifest){
		"session, then report": func(b *bench, a *agent, id holdfast.TaskID, no int, m *holdfast.Manifest) {
			b.e.SessionOver(id, no, m)
			a.report(wire.Report{Task: id, Ended: true})
		},
		"report, then session": func(b *bench, a *agent, id holdfast.TaskID, no int, m *holdfast.Manifest) {
			a.report(wire.Report{Task: id, Ended: true})
			b.e.SessionOver(id, no, m)
		},
		"the merge failed": func(b *bench, a *agent, id holdfast.TaskID, no int, m *holdfast.Manifest) {
			a.report(wire.Report{Task: id, Ended: true, Error: &wire.Failure{Kind: holdfast.NoSpace, Message: "no room to merge"}})
			b.e.SessionOver(id, no, m)
		},
	} {
		t.Run(name, func(t *testing.T) {
			onBench(t, func(b *bench) {
				host := newHost()
				a := b.connect(host)
				v := b.start(host, 1)
				id := a.tasks()[0]
				_, no, err := b.e.Session(host, id, func(error) {})
				b.ok(err)
				m := &holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewID()}}
				play(b, a, id, no, m)
				if got := b.state(v, catalog.RunDone); got.Tasks[0].Set != m.ID {
					t.Errorf("%+v", got.Tasks[0])
				}
				a.disconnect()
			})
		})
	}
}

func TestReportOfAnEndWithoutASetIsNoSuccess(t *testing.T) {
	onBench(t, func(b *bench) {
		host := newHost()
		a := b.connect(host)
		v := b.start(host, 1)
		a.report(wire.Report{Task: a.tasks()[0], Ended: true})
		b.state(v, catalog.RunFailed)
		a.disconnect()
	})
}

func TestCancelEndsWhatWaitsAndAsksWhatRuns(t *testing.T) {
	onBench(t, func(b *bench) {
		host := newHost()
		a := b.connect(host)
		v := b.start(host, 3)
		given := a.tasks()
		b.ok(b.e.Cancel(v.ID))
		b.state(v, catalog.RunRunning)
		synctest.Wait()
		a.mu.Lock()
		asked := map[holdfast.TaskID]bool{}
		for _, n := range a.notices {
			asked[n.Cancel] = true
		}
		a.mu.Unlock()
		for _, id := range given {
			if !asked[id] {
				t.Errorf("task %s was not told", id)
			}
			a.report(wire.Report{Task: id, Ended: true, Error: &wire.Failure{Kind: holdfast.Cancelled, Message: "cancelled"}})
		}
		b.state(v, catalog.RunCancelled)
		if err := b.e.Cancel(v.ID); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("cancelled twice: %v", err)
		}
		a.disconnect()
	})
}

// TestTasksAreOnlyTheirHosts: neither reports nor sessions of another host touch a task.
func TestTasksAreOnlyTheirHosts(t *testing.T) {
	onBench(t, func(b *bench) {
		host, other := newHost(), newHost()
		a := b.connect(host)
		v := b.start(host, 1)
		id := a.tasks()[0]
		b.ok(b.e.Report(other, []wire.Report{{Task: id, Ended: true, Error: &wire.Failure{Message: "sabotage"}}}))
		b.state(v, catalog.RunRunning)
		if _, _, err := b.e.Session(other, id, func(error) {}); holdfast.KindOf(err) != holdfast.Permission {
			t.Errorf("%v", err)
		}
		a.finish(id)
		b.state(v, catalog.RunDone)
		a.disconnect()
	})
}

// TestCrashExplainsRuns closes the engine in the middle of everything and recovers from what the catalog has.
func TestCrashExplainsRuns(t *testing.T) {
	onBench(t, func(b *bench) {
		host := newHost()
		a := b.connect(host)
		running, half := b.start(host, 1), b.start(host, 2)
		given := a.tasks() // one of each
		_, no, err := b.e.Session(host, given[1], func(error) {})
		b.ok(err)
		b.e.SessionOver(given[1], no, &holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewID()}}) // committed, not reported
		b.e.Close()
		<-a.over
		b.ok(b.cat.Close())
		b.open()
		got := b.state(running, catalog.RunFailed)
		if got.Error == nil || !strings.Contains(got.Error.Message, "restarted") || got.Error.Hint == "" || got.Ended.IsZero() {
			t.Errorf("%+v", got.Error)
		}
		got = b.state(half, catalog.RunPartial)
		if got.Tasks[0].State != catalog.RunDone || got.Tasks[1].State != catalog.RunFailed {
			t.Errorf("%+v", got.Tasks)
		}
	})
}

func TestHeartbeatsKeepTheStreamAlive(t *testing.T) {
	onBench(t, func(b *bench) {
		host := newHost()
		a := b.connect(host)
		if !b.e.Online(host) {
			t.Error("not online")
		}
		pass(10 * wire.HeartbeatEvery)
		synctest.Wait()
		a.mu.Lock()
		beats := a.beats
		a.mu.Unlock()
		if beats < 10 {
			t.Errorf("%d heartbeats in the time of 10", beats)
		}
		second := b.connect(host) // a second stream takes the place of the first
		<-a.over
		if !b.e.Online(host) {
			t.Error("not online")
		}
		second.disconnect()
		if b.e.Online(host) {
			t.Error("still online")
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		var types []holdfast.EventType
		for _, e := range b.events {
			types = append(types, e.Type)
		}
		if len(types) != 2 || types[0] != holdfast.EventHostOnline || types[1] != holdfast.EventHostOffline {
			t.Errorf("%v", types)
		}
	})
}

func TestWaitEndsWithTheRun(t *testing.T) {
	onBench(t, func(b *bench) {
		host := newHost()
		a := b.connect(host)
		v := b.start(host, 1)
		start := time.Now()
		b.e.Wait(b.t.Context(), v.ID, time.Second)
		if time.Since(start) != time.Second {
			t.Errorf("waited %v", time.Since(start))
		}
		go func() {
			pass(3 * time.Second)
			a.finish(a.tasksNow()[0])
		}()
		b.e.Wait(b.t.Context(), v.ID, time.Hour)
		if d := time.Since(start); d != 4*time.Second {
			t.Errorf("waited %v", d)
		}
		b.state(v, catalog.RunDone)
		a.disconnect()
	})
}

// tasksNow is tasks for a goroutine beside the test's own.
func (a *agent) tasksNow() []holdfast.TaskID {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []holdfast.TaskID
	for _, n := range a.notices {
		if n.Task != nil {
			out = append(out, n.Task.ID)
		}
	}
	return out
}

// pass lets fake time pass.
func pass(d time.Duration) { <-time.After(d) }
