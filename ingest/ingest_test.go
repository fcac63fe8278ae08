package ingest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/ingest/wire/netem"
	"github.com/holdfast-backup/holdfast/pools"
)

func TestFullAndIncrementalRestoreIdentically(t *testing.T) {
	h := openHouse(t)
	day1 := [][]byte{image(1, 80), image(2, 20)}
	m1, a := h.backup(nil, day1, nil)
	if a.began.Parent != nil || m1.Kind != holdfast.Full || a.puts == 0 {
		t.Fatalf("%+v", a.began)
	}
	if m1.Host != h.host || m1.HostName != "host" || m1.Created.Unix() == 1 || len(m1.Attachments) != 0 {
		t.Errorf("not stamped by the appliance: %+v", m1)
	}
	if m1.Stats.Sent == 0 || m1.Stats.Stored == 0 || m1.Stats.Logical != 100*block {
		t.Errorf("%+v", m1.Stats)
	}
	day2 := [][]byte{bytes.Clone(day1[0]), bytes.Clone(day1[1])}
	copy(day2[0][5*block:], image(3, 3))
	clear(day2[0][20*block : 22*block])
	m2, a := h.backup(nil, day2, day1)
	if a.began.Parent == nil || a.began.Parent.ID != m1.ID || m2.Parent != m1.ID {
		t.Fatalf("%+v", a.began)
	}
	if a.began.Tokens[diskIDs[0]] != "token of "+m1.ID.String() {
		t.Errorf("tokens %v", a.began.Tokens)
	}
	if a.puts > 3 {
		t.Errorf("%d chunks were sent", a.puts)
	}
	same(t, h.restored(m1.ID), day1)
	same(t, h.restored(m2.ID), day2)
	if err := DeleteSet(t.Context(), h.cat, h.poolID, h.pool, m1.ID); err != nil {
		t.Fatal(err)
	}
	if ids := h.listed(); len(ids) != 1 || ids[0] != m2.ID {
		t.Fatal(ids)
	}
	same(t, h.restored(m2.ID), day2)
	h.mu.Lock()
	h.full = true
	h.mu.Unlock()
	if _, a = h.backup(nil, day2, nil); a.began.Parent != nil || !a.began.Full || a.puts != 0 {
		t.Errorf("%d chunks were sent in a requested full: %+v", a.puts, a.began)
	}
	if err := h.cat.Check(); err != nil {
		t.Error(err)
	}
}

func TestExportedDiskIsWhatWasBackedUp(t *testing.T) {
	h := openHouse(t)
	images := [][]byte{image(1, 20), image(2, 30)}
	m, _ := h.backup(nil, images, nil)
	var b bytes.Buffer
	if err := ExportDisk(t.Context(), &b, h.pool, m.ID, diskIDs[1], nil); err != nil {
		t.Fatal(err)
	}
	r := wire.NewStreamReader(&b)
	first, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	o := first.Body.(wire.SetOpened)
	if len(o.Manifest.Disks) != 1 || o.Manifest.Disks[0].ID != diskIDs[1] {
		t.Fatalf("%+v", o.Manifest.Disks)
	}
	out := make([]byte, o.Manifest.Disks[0].Size)
	dec, hash := chunk.NewDecoder(), holdfast.Domain{Key: [32]byte(o.DomainKey)}.Hasher()
	for {
		msg, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := msg.Body.(*holdfast.Parcel); ok {
			place(t, dec, hash, p, out)
		}
		msg.Release()
	}
	if !bytes.Equal(out, images[1]) {
		t.Fatal("not what was backed up")
	}
}

