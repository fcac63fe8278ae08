package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// rootImage returns a Debian root disk of 3 GiB made of real packages. It is kept in the user's cache folder between runs, or taken
// from HOLDFAST_IMAGE.
func rootImage(t *testing.T) string {
	t.Helper()
	if f := os.Getenv("HOLDFAST_IMAGE"); f != "" {
		return f
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(cache, "holdfast-tests", "debian-root-3G.raw")
	if _, err := os.Stat(name); err == nil {
		return name
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	foreign(t, "bash", "../../scripts/root-image.sh", name+".part", "3G")
	if err := os.Rename(name+".part", name); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestRealDebianDisks is acceptance 2: a Debian root image as a dynamic VHDX written by qemu-img goes in and comes back as an export
// and as a VM, judged by qemu-img; so do fixed and differencing disks, both generations, and two disks in one VM.
func TestRealDebianDisks(t *testing.T) {
	raw := rootImage(t)
	s, rng := newSite(t), newRand(t)
	vhdx := filepath.Join(s.dir, "root.vhdx")
	foreign(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic", raw, vhdx)
	fixed := filepath.Join(s.dir, "data.vhdx")
	foreign(t, "qemu-img", "create", "-f", "vhdx", "-o", "subformat=fixed", fixed, "64M")
	foreign(t, "qemu-io", "-f", "vhdx", "-c", "write -P 7 1M 3M", "-c", "write -P 9 40M 5M", fixed)

	agentCmd(t, "lab", "create", s.lab, "root2", "--generation", "2", "--disk", vhdx, "--disk", fixed)
	s.waitVM("root2")
	start := time.Now()
	x := s.backup("root2")
	t.Logf("full: %d MiB logical, %d read, %d sent, %d stored, %v", x.Logical>>20, x.Read>>20, x.Sent>>20, x.Stored>>20, time.Since(start).Round(time.Millisecond))
	s.exportEquals(x.ID, "0", vhdx)
	s.exportEquals(x.ID, "1", fixed)
	s.vmEquals(x.ID, "back2", vhdx, fixed)

	agentCmd(t, "lab", "create", s.lab, "root1", "--generation", "1", "--disk", vhdx)
	s.waitVM("root1")
	// A user checkpoint makes the live disk a differencing one; foreign writes go into it.
	agentCmd(t, "lab", "checkpoint", s.lab, "root1")
	d := &disk{s: s, vm: "root1"}
	uri, p := d.serve()
	size := qemuSize(t, vhdx)
	d.truth = make([]byte, size)
	foreign(t, "nbdcopy", uri, filepath.Join(s.dir, "live.raw"))
	truth, err := os.ReadFile(filepath.Join(s.dir, "live.raw"))
	if err != nil {
		t.Fatal(err)
	}
	d.truth = truth
	d.writeTo(rng, uri, 20, 1<<20)
	p.stop()
	y := s.backup("root1")
	s.export(y.ID, 0, d.truth)
	writeSparse(t, filepath.Join(s.dir, "live.raw"), d.truth)
	s.vmEquals(y.ID, "back1", filepath.Join(s.dir, "live.raw"))
}

func qemuSize(t *testing.T, name string) int64 {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	unmarshal(t, foreign(t, "qemu-img", "info", "--output=json", name), &info)
	return info.Size
}

// exportEquals exports a disk as VHDX and lets qemu-img check it and compare it with the original.
func (s *site) exportEquals(id, no, original string) {
	s.t.Helper()
	out := filepath.Join(s.dir, "export.vhdx")
	s.cli("restore", "export", id, "--disk", no, "--format", "vhdx", "--output", out)
	foreign(s.t, "qemu-img", "check", "-f", "vhdx", out)
	foreign(s.t, "qemu-img", "compare", "-f", "vhdx", out, original)
	os.Remove(out)
}

// vmEquals restores a set as a new VM in the lab and compares its disks with the originals, in the order of the set's disks.
func (s *site) vmEquals(id, name string, originals ...string) {
	s.t.Helper()
	dir := filepath.Join(s.lab, name)
	s.cli("restore", "vm", id, "--host", "hv1", "--to", dir, "--name", name)
	files, err := filepath.Glob(filepath.Join(dir, "*.vhdx"))
	if err != nil || len(files) != len(originals) {
		s.t.Fatalf("the restored VM has disks %v, %v", files, err)
	}
	for _, original := range originals {
		found := false
		for _, f := range files {
			if qemuSize(s.t, f) == qemuSize(s.t, original) {
				foreign(s.t, "qemu-img", "compare", "-f", "vhdx", f, original)
				found = true
			}
		}
		if !found {
			s.t.Errorf("no disk of %s's size in %v", original, files)
		}
	}
	s.waitVM(name)
}
