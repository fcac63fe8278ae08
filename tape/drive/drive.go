// Package drive is one tape drive as its user wants it: blocks, filemarks, places, flushes, the medium's memory, keys and alerts,
// over any scsi.Transport. It finds out what the drive can do instead of assuming it, and keeps its own count of the position beside the drive's.
//
// What it promises: when Flush has returned without an error, every block and filemark before it is on the medium, at the place that was
// counted. Until then nothing is. After a deferred error, a lost answer, a reset or a position that differs, the drive refuses to write or
// read (Lost) until Locate or Rewind has found a known place again; no write is ever repeated by itself.
//
// A Drive is used by one goroutine at a time. It knows no formats and no libraries and imports scsi and the ground floor only.
package drive

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// MaxBlock is the largest block that is read or written: what common host adapters pass in one piece.
const MaxBlock = 1 << 20

// Conditions that are no failures. Each is wrapped in an error with a Kind.
var (
	ErrFilemark  = errors.New("a filemark")
	ErrEndOfData = errors.New("the end of data")
	// ErrLost says that the position is not known: everything written since the last Flush is in doubt.
	ErrLost = errors.New("the position is lost")
	// ErrFull says that the block was not written because the medium is full.
	ErrFull = errors.New("the medium is full")
)

// Options of Open.
type Options struct {
	Clock clock.Clock // nil: the system's
	// Log hears about what is remarkable and is no error: recovered errors, capabilities that are not there. Nil: nobody.
	Log func(format string, args ...any)
}

// Capabilities is what a drive can do, as was found out by trying.
type Capabilities struct {
	Locate     Locating `json:"locate"`
	Position   int      `json:"position"` // form of READ POSITION that says the truth; -1: none does
	MaxBlock   int      `json:"max_block"`
	Memory     bool     `json:"memory"`     // reads the medium's memory chip
	Encryption byte     `json:"encryption"` // index of AES-256-GCM; 0: cannot
	Alerts     byte     `json:"alerts"`     // log page of TapeAlert; 0: none. 2Eh clears what it tells
	Reserve    bool     `json:"reserve"`    // persistent reservations
	WORM       bool     `json:"worm"`       // the loaded medium can be written once only
}

// Locating is how a drive finds a place.
type Locating string

const (
	Locate16 Locating = "locate16"
	Locate10 Locating = "locate10"
	Counting Locating = "counting" // rewind and read over everything: the only way on the poorest emulations
)

// A Drive is an open drive.
type Drive struct {
	t    scsi.Transport
	o    Options
	id   scsi.Identity
	sn   string
	caps Capabilities

	part    uint8
	object  uint64 // where we are by our own count
	known   bool   // false: lost
	flushed uint64 // objects of the partition at the last Flush
	warned  bool   // early warning was met
	probed  bool   // the loaded medium was
	held    uint64 // reservation key; 0: none
}

