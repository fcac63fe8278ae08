package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// killAfter waits a random moment, then kills. The moment is part of the test's input, not of any promise.
func killAfter(rng *rand.Rand, limit time.Duration, p *proc) {
	timer := time.NewTimer(time.Duration(rng.Int64N(int64(limit))))
	defer timer.Stop()
	<-timer.C
	p.kill()
}

// A span is how long a kind of work takes when nobody disturbs it, as seen so far: kills are spread over it.
type span time.Duration

// seen takes in a piece of work that was not interrupted.
func (s *span) seen(took time.Duration) { *s = (*s*3 + span(took)) / 4 }

func (s *span) limit() time.Duration { return max(time.Duration(*s), time.Millisecond) }

// TestKilledDaemonLosesNothing is the first half of acceptance 6: the daemon is killed at random moments of backup, delete and
// GC; it is ready again in 5 s (startDaemon checks), no acknowledged set is damaged or gone, and no partial one is listed.
func TestKilledDaemonLosesNothing(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	d := s.newVM(rng, "db", 48<<20)[0]
	points := map[string][]byte{}
	first := s.backup("db")
	points[first.ID] = bytes.Clone(d.truth)
	kills := times(200)
	interrupted := map[string]int{}
	spans := map[string]*span{}
	for _, kind := range []string{"backup", "delete", "gc"} {
		spans[kind] = new(span)
		*spans[kind] = span(100 * time.Millisecond)
	}
	for i := range kills {
		var gone, kind string
		var args []string
		switch i % 4 {
		case 0, 1:
			d.write(rng, 6, 2<<20)
			kind, args = "backup", []string{"backup", "db", "--pool", "main"}
		case 2:
			for id := range points {
				gone = id
				break
			}
			kind, args = "delete", []string{"set", "delete", gone, "--yes"}
		case 3:
			kind, args = "gc", []string{"pool", "gc", "main"}
		}
		work := make(chan error, 1)
		start := time.Now()
		var took time.Duration
		go func() { _, err := s.try(args...); took = time.Since(start); work <- err }()
		killAfter(rng, spans[kind].limit(), s.daemon)
		if err := <-work; err != nil {
			interrupted[kind]++
		} else {
			spans[kind].seen(took)
		}
		s.startDaemon()
		s.waitOnline("hv1")
		s.settle("db")
		truth := d.truth
		listed := map[string]bool{}
		for _, x := range s.sets("--vm", "db") {
			listed[x.ID] = true
			if points[x.ID] == nil { // committed just before the kill: it must be whole
				points[x.ID] = bytes.Clone(truth)
			}
		}
		for id := range points {
			switch {
			case listed[id]:
			case id == gone:
				delete(points, id)
			default:
				t.Fatalf("kill %d: set %s is gone", i, id)
			}
		}
		if len(points) < 2 {
			x := s.backup("db")
			points[x.ID] = bytes.Clone(truth)
		}
		if i%10 == 9 {
			for id, truth := range points {
				s.export(id, 0, truth)
			}
		}
	}
	for id, truth := range points {
		s.export(id, 0, truth)
	}
	s.cli("pool", "verify", "main")
	t.Logf("%d kills; interrupted: %v; %d points alive", kills, interrupted, len(points))
	noLeftovers(t, s)
}

// TestKilledAgentCleansUp is the second half of acceptance 6: the agent is killed at random moments of a backup; once it is
// back, no checkpoint is left and the next backup works.
func TestKilledAgentCleansUp(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	d := s.newVM(rng, "db", 48<<20)[0]
	kills := times(50)
	points := map[string][]byte{}
	usual := span(100 * time.Millisecond)
	for i := range kills {
		d.write(rng, 4, 2<<20)
		go s.try("backup", "db", "--pool", "main")
		killAfter(rng, usual.limit(), s.agent)
		s.startAgent()
		s.settle("db")
		noLeftovers(t, s)
		for _, x := range s.sets("--vm", "db") {
			if points[x.ID] == nil {
				points[x.ID] = bytes.Clone(d.truth)
			}
		}
		if i%10 == 9 {
			start := time.Now()
			x := s.backup("db")
			usual.seen(time.Since(start))
			points[x.ID] = bytes.Clone(d.truth)
			for id, truth := range points {
				s.export(id, 0, truth)
			}
		}
	}
	t.Logf("%d kills, %d points alive", kills, len(points))
}

// settle waits until no run is under way and no checkpoint is open.
func (s *site) settle(vm string) {
	s.t.Helper()
	var last string
	defer func() {
		if s.t.Failed() {
			s.t.Log("seen last:", last)
		}
	}()
	s.eventually(60*time.Second, "all runs have ended", func() bool {
		var runs []struct {
			State string `json:"state"`
		}
		if s.tryJSON(&runs, "run", "list") != nil {
			return false
		}
		for _, r := range runs {
			if r.State == "running" || r.State == "queued" {
				last, _ = s.try("run", "list")
				return false
			}
		}
		last = fmt.Sprint("checkpoints ", checkpoints(s.lab))
		return len(checkpoints(s.lab)) == 0
	})
}

// checkpoints lists the checkpoint disks in the lab.
func checkpoints(lab string) []string {
	found, _ := filepath.Glob(filepath.Join(lab, "*", "*.avhdx"))
	return found
}

func noLeftovers(t *testing.T, s *site) {
	t.Helper()
	if left := checkpoints(s.lab); len(left) != 0 {
		t.Errorf("checkpoints are left: %v", left)
	}
	staging, _ := os.ReadDir(filepath.Join(s.pool, "staging"))
	var names []string
	for _, e := range staging {
		names = append(names, e.Name())
	}
	if len(names) != 0 {
		t.Errorf("staging is not empty: %s", strings.Join(names, " "))
	}
}

// TestAgentKilledInTheMiddleOfAJob: the agent is killed 30 times at random moments of a job with two VMs that are frozen together and scripts of nobody;
// once it is back no checkpoint, journal entry or partial set is left, and the job runs.
func TestAgentKilledInTheMiddleOfAJob(t *testing.T) {
	s, rng := newSite(t), newRand(t)
	s.newVM(rng, "app", 16<<20)
	d := s.newVM(rng, "db", 32<<20)[0]
	s.eventually(20*time.Second, "the VMs are listed", func() bool {
		var vms []struct{}
		return s.tryJSON(&vms, "vm", "list") == nil && len(vms) == 2
	})
	s.cli("job", "create", "both", "--host", "hv1", "--all", "--pool", "main", "--type", "full", "--set", "group=on")
	start := time.Now()
	s.cli("job", "run", "both", "--follow")
	usual := span(time.Since(start))
	kills := times(30)
	for range kills {
		d.write(rng, 4, 1<<20)
		go s.try("job", "run", "both", "--follow")
		killAfter(rng, usual.limit(), s.agent)
		s.startAgent()
		s.settle("db")
		s.eventually(20*time.Second, "the agent has cleaned up", func() bool {
			left, _ := filepath.Glob(filepath.Join(s.adata, "journal", "*.task"))
			return len(left) == 0
		})
		noLeftovers(t, s)
	}
	s.cli("job", "run", "both", "--follow")
	sets := s.sets("--vm", "db")
	s.export(sets[len(sets)-1].ID, 0, d.truth)
	t.Logf("%d kills, %d sets", kills, len(sets))
}
