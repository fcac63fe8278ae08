package standard

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
)

func want(t *testing.T, err error, k holdfast.Kind) {
	t.Helper()
	if err == nil || holdfast.KindOf(err) != k {
		t.Errorf("got %v, want %v", err, k)
	}
}

func config(t *testing.T, chunking string, dirs ...string) json.RawMessage {
	t.Helper()
	c := Config{Chunking: chunking}
	for _, d := range dirs {
		c.Paths = append(c.Paths, PathConfig{Path: d})
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Goal: the driver keeps pools in real folders: made once, locked while open, told apart by their id, opened without a lost folder.
func TestDriverKeepsPoolsInFolders(t *testing.T) {
	dir := t.TempDir()
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	d, id := Driver(), holdfast.PoolID{ID: holdfast.NewID()}
	both := config(t, "fixed-64K", a, b)
	_, err := d.Open(background, pools.Env{}, id, both)
	want(t, err, holdfast.NotExist)
	if err := d.Create(background, pools.Env{}, id, both); err != nil {
		t.Fatal(err)
	}
	want(t, d.Create(background, pools.Env{}, id, both), holdfast.Exist)
	want(t, d.Create(background, pools.Env{}, holdfast.PoolID{ID: holdfast.NewID()}, config(t, "", a)), holdfast.Exist)
	for _, bad := range []string{`{}`, `{"paths":[]}`, `{"paths":[{"path":""}]}`, `{"paths":[{"path":"x","quota":-1}]}`, `{"paths":[{"path":"x"}],"size":1}`,
		`{"paths":[{"path":"x"},{"path":"x"}]}`} {
		want(t, d.Create(background, pools.Env{}, id, []byte(bad)), holdfast.Invalid)
	}
	want(t, d.Create(background, pools.Env{}, id, []byte(fmt.Sprintf(`{"paths":[{"path":%q}],"chunking":"odd"}`, c))), holdfast.Invalid)
	_, err = d.Open(background, pools.Env{}, holdfast.PoolID{ID: holdfast.NewID()}, both)
	want(t, err, holdfast.Invalid)
	p, err := d.Open(background, pools.Env{}, id, both)
	if err != nil {
		t.Fatal(err)
	}
	if c := p.Traits().Chunking; p.Traits().ID != id || c.String() != "fixed-64K" {
		t.Errorf("traits: %+v", p.Traits())
	}
	_, err = d.Open(background, pools.Env{}, id, both)
	want(t, err, holdfast.Busy)
	_, err = d.Open(background, pools.Env{}, id, config(t, "", b, a)) // in another order
	want(t, err, holdfast.Busy)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	want(t, AddPath(background, pools.Env{}, id, config(t, "", a), PathConfig{Path: c}), holdfast.Offline)
	if err := AddPath(background, pools.Env{}, id, both, PathConfig{Path: c}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(b); err != nil {
		t.Fatal(err)
	}
	if p, err = d.Open(background, pools.Env{}, id, config(t, "", c, b, a)); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, err := range p.Sets(background) {
		want(t, err, holdfast.Offline)
		n++
	}
	if n != 1 {
		t.Errorf("%d lost paths are told", n)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}
