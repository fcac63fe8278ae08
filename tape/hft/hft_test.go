package hft_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/seal"
	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/iscsi/tgttest"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

var (
	ctx    = context.Background()
	update = flag.Bool("update", false, "write the golden files anew")
)

// bed is a library with one drive.
type bed struct {
	*testing.T
	lib *emu.Library
	d   *drive.Drive
}

func newBed(t *testing.T, o emu.Options) *bed {
	o.Drives, o.Slots = 1, 4
	b := &bed{T: t, lib: emu.New(o)}
	return b
}

func (b *bed) must(err error) {
	if err != nil {
		b.Helper()
		b.Fatal(err)
	}
}

func (b *bed) robot(from, to uint16) {
	b.Helper()
	r := b.lib.Connect("a", emu.Changer)
	for range 9 {
		if res, err := r.Exec(ctx, scsi.Command{CDB: scsi.MoveMedium(0, from, to)}); err == nil && res.Status == scsi.Good {
			return
		}
	}
	b.Fatal("the robot does not move")
}

// load puts a cartridge into the drive, taking out what is there.
func (b *bed) load(c *emu.Cartridge) {
	b.Helper()
	if b.d != nil {
		b.must(b.d.Unload(ctx))
		b.robot(emu.AddrDrive, emu.AddrSlot)
		b.lib.Remove(0)
	}
	b.lib.Insert(0, c)
	b.robot(emu.AddrSlot, emu.AddrDrive)
	b.open()
}

func (b *bed) open() {
	b.Helper()
	d, err := drive.Open(ctx, b.lib.Connect("a", emu.Drive(0)), drive.Options{})
	b.must(err)
	b.must(d.Ready(ctx))
	b.d = d
}

// media makes a cartridge that is in no library.
func (b *bed) media(m emu.Media) *emu.Cartridge {
	b.lib.Add(3, m)
	return b.lib.Remove(3)
}

func id(n uint64) holdfast.ID {
	var i holdfast.ID
	binary.BigEndian.PutUint64(i[8:], n)
	i[0] = 1
	return i
}

func label(seq int) hft.Label {
	return hft.Label{ID: id(uint64(100 + seq)), Set: id(1), Seq: seq, PoolName: "tapes", Barcode: fmt.Sprintf("HF%04dL8", seq), Block: hft.MinBlock,
		Created: time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)}
}

// content is the bytes of object n: always the same.
func content(n uint64, size int) []byte {
	rng, p := rand.New(rand.NewPCG(n, 3)), make([]byte, size)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func stream(n uint64, size int) *hft.Stream {
	return hft.NewStream(id(1000+n), hft.Container, fmt.Sprint("c-", n), bytes.NewReader(content(n, size)))
}

// check reads an entry and compares it with what was put.
func (b *bed) check(r *hft.Reader, e hft.Entry, n uint64, size int) {
	b.Helper()
	var buf bytes.Buffer
	j := hft.NewJoin(&buf)
	if err := r.Read(ctx, e, j); err != nil || !j.Done() || !bytes.Equal(buf.Bytes(), content(n, size)) {
		b.Errorf("object %d: %v, %d bytes of %d", n, err, buf.Len(), size)
	}
}

// number returns what content an entry has.
func number(e hft.Entry) uint64 { return binary.BigEndian.Uint64(e.ID[8:]) - 1000 }

var sizes = []int{0, 1, hft.MinBlock - 64, hft.MinBlock, 3 * hft.MinBlock, 40000}

// TestObjectsComeBack, in any order, by the catalog of the writer, of the tape's end and of a scan, which are one; on the emulator with everything, without LOCATE, on
// write-once media, and on tgt.
func TestObjectsComeBack(t *testing.T) {
	run := func(b *bed) {
		w, err := hft.Create(ctx, b.d, label(1), nil, nil)
		b.must(err)
		for n, size := range sizes {
			b.must(w.Put(ctx, stream(uint64(n), size)))
			if n%2 == 1 {
				fresh, err := w.Commit(ctx)
				b.must(err)
				if len(fresh) != 2 {
					b.Errorf("%d objects were committed", len(fresh))
				}
			}
		}
		r, err := hft.Open(ctx, b.d)
		b.must(err)
		tail, err := r.Tail(ctx)
		b.must(err)
		scan, err := r.Scan(ctx)
		b.must(err)
		if !reflect.DeepEqual(tail, scan) || !reflect.DeepEqual(tail.Objects, w.Objects()) || !scan.Clean || scan.Damage != nil || len(scan.Objects) != len(sizes) {
			b.Errorf("the writer, the end of the tape and the scan disagree:\n%+v\n%+v\n%+v", w.Objects(), tail, scan)
		}
		for _, n := range []int{5, 0, 3, 1, 4, 2} {
			b.check(r, scan.Objects[n], uint64(n), sizes[n])
		}
		w, err = hft.Append(ctx, b.d, label(1), nil, scan.Objects)
		b.must(err)
		b.must(w.Put(ctx, stream(6, 100)))
		_, err = w.Commit(ctx)
		b.must(err)
		b.check(r, w.Objects()[6], 6, 100)
	}
	for _, c := range []struct {
		name string
		o    emu.Options
		m    emu.Media
	}{
		{"everything", emu.Options{}, emu.Media{}},
		{"no locate", emu.Options{Without: []byte{scsi.OpLocate10, scsi.OpLocate16}}, emu.Media{}},
		{"nothing", emu.Options{Without: []byte{scsi.OpLocate10, scsi.OpLocate16, scsi.OpReadPosition, scsi.OpReadAttribute}}, emu.Media{}},
		{"write-once", emu.Options{}, emu.Media{WORM: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, c.o)
			b.load(b.media(c.m))
			run(b)
		})
	}
	t.Run("tgt", func(t *testing.T) {
		lib := tgttest.Start(t, tgttest.Options{Drives: 1, Slots: 2, Media: []string{"HF0001L8"}})
		s := lib.Dial()
		b := &bed{T: t}
		for range 3 { // the first meets the attention of a new connection
			_, _ = s.LUN(lib.ChangerLUN()).Exec(ctx, scsi.Command{CDB: scsi.MoveMedium(0, tgttest.AddrSlot, tgttest.AddrDrive)})
		}
		var err error
		b.d, err = drive.Open(ctx, s.LUN(1), drive.Options{})
		b.must(err)
		b.must(b.d.Ready(ctx))
		run(b)
	})
}

