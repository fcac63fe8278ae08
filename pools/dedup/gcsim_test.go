package dedup

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools"
)

// A gcSim runs one pool through interleaved sessions, readers, deletions, collects, verifies, restarts and power cuts, and knows what every
// set must hold. One seed is one history: everything happens in one goroutine, and what happens in the middle of a collect is called from
// its progress function and from the sync points it passes.
type gcSim struct {
	t     *testing.T
	seed  uint64
	rng   *rand.Rand
	mem   *fsys.Mem
	p     *Pool
	id    holdfast.PoolID
	clock *jumpyClock
	disk  holdfast.DiskID
	vm    holdfast.VMID

	sets     []*gcSet // committed and not deleted
	gone     []holdfast.SetID
	sessions []*gcSession
	readers  []*gcReader
	words    int // contents there are; old ones come back all the time

	left, done int // steps
	inside     int // steps in the middle of a collect
	collecting bool
	counts     map[string]int
	steps      []gcStep
	ever       int64 // bytes ever stored in containers, copies of collects not counted
	hooked     bool
}

type gcSet struct {
	id    holdfast.SetID
	image []byte
	refs  int // readers
}

type gcSession struct {
	s     pools.Session
	w     pools.DiskWriter
	m     holdfast.Manifest
	image []byte
	end   int
	held  [][]byte // contents answered as present or put, not placed yet
}

type gcReader struct {
	set pools.Set
	x   *gcSet
}

// A jumpyClock goes backwards and forwards by years, and stands still for days.
type jumpyClock struct{ now time.Time }

func (c *jumpyClock) Now() time.Time { return c.now }
func (c *jumpyClock) After(time.Duration) (<-chan time.Time, func()) {
	return make(chan time.Time), func() {}
}

var _ clock.Clock = (*jumpyClock)(nil)

const gcImage = 2048 // bytes of the disk

func newGCSim(t *testing.T, seed uint64, steps int) *gcSim {
	s := &gcSim{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x6763)), mem: fsys.NewMem(seed), left: steps, words: 60, counts: map[string]int{},
		clock: &jumpyClock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}, vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}
	s.steps = slices.Insert(slices.Clone(gcSteps[:]), 0, gcStep{"collect", 2, (*gcSim).collect})
	s.id = create(t, s.mem)
	s.open()
	return s
}

func (s *gcSim) open() {
	p, err := OpenOn(background, pools.Env{Clock: s.clock}, s.mem, s.id)
	s.must(err, "open")
	s.p = p
}

func (s *gcSim) must(err error, what string) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("seed %d step %d: %s: %v", s.seed, s.done, what, err)
	}
}

// word returns content number k: 16 to 271 bytes.
func word(k int) []byte {
	r := rand.New(rand.NewPCG(uint64(k), 3))
	b := make([]byte, 16+r.IntN(256))
	for i := 0; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b
}

// A gcStep is a step with its weight.
type gcStep struct {
	name   string
	weight int
	do     func(*gcSim) bool // false: not possible now
}

var gcSteps = [...]gcStep{{"begin", 8, (*gcSim).begin}, {"put", 40, (*gcSim).put}, {"place", 30, (*gcSim).place}, {"commit", 7, (*gcSim).commit}, {"abort", 2, (*gcSim).abort},
	{"open", 4, (*gcSim).openSet}, {"read", 8, (*gcSim).read}, {"close", 4, (*gcSim).closeSet}, {"delete", 5, (*gcSim).delete},
	{"clock", 2, (*gcSim).jump}}

// The rare ones, in steps of ten thousand: they cost more than the others together.
var gcRare = [...]gcStep{{"verify", 20, (*gcSim).verify}, {"restart", 10, (*gcSim).restart}, {"power cut", 20, (*gcSim).cut}, {"index lost", 4, (*gcSim).loseIndex}}

// one takes one step.
func (s *gcSim) one() {
	if !s.collecting {
		k := s.rng.IntN(10000)
		for _, r := range gcRare {
			if k < r.weight {
				s.count(r.name, r.do(s))
				return
			}
			k -= r.weight
		}
	}
	sum := 0
	for _, st := range s.steps {
		sum += st.weight
	}
	k, i := s.rng.IntN(sum), 0
	for k >= s.steps[i].weight {
		k -= s.steps[i].weight
		i++
	}
	s.count(s.steps[i].name, s.steps[i].do(s))
}

