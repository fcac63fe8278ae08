package appliance_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

// TestAMountedSetStays: what is mounted is neither deleted by hand nor by retention, and its pool is not taken away; when the mount ends it goes.
func TestAMountedSetStays(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 4*mib)
	s.online("hv1")
	first, second := s.backup("db").Tasks[0].Set, s.backup("db").Tasks[0].Set
	_, err := s.svc().SetPolicy(t.Context(), api.PolicyChange{Pool: "main", Policy: "count=1"})
	s.ok(err)
	m, err := s.svc().BeginMount(t.Context(), api.MountSpec{Set: first, How: "nbd", Place: "here"})
	s.ok(err)
	if m.Set != first || m.VM != "db" || m.Pool != "main" || len(m.Disks) != 1 || m.Disks[0].Size != 4*mib || !m.Expires.After(s.clock.Now()) {
		t.Errorf("%+v", m)
	}
	s.recorded("mount-began", "db", "here")
	_, err = s.svc().DeleteSet(t.Context(), first)
	refusedWith(t, err, holdfast.Busy)
	_, err = s.svc().DeletePool(t.Context(), "main", true)
	refusedWith(t, err, holdfast.Busy)
	want, err := s.svc().SimulateRetention(t.Context(), api.RetentionAsk{Pool: "main"})
	s.ok(err)
	var got api.RetentionReport
	s.result(&got, s.follow(s.svc().ApplyRetention(t.Context(), "main")))
	if want.Removed != 0 || got.Removed != 0 {
		t.Errorf("retention would remove %d, and removed %d", want.Removed, got.Removed)
	}
	var c api.CollectReport
	s.result(&c, s.follow(s.svc().CollectPool(t.Context(), "main", false)))
	var b bytes.Buffer
	x, err := s.svc().ReadMount(t.Context(), m.ID, 0, holdfast.Extent{Off: mib, Len: 4096})
	s.ok(err)
	s.ok(x(t.Context(), &b))
	if b.Len() < 4096 {
		t.Errorf("a read of 4096 bytes gives a stream of %d", b.Len())
	}
	_, err = s.svc().EndMount(t.Context(), m.ID)
	s.ok(err)
	s.recorded("mount-ended", "db", "asked")
	s.result(&got, s.follow(s.svc().ApplyRetention(t.Context(), "main")))
	if got.Removed != 1 {
		t.Errorf("afterwards retention removed %d", got.Removed)
	}
	if _, err := s.svc().Set(t.Context(), second); err != nil {
		t.Error(err)
	}
	for _, err := range []error{
		second2(s.svc().EndMount(t.Context(), m.ID)), second2(s.svc().RenewMount(t.Context(), m.ID, 0)), second2(s.svc().MountMap(t.Context(), m.ID, 0)),
		second2(s.svc().ReadMount(t.Context(), m.ID, 0, holdfast.Extent{Len: 1})), second2(s.svc().MountFile(t.Context(), m.ID, 0)),
	} {
		refusedWith(t, err, holdfast.NotExist)
	}
}

func second2[T any](_ T, err error) error { return err }

// TestAMountWithoutItsHolderEnds: a lease that nobody renews runs out; one whose holder is seen to go away does so sooner; a holder that waits
// hears of the end; a restart ends them all, and nothing keeps the pool from closing.
func TestAMountWithoutItsHolderEnds(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", mib)
	s.online("hv1")
	set := s.backup("db").Tasks[0].Set
	begin := func() api.Mount {
		t.Helper()
		m, err := s.svc().BeginMount(t.Context(), api.MountSpec{Set: set, How: "files", Place: "/mnt"})
		s.ok(err)
		return m
	}
	list := func() int {
		t.Helper()
		ms, err := s.svc().Mounts(t.Context())
		s.ok(err)
		return len(ms)
	}
	pass := func(d time.Duration) { s.clock.offset.Add(int64(d)) }

	m := begin()
	pass(api.MountLease / 2)
	_, err := s.svc().RenewMount(t.Context(), m.ID, 0)
	s.ok(err)
	pass(api.MountLease * 3 / 4)
	if list() != 1 {
		t.Error("a renewed lease ran out")
	}
	pass(api.MountLease / 2)
	if list() != 0 {
		t.Error("a lease that nobody renews does not run out")
	}

	m = begin()
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { gone <- second2(s.svc().RenewMount(ctx, m.ID, time.Minute)) }()
	cancel()
	if err := <-gone; err == nil {
		t.Error("a renewal whose caller went away succeeded")
	}
	pass(10 * time.Second)
	if list() != 0 {
		t.Error("the mount of a holder that went away stays")
	}

	m = begin()
	waits := make(chan api.Mount)
	go func() {
		m, err := s.svc().RenewMount(t.Context(), m.ID, time.Minute)
		if err != nil && !errors.Is(err, holdfast.NotExist) {
			t.Error(err)
		}
		m.Ended = m.Ended || err != nil // it came after the end
		waits <- m
	}()
	_, err = s.svc().EndMount(t.Context(), m.ID)
	s.ok(err)
	if m := <-waits; !m.Ended {
		t.Errorf("the holder hears %+v", m)
	}

	begin()
	s.stop()
	s.start()
	if list() != 0 {
		t.Error("a mount outlived the daemon")
	}
	_, err = s.svc().DeleteSet(t.Context(), set)
	s.ok(err)
}

// TestReadsOfAMountAreBounded: what is not on the disk, and what is too much at once, is refused; the map lists what was written and no more.
func TestReadsOfAMountAreBounded(t *testing.T) {
	s := newSite(t)
	s.vm("hv1", "db", 4*mib)
	s.online("hv1")
	m, err := s.svc().BeginMount(t.Context(), api.MountSpec{Set: s.backup("db").Tasks[0].Set, How: "nbd", Place: "here"})
	s.ok(err)
	for _, e := range []holdfast.Extent{{Off: -1, Len: 5}, {Off: 0, Len: 0}, {Off: 4*mib - 1, Len: 2}, {Off: 1 << 62, Len: 1 << 62}, {Off: 0, Len: api.MaxMountRead + 1}} {
		_, err := s.svc().ReadMount(t.Context(), m.ID, 0, e)
		refusedWith(t, err, holdfast.Invalid)
	}
	_, err = s.svc().ReadMount(t.Context(), m.ID, 1, holdfast.Extent{Len: 1})
	refusedWith(t, err, holdfast.NotExist)
	_, err = s.svc().MountMap(t.Context(), m.ID, -1)
	refusedWith(t, err, holdfast.NotExist)
	_, err = s.svc().BeginMount(t.Context(), api.MountSpec{Set: "00000000-0000-4000-8000-000000000000", How: "nbd"})
	refusedWith(t, err, holdfast.NotExist)
	mp, err := s.svc().MountMap(t.Context(), m.ID, 0)
	s.ok(err)
	data := holdfast.Extents(mp.Extents)
	want := holdfast.Extents{{Off: 0, Len: 64 << 10}, {Off: mib, Len: 64 << 10}, {Off: 2 * mib, Len: 64 << 10}, {Off: 3 * mib, Len: 64 << 10}} // as vm writes
	if !mp.Exact || want.Subtract(data).Total() != 0 || data.Total() != want.Total() {
		t.Errorf("%+v", mp)
	}
}
