package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/tape/care"
	"github.com/holdfast-backup/holdfast/tape/library"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

var _ api.Tapes = (*Service)(nil)

// tapeLibrarySetting and a name is the catalog's setting with a library's address. No backup depends on it: what is on cartridges says itself what it is.
const tapeLibrarySetting = "tape-library:"

// Events of tape libraries and cartridges.
const (
	eventTapeAdded  holdfast.EventType = "tape-library-added"
	eventTapeGone   holdfast.EventType = "tape-library-removed"
	eventTapeErased holdfast.EventType = "tape-erased"
	eventTapeLabel  holdfast.EventType = "tape-labelled"
)

// TapeLibraries implements api.Tapes.
func (s *Service) TapeLibraries(context.Context) ([]api.TapeLibrary, error) {
	all, err := allSettings(s.d.cat)
	if err != nil {
		return nil, err
	}
	out := []api.TapeLibrary{}
	for name, raw := range all {
		if !strings.HasPrefix(name, tapeLibrarySetting) {
			continue
		}
		var l api.TapeLibrary
		if err := json.Unmarshal(raw, &l); err != nil {
			return nil, holdfast.Errorf(holdfast.Corrupt, "list tape libraries", "%s: %w", name, err)
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b api.TapeLibrary) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (s *Service) findTapes(ctx context.Context, name string) (api.TapeLibrary, error) {
	ls, err := s.TapeLibraries(ctx)
	if err != nil {
		return api.TapeLibrary{}, err
	}
	for _, l := range ls {
		if l.Name == name {
			return l, nil
		}
	}
	return api.TapeLibrary{}, holdfast.Errorf(holdfast.NotExist, "find tape library", "there is no tape library %q", name).Advise("list them: holdfast tape library list")
}

func (s *Service) tapeOptions(l api.TapeLibrarySpec) (library.Options, error) {
	o := library.Options{Secrets: secretFile, Clock: s.d.c.Clock, CleaningPrefix: l.Prefix, Serials: map[uint16]string{},
		Log: func(format string, args ...any) { s.d.c.Log.Info(fmt.Sprintf(format, args...), "tape library", l.Name) }}
	for at, serial := range l.Drives {
		n, err := strconv.ParseUint(at, 10, 16)
		if err != nil {
			return o, holdfast.Errorf(holdfast.Invalid, "read tape library", "%q is no element address", at).Advise("write the address in digits, like 256")
		}
		o.Serials[uint16(n)] = serial
	}
	return o, nil
}

// withTapes does work with a library, which must be the one that was added.
func (s *Service) withTapes(ctx context.Context, l api.TapeLibrary, do func(lib *library.Library) error) (err error) {
	o, err := s.tapeOptions(l.TapeLibrarySpec)
	if err != nil {
		return err
	}
	lib, back, err := s.d.tapes.Use(ctx, l.Address, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, back(context.WithoutCancel(ctx))) }()
	if sn := tapeSerial(lib); l.Serial != "" && sn != l.Serial {
		return holdfast.Errorf(holdfast.Invalid, "open tape library", "the library at %s has serial number %q; %s was added with %q", l.Address, sn, l.Name, l.Serial).
			Advise("if the library was replaced: holdfast tape library remove, and add it again")
	}
	return do(lib)
}

// tapeSerial is what a library is known by: the robot's serial number, or that of a drive that stands alone.
func tapeSerial(l *library.Library) string {
	if l.Changer() != nil {
		return l.Changer().Serial()
	}
	return l.Bays()[0].Serial
}

// AddTapeLibrary implements api.Tapes.
func (s *Service) AddTapeLibrary(ctx context.Context, spec api.TapeLibrarySpec) (api.TapeLibraryShown, error) {
	const op = "add tape library"
	out := api.TapeLibraryShown{TapeLibrary: api.TapeLibrary{TapeLibrarySpec: spec, Added: s.now()}}
	a, err := library.Parse(spec.Address)
	if err != nil {
		return out, err
	}
	out.Address = a.String()
	ls, err := s.TapeLibraries(ctx)
	if err != nil {
		return out, err
	}
	for _, l := range ls {
		b, err := library.Parse(l.Address)
		if l.Name == spec.Name || err == nil && b.Key() == a.Key() {
			return out, holdfast.Errorf(holdfast.Exist, op, "there is tape library %s at %s already", l.Name, l.Address).Advise("choose another name, or remove the old one first")
		}
	}
	err = s.withTapes(ctx, out.TapeLibrary, func(lib *library.Library) error {
		out.Serial = tapeSerial(lib)
		out.Stock, err = (&care.Desk{Library: lib}).Stock(ctx, false)
		return err
	})
	if err != nil {
		return out, err
	}
	raw, err := json.Marshal(out.TapeLibrary)
	if err != nil {
		return out, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	if err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.PutSetting(tapeLibrarySetting+spec.Name, raw) }); err != nil {
		return out, err
	}
	s.d.events.Emit(holdfast.Event{Type: eventTapeAdded, Text: "tape library " + spec.Name + " added", Fields: map[string]string{"library": spec.Name, "serial": out.Serial}})
	return out, nil
}

// TapeLibrary implements api.Tapes.
func (s *Service) TapeLibrary(ctx context.Context, name string) (api.TapeLibraryShown, error) {
	l, err := s.findTapes(ctx, name)
	out := api.TapeLibraryShown{TapeLibrary: l}
	if err != nil {
		return out, err
	}
	err = s.withTapes(ctx, l, func(lib *library.Library) error {
		out.Stock, err = (&care.Desk{Library: lib}).Stock(ctx, false)
		return err
	})
	return out, err
}

