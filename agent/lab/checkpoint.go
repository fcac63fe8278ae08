package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
)

// overlayBlock is the block size of a checkpoint's differencing disk: what Hyper-V uses.
const overlayBlock = 2 << 20

// A checkpoint is a VM's frozen disks while its owner lives.
type checkpoint struct {
	host  *Host
	dir   string
	id    holdfast.ID
	vm    holdfast.VMInfo
	level holdfast.Consistency
	note  string
	model []byte // vm.json at the checkpoint
	refs  []*reference
	epoch uint64
	owner *fileLock
	disks []hv.FrozenDisk

	mu     sync.Mutex
	ended  bool
	faults map[string]bool // faults that this checkpoint has met
}

// Checkpoint freezes the disks of a VM: what was acknowledged to a foreign writer before it returns may be in the frozen
// content, what was acknowledged before it was called is.
func (h *Host) Checkpoint(ctx context.Context, vm holdfast.VMID, o hv.CheckpointOptions) (hv.Checkpoint, error) {
	const op = "take checkpoint"
	dir, err := h.findID(vm)
	if err != nil {
		return nil, err
	}
	if err := h.discardDead(ctx, dir); err != nil {
		return nil, err
	}
	cp := &checkpoint{host: h, dir: dir, id: holdfast.NewID(), faults: make(map[string]bool)}
	if cp.level, cp.note, err = h.quiesce(ctx, dir, o.Level); err != nil {
		return nil, err
	}
	if cp.owner, err = tryLock(filepath.Join(dir, ownerLock(cp.id)), exclusive); err != nil {
		return nil, err
	}
	err = h.change(ctx, dir, func(f *vmFile) error {
		if err := f.busy(op); err != nil {
			return err
		}
		failed, err := f.takeFault(dir, FaultCheckpoint)
		if err != nil {
			return err
		}
		if failed {
			return holdfast.Errorf(holdfast.Transient, op, "the lab was told to fail this checkpoint").Advise("try again")
		}
		entry := checkpointEntry{ID: cp.id, Kind: kindRecovery, Tag: o.Tag, Created: h.clock.Now().UTC()}
		if err := f.freeze(dir, entry, nil); err != nil {
			return err
		}
		return cp.describe(f)
	})
	if err != nil {
		// The chain was switched, but its owner cannot use it: it is taken back like a leftover.
		cp.owner.end(filepath.Join(dir, ownerLock(cp.id)))
		return nil, errors.Join(err, h.discardDead(context.WithoutCancel(ctx), dir))
	}
	return cp, nil
}

func ownerLock(id holdfast.ID) string { return ".checkpoint-" + id.String() }

// quiesce decides the level.
func (h *Host) quiesce(ctx context.Context, dir string, want hv.Level) (holdfast.Consistency, string, error) {
	f, err := loadVM(dir)
	if err != nil {
		return "", "", err
	}
	switch {
	case f.state(dir) == stateOff:
		return holdfast.OffConsistent, "", nil
	case want == hv.LevelCrash:
		return holdfast.CrashConsistent, "", nil
	}
	fails := false
	if f.Faults[FaultApp] != "" {
		err := h.edit(ctx, dir, func(f *vmFile) (err error) { fails, err = f.takeFault("", FaultApp); return err })
		if err != nil {
			return "", "", err
		}
	}
	if fails {
		err = errors.New("a writer of the guest is in a failed state")
	} else if h.Quiesce != nil {
		err = h.Quiesce(ctx, f.VMInfo)
	}
	switch {
	case err == nil:
		return holdfast.AppConsistent, "", nil
	case want == hv.LevelApp:
		return "", "", holdfast.Errorf(holdfast.Transient, "take checkpoint", "application-consistent: %w", err).
			Advise("repair the applications of the guest, or allow crash-consistent backups")
	}
	return holdfast.CrashConsistent, fmt.Sprintf("application-consistent checkpoint failed (%v); this one is crash-consistent", err), nil
}

