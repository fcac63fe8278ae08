package dedup

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
	"github.com/holdfast-backup/holdfast/pools/container"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

var background = context.Background()

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func defaultChunking(t pooltest.T) holdfast.Chunking {
	c, err := holdfast.ParseChunking("")
	if err != nil {
		t.Fatalf("chunking: %v", err)
	}
	return c
}

// create makes a pool on fs.
func create(t pooltest.T, fs fsys.FS) holdfast.PoolID { return createSealed(t, fs, Sealing{}) }

func createSealed(t pooltest.T, fs fsys.FS, s Sealing) holdfast.PoolID {
	id := holdfast.PoolID{ID: holdfast.NewID()}
	if err := CreateSealedOn(background, pools.Env{}, fs, id, defaultChunking(t), s); err != nil {
		t.Fatalf("create: %v", err)
	}
	return id
}

func open(t pooltest.T, fs fsys.FS, id holdfast.PoolID) *Pool {
	return openSealed(t, fs, id, Sealing{})
}

func openSealed(t pooltest.T, fs fsys.FS, id holdfast.PoolID, s Sealing) *Pool {
	p, err := OpenSealedOn(background, pools.Env{}, fs, id, s)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return p
}

// place is where a pool of the harness lives.
type place struct {
	fs fsys.FS
	id holdfast.PoolID
}

// harness makes pools on file systems in memory.
func harness(t *testing.T) pooltest.Harness { return sealedHarness(t, Sealing{}) }

func sealedHarness(t *testing.T, s Sealing) pooltest.Harness {
	places := map[pools.Pool]place{}
	reopen := func(t pooltest.T, pl place) pools.Pool {
		p := openSealed(t, pl.fs, pl.id, s)
		places[p] = pl
		return p
	}
	return pooltest.Harness{
		New: func(t pooltest.T) pools.Pool {
			fs := fsys.NewMem(1)
			return reopen(t, place{fs, createSealed(t, fs, s)})
		},
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return reopen(t, places[p])
		},
		Crash: func(t pooltest.T, p pools.Pool) pools.Pool {
			old := places[p]
			left := old.fs.(*fsys.Mem).Crash(nil, 50)
			old.fs.(*fsys.Mem).Halt(errors.New("the machine is off"))
			_ = p.(*Pool).release()
			return reopen(t, place{left, old.id})
		},
		Corrupt: func(t pooltest.T, p pools.Pool) pools.Pool {
			pl := places[p]
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			corrupt(t, pl.fs)
			return reopen(t, pl)
		},
	}
}

// corrupt changes stored bytes of a data chunk in the first container.
func corrupt(t pooltest.T, fs fsys.FS) {
	m, err := dirstore.Open(layout{fs}, dirstore.Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("corrupt: %v", err)
	}
	names, err := m.List(background, containersDir)
	if err != nil || len(names) == 0 {
		t.Fatalf("%d containers: %v", len(names), err)
	}
	r, err := m.Open(background, names[0])
	if err != nil {
		t.Fatalf("corrupt: %v", err)
	}
	_, f, err := container.Load(r, r.Size())
	if err != nil {
		t.Fatalf("corrupt: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatalf("corrupt: %v", err)
	}
	flip(t, fs, names[0], f.Groups[0].PayloadOff())
}

func flip(t pooltest.T, fs fsys.FS, name string, off int64) {
	f, err := fs.OpenWrite(name)
	if err != nil {
		t.Fatalf("corrupt: %v", err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatalf("corrupt: %v", err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatalf("corrupt: %v", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatalf("corrupt: %v", err)
	}
}

// TestConformance runs every named check of the Pool interface.
func TestConformance(t *testing.T) {
	h := harness(t)
	for _, c := range pooltest.Checks() {
		t.Run(strings.ReplaceAll(c.Name, "/", "-"), func(t *testing.T) { c.Run(t, h) })
	}
}
