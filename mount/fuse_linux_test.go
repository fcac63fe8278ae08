package mount

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// TestAFolderShowsDisks mounts files, reads them, seeks data and holes, and ends the mount while a file is open. Where the machine has no FUSE it
// is said so, with what to do instead.
func TestAFolderShowsDisks(t *testing.T) {
	rng := newRand(t)
	s := newStore(rng, 3<<20)
	s.data = holdfast.Extents{{Off: 1 << 20, Len: 512 << 10}, {Off: 2 << 20, Len: 4096}}
	s.image = make([]byte, 3<<20)
	for _, e := range s.data {
		for i := e.Off; i < e.End(); i++ {
			s.image[i] = byte(rng.Uint32()) | 1
		}
	}
	d := open(t, s, 3<<20)
	<-d.Mapped()
	point := time.Unix(1700000000, 0)
	small := []byte("what the set is")
	files := []File{{Name: "disk.raw", Size: d.Size(), Content: d, Allocated: d.Allocated}, {Name: "set.json", Size: int64(len(small)), Content: bytes.NewReader(small)}}
	dir := t.TempDir()
	if _, err := Show(filepath.Join(dir, "none"), files, FolderOptions{}); !errors.Is(err, holdfast.NotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Show(dir, files, FolderOptions{}); !errors.Is(err, holdfast.Exist) {
		t.Errorf("a folder with something in it: %v", err)
	}
	os.Remove(filepath.Join(dir, "x"))
	f, err := Show(dir, files, FolderOptions{ID: "test", Time: point})
	if _, serr := os.Stat("/dev/fuse"); serr != nil {
		if !errors.Is(err, holdfast.Unsupported) || holdfast.HintOf(err) == "" {
			t.Errorf("without FUSE: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := os.ReadFile(filepath.Join(dir, "disk.raw"))
	if err != nil || !bytes.Equal(b, s.image) {
		t.Errorf("the disk: %v, or it differs", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "set.json")); err != nil || !bytes.Equal(b, small) {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Create(filepath.Join(dir, "new")); !errors.Is(err, syscall.EROFS) {
		t.Errorf("a new file: %v", err)
	}
	st, err := os.Stat(filepath.Join(dir, "disk.raw"))
	if err != nil || !st.ModTime().Equal(point) || st.Size() != d.Size() || st.Mode().Perm() != 0o444 {
		t.Errorf("%+v, %v", st, err)
	}
	in, err := os.Open(filepath.Join(dir, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	const seekData, seekHole = 3, 4
	for _, c := range []struct {
		off    int64
		whence int
		want   int64
	}{{0, seekData, 1 << 20}, {1<<20 + 7, seekHole, 1<<20 + 512<<10}, {5, seekHole, 5}, {1<<20 + 512<<10, seekData, 2 << 20}} {
		if got, err := in.Seek(c.off, c.whence); err != nil || got != c.want {
			t.Errorf("seek %d from %d: %d, %v; want %d", c.whence, c.off, got, err, c.want)
		}
	}
	if _, err := in.Seek(2<<20+8192, seekData); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("data behind the last: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("ending a mount in use: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("afterwards: %v, %v", names, err)
	}
	in.Close()
	<-f.Done()
	if _, err := in.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Error("a closed file is read")
	}
}
