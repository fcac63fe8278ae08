package pool

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/tape/hft"
	"github.com/holdfast-backup/holdfast/tape/library"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// A station is a drive as the pool uses it. Who has taken it has the drive and what is in it alone.
type station struct {
	bay  library.Bay
	hold *library.Hold // guarded by taken, as is tape

	// tape is what is known to be in the drive because nobody else had it since: nil: nothing is.
	tape *mounted

	taken  bool // guarded by stations.mu, as is broken
	broken error
}

// mounted is a cartridge in a drive whose label was read.
type mounted struct {
	label  hft.Label
	reader *hft.Reader
	writer *hft.Writer // nil: the drive is not where writing goes on
}

// stations are the drives of the pool's library.
type stations struct {
	lib *library.Library
	clk clock.Clock
	log func(format string, args ...any)

	mu      sync.Mutex // guards what follows and what stations say
	list    []*station
	changed chan struct{} // closed and made anew whenever one is given back
}

func newStations(lib *library.Library, clk clock.Clock, log func(string, ...any)) *stations {
	s := &stations{lib: lib, clk: clk, log: log, changed: make(chan struct{})}
	for _, b := range lib.Bays() {
		s.list = append(s.list, &station{bay: b})
	}
	return s
}

// othersPoll is how often a drive that somebody else in the process has is asked for again.
const othersPoll = 500 * time.Millisecond

// take waits for a station: the free one that rank puts highest; one below zero is not wanted. Offline if every wanted one is broken.
func (s *stations) take(ctx context.Context, rank func(*station) int) (*station, error) {
	const op = "take tape drive"
	for {
		s.mu.Lock()
		var free []*station
		var why error
		whole := false
		for _, x := range s.list {
			switch {
			case rank(x) < 0:
			case x.broken != nil:
				why = x.broken
			default:
				if whole = true; !x.taken {
					free = append(free, x)
				}
			}
		}
		changed := s.changed
		slices.SortStableFunc(free, func(a, b *station) int { return rank(b) - rank(a) })
		s.mu.Unlock()
		if !whole {
			return nil, holdfast.Errorf(holdfast.Offline, op, "no drive works: %v", why).Advise("repair the drive; a pool looks again when it is opened")
		}
		for _, x := range free {
			ok, err := s.grab(ctx, x)
			if err != nil || ok {
				return x, err
			}
		}
		after, stop := s.clk.After(othersPoll)
		select {
		case <-changed:
			stop()
		case <-after:
		case <-ctx.Done():
			stop()
			return nil, holdfast.Errorf(holdfast.KindOf(ctx.Err()), op, "%w", ctx.Err())
		}
	}
}

// grab takes one station, if nobody in the process has its drive. An error is the context's.
func (s *stations) grab(ctx context.Context, x *station) (bool, error) {
	s.mu.Lock()
	if x.taken || x.broken != nil {
		s.mu.Unlock()
		return false, nil
	}
	x.taken = true
	s.mu.Unlock()
	if x.hold != nil {
		return true, nil
	}
	x.tape = nil
	h, err := s.lib.Take(ctx, x.bay.Element)
	if err == nil {
		x.hold = h
		return true, nil
	}
	if k := holdfast.KindOf(err); k != holdfast.Busy && k != holdfast.Cancelled {
		s.fail(x, err)
	}
	s.give(x)
	if cerr := ctx.Err(); cerr != nil {
		return false, holdfast.Errorf(holdfast.KindOf(cerr), "take tape drive", "%w", cerr)
	}
	return false, nil
}

func (s *stations) give(x *station) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.taken = false
	close(s.changed)
	s.changed = make(chan struct{})
}

// fail takes a station out of service.
func (s *stations) fail(x *station, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.broken = why
	s.log("tape drive %s is out of service: %v", x.bay.Serial, why)
}

// doubt looks at a station after an error of its drive: one that does not come back is out of service. What is in it must be looked at anew.
func (s *stations) doubt(ctx context.Context, x *station, why error) {
	x.tape = nil
	switch holdfast.KindOf(why) {
	case holdfast.Offline, holdfast.Internal, holdfast.Transient:
		if x.hold == nil || ctx.Err() != nil {
			return
		}
		if err := x.hold.Drive.Ready(ctx); err != nil && ctx.Err() == nil {
			s.fail(x, err)
		}
	}
}

// at returns the station at an element address, nil if it is none of ours.
func (s *stations) at(element uint16) *station {
	i := slices.IndexFunc(s.list, func(x *station) bool { return x.bay.Element == element })
	if i < 0 {
		return nil
	}
	return s.list[i]
}

