package memory_test

import (
	"context"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

// harness makes memory pools and remembers which medium each of them has open.
func harness() pooltest.Harness {
	media := map[pools.Pool]*memory.Medium{}
	open := func(t pooltest.T, m *memory.Medium) pools.Pool {
		p, err := m.Open()
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		media[p] = m
		return p
	}
	return pooltest.Harness{
		New: func(t pooltest.T) pools.Pool {
			c, err := holdfast.ParseChunking("")
			if err != nil {
				t.Fatalf("chunking: %v", err)
			}
			m, err := memory.NewMedium(holdfast.PoolID{ID: holdfast.NewID()}, c)
			if err != nil {
				t.Fatalf("new: %v", err)
			}
			return open(t, m)
		},
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return open(t, media[p])
		},
		Crash: func(t pooltest.T, p pools.Pool) pools.Pool {
			media[p].Kill()
			return open(t, media[p])
		},
		Corrupt: func(t pooltest.T, p pools.Pool) pools.Pool {
			for _, d := range media[p].Digests()[:3] {
				media[p].Flip(d)
			}
			return p
		},
	}
}

// TestConformance runs every named check of the Pool interface on the reference driver.
func TestConformance(t *testing.T) {
	h := harness()
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
