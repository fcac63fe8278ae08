package pool

import (
	"context"
	"errors"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/changer"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/media"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// errAway says that a cartridge is not where it can be mounted: the drive is not to blame.
var errAway = errors.New("the cartridge cannot be mounted")

// mountTries bounds how often a cartridge is tried in this drive and that one.
const mountTries = 6

// locate returns where a cartridge is. Offline, with errAway, if it is not in the library, or is in its door.
func locate(inv *changer.Inventory, c *media.Cartridge) (scsi.Element, error) {
	const op = "find cartridge"
	if slices.Contains(inv.Twice, c.Barcode) {
		return scsi.Element{}, holdfast.Errorf(holdfast.Invalid, op, "%w: two cartridges have the bar code %s", errAway, c.Barcode).
			Advise("take one of them out, or give it another bar code")
	}
	e, err := inv.Find(c.Barcode)
	if err != nil || e.Type == scsi.ElementExport {
		where := "is not in the library"
		if c.Vaulted != "" {
			where += "; it was brought to " + c.Vaulted
		}
		return e, holdfast.Errorf(holdfast.Offline, op, "%w: cartridge %s (number %d of media set %s) %s", errAway, c.Name(), c.Seq, c.Set, where).
			Advise("put cartridge %s into the library's door and import it", c.Name())
	}
	return e, nil
}

// preference ranks stations for the cartridge at an element: the one that has it, else empty ones.
func (p *Pool) preference(inv *changer.Inventory, at scsi.Element) func(*station) int {
	return func(x *station) int {
		if at.Type == scsi.ElementDrive {
			if x.bay.Element == at.Address {
				return 2
			}
			return -1
		}
		if e, ok := inv.At(x.bay.Element); ok && !e.Full {
			return 1
		}
		return 0
	}
}

// seat takes a station for what find finds and loads it there. The cartridge may have been moved by others while a drive was waited for.
func (p *Pool) seat(ctx context.Context, find func(*changer.Inventory) (scsi.Element, error)) (*station, error) {
	var last error
	for range mountTries {
		inv, err := p.stations.lib.Changer().Inventory(ctx)
		if err != nil {
			return nil, err
		}
		at, err := find(&inv)
		if err != nil {
			return nil, err
		}
		x, err := p.stations.take(ctx, p.preference(&inv, at))
		if err != nil && at.Type == scsi.ElementDrive && holdfast.KindOf(err) == holdfast.Offline {
			if err := p.unstick(ctx, at); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		now, err := p.stations.lib.Changer().Inventory(ctx)
		if err == nil {
			at, err = find(&now)
		}
		if err != nil {
			p.stations.give(x)
			return nil, err
		}
		if at.Type == scsi.ElementDrive && at.Address != x.bay.Element {
			p.stations.give(x)
			continue
		}
		if at.Address == x.bay.Element && x.tape != nil {
			return x, nil // nobody else has had the drive since
		}
		if err = p.stations.load(ctx, x, at.Address, at.Barcode); err == nil {
			return x, nil
		}
		last = err
		p.stations.doubt(ctx, x, err)
		p.stations.give(x)
		if cerr := ctx.Err(); cerr != nil {
			return nil, holdfast.Errorf(holdfast.KindOf(cerr), "load cartridge", "%w", cerr)
		}
	}
	return nil, last
}

// unstick gets a cartridge out of a drive that is out of service.
func (p *Pool) unstick(ctx context.Context, at scsi.Element) error {
	const op = "mount cartridge"
	x := p.stations.at(at.Address)
	if x == nil {
		return holdfast.Errorf(holdfast.Offline, op, "%w: %s is in a drive that is not ours", errAway, at.Barcode).Advise("unload that drive")
	}
	if err := p.stations.rescue(ctx, x); err != nil {
		return holdfast.Errorf(holdfast.Offline, op, "%w: %s is in drive %s, which is out of service and does not let go of it: %w", errAway, at.Barcode, x.bay.Serial, err).
			Advise("take the cartridge out of the drive by hand, or repair the drive")
	}
	return nil
}

// mount brings a cartridge of the pool into a drive, with its label and its medium's serial number as the book has them, and its key in the drive. The
// caller has the station until it gives it back. Invalid: the cartridge is not the one; it is suspect from now on.
func (p *Pool) mount(ctx context.Context, c media.Cartridge) (*station, error) {
	var last error
	for range mountTries {
		x, err := p.seat(ctx, func(v *changer.Inventory) (scsi.Element, error) { return locate(v, &c) })
		if err != nil {
			return nil, err
		}
		if x.tape != nil && x.tape.label.ID == c.ID {
			return x, nil
		}
		err = p.identify(ctx, x, &c)
		if err == nil {
			return x, nil
		}
		last = err
		switch holdfast.KindOf(err) {
		case holdfast.Offline, holdfast.Transient, holdfast.Internal:
			p.stations.doubt(ctx, x, err)
			p.stations.give(x)
			continue
		case holdfast.Invalid:
			p.spoil(c.ID, err)
		}
		x.tape = nil
		p.stations.give(x)
		return nil, err
	}
	return nil, last
}

// identify reads label and serial number of what is in a station and compares them with the book.
func (p *Pool) identify(ctx context.Context, x *station, c *media.Cartridge) error {
	const op = "check cartridge"
	wrong := func(format string, args ...any) error {
		return holdfast.Errorf(holdfast.Invalid, op, "%w: the cartridge with the bar code %s is not the one it should be: "+format, append([]any{errAway, c.Barcode}, args...)...).
			Advise("look which cartridge it is: it was swapped, relabelled or copied; nothing is written to it")
	}
	d := x.hold.Drive
	r, err := hft.Open(ctx, d)
	switch k := holdfast.KindOf(err); {
	case err == nil:
	case k == holdfast.Invalid || k == holdfast.NotExist || k == holdfast.Corrupt:
		return wrong("%w", err)
	default:
		return err
	}
	serial, err := d.MediumSerial(ctx)
	if err != nil {
		return err
	}
	l := r.Label()
	switch {
	case l.ID != c.ID || l.Set != c.Set || l.Seq != c.Seq || l.Pool != p.id:
		return wrong("its label says tape %s, number %d of media set %s", l.ID, l.Seq, l.Set)
	case c.Serial != "" && serial != "" && c.Serial != serial, l.Serial != "" && serial != "" && l.Serial != serial:
		return wrong("its medium has the serial number %s, and %s is due", serial, c.Serial)
	}
	key, err := p.keyOf(l)
	if err != nil {
		return err
	}
	if err := r.Unlock(ctx, key); err != nil {
		return err
	}
	x.tape = &mounted{label: l, reader: r}
	return nil
}

// spoil notes that a cartridge is not to be written any more.
func (p *Pool) spoil(id holdfast.ID, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.book.Tape(id); c != nil && c.State != media.Suspect && c.State != media.Retired {
		c.State, c.Why = media.Suspect, why.Error()
		p.log("cartridge %s is suspect: %v", c.Name(), why)
		p.saveLater()
	}
}

// fill notes that a cartridge takes no more.
func (p *Pool) fill(id holdfast.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.book.Tape(id); c != nil && (c.State == media.Labelled || c.State == media.Writable) {
		c.State = media.Full
		p.saveLater()
	}
}
