// Package process is what the programs ask of the Go runtime: how much memory to live in, and profiles for the bench.
//
// Packages below the programs do not use it: they bound what they hold, and leave it to the program what the collector makes of
// that. It imports nothing of the house but the clock.
package process

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"time"

	"github.com/holdfast-backup/holdfast/internal/clock"
)

// ProfileVar names the environment variable with the folder that profiles go to; unset or empty: none are made.
const ProfileVar = "HOLDFAST_PROFILE"

// Memory says how a program's heap grows.
type Memory struct {
	// Percent is the growth over the live heap after which the collector runs (GOGC). The engine's large buffers are made once and used
	// again, so that little garbage is made and a small number costs little.
	Percent int
	// Soft is the number of bytes up to which the heap may grow before the collector runs at all; the runtime collects harder near
	// it, and never fails because of it. 0: none.
	Soft int64
}

// Limit applies m, unless the environment says otherwise: GOGC and GOMEMLIMIT are the administrator's.
func Limit(m Memory) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(m.Percent)
	}
	if os.Getenv("GOMEMLIMIT") == "" && m.Soft > 0 {
		debug.SetMemoryLimit(m.Soft)
	}
}

const (
	sampleEvery = 100 * time.Millisecond
	heapStep    = 20 // a heap profile replaces the one before when the heap is so many percent larger
)

// Profile starts to write NAME.PID.cpu.pprof and, at the largest heap seen, NAME.PID.heap.pprof into the folder that ProfileVar names. The
// function returned ends it. Without the variable both do nothing.
func Profile(name string) (stop func() error, err error) {
	dir := os.Getenv(ProfileVar)
	if dir == "" {
		return func() error { return nil }, nil
	}
	base := filepath.Join(dir, name+"."+strconv.Itoa(os.Getpid()))
	cpu, err := os.Create(base + ".cpu.pprof")
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, errors.Join(err, cpu.Close())
	}
	quit, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- watchHeap(base+".heap.pprof", quit) }()
	return func() error {
		close(quit)
		err := <-done
		pprof.StopCPUProfile()
		return errors.Join(err, cpu.Close())
	}, nil
}

// watchHeap keeps a profile of the heap at its largest.
func watchHeap(path string, quit chan struct{}) error {
	var largest uint64
	for {
		tick, stop := clock.System.After(sampleEvery)
		select {
		case <-quit:
			stop()
			return nil
		case <-tick:
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if m.HeapInuse < largest+largest*heapStep/100 {
			continue
		}
		largest = m.HeapInuse
		if err := writeHeap(path); err != nil {
			return err
		}
	}
}

func writeHeap(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(pprof.WriteHeapProfile(f), f.Close())
}
