package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// bin is the folder of the programs under test.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "holdfast-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	out, err := exec.Command("go", "build", "-o", dir+"/", "../...").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// times returns n multiplied by HOLDFAST_SOAK.
func times(n int) int {
	if k, err := strconv.Atoi(os.Getenv("HOLDFAST_SOAK")); err == nil && k > 0 {
		return n * k
	}
	return n
}

// newRand returns a generator whose seed is printed and can be set by HOLDFAST_SEED.
func newRand(t *testing.T) *rand.Rand {
	seed := uint64(20261122)
	if s, err := strconv.ParseUint(os.Getenv("HOLDFAST_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// A proc is a program under test that runs in the background.
type proc struct {
	t      *testing.T
	cmd    *exec.Cmd
	lines  chan string // of standard output
	stderr *lockedBuffer
	done   chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// spawn starts a program; it is killed at the end of the test if it still runs.
func spawn(t *testing.T, name string, args ...string) *proc {
	t.Helper()
	p := &proc{t: t, cmd: exec.Command(filepath.Join(bin, name), args...), lines: make(chan string, 1000), stderr: &lockedBuffer{}, done: make(chan struct{})}
	p.start()
	return p
}

// start starts the program and gathers what it prints.
func (p *proc) start() {
	t := p.t
	t.Helper()
	p.cmd.Stderr = p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			select {
			case p.lines <- sc.Text():
			default:
			}
		}
		_ = p.cmd.Wait()
	}()
	t.Cleanup(p.kill)
}

// waitLine waits for a line of standard output that starts with prefix.
func (p *proc) waitLine(prefix string, within time.Duration) string {
	p.t.Helper()
	deadline := time.After(within)
	for {
		select {
		case l := <-p.lines:
			if strings.HasPrefix(l, prefix) {
				return l
			}
		case <-p.done:
			p.t.Fatalf("%v ended before it printed %q:\n%s", p.cmd.Args, prefix, p.stderr)
		case <-deadline:
			p.t.Fatalf("%v did not print %q within %v:\n%s", p.cmd.Args, prefix, within, p.stderr)
		}
	}
}

// kill sends signal 9 and waits for the end. A no-op for a program that has ended.
func (p *proc) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop asks the program to end and waits for it.
func (p *proc) stop() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.t.Errorf("%v did not stop within 30 s of SIGTERM", p.cmd.Args)
		p.kill()
	}
}

// A site is an appliance, an agent and a lab host, each a process of its own.
type site struct {
	t                *testing.T
	dir, data, adata string
	lab, pool        string
	place            []string // the flags that name the pool's kind and place
	addr             string
	daemon, agent    *proc
}

// newSite starts a daemon with a pool "main" (dedup, or what HOLDFAST_POOL says) and an enrolled agent "hv1" over an empty lab.
func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, dir: dir, data: filepath.Join(dir, "data"), adata: filepath.Join(dir, "agent"), lab: filepath.Join(dir, "lab"), pool: filepath.Join(dir, "pool")}
	if err := os.MkdirAll(s.lab, 0o755); err != nil {
		t.Fatal(err)
	}
	s.startDaemon()
	s.place = place(t, s.pool)
	s.cli(append([]string{"pool", "create", "main"}, s.place...)...)
	s.enroll("hv1", s.adata)
	s.startAgent()
	return s
}

func (s *site) startDaemon() {
	s.t.Helper()
	listen := "127.0.0.1:0"
	if s.addr != "" {
		listen = s.addr // after a restart the agent finds the same port
	}
	s.daemon = spawn(s.t, "holdfastd", "--data", s.data, "--listen", listen)
	line := s.daemon.waitLine("ready ", 5*time.Second) // the promise after a kill: ready again in 5 s
	for _, f := range strings.Fields(line) {
		if a, ok := strings.CutPrefix(f, "https://"); ok {
			s.addr = strings.TrimSuffix(a, "/")
		}
	}
	if s.addr == "" {
		s.t.Fatalf("no address in %q", line)
	}
}

// enroll asks the daemon for a one-time key and enrols the agent folder with it.
func (s *site) enroll(name, adata string) {
	s.t.Helper()
	var key struct {
		Key string `json:"key"`
	}
	s.json(&key, "host", "enroll", name)
	out, err := exec.Command(filepath.Join(bin, "holdfast-agent"), "enroll", "--data", adata, "--server", s.addr, "--key", key.Key).CombinedOutput()
	if err != nil {
		s.t.Fatalf("enroll: %v\n%s", err, out)
	}
}

func (s *site) startAgent() {
	s.t.Helper()
	s.agent = spawn(s.t, "holdfast-agent", "run", "--data", s.adata, "--lab", s.lab)
	s.waitOnline("hv1")
}

