package iscsi_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/conform"
	"github.com/holdfast-backup/holdfast/tape/iscsi"
	"github.com/holdfast-backup/holdfast/tape/iscsi/tgttest"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

var ctx = context.Background()

// TestTranscripts runs the command transcripts against tgt through our initiator. Every answer that is not the standard's is named.
func TestTranscripts(t *testing.T) {
	lib := tgttest.Start(t, tgttest.Options{Drives: 1, Slots: 4, Media: []string{"HF0001L8", "HF0002L8"}})
	s := lib.Dial()
	conform.Run(ctx, t, conform.Rig{Tape: s.LUN(1), Changer: s.LUN(lib.ChangerLUN()), Drive: tgttest.AddrDrive, Slot: tgttest.AddrSlot,
		Other: tgttest.AddrSlot + 1, Hole: tgttest.AddrHole}, tgttest.Deviations)
}

// TestBlocksOfManySizesComeBack: writes beyond one unit need the target's requests for data, reads come in many units; with and without checksums.
func TestBlocksOfManySizesComeBack(t *testing.T) {
	for _, digest := range []bool{false, true} {
		lib := tgttest.Start(t, tgttest.Options{Drives: 1, Slots: 2, Media: []string{"HF0001L8"}, Digests: digest})
		o := lib.Options()
		o.HeaderDigest, o.DataDigest = digest, digest
		s, err := iscsi.Dial(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		tape := load(t, s, lib)
		rng := rand.New(rand.NewPCG(1, 2))
		var blocks [][]byte
		for _, n := range []int{1, 511, 8192, 8193, 65536, 65537, 262144, 300001, 1 << 20} {
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			blocks = append(blocks, p)
			must(t, tape, scsi.Command{CDB: scsi.Write(n), Out: p})
		}
		must(t, tape, scsi.Command{CDB: scsi.WriteFilemarks(1, false)})
		must(t, tape, scsi.Command{CDB: scsi.Rewind()})
		for _, p := range blocks {
			if got := must(t, tape, scsi.Command{CDB: scsi.Read(len(p)), In: make([]byte, len(p))}); !bytes.Equal(got, p) {
				t.Errorf("digests %v: a block of %d bytes came back with %d, or other ones", digest, len(p), len(got))
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func must(t *testing.T, u scsi.Transport, c scsi.Command) []byte {
	t.Helper()
	p, err := scsi.Do(ctx, u, c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// load brings the first cartridge into the drive.
func load(t *testing.T, s *iscsi.Session, lib *tgttest.Library) scsi.Transport {
	t.Helper()
	tape, robot := s.LUN(1), s.LUN(lib.ChangerLUN())
	for _, u := range []scsi.Transport{tape, robot} {
		if _, err := u.Exec(ctx, scsi.Command{CDB: scsi.TestUnitReady()}); err != nil {
			t.Fatal(err)
		}
	}
	must(t, robot, scsi.Command{CDB: scsi.MoveMedium(0, tgttest.AddrSlot, tgttest.AddrDrive)})
	for range 4 {
		if r, err := tape.Exec(ctx, scsi.Command{CDB: scsi.TestUnitReady()}); err == nil && r.Status == scsi.Good {
			break
		}
	}
	must(t, tape, scsi.Command{CDB: scsi.Rewind()})
	return tape
}

// TestDiscoveryListsTheTarget, and a portal where nobody listens is Offline.
func TestDiscoveryListsTheTarget(t *testing.T) {
	lib := tgttest.Start(t, tgttest.Options{Drives: 1, Slots: 1, Media: []string{"HF0001L8"}})
	ts, err := iscsi.Discover(ctx, lib.Options())
	if err != nil || len(ts) != 1 || ts[0].Name != tgttest.Target || len(ts[0].Addresses) == 0 || !strings.HasPrefix(ts[0].Addresses[0], lib.Portal) {
		t.Errorf("%+v, %v", ts, err)
	}
	o := lib.Options()
	o.Target = "iqn.2024-01.test.holdfast:other"
	if _, err := iscsi.Dial(ctx, o); holdfast.KindOf(err) != holdfast.NotExist {
		t.Errorf("another target: %v", err)
	}
	lib.Kill()
	if _, err := iscsi.Discover(ctx, lib.Options()); holdfast.KindOf(err) != holdfast.Offline || holdfast.HintOf(err) == "" {
		t.Errorf("nobody listens: %v", err)
	}
}

// TestSecretsProveBothSides: the right secrets let in, every wrong one keeps out, in both directions, and none shows in an error.
func TestSecretsProveBothSides(t *testing.T) {
	lib := tgttest.Start(t, tgttest.Options{Drives: 1, Slots: 1, Media: []string{"HF0001L8"}, User: "alice", Secret: "secret-of-alice",
		TargetUser: "library", TargetSecret: "secret-of-library"})
	for _, c := range []struct {
		name string
		edit func(*iscsi.Options)
		kind holdfast.Kind
	}{
		{"both right", func(*iscsi.Options) {}, 0},
		{"one way", func(o *iscsi.Options) { o.TargetSecret = "" }, 0},
		{"wrong secret", func(o *iscsi.Options) { o.Secret = "secret-of-mallory" }, holdfast.Permission},
		{"wrong user", func(o *iscsi.Options) { o.User = "mallory" }, holdfast.Permission},
		{"wrong target", func(o *iscsi.Options) { o.TargetSecret = "secret-of-another" }, holdfast.Permission},
		{"no user", func(o *iscsi.Options) { o.User, o.Secret, o.TargetSecret = "", "", "" }, holdfast.Permission},
		{"same secret", func(o *iscsi.Options) { o.TargetSecret = o.Secret }, holdfast.Invalid},
	} {
		o := lib.Options()
		c.edit(&o)
		s, err := iscsi.Dial(ctx, o)
		if err == nil {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if c.kind != 0 {
				t.Errorf("%s: let in", c.name)
			}
			continue
		}
		if c.kind == 0 || holdfast.KindOf(err) != c.kind || strings.Contains(err.Error(), "secret-of") {
			t.Errorf("%s: %v of kind %v, want %v", c.name, err, holdfast.KindOf(err), c.kind)
		}
	}
}

// cuttable is a dialer whose connections a test can break.
type cuttable struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cuttable) dial(ctx context.Context, portal string) (net.Conn, error) {
	n, err := (&net.Dialer{}).DialContext(ctx, "tcp", portal)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.conns = append(c.conns, n)
	}
	return n, err
}

func (c *cuttable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.conns {
		_ = n.Close()
	}
}

// TestSessionComesBackAfterTheConnectionBroke: the next command logs in again, sees what was written before, and learns by a unit
// attention, or by the position, that something happened; after a restart of the target too.
func TestSessionComesBackAfterTheConnectionBroke(t *testing.T) {
	lib := tgttest.Start(t, tgttest.Options{Drives: 1, Slots: 1, Media: []string{"HF0001L8"}})
	o, wire := lib.Options(), &cuttable{}
	o.Dial = wire.dial
	s, err := iscsi.Dial(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	tape := load(t, s, lib)
	must(t, tape, scsi.Command{CDB: scsi.Write(5), Out: []byte("hello")})
	must(t, tape, scsi.Command{CDB: scsi.WriteFilemarks(1, false)})
	for _, broken := range []func(){wire.cut, func() { lib.Kill(); lib.Up() }} {
		broken()
		for i := 0; ; i++ { // the first commands may still fail with the old connection, or bring the attention
			r, err := tape.Exec(ctx, scsi.Command{CDB: scsi.TestUnitReady()})
			if err == nil && r.Status == scsi.Good {
				break
			}
			if sense, _ := scsi.ParseSense(r.Sense); err == nil && sense.Code == scsi.CodeNoMedium {
				must(t, s.LUN(lib.ChangerLUN()), scsi.Command{CDB: scsi.TestUnitReady()})
				must(t, s.LUN(lib.ChangerLUN()), scsi.Command{CDB: scsi.MoveMedium(0, tgttest.AddrSlot, tgttest.AddrDrive)})
			} else if _, e := s.LUN(lib.ChangerLUN()).Exec(ctx, scsi.Command{CDB: scsi.TestUnitReady()}); i > 20 {
				t.Fatalf("it does not come back: %v, %v, %v", r, err, e)
			}
		}
		must(t, tape, scsi.Command{CDB: scsi.Rewind()})
		if p := must(t, tape, scsi.Command{CDB: scsi.Read(5), In: make([]byte, 5)}); string(p) != "hello" {
			t.Errorf("read %q", p)
		}
	}
}

// TestGivingACommandUpLeavesTheBufferAlone: a cancelled command ends, its buffer is the caller's again, and the session goes on.
func TestGivingACommandUpLeavesTheBufferAlone(t *testing.T) {
	lib := tgttest.Start(t, tgttest.Options{Drives: 1, Slots: 1, Media: []string{"HF0001L8"}})
	s := lib.Dial()
	tape := load(t, s, lib)
	must(t, tape, scsi.Command{CDB: scsi.Write(1 << 20), Out: make([]byte, 1<<20)})
	must(t, tape, scsi.Command{CDB: scsi.Rewind()})
	for range 20 {
		c, cancel := context.WithCancel(ctx)
		buf := bytes.Repeat([]byte{0xee}, 1<<20)
		var wg sync.WaitGroup
		wg.Go(cancel)
		_, err := tape.Exec(c, scsi.Command{CDB: scsi.Read(1 << 20), In: buf})
		wg.Wait()
		if err != nil && holdfast.KindOf(err) != holdfast.Cancelled {
			t.Fatal(err)
		}
		buf[0] = 1 // the race detector would see a late write
		must(t, tape, scsi.Command{CDB: scsi.Rewind()})
	}
}
