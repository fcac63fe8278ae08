package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// backup does a backup task: one VM, one set. When it returns, either the set is committed, or the VM is as if nothing had been
// tried; and in both cases no checkpoint is left, or the journal says that one may be.
func (a *Agent) backup(ctx context.Context, r *running) (err error) {
	r.enter(phaseCheckpoint)
	shared, done, err := a.share(&r.task)
	if err != nil {
		return err
	}
	defer done()
	group := newMember(shared, &r.task, a.o.Clock)
	defer group.leave()
	if _, err := a.discardLeftovers(ctx, r.task.VM); err != nil {
		return fmt.Errorf("an earlier checkpoint of the VM is still there: %w", err)
	}
	vm, err := a.findVM(ctx, r.task.VM)
	if err != nil {
		return err
	}
	link, err := a.dial(ctx, &r.task)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b := &backup{a: a, r: r, vm: vm, shared: shared, group: group, x: exchange{link: link, cancel: cancel}}
	defer func() { err = b.x.end(ctx, err) }()
	if err := b.x.open(ctx, wire.TypeBegin, r.task.ID, wire.TypeBegan, &b.began); err != nil {
		return err
	}
	return b.run(ctx)
}

func (a *Agent) findVM(ctx context.Context, id holdfast.VMID) (*hv.VM, error) {
	vms, err := a.o.Hypervisor.VMs(ctx)
	if err != nil {
		return nil, err
	}
	for i := range vms {
		if vms[i].ID == id {
			return &vms[i], nil
		}
	}
	return nil, holdfast.Errorf(holdfast.NotExist, "find VM", "this host has no VM with the id %s", id).
		Advise("was it moved to another host or deleted? 'holdfast vm list' shows what each host has")
}

func (a *Agent) dial(ctx context.Context, t *wire.Task) (*wire.Link, error) {
	return a.o.Control.DialBy(ctx, t.Route, wire.LinkOptions{
		ReplayBytes: t.Buffer, Window: t.Reconnect, Clock: a.o.Clock,
		OnBreak: func(err error) { a.o.Log.Warn("connection lost, trying again", "task", t.ID.String(), "error", err) },
	})
}

// backup is the state of one backup task once its link is open.
type backup struct {
	a     *Agent
	r     *running
	vm    *hv.VM
	x     exchange
	began wire.Began

	shared *shared
	group  *member

	cp       hv.Checkpoint
	plans    []diskPlan
	meters   []*holdfast.Meter
	manifest holdfast.Manifest
}

// run is everything between Began and the end. The journal has the checkpoint before it is there.
func (b *backup) run(ctx context.Context) (err error) {
	if err := b.a.journal.add(&b.r.task); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			b.x.link.Abort(err) // the appliance need not wait for the merge
		}
		if e := b.release(ctx); e != nil {
			b.r.remark(e.Error())
			err = errors.Join(err, e)
		}
	}()
	level := hv.Level(b.r.task.Level)
	if level == "" {
		level = hv.LevelDefault
	}
	if _, err := b.group.come(ctx); err != nil {
		return err
	}
	b.cp, err = untilFree(ctx, b.a.o.Clock, func(ctx context.Context) (hv.Checkpoint, error) {
		return b.a.o.Hypervisor.Checkpoint(ctx, b.r.task.VM, hv.CheckpointOptions{Level: level, Tag: b.r.task.ID.String()})
	})
	if err != nil {
		return err
	}
	b.r.remark(b.cp.Note())
	together, err := b.group.come(ctx)
	if err != nil {
		return err
	}
	b.r.remark(together)
	if err := b.plan(ctx); err != nil {
		return err
	}
	if err := b.x.link.Send(ctx, wire.Message{Type: wire.TypeStart, Body: b.manifest}); err != nil {
		return err
	}
	b.r.enter(phaseReading)
	haves := make([]chan wire.Message, len(b.plans))
	for i := range haves {
		haves[i] = make(chan wire.Message, maxSlabs+1)
	}
	stop := b.x.receive(ctx, func(_ context.Context, m wire.Message) error { return route(haves, m) })
	defer stop()
	if err := b.disks(ctx, haves); err != nil {
		return err
	}
	if err := b.commit(ctx); err != nil {
		return err
	}
	b.track(ctx)
	return nil
}

// route hands answers to the disk that asked. It never waits: a disk has no more questions open than there are slabs.
func route(haves []chan wire.Message, m wire.Message) error {
	if m.Type == wire.TypeHave && int(m.Channel) < len(haves) {
		select {
		case haves[m.Channel] <- m:
			return nil
		default:
		}
	}
	return holdfast.Errorf(holdfast.Invalid, "read answer", "a %v message on channel %d was not asked for", m.Type, m.Channel)
}