// TestForeignTapesAreNotTaken: blank, foreign, another of ours, a damaged label; none is appended to.
func TestForeignTapesAreNotTaken(t *testing.T) {
	b := newBed(t, emu.Options{})
	b.load(b.media(emu.Media{}))
	open := func(want holdfast.Kind) {
		t.Helper()
		if _, err := hft.Open(ctx, b.d); err == nil || holdfast.KindOf(err) != want {
			t.Errorf("%v, want %v", err, want)
		}
		if _, err := hft.Append(ctx, b.d, label(1), nil, nil); err == nil {
			t.Error("it was appended to")
		}
	}
	open(holdfast.NotExist)
	b.must(b.d.Filemarks(ctx, 1))
	open(holdfast.Invalid)
	b.must(b.d.Rewind(ctx))
	b.must(b.d.Write(ctx, []byte("VOL1 of somebody else")))
	open(holdfast.Invalid)
	_, err := hft.Create(ctx, b.d, label(2), nil, nil)
	b.must(err)
	if _, err := hft.Append(ctx, b.d, label(1), nil, nil); holdfast.KindOf(err) != holdfast.Invalid {
		t.Errorf("another tape of ours: %v", err)
	}
	if _, err := hft.Append(ctx, b.d, label(2), nil, []hft.Entry{{ID: id(5), At: 9}}); holdfast.KindOf(err) != holdfast.Corrupt {
		t.Errorf("a tape that lacks what was committed: %v", err)
	}
}

// TestDamageIsNamedAndTheRestIsRead: one changed bit in each kind of block; a scan says what is not whole, the other objects are read, and a tape
// that lost something is not appended to.
func TestDamageIsNamedAndTheRestIsRead(t *testing.T) {
	for at := 6; at < 16; at++ { // the objects; the label and the first catalog come before
		b := newBed(t, emu.Options{})
		c := b.media(emu.Media{})
		b.load(c)
		w, err := hft.Create(ctx, b.d, label(1), nil, nil)
		b.must(err)
		for n := range uint64(3) {
			b.must(w.Put(ctx, stream(n, 5000)))
		}
		_, err = w.Commit(ctx)
		b.must(err)
		if _, mark := c.Block(0, at); mark {
			continue
		}
		c.Flip(0, at, 100+at)
		r, err := hft.Open(ctx, b.d)
		b.must(err)
		f, err := r.Scan(ctx)
		b.must(err)
		if len(f.Objects) != 3 || len(f.Damage) != 1 || len(f.Broken) != 1 || !f.Suspect {
			t.Errorf("block %d: %+v", at, f)
		}
		bad := 0
		for _, e := range w.Objects() {
			j := hft.NewJoin(&bytes.Buffer{})
			if err := r.Read(ctx, e, j); err != nil {
				if bad++; holdfast.KindOf(err) != holdfast.Corrupt {
					t.Error(err)
				}
			}
		}
		if bad != 1 {
			t.Errorf("block %d: %d objects cannot be read", at, bad)
		}
		// A tape of which the end is good is appended to; it is the scan's and the reader's to find rot in the middle.
	}
}

