package ingest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/pools"
)

const (
	maxPuts    = 8  // groups of a session between link and pool, each up to 1 MiB: bounds memory
	queueLen   = 32 // messages of a disk waiting for its goroutine
	maxParents = 16 // sets tried as parent before a full is taken
)

// A backup is the session of a backup task. Its fields are the dispatcher's, which is the goroutine of run; disks have their own.
type backup struct {
	s     *Server
	link  *wire.Link
	host  holdfast.HostID
	grant BackupGrant

	set       holdfast.SetID
	parent    *holdfast.Manifest // offered; nil: none
	session   pools.Session      // nil before Start
	begun     holdfast.Manifest  // as given to the pool
	channels  []*channel         // by number
	puts      chan struct{}      // one token for each group under way
	wg        sync.WaitGroup     // the channels
	committed *holdfast.Manifest

	idle time.Duration // that the dispatcher waited for the agent
	pool atomic.Int64  // nanoseconds that disks waited for the pool
}

func (s *Server) backup(ctx context.Context, link *wire.Link, host holdfast.HostID, task holdfast.TaskID) error {
	grant, err := s.o.Desk.Backup(ctx, host, task)
	if err != nil {
		return err
	}
	b := &backup{s: s, link: link, host: host, grant: grant, puts: make(chan struct{}, maxPuts)}
	err = b.run(ctx)
	if grant.Spent != nil {
		grant.Spent(b.idle, time.Duration(b.pool.Load()))
	}
	if grant.Ended != nil {
		if b.committed != nil {
			grant.Ended(*b.committed, nil)
		} else {
			grant.Ended(holdfast.Manifest{}, err)
		}
	}
	if b.committed != nil && !errors.As(err, new(*lie)) {
		return nil // the set is safe; what the link did after that costs at most the tracking ids
	}
	return err
}

// run serves the session to its end. When it returns, nothing of it is running and an uncommitted set is gone.
func (b *backup) run(ctx context.Context) error {
	if err := b.begin(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		cancel(nil)
		b.wg.Wait()
		if b.session != nil && b.committed == nil {
			// An abort that fails is repeated when the pool is opened again.
			_ = b.session.Abort(context.WithoutCancel(ctx))
		}
	}()
	for {
		began := b.s.o.Clock.Now()
		m, err := receive(ctx, b.link)
		b.idle += b.s.o.Clock.Now().Sub(began)
		if err != nil {
			return err
		}
		over, err := b.handle(ctx, cancel, m)
		if err != nil || over {
			return err
		}
	}
}

// begin answers Begin.
func (b *backup) begin(ctx context.Context) error {
	t := b.grant.Pool.Traits()
	b.set = holdfast.SetID{ID: holdfast.NewTimeID(b.s.o.Clock.Now())}
	a := wire.Began{
		Set: b.set, Chunking: t.Chunking, DomainKey: t.Domain.Key[:], Compression: b.grant.Compression, Streams: t.Streams, Full: b.grant.Full,
	}
	if a.Compression == "" {
		a.Compression = "default"
	}
	if !b.grant.Full {
		var err error
		if b.parent, a.Tokens, err = b.findParent(ctx); err != nil {
			return err
		}
		a.Parent = b.parent
	}
	return b.link.Send(ctx, wire.Message{Type: wire.TypeBegan, Body: a})
}