// Goal: nothing that an agent says makes the appliance store a wrong byte or list a partial set; it is told why, and the appliance's owner too.
func TestLyingAgentIsRefusedAndNothingIsStored(t *testing.T) {
	good := func(a *agent, n byte) *holdfast.Group {
		p := bytes.Repeat([]byte{n, n + 1}, block/2)
		return &holdfast.Group{Chunks: []holdfast.Piece{{Digest: a.hash.Sum(p), Len: block}}, Payload: p}
	}
	ref := func(off int64, d holdfast.Digest) holdfast.Ref {
		return holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: block}, Digest: d}
	}
	for name, c := range map[string]struct {
		lie   func(a *agent)
		kind  holdfast.Kind
		event holdfast.EventType
	}{
		"wrong digest": {func(a *agent) {
			g := good(a, 1)
			g.Chunks[0].Digest[0] ^= 1
			a.send(wire.TypePut, 0, g)
		}, holdfast.Corrupt, holdfast.EventChunkCorrupt},
		"bomb": {func(a *agent) {
			e := chunk.NewEncoder(chunk.LevelFast)
			codec, payload := e.Encode(nil, make([]byte, 1<<20))
			a.send(wire.TypePut, 0, &holdfast.Group{Codec: codec, Chunks: []holdfast.Piece{{Digest: a.hash.Sum(make([]byte, block)), Len: block}}, Payload: payload})
		}, holdfast.Corrupt, holdfast.EventChunkCorrupt},
		"payload that is no encoding": {func(a *agent) {
			g := good(a, 1)
			g.Codec, g.Payload = holdfast.Zstd, []byte("this is not zstd")
			a.send(wire.TypePut, 0, g)
		}, holdfast.Corrupt, holdfast.EventChunkCorrupt},
		"overlapping refs in two messages": {func(a *agent) {
			a.send(wire.TypePlace, 0, wire.Place{Refs: []holdfast.Ref{ref(block, holdfast.Digest{})}})
			a.send(wire.TypePlace, 0, wire.Place{Refs: []holdfast.Ref{ref(0, holdfast.Digest{})}})
		}, holdfast.Invalid, holdfast.EventRefused},
		"ref outside the disk": {func(a *agent) {
			a.send(wire.TypePlace, 0, wire.Place{Refs: []holdfast.Ref{ref(1<<30, holdfast.Digest{})}})
		}, holdfast.Invalid, holdfast.EventRefused},
		"ref to a chunk never put": {func(a *agent) {
			a.send(wire.TypePlace, 0, wire.Place{Refs: []holdfast.Ref{ref(0, holdfast.Digest{1})}})
			a.send(wire.TypeDiskDone, 0, nil)
			a.send(wire.TypeDiskDone, 1, nil)
			a.send(wire.TypeCommit, 0, a.m)
		}, holdfast.NotExist, ""},
		"undeclared channel": {func(a *agent) { a.send(wire.TypeDiskDone, 2, nil) }, holdfast.Invalid, holdfast.EventRefused},
		"put after done": {func(a *agent) {
			a.send(wire.TypeDiskDone, 0, nil)
			a.send(wire.TypePut, 0, good(a, 1))
		}, holdfast.Invalid, holdfast.EventRefused},
		"commit with open disks": {func(a *agent) {
			a.send(wire.TypeDiskDone, 0, nil)
			a.send(wire.TypeCommit, 0, a.m)
		}, holdfast.Invalid, holdfast.EventRefused},
		"another disk at commit": {func(a *agent) {
			a.send(wire.TypeDiskDone, 0, nil)
			a.send(wire.TypeDiskDone, 1, nil)
			a.m.Disks = append([]holdfast.Disk(nil), a.m.Disks...)
			a.m.Disks[0].Size += 512
			a.send(wire.TypeCommit, 0, a.m)
		}, holdfast.Invalid, holdfast.EventRefused},
		"second start":            {func(a *agent) { a.send(wire.TypeStart, 0, a.m) }, holdfast.Invalid, holdfast.EventRefused},
		"tracking before commit":  {func(a *agent) { a.send(wire.TypeTracking, 0, wire.Tracking{Set: a.m.ID}) }, holdfast.Invalid, holdfast.EventRefused},
		"done before commit":      {func(a *agent) { a.send(wire.TypeDone, 0, nil) }, holdfast.Invalid, holdfast.EventRefused},
		"appliance's message":     {func(a *agent) { a.send(wire.TypeTracked, 0, nil) }, holdfast.Invalid, holdfast.EventRefused},
		"restore inside a backup": {func(a *agent) { a.send(wire.TypeWant, 0, wire.Want{Extents: holdfast.Extents{{Off: 0, Len: 1}}}) }, holdfast.Invalid, holdfast.EventRefused},
		"the agent's own failure": {func(a *agent) { a.send(wire.TypeFail, 0, wire.Failure{Kind: holdfast.NoSpace, Message: "x"}) }, holdfast.NoSpace, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := openHouse(t)
			a := h.agent(nil).begin().start(h.vm, [][]byte{make([]byte, 8*block), make([]byte, block)})
			c.lie(a)
			if err := a.fails(); !errors.Is(err, c.kind) {
				t.Errorf("the agent was told: %v", err)
			}
			if err := <-h.ended; !errors.Is(err, c.kind) {
				t.Errorf("the session ended with: %v", err)
			}
			if c.event != "" && !h.saw(c.event) {
				t.Errorf("no %s event", c.event)
			}
			if ids := h.listed(); len(ids) != 0 {
				t.Errorf("listed: %v", ids)
			}
			if ds := h.medium.Digests(); len(ds) != 0 {
				t.Errorf("%d chunks are needed by sets", len(ds))
			}
			if err := h.pool.Close(); err != nil {
				t.Errorf("the session was left open: %v", err)
			}
		})
	}
}

