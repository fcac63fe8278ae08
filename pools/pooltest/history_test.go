package pooltest_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

// soak returns n, times the number in HOLDFAST_SOAK.
func soak(t *testing.T, n int) int {
	t.Helper()
	if s := os.Getenv("HOLDFAST_SOAK"); s != "" {
		k, err := strconv.Atoi(s)
		if err != nil || k < 1 || k > 1000 {
			t.Fatalf("HOLDFAST_SOAK is %q; 1 to 1000 are allowed", s)
		}
		return n * k
	}
	return n
}

// TestHistoriesRestoreWhatWasBackedUp runs random histories on two pools side by side.
func TestHistoriesRestoreWhatWasBackedUp(t *testing.T) {
	for seed := range uint64(soak(t, 6)) {
		pooltest.RunHistory(t, pooltest.History{Seed: seed, Steps: 120, Pools: map[string]pooltest.Harness{
			"one": faultyHarness(fault{}), "two": faultyHarness(fault{}),
		}})
	}
}

// TestHistoriesFindFaults: a fault that shows only now and then is found, and the history that shows it is made short.
func TestHistoriesFindFaults(t *testing.T) {
	for name, f := range map[string]fault{
		"cuts long places": {parcel: func(p *holdfast.Parcel) {
			for i := range p.Places {
				p.Places[i].Len = min(p.Places[i].Len, 8000)
			}
		}},
		"forgets long zeros": {place: func(refs []holdfast.Ref) []holdfast.Ref {
			out := refs[:0]
			for _, r := range refs {
				if !r.Digest.IsZero() || r.Len < 2000 {
					out = append(out, r)
				}
			}
			return out
		}},
		"answers from a cache that a collect does not clear": faults["answers from a cache that a collect does not clear"].f,
	} {
		r := &logger{}
		for seed := uint64(0); seed < 10 && len(r.errs) == 0; seed++ {
			pooltest.RunHistory(r, pooltest.History{Seed: seed, Steps: 120, Pools: map[string]pooltest.Harness{
				"faulty": faultyHarness(f), "good": faultyHarness(fault{}),
			}})
		}
		if len(r.errs) == 0 {
			t.Errorf("%s: ten histories found nothing", name)
			continue
		}
		short := 0
		for _, l := range r.logs {
			if strings.Contains(l, ": step ") {
				short++
			}
		}
		if short > 20 {
			t.Errorf("%s: a failing history was printed with %d steps; it should have been made shorter", name, short)
		}
		t.Logf("%s: %d steps: %s", name, short, r.errs[0])
	}
}

// A logger is a recorder that remembers what was logged, too.
type logger struct {
	recorder
	logs []string
}

func (l *logger) Logf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.logs = append(l.logs, fmt.Sprintf(format, args...))
}
