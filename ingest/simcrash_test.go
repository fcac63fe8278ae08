package ingest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/fsys"
)

// soakFactor returns by how much HOLDFAST_SOAK multiplies a campaign, and seed where it begins (HOLDFAST_SEED).
func soakFactor() (factor int, seed uint64) {
	factor, _ = strconv.Atoi(os.Getenv("HOLDFAST_SOAK"))
	seed, _ = strconv.ParseUint(os.Getenv("HOLDFAST_SEED"), 10, 64)
	return max(1, min(factor, 1000)), seed
}

// A crashPoint names a step of a protocol by the sync that ends it. A cut at the point finds everything before the sync done, and of
// what the sync would make durable nothing, all, or any part.
type crashPoint struct {
	name  string
	phase string // the operation under way
	op    string // sync, syncdir or mkdir
	glob  string // of the name
	nth   int    // how many catalog syncs of this operation were before; -1: any
	stage stage  // of a collect
}

// A stage is how far a collect has come with compacting.
type stage uint8

const (
	anyStage stage = iota
	sweeping       // nothing was copied yet
	copied         // live chunks were synced in new containers
	switched       // and what is condemned of these
)

// crashPoints are the numbered steps of commit, delete, collect and recovery; docs/design/0003-gc.md and docs/architecture.md tell them.
var crashPoints = []crashPoint{
	{"commit 0: generation of container ids", "backup", "sync", "pool/staging/*owner*", -1, anyStage},
	{"commit 1a: container written, not synced", "backup", "sync", "pool/staging/*containers*", -1, anyStage},
	{"commit 1b: container renamed, folder not synced", "backup", "syncdir", "pool/containers/*", -1, anyStage},
	{"commit 2: intent", "backup", "sync", "catalog-*/*", 0, anyStage},
	{"commit 3a: set record written, not synced", "backup", "sync", "pool/staging/*sets*", -1, anyStage},
	{"commit 3b: set record renamed, folder not synced (the commit point)", "backup", "syncdir", "pool/sets", -1, anyStage},
	{"commit 4: set added, intent removed", "backup", "sync", "catalog-*/*", 1, anyStage},
	{"commit 5: acknowledged", "after backup", "", "", -1, anyStage},
	{"delete 1: tombstone", "delete", "sync", "catalog-*/*", 0, anyStage},
	{"delete 2: set record removed, folder not synced", "delete", "syncdir", "pool/sets", -1, anyStage},
	{"delete 3: set and tombstone removed", "delete", "sync", "catalog-*/*", 1, anyStage},
	{"delete 4: acknowledged", "after delete", "", "", -1, anyStage},
	{"collect 4: condemned bits, not synced", "collect", "sync", "pool/index/*", -1, sweeping},
	{"collect 5: container without a live chunk removed, folder not synced", "collect", "syncdir", "pool/containers/*", -1, sweeping},
	{"collect 6a: live chunks copied, not synced", "collect", "sync", "pool/staging/*containers*", -1, anyStage},
	{"collect 6b: copy renamed, folder not synced", "collect", "syncdir", "pool/containers/*", -1, copied},
	{"collect 6c: sources switched off, condemned bits not synced", "collect", "sync", "pool/index/*", -1, copied},
	{"collect 6d: source removed, folder not synced", "collect", "syncdir", "pool/containers/*", -1, switched},
	{"collect 7: done", "after collect", "", "", -1, anyStage},
	{"rebuild 1: a new catalog", "rebuild", "sync", "catalog-*/*", -1, anyStage},
	{"reindex 1: a new index", "reindex", "sync", "pool/index/*", -1, anyStage},
}

func (c *crashPoint) is(phase, op, name string, nth int, at stage) bool {
	ok, _ := path.Match(c.glob, name)
	return c.phase == phase && c.op == op && (ok || c.glob == "") && (c.nth < 0 || c.nth == nth) && (c.stage == anyStage || c.stage == at)
}

// pass moves a collect's stage on after a sync.
func (s *stage) pass(op, name string) {
	copies, _ := path.Match("pool/staging/*containers*", name)
	index, _ := path.Match("pool/index/*", name)
	switch {
	case op == "sync" && copies:
		*s = copied
	case op == "sync" && index && *s == copied:
		*s = switched
	}
}

// nearlyFull is a medium where space is worth copying for, so that collects compact often.
type nearlyFull struct{ *fsys.Mem }

func (nearlyFull) Usage(string) (free, size int64, err error) { return 1 << 30, 1 << 40, nil }

// A crashSim takes images at the sync points of a history and looks at what an appliance makes of them.
type crashSim struct {
	t      *testing.T
	seed   uint64
	mem    *fsys.Mem
	s      *sim
	want   int // images still to be taken
	images int
	syncs  int // of the catalog, in this operation
	stage  stage
	at     int // sync points so far
	named  map[string]int
	twice  int
	failed int
}

