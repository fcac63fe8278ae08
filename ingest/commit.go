package ingest

import (
	"context"
	"fmt"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/pools"
)

// commit makes the set durable in pool and catalog and then says so. From the intent on it does not stop for ctx: half of it would
// have to be sorted out by Recover.
func (b *backup) commit(ctx context.Context, m holdfast.Manifest) error {
	for i, c := range b.channels {
		if c == nil || !c.done {
			return invalid("commit set", "disk %s is not done", b.begun.Disks[i].ID)
		}
	}
	b.wg.Wait() // each of them got its DiskDone, or ended with an error
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b.stamp(&m, b.begun.Created)
	if m.VM.ID != b.begun.VM.ID {
		return invalid("commit set", "VM %s became VM %s", b.begun.VM.ID, m.VM.ID)
	}
	if err := pools.SameSet(b.begun, m); err != nil {
		return invalid("commit set", "%w", err)
	}
	m.Stats.Sent = 0
	for i, c := range b.channels {
		m.Disks[i].Stats.Sent = c.sent
		m.Stats.Sent += c.sent
	}
	unusual := b.remark(&m)
	safe := context.WithoutCancel(ctx)
	done, err := commitSet(safe, b.s.o.Catalog, b.grant.PoolID, b.session, m)
	if err != nil {
		return err
	}
	b.committed = &done
	b.s.o.Listener.Emit(holdfast.Event{
		Time: b.s.o.Clock.Now().UTC(), Type: holdfast.EventSetCommitted, Severity: holdfast.Info,
		Text: fmt.Sprintf("A backup set of %s was committed.", done.VM.Name),
		Fields: map[string]string{"set": done.ID.String(), "vm": done.VM.ID.String(), "vm_name": done.VM.Name,
			"pool": b.grant.PoolID.String(), "host": b.host.String()},
	})
	if unusual != "" {
		b.s.o.Listener.Emit(holdfast.Event{
			Time: b.s.o.Clock.Now().UTC(), Type: EventSetAnomaly, Severity: holdfast.Warning,
			Text:   fmt.Sprintf("A backup set of %s is unlike those before: %s.", done.VM.Name, unusual),
			Fields: map[string]string{"set": done.ID.String(), "vm": done.VM.ID.String(), "vm_name": done.VM.Name, "pool": b.grant.PoolID.String()},
		})
	}
	return b.link.Send(ctx, wire.Message{Type: wire.TypeCommitted, Body: wire.Committed{Manifest: done}})
}

// commitSet is the commit protocol: intent, pool, record. It returns the manifest as committed, without attachments.
func commitSet(ctx context.Context, cat *catalog.Catalog, pool holdfast.PoolID, session pools.Session, m holdfast.Manifest) (holdfast.Manifest, error) {
	err := cat.Update(ctx, func(tx *catalog.Tx) error {
		return tx.PutIntent(catalog.Intent{Set: m.ID, Pool: pool, Manifest: m})
	})
	if err != nil {
		return holdfast.Manifest{}, err
	}
	receipt, err := session.Commit(ctx, m)
	if err != nil {
		// The pool says that the set is not there. Should this not get through, Recover asks the pool again.
		_ = cat.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteIntent(m.ID) })
		return holdfast.Manifest{}, err
	}
	record := catalog.NewSet(pool, receipt.Manifest)
	if err := cat.Update(ctx, func(tx *catalog.Tx) error { return tx.AddSet(record, nil) }); err != nil {
		return holdfast.Manifest{}, holdfast.Errorf(holdfast.KindOf(err), "record committed set", "%w", err).
			Advise("the set is safe in the pool and will be listed when the daemon has been started again")
	}
	return record.Manifest, nil
}
