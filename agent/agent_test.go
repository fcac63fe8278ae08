package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// patience is how long a test waits for what must happen; only broken code ever waits so long.
const patience = 30 * time.Second

// A bench is an agent between a host and a house of the tests.
type bench struct {
	t     testing.TB
	host  *memHost
	house *house
	dir   string
	agent *Agent
	stop  func()
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, host: newMemHost(), house: openHouse(t), dir: t.TempDir()}
	return b
}

// run starts an agent; its end checks that it gave everything back.
func (b *bench) run() *bench {
	b.t.Helper()
	a, err := New(Options{Hypervisor: b.host, Control: b.house, Dir: b.dir, HostName: "host", Version: "test"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.agent = a
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- a.Run(ctx) }()
	b.stop = func() {
		if b.stop == nil {
			return
		}
		b.stop = nil
		cancel()
		if err := <-over; !errors.Is(err, context.Canceled) {
			b.t.Errorf("Run: %v", err)
		}
		b.checkClean()
	}
	b.t.Cleanup(func() {
		if b.stop != nil {
			b.stop()
		}
	})
	return b
}

// checkClean: nothing of any task is left anywhere.
func (b *bench) checkClean() {
	b.t.Helper()
	b.host.mu.Lock()
	if b.host.open != 0 || b.host.planned != 0 {
		b.t.Errorf("%d checkpoints and %d unfinished VMs are left", b.host.open, b.host.planned)
	}
	b.host.mu.Unlock()
	if names, err := os.ReadDir(filepath.Join(b.dir, "journal")); err != nil || len(names) != 0 {
		b.t.Errorf("the journal has %v, %v", names, err)
	}
	if e := b.agent.engine; len(e.slabs) != int(e.made.Load()) || len(e.slots) != cap(e.slots) {
		b.t.Errorf("%d slabs and %d slots came back", len(e.slabs), len(e.slots))
	}
}

// task hands a task to the agent and waits for its end.
func (b *bench) task(task wire.Task, g *grant) wire.Report {
	b.t.Helper()
	return b.wait(b.give(task, g))
}

func (b *bench) give(task wire.Task, g *grant) holdfast.TaskID {
	task.ID = holdfast.TaskID{ID: holdfast.NewID()}
	h := b.house
	h.mu.Lock()
	h.grants[task.ID] = g
	h.ended[task.ID] = make(chan struct{})
	h.mu.Unlock()
	h.notices <- wire.Notice{Task: &task}
	return task.ID
}

func (b *bench) wait(id holdfast.TaskID) wire.Report {
	b.t.Helper()
	h := b.house
	h.mu.Lock()
	ended := h.ended[id]
	h.mu.Unlock()
	select {
	case <-ended:
	case <-time.After(patience):
		b.t.Fatalf("the task did not end; last heard: %+v", h.reports[id])
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reports[id]
}

// grantFor prepares a set of a VM on top of its newest one.
func (b *bench) grantFor(vm *memVM, mode, level string) *grant {
	b.t.Helper()
	c, err := holdfast.ParseChunking(mode)
	if err != nil {
		b.t.Fatal(err)
	}
	g := &grant{done: make(chan struct{}, 8), began: wire.Began{
		Set: holdfast.SetID{ID: holdfast.NewTimeID(time.Now())}, Chunking: c, DomainKey: bytes.Repeat([]byte{9}, 32), Compression: level,
	}}
	b.house.mu.Lock()
	defer b.house.mu.Unlock()
	var newest *heldSet
	for _, s := range b.house.sets {
		if s.manifest.VM.ID == vm.info.ID && (newest == nil || s.manifest.Created.After(newest.manifest.Created)) {
			newest = s
		}
	}
	if newest != nil {
		m := newest.manifest
		m.Attachments = nil
		g.began.Parent, g.began.Tokens = &m, newest.tokens
	}
	return g
}

// backup backs a VM up and checks that the set holds exactly what the VM's disks hold.
func (b *bench) backup(vm *memVM, g *grant) (wire.Report, *heldSet) {
	b.t.Helper()
	r := b.task(wire.Task{Kind: wire.TaskBackup, VM: vm.info.ID}, g)
	if r.Error != nil {
		b.t.Fatalf("backup: %+v", *r.Error)
	}
	b.waitDone(g)
	b.house.mu.Lock()
	defer b.house.mu.Unlock()
	set := b.house.sets[g.began.Set]
	if set == nil {
		b.t.Fatal("the backup ended well, but the set is not there")
	}
	for i, d := range vm.disks {
		if !b.house.noKeep && !bytes.Equal(set.images[i], d.data) {
			b.t.Fatalf("disk %d of the set is not what the VM has", i)
		}
	}
	return r, set
}

// waitDone waits until the appliance was told that the exchange ended well.
func (b *bench) waitDone(g *grant) {
	b.t.Helper()
	select {
	case <-g.done:
	case <-time.After(patience):
		b.t.Fatal("the appliance was not told that the exchange ended well")
	}
}

// content returns made-up disk bytes: noise, repeated text, and holes.
func content(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for at := 0; at < n; {
		run := min(4096*(1+rnd.IntN(200)), n-at)
		scribble(rnd, p[at:at+run])
		at += run
	}
	return p
}

func scribble(rnd *rand.Rand, q []byte) {
	switch kind := rnd.IntN(6); kind {
	case 0, 1:
		clear(q)
	case 2:
		for i := range q {
			q[i] = "all work and no play "[i%21]
		}
	default:
		for i := range q {
			if i%8 == 0 {
				v := rnd.Uint64()
				for j := i; j < min(i+8, len(q)); j++ {
					q[j] = byte(v >> (8 * (j - i)))
				}
			}
		}
	}
}

// Goal: whatever the pool wants and the guest does, every set holds exactly the disks at its checkpoint, and increments read only
// what changed. Method: random foreign writes, full and incremental, all chunkings and levels, two disks of odd sizes.
func TestEverySetHoldsWhatTheDisksHeld(t *testing.T) {
	for i, mode := range []string{"adaptive", "variable", "fixed-64K", "fixed-512K"} {
		t.Run(mode, func(t *testing.T) {
			b := newBench(t).run()
			seed := uint64(100 + i)
			rnd := rand.New(rand.NewPCG(seed, 2))
			vm := b.host.addVM("a", content(seed, 23<<20+512*3), content(seed+50, 9<<20))
			copy(vm.disks[1].data[510:], []byte{0x55, 0xaa})
			copy(vm.disks[1].data[446:], []byte{0, 0, 0, 0, 7, 0, 0, 0, 63, 0, 0, 0}) // a partition at sector 63
			_, set := b.backup(vm, b.grantFor(vm, mode, "default"))
			if set.manifest.Kind != holdfast.Full || set.manifest.Disks[0].Reason != holdfast.ReasonFirst {
				t.Fatalf("the first set is %s because of %q", set.manifest.Kind, set.manifest.Disks[0].Reason)
			}
			for round := range 6 {
				var written int64
				for _, d := range vm.disks {
					for range rnd.IntN(12) {
						n := 512 * (1 + rnd.IntN(300))
						at := 512 * rnd.IntN((len(d.data)-n)/512)
						scribble(rnd, d.data[at:at+n])
						written += int64(n) + 2*4096
					}
				}
				_, set := b.backup(vm, b.grantFor(vm, mode, []string{"off", "fast", "default", "better"}[round%4]))
				if set.manifest.Kind != holdfast.Incremental || !set.manifest.Disks[0].Inherit {
					t.Fatalf("seed %d round %d: the set is %s", seed, round, set.manifest.Kind)
				}
				if r := set.manifest.Stats.Read; r > written {
					t.Errorf("seed %d round %d: %d bytes were read, at most %d changed", seed, round, r, written)
				}
			}
		})
	}
}

// Goal: for each reason why there is no delta, the disk is read whole, the set says why, and only new bytes are sent.
func TestFullReadsSayWhy(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(b *bench, vm *memVM, g *grant)
		want  holdfast.Reason
	}{
		"requested":              {func(b *bench, vm *memVM, g *grant) { g.began.Full = true }, holdfast.ReasonRequested},
		"no token":               {func(b *bench, vm *memVM, g *grant) { g.began.Tokens = nil }, holdfast.ReasonNoToken},
		"lost":                   {func(b *bench, vm *memVM, g *grant) { b.host.changesErr = hv.ErrTrackingLost }, holdfast.ReasonTrackingLost},
		"lost, wrapped":          {func(b *bench, vm *memVM, g *grant) { b.host.changesErr = fmt.Errorf("query: %w", hv.ErrTrackingLost) }, holdfast.ReasonTrackingLost},
		"unknown":                {func(b *bench, vm *memVM, g *grant) { vm.disks[0].points = nil }, holdfast.ReasonTokenUnknown},
		"reverted":               {func(b *bench, vm *memVM, g *grant) { b.host.changesErr = hv.ErrReverted }, holdfast.ReasonReverted},
		"no tracking":            {func(b *bench, vm *memVM, g *grant) { b.host.changesErr = hv.ErrNoTracking }, holdfast.ReasonUnsupported},
		"resized, says the host": {func(b *bench, vm *memVM, g *grant) { b.host.changesErr = hv.ErrResized }, holdfast.ReasonResized},
		"resized": {func(b *bench, vm *memVM, g *grant) {
			vm.disks[0].data = append(vm.disks[0].data, make([]byte, 1<<20)...)
			vm.disks[0].meta.Size += 1 << 20
		}, holdfast.ReasonResized},
		"swapped":     {func(b *bench, vm *memVM, g *grant) { vm.disks[0].meta.ID = holdfast.DiskID{ID: holdfast.NewID()} }, holdfast.ReasonNewDisk},
		"sector size": {func(b *bench, vm *memVM, g *grant) { vm.disks[0].meta.LogicalSector = 4096 }, holdfast.ReasonFormatChanged},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t).run()
			vm := b.host.addVM("a", content(7, 6<<20))
			b.backup(vm, b.grantFor(vm, "adaptive", "fast"))
			copy(vm.disks[0].data[1<<20:], bytes.Repeat([]byte("changed!"), 512))
			g := b.grantFor(vm, "adaptive", "fast")
			c.spoil(b, vm, g)
			_, set := b.backup(vm, g)
			d := set.manifest.Disks[0]
			if d.Reason != c.want || d.Inherit || set.manifest.Kind != holdfast.Full {
				t.Errorf("a %s set with reason %q, inherit %v", set.manifest.Kind, d.Reason, d.Inherit)
			}
			if d.Stats.Sent > 200<<10 {
				t.Errorf("%d bytes were sent for 4 KiB of changes", d.Stats.Sent)
			}
		})
	}
}

