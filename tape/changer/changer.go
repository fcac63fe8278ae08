// Package changer is one tape library's robot: what is where, and moves. All that touches the robot goes through one Changer, which does one
// thing at a time; towards other hosts it takes a persistent reservation where the library knows these.
//
// It owns no state that must survive: the inventory is the library's own, asked again whenever something may have changed. A move that was
// cut off is found out by looking. What bar codes say is a hint, which may be missing, wrong or there twice: who writes asks the medium.
//
// It imports scsi and the ground floor only.
package changer

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// Options of Open.
type Options struct {
	// Log hears what is remarkable and no error. Nil: nobody.
	Log func(format string, args ...any)
	// Serials names the drives by element address where the library does not say which drive is which.
	Serials map[uint16]string
	// CleaningPrefix of bar codes; empty: CLN.
	CleaningPrefix string
}

// A Changer is an open library robot. Methods are safe for concurrent use; they wait for each other.
type Changer struct {
	t  scsi.Transport
	o  Options
	id scsi.Identity
	sn string

	mu      sync.Mutex // one command to the robot at a time; guards what follows
	layout  scsi.Layout
	devices bool // it can tell which drive is which
	stale   bool // the inventory must be asked anew
	inv     Inventory
	held    uint64
}

// An Inventory is what is where.
type Inventory struct {
	Slots, Exports, Drives []scsi.Element
	// Twice lists bar codes that more than one cartridge has. Such cartridges are not to be chosen by bar code.
	Twice []string
}

// All returns all elements that can hold a cartridge.
func (v *Inventory) All() []scsi.Element { return slices.Concat(v.Slots, v.Exports, v.Drives) }

// At returns the element with an address.
func (v *Inventory) At(addr uint16) (scsi.Element, bool) {
	for _, e := range v.All() {
		if e.Address == addr {
			return e, true
		}
	}
	return scsi.Element{}, false
}

// Find returns the place of the cartridge with a bar code. NotExist if it is not there, Invalid if two have it.
func (v *Inventory) Find(barcode string) (scsi.Element, error) {
	const op = "find cartridge"
	if slices.Contains(v.Twice, barcode) {
		return scsi.Element{}, holdfast.Errorf(holdfast.Invalid, op, "two cartridges have the bar code %s", barcode).Advise("take one of them out, or give it another bar code")
	}
	for _, e := range v.All() {
		if e.Full && e.Barcode == barcode && barcode != "" {
			return e, nil
		}
	}
	return scsi.Element{}, holdfast.Errorf(holdfast.NotExist, op, "no cartridge %s in the library", barcode).Advise("import it through the library's import/export slot")
}

// Free returns an empty slot; NoSpace if there is none.
func (v *Inventory) Free() (scsi.Element, error) {
	for _, e := range v.Slots {
		if !e.Full && e.Exception == 0 {
			return e, nil
		}
	}
	return scsi.Element{}, holdfast.Errorf(holdfast.NoSpace, "find free slot", "every slot is full").Advise("export a cartridge")
}

// Open makes out which library it is, and what is in it.
func Open(ctx context.Context, t scsi.Transport, o Options) (*Changer, error) {
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if o.CleaningPrefix == "" {
		o.CleaningPrefix = "CLN"
	}
	c := &Changer{t: t, o: o, devices: true, stale: true}
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := c.do(ctx, scsi.Command{CDB: scsi.Inquiry(scsi.InquiryLen), In: make([]byte, scsi.InquiryLen)})
	if err != nil {
		return nil, err
	}
	if c.id, err = scsi.ParseInquiry(b); err != nil {
		return nil, err
	}
	if c.id.Type != scsi.TypeChanger {
		return nil, holdfast.Errorf(holdfast.Invalid, "open tape library", "%s %s is no media changer", c.id.Vendor, c.id.Product)
	}
	if b, err := c.do(ctx, scsi.Command{CDB: scsi.InquiryVPD(scsi.PageSerial, 255), In: make([]byte, 255)}); err == nil {
		c.sn, _ = scsi.ParseSerial(b) // a library without a serial number is known by how it is reached
	}
	if b, err = c.do(ctx, scsi.Command{CDB: scsi.ModeSense6(scsi.ModeElements, 0, scsi.ModeLen), In: make([]byte, scsi.ModeLen)}); err != nil {
		return nil, err
	}
	m, err := scsi.ParseMode6(b)
	if err != nil {
		return nil, err
	}
	if c.layout, err = scsi.ParseLayout(m.Page(scsi.ModeElements, 0)); err != nil {
		return nil, err
	}
	return c, c.refresh(ctx)
}

