package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/tape/care"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/iscsi/tgttest"
	"github.com/holdfast-backup/holdfast/tape/library"
	"github.com/holdfast-backup/holdfast/tape/ltfs"
)

// tapeSite is a daemon, without hosts or pools, that can reach an emulated library at emu:lib.
func tapeSite(t *testing.T, now func() *emu.Library, drives int) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	s.data = s.path("data")
	c := appliance.Config{Data: s.data, Listen: "127.0.0.1:0", Version: "test", TapeSchemes: map[string]library.Opener{
		"emu": func(ctx context.Context, _ library.Address, _ library.Options) (u library.Units, err error) {
			for i := -1; i < drives; i++ {
				x, err := library.Look(ctx, now().Connect("a", emu.Unit(i)), "emulated")
				if err != nil {
					return u, err
				}
				u.List = append(u.List, x)
			}
			return u, nil
		}}}
	d, err := appliance.Start(context.Background(), c)
	s.must(err)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Goal: an admin finds a library that other people made, labels, looks at, tests with, exports, imports and erases a cartridge, and nothing is lost
// that was not shown before. Method: the command line against a daemon that speaks iSCSI to tgt.
func TestTapeCommandsOnALibraryOfOtherPeople(t *testing.T) {
	tgt := tgttest.Start(t, tgttest.Options{Drives: 2, Slots: 4, Media: []string{"HF0001L8", "HF0002L8"}, MiB: 256, User: "alice", Secret: "secret-of-alice"})
	s := tapeSite(t, nil, 0)
	secret := s.path("secret")
	s.must(os.WriteFile(secret, []byte("secret-of-alice\n"), 0o600))
	address := "iscsi://" + tgt.Portal + "/" + tgttest.Target + "?user=alice&secret-file=" + secret
	var ds []api.TapeDevice
	s.json(&ds, "tape", "library", "scan", address)
	kinds := map[string]int{}
	for _, d := range ds {
		kinds[d.Kind]++
	}
	if kinds["changer"] != 1 || kinds["drive"] != 2 {
		t.Errorf("%+v", ds)
	}
	if out := s.ok("tape", "library", "add", "lib", address); !strings.Contains(out, "2 drives") {
		t.Errorf("%s", out)
	}
	s.fails(cli.Failed, "already", "tape", "library", "add", "lib2", address)
	s.fails(cli.NotFound, "nope", "tape", "drive", "list", "nope")
	if out := s.ok("tape", "library", "list") + s.ok("tape", "library", "show", "lib") + s.ok("tape", "media", "list", "lib"); strings.Count(out, "HF0001L8") != 2 || strings.Contains(out, "secret-of-alice") {
		t.Errorf("%s", out)
	}
	s.ok("tape", "media", "label", "lib", "HF0001L8")
	s.fails(cli.Failed, "label", "tape", "media", "label", "lib", "HF0001L8")
	var m care.Medium
	s.json(&m, "tape", "media", "show", "lib", "HF0001L8")
	if m.Content != care.Own || m.ID == "" || m.Label != "HF0001L8" {
		t.Errorf("%+v", m)
	}
	s.fails(cli.Usage, m.ID, "tape", "media", "erase", "lib", "HF0001L8") // no --yes: it says what would be lost, and nothing is
	var again care.Medium
	if s.json(&again, "tape", "media", "show", "lib", "HF0001L8", "--drive", "2"); again.ID != m.ID {
		t.Errorf("%+v", again)
	}
	if out := s.ok("tape", "media", "erase", "lib", "HF0001L8", "--yes"); !strings.Contains(out, "blank") {
		t.Errorf("%s", out)
	}
	if out := s.ok("tape", "drive", "test", "lib", "1", "--scratch", "HF0001L8"); !strings.Contains(out, "64.0 MiB written") || !strings.Contains(out, "0 blocks differ") {
		t.Errorf("%s", out)
	}
	s.ok("tape", "media", "export", "lib", "HF0001L8")
	if out := s.ok("tape", "media", "import", "lib"); !strings.Contains(out, "1 cartridge imported") {
		t.Errorf("%s", out)
	}
	s.fails(cli.Usage, "LTFS", "tape", "export-dir", "lib", "HF0002L8", s.path("out")) // blank
	if out := s.ok("tape", "library", "scan", "lib"); !strings.Contains(out, "HF0002L8") {
		t.Errorf("%s", out)
	}
	s.ok("tape", "library", "remove", "lib")
	s.fails(cli.NotFound, "lib", "tape", "library", "show", "lib")
}