func (s *gcSim) count(name string, did bool) {
	if did {
		s.counts[name]++
		s.done++
		s.left--
		if s.collecting {
			s.inside++
		}
	}
}

func (s *gcSim) begin() bool {
	if len(s.sessions) == 4 {
		return false
	}
	m := holdfast.Manifest{ID: holdfast.SetID{ID: holdfast.NewTimeID(s.clock.now)}, Kind: holdfast.Full, VM: holdfast.VMInfo{ID: s.vm, Name: "vm"},
		Disks: []holdfast.Disk{{ID: s.disk, Name: "disk.vhdx", Size: gcImage}}}
	x := &gcSession{image: make([]byte, gcImage)}
	if len(s.sets) > 0 && s.rng.IntN(4) > 0 {
		parent := s.sets[s.rng.IntN(len(s.sets))]
		m.Kind, m.Parent, m.Disks[0].Inherit, x.image = holdfast.Incremental, parent.id, true, bytes.Clone(parent.image)
	}
	var err error
	x.m = m
	x.s, err = s.p.Begin(background, m)
	s.must(err, "begin")
	x.w, err = x.s.Disk(background, s.disk)
	s.must(err, "open disk")
	s.sessions = append(s.sessions, x)
	return true
}

func (s *gcSim) session() *gcSession {
	if len(s.sessions) == 0 {
		return nil
	}
	return s.sessions[s.rng.IntN(len(s.sessions))]
}

// put asks for a chunk and stores it where it is missing. It is placed later: in between only a pin keeps it.
func (s *gcSim) put() bool {
	x := s.session()
	if x == nil || len(x.held) == 4 {
		return false
	}
	if s.rng.IntN(20) == 0 {
		s.words++ // new content comes up slowly, old content goes on coming back
	}
	c := word(max(0, s.words-60) + s.rng.IntN(60))
	d := s.p.domain.Hasher().Sum(c)
	missing := []bool{false}
	s.must(x.w.Missing(background, []holdfast.Digest{d}, missing), "missing")
	if missing[0] {
		g := holdfast.Group{Codec: holdfast.Plain, Chunks: []holdfast.Piece{{Digest: d, Len: uint32(len(c))}}, Payload: bytes.Clone(c)}
		s.must(x.w.Put(background, &g), "put")
		s.ever += int64(len(c))
	}
	x.held = append(x.held, c)
	return true
}

func (s *gcSim) place() bool {
	x := s.session()
	if x == nil || len(x.held) == 0 || x.end >= gcImage {
		return false
	}
	c := x.held[0]
	x.held = x.held[1:]
	off := x.end + s.rng.IntN(min(400, gcImage-x.end))
	skip := s.rng.IntN(len(c))
	n := min(len(c)-skip, gcImage-off)
	r := holdfast.Ref{Extent: holdfast.Extent{Off: int64(off), Len: int64(n)}, Digest: s.p.domain.Hasher().Sum(c), Skip: uint32(skip)}
	s.must(x.w.Place(background, []holdfast.Ref{r}), "place")
	copy(x.image[off:], c[skip:skip+n])
	x.end = off + n
	return true
}

// drop takes a session off the list.
func (s *gcSim) drop(x *gcSession) {
	s.sessions = slices.DeleteFunc(s.sessions, func(o *gcSession) bool { return o == x })
}

func (s *gcSim) commit() bool {
	x := s.session()
	if x == nil || len(s.sets) >= 10 {
		return false
	}
	s.drop(x) // first: others come in between
	s.must(x.w.Close(background), "close disk")
	_, err := x.s.Commit(background, x.m)
	s.must(err, "commit")
	s.sets = append(s.sets, &gcSet{id: x.m.ID, image: x.image})
	return true
}

func (s *gcSim) abort() bool {
	x := s.session()
	if x == nil {
		return false
	}
	s.drop(x)
	s.must(x.s.Abort(background), "abort")
	return true
}

func (s *gcSim) openSet() bool {
	if len(s.sets) == 0 || len(s.readers) == 3 {
		return false
	}
	x := s.sets[s.rng.IntN(len(s.sets))]
	set, err := s.p.Open(background, x.id)
	s.must(err, "open set")
	s.readers = append(s.readers, &gcReader{set, x})
	return true
}

