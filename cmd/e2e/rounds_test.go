package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestThirtyRoundsOfForeignWrites is acceptance 3: 30 rounds of foreign writes over NBD, an incremental after each; all 31 points
// restore identically; the agent reads little more than what changed; 15 sets deleted and collected: the others still
// restore, and space is given back.
func TestThirtyRoundsOfForeignWrites(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	d := s.newVM(rng, "db", 96<<20)[0]
	points := map[string][]byte{}
	first := s.backup("db")
	if first.Kind != "full" {
		t.Fatalf("the first set is %s", first.Kind)
	}
	points[first.ID] = bytes.Clone(d.truth)
	var read, changed int64
	for round := range times(30) {
		ext := d.write(rng, 1+rng.IntN(12), 256<<10)
		x := s.backup("db")
		if x.Kind != "incremental" || x.Disks[0].Reason != "" {
			t.Fatalf("round %d: a %s set, reason %q", round, x.Kind, x.Disks[0].Reason)
		}
		// Tracking answers in 32 KiB units and the agent reads whole 4 KiB blocks: both edges of an extent may grow by one unit.
		if edge := int64(len(ext)) * 2 * 32 << 10; x.Read > ext.Total()*12/10+edge {
			t.Errorf("round %d: read %d bytes for %d changed in %d extents", round, x.Read, ext.Total(), len(ext))
		}
		read, changed = read+x.Read, changed+ext.Total()
		points[x.ID] = bytes.Clone(d.truth)
	}
	t.Logf("%d points; read %d KiB for %d KiB changed", len(points), read>>10, changed>>10)
	all := s.sets("--vm", "db")
	if len(all) != len(points) {
		t.Fatalf("%d sets listed, %d made", len(all), len(points))
	}
	for id, truth := range points {
		s.export(id, 0, truth)
	}
	before := s.poolBytes()
	for _, i := range rng.Perm(len(all))[:15] {
		s.cli("set", "delete", all[i].ID, "--yes")
		delete(points, all[i].ID)
	}
	t.Logf("gc: %s", s.cli("pool", "gc", "main", "--json"))
	s.cli("pool", "gc", "main")
	after := s.poolBytes()
	t.Logf("pool: %d KiB before, %d KiB after 15 of %d sets went", before>>10, after>>10, len(all))
	if after >= before {
		t.Errorf("no space was given back: %d bytes before, %d after", before, after)
	}
	for id, truth := range points {
		s.export(id, 0, truth)
	}
	s.cli("pool", "verify", "main")
	if left := s.sets("--vm", "db"); len(left) != len(points) {
		t.Errorf("%d sets are left, want %d", len(left), len(points))
	}
}

// poolBytes returns what the pool takes on its medium, as the appliance says.
func (s *site) poolBytes() int64 {
	s.t.Helper()
	var p struct {
		Usage struct {
			Stored int64 `json:"stored"`
		} `json:"usage"`
	}
	s.json(&p, "pool", "show", "main")
	return p.Usage.Stored
}

