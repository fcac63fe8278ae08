package agent

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// work is an extent of a disk that the set must say something about: it is read, or (zero) known to be zeros.
type work struct {
	holdfast.Extent
	zero bool
}

// diskPlan says how one disk is read.
type diskPlan struct {
	frozen  hv.FrozenDisk
	meta    holdfast.Disk // with Inherit or Reason set
	work    []work        // ascending
	changed int64         // the tracker's answer in bytes, for a delta
}

// planDisk decides between a delta and a full read, and finds the extents.
func planDisk(ctx context.Context, c clock.Clock, f hv.FrozenDisk, began *wire.Began) (diskPlan, error) {
	p := diskPlan{frozen: f, meta: f.Meta()}
	p.meta.Inherit, p.meta.Reason, p.meta.Stats = false, "", holdfast.Stats{}
	changes, reason, err := delta(ctx, c, f, &p.meta, began)
	if err != nil {
		return p, sourceError(&p.meta, "ask what changed", err)
	}
	alloc, err := untilFree(ctx, c, f.Allocated)
	switch {
	case errors.Is(err, hv.ErrUnknown):
		alloc = holdfast.Extents{{Off: 0, Len: p.meta.Size}}
	case err != nil:
		return p, sourceError(&p.meta, "ask what is allocated", err)
	}
	alloc = alloc.Align(chunk.Block, p.meta.Size)
	if reason != "" {
		p.meta.Reason = reason
		for _, e := range alloc {
			p.work = append(p.work, work{Extent: e})
		}
		return p, nil
	}
	p.meta.Inherit = true
	changes = changes.Normal(p.meta.Size) // a tracker's answer is never believed as it is
	p.changed = changes.Total()
	changes = changes.Align(chunk.Block, p.meta.Size)
	for _, e := range changes.Intersect(alloc) {
		p.work = append(p.work, work{Extent: e})
	}
	for _, e := range changes.Subtract(alloc) { // changed to nothing: trimmed
		p.work = append(p.work, work{Extent: e, zero: true})
	}
	slices.SortFunc(p.work, func(a, b work) int { return cmp.Compare(a.Off, b.Off) })
	return p, nil
}

// delta returns what may have changed since the parent set, or the reason why that is not to be had.
func delta(ctx context.Context, c clock.Clock, f hv.FrozenDisk, d *holdfast.Disk, began *wire.Began) (holdfast.Extents, holdfast.Reason, error) {
	if began.Full {
		return nil, holdfast.ReasonRequested, nil
	}
	if began.Parent == nil {
		return nil, holdfast.ReasonFirst, nil
	}
	old := began.Parent.Disk(d.ID)
	switch {
	case old == nil:
		return nil, holdfast.ReasonNewDisk, nil
	case old.Size != d.Size:
		return nil, holdfast.ReasonResized, nil
	case old.Format != d.Format || old.LogicalSector != d.LogicalSector:
		return nil, holdfast.ReasonFormatChanged, nil
	}
	token := began.Tokens[d.ID]
	if token == "" {
		return nil, holdfast.ReasonNoToken, nil
	}
	changes, err := untilFree(ctx, c, func(ctx context.Context) (holdfast.Extents, error) { return f.Changes(ctx, token) })
	for _, no := range []struct {
		err    error
		reason holdfast.Reason
	}{
		{hv.ErrTrackingLost, holdfast.ReasonTrackingLost},
		{hv.ErrTokenUnknown, holdfast.ReasonTokenUnknown},
		{hv.ErrReverted, holdfast.ReasonReverted},
		{hv.ErrResized, holdfast.ReasonResized},
		{hv.ErrNoTracking, holdfast.ReasonUnsupported},
	} {
		if errors.Is(err, no.err) {
			return nil, no.reason, nil
		}
	}
	return changes, "", err
}

// sourceError classifies a failure of the source's disk, so that it is not taken for one of the wire. What nobody classified
// is an unreadable disk: Corrupt.
func sourceError(d *holdfast.Disk, op string, err error) error {
	kind := holdfast.KindOf(err)
	if kind == holdfast.Internal {
		kind = holdfast.Corrupt
	}
	e := holdfast.Errorf(kind, op, "disk %q: %w", d.Name, err)
	if holdfast.HintOf(err) == "" && kind == holdfast.Corrupt {
		e = e.Advise("the host cannot read this disk: check the host's storage and its event log")
	}
	return &SourceError{e}
}

// A SourceError is a failure to read what is to be backed up, as opposed to one of the appliance or the way there.
type SourceError struct{ Err *holdfast.Error }

func (e *SourceError) Error() string { return e.Err.Error() }

// Unwrap lets errors.Is and holdfast.KindOf see the kind and the cause.
func (e *SourceError) Unwrap() error { return e.Err }
