//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// holdfast runs the whole product: daemon, agent, lab host and CLI, each a process of its own, over TLS on loopback.
type holdfast struct {
	bin, dir      string
	kind          string   // of the pool, one of poolKinds; "" for an encrypted dedup pool on a folder
	s3            *gateway // of a pool in buckets
	chunking      string   // of the pool; "" for the default
	compression   string   // of backups; "" for the default
	daemon, agent *exec.Cmd
	clients       cost              // CPU and peak memory of the CLI runs of one step
	ids           map[string]string // step → set id
}

func (h *holdfast) path(name string) string { return filepath.Join(h.dir, name) }

func (h *holdfast) start(dir string) error {
	h.dir, h.ids = dir+".site", map[string]string{}
	_ = os.RemoveAll(h.dir)
	if err := os.MkdirAll(h.path("lab"), 0o755); err != nil {
		return err
	}
	h.daemon = exec.Command(filepath.Join(h.bin, "holdfastd"), "--data", h.path("data"), "--listen", "127.0.0.1:0")
	addr, err := startUntil(h.daemon, "ready ")
	if err != nil {
		return err
	}
	_, addr, _ = strings.Cut(addr, "https://")
	addr = strings.Trim(strings.Fields(addr)[0], "/")
	place, err := h.place(dir)
	if err != nil {
		return err
	}
	create := append([]string{"pool", "create", "main"}, place...)
	if h.chunking != "" {
		create = append(create, "--chunking", h.chunking)
	}
	if _, err := h.cli(create...); err != nil {
		return err
	}
	out, err := h.cli("host", "enroll", "bench", "--json")
	if err != nil {
		return err
	}
	var key struct {
		Key string `json:"key"`
	}
	if err := json.Unmarshal(out, &key); err != nil {
		return err
	}
	if _, err := h.agentCmd("enroll", "--data", h.path("agent"), "--server", addr, "--key", key.Key); err != nil {
		return err
	}
	h.agent = exec.Command(filepath.Join(h.bin, "holdfast-agent"), "run", "--data", h.path("agent"), "--lab", h.path("lab"))
	h.agent.Stderr = io.Discard
	return h.agent.Start()
}

// startUntil starts a command and returns the first line of its output with the prefix.
func startUntil(cmd *exec.Cmd, prefix string) (string, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		if strings.HasPrefix(sc.Text(), prefix) {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return sc.Text(), nil
		}
	}
	return "", fmt.Errorf("%v ended without a %q line", cmd.Args, prefix)
}

func (h *holdfast) stop() {
	for _, p := range []*exec.Cmd{h.agent, h.daemon} {
		if p != nil && p.Process != nil {
			_ = p.Process.Signal(os.Interrupt)
			_ = p.Wait()
		}
	}
	_ = os.RemoveAll(h.dir)
	if h.s3 != nil {
		h.s3.stop()
		h.s3 = nil
	}
}

// gateway is the server that the tool uses, nil if none.
func (h *holdfast) gateway() *gateway { return h.s3 }

