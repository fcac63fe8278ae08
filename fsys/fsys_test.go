package fsys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast"
)

// eachFS runs a test on every implementation: they must not be told apart by what the interface promises.
func eachFS(t *testing.T, test func(t *testing.T, f FS)) {
	t.Run("OS", func(t *testing.T) {
		f, err := NewOS(t.TempDir())
		must(t, err)
		test(t, f)
	})
	t.Run("Mem", func(t *testing.T) { test(t, NewMem(1)) })
	t.Run("Fault", func(t *testing.T) {
		f := NewFault(NewMem(1))
		f.SetFree(1 << 30)
		test(t, f)
	})
	t.Run("Sub", func(t *testing.T) {
		m := NewMem(1)
		must(t, m.MkdirAll("deep/down"))
		test(t, Sub(m, "deep/down"))
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, f FS, name, data string, syncIt bool) {
	t.Helper()
	w, err := f.Create(name)
	must(t, err)
	_, err = w.Write([]byte(data))
	must(t, err)
	if syncIt {
		must(t, w.Sync())
	}
	must(t, w.Close())
}

func get(t testing.TB, f FS, name string) string {
	t.Helper()
	b, err := ReadFile(f, name, 1<<30)
	must(t, err)
	return string(b)
}

func TestNamesBehaveAlikeOnEveryFileSystem(t *testing.T) {
	eachFS(t, func(t *testing.T, f FS) {
		must(t, f.MkdirAll("a/b"))
		must(t, f.MkdirAll("a/b"))
		put(t, f, "a/x", "one", true)
		put(t, f, "a/b/y", "two", true)
		steps := []struct {
			name string
			err  error
			want error
		}{
			{"create a taken name", second(f.Create("a/x")), fs.ErrExist},
			{"create without folder", second(f.Create("no/x")), fs.ErrNotExist},
			{"open what is not there", second(f.Open("a/no")), fs.ErrNotExist},
			{"open for writing what is not there", second(f.OpenWrite("a/no")), fs.ErrNotExist},
			{"link to a taken name", f.Link("a/x", "a/b/y"), fs.ErrExist},
			{"link what is not there", f.Link("a/no", "a/z"), fs.ErrNotExist},
			{"rename what is not there", f.Rename("a/no", "a/z"), fs.ErrNotExist},
			{"remove what is not there", f.Remove("a/no"), fs.ErrNotExist},
			{"remove a folder in use", f.Remove("a"), syscall.ENOTEMPTY},
			{"file as folder", second(f.Open("a/x/y")), syscall.ENOTDIR},
			{"list what is not there", second(f.List("no")), fs.ErrNotExist},
			{"stat what is not there", second(f.Stat("no")), fs.ErrNotExist},
			{"sync a folder that is not there", f.SyncDir("no"), fs.ErrNotExist},
			{"mkdir over a file", f.MkdirAll("a/x"), syscall.ENOTDIR},
			{"write a folder", second(f.OpenWrite("a")), syscall.EISDIR},
		}
		for _, s := range steps {
			if !errors.Is(s.err, s.want) {
				t.Errorf("%s: %v, want %v", s.name, s.err, s.want)
			}
		}
		must(t, f.Link("a/x", "a/z"))
		must(t, f.Rename("a/x", "a/b/y"))
		if got := get(t, f, "a/b/y"); got != "one" {
			t.Errorf("after rename: %q", got)
		}
		names, err := f.List("a")
		must(t, err)
		if !slices.Equal(names, []string{"b", "z"}) {
			t.Errorf("list: %q", names)
		}
		st, err := f.Stat("a/z")
		must(t, err)
		if st.Size() != 3 || st.IsDir() || st.Name() != "z" {
			t.Errorf("stat: %v %v %v", st.Size(), st.IsDir(), st.Name())
		}
		must(t, f.SyncDir("a"))
		must(t, f.SyncDir("."))
		must(t, f.Remove("a/z"))
		must(t, f.Remove("a/b/y"))
		must(t, f.Remove("a/b"))
		free, size, err := f.Usage(".")
		must(t, err)
		if free <= 0 || size < free {
			t.Errorf("usage: %d of %d", free, size)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestNamesThatLeadOutAreRefused(t *testing.T) {
	eachFS(t, func(t *testing.T, f FS) {
		for _, name := range []string{"..", "../x", "a/../../x", "a/..", "/etc/passwd", "a\x00b"} {
			for op, err := range map[string]error{
				"create": second(f.Create(name)), "open": second(f.Open(name)), "write": second(f.OpenWrite(name)),
				"rename from": f.Rename(name, "x"), "rename to": f.Rename("x", name), "link": f.Link("x", name),
				"remove": f.Remove(name), "mkdir": f.MkdirAll(name), "list": second(f.List(name)), "stat": second(f.Stat(name)),
				"sync": f.SyncDir(name), "lock": second(f.Lock(name)),
			} {
				if holdfast.KindOf(err) != holdfast.Invalid || err == nil {
					t.Errorf("%s %q: %v", op, name, err)
				}
			}
		}
		if err := Sub(f, "../x").MkdirAll("y"); holdfast.KindOf(err) != holdfast.Invalid || err == nil {
			t.Errorf("sub: %v", err)
		}
	})
}

func TestLockIsHeldOnce(t *testing.T) {
	eachFS(t, func(t *testing.T, f FS) {
		l, err := f.Lock("LOCK")
		must(t, err)
		if _, err := f.Lock("LOCK"); !errors.Is(err, holdfast.Busy) || holdfast.HintOf(err) == "" {
			t.Errorf("second lock: %v", err)
		} else {
			t.Log(err)
		}
		must(t, l.Close())
		l, err = f.Lock("LOCK")
		must(t, err)
		must(t, l.Close())
	})
}

// TestFilesBehaveAlikeOnEveryFileSystem writes, reads and truncates at random and compares with a plain slice of bytes.
func TestFilesBehaveAlikeOnEveryFileSystem(t *testing.T) {
	eachFS(t, func(t *testing.T, f FS) {
		const seed = 7
		rng := rand.New(rand.NewPCG(seed, 0))
		w, err := f.Create("f")
		must(t, err)
		must(t, w.Preallocate(100000))
		var model []byte
		check := func(i int) {
			b := make([]byte, len(model)+10)
			n, err := w.ReadAt(b, 0)
			if err != io.EOF || !bytes.Equal(b[:n], model) {
				t.Fatalf("seed %d, step %d: read %d bytes, %v; want %d", seed, i, n, err, len(model))
			}
		}
		for i := range 400 {
			switch rng.IntN(8) {
			case 0:
				n := rng.IntN(60000)
				must(t, w.Truncate(int64(n)))
				model = slices.Grow(model, 60000)[:max(n, len(model))]
				if n < len(model) {
					clear(model[n:])
				}
				model = model[:n]
			case 1:
				must(t, w.Sync())
			case 2:
				if m, ok := f.(*Mem); ok {
					s := m.Snapshot()
					defer func(want []byte) {
						if got := get(t, s, "f"); got != string(want) {
							t.Errorf("snapshot after step %d changed", i)
						}
					}(bytes.Clone(model))
				}
			default:
				p := bytes.Repeat([]byte{byte(i), byte(i >> 8), 1}, rng.IntN(3000))
				off := rng.IntN(50000)
				if _, err := w.WriteAt(p, int64(off)); err != nil {
					t.Fatal(err)
				}
				if end := off + len(p); len(p) > 0 && end > len(model) {
					old := len(model)
					model = slices.Grow(model, end-old)[:end]
					clear(model[old:])
				}
				copy(model[min(off, len(model)):], p)
			}
			check(i)
		}
		w.DropCache()
		must(t, w.Close())
		if err := second(w.ReadAt(make([]byte, 1), 0)); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
		if got := get(t, f, "f"); got != string(model) {
			t.Error("another content after reopening")
		}
	})
}

func TestSequentialReadsAndWrites(t *testing.T) {
	eachFS(t, func(t *testing.T, f FS) {
		var want []byte
		w, err := f.Create("f")
		must(t, err)
		for i := range 50 {
			line := fmt.Appendf(nil, "line %d %s\n", i, bytes.Repeat([]byte("x"), i*13))
			want = append(want, line...)
			_, err := w.Write(line)
			must(t, err)
		}
		must(t, w.Close())
		r, err := f.Open("f")
		must(t, err)
		got, err := io.ReadAll(r)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes, want %d", len(got), len(want))
		}
		if err := second(r.WriteAt([]byte("x"), 0)); err == nil {
			t.Error("a file opened for reading was written")
		}
		must(t, r.Close())
	})
}

func TestReplaceSurvivesLeftOverTemporaryFile(t *testing.T) {
	eachFS(t, func(t *testing.T, f FS) {
		put(t, f, "state"+TempSuffix, "rubbish", false)
		must(t, Replace(f, "state", []byte("one")))
		must(t, Replace(f, "state", []byte("two")))
		if got := get(t, f, "state"); got != "two" {
			t.Errorf("%q", got)
		}
		if _, err := ReadFile(f, "state", 2); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("a file longer than the limit: %v", err)
		}
		names, err := f.List(".")
		must(t, err)
		if len(names) != 1 {
			t.Errorf("left: %q", names)
		}
	})
}
