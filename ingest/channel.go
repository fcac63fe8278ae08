package ingest

import (
	"context"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/pools"
)

// A channel carries one disk. Its goroutine applies messages in their order; groups are verified by the server's workers meanwhile.
type channel struct {
	b     *backup
	no    uint16
	disk  holdfast.DiskID
	size  int64
	meter *holdfast.Meter
	in    chan item
	done  bool // DiskDone has come (the dispatcher's)

	// The goroutine's, and the dispatcher's after it has ended.
	w       pools.DiskWriter
	end     int64 // of the last ref
	sent    int64 // payload bytes
	missing []bool
}

// An item is a message on its way to the pool.
type item struct {
	m       wire.Message
	checked chan error // of a Put: the worker's answer
}

// pass hands a message to its channel, which owns it then.
func (b *backup) pass(ctx context.Context, cancel context.CancelCauseFunc, m wire.Message) error {
	const op = "serve backup"
	if b.session == nil || b.committed != nil {
		m.Release()
		return invalid(op, "a %v message, but no set is being written", m.Type)
	}
	if int(m.Channel) >= len(b.channels) {
		m.Release()
		return invalid(op, "a %v message on channel %d; the set has %d disks", m.Type, m.Channel, len(b.channels))
	}
	c := b.channels[m.Channel]
	if c == nil {
		c = b.open(ctx, cancel, m.Channel)
	}
	if c.done {
		m.Release()
		return invalid(op, "a %v message for disk %s, which was done", m.Type, c.disk)
	}
	c.done = m.Type == wire.TypeDiskDone
	it := item{m: m}
	if g, ok := m.Body.(*holdfast.Group); ok {
		j := &job{group: g, domain: b.grant.Pool.Traits().Domain, done: make(chan error, 1)}
		it.checked = j.done
		select {
		case b.puts <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		select {
		case b.s.jobs <- j:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case c.in <- it:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// open starts a channel's goroutine.
func (b *backup) open(ctx context.Context, cancel context.CancelCauseFunc, no uint16) *channel {
	d := &b.begun.Disks[no]
	c := &channel{b: b, no: no, disk: d.ID, size: d.Size, in: make(chan item, queueLen)}
	if b.grant.Meter != nil {
		c.meter = b.grant.Meter(d.ID)
	}
	b.channels[no] = c
	b.wg.Go(func() {
		if err := c.run(ctx); err != nil {
			cancel(err)
		}
	})
	return c
}

// run applies messages until DiskDone. After an error what waits is left to the garbage collector: workers may still look at it.
func (c *channel) run(ctx context.Context) error {
	w, err := c.b.session.Disk(ctx, c.disk)
	if err != nil {
		return err
	}
	c.w = w
	for {
		select {
		case it := <-c.in:
			if it.m.Type == wire.TypeDiskDone {
				return w.Close(ctx)
			}
			if err := c.apply(ctx, &it); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil // somebody else has the reason
		}
	}
}

func (c *channel) apply(ctx context.Context, it *item) error {
	switch body := it.m.Body.(type) {
	case wire.Ask:
		return c.ask(ctx, it, body)
	case *holdfast.Group:
		return c.put(ctx, it, body)
	case wire.Place:
		return c.place(ctx, it, body)
	}
	panic("ingest: a message that was not to be passed on")
}

func (c *channel) ask(ctx context.Context, it *item, a wire.Ask) error {
	if cap(c.missing) < len(a.Digests) {
		c.missing = make([]bool, wire.MaxAsk)
	}
	c.missing = c.missing[:len(a.Digests)]
	if err := c.timed(func() error { return c.w.Missing(ctx, a.Digests, c.missing) }); err != nil {
		return err
	}
	have := wire.Message{Type: wire.TypeHave, Channel: c.no, Body: wire.Have{Batch: a.Batch, Missing: c.missing}}
	it.m.Release()
	return c.b.link.Send(ctx, have)
}

func (c *channel) put(ctx context.Context, it *item, g *holdfast.Group) error {
	select {
	case err := <-it.checked:
		if err != nil {
			return &lie{holdfast.Errorf(holdfast.KindOf(err), "verify group of disk "+c.disk.String(), "%w", err)}
		}
	case <-ctx.Done():
		return nil
	}
	n := int64(len(g.Payload))
	if err := c.timed(func() error { return c.w.Put(ctx, g) }); err != nil {
		return err
	}
	it.m.Release()
	<-c.b.puts
	c.sent += n
	c.meter.AddSent(n)
	return nil
}

func (c *channel) place(ctx context.Context, it *item, p wire.Place) error {
	if err := pools.CheckRefs(p.Refs, c.end, c.size); err != nil {
		return invalid("place on disk "+c.disk.String(), "%w", err)
	}
	if err := c.timed(func() error { return c.w.Place(ctx, p.Refs) }); err != nil {
		return err
	}
	for _, r := range p.Refs {
		c.meter.AddDone(r.Len)
	}
	c.end = p.Refs[len(p.Refs)-1].End()
	it.m.Release()
	return nil
}

// timed adds what the pool takes to the session's account.
func (c *channel) timed(do func() error) error {
	began := c.b.s.o.Clock.Now()
	err := do()
	c.b.pool.Add(int64(c.b.s.o.Clock.Now().Sub(began)))
	return err
}