// RemoveTapeLibrary implements api.Tapes.
func (s *Service) RemoveTapeLibrary(ctx context.Context, name string) (api.TapeLibrary, error) {
	l, err := s.findTapes(ctx, name)
	if err != nil {
		return l, err
	}
	if err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteSetting(tapeLibrarySetting + name) }); err != nil {
		return l, err
	}
	s.d.events.Emit(holdfast.Event{Type: eventTapeGone, Text: "tape library " + name + " removed", Fields: map[string]string{"library": name}})
	return l, nil
}

// ScanTape implements api.Tapes.
func (s *Service) ScanTape(ctx context.Context, address string) ([]api.TapeDevice, error) {
	o, err := s.tapeOptions(api.TapeLibrarySpec{Name: address})
	if err != nil {
		return nil, err
	}
	u, err := s.d.tapes.Find(ctx, address, o)
	if err != nil {
		return nil, err
	}
	out := []api.TapeDevice{}
	for _, x := range u.List {
		kind := "other"
		switch x.Type {
		case scsi.TypeChanger:
			kind = "changer"
		case scsi.TypeTape:
			kind = "drive"
		}
		out = append(out, api.TapeDevice{Kind: kind, Place: x.Place, Vendor: x.Vendor, Product: x.Product, Revision: x.Revision, Serial: x.Serial})
	}
	return out, u.Close()
}

// WorkTape implements api.Tapes.
func (s *Service) WorkTape(ctx context.Context, name, do string, t api.TapeWork) (api.Run, error) {
	const op = "work with tapes"
	l, err := s.findTapes(ctx, name)
	if err != nil {
		return api.Run{}, err
	}
	if strings.HasSuffix(do, "-dir") && !filepath.IsAbs(t.Dir) {
		return api.Run{}, holdfast.Errorf(holdfast.Invalid, op, "the path %q is not absolute", t.Dir).Advise("name a folder on the appliance with its whole path")
	}
	work, ok := tapeWorks[do]
	if !ok {
		return api.Run{}, holdfast.Errorf(holdfast.Invalid, op, "there is no work %q", do)
	}
	return s.work(ctx, catalog.RunKind("tape-"+do), job.Spec{}, "tape library "+name, func(ctx context.Context, w *job.Work) (result any, err error) {
		w.Unit(job.UnitSteps)
		err = s.withTapes(ctx, l, func(lib *library.Library) error {
			result, err = work(ctx, &care.Desk{Library: lib, Clock: s.d.c.Clock, Creator: "Holdfast " + s.d.c.Version, Phase: w.Phase}, t)
			return err
		})
		if m, ok := result.(care.Medium); ok && err == nil {
			s.tellTape(name, do, t, m)
		}
		return result, err
	})
}

// tellTape tells of what was overwritten.
func (s *Service) tellTape(name, do string, t api.TapeWork, m care.Medium) {
	e := holdfast.Event{Type: eventTapeLabel, Text: "cartridge " + t.Cartridge + " has label " + m.ID, Fields: map[string]string{"library": name, "cartridge": t.Cartridge, "serial": m.Serial, "label": m.ID}}
	switch do {
	case "media-label":
	case "media-erase":
		e.Type, e.Text, e.Severity = eventTapeErased, "cartridge "+t.Cartridge+" was erased", holdfast.Warning
		if t.Expect != nil {
			e.Fields["label"] = t.Expect.ID
		}
	default:
		return
	}
	s.d.events.Emit(e)
}

type tapeWork func(ctx context.Context, d *care.Desk, t api.TapeWork) (any, error)

// tapeWorks is what can be done, by the last word of its route.
var tapeWorks = map[string]tapeWork{
	"scan": func(ctx context.Context, d *care.Desk, _ api.TapeWork) (any, error) { return d.Stock(ctx, true) },
	"drive-test": func(ctx context.Context, d *care.Desk, t api.TapeWork) (any, error) {
		return d.Test(ctx, choice(t), t.Expect)
	},
	"drive-clean":  func(ctx context.Context, d *care.Desk, t api.TapeWork) (any, error) { return d.Clean(ctx, choice(t)) },
	"media-show":   func(ctx context.Context, d *care.Desk, t api.TapeWork) (any, error) { return d.Show(ctx, choice(t)) },
	"media-import": func(ctx context.Context, d *care.Desk, _ api.TapeWork) (any, error) { return d.Import(ctx) },
	"media-export": func(ctx context.Context, d *care.Desk, t api.TapeWork) (any, error) {
		return d.Export(ctx, t.Cartridge)
	},
	"export-dir": func(ctx context.Context, d *care.Desk, t api.TapeWork) (any, error) {
		return d.ExportDir(ctx, choice(t), t.Dir)
	},
	"import-dir": func(ctx context.Context, d *care.Desk, t api.TapeWork) (any, error) {
		return d.ImportDir(ctx, choice(t), t.Dir, t.Expect)
	},
	"media-label": func(ctx context.Context, d *care.Desk, t api.TapeWork) (any, error) {
		return d.Label(ctx, care.LabelSpec{Choice: choice(t), Format: t.Format, Name: t.Volume, Expect: t.Expect})
	},
	"media-erase": func(ctx context.Context, d *care.Desk, t api.TapeWork) (any, error) {
		if t.Expect == nil {
			return nil, holdfast.Errorf(holdfast.Invalid, "erase cartridge", "what may be lost was not named").Advise("ask what is on it first: media-show")
		}
		return d.Erase(ctx, choice(t), *t.Expect)
	},
}

func choice(t api.TapeWork) care.Choice { return care.Choice{Cartridge: t.Cartridge, Drive: t.Drive} }
