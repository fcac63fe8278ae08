package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// A disk is a VM's live disk in the lab and the truth about its bytes, kept by the test itself.
type disk struct {
	s     *site
	vm    string
	no    int
	truth []byte
}

// newVM makes a VM with disks that qemu-img wrote: dynamic VHDX of the given sizes, with random content in a part of each.
func (s *site) newVM(rng *rand.Rand, vm string, sizes ...int64) []*disk {
	s.t.Helper()
	args := []string{"lab", "create", s.lab, vm}
	disks := make([]*disk, len(sizes))
	for i, size := range sizes {
		d := &disk{s: s, vm: vm, no: i, truth: make([]byte, size)}
		for range 4 {
			off, n := randExtent(rng, size, size/8)
			fill(rng, d.truth[off:off+n])
		}
		raw, file := filepath.Join(s.dir, "new.raw"), filepath.Join(s.dir, fmt.Sprintf("%s-%d.vhdx", vm, i))
		writeSparse(s.t, raw, d.truth)
		foreign(s.t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic,block_size=1M", raw, file)
		os.Remove(raw)
		args = append(args, "--disk", file)
		disks[i] = d
	}
	agentCmd(s.t, args...)
	s.waitVM(vm)
	return disks
}

// waitVM waits until the appliance lists the VM.
func (s *site) waitVM(vm string) {
	s.t.Helper()
	s.eventually(30*time.Second, "VM "+vm+" is listed", func() bool {
		out, err := s.try("vm", "list", "--json")
		return err == nil && strings.Contains(out, `"`+vm+`"`)
	})
}

func writeSparse(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(data))); err != nil {
		t.Fatal(err)
	}
	zero := make([]byte, 64<<10)
	for off := 0; off < len(data); off += len(zero) {
		p := data[off:min(off+len(zero), len(data))]
		if string(p) == string(zero[:len(p)]) {
			continue
		}
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
}

// randExtent returns a 512-aligned extent of at most limit bytes.
func randExtent(rng *rand.Rand, size, limit int64) (off, n int64) {
	n = (1 + rng.Int64N(limit/512)) * 512
	off = rng.Int64N((size-n)/512+1) * 512
	return off, n
}

// fill writes bytes that compress a little, as real data does.
func fill(rng *rand.Rand, p []byte) {
	for i := 0; i < len(p); i++ {
		if i%64 < 40 {
			p[i] = byte(rng.Uint32())
		} else {
			p[i] = byte(i >> 8)
		}
	}
}

// serve starts the lab's NBD export of the live disk and returns its URI and how to stop it.
func (d *disk) serve() (uri string, p *proc) {
	d.s.t.Helper()
	sock := filepath.Join(d.s.dir, fmt.Sprintf("%s-%d.sock", d.vm, d.no))
	os.Remove(sock)
	p = spawn(d.s.t, "holdfast-agent", "lab", "nbd", d.s.lab, d.vm, fmt.Sprint(d.no), "--socket", sock)
	d.s.eventually(10*time.Second, "the NBD socket is there", func() bool {
		_, err := os.Stat(sock)
		return err == nil
	})
	return "nbd+unix:///?socket=" + sock, p
}

// write lets qemu-io make n random writes to the live disk, keeps the truth, and returns what was changed (a normal list).
func (d *disk) write(rng *rand.Rand, n int, limit int64) holdfast.Extents {
	d.s.t.Helper()
	uri, p := d.serve()
	changed := d.writeTo(rng, uri, n, limit)
	p.stop()
	return changed
}

func (d *disk) writeTo(rng *rand.Rand, uri string, n int, limit int64) holdfast.Extents {
	d.s.t.Helper()
	var changed holdfast.Extents
	args := []string{"-f", "raw"}
	var files []string
	for i := range n {
		off, length := randExtent(rng, int64(len(d.truth)), limit)
		part := d.truth[off : off+length]
		switch {
		case rng.IntN(8) == 0:
			clear(part)
			args = append(args, "-c", fmt.Sprintf("write -z %d %d", off, length))
		default:
			fill(rng, part)
			name := filepath.Join(d.s.dir, fmt.Sprintf("w%d-%d", d.no, i))
			if err := os.WriteFile(name, part, 0o600); err != nil {
				d.s.t.Fatal(err)
			}
			files = append(files, name)
			args = append(args, "-c", fmt.Sprintf("write -s %s %d %d", name, off, length))
		}
		changed = append(changed, holdfast.Extent{Off: off, Len: length})
	}
	out, err := exec.Command("qemu-io", append(append(args, "-c", "flush"), uri)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "failed") {
		d.s.t.Fatalf("qemu-io: %v\n%s", err, out)
	}
	for _, f := range files {
		os.Remove(f)
	}
	return changed.Normal(int64(len(d.truth)))
}
