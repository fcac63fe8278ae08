package blob_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/blobtest"
	"github.com/holdfast-backup/holdfast/pools/blob/dirstore"
)

var background = context.Background()

func store(t blobtest.T) blob.Store {
	s, err := dirstore.Open(fsys.NewMem(1), dirstore.Options{})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

var errBusy = holdfast.Errorf(holdfast.Transient, "test", "try later")

func TestDecoratedStoresKeepTheLaw(t *testing.T) {
	h := blobtest.Harness{New: func(t blobtest.T) blob.Store {
		return blob.Meter(blob.Retry(blob.NewFault(store(t)), blob.DefaultPolicy, clock.System), &blob.Requests{})
	}}
	blobtest.Run(t, h)
}

// Method: the bubble's clock is a fake one, so that the pauses take no time and can be measured.
func TestRetryTriesTransientThingsAgainAndNothingElse(t *testing.T) {
	verbs := map[blob.Verb]func(s blob.Store) error{
		blob.VerbCreate: func(s blob.Store) error {
			o, err := s.Create(background, "new")
			if err == nil {
				o.Abort()
			}
			return err
		},
		blob.VerbOpen:   func(s blob.Store) error { _, err := s.Open(background, "a"); return err },
		blob.VerbList:   func(s blob.Store) error { _, err := s.List(background, ""); return err },
		blob.VerbExists: func(s blob.Store) error { _, err := s.Exists(background, "a"); return err },
		blob.VerbRemove: func(s blob.Store) error { return s.Remove(background, "none") },
		blob.VerbUsage:  func(s blob.Store) error { _, _, err := s.Usage(background); return err },
		blob.VerbRead:   func(s blob.Store) error { _, err := blob.ReadAll(background, s, "a", 10); return err },
	}
	policy := blob.Policy{Attempts: 4, First: time.Second, Max: 3 * time.Second}
	for verb, do := range verbs {
		t.Run(verb.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := blob.NewFault(store(t))
				s := blob.Retry(f, policy, clock.System)
				if err := blob.WriteAll(background, s, "a", []byte("x")); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				f.Inject(blob.FaultRule{Verb: verb, Times: 3, Err: errBusy})
				if err := do(s); err != nil {
					t.Errorf("after three failures of four attempts: %v", err)
				}
				if d := time.Since(start); d < 3*time.Second || d > 6*time.Second {
					t.Errorf("waited %v in all; the pauses are up to 1, 2 and 3 s and at least half of that", d)
				}
				f.Clear()
				struck := f.Inject(blob.FaultRule{Verb: verb, Times: -1, Err: errBusy})
				if err := do(s); !errors.Is(err, holdfast.Transient) || struck() != 4 {
					t.Errorf("always failing: %v after %d attempts; want 4", err, struck())
				}
				f.Clear()
				struck = f.Inject(blob.FaultRule{Verb: verb, Times: -1, Err: holdfast.Errorf(holdfast.Permission, "", "no")})
				if err := do(s); !errors.Is(err, holdfast.Permission) || struck() != 1 {
					t.Errorf("forbidden: %v after %d attempts; want 1", err, struck())
				}
			})
		})
	}
}

func TestRetryDoesNotSendAnObjectTwice(t *testing.T) {
	f := blob.NewFault(store(t))
	s := blob.Retry(f, blob.DefaultPolicy, clock.System)
	struck := f.Inject(blob.FaultRule{Verb: blob.VerbCommit, Times: -1, Err: errBusy})
	if err := blob.WriteAll(background, s, "a", []byte("x")); !errors.Is(err, holdfast.Transient) || struck() != 1 {
		t.Errorf("%v after %d commits", err, struck())
	}
}

func TestRetryStopsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := blob.NewFault(store(t))
		s := blob.Retry(f, blob.DefaultPolicy, clock.System)
		f.Inject(blob.FaultRule{Verb: blob.VerbList, Times: -1, Err: errBusy})
		ctx, cancel := context.WithCancel(background)
		go func() {
			synctest.Wait() // the pause has begun
			cancel()
		}()
		if _, err := s.List(ctx, ""); !errors.Is(err, holdfast.Cancelled) {
			t.Error(err)
		}
	})
}

func TestMeterCountsRequestsAndBytes(t *testing.T) {
	var n blob.Requests
	f := blob.NewFault(store(t))
	s := blob.Meter(f, &n)
	if err := blob.WriteAll(background, s, "a", make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if _, err := blob.ReadAll(background, s, "a", 100); err != nil {
		t.Fatal(err)
	}
	f.Inject(blob.FaultRule{Verb: blob.VerbExists, Err: errBusy})
	_, _ = s.Exists(background, "a")
	want := map[blob.Verb]blob.Count{blob.VerbCreate: {Requests: 1}, blob.VerbWrite: {Requests: 1, Bytes: 100}, blob.VerbCommit: {Requests: 1},
		blob.VerbOpen: {Requests: 1}, blob.VerbRead: {Requests: 1, Bytes: 100}, blob.VerbExists: {Requests: 1, Failed: 1}}
	for v, c := range want {
		if got := n.Of(v); got != c {
			t.Errorf("%v: %+v, want %+v", v, got, c)
		}
	}
	if len(n.All()) != len(want) || n.Total() != (blob.Count{Requests: 6, Failed: 1, Bytes: 200}) {
		t.Errorf("%v, in all %v", n.All(), n.Total())
	}
}

func TestFaultLosesAnswersFlipsBitsAndHidesNames(t *testing.T) {
	f := blob.NewFault(store(t))
	f.Inject(blob.FaultRule{Verb: blob.VerbCommit, Err: errBusy, Done: true})
	if err := blob.WriteAll(background, f, "a", make([]byte, 100)); !errors.Is(err, errBusy) {
		t.Fatal(err)
	}
	if is, err := f.Exists(background, "a"); !is || err != nil {
		t.Errorf("the commit whose answer was lost: %v, %v", is, err)
	}
	f.Inject(blob.FaultRule{Verb: blob.VerbRead, Flip: true})
	b, err := blob.ReadAll(background, f, "a", 100)
	set := 0
	for _, c := range b {
		if c != 0 {
			set++
		}
	}
	if err != nil || set != 1 {
		t.Errorf("%d bytes changed, %v; want 1", set, err)
	}
	f.Inject(blob.FaultRule{Verb: blob.VerbList, Glob: "a", Hidden: true})
	for _, want := range []int{0, 1} {
		if names, err := f.List(background, ""); len(names) != want || err != nil {
			t.Errorf("list: %q, %v; want %d names", names, err, want)
		}
	}
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"", "a", "a/b", "../x", "a//b", ".", "...", "a.", "A", "\x00"} {
		f.Add(s)
	}
	fs := fsys.NewMem(1)
	f.Fuzz(func(t *testing.T, name string) {
		if blob.CheckName(name) != nil {
			return
		}
		s, err := dirstore.Open(fsys.Sub(fs, "pool"), dirstore.Options{}) // a lawful name leads nowhere else
		if err != nil {
			t.Fatal(err)
		}
		if err := blob.WriteAll(background, s, name, nil); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if names, err := s.List(background, ""); err != nil || len(names) != 1 || names[0] != name {
			t.Fatalf("%q is listed as %q, %v", name, names, err)
		}
		if err := s.Remove(background, name); err != nil {
			t.Fatal(err)
		}
	})
}