// Goal: over-wide, unsorted and out-of-range answers of a tracker cost reads and nothing else.
func TestTrackersAreNotBelievedBlindly(t *testing.T) {
	b := newBench(t).run()
	vm := b.host.addVM("a", content(8, 10<<20+1024))
	b.backup(vm, b.grantFor(vm, "adaptive", "fast"))
	b.host.wide = 1 << 20
	vm.disks[0].data[5<<20]++
	vm.disks[0].data[10<<20+1000]++
	_, set := b.backup(vm, b.grantFor(vm, "adaptive", "fast"))
	if s := set.manifest.Stats; s.Read != 1<<20+1024 || s.Sent > 600<<10 {
		t.Errorf("%+v", s)
	}
}

func TestNothingChangedSendsNothing(t *testing.T) {
	b := newBench(t).run()
	vm := b.host.addVM("a", content(9, 12<<20))
	b.backup(vm, b.grantFor(vm, "adaptive", "fast"))
	_, set := b.backup(vm, b.grantFor(vm, "adaptive", "fast"))
	if s := set.manifest.Stats; s.Read != 0 || s.Sent != 0 {
		t.Errorf("an unchanged disk cost %+v", s)
	}
	g := b.grantFor(vm, "adaptive", "fast")
	g.began.Full = true
	if _, set = b.backup(vm, g); set.manifest.Stats.Sent != 0 || set.manifest.Stats.Read == 0 {
		t.Errorf("re-reading an unchanged disk cost %+v", set.manifest.Stats)
	}
	// Trimmed: the changed range is not even read.
	clear(vm.disks[0].data[4<<20 : 6<<20])
	if _, set = b.backup(vm, b.grantFor(vm, "adaptive", "fast")); set.manifest.Stats.Read != 0 || set.manifest.Stats.Sent != 0 {
		t.Errorf("trimmed blocks cost %+v", set.manifest.Stats)
	}
}