// Identity returns vendor, product and revision; Serial the library's serial number.
func (c *Changer) Identity() scsi.Identity { return c.id }

// Serial returns the library's serial number; some have none.
func (c *Changer) Serial() string { return c.sn }

// Cleaning reports whether a bar code is a cleaning cartridge's.
func (c *Changer) Cleaning(barcode string) bool {
	return strings.HasPrefix(barcode, c.o.CleaningPrefix)
}

const attentionLimit = 8

// do executes a command. Unit attentions mean that somebody may have moved something. The caller holds mu.
func (c *Changer) do(ctx context.Context, cmd scsi.Command) ([]byte, error) {
	for i := 0; ; i++ {
		b, err := scsi.Do(ctx, c.t, cmd)
		var e *scsi.Error
		if !errors.As(err, &e) {
			if err != nil {
				c.stale = true
			}
			return b, err
		}
		if e.Sense.Key == scsi.Recovered {
			c.o.Log("%v", err)
			return cmd.In, nil
		}
		c.stale = true
		if e.Sense.Key != scsi.UnitAttention || i == attentionLimit {
			return nil, err
		}
		c.o.Log("%v", err)
		if e.Sense.Code.ASC() == 0x29 {
			c.held = 0
		}
	}
}

// elementBytes is how much one element's status takes at most, with volume tags and the identity of a drive.
const elementBytes = 12 + 36 + 36 + 4 + 64

// ask reads the status of one type of elements: some libraries mix pages up when asked for all.
func (c *Changer) ask(ctx context.Context, t scsi.ElementType, first, count uint16) ([]scsi.Element, error) {
	if count == 0 {
		return nil, nil
	}
	devices := c.devices && t == scsi.ElementDrive
	n := 16 + int(count)*elementBytes
	b, err := c.do(ctx, scsi.Command{CDB: scsi.ReadElementStatus(t, first, count, devices, n), In: make([]byte, n)})
	var e *scsi.Error
	if devices && errors.As(err, &e) && e.Sense.Key == scsi.IllegalRequest {
		c.devices = false
		return c.ask(ctx, t, first, count)
	}
	if err != nil {
		return nil, err
	}
	es, err := scsi.ParseElements(b)
	if err != nil {
		return nil, err
	}
	es = slices.DeleteFunc(es, func(e scsi.Element) bool { // not every library keeps to what it was asked for
		return e.Type != t || e.Address < first || int(e.Address) >= int(first)+int(count)
	})
	if len(es) != int(count) {
		return nil, holdfast.Errorf(holdfast.Corrupt, "take stock of tape library", "it tells of %d of %d elements of type %v", len(es), count, t).
			Advise("have the library take its inventory")
	}
	for i := range es {
		if s, ok := c.o.Serials[es[i].Address]; ok {
			es[i].Device = s
		}
	}
	return es, nil
}

