package dedup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory/memorytest"
	"github.com/holdfast-backup/holdfast/pools/parity"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

// inside is a folder of a file system as a file system of its own, so that one power cut hits all members of a stripe at the same moment.
type inside struct {
	fsys.FS
	dir string
}

func (s inside) at(name string) string                         { return path.Join(s.dir, name) }
func (s inside) Create(name string) (fsys.File, error)         { return s.FS.Create(s.at(name)) }
func (s inside) Open(name string) (fsys.File, error)           { return s.FS.Open(s.at(name)) }
func (s inside) OpenWrite(name string) (fsys.File, error)      { return s.FS.OpenWrite(s.at(name)) }
func (s inside) Rename(from, to string) error                  { return s.FS.Rename(s.at(from), s.at(to)) }
func (s inside) Link(from, to string) error                    { return s.FS.Link(s.at(from), s.at(to)) }
func (s inside) Remove(name string) error                      { return s.FS.Remove(s.at(name)) }
func (s inside) MkdirAll(name string) error                    { return s.FS.MkdirAll(s.at(name)) }
func (s inside) List(name string) ([]string, error)            { return s.FS.List(s.at(name)) }
func (s inside) Stat(name string) (fs.FileInfo, error)         { return s.FS.Stat(s.at(name)) }
func (s inside) SyncDir(name string) error                     { return s.FS.SyncDir(s.at(name)) }
func (s inside) Lock(name string) (io.Closer, error)           { return s.FS.Lock(s.at(name)) }
func (s inside) Usage(name string) (free, size int64, e error) { return s.FS.Usage(s.at(name)) }

// inMem makes the media of a stripe in one file system.
func inMem(t pooltest.T, f fsys.FS, n int) (media []fsys.FS, names []string) {
	for i := range n {
		name := fmt.Sprintf("disk%d", i)
		if err := f.MkdirAll(name); err != nil {
			t.Fatalf("mkdir: %v", err)
		}
		media, names = append(media, inside{f, name}), append(names, name)
	}
	return media, names
}

// A stripeLab is a lab on a 4+2 pool of six disks.
type stripeLab struct {
	*lab
	media  []fsys.FS
	names  []string
	env    pools.Env
	mu     sync.Mutex
	events map[holdfast.EventType]int
}

func newStripeLab(t *testing.T) *stripeLab {
	l := &stripeLab{lab: &lab{t: t, id: holdfast.PoolID{ID: holdfast.NewID()}, vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}, events: map[holdfast.EventType]int{}}
	for i := range 6 {
		l.media, l.names = append(l.media, fsys.NewMem(uint64(i))), append(l.names, fmt.Sprintf("/disk%d", i))
	}
	l.env.Listener = func(e holdfast.Event) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.events[e.Type]++
	}
	if err := CreateStripedOn(background, l.env, l.media, l.names, "4+2", l.id, defaultChunking(t), Sealing{}); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *stripeLab) open(media []fsys.FS) *StripedPool {
	l.t.Helper()
	p, err := OpenStripedOn(background, l.env, media, l.names, l.id, Sealing{})
	if err != nil {
		l.t.Fatal(err)
	}
	l.p = p.Pool
	return p
}

func (l *stripeLab) count(e holdfast.EventType) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events[e]
}

func shut(t *testing.T, p *StripedPool) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// Goal: the pool keeps every promise over a stripe, with reopening, crashes and damage.
func TestStripedConformance(t *testing.T) {
	type spot struct {
		mem *fsys.Mem
		id  holdfast.PoolID
	}
	spots := map[pools.Pool]spot{}
	open := func(t pooltest.T, s spot) pools.Pool {
		media, names := inMem(t, s.mem, 6)
		p, err := OpenStripedOn(background, pools.Env{}, media, names, s.id, Sealing{})
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		spots[p] = s
		return p
	}
	h := pooltest.Harness{
		New: func(t pooltest.T) pools.Pool {
			s := spot{fsys.NewMem(1), holdfast.PoolID{ID: holdfast.NewID()}}
			media, names := inMem(t, s.mem, 6)
			if err := CreateStripedOn(background, pools.Env{}, media, names, "4+2", s.id, defaultChunking(t), Sealing{}); err != nil {
				t.Fatalf("create: %v", err)
			}
			return open(t, s)
		},
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return open(t, spots[p])
		},
		Crash: func(t pooltest.T, p pools.Pool) pools.Pool {
			s := spots[p]
			left := s.mem.Crash(nil, 50)
			s.mem.Halt(errors.New("the machine is off"))
			_ = p.(*StripedPool).release()
			return open(t, spot{left, s.id})
		},
		Corrupt: func(t pooltest.T, p pools.Pool) pools.Pool {
			s := spots[p]
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			for i := range 3 { // more than parity can heal
				m := inside{s.mem, fmt.Sprintf("disk%d", i)}
				names, err := m.List("containers")
				if err != nil || len(names) == 0 {
					t.Fatalf("corrupt: %v", err)
				}
				files, err := m.List("containers/" + names[0])
				if err != nil {
					t.Fatalf("corrupt: %v", err)
				}
				flip(t, m, "containers/"+names[0]+"/"+files[0], 400)
			}
			return open(t, s)
		},
	}
	for _, c := range pooltest.Checks() {
		t.Run(strings.ReplaceAll(c.Name, "/", "-"), func(t *testing.T) { c.Run(t, h) })
	}
	t.Run("histories", func(t *testing.T) {
		pooltest.RunHistory(t, pooltest.History{Seed: 3, Steps: 60 * soak(t), Pools: map[string]pooltest.Harness{"striped": h, "memory": memorytest.Harness()}})
	})
}

