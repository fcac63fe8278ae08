package e2e

import (
	"bytes"
	"encoding/hex"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
)

// treeBytes sums up the files below a folder.
func treeBytes(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err == nil {
			sum += st.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// shown returns the files below the folders whose name or content has any of the words; how often is not said.
func shown(t *testing.T, words [][]byte, dirs ...string) (found []string) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(p)
			rel := strings.TrimPrefix(p, dir)
			for _, w := range words {
				if bytes.Contains(b, w) || strings.Contains(strings.ToLower(rel), strings.ToLower(string(w))) {
					found = append(found, hex.EncodeToString(w[:4])+" in "+rel)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// TestSealedPoolsShowNothing is acceptance 5 of "Every disk and every bucket": what was planted in a disk, the VM's name and the disk's are in no
// stored byte and no name of encrypted pools in a bucket, over buckets and over folders, before and after the keys were changed; then everything
// restores, by the appliance and by holdfast-recover with the new key. A pool that is not encrypted shows that the search finds what is there.
func TestSealedPoolsShowNothing(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	server := s3test.Start(t)
	const vm = "payroll-7"
	d := s.newVM(rng, vm, 16<<20)[0]
	token := make([]byte, 48) // that no codec makes smaller
	noise := rand.NewChaCha8([32]byte{7})
	plant := func() {
		uri, p := d.serve()
		_, _ = noise.Read(d.truth[4<<20 : 5<<20])
		for off := 4 << 20; off < 5<<20; off += 8 << 10 {
			copy(d.truth[off+100:], token)
		}
		part := filepath.Join(s.dir, "part")
		if err := os.WriteFile(part, d.truth[4<<20:5<<20], 0o600); err != nil {
			t.Fatal(err)
		}
		foreign(t, "qemu-io", "-f", "raw", "-c", "write -s "+part+" 4M 1M", "-c", "flush", uri)
		p.stop()
	}
	_, _ = noise.Read(token)
	words := [][]byte{token, []byte(vm)}
	in := bucketFlagsOf(t, server, s.dir, "one", "two-a", "two-b", "two-c", "open")
	find := func(place []string) []string { return append([]string(nil), place[2:]...) } // without --kind
	folders, at := []string{"--kind", "dedup", "--stripe", "4+2"}, filepath.Join(s.dir, "sealed")
	var paths []string
	for _, f := range strings.Split("abcdef", "") {
		paths = append(paths, "--path", filepath.Join(at, f))
	}
	bucket := func(name string) string { return filepath.Join(server.Root, name) }
	flags := func(more ...string) []string { return append(append([]string(nil), in...), more...) }
	three := []string{"--bucket", "two-a", "--bucket", "two-b", "--bucket", "two-c"}
	for _, c := range []struct {
		name        string
		place, find []string
		stored      []string
	}{
		{"bucket", flags("--bucket", "one"), find(flags("--bucket", "one")), []string{bucket("one")}},
		{"buckets", flags(append(three, "--stripe", "2+1")...), find(flags(three...)), []string{bucket("two-a"), bucket("two-b"), bucket("two-c")}},
		{"folders", append(folders, paths...), paths, []string{at}},
	} {
		t.Run(c.name, func(t *testing.T) {
			first, second := filepath.Join(s.dir, c.name+"-1.key"), filepath.Join(s.dir, c.name+"-2.key")
			s.cli(append([]string{"pool", "create", c.name, "--encrypt", "--key-file", first}, c.place...)...)
			points := map[string][]byte{}
			keep := func() {
				plant()
				x := s.backupTo(vm, c.name)
				points[x.ID] = bytes.Clone(d.truth)
				if found := shown(t, words, c.stored...); len(found) > 0 {
					t.Errorf("plaintext: %q", found)
				}
			}
			keep()
			s.cli("pool", "key", "rotate", c.name)
			keep()
			s.cli("pool", "key", "rotate", c.name, "--new-key-file", second, "--reencrypt")
			keep()
			s.cli("pool", "gc", c.name)
			s.cli("pool", "gc", c.name)
			if found := shown(t, words, c.stored...); len(found) > 0 {
				t.Errorf("plaintext after encrypting anew: %q", found)
			}
			s.cli("pool", "verify", c.name)
			s.restarted(func() {})
			for id, truth := range points {
				s.export(id, 0, truth)
				out := filepath.Join(s.dir, "recovered.raw")
				args := append([]string{"restore", id, "--disk", "0", "--format", "raw", "--output", out, "--key-file", second}, c.find...)
				if _, err := recoverCmd(c.name == "folders", args...); err != nil {
					t.Fatal(err)
				}
				same(t, out, truth)
				if err := os.Remove(out); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := recoverCmd(false, append([]string{"list", "--key-file", first}, c.find...)...); err == nil {
				t.Error("the key from before the rotation opens the pool")
			}
		})
	}
	s.cli(append([]string{"pool", "create", "open"}, flags("--bucket", "open")...)...)
	s.backupTo(vm, "open")
	if found := strings.Join(shown(t, words, bucket("open")), "; "); !strings.Contains(found, hex.EncodeToString(token[:4])) {
		t.Errorf("the search does not find what is there: %q", found)
	}
}

// TestBucketIsTriedOut runs the whole conformance suite beside a pool in a bucket by the command line; nothing of it is left behind.
func TestBucketIsTriedOut(t *testing.T) {
	s := newSite(t)
	server := s3test.Start(t)
	s.cli(append([]string{"pool", "create", "cloud"}, append(bucketFlagsOf(t, server, s.dir, "tried"), "--bucket", "tried", "--prefix", "pool")...)...)
	var r struct {
		Checks, Passed int
		Failed, Left   []any
	}
	s.json(&r, "pool", "check", "cloud")
	if r.Checks < 40 || r.Passed != r.Checks || len(r.Failed) > 0 || len(r.Left) > 0 {
		t.Errorf("%+v", r)
	}
	left, err := os.ReadDir(filepath.Join(server.Root, "tried"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		files := treeBytes(t, filepath.Join(server.Root, "tried", e.Name()))
		if e.Name() != "pool" && files > 0 {
			t.Errorf("%s is left with %d bytes", e.Name(), files)
		}
	}
	t.Logf("%d checks", r.Checks)
}

// TestLockedSetsStay is acceptance 3 of "Every disk and every bucket" by the command line: a set under Object Lock is not deleted, neither by the appliance nor by whoever has the
// bucket's keys; collecting takes nothing of it, and a pool that holds such sets is not deleted.
func TestLockedSetsStay(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	server := s3test.Start(t)
	flags := bucketFlagsOf(t, server, s.dir)
	c := s3store.Config{Endpoint: server.URL, Bucket: "locked", CA: server.CA.PEM, AccessKey: s3store.Secret(server.AccessKey), SecretKey: s3store.Secret(server.SecretKey)}
	if err := s3store.MakeBucket(t.Context(), c, true); err != nil {
		t.Fatal(err)
	}
	s.cli(append([]string{"pool", "create", "locked", "--bucket", "locked", "--object-lock", "compliance:2h"}, flags...)...)
	k := &kindOfPool{name: "locked", disk: s.newVM(rng, "db", 8<<20)[0], points: map[string][]byte{}}
	first := k.back(s)
	k.disk.write(rng, 3, 64<<10)
	k.back(s)
	if out, err := s.try("set", "delete", first.ID, "--yes"); err == nil || !strings.Contains(err.Error(), "kept until") {
		t.Errorf("delete: %v\n%s", err, out)
	}
	if out, err := s.try("pool", "delete", "locked", "--yes"); err == nil {
		t.Errorf("the pool was deleted:\n%s", out)
	}
	st, err := s3store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, folder := range []string{"sets", "containers"} {
		names, err := st.List(t.Context(), folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			tried++
			if err := st.Remove(t.Context(), n); holdfast.KindOf(err) != holdfast.Immutable {
				t.Errorf("with the bucket's keys %s: %v", n, err)
			}
		}
	}
	if err := st.Close(); err != nil || tried < 4 {
		t.Errorf("%d objects attacked: %v", tried, err)
	}
	s.cli("pool", "gc", "locked")
	s.cli("pool", "gc", "locked")
	for id, truth := range k.points {
		s.export(id, 0, truth)
	}
}
