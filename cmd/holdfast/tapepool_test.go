package main

import (
	"os"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/tape/iscsi/tgttest"
)

// Goal: an admin makes a tape pool on a library of other people, backs a VM up to it, loses the appliance, takes the pool over from the cartridges on another
// one, and restores. Method: the command line, with daemons and an agent, against tgt.
func TestTapePoolFromBackupToTakeOver(t *testing.T) {
	tgt := tgttest.Start(t, tgttest.Options{Drives: 2, Slots: 4, Media: []string{"HF0001L8", "HF0002L8", "OT0001L8"}, MiB: 256})
	s := newSite(t)
	make := []string{"vault", "--kind", "tape", "--library", "iscsi://" + tgt.Portal + "/" + tgttest.Target, "--barcodes", "HF", "--allocation", "continue", "--label-name", "vault"}
	s.ok(append([]string{"pool", "create"}, make...)...)
	s.ok("backup", "db", "--pool", "vault")
	s.ok("backup", "db", "--pool", "vault")
	var sets []api.Set
	s.json(&sets, "set", "list", "--pool", "vault")
	if len(sets) != 2 {
		t.Fatalf("%d sets are listed", len(sets))
	}
	other := tapeSite(t, nil, 0) // another appliance, which knows nothing
	var in api.Imported
	other.json(&in, append([]string{"pool", "import"}, make...)...)
	var again []api.Set
	other.json(&again, "set", "list", "--pool", "vault")
	if len(again) != 2 || again[0].ID != sets[0].ID || again[1].ID != sets[1].ID {
		t.Fatalf("sets before %+v, after %+v", sets, again)
	}
	for _, x := range again {
		out := other.path(x.ID + ".raw")
		other.ok("restore", "export", x.ID, "--disk", "0", "--format", "raw", "--output", out)
		b, err := os.ReadFile(out)
		other.must(err)
		if string(b) != s.raw {
			t.Errorf("set %s: restored bytes differ", x.ID)
		}
	}
}