// Goal: a power cut at any sync point of any member loses no acknowledged set and leaves no partial one.
func TestStripedPowerCutsLoseNothingAcknowledged(t *testing.T) {
	id := holdfast.PoolID{ID: holdfast.NewID()}
	pooltest.RunCrashes(t, pooltest.Crashes{Seed: 1, Steps: 12, Points: 40 * soak(t), Open: func(f fsys.FS) (pools.Pool, error) {
		media, names := inMem(t, f, 3)
		err := CreateStripedOn(background, pools.Env{}, media, names, "2+1", id, defaultChunking(t), Sealing{})
		if err != nil && !errors.Is(err, holdfast.Exist) {
			return nil, err
		}
		p, err := OpenStripedOn(background, pools.Env{}, media, names, id, Sealing{})
		if err != nil {
			return nil, err
		}
		return p, nil
	}})
}

// Goal: any two of six disks can be lost; a third cannot, and that is said.
func TestEveryPairOfLostPathsRestores(t *testing.T) {
	l := newStripeLab(t)
	p := l.open(l.media)
	img := noise(rand.New(rand.NewPCG(1, 1)), 1<<20)
	first := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
	change := noise(rand.New(rand.NewPCG(2, 1)), 100<<10)
	second := l.must(l.backup(1<<20, first, write{off: 300 << 10, bytes: change}))
	now := slices.Clone(img)
	copy(now[300<<10:], change)
	shut(t, p)
	for a := range 6 {
		for b := range a {
			media := slices.Clone(l.media)
			media[a], media[b] = nil, nil
			before := l.count(parity.EventMemberLost)
			p := l.open(media)
			l.same(first, img)
			l.same(second, now)
			if got := l.count(parity.EventMemberLost) - before; got != 2 {
				t.Errorf("without %d and %d: %d alarms", a, b, got)
			}
			rep, err := p.Pool.Verify(background, pools.VerifyOptions{})
			if err != nil || len(rep.Damaged) != 0 {
				t.Errorf("without %d and %d: %+v, %v", a, b, rep.Damaged, err)
			}
			shut(t, p)
		}
	}
	media := slices.Clone(l.media)
	media[0], media[3], media[5] = nil, nil, nil
	if _, err := OpenStripedOn(background, l.env, media, l.names, l.id, Sealing{}); !errors.Is(err, holdfast.Offline) {
		t.Errorf("three lost: %v", err)
	}
	// An empty folder, as of a disk that is not mounted, is a lost one, and stays empty.
	empty := fsys.NewMem(9)
	media = slices.Clone(l.media)
	media[2] = empty
	p = l.open(media)
	l.same(second, now)
	shut(t, p)
	if names, err := empty.List("."); err != nil || len(names) != 0 {
		t.Errorf("the empty folder holds %q: %v", names, err)
	}
}

// Goal: a new disk in the stead of a lost one gets everything while backups run; then others may be lost.
func TestReplacedPathIsRebuiltOnline(t *testing.T) {
	l := newStripeLab(t)
	p := l.open(l.media)
	img := noise(rand.New(rand.NewPCG(1, 1)), 1<<20)
	ids := []holdfast.SetID{l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))}
	shut(t, p)
	media := slices.Clone(l.media)
	media[4] = nil
	p = l.open(media)
	var wg sync.WaitGroup
	var mu sync.Mutex
	wg.Go(func() {
		for i := range 8 {
			id, err := l.backup(1<<20, ids[0], write{off: int64(i) * 8192, bytes: img[i*8192:][:8192]}, write{off: 512 << 10, bytes: img[512<<10:]})
			if err != nil {
				t.Errorf("backup beside the rebuild: %v", err)
				return
			}
			mu.Lock()
			ids = append(ids, id)
			mu.Unlock()
		}
	})
	fresh := fsys.NewMem(77)
	steps := int64(0)
	if err := p.RebuildOn(background, fresh, "/disk4", "/new", func(done, all int64) { steps = max(steps, done) }); err != nil {
		t.Fatalf("rebuild: %v", err)
	}
	wg.Wait()
	if names, whole := p.Members(); names[4] != "/new" || slices.Contains(whole, false) || steps == 0 {
		t.Errorf("members %q, whole %v, %d steps", names, whole, steps)
	}
	shut(t, p)
	media[4] = fresh
	l.names[4] = "/new"
	for _, pair := range [][2]int{{0, 1}, {2, 3}, {3, 5}} {
		left := slices.Clone(media)
		left[pair[0]], left[pair[1]] = nil, nil
		p := l.open(left)
		for _, id := range ids {
			l.same(id, img)
		}
		shut(t, p)
	}
}

