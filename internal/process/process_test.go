package process

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

// What the administrator says in the environment is not overruled.
func TestLimitLeavesTheEnvironmentAlone(t *testing.T) {
	old := debug.SetGCPercent(100)
	defer debug.SetGCPercent(old)
	t.Setenv("GOGC", "100")
	Limit(Memory{Percent: 7})
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("GOGC was set, but the percentage became %d", got)
	}
	t.Setenv("GOGC", "")
	Limit(Memory{Percent: 7})
	if got := debug.SetGCPercent(100); got != 7 {
		t.Errorf("the percentage is %d, want 7", got)
	}
}

func TestProfilesAreMadeOnlyWhenAskedFor(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		t.Setenv(ProfileVar, dir)
		stop, err := Profile("x")
		if err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if dir == "" {
			continue
		}
		names, err := filepath.Glob(filepath.Join(dir, "x.*.cpu.pprof"))
		if err != nil || len(names) != 1 {
			t.Errorf("%v, %v", names, err)
		}
		if info, err := os.Stat(names[0]); err != nil || info.Size() == 0 {
			t.Error("the profile is empty", err)
		}
	}
}
