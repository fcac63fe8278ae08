package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/pools"
)

const (
	eventMountBegan holdfast.EventType = "mount-began"
	eventMountEnded holdfast.EventType = "mount-ended"

	maxMounts  = 256             // at once
	mountSweep = 5 * time.Second // how often leases are looked at
	mountGrace = 5 * time.Second // what is left of a lease when its holder is seen to go away
	maxExtents = 1 << 16         // of a disk's map; with more, neighbours are joined
)

// mounts are the sets that somebody uses without a restore. Each has its set open in its pool, which keeps its bytes whatever is deleted, and
// a lease: a holder that is killed leaves nothing held for longer than that. They are not recorded: a restart ends them all.
type mounts struct {
	s *Service

	using sync.WaitGroup // reads under way

	mu     sync.Mutex
	open   map[string]*mounted
	closed bool
}

// A mounted is one of them.
type mounted struct {
	rec    api.Mount // its Expires is guarded by mounts.mu
	id     holdfast.SetID
	pool   holdfast.PoolID
	set    pools.Set
	dom    holdfast.Domain
	disks  []holdfast.Disk
	files  []holdfast.Attachment
	ctx    context.Context // ends with the mount
	cancel context.CancelCauseFunc
	users  int // reads under way, and one for the mount itself; guarded by mounts.mu
	why    string

	mapping sync.Mutex // held while a map is read
	maps    []*api.MountMap
}

func newMounts(s *Service) *mounts { return &mounts{s: s, open: map[string]*mounted{}} }

// run ends mounts whose lease is over, until the appliance stops.
func (m *mounts) run() {
	for {
		late, stop := m.s.d.c.Clock.After(mountSweep)
		select {
		case <-late:
			m.expire()
		case <-m.s.d.ctx.Done():
			stop()
			return
		}
	}
}

func (m *mounts) expire() {
	now := m.s.now()
	m.mu.Lock()
	var late []*mounted
	for _, x := range m.open {
		if !now.Before(x.rec.Expires) {
			late = append(late, x)
		}
	}
	m.mu.Unlock()
	for _, x := range late {
		m.end(x, "its holder did not renew it")
	}
}

// end ends a mount; reads under way are cut.
func (m *mounts) end(x *mounted, why string) {
	m.mu.Lock()
	if m.open[x.rec.ID] != x {
		m.mu.Unlock()
		return
	}
	delete(m.open, x.rec.ID)
	x.why = why
	m.mu.Unlock()
	x.cancel(holdfast.Errorf(holdfast.Offline, "read mount", "the mount has ended: %s", why))
	m.drop(x)
	m.s.d.events.Emit(holdfast.Event{Type: eventMountEnded, Text: fmt.Sprintf("the mount of %s of %s has ended: %s", x.rec.VM, x.rec.Time.Format(time.RFC3339), why),
		Fields: map[string]string{"mount": x.rec.ID, "set": x.rec.Set, "vm": x.rec.VM, "pool": x.rec.Pool}})
}

// use returns a mount and keeps its set open until release.
func (m *mounts) use(id string) (*mounted, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.open[id]
	if x == nil {
		return nil, holdfast.Errorf(holdfast.NotExist, "find mount", "there is no mount %s", id).Advise("'holdfast mount list' shows the mounts there are")
	}
	x.users++
	m.using.Add(1)
	return x, nil
}

// release gives back what use returned.
func (m *mounts) release(x *mounted) {
	m.drop(x)
	m.using.Done()
}

// drop takes one user off; the last one closes the set.
func (m *mounts) drop(x *mounted) {
	m.mu.Lock()
	x.users--
	last := x.users == 0
	m.mu.Unlock()
	if last {
		if err := x.set.Close(); err != nil {
			m.s.d.c.Log.Error("closing a set that was mounted", "set", x.rec.Set, "error", err)
		}
	}
}

// closeAll ends every mount and waits for the reads under way, which are cut; the appliance stops.
func (m *mounts) closeAll() error {
	m.mu.Lock()
	m.closed = true
	var all []*mounted
	for _, x := range m.open {
		all = append(all, x)
	}
	m.mu.Unlock()
	for _, x := range all {
		m.end(x, "the appliance shuts down")
	}
	m.using.Wait()
	return nil
}

