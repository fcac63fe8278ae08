package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// mount starts a mount and returns its first URI, or folder, when it is ready.
func (s *site) mount(set string, args ...string) (uri string, p *proc) {
	s.t.Helper()
	p = spawn(s.t, "holdfast", append([]string{"--data", s.data, "mount", set}, args...)...)
	return strings.TrimPrefix(p.waitLine("ready ", 30*time.Second), "ready "), p
}

// mounted compares a disk of a set, mounted over NBD, with the truth.
func (s *site) mounted(id string, disk int, truth []byte) {
	s.t.Helper()
	uri, p := s.mount(id, "--disk", strconv.Itoa(disk), "--socket", filepath.Join(s.dir, "mount.sock"))
	out := filepath.Join(s.dir, "mounted.raw")
	foreign(s.t, "nbdcopy", uri, out)
	same(s.t, out, truth)
	if err := os.Remove(out); err != nil {
		s.t.Fatal(err)
	}
	p.stop()
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Errorf("a mount that was interrupted exits with %d:\n%s", code, p.stderr)
	}
}

// mounts lists the ids of the mounts.
func (s *site) mounts() (ids []string) {
	s.t.Helper()
	var ms []struct {
		ID string `json:"id"`
	}
	s.json(&ms, "mount", "list")
	for _, m := range ms {
		ids = append(ids, m.ID)
	}
	return ids
}

// guest makes a disk with a file system that has a file in a folder, and returns it with the file's content.
func guest(t *testing.T, rng *rand.Rand, dir string) (raw string, content []byte) {
	t.Helper()
	content = make([]byte, 3<<20+777)
	fill(rng, content)
	tree := filepath.Join(dir, "tree", "home", "ada")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "letter.bin"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	raw = filepath.Join(dir, "guest.raw")
	foreign(t, "mkfs.ext4", "-q", "-d", filepath.Join(dir, "tree"), raw, "48M")
	return raw, content
}