// freeze puts a new differencing disk on top of each disk and begins a new epoch of change tracking, in one replacement of
// vm.json. roots names the file to put it on, where that is not the live one. Called under change.
func (f *vmFile) freeze(dir string, entry checkpointEntry, roots map[holdfast.DiskID][]string) error {
	next := *f
	next.Disks = append([]diskEntry(nil), f.Disks...)
	next.Epoch++
	entry.Epoch = next.Epoch
	entry.Frozen = make(map[holdfast.DiskID]string)
	for i := range next.Disks {
		d := &next.Disks[i]
		chain := d.chain()
		if err := settle(dir, f.Epoch, d); err != nil {
			return err
		}
		if r := roots[d.ID]; r != nil {
			chain = r
		}
		name := overlayName(d.Name, entry.ID)
		info, err := createOverlay(filepath.Join(dir, name), filepath.Join(dir, chain[0]))
		if err != nil {
			return err
		}
		if err := createTrack(dir, next.Epoch, info); err != nil {
			return err
		}
		entry.Frozen[d.ID] = chain[0]
		d.setChain(append([]string{name}, chain...))
	}
	if entry.Kind != "" {
		next.Checkpoints = append(append([]checkpointEntry(nil), f.Checkpoints...), entry)
	}
	if err := next.save(dir); err != nil {
		return err
	}
	*f = next
	return nil
}

// settle brings a live disk to rest: a log that a killed writer left is applied, and the epoch's record is compared with it.
func settle(dir string, epoch uint64, d *diskEntry) error {
	l, err := vhdx.OpenLive(filepath.Join(dir, d.Path))
	if err != nil {
		return err
	}
	i := l.Info()
	if err := l.Close(); err != nil {
		return err
	}
	if i.DiskID != d.ID {
		return holdfast.Errorf(holdfast.Corrupt, "open disk", "%s has disk id %s; vm.json says %s", d.Path, i.DiskID, d.ID).
			Advise("use 'holdfast-agent lab swap' to put another disk in its place")
	}
	return sealTrack(dir, epoch, d.ID, i)
}

// createOverlay makes an empty differencing disk.
func createOverlay(path, parent string) (vhdx.Info, error) {
	w, err := vhdx.Create(path, vhdx.CreateOptions{Subformat: "differencing", BlockSize: overlayBlock, Parent: parent})
	if err != nil {
		return vhdx.Info{}, err
	}
	if err := w.Finish(); err != nil {
		return vhdx.Info{}, errors.Join(err, w.Abort())
	}
	return diskInfo(path)
}

// describe takes down what the frozen disks are.
func (c *checkpoint) describe(f *vmFile) error {
	var err error
	model := *f
	model.Older = nil // of no use to whoever restores it
	if c.model, err = model.encode(); err != nil {
		return err
	}
	c.vm, c.refs, c.epoch = f.VMInfo, f.references(), f.Epoch
	for i := range f.Disks {
		e := &f.Disks[i]
		file := e.Parents[0]
		m, err := e.meta(c.dir, file)
		if err != nil {
			return err
		}
		c.disks = append(c.disks, &frozenDisk{cp: c, meta: m, path: filepath.Join(c.dir, file)})
	}
	return nil
}

func (c *checkpoint) Level() holdfast.Consistency { return c.level }
func (c *checkpoint) Note() string                { return c.note }
func (c *checkpoint) Disks() []hv.FrozenDisk      { return c.disks }

// Config returns vm.json as it was.
func (c *checkpoint) Config(context.Context) ([]holdfast.Attachment, error) {
	return []holdfast.Attachment{{Name: vmFileName, Data: c.model}}, nil
}

// Commit merges the disks and makes the moment of the checkpoint our newest reference point. Older ones stay good, a bounded number of them.
func (c *checkpoint) Commit(ctx context.Context) (map[holdfast.DiskID]string, error) {
	ref := &reference{Epoch: c.epoch, Disks: make(map[holdfast.DiskID]*referencePoint)}
	tokens := make(map[holdfast.DiskID]string)
	for _, d := range c.disks {
		id := d.Meta().ID
		tokens[id] = newToken()
		ref.Disks[id] = &referencePoint{Token: tokens[id]}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, holdfast.Errorf(holdfast.Invalid, "commit checkpoint", "the checkpoint has ended already")
	}
	if err := c.end(ctx, merging{Commit: true, Reference: ref}); err != nil {
		return nil, err
	}
	return tokens, nil
}

// Discard merges the disks and keeps the older reference point.
func (c *checkpoint) Discard(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil
	}
	return c.end(ctx, merging{})
}

