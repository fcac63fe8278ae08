package job

import (
	"context"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

func (b *bench) job(host holdfast.HostID, n int, spec Spec) View {
	b.t.Helper()
	vms := make([]catalog.VM, n)
	for i := range vms {
		vms[i] = catalog.VM{ID: holdfast.VMID{ID: holdfast.NewID()}, Name: "vm", Host: host}
	}
	v, err := b.e.Start(context.Background(), catalog.RunBackup, spec, vms)
	b.ok(err)
	return v
}

// TestJobsShareAHostFairly: free places go to the higher priority, among equals to the job with fewer VMs at work. The bench's hosts have two places.
func TestJobsShareAHostFairly(t *testing.T) {
	onBench(t, func(b *bench) {
		host := newHost()
		a := b.connect(host)
		runOf := map[holdfast.TaskID]string{}
		add := func(name string, n, priority int) {
			for _, x := range b.job(host, n, Spec{Job: name, Options: Tuning{Priority: priority, VMs: 2}}).Tasks {
				runOf[x.ID] = name
			}
		}
		add("big", 4, 0)
		given := a.tasks()
		add("small", 1, 0)
		add("urgent", 1, 5)
		order := ""
		for len(given) > 0 {
			order += runOf[given[0]] + " "
			a.finish(given[0])
			given = append(given[1:], a.tasks()...)
		}
		if order != "big big urgent big small big " { // where both have none at work, who waits longer goes first
			t.Errorf("they ended in the order %s", order)
		}
	})
}

// TestAStoppedRunCleansUpAfterItsPreScript: the post-script runs, with little time, and only if something was begun before.
func TestAStoppedRunCleansUpAfterItsPreScript(t *testing.T) {
	onBench(t, func(b *bench) {
		host := newHost()
		a := b.connect(host)
		spec := Spec{Job: "j", Options: Tuning{PreScript: "freeze", PostScript: "thaw"}}
		v := b.job(host, 2, spec)
		pre := a.tasks()
		if len(pre) != 1 {
			t.Fatalf("%d tasks before the pre-script is over", len(pre))
		}
		a.report(wire.Report{Task: pre[0], Ended: true, Script: &wire.ScriptResult{}})
		vms := a.tasks()
		if len(vms) != 2 {
			t.Fatalf("%d VMs", len(vms))
		}
		b.ok(b.e.Cancel(v.ID))
		for _, id := range vms {
			a.report(wire.Report{Task: id, Ended: true, Error: &wire.Failure{Kind: holdfast.Cancelled}})
		}
		post := a.tasks()
		if len(post) != 1 {
			t.Fatalf("%d tasks after the VMs: the post-script is missing", len(post))
		}
		a.report(wire.Report{Task: post[0], Ended: true, Script: &wire.ScriptResult{}})
		b.state(v, catalog.RunCancelled)

		spec.Options.PreScript, spec.Options.Precondition = "", "check"
		v = b.job(host, 1, spec)
		check := a.tasks()
		b.ok(b.e.Cancel(v.ID))
		a.report(wire.Report{Task: check[0], Ended: true, Error: &wire.Failure{Kind: holdfast.Cancelled}})
		if left := a.tasks(); len(left) != 0 {
			t.Errorf("%d tasks after a run that began nothing", len(left))
		}
		b.state(v, catalog.RunCancelled)
	})
}
