package fsys

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

func crash(m *Mem, seed uint64, keep int) *Mem {
	return m.Crash(rand.New(rand.NewPCG(seed, 2)), keep)
}

func exists(f FS, name string) bool { _, err := f.Stat(name); return err == nil }

func TestCrashKeepsWhatWasSyncedAndMayLoseTheRest(t *testing.T) {
	m := NewMem(1)
	must(t, m.MkdirAll("d"))
	put(t, m, "d/synced", "synced", true)
	must(t, m.SyncDir("d"))
	put(t, m, "d/noname", "synced bytes, unsynced name", true)
	put(t, m, "d/nobytes", "unsynced bytes", false)
	w, err := m.OpenWrite("d/synced")
	must(t, err)
	_, err = w.WriteAt([]byte("SYNCED and longer"), 0)
	must(t, err)
	must(t, w.Close())

	none := crash(m, 1, 0)
	if got := get(t, none, "d/synced"); got != "synced" {
		t.Errorf("synced file: %q", got)
	}
	if exists(none, "d/noname") || exists(none, "d/nobytes") {
		t.Error("a name survived that was not synced")
	}
	every := crash(m, 1, 100)
	if got := get(t, every, "d/synced"); got != "SYNCED and longer" {
		t.Errorf("all kept: %q", got)
	}
	if get(t, every, "d/nobytes") != "unsynced bytes" {
		t.Error("all kept, but not the new file")
	}
	if got := get(t, m, "d/synced"); got != "SYNCED and longer" {
		t.Errorf("the original changed: %q", got)
	}
	seen := map[string]bool{}
	for seed := range uint64(200) {
		c := crash(m, seed, 50)
		seen[fmt.Sprint(exists(c, "d/noname"))] = true
		seen[get(t, c, "d/synced")] = true
		if exists(c, "d/noname") && get(t, c, "d/noname") != "synced bytes, unsynced name" {
			t.Errorf("seed %d: synced bytes were lost", seed)
		}
	}
	for _, s := range []string{"true", "false", "synced", "SYNCED and longer"} {
		if !seen[s] {
			t.Errorf("never seen: %q", s)
		}
	}
}

func TestReplaceIsAtomicAndDurable(t *testing.T) {
	for seed := range uint64(200) {
		m := NewMem(seed)
		must(t, Replace(m, "f", []byte("zero")))
		var images []*Mem
		m.OnSync(func(op, name string) { images = append(images, crash(m, seed, int(seed%101))) })
		must(t, Replace(m, "f", []byte("one")))
		for i, c := range images {
			if got := get(t, c, "f"); got != "zero" && got != "one" {
				t.Errorf("seed %d, point %d: %q", seed, i, got)
			}
		}
		if len(images) != 2 {
			t.Errorf("%d sync points", len(images))
		}
		if got := get(t, crash(m, seed, 0), "f"); got != "one" {
			t.Errorf("seed %d: %q", seed, got)
		}
	}
}

func TestRenameNeverLosesTheFile(t *testing.T) {
	for seed := range uint64(300) {
		for _, sync := range []string{"", "a", "b"} {
			m := NewMem(seed)
			must(t, m.MkdirAll("a"))
			must(t, m.MkdirAll("b"))
			put(t, m, "a/f", "x", true)
			must(t, m.SyncDir("a"))
			must(t, m.Rename("a/f", "b/g"))
			if sync != "" {
				must(t, m.SyncDir(sync))
			}
			c := crash(m, seed, int(seed%101))
			if !exists(c, "a/f") && !exists(c, "b/g") {
				t.Fatalf("seed %d, synced %q: the file is gone", seed, sync)
			}
			if sync == "b" && !exists(c, "b/g") || sync == "a" && exists(c, "a/f") {
				t.Fatalf("seed %d: synced name %q is not what it was", seed, sync)
			}
		}
	}
}

// TestCrashTearsByPagesAndLengths writes a synced prefix and an unsynced tail: each page is old or new, the length is between.
func TestCrashTearsByPagesAndLengths(t *testing.T) {
	torn, short := 0, 0
	for seed := range uint64(200) {
		m := NewMem(seed)
		w, err := m.Create("f")
		must(t, err)
		_, err = w.Write(bytes.Repeat([]byte("o"), 3*memPage))
		must(t, err)
		must(t, w.Sync())
		must(t, m.SyncDir("."))
		_, err = w.WriteAt(bytes.Repeat([]byte("n"), 4*memPage+100), 0)
		must(t, err)
		got := get(t, crash(m, seed, 50), "f")
		if len(got) < 3*memPage || len(got) > 4*memPage+100 {
			t.Fatalf("seed %d: %d bytes", seed, len(got))
		}
		if len(got) < 4*memPage+100 {
			short++
		}
		kinds := map[byte]bool{}
		for p := range 3 {
			page := got[p*memPage : (p+1)*memPage]
			kinds[page[0]] = true
			if page != string(bytes.Repeat([]byte{page[0]}, memPage)) || page[0] != 'o' && page[0] != 'n' {
				t.Fatalf("seed %d: page %d is mixed", seed, p)
			}
		}
		if len(kinds) == 2 {
			torn++
		}
		must(t, w.Close())
	}
	if torn == 0 || short == 0 {
		t.Errorf("%d torn, %d short", torn, short)
	}
}

func TestSnapshotCrashesAsTheOriginalWould(t *testing.T) {
	m := NewMem(1)
	must(t, m.MkdirAll("d"))
	for i := range 50 {
		put(t, m, fmt.Sprintf("d/%02d", i), "some bytes", i%2 == 0)
	}
	s := m.Snapshot()
	want := dump(t, crash(m, 9, 50))
	for i := range 50 {
		must(t, m.Remove(fmt.Sprintf("d/%02d", i)))
	}
	if got := dump(t, crash(s, 9, 50)); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func dump(t *testing.T, m *Mem) string {
	out := ""
	names, err := m.List("d")
	must(t, err)
	for _, n := range names {
		out += n + "=" + get(t, m, "d/"+n) + " "
	}
	return out
}

func TestHaltStopsWhoeverHoldsTheFileSystem(t *testing.T) {
	m := NewMem(1)
	off := errors.New("power is off")
	w, err := m.Create("f")
	must(t, err)
	m.OnSync(func(string, string) { m.Halt(off) })
	if err := w.Sync(); err != off {
		t.Error(err)
	}
	if _, err := w.Write([]byte("x")); err != off {
		t.Error(err)
	}
	if err := second(m.Create("g")); err != off {
		t.Error(err)
	}
	if exists(crash(m, 1, 0), "f") {
		t.Error("an unsynced name survived")
	}
}
