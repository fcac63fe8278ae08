package memory_test

import (
	"context"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory"
	"github.com/holdfast-backup/holdfast/pools/memory/memorytest"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

// TestConformance runs every named check of the Pool interface on the reference driver.
func TestConformance(t *testing.T) {
	h := memorytest.Harness()
	for _, c := range pooltest.Checks() {
		t.Run(c.Name, func(t *testing.T) { c.Run(t, h) })
	}
}

// TestDriverKeepsMediaByPlace: what a Driver value created it finds again, and nothing else.
func TestDriverKeepsMediaByPlace(t *testing.T) {
	ctx, id := context.Background(), holdfast.PoolID{ID: holdfast.NewID()}
	d := memory.Driver()
	config := []byte(`{"place":"a","chunking":"fixed-64K"}`)
	want := func(err error, k holdfast.Kind) {
		t.Helper()
		if err == nil || holdfast.KindOf(err) != k {
			t.Errorf("got %v, want %v", err, k)
		}
	}
	_, err := d.Open(ctx, pools.Env{}, id, config)
	want(err, holdfast.NotExist)
	if err := d.Create(ctx, pools.Env{}, id, config); err != nil {
		t.Fatal(err)
	}
	want(d.Create(ctx, pools.Env{}, id, config), holdfast.Exist)
	want(d.Create(ctx, pools.Env{}, id, []byte(`{"place":"b","size":1}`)), holdfast.Invalid)
	want(d.Create(ctx, pools.Env{}, id, []byte(`{}`)), holdfast.Invalid)
	want(d.Create(ctx, pools.Env{}, id, []byte(`{"place":"b","chunking":"odd"}`)), holdfast.Invalid)
	_, err = d.Open(ctx, pools.Env{}, holdfast.PoolID{ID: holdfast.NewID()}, config)
	want(err, holdfast.Invalid)
	p, err := d.Open(ctx, pools.Env{}, id, config)
	if err != nil {
		t.Fatal(err)
	}
	if c := p.Traits().Chunking; p.Traits().ID != id || c.String() != "fixed-64K" {
		t.Errorf("traits: %+v", p.Traits())
	}
	_, err = d.Open(ctx, pools.Env{}, id, config)
	want(err, holdfast.Busy)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err = d.Open(ctx, pools.Env{}, id, config); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}