func TestStartMustBeOfWhatWasGranted(t *testing.T) {
	for name, bend := range map[string]func(*holdfast.Manifest){
		"another set":         func(m *holdfast.Manifest) { m.ID.ID = holdfast.NewID() },
		"another VM":          func(m *holdfast.Manifest) { m.VM.ID.ID = holdfast.NewID() },
		"parent not offered":  func(m *holdfast.Manifest) { m.Kind, m.Parent.ID = holdfast.Incremental, holdfast.NewID() },
		"inherits other size": func(m *holdfast.Manifest) { m.Disks[0].Size += 512 },
		"inherits other disk": func(m *holdfast.Manifest) { m.Disks[0].ID.ID = holdfast.NewID() },
	} {
		t.Run(name, func(t *testing.T) {
			h := openHouse(t)
			img := [][]byte{image(1, 2)}
			h.backup(nil, img, nil)
			a := h.agent(nil).begin()
			m := holdfast.Manifest{ID: a.began.Set, VM: h.vm, Kind: holdfast.Incremental, Parent: a.began.Parent.ID,
				Disks: []holdfast.Disk{{ID: diskIDs[0], Size: 2 * block, Inherit: true}}}
			bend(&m)
			a.send(wire.TypeStart, 0, m)
			if err := a.fails(); !errors.Is(err, holdfast.Invalid) {
				t.Error(err)
			}
			if err := <-h.ended; !errors.Is(err, holdfast.Invalid) {
				t.Error(err)
			}
		})
	}
}

func TestTaskOfAnotherHostIsRefused(t *testing.T) {
	for _, open := range []wire.Type{wire.TypeBegin, wire.TypeOpenSet} {
		h := openHouse(t)
		a := h.agent(nil)
		a.send(open, 0, wire.Begin{Task: holdfast.TaskID{ID: holdfast.NewID()}})
		if err := a.fails(); !errors.Is(err, holdfast.Permission) {
			t.Error(err)
		}
		if err := <-h.ended; !errors.Is(err, holdfast.Permission) {
			t.Error(err)
		}
	}
}

func TestAbortedSessionLeavesNothing(t *testing.T) {
	h := openHouse(t)
	img := image(1, 40)
	a := h.agent(nil).begin().start(h.vm, [][]byte{img})
	a.disk(0, img, nil)
	a.link.Abort(holdfast.Errorf(holdfast.Cancelled, "back up", "the user stopped it"))
	if err := <-h.ended; !errors.Is(err, holdfast.Cancelled) {
		t.Error(err)
	}
	if ids := h.listed(); len(ids) != 0 {
		t.Error(ids)
	}
	if err := h.pool.Close(); err != nil {
		t.Error(err)
	}
}

