package appliance_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

// TestHoldsOutliveTheCatalog: a set on hold is on hold when the catalog was lost, when the whole data folder was lost and the pool is imported
// anew, and when one of two files is damaged, which is told; a hold that is over is not brought back.
func TestHoldsOutliveTheCatalog(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	s.vm("hv1", "db", 4<<20)
	s.online("hv1")
	s.backup("db")
	id := s.newest("db").ID
	s.backup("db")
	short := s.newest("db").ID
	until, soon := s.clock.Now().Add(1000*time.Hour).UTC().Truncate(time.Second), s.clock.Now().Add(time.Hour)
	_, err := s.svc().HoldSet(ctx, id, until)
	s.ok(err)
	_, err = s.svc().HoldSet(ctx, short, soon)
	s.ok(err)
	held := func(what string, d interface {
		Set(context.Context, string) (api.Set, error)
		DeleteSet(context.Context, string) (api.Set, error)
	}) {
		t.Helper()
		x, err := d.Set(ctx, id)
		s.ok(err)
		if !x.Hold.Equal(until) {
			t.Errorf("%s: held until %v, want %v", what, x.Hold, until)
		}
		_, err = d.DeleteSet(ctx, id)
		refusedWith(t, err, holdfast.Immutable, "is held until")
	}
	held("before", s.svc())

	s.stop()
	s.ok(os.RemoveAll(s.path("data/catalog")))
	s.clock.offset.Store(int64(2 * time.Hour))
	s.start()
	var r api.Rebuilt
	s.result(&r, s.follow(s.svc().RebuildCatalog(ctx)))
	if r.Added != 2 || len(r.Errors) > 0 {
		t.Errorf("%+v", r)
	}
	held("after the catalog was lost", s.svc())
	if x, err := s.svc().Set(ctx, short); err != nil || x.Hold.After(s.clock.Now()) {
		t.Errorf("a hold that was over is there again: %+v, %v", x, err)
	}

	s.stop()
	s.ok(os.RemoveAll(s.path("data")))
	s.start()
	imported := func() api.Rebuilt {
		t.Helper()
		x, err := s.svc().ImportPool(ctx, api.PoolSpec{Name: "main", Kind: "dedup", Path: s.path("pool")})
		s.ok(err)
		var r api.Rebuilt
		s.result(&r, s.follow(x.Run, nil))
		return r
	}
	if r := imported(); r.Added != 2 || r.Held != 1 || len(r.Errors) > 0 {
		t.Errorf("%+v", r)
	}
	held("on another appliance", s.svc())

	s.stop()
	s.ok(os.RemoveAll(s.path("data/catalog")))
	s.ok(os.WriteFile(filepath.Join(s.path("pool"), "~appliance", "holds.json"), []byte("{"), 0o600))
	s.start()
	s.result(&r, s.follow(s.svc().RebuildCatalog(ctx)))
	if r.Added != 2 || len(r.Errors) != 1 || !strings.Contains(r.Errors[0], "hold what must stay anew") {
		t.Errorf("%+v", r)
	}
	held("from the data folder alone", s.svc())
}
