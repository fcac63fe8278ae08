package pool

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/dedup"
	"github.com/holdfast-backup/holdfast/pools/memory/memorytest"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/library"
)

var ctx = context.Background()

func soak() int {
	n, err := strconv.Atoi(os.Getenv("HOLDFAST_SOAK"))
	if err != nil {
		return 1
	}
	return max(1, min(n, 1000))
}

// A clock that stands still unless it is told to go on; who waits is served at once.
type still struct {
	mu  sync.Mutex
	now time.Time
}

func (s *still) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *still) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

func (s *still) After(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(min(d, time.Millisecond)) // nobody here waits for more than another goroutine
	return t.C, func() { t.Stop() }
}

// A site is a library, a place for the state, and a pool on them.
type site struct {
	t    pooltest.T
	emu  *emu.Library
	mem  *fsys.Mem
	id   holdfast.PoolID
	conf Config
	keep time.Duration
	clk  *still
	env  pools.Env
	rng  *rand.Rand
	log  []string
}

func newSite(t pooltest.T, o emu.Options, conf Config, cartridges int, m emu.Media) *site {
	if o.Drives == 0 {
		o.Drives = 2
	}
	if o.Slots == 0 {
		o.Slots = 8
	}
	o.Exports = 1
	s := &site{t: t, emu: emu.New(o), mem: fsys.NewMem(o.Seed), id: holdfast.PoolID{ID: holdfast.NewID()}, clk: &still{now: time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)}, rng: rand.New(rand.NewPCG(o.Seed, 1))}
	for i := range cartridges {
		m.Barcode = fmt.Sprintf("HF%04dL8", i+1)
		s.emu.Add(i, m)
	}
	conf.Library = "emu:1"
	if conf.Spool == 0 {
		conf.Spool = 1 << 20
	}
	if conf.Block == 0 {
		conf.Block = 64 << 10
	}
	raw, err := json.Marshal(conf)
	s.must(err)
	s.conf, s.keep, err = readConfig(raw)
	s.must(err)
	s.env = pools.Env{Clock: s.clk}
	return s
}

func (s *site) must(err error) {
	if err != nil {
		s.t.Helper()
		s.t.Fatalf("%v", err)
	}
}

func (s *site) create() *Pool {
	s.must(create(ctx, s.env, s.mem, s.id, s.conf))
	return s.open()
}

// lib opens the emulated library.
func (s *site) lib() *library.Library {
	var u library.Units
	for i := -1; i < 2; i++ {
		x, err := library.Look(ctx, s.emu.Connect("a", emu.Unit(i)), "emulated")
		s.must(err)
		u.List = append(u.List, x)
	}
	l, err := library.New(ctx, u, library.Options{Clock: s.clk})
	s.must(err)
	return l
}

func (s *site) open() *Pool {
	p, err := s.tryOpen()
	s.must(err)
	return p
}

func (s *site) tryOpen() (*Pool, error) {
	l := s.lib()
	p, err := openOn(ctx, s.env, s.mem, s.id, s.conf, s.keep, l, l.Close)
	if err == nil {
		p.log = func(format string, args ...any) {
			p.mu1(func() { s.log = append(s.log, fmt.Sprintf(format, args...)) })
		}
		p.stations.log = p.log
	}
	return p, err
}

var logging sync.Mutex

func (p *Pool) mu1(do func()) {
	logging.Lock()
	defer logging.Unlock()
	do()
}

func (s *site) logged(part string) bool {
	logging.Lock()
	defer logging.Unlock()
	return strings.Contains(strings.Join(s.log, "\n"), part)
}

// slot returns the number of the slot with a cartridge.
func (s *site) slot(p *Pool, barcode string) int {
	inv, err := p.stations.lib.Changer().Inventory(ctx)
	s.must(err)
	e, err := inv.Find(barcode)
	s.must(err)
	return int(e.Address) - emu.AddrSlot
}

// crash takes the power from the appliance and from the library.
func (s *site) crash() *Pool {
	s.emu.PowerCut()
	s.mem = s.mem.Crash(s.rng, s.rng.IntN(101))
	return s.open()
}

