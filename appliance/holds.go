package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools"
)

// Holds must outlive the catalog: a rebuilt one that did not know them would let retention delete what somebody promised to keep. So they are
// written beside the sets, in a folder of each of the pool's paths, and into the data folder, which is what a pool without paths has
// (docs/formats/holds.md). The catalog is what is asked; the files are read when a catalog is new, and when a pool's sets are listed anew.
const (
	holdsFile    = "holds.json"
	applianceDir = "~appliance" // in a path of a pool; no object of a pool can be called so
	maxHoldsFile = 64 << 20
	holdsVersion = 1
)

// holdsText is the content of the file.
type holdsText struct {
	Version int                  `json:"version"`
	Holds   map[string]time.Time `json:"holds"`
}

// readHolds reads a file; none is no holds. Errors are Corrupt, Unsupported, or what the medium says.
func readHolds(f fsys.FS, name string) (map[string]time.Time, error) {
	const op = "read holds"
	b, err := fsys.ReadFile(f, name, maxHoldsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]time.Time{}, nil
	}
	if err != nil {
		return nil, fsys.Classify(op, err)
	}
	var t holdsText
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%s: %w", name, err).Advise("remove the file and hold the sets anew")
	}
	if t.Version != holdsVersion {
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "%s has version %d", name, t.Version).Advise("use a newer version of Holdfast")
	}
	for id := range t.Holds {
		if _, err := holdfast.ParseID(id); err != nil {
			return nil, holdfast.Errorf(holdfast.Corrupt, op, "%s: %q is no set", name, id).Advise("remove the file and hold the sets anew")
		}
	}
	return mergeHolds(map[string]time.Time{}, t.Holds), nil
}

// mergeHolds adds holds to others; of two of a set the longer one counts.
func mergeHolds(into, from map[string]time.Time) map[string]time.Time {
	for id, until := range from {
		if until.After(into[id]) {
			into[id] = until
		}
	}
	return into
}

// writeHolds adds holds to a file and leaves out those that are over. What the file says already stays: it may know more than the catalog.
func writeHolds(f fsys.FS, name string, add map[string]time.Time, now time.Time) error {
	all, err := readHolds(f, name)
	if err != nil {
		return err
	}
	before := len(all)
	changed := false
	for id, until := range mergeHolds(map[string]time.Time{}, add) {
		if until.After(now) && until.After(all[id]) {
			all[id], changed = until, true
		}
	}
	if !changed {
		return nil
	}
	for id, until := range all {
		if !until.After(now) {
			delete(all, id)
		}
	}
	if before == 0 && path.Dir(name) != "." {
		if err := f.MkdirAll(path.Dir(name)); err != nil {
			return fsys.Classify("write holds", err)
		}
	}
	b, err := json.MarshalIndent(holdsText{holdsVersion, all}, "", "  ")
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, "write holds", "%w", err)
	}
	return fsys.Classify("write holds", fsys.Replace(f, name, append(b, '\n')))
}

// keepHolds writes holds of a pool's sets into the data folder and onto the pool's paths, one of which must take them. Calls must not
// overlap: s.d.holding.
func (s *Service) keepHolds(rec catalog.Pool, add map[string]time.Time) error {
	if len(add) == 0 {
		return nil
	}
	now := s.now()
	if err := writeHolds(s.d.files, holdsFile, add, now); err != nil {
		return err
	}
	dirs := pathsOf(rec.Config)
	var errs []error
	for _, dir := range dirs {
		f, err := fsys.NewOS(dir)
		if err == nil {
			err = writeHolds(f, path.Join(applianceDir, holdsFile), add, now)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", dir, err))
		}
	}
	if len(dirs) > 0 && len(errs) == len(dirs) {
		return &holdfast.Error{Op: "keep hold", Kind: holdfast.KindOf(errs[0]), Hint: "a hold is kept beside the sets, so the pool must be there; try again when it is", Err: errors.Join(errs...)}
	}
	return nil
}

