package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/pools"
)

// maxPoolName bounds a pool's name in bytes.
const maxPoolName = 64

// CreatePool implements api.Service. The pool is noted before it is made, so that one whose making was cut off can be taken over.
func (s *Service) CreatePool(ctx context.Context, spec api.PoolSpec) (api.Pool, error) {
	rec, drv, err := s.newPool(spec)
	if err != nil {
		return api.Pool{}, err
	}
	if err := s.freeName("create pool", rec); err != nil {
		return api.Pool{}, err
	}
	rec.ID = holdfast.PoolID{ID: holdfast.NewID()}
	if err := drv.Create(ctx, s.d.shelf.envOf(rec.ID), rec.ID, rec.Config); err != nil {
		if holdfast.KindOf(err) == holdfast.Exist {
			err = advise(err, "choose an empty folder; a pool that is there already is taken over with 'holdfast pool import'")
		}
		return api.Pool{}, err
	}
	if err := s.record(ctx, rec); err != nil {
		return api.Pool{}, err
	}
	s.d.shelf.add(rec)
	if _, err := s.d.shelf.Pool(ctx, rec.ID); err != nil {
		return api.Pool{}, err
	}
	s.d.events.Emit(holdfast.Event{Type: eventPoolCreated, Text: "pool " + rec.Name + " was created", Fields: map[string]string{"pool": rec.Name, "kind": rec.Kind, "id": rec.ID.String()}})
	return s.showPool(ctx, rec), nil
}

// newPool makes the record of a pool as a spec wants it, without an id.
func (s *Service) newPool(spec api.PoolSpec) (catalog.Pool, pools.Driver, error) {
	rec := catalog.Pool{Name: spec.Name, Kind: spec.Kind, Created: s.now(), State: catalog.PoolReady}
	if err := checkPoolName(spec.Name); err != nil {
		return rec, pools.Driver{}, err
	}
	config := map[string]any{}
	for k, v := range spec.Config {
		config[k] = v
	}
	for k, v := range map[string]string{"path": spec.Path, "chunking": spec.Chunking} {
		if v != "" {
			config[k] = v
		}
	}
	if err := checkPaths(config); err != nil {
		return rec, pools.Driver{}, err
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return rec, pools.Driver{}, holdfast.Errorf(holdfast.Internal, "read pool config", "%w", err)
	}
	rec.Config = raw
	drv, err := s.d.c.Drivers.Find(spec.Kind)
	return rec, drv, err
}

func checkPoolName(name string) error {
	if strings.TrimSpace(name) == "" || len(name) > maxPoolName {
		return holdfast.Errorf(holdfast.Invalid, "name pool", "a pool's name has 1 to %d characters", maxPoolName).Advise("choose a short name")
	}
	return nil
}

// checkPaths refuses folders and files that are not absolute: the daemon's working folder means nothing. They are the values of "path", of
// "paths", and of everything that ends in "_file", whatever the driver.
func checkPaths(config map[string]any) error {
	for k, v := range config {
		var list []any
		switch {
		case k == "paths":
			list, _ = v.([]any)
		case k == "path", strings.HasSuffix(k, "_file"):
			list = []any{v}
		}
		for _, x := range list {
			if m, ok := x.(map[string]any); ok {
				x = m["path"]
			}
			if p, ok := x.(string); ok && !filepath.IsAbs(p) {
				return holdfast.Errorf(holdfast.Invalid, "read pool config", "the path %q is not absolute", p).Advise("say where on the appliance it is, from / on")
			}
		}
	}
	return nil
}

// freeName refuses a name that another pool has.
func (s *Service) freeName(op string, rec catalog.Pool) error {
	return s.d.cat.View(func(tx *catalog.Tx) error {
		switch other, err := tx.PoolByName(rec.Name); {
		case err == nil && other.ID != rec.ID:
			return holdfast.Errorf(holdfast.Exist, op, "there is a pool %q already", rec.Name).Advise("choose another name")
		case err != nil && !errors.Is(err, holdfast.NotExist):
			return err
		}
		return nil
	})
}

// record keeps a pool, in pools.json first.
func (s *Service) record(ctx context.Context, rec catalog.Pool) error {
	if err := s.d.shelf.note(rec); err != nil {
		return err
	}
	return s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.PutPool(rec) })
}

// ImportPool implements api.Service. Importing a pool that is known already under the same name and in the same place lists its sets anew.
func (s *Service) ImportPool(ctx context.Context, spec api.PoolSpec) (api.Imported, error) {
	const op = "import pool"
	var none api.Imported
	rec, drv, err := s.newPool(spec)
	if err != nil {
		return none, err
	}
	if drv.Identify == nil {
		return none, holdfast.Errorf(holdfast.Unsupported, op, "a pool of kind %q cannot be taken over", rec.Kind)
	}
	if rec.ID, err = drv.Identify(ctx, s.d.shelf.envOf(holdfast.PoolID{}), rec.Config); err != nil {
		return none, err
	}
	recs, err := s.poolRecords()
	if err != nil {
		return none, err
	}
	known := false
	for _, other := range recs {
		if other.ID != rec.ID {
			continue
		}
		if other.Name != rec.Name || other.Kind != rec.Kind || !sameJSON(other.Config, rec.Config) {
			return none, holdfast.Errorf(holdfast.Exist, op, "the pool with the id %s is known already, as %q", rec.ID, other.Name).
				Advise("'holdfast pool show %s' shows where it is; 'holdfast pool set' renames it or follows it to another path", other.Name)
		}
		rec, known = other, true
	}
	if !known {
		if err := s.adopt(ctx, rec); err != nil {
			return none, err
		}
	}
	run, err := s.rebuild(ctx, []catalog.Pool{rec}, rec.ID, rec.Name)
	return api.Imported{Pool: s.showPool(ctx, rec), Run: run}, err
}

// adopt opens a pool that is new here and records it. One that cannot be opened is not recorded.
func (s *Service) adopt(ctx context.Context, rec catalog.Pool) error {
	if err := s.freeName("import pool", rec); err != nil {
		return err
	}
	s.d.shelf.add(rec)
	_, err := s.d.shelf.Pool(ctx, rec.ID)
	if err == nil {
		err = s.record(ctx, rec)
	}
	if err != nil {
		return errors.Join(err, s.d.shelf.remove(rec.ID))
	}
	s.d.events.Emit(holdfast.Event{Type: eventPoolImported, Text: "pool " + rec.Name + " was taken over", Fields: map[string]string{"pool": rec.Name, "kind": rec.Kind, "id": rec.ID.String()}})
	return nil
}

// sameJSON tells whether two configs say the same.
func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	p, err1 := json.Marshal(x)
	q, err2 := json.Marshal(y)
	return err1 == nil && err2 == nil && string(p) == string(q)
}

// pathsOf returns the folders of a pool, as its config names them; none of a kind without folders.
func pathsOf(config json.RawMessage) []string {
	var c struct {
		Path  string `json:"path"`
		Paths []any  `json:"paths"`
	}
	if json.Unmarshal(config, &c) != nil {
		return nil
	}
	var out []string
	if c.Path != "" {
		out = append(out, c.Path)
	}
	for _, x := range c.Paths {
		if m, ok := x.(map[string]any); ok {
			x = m["path"]
		}
		if p, ok := x.(string); ok {
			out = append(out, p)
		}
	}
	return out
}
