package library

import (
	"context"
	"errors"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/scsi"
	"github.com/holdfast-backup/holdfast/tape/sgio"
)

// openSG opens the changer that the address names, and its drives: those it names, or else every tape drive of this machine. Names of device
// files change from start to start, so what is behind one is asked.
func openSG(ctx context.Context, a Address, o Options) (Units, error) {
	all, err := sgio.List()
	if err != nil {
		return Units{}, err
	}
	g := &group{log: o.Log}
	if err := g.find(ctx, a, all); err != nil {
		return Units{}, errors.Join(err, g.Close())
	}
	return Units{List: g.units, Closer: g}, nil
}

// group are open device files.
type group struct {
	units []Unit
	log   func(format string, args ...any)
}

// skip tells of a device that nobody has named and that cannot be used: it must not keep the others from being used.
func (g *group) skip(path string, err error) {
	if g.log != nil {
		g.log("left out %s: %v", path, err)
	}
}

func (g *group) Close() error {
	var errs []error
	for _, u := range g.units {
		errs = append(errs, u.Transport.Close())
	}
	return errors.Join(errs...)
}

// add opens a device file; keep says whether to keep it open.
func (g *group) add(ctx context.Context, path string, keep func(Unit) bool) (bool, error) {
	d, err := sgio.Open(path)
	if err != nil {
		return false, err
	}
	u, err := Look(ctx, d, path)
	if err == nil && keep(u) {
		g.units = append(g.units, u)
		return true, nil
	}
	return false, errors.Join(err, d.Close())
}

func (g *group) find(ctx context.Context, a Address, all []sgio.Found) error {
	const op = "open tape library"
	every := func(Unit) bool { return true }
	if sn, ok := strings.CutPrefix(a.Rest, "serial:"); ok {
		found := false
		for _, f := range all {
			if found || f.Type != scsi.TypeChanger && f.Type != scsi.TypeTape {
				continue
			}
			var err error
			if found, err = g.add(ctx, f.Path, func(u Unit) bool { return u.Serial == sn }); err != nil {
				g.skip(f.Path, err)
			}
		}
		if !found {
			return holdfast.Errorf(holdfast.NotExist, op, "no tape device of this machine has the serial number %q", sn).Advise("list them: holdfast tape library scan sg:all")
		}
	} else if a.Rest != "all" {
		if _, err := g.add(ctx, a.Rest, every); err != nil {
			return err
		}
	}
	if len(a.Drives) > 0 {
		for _, p := range a.Drives {
			if _, err := g.add(ctx, p, every); err != nil {
				return err
			}
		}
		return nil
	}
	if len(g.units) == 1 && g.units[0].Type == scsi.TypeTape {
		return nil // a drive of its own
	}
	for _, f := range all {
		if f.Type != scsi.TypeTape && (f.Type != scsi.TypeChanger || a.Rest != "all") {
			continue
		}
		if _, err := g.add(ctx, f.Path, every); err != nil {
			g.skip(f.Path, err)
		}
	}
	return nil
}