// harness makes tape pools.
func harness(conf Config, cartridges int, m emu.Media) pooltest.Harness {
	var mu sync.Mutex
	sites := map[pools.Pool]*site{}
	keep := func(s *site, p *Pool) pools.Pool {
		mu.Lock()
		defer mu.Unlock()
		sites[p] = s
		return p
	}
	of := func(p pools.Pool) *site {
		mu.Lock()
		defer mu.Unlock()
		return sites[p]
	}
	return pooltest.Harness{
		New: func(t pooltest.T) pools.Pool {
			s := newSite(t, emu.Options{Slots: 60}, conf, cartridges, m)
			return keep(s, s.create())
		},
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			s := of(p)
			s.t = t
			s.must(p.Close())
			return keep(s, s.open())
		},
		Crash: func(t pooltest.T, p pools.Pool) pools.Pool {
			s := of(p)
			s.t = t
			return keep(s, s.crash())
		},
		Corrupt: func(t pooltest.T, p pools.Pool) pools.Pool {
			s := of(p)
			s.t = t
			s.must(p.Close())
			q := s.open()
			q.mu.Lock()
			e := q.objects[q.book.Backups[0].Media][1] // a container: the preface comes first
			c := *q.book.Tape(e.Tape)
			q.mu.Unlock()
			s.must(q.free(ctx, c.Barcode))
			slot := s.slot(q, c.Barcode)
			cart := s.emu.Remove(slot)
			cart.Flip(0, int(e.At)+1, 5000)
			s.emu.Insert(slot, cart)
			return keep(s, q)
		},
	}
}

// TestConformance runs every named check of the Pool interface on tape.
func TestConformance(t *testing.T) {
	for _, c := range pooltest.Checks() {
		t.Run(c.Name, func(t *testing.T) { c.Run(t, harness(Config{Allocation: Continue}, 20, emu.Media{Capacity: 64 << 20})) })
	}
}

// TestHistoriesRestoreAsTheReferenceDoes: random histories with crashes, in one media set, and with a media set for each backup set.
func TestHistoriesRestoreAsTheReferenceDoes(t *testing.T) {
	for seed := range uint64(2 * soak()) {
		for name, h := range map[string]pooltest.Harness{
			"continue": harness(Config{Allocation: Continue}, 20, emu.Media{Capacity: 64 << 20}),
			"always":   harness(Config{Allocation: Always}, 60, emu.Media{Capacity: 16 << 20}),
			"small":    harness(Config{Allocation: Continue}, 60, emu.Media{Capacity: 3 << 19, EarlyWarning: 400 << 10}),
		} {
			pooltest.RunHistory(t, pooltest.History{Seed: seed, Steps: 30, Pools: map[string]pooltest.Harness{"tape-" + name: h, "memory": memorytest.Harness()}})
		}
	}
}

// TestCopiesRestoreIdentically: from a dedup pool to tape and back to another dedup pool.
func TestCopiesRestoreIdentically(t *testing.T) {
	disk := func() pools.Pool {
		id, mem := holdfast.PoolID{ID: holdfast.NewID()}, fsys.NewMem(3)
		chunking, err := holdfast.ParseChunking("")
		if err == nil {
			err = dedup.CreateOn(ctx, pools.Env{}, mem, id, chunking)
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := dedup.OpenOn(ctx, pools.Env{}, mem, id)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	s := newSite(t, emu.Options{}, Config{Allocation: Continue}, 8, emu.Media{Capacity: 2 << 20, EarlyWarning: 300 << 10})
	from, p, to := disk(), s.create(), disk()
	var ids []holdfast.SetID
	parent := holdfast.SetID{}
	for i := range 4 {
		parent = s.backup(from, backup{seed: uint64(i), parent: parent, size: 1 << 20})
		ids = append(ids, parent)
	}
	for _, id := range ids {
		want := s.restore(from, id)
		_, err := pools.Copy(ctx, p, from, id, nil)
		s.must(err)
		_, err = pools.Copy(ctx, to, p, id, nil)
		s.must(err)
		if got := s.restore(to, id); string(got) != string(want) || len(got) == 0 {
			t.Errorf("set %s differs after two copies", id)
		}
	}
	for _, q := range []pools.Pool{from, p, to} {
		s.must(q.Close())
	}
}
