package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/pools"
)

// Events of pools that only the appliance knows.
const (
	eventPoolCreated  holdfast.EventType = "pool-created"
	eventPoolImported holdfast.EventType = "pool-imported"
	eventPoolChanged  holdfast.EventType = "pool-changed"
	eventPoolDeleted  holdfast.EventType = "pool-deleted"
	eventPoolChecked  holdfast.EventType = "pool-checked"
)

// A poolOptions is what the appliance, not the driver, knows of a pool. It is a setting of the catalog.
type poolOptions struct {
	Quota       int64 `json:"quota,omitempty"`       // bytes that the pool may take; 0: no bound
	Maintenance bool  `json:"maintenance,omitempty"` // no new backups
	Level       int   `json:"level,omitempty"`       // the highest threshold, in percent, that was warned about
}

func optionsName(id holdfast.PoolID) string { return "pool:" + id.String() }

// poolOptions reads a pool's options; none are kept for a pool that nobody changed.
func (s *Service) poolOptions(id holdfast.PoolID) (o poolOptions, err error) {
	err = s.d.cat.View(func(tx *catalog.Tx) error {
		o, err = optionsOf(tx, id)
		return err
	})
	return o, err
}

func optionsOf(tx *catalog.Tx, id holdfast.PoolID) (o poolOptions, err error) {
	raw, err := tx.Setting(optionsName(id))
	if errors.Is(err, holdfast.NotExist) {
		return o, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &o)
	}
	return o, err
}

// changeOptions reads, changes and keeps a pool's options in one transaction. The pool must be there.
func (s *Service) changeOptions(ctx context.Context, id holdfast.PoolID, change func(*poolOptions)) error {
	return s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		if _, err := tx.Pool(id); err != nil {
			return err
		}
		o, err := optionsOf(tx, id)
		if err != nil {
			return err
		}
		was := o
		change(&o)
		if o == was {
			return nil
		}
		raw, err := json.Marshal(o)
		if err != nil {
			return holdfast.Errorf(holdfast.Internal, "keep options", "%w", err)
		}
		return tx.PutSetting(optionsName(id), raw)
	})
}

// mayWrite refuses a new backup to a pool that is in maintenance or has reached its quota.
func (s *Service) mayWrite(ctx context.Context, rec catalog.Pool, p pools.Pool) error {
	const op = "write to pool"
	o, err := s.poolOptions(rec.ID)
	if err != nil {
		return err
	}
	if o.Maintenance {
		return holdfast.Errorf(holdfast.Busy, op, "pool %s is in maintenance: it takes no new backups, restores work", rec.Name).
			Advise("end it with 'holdfast pool set %s --maintenance off'", rec.Name)
	}
	if o.Quota == 0 || p == nil {
		return nil
	}
	u, err := p.Usage(ctx)
	if err == nil && u.Stored >= o.Quota {
		err = holdfast.Errorf(holdfast.NoSpace, op, "pool %s has reached its quota of %d bytes: it stores %d", rec.Name, o.Quota, u.Stored).
			Advise("delete sets and run 'holdfast pool gc %s', or raise the quota with 'holdfast pool set %s --quota SIZE'", rec.Name, rec.Name)
	}
	return err
}

// poolRecord returns the record of the pool with the name or id, open or not.
func (s *Service) poolRecord(name string) (rec catalog.Pool, err error) {
	err = s.d.cat.View(func(tx *catalog.Tx) error {
		rec, err = tx.FindPool(name)
		return advise(err, "'holdfast pool list' shows the pools there are")
	})
	return rec, err
}

