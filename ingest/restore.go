package ingest

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/pools"
)

// A delivery is the session of a restore task.
type delivery struct {
	link     *wire.Link
	set      pools.Set
	manifest holdfast.Manifest // with the granted disks only
	wg       sync.WaitGroup

	mu   sync.Mutex
	busy []bool // by channel: a Want is being served
}

func (s *Server) restore(ctx context.Context, link *wire.Link, host holdfast.HostID, task holdfast.TaskID) (err error) {
	grant, err := s.o.Desk.Restore(ctx, host, task)
	if err != nil {
		return err
	}
	if grant.Ended != nil {
		defer func() { grant.Ended(err) }()
	}
	set, err := grant.Pool.Open(ctx, grant.Set)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, set.Close()) }()
	m, err := only(set.Manifest(), grant.Disks)
	if err != nil {
		return err
	}
	key := grant.Pool.Traits().Domain.Key
	d := &delivery{link: link, set: set, manifest: m, busy: make([]bool, len(m.Disks))}
	if err := link.Send(ctx, wire.Message{Type: wire.TypeSetOpened, Body: wire.SetOpened{Manifest: m, DomainKey: key[:]}}); err != nil {
		return err
	}
	return d.run(ctx)
}

// only returns the manifest with just the named disks, in its order; all of them if none is named.
func only(m holdfast.Manifest, disks []holdfast.DiskID) (holdfast.Manifest, error) {
	for _, id := range disks {
		if m.Disk(id) == nil {
			return m, holdfast.Errorf(holdfast.NotExist, "open set", "set %s has no disk %s", m.ID, id)
		}
	}
	if len(disks) > 0 {
		m.Disks = slices.DeleteFunc(slices.Clone(m.Disks), func(d holdfast.Disk) bool { return !slices.Contains(disks, d.ID) })
	}
	return m, nil
}

// run serves Wants until the agent says Done. When it returns nothing reads from the set any more.
func (d *delivery) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer d.wg.Wait()
	defer cancel(nil)
	for {
		m, err := receive(ctx, d.link)
		if err != nil {
			return err
		}
		switch body := m.Body.(type) {
		case wire.Want:
			if err := d.want(ctx, cancel, m.Channel, body.Extents); err != nil {
				return err
			}
			continue
		}
		if m.Type == wire.TypeDone {
			return nil
		}
		m.Release()
		return invalid("serve restore", "a %v message in a restore", m.Type)
	}
}

// want starts the delivery of a disk's extents.
func (d *delivery) want(ctx context.Context, cancel context.CancelCauseFunc, no uint16, es holdfast.Extents) error {
	const op = "serve restore"
	if int(no) >= len(d.manifest.Disks) {
		return invalid(op, "a Want on channel %d; the set has %d disks", no, len(d.manifest.Disks))
	}
	disk := &d.manifest.Disks[no]
	if end := es[len(es)-1].End(); end > disk.Size {
		return invalid(op, "bytes up to %d wanted of disk %s, which has %d", end, disk.ID, disk.Size)
	}
	d.mu.Lock()
	busy := d.busy[no]
	d.busy[no] = true
	d.mu.Unlock()
	if busy {
		return invalid(op, "a second Want on channel %d before the first was delivered", no)
	}
	d.wg.Go(func() {
		send := func(m wire.Message) error {
			m.Channel = no
			return d.link.Send(ctx, m)
		}
		if err := deliver(d.set.Read(ctx, disk.ID, es), send); err != nil {
			cancel(err)
			return
		}
		d.mu.Lock()
		d.busy[no] = false
		d.mu.Unlock()
		if err := send(wire.Message{Type: wire.TypeDelivered}); err != nil {
			cancel(err)
		}
	})
	return nil
}

// deliver sends parcels, each released once it is sent. How far the pool reads ahead follows from how fast they go.
func deliver(parcels iter.Seq2[*holdfast.Parcel, error], send func(wire.Message) error) error {
	for p, err := range parcels {
		if err != nil {
			return err
		}
		err = sendParcel(p, send)
		p.Release()
		if err != nil {
			return err
		}
	}
	return nil
}

// sendParcel sends a parcel, as several where it has more places than a message takes.
func sendParcel(p *holdfast.Parcel, send func(wire.Message) error) error {
	for places := range slices.Chunk(p.Places, wire.MaxPlaces) {
		part := holdfast.Parcel{Group: p.Group, Places: places}
		if err := send(wire.Message{Type: wire.TypeParcel, Body: &part}); err != nil {
			return err
		}
	}
	return nil
}

// ExportDisk writes the wanted extents of a set's disk to w as a wire stream (wire.StreamReader reads it), for a receiver that verifies and places. Nothing
// wanted means all of the disk. What fails after the stream has begun is said in the stream too.
func ExportDisk(ctx context.Context, w io.Writer, pool pools.Pool, id holdfast.SetID, disk holdfast.DiskID, want holdfast.Extents) (err error) {
	set, err := pool.Open(ctx, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, set.Close()) }()
	return StreamDisk(ctx, w, set, pool.Traits().Domain, disk, want)
}

// StreamDisk is ExportDisk for a set that is open, and of the domain of its pool.
func StreamDisk(ctx context.Context, w io.Writer, set pools.Set, dom holdfast.Domain, disk holdfast.DiskID, want holdfast.Extents) error {
	m, err := only(set.Manifest(), []holdfast.DiskID{disk})
	if err != nil {
		return err
	}
	m.Attachments = nil // bytes of a disk are wanted
	size := m.Disks[0].Size
	if len(want) == 0 {
		want = holdfast.Extents{{Off: 0, Len: size}}
	}
	if want = want.Normal(size); len(want) == 0 {
		return holdfast.Errorf(holdfast.Invalid, "export disk", "nothing of what is wanted is on the disk")
	}
	out := wire.NewStreamWriter(w)
	send := func(msg wire.Message) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return out.Send(msg)
	}
	err = send(wire.Message{Type: wire.TypeSetOpened, Body: wire.SetOpened{Manifest: m, DomainKey: dom.Key[:]}})
	if err == nil {
		err = deliver(set.Read(ctx, disk, want), send)
	}
	if err == nil {
		err = send(wire.Message{Type: wire.TypeDelivered})
	}
	if err != nil {
		return errors.Join(err, out.Fail(err))
	}
	return out.Done()
}
