package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// call runs a command line in this process.
func call(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	a := &app{out: &o, errw: &e}
	code = a.main(t.Context(), args)
	return code, o.String(), e.String()
}

// ok runs a command line that must succeed.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := call(t, args...)
	if code != cli.OK {
		t.Fatalf("%v: exit %d: %s", args, code, errs)
	}
	return out
}

func foreign(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v (of qemu-utils): %v\n%s", args, err, out)
	}
}

// rawDisk writes a sparse raw image.
func rawDisk(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 100_000)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	for _, off := range []int64{0, size / 3, size - int64(len(b))} {
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConvertKeepsEveryByte(t *testing.T) {
	raw, dir := rawDisk(t, 24<<20), t.TempDir()
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{"dynamic": nil, "fixed": {"--subformat", "fixed"}, "small": {"--block-size", "1M"}, "4kn": {"--sector", "4096"}} {
		v, back := filepath.Join(dir, name+".vhdx"), filepath.Join(dir, name+".raw")
		ok(t, append([]string{"vhdx", "convert", raw, v}, args...)...)
		if name != "4kn" { // qemu reads 512-byte sectors only
			foreign(t, "qemu-img", "compare", "-f", "raw", "-F", "vhdx", raw, v)
		}
		ok(t, "vhdx", "check", v)
		ok(t, "vhdx", "convert", v, back)
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the way back differs: %v", name, err)
		}
		if code, _, _ := call(t, "vhdx", "convert", v, back); code == cli.OK {
			t.Error("a file was overwritten")
		}
	}
	vhd, back := filepath.Join(dir, "old.vhd"), filepath.Join(dir, "old.raw")
	foreign(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", raw, vhd)
	ok(t, "vhdx", "convert", vhd, back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
		t.Errorf("VHD: differs: %v", err)
	}
}

func TestExitCodesAndHints(t *testing.T) {
	lab, junk := t.TempDir(), filepath.Join(t.TempDir(), "junk.vhdx")
	if err := os.WriteFile(junk, []byte("vhdxfile and then nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		want int
		says string
	}{
		{[]string{"--help"}, cli.OK, ""},
		{[]string{"nonsense"}, cli.Usage, "--help"},
		{[]string{"lab", "list"}, cli.Usage, "--help"},
		{[]string{"lab", "list", lab, "--nonsense"}, cli.Usage, "--help"},
		{[]string{"run", "--data", lab}, cli.Usage, "--lab"},
		{[]string{"run", "--data", lab, "--lab", lab}, cli.NotFound, "enroll"},
		{[]string{"enroll", "--data", lab, "--server", "localhost:1", "--key", "wrong"}, cli.Usage, "key"},
		{[]string{"lab", "nbd", lab, "vm", "0"}, cli.Usage, "--socket"},
		{[]string{"lab", "nbd", lab, "vm", "0", "--socket", "x"}, cli.NotFound, "vm"},
		{[]string{"lab", "fault", lab, "vm", "nonsense"}, cli.Usage, "tracking-lost"},
		{[]string{"lab", "resize", lab, "vm", "zero", "1G"}, cli.Usage, "zero"},
		{[]string{"lab", "resize", lab, "vm", "0", "many"}, cli.Usage, "many"},
		{[]string{"vhdx", "info", filepath.Join(lab, "none")}, cli.NotFound, "none"},
		{[]string{"vhdx", "info", junk}, cli.Damaged, "junk"},
		{[]string{"vhdx", "convert", junk, "x.raw", "--to", "qcow2"}, cli.Usage, "raw"},
	} {
		code, _, errs := call(t, tc.args...)
		if code != tc.want || !strings.Contains(errs, tc.says) {
			t.Errorf("%v: exit %d, want %d: %s", tc.args, code, tc.want, errs)
		}
		code, _, errs = call(t, append([]string{"--json"}, tc.args...)...)
		if code != tc.want || (code != cli.OK && !json.Valid([]byte(errs))) {
			t.Errorf("%v --json: exit %d: %s", tc.args, code, errs)
		}
	}
}

// TestLabLifeOfAVM walks through the lab's commands; the disk is served and written by qemu-io meanwhile.
func TestLabLifeOfAVM(t *testing.T) {
	dir, raw := filepath.Join(t.TempDir(), "lab"), rawDisk(t, 16<<20)
	disk := filepath.Join(t.TempDir(), "os.vhdx")
	ok(t, "vhdx", "convert", raw, disk, "--block-size", "1M")
	ok(t, "lab", "create", dir, "vm", "--disk", disk, "--disk", disk, "--generation", "1")
	sockDir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(sockDir)
	sock := filepath.Join(sockDir, "s")
	ctx, stop := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan int)
	go func() {
		a := &app{out: w, errw: os.Stderr}
		done <- a.main(ctx, []string{"lab", "nbd", dir, "vm", "1", "--socket", sock})
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	uri, isReady := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if err != nil || !isReady {
		t.Fatalf("%q, %v", line, err)
	}
	if code, _, _ := call(t, "lab", "nbd", dir, "vm", "1", "--socket", sock+"2"); code != cli.Busy {
		t.Errorf("a second server: exit %d", code)
	}
	foreign(t, "qemu-io", "-f", "raw", "-c", "write -P 9 1M 64k", uri)
	ok(t, "lab", "checkpoint", dir, "vm")
	foreign(t, "qemu-io", "-f", "raw", "-c", "write -P 8 1M 64k", uri)
	ok(t, "lab", "revert", dir, "vm")
	foreign(t, "qemu-io", "-f", "raw", "-c", "read -P 9 1M 64k", uri)
	stop()
	if code := <-done; code != cli.OK {
		t.Errorf("the server ended with %d", code)
	}
	ok(t, "lab", "swap", dir, "vm", "0", disk)
	ok(t, "lab", "fault", dir, "vm", "slow-merge=1s")
	ok(t, "lab", "create", dir, "single", "--disk", disk, "--move")
	ok(t, "lab", "resize", dir, "single", "0", "20M")
	ok(t, "lab", "clone", dir, "single", "twin")
	var vms []struct {
		Name  string
		Disks []struct {
			ID         string
			Size       int64
			Controller string
		}
	}
	if err := json.Unmarshal([]byte(ok(t, "lab", "list", dir, "--json")), &vms); err != nil {
		t.Fatal(err)
	}
	if len(vms) != 3 || vms[0].Name != "single" || vms[1].Name != "twin" || vms[0].Disks[0].ID == vms[1].Disks[0].ID || vms[1].Disks[0].Size != 20<<20 ||
		len(vms[2].Disks) != 2 || vms[2].Disks[0].Controller != "ide" {
		t.Errorf("%+v", vms)
	}
	if text := ok(t, "lab", "list", dir); !strings.Contains(text, "20.0 MiB") {
		t.Error(text)
	}
}

func TestSizesHaveUnits(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "512": 512, "80M": 80 << 20, "2g": 2 << 30, "1TiB": 1 << 40, "4KB": 4096, "": -1, "M": -1, "-1": -1, "9999999T": -1, "1.5G": -1} {
		got, err := cli.ParseSize(s)
		if (err != nil) != (want < 0) || (err == nil && got != want) {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
}