func (h *holdfast) cli(args ...string) ([]byte, error) {
	cmd := exec.Command(filepath.Join(h.bin, "holdfast"), append([]string{"--data", h.path("data")}, args...)...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%v: %w\n%s%s", cmd.Args, err, out, errOut.Bytes())
	}
	h.clients.CPU += (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	h.clients.RSS = max(h.clients.RSS, rusageRSS(cmd))
	return out, nil
}

func (h *holdfast) agentCmd(args ...string) ([]byte, error) {
	out, err := exec.Command(filepath.Join(h.bin, "holdfast-agent"), args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("holdfast-agent %v: %w\n%s", args, err, out)
	}
	return out, nil
}

// step measures one CLI command: its own account and that of daemon and agent meanwhile.
func (h *holdfast) step(args ...string) (cost, error) {
	dropCaches()
	h.clients = cost{}
	pids := []int{h.daemon.Process.Pid, h.agent.Process.Pid}
	var cpu0 float64
	for _, pid := range pids {
		cpu0 += cpuSeconds(pid)
		resetPeak(pid)
	}
	start := time.Now()
	if _, err := h.cli(args...); err != nil {
		return cost{}, err
	}
	c := cost{Wall: time.Since(start).Seconds(), CPU: h.clients.CPU - cpu0, RSS: h.clients.RSS}
	for _, pid := range pids {
		c.CPU += cpuSeconds(pid)
		c.House += peakRSS(pid)
	}
	c.RSS += c.House
	var err error
	c.Chunks, err = h.chunks()
	return c, err
}

// chunks returns how many chunks the pool has.
func (h *holdfast) chunks() (int64, error) {
	out, err := h.cli("pool", "list", "--json")
	if err != nil {
		return 0, err
	}
	var list []struct{ Usage struct{ Chunks int64 } }
	if err := json.Unmarshal(out, &list); err != nil || len(list) != 1 {
		return 0, fmt.Errorf("%d pools: %v", len(list), err)
	}
	return list[0].Usage.Chunks, nil
}

// put makes the lab VM's disk equal to the image: created the first time, replaced by a new VM folder otherwise.
func (h *holdfast) put(vm, image string) error {
	vhdx := strings.TrimSuffix(image, ".raw") + ".vhdx" // kept for the next run
	raw, err := os.Stat(image)
	if err != nil {
		return err
	}
	if made, err := os.Stat(vhdx); err != nil || made.ModTime().Before(raw.ModTime()) {
		if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic", image, vhdx+".part").CombinedOutput(); err != nil {
			return fmt.Errorf("qemu-img: %w\n%s", err, out)
		}
		if err := os.Rename(vhdx+".part", vhdx); err != nil {
			return err
		}
	}
	if _, err := h.agentCmd("lab", "create", h.path("lab"), vm, "--disk", vhdx); err != nil {
		return err
	}
	for range 600 { // until the appliance has heard of it
		if out, err := h.cli("vm", "list", "--json"); err == nil && bytes.Contains(out, []byte(`"`+vm+`"`)) {
			return nil
		}
		<-time.After(100 * time.Millisecond)
	}
	return fmt.Errorf("VM %s does not show", vm)
}

func (h *holdfast) backup(step, image string) (cost, error) {
	vm := map[string]string{"full": "a", "again": "a", "day2": "a2", "sibling": "b"}[step]
	if step != "again" {
		if err := h.put(vm, image); err != nil {
			return cost{}, err
		}
	}
	c, err := h.step(h.backupArgs(vm, "--full")...)
	if err != nil {
		return c, err
	}
	h.ids[step], err = h.newest(vm)
	return c, err
}

func (h *holdfast) backupArgs(vm string, more ...string) []string {
	args := append([]string{"backup", vm, "--pool", "main"}, more...)
	if h.compression != "" {
		args = append(args, "--compression", h.compression)
	}
	return args
}

// own runs the steps that only Holdfast has.
func (h *holdfast) own(repo, images, want string, run int, r map[string]cost) error {
	note := func(step string, do func() (cost, error)) error {
		before := folderBytes(repo)
		c, err := do()
		if err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
		c.Grown, c.Requests, c.OK = folderBytes(repo)-before, requests(h), true
		r[step] = c
		return nil
	}
	command := func(args ...string) func() (cost, error) { return func() (cost, error) { return h.step(args...) } }
	plain := h.compression == "" && h.chunking == "" && h.kind == ""
	var err error
	if !brief && (plain || !onlyGoals) {
		err = errors.Join(note("scrub", command("pool", "scrub", "main")), note("rawread", func() (cost, error) { return rawRead(repo) }))
	}
	if !brief && err == nil && (run == 0 || !onlyGoals) {
		err = note("recompress", command("pool", "recompress", "main"))
	}
	if err != nil || onlyGoals && !plain {
		return err
	}
	if err = note("tracked", func() (cost, error) { return h.tracked(images, "a", "a2", want) }); err != nil {
		return err
	}
	if err = note("nothing", command(h.backupArgs("a")...)); err != nil {
		return err
	}
	if _, e := os.Stat(filepath.Join(images, "a3.raw")); e != nil {
		return nil // no images of an ordinary day
	}
	day3, err := hashFile(filepath.Join(images, "a3.raw"))
	if err != nil {
		return err
	}
	return note("ordinary", func() (cost, error) { return h.tracked(images, "a2", "a3", day3) })
}

