// Package care is what an administrator does with a tape library by hand: look at drives and cartridges, test and clean drives, label, erase,
// import and export cartridges, and copy LTFS volumes to and from the reference implementation's file layout.
//
// It owns nothing. A cartridge is chosen by bar code or place, but nothing is overwritten by that: what will be lost is read first, and who
// asks for the loss names the label and the medium's serial number that were read (Expect). A crash leaves the cartridge in the drive, where the
// next use finds it, and what was being written without its end: a label that is not whole is no label.
//
// It imports library and the formats. It must not import pools: those look after their cartridges themselves.
package care

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/tape/library"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A Desk is where the work is done. Methods are safe for concurrent use; each takes a drive for itself.
type Desk struct {
	Library *library.Library
	Clock   clock.Clock       // nil: the system's
	Creator string            // of LTFS volumes; empty: Holdfast
	Phase   func(text string) // hears what is being done; nil: nobody
}

func (d *Desk) phase(format string, args ...any) {
	if d.Phase != nil {
		d.Phase(fmt.Sprintf(format, args...))
	}
}

func (d *Desk) clock() clock.Clock {
	if d.Clock == nil {
		return clock.System
	}
	return d.Clock
}

func (d *Desk) creator() string {
	if d.Creator == "" {
		return "Holdfast"
	}
	return d.Creator
}

// A Stock is what a library has, by its own word.
type Stock struct {
	Vendor   string  `json:"vendor,omitempty"`
	Product  string  `json:"product,omitempty"`
	Revision string  `json:"revision,omitempty"`
	Serial   string  `json:"serial,omitempty" doc:"the library's serial number; some have none"`
	Robot    bool    `json:"robot" doc:"false: a drive that stands alone"`
	Drives   []Drive `json:"drives"`
	Places   []Place `json:"places" doc:"slots and import/export slots"`
	// Twice lists bar codes that several cartridges have: none of those is chosen by bar code.
	Twice []string `json:"twice" doc:"bar codes that several cartridges have"`
}

// A Drive is a drive at its place.
type Drive struct {
	Element  uint16 `json:"element" doc:"its address at the robot; 0 without one"`
	Serial   string `json:"serial"`
	Vendor   string `json:"vendor"`
	Product  string `json:"product"`
	Revision string `json:"revision"`
	Device   string `json:"device" doc:"where this appliance finds it"`
	Full     bool   `json:"full" doc:"a cartridge is in it; unknown without a robot"`
	Barcode  string `json:"barcode,omitempty"`
	Busy     bool   `json:"busy" doc:"this appliance is using it"`
}

// A Place is one where a cartridge can be.
type Place struct {
	Kind     string `json:"kind" doc:"slot, export slot or drive"`
	Element  uint16 `json:"element"`
	Full     bool   `json:"full"`
	Barcode  string `json:"barcode,omitempty"`
	Cleaning bool   `json:"cleaning,omitempty" doc:"a cleaning cartridge, by its bar code"`
	Problem  string `json:"problem,omitempty" doc:"what the library has against it"`
}

// Stock lists the library's drives and cartridges. With look the library's robot looks at every place first, which takes minutes.
func (d *Desk) Stock(ctx context.Context, look bool) (Stock, error) {
	out := Stock{Drives: []Drive{}, Places: []Place{}, Twice: []string{}}
	robot := d.Library.Changer()
	at := map[uint16]scsi.Element{}
	if robot != nil {
		id := robot.Identity()
		out.Robot, out.Vendor, out.Product, out.Revision, out.Serial = true, id.Vendor, id.Product, id.Revision, robot.Serial()
		take := robot.Inventory
		if look {
			d.phase("the library takes its inventory")
			take = robot.Rescan
		}
		inv, err := take(ctx)
		if err != nil {
			return out, err
		}
		out.Twice = append(out.Twice, inv.Twice...)
		for _, e := range inv.All() {
			at[e.Address] = e
			if e.Type == scsi.ElementDrive {
				continue
			}
			p := Place{Kind: e.Type.String(), Element: e.Address, Full: e.Full, Barcode: e.Barcode, Cleaning: e.Full && robot.Cleaning(e.Barcode)}
			if e.Exception != 0 {
				p.Problem = e.Exception.String()
			}
			out.Places = append(out.Places, p)
		}
	}
	for _, b := range d.Library.Bays() {
		e := at[b.Element]
		out.Drives = append(out.Drives, Drive{Element: b.Element, Serial: b.Serial, Vendor: b.Vendor, Product: b.Product, Revision: b.Revision, Device: b.Place,
			Full: e.Full, Barcode: e.Barcode, Busy: d.Library.Busy(b.Element)})
	}
	return out, nil
}

// Choice says which cartridge, and in which drive.
type Choice struct {
	Cartridge string // bar code, or the element address where it is, for cartridges without a readable bar code; empty: what is in a lone drive
	Drive     string // serial number or element address; empty: a free one
}

