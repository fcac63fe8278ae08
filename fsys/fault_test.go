package fsys

import (
	"errors"
	"syscall"
	"testing"
)

func TestFaultFailsTheChosenOperation(t *testing.T) {
	f := NewFault(NewMem(1))
	must(t, f.MkdirAll("d"))
	w := f.Inject(Rule{Op: OpSync, Glob: "*.dat", Nth: 2, Err: syscall.EIO})
	count := f.Inject(Rule{Op: OpWrite, Glob: "d/*"})
	always := f.Inject(Rule{Op: OpRemove, Times: Forever, Err: syscall.EPERM})
	file, err := f.Create("d/a.dat")
	must(t, err)
	for i, want := range []error{nil, syscall.EIO, nil} {
		if err := second(file.Write([]byte("x"))); err != nil {
			t.Error(err)
		}
		if err := file.Sync(); !errors.Is(err, want) {
			t.Errorf("sync %d: %v", i, err)
		}
	}
	must(t, file.Close())
	put(t, f, "d/b.txt", "x", true)
	if w.Matched() != 3 || w.Failed() != 1 || count.Matched() != 4 || count.Failed() != 0 || f.Count(OpSync) != 4 || f.Count(OpAny) == 0 {
		t.Errorf("%d %d %d %d", w.Matched(), w.Failed(), count.Matched(), f.Count(OpSync))
	}
	for range 2 {
		if err := f.Remove("d/b.txt"); !errors.Is(err, syscall.EPERM) {
			t.Error(err)
		}
	}
	if always.Failed() != 2 {
		t.Error(always.Failed())
	}
	f.Clear()
	must(t, f.Remove("d/b.txt"))
}

func TestFullMediumTakesWhatFitsAndGetsSpaceBack(t *testing.T) {
	f := NewFault(NewMem(1))
	f.SetFree(1000)
	a, err := f.Create("a")
	must(t, err)
	must(t, a.Preallocate(600))
	n, err := a.Write(make([]byte, 600))
	if n != 600 || err != nil {
		t.Errorf("reserved: %d %v", n, err)
	}
	n, err = a.Write(make([]byte, 600))
	if n != 400 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("full: %d %v", n, err)
	}
	if _, err := a.WriteAt(make([]byte, 1000), 0); err != nil {
		t.Errorf("overwriting: %v", err)
	}
	must(t, a.Truncate(900))
	must(t, f.Link("a", "b"))
	must(t, f.Rename("b", "c"))
	must(t, f.Remove("a"))
	if free, _, err := f.Usage("."); err != nil || free != 100 {
		t.Errorf("free %d %v", free, err)
	}
	put(t, f, "small", "0123456789", true)
	must(t, f.Rename("small", "c"))
	if free, _, err := f.Usage("."); err != nil || free != 990 {
		t.Errorf("free %d %v", free, err)
	}
	b, err := f.Create("b")
	must(t, err)
	if err := b.Preallocate(2000); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	if free, _, err := f.Usage("."); err != nil || free != 990 {
		t.Errorf("a refused reservation took space: %d %v", free, err)
	}
	must(t, a.Close())
	must(t, b.Close())
}
