package dirstore

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/blobtest"
)

func medium(media []fsys.FS) (blob.Store, error) { return Open(media[0], Options{}) }

// Method: power cuts at every sync point of random histories; the seeds are fixed and named in a failure.
func TestEveryPowerCutLeavesWholeObjects(t *testing.T) {
	images := 0
	for seed := range uint64(12) {
		images += blobtest.PowerCuts(t, seed, 40, []*fsys.Mem{fsys.NewMem(seed)}, medium)
	}
	t.Logf("%d images", images)
}

func TestEveryFailedOperationLeavesWholeObjects(t *testing.T) {
	runs := 0
	for seed := range uint64(3) {
		runs += blobtest.Failures(t, seed, 15, 1, false, medium)
		runs += blobtest.Failures(t, seed, 15, 1, true, medium)
	}
	t.Logf("%d runs", runs)
}

func TestOpenClearsStagingAndAReaderDoesNot(t *testing.T) {
	ctx, f := context.Background(), fsys.NewMem(1)
	s := open(t, f)
	if _, err := s.Create(ctx, "a/b"); err != nil {
		t.Fatal(err)
	}
	left := func() int {
		names, err := f.List(stagingDir)
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	ro, err := Open(f, Options{ReadOnly: true})
	if err != nil || left() != 1 {
		t.Fatalf("open for reading: %v, %d files in staging; want 1", err, left())
	}
	if _, err := ro.Create(ctx, "x"); !errors.Is(err, holdfast.Permission) {
		t.Errorf("create: %v", err)
	}
	if err := ro.Remove(ctx, "x"); !errors.Is(err, holdfast.Permission) {
		t.Errorf("remove: %v", err)
	}
	if open(t, f); left() != 0 {
		t.Errorf("%d files in staging after Open", left())
	}
}

func TestRemoveWorksOnAFullMedium(t *testing.T) {
	ctx, f := context.Background(), fsys.NewFault(fsys.NewMem(1))
	s := open(t, f)
	for i := range 5 {
		if err := blob.WriteAll(ctx, s, fmt.Sprintf("c/%d", i), make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	f.SetFree(0)
	if err := blob.WriteAll(ctx, s, "c/x", make([]byte, 1000)); !errors.Is(err, holdfast.NoSpace) || holdfast.HintOf(err) == "" {
		t.Errorf("write: %v (%s)", err, holdfast.HintOf(err))
	}
	if err := s.Remove(ctx, "c/1"); err != nil {
		t.Errorf("remove: %v", err)
	}
	if err := blob.WriteAll(ctx, s, "c/x", make([]byte, 1000)); err != nil {
		t.Errorf("write into the space of a removed object: %v", err)
	}
}

func TestForeignFilesStayAndAreNotListed(t *testing.T) {
	ctx, f := context.Background(), fsys.NewMem(1)
	for _, n := range []string{"LOST+FOUND", "Superblock", "sets/Notes.TXT"} {
		if err := f.MkdirAll("sets"); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Create(n); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, f)
	if err := blob.WriteAll(ctx, s, "sets/1", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "sets/1"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.List(ctx, ""); len(got) != 0 || err != nil {
		t.Errorf("list: %q, %v", got, err)
	}
	if _, err := f.Stat("sets/Notes.TXT"); err != nil {
		t.Error(err)
	}
}

func TestAFailedWriteCannotBeCommitted(t *testing.T) {
	ctx, f := context.Background(), fsys.NewFault(fsys.NewMem(1))
	s := open(t, f)
	o, err := s.Create(ctx, "holed")
	if err != nil {
		t.Fatal(err)
	}
	f.Inject(fsys.Rule{Op: fsys.OpWrite, Err: syscall.EIO})
	if _, err := o.Write([]byte("lost")); err == nil {
		t.Fatal("the write went well")
	}
	if _, err := o.Write([]byte("more")); err == nil {
		t.Error("a write after a failed one went well")
	}
	if err := o.Commit(); err == nil {
		t.Error("the commit went well")
	}
	if is, err := s.Exists(ctx, "holed"); is || err != nil {
		t.Errorf("exists: %v, %v", is, err)
	}
}
