//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// killCalls are the system calls before which the daemon is killed: everything that changes what is on a disk, or makes it durable.
var killCalls = map[uint64]bool{syscall.SYS_WRITE: true, syscall.SYS_PWRITE64: true, syscall.SYS_FSYNC: true, syscall.SYS_FDATASYNC: true,
	syscall.SYS_RENAMEAT: true, syscall.SYS_UNLINKAT: true, syscall.SYS_MKDIRAT: true, syscall.SYS_FALLOCATE: true, syscall.SYS_FTRUNCATE: true}

// traced starts the daemon to be killed before its n-th call, 0 for never. It returns false if the daemon did not live to be ready.
func (s *site) traced(n int) (*tracer, bool) {
	s.t.Helper()
	p := &proc{t: s.t, cmd: exec.Command(filepath.Join(bin, "holdfastd"), "--data", s.data, "--listen", s.addr), lines: make(chan string, 1000),
		stderr: &lockedBuffer{}, done: make(chan struct{})}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	s.daemon = p
	r := &tracer{calls: killCalls, killAt: n, done: make(chan struct{})}
	go r.run(func() int { p.start(); return p.cmd.Process.Pid })
	deadline := time.After(60 * time.Second)
	for {
		select {
		case l := <-p.lines:
			if strings.HasPrefix(l, "ready ") {
				return r, true
			}
		case <-r.done:
			return r, false
		case <-deadline:
			s.t.Fatalf("the daemon is neither ready nor dead:\n%s", p.stderr)
		}
	}
}

// TestDaemonKilledAtEverySystemCall is the second half of item 1 of "nothing can hurt it": the daemon is killed right before the n-th write, sync
// or rename of a backup, a delete and a collect, its own start included. No acknowledged set is lost or listed in part, and the daemon is ready
// again in 5 s (startDaemon checks). About 60 points, spread over all; every point under HOLDFAST_SOAK.
func TestDaemonKilledAtEverySystemCall(t *testing.T) {
	k := &callKills{site: newSite(t), points: map[string][]byte{}, interrupted: map[string]int{}}
	k.rng = newRand(t)
	k.d = k.newVM(k.rng, "db", 8<<20)[0]
	for range 4 {
		k.d.write(k.rng, 3, 256<<10)
		k.keep(k.backup("db").ID)
	}
	k.daemon.stop()
	r, ready := k.traced(0)
	if !ready || !k.online("hv1") {
		t.Fatalf("the daemon does not work under ptrace:\n%s", tail(k.daemon))
	}
	k.scenario()
	k.daemon.kill()
	<-r.done
	all := r.count
	if all < 50 {
		t.Fatalf("the scenario makes %d calls", all)
	}
	k.startDaemon()
	k.look("after the rehearsal")
	stride := 1
	if os.Getenv("HOLDFAST_SOAK") == "" {
		stride = max(1, all/60)
	}
	kills, tried := 0, 0
	for n := 1 + k.rng.IntN(stride); n <= all; n += stride {
		tried++
		if k.one(n) {
			kills++
		}
	}
	for _, id := range k.order {
		k.export(id, 0, k.points[id])
	}
	k.cli("pool", "verify", "main")
	t.Logf("the scenario makes about %d calls; %d indexes tried, killed at %d of them; interrupted: %v; slowest start afterwards %v; %d sets alive", all, tried, kills,
		k.interrupted, k.slowest.Round(time.Millisecond), len(k.order))
	if kills*10 < tried*8 {
		t.Errorf("only %d of %d kills came", kills, tried)
	}
	noLeftovers(t, k.site)
}

// callKills is a site and what it must hold.
type callKills struct {
	*site
	rng         *rand.Rand
	d           *disk
	points      map[string][]byte
	order       []string
	gone        string // being deleted
	interrupted map[string]int
	slowest     time.Duration
}

func (k *callKills) keep(id string) {
	if k.points[id] == nil {
		k.points[id] = bytes.Clone(k.d.truth)
		k.order = append(k.order, id)
	}
}

func (k *callKills) step(name string, args ...string) bool {
	if _, err := k.try(args...); err != nil {
		k.interrupted[name]++
		return false
	}
	return true
}

// scenario is what the daemon is killed in.
func (k *callKills) scenario() {
	k.d.write(k.rng, 3, 256<<10)
	if !k.step("backup", "backup", "db", "--pool", "main") {
		return
	}
	for _, x := range k.lookUp() {
		k.keep(x.ID) // acknowledged
	}
	if len(k.order) > 3 {
		if k.gone = k.order[0]; !k.step("delete", "set", "delete", k.gone, "--yes") {
			return
		}
	}
	k.step("gc", "pool", "gc", "main")
}

// one kills the daemon once and looks what is left. It reports whether the kill came.
func (k *callKills) one(n int) bool {
	k.daemon.stop()
	k.gone = ""
	r, ready := k.traced(n)
	if ready && k.online("hv1") {
		k.scenario()
	}
	k.daemon.kill()
	<-r.done
	start := time.Now()
	k.startDaemon()
	k.slowest = max(k.slowest, time.Since(start))
	k.look(fmt.Sprintf("killed before call %d", n))
	return r.killed
}

// look checks what a daemon that was started again has.
func (k *callKills) look(when string) {
	k.waitOnline("hv1")
	k.settle("db")
	listed := map[string]bool{}
	for _, x := range k.sets("--vm", "db") {
		listed[x.ID] = true
		k.keep(x.ID) // committed just before the kill: it must be whole
	}
	for _, id := range slices.Clone(k.order) {
		if listed[id] {
			continue
		}
		if id != k.gone {
			k.t.Fatalf("%s: set %s is gone", when, id)
		}
		delete(k.points, id)
		k.order = slices.DeleteFunc(k.order, func(o string) bool { return o == id })
	}
	for _, id := range []string{k.order[0], k.order[len(k.order)-1]} {
		k.export(id, 0, k.points[id])
	}
}

// lookUp lists the sets, none if the daemon is dead.
func (s *site) lookUp() []set {
	var sets []set
	if s.tryJSON(&sets, "set", "list", "--vm", "db") != nil {
		return nil
	}
	return sets
}

// online waits for a host, unless the daemon dies.
func (s *site) online(name string) bool {
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var hosts []struct {
			Name  string `json:"name"`
			State string `json:"state"`
		}
		if s.tryJSON(&hosts, "host", "list") == nil {
			for _, h := range hosts {
				if h.Name == name && strings.EqualFold(h.State, "online") {
					return true
				}
			}
		}
		select {
		case <-s.daemon.done:
			return false
		case <-deadline:
			return false
		case <-tick.C:
		}
	}
}