// find returns where the chosen cartridge is.
func (d *Desk) find(ctx context.Context, name string) (scsi.Element, error) {
	const op = "find cartridge"
	inv, err := d.Library.Changer().Inventory(ctx)
	if err != nil {
		return scsi.Element{}, err
	}
	if name == "" {
		return scsi.Element{}, holdfast.Errorf(holdfast.Invalid, op, "which cartridge?").Advise("name its bar code, or the address of its slot")
	}
	e, err := inv.Find(name)
	if holdfast.KindOf(err) != holdfast.NotExist {
		return e, err
	}
	n, nerr := strconv.ParseUint(name, 10, 16)
	if nerr != nil {
		return e, err
	}
	e, ok := inv.At(uint16(n))
	if !ok || !e.Full {
		return e, holdfast.Errorf(holdfast.NotExist, op, "there is no cartridge %s, and none at address %d", name, n).Advise("list them: holdfast tape media list")
	}
	return e, nil
}

// bay takes a drive for the cartridge at a place: the one it is in, the one that was named, or a free and empty one.
func (d *Desk) bay(ctx context.Context, c Choice, at scsi.Element) (*library.Hold, error) {
	const op = "choose tape drive"
	if c.Drive != "" {
		b, err := d.Library.Bay(c.Drive)
		if err != nil {
			return nil, err
		}
		if at.Type == scsi.ElementDrive && at.Address != b.Element {
			return nil, holdfast.Errorf(holdfast.Busy, op, "the cartridge is in another drive, at element %d", at.Address)
		}
		return d.Library.Take(ctx, b.Element)
	}
	if at.Type == scsi.ElementDrive || d.Library.Changer() == nil {
		return d.Library.Take(ctx, at.Address)
	}
	inv, err := d.Library.Changer().Inventory(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range d.Library.Bays() {
		if e, ok := inv.At(b.Element); !ok || e.Full {
			continue
		}
		h, err := d.Library.Take(ctx, b.Element)
		if holdfast.KindOf(err) == holdfast.Busy && err != nil {
			continue
		}
		return h, err
	}
	return nil, holdfast.Errorf(holdfast.Busy, op, "no drive is free and empty").Advise("wait, or unload one: see holdfast tape drive list")
}

// mounted does work with a cartridge in a drive, and brings it back to where it was, also where the work fails. A cartridge in a lone drive
// stays there.
func (d *Desk) mounted(ctx context.Context, c Choice, ready bool, do func(h *library.Hold, at scsi.Element) error) (err error) {
	robot := d.Library.Changer()
	var at scsi.Element
	if robot != nil {
		if at, err = d.find(ctx, c.Cartridge); err != nil {
			return err
		}
		if ready && robot.Cleaning(at.Barcode) {
			return holdfast.Errorf(holdfast.Invalid, "load cartridge", "%s is a cleaning cartridge", at.Barcode).Advise("holdfast tape drive clean uses it")
		}
	}
	h, err := d.bay(ctx, c, at)
	if err != nil {
		return err
	}
	late := context.WithoutCancel(ctx) // the cartridge goes home also when the work was cancelled
	defer func() { err = errors.Join(err, h.Release(late)) }()
	if robot != nil {
		if at.Address != h.Element {
			d.phase("load %s", name(at))
			if err := robot.Move(ctx, at.Address, h.Element, at.Barcode); err != nil {
				return err
			}
		}
		defer func() {
			d.phase("unload %s", name(at))
			if e := d.home(late, h, at); e != nil && err == nil {
				err = e
			}
		}()
	}
	if ready {
		if err := h.Drive.Ready(ctx); err != nil {
			return err
		}
	}
	return do(h, at)
}

// home unloads a drive and brings its cartridge back.
func (d *Desk) home(ctx context.Context, h *library.Hold, at scsi.Element) error {
	if err := h.Drive.Unload(ctx); err != nil && !cleaning(err) { // a cleaning cartridge is let go of without being asked
		return err
	}
	if at.Type != scsi.ElementDrive {
		if err := d.Library.Changer().Move(ctx, h.Element, at.Address, at.Barcode); err == nil || holdfast.KindOf(err) != holdfast.Busy {
			return err // Busy: somebody has filled the place meanwhile
		}
	}
	_, err := d.Library.Changer().Unload(ctx, h.Element)
	return err
}

// cleaning reports whether a drive says that it has a cleaning cartridge, or has given it out.
func cleaning(err error) bool {
	var e *scsi.Error
	return errors.As(err, &e) && e.Sense.Key == scsi.NotReady && (e.Sense.Code == scsi.CodeCleaning || e.Sense.Code == scsi.CodeNoMedium)
}

func name(e scsi.Element) string {
	if e.Barcode == "" {
		return fmt.Sprintf("the cartridge at %d", e.Address)
	}
	return e.Barcode
}
