// Package library leads from an address to a tape library: it finds the changer and the drives behind an iSCSI target or the system's SCSI
// device files, tells which drive is at which place of the robot, and sees to it that within one process a library is open once and a
// drive has one user.
//
// It owns no state that must survive a crash: what is where, the library is asked. Towards other hosts it takes persistent reservations where
// it is given a key and the devices know these; a crash leaves them held, and the same key takes them again.
//
// It imports the transports, changer, drive and scsi. It must not import formats or pools.
package library

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/tape/changer"
	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// Options of Open.
type Options struct {
	// Initiator is our iSCSI name where the address has none. It must be the same after a restart. Empty: DefaultInitiator.
	Initiator string
	// Secrets reads the file of a secret. Nil: addresses with secrets are refused.
	Secrets func(file string) ([]byte, error)
	// Key reserves the robot and each drive taken for this host, where they know reservations; 0: nothing is reserved.
	Key uint64
	// Serials names drives by element address where the library does not say which drive is which.
	Serials        map[uint16]string
	CleaningPrefix string      // of bar codes; empty: CLN
	Clock          clock.Clock // nil: the system's
	Log            func(format string, args ...any)
}

// DefaultInitiator is our iSCSI name where nothing else is said.
const DefaultInitiator = "iqn.2026-01.holdfast:appliance"

// A Unit is a device behind an address.
type Unit struct {
	scsi.Identity
	Serial    string         // of the unit; empty: it has none
	Place     string         // where it was found: lun 1, /dev/sg3
	Transport scsi.Transport // closed by who closes what it was found in
}

// Units are the devices behind an address, and how to let go of them.
type Units struct {
	List []Unit
	io.Closer
}

// An Opener finds the devices behind an address of its scheme.
type Opener func(ctx context.Context, a Address, o Options) (Units, error)

// openers are the schemes that come with the product.
func openers() map[string]Opener { return map[string]Opener{"iscsi": openISCSI, "sg": openSG} }

// A Bay is a drive, at its place in the library.
type Bay struct {
	Element uint16 // address at the robot; 0 for a drive without a library
	Unit
}

// A Library is an open tape library, or a drive without one. Methods are safe for concurrent use.
type Library struct {
	o     Options
	robot *changer.Changer
	bays  []Bay
	stop  func() error

	mu     sync.Mutex // guards what follows
	taken  map[uint16]bool
	closed bool
}

// Open opens the library at an address. Use a Keeper where several users in a process may want the same one.
func Open(ctx context.Context, address string, o Options) (*Library, error) {
	return NewKeeper(nil).open(ctx, address, o)
}

// Find lists the devices behind an address: changers, drives and whatever else is there. The caller closes what it returns.
func Find(ctx context.Context, address string, o Options) (Units, error) {
	return NewKeeper(nil).Find(ctx, address, o)
}

// New opens a library over devices that are there already. It owns them from now on, also where it fails.
func New(ctx context.Context, u Units, o Options) (*Library, error) {
	l, err := assemble(ctx, u, o)
	if err != nil {
		return nil, errors.Join(err, u.close())
	}
	return l, nil
}

func (u Units) close() error {
	if u.Closer == nil {
		return nil
	}
	return u.Close()
}

