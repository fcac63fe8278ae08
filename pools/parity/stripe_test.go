package parity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/blobtest"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
)

var background = context.Background()

// Connections of the test over buckets that idle in a pool end later than it.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// small blocks bring many stripes into small objects.
const small = 4 << 10

func stores(t blobtest.T, media []fsys.FS) []blob.Store {
	out := make([]blob.Store, len(media))
	for i, f := range media {
		if f == nil {
			continue
		}
		s, err := dirstore.Open(f, dirstore.Options{})
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		out[i] = s
	}
	return out
}

func memory(n int) []fsys.FS {
	out := make([]fsys.FS, n)
	for i := range out {
		out[i] = fsys.NewMem(uint64(i))
	}
	return out
}

func create(t blobtest.T, media []fsys.FS, k, m int, opts Options) *Stripe {
	s, err := Create(background, stores(t, media), k, m, opts)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return s
}

func open(t blobtest.T, media []fsys.FS, opts Options) *Stripe {
	s, err := Open(background, stores(t, media), opts)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

// events remembers what a stripe told.
type events struct {
	mu  sync.Mutex
	all []holdfast.Event
}

func (e *events) listen(ev holdfast.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

// count counts the events of a type about a store ("" for any).
func (e *events) count(typ holdfast.EventType, store string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.all {
		if ev.Type == typ && (store == "" || ev.Fields["store"] == store) {
			n++
		}
	}
	return n
}

func TestStripesKeepTheLaw(t *testing.T) {
	for _, shape := range []struct{ k, m, block int }{{4, 2, 0}, {2, 1, small}} {
		places := map[blob.Store][]fsys.FS{}
		remember := func(s *Stripe, media []fsys.FS) blob.Store {
			places[s] = media
			return s
		}
		h := blobtest.Harness{
			New: func(bt blobtest.T) blob.Store {
				media := memory(shape.k + shape.m)
				return remember(create(bt, media, shape.k, shape.m, Options{Block: shape.block}), media)
			},
			Reopen: func(bt blobtest.T, s blob.Store) blob.Store {
				if err := s.Close(); err != nil {
					bt.Fatalf("close: %v", err)
				}
				return remember(open(bt, places[s], Options{}), places[s])
			},
			Crash: func(bt blobtest.T, s blob.Store) blob.Store {
				var left []fsys.FS
				for _, f := range places[s] {
					left = append(left, f.(*fsys.Mem).Crash(nil, 50))
				}
				return remember(open(bt, left, Options{}), left)
			},
		}
		for _, c := range blobtest.Checks() {
			t.Run(fmt.Sprintf("%d+%d/%s", shape.k, shape.m, c.Name), func(t *testing.T) { c.Run(t, h) })
		}
	}
}

func TestAStripeOnRealFilesWithLostMembersKeepsTheLaw(t *testing.T) {
	h := blobtest.Harness{New: func(bt blobtest.T) blob.Store {
		var media []fsys.FS
		for range 6 {
			f, err := fsys.NewOS(t.TempDir())
			if err != nil {
				bt.Fatalf("%v", err)
			}
			media = append(media, f)
		}
		s := create(bt, media, 4, 2, Options{})
		if err := s.Close(); err != nil {
			bt.Fatalf("close: %v", err)
		}
		media[1], media[4] = nil, nil
		return open(bt, media, Options{Allowed: 2})
	}}
	for _, c := range blobtest.Checks() {
		t.Run(c.Name, func(t *testing.T) { c.Run(t, h) })
	}
}

// medium opens the stripe on media, or makes it if they are blank.
func medium(k, m int) blobtest.Medium {
	return func(media []fsys.FS) (blob.Store, error) {
		var in []blob.Store
		for _, f := range media {
			s, err := dirstore.Open(f, dirstore.Options{})
			if err != nil {
				return nil, err
			}
			in = append(in, s)
		}
		s, err := Open(background, in, Options{})
		if errors.Is(err, holdfast.NotExist) {
			s, err = Create(background, in, k, m, Options{Block: small})
		}
		if err != nil {
			return nil, err
		}
		return s, nil
	}
}

func TestEveryPowerCutLeavesWholeObjects(t *testing.T) {
	images := 0
	for seed := range uint64(3) {
		for _, k := range []int{2, 4} {
			var media []*fsys.Mem
			for i := range k + k/2 {
				media = append(media, fsys.NewMem(seed*10+uint64(i)))
			}
			images += blobtest.PowerCuts(t, seed, 10, media, medium(k, k/2))
		}
	}
	t.Logf("%d images", images)
}

func TestEveryFailedOperationLeavesWholeObjects(t *testing.T) {
	runs := blobtest.Failures(t, 1, 8, 3, false, medium(2, 1)) + blobtest.Failures(t, 2, 8, 3, true, medium(2, 1))
	t.Logf("%d runs", runs)
}

var sizes = []int{0, 1, 100, small - 1, 4 * small, 4*small + 1, 100_000, 300_000}

func fill(t *testing.T, s blob.Store) {
	t.Helper()
	for i, n := range sizes {
		name := fmt.Sprintf("f%d/o%d", i%3, n)
		if err := blob.WriteAll(background, s, name, blobtest.Content(name, n)); err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t *testing.T, s blob.Store) {
	t.Helper()
	names, err := s.List(background, "")
	if err != nil || len(names) != len(sizes) {
		t.Errorf("list: %q, %v; want %d", names, err, len(sizes))
	}
	for i, n := range sizes {
		if err := blobtest.Whole(background, s, fmt.Sprintf("f%d/o%d", i%3, n), n); err != nil {
			t.Error(err)
		}
	}
}

func TestAnyTwoOfSixMembersMayBeLost(t *testing.T) {
	media := memory(6)
	s := create(t, media, 4, 2, Options{Block: small})
	fill(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	pairs := 0
	for a := range 6 {
		for b := a + 1; b < 6; b++ {
			pairs++
			left := append([]fsys.FS(nil), media...)
			left[a] = nil
			left[b] = fsys.NewMem(9) // a blank disk in its place is as lost as none
			left[(a+1)%6], left[(a+3)%6] = left[(a+3)%6], left[(a+1)%6]
			var told events
			s := open(t, left, Options{ReadOnly: true, Listener: told.listen})
			verify(t, s)
			if n := told.count(EventMemberLost, ""); n != 2 {
				t.Errorf("%d members reported lost; want 2", n)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if pairs != 15 {
		t.Errorf("%d pairs", pairs)
	}
	three := append([]fsys.FS(nil), media...)
	three[0], three[2], three[5] = nil, nil, nil
	if _, err := Open(background, stores(t, three), Options{}); !errors.Is(err, holdfast.Offline) {
		t.Errorf("with three lost: %v", err)
	}
}

// Method: two new members one after the other, while writers write, read and remove; then the four oldest that may go, go.
func TestRebuildRestoresRedundancyWhileWorkGoesOn(t *testing.T) {
	media := memory(6)
	s := create(t, media, 4, 2, Options{Block: small})
	fill(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	media[1], media[3] = nil, nil
	s = open(t, media, Options{Allowed: 2})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var kept []string
	for g := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				n := fmt.Sprintf("w/%d-%d", g, i)
				if err := blob.WriteAll(background, s, n, blobtest.Content(n, 20_000)); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				if err := blobtest.Whole(background, s, n, 20_000); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := s.Remove(background, n); err != nil {
						t.Errorf("remove: %v", err)
					}
					continue
				}
				mu.Lock()
				kept = append(kept, n)
				mu.Unlock()
			}
		})
	}
	early, err := s.Create(background, "begun/before")
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range []int{3, 1} {
		f := fsys.NewMem(uint64(place + 100))
		media[place] = f
		done := 0
		if err := s.Rebuild(background, place, stores(t, []fsys.FS{f})[0], fmt.Sprintf("new %d", place), func(n, of int) { done = n }); err != nil {
			t.Fatal(err)
		}
		if done < len(sizes) {
			t.Errorf("progress ended at %d", done)
		}
	}
	if _, err := early.Write(blobtest.Content("begun/before", 50_000)); err != nil {
		t.Error(err)
	}
	if err := early.Commit(); err != nil {
		t.Error(err)
	}
	close(stop)
	wg.Wait()
	if _, whole := s.Members(); fmt.Sprint(whole) != "[true true true true true true]" {
		t.Errorf("members: %v", whole)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var told events
	s = open(t, media, Options{Listener: told.listen})
	rep, err := s.Scrub(background, nil)
	if err != nil || rep.Healed != 0 || len(rep.Unhealed) != 0 || rep.Orphans != 0 || told.count(EventShardBad, "") != 0 {
		t.Errorf("scrub: %+v, %v; nothing should be missing", rep, err)
	}
	_ = s.Close()
	media[0], media[5] = nil, nil
	s = open(t, media, Options{})
	defer s.Close()
	for _, n := range append(kept, "begun/before") {
		if err := blobtest.Whole(background, s, n, map[bool]int{true: 50_000, false: 20_000}[n == "begun/before"]); err != nil {
			t.Error(err)
		}
	}
}

// Method: one bit of one shard file flipped at a time: in every byte of the label, and spread over the blocks and their sums; for files of
// several shapes and every member. The bit must be worked around, named and healed, by a read that meets it or by Scrub.
func TestEveryFlippedBitIsFoundNamedAndHealed(t *testing.T) {
	for _, size := range []int{0, 100, 5*small + 17} {
		media := memory(3)
		var told events
		s := create(t, media, 2, 1, Options{Block: small, Names: []string{"alpha", "beta", "gamma"}, Listener: told.listen})
		name := "set/one"
		if err := blob.WriteAll(background, s, name, blobtest.Content(name, size)); err != nil {
			t.Fatal(err)
		}
		flips := 0
		for place, member := range []string{"alpha", "beta", "gamma"} {
			whole, err := fsys.ReadFile(media[place], name, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for at := 0; at < len(whole); at++ {
				if at < len(whole)-labelLen && at%331 != 0 && at%4 != 0 || at < len(whole)-labelLen-small && at%997 != 0 {
					continue
				}
				flips++
				flip(t, media[place], name, int64(at), byte(1<<(at%8)))
				told.all = nil
				if err := blobtest.Whole(background, s, name, size); err != nil {
					t.Fatalf("size %d, %s, byte %d: %v", size, member, at, err)
				}
				if err := s.Settle(background); err != nil {
					t.Fatal(err)
				}
				if told.count(EventShardBad, "") == 0 { // not met by the read: in a parity shard
					if rep, err := s.Scrub(background, nil); err != nil || rep.Healed != 1 {
						t.Fatalf("size %d, %s, byte %d: scrub %+v, %v", size, member, at, rep, err)
					}
				}
				if told.count(EventShardBad, member) == 0 || told.count(EventShardHealed, member) != 1 || told.count(EventShardUnhealed, "") != 0 {
					t.Fatalf("size %d, %s, byte %d: told %v", size, member, at, told.all)
				}
				if now, err := fsys.ReadFile(media[place], name, 1<<20); err != nil || string(now) != string(whole) {
					t.Fatalf("size %d, %s, byte %d: the healed shard is another, %v", size, member, at, err)
				}
			}
		}
		t.Logf("size %d: %d flips", size, flips)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func flip(t *testing.T, f fsys.FS, name string, at int64, bit byte) {
	t.Helper()
	w, err := f.OpenWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err = w.ReadAt(b[:], at); err == nil {
		b[0] ^= bit
		_, err = w.WriteAt(b[:], at)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestAFlippedBitInAMemberLabelIsHealed(t *testing.T) {
	media := memory(3)
	s := create(t, media, 2, 1, Options{})
	_ = s.Close()
	for at := range int64(memberLen) {
		flip(t, media[1], memberLabels[at%2], at, 4)
		s := open(t, media, Options{})
		if _, whole := s.Members(); !whole[1] {
			t.Fatalf("byte %d loses the member", at)
		}
		_ = s.Close()
		for _, n := range memberLabels {
			b, err := fsys.ReadFile(media[1], n, 1<<10)
			if _, derr := decodeMember(b); err != nil || derr != nil {
				t.Fatalf("byte %d: %v, %v", at, err, derr)
			}
		}
	}
}

func TestMoreDamageThanParityIsCorruptAndNeverOtherBytes(t *testing.T) {
	media := memory(3)
	var told events
	s := create(t, media, 2, 1, Options{Block: small, Listener: told.listen})
	defer s.Close()
	fill(t, s)
	name := fmt.Sprintf("f%d/o%d", 6%3, 100_000)
	flip(t, media[0], name, 10, 1)
	flip(t, media[1], name, 10, 1) // the same stripe
	if err := blobtest.Whole(background, s, name, 100_000); !errors.Is(err, holdfast.Corrupt) {
		t.Errorf("read: %v", err)
	}
	if err := s.Settle(background); err != nil {
		t.Fatal(err)
	}
	if rep, err := s.Scrub(background, nil); err != nil || len(rep.Unhealed) != 1 || rep.Unhealed[0] != name {
		t.Errorf("scrub: %+v, %v", rep, err)
	}
	if told.count(EventShardUnhealed, "") == 0 {
		t.Error("nobody was told")
	}
}

func TestScrubRemovesLeftoversOnlyWhileAllMembersAreWhole(t *testing.T) {
	media := memory(3)
	s := create(t, media, 2, 1, Options{Block: small})
	fill(t, s)
	_ = s.Close()
	if err := blob.WriteAll(background, stores(t, media)[2], "left/over", []byte("x")); err != nil {
		t.Fatal(err)
	}
	two := []fsys.FS{nil, media[1], media[2]}
	s = open(t, two, Options{})
	if rep, err := s.Scrub(background, nil); err != nil || rep.Orphans != 0 {
		t.Errorf("with a lost member: %+v, %v", rep, err)
	}
	verify(t, s)
	_ = s.Close()
	s = open(t, media, Options{})
	defer s.Close()
	verify(t, s)
	if rep, err := s.Scrub(background, nil); err != nil || rep.Orphans != 1 || rep.Objects != len(sizes) {
		t.Errorf("with all: %+v, %v", rep, err)
	}
	if _, err := media[2].Stat("left/over"); err == nil {
		t.Error("the leftover is there")
	}
	verify(t, s)
}

func TestAFullMemberFailsTheObjectAndADeadOneDoesNot(t *testing.T) {
	media := memory(3)
	f := fsys.NewFault(media[1])
	media[1] = f
	var told events
	s := create(t, media, 2, 1, Options{Block: small, Listener: told.listen})
	defer s.Close()
	f.SetFree(2 * small)
	if err := blob.WriteAll(background, s, "too/much", make([]byte, 100_000)); !errors.Is(err, holdfast.NoSpace) {
		t.Errorf("a full member: %v", err)
	}
	if is, err := s.Exists(background, "too/much"); is || err != nil {
		t.Errorf("exists: %v, %v", is, err)
	}
	f.Clear()
	f.Inject(fsys.Rule{Times: fsys.Forever, Err: errors.New("the disk is dead")})
	fill(t, s)
	if told.count(EventMemberLost, "store 1") != 1 {
		t.Errorf("told %v", told.all)
	}
	verify(t, s)
	f.Clear()
	if err := s.Rebuild(background, 1, nil, "", nil); err != nil {
		t.Fatal(err)
	}
	if rep, err := s.Scrub(background, nil); err != nil || rep.Healed != 0 {
		t.Errorf("scrub: %+v, %v", rep, err)
	}
}

func TestTheStripesOwnFolderIsHiddenAndRefused(t *testing.T) {
	s := create(t, memory(3), 2, 1, Options{})
	defer s.Close()
	if names, err := s.List(background, ""); len(names) != 0 || err != nil {
		t.Errorf("list: %q, %v", names, err)
	}
	if _, err := s.Create(background, memberLabels[0]); !errors.Is(err, holdfast.Invalid) {
		t.Error(err)
	}
}

func TestShapesThatCannotProtectAreRefused(t *testing.T) {
	for _, shape := range [][2]int{{0, 1}, {1, 1}, {2, 2}, {2, 0}, {30, 3}, {-1, -2}} {
		if _, err := Create(background, stores(t, memory(max(0, shape[0]+shape[1]))), shape[0], shape[1], Options{}); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("%v: %v", shape, err)
		}
	}
	media := memory(3)
	s := create(t, media, 2, 1, Options{})
	_ = s.Close()
	if _, err := Create(background, stores(t, media), 2, 1, Options{}); !errors.Is(err, holdfast.Exist) {
		t.Errorf("create over a stripe: %v", err)
	}
	other := memory(3)
	s = create(t, other, 2, 1, Options{})
	_ = s.Close()
	for _, mix := range [][]fsys.FS{{media[0], media[1], other[2]}, {media[0], media[1], media[1]}} {
		if _, err := Open(background, stores(t, mix), Options{}); !errors.Is(err, holdfast.Invalid) || !strings.Contains(err.Error(), "store 2") {
			t.Errorf("a wrong store among them: %v", err)
		}
	}
}