// Goal: a chunk that occurs often in a short time travels once. Method: a disk of one repeated MiB, all of it missing.
func TestRepeatedChunksTravelOnce(t *testing.T) {
	b := newBench(t).run()
	vm := b.host.addVM("a", bytes.Repeat(content(3, 1<<20), 40))
	_, set := b.backup(vm, b.grantFor(vm, "fixed-64K", "off"))
	if b.house.twice != 0 || set.manifest.Stats.Sent > 1<<20 {
		t.Errorf("%d chunks came twice; %d bytes were sent", b.house.twice, set.manifest.Stats.Sent)
	}
}

// Goal: whichever step fails, the task reports it with its own kind, no set appears, and the host is as before.
func TestFailuresLeaveNothing(t *testing.T) {
	broken := errors.New("bad sector")
	fail := func(kind wire.Type, n int) func(b *bench) {
		return func(b *bench) {
			seen := 0
			b.house.on(func(m wire.Message) error {
				if m.Type == kind {
					if seen++; seen == n {
						return holdfast.Errorf(holdfast.NoSpace, "store", "the pool is full").Advise("give it more")
					}
				}
				return nil
			})
		}
	}
	for name, c := range map[string]struct {
		spoil func(b *bench)
		kind  holdfast.Kind
	}{
		"checkpoint": {func(b *bench) {
			b.host.checkpointErr = holdfast.Errorf(holdfast.Unsupported, "checkpoint", "no checkpoints here")
		}, holdfast.Unsupported},
		"allocation":           {func(b *bench) { b.host.allocErr = broken }, holdfast.Corrupt},
		"configuration":        {func(b *bench) { b.host.configErr = holdfast.Errorf(holdfast.Permission, "", "denied") }, holdfast.Permission},
		"first read":           {func(b *bench) { b.host.readErr = broken }, holdfast.Corrupt},
		"late read":            {func(b *bench) { b.host.readErr, b.host.readErrAt = broken, 17<<20 }, holdfast.Corrupt},
		"classified read":      {func(b *bench) { b.host.readErr = holdfast.Errorf(holdfast.Offline, "", "gone") }, holdfast.Offline},
		"refused at start":     {fail(wire.TypeStart, 1), holdfast.NoSpace},
		"refused at a put":     {fail(wire.TypePut, 3), holdfast.NoSpace},
		"refused at a place":   {fail(wire.TypePlace, 2), holdfast.NoSpace},
		"refused at an ask":    {fail(wire.TypeAsk, 4), holdfast.NoSpace},
		"refused at disk done": {fail(wire.TypeDiskDone, 1), holdfast.NoSpace},
		"refused at commit":    {fail(wire.TypeCommit, 1), holdfast.NoSpace},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			vm := b.host.addVM("a", content(5, 30<<20), content(6, 8<<20))
			c.spoil(b)
			b.run()
			r := b.task(wire.Task{Kind: wire.TaskBackup, VM: vm.info.ID}, b.grantFor(vm, "adaptive", "fast"))
			if r.Error == nil || r.Error.Kind != c.kind || !r.Ended {
				t.Errorf("reported: %+v %+v", r, r.Error)
			}
			if len(b.house.sets) != 0 {
				t.Error("a set was committed")
			}
			b.stop()
			// And the next one works, from the start.
			b.host.checkpointErr, b.host.allocErr, b.host.configErr, b.host.readErr = nil, nil, nil, nil
			b.house.on(nil)
			b.run().backup(vm, b.grantFor(vm, "adaptive", "fast"))
		})
	}
}

