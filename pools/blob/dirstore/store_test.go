package dirstore

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/blobtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t blobtest.T, f fsys.FS) *Store {
	s, err := Open(f, Options{})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func TestStoreOnRealFilesKeepsTheLaw(t *testing.T) {
	h := blobtest.Harness{
		New: func(bt blobtest.T) blob.Store {
			f, err := fsys.NewOS(t.TempDir())
			if err != nil {
				bt.Fatalf("%v", err)
			}
			return open(bt, f)
		},
		Reopen: func(bt blobtest.T, s blob.Store) blob.Store { return open(bt, s.(*Store).fs) },
	}
	for _, c := range blobtest.Checks() {
		t.Run(c.Name, func(t *testing.T) { c.Run(t, h) })
	}
}

func TestStoreInMemoryKeepsTheLaw(t *testing.T) {
	h := blobtest.Harness{
		New:    func(bt blobtest.T) blob.Store { return open(bt, fsys.NewMem(1)) },
		Reopen: func(bt blobtest.T, s blob.Store) blob.Store { return open(bt, s.(*Store).fs) },
		Crash: func(bt blobtest.T, s blob.Store) blob.Store {
			m := s.(*Store).fs.(*fsys.Mem)
			left := m.Crash(nil, 50)
			m.Halt(errors.New("the machine is off"))
			return open(bt, left)
		},
	}
	for _, c := range blobtest.Checks() {
		t.Run(c.Name, func(t *testing.T) { c.Run(t, h) })
	}
}