// refresh asks for the inventory. The caller holds mu.
func (c *Changer) refresh(ctx context.Context) error {
	var v Inventory
	for range 3 { // until nothing happens in between
		c.stale = false
		var err error
		if v.Slots, err = c.ask(ctx, scsi.ElementSlot, c.layout.Slot.First, c.layout.Slot.Count); err != nil {
			return err
		}
		if v.Exports, err = c.ask(ctx, scsi.ElementExport, c.layout.Export.First, c.layout.Export.Count); err != nil {
			return err
		}
		if v.Drives, err = c.ask(ctx, scsi.ElementDrive, c.layout.Drive.First, c.layout.Drive.Count); err != nil {
			return err
		}
		if !c.stale {
			break
		}
	}
	seen := map[string]int{}
	for _, e := range v.All() {
		if e.Full && e.Barcode != "" {
			if seen[e.Barcode]++; seen[e.Barcode] == 2 {
				v.Twice = append(v.Twice, e.Barcode)
			}
		}
	}
	slices.SortFunc(v.Twice, cmp.Compare[string])
	c.inv = v
	return nil
}

// Inventory returns what is where, asking the library.
func (c *Changer) Inventory(ctx context.Context) (Inventory, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.refresh(ctx)
	return c.inv, err
}

// Rescan has the library itself look at all of its elements, which takes minutes, and returns what it saw.
func (c *Changer) Rescan(ctx context.Context) (Inventory, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.do(ctx, scsi.Command{CDB: scsi.InitElementStatus()}); err != nil {
		return Inventory{}, err
	}
	err := c.refresh(ctx)
	return c.inv, err
}

// Move moves the cartridge at an address to another one. expect is the bar code that it must have, so that a cartridge that somebody has put
// in its place is not moved instead; empty: whatever is there. A drive's must have been unloaded before.
func (c *Changer) Move(ctx context.Context, from, to uint16, expect string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.move(ctx, from, to, expect)
}

func (c *Changer) move(ctx context.Context, from, to uint16, expect string) error {
	const op = "move cartridge"
	if err := c.refresh(ctx); err != nil {
		return err
	}
	src, ok := c.inv.At(from)
	dst, ok2 := c.inv.At(to)
	switch {
	case !ok || !ok2:
		return holdfast.Errorf(holdfast.NotExist, op, "there are no elements %d and %d", from, to)
	case from == to:
		return nil
	case !src.Full:
		return holdfast.Errorf(holdfast.NotExist, op, "%v %d is empty", src.Type, from)
	case dst.Full:
		return holdfast.Errorf(holdfast.Busy, op, "%v %d is full", dst.Type, to)
	case expect != "" && src.Barcode != expect:
		return holdfast.Errorf(holdfast.Invalid, op, "%v %d has cartridge %q, not %s", src.Type, from, src.Barcode, expect).Advise("take stock of the library again")
	}
	c.o.Log("move %s from %v %d to %v %d", src.Barcode, src.Type, from, dst.Type, to)
	_, err := c.do(ctx, scsi.Command{CDB: scsi.MoveMedium(c.layout.Robot.First, from, to)})
	c.stale = true
	var e *scsi.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e) && e.Sense.Key == scsi.IllegalRequest && e.Sense.Code == scsi.CodeRemovalPrevented:
		return holdfast.Errorf(holdfast.Busy, op, "%v %d does not let go of cartridge %s: %w", src.Type, from, src.Barcode, err).Advise("unload the drive first")
	case errors.As(err, &e):
		return err
	}
	return c.settle(ctx, from, to, src.Barcode, err)
}

// settle finds out what became of a move whose answer was lost.
func (c *Changer) settle(ctx context.Context, from, to uint16, barcode string, why error) error {
	if err := c.refresh(ctx); err != nil {
		return errors.Join(why, err)
	}
	src, _ := c.inv.At(from)
	dst, _ := c.inv.At(to)
	if !src.Full && dst.Full && dst.Barcode == barcode {
		c.o.Log("the move was done although its answer was lost")
		return nil
	}
	return why
}

// Load brings the cartridge with a bar code into a drive.
func (c *Changer) Load(ctx context.Context, barcode string, drive uint16) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(ctx); err != nil {
		return err
	}
	at, err := c.inv.Find(barcode)
	if err != nil {
		return err
	}
	if at.Type == scsi.ElementDrive && at.Address != drive {
		return holdfast.Errorf(holdfast.Busy, "load cartridge", "%s is in another drive, %d", barcode, at.Address)
	}
	return c.move(ctx, at.Address, drive, barcode)
}

