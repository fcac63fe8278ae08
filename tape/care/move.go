package care

import (
	"context"
	"errors"
	"os"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/library"
	"github.com/holdfast-backup/holdfast/tape/ltfs"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// robot returns the library's robot.
func (d *Desk) robot(op string) error {
	if d.Library.Changer() == nil {
		return holdfast.Errorf(holdfast.Unsupported, op, "a drive that stands alone has no robot").Advise("move the cartridge by hand")
	}
	return nil
}

// Moved is where cartridges were brought.
type Moved struct {
	Cartridges []string `json:"cartridges" doc:"bar codes; empty ones could not be read"`
	Element    uint16   `json:"element,omitempty" doc:"export: the slot of the door"`
}

// Import brings every cartridge in the door's slots to a free slot.
func (d *Desk) Import(ctx context.Context) (Moved, error) {
	if err := d.robot("import cartridges"); err != nil {
		return Moved{Cartridges: []string{}}, err
	}
	codes, err := d.Library.Changer().Import(ctx)
	return Moved{Cartridges: append([]string{}, codes...)}, err
}

// Export brings a cartridge to a slot of the door, where a person takes it out. One in a drive that is in use is Busy.
func (d *Desk) Export(ctx context.Context, cartridge string) (Moved, error) {
	const op = "export cartridge"
	if err := d.robot(op); err != nil {
		return Moved{}, err
	}
	at, err := d.find(ctx, cartridge)
	if err != nil {
		return Moved{}, err
	}
	if at.Type == scsi.ElementDrive {
		h, err := d.Library.Take(ctx, at.Address)
		if err != nil {
			return Moved{}, err
		}
		err = h.Drive.Unload(ctx)
		if err = errors.Join(err, h.Release(context.WithoutCancel(ctx))); err != nil {
			return Moved{}, err
		}
	}
	if at.Barcode == "" {
		return Moved{}, holdfast.Errorf(holdfast.Invalid, op, "the cartridge at %d has no bar code that can be read", at.Address).Advise("take it out by the library's own panel")
	}
	to, err := d.Library.Changer().Export(ctx, at.Barcode)
	return Moved{Cartridges: []string{at.Barcode}, Element: to}, err
}

// Cleaned is the outcome of a cleaning.
type Cleaned struct {
	Drive     string   `json:"drive"`
	Cartridge string   `json:"cartridge"`
	Alerts    []string `json:"alerts" doc:"what the drive still complains of"`
}

// Clean has a drive clean itself with a cleaning cartridge of the library: the named one, or any. The drive must be empty.
func (d *Desk) Clean(ctx context.Context, c Choice) (r Cleaned, err error) {
	const op = "clean tape drive"
	r.Alerts = []string{}
	if err := d.robot(op); err != nil {
		return r, err
	}
	b, err := d.Library.Bay(c.Drive)
	if err != nil {
		return r, err
	}
	r.Drive = b.Serial
	at, err := d.cleaner(ctx, c.Cartridge)
	if err != nil {
		return r, err
	}
	r.Cartridge = at.Barcode
	err = d.mounted(ctx, Choice{Cartridge: at.Barcode, Drive: c.Drive}, false, func(h *library.Hold, _ scsi.Element) error {
		d.phase("clean")
		// Until it has done its work the drive says that it cleans itself, or becomes ready; it never gets ready with such a cartridge.
		err := h.Drive.Ready(ctx)
		if cleaning(err) {
			err = nil
		}
		var t Tested
		err = errors.Join(err, d.complaints(ctx, h, &t))
		r.Alerts = append(r.Alerts, t.Alerts...)
		for _, a := range t.Alerts {
			for _, bad := range []scsi.Alert{scsi.AlertCleanExpired, scsi.AlertCleanInvalid} {
				if a == bad.String() {
					err = errors.Join(err, holdfast.Errorf(holdfast.Invalid, op, "cartridge %s: %s", at.Barcode, a).Advise("put a new cleaning cartridge into the library"))
				}
			}
		}
		return err
	})
	return r, err
}

// cleaner finds a cleaning cartridge.
func (d *Desk) cleaner(ctx context.Context, name string) (scsi.Element, error) {
	const op = "find cleaning cartridge"
	robot := d.Library.Changer()
	if name != "" {
		e, err := d.find(ctx, name)
		if err == nil && !robot.Cleaning(e.Barcode) {
			err = holdfast.Errorf(holdfast.Invalid, op, "%s is no cleaning cartridge by its bar code", name)
		}
		return e, err
	}
	inv, err := robot.Inventory(ctx)
	if err != nil {
		return scsi.Element{}, err
	}
	for _, e := range inv.Slots {
		if e.Full && robot.Cleaning(e.Barcode) {
			return inv.Find(e.Barcode)
		}
	}
	return scsi.Element{}, holdfast.Errorf(holdfast.NotExist, op, "there is no cleaning cartridge in the library").Advise("put one in, with a bar code that begins with CLN")
}

// ExportDir copies an LTFS volume to an empty or new folder in the reference implementation's layout, for its checker, or for keeping.
func (d *Desk) ExportDir(ctx context.Context, c Choice, dir string) (out ltfs.Copied, err error) {
	const op = "export LTFS volume"
	if err := emptyDir(op, dir); err != nil {
		return out, err
	}
	err = d.mounted(ctx, c, true, func(h *library.Hold, _ scsi.Element) error {
		d.phase("copy the volume")
		_, err := ltfs.Open(ctx, h.Drive) // before anything is in the folder
		if err == nil {
			var to *ltfs.Dir
			if to, err = ltfs.OpenDir(dir); err == nil {
				out, err = ltfs.Copy(ctx, h.Drive, to)
			}
		}
		if err != nil && holdfast.KindOf(err) == holdfast.Invalid {
			err = holdfast.Errorf(holdfast.Invalid, op, "%w", err).Advise("only LTFS volumes are exported so; see what is on the cartridge: holdfast tape media show")
		}
		return err
	})
	return out, err
}

func emptyDir(op, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return holdfast.Errorf(holdfast.Invalid, op, "%w", err)
	}
	es, err := os.ReadDir(dir)
	if err != nil {
		return holdfast.Errorf(holdfast.Invalid, op, "%w", err)
	}
	if len(es) > 0 {
		return holdfast.Errorf(holdfast.Exist, op, "the folder %s is not empty", dir).Advise("choose a new folder")
	}
	return nil
}

// ImportDir copies a volume from a folder in the reference implementation's layout to a cartridge, which must be blank, or what Expect names.
func (d *Desk) ImportDir(ctx context.Context, c Choice, dir string, e *Expect) (out ltfs.Copied, err error) {
	const op = "import LTFS volume"
	from := ltfs.OpenFolder(os.DirFS(dir))
	if _, err := ltfs.Open(ctx, from); err != nil { // before anything is lost
		return out, err
	}
	err = d.mounted(ctx, c, true, func(h *library.Hold, at scsi.Element) error {
		m, err := d.look(ctx, h, at.Barcode)
		if err != nil {
			return err
		}
		if err := e.check(op, m); err != nil {
			return err
		}
		if err := h.Drive.Format(ctx, true, 1); err != nil {
			return err
		}
		d.phase("copy the volume")
		out, err = ltfs.Copy(ctx, from, h.Drive)
		return err
	})
	return out, err
}
