package agent

import (
	"context"
	"errors"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/restore"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// restore does a restore task: it builds a VM out of a set, or replaces one or a disk of one. When it returns an error, nothing of it is left, and
// what was to be replaced is as it was.
func (a *Agent) restore(ctx context.Context, r *running) (err error) {
	if r.task.Restore == nil {
		return holdfast.Errorf(holdfast.Invalid, "restore", "the task does not say what to make")
	}
	if done, err := a.earlier(ctx, r); done || err != nil {
		return err
	}
	r.enter(phaseWriting)
	shared, done, err := a.share(&r.task)
	if err != nil {
		return err
	}
	defer done()
	link, err := a.dial(ctx, &r.task)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	x := exchange{link: link, cancel: cancel}
	defer func() { err = x.end(ctx, err) }()
	var opened wire.SetOpened
	if err := x.open(ctx, wire.TypeOpenSet, r.task.ID, wire.TypeSetOpened, &opened); err != nil {
		return err
	}
	if err := a.journal.add(&r.task); err != nil {
		return err
	}
	if err := a.build(ctx, r, &x, &opened, shared); err != nil {
		return err
	}
	// The VM is there: nothing that goes wrong from here on makes the task a failure.
	if err := errors.Join(a.journal.remove(r.task.ID), link.Send(ctx, wire.Message{Type: wire.TypeDone})); err != nil {
		r.remark(err.Error())
	}
	return nil
}

// build makes the VM. On an error everything of it is removed.
func (a *Agent) build(ctx context.Context, r *running, x *exchange, opened *wire.SetOpened, shared *shared) (err error) {
	t := r.task.Restore
	vm, err := a.o.Hypervisor.CreateVM(ctx, hv.RestorePlan{
		Manifest: opened.Manifest, Dir: t.Dir, Name: t.Name, KeepID: t.KeepID, Tag: r.task.ID.String(), DiskDirs: t.DiskDirs, Adapters: t.Adapters,
		Replace: t.Replace, Into: t.Into, Overwrite: t.Overwrite, Shutdown: t.Shutdown, Reference: t.Reference, Start: t.Start,
	})
	if err != nil {
		return errors.Join(err, a.journal.remove(r.task.ID))
	}
	defer func() {
		if err == nil {
			return
		}
		clean, cancel := cleanup(ctx)
		defer cancel()
		e := vm.Discard(clean)
		if e == nil {
			e = a.journal.remove(r.task.ID)
		}
		err = errors.Join(err, e)
	}()
	ds := &delivery{
		disks: make([]chan wire.Message, len(opened.Manifest.Disks)),
		dom:   holdfast.Domain{Key: [32]byte(opened.DomainKey)},
		x:     x, vm: vm, r: r, shared: shared,
	}
	for i := range ds.disks {
		ds.disks[i] = make(chan wire.Message)
	}
	stop := x.receive(ctx, ds.route)
	defer stop()
	atOnce := r.task.Disks
	if atOnce <= 0 {
		atOnce = defaultDisks
	}
	err = together(ctx, len(ds.disks), atOnce, func(ctx context.Context, i int) error {
		return ds.disk(ctx, i, &opened.Manifest.Disks[i])
	})
	if err != nil {
		return err
	}
	r.enter(phaseRegistering)
	made, err := vm.Realize(ctx)
	if err != nil {
		return err
	}
	r.remark(made.Note)
	r.made(wireVM(&made.VM), made.Tokens)
	return nil
}

// earlier ends an earlier try of the task and removes what it left: the appliance was restarted, or lost sight of it. done says that the
// earlier try has made the VM meanwhile.
func (a *Agent) earlier(ctx context.Context, r *running) (done bool, err error) {
	id := r.task.Restore.Earlier
	if id.IsZero() {
		return false, nil
	}
	a.mu.Lock()
	old := a.tasks[id]
	a.mu.Unlock()
	if old != nil {
		old.cancel(holdfast.Errorf(holdfast.Cancelled, "", "the task was begun anew"))
		select {
		case <-old.over:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
		old.mu.Lock()
		vm, tokens, failed := old.vm, old.token, old.err != nil
		old.mu.Unlock()
		if !failed && vm != nil {
			r.made(*vm, tokens)
			return true, nil
		}
	}
	left, err := a.o.Hypervisor.Leftovers(ctx)
	if err != nil {
		return false, err
	}
	for _, l := range left {
		if l.Tag() == id.String() {
			if err := l.Discard(ctx); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// survey answers what the host has and what folders are like.
func (a *Agent) survey(ctx context.Context, req wire.SurveyRequest) {
	inv, err := a.inventory(ctx)
	s := &wire.Survey{ID: req.ID}
	if err == nil {
		var fs []hv.Folder
		fs, err = a.o.Hypervisor.Survey(ctx, req.Dirs[:min(len(req.Dirs), wire.MaxSurveyDirs)])
		for _, f := range fs {
			s.Folders = append(s.Folders, wire.Folder(f))
		}
	}
	if err != nil {
		f := wire.FailureOf(err)
		inv, s.Error = wire.Inventory{}, &f
	}
	inv.Survey = s
	if err := a.o.Control.Inventory(ctx, inv); err != nil && ctx.Err() == nil {
		a.o.Log.Warn("answering a survey", "error", err)
	}
}

// delivery takes parcels to the disks they are for.
type delivery struct {
	disks []chan wire.Message
	dom   holdfast.Domain
	x     *exchange
	vm    hv.PlannedVM
	r     *running

	shared *shared // the run's limits: of the transfer, and of what its disks are written with
}

// route hands a message to its disk and waits until the disk has room: that is how the appliance is slowed down to the rate of the
// slowest disk.
func (d *delivery) route(ctx context.Context, m wire.Message) error {
	if (m.Type != wire.TypeParcel && m.Type != wire.TypeDelivered) || int(m.Channel) >= len(d.disks) {
		m.Release()
		return unexpected(m)
	}
	err := pass(ctx, d.disks[m.Channel], m)
	if err != nil {
		m.Release()
	}
	return err
}

// disk writes one disk whole.
func (d *delivery) disk(ctx context.Context, i int, disk *holdfast.Disk) (err error) {
	w, err := d.vm.Disk(ctx, disk.ID)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	meter := d.r.meterFor(*disk, disk.Size)
	to := restore.New(d.dom, w, disk.Size, restore.Options{Meter: meter})
	err = d.fill(ctx, i, disk, to)
	placed, e := to.Close()
	if err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	meter.AddDone(disk.Size - placed) // what was not delivered is zeros
	return w.Finish()
}

// fill asks for a disk and passes on its parcels until all were delivered.
func (d *delivery) fill(ctx context.Context, i int, disk *holdfast.Disk, to *restore.Disk) error {
	want := wire.Want{Extents: holdfast.Extents{{Off: 0, Len: disk.Size}}}
	if err := d.x.link.Send(ctx, wire.Message{Type: wire.TypeWant, Channel: uint16(i), Body: want}); err != nil {
		return err
	}
	for {
		m, _, err := take(ctx, d.disks[i])
		if err != nil {
			return err
		}
		if m.Type == wire.TypeDelivered {
			return nil
		}
		parcel := m.Body.(*holdfast.Parcel)
		if err := d.pace(ctx, parcel); err != nil {
			m.Release()
			return err
		}
		if err := to.Put(ctx, parcel); err != nil {
			return err
		}
	}
}

// pace waits until the run's limits let a parcel pass.
func (d *delivery) pace(ctx context.Context, p *holdfast.Parcel) error {
	if err := d.shared.sends.take(ctx, len(p.Payload)); err != nil {
		return err
	}
	n := 0
	for _, x := range p.Places {
		n += int(x.Len)
	}
	return d.shared.reads.take(ctx, n)
}