// of returns the mounts that match, oldest first, without those whose lease is over.
func (m *mounts) of(match func(*mounted) bool) (out []api.Mount) {
	m.expire()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range m.open {
		if match(x) {
			out = append(out, x.rec)
		}
	}
	slices.SortFunc(out, func(a, b api.Mount) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

// busy refuses what cannot be done to a set, or to a pool, that is mounted.
func (m *mounts) busy(op string, set holdfast.SetID, pool holdfast.PoolID) error {
	for _, x := range m.of(func(x *mounted) bool { return x.id == set || x.pool == pool }) {
		return holdfast.Errorf(holdfast.Busy, op, "set %s of %s is mounted at %s", x.Set, x.VM, x.Place).Advise("end it first with 'holdfast mount end %s'", x.ID)
	}
	return nil
}

// BeginMount implements api.Mounter.
func (s *Service) BeginMount(ctx context.Context, spec api.MountSpec) (api.Mount, error) {
	const op = "mount"
	set, err := s.findSet(spec.Set)
	if err != nil {
		return api.Mount{}, err
	}
	shown, err := s.showSet(set)
	if err != nil {
		return api.Mount{}, err
	}
	p, err := s.d.shelf.Pool(ctx, set.Pool)
	if err != nil {
		return api.Mount{}, err
	}
	if t := p.Traits(); t.Offline {
		return api.Mount{}, holdfast.Errorf(holdfast.Unsupported, op, "pool %s keeps sets on media that cannot be read at random", shown.Pool).
			Advise("restore the set, or mount a copy of it in another pool")
	}
	open, err := p.Open(ctx, set.Manifest.ID)
	if err != nil {
		return api.Mount{}, err
	}
	man := open.Manifest()
	now := s.now()
	x := &mounted{id: man.ID, pool: set.Pool, set: open, dom: p.Traits().Domain, disks: man.Disks, files: man.Attachments, users: 1,
		maps: make([]*api.MountMap, len(man.Disks))}
	x.ctx, x.cancel = context.WithCancelCause(s.d.ctx)
	x.rec = api.Mount{ID: holdfast.NewID().String()[:8], Set: man.ID.String(), VM: man.VM.Name, VMID: man.VM.ID.String(), Time: man.Created, Pool: shown.Pool,
		How: spec.How, Place: spec.Place, Writable: spec.Writable, Since: now, Expires: now.Add(api.MountLease), Disks: []api.MountDisk{}, Files: []api.MountFile{}}
	for i, d := range man.Disks {
		x.rec.Disks = append(x.rec.Disks, api.MountDisk{No: i, Name: d.Name, Size: d.Size})
	}
	for _, a := range man.Attachments {
		x.rec.Files = append(x.rec.Files, api.MountFile{Name: a.Name, Size: int64(len(a.Data))})
	}
	if err := s.d.mounts.add(x); err != nil {
		x.cancel(nil)
		return api.Mount{}, errors.Join(err, open.Close())
	}
	if _, err := s.findSet(x.rec.Set); err != nil { // deleted in between: whoever comes later finds the mount
		s.d.mounts.end(x, "the set was deleted")
		return api.Mount{}, err
	}
	s.d.events.Emit(holdfast.Event{Type: eventMountBegan, Text: fmt.Sprintf("%s of %s was mounted at %s", x.rec.VM, x.rec.Time.Format(time.RFC3339), x.rec.Place),
		Fields: map[string]string{"mount": x.rec.ID, "set": x.rec.Set, "vm": x.rec.VM, "pool": x.rec.Pool}})
	return x.rec, nil
}

// add lists a mount, under an id of its own.
func (m *mounts) add(x *mounted) error {
	m.expire()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return errShutdown
	case len(m.open) >= maxMounts:
		return holdfast.Errorf(holdfast.Busy, "mount", "%d sets are mounted", len(m.open)).Advise("end some of them: 'holdfast mount list' shows them")
	}
	for m.open[x.rec.ID] != nil {
		x.rec.ID = holdfast.NewID().String()[:8]
	}
	m.open[x.rec.ID] = x
	return nil
}

// Mounts implements api.Mounter.
func (s *Service) Mounts(context.Context) ([]api.Mount, error) {
	return s.d.mounts.of(func(*mounted) bool { return true }), nil
}

// RenewMount implements api.Mounter.
func (s *Service) RenewMount(ctx context.Context, id string, wait time.Duration) (api.Mount, error) {
	m := s.d.mounts
	x, err := m.use(id)
	if err != nil {
		return api.Mount{}, err
	}
	defer m.release(x)
	m.extend(x, s.now().Add(api.MountLease))
	late, stop := s.d.c.Clock.After(wait)
	defer stop()
	select {
	case <-x.ctx.Done():
	case <-late:
	case <-ctx.Done(): // killed, most likely; one that lives asks again
		m.shorten(x, s.now().Add(mountGrace))
		return api.Mount{}, context.Cause(ctx)
	}
	return m.extend(x, s.now().Add(api.MountLease)), nil
}

func (m *mounts) extend(x *mounted, to time.Time) api.Mount {
	m.mu.Lock()
	defer m.mu.Unlock()
	if x.ctx.Err() == nil {
		x.rec.Expires = to
	}
	rec := x.rec
	rec.Ended = x.ctx.Err() != nil
	return rec
}

func (m *mounts) shorten(x *mounted, to time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x.rec.Expires = to
}

// EndMount implements api.Mounter.
func (s *Service) EndMount(_ context.Context, id string) (api.Mount, error) {
	x, err := s.d.mounts.use(id)
	if err != nil {
		return api.Mount{}, err
	}
	defer s.d.mounts.release(x)
	s.d.mounts.end(x, "it was asked to")
	rec := x.rec
	rec.Ended = true
	return rec, nil
}

// disk checks a disk's number.
func (x *mounted) disk(no int) (*holdfast.Disk, error) {
	if no < 0 || no >= len(x.disks) {
		return nil, holdfast.Errorf(holdfast.NotExist, "read mount", "set %s has %d disks, numbered from 0; there is no disk %d", x.rec.Set, len(x.disks), no).
			Advise("'holdfast set show %s' lists its disks", x.rec.Set)
	}
	return &x.disks[no], nil
}

// ReadMount implements api.Mounter.
func (s *Service) ReadMount(_ context.Context, id string, disk int, e holdfast.Extent) (api.Export, error) {
	m := s.d.mounts
	x, err := m.use(id)
	if err != nil {
		return nil, err
	}
	d, err := x.disk(disk)
	if err == nil && (e.Off < 0 || e.Len <= 0 || e.Len > api.MaxMountRead || e.Off > d.Size-e.Len) {
		err = holdfast.Errorf(holdfast.Invalid, "read mount", "%d bytes at %d of a disk of %d", e.Len, e.Off, d.Size).
			Advise("read inside of the disk, at most %d bytes at once", api.MaxMountRead)
	}
	if err != nil {
		m.release(x)
		return nil, err
	}
	return func(ctx context.Context, w io.Writer) error {
		defer m.release(x)
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(x.ctx, func() { cancel(context.Cause(x.ctx)) })()
		n := &counter{w: w}
		err := ingest.StreamDisk(ctx, n, x.set, x.dom, d.ID, holdfast.Extents{e})
		if err != nil && n.n == 0 { // it failed before the stream began
			err = errors.Join(err, wire.NewStreamWriter(w).Fail(err))
		}
		return err
	}, nil
}

// MountFile implements api.Mounter.
func (s *Service) MountFile(_ context.Context, id string, no int) ([]byte, error) {
	x, err := s.d.mounts.use(id)
	if err != nil {
		return nil, err
	}
	defer s.d.mounts.release(x)
	if no < 0 || no >= len(x.files) {
		return nil, holdfast.Errorf(holdfast.NotExist, "read mount", "set %s has %d configuration files; there is no file %d", x.rec.Set, len(x.files), no).
			Advise("'holdfast mount list --json' lists them")
	}
	return x.files[no].Data, nil
}

// MountMap implements api.Mounter.
func (s *Service) MountMap(ctx context.Context, id string, disk int) (api.MountMap, error) {
	x, err := s.d.mounts.use(id)
	if err != nil {
		return api.MountMap{}, err
	}
	defer s.d.mounts.release(x)
	d, err := x.disk(disk)
	if err != nil {
		return api.MountMap{}, err
	}
	x.mapping.Lock()
	defer x.mapping.Unlock()
	if x.maps[disk] == nil {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(x.ctx, func() { cancel(context.Cause(x.ctx)) })()
		j := joiner{most: maxExtents}
		for r, err := range x.set.Map(ctx, d.ID) {
			if err != nil {
				return api.MountMap{}, err
			}
			if !r.Digest.IsZero() {
				j.add(r.Extent)
			}
		}
		x.maps[disk] = &api.MountMap{Exact: j.gap == 0, Extents: slices.Concat([]holdfast.Extent{}, j.list)}
	}
	return *x.maps[disk], nil
}

// A joiner makes a list of extents that come in order, of at most so many: where there are more, neighbours with the smallest gaps between them
// become one.
type joiner struct {
	most int
	gap  int64 // extents no farther apart than this are joined
	list []holdfast.Extent
}

func (j *joiner) add(e holdfast.Extent) {
	if n := len(j.list); n > 0 && e.Off-j.list[n-1].End() <= j.gap {
		j.list[n-1].Len = e.End() - j.list[n-1].Off
		return
	}
	j.list = append(j.list, e)
	for len(j.list) > j.most {
		j.gap = max(2*j.gap, 64<<10)
		old := j.list
		j.list = j.list[:1]
		for _, e := range old[1:] {
			if last := &j.list[len(j.list)-1]; e.Off-last.End() <= j.gap {
				last.Len = e.End() - last.Off
			} else {
				j.list = append(j.list, e)
			}
		}
	}
}

// holds returns until when sets are held because they are mounted, at least.
func (m *mounts) holds() map[string]time.Time {
	out := map[string]time.Time{}
	for _, x := range m.of(func(*mounted) bool { return true }) {
		out[x.Set] = x.Expires
	}
	return out
}

// mountedPool refuses to go on while a set of the pool is mounted.
func (s *Service) mountedPool(rec catalog.Pool, op string) error {
	return s.d.mounts.busy(op, holdfast.SetID{}, rec.ID)
}