// SetPool implements api.Service.
func (s *Service) SetPool(ctx context.Context, name string, c api.PoolChange) (api.PoolChanged, error) {
	const op = "change pool"
	var out api.PoolChanged
	rec, err := s.poolRecord(name)
	if err != nil {
		return out, err
	}
	if c.Rename == "" && c.Quota == nil && c.Maintenance == nil && c.ReplacePath == nil && c.AddPath == "" && len(c.PathQuotas) == 0 {
		return out, holdfast.Errorf(holdfast.Invalid, op, "nothing is to be changed").Advise("say what: --rename, --quota, --maintenance, --replace-path or --add-path")
	}
	if c.Quota != nil && *c.Quota < 0 {
		return out, holdfast.Errorf(holdfast.Invalid, op, "the quota is negative").Advise("0 means no quota")
	}
	var told []string
	if c.Rename != "" {
		if rec, err = s.renamePool(ctx, rec, c.Rename); err != nil {
			return out, err
		}
		told = append(told, "it was called "+name)
	}
	err = s.changeOptions(ctx, rec.ID, func(o *poolOptions) {
		if c.Quota != nil {
			o.Quota = *c.Quota
			told = append(told, fmt.Sprintf("its quota is %d bytes", o.Quota))
		}
		if c.Maintenance != nil {
			o.Maintenance = *c.Maintenance
			told = append(told, map[bool]string{true: "it is in maintenance", false: "maintenance is over"}[o.Maintenance])
		}
	})
	if err != nil {
		return out, err
	}
	if len(c.PathQuotas) > 0 {
		if rec, err = s.setPathQuotas(ctx, rec, c.PathQuotas); err != nil {
			return out, err
		}
		told = append(told, "quotas of its paths")
	}
	if c.AddPath != "" {
		if rec, err = s.addPath(ctx, rec, c.AddPath); err != nil {
			return out, err
		}
		told = append(told, "it has the path "+c.AddPath+" too")
	}
	if c.ReplacePath != nil {
		if out.Run, rec, err = s.replacePath(ctx, rec, *c.ReplacePath); err != nil {
			return out, err
		}
		told = append(told, "path "+c.ReplacePath.From+" is "+c.ReplacePath.To+" now")
	}
	s.d.events.Emit(holdfast.Event{Type: eventPoolChanged, Text: "pool " + rec.Name + " was changed: " + strings.Join(told, ", "), Fields: map[string]string{"pool": rec.Name}})
	out.Pool = s.showPool(ctx, rec)
	s.d.watch.look()
	return out, nil
}

func (s *Service) renamePool(ctx context.Context, rec catalog.Pool, to string) (catalog.Pool, error) {
	if err := checkPoolName(to); err != nil {
		return rec, err
	}
	rec.Name = to
	if err := s.freeName("rename pool", rec); err != nil {
		return rec, err
	}
	if err := s.record(ctx, rec); err != nil {
		return rec, err
	}
	return rec, s.d.shelf.change(rec, false)
}

// replacePath gives one of a pool's paths another place. A pool with redundancy fills it while it is in use, as a run; for another one it says where a folder
// was moved to, which takes effect at once.
func (s *Service) replacePath(ctx context.Context, rec catalog.Pool, r api.PathChange) (*api.Run, catalog.Pool, error) {
	const op = "replace path"
	drv, err := s.d.c.Drivers.Find(rec.Kind)
	if err != nil {
		return nil, rec, err
	}
	if drv.ReplacePath == nil {
		return nil, rec, holdfast.Errorf(holdfast.Unsupported, op, "a pool of kind %q has no paths to replace", rec.Kind)
	}
	if filepath.IsAbs(r.From) && !filepath.IsAbs(r.To) { // a bucket, or its URL, is for the driver to judge
		return nil, rec, holdfast.Errorf(holdfast.Invalid, op, "the path %q is not absolute", r.To).Advise("say where on the appliance it is, from / on")
	}
	next := rec
	if next.Config, err = drv.ReplacePath(rec.Config, r.From, r.To); err != nil {
		return nil, rec, err
	}
	p, err := s.d.shelf.Pool(ctx, rec.ID)
	if rb, ok := p.(pools.PathRebuilder); ok && err == nil {
		run, err := s.work(ctx, job.RunReplacePath, job.Spec{Pool: rec.ID, PoolName: rec.Name}, rec.Name, func(ctx context.Context, w *job.Work) (any, error) {
			w.Phase("rebuilding onto " + r.To)
			if err := rb.RebuildPath(ctx, r.From, r.To, w.Progress); err != nil {
				return nil, err
			}
			return nil, s.recordConfig(ctx, rec.ID, next.Config, false)
		})
		return &run, rec, err
	}
	if id, err := drv.Identify(ctx, s.d.shelf.envOf(rec.ID), next.Config); err != nil || id != rec.ID {
		if err == nil {
			err = holdfast.Errorf(holdfast.Invalid, "", "the pool there is %s", id)
		}
		return nil, rec, holdfast.Errorf(holdfast.Invalid, op, "%s is not where a path of pool %s was moved to: %w", r.To, rec.Name, err).
			Advise("move the folder first, whole; its content is not copied for a pool without redundancy")
	}
	if err := s.idle(rec, op); err != nil {
		return nil, rec, err
	}
	_ = s.d.room.drop(r.From) // it is not there any more, which is why it is replaced
	return nil, next, s.recordConfig(ctx, rec.ID, next.Config, true)
}