func (s *site) waitOnline(name string) {
	s.t.Helper()
	s.eventually(5*time.Second, "host "+name+" is online", func() bool {
		var hosts []struct {
			Name  string `json:"name"`
			State string `json:"state"`
		}
		if s.tryJSON(&hosts, "host", "list") != nil {
			return false
		}
		for _, h := range hosts {
			if h.Name == name && strings.EqualFold(h.State, "online") {
				return true
			}
		}
		return false
	})
}

// eventually polls until f holds; the poll interval is no part of any promise.
func (s *site) eventually(within time.Duration, what string, f func() bool) {
	s.t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if f() {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("not within %v: %s\ndaemon:\n%s\nagent:\n%s", within, what, tail(s.daemon), tail(s.agent))
		}
	}
}

func tail(p *proc) string {
	if p == nil {
		return "(not started)"
	}
	out := p.stderr.String()
	return out[max(0, len(out)-4000):]
}

// try runs the CLI and returns its output, or an error with both outputs.
func (s *site) try(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(bin, "holdfast"), append([]string{"--data", s.data}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("holdfast %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String(), err
}

func (s *site) cli(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("%v\ndaemon:\n%s\nagent:\n%s", err, tail(s.daemon), tail(s.agent))
	}
	return out
}

func (s *site) tryJSON(into any, args ...string) error {
	out, err := s.try(append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("holdfast %s printed %q: %w", strings.Join(args, " "), out, err)
	}
	return nil
}

func (s *site) json(into any, args ...string) {
	s.t.Helper()
	if err := s.tryJSON(into, args...); err != nil {
		s.t.Fatalf("%v\ndaemon:\n%s\nagent:\n%s", err, tail(s.daemon), tail(s.agent))
	}
}

// agentCmd runs a holdfast-agent command to its end.
func agentCmd(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(bin, "holdfast-agent"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("holdfast-agent %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// foreign runs a program that nobody here wrote.
func foreign(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// A set as `set list --json` shows it.
type set struct {
	ID          string `json:"id"`
	VM          string `json:"vm"`
	Time        string `json:"time"`
	Kind        string `json:"kind"`
	Consistency string `json:"consistency"`
	Note        string `json:"note"`
	Logical     int64  `json:"logical"`
	Read        int64  `json:"read"`
	Sent        int64  `json:"sent"`
	Stored      int64  `json:"stored"`
	Disks       []struct {
		Name   string `json:"name"`
		Reason string `json:"reason"`
		Size   int64  `json:"size"`
	} `json:"disks"`
}

func (s *site) sets(args ...string) []set {
	s.t.Helper()
	var sets []set
	s.json(&sets, append([]string{"set", "list"}, args...)...)
	return sets
}

// backup backs VMs up and returns the newest set of each.
func (s *site) backup(vm string, args ...string) set {
	s.t.Helper()
	return s.backupTo(vm, "main", args...)
}

// backupTo backs a VM up to a pool and returns the new set.
func (s *site) backupTo(vm, pool string, args ...string) set {
	s.t.Helper()
	before := map[string]bool{}
	for _, x := range s.sets("--vm", vm) {
		before[x.ID] = true
	}
	s.cli(append([]string{"backup", vm, "--pool", pool}, args...)...)
	for _, x := range s.sets("--vm", vm) {
		if !before[x.ID] {
			return x
		}
	}
	s.t.Fatalf("backup of %s made no set", vm)
	return set{}
}

// export restores a disk to a raw file and compares it with the truth, then removes it.
func (s *site) export(id string, disk int, truth []byte) {
	s.t.Helper()
	out := filepath.Join(s.dir, "export.raw")
	s.cli("restore", "export", id, "--disk", strconv.Itoa(disk), "--format", "raw", "--output", out)
	same(s.t, out, truth)
	if err := os.Remove(out); err != nil {
		s.t.Fatal(err)
	}
}

// same compares a raw file with the truth.
func same(t *testing.T, path string, truth []byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for off := 0; ; {
		n, err := io.ReadFull(f, buf)
		if off+n > len(truth) {
			t.Fatalf("%s is longer than %d bytes", path, len(truth))
		}
		if !bytes.Equal(buf[:n], truth[off:off+n]) {
			for i := range n {
				if buf[i] != truth[off+i] {
					t.Fatalf("%s differs from the truth at byte %d", path, off+i)
				}
			}
		}
		off += n
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			if off != len(truth) {
				t.Fatalf("%s has %d bytes, the truth %d", path, off, len(truth))
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func unmarshal(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
}
