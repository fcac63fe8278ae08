package e2e

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
)

// A kindOfPool is one pool of each kind, with a VM of its own and what its points in time must hold.
type kindOfPool struct {
	name   string
	place  []string
	disk   *disk
	points map[string][]byte
}

// kindsOfPools makes a pool of every kind on one site. Those in buckets share a server, each with a prefix of its own.
func kindsOfPools(s *site) []*kindOfPool {
	s.t.Helper()
	bucket := bucketFlags(s.t, s.pool)
	key := func(name string) []string {
		return []string{"--encrypt", "--key-file", filepath.Join(s.dir, name+".key")}
	}
	in := func(more ...string) []string { return append(append([]string(nil), bucket...), more...) }
	three := []string{"--bucket", "backup-a", "--bucket", "backup-b", "--bucket", "backup-c", "--stripe", "2+1"}
	folders := func(name string) []string {
		args := []string{"--kind", "dedup", "--stripe", "4+2"}
		for _, d := range strings.Split("abcdef", "") {
			args = append(args, "--path", filepath.Join(s.dir, name, d))
		}
		return args
	}
	kinds := []*kindOfPool{
		{name: "dedup", place: []string{"--kind", "dedup", "--path", filepath.Join(s.dir, "dedup")}},
		{name: "encrypted", place: append([]string{"--kind", "dedup", "--path", filepath.Join(s.dir, "encrypted")}, key("encrypted")...)},
		{name: "standard", place: []string{"--kind", "standard", "--path", filepath.Join(s.dir, "plain-a"), "--path", filepath.Join(s.dir, "plain-b")}},
		{name: "striped", place: folders("striped")},
		{name: "object", place: in("--bucket", "backups", "--prefix", "plain")},
		{name: "striped-object", place: in(append(three, "--prefix", "striped")...)},
		{name: "striped-object-encrypted", place: in(append(append(three, "--prefix", "sealed"), key("sealed")...)...)},
	}
	for _, k := range kinds {
		s.cli(append([]string{"pool", "create", k.name}, k.place...)...)
		k.points = map[string][]byte{}
	}
	return kinds
}

// back makes a set in the pool and keeps what it must hold.
func (k *kindOfPool) back(s *site) set {
	s.t.Helper()
	x := s.backupTo(k.disk.vm, k.name)
	k.points[x.ID] = bytes.Clone(k.disk.truth)
	return x
}

// TestEveryKindOfPool is the short form of acceptance 2–4 and 7 of "First light" on every kind of pool at once: rounds of foreign writes, faults of the
// host, sets deleted and collected, the catalog rebuilt from the pools alone. The long forms take HOLDFAST_POOL.
func TestEveryKindOfPool(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	kinds := kindsOfPools(s)
	for _, k := range kinds {
		k.disk = s.newVM(rng, "vm-"+k.name, 16<<20)[0]
		if !t.Run(k.name, func(t *testing.T) { k.life(t, s, rng) }) {
			return
		}
	}
	want := s.cli("set", "list", "--json")
	s.agent.stop()
	s.daemon.stop()
	if err := os.RemoveAll(filepath.Join(s.data, "catalog")); err != nil {
		t.Fatal(err)
	}
	s.startDaemon()
	for _, k := range kinds {
		s.cli(append([]string{"pool", "import", k.name}, k.place...)...)
	}
	s.cli("catalog", "rebuild")
	if got := s.cli("set", "list", "--json"); got != want {
		t.Errorf("the listing changed:\n%s\nwant\n%s", got, want)
	}
	for _, k := range kinds {
		for id, truth := range k.points {
			s.export(id, 0, truth)
		}
	}
}

// life is what a pool of the short form goes through.
func (k *kindOfPool) life(t *testing.T, s *site, rng *rand.Rand) {
	first := k.back(s)
	if strings.Contains(k.name, "object") {
		var runs []struct{ ID string }
		s.json(&runs, "run", "list", "--limit", "1")
		if log := s.cli("run", "log", runs[0].ID); !strings.Contains(log, "a GiB)") {
			t.Errorf("the log does not say how many requests the set took:\n%s", log)
		}
	}
	for round := range times(3) {
		ext := k.disk.write(rng, 1+rng.IntN(6), 128<<10)
		x := k.back(s)
		if edge := int64(len(ext)) * 2 * 32 << 10; x.Kind != "incremental" || x.Read > ext.Total()*12/10+edge {
			t.Errorf("round %d: a %s set, %d bytes read for %d changed", round, x.Kind, x.Read, ext.Total())
		}
	}
	for _, c := range []struct{ fault, reason string }{
		{"tracking-lost", "tracking-lost"}, {"id-unknown", "tracking-id-unknown"}, {"wide-ranges", ""}, {"checkpoint-failure", ""},
	} {
		ext := k.disk.write(rng, 3, 64<<10)
		agentCmd(t, "lab", "fault", s.lab, k.disk.vm, c.fault)
		if c.fault == "checkpoint-failure" {
			if out, err := s.try("backup", k.disk.vm, "--pool", k.name); err == nil || !strings.Contains(err.Error(), "checkpoint") {
				t.Errorf("a backup without a checkpoint: %v\n%s", err, out)
			}
		}
		x := k.back(s)
		if got := x.Disks[0].Reason; got != c.reason {
			t.Errorf("%s: reason %q", c.fault, got)
		}
		if limit := ext.Total() + int64(len(ext))*2*(256<<10) + 1<<20; x.Sent > limit || x.Sent > x.Logical/4 {
			t.Errorf("%s: sent %d bytes for %d changed", c.fault, x.Sent, ext.Total())
		}
	}
	s.cli("set", "delete", first.ID, "--yes")
	delete(k.points, first.ID)
	for range 2 {
		s.cli("pool", "gc", k.name)
	}
	for id, truth := range k.points {
		s.export(id, 0, truth)
	}
	s.cli("pool", "verify", k.name)
	for id, truth := range k.points {
		s.mounted(id, 0, truth)
		break
	}
	k.explained(t, s)
}