// Open makes out which drive it is. It does not need a medium.
func Open(ctx context.Context, t scsi.Transport, o Options) (*Drive, error) {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	d := &Drive{t: t, o: o}
	b, err := d.do(ctx, scsi.Command{CDB: scsi.Inquiry(scsi.InquiryLen), In: make([]byte, scsi.InquiryLen)})
	if err != nil {
		return nil, err
	}
	if d.id, err = scsi.ParseInquiry(b); err != nil {
		return nil, err
	}
	if d.id.Type != scsi.TypeTape {
		return nil, holdfast.Errorf(holdfast.Invalid, "open tape drive", "%s %s is no tape drive", d.id.Vendor, d.id.Product)
	}
	if b, err = d.do(ctx, scsi.Command{CDB: scsi.InquiryVPD(scsi.PageSerial, 255), In: make([]byte, 255)}); err == nil {
		d.sn, err = scsi.ParseSerial(b)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Identity returns vendor, product and revision; Serial the unit's serial number.
func (d *Drive) Identity() scsi.Identity { return d.id }

// Serial returns the drive's serial number.
func (d *Drive) Serial() string { return d.sn }

// Capabilities returns what was found out when the medium was made ready.
func (d *Drive) Capabilities() Capabilities { return d.caps }

// Position returns where we are: the partition and the number of the next object. It is false if nobody knows.
func (d *Drive) Position() (partition uint8, object uint64, known bool) {
	return d.part, d.object, d.known
}

// Warned reports whether the end of the medium is near.
func (d *Drive) Warned() bool { return d.warned }

// attentionLimit is how many unit attentions in a row are taken before a drive counts as broken.
const attentionLimit = 8

// do executes a command that moves no tape, taking unit attentions on the way. Each makes the position doubtful.
func (d *Drive) do(ctx context.Context, c scsi.Command) ([]byte, error) {
	for i := 0; ; i++ {
		b, err := scsi.Do(ctx, d.t, c)
		var e *scsi.Error
		if !errors.As(err, &e) {
			if err != nil {
				d.known = false
			}
			return b, err
		}
		switch {
		case e.Sense.Deferred:
			d.known = false
			return nil, err
		case e.Sense.Key == scsi.Recovered:
			d.o.Log("%v", err)
			return c.In, nil
		case e.Sense.Key != scsi.UnitAttention || i == attentionLimit:
			return nil, err
		}
		d.o.Log("%v", err)
		d.attention(e.Sense.Code)
	}
}

// attention draws the conclusion from a unit attention.
func (d *Drive) attention(c scsi.Code) {
	switch c.ASC() {
	case 0x28: // another medium
		d.known, d.probed = false, false
	case 0x29, 0x2a, 0x3f: // reset, changed parameters, another firmware
		d.known, d.probed = false, false
		if c.ASC() == 0x29 {
			d.held = 0
		}
	}
}

// pollEvery is how often a drive that is getting ready is asked again.
const pollEvery = time.Second

// Ready waits until the drive's medium can be used, sets it to blocks of any length without compression, finds out what can be done
// with it and rewinds. A drive without a medium is Offline at once; one that is loading is waited for.
func (d *Drive) Ready(ctx context.Context) error {
	const op = "make the tape drive ready"
	deadline := d.o.Clock.Now().Add(scsi.Timeout(scsi.LoadUnload(true)))
	for {
		_, err := d.do(ctx, scsi.Command{CDB: scsi.TestUnitReady()})
		var e *scsi.Error
		if err == nil {
			break
		}
		if !errors.As(err, &e) {
			return err
		}
		switch c := e.Sense.Code; {
		case e.Sense.Key == scsi.NotReady && c == 0x0402: // wants to be told to load
			if _, err := d.do(ctx, scsi.Command{CDB: scsi.LoadUnload(true)}); err != nil {
				return err
			}
		case e.Sense.Key == scsi.NotReady && c.ASC() == 0x04 && d.o.Clock.Now().Before(deadline):
			after, stop := d.o.Clock.After(pollEvery)
			select {
			case <-after:
			case <-ctx.Done():
				stop()
				return holdfast.Errorf(holdfast.KindOf(ctx.Err()), op, "%w", ctx.Err())
			}
		default:
			return err
		}
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if err := d.probe(ctx); err != nil {
		return err
	}
	return d.Rewind(ctx)
}

// prepare sets blocks of any length, and compression off: what comes is compressed or encrypted already.
func (d *Drive) prepare(ctx context.Context) error {
	p := scsi.SetVariable(0)
	b, err := d.do(ctx, scsi.Command{CDB: scsi.ModeSense6(scsi.ModeCompression, 0, scsi.ModeLen), In: make([]byte, scsi.ModeLen)})
	if err == nil {
		m, err := scsi.ParseMode6(b)
		if err != nil {
			return err
		}
		p = scsi.SetVariable(m.Density)
		if page := m.Page(scsi.ModeCompression, 0); page != nil {
			if on, _ := scsi.Compression(page); on {
				if q := scsi.SetCompression(page, false); q != nil {
					if _, err := d.do(ctx, scsi.Command{CDB: scsi.ModeSelect6(len(q)), Out: q}); err != nil {
						d.o.Log("compression stays on: %v", err)
					}
				}
			}
		}
	}
	if _, err := d.do(ctx, scsi.Command{CDB: scsi.ModeSelect6(len(p)), Out: p}); err != nil {
		return fmt.Errorf("set blocks of any length: %w", err)
	}
	return nil
}

// cannot reports whether an error says that the drive does not know a command or a part of it.
func cannot(err error) bool {
	var e *scsi.Error
	return errors.As(err, &e) && e.Sense.Key == scsi.IllegalRequest
}

// probe finds out what the drive can do by trying it at the beginning of the tape.
func (d *Drive) probe(ctx context.Context) error {
	if d.probed {
		return nil
	}
	c := Capabilities{Position: -1, MaxBlock: MaxBlock, Locate: Counting}
	if _, err := d.do(ctx, scsi.Command{CDB: scsi.Rewind()}); err != nil {
		return err
	}
	if b, err := d.do(ctx, scsi.Command{CDB: scsi.ReadBlockLimits(), In: make([]byte, scsi.LimitsLen)}); err == nil {
		if l, err := scsi.ParseLimits(b); err == nil {
			c.MaxBlock = min(c.MaxBlock, l.Max)
		}
	} else if !cannot(err) {
		return err
	}
	for _, way := range []struct {
		cdb  []byte
		name Locating
	}{{scsi.Locate16(0, 0), Locate16}, {scsi.Locate10(0, 0), Locate10}} {
		_, err := d.do(ctx, scsi.Command{CDB: way.cdb})
		if err == nil {
			c.Locate = way.name
			break
		}
		if !cannot(err) {
			return err
		}
	}
	for _, form := range []byte{scsi.PositionLong, scsi.PositionShort} {
		p, err := d.ask(ctx, form)
		if err == nil && !p.Unknown && p.Beginning && p.Object == 0 { // at the beginning the truth is known
			c.Position = int(form)
			break
		}
		if err != nil && !cannot(err) && holdfast.KindOf(err) != holdfast.Corrupt {
			return err
		}
	}
	_, err := d.do(ctx, scsi.Command{CDB: scsi.ReadAttribute(0, 0, 1024), In: make([]byte, 1024)})
	c.Memory = err == nil
	if b, err := d.do(ctx, scsi.Command{CDB: scsi.SecurityProtocolIn(scsi.ProtocolTapeEncryption, scsi.PageEncryptionCaps, scsi.EncryptionLen), In: make([]byte, scsi.EncryptionLen)}); err == nil {
		as, _ := scsi.ParseAlgorithms(b) // what is unreadable cannot be used
		for _, a := range as {
			if a.Code == scsi.AlgorithmAES256GCM && a.Encrypt && a.Decrypt && a.KeyLen == scsi.KeyLen {
				c.Encryption = a.Index
			}
		}
	}
	for _, page := range []byte{scsi.LogTapeAlertResponse} {
		if b, err := d.do(ctx, scsi.Command{CDB: scsi.LogSense(page, 0, scsi.LogLen), In: make([]byte, scsi.LogLen)}); err == nil {
			if _, err := scsi.ParseAlerts(page, b); err == nil {
				c.Alerts = page
			}
		}
	}
	_, err = d.do(ctx, scsi.Command{CDB: scsi.ReserveIn(scsi.ReserveReadKeys, scsi.ReserveLen), In: make([]byte, scsi.ReserveLen)})
	c.Reserve = err == nil
	if b, err := d.do(ctx, scsi.Command{CDB: scsi.ModeSense6(scsi.ModeMedium, 0, scsi.ModeLen), In: make([]byte, scsi.ModeLen)}); err == nil {
		if m, err := scsi.ParseMode6(b); err == nil {
			c.WORM = scsi.WORM(m.Page(scsi.ModeMedium, 0))
		}
	}
	d.caps, d.probed = c, true
	return nil
}

// ask returns the position by the drive.
func (d *Drive) ask(ctx context.Context, form byte) (scsi.Position, error) {
	b, err := d.do(ctx, scsi.Command{CDB: scsi.ReadPosition(form), In: make([]byte, scsi.PositionLen)})
	if err != nil {
		return scsi.Position{}, err
	}
	return scsi.ParsePosition(form, b)
}

// check compares our position with the drive's, where that one can be believed.
func (d *Drive) check(ctx context.Context) error {
	if d.caps.Position < 0 {
		return nil
	}
	p, err := d.ask(ctx, byte(d.caps.Position))
	if err != nil {
		d.known = false
		return err
	}
	if p.Unknown || p.Partition != d.part || p.Object != d.object {
		d.known = false
		return lost("the drive stands at %d:%d, and %d:%d was counted", p.Partition, p.Object, d.part, d.object)
	}
	return nil
}

func lost(format string, args ...any) error {
	return holdfast.Errorf(holdfast.Transient, "use tape drive", "%w: "+format, append([]any{ErrLost}, args...)...).
		Advise("what was written since the last commit is written again")
}

// unlost refuses to go on from an unknown place.
func (d *Drive) unlost() error {
	if !d.known {
		return lost("something happened to the drive since the last command")
	}
	return nil
}