// poolHolds reads what a pool's paths say of holds. Paths that are not there are passed over; a file that cannot be read is an error.
func poolHolds(rec catalog.Pool) (map[string]time.Time, error) {
	all := map[string]time.Time{}
	var errs []error
	for _, dir := range pathsOf(rec.Config) {
		f, err := fsys.NewOS(dir)
		if err != nil {
			continue
		}
		holds, err := readHolds(f, path.Join(applianceDir, holdsFile))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", dir, err))
		}
		mergeHolds(all, holds)
	}
	return all, errors.Join(errs...)
}

// adoptHolds puts holds that are not over into the catalog, and returns how many it did not have.
func adoptHolds(tx *catalog.Tx, holds map[string]time.Time, now time.Time) (n int, err error) {
	for id, until := range holds {
		x, err := holdfast.ParseID(id)
		if err != nil {
			return n, err
		}
		set := holdfast.SetID{ID: x}
		was, err := holdOf(tx, set)
		if err != nil {
			return n, err
		}
		if !until.After(now) || !until.After(was) {
			continue
		}
		raw, err := json.Marshal(until.UTC())
		if err == nil {
			err = tx.PutSetting(holdName(set), raw)
		}
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// bringHolds takes over what a pool's paths and the data folder say of holds, before the pool's sets are listed: retention must never see one of
// them without its hold. notes say what nobody can know.
func (s *Service) bringHolds(ctx context.Context, rec catalog.Pool) (n int, notes []string, err error) {
	s.d.holding.Lock()
	defer s.d.holding.Unlock()
	holds, unread := poolHolds(rec)
	mine, err := readHolds(s.d.files, holdsFile)
	unread = errors.Join(unread, err)
	if err == nil {
		unread = errors.Join(unread, writeHolds(s.d.files, holdsFile, holds, s.now()))
	}
	mergeHolds(holds, mine)
	err = s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		n, err = adoptHolds(tx, holds, s.now())
		return err
	})
	if unread != nil { // the sets are listed all the same: without them nobody restores
		err = errors.Join(err, fmt.Errorf("some holds cannot be read, hold what must stay anew: %w", unread))
	}
	if len(pathsOf(rec.Config)) == 0 && len(mine) == 0 {
		notes = append(notes, "pool "+rec.Name+" has no place for holds, and this appliance knows none: if sets in it were held by another one, hold them anew ('holdfast set hold')")
	}
	return n, notes, err
}

// recordHolds writes the holds that the catalog has beside the sets, where an earlier version did not. What cannot be written now is
// logged, and written with the pool's next hold.
func (d *Daemon) recordHolds(recs []catalog.Pool) {
	d.holding.Lock()
	defer d.holding.Unlock()
	var holds map[string]time.Time
	err := d.cat.View(func(tx *catalog.Tx) (err error) { holds, err = holdsOf(tx); return err })
	if err == nil && len(holds) == 0 {
		return
	}
	sets, lerr := catalog.ListSets(d.cat)
	err = errors.Join(err, lerr)
	of := map[holdfast.PoolID]map[string]time.Time{}
	for _, x := range sets {
		id := x.Manifest.ID.String()
		if until, ok := holds[id]; ok {
			if of[x.Pool] == nil {
				of[x.Pool] = map[string]time.Time{}
			}
			of[x.Pool][id] = until
		}
	}
	for _, rec := range recs {
		err = errors.Join(err, d.service.keepHolds(rec, of[rec.ID]))
	}
	if err != nil {
		d.c.Log.Warn("holds could not be written beside their sets", "error", err)
	}
}

// dropHolds removes the appliance's folder from places that a pool leaves for good.
func dropHolds(dirs ...string) error {
	var errs []error
	for _, dir := range dirs {
		f, err := fsys.NewOS(dir)
		if err != nil {
			continue // it is gone
		}
		errs = append(errs, pools.RemoveTree(f, applianceDir))
	}
	return errors.Join(errs...)
}
