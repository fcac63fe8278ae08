// Package emu is a tape library in memory: a changer, drives and cartridges that answer SCSI commands as LTO equipment does, only
// stricter. It is what the tape part is tested on, so where real devices differ from each other it takes what is hardest on its user.
//
// It owns the cartridges' content. A power cut (Library.PowerCut, or a Fault) loses what the drives had only in their buffers:
// a random part of it from the front may have reached the medium, the end-of-data mark may be missing, and where nothing had, what was
// overwritten may still be there. What a synchronous WRITE FILEMARKS has acknowledged is kept. Seeds make it repeatable.
//
// One mutex guards a library; it is a leaf and is not held while the speed model waits. It imports scsi and the ground floor only.
package emu

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// First addresses of the elements.
const (
	AddrRobot  = 0
	AddrExport = 16
	AddrDrive  = 256
	AddrSlot   = 1024
)

// Options says what a library has.
type Options struct {
	Drives, Slots, Exports int
	Seed                   uint64
	// Clock and Rate make the drives as slow as real ones: Rate bytes a second leave a drive's buffer of Buffer bytes. Rate 0: no waiting.
	Clock  clock.Clock
	Rate   int64
	Buffer int64
	// What drives shall not know: an operation code, or TapeAlert's page 12h by NoResponsePage.
	Without        []byte
	NoResponsePage bool
}

// A Media describes a cartridge.
type Media struct {
	Barcode      string
	Serial       string // empty: made from the bar code
	Capacity     int64  // bytes; 0: 1 GiB
	EarlyWarning int64  // bytes before the end; 0: a twentieth
	WORM         bool
	Protected    bool // the write protection tab
	Cleaning     int  // uses left; not zero: a cleaning cartridge
}

// A Unit is a logical unit of a library: the changer or a drive by its number.
type Unit int

// Changer is the changer's unit; Drive(i) is drive i's.
const Changer Unit = -1

// Drive returns the unit of drive i.
func Drive(i int) Unit { return Unit(i) }

// A Library is a tape library. Methods are safe for concurrent use.
type Library struct {
	o Options

	mu     sync.Mutex
	rng    *rand.Rand
	robot  *unit
	drives []*drive
	slots  []*Cartridge // slots, then export slots
	source map[*Cartridge]uint16
	faults []*Fault
	trace  []string
	moves  int
}

// New returns a library with empty slots.
func New(o Options) *Library {
	if o.Buffer == 0 {
		o.Buffer = 32 << 20
	}
	l := &Library{o: o, rng: rand.New(rand.NewPCG(o.Seed, 7)), slots: make([]*Cartridge, o.Slots+o.Exports), source: map[*Cartridge]uint16{}}
	l.robot = newUnit(Changer, fmt.Sprintf("HFEMU%04dL", o.Seed%10000))
	for i := range o.Drives {
		l.drives = append(l.drives, &drive{unit: newUnit(Drive(i), fmt.Sprintf("HFEMU%04dD%d", o.Seed%10000, i)), lib: l})
	}
	return l
}

// Add puts a new cartridge into slot i (from 0, export slots after the slots).
func (l *Library) Add(slot int, m Media) *Cartridge {
	c := newCartridge(m)
	l.Insert(slot, c)
	return c
}

// Insert puts a cartridge into slot i as a person does through the door: every user of the changer learns that something happened.
func (l *Library) Insert(slot int, c *Cartridge) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.slots[slot] != nil {
		panic("emu: there is a cartridge in the slot")
	}
	l.slots[slot] = c
	if slot >= l.o.Slots {
		l.robot.attention(scsi.CodeExportAccessed, "")
	} else {
		l.robot.attention(scsi.CodeMediumChanged, "")
	}
}

// Remove takes the cartridge out of slot i as a person does.
func (l *Library) Remove(slot int) *Cartridge {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.slots[slot]
	l.slots[slot] = nil
	delete(l.source, c)
	l.robot.attention(scsi.CodeMediumChanged, "")
	return c
}

// SetBarcode sticks another bar code on a cartridge.
func (l *Library) SetBarcode(c *Cartridge, code string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.m.Barcode = code
}

// RequestCleaning has a drive ask to be cleaned.
func (l *Library) RequestCleaning(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drives[i].alert(scsi.AlertCleanNow)
}

// PowerCut takes the power from everything and gives it back.
func (l *Library) PowerCut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.powerCut()
}

func (l *Library) powerCut() {
	l.log("power cut")
	l.robot.reset()
	for _, d := range l.drives {
		d.unit.reset()
		d.key, d.allowed, d.prevented, d.deferred, d.failed = nil, false, map[string]bool{}, nil, false
		if d.cart != nil {
			d.cart.powerCut(l.rng)
			d.part, d.pos = 0, 0
		}
	}
}

// Fail breaks a drive for good, until the next power cut.
func (l *Library) Fail(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drives[i].failed = true
}

// A Count is what a drive has done.
type Count struct {
	Loads, Stops       int // Stops: how often it ran out of data while writing
	Written, Read      int64
	Filemarks, Locates int
	Backwards          int // locates to a place before the position
}

// Count returns what drive i has done.
func (l *Library) Count(i int) Count {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.drives[i].count
}

// Trace returns the moves, loads and power cuts so far.
func (l *Library) Trace() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.trace)
}

const maxTrace = 10000

func (l *Library) log(format string, args ...any) {
	if len(l.trace) < maxTrace {
		l.trace = append(l.trace, fmt.Sprintf(format, args...))
	}
}

// Connect returns a transport for an initiator to a unit, with the unit attention that a new one meets.
func (l *Library) Connect(initiator string, u Unit) scsi.Transport {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := &nexus{lib: l, initiator: initiator, unit: l.robot}
	if u != Changer {
		n.drive = l.drives[u]
		n.unit = n.drive.unit
	}
	if _, ok := n.unit.pending[initiator]; !ok {
		n.unit.pending[initiator] = []scsi.Code{scsi.CodePowerOn}
	}
	return n
}