// TestADamagedLastCatalogDoesNotCostWhatItListed: the tape is suspect, and not cut off.
func TestADamagedLastCatalogDoesNotCostWhatItListed(t *testing.T) {
	b := newBed(t, emu.Options{})
	c := b.media(emu.Media{})
	b.load(c)
	w, err := hft.Create(ctx, b.d, label(1), nil, nil)
	b.must(err)
	b.must(w.Put(ctx, stream(0, 100)))
	_, err = w.Commit(ctx)
	b.must(err)
	c.Flip(0, c.Objects(0)-3, 80)
	before := c.Objects(0)
	if _, err := hft.Append(ctx, b.d, label(1), nil, nil); holdfast.KindOf(err) != holdfast.Corrupt || c.Objects(0) != before {
		t.Errorf("%v, %d objects of %d", err, c.Objects(0), before)
	}
	r, err := hft.Open(ctx, b.d)
	b.must(err)
	f, err := r.Scan(ctx)
	b.must(err)
	if len(f.Loose) != 1 || !f.Suspect {
		t.Errorf("%+v", f)
	}
	b.check(r, f.Loose[0], 0, 100)
}

// TestASetSpansTapes: objects are cut at the end of a tape and joined again, tapes presented in any order.
func TestASetSpansTapes(t *testing.T) {
	b := newBed(t, emu.Options{Seed: 5})
	var carts []*emu.Cartridge
	var all []hft.Entry
	var w *hft.Writer
	next := func() {
		c := b.media(emu.Media{Capacity: 200000, EarlyWarning: 40000})
		carts = append(carts, c)
		b.load(c)
		var err error
		w, err = hft.Create(ctx, b.d, label(len(carts)), nil, all)
		b.must(err)
	}
	next()
	for n := range uint64(9) {
		s := stream(n, 50000)
		for !s.Done() {
			err := w.Put(ctx, s)
			if err == nil {
				continue
			}
			if !errors.Is(err, hft.ErrNextTape) {
				t.Fatal(err)
			}
			fresh, err := w.Commit(ctx)
			b.must(err)
			all = append(all, fresh...)
			next()
		}
	}
	fresh, err := w.Commit(ctx)
	b.must(err)
	all = append(all, fresh...)
	if len(carts) != 3 {
		t.Errorf("%d tapes", len(carts))
	}
	var rebuilt []hft.Entry
	readers := map[int]*emu.Cartridge{}
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(len(carts)) {
		b.load(carts[i])
		r, err := hft.Open(ctx, b.d)
		b.must(err)
		f, err := r.Scan(ctx)
		b.must(err)
		if i == 2 && !reflect.DeepEqual(f.Prior, all[:len(f.Prior)]) || i == 2 && len(f.Prior) == 0 {
			t.Errorf("the last tape knows of %d earlier objects", len(f.Prior))
		}
		rebuilt = append(rebuilt, f.Objects...)
		readers[r.Label().Seq] = carts[i]
	}
	if len(rebuilt) != len(all) {
		t.Errorf("%d entries were found, %d written", len(rebuilt), len(all))
	}
	for n := range uint64(9) {
		var buf bytes.Buffer
		j := hft.NewJoin(&buf)
		for _, e := range all {
			if number(e) == n {
				b.load(readers[e.Seq])
				r, err := hft.Open(ctx, b.d)
				b.must(err)
				b.must(r.Read(ctx, e, j))
			}
		}
		if !j.Done() || !bytes.Equal(buf.Bytes(), content(n, 50000)) {
			t.Errorf("object %d has %d bytes", n, buf.Len())
		}
	}
}

