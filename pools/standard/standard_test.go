package standard

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
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

// A shape is what a pool of a test is like.
type shape struct {
	paths  int
	quota  int64
	target int64 // of data files; 0: as usual
	window int   // of chunks; 0: as usual
	look   bool  // look into the parent's disk however little was placed
	wrap   func(blob.Store) blob.Store
}

// A place is where a pool of a test lies.
type place struct {
	fss   []fsys.FS
	id    holdfast.PoolID
	shape shape
}

// stores locks and opens the place's file systems; a nil one is a lost path.
func (pl *place) stores(t pooltest.T) []Path {
	paths := make([]Path, len(pl.fss))
	for i, f := range pl.fss {
		paths[i] = Path{Label: string(rune('a' + i)), Quota: pl.shape.quota}
		if f == nil {
			paths[i].Err = holdfast.Errorf(holdfast.Offline, "open folder", "unplugged")
			continue
		}
		s, err := openDir(f)
		if err != nil {
			t.Fatalf("open folder: %v", err)
		}
		if paths[i].Store = s; pl.shape.wrap != nil {
			paths[i].Store = pl.shape.wrap(s)
		}
	}
	return paths
}

func (pl *place) open(t pooltest.T) *Pool {
	p, err := OpenOn(background, pools.Env{}, pl.stores(t), pl.id)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	pl.tune(p)
	return p
}

func (pl *place) tune(p *Pool) {
	if pl.shape.target > 0 {
		p.target = pl.shape.target
	}
	if pl.shape.window > 0 {
		p.window = pl.shape.window
	}
	if pl.shape.look {
		p.stretch = 0
	}
}

func newPlace(t pooltest.T, s shape) *place {
	pl := &place{id: holdfast.PoolID{ID: holdfast.NewID()}, shape: s}
	for i := range s.paths {
		pl.fss = append(pl.fss, fsys.NewMem(uint64(i+1)))
	}
	if err := CreateOn(background, pools.Env{}, pl.stores(t), pl.id, defaultChunking(t)); err != nil {
		t.Fatalf("create: %v", err)
	}
	return pl
}

// harness makes pools of a shape on file systems in memory.
func harness(s shape) pooltest.Harness {
	places := map[pools.Pool]*place{}
	open := func(t pooltest.T, pl *place) pools.Pool {
		p := pl.open(t)
		places[p] = pl
		return p
	}
	return pooltest.Harness{
		New: func(t pooltest.T) pools.Pool { return open(t, newPlace(t, s)) },
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return open(t, places[p])
		},
		Crash: func(t pooltest.T, p pools.Pool) pools.Pool {
			left := &place{id: places[p].id, shape: s}
			for _, f := range places[p].fss {
				left.fss = append(left.fss, f.(*fsys.Mem).Crash(nil, 50))
				f.(*fsys.Mem).Halt(errors.New("the machine is off"))
			}
			_ = p.(*Pool).release()
			return open(t, left)
		},
		Corrupt: func(t pooltest.T, p pools.Pool) pools.Pool {
			pl := places[p]
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			pl.corrupt(t)
			return open(t, pl)
		},
	}
}

// corrupt changes a stored byte of the first data file there is.
func (pl *place) corrupt(t pooltest.T) {
	for i, pa := range pl.stores(t) {
		names, err := pa.Store.List(background, vmsFolder)
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		for _, n := range names {
			if _, _, ok := parseData(n); !ok {
				continue
			}
			r, err := pa.Store.Open(background, n)
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
			flip(t, pl.fss[i], n, f.Groups[0].PayloadOff())
			return
		}
	}
	t.Fatalf("there is no data file")
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

// TestConformance runs every named check of the Pool interface: on one path as pools are, and on three with everything so small that
// data files end, windows slide and lookups fall back all the time.
func TestConformance(t *testing.T) {
	for name, s := range map[string]shape{"one path": {paths: 1}, "three small paths": {paths: 3, target: 8 << 10, window: 8, look: true}} {
		t.Run(name, func(t *testing.T) {
			h := harness(s)
			for _, c := range pooltest.Checks() {
				t.Run(strings.ReplaceAll(c.Name, "/", "-"), func(t *testing.T) { c.Run(t, h) })
			}
		})
	}
}