func TestSessionSurvivesCutConnections(t *testing.T) {
	h := openHouse(t)
	p, err := netem.Listen(h.ln.Addr().String(), netem.Line{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dial := func(ctx context.Context) (net.Conn, error) {
		p.CutAfter(1_500_000)
		return p.Dial(ctx)
	}
	images := [][]byte{image(1, 160), image(2, 40)}
	m, a := h.backup(dial, images, nil)
	if a.link.Stats().Breaks < 3 {
		t.Errorf("%+v", a.link.Stats())
	}
	same(t, h.restored(m.ID), images)
}

func TestLostCatalogIsRebuiltEqual(t *testing.T) {
	h := openHouse(t)
	img := [][]byte{image(1, 10)}
	for range 5 {
		h.backup(nil, img, img)
	}
	before, err := catalog.ListSets(h.cat)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := catalog.Open(fsys.NewMem(2), "catalog")
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	for round, want := range []RebuildReport{{Added: 5}, {Known: 5}} {
		r, err := Rebuild(t.Context(), fresh, h.poolID, h.pool)
		if err != nil || r != want {
			t.Fatal(round, r, err)
		}
	}
	after, err := catalog.ListSets(fresh)
	if err != nil || !reflect.DeepEqual(after, before) {
		t.Fatalf("%v\n%+v\n%+v", err, after, before)
	}
}

// TestRebuildForgetsSetsThatAreGone deletes sets behind the catalog's back.
func TestRebuildForgetsSetsThatAreGone(t *testing.T) {
	h := openHouse(t)
	img := [][]byte{image(1, 10)}
	var ids []holdfast.SetID
	for range 4 {
		m, _ := h.backup(nil, img, img)
		ids = append(ids, m.ID)
	}
	for _, id := range ids[:2] {
		if err := h.pool.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Rebuild(t.Context(), h.cat, h.poolID, h.pool)
	if err != nil || r != (RebuildReport{Known: 2, Gone: 2}) {
		t.Fatal(r, err)
	}
	if sets, err := catalog.ListSets(h.cat); err != nil || len(sets) != 2 {
		t.Fatal(sets, err)
	}
	if err := h.cat.Check(); err != nil {
		t.Fatal(err)
	}
}

// Goal: an acknowledged set is listed after a crash, and every other is either adopted whole or gone.
// Method: the catalog's file system fails from its n-th sync on during a backup, for every n; then both come up again.
func TestCommitSurvivesACrashAtEverySync(t *testing.T) {
	img := [][]byte{image(1, 8)}
	adopted, dropped, none := 0, 0, 0
	for n := 1; ; n++ {
		h := openHouse(t)
		a := h.agent(nil).begin().start(h.vm, img)
		a.disk(0, img[0], nil)
		count := 0
		var crashed *fsys.Mem
		h.mem.OnSync(func(string, string) {
			if count++; count == n {
				h.mem.Halt(errors.New("power is off"))
			}
		})
		a.send(wire.TypeCommit, 0, a.m)
		acked := false
		if m, err := a.link.Recv(t.Context()); err == nil && m.Type == wire.TypeCommitted {
			acked = true
		}
		a.link.Abort(errors.New("power is off"))
		<-h.ended
		h.mem.OnSync(nil)
		crashed = h.mem.Crash(nil, 0)
		h.medium.Kill()
		pool, err := h.medium.Open()
		if err != nil {
			t.Fatal(err)
		}
		cat, err := catalog.Open(crashed, "catalog")
		if err != nil {
			t.Fatalf("sync %d: %v", n, err)
		}
		r, err := Recover(t.Context(), cat, map[holdfast.PoolID]pools.Pool{h.poolID: pool})
		if err != nil {
			t.Fatalf("sync %d: %v", n, err)
		}
		sets, err := catalog.ListSets(cat)
		if err != nil {
			t.Fatal(err)
		}
		inPool := 0
		for range pool.Sets(t.Context()) {
			inPool++
		}
		if len(sets) != inPool || (acked && inPool != 1) {
			t.Fatalf("sync %d: acknowledged %v, listed %d, in the pool %d, %+v", n, acked, len(sets), inPool, r)
		}
		adopted, dropped = adopted+r.Adopted, dropped+r.Dropped
		if inPool == 0 && r.Dropped == 0 {
			none++
		}
		if again, err := Recover(t.Context(), cat, map[holdfast.PoolID]pools.Pool{h.poolID: pool}); err != nil || again != (RecoverReport{}) {
			t.Fatal(again, err)
		}
		if err := errors.Join(cat.Close(), pool.Close()); err != nil {
			t.Fatal(err)
		}
		if acked && count < n {
			t.Logf("%d syncs: %d sets adopted, %d intents dropped, %d times nothing", n-1, adopted, dropped, none)
			break
		}
	}
	if adopted == 0 || none == 0 {
		t.Errorf("not all cases came up: %d adopted, %d nothing", adopted, none)
	}
}

func TestRecoverFinishesDeletionsAndDropsIntents(t *testing.T) {
	h := openHouse(t)
	m, _ := h.backup(nil, [][]byte{image(1, 4)}, nil)
	ghost := m
	ghost.ID.ID = holdfast.NewID()
	err := h.cat.Update(t.Context(), func(tx *catalog.Tx) error {
		return errors.Join(tx.PutTombstone(m.ID), tx.PutIntent(catalog.Intent{Set: ghost.ID, Pool: h.poolID, Manifest: ghost}))
	})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Recover(t.Context(), h.cat, nil); err != nil || r != (RecoverReport{Waiting: 2}) {
		t.Fatal(r, err)
	}
	r, err := Recover(t.Context(), h.cat, map[holdfast.PoolID]pools.Pool{h.poolID: h.pool})
	if err != nil || r != (RecoverReport{Dropped: 1, Deleted: 1}) {
		t.Fatal(r, err)
	}
	if ids := h.listed(); len(ids) != 0 {
		t.Fatal(ids)
	}
}

// held is a pool whose sets a lock keeps.
type held struct{ pools.Pool }

func (held) Delete(context.Context, holdfast.SetID) error {
	return holdfast.Errorf(holdfast.Immutable, "delete set", "it is kept until tomorrow")
}

// TestRefusedDeletionLeavesTheSetAsItWas: a set that the pool keeps by a lock is listed, is restored, and is the parent of the next set, with its change tracking ids, after
// somebody tried to delete it; so is one whose tombstone was left by a crash.
func TestRefusedDeletionLeavesTheSetAsItWas(t *testing.T) {
	h := openHouse(t)
	img := [][]byte{image(1, 4)}
	m, _ := h.backup(nil, img, nil)
	look := func() (s catalog.Set, tr catalog.Tracking, stones int) {
		err := h.cat.View(func(tx *catalog.Tx) (err error) {
			if s, err = tx.Set(m.ID); err != nil {
				return err
			}
			for range tx.Tombstones() {
				stones++
			}
			if tr, err = tx.Tracking(m.VM.ID, h.poolID); errors.Is(err, holdfast.NotExist) {
				err = nil
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return s, tr, stones
	}
	before, tracked, _ := look()
	if tracked.Set != m.ID {
		t.Fatalf("tracking stands on %s", tracked.Set)
	}
	for range 2 {
		if err := DeleteSet(t.Context(), h.cat, h.poolID, held{h.pool}, m.ID); !errors.Is(err, holdfast.Immutable) {
			t.Fatal(err)
		}
		if s, tr, stones := look(); s.State != before.State || !reflect.DeepEqual(tr, tracked) || stones != 0 {
			t.Errorf("state %v, tracking %+v, %d tombstones", s.State, tr, stones)
		}
	}
	if err := h.cat.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutTombstone(m.ID) }); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(t.Context(), h.cat, map[holdfast.PoolID]pools.Pool{h.poolID: held{h.pool}}); !errors.Is(err, holdfast.Immutable) {
		t.Fatal(err)
	}
	if s, _, stones := look(); s.State != catalog.SetCommitted || stones != 0 {
		t.Errorf("after a restart: state %v, %d tombstones", s.State, stones)
	}
	if got := h.restored(m.ID); !bytes.Equal(got[0], img[0]) {
		t.Error("other bytes")
	}
	if err := DeleteSet(t.Context(), h.cat, h.poolID, h.pool, m.ID); err != nil || len(h.listed()) != 0 {
		t.Errorf("once the lock is over: %v", err)
	}
}

func TestRestoreRefusesWhatIsNotThere(t *testing.T) {
	h := openHouse(t)
	m, _ := h.backup(nil, [][]byte{image(1, 4)}, nil)
	h.restore = m.ID
	for name, want := range map[string]struct {
		channel uint16
		es      holdfast.Extents
		text    string
	}{
		"channel":         {1, holdfast.Extents{{Off: 0, Len: 512}}, "channel 1"},
		"beyond the disk": {0, holdfast.Extents{{Off: 4 * block, Len: 512}}, "bytes up to"},
	} {
		t.Run(name, func(t *testing.T) {
			a := h.agent(nil)
			a.send(wire.TypeOpenSet, 0, wire.Begin{Task: theTask})
			a.recv(wire.TypeSetOpened)
			a.send(wire.TypeWant, want.channel, wire.Want{Extents: want.es})
			if err := a.fails(); !errors.Is(err, holdfast.Invalid) || !strings.Contains(err.Error(), want.text) {
				t.Error(err)
			}
			<-h.ended
		})
	}
}

// Goal: an agent whose machine dies in the middle of a set leaves neither a set nor an open session once its link's window is over.
func TestLinkThatNeverComesBackAbortsTheSession(t *testing.T) {
	h := openHouseWith(t, wire.LinkOptions{Window: 100 * time.Millisecond})
	p, err := netem.Listen(h.ln.Addr().String(), netem.Line{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	a := h.agent(p.Dial).begin().start(h.vm, [][]byte{image(1, 4), image(2, 4)})
	a.disk(0, image(1, 4), nil)
	p.Refuse(true)
	p.Cut()
	if err := <-h.ended; !errors.Is(err, holdfast.Offline) {
		t.Error(err)
	}
	if ids := h.listed(); len(ids) != 0 {
		t.Error(ids)
	}
	if err := h.pool.Close(); err != nil {
		t.Error(err)
	}
}