// plan decides how each disk is read and drafts the manifest.
func (b *backup) plan(ctx context.Context) error {
	m := &b.manifest
	*m = holdfast.Manifest{
		ID: b.began.Set, Created: b.a.o.Clock.Now().UTC(), VM: b.vm.VMInfo, Host: b.a.o.Host, HostName: b.a.o.HostName,
		Run: b.r.task.Run, Kind: holdfast.Full, Consistency: b.cp.Level(), Dir: b.vm.Dir,
		Adapters: b.vm.Adapters[:min(len(b.vm.Adapters), holdfast.MaxAdapters)],
	}
	var frozen []hv.FrozenDisk
	for _, f := range b.cp.Disks() {
		if d := f.Meta(); skipped(&b.r.task, &d) {
			b.r.remark(fmt.Sprintf("disk %s is not in the set: the job leaves it out", d.Name))
			continue
		}
		frozen = append(frozen, f)
	}
	if len(frozen) > holdfast.MaxDisks {
		return holdfast.Errorf(holdfast.Unsupported, "plan backup", "the VM has %d disks; at most %d are supported", len(frozen), holdfast.MaxDisks)
	}
	for _, f := range frozen {
		p, err := planDisk(ctx, b.a.o.Clock, f, &b.began)
		if err != nil {
			return err
		}
		if p.meta.Inherit {
			m.Kind, m.Parent = holdfast.Incremental, b.began.Parent.ID
		}
		var total int64
		for _, w := range p.work {
			total += w.Len
		}
		b.plans = append(b.plans, p)
		b.meters = append(b.meters, b.r.meterFor(p.meta, total))
		m.Disks = append(m.Disks, p.meta)
	}
	var err error
	if m.Attachments, err = b.cp.Config(ctx); err != nil {
		return &SourceError{holdfast.Errorf(holdfast.KindOf(err), "read VM configuration", "%w", err)}
	}
	for _, s := range b.vm.Skipped {
		b.r.remark(fmt.Sprintf("disk %s is not in the set: %s", s.Name, s.Reason))
	}
	b.r.mu.Lock()
	m.Note = b.r.note
	b.r.mu.Unlock()
	return m.Check()
}

// disks reads the disks, some at a time.
func (b *backup) disks(ctx context.Context, haves []chan wire.Message) error {
	level, err := chunk.ParseLevel(b.began.Compression)
	if err != nil {
		return err
	}
	h := &hashers{domain: holdfast.Domain{Key: [32]byte(b.began.DomainKey)}}
	return together(ctx, len(b.plans), b.atOnce(), func(ctx context.Context, i int) (err error) {
		plan := &b.plans[i]
		if b.shared.channels != nil {
			if err := pass(ctx, b.shared.channels, struct{}{}); err != nil {
				return err
			}
			defer func() { <-b.shared.channels }()
		}
		src, err := untilFree(ctx, b.a.o.Clock, plan.frozen.Open)
		if err != nil {
			return sourceError(&plan.meta, "open", err)
		}
		defer func() {
			if e := src.Close(); e != nil && err == nil {
				err = sourceError(&plan.meta, "close", e)
			}
		}()
		split, err := chunk.NewSplitter(b.began.Chunking, chunk.PartitionStarts(src, plan.meta.Size, plan.meta.LogicalSector)...)
		if err != nil {
			return err
		}
		p := pipeline{
			e: b.a.engine, link: b.x.link, channel: uint16(i), disk: &plan.meta, src: src, work: plan.work, split: split, hashers: h,
			level: level, meter: b.meters[i], reads: b.shared.reads, sends: b.shared.sends, haves: haves[i], waits: &b.r.waits,
		}
		return p.run(ctx)
	})
}

// atOnce is how many disks are read at a time: what the task says, bounded by what the pool takes.
func (b *backup) atOnce() int {
	n := b.r.task.Disks
	if n <= 0 {
		n = defaultDisks
	}
	if b.began.Streams > 0 {
		n = min(n, b.began.Streams)
	}
	return n
}

// commit sends the final manifest and waits until the set is durable.
func (b *backup) commit(ctx context.Context) error {
	b.r.enter(phaseCommitting)
	m := &b.manifest
	for i := range m.Disks {
		s := b.meters[i].Sample()
		d := &m.Disks[i]
		d.Stats = holdfast.Stats{Logical: d.Size, Read: s.Read, Sent: s.Sent, Changed: b.plans[i].changed}
		m.Stats.Add(d.Stats)
	}
	if err := b.x.link.Send(ctx, wire.Message{Type: wire.TypeCommit, Body: *m}); err != nil {
		return err
	}
	_, err := b.x.wait(ctx, wire.TypeCommitted)
	return err
}

// track turns the checkpoint into the reference point of the next backup, now that the set is safe. What goes wrong here costs the next backup
// a full read, and is not a failure of this one.
func (b *backup) track(ctx context.Context) {
	b.r.enter(phaseMerging)
	clean, cancel := cleanup(ctx)
	defer cancel()
	tokens, err := b.cp.Commit(clean)
	if err == nil {
		b.cp = nil
	} else {
		tokens = nil // the appliance forgets the old ones, which belong to another set
	}
	tell := func() error {
		if err := b.x.link.Send(ctx, wire.Message{Type: wire.TypeTracking, Body: wire.Tracking{Set: b.began.Set, Tokens: tokens}}); err != nil {
			return err
		}
		if _, err := b.x.wait(ctx, wire.TypeTracked); err != nil {
			return err
		}
		return b.x.link.Send(ctx, wire.Message{Type: wire.TypeDone})
	}
	err = errors.Join(err, tell())
	if err != nil {
		b.r.remark("the set is safe, but the next backup will read whole disks: " + err.Error())
	}
}

// release discards a checkpoint that did not become a reference point, and clears the journal if that worked.
func (b *backup) release(ctx context.Context) error {
	if b.cp != nil {
		clean, cancel := cleanup(ctx)
		defer cancel()
		if err := b.cp.Discard(clean); err != nil {
			return fmt.Errorf("the checkpoint could not be discarded, which is tried again later: %w", err)
		}
	}
	return b.a.journal.remove(b.r.task.ID)
}

// cleanup returns a context for undoing things, which goes on when the task was cancelled.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
}

// together calls do for 0 to n-1, at most so many at once, and returns the first error; the others are cancelled then.
func together(ctx context.Context, n, atOnce int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	turn := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range n {
		if pass(ctx, turn, struct{}{}) != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-turn }()
			if err := do(ctx, i); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