func TestSourceErrorsAreNotWireErrors(t *testing.T) {
	err := sourceError(&holdfast.Disk{Name: "d"}, "read", errors.New("bad sector"))
	var s *SourceError
	if !errors.As(fmt.Errorf("wrapped: %w", err), &s) || holdfast.KindOf(err) != holdfast.Corrupt || holdfast.HintOf(err) == "" {
		t.Errorf("%v (%v, %q)", err, holdfast.KindOf(err), holdfast.HintOf(err))
	}
}

// Goal: a connection that breaks in the middle is no failure. Method: cut it at several messages.
func TestBrokenConnectionsAreResumed(t *testing.T) {
	b := newBench(t)
	n := 0
	b.house.on(func(m wire.Message) error {
		if n++; n == 3 || n == 9 || m.Type == wire.TypeCommit {
			b.house.cut()
		}
		return nil
	})
	b.run()
	vm := b.host.addVM("a", content(5, 30<<20))
	b.backup(vm, b.grantFor(vm, "adaptive", "fast"))
}

// Goal: when the host cannot turn the checkpoint into a reference point, the set is kept, the task ends well and says what it costs.
func TestLostTrackingIsToldButNoFailure(t *testing.T) {
	b := newBench(t).run()
	vm := b.host.addVM("a", content(5, 3<<20))
	b.host.commitErr = errors.New("no reference point")
	r, set := b.backup(vm, b.grantFor(vm, "adaptive", "fast"))
	if r.Note == "" || len(set.tokens) != 0 {
		t.Errorf("note %q, tokens %v", r.Note, set.tokens)
	}
	b.host.commitErr = nil
	if _, set := b.backup(vm, b.grantFor(vm, "adaptive", "fast")); set.manifest.Disks[0].Reason != holdfast.ReasonNoToken {
		t.Errorf("reason %q", set.manifest.Disks[0].Reason)
	}
}