// findParent returns the VM's newest set in the pool that the pool can open (of a differential: its newest full set), and the change
// tracking ids that belong to it.
func (b *backup) findParent(ctx context.Context) (*holdfast.Manifest, map[holdfast.DiskID]string, error) {
	var candidates []holdfast.SetID
	var tracking catalog.Tracking
	err := b.s.o.Catalog.View(func(tx *catalog.Tx) error {
		f := catalog.SetFilter{Pool: b.grant.PoolID, VM: b.grant.VM.ID, NewestFirst: true}
		for s, err := range tx.Sets(f) {
			if err != nil {
				return err
			}
			if b.grant.Differential && s.Manifest.Kind != holdfast.Full {
				continue
			}
			if s.State == catalog.SetCommitted || s.State == catalog.SetVerified {
				candidates = append(candidates, s.Manifest.ID)
			}
			if len(candidates) == maxParents {
				break
			}
		}
		var err error
		if tracking, err = tx.Tracking(b.grant.VM.ID, b.grant.PoolID); errors.Is(err, holdfast.NotExist) {
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	// The host's reference point is at the moment of that set: newer ones are passed over where a restore has brought it back.
	if i := slices.Index(candidates, tracking.Set); i > 0 && len(tracking.Tokens) > 0 {
		candidates = slices.Insert(slices.Delete(candidates, i, i+1), 0, tracking.Set)
	}
	for _, id := range candidates {
		set, err := b.grant.Pool.Open(ctx, id)
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if err != nil {
			continue // an older one, or a full, will do; verify and check find out what is wrong with it
		}
		m := set.Manifest()
		if err := set.Close(); err != nil {
			return nil, nil, err
		}
		m.Attachments = nil
		switch id {
		case tracking.Set:
			return &m, tracking.Tokens, nil
		case tracking.Full:
			return &m, tracking.FullTokens, nil
		}
		return &m, nil, nil
	}
	return nil, nil, nil
}

// handle does what a message asks for. over says that the session ended well.
func (b *backup) handle(ctx context.Context, cancel context.CancelCauseFunc, m wire.Message) (over bool, err error) {
	const op = "serve backup"
	switch m.Type {
	case wire.TypeAsk, wire.TypePut, wire.TypePlace, wire.TypeDiskDone:
		return false, b.pass(ctx, cancel, m)
	}
	defer m.Release()
	switch m.Type {
	case wire.TypeStart:
		if b.session != nil {
			return false, invalid(op, "a second Start")
		}
		return false, b.start(ctx, m.Body.(holdfast.Manifest))
	case wire.TypeCommit:
		if b.session == nil || b.committed != nil {
			return false, invalid(op, "a Commit, but no set is being written")
		}
		return false, b.commit(ctx, m.Body.(holdfast.Manifest))
	case wire.TypeTracking:
		if b.committed == nil {
			return false, invalid(op, "tracking ids of a set that is not committed")
		}
		return false, b.track(ctx, m.Body.(wire.Tracking))
	case wire.TypeDone:
		if b.committed == nil {
			return false, invalid(op, "Done, but the set is not committed")
		}
		return true, nil
	}
	return false, invalid(op, "a %v message in a backup", m.Type)
}

// start begins the set in the pool.
func (b *backup) start(ctx context.Context, m holdfast.Manifest) error {
	const op = "start set"
	if m.ID != b.set || m.VM.ID != b.grant.VM.ID {
		return invalid(op, "set %s of VM %s, but set %s of VM %s was granted", m.ID, m.VM.ID, b.set, b.grant.VM.ID)
	}
	if !m.Parent.IsZero() && (b.parent == nil || m.Parent != b.parent.ID) {
		return invalid(op, "parent %s was not offered", m.Parent)
	}
	for _, d := range m.Disks {
		if !d.Inherit {
			continue
		}
		if old := b.parent.Disk(d.ID); old == nil || old.Size != d.Size { // a disk inherits only where Check saw a parent
			return invalid(op, "disk %s inherits from a set that has no such disk of this size", d.ID)
		}
	}
	m.Created = b.s.o.Clock.Now().UTC().Truncate(time.Millisecond)
	b.stamp(&m, m.Created)
	session, err := b.grant.Pool.Begin(ctx, m)
	if err != nil {
		return err
	}
	b.session, b.begun = session, m
	b.channels = make([]*channel, len(m.Disks))
	return nil
}

// stamp sets what the appliance knows better than an agent.
func (b *backup) stamp(m *holdfast.Manifest, created time.Time) {
	m.Created, m.Host, m.HostName, m.Run = created, b.host, b.grant.HostName, b.grant.Run
	m.Stats.Logical = 0
	for i := range m.Disks {
		d := &m.Disks[i]
		d.Stats.Logical = d.Size
		m.Stats.Logical += d.Size
	}
}

// track keeps the change tracking ids for the next backup. None means that the next one cannot use any.
func (b *backup) track(ctx context.Context, t wire.Tracking) error {
	const op = "keep tracking ids"
	if t.Set != b.set {
		return invalid(op, "they are of set %s, this is %s", t.Set, b.set)
	}
	for d := range t.Tokens {
		if b.committed.Disk(d) == nil {
			return invalid(op, "disk %s is not in the set", d)
		}
	}
	vm, pool := b.grant.VM.ID, b.grant.PoolID
	err := b.s.o.Catalog.Update(ctx, func(tx *catalog.Tx) error {
		if len(t.Tokens) == 0 {
			return tx.DeleteTracking(vm, pool)
		}
		now := catalog.Tracking{VM: vm, Pool: pool, Set: t.Set, Tokens: t.Tokens}
		if err := keepFull(tx, &now, b.committed.Kind); err != nil {
			return err
		}
		return tx.PutTracking(now)
	})
	if err != nil {
		return err
	}
	return b.link.Send(ctx, wire.Message{Type: wire.TypeTracked})
}

// keepFull takes the ids of the newest full set over from the tracking record that now replaces.
func keepFull(tx *catalog.Tx, now *catalog.Tracking, kind holdfast.SetKind) error {
	if kind == holdfast.Full {
		return nil
	}
	old, err := tx.Tracking(now.VM, now.Pool)
	if errors.Is(err, holdfast.NotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	now.Full, now.FullTokens = old.Full, old.FullTokens
	if now.Full.IsZero() {
		s, err := tx.Set(old.Set)
		if err != nil {
			return err
		}
		if s.Manifest.Kind == holdfast.Full {
			now.Full, now.FullTokens = old.Set, old.Tokens
		}
	}
	return nil
}
