package ltfs_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/ltfs"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

var (
	at      = time.Date(2024, 2, 29, 12, 0, 0, 5, time.UTC)
	options = ltfs.Options{Serial: "HF0001", Name: "holdfast", UUID: holdfast.ID{1, 2, 3, 15: 9}, Block: 4096, Creator: "Holdfast 1 - test", Now: at}
)

// blank is a tape with two partitions in a drive.
func blank(t *testing.T, seed uint64) (*emu.Library, *drive.Drive) {
	t.Helper()
	lib := emu.New(emu.Options{Drives: 1, Slots: 1, Seed: seed})
	lib.Add(0, emu.Media{Barcode: "HF0001L5", Capacity: 3 << 30})
	robot := lib.Connect("a", emu.Changer)
	for range 3 {
		_, _ = robot.Exec(ctx, scsi.Command{CDB: scsi.MoveMedium(0, emu.AddrSlot, emu.AddrDrive)}) // the first meets an attention
	}
	d, err := drive.Open(ctx, lib.Connect("a", emu.Drive(0)), drive.Options{})
	if err == nil {
		err = d.Ready(ctx)
	}
	if err == nil {
		err = d.Format(ctx, true, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	return lib, d
}

func content(n int) []byte {
	rng, p := rand.New(rand.NewPCG(uint64(n), 1)), make([]byte, n*n*700)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func line(p []byte) string {
	h := sha256.Sum256(p)
	return fmt.Sprintf("%d %s", len(p), hex.EncodeToString(h[:]))
}

// TestWhatIsWrittenReadsBackAndPassesTheCheck, on a drive and in the reference implementation's layout, over several syncs and openings.
func TestWhatIsWrittenReadsBackAndPassesTheCheck(t *testing.T) {
	dir, err := ltfs.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, d := blank(t, 1)
	for kind, m := range map[string]ltfs.Medium{"drive": d, "folder": dir} {
		must := func(err error) {
			if err != nil {
				t.Helper()
				t.Fatalf("%s: %v", kind, err)
			}
		}
		must(ltfs.Format(ctx, m, options))
		want := map[string]string{}
		for round := range 3 {
			w, err := ltfs.NewWriter(ctx, m, "Holdfast 1 - test", at)
			must(err)
			for i := range 4 {
				n := 4*round + i
				name := fmt.Sprintf("/holdfast/set-%d/c-%d.seg", round%2, n)
				must(w.Add(ctx, name, bytes.NewReader(content(n)), at))
				want[name] = line(content(n))
			}
			if err := w.Add(ctx, "/holdfast/set-0/c-0.seg", bytes.NewReader(nil), at); holdfast.KindOf(err) != holdfast.Exist {
				t.Errorf("%s: a file twice: %v", kind, err)
			}
			if err := w.Add(ctx, "/holdfast/a:b", bytes.NewReader(nil), at); holdfast.KindOf(err) != holdfast.Invalid {
				t.Errorf("%s: a name that others encode otherwise: %v", kind, err)
			}
			must(w.Sync(ctx, at))
			v, err := ltfs.Open(ctx, m)
			must(err)
			if got := listing(t, v); !maps.Equal(got, want) {
				t.Errorf("%s: found %v, want %v", kind, got, want)
			}
			if bad, err := v.Check(ctx); len(bad) > 0 || err != nil || v.Index.Generation != uint64(2+round) {
				t.Errorf("%s: check of generation %d: %q, %v", kind, v.Index.Generation, bad, err)
			}
		}
	}
}

// TestOurWriterGoesOnWithTheReferencesVolume: files are added to the volume that the reference implementation wrote, and none of its own changes.
func TestOurWriterGoesOnWithTheReferencesVolume(t *testing.T) {
	d := loaded(t, reference(t))
	w, err := ltfs.NewWriter(ctx, d, "Holdfast 1 - test", at)
	if err == nil {
		err = w.Add(ctx, "/dirA/ours", bytes.NewReader(content(3)), at)
	}
	if err == nil {
		err = w.Sync(ctx, at)
	}
	if err != nil {
		t.Fatal(err)
	}
	v, err := ltfs.Open(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	want := maps.Clone(wanted)
	want["/dirA/ours"] = line(content(3))
	if got := listing(t, v); !maps.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
	if bad, err := v.Check(ctx); len(bad) > 0 || err != nil {
		t.Errorf("check: %q, %v", bad, err)
	}
}

// TestASyncedFileSurvivesEveryPowerCut: cut at each command of adding and syncing in turn; the volume opens, every synced file reads, and what the crash left is repaired.
func TestASyncedFileSurvivesEveryPowerCut(t *testing.T) {
	repaired := 0
	for skip := range 40 {
		lib, d := blank(t, uint64(skip))
		if err := ltfs.Format(ctx, d, options); err != nil {
			t.Fatal(err)
		}
		w, err := ltfs.NewWriter(ctx, d, "Holdfast 1 - test", at)
		if err == nil {
			err = w.Add(ctx, "/one", bytes.NewReader(content(4)), at)
		}
		if err == nil {
			err = w.Sync(ctx, at)
		}
		if err != nil {
			t.Fatal(err)
		}
		lib.Inject(emu.Fault{Unit: emu.Drive(0), Op: emu.AnyOp, Skip: skip, Do: emu.CutAfter})
		if err = w.Add(ctx, "/two", bytes.NewReader(content(5)), at); err == nil {
			err = w.Sync(ctx, at)
		}
		synced := err == nil
		lib.Peace()
		if err := d.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		v, err := ltfs.Open(ctx, d)
		if err != nil {
			t.Fatalf("cut %d: %v", skip, err)
		}
		if len(v.Problems) > 0 {
			repaired++
		}
		if w, err = ltfs.NewWriter(ctx, d, "Holdfast 1 - test", at); err == nil {
			err = w.Add(ctx, "/three", bytes.NewReader(content(2)), at)
		}
		if err == nil {
			err = w.Sync(ctx, at)
		}
		if err != nil {
			t.Fatalf("cut %d: %v", skip, err)
		}
		if v, err = ltfs.Open(ctx, d); err != nil {
			t.Fatal(err)
		}
		bad, err := v.Check(ctx)
		got := listing(t, v)
		if len(bad) > 0 || err != nil || got["/one"] != line(content(4)) || got["/three"] != line(content(2)) || synced && got["/two"] != line(content(5)) {
			t.Errorf("cut %d, synced %v: %q, %v, %v", skip, synced, bad, err, got)
		}
	}
	if repaired == 0 {
		t.Error("no cut left anything to repair")
	}
	t.Logf("%d of 40 cuts left a volume to repair", repaired)
}