// TestLabFaults is acceptance 4: under each fault of the host the backup succeeds with the right reason, sends only what
// differs, and restores identically.
func TestLabFaults(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	d := s.newVM(rng, "app", 64<<20)[0]
	s.backup("app")
	for _, c := range []struct {
		fault, reason string
		fails         bool
	}{
		{fault: "tracking-lost", reason: "tracking-lost"},
		{fault: "id-unknown", reason: "tracking-id-unknown"},
		{fault: "wide-ranges"},
		{fault: "slow-merge=2s"},
		{fault: "app-consistency-failure"},
		{fault: "checkpoint-failure", fails: true},
	} {
		t.Run(c.fault, func(t *testing.T) {
			ext := d.write(rng, 5, 128<<10)
			agentCmd(t, "lab", "fault", s.lab, "app", c.fault)
			if c.fails {
				out, err := s.try("backup", "app", "--pool", "main")
				if err == nil {
					t.Fatalf("a backup without a checkpoint succeeded:\n%s", out)
				}
				if !strings.Contains(err.Error(), "checkpoint") {
					t.Errorf("the error does not speak of the checkpoint: %v", err)
				}
			}
			x := s.backup("app")
			if got := x.Disks[0].Reason; got != c.reason {
				t.Errorf("reason %q, want %q", got, c.reason)
			}
			if limit := ext.Total() + int64(len(ext))*2*(256<<10) + 1<<20; x.Sent > limit {
				t.Errorf("sent %d bytes for %d changed", x.Sent, ext.Total())
			}
			if strings.HasPrefix(c.fault, "app-") && (x.Consistency != "crash" || x.Note == "") {
				t.Errorf("consistency %q, note %q", x.Consistency, x.Note)
			}
			s.export(x.ID, 0, d.truth)
		})
	}
	t.Run("disk-resized", func(t *testing.T) {
		agentCmd(t, "lab", "resize", s.lab, "app", "0", "80M")
		d.truth = append(d.truth, make([]byte, 16<<20)...)
		d.write(rng, 3, 128<<10)
		x := s.backup("app")
		if got := x.Disks[0].Reason; got != "disk-resized" {
			t.Errorf("reason %q", got)
		}
		s.export(x.ID, 0, d.truth)
	})
	t.Run("checkpoint-reverted", func(t *testing.T) {
		agentCmd(t, "lab", "checkpoint", s.lab, "app")
		at := bytes.Clone(d.truth)
		d.write(rng, 3, 128<<10)
		s.backup("app")
		agentCmd(t, "lab", "revert", s.lab, "app")
		copy(d.truth, at)
		x := s.backup("app")
		if got := x.Disks[0].Reason; got != "checkpoint-reverted" {
			t.Errorf("reason %q", got)
		}
		s.export(x.ID, 0, d.truth)
	})
	t.Run("disk-swapped", func(t *testing.T) {
		other := s.newVM(rng, "donor", 64<<20)[0]
		agentCmd(t, "lab", "swap", s.lab, "app", "0", filepath.Join(s.dir, "donor-0.vhdx"))
		x := s.backup("app")
		if got := x.Disks[0].Reason; got != "new-disk" {
			t.Errorf("reason %q", got)
		}
		s.export(x.ID, 0, other.truth)
	})
}

// TestCatalogRebuild is acceptance 7: the catalog's folder is deleted; a rebuild brings the same listing back and restores pass.
func TestCatalogRebuild(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	disks := s.newVM(rng, "web", 32<<20, 16<<20)
	points := map[string][2][]byte{}
	for range 4 {
		x := s.backup("web")
		points[x.ID] = [2][]byte{bytes.Clone(disks[0].truth), bytes.Clone(disks[1].truth)}
		disks[0].write(rng, 4, 128<<10)
		disks[1].write(rng, 2, 64<<10)
	}
	want := s.cli("set", "list", "--json")
	s.agent.stop()
	s.daemon.stop()
	if err := os.RemoveAll(filepath.Join(s.data, "catalog")); err != nil {
		t.Fatal(err)
	}
	s.startDaemon()
	s.cli(append([]string{"pool", "import", "main"}, s.place...)...)
	s.cli("catalog", "rebuild")
	if got := s.cli("set", "list", "--json"); got != want {
		t.Errorf("the listing changed:\n%s\nwant\n%s", got, want)
	}
	for id, truth := range points {
		s.export(id, 0, truth[0])
		s.export(id, 1, truth[1])
	}
}

// TestCloneCostsLittle is the first half of acceptance 10: a cloned VM transfers and stores under 2 % of its size.
func TestCloneCostsLittle(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	d := s.newVM(rng, "gold", 256<<20)[0]
	d.write(rng, 20, 4<<20)
	s.backup("gold")
	agentCmd(t, "lab", "clone", s.lab, "gold", "silver")
	s.waitVM("silver")
	before := s.poolBytes()
	x := s.backup("silver")
	grown := s.poolBytes() - before
	t.Logf("clone: %d KiB read, %d KiB sent, %d KiB stored, pool grown by %d KiB", x.Read>>10, x.Sent>>10, x.Stored>>10, grown>>10)
	if limit := x.Logical / 50; x.Sent > limit || x.Stored > limit {
		t.Errorf("sent %d, stored %d bytes of %d", x.Sent, x.Stored, x.Logical)
	}
	s.export(x.ID, 0, d.truth)
}
