package agent

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/transport"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// Control is the agent's way to its appliance; *transport.Client is one.
type Control interface {
	// Run keeps the task stream open until ctx ends.
	Run(ctx context.Context, h transport.Handler) error
	Inventory(ctx context.Context, inv wire.Inventory) error
	Report(ctx context.Context, rs []wire.Report) error
	// DialBy opens a link for the data of one task.
	// It goes the way that r says, if not nil.
	DialBy(ctx context.Context, r *wire.Route, o wire.LinkOptions) (*wire.Link, error)
}

// Options makes an Agent. Hypervisor, Control and Dir are needed; the zero value of the rest is the default.
type Options struct {
	Hypervisor hv.Hypervisor
	Control    Control
	Dir        string          // the agent's data folder; the journal is below it
	Host       holdfast.HostID // from the identity
	HostName   string
	Version    string // of the agent
	VMs        int    // tasks at once; 0: 64, for the appliance decides how many it gives
	Workers    int    // that hash and encode; 0: GOMAXPROCS
	Clock      clock.Clock
	Log        *slog.Logger // nil: nothing is logged
}

const (
	defaultVMs     = 64
	defaultDisks   = 2 // of one VM at once
	maxTasks       = 1024
	inventoryEvery = 15 * time.Second // how often the host is looked at for changes
	cleanupTime    = 10 * time.Minute // for merging a checkpoint that is given up, or removing a VM that was not finished
	farewellTime   = 30 * time.Second // for the appliance to take the last messages of a task that is done
)

// An Agent serves one host. It is used once: New, then Run.
type Agent struct {
	o       Options
	journal *journal
	engine  *engine
	turn    chan struct{} // one token for each task at work
	kick    chan struct{} // wakes the inventory
	news    chan struct{} // wakes the reporter

	mu     sync.Mutex
	tasks  map[holdfast.TaskID]*running // until their end was reported
	shares map[holdfast.RunID]*shared   // by the tasks of runs
	past   [256]holdfast.TaskID         // ended and reported: a notice that comes again is not a new task
	next   int                          // in past
	wg     sync.WaitGroup
}

// New returns an agent that is not running yet.
func New(o Options) (*Agent, error) {
	if o.VMs <= 0 {
		o.VMs = defaultVMs
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	j, err := openJournal(filepath.Join(o.Dir, "journal"))
	if err != nil {
		return nil, err
	}
	return &Agent{
		o: o, journal: j, turn: make(chan struct{}, o.VMs), kick: make(chan struct{}, 1), news: make(chan struct{}, 1),
		tasks: map[holdfast.TaskID]*running{}, shares: map[holdfast.RunID]*shared{},
	}, nil
}

// Run cleans up after a killed agent, then serves the appliance until ctx ends. It returns when every task has ended and cleaned
// up behind itself; the error is ctx's.
func (a *Agent) Run(ctx context.Context) error {
	a.engine = newEngine(a.o.Workers)
	defer a.engine.close()
	a.recover(ctx)
	reporting, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { a.report(reporting) })
	wg.Go(func() { a.inventories(ctx) })
	err := a.o.Control.Run(ctx, transport.Handler{
		Online: func() {
			a.o.Log.Info("online")
			wake(a.kick)
			wake(a.news)
		},
		Offline: func(err error) { a.o.Log.Warn("offline", "error", err, "advice", holdfast.HintOf(err)) },
		Notice:  func(n wire.Notice) { a.notice(ctx, n) },
	})
	a.wg.Wait() // tasks run under ctx
	stop()
	wg.Wait()
	return err
}

func (a *Agent) notice(ctx context.Context, n wire.Notice) {
	switch {
	case n.Task != nil:
		a.start(ctx, *n.Task)
	case !n.Cancel.IsZero():
		a.mu.Lock()
		r := a.tasks[n.Cancel]
		a.mu.Unlock()
		if r != nil {
			r.cancel(holdfast.Errorf(holdfast.Cancelled, "", "the task was cancelled"))
		}
	case n.Survey != nil:
		a.wg.Go(func() { a.survey(ctx, *n.Survey) })
	case n.Inventory:
		wake(a.kick)
	}
}