// TestASetIsUsedWithoutARestore lifts the seed's limit "no mount recovery": the disks of a set are used at once, over NBD and as files, by foreign
// programs; what is written to an overlay never reaches the pool; the set is held while it is mounted and let go of however the mount ends.
func TestASetIsUsedWithoutARestore(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	raw, content := guest(t, rng, s.dir)
	truth, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	vhdx, other := filepath.Join(s.dir, "guest.vhdx"), make([]byte, 24<<20)
	foreign(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic", raw, vhdx)
	fill(rng, other[5<<20:9<<20])
	fill(rng, other[20<<20+4096:21<<20])
	writeSparse(t, filepath.Join(s.dir, "other.raw"), other)
	foreign(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic", filepath.Join(s.dir, "other.raw"), filepath.Join(s.dir, "other.vhdx"))
	agentCmd(t, "lab", "create", s.lab, "web", "--disk", vhdx, "--disk", filepath.Join(s.dir, "other.vhdx"))
	s.waitVM("web")
	id := s.backup("web").ID

	s.mounted(id, 0, truth)
	s.mounted(id, 1, other)
	t.Run("an overlay takes writes and the pool does not", func(t *testing.T) { overlaid(t, s, id, raw, truth) })
	t.Run("files", func(t *testing.T) { asFiles(t, s, rng, id, truth, other, content) })
	t.Run("the set is held", func(t *testing.T) { held(t, s, id) })
	t.Run("the daemon is killed", func(t *testing.T) {
		_, p := s.mount(id, "--listen", "127.0.0.1:0")
		s.daemon.kill()
		select {
		case <-p.done:
		case <-time.After(30 * time.Second):
			t.Fatal("the mount goes on without its daemon")
		}
		if code := p.cmd.ProcessState.ExitCode(); code == 0 || !strings.Contains(p.stderr.String(), "daemon") {
			t.Errorf("it exits with %d and says\n%s", code, p.stderr)
		}
		s.startDaemon()
		if left := s.mounts(); len(left) > 0 {
			t.Errorf("the new daemon lists %v", left)
		}
	})
	s.mounted(id, 0, truth)
	s.cli("set", "delete", id, "--yes")
}

// overlaid lets qemu write over a disk.
func overlaid(t *testing.T, s *site, id, raw string, truth []byte) {
	scratch := filepath.Join(s.dir, "scratch")
	if err := os.Mkdir(scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	uri, p := s.mount(id, "--socket", filepath.Join(s.dir, "w.sock"), "--writable", "--scratch", scratch)
	foreign(t, "qemu-io", "-f", "raw", "-c", "write -P 0xa5 1000001 70001", "-c", "write -z 8M 1M", "-c", "flush", "-c", "read -P 0xa5 1000001 70001", "-c", "read -P 0 8M 1M", uri)
	want := bytes.Clone(truth)
	copy(want[1000001:], bytes.Repeat([]byte{0xa5}, 70001))
	clear(want[8<<20 : 9<<20])
	out := filepath.Join(s.dir, "written.raw")
	foreign(t, "nbdcopy", uri, out)
	same(t, out, want)
	p.kill() // nothing is left of it, even so
	if names, err := os.ReadDir(scratch); err != nil || len(names) > 0 {
		t.Errorf("left in the scratch folder: %v, %v", names, err)
	}
	uri, p = s.mount(id, "--listen", "127.0.0.1:0", "--disk", "0")
	if out := foreign(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, uri); !strings.Contains(out, "identical") {
		t.Error(out)
	}
	if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 4096", uri).CombinedOutput(); err == nil && !bytes.Contains(out, []byte("ermitted")) {
		t.Errorf("a set was written to:\n%s", out)
	}
	p.stop()
}

// asFiles reads the disks as files of a folder.
func asFiles(t *testing.T, s *site, rng *rand.Rand, id string, truth, other, content []byte) {
	dir := filepath.Join(s.dir, "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, p := s.mount(id, "--dir", dir)
	names, err := filepath.Glob(filepath.Join(dir, "*.raw"))
	if err != nil || len(names) != 2 {
		t.Fatalf("files: %v, %v", names, err)
	}
	for no, want := range [][]byte{truth, other} {
		name := names[no]
		if !strings.Contains(filepath.Base(name), []string{"guest", "other"}[no]) {
			t.Fatalf("disk %d is %s", no, name)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			off, n := randExtent(rng, int64(len(want)), 9000)
			b := make([]byte, n)
			if _, err := f.ReadAt(b, off); err != nil || !bytes.Equal(b, want[off:off+n]) {
				t.Fatalf("%s, %d bytes at %d: %v, or they differ", name, n, off, err)
			}
		}
		f.Close()
		same(t, name, want)
	}
	if sum := strings.Fields(foreign(t, "sha256sum", names[0]))[0]; sum != fmt.Sprintf("%x", sha256.Sum256(truth)) {
		t.Error("sha256sum differs")
	}
	facts, err := os.ReadFile(filepath.Join(dir, "set.json"))
	if err != nil || !strings.Contains(string(facts), id) || !json.Valid(facts) {
		t.Errorf("set.json: %v\n%s", err, facts)
	}
	if err := os.WriteFile(names[0], nil, 0o600); err == nil {
		t.Error("a file of a set was written to")
	}
	guestFile(t, s.dir, names[0], content)
	p.kill() // the folder is given back by the watcher
	s.eventually(20*time.Second, "the folder is given back", func() bool {
		names, err := os.ReadDir(dir)
		return err == nil && len(names) == 0
	})
	s.eventually(30*time.Second, "the killed mount holds nothing", func() bool { return len(s.mounts()) == 0 })
}

// guestFile gets one file back from the file system in an image: through a loop device where this machine has them, else with debugfs.
func guestFile(t *testing.T, dir, image string, content []byte) {
	t.Helper()
	loop, got := filepath.Join(dir, "loop"), filepath.Join(dir, "letter.bin")
	if err := os.MkdirAll(loop, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop,ro,noload", image, loop).CombinedOutput(); err == nil {
		same(t, filepath.Join(loop, "home", "ada", "letter.bin"), content)
		foreign(t, "umount", loop)
	} else {
		t.Logf("no loop devices here: %s", out)
	}
	foreign(t, "debugfs", "-R", "dump /home/ada/letter.bin "+got, image)
	same(t, got, content)
}

// held tries to get rid of a set that is mounted.
func held(t *testing.T, s *site, id string) {
	uri, p := s.mount(id, "--listen", "127.0.0.1:0", "--disk", "1")
	ids := s.mounts()
	if len(ids) != 1 {
		t.Fatalf("mounts: %v", ids)
	}
	if out, err := s.try("set", "delete", id, "--yes"); err == nil || !strings.Contains(err.Error(), "mount end "+ids[0]) {
		t.Errorf("a mounted set is deleted: %v\n%s", err, out)
	}
	if out, err := s.try("pool", "delete", "main", "--forget", "--yes"); err == nil || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("the pool of a mounted set is forgotten: %v\n%s", err, out)
	}
	if out := s.cli("mount", "list"); !strings.Contains(out, "web") || !strings.Contains(out, ids[0]) {
		t.Error(out)
	}
	foreign(t, "nbdinfo", "--size", uri)
	s.cli("mount", "end", ids[0])
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		t.Fatal("the mount goes on after it was ended")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("it exits with %d:\n%s", code, p.stderr)
	}
	if ids := s.mounts(); len(ids) > 0 {
		t.Errorf("mounts: %v", ids)
	}
}
