package pooltest_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"io/fs"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/memory"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

// This file has the smallest pool that lives in files, to test the crash test with: a memory pool whose whole state is written
// to one file by every commit, deletion and collection. It can be sloppy in ways that the crash test has to find.

type filed struct {
	*memory.Pool
	medium *memory.Medium
	fs     fsys.FS
	sloppy string
	mu     sync.Mutex
}

const stateFile = "pool/state"

func openFiled(fsys fsys.FS, sloppy string) (pools.Pool, error) {
	m, err := loadState(fsys)
	if errors.Is(err, fs.ErrNotExist) {
		c, _ := holdfast.ParseChunking("")
		m, err = memory.NewMedium(holdfast.PoolID{ID: holdfast.NewID()}, c)
	}
	if err != nil {
		return nil, err
	}
	p, err := m.Open()
	if err != nil {
		return nil, err
	}
	f := &filed{Pool: p, medium: m, fs: fsys, sloppy: sloppy}
	return f, f.save("open")
}

func loadState(fs fsys.FS) (*memory.Medium, error) {
	if err := fs.MkdirAll("pool"); err != nil {
		return nil, err
	}
	f, err := fs.Open(stateFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var s memory.State
	if err := gob.NewDecoder(f).Decode(&s); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, "load state", "%w", err)
	}
	return memory.FromState(s)
}

// save makes the state durable.
func (f *filed) save(what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(f.medium.State()); err != nil {
		return err
	}
	temp := stateFile + ".tmp"
	if err := f.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if f.sloppy == "writes in place" {
		temp = stateFile
		if err := f.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := f.write(temp, b.Bytes()); err != nil {
		return err
	}
	if temp != stateFile {
		if err := f.fs.Rename(temp, stateFile); err != nil {
			return err
		}
	}
	if f.sloppy == "does not sync the folder" || f.sloppy == "does not sync deletions" && what == "delete" {
		return nil
	}
	return f.fs.SyncDir("pool")
}

func (f *filed) write(name string, p []byte) error {
	w, err := f.fs.Create(name)
	if err != nil {
		return err
	}
	if _, err := w.Write(p); err != nil {
		return err
	}
	if f.sloppy != "does not sync the file" {
		if err := w.Sync(); err != nil {
			return err
		}
	}
	return w.Close()
}

func (f *filed) Delete(ctx context.Context, id holdfast.SetID) error {
	if err := f.Pool.Delete(ctx, id); err != nil {
		return err
	}
	return f.save("delete")
}

func (f *filed) Collect(ctx context.Context, o pools.CollectOptions) (pools.CollectReport, error) {
	r, err := f.Pool.Collect(ctx, o)
	if err != nil {
		return r, err
	}
	return r, f.save("collect")
}

func (f *filed) Begin(ctx context.Context, m holdfast.Manifest) (pools.Session, error) {
	s, err := f.Pool.Begin(ctx, m)
	if err != nil {
		return nil, err
	}
	return &filedSession{s, f}, nil
}

type filedSession struct {
	pools.Session
	f *filed
}

// Commit commits in memory first: nobody is told before the file is there.
func (s *filedSession) Commit(ctx context.Context, m holdfast.Manifest) (pools.Receipt, error) {
	r, err := s.Session.Commit(ctx, m)
	if err != nil {
		return r, err
	}
	return r, s.f.save("commit")
}

// TestCrashesOfASoundPool: the pool above loses nothing at whatever sync point the power is cut.
func TestCrashesOfASoundPool(t *testing.T) {
	for seed := range uint64(soak(t, 2)) {
		n := pooltest.RunCrashes(t, pooltest.Crashes{Seed: seed, Steps: 40, Points: 150,
			Open: func(fs fsys.FS) (pools.Pool, error) { return openFiled(fs, "") }})
		if n != 150 {
			t.Errorf("%d images were looked at, want 150", n)
		}
	}
}

// TestCrashesFindSloppiness: each way to make too little durable is found.
func TestCrashesFindSloppiness(t *testing.T) {
	for _, sloppy := range []string{"writes in place", "does not sync the file", "does not sync the folder", "does not sync deletions"} {
		r := &recorder{}
		for seed := uint64(0); seed < 4 && len(r.errs) == 0; seed++ {
			pooltest.RunCrashes(r, pooltest.Crashes{Seed: seed, Steps: 40, Points: 100,
				Open: func(fs fsys.FS) (pools.Pool, error) { return openFiled(fs, sloppy) }})
		}
		if len(r.errs) == 0 {
			t.Errorf("%s: not found", sloppy)
			continue
		}
		t.Logf("%s: %.400s", sloppy, r.errs[0])
	}
}

// TestChecksNeedNotBeAbleToCrash: the checks do without the hooks that a harness need not have.
func TestChecksNeedNotBeAbleToCrash(t *testing.T) {
	at := map[pools.Pool]fsys.FS{}
	open := func(t pooltest.T, fs fsys.FS) pools.Pool {
		p, err := openFiled(fs, "")
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		at[p] = fs
		return p
	}
	h := pooltest.Harness{
		New: func(t pooltest.T) pools.Pool { return open(t, fsys.NewMem(1)) },
		Reopen: func(t pooltest.T, p pools.Pool) pools.Pool {
			if err := p.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return open(t, at[p])
		},
	}
	pooltest.Run(t, h)
}