// Goal: what only better drives can do. Method: the command line against a daemon with an emulated library.
func TestTapeCommandsOnAnEmulatedLibrary(t *testing.T) {
	e := emu.New(emu.Options{Drives: 1, Slots: 4, Exports: 1})
	for i, b := range []string{"HF0001L5", "HF0002L5"} {
		e.Add(i, emu.Media{Barcode: b, Capacity: 3 << 30})
	}
	e.Add(3, emu.Media{Barcode: "CLN001L1", Cleaning: 5})
	other := e
	s := tapeSite(t, func() *emu.Library { return other }, 1)
	s.ok("tape", "library", "add", "lib", "emu:lib")
	var drives []care.Drive
	if s.json(&drives, "tape", "drive", "list", "lib"); len(drives) != 1 || drives[0].Serial == "" {
		t.Fatalf("%+v", drives)
	}
	e.RequestCleaning(0)
	var r care.Tested
	if s.json(&r, "tape", "drive", "test", "lib", drives[0].Serial); len(r.Alerts) != 1 {
		t.Errorf("%+v", r)
	}
	if out := s.ok("tape", "drive", "clean", "lib", drives[0].Serial); !strings.Contains(out, "CLN001L1") {
		t.Errorf("%s", out)
	}
	s.ok("tape", "media", "label", "lib", "HF0001L5", "--format", "ltfs", "--volume", "archive")
	s.ok("tape", "media", "label", "lib", "HF0002L5")
	dir := s.path("volume")
	var c, back ltfs.Copied
	s.json(&c, "tape", "export-dir", "lib", "HF0001L5", dir)
	w, err := ltfs.OpenDir(dir)
	s.must(err)
	vw, err := ltfs.NewWriter(t.Context(), w, "other software", time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC))
	s.must(err)
	s.must(vw.Add(t.Context(), "/file", bytes.NewReader(make([]byte, 1<<20)), time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)))
	s.must(vw.Sync(t.Context(), time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)))
	s.fails(cli.Failed, "label", "tape", "import-dir", "lib", "HF0002L5", dir)
	s.fails(cli.Usage, "lost", "tape", "import-dir", "lib", "HF0002L5", dir, "--overwrite")
	s.json(&back, "tape", "import-dir", "lib", "HF0002L5", dir, "--overwrite", "--yes")
	var m care.Medium
	if s.json(&m, "tape", "media", "show", "lib", "HF0002L5"); m.Content != care.LTFS || m.Files != 1 || m.ID != c.UUID || back.UUID != c.UUID || len(m.Problems) > 0 {
		t.Errorf("%+v, %+v", m, back)
	}
	s.fails(cli.Failed, "empty", "tape", "export-dir", "lib", "HF0002L5", filepath.Dir(dir))

	// Somebody else's library at the same address is not taken for ours.
	other = emu.New(emu.Options{Drives: 1, Slots: 4, Seed: 7})
	s.fails(cli.Usage, "serial number", "tape", "media", "list", "lib")
}

// TestTapeHelpStatesExitCodes for every command of the noun.
func TestTapeHelpStatesExitCodes(t *testing.T) {
	s := &site{t: t, dir: t.TempDir()}
	for _, args := range []string{"library add", "library list", "library show", "library scan", "library remove", "drive list", "drive test", "drive clean", "media list", "media show",
		"media label", "media erase", "media import", "media export", "export-dir", "import-dir"} {
		if out := s.ok(append(append([]string{"tape"}, strings.Fields(args)...), "--help")...); !strings.Contains(out, "Exit codes:") {
			t.Errorf("%s: %s", args, out)
		}
	}
}
