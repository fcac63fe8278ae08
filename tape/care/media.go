package care

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/library"
	"github.com/holdfast-backup/holdfast/tape/ltfs"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// What is on a cartridge.
const (
	Blank    = "blank"
	Own      = "hft"
	LTFS     = "ltfs"
	Foreign  = "foreign"
	Cleaning = "cleaning"
)

// A Medium is a cartridge, as it and its label say.
type Medium struct {
	Barcode   string      `json:"barcode,omitempty" doc:"what its sticker says; a hint"`
	Serial    string      `json:"serial,omitempty" doc:"of the medium's memory; empty: the drive cannot read it"`
	Content   string      `json:"content" doc:"blank, hft, ltfs, foreign or cleaning"`
	ID        string      `json:"id,omitempty" doc:"of its label: the UUID of the tape or of the LTFS volume"`
	Label     string      `json:"label,omitempty" doc:"the bar code that its label was written with, or the LTFS volume's serial"`
	Pool      string      `json:"pool,omitempty" doc:"name of the pool that labelled it"`
	PoolID    string      `json:"pool_id,omitempty"`
	Set       string      `json:"set,omitempty" doc:"id of the media set"`
	Seq       int         `json:"seq,omitempty" doc:"its number in the set"`
	Created   time.Time   `json:"created,omitzero"`
	Encrypted bool        `json:"encrypted,omitempty"`
	Files     int         `json:"files,omitempty" doc:"of an LTFS volume"`
	WORM      bool        `json:"worm,omitempty" doc:"can be written once only"`
	Remaining uint64      `json:"remaining_mib,omitempty"`
	Capacity  uint64      `json:"capacity_mib,omitempty"`
	Drive     string      `json:"drive,omitempty" doc:"serial number of the drive that read it"`
	Problems  []string    `json:"problems" doc:"what does not fit together"`
	Tape      holdfast.ID `json:"-"`
}

// Expect names the cartridge whose content may be lost: what Show said of it.
type Expect struct {
	ID     string `json:"id" doc:"of its label; empty: it has none that can be read"`
	Serial string `json:"serial" doc:"of the medium; empty: it cannot be read"`
}

// Loss says what overwriting the cartridge loses.
func (m *Medium) Loss() string {
	who := m.Barcode
	if m.Serial != "" {
		who = strings.TrimSpace(who + " (serial " + m.Serial + ")")
	}
	switch m.Content {
	case Blank:
		return "cartridge " + who + " is blank: nothing is lost"
	case Own:
		if m.PoolID == "" {
			return fmt.Sprintf("cartridge %s has label %s and is of no pool: the label is lost", who, m.ID)
		}
		return fmt.Sprintf("cartridge %s is tape %d of media set %s of pool %q: every backup on it is lost", who, m.Seq, m.Set, m.Pool)
	case LTFS:
		return fmt.Sprintf("cartridge %s is LTFS volume %s with %d files: all of them are lost", who, m.ID, m.Files)
	case Cleaning:
		return "cartridge " + who + " is a cleaning cartridge"
	}
	return "cartridge " + who + " has content of other software: all of it is lost"
}

// Show loads a cartridge and reads what it is.
func (d *Desk) Show(ctx context.Context, c Choice) (m Medium, err error) {
	if robot := d.Library.Changer(); robot != nil {
		at, err := d.find(ctx, c.Cartridge)
		if err != nil || robot.Cleaning(at.Barcode) { // loading it would use it
			return Medium{Barcode: at.Barcode, Content: Cleaning, Problems: []string{}}, err
		}
	}
	err = d.mounted(ctx, c, true, func(h *library.Hold, at scsi.Element) error {
		m, err = d.look(ctx, h, at.Barcode)
		return err
	})
	return m, err
}

// look reads what the cartridge in a drive is. Reading changes nothing.
func (d *Desk) look(ctx context.Context, h *library.Hold, barcode string) (Medium, error) {
	m := Medium{Barcode: barcode, Drive: h.Serial, WORM: h.Drive.Capabilities().WORM, Problems: []string{}}
	if h.Drive.Capabilities().Memory {
		as, err := h.Drive.Attributes(ctx, 0)
		if err != nil {
			return m, err
		}
		num := func(id uint16) uint64 { a := as[id]; n, _ := a.Uint(); return n }
		serial := as[scsi.AttrSerial]
		m.Serial, m.Remaining, m.Capacity = serial.Text(), num(scsi.AttrRemaining), num(scsi.AttrMaximum)
	}
	d.phase("read the label")
	if empty, err := d.empty(ctx, h); err != nil || empty {
		m.Content = Blank
		return m, err
	}
	r, err := hft.Open(ctx, h.Drive)
	switch {
	case err == nil:
		l := r.Label()
		m.Content, m.Tape, m.ID, m.Label, m.Pool, m.Set, m.Seq, m.Created, m.Encrypted = Own, l.ID, l.ID.String(), l.Barcode, l.PoolName, l.Set.String(), l.Seq, l.Created, l.Encrypted()
		if !l.Pool.IsZero() {
			m.PoolID = l.Pool.String()
		}
		if l.Serial != "" && m.Serial != "" && l.Serial != m.Serial {
			m.Problems = append(m.Problems, fmt.Sprintf("the label was written to the medium with serial number %s, and this one has %s: one is a copy of the other", l.Serial, m.Serial))
		}
		if barcode != "" && l.Barcode != "" && l.Barcode != barcode {
			m.Problems = append(m.Problems, fmt.Sprintf("the bar code says %s and the label %s: the label is what counts", barcode, l.Barcode))
		}
		return m, nil
	case holdfast.KindOf(err) == holdfast.NotExist:
		m.Content = Blank
		return m, nil
	case holdfast.KindOf(err) != holdfast.Invalid && holdfast.KindOf(err) != holdfast.Corrupt:
		return m, err
	}
	return m, d.lookLTFS(ctx, h, &m)
}