// Goal: a power cut at any sync point of pool and catalog, at the same instant, loses no acknowledged set, invents none, and leaves no
// difference between the two that intents and tombstones do not explain. Method: random histories of backup, delete, collect, rebuild and
// restart on a crashable file system; at every sync point and after every step an image of what a cut would leave, with random luck for
// what was not synced, is opened, recovered, compared, restored whole, and used on; some are cut again during recovery.
func TestPowerCutAnywhereLosesNothing(t *testing.T) {
	factor, seed := soakFactor()
	want := 1000 * factor
	if testing.Short() {
		want /= 10
	}
	named := map[string]int{}
	images, twice, histories, points := 0, 0, 0, 0
	for ; images < want; seed++ {
		c := &crashSim{t: t, seed: seed, want: want - images, named: named}
		c.run()
		images, twice, points = images+c.images, twice+c.twice, points+c.at
		if histories++; t.Failed() {
			break
		}
	}
	t.Logf("%d power cuts in %d histories with %d sync points; %d were cut again while recovering", images, histories, points, twice)
	for _, p := range crashPoints {
		if t.Logf("%6d cuts at %s", named[p.name], p.name); named[p.name] == 0 && !t.Failed() && !testing.Short() { // a short campaign may end in its first history
			t.Errorf("no cut was at the point %q", p.name)
		}
	}
}

// historySteps is the length of one history. After it everything has been collected, rebuilt and reopened a few times.
const historySteps = 40

func (c *crashSim) run() {
	ctx := context.Background()
	c.mem = fsys.NewMem(c.seed)
	var err error
	if c.s, err = newSim(nearlyFull{c.mem}, c.seed); err != nil {
		c.t.Fatal(err)
	}
	defer c.s.close()
	c.mem.OnSync(c.sync)
	for c.s.step = range historySteps {
		name, do := c.s.choose()
		c.s.model(func(m *simModel) { m.phase = name })
		c.syncs, c.stage = 0, sweeping
		if err := do(c.s, ctx); err != nil {
			c.t.Errorf("seed %d step %d: %s: %v", c.seed, c.s.step, name, err)
		}
		c.s.model(func(m *simModel) { m.phase = "after " + name })
		c.cut("", "")
		if c.images >= c.want || c.t.Failed() {
			return
		}
	}
	if err := c.s.restoreAll(ctx); err != nil {
		c.t.Errorf("seed %d at the end: %v", c.seed, err)
	}
}

// sync is called before a sync takes effect.
func (c *crashSim) sync(op, name string) {
	c.s.mu.Lock()
	c.at++
	c.s.mu.Unlock()
	c.cut(op, name)
	c.s.model(func(*simModel) { c.stage.pass(op, name) })
	if op == "sync" && strings.HasPrefix(name, "catalog-") {
		c.s.model(func(*simModel) { c.syncs++ })
	}
}

// cut takes one image and looks at it. Syncs come from several goroutines: looks are taken one at a time.
func (c *crashSim) cut(op, name string) {
	now := c.s.snapshot()
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.images >= c.want || c.failed > 3 {
		return
	}
	rng := rand.New(rand.NewPCG(c.seed, uint64(c.images)))
	keep := [...]int{0, 50, 100, rng.IntN(101)}[rng.IntN(4)]
	img := c.mem.Crash(rng, keep)
	for i := range crashPoints {
		if crashPoints[i].is(now.phase, op, name, c.syncs, c.stage) {
			c.named[crashPoints[i].name]++
		}
	}
	c.images++
	if err := c.look(img, now, rng); err != nil {
		c.failed++
		c.t.Errorf("seed %d step %d (%s), cut %d at %s %s, %d%% of what was not synced kept: %v", c.seed, c.s.step, now.phase, c.images, op, name, keep, err)
	}
}

// look starts an appliance on an image.
func (c *crashSim) look(img *fsys.Mem, now simModel, rng *rand.Rand) error {
	ctx := context.Background()
	s := c.s.on(img, now, rng)
	defer s.close()
	if rng.IntN(4) == 0 { // the power goes again while the appliance recovers
		c.twice++
		at, n, again := rng.IntN(6), 0, (*fsys.Mem)(nil)
		img.OnSync(func(string, string) {
			if n++; n == at {
				again = img.Crash(rng, rng.IntN(101))
			}
		})
		if err := s.open(ctx); err != nil {
			return err
		}
		img.OnSync(nil)
		if again != nil {
			s.close()
			s.fs = again
		} else if err := s.pool.Close(); err != nil {
			return err
		} else if s.pool, err = nil, s.cat.Close(); err != nil {
			return err
		} else {
			s.cat = nil
		}
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	if err := s.restoreAll(ctx); err != nil {
		return err
	}
	if err := s.cat.Check(); err != nil {
		return fmt.Errorf("check catalog: %w", err)
	}
	return s.goOn(ctx, rng)
}

// goOn uses the appliance after a crash: everything must work as ever.
func (s *sim) goOn(ctx context.Context, rng *rand.Rand) error {
	for i := range s.vms { // what the hosts' disks hold now is not what the last set holds
		s.vms[i].image = slices.Clone(s.vms[i].image)
		s.fill(s.vms[i].image[:simBlock])
	}
	if err := s.backup(ctx); err != nil {
		return fmt.Errorf("backup afterwards: %w", err)
	}
	if rng.IntN(2) == 0 && len(s.sets) > 1 {
		if err := s.delete(ctx); err != nil {
			return fmt.Errorf("delete afterwards: %w", err)
		}
	}
	if err := s.collect(ctx); err != nil {
		return fmt.Errorf("collect afterwards: %w", err)
	}
	if err := s.restoreAll(ctx); err != nil {
		return fmt.Errorf("after a backup and a collect: %w", err)
	}
	return nil
}