// rest gives the drives that nobody uses back to the process. Cartridges stay in them.
func (s *stations) rest(ctx context.Context) error {
	var first error
	for _, x := range s.list {
		s.mu.Lock()
		busy := x.taken
		x.taken = true
		s.mu.Unlock()
		if busy {
			continue
		}
		x.tape = nil
		if x.hold != nil {
			if err := x.hold.Release(ctx); err != nil && first == nil {
				first = err
			}
			x.hold = nil
		}
		s.give(x)
	}
	return first
}

// clear takes out what is in a station that the caller has, and brings it back to a slot.
func (s *stations) clear(ctx context.Context, x *station) error {
	inv, err := s.lib.Changer().Inventory(ctx)
	if err != nil {
		return err
	}
	x.tape = nil
	if e, ok := inv.At(x.bay.Element); !ok || !e.Full {
		return nil
	}
	if err := x.hold.Drive.Unload(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		s.log("unload tape drive %s: %v", x.bay.Serial, err) // the robot finds out whether it let go
	}
	_, err = s.lib.Changer().Unload(ctx, x.bay.Element)
	return err
}

// load brings the cartridge at an element into a station that the caller has, and makes it ready.
func (s *stations) load(ctx context.Context, x *station, from uint16, barcode string) error {
	x.tape = nil
	if from != x.bay.Element {
		if err := s.clear(ctx, x); err != nil {
			return err
		}
		if err := s.lib.Changer().Move(ctx, from, x.bay.Element, barcode); err != nil {
			return err
		}
	}
	return x.hold.Drive.Ready(ctx)
}

// rescue takes the cartridge out of a station that is out of service, if its drive lets go.
func (s *stations) rescue(ctx context.Context, x *station) error {
	s.mu.Lock()
	busy := x.taken
	x.taken = true
	s.mu.Unlock()
	if busy {
		return holdfast.Errorf(holdfast.Busy, "take cartridge out of broken drive", "drive %s is in use", x.bay.Serial)
	}
	defer s.give(x)
	if x.hold == nil {
		h, err := s.lib.Take(ctx, x.bay.Element)
		if err != nil {
			return err
		}
		x.hold = h
	}
	return s.clear(ctx, x)
}

// How long a drive may clean itself, and how often the robot looks whether it is done.
const (
	cleanPoll  = 5 * time.Second
	cleanPolls = 240
)

// tend cleans the drive of a station that the caller has, if it asks for it and there is a cleaning cartridge. It reports whether the drive was cleaned.
func (s *stations) tend(ctx context.Context, x *station) (bool, error) {
	alerts, _, err := x.hold.Drive.Alerts(ctx)
	if err != nil || !slices.Contains(alerts, scsi.AlertCleanNow) && !slices.Contains(alerts, scsi.AlertCleanPeriodic) {
		return false, nil // what cannot be asked is found out by the next command
	}
	inv, err := s.lib.Changer().Inventory(ctx)
	if err != nil {
		return false, err
	}
	for _, e := range inv.Slots {
		if !e.Full || !s.lib.Changer().Cleaning(e.Barcode) {
			continue
		}
		if err := s.clear(ctx, x); err != nil {
			return false, err
		}
		s.log("clean tape drive %s with %s", x.bay.Serial, e.Barcode)
		if err := s.lib.Changer().Move(ctx, e.Address, x.bay.Element, e.Barcode); err != nil {
			return false, err
		}
		if err := s.letGo(ctx, x); err != nil {
			return false, err
		}
		if alerts, _, err := x.hold.Drive.Alerts(ctx); err != nil || !slices.Contains(alerts, scsi.AlertCleanExpired) {
			return true, err
		}
		s.log("cleaning cartridge %s is used up", e.Barcode)
	}
	s.log("tape drive %s wants to be cleaned, and there is no cleaning cartridge with uses left", x.bay.Serial)
	return false, nil
}

// letGo brings the cleaning cartridge back as soon as the drive, which takes minutes, lets go of it.
func (s *stations) letGo(ctx context.Context, x *station) error {
	var err error
	for range cleanPolls {
		if _, err = s.lib.Changer().Unload(ctx, x.bay.Element); err == nil || holdfast.KindOf(err) != holdfast.Busy {
			return err
		}
		after, stop := s.clk.After(cleanPoll)
		select {
		case <-after:
		case <-ctx.Done():
			stop()
			return holdfast.Errorf(holdfast.KindOf(ctx.Err()), "clean tape drive", "%w", ctx.Err())
		}
	}
	return err
}
