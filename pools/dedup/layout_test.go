package dedup

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
)

// Goal: a pool's folder looks as it always did, whatever the engine calls its objects, so that every pool there is opens.
func TestFolderLayoutIsTheSame(t *testing.T) {
	f := fsys.NewMem(1)
	l := newLab(t, f)
	id := l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: noise(rand.New(rand.NewPCG(1, 1)), 64<<10)}))
	top, err := f.List(".")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"HOLDFAST", "HOLDFAST.copy", "OWNER", "containers", "index", "lock", "sets", "staging"}; !slices.Equal(top, want) {
		t.Errorf("the folder holds %q, want %q", top, want)
	}
	for _, name := range []string{"sets/" + id.String() + ".set", "containers/00/0000000100000001", "containers/00/0000000100000002"} {
		if _, err := f.Stat(name); err != nil {
			t.Error(err)
		}
	}
	// The last container and the last set leave their folders behind: an empty pool is not one whose folders are lost.
	if err := l.p.Delete(background, id); err != nil {
		t.Fatal(err)
	}
	l.collect()
	for _, dir := range []string{setsDir, containersDir} {
		if names, err := f.List(dir); err != nil || len(names) != 0 {
			t.Errorf("%s holds %q: %v", dir, names, err)
		}
	}
	l.reopen()
}

// Goal: a lost folder is never taken for an empty one, neither at open nor by a Collect.
func TestLostFoldersAreNotTakenForEmptyOnes(t *testing.T) {
	for _, dir := range []string{setsDir, containersDir} {
		f := fsys.NewMem(1)
		l := newLab(t, f)
		if err := f.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := l.p.Collect(background, pools.CollectOptions{}); dir == setsDir && !errors.Is(err, holdfast.Corrupt) {
			t.Errorf("collect without %s: %v", dir, err)
		}
		m, err := dirstore.Open(layout{f}, dirstore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.List(background, dir); !errors.Is(err, holdfast.Corrupt) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("list %s: %v", dir, err)
		}
		if err := f.MkdirAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// Goal: the engine runs on any store, and throws away no truth with the index store.
func TestAPoolOnAStoreIsRebuiltFromIt(t *testing.T) {
	store, err := dirstore.Open(fsys.NewMem(1), dirstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	id := holdfast.PoolID{ID: holdfast.NewID()}
	o := CreateOptions{Kind: "other", Chunking: defaultChunking(t)}
	if err := CreateStore(background, pools.Env{}, store, id, o); err != nil {
		t.Fatal(err)
	}
	if err := CreateStore(background, pools.Env{}, store, id, o); !errors.Is(err, holdfast.Exist) {
		t.Errorf("create again: %v", err)
	}
	if _, err := OpenStore(background, pools.Env{}, store, id, OpenOptions{}); !errors.Is(err, holdfast.Unsupported) {
		t.Errorf("open as another kind: %v", err)
	}
	env := pools.Env{StateDir: t.TempDir()}
	l := &lab{t: t, id: id, vm: holdfast.VMID{ID: holdfast.NewID()}, disk: holdfast.DiskID{ID: holdfast.NewID()}}
	img := noise(rand.New(rand.NewPCG(1, 1)), 1<<20)
	var set holdfast.SetID
	for i := range 3 {
		if l.p, err = OpenStore(background, env, store, id, OpenOptions{Kind: "other"}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			set = l.must(l.backup(1<<20, holdfast.SetID{}, write{bytes: img}))
		}
		l.same(set, img)
		if err := l.p.Close(); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			env.StateDir = "" // and nothing else is known of the pool
		}
	}
}