// explained looks whether the pool says where its bytes are, and whether that adds up.
func (k *kindOfPool) explained(t *testing.T, s *site) {
	var sp struct {
		Stored, Live, Pinned, Reclaimable, Records int64
		Waits                                      []struct{ Bytes int64 }
		VMs                                        []struct{ Name string }
	}
	s.json(&sp, "pool", "space", k.name, "--explain")
	waits := int64(0)
	for _, w := range sp.Waits {
		waits += w.Bytes
	}
	if sp.Live < 1<<20 || sp.Live+sp.Pinned+sp.Reclaimable+sp.Records != sp.Stored || waits < sp.Reclaimable-4096 || waits > sp.Reclaimable+4096 ||
		len(sp.VMs) != 1 || sp.VMs[0].Name != k.disk.vm {
		t.Errorf("%+v", sp)
	}
}

// TestLostPathIsReplacedWhileBackupsRun loses a folder of 4+2 and a bucket of 2+1, gives each another place by the command line while a backup runs, and
// then loses as many others as the stripe allows. Before that a flipped bit is found and healed by a verification.
func TestLostPathIsReplacedWhileBackupsRun(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	server := s3test.Start(t)
	var folders []string
	for _, d := range strings.Split("abcdef", "") {
		folders = append(folders, filepath.Join(s.dir, "stripe", d))
	}
	args := []string{"--kind", "dedup", "--stripe", "4+2"}
	for _, f := range folders {
		args = append(args, "--path", f)
	}
	buckets := bucketFlagsOf(t, server, s.dir, "one", "two", "three", "four")
	at := func(b string) string { return filepath.Join(server.Root, b) }
	for _, c := range []struct {
		name     string
		place    []string
		old, new string   // as the pool calls them
		lost     string   // the old one's folder
		next     []string // folders of others, lost afterwards
		flip     string   // folder in which a bit flips
	}{
		{"folders", args, folders[1], filepath.Join(s.dir, "stripe", "new"), folders[1], []string{folders[0], folders[4]}, folders[2]},
		{"buckets", append(buckets, "--bucket", "one", "--bucket", "two", "--bucket", "three", "--stripe", "2+1"), "two", "four", at("two"), []string{at("three")}, at("one")},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.cli(append([]string{"pool", "create", c.name}, c.place...)...)
			k := &kindOfPool{name: c.name, points: map[string][]byte{}, disk: s.newVM(rng, "vm-"+c.name, 32<<20)[0]}
			k.back(s)
			k.disk.write(rng, 6, 1<<20)
			k.back(s)
			flipped, whole := flipBit(t, c.flip)
			s.cli("pool", "verify", c.name)
			if now, err := os.ReadFile(flipped); err != nil || !bytes.Equal(now, whole) {
				t.Errorf("%s was not healed: %v", flipped, err)
			}
			s.restarted(func() { remove(t, c.lost) })
			k.disk.write(rng, 12, 1<<20)
			truth := bytes.Clone(k.disk.truth)
			done := make(chan error, 1)
			go func() { _, err := s.try("backup", k.disk.vm, "--pool", c.name, "--full"); done <- err }()
			s.cli("pool", "set", c.name, "--replace-path", c.old+"="+c.new)
			if err := <-done; err != nil {
				t.Fatalf("backup beside the rebuild: %v", err)
			}
			for _, x := range s.sets("--vm", k.disk.vm) {
				if k.points[x.ID] == nil {
					k.points[x.ID] = truth
				}
			}
			if shown := s.cli("pool", "show", c.name, "--json"); !strings.Contains(shown, `"`+c.new+`"`) || strings.Contains(shown, `"`+c.old+`"`) {
				t.Errorf("the pool does not show its new path:\n%s", shown)
			}
			s.restarted(func() {
				for _, n := range c.next {
					remove(t, n)
				}
			})
			if len(k.points) != 3 {
				t.Errorf("%d points", len(k.points))
			}
			for id, truth := range k.points {
				s.export(id, 0, truth)
			}
		})
	}
}

// restarted stops the daemon, does something behind its back, and starts it again.
func (s *site) restarted(do func()) {
	s.t.Helper()
	s.daemon.stop()
	do()
	s.startDaemon()
	s.waitOnline("hv1")
}

func remove(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

// flipBit flips a bit in the middle of the largest file below a folder, and returns its name and what it was.
func flipBit(t *testing.T, dir string) (name string, whole []byte) {
	t.Helper()
	var size int64
	err := filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && strings.Contains(p, "containers") && info.Size() > size {
			name, size = p, info.Size()
		}
		return err
	})
	if err != nil || size == 0 {
		t.Fatalf("no container in %s: %v", dir, err)
	}
	if whole, err = os.ReadFile(name); err != nil {
		t.Fatal(err)
	}
	b := bytes.Clone(whole)
	b[len(b)/2] ^= 4
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b[len(b)/2:][:1], int64(len(b)/2)); err != nil {
		t.Fatal(err)
	}
	return name, whole
}
