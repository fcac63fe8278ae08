package pool

import (
	"encoding/json"
	"reflect"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory/memorytest"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
	"github.com/holdfast-backup/holdfast/tape/iscsi/tgttest"
	"github.com/holdfast-backup/holdfast/tape/library"
)

// TestHistoryOnAnotherTarget: a random history, through the driver as the daemon uses it, on a library over iSCSI that is not ours and knows neither places nor memories nor positions; then the
// catalog from its cartridges alone.
func TestHistoryOnAnotherTarget(t *testing.T) {
	g := tgttest.Start(t, tgttest.Options{Drives: 2, Slots: 4, Media: []string{"HF0001L8", "HF0002L8", "HF0003L8"}, MiB: 64})
	keeper := library.NewKeeper(nil)
	d := Driver(keeper)
	config, err := json.Marshal(Config{Library: "iscsi://" + g.Portal + "/" + tgttest.Target, Name: "tapes", Allocation: Continue, Spool: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	id, env := holdfast.PoolID{ID: holdfast.NewID()}, pools.Env{StateDir: t.TempDir()}
	must := func(t pooltest.T, err error) {
		if err != nil {
			t.Helper()
			t.Fatalf("%v", err)
		}
	}
	open := func(t pooltest.T) pools.Pool {
		p, err := d.Open(ctx, env, id, config)
		must(t, err)
		return p
	}
	var once sync.Once
	h := pooltest.Harness{
		New: func(t pooltest.T) pools.Pool {
			once.Do(func() { must(t, d.Create(ctx, env, id, config)) })
			return open(t)
		},
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			must(t, p.Close())
			return open(t)
		},
	}
	pooltest.RunHistory(t, pooltest.History{Seed: 3, Steps: 14, Pools: map[string]pooltest.Harness{"tape": h, "memory": memorytest.Harness()}})
	p := open(t).(*Pool)
	if err := p.WriteDeletions(ctx); err != nil {
		t.Fatal(err)
	}
	want := known(p)
	must(t, p.Close())
	env.StateDir = t.TempDir()
	if found, err := d.Identify(ctx, env, config); err != nil || found != id {
		t.Errorf("identify a lost pool: %v, %v", found, err)
	}
	report, err := Rebuild(ctx, keeper, env, id, config)
	must(t, err)
	p = open(t).(*Pool)
	got := known(p)
	for k, v := range want {
		if !reflect.DeepEqual(got[k], v) {
			t.Errorf("%s is not what was lost:\n%+v\n%+v", k, got[k], v)
		}
	}
	if len(want) < 3 || report.Sets != len(p.book.Backups) || len(report.Lacking) > 0 {
		t.Errorf("%d things were lost; %+v", len(want), report)
	}
	must(t, p.Close())
}