// read restores a set that was opened some time ago; it may have been deleted since.
func (s *gcSim) read() bool {
	if len(s.readers) == 0 {
		return false
	}
	r := s.readers[s.rng.IntN(len(s.readers))]
	s.compare(r.set, r.x)
	return true
}

func (s *gcSim) compare(set pools.Set, x *gcSet) {
	s.t.Helper()
	got := make([]byte, gcImage)
	h := s.p.domain.Hasher()
	for pc, err := range set.Read(background, s.disk, holdfast.Extents{{Off: 0, Len: gcImage}}) {
		s.must(err, "read set "+x.id.String())
		dec := s.p.decoder()
		plain, err := dec.Open(h, &pc.Group, nil, nil)
		s.must(err, "decode")
		s.p.decoders.Put(dec)
		for _, pl := range pc.Places {
			copy(got[pl.Off:], plain[pl.At:pl.At+pl.Len])
		}
		pc.Release()
	}
	if !bytes.Equal(got, x.image) {
		s.t.Fatalf("seed %d step %d: set %s restores other bytes", s.seed, s.done, x.id)
	}
}

// checkAll restores every set there is, and looks that deleted ones are gone.
func (s *gcSim) checkAll() {
	s.t.Helper()
	for _, x := range s.sets {
		set, err := s.p.Open(background, x.id)
		s.must(err, "open set")
		s.compare(set, x)
		s.must(set.Close(), "close set")
	}
	for _, id := range s.gone[max(0, len(s.gone)-3):] {
		if set, err := s.p.Open(background, id); err == nil {
			s.must(set.Close(), "close")
			s.t.Fatalf("seed %d step %d: deleted set %s is there", s.seed, s.done, id)
		}
	}
}

func (s *gcSim) closeSet() bool {
	if len(s.readers) == 0 {
		return false
	}
	i := s.rng.IntN(len(s.readers))
	s.must(s.readers[i].set.Close(), "close set")
	s.readers = slices.Delete(s.readers, i, i+1)
	return true
}

func (s *gcSim) delete() bool {
	if len(s.sets) < 2 {
		return false
	}
	i := s.rng.IntN(len(s.sets))
	s.must(s.p.Delete(background, s.sets[i].id), "delete")
	s.gone = append(s.gone, s.sets[i].id)
	s.sets = slices.Delete(s.sets, i, i+1)
	return true
}

// collect collects, with steps of others in the middle.
func (s *gcSim) collect() bool {
	if s.collecting {
		return false
	}
	s.collecting = true
	others := func() {
		for range s.rng.IntN(3) {
			s.one()
		}
	}
	// A container is removed or sealed at this very moment. The pool's own locks are not held there, those of the index store are at its syncs.
	s.mem.OnSync(func(op, name string) {
		if op == "syncdir" && !s.hooked && len(name) > len(containersDir) && name[:len(containersDir)] == containersDir {
			s.hooked = true
			others()
			s.hooked = false
		}
	})
	_, err := s.p.Collect(background, pools.CollectOptions{Progress: func(int64, int64) { others() }})
	s.mem.OnSync(nil)
	s.collecting = false
	s.must(err, "collect")
	s.checkAll()
	return true
}