// Goal: an agent that was killed discards what it left before it takes a task, and forgets it.
func TestRestartedAgentCleansUp(t *testing.T) {
	b := newBench(t)
	vm := b.host.addVM("a", content(5, 3<<20))
	task := wire.Task{ID: holdfast.TaskID{ID: holdfast.NewID()}, Kind: wire.TaskBackup, VM: vm.info.ID}
	j, err := openJournal(filepath.Join(b.dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	if err := j.add(&task); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "journal", "new-123"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	cp, err := b.host.Checkpoint(t.Context(), vm.info.ID, hv.CheckpointOptions{Tag: task.ID.String()})
	if err != nil {
		t.Fatal(err)
	}
	b.host.left = append(b.host.left, cp.(*memCheckpoint))
	b.run().backup(vm, b.grantFor(vm, "adaptive", "fast"))
	if !cp.(*memCheckpoint).ended {
		t.Error("the checkpoint is still there")
	}
}

// Goal: the journal has the task before its checkpoint is made.
func TestJournalComesBeforeTheCheckpoint(t *testing.T) {
	b := newBench(t)
	n := 0
	b.host.onCheckpoint = func() {
		names, _ := os.ReadDir(filepath.Join(b.dir, "journal"))
		n = len(names)
	}
	b.run()
	vm := b.host.addVM("a", content(5, 1<<20))
	b.backup(vm, b.grantFor(vm, "adaptive", "fast"))
	if n != 1 {
		t.Errorf("%d entries when the checkpoint was made", n)
	}
}

// Goal: a cancelled task ends soon, as cancelled, and cleans up; the others go on. Method: reads that wait.
func TestCancelEndsATask(t *testing.T) {
	b := newBench(t)
	reading := make(chan struct{}, 1000)
	b.host.onRead = func() {
		select {
		case reading <- struct{}{}:
		default:
		}
	}
	b.run()
	vm := b.host.addVM("a", content(5, 64<<20))
	id := b.give(wire.Task{Kind: wire.TaskBackup, VM: vm.info.ID, Limits: []wire.Limit{{Rate: 1 << 20, Reads: true}}}, b.grantFor(vm, "adaptive", "fast"))
	<-reading
	b.house.notices <- wire.Notice{Cancel: id}
	if r := b.wait(id); r.Error == nil || r.Error.Kind != holdfast.Cancelled {
		t.Errorf("%+v", r)
	}
	if len(b.house.sets) != 0 {
		t.Error("a set was committed")
	}
}

func TestManyVMsShareTheBuffers(t *testing.T) {
	b := newBench(t).run()
	var ids []holdfast.TaskID
	var vms []*memVM
	for i := range 12 {
		seed := uint64(40 + i)
		vm := b.host.addVM(fmt.Sprint("vm", i), content(seed, 7<<20), content(seed+20, 3<<20), content(seed, 5<<20))
		vms = append(vms, vm)
		ids = append(ids, b.give(wire.Task{Kind: wire.TaskBackup, VM: vm.info.ID, Disks: 3}, b.grantFor(vm, "adaptive", "fast")))
	}
	for i, id := range ids {
		if r := b.wait(id); r.Error != nil || len(r.Disks) != 3 {
			t.Errorf("VM %d: %+v %+v", i, r, r.Error)
		}
	}
	for _, set := range b.house.sets {
		for _, vm := range vms {
			for i := range vm.disks {
				if vm.info.ID == set.manifest.VM.ID && !bytes.Equal(set.images[i], vm.disks[i].data) {
					t.Errorf("%s disk %d differs", vm.info.Name, i)
				}
			}
		}
	}
}

func TestUnknownTasksAreRefused(t *testing.T) {
	b := newBench(t).run()
	vm := b.host.addVM("a", content(5, 1<<20))
	for want, task := range map[holdfast.Kind]wire.Task{
		holdfast.Unsupported: {Kind: "dance"},
		holdfast.NotExist:    {Kind: wire.TaskBackup, VM: holdfast.VMID{ID: holdfast.NewID()}},
	} {
		if r := b.task(task, b.grantFor(vm, "adaptive", "fast")); r.Error == nil || r.Error.Kind != want {
			t.Errorf("%+v: %+v", task, r.Error)
		}
	}
	if r := b.task(wire.Task{Kind: wire.TaskBackup, VM: vm.info.ID}, nil); r.Error == nil || r.Error.Kind != holdfast.NotExist {
		t.Errorf("a task that the appliance does not know: %+v", r.Error)
	}
}

// Goal: an agent that is told to stop in the middle of a task cleans up behind itself before it ends. Method: stop it when the
// appliance sees its n-th message; stop checks that nothing is left.
func TestStoppingInTheMiddleLeavesNothing(t *testing.T) {
	for n := 1; n <= 40; n += 3 {
		b := newBench(t)
		reached := make(chan struct{})
		seen := 0
		b.house.on(func(wire.Message) error {
			if seen++; seen == n {
				close(reached)
			}
			return nil
		})
		b.run()
		vm := b.host.addVM("a", content(uint64(n), 20<<20), content(uint64(n+1), 6<<20))
		id := b.give(wire.Task{Kind: wire.TaskBackup, VM: vm.info.ID}, b.grantFor(vm, "adaptive", "fast"))
		b.house.mu.Lock()
		ended := b.house.ended[id]
		b.house.mu.Unlock()
		select {
		case <-reached:
		case <-ended: // it had fewer messages
		}
		b.stop()
		select {
		case <-ended:
		default:
			t.Errorf("stopped at message %d: the task's end was not reported", n)
		}
	}
}