// rawRead reads the repository's large files as fast as the disk gives them, past the page cache where it allows that.
func rawRead(repo string) (cost, error) {
	var names []string
	err := filepath.Walk(repo, func(p string, info os.FileInfo, err error) error {
		if err == nil && info.IsDir() && info.Name() == "~reserve" {
			return filepath.SkipDir
		}
		if err == nil && info.Mode().IsRegular() && info.Size() >= 1<<20 {
			names = append(names, p)
		}
		return err
	})
	if err != nil {
		return cost{}, err
	}
	dropCaches()
	start := time.Now()
	for _, n := range names {
		args := []string{"if=" + n, "of=/dev/null", "bs=8M", "status=none"}
		if exec.Command("dd", append(args, "iflag=direct")...).Run() == nil {
			continue
		}
		if out, err := exec.Command("dd", args...).CombinedOutput(); err != nil {
			return cost{}, fmt.Errorf("read %s: %w\n%s", n, err, out)
		}
	}
	return cost{Wall: time.Since(start).Seconds()}, nil
}

func (h *holdfast) newest(vm string) (string, error) {
	out, err := h.cli("set", "list", "--vm", vm, "--json")
	if err != nil {
		return "", err
	}
	var sets []struct{ ID, Time string }
	if err := json.Unmarshal(out, &sets); err != nil || len(sets) == 0 {
		return "", fmt.Errorf("no set of %s: %v", vm, err)
	}
	newest := sets[0]
	for _, s := range sets {
		if s.Time > newest.Time {
			newest = s
		}
	}
	return newest.ID, nil
}

func (h *holdfast) restore(_, out string) (cost, error) {
	return h.step("restore", "export", h.ids["day2"], "--disk", "0", "--format", "raw", "--output", filepath.Join(out, "disk.raw"))
}

// tracked turns VM a's disk from one day's into another's by foreign writes over NBD, and backs up by change tracking.
func (h *holdfast) tracked(images, from, to, want string) (cost, error) {
	sock := h.path("nbd.sock")
	_ = os.Remove(sock)
	nbd := exec.Command(filepath.Join(h.bin, "holdfast-agent"), "lab", "nbd", h.path("lab"), "a", "0", "--socket", sock)
	if err := nbd.Start(); err != nil {
		return cost{}, err
	}
	for range 100 {
		if _, err := os.Stat(sock); err == nil {
			break
		}
		<-time.After(100 * time.Millisecond)
	}
	err := writeChanges(filepath.Join(images, from+".raw"), filepath.Join(images, to+".raw"), h.path("changes"), "nbd+unix:///?socket="+sock)
	_ = nbd.Process.Signal(os.Interrupt)
	_ = nbd.Wait()
	if err != nil {
		return cost{}, err
	}
	c, err := h.step(h.backupArgs("a")...)
	if err != nil {
		return c, err
	}
	id, err := h.newest("a")
	if err != nil {
		return c, err
	}
	out := h.path("tracked.raw")
	if _, err := h.cli("restore", "export", id, "--disk", "0", "--format", "raw", "--output", out); err != nil {
		return c, err
	}
	defer os.Remove(out)
	if got, err := hashFile(out); err != nil || got != want {
		return c, fmt.Errorf("the tracked restore differs from the source (%v)", err)
	}
	return c, nil
}
