package fsys

import (
	"errors"
	"syscall"
	"testing"
)

// Goal: a ballast takes space only where it leaves as much free, gives all of it back when asked on a full medium, and is made again later.
func TestBallastIsGivenBackAndMadeAgain(t *testing.T) {
	f := NewFault(NewMem(1))
	f.SetFree(100 << 20)
	b := NewBallast(f, "~reserve", 32<<20)
	if held, err := b.Keep(); held != 32<<20 || err != nil {
		t.Fatal(held, err)
	}
	if free, _, _ := f.Usage("."); free != 68<<20 {
		t.Fatalf("%d bytes free", free)
	}
	w, err := f.Create("data")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 80<<20)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if n, err := b.Release(); n != 32<<20 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := b.Release(); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if held, err := b.Keep(); held != 0 || err != nil {
		t.Fatalf("%d bytes kept back on a medium that is nearly full: %v", held, err)
	}
	if err := errors.Join(w.Close(), f.Remove("data")); err != nil {
		t.Fatal(err)
	}
	f.Inject(Rule{Op: OpPreallocate, Nth: 3, Err: syscall.ENOSPC})
	if held, err := b.Keep(); held != 16<<20 || err == nil || b.Held() != held {
		t.Fatal(held, err)
	}
	if held, err := NewBallast(f, "~reserve", 32<<20).Keep(); held != 32<<20 || err != nil {
		t.Fatal(held, err)
	}
}