func assemble(ctx context.Context, u Units, o Options) (*Library, error) {
	const op = "open tape library"
	l := &Library{o: o, stop: u.close, taken: map[uint16]bool{}}
	var robots, tapes []Unit
	for _, x := range u.List {
		switch x.Type {
		case scsi.TypeChanger:
			robots = append(robots, x)
		case scsi.TypeTape:
			tapes = append(tapes, x)
		}
	}
	switch {
	case len(robots) > 1:
		return nil, holdfast.Errorf(holdfast.Invalid, op, "there are %d changers behind the address", len(robots)).Advise("give each library, or partition of one, an address of its own")
	case len(tapes) == 0:
		return nil, holdfast.Errorf(holdfast.NotExist, op, "there is no tape drive behind the address").Advise("list what is there: holdfast tape library scan ADDRESS")
	case len(robots) == 0 && len(tapes) > 1:
		return nil, holdfast.Errorf(holdfast.Invalid, op, "there are %d drives and no changer behind the address", len(tapes)).Advise("give each drive that no robot serves an address of its own")
	case len(robots) == 0:
		l.bays = []Bay{{Unit: tapes[0]}}
		return l, nil
	}
	var err error
	if l.robot, err = changer.Open(ctx, robots[0].Transport, changer.Options{Log: o.Log, Serials: o.Serials, CleaningPrefix: o.CleaningPrefix}); err != nil {
		return nil, err
	}
	inv, err := l.robot.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	if l.bays, err = match(inv.Drives, tapes); err != nil {
		return nil, err
	}
	if o.Key != 0 {
		if _, err := l.robot.Reserve(ctx, o.Key); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// match tells which drive is at which element. It is never guessed by order: a cartridge would be looked for in the wrong drive. Drives of
// the robot that are not behind the address belong to other hosts, and are left out.
func match(elements []scsi.Element, tapes []Unit) ([]Bay, error) {
	const op = "match tape drives"
	at := map[uint16]Unit{}
	for _, is := range []func(device string, u Unit) bool{same, begins} { // a name that was cut off counts for what no whole one names
		for _, e := range elements {
			if _, ok := at[e.Address]; ok {
				continue
			}
			var found []Unit
			for _, t := range tapes {
				if is(e.Device, t) {
					found = append(found, t)
				}
			}
			switch {
			case len(found) > 1:
				return nil, holdfast.Errorf(holdfast.Invalid, op, "%d drives may be the one that the library calls %q", len(found), e.Device).Advise("name the drives' serial numbers by element address")
			case len(found) == 1:
				at[e.Address] = found[0]
				tapes = slices.DeleteFunc(slices.Clone(tapes), func(t Unit) bool { return t.Place == found[0].Place && t.Serial == found[0].Serial })
			}
		}
	}
	if len(at) == 0 && len(elements) == 1 && len(tapes) == 1 {
		at[elements[0].Address] = tapes[0]
	}
	if len(at) == 0 {
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "the library does not tell the serial numbers of its %d drives", len(elements)).
			Advise("say which drive is at which element address")
	}
	var out []Bay
	for _, e := range elements {
		if u, ok := at[e.Address]; ok {
			out = append(out, Bay{Element: e.Address, Unit: u})
		}
	}
	return out, nil
}

// same reports whether what the changer tells of a drive names it: its serial number is the last word of it, or all.
func same(device string, u Unit) bool {
	words := strings.Fields(device)
	return u.Serial != "" && len(words) > 0 && (device == u.Serial || words[len(words)-1] == u.Serial)
}

// begins reports whether what the changer tells is the beginning of the drive's name: some changers leave off the end of the last one.
func begins(device string, u Unit) bool {
	names := strings.Join(strings.Fields(u.Vendor+" "+u.Product), " ") + " "
	device = strings.Join(strings.Fields(device), " ")
	return u.Serial != "" && len(device) > len(names) && strings.HasPrefix(names+u.Serial, device)
}

// Changer returns the robot; nil where a drive stands alone.
func (l *Library) Changer() *changer.Changer { return l.robot }

// Bays returns the drives, in the order of their element addresses.
func (l *Library) Bays() []Bay { return slices.Clone(l.bays) }

// Bay returns the drive with a serial number, or with an element address in digits.
func (l *Library) Bay(name string) (Bay, error) {
	for _, b := range l.bays {
		if name != "" && (b.Serial == name || fmt.Sprint(b.Element) == name) {
			return b, nil
		}
	}
	return Bay{}, holdfast.Errorf(holdfast.NotExist, "find tape drive", "the library has no drive %q", name).Advise("list them: holdfast tape drive list")
}

// Busy reports whether a drive has a user.
func (l *Library) Busy(element uint16) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.taken[element]
}

// A Hold is a drive that is one user's.
type Hold struct {
	Bay
	Drive *drive.Drive
	l     *Library
	once  sync.Once
	err   error
}

// Take takes a drive for one user: Busy while another has it.
func (l *Library) Take(ctx context.Context, element uint16) (*Hold, error) {
	const op = "take tape drive"
	i := slices.IndexFunc(l.bays, func(b Bay) bool { return b.Element == element })
	if i < 0 {
		return nil, holdfast.Errorf(holdfast.NotExist, op, "there is no drive at element %d", element)
	}
	l.mu.Lock()
	closed, busy := l.closed, l.taken[element]
	if !closed {
		l.taken[element] = true
	}
	l.mu.Unlock()
	switch {
	case closed:
		return nil, holdfast.Errorf(holdfast.Offline, op, "the library is closed")
	case busy:
		return nil, holdfast.Errorf(holdfast.Busy, op, "drive %s is in use", l.bays[i].Serial).Advise("wait until it is free, or take another one")
	}
	h := &Hold{Bay: l.bays[i], l: l}
	var err error
	if h.Drive, err = drive.Open(ctx, h.Transport, drive.Options{Clock: l.o.Clock, Log: l.o.Log}); err == nil && l.o.Key != 0 {
		_, err = h.Drive.Reserve(ctx, l.o.Key)
	}
	if err != nil {
		l.give(element)
		return nil, err
	}
	return h, nil
}

func (l *Library) give(element uint16) {
	l.mu.Lock()
	delete(l.taken, element)
	l.mu.Unlock()
}

// Release gives the drive back, with whatever is in it. Once is enough.
func (h *Hold) Release(ctx context.Context) error {
	h.once.Do(func() {
		h.err = h.Drive.Release(ctx)
		h.l.give(h.Element)
	})
	return h.err
}

// Close gives the robot back and lets go of the devices. Holds must have been released: Busy otherwise, and the library stays open.
func (l *Library) Close(ctx context.Context) error {
	l.mu.Lock()
	if len(l.taken) > 0 {
		l.mu.Unlock()
		return holdfast.Errorf(holdfast.Busy, "close tape library", "drives are in use")
	}
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if l.robot != nil {
		err = l.robot.Release(ctx)
	}
	return errors.Join(err, l.stop())
}