func (s *gcSim) jump() bool {
	years := time.Duration(s.rng.IntN(21)-10) * 365 * 24 * time.Hour
	s.clock.now = s.clock.now.Add([]time.Duration{years, 48 * time.Hour, -time.Hour, time.Second}[s.rng.IntN(4)])
	if y := s.clock.now.Year(); y < 1980 || y > 2090 {
		s.clock.now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return true
}

func (s *gcSim) verify() bool {
	rep, err := s.p.Verify(background, pools.VerifyOptions{})
	s.must(err, "verify")
	if len(rep.Damaged) > 0 || rep.Sets != len(s.sets) {
		s.t.Fatalf("seed %d step %d: verify: %+v", s.seed, s.done, rep)
	}
	return true
}

// end ends everything that is open.
func (s *gcSim) end() {
	for _, x := range s.sessions {
		s.must(x.s.Abort(background), "abort")
	}
	for _, r := range s.readers {
		s.must(r.set.Close(), "close set")
	}
	s.sessions, s.readers = nil, nil
}

func (s *gcSim) restart() bool {
	s.end()
	s.must(s.p.Close(), "close")
	s.open()
	s.checkAll()
	return true
}

// cut lets the power go in the middle of whatever is under way.
func (s *gcSim) cut() bool {
	after := s.mem.Crash(s.rng, []int{0, 50, 100, s.rng.IntN(101)}[s.rng.IntN(4)])
	s.end()
	s.must(s.p.Close(), "close")
	s.mem = after
	s.open()
	s.checkAll()
	return true
}

// loseIndex loses the index store. The marks of condemned chunks go with it: what they named is dead again at the next collect.
func (s *gcSim) loseIndex() bool {
	s.end()
	s.must(s.p.Close(), "close")
	names, err := s.mem.List("index")
	s.must(err, "list index")
	for _, n := range names {
		s.must(s.mem.Remove("index/"+n), "remove index")
	}
	s.open()
	s.checkAll()
	return true
}

// liveBytes returns the plaintext of the distinct chunks and nodes that the sets need.
func (s *gcSim) liveBytes() int64 {
	seen := map[holdfast.Digest]bool{}
	sum := int64(0)
	r := resolver{p: s.p}
	defer r.release()
	take := func(d holdfast.Digest) {
		if d.IsZero() || seen[d] {
			return
		}
		seen[d] = true
		s.must(r.resolve(background, []holdfast.Digest{d}, forReading), "resolve")
		if r.hits[0].c == nil {
			s.t.Fatalf("seed %d step %d: live chunk %s is not there", s.seed, s.done, d)
		}
		sum += int64(r.hits[0].chunk.Len)
	}
	for _, x := range s.sets {
		rec, err := s.p.loadSet(background, x.id)
		s.must(err, "load set")
		take(rec.disks[0].root)
		set, err := s.p.Open(background, x.id)
		s.must(err, "open set")
		for ref, err := range set.Map(background, s.disk) {
			s.must(err, "map")
			take(ref.Digest)
		}
		s.must(set.Close(), "close set")
	}
	return sum
}

// Goal: whatever runs beside a collect, whatever comes before and after it, no chunk that a set, a reader or a session needs is ever removed,
// and dead bytes are given back. Method: 100,000 steps (1,000,000 under HOLDFAST_SOAK=10) of interleaved sessions, readers, deletions,
// collects, verifies, restarts, power cuts and losses of the index against a model, with contents that die and come back, tiny chunks, and a
// clock that jumps by up to ten years; one step in three of those in the middle of collects falls between two of its removals.
func TestCollectAgainstEverything(t *testing.T) {
	t.Parallel() // with the other long one, after all short ones
	factor := soak(t)
	seed, _ := strconv.ParseUint(os.Getenv("HOLDFAST_SEED"), 10, 64)
	total := 100_000 * factor
	if testing.Short() { // the race detector's run looks for races, not for rare histories
		total /= 4
	}
	const perHistory = 25_000
	counts := map[string]int{}
	steps, inside := 0, 0
	for ; steps < total; seed++ {
		s := newGCSim(t, seed, perHistory)
		for s.left > 0 {
			s.one()
		}
		s.end()
		for range 2 {
			s.collect2()
		}
		s.checkAll()
		live := s.liveBytes()
		u, err := s.p.Usage(background)
		s.must(err, "usage")
		dead := s.ever - live
		left := u.Data - live
		t.Logf("seed %d: %d bytes of chunks ever stored, %d live, %d dead ones left after two cycles: %.2f %% of all that died were given back", seed, s.ever, live, left,
			100*(1-float64(left)/float64(dead)))
		if left*100 > dead {
			t.Errorf("seed %d: more than 1 %% of the dead bytes are still there", seed)
		}
		for len(s.sets) > 0 {
			s.must(s.p.Delete(background, s.sets[0].id), "delete")
			s.sets = s.sets[1:]
		}
		s.collect2()
		if u, err := s.p.Usage(background); err != nil || u.Chunks != 0 || u.Stored != 0 {
			t.Errorf("seed %d: without sets the pool holds %+v (%v)", seed, u, err)
		}
		s.must(s.p.Close(), "close")
		for k, n := range s.counts {
			counts[k] += n
		}
		steps, inside = steps+s.done, inside+s.inside
	}
	t.Logf("%d steps, %d of them in the middle of a collect: %s", steps, inside, fmt.Sprint(counts))
}

// collect2 collects with nobody else about.
func (s *gcSim) collect2() {
	_, err := s.p.Collect(background, pools.CollectOptions{})
	s.must(err, "collect")
}