// Unload brings the cartridge in a drive, which has let go of it, back to where it came from, or to another free slot, and says where.
func (c *Changer) Unload(ctx context.Context, drive uint16) (uint16, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(ctx); err != nil {
		return 0, err
	}
	e, ok := c.inv.At(drive)
	if !ok || e.Type != scsi.ElementDrive {
		return 0, holdfast.Errorf(holdfast.NotExist, "unload drive", "there is no drive %d", drive)
	}
	if e.HasSource {
		if home, ok := c.inv.At(e.Source); ok && home.Type == scsi.ElementSlot && !home.Full {
			return e.Source, c.move(ctx, drive, e.Source, e.Barcode)
		}
	}
	home, err := c.inv.Free()
	if err != nil {
		return 0, err
	}
	return home.Address, c.move(ctx, drive, home.Address, e.Barcode)
}

// Export brings a cartridge to a free import/export slot, where a person takes it out. NoSpace if there is none.
func (c *Changer) Export(ctx context.Context, barcode string) (uint16, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(ctx); err != nil {
		return 0, err
	}
	at, err := c.inv.Find(barcode)
	if err != nil {
		return 0, err
	}
	if at.Type == scsi.ElementExport {
		return at.Address, nil
	}
	for _, e := range c.inv.Exports {
		if !e.Full && e.Exception == 0 {
			return e.Address, c.move(ctx, at.Address, e.Address, barcode)
		}
	}
	return 0, holdfast.Errorf(holdfast.NoSpace, "export cartridge", "every import/export slot is full").Advise("take the cartridges out of the library's door")
}

// Import brings every cartridge in the import/export slots to a free slot, and lists the bar codes of those it brought.
func (c *Changer) Import(ctx context.Context) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(ctx); err != nil {
		return nil, err
	}
	var done []string
	for _, e := range slices.Clone(c.inv.Exports) {
		if !e.Full {
			continue
		}
		free, err := c.inv.Free()
		if err != nil {
			return done, err
		}
		if err := c.move(ctx, e.Address, free.Address, e.Barcode); err != nil {
			return done, err
		}
		done = append(done, e.Barcode)
		if err := c.refresh(ctx); err != nil {
			return done, err
		}
	}
	return done, nil
}

// Reserve takes the robot for the holder of a key, so that other hosts do not move cartridges. It reports false where the library does not know reservations.
func (c *Changer) Reserve(ctx context.Context, key uint64) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := func(action, kind byte, mine, other uint64) error {
		_, err := c.do(ctx, scsi.Command{CDB: scsi.ReserveOut(action, kind), Out: scsi.ReserveParams(mine, other)})
		return err
	}
	err := out(scsi.ReserveRegisterIgnore, 0, 0, key)
	var e *scsi.Error
	if errors.As(err, &e) && e.Sense.Key == scsi.IllegalRequest {
		c.o.Log("the library knows no reservations: make sure that no other host moves cartridges")
		return false, nil
	}
	if err == nil {
		err = out(scsi.ReserveReserve, scsi.ReserveExclusive, key, 0)
	}
	if holdfast.KindOf(err) == holdfast.Busy && err != nil {
		return true, holdfast.Errorf(holdfast.Busy, "reserve tape library", "another host has the robot: %w", err).Advise("end the other host's use of the library")
	}
	if err == nil {
		c.held = key
	}
	return true, err
}

// Release gives a reservation back.
func (c *Changer) Release(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == 0 {
		return nil
	}
	key := c.held
	c.held = 0
	_, err := c.do(ctx, scsi.Command{CDB: scsi.ReserveOut(scsi.ReserveRegister, 0), Out: scsi.ReserveParams(key, 0)})
	return err
}
