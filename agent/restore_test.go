package agent

import (
	"bytes"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// Goal: a restored VM has the set's disks bit for bit.
func TestRestoredDisksAreIdentical(t *testing.T) {
	b := newBench(t).run()
	vm := b.host.addVM("a", content(5, 21<<20+512), content(6, 2<<20))
	g := b.grantFor(vm, "adaptive", "fast")
	b.backup(vm, g)
	g.set = g.began.Set
	r := b.task(wire.Task{Kind: wire.TaskRestore, Restore: &wire.Restore{Dir: "/vms", Name: "copy"}}, g)
	if r.Error != nil || r.VM == nil || r.VM.Name != "copy" {
		t.Fatalf("%+v %+v", r, r.Error)
	}
	for i, d := range vm.disks {
		if !bytes.Equal(b.host.images["copy/"+d.meta.Name], d.data) {
			t.Errorf("disk %d differs", i)
		}
		if s := r.Disks[i].Sample; s.Done != s.Total {
			t.Errorf("disk %d: %d of %d bytes done", i, s.Done, s.Total)
		}
	}
	b.waitDone(g)
	if p := b.host.made[0]; p.Dir != "/vms" || len(p.Manifest.Attachments) != 1 {
		t.Errorf("built from %+v", p)
	}
}

func TestFailedRestoresLeaveNothing(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(b *bench, set *heldSet)
		kind  holdfast.Kind
	}{
		"write":    {func(b *bench, _ *heldSet) { b.host.writeErr = holdfast.Errorf(holdfast.NoSpace, "", "disk full") }, holdfast.NoSpace},
		"register": {func(b *bench, _ *heldSet) { b.host.realizeErr = holdfast.Errorf(holdfast.Exist, "", "name taken") }, holdfast.Exist},
		"refused": {func(b *bench, _ *heldSet) {
			b.house.on(func(m wire.Message) error { return holdfast.Errorf(holdfast.Offline, "", "the tape is away") })
		}, holdfast.Offline},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t).run()
			vm := b.host.addVM("a", content(5, 9<<20))
			g := b.grantFor(vm, "adaptive", "fast")
			_, set := b.backup(vm, g)
			g.set = g.began.Set
			b.stop()
			c.spoil(b, set)
			b.run()
			r := b.task(wire.Task{Kind: wire.TaskRestore, Restore: &wire.Restore{Dir: "/vms", Name: "copy"}}, g)
			if r.Error == nil || r.Error.Kind != c.kind || r.VM != nil {
				t.Errorf("%+v %+v", r, r.Error)
			}
			if len(b.host.images) != 0 {
				t.Error("something was restored")
			}
		})
	}
}

// Goal: a limit on the transfer, and one on the disks, hold for a restore.
func TestRestoresKeepToTheirLimits(t *testing.T) {
	b := newBench(t).run()
	vm := b.host.addVM("a", content(5, 4<<20))
	g := b.grantFor(vm, "adaptive", "off")
	b.backup(vm, g)
	g.set = g.began.Set
	for _, reads := range []bool{false, true} {
		began := clock.System.Now()
		r := b.task(wire.Task{Kind: wire.TaskRestore, Run: holdfast.RunID{ID: holdfast.NewID()}, Restore: &wire.Restore{Dir: "/vms", Name: "copy"}, Limits: []wire.Limit{{Rate: 1 << 20, Reads: reads}}}, g)
		took := clock.System.Now().Sub(began)
		if r.Error != nil || took < time.Second {
			t.Errorf("reads %v: 4 MiB, some of it zeros, at 1 MiB/s took %v: %+v", reads, took, r.Error)
		}
		b.waitDone(g)
	}
}
