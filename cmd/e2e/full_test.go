//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/notify/notifytest"
)

// inNamespace marks a run of this test in a namespace of its own, where everybody may mount.
const inNamespace = "HOLDFAST_E2E_NAMESPACE"

// mountSmall mounts a file system of the given size, or reports that this must be done in a namespace.
func mountSmall(t *testing.T, dir, size string) bool {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "small", dir).CombinedOutput()
	if err != nil {
		if os.Getenv(inNamespace) != "" {
			t.Fatalf("mount: %v\n%s", err, out)
		}
		return false
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return true
}

// again runs the test in a namespace.
func again(t *testing.T) {
	t.Helper()
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--mount", os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	out, err := cmd.CombinedOutput()
	t.Logf("in a namespace of its own:\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// fillUp takes every free byte of a file system.
func fillUp(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for buf := make([]byte, 1<<20); len(buf) > 0; {
		if _, err := f.Write(buf); errors.Is(err, syscall.ENOSPC) {
			buf = buf[:len(buf)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if n := freeBytes(t, dir); n != 0 {
		t.Fatalf("%d bytes are free", n)
	}
}

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// TestFullDisk is item 2 of "nothing can hurt it": at 0 bytes free points in time are listed, restored and deleted, two collects give back
// at least 95 % of what two more with room give back, no backup is begun, the daemon starts, and what was kept back for this is kept back again.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	small := filepath.Join(dir, "small")
	if !mountSmall(t, small, "768m") {
		again(t)
		return
	}
	s := &site{t: t, dir: dir, data: filepath.Join(small, "data"), adata: filepath.Join(dir, "agent"), lab: filepath.Join(dir, "lab"), pool: filepath.Join(small, "pool")}
	if err := os.MkdirAll(s.lab, 0o755); err != nil {
		t.Fatal(err)
	}
	s.startDaemon()
	s.cli("pool", "create", "main", "--kind", "dedup", "--path", s.pool)
	hooked, at := notifytest.Hook(t, "")
	mailed, port := notifytest.Mailbox(t)
	s.cli("notify", "target", "add", "hook", "--kind", "webhook", "--set", "url="+at, "--severity", "warning", "--flood", "1000/1")
	s.cli("notify", "target", "add", "ops", "--kind", "mail", "--set", "host=127.0.0.1", "--set", fmt.Sprintf("port=%d", port), "--set", "security=plain",
		"--set", "from=holdfast@example.org", "--set", "to=ops@example.org", "--severity", "warning", "--flood", "1000/1")
	s.enroll("hv1", s.adata)
	s.startAgent()
	rng := newRand(t)
	d := s.newVM(rng, "db", 64<<20)[0]
	var ids []string
	points := map[string][]byte{}
	for range 6 {
		d.write(rng, 8, 4<<20)
		x := s.backup("db")
		ids = append(ids, x.ID)
		points[x.ID] = bytes.Clone(d.truth)
	}
	s.estimated(d, points[ids[0]], s.sets("--vm", "db"))
	held := func() bool {
		for _, dir := range []string{s.data, s.pool} {
			if found, _ := filepath.Glob(filepath.Join(dir, "~reserve", "ballast.*")); len(found) != 4 {
				return false
			}
		}
		return true
	}
	s.eventually(15*time.Second, "room is kept back", held)
	fillUp(t, small)

	if got := s.sets("--vm", "db"); len(got) != len(ids) {
		t.Errorf("%d sets are listed on a full disk", len(got))
	}
	s.export(ids[2], 0, points[ids[2]])
	if out, err := s.try("backup", "db", "--pool", "main"); err == nil || !strings.Contains(err.Error()+out, "free") {
		t.Errorf("a backup on a full disk: %v\n%s", err, out)
	}
	s.daemon.kill()
	s.startDaemon() // ready in 5 s
	s.export(ids[5], 0, points[ids[5]])

	stored := func() int64 { return treeBytes(t, filepath.Join(s.pool, "containers")) }
	before := stored()
	for _, id := range []string{ids[0], ids[1], ids[3]} {
		s.cli("set", "delete", id, "--yes")
	}
	fillUp(t, small) // the ballast that was given up for the deletions is gone too
	s.cli("set", "delete", ids[4], "--yes")
	first := s.cli("pool", "gc", "main")
	once, room := stored(), freeBytes(t, small)
	s.cli("pool", "gc", "main")
	full := stored()
	for _, id := range []string{ids[2], ids[5]} {
		s.export(id, 0, points[id])
	}
	if err := os.Remove(filepath.Join(small, "filler")); err != nil {
		t.Fatal(err)
	}
	s.cli("pool", "gc", "main")
	s.cli("pool", "gc", "main")
	roomy := stored()
	t.Logf("containers: %d bytes; after a collect on a full disk %d (%d bytes were free then), after another %d, after two more with room %d", before, once, room, full, roomy)
	t.Logf("the first collect: %s", first)
	if (before-full)*100 < (before-roomy)*95 || before == roomy {
		t.Errorf("a full disk gave back %d of %d bytes", before-full, before-roomy)
	}
	s.eventually(15*time.Second, "room is kept back again", held)
	x := s.backup("db")
	s.export(x.ID, 0, d.truth)
	if out := s.cli("pool", "space", "main", "--explain"); !strings.Contains(out, "reclaimable") || !strings.Contains(out, "90-100 %") || !strings.Contains(out, "db") {
		t.Errorf("pool space:\n%s", out)
	}
	s.cli("pool", "verify", "main")
	s.cli("notify", "set", "--stale", "71h") // the alarms are looked at now
	for _, dir := range []string{s.data, s.pool} {
		for _, state := range []string{"raised", "cleared"} {
			s.eventually(30*time.Second, dir+" is "+state, func() bool { return hooked.Once("room/"+dir+" "+state) && mailed.Once("room/"+dir+" "+state) })
		}
	}
}

// estimated compares what `holdfast estimate` says of a disk with what its first backup stored: within 15 %, before disks are bought.
func (s *site) estimated(d *disk, truth []byte, sets []set) {
	s.t.Helper()
	raw := filepath.Join(s.dir, "estimate.raw")
	writeSparse(s.t, raw, truth)
	defer os.Remove(raw)
	var e struct {
		Stored int64 `json:"stored"`
	}
	s.json(&e, "estimate", raw)
	stored := int64(0)
	for _, x := range sets {
		if x.Kind == "full" {
			stored = x.Stored
		}
	}
	off := float64(e.Stored)/float64(stored) - 1
	s.t.Logf("estimated %d bytes, the first backup stored %d: %+.1f %%", e.Stored, stored, off*100)
	if off < -0.15 || off > 0.15 {
		s.t.Errorf("the estimate is off")
	}
}
