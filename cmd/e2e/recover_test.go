package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
)

// recoverCmd runs holdfast-recover. alone puts it into an empty network namespace, where that is allowed: not even loopback is up there.
func recoverCmd(alone bool, args ...string) (string, error) {
	name, line := filepath.Join(bin, "holdfast-recover"), args
	if alone && os.Getuid() == 0 {
		name, line = "unshare", append([]string{"-n", name}, args...)
	}
	cmd := exec.Command(name, line...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("holdfast-recover %s: %w\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), err
}

// A vault is a pool as the CLI makes it and as holdfast-recover finds it.
type vault struct {
	name   string
	create []string // flags of pool create
	find   []string // flags of holdfast-recover
	lose   []string // folders that are taken away before
	remote bool
	points map[string][]byte
}

// TestAnyTwoOfSixPathsMayBeLost is acceptance 4 of "Every disk and every bucket" as an admin meets it: of a pool striped 4+2 every one of the 15 pairs of folders is left out, and
// holdfast-recover restores every point in time, identically. (The appliance's own reader is taken through the pairs in pools/dedup.)
func TestAnyTwoOfSixPathsMayBeLost(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	create, paths := []string{"pool", "create", "six", "--kind", "dedup", "--stripe", "4+2"}, []string(nil)
	for i := range 6 {
		paths = append(paths, filepath.Join(s.dir, fmt.Sprintf("six%d", i)))
		create = append(create, "--path", paths[i])
	}
	s.cli(create...)
	k := &kindOfPool{name: "six", disk: s.newVM(rng, "db", 8<<20)[0], points: map[string][]byte{}}
	for range 2 {
		k.back(s)
		k.disk.write(rng, 4, 128<<10)
	}
	s.daemon.stop()
	pairs := 0
	for a := range paths {
		for b := range a {
			pairs++
			var find []string
			for i, p := range paths {
				if i != a && i != b {
					find = append(find, "--path", p)
				}
			}
			for id, truth := range k.points {
				out := filepath.Join(s.dir, "back.raw")
				if _, err := recoverCmd(true, append([]string{"restore", id, "--disk", "0", "--format", "raw", "--output", out}, find...)...); err != nil {
					t.Fatalf("without %d and %d: %v", a, b, err)
				}
				same(t, out, truth)
				if err := os.Remove(out); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if pairs != 15 {
		t.Errorf("%d pairs", pairs)
	}
	if _, err := recoverCmd(true, "list", "--path", paths[0], "--path", paths[2], "--path", paths[5]); err == nil {
		t.Error("three of six were enough")
	}
}

// TestRecoverNeedsNeitherDaemonNorNetwork backs one VM up to a pool of each kind, twice, kills the appliance, takes its data folder away, and
// restores everything with the one static binary, folders in an empty network namespace.
func TestRecoverNeedsNeitherDaemonNorNetwork(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	server := s3test.Start(t)
	dir := func(name string) string { return filepath.Join(s.dir, name) }
	for name, text := range map[string]string{"access": server.AccessKey, "secret": server.SecretKey, "ca.pem": string(server.CA.PEM)} {
		if err := os.WriteFile(dir(name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bucket := s3store.Config{Endpoint: server.URL, Bucket: "backups", Region: "us-east-1", Style: s3store.PathStyle,
		AccessKey: s3store.Secret(server.AccessKey), SecretKey: s3store.Secret(server.SecretKey), CA: server.CA.PEM}
	for _, name := range []string{"backups", "one", "two", "three"} {
		bucket.Bucket = name
		if err := s3store.MakeBucket(t.Context(), bucket, false); err != nil {
			t.Fatal(err)
		}
	}
	reach := func(prefix string, buckets ...string) []string {
		args := []string{"--endpoint", server.URL, "--prefix", prefix, "--access-key-file", dir("access"), "--secret-key-file", dir("secret"),
			"--ca", dir("ca.pem"), "--bucket-style", "path", "--region", "us-east-1"}
		for _, b := range buckets {
			args = append(args, "--bucket", b)
		}
		return args
	}
	s3, three := reach("hf", "backups"), reach("hf", "one", "two", "three")
	var stripe []string
	for i := range 6 {
		stripe = append(stripe, "--path", dir(fmt.Sprintf("d%d", i)))
	}
	vaults := []*vault{
		{name: "deep", create: []string{"--kind", "dedup", "--path", dir("deep")}, find: []string{"--path", dir("deep")}},
		{name: "closed", create: []string{"--kind", "dedup", "--path", dir("closed"), "--encrypt", "--key-file", dir("closed.key")},
			find: []string{"--path", dir("closed"), "--key-file", dir("closed.key")}},
		{name: "plain", create: []string{"--kind", "standard", "--path", dir("p1"), "--path", dir("p2")}, find: []string{"--path", dir("p2"), "--path", dir("p1")}},
		{name: "striped", create: append([]string{"--kind", "dedup", "--stripe", "4+2"}, stripe...), find: stripe, lose: []string{dir("d0"), dir("d3")}},
		{name: "cloud", create: append([]string{"--kind", "object"}, s3...), find: s3, remote: true},
		{name: "clouds", create: append([]string{"--kind", "object", "--stripe", "2+1"}, three...), find: three, lose: []string{filepath.Join(server.Root, "two")}, remote: true},
	}
	d := s.newVM(rng, "db", 48<<20)[0]
	for _, v := range vaults {
		s.cli(append([]string{"pool", "create", v.name}, v.create...)...)
		v.points = map[string][]byte{}
		for range 2 {
			d.write(rng, 6, 128<<10)
			s.cli("backup", "db", "--pool", v.name)
			for _, x := range s.sets("--pool", v.name) {
				if v.points[x.ID] == nil {
					v.points[x.ID] = bytes.Clone(d.truth)
				}
			}
		}
	}
	for _, secret := range []string{server.SecretKey} {
		if out := s.cli("pool", "show", "cloud") + s.cli("pool", "list", "--json"); strings.Contains(out, secret) {
			t.Errorf("the secret key is shown:\n%s", out)
		}
	}
	s.agent.stop()
	s.daemon.kill()
	if err := os.RemoveAll(s.data); err != nil {
		t.Fatal(err)
	}
	for _, v := range vaults {
		t.Run(v.name, func(t *testing.T) { v.restore(t, s.dir) })
	}
	t.Run("damage is named", func(t *testing.T) { damagedRecover(t, s.dir, vaults[0]) })
}

// restore lists a vault and restores every point, raw and as VHDX.
func (v *vault) restore(t *testing.T, dir string) {
	for _, f := range v.lose {
		if err := os.RemoveAll(f); err != nil {
			t.Fatal(err)
		}
	}
	out, err := recoverCmd(!v.remote, append([]string{"list", "--json"}, v.find...)...)
	if err != nil {
		t.Fatal(err)
	}
	var l struct {
		Sets []struct {
			ID string `json:"id"`
			VM string `json:"vm"`
		} `json:"sets"`
	}
	unmarshal(t, out, &l)
	if len(l.Sets) != len(v.points) {
		t.Fatalf("%d sets are listed, want %d:\n%s", len(l.Sets), len(v.points), out)
	}
	for _, x := range l.Sets {
		raw, vhdx := filepath.Join(dir, "back.raw"), filepath.Join(dir, "back.vhdx")
		for _, f := range []string{raw, vhdx} {
			args := append([]string{"restore", x.ID, "--disk", "0", "--format", strings.TrimPrefix(filepath.Ext(f), "."), "--output", f}, v.find...)
			if _, err := recoverCmd(!v.remote, args...); err != nil {
				t.Fatal(err)
			}
		}
		same(t, raw, v.points[x.ID])
		foreign(t, "qemu-img", "check", "-f", "vhdx", vhdx)
		foreign(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", vhdx, raw)
		for _, f := range []string{raw, vhdx} {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// damagedRecover spoils the largest container and expects to hear its name.
func damagedRecover(t *testing.T, dir string, v *vault) {
	var largest string
	var size int64
	err := filepath.Walk(filepath.Join(dir, "deep", "containers"), func(name string, info os.FileInfo, err error) error {
		if err == nil && info.Size() > size {
			largest, size = name, info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(largest)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b[len(b)/4 : len(b)/2] {
		b[len(b)/4+i] ^= 0x55
	}
	if err := os.WriteFile(largest, b, 0o600); err != nil {
		t.Fatal(err)
	}
	named := false
	for id := range v.points {
		out := filepath.Join(dir, "spoilt.raw")
		_, err := recoverCmd(true, append([]string{"restore", id, "--output", out}, v.find...)...)
		if err == nil {
			same(t, out, v.points[id])
			continue
		}
		named = named || strings.Contains(err.Error(), filepath.Base(largest)) && strings.Contains(err.Error(), "exit status 7")
		if left, _ := filepath.Glob(out + "*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if !named {
		t.Errorf("nobody named %s", largest)
	}
}