// setPathQuotas changes the quotas of single paths, in a config that has them.
func (s *Service) setPathQuotas(ctx context.Context, rec catalog.Pool, quotas map[string]int64) (catalog.Pool, error) {
	const op = "set quota"
	var config map[string]any
	if err := json.Unmarshal(rec.Config, &config); err != nil {
		return rec, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	left := maps.Clone(quotas)
	list, _ := config["paths"].([]any)
	for _, x := range list {
		m, ok := x.(map[string]any)
		if !ok {
			continue
		}
		name, _ := m["path"].(string)
		if n, ok := left[name]; ok {
			m["quota"] = n
			delete(left, name)
		}
	}
	for name := range left {
		return rec, holdfast.Errorf(holdfast.NotExist, op, "pool %s has no path %s that can have a quota of its own", rec.Name, name).
			Advise("'holdfast pool show %s' lists its paths", rec.Name)
	}
	if err := s.idle(rec, op); err != nil {
		return rec, err
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return rec, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	rec.Config = raw
	return rec, s.recordConfig(ctx, rec.ID, raw, true)
}

// addPath gives a pool one more path. The pool is closed meanwhile.
func (s *Service) addPath(ctx context.Context, rec catalog.Pool, path string) (catalog.Pool, error) {
	const op = "add path"
	drv, err := s.d.c.Drivers.Find(rec.Kind)
	if err != nil {
		return rec, err
	}
	if drv.AddPath == nil {
		return rec, holdfast.Errorf(holdfast.Unsupported, op, "a pool of kind %q does not take another path", rec.Kind)
	}
	if !filepath.IsAbs(path) {
		return rec, holdfast.Errorf(holdfast.Invalid, op, "the path %q is not absolute", path).Advise("say where on the appliance it is, from / on")
	}
	if err := s.idle(rec, op); err != nil {
		return rec, err
	}
	if err := s.d.shelf.remove(rec.ID); err != nil {
		return rec, advise(err, "somebody may be reading from it; try again")
	}
	config, err := drv.AddPath(ctx, s.d.shelf.envOf(rec.ID), rec.ID, rec.Config, path)
	if err == nil {
		rec.Config = config
		err = s.record(ctx, rec)
	}
	s.d.shelf.add(rec)
	return rec, err
}

// recordConfig keeps a pool's new config.
func (s *Service) recordConfig(ctx context.Context, id holdfast.PoolID, config json.RawMessage, reopen bool) error {
	rec, err := s.poolRecord(id.String())
	if err != nil {
		return err
	}
	rec.Config = config
	if err := s.record(ctx, rec); err != nil {
		return err
	}
	return s.d.shelf.change(rec, reopen)
}

// idle refuses to go on while a run works on the pool, or a set of it is mounted.
func (s *Service) idle(rec catalog.Pool, op string) error {
	active := s.d.jobs.ActiveOn(rec.ID)
	for _, id := range slices.SortedFunc(maps.Keys(active), func(a, b holdfast.RunID) int { return strings.Compare(a.String(), b.String()) }) {
		return holdfast.Errorf(holdfast.Busy, op, "pool %s is in use by a %s: run %s", rec.Name, active[id], id).
			Advise("wait for it with 'holdfast run show %s --wait', or end it with 'holdfast run cancel %s'", id, id)
	}
	return s.mountedPool(rec, op)
}

// DeletePool implements api.Service.
func (s *Service) DeletePool(ctx context.Context, name string, forget bool) (api.Pool, error) {
	const op = "delete pool"
	rec, err := s.poolRecord(name)
	if err != nil {
		return api.Pool{}, err
	}
	out := s.showPool(ctx, rec)
	if err := s.idle(rec, op); err != nil {
		return out, err
	}
	sets, err := s.setsIn(rec.ID)
	if err != nil {
		return out, err
	}
	drv, err := s.d.c.Drivers.Find(rec.Kind)
	switch {
	case forget:
	case err != nil:
		return out, err
	case len(sets) > 0:
		return out, holdfast.Errorf(holdfast.Busy, op, "pool %s holds %d backup sets, the newest of %s", rec.Name, len(sets), sets[len(sets)-1].Manifest.VM.Name).
			Advise("delete the sets first, or take the pool off the appliance and keep its data with --forget")
	case out.State != api.PoolOpen:
		return out, holdfast.Errorf(holdfast.Offline, op, "pool %s is not there: %s", rec.Name, out.Error).
			Advise("take it off the appliance and leave its data alone with --forget")
	case drv.Destroy == nil:
		return out, holdfast.Errorf(holdfast.Unsupported, op, "a pool of kind %q cannot be removed from its place", rec.Kind).
			Advise("take it off the appliance with --forget, and remove its data yourself")
	case out.Usage.Sets > 0:
		return out, holdfast.Errorf(holdfast.Busy, op, "pool %s holds %d backup sets that the catalog does not list", rec.Name, out.Usage.Sets).
			Advise("run 'holdfast catalog rebuild' and look at them, or keep them with --forget")
	}
	if err := s.d.shelf.remove(rec.ID); err != nil {
		return out, advise(err, "somebody may be reading from it; try again")
	}
	if err := s.d.room.drop(pathsOf(rec.Config)...); err != nil && !forget { // a disk that is gone may be forgotten
		s.d.shelf.add(rec)
		return out, err
	}
	if !forget {
		if err := dropHolds(pathsOf(rec.Config)...); err != nil {
			s.d.shelf.add(rec)
			return out, err
		}
		if err := drv.Destroy(ctx, s.d.shelf.envOf(rec.ID), rec.ID, rec.Config); err != nil {
			s.d.shelf.add(rec)
			return out, err
		}
	}
	return out, s.forgetPool(ctx, rec, sets)
}

// forgetPool takes a pool and what is known of its sets out of catalog and pools.json.
func (s *Service) forgetPool(ctx context.Context, rec catalog.Pool, sets []catalog.Set) error {
	if err := s.d.shelf.renote(rec.ID); err != nil {
		return err
	}
	err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		for _, x := range sets {
			if err := tx.DeleteSet(x.Manifest.ID); err != nil {
				return err
			}
		}
		return errors.Join(tx.DeletePool(rec.ID), tx.DeleteSetting(optionsName(rec.ID)), tx.DeleteSetting(workSetting+rec.ID.String()),
			tx.DeleteSetting(retentionOfPool(rec.ID)))
	})
	if err != nil {
		return err
	}
	s.d.events.Emit(holdfast.Event{Type: eventPoolDeleted, Severity: holdfast.Warning, Text: fmt.Sprintf("pool %s was taken off the appliance, with %d sets", rec.Name, len(sets)),
		Fields: map[string]string{"pool": rec.Name, "id": rec.ID.String()}})
	return nil
}

// setsIn lists a pool's sets, oldest first, those that are being deleted too.
func (s *Service) setsIn(id holdfast.PoolID) ([]catalog.Set, error) {
	var out []catalog.Set
	err := s.d.cat.View(func(tx *catalog.Tx) error {
		for x, err := range tx.Sets(catalog.SetFilter{Pool: id}) {
			if err != nil {
				return err
			}
			out = append(out, x)
		}
		return nil
	})
	return out, err
}