// Goal: one flipped bit anywhere is found, named and healed.
func TestFlippedBitsAreHealed(t *testing.T) {
	l := newStripeLab(t)
	p := l.open(l.media)
	img := noise(rand.New(rand.NewPCG(1, 1)), 256<<10)
	id := l.must(l.backup(256<<10, holdfast.SetID{}, write{bytes: img}))
	shut(t, p)
	rng := rand.New(rand.NewPCG(7, 7))
	for i := range 24 * soak(t) {
		m := l.media[rng.IntN(6)].(*fsys.Mem)
		file := anyFile(t, rng, m)
		st, err := m.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		before := content(t, m, file)
		flip(t, m, file, rng.Int64N(st.Size()))
		bad := l.count(parity.EventShardBad) + l.count(parity.EventShardHealed)
		p := l.open(l.media)
		l.same(id, img)
		rep, err := p.Verify(background, pools.VerifyOptions{})
		if err != nil || len(rep.Damaged) != 0 {
			t.Fatalf("flip %d in %s: %+v, %v", i, file, rep.Damaged, err)
		}
		shut(t, p)
		if !bytes.Equal(content(t, m, file), before) {
			t.Errorf("flip %d in %s was not healed", i, file)
		}
		if l.count(parity.EventShardBad)+l.count(parity.EventShardHealed) == bad && !strings.HasPrefix(file, ".stripe") {
			t.Errorf("flip %d in %s was not told", i, file)
		}
	}
}

// anyFile picks a file with bytes that the stripe wrote.
func anyFile(t *testing.T, rng *rand.Rand, f fsys.FS) string {
	var files []string
	var walk func(dir string)
	walk = func(dir string) {
		names, err := f.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			full := path.Join(dir, n)
			st, err := f.Stat(full)
			switch {
			case err != nil:
				t.Fatal(err)
			case st.IsDir():
				walk(full)
			case st.Size() > 0 && n != memberLock:
				files = append(files, full)
			}
		}
	}
	walk(".")
	return files[rng.IntN(len(files))]
}

func content(t *testing.T, f fsys.FS, name string) []byte {
	r, err := f.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Goal: the driver makes, opens, knows, moves and destroys striped pools in folders.
func TestStripedDriver(t *testing.T) {
	root := t.TempDir()
	c := Config{Stripe: "2+1", Paths: []string{root + "/a", root + "/b", root + "/c"}}
	raw, err := encodeConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	d := Driver()
	env := pools.Env{StateDir: t.TempDir()}
	id := holdfast.PoolID{ID: holdfast.NewID()}
	if err := d.Create(background, env, id, raw); err != nil {
		t.Fatal(err)
	}
	if err := d.Create(background, env, id, raw); !errors.Is(err, holdfast.Exist) {
		t.Errorf("create again: %v", err)
	}
	p, err := d.Open(background, env, id, raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(background, env, id, raw); !errors.Is(err, holdfast.Busy) {
		t.Errorf("open twice: %v", err)
	}
	if have, err := d.Identify(background, env, raw); have != id || err != nil {
		t.Errorf("identify: %v, %v", have, err)
	}
	if err := p.(pools.PathRebuilder).RebuildPath(background, root+"/b", root+"/new", nil); err != nil {
		t.Errorf("rebuild: %v", err)
	}
	if raw, err = d.ReplacePath(raw, root+"/b", root+"/new"); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err = d.Open(background, env, id, raw); err != nil {
		t.Fatal(err)
	}
	if _, whole := p.(*StripedPool).Members(); slices.Contains(whole, false) {
		t.Errorf("whole: %v", whole)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Destroy(background, env, id, raw); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	if _, err := d.Identify(background, env, raw); !errors.Is(err, holdfast.NotExist) {
		t.Errorf("identify after destroy: %v", err)
	}
	for _, bad := range []string{`{"stripe":"4+2","paths":["/a"]}`, `{"stripe":"x","paths":["/a"]}`, `{"paths":["/a","/b"]}`, `{"stripe":"2+1","paths":["/a","/a","/b"]}`, `{}`} {
		if _, err := d.Open(background, env, id, []byte(bad)); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