// end merges. Called with mu.
func (c *checkpoint) end(ctx context.Context, m merging) error {
	if err := c.host.endCheckpoint(ctx, c.dir, c.id, m); err != nil {
		return err
	}
	c.ended = true
	c.owner.end(filepath.Join(c.dir, ownerLock(c.id)))
	return nil
}

// A frozenDisk is one disk of a checkpoint.
type frozenDisk struct {
	cp   *checkpoint
	meta holdfast.Disk
	path string
}

func (d *frozenDisk) Meta() holdfast.Disk { return d.meta }

// Changes returns the union of the epochs since the token's moment.
func (d *frozenDisk) Changes(ctx context.Context, token string) (holdfast.Extents, error) {
	for _, f := range []struct {
		name string
		err  error
	}{{FaultTrackingLost, hv.ErrTrackingLost}, {FaultIDUnknown, hv.ErrTokenUnknown}, {FaultResized, hv.ErrResized},
		{FaultSwapped, hv.ErrTokenUnknown}, {FaultReverted, hv.ErrReverted}} {
		hit, err := d.cp.fault(ctx, f.name)
		if err != nil {
			return nil, err
		}
		if hit {
			return nil, f.err
		}
	}
	es, err := d.changes(token)
	if err != nil {
		return nil, err
	}
	wide, err := d.cp.fault(ctx, FaultWideRanges)
	if err == nil && wide {
		es = widen(es, d.meta.Size)
	}
	return es, err
}

func (d *frozenDisk) changes(token string) (holdfast.Extents, error) {
	i := slices.IndexFunc(d.cp.refs, func(r *reference) bool { return r.Disks[d.meta.ID] != nil && r.Disks[d.meta.ID].Token == token })
	if i < 0 {
		return nil, hv.ErrTokenUnknown
	}
	ref := d.cp.refs[i]
	switch ref.Disks[d.meta.ID].Lost {
	case lostReverted:
		return nil, hv.ErrReverted
	case lostResized:
		return nil, hv.ErrResized
	}
	all := newBitset(d.meta.Size)
	for e := ref.Epoch; e < d.cp.epoch; e++ {
		h, bm, err := readTrack(d.cp.dir, d.meta.ID, e)
		switch {
		case err != nil:
			return nil, err
		case h.State == trackBroken:
			return nil, hv.ErrTokenUnknown
		case h.Size != d.meta.Size:
			return nil, hv.ErrResized
		}
		for i, v := range bm {
			all[i] |= v
		}
	}
	return all.extents(0, d.meta.Size), nil
}

// widen plays a tracker that answers too much, in no order and with overlaps.
func widen(es holdfast.Extents, size int64) holdfast.Extents {
	const wide = 1 << 20
	es = es.Align(wide, size)
	out := holdfast.Extents{{Off: 0, Len: min(wide, size)}, {Off: max(0, size-wide), Len: min(wide, size)}}
	for i := len(es) - 1; i >= 0; i-- {
		out = append(out, es[i], holdfast.Extent{Off: es[i].Off, Len: min(es[i].Len+wide, size-es[i].Off)})
	}
	return out
}

// Allocated returns what may hold data in the frozen disk.
func (d *frozenDisk) Allocated(ctx context.Context) (holdfast.Extents, error) {
	r, err := d.open(ctx)
	if err != nil {
		return nil, err
	}
	es, err := r.Allocated()
	return es, errors.Join(err, r.Close())
}

// Open opens the frozen content. While a slow merge of an earlier checkpoint goes on, it fails with Busy.
func (d *frozenDisk) Open(ctx context.Context) (hv.Reader, error) {
	r, err := d.open(ctx)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (d *frozenDisk) open(context.Context) (*vhdx.Disk, error) {
	f, err := loadVM(d.cp.dir)
	if err != nil {
		return nil, err
	}
	if left := f.BusyUntil.Sub(d.cp.host.clock.Now()); left > 0 {
		return nil, holdfast.Errorf(holdfast.Busy, "open frozen disk", "sharing violation: a merge goes on for another %s", left.Round(time.Millisecond)).
			Advise("wait for the merge and try again")
	}
	return vhdx.Open(d.path)
}