// empty reports whether there is nothing but filemarks: so a cartridge is that a drive without better means has erased.
func (d *Desk) empty(ctx context.Context, h *library.Hold) (bool, error) {
	if err := h.Drive.Rewind(ctx); err != nil {
		return false, err
	}
	for range 3 {
		_, err := h.Drive.Read(ctx, make([]byte, drive.MaxBlock))
		switch {
		case errors.Is(err, drive.ErrEndOfData):
			return true, nil
		case !errors.Is(err, drive.ErrFilemark):
			return false, h.Drive.Rewind(ctx)
		}
	}
	return false, h.Drive.Rewind(ctx)
}

func (d *Desk) lookLTFS(ctx context.Context, h *library.Hold, m *Medium) error {
	m.Content = Foreign
	v, err := ltfs.Open(ctx, h.Drive)
	if err != nil {
		if k := holdfast.KindOf(err); k == holdfast.Offline || k == holdfast.Transient || k == holdfast.Cancelled || k == holdfast.Busy {
			return err
		}
		return nil // it is not ours, and no volume that can be read
	}
	m.Content, m.ID, m.Label = LTFS, v.Label.UUID, v.Serial
	m.Problems = append(m.Problems, v.Problems...)
	if t, err := time.Parse(ltfs.TimeFormat, v.Label.Formatted); err == nil {
		m.Created = t
	}
	return v.Index.Walk(func(_ string, f *ltfs.File) error {
		if f != nil {
			m.Files++
		}
		return nil
	})
}

// check refuses a cartridge that is not the one that was meant.
func (e *Expect) check(op string, m Medium) error {
	switch {
	case m.Content == Cleaning:
		return holdfast.Errorf(holdfast.Invalid, op, "%s", m.Loss())
	case m.Content == Blank:
		return nil
	case e == nil:
		return holdfast.Errorf(holdfast.Exist, op, "%s", m.Loss()).Advise("if that may be lost, erase the cartridge first: holdfast tape media erase")
	case e.ID != m.ID || e.Serial != m.Serial:
		return holdfast.Errorf(holdfast.Invalid, op, "the cartridge that is there now is not the one that was meant (label %q and serial %q, not %q and %q): %s", m.ID, m.Serial, e.ID, e.Serial, m.Loss()).
			Advise("look at it again: holdfast tape media show")
	}
	return nil
}

// LabelSpec says how to label a cartridge.
type LabelSpec struct {
	Choice
	Format string // Own or LTFS
	Name   string // of an LTFS volume; empty: its bar code
	Expect *Expect
}

// Label gives a cartridge a label of its own. One that is not blank is refused, unless Expect names it. A label of our own format is of no pool:
// the pool that takes the cartridge writes its own.
func (d *Desk) Label(ctx context.Context, s LabelSpec) (m Medium, err error) {
	const op = "label cartridge"
	if s.Format != Own && s.Format != LTFS {
		return m, holdfast.Errorf(holdfast.Invalid, op, "there is no format %q", s.Format).Advise("hft or ltfs")
	}
	err = d.mounted(ctx, s.Choice, true, func(h *library.Hold, at scsi.Element) error {
		if m, err = d.look(ctx, h, at.Barcode); err != nil {
			return err
		}
		if err := s.Expect.check(op, m); err != nil {
			return err
		}
		d.phase("write the label")
		if s.Format == LTFS {
			err = d.labelLTFS(ctx, h, at.Barcode, s.Name)
		} else {
			l := hft.Label{ID: holdfast.NewID(), Set: holdfast.NewID(), Seq: 1, Barcode: at.Barcode, Serial: m.Serial, Created: d.clock().Now().UTC()}
			_, err = hft.Create(ctx, h.Drive, l, nil, nil)
		}
		if err != nil {
			return err
		}
		m, err = d.look(ctx, h, at.Barcode) // what is there now, not what was asked for
		return err
	})
	return m, err
}