// TestWhatWasCommittedSurvivesEveryPowerCut. Method: a history of objects, commits and appends on one tape; the power goes at random commands, also in the middle of
// recovering. After each cut everything that was reported committed must be listed by the tape alone and read back, the scan must agree with the end of the
// tape, and writing goes on. HOLDFAST_SOAK=n multiplies the cuts.
func TestWhatWasCommittedSurvivesEveryPowerCut(t *testing.T) {
	runs := 40
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_SOAK")); err == nil {
		runs *= min(n, 100)
	}
	cuts, closed := 0, 0
	for seed := range uint64(runs) {
		b := newBed(t, emu.Options{Seed: seed})
		worm := seed%4 == 3
		b.load(b.media(emu.Media{WORM: worm}))
		rng := rand.New(rand.NewPCG(seed, 11))
		var known []hft.Entry
		w, err := hft.Create(ctx, b.d, label(1), nil, nil)
		b.must(err)
		n := uint64(0)
		for range 25 {
			do := []emu.Action{emu.CutBefore, emu.CutAfter}[rng.IntN(2)]
			b.lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: emu.AnyOp, Skip: rng.IntN(60), Do: do})
			for err == nil {
				if err = w.Put(ctx, stream(n, int(n%7)*3000)); err == nil {
					n++
				}
				if err == nil && rng.IntN(3) == 0 {
					var fresh []hft.Entry
					if fresh, err = w.Commit(ctx); err == nil {
						known = append(known, fresh...)
					}
				}
			}
			cuts++
			for try := 0; ; try++ { // recovering is cut off too, by the same fault's successors
				if try == 0 {
					b.lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: emu.AnyOp, Skip: rng.IntN(100), Do: emu.CutBefore})
				}
				if err = b.d.Ready(ctx); err == nil {
					w, err = hft.Append(ctx, b.d, label(1), nil, known)
				}
				if err == nil || worm && errors.Is(err, hft.ErrNextTape) {
					break
				}
				if cuts++; try > 20 {
					t.Fatalf("seed %d: append: %v", seed, err)
				}
			}
			if err != nil { // a write-once tape without its end-of-data mark takes no more
				closed++
				break
			}
			have := w.Objects()
			if len(have) < len(known) || !slices.Equal(have[:len(known)], known) {
				t.Fatalf("seed %d: of %d committed objects the tape lists %d", seed, len(known), len(have))
			}
			known = have // what came through although nobody was told is committed from now on
			n = uint64(1)
			for _, e := range known {
				n = max(n, number(e)+1)
			}
		}
		b.lib.Peace()
		b.must(b.d.Ready(ctx))
		r, err := hft.Open(ctx, b.d)
		b.must(err)
		f, err := r.Scan(ctx)
		b.must(err)
		if w == nil && len(f.Objects) > len(known) && slices.Equal(f.Objects[:len(known)], known) { // closed, and the last commit came through
			known = f.Objects
		}
		if f.Damage != nil || f.Suspect || !slices.Equal(f.Objects, known) {
			t.Fatalf("seed %d: the scan finds %d of %d objects: %v", seed, len(f.Objects), len(known), f.Damage)
		}
		for _, e := range known {
			b.check(r, e, number(e), int(number(e)%7)*3000)
		}
	}
	t.Logf("%d power cuts, %d write-once tapes without an end", cuts, closed)
}

// TestAPassphraseIsEnoughForALostAppliance: the label gives the drive's key to who has the passphrase, and to nobody else; without it the drive refuses to read.
func TestAPassphraseIsEnoughForALostAppliance(t *testing.T) {
	b := newBed(t, emu.Options{})
	b.load(b.media(emu.Media{}))
	secret, err := seal.ReadPassphrase([]byte("correct horse battery staple\n"))
	b.must(err)
	ring := testRing(t, secret)
	l, key := label(1), bytes.Repeat([]byte{7}, 32)
	b.must(l.SealKey(ring, key))
	l.Block = 64 << 10
	w, err := hft.Create(ctx, b.d, l, &hft.Key{Bytes: key, Descriptor: l.Set[:]}, nil)
	b.must(err)
	b.must(w.Put(ctx, stream(1, 9000)))
	_, err = w.Commit(ctx)
	b.must(err)
	b.must(b.d.Unload(ctx))

	b.open() // another appliance
	r, err := hft.Open(ctx, b.d)
	b.must(err)
	if _, err := r.Tail(ctx); holdfast.KindOf(err) != holdfast.Permission && err != nil {
		t.Errorf("without the key: %v", err)
	}
	if err := r.Unlock(ctx, nil); holdfast.KindOf(err) != holdfast.Permission {
		t.Errorf("without a key: %v", err)
	}
	wrong, err := seal.ReadPassphrase([]byte("incorrect horse battery staple\n"))
	b.must(err)
	got := r.Label()
	if _, err := got.OpenKey(wrong); holdfast.KindOf(err) != holdfast.Permission {
		t.Errorf("a wrong passphrase: %v", err)
	}
	again, err := got.OpenKey(secret)
	b.must(err)
	b.must(r.Unlock(ctx, &hft.Key{Bytes: again, Descriptor: got.Set[:]}))
	f, err := r.Tail(ctx)
	b.must(err)
	if len(f.Objects) != 1 {
		t.Fatalf("%+v", f)
	}
	b.check(r, f.Objects[0], 1, 9000)
}

// testRing is a keyring whose passphrase is cheap to try.
func testRing(t *testing.T, s seal.Secret) *seal.Ring {
	t.Helper()
	ring, err := seal.New(seal.Options{Pool: holdfast.PoolID{ID: id(9)}, Kind: seal.Passphrase, Secret: s, Cost: seal.Cost{Passes: 1, KiB: 64, Lanes: 1}, Now: time.Unix(1700000000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return ring
}