// start runs a task, unless it is known already: a notice may be repeated.
func (a *Agent) start(ctx context.Context, t wire.Task) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t.ID.IsZero() || a.tasks[t.ID] != nil {
		return
	}
	for _, id := range a.past {
		if id == t.ID {
			return
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	r := &running{task: t, phase: "queued", cancel: cancel, over: make(chan struct{})}
	a.tasks[t.ID] = r
	if len(a.tasks) > maxTasks {
		cancel(nil)
		close(r.over)
		r.end(holdfast.Errorf(holdfast.Busy, "start task", "%d tasks are waiting already", maxTasks))
		wake(a.news)
		return
	}
	a.wg.Go(func() {
		defer cancel(nil)
		err := a.perform(ctx, r)
		log := a.o.Log.With("task", t.ID.String(), "kind", t.Kind, "vm", t.VM.String())
		if err != nil {
			log.Error("task failed", "error", err, "advice", holdfast.HintOf(err))
		} else {
			log.Info("task done")
		}
		r.end(err)
		close(r.over)
		wake(a.news)
	})
}

// perform waits for a turn and does the task.
func (a *Agent) perform(ctx context.Context, r *running) error {
	switch {
	case r.task.Kind == wire.TaskScript: // it is there for VMs that wait for it
		return a.script(ctx, r)
	case r.task.Kind == wire.TaskBackup && r.task.Group > 1: // its VMs are frozen together, or wait for each other's turns
		return a.backup(ctx, r)
	}
	if err := pass(ctx, a.turn, struct{}{}); err != nil {
		return err
	}
	defer func() { <-a.turn }()
	switch r.task.Kind {
	case wire.TaskBackup:
		return a.backup(ctx, r)
	case wire.TaskRestore:
		return a.restore(ctx, r)
	}
	return holdfast.Errorf(holdfast.Unsupported, "start task", "this agent does not know tasks of kind %q", r.task.Kind).
		Advise("install the agent that belongs to the appliance's version")
}

// recover discards what a killed agent left. What cannot be discarded now stays in the journal, and is tried again before
// the next backup of its VM.
func (a *Agent) recover(ctx context.Context) {
	left, err := a.journal.entries()
	if err != nil {
		a.o.Log.Error("reading the journal", "error", err)
	}
	kept, err := a.discardLeftovers(ctx, holdfast.VMID{})
	if err != nil {
		a.o.Log.Error("discarding what a killed agent left", "error", err)
	}
	if kept == nil {
		return
	}
	for _, e := range left {
		if kept[e.Task.String()] {
			continue
		}
		if err := a.journal.remove(e.Task); err != nil {
			a.o.Log.Error("clearing the journal", "error", err)
			continue
		}
		a.o.Log.Info("cleaned up after a task that was interrupted", "task", e.Task.String(), "kind", e.Kind, "dir", e.Dir)
	}
}

// discardLeftovers discards checkpoints that a killed agent left: of one VM, or of all for the zero id. It returns the tags of those
// that are still there (nil if that could not be found out), and what went wrong.
func (a *Agent) discardLeftovers(ctx context.Context, vm holdfast.VMID) (kept map[string]bool, err error) {
	left, err := a.o.Hypervisor.Leftovers(ctx)
	if err != nil {
		return nil, err
	}
	kept = map[string]bool{}
	for _, l := range left {
		if !vm.IsZero() && l.VM() != vm {
			continue
		}
		if e := l.Discard(ctx); e != nil {
			kept[l.Tag()] = true
			err = errors.Join(err, e)
			continue
		}
		a.o.Log.Info("discarded a checkpoint that was left behind", "vm", l.VM().String(), "tag", l.Tag())
		if id, bad := holdfast.ParseID(l.Tag()); bad == nil {
			err = errors.Join(err, a.journal.remove(holdfast.TaskID{ID: id}))
		}
	}
	return kept, err
}

// inventories tells the appliance what the host has: when the stream opens, when asked, and when it changed.
func (a *Agent) inventories(ctx context.Context) {
	var sent wire.Inventory
	for asked := false; ; {
		tick, stop := a.o.Clock.After(inventoryEvery)
		select {
		case <-ctx.Done():
			stop()
			return
		case <-a.kick:
			asked = true
		case <-tick:
		}
		stop()
		inv, err := a.inventory(ctx)
		if err == nil && (asked || !reflect.DeepEqual(inv, sent)) {
			err = a.o.Control.Inventory(ctx, inv)
			if err == nil {
				sent, asked = inv, false
			}
		}
		if err != nil && ctx.Err() == nil {
			a.o.Log.Warn("sending the inventory", "error", err)
		}
	}
}

func (a *Agent) inventory(ctx context.Context) (wire.Inventory, error) {
	info, err := a.o.Hypervisor.Info(ctx)
	if err != nil {
		return wire.Inventory{}, err
	}
	vms, err := a.o.Hypervisor.VMs(ctx)
	if err != nil {
		return wire.Inventory{}, err
	}
	inv := wire.Inventory{Product: info.Product, Version: info.Version, Agent: a.o.Version, VMs: make([]wire.VM, 0, len(vms)),
		Switches: info.Switches, VMVersion: info.VMVersion}
	for i := range vms {
		inv.VMs = append(inv.VMs, wireVM(&vms[i]))
	}
	addrs, err := wire.LocalAddresses()
	if err != nil { // the list is there to choose from; backups do without
		a.o.Log.Warn("listing the host's addresses", "error", err)
	}
	inv.Addresses = wire.Reachable(addrs)
	return inv, nil
}

func wireVM(v *hv.VM) wire.VM {
	w := wire.VM{VMInfo: v.VMInfo, State: v.State, Disks: v.Disks, Adapters: v.Adapters, Checkpoints: v.Checkpoints, Busy: v.Busy, Served: v.Served, Dir: v.Dir}
	for _, s := range v.Skipped {
		w.Skipped = append(w.Skipped, s.Name+": "+s.Reason)
	}
	return w
}

// wake leaves a token for a goroutine that waits on c, or will.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