func (d *Desk) labelLTFS(ctx context.Context, h *library.Hold, barcode, name string) error {
	serial := volumeSerial(barcode)
	if name == "" {
		name = serial
	}
	if err := h.Drive.Format(ctx, true, 1); err != nil {
		return err
	}
	return ltfs.Format(ctx, h.Drive, ltfs.Options{Serial: serial, Name: name, UUID: holdfast.NewID(), Block: min(ltfsBlock, h.Drive.Capabilities().MaxBlock),
		Creator: d.creator(), Now: d.clock().Now().UTC()})
}

const ltfsBlock = 512 << 10

// volumeSerial is the six characters of a VOL1 label.
func volumeSerial(barcode string) string {
	s := strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, strings.ToUpper(barcode))
	return (s + "000000")[:6]
}

// Erase makes a cartridge blank. What is on it must be what Expect names.
func (d *Desk) Erase(ctx context.Context, c Choice, e Expect) (m Medium, err error) {
	const op = "erase cartridge"
	err = d.mounted(ctx, c, true, func(h *library.Hold, at scsi.Element) error {
		if m, err = d.look(ctx, h, at.Barcode); err != nil {
			return err
		}
		if err := e.check(op, m); err != nil {
			return err
		}
		if m.Content != Blank {
			d.phase("erase")
			if err := wipe(ctx, h); err != nil {
				if m.WORM { // a drive may say so of a medium that is not: it was tried
					err = holdfast.Errorf(holdfast.Immutable, op, "%s can be written once only: %w", m.Barcode, err).Advise("destroy the cartridge if its content must not be read again")
				}
				return err
			}
		}
		m, err = d.look(ctx, h, at.Barcode)
		return err
	})
	return m, err
}

// wipe leaves a blank medium with one partition. A drive that can do neither FORMAT MEDIUM nor ERASE gets an end of data at the front.
func wipe(ctx context.Context, h *library.Hold) error {
	err := h.Drive.Format(ctx, false, 0)
	if err == nil || holdfast.KindOf(err) != holdfast.Unsupported {
		return err
	}
	if err := h.Drive.Rewind(ctx); err != nil {
		return err
	}
	_, err = scsi.Do(ctx, h.Transport, scsi.Command{CDB: scsi.Erase(false)})
	var e *scsi.Error
	if errors.As(err, &e) && e.Sense.Key == scsi.IllegalRequest {
		return h.Drive.Flush(ctx, 2) // two filemarks at the front: nothing before the end of data
	}
	if err != nil {
		return err
	}
	return h.Drive.Rewind(ctx)
}

// Tested is the outcome of a drive's test.
type Tested struct {
	Drive        string             `json:"drive"`
	Element      uint16             `json:"element"`
	Capabilities drive.Capabilities `json:"capabilities"`
	Alerts       []string           `json:"alerts"`
	Written      int64              `json:"written" doc:"bytes written and read back; 0: no cartridge was given"`
	Differs      int                `json:"differs" doc:"blocks that came back otherwise"`
	WriteSeconds float64            `json:"seconds,omitempty"`
}

const (
	testBlocks = 128
	testBlock  = 512 << 10
)

// Test asks a drive what it can do and what it complains of. With a scratch cartridge, which must be blank or one that Expect names, it writes
// and reads 64 MiB back too; the cartridge is blank afterwards.
func (d *Desk) Test(ctx context.Context, c Choice, e *Expect) (r Tested, err error) {
	const op = "test tape drive"
	b, err := d.Library.Bay(c.Drive)
	if err != nil {
		return r, err
	}
	r = Tested{Drive: b.Serial, Element: b.Element, Alerts: []string{}}
	if c.Cartridge == "" {
		h, err := d.Library.Take(ctx, b.Element)
		if err != nil {
			return r, err
		}
		err = h.Drive.Ready(ctx)
		if holdfast.KindOf(err) == holdfast.Offline {
			err = nil // an empty drive is no broken one
		}
		r.Capabilities = h.Drive.Capabilities()
		return r, errors.Join(err, d.complaints(ctx, h, &r), h.Release(context.WithoutCancel(ctx)))
	}
	err = d.mounted(ctx, c, true, func(h *library.Hold, at scsi.Element) error {
		m, err := d.look(ctx, h, at.Barcode)
		if err != nil {
			return err
		}
		if err := e.check(op, m); err != nil {
			return err
		}
		r.Capabilities = h.Drive.Capabilities()
		d.phase("write and read")
		start := d.clock().Now()
		t, err := h.Drive.Test(ctx, testBlocks, min(testBlock, r.Capabilities.MaxBlock), uint64(start.UnixNano()))
		r.Written, r.Differs, r.WriteSeconds = t.Bytes, t.Differs, d.clock().Now().Sub(start).Seconds()
		if err == nil {
			err = wipe(ctx, h)
		}
		return errors.Join(err, d.complaints(ctx, h, &r))
	})
	return r, err
}

func (d *Desk) complaints(ctx context.Context, h *library.Hold, r *Tested) error {
	as, _, err := h.Drive.Alerts(ctx)
	for _, a := range as {
		r.Alerts = append(r.Alerts, a.String())
	}
	if holdfast.KindOf(err) == holdfast.Unsupported && err != nil {
		return nil
	}
	return err
}
